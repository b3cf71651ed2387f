//! Codec configuration records and the codec strings (RFC 6381) that manifests announce.

pub mod aac;
pub mod avc;
mod bits;

/// A configuration record that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{record}: {problem}")]
pub struct Invalid {
    /// Which record.
    pub record: &'static str,
    /// What is wrong with it.
    pub problem: String,
}
