//! Pushing a stream: what has become new since the last look, told to the nodes that subscribed to it.
//!
//! A stream that nobody is subscribed to costs nothing: its feed begins with the first subscriber and ends with the last.
//! Each playlist is rendered once for all of them, under its plain name and under every name that a player may be
//! blocking on for just this update; so is its delta update, which most players ask for. What will come next is promised, so
//! that requests for it wait for the push.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use media::push::PING_EVERY;
use media::push::frame::{Frame, Head, MAX_NAMES, Name};
use media::push::hub::{Hub, Subscriber};
use media::{Epoch, Object, RenditionId, SegmentNumber};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{debug, warn};

use crate::broadcast::{RenditionView, SegmentView, View};
use crate::hls::{Directives, Skip};
use crate::live::{Found, Live, State};
use crate::{Config, Shared, http, path, relay};

/// Segments of each rendition looked at: more than a feed can fall behind without its subscribers having gone.
const LOOK_BACK: usize = 8;

/// Segments of each rendition that a new subscriber is given: the one that grows and the one before. Players begin three
/// parts behind, so that is what they ask for; what is older is worth a fetch.
const SEGMENTS_KEPT: u8 = 2;

const MULTIVARIANT_SLOT: u32 = 0;
const MPD_SLOT: u32 = 1;
/// Then four for each rendition: playlists, init segments, segments, delta updates.
const FIRST_RENDITION_SLOT: u32 = 2;
const SLOTS_PER_RENDITION: u32 = 4;

/// Names of one update that players may block on, and each is also that of its delta update in two forms. An update has
/// three as a rule; those of a feed that fell behind and are left out are fetched.
const MAX_BLOCKED: usize = MAX_NAMES / 2;

/// The delta updates of a name that has directives already.
const SKIPS: [&str; 2] = ["&_HLS_skip=YES", "&_HLS_skip=v2"];

/// Subscribes to a stream; `None` when there are too many subscribers, or at shutdown.
pub(crate) fn subscribe(shared: &Arc<Shared>, live: &Arc<Live>) -> Option<Told> {
    if shared.shutdown.is_cancelled() {
        return None;
    }
    let mut hubs = shared.hubs();
    let subscriber = match hubs.get(live.name()) {
        // One that is over is about to be taken out by its feed.
        Some(hub) if hub.subscribers() > 0 => hub.subscribe()?,
        _ => {
            let hub = Hub::new();
            let versions = live.versions();
            let mut feed = Feed::new(hub.clone(), live);
            feed.look(live, &shared.config);
            let subscriber = hub.subscribe()?;
            hubs.insert(live.name().clone(), hub);
            shared.tasks.spawn(run(shared.clone(), live.clone(), feed, versions));
            subscriber
        }
    };
    Some(Told::new(subscriber, shared))
}

/// Tells what is new for as long as there is someone to tell.
async fn run(shared: Arc<Shared>, live: Arc<Live>, mut feed: Feed, mut versions: watch::Receiver<u64>) {
    debug!(stream = %live.name(), "push begins");
    let hub = feed.hub.clone();
    let mut lagged = 0;
    loop {
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => {
                hub.end();
                break;
            }
            () = hub.vacant() => {
                let mut hubs = shared.hubs();
                // Someone may have come meanwhile.
                if hub.subscribers() == 0 {
                    leave(&mut hubs, &live, &hub);
                    break;
                }
            }
            changed = versions.changed() => {
                if changed.is_err() || feed.look(&live, &shared.config) == State::Ended {
                    hub.gone();
                    break;
                }
                shared.metrics.pushes_cut.inc_by(hub.lagged() - lagged);
                lagged = hub.lagged();
            }
        }
    }
    leave(&mut shared.hubs(), &live, &hub);
    debug!(stream = %live.name(), "push ends");
}

/// A later feed of the same stream may have taken its place.
fn leave(hubs: &mut crate::Hubs, live: &Live, hub: &Hub) {
    if hubs.get(live.name()).is_some_and(|other| other.is(hub)) {
        hubs.remove(live.name());
    }
}

/// What was told of a stream so far.
struct Feed {
    hub: Hub,
    /// `/live/{stream}`
    prefix: String,
    renditions: BTreeMap<RenditionId, Seen>,
    next_slot: u32,
    /// When manifests of the whole stream are looked at again: with each segment, run, and state.
    manifests: Option<(State, Epoch, Option<SegmentNumber>)>,
    multivariant: String,
    mpd: String,
    /// When the newest part that was told of came in.
    time_us: Option<i64>,
}

