//! Which tokens were taken back: by their identifier, or all of a stream that were issued up to a moment.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use cluster::token::Claims;

/// Revocations that are remembered. With more the oldest goes: by then the signing key should have been replaced.
pub const MAX_REVOKED: usize = 10_000;

/// What is taken back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// The token with this `jti`.
    Id(String),
    /// All tokens of this stream that were issued up to now.
    Stream(String),
}

/// The list. It lives as long as the process.
#[derive(Debug, Default)]
pub struct Revoked {
    /// Unix seconds at which it was taken back.
    entries: BTreeMap<Which, u64>,
}

impl Revoked {
    /// Takes back at `now`, in unix seconds. Returns what had to be forgotten for it.
    pub fn revoke(&mut self, which: Which, now: u64) -> Option<Which> {
        self.entries.insert(which, now);
        if self.entries.len() <= MAX_REVOKED {
            return None;
        }
        let oldest = self.entries.iter().min_by_key(|(_, at)| **at).map(|(which, _)| which.clone())?;
        self.entries.remove(&oldest);
        Some(oldest)
    }

    /// Whether a token with these claims was taken back.
    pub fn contains(&self, claims: &Claims) -> bool {
        let id = claims.jti.as_ref().is_some_and(|id| self.entries.contains_key(&Which::Id(id.clone())));
        let of_stream = self.entries.get(&Which::Stream(claims.sub.clone()));
        id || of_stream.is_some_and(|at| claims.iat <= *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(stream: &str, iat: u64, id: Option<&str>) -> Claims {
        Claims { sub: stream.into(), iat, exp: u64::MAX, jti: id.map(str::to_owned), ..Claims::default() }
    }

    #[test]
    fn tokens_are_taken_back_by_name_or_by_stream() {
        let mut revoked = Revoked::default();
        revoked.revoke(Which::Id("x".into()), 100);
        revoked.revoke(Which::Stream("a".into()), 100);
        for (claims, expected) in [
            (claims("b", 0, Some("x")), true),
            (claims("b", 0, Some("y")), false),
            (claims("b", 0, None), false),
            (claims("a", 100, None), true),
            (claims("a", 101, Some("y")), false),
            (claims("a", 101, Some("x")), true),
        ] {
            assert_eq!(revoked.contains(&claims), expected, "{claims:?}");
        }
    }

    #[test]
    fn the_list_is_bounded() {
        let mut revoked = Revoked::default();
        for n in 0..MAX_REVOKED as u64 {
            assert_eq!(revoked.revoke(Which::Id(n.to_string()), n), None);
        }
        assert_eq!(revoked.revoke(Which::Id("more".into()), u64::MAX), Some(Which::Id("0".into())));
        assert_eq!(revoked.entries.len(), MAX_REVOKED);
    }
}
