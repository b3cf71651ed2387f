//! What one address may use: connections at once, a rate of requests, and some offences. Addresses come and go with their connections; one
//! that has left is remembered until its rate no longer matters, within a bound.

#![deny(clippy::disallowed_methods)]

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Current, Refusal};

/// Addresses without a connection that are remembered for their rate: some 8 MB. Past it the one that left first is
/// forgotten, and starts with a full bucket should it return.
const MAX_ABSENT: usize = 65_536;

/// What a connection costs of the rate of requests: a TLS handshake takes about as much CPU time as ten small answers.
const CONNECTION_COST: u64 = 10;

/// IPv6 peers are told apart by so many leading bits: a household has at least as many addresses as fit behind them.
const V6_PREFIX_BITS: u8 = 64;

/// What one address (IPv6: one /64) may use. Behind a carrier's NAT an address stands for hundreds of viewers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PerAddress {
    /// Connections at once; 0: as many as the listener takes.
    pub connections: u32,
    /// Requests per second, over time; 0: any. A connection counts as ten.
    pub requests_per_second: u32,
    /// Requests at once before that rate counts; at least one connection's worth is allowed.
    pub burst: u32,
    /// Offences per minute, all of which may come at once; 0: any. Past it no connection is let in until some are forgiven.
    pub offences_per_minute: u32,
    /// To whom none of this applies: load balancers, which speak for many.
    pub exempt: Vec<Network>,
}

/// A block of addresses: `10.0.0.0/8`, `2001:db8::/32`, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether `addr` is in it. An IPv4 address in IPv6's clothes counts as what it is.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        self.base.is_ipv4() == addr.is_ipv4() && mask(addr, self.bits) == self.base
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (addr, bits) = match text.split_once('/') {
            Some((addr, bits)) => (addr, Some(bits)),
            None => (text, None),
        };
        let base: IpAddr = addr.parse().map_err(|_| format!("{text:?} is not an address or network"))?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or_else(|| format!("{text:?}: the prefix must be 0 to {most}"))?,
        };
        if mask(base, bits) != base {
            return Err(format!("{text:?}: the address has bits beyond its prefix"));
        }
        Ok(Network { base, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

fn mask(addr: IpAddr, bits: u8) -> IpAddr {
    match addr {
        IpAddr::V4(addr) => {
            let kept = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from_bits(addr.to_bits() & kept).into()
        }
        IpAddr::V6(addr) => {
            let kept = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from_bits(addr.to_bits() & kept).into()
        }
    }
}

/// Which addresses count as one: an IPv4 address, or a /64.
pub fn household(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        addr @ IpAddr::V4(_) => addr,
        addr @ IpAddr::V6(_) => mask(addr, V6_PREFIX_BITS),
    }
}

/// A rate of requests as one number: the instant, in nanoseconds since the table's begin, at which the bucket is full
/// again (the generic cell rate algorithm of ATM's traffic management).
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// Takes `cost` requests; or says after how long they may be had.
    fn take(&self, now_ns: u64, cost: u64, pace: Pace) -> Result<(), Duration> {
        let price = cost * pace.each_ns;
        let depth = pace.depth_ns.max(price);
        let mut wait = 0;
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let full_at = full_at.max(now_ns) + price;
            wait = (full_at - now_ns).saturating_sub(depth);
            (wait == 0).then_some(full_at)
        });
        taken.map(|_| ()).map_err(|_| Duration::from_nanos(wait))
    }

    /// Whether there is nothing to take.
    fn is_spent(&self, now_ns: u64, pace: Pace) -> bool {
        self.0.load(Ordering::Relaxed).saturating_sub(now_ns) + pace.each_ns > pace.depth_ns
    }
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Between two requests at the steady rate.
    each_ns: u64,
    /// How far ahead of it a burst may go.
    depth_ns: u64,
}

/// To whom a connection counts.
#[derive(Debug)]
pub(crate) struct Household {
    addr: IpAddr,
    bucket: Arc<Bucket>,
}

/// The rules, and what follows from them.
#[derive(Debug)]
struct Rates {
    rules: PerAddress,
    pace: Option<Pace>,
    offences: Option<Pace>,
    /// After so long nothing that an address did matters any more.
    memory: Option<Duration>,
}

/// The addresses of one tier's listeners.
#[derive(Debug)]
pub(crate) struct Addresses {
    rates: Current<Rates>,
    began: Instant,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    there: HashMap<IpAddr, Known>,
    /// In the order in which they left; some have returned or been forgotten since.
    absent: VecDeque<(Instant, IpAddr)>,
}

