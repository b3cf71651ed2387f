//! Who may write a stream: claims, grants, epochs. One owner per stream; a newer claim fences the older.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::time::SystemTime;

/// The right to write one stream under one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The stream.
    pub stream: String,
    /// Who holds it: the session that claimed it.
    pub holder: String,
    /// Larger than every epoch of this stream before.
    pub epoch: u64,
}

/// The ledger of all grants of a store. As many as there are streams that
/// somebody still remembers; [`Ledger::forget`] lets one go.
#[derive(Debug, Default)]
pub struct Ledger {
    grants: BTreeMap<String, Grant>,
}

impl Ledger {
    /// Grants `stream` to `holder` with a higher epoch, whoever had it before.
    ///
    /// An epoch begins at the wall clock's milliseconds, so that epochs still grow after a restart of the process or on
    /// another node that shares no store: media URLs carry the epoch and must never name other bytes.
    pub fn claim(&mut self, stream: &str, holder: &str, now: SystemTime) -> Grant {
        let clock = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let last = self.grants.get(stream).map_or(0, |grant| grant.epoch);
        let grant = Grant { stream: stream.into(), holder: holder.into(), epoch: clock.max(last + 1) };
        self.grants.insert(stream.into(), grant.clone());
        grant
    }

    /// A higher epoch for a holder that begins anew; `None` if somebody claimed the stream since.
    pub fn renew(&mut self, grant: &Grant, now: SystemTime) -> Option<Grant> {
        self.holds(grant).then(|| self.claim(&grant.stream, &grant.holder, now))
    }

    /// Whether the grant is still the newest of its stream.
    pub fn holds(&self, grant: &Grant) -> bool {
        self.grants.get(&grant.stream).is_some_and(|newest| newest.epoch == grant.epoch)
    }

    /// Who claimed the stream last.
    pub fn holder(&self, stream: &str) -> Option<&str> {
        self.grants.get(stream).map(|grant| grant.holder.as_str())
    }

    /// Forgets a stream unless somebody claimed it after `grant`.
    pub fn forget(&mut self, grant: &Grant) {
        if self.holds(grant) {
            self.grants.remove(&grant.stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_newer_claim_fences_the_older() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let mut ledger = Ledger::default();
        let first = ledger.claim("a", "s1", now);
        assert_eq!(first.epoch, 1_000_000);
        let second = ledger.claim("a", "s2", now);
        assert_eq!(second.epoch, 1_000_001);
        assert!(!ledger.holds(&first) && ledger.holds(&second));
        assert_eq!((ledger.holder("a"), ledger.holder("x")), (Some("s2"), None));
        ledger.forget(&first);
        assert!(ledger.holds(&second), "a fenced holder cannot take the grant away");
        assert_eq!(ledger.renew(&first, now), None, "nor get it back");
        let second = ledger.renew(&second, now).unwrap();
        assert_eq!((second.holder.as_str(), second.epoch), ("s2", 1_000_002));
        // The clock may step back: epochs do not.
        assert_eq!(ledger.claim("a", "s3", SystemTime::UNIX_EPOCH).epoch, 1_000_003);
        assert_eq!(ledger.claim("b", "s1", now).epoch, 1_000_000);
    }
}
