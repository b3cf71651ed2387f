//! What this origin has done.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// What was repaired: one of the names of [`crate::repair::Repairs::kinds`], or `composition`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// The label.
    pub kind: &'static str,
}

/// Why a timeline broke: one of the names of [`crate::feed::Break`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// The label.
    pub reason: &'static str,
}

/// A station that frames pass: one of the names of [`crate::hops::Hop`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Passed {
    /// The label.
    pub hop: &'static str,
}

/// Seconds that frames took, by hop.
#[derive(Debug, Clone)]
pub struct Hops(Family<Passed, Histogram, fn() -> Histogram>);

/// From what a copied frame takes to what nobody should have to wait for.
const HOP_BUCKETS: [f64; 13] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0];

impl Default for Hops {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(HOP_BUCKETS)))
    }
}

impl Hops {
    /// A frame has passed `hop`, so many microseconds after it came in.
    pub fn note(&self, hop: crate::hops::Hop, us: i64) {
        self.0.get_or_create(&Passed { hop: hop.name() }).observe(us.max(0) as f64 / 1e6);
    }
}

type Repaired = Family<Kind, Counter>;
type Breaks = Family<Reason, Counter>;

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident,)+) => {
        /// Counters of one origin; clones share them.
        #[derive(Debug, Clone, Default)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $field: $kind,)+
            /// Seconds from when a frame came in at its POP to when it had passed a station of the origin.
            pub hops: Hops,
        }

        impl Metrics {
            /// Counters under `origin_*` in `registry`, the field's documentation as help.
            pub fn register(registry: &mut Registry) -> Self {
                let metrics = Self::default();
                $(registry.register(
                    concat!("origin_", stringify!($field)),
                    concat!($($help),+).trim_start().trim_end_matches('.'),
                    metrics.$field.clone(),
                );)+
                registry.register(
                    "origin_hop_seconds",
                    "Seconds from when a frame came in at its POP to when it had passed a station of the origin",
                    metrics.hops.0.clone(),
                );
                metrics
            }
        }
    };
}

metrics! {
    /// Streams that are live or in their reconnect grace.
    streams: Gauge,
    /// Broadcaster sessions that are being relayed here.
    sessions: Gauge,
    /// Sessions that ended, for whatever reason.
    sessions_ended: Counter,
    /// Sessions that ended because of what the broadcaster sent.
    sessions_rejected: Counter,
    /// Relay requests refused for their token.
    relays_refused: Counter,
    /// Bytes received over relays.
    received_bytes: Counter,
    /// Runs begun: one per session and per break of its timeline.
    runs: Counter,
    /// Source frames that came before they could be used.
    frames_skipped: Counter,
    /// Frames that were moved in time by repair, or left out for their time, by kind.
    frames_repaired: Repaired,
    /// Runs that ended because their timeline broke, by reason.
    timeline_breaks: Breaks,
    /// Times that a source's video was no more passed through, since no keyframe came where a segment should begin.
    passthrough_ends: Counter,
    /// New sessions of streams that had one, by what they go on with: `repeated` frames of the one before, the one that
    /// `followed`, after having been `away`, or with something `new`.
    successions: Repaired,
    /// Frames that a session brought which the one before had brought already.
    frames_repeated: Counter,
    /// Messages with tracks beside the first of their kind, which are not taken.
    tracks_ignored: Counter,
    /// Events that broadcasters sent, by kind: `scte35` or other `data`.
    events: Repaired,
    /// Data messages that did not become events, by reason: `size`, `rate`, `unreadable`.
    events_refused: Breaks,
    /// Audio frames that came after their segment had been given up.
    frames_late: Counter,
    /// Segments given up because nothing came for them.
    gaps: Counter,
    /// Parts published, all renditions together.
    parts: Counter,
    /// Segments published, all renditions together.
    segments: Counter,
    /// Bytes published, all renditions together.
    published_bytes: Counter,
    /// Pushes of streams under way.
    pushes: Gauge,
    /// Pushes ended because their subscriber was too slow.
    pushes_cut: Counter,
    /// Bytes pushed to subscribers.
    pushed_bytes: Counter,
    /// Streams of other origins that are mirrored here.
    mirrored_streams: Gauge,
    /// Bytes that came for them.
    mirrored_bytes: Counter,
    /// How long ago, in milliseconds, the owner told what was mirrored last: by its clock and this one's.
    mirror_lag_ms: Gauge,
    /// Mirrors that broke off before their stream was over, and were or will be begun anew.
    mirrors_broken: Counter,
    /// Streams that were to be mirrored but for the bound.
    mirrors_refused: Counter,
    /// Streams that went on here with what was mirrored.
    takeovers: Counter,
    /// Streams given up because another origin writes them under a higher epoch.
    fenced: Counter,
    /// Requests for objects.
    requests: Counter,
    /// Requests that waited for media that had yet to be made.
    requests_blocked: Counter,
    /// Blocked requests that were given up.
    requests_timed_out: Counter,
}
