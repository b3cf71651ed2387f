//! Owns streams: takes relays in, repairs their time, has them transcoded, packages the result once as CMAF and serves
//! it as objects with HLS and DASH manifests over it.
//!
//! It refuses to know about RTMP and viewers: relays come from POPs, requests from edges, both with client
//! certificates of the fleet.
//!
//! [`Origin::serve`] is the verb. Read `relay.rs` for the way in, [`live`] for the state in the middle and `http.rs`
//! for the way out; [`feed`], [`repair`], [`segmenter`], [`window`], [`hls`] and [`dash`] are the rules, without I/O.

/// Appends formatted text to a `String`, which cannot fail.
macro_rules! put {
    ($out:expr, $($format:tt)+) => {
        {
            use ::std::fmt::Write as _;
            $out.write_fmt(::std::format_args!($($format)+)).expect("writing to a String cannot fail");
        }
    };
}

pub mod broadcast;
pub mod config;
pub mod continuation;
pub mod control;
pub mod copying;
pub mod dash;
pub mod dvr;
pub mod error;
pub mod events;
pub mod feed;
pub mod hls;
pub mod hops;
mod http;
pub mod live;
pub mod metrics;
pub mod mirror;
pub mod overlap;
pub mod packager;
pub mod path;
mod push;
mod recording;
mod relay;
pub mod repair;
mod run;
pub mod segmenter;
pub mod succession;
mod thumbnails;
pub mod timeline;
pub mod vod;
pub mod window;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster::Member;
use cluster::record::{StreamState, Which};
use cluster::token::Keys;
use media::StreamName;
use net::Current;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use config::Config;
pub use error::Error;
use live::{Live, State};
pub use metrics::Metrics;
use mirror::Mirrors;
use mirror::plan::Members;
use mirror::wire::Listed;

/// Open connections: one per POP session and a few per edge.
const MAX_CONNECTIONS: usize = 10_000;

/// Segments for which nothing is listed when a broadcaster has gone away: a relay that is lost is back by then, with all
/// that it missed.
const QUIET_SEGMENTS: u32 = 2;

/// For the TLS handshake of a POP or edge.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What an origin needs from outside.
pub struct Deps {
    /// Who may publish.
    pub keys: Arc<Keys>,
    /// Who owns which stream.
    pub store: Member,
    /// Tells this process from others, and from itself before a restart.
    pub instance: u64,
    /// Where what is published is kept.
    pub archive: archive::Sink,
    /// What is kept, as it is read.
    pub kept: Option<Kept>,
    /// The ladder's rules.
    pub transcode: transcode::Config,
    /// Must ask for client certificates of the fleet.
    pub server_tls: Arc<rustls::ServerConfig>,
    /// For what edges ask for, and POPs relay.
    pub tracer: net::trace::Tracer,
    /// Counters.
    pub metrics: Metrics,
    /// Counters of the encoders.
    pub transcode_metrics: transcode::Metrics,
    /// The origins of the fleet, this one among them.
    pub members: Members,
    /// Shows this node's certificate to them.
    pub client_tls: Arc<rustls::ClientConfig>,
}

/// The archive as an origin reads it.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Finds what is kept.
    pub reader: archive::Reader,
    /// Whether all origins keep in one place: what this one does not find there, no other does.
    pub shared: bool,
}

/// An origin that is bound but does not serve yet.
pub struct Origin {
    listener: net::Listener,
    server_tls: Arc<rustls::ServerConfig>,
    client_tls: Arc<rustls::ClientConfig>,
    shared: Arc<Shared>,
}

/// What can be changed of an origin's configuration while it runs.
#[derive(Debug, Clone, Copy)]
struct Limits {
    streams: usize,
    mirrored: usize,
}

impl Limits {
    fn of(config: &Config) -> Limits {
        Limits { streams: config.max_streams, mirrored: config.mirrored_streams }
    }
}

/// The pushes of the streams that someone is subscribed to.
type Hubs = HashMap<StreamName, media::push::Hub>;

/// What all requests share.
struct Shared {
    config: Config,
    /// Streams at most, and mirrored ones.
    limits: Current<Limits>,
    /// For runs that begin now.
    transcode: Current<transcode::Config>,
    keys: Arc<Keys>,
    store: Member,
    archive: archive::Sink,
    kept: Option<Kept>,
    tracer: net::trace::Tracer,
    metrics: Metrics,
    transcode_metrics: transcode::Metrics,
    streams: Mutex<HashMap<StreamName, Arc<Live>>>,
    hubs: Mutex<Hubs>,
    mirrors: Mirrors,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// What the ladders that run cost, as an estimate.
    milli_cpus: AtomicU64,
    /// Tells this process from others, and from itself before a restart.
    instance: u64,
    /// Grows whenever a stream begins, is interrupted, goes on or ends.
    news: Arc<tokio::sync::watch::Sender<u64>>,
}

/// What operators may do to an origin. Cloning is cheap.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