struct Seen {
    slot: u32,
    init: Option<Epoch>,
    segment: Option<(Epoch, SegmentNumber)>,
    playlist: Option<Listed>,
    promised: Vec<Box<str>>,
}

/// What the text of a media playlist depends on, its rendition reports apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listed {
    edge: Edge,
    epoch: Epoch,
    run: Epoch,
    state: State,
}

/// The newest end of what is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edge {
    number: SegmentNumber,
    parts: u64,
    open: bool,
}

impl Feed {
    fn new(hub: Hub, live: &Live) -> Feed {
        Feed {
            hub,
            prefix: format!("/live/{}", live.name()),
            renditions: BTreeMap::new(),
            next_slot: FIRST_RENDITION_SLOT,
            manifests: None,
            multivariant: String::new(),
            mpd: String::new(),
            time_us: None,
        }
    }

    /// Tells what is new, and how the stream stands.
    fn look(&mut self, live: &Live, config: &Config) -> State {
        let Some(view) = live.view(LOOK_BACK) else { return State::Offline };
        if let Some(us) = live.hops.newest_us().filter(|us| self.time_us.replace(*us) != Some(*us)) {
            self.hub.time(us.max(0) as u64);
        }
        for rendition in &view.renditions {
            self.rendition(live, &view, rendition);
        }
        let newest = view.renditions.iter().filter_map(|rendition| closed(&rendition.segments).last());
        let manifests = (view.state, view.run, newest.map(|segment| segment.number).max());
        if self.manifests.replace(manifests) != Some(manifests) {
            self.stream(live, config);
        }
        view.state
    }

    fn rendition(&mut self, live: &Live, view: &View, rendition: &RenditionView) {
        let next_slot = &mut self.next_slot;
        let seen = self.renditions.entry(rendition.id.clone()).or_insert_with(|| {
            let slot = *next_slot;
            *next_slot += SLOTS_PER_RENDITION;
            Seen { slot, init: None, segment: None, playlist: None, promised: Vec::new() }
        });
        let (slot, id) = (seen.slot, &rendition.id);
        let mut objects = Vec::new();
        if let Some((epoch, init)) = &rendition.init
            && seen.init.replace(*epoch) != Some(*epoch)
        {
            let (path, etag) = (path::init(*epoch, id), http::init_etag(*epoch, id));
            objects.push((slot + 1, 1, path, etag, Object::complete(init.clone())));
        }
        let first_look = seen.segment.is_none();
        let there = rendition.segments.iter().filter(|segment| segment.object.is_some()).count();
        let skip = if first_look { there.saturating_sub(SEGMENTS_KEPT.into()) } else { 0 };
        let with_media =
            rendition.segments.iter().filter_map(|segment| Some((segment, segment.object.as_ref()?)));
        for (segment, object) in with_media.skip(skip) {
            let (epoch, number) = (segment.epoch, segment.number);
            if seen.segment.is_none_or(|newest| newest < (epoch, number)) {
                seen.segment = Some((epoch, number));
                let (path, etag) = (path::segment(epoch, id, number), http::segment_etag(epoch, id, number));
                objects.push((slot + 2, SEGMENTS_KEPT, path, etag, object.clone()));
            }
        }
        let outstanding = std::mem::take(&mut seen.promised);
        let before = seen.playlist;
        let now = edge(&rendition.segments).map(|edge| Listed {
            edge,
            epoch: rendition.epoch,
            run: view.run,
            state: view.state,
        });
        let changed = now.is_some() && now != before && closed(&rendition.segments).next().is_some();
        if changed {
            seen.playlist = now;
        }

        let media_type = live.media_type(id);
        for (slot, keep, path, etag, object) in objects {
            let name = name(format!("{}/{path}", self.prefix), http::IMMUTABLE, false);
            self.publish(slot, keep, vec![name], media_type, Some(etag), object);
        }
        let file = format!("{}/{id}.m3u8", self.prefix);
        let mut blocked: Vec<Box<str>> = Vec::new();
        if changed {
            blocked = match view.state {
                // After EXT-X-ENDLIST the directives mean nothing: all who wait have their answer.
                State::Ended => outstanding.iter().filter(|key| is_blocking(key)).cloned().collect(),
                _ => reached(before.map(|before| before.edge), &rendition.segments)
                    .into_iter()
                    .map(|directives| keyed(&file, directives))
                    .collect(),
            };
            blocked.truncate(MAX_BLOCKED);
        }
        let coming = if view.state == State::Live && rendition.epoch == view.run {
            let mut keys: Vec<_> =
                next(&rendition.segments).into_iter().map(|directives| keyed(&file, directives)).collect();
            if let Some(last) = rendition.segments.last() {
                let path = path::segment(rendition.epoch, id, last.number.next());
                keys.push(format!("{}/{path}", self.prefix).into());
            }
            keys
        } else {
            Vec::new()
        };
        // What comes right behind is still promised, or those who wait for it would ask upstream.
        let named = || blocked.iter().chain(&coming);
        let promised: Vec<_> = named()
            .cloned()
            .chain(named().filter(|key| is_blocking(key)).flat_map(|key| skipping(key)))
            .collect();
        if coming != outstanding
            && let Err(fault) = self.hub.promise(slot, promised)
        {
            warn!(prefix = self.prefix, %fault, "promise not pushed");
        }
        if let Some(seen) = self.renditions.get_mut(id) {
            seen.promised = coming;
        }
        if changed && let Ok(Found::Ready(text)) = live.playlist(id, Directives::default(), None) {
            let mut names = vec![name(file, &http::playlist_control(live, false), true)];
            let control = http::playlist_control(live, true);
            let skipping: Vec<_> =
                blocked.iter().flat_map(|key| skipping(key)).map(|key| name(key, &control, false)).collect();
            names.extend(blocked.into_iter().map(|key| name(key, &control, false)));
            self.publish(slot, 1, names, http::HLS_TYPE, None, Object::complete(text.into()));
            let delta = Directives { skip: Some(Skip::DateRanges), ..Directives::default() };
            if !skipping.is_empty()
                && let Ok(Found::Ready(text)) = live.playlist(id, delta, None)
            {
                self.publish(slot + 3, 1, skipping, http::HLS_TYPE, None, Object::complete(text.into()));
            }
        }
    }

