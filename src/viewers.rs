//! How many watch, as far as this node knows: at its own edge. `GET /admin/viewers`, and what the console says of each stream.

use cluster::{Member, record};
use media::StreamName;
use serde_json::{Value, json};

/// Streams that one answer lists.
const MAX_LISTED: usize = 1000;

/// Counts of this node's edge, and whose edges they leave out.
#[derive(Clone)]
pub(crate) struct Viewers {
    node: String,
    member: Member,
    edge: Option<edge::Control>,
}

impl Viewers {
    /// Of a node with these caches.
    pub(crate) fn new(node: String, member: Member, tiers: &[edge::Control]) -> Viewers {
        Viewers { node, member, edge: tiers.iter().find(|tier| tier.viewers().is_some()).cloned() }
    }

    /// How many watch a live stream here; `None`: no viewers come here.
    pub(crate) fn of(&self, stream: &StreamName) -> Option<u64> {
        self.edge.as_ref()?.viewers_of(&format!("/live/{stream}"))
    }

    /// Names the nodes whose viewers are counted, and the edges that the store knows of besides, whose viewers are not.
    pub(crate) fn mark(&self, answer: &mut Value) {
        let here: Vec<_> = self.edge.iter().map(|_| &self.node).collect();
        let mut elsewhere: Vec<_> = self
            .member
            .nodes()
            .into_iter()
            .filter(|node| node.role == record::Role::Edge)
            .map(|node| node.name)
            .collect();
        elsewhere.retain(|name| !here.contains(&name));
        elsewhere.sort();
        elsewhere.dedup();
        answer["viewers_at"] = json!(here);
        answer["viewers_not_at"] = json!(elsewhere);
    }

    /// As JSON; `None`: no viewers come here.
    pub(crate) fn show(&self) -> Option<Value> {
        let edge = self.edge.as_ref()?;
        let mut streams = edge.watched()?;
        let stream_count = streams.len();
        streams.truncate(MAX_LISTED);
        let mut answer =
            json!({ "viewers": edge.viewers(), "stream_count": stream_count, "streams": streams });
        self.mark(&mut answer);
        Some(answer)
    }
}
