//! An HTTP cache tier: it fetches each object once, whatever the audience, and hands its bytes on as they come. Used twice:
//! near the viewers (tier `edge`) and in front of the origins (tier `shield`), over any upstream that speaks HTTP.
//!
//! It refuses to know what the objects are: it goes by names, headers and bytes. Playlists and segments differ in
//! their class ([`policy`]) and in what their `Cache-Control` says, in nothing else.
//!
//! Read [`coalesce`] first: what becomes of one name in flight. Then [`handover`] (who fetches and who
//! waits), `flight` (the shell of both), `cache`, `http`, [`range`].

pub mod access;
mod body;
pub mod budget;
mod cache;
pub mod cmcd;
pub mod coalesce;
pub mod conditions;
pub mod config;
pub mod encoding;
pub mod error;
mod fetch;
mod flight;
mod form;
pub mod freshness;
pub mod handover;
mod http;
pub mod metrics;
pub mod pace;
pub mod policy;
mod protection;
pub mod push;
pub mod resume;
mod sent;
pub mod shelf;
pub mod simulate;
mod tier;
pub mod upstream;
pub mod viewers;

use std::net::SocketAddr;
use std::sync::Arc;

use ::http::{HeaderMap, Response};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::protection::Protection;
use crate::tier::Tier;

pub use config::Config;
pub use error::Error;
pub use media::range;
pub use metrics::Metrics;
pub use policy::{Class, Policy};

/// What [`handover`] locks with; its model check brings others.
mod sync {
    pub(crate) use std::sync::{Arc, Mutex, MutexGuard};
}

/// The tier that viewers connect to; others serve the fleet.
const VIEWERS_TIER: &str = "edge";

/// What a tier needs from its neighbours.
pub struct Deps {
    /// `edge` or `shield`: its name in headers (`rooftop-edge`), metrics and logs. Bytes that a header may hold.
    pub tier: &'static str,
    /// Where objects come from, chosen by the path's leading segments.
    pub upstreams: cluster::Ring,
    /// For HTTPS to the upstreams; `None`: plain HTTP.
    pub client_tls: Option<Arc<rustls::ClientConfig>>,
    /// For the HTTPS listener.
    pub server_tls: Option<Arc<rustls::ServerConfig>>,
    /// Answers of this process's own, asked before the cache.
    pub pages: Option<Arc<dyn Pages>>,
    /// For the playback tokens of `playback.paths`.
    pub playback_keys: Option<Arc<cluster::token::Keys>>,
    /// Whether the streams that are pushed here are pushed on to the tier below: for a shield, whose listener lets only
    /// the fleet in.
    pub pushes_on: bool,
    /// For viewers' requests, and for what the tier below asks for.
    pub tracer: net::trace::Tracer,
    /// Registered once per process, shared by its tiers.
    pub metrics: Metrics,
}

/// Answers that need no upstream, such as the watch page and the time.
pub trait Pages: Send + Sync {
    /// The answer to GET (and HEAD) of `path`; `None`: not one of ours. Called for every request: be quick.
    fn page(&self, path: &str, headers: &HeaderMap) -> Option<Response<Bytes>>;
}

/// A tier with its ports bound.
pub struct Edge {
    tier: Arc<Tier>,
    protection: Protection,
    https: Option<(net::Listener, Arc<rustls::ServerConfig>)>,
    http: Option<net::Listener>,
}

impl Edge {
    /// Binds the ports and accepts nothing yet. `config` has no [`Config::problems`]. Needs a tokio runtime.
    pub async fn bind(config: Config, deps: Deps) -> Result<Edge, Error> {
        let viewers = deps.tier == VIEWERS_TIER;
        let protection = Protection::new(&config.limits, deps.tier, viewers, &deps.metrics.refusals);
        let names = if viewers { ["https", "http"] } else { ["shield", "shield-http"] };
        let bind = async |name, addr| {
            let listener = net::Listener::named(name, addr, protection.listener.clone()).await?;
            Ok::<_, Error>(listener.guarded(protection.guard.clone()))
        };
        let https = match (config.https, &deps.server_tls) {
            (None, _) => None,
            (Some(addr), None) => return Err(Error::NoCertificate { addr }),
            (Some(addr), Some(tls)) => Some((bind(names[0], addr).await?, tls.clone())),
        };
        let http = match config.http {
            Some(addr) => Some(bind(names[1], addr).await?),
            None => None,
        };
        Ok(Edge { tier: Arc::new(Tier::new(config, deps)), protection, https, http })
    }

    /// Where HTTPS is served, with the real port.
    pub fn https_addr(&self) -> Option<SocketAddr> {
        self.https.as_ref().map(|(listener, _)| listener.local_addr())
    }