    fn stream(&mut self, live: &Live, config: &Config) {
        if let Some(text) = live.multivariant("")
            && text != self.multivariant
        {
            self.multivariant.clone_from(&text);
            let name = name(format!("{}/index.m3u8", self.prefix), http::MULTIVARIANT_CONTROL, true);
            let body = Object::complete(text.into());
            self.publish(MULTIVARIANT_SLOT, 1, vec![name], http::HLS_TYPE, None, body);
        }
        let latency_ms = config.dash_latency.as_millis() as u64;
        if let Some(text) = live.mpd(latency_ms, relay::unix_ms(), &config.time_url, None)
            && text != self.mpd
        {
            self.mpd.clone_from(&text);
            let name = name(format!("{}/manifest.mpd", self.prefix), http::MPD_CONTROL, true);
            self.publish(MPD_SLOT, 1, vec![name], http::DASH_TYPE, None, Object::complete(text.into()));
        }
    }

    fn publish(
        &self,
        slot: u32,
        keep: u8,
        names: Vec<Name>,
        content_type: &'static str,
        etag: Option<String>,
        body: Object,
    ) {
        let progress = body.progress();
        let length = (progress.end == media::object::End::Complete).then_some(progress.len);
        let mut fields = vec![("content-type".into(), Bytes::from_static(content_type.as_bytes()))];
        fields.extend(etag.map(|etag| ("etag".into(), Bytes::from(etag))));
        let head = Head { slot, keep, status: 200, length, names, fields };
        if let Err(fault) = self.hub.publish(head, body) {
            warn!(prefix = self.prefix, %fault, "object not pushed");
        }
    }
}

fn name(key: impl Into<Box<str>>, control: &str, live: bool) -> Name {
    Name { key: key.into(), control: control.into(), live }
}

/// The canonical name of a playlist with delivery directives.
fn keyed(file: &str, (msn, part): (u64, Option<u64>)) -> Box<str> {
    match part {
        Some(part) => format!("{file}?_HLS_msn={msn}&_HLS_part={part}").into(),
        None => format!("{file}?_HLS_msn={msn}").into(),
    }
}

/// A playlist's name rather than a segment's.
fn is_blocking(key: &str) -> bool {
    key.contains('?')
}

/// The names of the delta updates of a playlist with directives.
fn skipping(key: &str) -> impl Iterator<Item = Box<str>> + use<> {
    SKIPS.map(|skip| format!("{key}{skip}").into()).into_iter()
}