#[derive(Debug)]
struct Known {
    connections: u32,
    bucket: Arc<Bucket>,
    offences: Bucket,
    /// When the last connection closed.
    left: Option<Instant>,
}

impl Rates {
    fn new(rules: PerAddress) -> Rates {
        let pace = (rules.requests_per_second > 0).then(|| {
            let each_ns = 1_000_000_000 / u64::from(rules.requests_per_second).max(1);
            let each_ns = each_ns.max(1);
            Pace { each_ns, depth_ns: each_ns * u64::from(rules.burst.max(1)) }
        });
        let offences = (rules.offences_per_minute > 0).then(|| {
            let each_ns = 60_000_000_000 / u64::from(rules.offences_per_minute);
            Pace { each_ns, depth_ns: each_ns * u64::from(rules.offences_per_minute) }
        });
        let refill = [
            pace.map(|pace| pace.depth_ns.max(CONNECTION_COST * pace.each_ns)),
            offences.map(|pace| pace.depth_ns),
        ];
        let memory = refill.into_iter().flatten().max().map(Duration::from_nanos);
        Rates { rules, pace, offences, memory }
    }

    fn is_exempt(&self, addr: IpAddr) -> bool {
        self.rules.exempt.iter().any(|network| network.contains(addr))
    }
}

impl Addresses {
    pub(crate) fn new(rules: PerAddress, now: Instant) -> Addresses {
        Addresses { rates: Rates::new(rules).into(), began: now, table: Mutex::default() }
    }

    /// Other rules from now on. A connection that is not counted, for want of a limit, stays so.
    pub(crate) fn set_rules(&self, rules: PerAddress) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.rates.set(Rates::new(rules));
        if self.rates.get().memory.is_none() {
            while !table.absent.is_empty() {
                table.forget_first();
            }
        }
    }

    /// A connection from `addr`, to be given back by [`Addresses::disconnect`]. `None`: no limit applies to it.
    pub(crate) fn connect(&self, now: Instant, addr: IpAddr) -> Result<Option<Household>, Refusal> {
        let rates = self.rates.get();
        let nothing = rates.rules.connections == 0 && rates.memory.is_none();
        if nothing || rates.is_exempt(addr) {
            return Ok(None);
        }
        let addr = household(addr);
        let now_ns = self.ns(now);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.forget(now, rates.memory);
        let known = table.there.entry(addr).or_insert_with(|| Known {
            connections: 0,
            bucket: Arc::default(),
            offences: Bucket::default(),
            left: None,
        });
        let refusal = if rates.offences.is_some_and(|pace| known.offences.is_spent(now_ns, pace)) {
            Some(Refusal::AddressOffences)
        } else if rates.rules.connections > 0 && known.connections >= rates.rules.connections {
            Some(Refusal::AddressFull)
        } else if let Some(pace) = rates.pace
            && known.bucket.take(now_ns, CONNECTION_COST, pace).is_err()
        {
            Some(Refusal::AddressRate)
        } else {
            None
        };
        match refusal {
            // It is known already: a new one has a full bucket, which takes a connection whatever its size.
            Some(refusal) => Err(refusal),
            None => {
                known.connections += 1;
                known.left = None;
                Ok(Some(Household { addr, bucket: known.bucket.clone() }))
            }
        }
    }

    /// A connection of `household` has closed.
    pub(crate) fn disconnect(&self, now: Instant, household: &Household) {
        let addr = household.addr;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = table.there.get_mut(&addr) else { return };
        known.connections -= 1;
        if known.connections > 0 {
            return;
        }
        let memory = self.rates.get().memory;
        if memory.is_none() {
            table.there.remove(&addr);
            return;
        }
        known.left = Some(now);
        table.absent.push_back((now, addr));
        table.forget(now, memory);
        if table.absent.len() > MAX_ABSENT {
            table.forget_first();
        }
    }

    /// A request of `household`; or after how long it may be tried again.
    pub(crate) fn request(&self, now: Instant, household: &Household) -> Result<(), Duration> {
        match self.rates.get().pace {
            Some(pace) => household.bucket.take(self.ns(now), 1, pace),
            None => Ok(()),
        }
    }

    /// `addr`, which has a connection, did what it should not.
    pub(crate) fn offence(&self, now: Instant, addr: IpAddr) {
        let rates = self.rates.get();
        let Some(pace) = rates.offences.filter(|_| !rates.is_exempt(addr)) else { return };
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = table.there.get(&household(addr)) {
            // More than it may is no worse than all that it may: nobody is locked out for longer than a minute.
            let _ = known.offences.take(self.ns(now), 1, pace);
        }
    }

    fn ns(&self, now: Instant) -> u64 {
        // 584 years.
        now.saturating_duration_since(self.began).as_nanos() as u64
    }
}

