//! Twenty thousand viewers of one cold name, and random schedules, in virtual time.

mod audiences;
mod schedules;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use edge::coalesce::{Failure, Rules};

use crate::world::{Asked, Event, Reply, Upstream, World, whole};

const VIEWERS: usize = 20_000;

/// As the class of media has them by default.
const RULES: Rules = Rules {
    blocking_timeout: Duration::from_millis(2000),
    give_up: Duration::from_millis(8000),
    max_fetches: 2,
};

const TAGGED: Reply = Reply::Headers { status: 200, tagged: true, ttl: 60_000 };
const PLAIN: Reply = Reply::Headers { status: 200, tagged: false, ttl: 60_000 };

/// Headers after `ms`, and then a body in a hundred milliseconds.
fn answers(ms: u64, headers: Reply) -> Vec<(u64, Reply)> {
    vec![
        (ms, headers),
        (ms + 50, Reply::Bytes(0..2000)),
        (ms + 100, Reply::Bytes(2000..4000)),
        (ms + 100, Reply::End),
    ]
}

/// The rest of a body, at once.
fn rest(from: usize) -> Vec<(u64, Reply)> {
    vec![(10, Reply::Bytes(from..whole().len())), (10, Reply::End)]
}

/// All of them within the first 90 ms.
fn herd(upstream: impl FnMut(Asked) -> Vec<(u64, Reply)> + 'static) -> World {
    herd_with(RULES, Box::new(upstream))
}

fn herd_with(rules: Rules, upstream: Upstream) -> World {
    let mut world = World::new(rules, 2, upstream);
    for viewer in 0..VIEWERS {
        world.at(90 * viewer as u64 / VIEWERS as u64, Event::Arrive { name: 0 });
    }
    world
}

fn check(world: &mut World, fetches: u32, outcomes: &[(&str, usize)], answered_by: u64) {
    world.run();
    let outcomes: BTreeMap<String, usize> =
        outcomes.iter().map(|(outcome, count)| ((*outcome).to_owned(), *count)).collect();
    assert_eq!(world.outcomes(), outcomes);
    assert_eq!(world.fetches, fetches);
    let latest = world.viewers.iter().filter_map(|viewer| Some(viewer.answered.as_ref()?.0)).max();
    assert_eq!(latest, Some(answered_by), "when the last of them was answered, in ms");
}

#[test]
fn it_answers_in_100_ms() {
    check(&mut herd(|_| answers(100, PLAIN)), 1, &[("whole", VIEWERS)], 100);
}

#[test]
fn it_answers_in_3_s() {
    // The one beside it is started after two seconds, and ended when the first answers.
    check(&mut herd(|_| answers(3000, PLAIN)), 2, &[("whole", VIEWERS)], 3000);
    let patient = Rules { blocking_timeout: Duration::from_millis(4000), ..RULES };
    let mut world = herd_with(patient, Box::new(|_| answers(3000, PLAIN)));
    check(&mut world, 1, &[("whole", VIEWERS)], 3000);
}

#[test]
fn it_stalls_at_first() {
    let upstream = |asked: Asked| if asked.nth == 0 { Vec::new() } else { answers(100, PLAIN) };
    check(&mut herd(upstream), 2, &[("whole", VIEWERS)], 2100);
}

#[test]
fn it_stalls_for_ever_and_answers_later() {
    let upstream = |asked: Asked| if asked.nth < 2 { Vec::new() } else { answers(100, PLAIN) };
    let mut world = herd(upstream);
    // Behind the time for which the failure is remembered.
    for n in 0..100 {
        world.at(9000 + n / 10, Event::Arrive { name: 0 });
    }
    check(&mut world, 3, &[("503", VIEWERS), ("whole", 100)], 9100);
    assert_eq!(world.most_at_once, 2);
}

#[test]
fn it_stalls_within_the_body() {
    let stalls = |headers: Reply| {
        move |asked: Asked| match asked.from {
            None => answers(100, headers.clone()).into_iter().take(2).collect(),
            Some(from) => rest(from),
        }
    };
    check(&mut herd(stalls(TAGGED)), 2, &[("whole", VIEWERS)], 100);
    // Without a validator nobody knows what the rest belongs to.
    check(&mut herd(stalls(PLAIN)), 1, &[("broken", VIEWERS)], 100);
}