fn closed(segments: &[SegmentView]) -> impl DoubleEndedIterator<Item = &SegmentView> {
    segments.iter().filter(|segment| !segment.open)
}

/// An open segment without a part is not listed yet.
fn edge(segments: &[SegmentView]) -> Option<Edge> {
    let last = segments.iter().rev().find(|segment| !segment.open || segment.parts > 0)?;
    Some(Edge { number: last.number, parts: last.parts, open: last.open })
}

/// Directives (`_HLS_msn`, `_HLS_part`) that are satisfied now and were not at `before`, the newest first; as
/// [`crate::window::Window::has`] has it. Of a stream not seen before: what its newest part and segment satisfy.
fn reached(before: Option<Edge>, segments: &[SegmentView]) -> Vec<(u64, Option<u64>)> {
    let mut reached = Vec::new();
    for (index, segment) in segments.iter().enumerate().rev() {
        let number = segment.number.0;
        let (known_parts, was_open) = match before {
            Some(edge) if edge.number > segment.number => break,
            Some(edge) if edge.number == segment.number => (edge.parts, edge.open),
            Some(_) => (0, true),
            None => (segment.parts.saturating_sub(1), true),
        };
        if was_open && !segment.open {
            reached.push((number, None));
            // A gap stands for its part 0.
            if segment.parts == 0 {
                reached.push((number, Some(0)));
                reached.extend(past_the_last(&segments[..index]));
            }
        }
        for part in (known_parts..segment.parts).rev() {
            reached.push((number, Some(part)));
            if part == 0 {
                reached.extend(past_the_last(&segments[..index]));
            }
        }
        if before.is_none() && !segment.open {
            break;
        }
    }
    reached
}

/// What part 0 of the next segment is also called: the part past the last one of these segments. Of a gap nothing is left.
fn past_the_last(segments: &[SegmentView]) -> Option<(u64, Option<u64>)> {
    let last = segments.last().filter(|last| last.parts > 0)?;
    Some((last.number.0, Some(last.parts)))
}

/// Directives that the next part or two will satisfy.
fn next(segments: &[SegmentView]) -> Vec<(u64, Option<u64>)> {
    let Some(last) = segments.last() else { return Vec::new() };
    let (number, parts) = (last.number.0, last.parts);
    if !last.open {
        let mut names: Vec<_> = past_the_last(segments).into_iter().collect();
        names.extend([(number + 1, Some(0)), (number + 1, Some(1)), (number + 1, None)]);
        return names;
    }
    let mut names =
        vec![(number, Some(parts)), (number, Some(parts + 1)), (number, None), (number + 1, Some(0))];
    if parts == 0 {
        names.extend(past_the_last(&segments[..segments.len() - 1]));
    }
    names
}

/// What one subscriber is told: the body of its answer, with a sign of life now and then.
pub(crate) struct Told {
    subscriber: Subscriber,
    ping: Interval,
    metrics: crate::Metrics,
}

impl Told {
    fn new(subscriber: Subscriber, shared: &Shared) -> Told {
        let mut ping = tokio::time::interval(PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        shared.metrics.pushes.inc();
        Told { subscriber, ping, metrics: shared.metrics.clone() }
    }

    /// The next bytes; `None` at the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let next = match self.subscriber.poll_next(cx) {
            Poll::Pending => match self.ping.poll_tick(cx) {
                Poll::Ready(_) => {
                    let mut ping = BytesMut::new();
                    Frame::Ping.encode(&mut ping).expect("it has no payload");
                    Poll::Ready(Some(ping.freeze()))
                }
                Poll::Pending => Poll::Pending,
            },
            next => next,
        };
        if let Poll::Ready(Some(bytes)) = &next {
            self.metrics.pushed_bytes.inc_by(bytes.len() as u64);
        }
        next
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.metrics.pushes.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broadcast::NewRendition;
    use crate::hls::{Kind, Targets, Variant};
    use crate::window::Bitrate;
    use media::push::Decoder;
    use media::time::Timescale;
    use std::task::Waker;

    const RUN: Epoch = Epoch(7);

    struct World {
        live: Live,
        feed: Feed,
        subscriber: Subscriber,
        decoder: Decoder,
        names: BTreeMap<u32, String>,
    }

    fn id(name: &str) -> RenditionId {
        name.parse().unwrap()
    }

