//! Nodes of one fleet, by the handle that the roles use: the same stories with an embedded store that they share and with a
//! real etcd, which is then frozen, killed and started again.

mod kit;

use std::sync::Arc;
use std::time::Duration;

use cluster::claim::Refusal;
use cluster::member::{Contact, Options};
use cluster::record::{Role, Which};
use cluster::store::{Embedded, Store};
use cluster::token::Claims;
use cluster::{Member, Metrics, Ring};
use kit::Etcd;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A node at work.
struct Node {
    member: Member,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    fn start(store: &Arc<dyn Store>, name: &str, instance: u64) -> Node {
        let options = Options {
            name: name.into(),
            instance,
            lease_ttl: Duration::from_secs(2),
            revocations_kept: Duration::from_secs(3600),
            resume_within: Duration::from_secs(60),
            follow_nodes: true,
        };
        let rings = [(); 2].map(|()| Ring::new(Vec::new()));
        let [origins, shields] = rings;
        let member = Member::new(store.clone(), options, origins, shields, Metrics::unread());
        member.announce(Role::Origin, &format!("{name}:1"), 64);
        let (stop, served) = (CancellationToken::new(), member.clone());
        let shutdown = stop.clone();
        let task = tokio::spawn(async move { served.serve(shutdown).await });
        Node { member, stop, task }
    }

    async fn contact(&self, wanted: fn(&Contact) -> bool) {
        self.member.contact().wait_for(wanted).await.unwrap();
    }