impl Table {
    /// Those whose buckets are full again whatever they did.
    fn forget(&mut self, now: Instant, memory: Option<Duration>) {
        let Some(refill) = memory else { return };
        while self.absent.front().is_some_and(|(left, _)| now.saturating_duration_since(*left) > refill) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((left, addr)) = self.absent.pop_front()
            && self.there.get(&addr).is_some_and(|known| known.left == Some(left))
        {
            self.there.remove(&addr);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests choose their own begin of time")]
mod tests {
    use super::*;

    fn rules(connections: u32, requests_per_second: u32, burst: u32, exempt: &[&str]) -> PerAddress {
        let exempt = exempt.iter().map(|text| text.parse().unwrap()).collect();
        PerAddress { connections, requests_per_second, burst, exempt, ..PerAddress::default() }
    }

    #[test]
    fn offences_lock_an_address_out_until_they_are_forgiven() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let rules = PerAddress { offences_per_minute: 3, ..rules(0, 0, 0, &["10.0.0.0/8"]) };
        let addresses = Addresses::new(rules, now);
        let offend = |ms, text: &str| {
            let household = addresses.connect(at(ms), ip(text))?;
            addresses.offence(at(ms), ip(text));
            if let Some(household) = household {
                addresses.disconnect(at(ms), &household);
            }
            Ok(())
        };
        for ms in 0..3 {
            assert_eq!(offend(ms, "192.0.2.1"), Ok(()));
            assert_eq!(offend(ms, "10.0.0.1"), Ok(()));
        }
        // That it has no connection meanwhile changes nothing.
        assert_eq!(offend(3, "192.0.2.1"), Err(Refusal::AddressOffences));
        assert_eq!(offend(3, "192.0.2.2"), Ok(()), "its neighbour");
        assert_eq!(offend(3, "10.0.0.1"), Ok(()), "exempt");
        assert_eq!(offend(19_999, "192.0.2.1"), Err(Refusal::AddressOffences));
        assert_eq!(offend(20_003, "192.0.2.1"), Ok(()), "a third of a minute forgives one");
        assert_eq!(offend(20_004, "192.0.2.1"), Err(Refusal::AddressOffences));
        // Many on one connection lock out for a minute, not for longer.
        let household = addresses.connect(at(100_000), ip("192.0.2.1")).unwrap().unwrap();
        (0..50).for_each(|_| addresses.offence(at(100_000), ip("192.0.2.1")));
        addresses.disconnect(at(100_000), &household);
        assert_eq!(offend(119_999, "192.0.2.1"), Err(Refusal::AddressOffences));
        assert_eq!(offend(120_001, "192.0.2.1"), Ok(()));
        // What no longer matters is forgotten.
        assert_eq!(offend(300_000, "192.0.2.9"), Ok(()));
        assert_eq!(addresses.table.lock().unwrap().there.len(), 1);
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn other_rules_count_from_then_on() {
        let now = Instant::now();
        let addresses = Addresses::new(rules(1, 1, 10, &[]), now);
        let connect = || addresses.connect(now, ip("192.0.2.1"));
        let first = connect().unwrap().unwrap();
        assert_eq!(connect().unwrap_err(), Refusal::AddressFull);
        addresses.set_rules(rules(2, 0, 0, &[]));
        let second = connect().unwrap().unwrap();
        assert_eq!(connect().unwrap_err(), Refusal::AddressFull);
        addresses.disconnect(now, &first);
        addresses.disconnect(now, &second);
        assert!(addresses.table.lock().unwrap().there.is_empty(), "without rates nobody is remembered");
        // One that left while there were rates goes when there are none.
        addresses.set_rules(rules(1, 1, 10, &[]));
        addresses.disconnect(now, &connect().unwrap().unwrap());
        assert_eq!(addresses.table.lock().unwrap().there.len(), 1);
        addresses.set_rules(PerAddress::default());
        assert!(addresses.table.lock().unwrap().there.is_empty());
        assert!(connect().unwrap().is_none());
    }

    fn check_network(text: &str, inside: &[&str], outside: &[&str]) {
        let network: Network = text.parse().unwrap();
        for addr in inside {
            assert!(network.contains(ip(addr)), "{addr} is in {text}");
        }
        for addr in outside {
            assert!(!network.contains(ip(addr)), "{addr} is not in {text}");
        }
        assert_eq!(network.to_string().parse(), Ok(network));
    }

    #[test]
    fn networks() {
        check_network("10.0.0.0/8", &["10.0.0.1", "10.255.255.255", "::ffff:10.1.2.3"], &["11.0.0.0", "::1"]);
        check_network("0.0.0.0/0", &["1.2.3.4"], &["::1"]);
        check_network("::/0", &["::1", "2001:db8::"], &["1.2.3.4"]);
        check_network("192.0.2.7", &["192.0.2.7"], &["192.0.2.8"]);
        check_network("2001:db8::/32", &["2001:db8:ffff::1"], &["2001:db9::"]);
        for wrong in ["", "10.0.0.1/8", "10.0.0.0/33", "::/129", "host/8", "10.0.0.0/-1", "10.0.0.0/"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn connections_of_an_address_are_bounded_and_given_back() {
        let now = Instant::now();
        let addresses = Addresses::new(rules(2, 0, 0, &["10.0.0.0/8"]), now);
        let connect = |addr: &str| addresses.connect(now, ip(addr));
        let first = connect("192.0.2.1").unwrap().unwrap();
        let second = connect("::ffff:192.0.2.1").unwrap().unwrap();
        assert_eq!(connect("192.0.2.1").unwrap_err(), Refusal::AddressFull);
        connect("192.0.2.2").unwrap().unwrap();
        addresses.disconnect(now, &first);
        connect("192.0.2.1").unwrap().unwrap();
        assert_eq!(connect("192.0.2.1").unwrap_err(), Refusal::AddressFull);
        addresses.disconnect(now, &second);
        // One /64 is one address.
        let _six = [connect("2001:db8::1").unwrap(), connect("2001:db8::ffff:0:0:2").unwrap()];
        assert_eq!(connect("2001:db8::3").unwrap_err(), Refusal::AddressFull);
        connect("2001:db8:0:1::1").unwrap().unwrap();
        for _ in 0..10 {
            assert!(connect("10.1.1.1").unwrap().is_none(), "exempt");
        }
    }

    #[test]
    fn a_rate_outlives_the_connection() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let addresses = Addresses::new(rules(0, 10, 30, &[]), now);
        let household = addresses.connect(at(0), ip("192.0.2.1")).unwrap().unwrap();
        for _ in 0..20 {
            addresses.request(at(0), &household).unwrap();
        }
        assert_eq!(addresses.request(at(0), &household), Err(Duration::from_millis(100)));
        assert_eq!(addresses.request(at(100), &household), Ok(()));
        assert!(addresses.request(at(100), &household).is_err());
        assert_eq!(addresses.connect(at(100), ip("192.0.2.1")).unwrap_err(), Refusal::AddressRate);
        addresses.disconnect(at(100), &household);
        assert_eq!(addresses.connect(at(200), ip("192.0.2.1")).unwrap_err(), Refusal::AddressRate);
        addresses.connect(at(1100), ip("192.0.2.1")).unwrap().unwrap();
        // Refusals cost nothing: who goes on asking is not locked out for longer.
        let other = addresses.connect(at(0), ip("192.0.2.2")).unwrap().unwrap();
        let allowed = (0..10_000).filter(|ms| addresses.request(at(*ms), &other).is_ok()).count();
        assert_eq!(allowed, 20 + 99);
    }

    #[test]
    fn a_connection_is_allowed_even_where_the_burst_is_tiny() {
        let now = Instant::now();
        let addresses = Addresses::new(rules(0, 1, 1, &[]), now);
        let household = addresses.connect(now, ip("192.0.2.1")).unwrap().unwrap();
        assert!(addresses.request(now, &household).is_err());
    }

    #[test]
    fn the_table_forgets() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let addresses = Addresses::new(rules(0, 10, 30, &[]), now);
        let visit = |ms, number: u32| {
            let household = addresses.connect(at(ms), Ipv4Addr::from_bits(number).into()).unwrap().unwrap();
            addresses.disconnect(at(ms), &household);
        };
        let sizes = || {
            let table = addresses.table.lock().unwrap();
            (table.there.len(), table.absent.len())
        };
        for number in 0..MAX_ABSENT as u32 + 100 {
            visit(0, number);
        }
        assert_eq!(sizes(), (MAX_ABSENT, MAX_ABSENT));
        // One that returns again and again.
        for _ in 0..2 {
            visit(2000, 7);
        }
        visit(3001, 8);
        assert_eq!(sizes(), (2, 3));
        visit(9000, 9);
        assert_eq!(sizes(), (1, 1));
    }
}