    fn begin(live: &Live, epoch: Epoch) -> u64 {
        let targets = Targets { segment_duration: 90_000, part_target: 45_000 };
        let place = live.place(1000, crate::live::Follow::Clock, targets);
        let variant = Variant {
            id: id("v"),
            codec: "avc1".into(),
            bitrate_bps: 1000,
            measured: Bitrate::default(),
            kind: Kind::Video { width: 64, height: 64, frame_rate: None },
        };
        let init = Bytes::from_static(b"init");
        let new = NewRendition { variant, timescale: Timescale::VIDEO, init };
        live.begin(epoch, place, 6 * 90_000, 1000, vec![new], Vec::new());
        place.first.0
    }

    impl World {
        /// A stream with segment 1 complete, in two parts, and a subscriber who has heard of it.
        fn new() -> World {
            let live = Live::new("s".parse().unwrap());
            assert_eq!(begin(&live, RUN), 1);
            let hub = Hub::new();
            let feed = Feed::new(hub.clone(), &live);
            let (subscriber, decoder) = (hub.subscribe().unwrap(), Decoder::default());
            let world = World { live, feed, subscriber, decoder, names: BTreeMap::new() };
            world.open(1);
            world.part();
            world.part();
            world.live.close(RUN, &id("v"));
            world
        }

        fn open(&self, number: u64) {
            self.live.open(RUN, &id("v"), SegmentNumber(number), number as i64 * 90_000);
        }

        fn part(&self) {
            self.live.part(RUN, &id("v"), Bytes::from_static(b"part"), 45_000, true);
        }

        /// What a look makes the publisher say: `name name = body` for what is whole, `+name` and `+` for what begins or
        /// goes on, `promise: names`; all names without `/live/s/`, directives as `msn.part`.
        fn told(&mut self) -> Vec<String> {
            self.feed.look(&self.live, &Config::default());
            let mut cx = Context::from_waker(Waker::noop());
            let (mut said, mut bodies) = (Vec::new(), BTreeMap::<u32, Vec<u8>>::new());
            while let Poll::Ready(Some(mut bytes)) = self.subscriber.poll_next(&mut cx) {
                while let Some(frame) = self.decoder.next(&mut bytes).unwrap() {
                    match frame {
                        Frame::Begin { id, head } => {
                            let keys: Vec<_> = head.names.iter().map(|name| &*name.key).collect();
                            let live = head.names.iter().map(|name| name.live);
                            let manifest =
                                head.names[0].key.ends_with("m3u8") || head.names[0].key.ends_with("mpd");
                            assert!(live.eq((0..keys.len()).map(|index| index == 0 && manifest)), "{keys:?}");
                            assert!(head.names.iter().all(|name| name.control.contains("max-age=")));
                            self.names.insert(id, short(&keys));
                            bodies.insert(id, Vec::new());
                        }
                        Frame::Data { id, bytes } => match bodies.get_mut(&id) {
                            Some(body) => body.extend_from_slice(&bytes),
                            None => said.push(format!("+{}", self.names[&id])),
                        },
                        Frame::End { id } => match bodies.remove(&id) {
                            Some(_) => said.push(self.names[&id].clone()),
                            None => said.push(format!("{}.", self.names[&id])),
                        },
                        Frame::Promise { keys, .. } => {
                            let keys: Vec<_> = keys.iter().map(|key| &**key).collect();
                            said.push(format!("promise: {}", short(&keys)));
                        }
                        other => said.push(format!("{other:?}")),
                    }
                }
            }
            said.extend(bodies.keys().map(|id| format!("+{}", self.names[id])));
            said
        }
    }

    /// Delta updates as `name~`, once for both forms.
    fn short(keys: &[&str]) -> String {
        let short = |key: &&str| {
            let key = key.strip_prefix("/live/s/").unwrap();
            let key = key.replace("v.m3u8?_HLS_msn=", "").replace("&_HLS_part=", ".").replace("7/v/", "");
            key.replace(SKIPS[0], "~").replace(SKIPS[1], "~")
        };
        let mut keys: Vec<_> = keys.iter().map(short).collect();
        keys.dedup();
        keys.join(" ")
    }

