//! How bytes get in: listeners with limits, TLS with the development CA, an HTTP server that drains.
//!
//! It refuses to know what is served: a role hands it a function per connection or per request.
//!
//! Read [`listener`] first, then [`http`] and [`tls`].

mod cork;
pub mod error;
pub mod http;
pub mod listener;
pub mod stream;
pub mod tls;

pub use error::{Error, chain};
pub use listener::{Limits, Listener};
pub use stream::Stream;
