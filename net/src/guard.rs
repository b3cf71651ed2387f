//! Who is let in: a tier's limits per address, and who hears of refusals.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::address::{Addresses, Household, PerAddress};
use crate::{Observe, Refusal};

/// What the listeners of a role share to protect it. Cloning is cheap.
#[derive(Clone)]
pub struct Guard {
    addresses: Arc<Addresses>,
    observer: Arc<dyn Observe>,
}

impl Guard {
    /// `observer` hears of each refusal once.
    pub fn new(rules: PerAddress, observer: Arc<dyn Observe>) -> Guard {
        Guard { addresses: Arc::new(Addresses::new(rules, Instant::now().into_std())), observer }
    }

    /// Other rules, for connections and requests that come from now on. Who is there already is sent away by none.
    pub fn set_rules(&self, rules: PerAddress) {
        self.addresses.set_rules(rules);
    }

    /// A connection from `peer`, counted if it is refused.
    pub(crate) fn admit(&self, peer: SocketAddr) -> Result<Visit, Refusal> {
        match self.addresses.connect(Instant::now().into_std(), peer.ip()) {
            Ok(household) => Ok(Visit { guard: self.clone(), household }),
            Err(why) => {
                self.refused(why);
                Err(why)
            }
        }
    }

    /// `peer`, whose connection is open, did what counts against its address ([`PerAddress::offences_per_minute`]).
    pub fn offence(&self, peer: SocketAddr) {
        self.addresses.offence(Instant::now().into_std(), peer.ip());
    }

    pub(crate) fn refused(&self, why: Refusal) {
        self.observer.refused(why);
    }
}

impl Default for Guard {
    /// Keeps nobody out and tells nobody.
    fn default() -> Self {
        Guard::new(PerAddress::default(), Arc::new(()))
    }
}

/// A connection that was let in. Dropping it gives its place back.
pub(crate) struct Visit {
    guard: Guard,
    household: Option<Household>,
}

impl Visit {
    /// A request; or after how long it may be tried again, counted.
    pub(crate) fn request(&self) -> Result<(), Duration> {
        let Some(household) = &self.household else { return Ok(()) };
        self.guard
            .addresses
            .request(Instant::now().into_std(), household)
            .inspect_err(|_| self.refused(Refusal::RequestRate))
    }

    pub(crate) fn refused(&self, why: Refusal) {
        self.guard.refused(why);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(household) = &self.household {
            self.guard.addresses.disconnect(Instant::now().into_std(), household);
        }
    }
}