    #[test]
    fn each_update_has_the_names_that_players_block_on() {
        let mut world = World::new();
        let first = [
            "promise: 1 1.1 1.2 2.0 2.1 2 2.m4s 1~ 1.1~ 1.2~ 2.0~ 2.1~ 2~",
            "init.mp4",
            "v.m3u8 1 1.1",
            "1~ 1.1~",
            "index.m3u8",
            "manifest.mpd",
            "1.m4s",
        ];
        assert_eq!(world.told(), first);
        assert_eq!(world.told(), [""; 0], "nothing new");
        world.open(2);
        assert_eq!(world.told(), ["promise: 2.0 2.1 2 3.0 1.2 3.m4s 2.0~ 2.1~ 2~ 3.0~ 1.2~", "+2.m4s"]);
        world.part();
        // Bytes first: they need no rendering.
        let part = [
            "+2.m4s",
            "promise: 2.0 1.2 2.1 2.2 2 3.0 3.m4s 2.0~ 1.2~ 2.1~ 2.2~ 2~ 3.0~",
            "v.m3u8 2.0 1.2",
            "2.0~ 1.2~",
        ];
        let mut told = world.told();
        told.sort_by_key(|said| !said.starts_with('+'));
        assert_eq!(told, part);
        world.part();
        world.live.close(RUN, &id("v"));
        let told = world.told();
        assert!(told.contains(&"v.m3u8 2 2.1".into()) && told.contains(&"2.m4s.".into()), "{told:?}");
        assert!(
            told.iter().any(|said| said.starts_with("promise: 2 2.1 2.2 3.0 3.1 3 3.m4s 2~ ")),
            "{told:?}"
        );
        assert!(told.contains(&"manifest.mpd".into()), "the window has grown: {told:?}");

        // Two updates at once: the newer text will do for both.
        world.open(3);
        world.part();
        world.part();
        let told = world.told();
        assert!(told.contains(&"v.m3u8 3.1 3.0 2.2".into()), "{told:?}");
    }

    #[test]
    fn nothing_is_promised_while_the_broadcaster_is_away_and_the_end_answers_all() {
        let mut world = World::new();
        world.told();
        world.open(2);
        world.part();
        world.told();
        let state = world.live.interrupt(false);
        let told = world.told();
        assert!(
            told.contains(&"promise: 2 2~".into()),
            "the segment that was cut short, and no more: {told:?}"
        );
        assert!(told.contains(&"v.m3u8 2".into()) && told.contains(&"2.m4s.".into()), "{told:?}");

        assert_eq!(begin(&world.live, Epoch(8)), 3);
        world.live.open(Epoch(8), &id("v"), SegmentNumber(3), 3 * 90_000);
        let told = world.told();
        assert!(told.iter().any(|said| said.contains("8/v/init.mp4")), "{told:?}");
        assert!(
            told.iter().any(|said| said.starts_with("promise: 3.0 3.1 3 4.0 2.1 8/v/4.m4s 3.0~ ")),
            "{told:?}"
        );
        world.live.part(Epoch(8), &id("v"), Bytes::from_static(b"part"), 45_000, true);
        world.told();
        assert!(!world.live.end(state), "it goes on");
        let state = world.live.interrupt(false);
        world.told();
        assert!(world.live.end(state));
        assert_eq!(world.feed.look(&world.live, &Config::default()), State::Ended);
        world.feed.hub.gone();
        let told = world.told();
        assert!(told.contains(&"v.m3u8".into()) && told.contains(&"manifest.mpd".into()), "{told:?}");
        assert_eq!(told.last().unwrap(), "Gone");
    }

    #[test]
    fn a_gap_answers_those_who_wait_for_its_parts() {
        let segment = |number, parts, open| SegmentView {
            number: SegmentNumber(number),
            epoch: RUN,
            parts,
            open,
            object: None,
        };
        let edge = |number, parts, open| Some(Edge { number: SegmentNumber(number), parts, open });
        let segments = [segment(1, 2, false), segment(2, 0, false), segment(3, 1, true)];
        let gap = [(2, None), (2, Some(0)), (1, Some(2))];
        assert_eq!(reached(edge(1, 2, true), &segments[..2]), [&gap[..], &[(1, None)]].concat());
        assert_eq!(reached(edge(1, 2, false), &segments), [&[(3, Some(0))], &gap[..]].concat());
        assert_eq!(reached(edge(2, 0, false), &segments), [(3, Some(0))]);
        assert_eq!(reached(edge(3, 1, true), &segments), []);
        assert_eq!(next(&segments[..2]), [(3, Some(0)), (3, Some(1)), (3, None)]);
    }
}
