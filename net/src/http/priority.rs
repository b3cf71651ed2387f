//! The `Priority` header (RFC 9218): what a client says of its request, and a server of its answer.

#![deny(clippy::disallowed_methods)]

use http::{HeaderMap, HeaderName};

/// Levels of urgency, from 0, the most urgent.
pub(crate) const URGENCIES: usize = 8;

/// RFC 9218 section 5.
const PRIORITY: HeaderName = HeaderName::from_static("priority");

/// Of a stream. The default is RFC 9218's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Priority {
    /// 0 (first) to 7 (last).
    pub(crate) urgency: u8,
    /// Of use piece by piece: it shares with its like in turns.
    pub(crate) incremental: bool,
}

impl Default for Priority {
    fn default() -> Self {
        Priority { urgency: 3, incremental: false }
    }
}

impl Priority {
    /// What `headers` say, in place of what was known before, parameter by parameter (RFC 9218 section 8). What cannot be
    /// understood says nothing (section 4).
    pub(crate) fn merged(mut self, headers: &HeaderMap) -> Priority {
        for value in headers.get_all(PRIORITY) {
            for member in value.to_str().unwrap_or_default().split(',') {
                // Members may have parameters of their own, which mean nothing here.
                match member.split(';').next().unwrap_or_default().trim() {
                    "i" | "i=?1" => self.incremental = true,
                    "i=?0" => self.incremental = false,
                    member => {
                        if let Some(urgency) = member.strip_prefix("u=")
                            && let [digit @ b'0'..=b'7'] = urgency.as_bytes()
                        {
                            self.urgency = digit - b'0';
                        }
                    }
                }
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(asked: &[&str], answered: &[&str], urgency: u8, incremental: bool) {
        let headers = |values: &[&str]| {
            values.iter().map(|value| (PRIORITY, value.parse().unwrap())).collect::<HeaderMap>()
        };
        let merged = Priority::default().merged(&headers(asked)).merged(&headers(answered));
        assert_eq!(merged, Priority { urgency, incremental }, "{asked:?} {answered:?}");
    }

    #[test]
    fn headers_are_merged() {
        check(&[], &[], 3, false);
        check(&["u=1, i"], &[], 1, true);
        check(&["i,u=5"], &["u=1"], 1, true);
        check(&["u=0", "i"], &["i=?0"], 0, false);
        check(&["u=2;x=1, i=?1;y"], &[], 2, true);
        for nothing in ["", "u=8", "u=-1", "u=", "u=11", "u", "I", "i=1", "x=3", "u=a"] {
            check(&[nothing], &[], 3, false);
        }
    }
}