#[test]
fn it_closes_within_the_body() {
    let closes = |headers: Reply, again: bool| {
        move |asked: Asked| {
            let mut replies = match asked.from {
                None => answers(100, headers.clone()).into_iter().take(2).collect(),
                Some(from) if again => vec![(10, Reply::Bytes(from..from + 100))],
                Some(from) => return rest(from),
            };
            replies.push((160, Reply::Fail(Failure::Broken)));
            replies
        }
    };
    check(&mut herd(closes(TAGGED, false)), 2, &[("whole", VIEWERS)], 100);
    check(&mut herd(closes(TAGGED, true)), 3, &[("broken", VIEWERS)], 100);
    check(&mut herd(closes(PLAIN, false)), 1, &[("broken", VIEWERS)], 100);
}

#[test]
fn it_answers_500() {
    let fails = |_: Asked| vec![(100, Reply::Fail(Failure::Erred))];
    let mut world = herd(fails);
    // While the failure is remembered, nobody asks again.
    for n in 0..100 {
        world.at(200 + n, Event::Arrive { name: 0 });
    }
    check(&mut world, 2, &[("502", VIEWERS + 100)], 299);
}

#[test]
fn it_answers_404() {
    let missing =
        |_: Asked| vec![(100, Reply::Headers { status: 404, tagged: false, ttl: 500 }), (100, Reply::End)];
    check(&mut herd(missing), 1, &[("404", VIEWERS)], 100);
}

#[test]
fn it_answers_no_store() {
    let private = Reply::Headers { status: 200, tagged: false, ttl: 0 };
    let headers = private.clone();
    check(&mut herd(move |_| answers(100, headers.clone())), 1, &[("whole", VIEWERS)], 100);
    // Ten seconds of them, two a millisecond: each waits for one answer at most, and the upstream has one request in
    // hand at a time whose headers have not come.
    let mut world = World::new(RULES, 2, Box::new(move |_| answers(100, private.clone())));
    for n in 0..VIEWERS as u64 {
        world.at(n / 2, Event::Arrive { name: 0 });
    }
    world.run();
    assert_eq!(world.outcomes(), BTreeMap::from([("whole".to_owned(), VIEWERS)]));
    let waits = world.viewers.iter().map(|viewer| viewer.answered.as_ref().unwrap().0 - viewer.arrived);
    assert_eq!(waits.max(), Some(100));
    assert!((99..=101).contains(&world.fetches), "{} in ten seconds", world.fetches);
    assert_eq!(world.most_at_once, 2, "one whose body still comes");
}

#[test]
fn the_first_viewer_leaves() {
    let mut world = herd(|_| answers(100, PLAIN));
    world.at(1, Event::Leave { viewer: 0 });
    check(&mut world, 1, &[("left", 1), ("whole", VIEWERS - 1)], 100);
    // All of them leave: the fetch is the object's.
    let mut world = herd(|_| answers(100, PLAIN));
    for viewer in 0..VIEWERS {
        world.at(95, Event::Leave { viewer });
    }
    world.at(500, Event::Arrive { name: 0 });
    check(&mut world, 1, &[("left", VIEWERS), ("whole", 1)], 500);
}

#[test]
fn a_push_brings_it_or_breaks() {
    let mut world = herd(|_| answers(100, PLAIN));
    world.promised.push(0);
    world.at(95, Event::Pushed { name: 0, whole: true });
    check(&mut world, 0, &[("whole", VIEWERS)], 95);
    let mut world = herd(|_| answers(100, PLAIN));
    world.promised.push(0);
    world.at(95, Event::PushLost { name: 0 });
    check(&mut world, 1, &[("whole", VIEWERS)], 195);
    // It seizes the name from a fetch and is lost: those who wait try again, one of them fetches.
    let mut world = herd(|_| answers(100, PLAIN));
    world.at(95, Event::Pushed { name: 0, whole: false });
    check(&mut world, 2, &[("whole", VIEWERS)], 195);
}
