//! Every order in which the hand-over of a permit can go, as far as three preemptions tell them apart: the module itself,
//! compiled over loom's locks. Loom fails on a waiter that nobody wakes, since its thread then never ends.

#[path = "../src/handover.rs"]
pub mod handover;

/// In place of the library's.
mod sync {
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
}

use std::task::{Context, Poll, Waker};

use handover::{Joined, Permit, Table, Waiting};
use loom::future::block_on;
use loom::thread;
use prometheus_client::metrics::gauge::Gauge;

const NAME: &str = "/live/s/1.m4s";

fn check(model: impl Fn(Table<u32>, Gauge) + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let names = Gauge::default();
        model(Table::new(8, names.clone()), names.clone());
        assert_eq!(names.get(), 0, "a name was left behind");
    });
}

fn join(table: &Table<u32>) -> Joined<u32, ()> {
    table.join(NAME, |_| true, || None)
}

fn first(table: &Table<u32>) -> (Permit<u32>, Waiting<u32>) {
    match join(table) {
        Joined::Yours(permit, waiting) => (permit, waiting),
        other => panic!("{other:?}"),
    }
}

/// What a viewer hears, and whether he had to fetch it.
fn view(table: &Table<u32>, fetched: u32) -> (Option<u32>, bool) {
    match join(table) {
        Joined::Waiting(waiting) => (block_on(waiting), false),
        Joined::Yours(permit, waiting) => {
            assert!(permit.tell(fetched));
            (block_on(waiting), true)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn of_those_who_come_together_one_fetches_at_a_time() {
    check(|table, _| {
        let others = [1, 2].map(|fetched| {
            let table = table.clone();
            thread::spawn(move || view(&table, fetched))
        });
        let heard = others.map(|viewer| viewer.join().unwrap());
        let fetched = heard.iter().filter(|(_, fetched)| *fetched).count();
        assert!(heard.iter().all(|(value, _)| value.is_some()), "{heard:?}");
        assert!(fetched == 2 || heard[0].0 == heard[1].0, "{heard:?}");
    });
}

#[test]
fn a_lost_permit_wakes_all_and_one_may_try_again() {
    check(|table, _| {
        let (permit, waiting) = first(&table);
        let second = match join(&table) {
            Joined::Waiting(waiting) => waiting,
            other => panic!("{other:?}"),
        };
        let late = {
            let table = table.clone();
            thread::spawn(move || {
                loop {
                    if let (Some(value), _) = view(&table, 7) {
                        return value;
                    }
                }
            })
        };
        let waits = thread::spawn(move || block_on(second));
        // As a panic would.
        drop(permit);
        assert_eq!(block_on(waiting), None);
        assert_eq!(waits.join().unwrap(), None);
        assert_eq!(late.join().unwrap(), 7);
    });
}

#[test]
fn a_seizure_and_a_verdict_are_told_apart() {
    check(|table, _| {
        let (permit, waiting) = first(&table);
        let pusher = {
            let table = table.clone();
            thread::spawn(move || {
                let pushed = table.seize(NAME);
                pushed.map(|permit| permit.tell(2))
            })
        };
        let waits = thread::spawn(move || block_on(waiting));
        let told = permit.tell(1);
        if !told {
            block_on(std::future::poll_fn(|cx| permit.poll_seized(cx)));
        }
        drop(permit);
        let (pushed, heard) = (pusher.join().unwrap(), waits.join().unwrap());
        match (told, heard) {
            (true, Some(1)) => assert!(pushed.is_none_or(|told| told), "a name of its own, or none"),
            (false, Some(2)) => assert_eq!(pushed, Some(true)),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_seizure_wakes_whoever_held_the_permit() {
    check(|table, _| {
        let (permit, waiting) = first(&table);
        let pusher = {
            let table = table.clone();
            // Lost without a word: those who wait are woken all the same.
            thread::spawn(move || drop(table.seize(NAME).unwrap()))
        };
        block_on(std::future::poll_fn(|cx| permit.poll_seized(cx)));
        assert!(!permit.tell(1));
        drop(permit);
        pusher.join().unwrap();
        assert_eq!(block_on(waiting), None);
    });
}

#[test]
fn a_purge_marks_what_is_in_flight_and_loses_nobody() {
    check(|table, _| {
        let (permit, waiting) = first(&table);
        let purger = {
            let table = table.clone();
            thread::spawn(move || table.purge(|key| key.starts_with("/live/")))
        };
        let waits = thread::spawn(move || block_on(waiting));
        assert!(permit.tell(1));
        permit.leave();
        let purged_by_then = permit.purged();
        let found = purger.join().unwrap();
        assert!(found <= 1 && (!purged_by_then || found == 1));
        assert_eq!(permit.purged(), found == 1);
        assert_eq!(waits.join().unwrap(), Some(1));
    });
}

#[test]
fn who_leaves_takes_nobody_elses_place() {
    check(|table, _| {
        let (permit, mut leaves) = first(&table);
        let stays = match join(&table) {
            Joined::Waiting(waiting) => waiting,
            other => panic!("{other:?}"),
        };
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(std::pin::Pin::new(&mut leaves).poll(&mut cx), Poll::Pending));
        let leaver = thread::spawn(move || drop(leaves));
        let waits = thread::spawn(move || block_on(stays));
        assert!(permit.tell(3));
        drop(permit);
        leaver.join().unwrap();
        assert_eq!(waits.join().unwrap(), Some(3));
    });
}
