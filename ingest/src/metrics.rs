//! What ingest counts. Labels are bounded: no stream names, no addresses.

use net::{Observe, Refusal};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::Error;
use crate::stream_key::InvalidKey;

/// The counters of one ingest role. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Open RTMP connections, publishing or not.
    pub connections: Gauge,
    /// Connections that ended before an origin took their stream, by reason.
    pub refused: Family<Reason, Counter>,
    /// Broadcasters whose stream an origin takes.
    pub sessions: Gauge,
    /// Sessions that ended, by reason.
    pub sessions_ended: Family<Reason, Counter>,
    /// Bytes received from broadcasters.
    pub received_bytes: Counter,
    /// Audio, video and metadata tags received from broadcasters.
    pub received_tags: Counter,
    /// Times that a broadcaster's timestamps wrapped at 31 bits, which was repaired.
    pub clock_wraps: Counter,
    /// Bytes of FLV handed to origins, replays included.
    pub relayed_bytes: Counter,
    /// Segments that origins acknowledged as published.
    pub acknowledgements: Counter,
    /// Streams begun anew at an origin after one that had taken them was lost.
    pub replays: Counter,
    /// Requests to origins that were cut off before their end.
    pub abandoned_attempts: Counter,
    /// Groups of pictures dropped because the replay buffer of their stream, or of all, was full.
    pub dropped_gops: Counter,
    /// Bytes in the replay buffers of all streams.
    pub buffered_bytes: Gauge,
}

/// Why a connection or session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// The label.
    pub reason: Why,
}

/// The reasons, few enough to be labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The broadcaster ended or closed in an orderly way.
    Closed,
    /// HTTP, TLS or garbage came to the RTMP port.
    NotRtmp,
    /// RTMP that cannot be read on, or a command that is not served.
    Protocol,
    /// No stream name, or no token.
    BadName,
    /// The token does not open the stream.
    Token,
    /// The listener has as many connections as it may.
    Full,
    /// The address has as many connections as it may.
    AddressFull,
    /// The address connects faster than it may.
    AddressRate,
    /// The address came with as many bad tokens as it may.
    AddressTokens,
    /// What came to the RTMPS port is not TLS.
    NotTls,
    /// The TLS handshake failed.
    TlsHandshake,
    /// Too long without bytes or without `publish`.
    Timeout,
    /// Faster than a stream may be.
    Bitrate,
    /// The connection broke.
    Io,
    /// An origin refused the stream for good.
    Refused,
    /// No origin took the stream, or none confirmed its end.
    NoOrigin,
    /// This process is going away.
    Shutdown,
}

impl Metrics {
    /// Counters in `registry`, their names led by `ingest_`.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        let m = metrics.clone();
        let registry = registry.sub_registry_with_prefix("ingest");
        registry.register("connections", "Open RTMP connections, publishing or not", m.connections);
        let help = "Connections that ended before an origin took their stream, by reason";
        registry.register("refused_connections", help, m.refused);
        registry.register("sessions", "Broadcasters whose stream an origin takes", m.sessions);
        registry.register("ended_sessions", "Sessions that ended, by reason", m.sessions_ended);
        let help = "Bytes received from broadcasters";
        registry.register_with_unit("received", help, Unit::Bytes, m.received_bytes);
        let help = "Audio, video and metadata tags received from broadcasters";
        registry.register("received_tags", help, m.received_tags);
        let help = "Times that a broadcaster's timestamps wrapped at 31 bits, which was repaired";
        registry.register("clock_wraps", help, m.clock_wraps);
        let help = "Bytes of FLV handed to origins, replays included";
        registry.register_with_unit("relayed", help, Unit::Bytes, m.relayed_bytes);
        let help = "Segments that origins acknowledged as published";
        registry.register("acknowledged_segments", help, m.acknowledgements);
        let help = "Streams begun anew at an origin after one that had taken them was lost";
        registry.register("replays", help, m.replays);
        let help = "Requests to origins that were cut off before their end";
        registry.register("abandoned_attempts", help, m.abandoned_attempts);
        let help =
            "Groups of pictures dropped because the replay buffer of their stream, or of all, was full";
        registry.register("dropped_gops", help, m.dropped_gops);
        let help = "Bytes in the replay buffers of all streams";
        registry.register_with_unit("buffered", help, Unit::Bytes, m.buffered_bytes);
        metrics
    }
}

impl Why {
    /// As it stands in the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Closed => "closed",
            Why::NotRtmp => "not_rtmp",
            Why::Protocol => "protocol",
            Why::BadName => "bad_name",
            Why::Token => "token",
            Why::Full => "full",
            Why::AddressFull => "address_full",
            Why::AddressRate => "address_rate",
            Why::AddressTokens => "address_tokens",
            Why::NotTls => "not_tls",
            Why::TlsHandshake => "tls_handshake",
            Why::Timeout => "timeout",
            Why::Bitrate => "bitrate",
            Why::Io => "io",
            Why::Refused => "refused",
            Why::NoOrigin => "no_origin",
            Why::Shutdown => "shutdown",
        }
    }

    /// The label of an error.
    pub fn of(error: &Error) -> Why {
        match error {
            Error::NotRtmp { .. } | Error::Http { .. } | Error::TlsOnPlain => Why::NotRtmp,
            Error::Key(InvalidKey::Name(_) | InvalidKey::NoToken(_) | InvalidKey::TooLong(_)) => Why::BadName,
            Error::Token { .. } => Why::Token,
            Error::HandshakeTimeout(_) | Error::Vanished(_) | Error::Pause(_) => Why::Timeout,
            Error::TooFast(_) => Why::Bitrate,
            Error::Io(_) | Error::NotReading(_) | Error::Listen(_) => Why::Io,
            Error::Early => Why::Closed,
            Error::Shutdown => Why::Shutdown,
            Error::Refused(_) => Why::Refused,
            Error::NoOrigin(_) => Why::NoOrigin,
            Error::Handshake(_)
            | Error::Chunk { .. }
            | Error::Amf { .. }
            | Error::Aggregate { .. }
            | Error::Unsupported(_)
            | Error::Answer(_)
            | Error::Order { .. }
            | Error::Play => Why::Protocol,
        }
    }
}

/// Who did not get as far as a session counts like all others.
impl Observe for Metrics {
    fn refused(&self, why: Refusal) {
        let reason = match why {
            Refusal::Full => Why::Full,
            Refusal::AddressFull => Why::AddressFull,
            Refusal::AddressRate => Why::AddressRate,
            Refusal::AddressOffences => Why::AddressTokens,
            Refusal::NotTls => Why::NotTls,
            Refusal::Handshake => Why::TlsHandshake,
            Refusal::HandshakeTimeout => Why::Timeout,
            // What only HTTP knows.
            _ => Why::Protocol,
        };
        self.refused.get_or_create(&Reason { reason }).inc();
    }
}

impl EncodeLabelValue for Why {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_documented() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.received_bytes.inc_by(7);
        metrics.refused.get_or_create(&Reason { reason: Why::of(&Error::Play) }).inc();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in
            ["ingest_received_bytes_total 7", "ingest_refused_connections_total{reason=\"protocol\"} 1"]
        {
            assert!(text.contains(line), "{text}");
        }
    }
}
