//! Where things go: which nodes there are and which of them a stream belongs to ([`Ring`]), who may write it
//! ([`Member`] grants [`lease::Grant`]s with growing epochs), who may publish it ([`token`], [`keys`]) and who may
//! watch it ([`playback`]). What all nodes must agree on is kept in a [`store`]: in this process or in etcd.
//!
//! It refuses to know about media: a stream is a name here.
//!
//! Read [`ring`] first, then [`lease`] and [`claim`], which are the rules of ownership, then [`member`], which carries them
//! out.

pub mod claim;
pub mod keys;
pub mod lease;
pub mod member;
pub mod metrics;
pub mod playback;
pub mod record;
pub mod revoked;
pub mod ring;
pub mod store;
pub mod token;

pub use member::Member;
pub use metrics::Metrics;
pub use ring::{Node, Ring};