    /// Where plain HTTP is served, with the real port.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(net::Listener::local_addr)
    }

    /// A handle for operators.
    pub fn control(&self) -> Control {
        Control(self.tier.clone(), self.protection.clone())
    }

    /// Serves until `shutdown`, lets running answers finish for `drain`, then ends what is being fetched. If this future is
    /// dropped, connections and fetches end at once.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Edge { tier, protection, https, http } = self;
        let _stop = tier.stop.clone().drop_guard();
        let serve = |listener: net::Listener, tls| {
            let (tier, options, drain) = (tier.clone(), protection.http.clone(), tier.config.drain);
            let service = move |request, peer| http::serve(&tier, request, peer);
            net::http::serve(listener, tls, options, shutdown.clone(), drain, service)
        };
        let https = async {
            if let Some((listener, tls)) = https {
                serve(listener, Some(tls)).await;
            }
        };
        let http = async {
            if let Some(listener) = http {
                serve(listener, None).await;
            }
        };
        // A push never ends by itself.
        let pushes = async {
            shutdown.cancelled().await;
            tier.pushes.close();
        };
        tokio::select! {
            biased;
            _ = async { tokio::join!(https, http, pushes) } => {}
            never = tier.probe() => match never {},
            never = tier.keep_house() => match never {},
        }
        tier.stop.cancel();
        tier.tasks.close();
        tier.tasks.wait().await;
    }
}

/// What operators may do to a running tier.
#[derive(Clone)]
pub struct Control(Arc<Tier>, Protection);

impl Control {
    /// The tier's name: `edge` or `shield`.
    pub fn tier(&self) -> &'static str {
        self.0.name
    }

    /// What parts of the stream whose names begin with `prefix` (such as `/live/demo`) took lately, from when their first frame
    /// came in at its POP to when they were pushed here. `None` if none was.
    pub fn took(&self, prefix: &str) -> Option<media::lately::Spread> {
        self.0.pushes.took(prefix)
    }

    /// The same, to when their last byte was taken by the connections of viewers who had asked for it while its segment grew.
    /// `None` if none was, and of a tier whose clients are not viewers.
    pub fn sent(&self, prefix: &str) -> Option<media::lately::Spread> {
        (self.tier() == VIEWERS_TIER).then(|| self.0.pushes.sent(prefix)).flatten()
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        self.0.policy()
    }

    /// How streams play at their viewers, as these say; `None`: no viewers come here.
    pub fn playing(&self) -> Option<Vec<cmcd::Playing>> {
        self.0.players.as_ref().map(|players| players.list(std::time::Instant::now()))
    }

    /// How many watch here; `None`: no viewers come here.
    pub fn viewers(&self) -> Option<u64> {
        self.0.viewers.as_ref().map(|viewers| viewers.all(std::time::Instant::now()))
    }

    /// How many watch the stream whose names begin with `prefix` (such as `/live/demo`) here; `None`: no viewers come here.
    pub fn viewers_of(&self, prefix: &str) -> Option<u64> {
        self.0.viewers.as_ref().map(|viewers| viewers.of(prefix, std::time::Instant::now()))
    }

    /// How many watch each stream here, those with the most first; `None`: no viewers come here. Takes some milliseconds for
    /// 10,000 streams.
    pub fn watched(&self) -> Option<Vec<viewers::Watched>> {
        self.0.viewers.as_ref().map(|viewers| viewers.list(std::time::Instant::now()))
    }

    /// Puts a policy in force: for the next request and for what is kept, where it says less than before. No connection
    /// notices; fetches under way keep the rules they began with. Returns how many kept objects got less time. Takes
    /// some microseconds per 10 of them. `Err`: all that is wrong with it, each with its key path; nothing has changed.
    pub fn set_policy(&self, policy: Policy) -> Result<usize, Vec<String>> {
        let problems = policy.problems(self.tier());
        if problems.is_empty() { Ok(self.0.set_policy(policy)) } else { Err(problems) }
    }

    /// Puts other limits in force, which have no [`Config::problems`]: for connections that come from now on, and limits per
    /// address also for requests. Nobody who is connected is sent away.
    pub fn set_limits(&self, limits: &config::Limits) {
        self.1.set(limits);
        if let Some(viewers) = &self.0.viewers {
            viewers.set_limits(limits);
        }
    }

    /// Forgets all objects whose path and query begin with `prefix`, here and in the tier below as far as their streams
    /// are pushed there; returns how many here. They are gone when it returns. Answers under way reach those who wait
    /// for them and are not kept.
    pub fn purge(&self, prefix: &str) -> usize {
        self.purge_but(prefix, None)
    }

    /// [`Control::purge`], but those that begin with `except` stay: a stream's epochs that have ended go by the stream's
    /// prefix, with the running epoch's as the exception.
    pub fn purge_but(&self, prefix: &str, except: Option<&str>) -> usize {
        let count = self.0.store.purge(prefix, except);
        if except.is_none() {
            self.0.pushes.purge(prefix);
        }
        info!(tier = self.0.name, prefix, except, count, "purged");
        count
    }
}