impl Control {
    /// Puts another configuration in force, which has no [`Config::problems`]: of the origin's how many streams it takes and
    /// mirrors, and the ladder for sessions that begin from now on. Those that are there stay, and keep their ladders.
    pub fn set_config(&self, config: &Config, transcode: transcode::Config) {
        self.0.limits.set(Limits::of(config));
        self.0.transcode.set(transcode);
        self.0.counted(self.0.streams().len());
    }

    /// Takes tokens back: who uses one is refused, also in the middle of a broadcast, here at once and at the other
    /// origins of the store as soon as it tells them.
    pub fn revoke(&self, which: Which) {
        self.0.store.revoke(which);
    }
}

impl Origin {
    /// Binds the port.
    pub async fn bind(config: Config, deps: Deps) -> Result<Origin, Error> {
        let limits = net::Limits { max_connections: MAX_CONNECTIONS, handshake_timeout: HANDSHAKE_TIMEOUT };
        let listener = net::Listener::bind(config.listen, limits).await?;
        let shared = Arc::new(Shared {
            limits: Limits::of(&config).into(),
            config,
            transcode: deps.transcode.into(),
            keys: deps.keys,
            store: deps.store,
            archive: deps.archive,
            kept: deps.kept,
            tracer: deps.tracer,
            metrics: deps.metrics,
            transcode_metrics: deps.transcode_metrics,
            streams: Mutex::default(),
            hubs: Mutex::default(),
            mirrors: Mirrors::new(deps.members),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            milli_cpus: AtomicU64::new(0),
            instance: deps.instance,
            news: Arc::default(),
        });
        Ok(Origin { listener, server_tls: deps.server_tls, client_tls: deps.client_tls, shared })
    }

    /// Where relays and edges connect.
    pub fn addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// A handle for operators.
    pub fn control(&self) -> Control {
        Control(self.shared.clone())
    }

    /// Serves until `shutdown`; then ends the sessions, publishing what they brought, and lets requests finish for
    /// [`Config::drain`].
    pub async fn serve(self, shutdown: CancellationToken) {
        let Origin { listener, server_tls, client_tls, shared } = self;
        info!(addr = %listener.local_addr(), "origin serves");
        let drain = shared.config.drain;
        // Relay bodies carry a ladder's source: a window of a second of the highest bitrate keeps them flowing. As many as a
        // POP sends over one connection have theirs: an encoder that lags makes no other stream wait.
        let options = net::http::Options {
            h2_max_streams: 1024,
            h2_stream_window: 4 << 20,
            h2_connection_window: 1 << 30,
            ..Default::default()
        };
        let service = {
            let shared = shared.clone();
            move |request, _peer| http::handle(shared.clone(), request)
        };
        let sessions = async {
            shutdown.cancelled().await;
            shared.store.drain();
            shared.shutdown.cancel();
            shared.tasks.close();
            if tokio::time::timeout(drain, shared.tasks.wait()).await.is_err() {
                warn!(left = shared.tasks.len(), "sessions did not end within the drain time");
            }
        };
        tokio::join!(
            net::http::serve(listener, Some(server_tls), options, shutdown.clone(), drain, service),
            mirror::run(shared.clone(), client_tls),
            sessions
        );
    }
}

/// A ladder that runs, as part of its origin's load. Dropping it takes it off.
struct Carried {
    shared: Arc<Shared>,
    milli_cpus: u64,
}

impl Carried {
    fn new(shared: Arc<Shared>, milli_cpus: u64) -> Self {
        shared.milli_cpus.fetch_add(milli_cpus, Ordering::Relaxed);
        shared.counted(shared.streams().len());
        Self { shared, milli_cpus }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.shared.milli_cpus.fetch_sub(self.milli_cpus, Ordering::Relaxed);
        // Whoever holds the streams just now counts anew soon.
        if let Ok(streams) = self.shared.streams.try_lock() {
            self.shared.counted(streams.len());
        }
    }
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, HashMap<StreamName, Arc<Live>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hubs(&self) -> MutexGuard<'_, Hubs> {
        self.hubs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream, if this origin has it.
    fn stream(&self, name: &StreamName) -> Option<Arc<Live>> {
        self.streams().get(name).cloned()
    }

    /// The stream, new if need be; `None` when there are too many.
    fn stream_for_publishing(&self, name: &StreamName) -> Option<Arc<Live>> {
        let mut streams = self.streams();
        if let Some(live) = streams.get(name) {
            return Some(live.clone());
        }
        if streams.len() >= self.limits.get().streams {
            return None;
        }
        let live = Arc::new(Live::recorded(name.clone(), self.archive.clone(), self.news.clone()));
        streams.insert(name.clone(), live.clone());
        self.counted(streams.len());
        Some(live)
    }

    /// A session has claimed the stream: if nothing was published here but it is mirrored, it goes on with that.
    fn take_over(self: &Arc<Self>, live: Arc<Live>) -> Arc<Live> {
        if live.state() != State::Offline {
            return live;
        }
        let Some(mirrored) = self.mirrors.take(self, live.name()) else { return live };
        self.streams().insert(live.name().clone(), mirrored.clone());
        self.interrupted(&mirrored, true);
        mirrored
    }

