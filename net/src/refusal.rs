//! Why a peer is turned away, in words that metrics and logs share.

/// Why a connection, a request or a stream was refused or cut off. Each counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The listener has as many connections as it may.
    Full,
    /// The address has as many connections as it may.
    AddressFull,
    /// The address opens connections faster than its rate of requests allows.
    AddressRate,
    /// The address has committed as many offences lately as it may: what they are is the role's to say.
    AddressOffences,
    /// What came to a TLS port is not TLS: plain HTTP or RTMP, as a rule.
    NotTls,
    /// The TLS handshake failed.
    Handshake,
    /// The TLS handshake took too long.
    HandshakeTimeout,
    /// No request came in time on a new connection.
    Silent,
    /// A request's header began and did not end in time.
    HeaderTimeout,
    /// A request's header is too large (h1; h2 answers 431 by itself, uncounted).
    HeaderSize,
    /// A request came faster than its address's rate allows: 429.
    RequestRate,
    /// The peer took less than the floor rate while there was something to send: the connection is closed.
    SlowReader,
    /// The same of one stream of an h2 connection whose window stays closed: the stream is reset, or its connection closed
    /// if nothing but the peer's window is missing.
    SlowStream,
    /// Requests were cancelled far more often than answered (rapid reset).
    Resets,
    /// Frames that the h2 layer calls a flood: CONTINUATION, resets before they were looked at, empty DATA.
    Flood,
    /// Far more bytes came than requests and window updates explain: PING or SETTINGS floods, bodies nobody asked for.
    Chatter,
    /// What came is not HTTP, or not as it should be.
    Protocol,
}

impl Refusal {
    /// Every one, in the order of the enum.
    pub const ALL: [Refusal; 17] = [
        Refusal::Full,
        Refusal::AddressFull,
        Refusal::AddressRate,
        Refusal::AddressOffences,
        Refusal::NotTls,
        Refusal::Handshake,
        Refusal::HandshakeTimeout,
        Refusal::Silent,
        Refusal::HeaderTimeout,
        Refusal::HeaderSize,
        Refusal::RequestRate,
        Refusal::SlowReader,
        Refusal::SlowStream,
        Refusal::Resets,
        Refusal::Flood,
        Refusal::Chatter,
        Refusal::Protocol,
    ];

    /// Its name as a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Full => "full",
            Refusal::AddressFull => "address_full",
            Refusal::AddressRate => "address_rate",
            Refusal::AddressOffences => "address_offences",
            Refusal::NotTls => "not_tls",
            Refusal::Handshake => "handshake",
            Refusal::HandshakeTimeout => "handshake_timeout",
            Refusal::Silent => "silent",
            Refusal::HeaderTimeout => "header_timeout",
            Refusal::HeaderSize => "header_size",
            Refusal::RequestRate => "request_rate",
            Refusal::SlowReader => "slow_reader",
            Refusal::SlowStream => "slow_stream",
            Refusal::Resets => "resets",
            Refusal::Flood => "flood",
            Refusal::Chatter => "chatter",
            Refusal::Protocol => "protocol",
        }
    }
}

/// Who wants to know of refusals: a role's metrics. Called on the hot path of an attack: be quick.
pub trait Observe: Send + Sync {
    /// One more.
    fn refused(&self, why: Refusal);
}

/// Nobody does.
impl Observe for () {
    fn refused(&self, _: Refusal) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_listed_in_order() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index);
        }
    }
}