    async fn leave(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    /// Waits until its ring says so.
    async fn placed(&self, stream: &str, expected: &[&str]) {
        let mut changes = self.member.origins().changes();
        loop {
            changes.mark_unchanged();
            let nodes = self.member.origins().placement(stream);
            let mut names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
            names.sort_unstable();
            if names == expected {
                return;
            }
            changes.changed().await.unwrap();
        }
    }
}

async fn stores() -> Vec<(Arc<dyn Store>, Option<Etcd>)> {
    let mut stores: Vec<(Arc<dyn Store>, _)> = vec![(Arc::new(Embedded::default()), None)];
    if let Some(etcd) = Etcd::start() {
        stores.push((Arc::new(etcd.store("/fleet/").await), Some(etcd)));
    }
    stores
}

#[tokio::test]
async fn a_stream_has_one_owner_and_who_lost_it_need_not_wait() {
    for (store, _etcd) in stores().await {
        let (a, b) = (Node::start(&store, "a", 1), Node::start(&store, "b", 2));
        a.placed("s", &["a", "b"]).await;
        b.placed("s", &["a", "b"]).await;
        let first = a.member.claim("s", "one", Vec::new()).await.unwrap();
        let refused = b.member.claim("s", "two", Vec::new()).await;
        assert_eq!(refused, Err(Refusal::Elsewhere { owner: "a".into(), address: "a:1".into() }));
        let again = a.member.claim("s", "one again", Vec::new()).await.unwrap();
        assert!(again.epoch > first.epoch && !a.member.holds(&first) && a.member.holds(&again));

        let second = b.member.claim("s", "one", vec!["a".into()]).await.unwrap();
        assert!(second.epoch > again.epoch);
        a.member.fenced(&again).await;
        assert_eq!(a.member.renew(&again).await, None);
        assert_eq!(a.member.elsewhere("s"), Some(("b".into(), "b:1".into())));
        assert_eq!(a.member.holder("s").as_deref(), Some("one"));
        assert_eq!(a.member.origins().candidates("s")[0].name, "b", "its owner is asked first");

        // Who drains gives up its streams to whoever comes, and gets no new ones.
        b.member.drain();
        a.placed("s", &["a"]).await;
        let third = a.member.claim("s", "three", Vec::new()).await.unwrap();
        assert!(third.epoch > second.epoch);
        b.member.fenced(&second).await;

        a.member.forget(&third);
        b.leave().await;
        a.placed("s", &["a"]).await;
        let restarted = Node::start(&store, "b", 3);
        a.placed("s", &["a", "b"]).await;
        let fourth = restarted.member.claim("s", "four", vec!["a".into()]).await.unwrap();
        assert!(fourth.epoch > third.epoch);
        a.leave().await;
        restarted.leave().await;
    }
}

#[tokio::test]
async fn what_one_revokes_all_refuse_and_those_that_come_later() {
    for (store, _etcd) in stores().await {
        let (a, b) = (Node::start(&store, "a", 1), Node::start(&store, "b", 2));
        b.contact(|contact| *contact == Contact::Up).await;
        let claims =
            Claims { sub: "s".into(), iat: 5, exp: u64::MAX, jti: Some("7f/é".into()), ..Claims::default() };
        let refused = |revoked: &cluster::revoked::Revoked| revoked.contains(&claims);
        assert!(!refused(&b.member.revoked().borrow()));
        a.member.revoke(Which::Id("7f/é".into()));
        b.member.revoked().wait_for(refused).await.unwrap();
        a.leave().await;
        let late = Node::start(&store, "c", 3);
        late.member.revoked().wait_for(refused).await.unwrap();
        b.leave().await;
        late.leave().await;
    }
}

#[tokio::test]
async fn without_the_store_what_runs_goes_on() {
    let Some(mut etcd) = Etcd::start() else { return };
    let store: Arc<dyn Store> = Arc::new(etcd.store("/fleet/").await);
    let (a, b) = (Node::start(&store, "a", 1), Node::start(&store, "b", 2));
    a.placed("s", &["a", "b"]).await;
    let mut grant = a.member.claim("s", "one", Vec::new()).await.unwrap();
    let is_up = |contact: &Contact| *contact == Contact::Up;
    let is_lost = |contact: &Contact| matches!(contact, Contact::Lost(_));
    for kill in [false, true] {
        if kill {
            etcd.kill();
        } else {
            etcd.freeze();
        }
        a.contact(is_lost).await;
        b.contact(is_lost).await;
        let again = a.member.claim("s", "again", Vec::new()).await.unwrap();
        assert!(again.epoch > grant.epoch);
        grant = a.member.renew(&again).await.unwrap();
        let refused = a.member.claim("new", "one", Vec::new()).await;
        assert!(
            matches!(&refused, Err(Refusal::NoStore(why)) if why.contains("cannot be reached")),
            "{refused:?}"
        );
        let refused = b.member.claim("s", "two", vec!["a".into()]).await;
        assert!(matches!(refused, Err(Refusal::NoStore(_))), "{refused:?}");
        a.member.revoke(Which::Stream(format!("revoked while killed: {kill}")));
        if kill {
            etcd.restart();
        } else {
            etcd.thaw();
        }
        a.contact(is_up).await;
        b.contact(is_up).await;
        assert!(a.member.holds(&grant));
        // What was said meanwhile is known to all.
        b.member
            .revoked()
            .wait_for(|revoked| revoked.records().count() == 1 + usize::from(kill))
            .await
            .unwrap();
        b.placed("s", &["a", "b"]).await;
        let refused = b.member.claim("s", "two", Vec::new()).await;
        assert!(matches!(refused, Err(Refusal::Elsewhere { .. })), "{refused:?}");
    }
    let taken = b.member.claim("s", "two", vec!["a".into()]).await.unwrap();
    assert!(taken.epoch > grant.epoch, "{taken:?} after {grant:?}");
    a.member.fenced(&grant).await;
    a.leave().await;
    b.leave().await;
}

#[tokio::test]
async fn a_store_that_was_never_there_is_told_apart() {
    let Some(mut etcd) = Etcd::start() else { return };
    let store: Arc<dyn Store> = Arc::new(etcd.store("/fleet/").await);
    etcd.kill();
    let node = Node::start(&store, "a", 1);
    node.contact(|contact| matches!(contact, Contact::Never(why) if why.contains("cannot be reached"))).await;
    etcd.restart();
    node.contact(|contact| *contact == Contact::Up).await;
    node.leave().await;
}
