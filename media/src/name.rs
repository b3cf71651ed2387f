//! Names of what is served: streams, renditions, epochs, segments.
#![deny(clippy::disallowed_methods)]

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A name that cannot appear in a URL path or a log line unharmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name {name:?}: {reason}")]
pub struct InvalidName {
    /// The offending text, cut to a length that is safe to log.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Longest stream or rendition name, in bytes: short enough for every path, label and file name.
pub const MAX_NAME_BYTES: usize = 64;

fn check_name(text: &str) -> Result<Arc<str>, InvalidName> {
    let reason = if text.is_empty() {
        "is empty"
    } else if text.len() > MAX_NAME_BYTES {
        "is longer than 64 bytes"
    } else if text.starts_with(['.', '-']) {
        "starts with '.' or '-'"
    } else if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        "has a character outside A-Z a-z 0-9 - _ ."
    } else {
        return Ok(text.into());
    };
    Err(InvalidName { name: text.chars().take(MAX_NAME_BYTES).collect(), reason })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                check_name(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A named channel that survives reconnects: 1 to 64 of `A-Z a-z 0-9 - _ .`, not starting with `.` or `-`.
    StreamName
}
name! {
    /// One encoded version of a track offered to viewers, such as `720p` or `audio`; same alphabet as [`StreamName`].
    RenditionId
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// The number that follows.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Grows with every run of a stream: whenever the right to write it changes hands, and whenever its timeline breaks.
    /// Part of every media URL.
    Epoch
}
number! {
    /// Counts the segments of a stream, the same in all its renditions; never goes back.
    SegmentNumber
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_urls_and_logs() {
        for good in ["a", "demo", "Live-1_b.c", &"x".repeat(64)] {
            assert_eq!(good.parse::<StreamName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "é", "a\n", "a?b", &"x".repeat(65)] {
            assert!(bad.parse::<StreamName>().is_err(), "{bad:?}");
        }
    }
}
