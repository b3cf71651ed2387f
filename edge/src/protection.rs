//! What viewers may use: a tier's limits as its listeners want them, and the counters of those who were refused.

use std::sync::Arc;

use net::{Current, Guard, Observe, PerAddress, Refusal};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::config::Limits;

/// Labels of refusals.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Refused {
    tier: &'static str,
    reason: &'static str,
}

/// The counters of one tier, each reason's there from the start.
struct Counters([Counter; Refusal::ALL.len()]);

impl Observe for Counters {
    fn refused(&self, why: Refusal) {
        self.0[why as usize].inc();
    }
}

/// What the listeners of a tier share. Cloning is cheap: other limits reach all of them.
#[derive(Clone)]
pub(crate) struct Protection {
    viewers: bool,
    pub(crate) guard: Guard,
    pub(crate) listener: Current<net::Limits>,
    pub(crate) http: Current<net::http::Options>,
}

impl Protection {
    /// `viewers`: whether it is they who come to `tier`.
    pub(crate) fn new(
        limits: &Limits,
        tier: &'static str,
        viewers: bool,
        refusals: &Family<Refused, Counter>,
    ) -> Protection {
        let counter = |why: Refusal| refusals.get_or_create_owned(&Refused { tier, reason: why.as_str() });
        Protection {
            viewers,
            guard: Guard::new(rules(limits, viewers), Arc::new(Counters(Refusal::ALL.map(counter)))),
            listener: of_listener(limits).into(),
            http: options(limits, viewers).into(),
        }
    }

    /// Puts other limits in force, for connections that come from now on; limits by address also for requests.
    pub(crate) fn set(&self, limits: &Limits) {
        self.guard.set_rules(rules(limits, self.viewers));
        self.listener.set(of_listener(limits));
        self.http.set(options(limits, self.viewers));
    }
}

fn of_listener(limits: &Limits) -> net::Limits {
    net::Limits { max_connections: limits.max_connections, handshake_timeout: limits.handshake_timeout }
}

/// The fleet's own listeners have few and very busy peers, which have shown their certificates: no limit goes by their
/// addresses.
fn rules(limits: &Limits, viewers: bool) -> PerAddress {
    if viewers {
        PerAddress {
            connections: limits.connections_per_address,
            requests_per_second: limits.requests_per_address,
            burst: limits.burst_per_address,
            offences_per_minute: 0,
            exempt: limits.exempt_addresses.iter().filter_map(|network| network.parse().ok()).collect(),
        }
    } else {
        PerAddress::default()
    }
}

/// The same for HTTP.
fn options(limits: &Limits, viewers: bool) -> net::http::Options {
    let defaults = net::http::Options::default();
    net::http::Options {
        header_timeout: limits.header_timeout,
        max_header_bytes: limits.max_header.as_u64().try_into().unwrap_or(u32::MAX),
        h2_max_streams: limits.h2_max_streams,
        send_timeout: limits.send_timeout,
        min_send_rate: limits.min_send_rate.as_u64(),
        viewers,
        ..defaults
    }
}
