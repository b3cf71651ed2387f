//! How bytes get in: listeners with limits, TLS with the development CA, an HTTP server that drains.
//!
//! It refuses to know what is served: a role hands it a function per connection or per request.
//!
//! Read [`listener`] first, then [`http`] and [`tls`].

mod address;
mod current;
pub mod error;
mod guard;
pub mod http;
pub mod identity;
pub mod listener;
mod refusal;
pub mod sockets;
pub mod stream;
pub mod tls;
pub mod trace;

pub use address::{Network, PerAddress, household};
pub use current::Current;
pub use error::{Error, chain};
pub use guard::Guard;
pub use identity::Identity;
pub use listener::{Limits, Listener};
pub use refusal::{Observe, Refusal};
pub use stream::Stream;
