//! How a broadcast follows what an origin sees of its stream.
//!
//! Levels, not edges: whatever was missed, the next look finds what is to be done, one step at a time.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use media::StreamName;
use origin::control::Standing;

use super::broadcast::{Broadcast, Run, Step};
use super::events::{EndedBy, State};

/// An interruption that is over sooner is none: a take-over by a newer session, a break of the timeline.
pub(crate) const SETTLE_MS: u64 = 1000;

/// A stream whose origin says nothing any more is ended by another node, so long after its own origin would have.
const ORPHANED_MS: u64 = 30_000;

/// What this node's origin saw, and since when.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    streams: BTreeMap<StreamName, (Standing, u64)>,
}

impl Seen {
    /// Takes note of a listing at `now_ms`.
    pub(crate) fn observe(&mut self, now_ms: u64, listed: Vec<Standing>) {
        let mut before = std::mem::take(&mut self.streams);
        for standing in listed {
            let known = before.remove(&standing.stream);
            let since =
                known.filter(|(known, _)| known.state == standing.state).map_or(now_ms, |(_, since)| since);
            self.streams.insert(standing.stream.clone(), (standing, since));
        }
    }

    /// The stream of a broadcast, if it is sent with its token.
    pub(crate) fn of(&self, broadcast: &Broadcast) -> Option<&(Standing, u64)> {
        let seen = self.streams.get(&broadcast.stream);
        seen.filter(|(standing, _)| standing.token.as_deref() == Some(&broadcast.token.id))
    }
}

/// What is to be done now, or when to look again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// This.
    Now(Step),
    /// At this time (milliseconds since 1970), if nothing changes before.
    At(u64),
    /// When something changes.
    OnChange,
}

