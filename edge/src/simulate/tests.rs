use super::*;
use crate::policy::Class;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn scenario() -> Scenario {
    let policy =
        Policy { classes: Class::defaults().into_iter().map(Into::into).collect(), delivery: Vec::new() };
    Scenario {
        viewers: 100_000,
        edges: 10,
        shields: 2,
        renditions: 3,
        audio: true,
        arrival: ms(2000),
        length: ms(10_000),
        segment: ms(1000),
        part: ms(200),
        reload: Reload::Blocking,
        hop: ms(20),
        latency: Latency::of(ms(30), ms(30)),
        capacity: None,
        edge: policy.clone(),
        shield: policy,
        rule: Rule::Promote,
        seed: 1,
    }
}

fn with_timeout(policy: &Policy, timeout: Duration) -> Policy {
    let classes =
        policy.classes.iter().map(|class| Class { blocking_timeout: timeout, ..Class::clone(class) }.into());
    Policy { classes: classes.collect(), ..policy.clone() }
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn run(scenario: &Scenario) -> Outcome {
    assert_eq!(scenario.problems(), Vec::<String>::new());
    super::run(scenario, Instant::now())
}

#[test]
fn a_quick_origin_sees_each_name_once() {
    let outcome = run(&scenario());
    // Four renditions: an init segment, ten or eleven segments, fifty parts; the multivariant playlist every two seconds
    // and the plain ones, while viewers arrive, every half second.
    let names = 4 * (1 + 11 + 50);
    assert!((names..names + 40).contains(&outcome.origin_requests), "{outcome:?}");
    assert!((10 * names..10 * (names + 60)).contains(&outcome.edge_fetches), "{outcome:?}");
    // Two requests a part for each of two renditions.
    assert!((19_000_000..20_000_000).contains(&outcome.requests), "{outcome:?}");
    assert!(outcome.leak_ratio < 0.001, "{outcome:?}");
    assert_eq!((outcome.stalls, outcome.failed), (0, 0), "{outcome:?}");
    assert_eq!(outcome.startup_ms.p50, 0, "all is there for most");
    assert!((50..=250).contains(&outcome.startup_ms.max), "{outcome:?}");
    assert_eq!(outcome.wait_ms.max, 50, "a hop and the origin");
    // The rules make no difference as long as nothing is late.
    assert_eq!(run(&Scenario { rule: Rule::Flood, ..scenario() }), outcome);
    // Ten times the audience, the same fetches.
    let larger = run(&Scenario { viewers: 1_000_000, ..scenario() });
    assert_eq!(
        (larger.origin_requests, larger.edge_fetches),
        (outcome.origin_requests, outcome.edge_fetches)
    );
    assert_eq!(run(&scenario()), outcome, "the same again");
}

#[test]
fn a_slow_origin_is_flooded_by_one_rule_and_not_by_the_other() {
    let policy = with_timeout(&scenario().edge, ms(500));
    let slow = Scenario {
        latency: Latency::of(ms(1500), ms(1500)),
        edge: policy.clone(),
        shield: policy,
        ..scenario()
    };
    let promote = run(&slow);
    let flood = run(&Scenario { rule: Rule::Flood, ..slow.clone() });
    assert!(promote.leak_ratio < 0.01, "{promote:?}");
    assert!(flood.origin_requests > 100 * promote.origin_requests, "{flood:?} {promote:?}");
    // An origin that cannot answer so many does not recover from it.
    let narrow = Scenario { capacity: Some(2000), ..slow };
    let promote = run(&narrow);
    let flood = run(&Scenario { rule: Rule::Flood, ..narrow });
    assert!(flood.failed > 100 * promote.failed.max(1), "{flood:?} {promote:?}");
}

#[test]
fn a_longer_ttl_saves_fetches_and_costs_stalls() {
    let polling = |ttl| {
        let mut scenario = Scenario { reload: Reload::Polling, segment: ms(2000), ..scenario() };
        for policy in [&mut scenario.edge, &mut scenario.shield] {
            for class in &mut policy.classes {
                if class.name == "playlist" {
                    *class = Class { ttl: Some(ms(ttl)), ..Class::clone(class) }.into();
                }
            }
        }
        run(&scenario)
    };
    let (short, long) = (polling(250), polling(6000));
    assert!(short.origin_requests > 2 * long.origin_requests, "{short:?} {long:?}");
    assert!(short.stalls == 0 && long.stalls > 1000, "{short:?} {long:?}");
}

#[test]
fn everybody_is_counted() {
    for viewers in [1, 7, 1000, 12_345] {
        let scenario = Scenario { viewers, ..scenario() };
        let source = source::Source::new(&scenario);
        let arrivals = audience::Audience::arrivals(&scenario);
        assert_eq!(arrivals.iter().map(|(_, _, count)| count).sum::<u64>(), viewers);
        assert!(arrivals.iter().all(|(at, ..)| *at < 2_000_000));
        assert_eq!(source.newest(0) + 1, 500);
        assert!(source.published(500) > 0 && source.newest(source.published(500) + 1) == 500);
    }
}

#[test]
fn problems_name_the_field() {
    let bad = Scenario {
        viewers: 0,
        edges: 0,
        shields: 99,
        renditions: 0,
        arrival: ms(20_000),
        segment: ms(1),
        part: ms(1),
        hop: ms(99_999),
        capacity: Some(0),
        ..scenario()
    };
    let problems = bad.problems();
    for field in
        ["viewers", "edges", "shields", "renditions", "arrival", "segment", "part", "hop", "capacity"]
    {
        assert!(
            problems.iter().any(|problem| problem.starts_with(&format!("{field}: "))),
            "{field}: {problems:?}"
        );
    }
}
