//! How often tokens may be wrong: a rate for each address. Who has shown a right one from there before is not held up by
//! others that do not.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::config::MAX_TOKENS;
use super::tokens::Hash;

/// Wrong tokens at once: a person's mistakes.
const BURST: u32 = 20;

/// After so long one more may be wrong.
const INTERVAL: Duration = Duration::from_secs(3);

/// Addresses that are remembered; for one more, the one that was silent the longest is forgotten.
const MAX_ADDRESSES: usize = 4096;

/// What becomes of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// Whether it is right is not said; after so long it may be tried again.
    TooMany(Duration),
}

/// Addresses and their attempts.
#[derive(Debug, Default)]
pub(super) struct Attempts(BTreeMap<IpAddr, Address>);

#[derive(Debug)]
struct Address {
    /// When all that was wrong is forgiven.
    forgiven: Instant,
    /// The latest attempt.
    seen: Instant,
    /// Tokens that were right, the latest last.
    right: Vec<Hash>,
}

impl Attempts {
    /// An attempt from `peer`: with the token `right`, or with one that there is not.
    pub(super) fn attempt(&mut self, now: Instant, peer: IpAddr, right: Option<Hash>) -> Verdict {
        let address = self.address(now, household(peer));
        address.seen = now;
        let owed = address.forgiven.saturating_duration_since(now);
        let room = (INTERVAL * BURST).checked_sub(owed + INTERVAL);
        let Some(hash) = right else {
            if room.is_none() {
                return Verdict::TooMany(owed + INTERVAL - INTERVAL * BURST);
            }
            address.forgiven = now + owed + INTERVAL;
            return Verdict::Wrong;
        };
        let known = address.right.contains(&hash);
        if !known && room.is_none() {
            return Verdict::TooMany(owed + INTERVAL - INTERVAL * BURST);
        }
        if !known {
            if address.right.len() == MAX_TOKENS {
                address.right.remove(0);
            }
            address.right.push(hash);
        }
        Verdict::Right
    }

    fn address(&mut self, now: Instant, peer: IpAddr) -> &mut Address {
        if self.0.len() >= MAX_ADDRESSES && !self.0.contains_key(&peer) {
            let longest = self.0.iter().min_by_key(|(_, address)| address.seen).map(|(peer, _)| *peer);
            longest.map(|peer| self.0.remove(&peer));
        }
        self.0.entry(peer).or_insert_with(|| Address { forgiven: now, seen: now, right: Vec::new() })
    }
}

/// One household has at least all addresses of a /64.
fn household(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests choose their own begin of time")]
mod tests {
    use super::*;

    #[test]
    fn wrong_ones_have_a_rate_and_known_ones_none() {
        let (mut attempts, mut now) = (Attempts::default(), Instant::now());
        let peer: IpAddr = "192.0.2.1".parse().unwrap();
        let (known, new) = ([1; 32], [2; 32]);
        assert_eq!(attempts.attempt(now, peer, Some(known)), Verdict::Right);
        for _ in 0..BURST {
            assert_eq!(attempts.attempt(now, peer, None), Verdict::Wrong);
        }
        // A right one is told from a wrong one only if it was known.
        assert_eq!(attempts.attempt(now, peer, None), Verdict::TooMany(INTERVAL));
        assert_eq!(attempts.attempt(now, peer, Some(new)), Verdict::TooMany(INTERVAL));
        assert_eq!(attempts.attempt(now, peer, Some(known)), Verdict::Right);
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(attempts.attempt(now, mapped, None), Verdict::TooMany(INTERVAL), "the same address");
        assert_eq!(attempts.attempt(now, "192.0.2.2".parse().unwrap(), None), Verdict::Wrong);
        now += INTERVAL;
        assert_eq!(attempts.attempt(now, peer, Some(new)), Verdict::Right);
        assert_eq!(attempts.attempt(now, peer, None), Verdict::Wrong);
        assert_eq!(attempts.attempt(now, peer, None), Verdict::TooMany(INTERVAL));
    }

    #[test]
    fn addresses_are_bounded_and_a_household_is_one() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let of = |index: u128| IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | index));
        for index in 0..2 * MAX_ADDRESSES as u128 {
            attempts.attempt(now, of(index), None);
        }
        assert_eq!(attempts.0.len(), 1, "one /64");
        for index in 0..2 * MAX_ADDRESSES as u128 {
            attempts.attempt(now + Duration::from_millis(index as u64), of(index << 64), None);
        }
        assert_eq!(attempts.0.len(), MAX_ADDRESSES);
        assert!(attempts.0.contains_key(&of((2 * MAX_ADDRESSES as u128 - 1) << 64)));
        for hash in 0..2 * MAX_TOKENS as u8 {
            attempts.attempt(now, of(0), Some([hash; 32]));
        }
        assert_eq!(attempts.0[&of(0)].right.len(), MAX_TOKENS);
    }
}