/// The next step of an open broadcast, as the node `me` sees it. It is `mine` if no other origin has it, as far as is known.
/// `grace_ms` is how long an origin waits for a broadcaster.
pub(crate) fn next(
    broadcast: &Broadcast,
    seen: &Seen,
    me: &str,
    mine: bool,
    now_ms: u64,
    grace_ms: u64,
) -> Next {
    // What another origin took over since is none of this one's business.
    let seen = seen
        .of(broadcast)
        .filter(|(standing, _)| broadcast.epoch.is_none_or(|epoch| standing.epoch.0 >= epoch));
    let run = |standing: &Standing| Run {
        owner: me.to_owned(),
        epoch: standing.epoch.0,
        anchor_unix_ms: standing.anchor_unix_ms,
    };
    let end = |at_ms, by| Next::Now(Step::End { at_ms, by });
    let later = |at_ms: u64, then: Next| if now_ms >= at_ms { then } else { Next::At(at_ms) };
    match (broadcast.state, seen) {
        (State::Ended | State::Archived, _) => Next::OnChange,
        (State::Created, Some((standing, since))) => {
            Next::Now(Step::Start { at_ms: *since, run: run(standing) })
        }
        (State::Created, None) => {
            let expires_ms = broadcast.token.expires.saturating_mul(1000);
            later(expires_ms, end(now_ms, EndedBy::Expiry))
        }
        (State::Live | State::Interrupted, Some((standing, since))) => {
            let higher = broadcast.epoch.is_none_or(|epoch| standing.epoch.0 > epoch);
            // A mirror shows the same epoch as the owner.
            if !mine && !higher {
                return Next::OnChange;
            }
            match (broadcast.state, standing.state) {
                (_, origin::live::State::Ended) => end(*since, EndedBy::Absence),
                (State::Live, origin::live::State::Live) if higher || !mine => {
                    Next::Now(Step::Move { run: run(standing) })
                }
                (State::Live, origin::live::State::Interrupted(_)) => {
                    let step = Step::Interrupt { at_ms: *since };
                    later(since.saturating_add(SETTLE_MS), Next::Now(step))
                }
                (State::Interrupted, origin::live::State::Live) => {
                    Next::Now(Step::Resume { at_ms: *since, run: run(standing) })
                }
                _ => Next::OnChange,
            }
        }
        // Its origin was started anew, or forgot it.
        (State::Live, None) if mine => Next::Now(Step::Interrupt { at_ms: now_ms }),
        (State::Live, None) => Next::OnChange,
        (State::Interrupted, None) => {
            let patience = if mine { 0 } else { ORPHANED_MS };
            let interrupted_ms = broadcast.interrupted_ms.unwrap_or(now_ms);
            let at_ms = interrupted_ms.saturating_add(grace_ms).saturating_add(patience);
            later(at_ms, end(now_ms, EndedBy::Absence))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::broadcast::tests::created;
    use super::*;
    use media::Epoch;
    use origin::live::State as Stream;

    const GRACE: u64 = 60_000;

    fn standing(state: Stream, epoch: u64) -> Standing {
        Standing {
            stream: "demo".parse().unwrap(),
            state,
            anchor_unix_ms: 1900,
            epoch: Epoch(epoch),
            token: Some("t1".into()),
        }
    }

    fn seen(at: u64, state: Stream, epoch: u64) -> Seen {
        let mut seen = Seen::default();
        seen.observe(at, vec![standing(state, epoch)]);
        seen
    }

    fn run(owner: &str, epoch: u64) -> Run {
        Run { owner: owner.into(), epoch, anchor_unix_ms: 1900 }
    }

    fn live(owner: &str, epoch: u64) -> Broadcast {
        created().after(&Step::Start { at_ms: 2000, run: run(owner, epoch) }).unwrap().0
    }

    fn interrupted(owner: &str, at_ms: u64) -> Broadcast {
        live(owner, 7).after(&Step::Interrupt { at_ms }).unwrap().0
    }

    fn check(broadcast: &Broadcast, seen: &Seen, now: u64, expected: Next) {
        let mine = broadcast.owner.as_deref().is_none_or(|owner| owner == "o1");
        assert_eq!(next(broadcast, seen, "o1", mine, now, GRACE), expected, "{broadcast:?} {seen:?}");
    }

    #[test]
    fn what_an_origin_sees_becomes_steps() {
        let none = Seen::default();
        let away = Stream::Interrupted(1);
        let start = |at_ms| Next::Now(Step::Start { at_ms, run: run("o1", 7) });
        check(&created(), &none, 2000, Next::At(86_400_000));
        check(&created(), &none, 86_400_000, Next::Now(Step::End { at_ms: 86_400_000, by: EndedBy::Expiry }));
        check(&created(), &seen(2000, Stream::Live, 7), 2500, start(2000));
        check(&created(), &seen(2000, Stream::Ended, 7), 2500, start(2000));
        check(&live("o1", 7), &seen(2000, Stream::Live, 7), 2500, Next::OnChange);
        check(
            &live("o1", 7),
            &seen(2000, Stream::Live, 8),
            2500,
            Next::Now(Step::Move { run: run("o1", 8) }),
        );
        check(&live("o1", 7), &seen(3000, away, 7), 3500, Next::At(4000));
        check(&live("o1", 7), &seen(3000, away, 7), 4000, Next::Now(Step::Interrupt { at_ms: 3000 }));
        check(&live("o1", 7), &none, 4000, Next::Now(Step::Interrupt { at_ms: 4000 }));
        let resume = Next::Now(Step::Resume { at_ms: 5000, run: run("o1", 8) });
        check(&interrupted("o1", 3000), &seen(5000, Stream::Live, 8), 5500, resume);
        check(&interrupted("o1", 3000), &seen(3000, away, 7), 90_000, Next::OnChange);
        let ended = |at_ms| Next::Now(Step::End { at_ms, by: EndedBy::Absence });
        check(&interrupted("o1", 3000), &seen(63_000, Stream::Ended, 7), 63_001, ended(63_000));
        check(&interrupted("o1", 3000), &none, 10_000, Next::At(63_000));
        check(&interrupted("o1", 3000), &none, 63_000, ended(63_000));
    }

    #[test]
    fn another_origins_stream_is_left_to_it_until_it_is_taken_over() {
        let none = Seen::default();
        check(&live("o2", 7), &none, 10_000, Next::OnChange);
        check(&live("o2", 7), &seen(3000, Stream::Live, 7), 10_000, Next::OnChange);
        check(&live("o2", 7), &seen(3000, Stream::Interrupted(1), 6), 10_000, Next::OnChange);
        check(
            &live("o2", 7),
            &seen(3000, Stream::Live, 8),
            10_000,
            Next::Now(Step::Move { run: run("o1", 8) }),
        );
        let resume = Next::Now(Step::Resume { at_ms: 5000, run: run("o1", 8) });
        check(&interrupted("o2", 3000), &seen(5000, Stream::Live, 8), 5500, resume);
        check(&interrupted("o2", 3000), &none, 63_000, Next::At(93_000));
        let ended = Next::Now(Step::End { at_ms: 93_000, by: EndedBy::Absence });
        check(&interrupted("o2", 3000), &none, 93_000, ended);
    }

    #[test]
    fn a_stream_whose_origin_is_gone_is_everybodys() {
        let gone = |broadcast: &Broadcast, now| next(broadcast, &Seen::default(), "o1", true, now, GRACE);
        assert_eq!(gone(&live("o2", 7), 10_000), Next::Now(Step::Interrupt { at_ms: 10_000 }));
        let ended = Next::Now(Step::End { at_ms: 63_000, by: EndedBy::Absence });
        assert_eq!(gone(&interrupted("o2", 3000), 63_000), ended);
    }

    #[test]
    fn a_stream_that_is_sent_with_another_token_is_another_broadcast() {
        let mut seen = Seen::default();
        seen.observe(2000, vec![Standing { token: Some("t2".into()), ..standing(Stream::Live, 9) }]);
        check(&created(), &seen, 2500, Next::At(86_400_000));
        check(&live("o1", 7), &seen, 2500, Next::Now(Step::Interrupt { at_ms: 2500 }));
    }

    #[test]
    fn a_state_is_as_old_as_its_first_sight() {
        let mut seen = seen(2000, Stream::Interrupted(1), 7);
        seen.observe(2900, vec![standing(Stream::Interrupted(1), 7)]);
        check(&live("o1", 7), &seen, 3000, Next::Now(Step::Interrupt { at_ms: 2000 }));
        seen.observe(3000, vec![standing(Stream::Interrupted(2), 7)]);
        check(&live("o1", 7), &seen, 3000, Next::At(4000));
    }
}