    /// The streams that this origin owns, for others to see.
    fn list(&self) -> Vec<Listed> {
        let streams = self.streams();
        let listed = streams.values().filter_map(|live| {
            let (state, epoch) = live.standing();
            let live_now = state == State::Live;
            let there = live_now || matches!(state, State::Interrupted(_));
            there.then(|| Listed { name: live.name().clone(), epoch, live: live_now })
        });
        let mut listed: Vec<_> = listed.collect();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        listed
    }

    /// Whether it is this that viewers of the stream get here.
    fn has(&self, live: &Arc<Live>) -> bool {
        self.streams().get(live.name()).is_some_and(|kept| Arc::ptr_eq(kept, live))
    }

    /// The stream is another origin's: here it is no more.
    fn withdraw(&self, live: &Arc<Live>) {
        let mut streams = self.streams();
        if streams.get(live.name()).is_some_and(|kept| Arc::ptr_eq(kept, live)) {
            streams.remove(live.name());
            self.counted(streams.len());
        }
        drop(streams);
        self.fence_archive(live);
        self.end_pushes(live);
    }

    /// Another origin writes the stream: nothing more of it is archived from here.
    fn fence_archive(&self, live: &Live) {
        self.archive.fence(live.name(), live.standing().1);
    }

    /// Those to whom the stream is pushed ask anew, here or elsewhere.
    fn end_pushes(&self, live: &Live) {
        if let Some(hub) = self.hubs().remove(live.name()) {
            hub.end();
        }
    }

    /// A run is over, its segments complete or left `open`: the stream waits for its broadcaster, then ends, then is
    /// forgotten.
    fn interrupted(self: &Arc<Self>, live: &Arc<Live>, open: bool) {
        let state = live.interrupt(open);
        if !matches!(state, State::Interrupted(_)) {
            return;
        }
        self.store.describe(live.name().as_str(), StreamState::Interrupted, None);
        live.wait_for_broadcaster(state, || {
            let (shared, live) = (self.clone(), live.clone());
            let absence = async move { shared.absence(&live, state).await };
            let shutdown = self.shutdown.clone();
            self.tasks.spawn(async move { shutdown.run_until_cancelled(absence).await }).abort_handle()
        });
    }

    /// The playlists stay alive for as long as the broadcaster may come back; then the broadcast is over.
    async fn absence(&self, live: &Arc<Live>, interrupted: State) {
        let segment = self.config.segment_duration;
        let listing = async {
            tokio::time::sleep(segment * QUIET_SEGMENTS).await;
            // Behind the clock as far as media is that has yet to be made: whoever comes back is not in the past.
            while live.stay_alive(interrupted, relay::unix_ms() - segment.as_millis() as i64) {
                tokio::time::sleep(segment).await;
            }
        };
        let _ = tokio::time::timeout(self.config.reconnect_grace, listing).await;
        // It goes on elsewhere, though that origin may be out of this one's sight.
        let elsewhere = self.store.elsewhere(live.name().as_str()).is_some();
        if elsewhere || !(self.has(live) || self.mirrors.has(live)) {
            if self.has(live) {
                self.fence_archive(live);
            }
            self.forget_if(live, |state| state == interrupted);
            return self.mirrors.forget(self, live);
        }
        if !live.end(interrupted) {
            return;
        }
        self.store.describe(live.name().as_str(), StreamState::Ended, None);
        info!(stream = %live.name(), "broadcast ended: its broadcaster did not come back");
        tokio::time::sleep(self.config.retention).await;
        self.forget_if(live, |state| state == State::Ended);
        self.mirrors.forget(self, live);
    }

    /// The stream may have been forgotten after `live` was taken for a session that now holds its writer: puts it back.
    /// False if another has its place.
    fn keep(&self, live: &Arc<Live>) -> bool {
        let mut streams = self.streams();
        let kept = Arc::ptr_eq(streams.entry(live.name().clone()).or_insert_with(|| live.clone()), live);
        self.counted(streams.len());
        kept
    }

    /// Forgets a stream that nobody writes and whose state is as expected.
    fn forget_if(&self, live: &Arc<Live>, expected: impl Fn(State) -> bool) {
        let mut streams = self.streams();
        if let Ok(mut writer) = live.writer.try_lock()
            && expected(live.state())
        {
            if let Some(grant) = writer.grant.take() {
                self.store.forget(&grant);
            }
            if streams.get(live.name()).is_some_and(|kept| Arc::ptr_eq(kept, live)) {
                streams.remove(live.name());
            }
            self.counted(streams.len());
        }
    }

    fn counted(&self, streams: usize) {
        self.metrics.streams.set(streams as i64);
        let (most, milli_cpus) = (self.limits.get().streams, self.milli_cpus.load(Ordering::Relaxed));
        self.store.set_load(self.config.load(streams, most, milli_cpus));
    }
}
