//! Where grants are kept. `Embedded` keeps them in this process: nothing to install, one node.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::lease::{Grant, Ledger};

/// A store inside the process. Cloning shares it.
#[derive(Clone, Default)]
pub struct Embedded(Arc<Inner>);

#[derive(Default)]
struct Inner {
    ledger: Mutex<Ledger>,
    changed: watch::Sender<()>,
}

impl Embedded {
    /// Takes the right to write `stream`; the holder before is fenced from this moment on.
    pub fn claim(&self, stream: &str, holder: &str) -> Grant {
        let grant = self.ledger(|ledger| ledger.claim(stream, holder, SystemTime::now()));
        self.0.changed.send_replace(());
        grant
    }

    /// A higher epoch for the holder of `grant`, unless it was fenced.
    pub fn renew(&self, grant: &Grant) -> Option<Grant> {
        let renewed = self.ledger(|ledger| ledger.renew(grant, SystemTime::now()));
        self.0.changed.send_replace(());
        renewed
    }

    /// Who claimed `stream` last.
    pub fn holder(&self, stream: &str) -> Option<String> {
        self.ledger(|ledger| ledger.holder(stream).map(str::to_owned))
    }

    /// Completes when `grant` no longer holds. Safe to drop.
    pub async fn fenced(&self, grant: &Grant) {
        let mut changed = self.0.changed.subscribe();
        while self.ledger(|ledger| ledger.holds(grant)) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Forgets the stream of `grant` if nobody claimed it since.
    pub fn forget(&self, grant: &Grant) {
        self.ledger(|ledger| ledger.forget(grant));
        self.0.changed.send_replace(());
    }

    fn ledger<T>(&self, act: impl FnOnce(&mut Ledger) -> T) -> T {
        act(&mut self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_fenced_are_told() {
        let store = Embedded::default();
        let first = store.claim("a", "one");
        let waiter = tokio::spawn({
            let (store, first) = (store.clone(), first.clone());
            async move { store.fenced(&first).await }
        });
        store.claim("b", "other");
        store.claim("a", "two");
        waiter.await.unwrap();
    }
}
