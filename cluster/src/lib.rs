//! Where things go: which origin a stream belongs to ([`Ring`]), who may write it ([`store::Embedded`] grants
//! [`lease::Grant`]s with growing epochs), and who may publish it ([`token`], [`keys`]) and who may
//! watch it ([`playback`]).
//!
//! It refuses to know about media: a stream is a name here.
//!
//! Read [`ring`] first, then [`lease`].

pub mod keys;
pub mod lease;
pub mod playback;
pub mod ring;
pub mod store;
pub mod token;

pub use ring::{Node, Ring};
