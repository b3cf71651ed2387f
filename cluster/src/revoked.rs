//! Which tokens were taken back: by their identifier, or all of a stream that were issued up to a moment.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use crate::record::{RevokedRecord, Which};
use crate::token::Claims;

/// Revocations that are remembered. With more the oldest goes: by then the signing key should have been replaced.
pub const MAX_REVOKED: usize = 10_000;

/// The list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revoked {
    entries: BTreeMap<Which, RevokedRecord>,
}

impl Revoked {
    /// Takes something back. Returns what had to be forgotten for it.
    pub fn revoke(&mut self, record: RevokedRecord) -> Option<RevokedRecord> {
        self.entries.insert(record.which.clone(), record);
        if self.entries.len() <= MAX_REVOKED {
            return None;
        }
        let oldest = self.entries.iter().min_by_key(|(_, record)| record.at)?.0.clone();
        self.entries.remove(&oldest)
    }

    /// It is over: no such token can still be valid.
    pub fn forget(&mut self, which: &Which) {
        self.entries.remove(which);
    }

    /// Whether it is in the list.
    pub fn has(&self, which: &Which) -> bool {
        self.entries.contains_key(which)
    }

    /// Those that are over at `now`, in unix seconds.
    pub fn expired(&self, now: u64) -> Vec<RevokedRecord> {
        self.entries.values().filter(|record| record.until <= now).cloned().collect()
    }

    /// All of them.
    pub fn records(&self) -> impl Iterator<Item = &RevokedRecord> {
        self.entries.values()
    }

    /// Whether a token with these claims was taken back.
    pub fn contains(&self, claims: &Claims) -> bool {
        let id = claims.jti.as_ref().is_some_and(|id| self.entries.contains_key(&Which::Id(id.clone())));
        let of_stream = self.entries.get(&Which::Stream(claims.sub.clone()));
        id || of_stream.is_some_and(|record| claims.iat <= record.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(stream: &str, iat: u64, id: Option<&str>) -> Claims {
        Claims { sub: stream.into(), iat, exp: u64::MAX, jti: id.map(str::to_owned), ..Claims::default() }
    }

    fn since(which: Which, at: u64) -> RevokedRecord {
        RevokedRecord { which, at, until: at + 1000 }
    }

    #[test]
    fn tokens_are_taken_back_by_name_or_by_stream() {
        let mut revoked = Revoked::default();
        revoked.revoke(since(Which::Id("x".into()), 100));
        revoked.revoke(since(Which::Stream("a".into()), 100));
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
            assert_eq!(revoked.revoke(since(Which::Id(n.to_string()), n)), None);
        }
        let forgotten = revoked.revoke(since(Which::Id("more".into()), 1 << 40));
        assert_eq!(forgotten.map(|record| record.which), Some(Which::Id("0".into())));
        assert_eq!(revoked.entries.len(), MAX_REVOKED);
        let expired = revoked.expired(1010);
        assert_eq!(expired.len(), 10);
        expired.iter().for_each(|record| revoked.forget(&record.which));
        assert_eq!(revoked.entries.len(), MAX_REVOKED - 10);
    }
}
