//! Random arrivals, answers, failures, leavings, pushes and purges. The world itself asserts, at every step, that no
//! flight has more than `max_fetches` open, that nobody waits past give-up, is woken for nothing or is forgotten, that no
//! byte is put in the wrong place and that nothing is left open.

use std::collections::BTreeMap;
use std::time::Duration;

use edge::coalesce::{Failure, Rules};
use edge::simulate::random::Random;

use crate::world::{Asked, Event, Reply, World};

const SEEDS: u64 = 3000;

/// An upstream that does anything.
fn answer(random: &mut Random, asked: Asked) -> Vec<(u64, Reply)> {
    const FAILURES: [Failure; 6] = [
        Failure::NotMine,
        Failure::Broken,
        Failure::TimedOut,
        Failure::Unfit,
        Failure::Erred,
        Failure::Unavailable,
    ];
    let mut at = random.below(1500);
    let mut replies = Vec::new();
    if random.below(4) == 0 {
        if random.below(2) == 0 {
            replies.push((at, Reply::Fail(FAILURES[random.below(6) as usize])));
        }
        return replies;
    }
    let mut from = match asked.from {
        Some(from) => from,
        None => {
            let (status, ttl) = ([200, 200, 200, 404][random.below(4) as usize], random.below(3) * 700);
            replies.push((at, Reply::Headers { status, tagged: random.below(3) > 0, ttl }));
            0
        }
    };
    while from < 4000 {
        at += random.below(900);
        match random.below(10) {
            0 => return replies,
            1 => {
                replies.push((at, Reply::Fail(FAILURES[random.below(6) as usize])));
                return replies;
            }
            _ => {}
        }
        let to = (from + 1 + random.below(2500) as usize).min(4000);
        replies.push((at, Reply::Bytes(from..to)));
        from = to;
    }
    replies.push((at + random.below(300), Reply::End));
    replies
}

fn run(seed: u64) -> BTreeMap<String, usize> {
    let mut random = Random::new(seed);
    let rules = Rules {
        blocking_timeout: Duration::from_millis(100 + random.below(900)),
        give_up: Duration::from_millis(1000 + random.below(2000)),
        max_fetches: 1 + random.below(4) as u32,
    };
    let candidates = random.below(4) as usize;
    let mut upstream = random.clone();
    let mut world = World::new(rules, candidates, Box::new(move |asked| answer(&mut upstream, asked)));
    world.promised = (0..3).filter(|_| random.below(3) == 0).collect();
    let viewers = 1 + random.below(60);
    for viewer in 0..viewers {
        let at = random.below(6000);
        world.at(at, Event::Arrive { name: random.below(3) as u32 });
        if random.below(5) == 0 {
            world.at(at + random.below(3000), Event::Leave { viewer: viewer as usize });
        }
    }
    for _ in 0..random.below(8) {
        let (at, name) = (random.below(8000), random.below(3) as u32);
        let event = match random.below(4) {
            0 => Event::PushLost { name },
            1 => Event::Pushed { name, whole: true },
            2 => Event::Pushed { name, whole: false },
            _ => Event::Purge,
        };
        world.at(at, event);
    }
    world.run();
    let outcomes = world.outcomes();
    assert_eq!(outcomes.values().sum::<usize>() as u64, viewers);
    outcomes
}

#[test]
fn whatever_happens_the_bounds_hold_and_everyone_is_told() {
    let mut all = BTreeMap::<String, usize>::new();
    for seed in 1..=SEEDS {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(outcomes) => {
                for (outcome, count) in outcomes {
                    *all.entry(outcome).or_default() += count;
                }
            }
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // The schedules reach what they are meant to reach.
    for outcome in ["whole", "broken", "left", "404", "502", "503", "504"] {
        assert!(all.get(outcome).is_some_and(|count| *count > 10), "{outcome}: {all:?}");
    }
}
