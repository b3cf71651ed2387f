//! Why an edge does not come up. Once it is up, what goes wrong is an answer to a viewer.

use std::net::SocketAddr;

/// Why [`crate::Edge::bind`] failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is taken or not ours to take.
    #[error(transparent)]
    Listen(#[from] net::Error),
    /// HTTPS without a certificate.
    #[error("https = {addr} needs a certificate, and none was given")]
    NoCertificate { addr: SocketAddr },
}
