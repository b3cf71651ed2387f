//! The POP's side of a broadcast: takes RTMP and RTMPS from encoders, checks their stream keys, and relays each stream as
//! FLV to its origin, keeping what the origin has not yet published so that the next one can go on.
//!
//! It refuses to know about codecs beyond "is this a keyframe", and about playlists, segments and viewers.
//!
//! Read [`rtmp::session`] for the broadcaster's side, [`relay::handover`] for the origin's, then [`rtmp::connection`],
//! which joins the two.

pub mod config;
pub mod error;
pub mod health;
pub mod metrics;
pub mod relay;
pub mod rtmp;
pub mod stream_key;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use net::Current;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use config::Config;
pub use error::{Error, Fault};
pub use metrics::Metrics;

use relay::client::Relays;
use rtmp::connection::Context;

/// A session's last answer and its closing handshake, on top of the drain time.
const CLOSING: Duration = Duration::from_secs(5);

/// What ingest needs from the rest of the process.
pub struct Deps {
    /// The origins.
    pub origins: cluster::Ring,
    /// What stream tokens are signed with.
    pub keys: Arc<cluster::token::Keys>,
    /// This node's certificate, for RTMPS.
    pub server_tls: Arc<rustls::ServerConfig>,
    /// The fleet's CA and this node's client certificate, for the relay. ALPN is set here.
    pub client_tls: Arc<rustls::ClientConfig>,
    /// For sessions.
    pub tracer: net::trace::Tracer,
    /// Where to count.
    pub metrics: Metrics,
}

/// Bound listeners that do not accept yet.
pub struct Ingest {
    rtmp: Option<net::Listener>,
    rtmps: Option<net::Listener>,
    server_tls: Arc<rustls::ServerConfig>,
    drain: Duration,
    context: Arc<Context>,
}

impl Ingest {
    /// Binds the listeners of `config`. Fails if one of them cannot be had.
    pub async fn bind(config: Config, deps: Deps) -> Result<Ingest, Error> {
        let limits = Current::from(config.limits());
        let guard = net::Guard::new(config.per_address(), Arc::new(deps.metrics.clone()));
        let rtmp = match config.rtmp {
            Some(addr) => {
                Some(net::Listener::named("rtmp", addr, limits.clone()).await?.guarded(guard.clone()))
            }
            None => None,
        };
        let rtmps = match config.rtmps {
            Some(addr) => {
                Some(net::Listener::named("rtmps", addr, limits.clone()).await?.guarded(guard.clone()))
            }
            None => None,
        };
        let drain = config.drain + config.relay.end_timeout + CLOSING;
        let relays = Relays::new(
            config.relay.clone(),
            deps.origins,
            &deps.client_tls,
            deps.tracer,
            deps.metrics.clone(),
        );
        let board = health::Board::default();
        let config = Current::from(config);
        let context =
            Context { config, limits, keys: deps.keys, guard, relays, board, metrics: deps.metrics };
        Ok(Ingest { rtmp, rtmps, server_tls: deps.server_tls, drain, context: Arc::new(context) })
    }

    /// Where plain RTMP listens, with the real port.
    pub fn rtmp_addr(&self) -> Option<SocketAddr> {
        self.rtmp.as_ref().map(net::Listener::local_addr)
    }

    /// Where RTMPS listens, with the real port.
    pub fn rtmps_addr(&self) -> Option<SocketAddr> {
        self.rtmps.as_ref().map(net::Listener::local_addr)
    }

    /// A handle for operators.
    pub fn control(&self) -> Control {
        Control(self.context.clone())
    }

    /// How the broadcasts stand.
    pub fn board(&self) -> health::Board {
        self.context.board.clone()
    }

    /// Accepts broadcasters until `shutdown`; those that publish may then go on for the configured drain time, and what
    /// they sent is relayed to its end. If this future is dropped, all connections are cut.
    pub async fn serve(self, shutdown: CancellationToken) {
        info!(rtmp = ?self.rtmp_addr(), rtmps = ?self.rtmps_addr(), "ingest accepts broadcasters");
        let (drain, tls) = (self.drain, self.server_tls);
        let run = async |listener: Option<net::Listener>, tls| {
            if let Some(listener) = listener {
                let (context, stop) = (self.context.clone(), shutdown.clone());
                let handler =
                    move |stream, peer| rtmp::connection::run(stream, peer, context.clone(), stop.clone());
                listener.run(tls, shutdown.clone(), drain, handler).await;
            }
        };
        tokio::join!(run(self.rtmp, None), run(self.rtmps, Some(tls)));
    }
}

/// What operators may do to a running ingest. Cloning is cheap.
#[derive(Clone)]
pub struct Control(Arc<Context>);

impl Control {
    /// Puts another configuration in force, which has no [`Config::problems`]: for connections and sessions that begin from
    /// now on. What was chosen at the start stays: the listeners, `drain` and `relay.end_timeout`, and what all relays share
    /// (`relay.total_buffer`, `streams_per_connection`, `gather`).
    pub fn set_config(&self, config: Config) {
        let context = &self.0;
        context.limits.set(config.limits());
        context.guard.set_rules(config.per_address());
        context.relays.set_rules(config.relay.clone());
        context.config.set(config);
    }
}

/// Unpredictable bytes, for names and jitter.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .expect("the system has random bytes: TLS needs them too");
    bytes
}
