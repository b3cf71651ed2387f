use crate::stream_key::InvalidKey;

/// Whose fault an [`Error`] is: it chooses the log level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The peer that connected to us.
    Broadcaster,
    /// An origin, or the way to it.
    Upstream,
    /// This process.
    Ours,
}

/// Why ingest cannot listen, or why one connection ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener cannot be had.
    #[error(transparent)]
    Listen(#[from] net::Error),
    /// The first byte is not the RTMP version 3.
    #[error("first byte {first:#04x}: not an RTMP handshake")]
    NotRtmp {
        /// What came instead of 3.
        first: u8,
    },
    /// A browser or an HTTP client found the port.
    #[error("HTTP request on the RTMP port: {line:?}")]
    Http {
        /// The beginning of the request line.
        line: String,
    },
    /// A TLS ClientHello came to the plain port.
    #[error("TLS ClientHello on the plain RTMP port: use the RTMPS port, or rtmp:// instead of rtmps://")]
    TlsOnPlain,
    /// rml_rtmp refuses the handshake.
    #[error("RTMP handshake: {0}")]
    Handshake(String),
    /// The chunk layer cannot be read on (RTMP 1.0, 5.3).
    #[error("chunk stream {csid}: {problem} (connection byte {offset})")]
    Chunk {
        /// The chunk stream.
        csid: u32,
        /// What is wrong.
        problem: String,
        /// Bytes of the connection before the offending chunk, the handshake not counted.
        offset: u64,
    },
    /// A command that is not AMF0.
    #[error("{what} is not AMF0: {problem}")]
    Amf {
        /// Which message.
        what: &'static str,
        /// What is wrong, and where.
        problem: String,
    },
    /// A message of many (RTMP 1.0, 7.1.6) that cannot be taken apart.
    #[error("aggregate message: {problem}")]
    Aggregate {
        /// What is wrong, and at which byte of it.
        problem: String,
    },
    /// A legal message that is not understood here.
    #[error("{0}")]
    Unsupported(&'static str),
    /// An answer of ours cannot be written down.
    #[error("answer: {0}")]
    Answer(String),
    /// The command order is wrong.
    #[error("command {command:?} before {missing}")]
    Order {
        /// The command that came.
        command: String,
        /// What should have come first.
        missing: &'static str,
    },
    /// The peer wants to watch.
    #[error("play request: this port takes broadcasts, viewers use HLS or DASH")]
    Play,
    /// The stream key is not one.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// The token does not open the stream.
    #[error("stream {stream}: {problem}")]
    Token {
        /// The stream asked for.
        stream: media::StreamName,
        /// Why not.
        problem: cluster::token::TokenError,
    },
    /// No `publish` in time.
    #[error("no publish command within {0:?} of connecting")]
    HandshakeTimeout(std::time::Duration),
    /// Nothing comes, and the peer's host does not acknowledge a ping.
    #[error("its network is gone: no sign of life for {0:?}")]
    Vanished(std::time::Duration),
    /// The host is there, but sends no media.
    #[error("no media for {0:?}")]
    Pause(std::time::Duration),
    /// More bytes than may come.
    #[error("bitrate: {0}")]
    TooFast(crate::rtmp::rate::TooFast),
    /// The connection broke.
    #[error("connection lost: {0}")]
    Io(#[from] std::io::Error),
    /// The peer does not read what it is sent.
    #[error("peer does not read: {0} bytes wait to be sent")]
    NotReading(usize),
    /// Closed before it published anything.
    #[error("closed before publish")]
    Early,
    /// We are going away.
    #[error("server shuts down")]
    Shutdown,
    /// An origin refuses the stream for good.
    #[error("{0}")]
    Refused(String),
    /// No origin takes the stream.
    #[error("{0}")]
    NoOrigin(String),
}

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Listen(_) | Error::Answer(_) | Error::Shutdown => Fault::Ours,
            Error::NoOrigin(_) => Fault::Upstream,
            _ => Fault::Broadcaster,
        }
    }
}
