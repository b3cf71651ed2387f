//! Viewers as numbers (`edge::simulate`) beside viewers one by one: the same audience comes to the same end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use edge::coalesce::Rules;
use edge::policy::{Class, Policy};
use edge::simulate::{Latency, Outcome, Reload, Rule, Scenario};

use crate::world::{Event, Reply, World};
use crate::{VIEWERS, answers};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// All of them within 90 ms, and none asks for more than the first name.
fn as_numbers(class: &Class, latency_ms: u64) -> Outcome {
    let policy = Policy { classes: vec![class.clone().into()], delivery: Vec::new() };
    let scenario = Scenario {
        viewers: VIEWERS as u64,
        edges: 1,
        shields: 0,
        renditions: 1,
        audio: false,
        arrival: ms(90),
        length: ms(91),
        segment: ms(1000),
        part: ms(200),
        reload: Reload::Polling,
        hop: ms(0),
        latency: Latency::of(ms(latency_ms), ms(latency_ms)),
        capacity: None,
        edge: policy.clone(),
        shield: policy,
        rule: Rule::Promote,
        seed: 1,
    };
    edge::simulate::run(&scenario, Instant::now())
}

fn one_by_one(class: &Class, latency_ms: u64) -> World {
    let rules = Rules {
        blocking_timeout: class.blocking_timeout,
        give_up: class.give_up,
        max_fetches: class.max_fetches,
    };
    let headers = Reply::Headers { status: 200, tagged: true, ttl: 2000 };
    let mut world = World::new(rules, 1, Box::new(move |_| answers(latency_ms, headers.clone())));
    for viewer in 0..VIEWERS {
        world.at(90 * viewer as u64 / VIEWERS as u64, Event::Arrive { name: 0 });
    }
    world.run();
    world
}

#[test]
fn they_come_to_the_same_end() {
    for max_fetches in 1..=4 {
        let class = Class { blocking_timeout: ms(1000), give_up: ms(4000), max_fetches, ..Class::default() };
        for latency_ms in [100, 900, 1100, 2500, 3900, 5000] {
            let (numbers, world) = (as_numbers(&class, latency_ms), one_by_one(&class, latency_ms));
            let case = format!("{max_fetches} fetches, {latency_ms} ms: {numbers:?}");
            assert_eq!(numbers.edge_fetches, u64::from(world.fetches), "{case}");
            // The first name only; without an answer nobody asks for a second one.
            let failed = if latency_ms < 4000 { 0 } else { VIEWERS as u64 };
            assert_eq!((numbers.requests, numbers.failed), (VIEWERS as u64, failed), "{case}");
            let outcomes = BTreeMap::from([(if failed == 0 { "whole" } else { "503" }.to_owned(), VIEWERS)]);
            assert_eq!(world.outcomes(), outcomes, "{case}");
            let waits =
                world.viewers.iter().map(|viewer| viewer.answered.as_ref().unwrap().0 - viewer.arrived);
            assert_eq!(Some(numbers.wait_ms.max), waits.max(), "{case}");
        }
    }
}
