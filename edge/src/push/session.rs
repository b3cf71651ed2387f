//! What a push may say, and when it counts as lost: checks every frame before anything is done about it.
//!
//! Whatever breaks a rule ends the push, and nothing else: pull answers from then on.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use media::push::frame::{Bad, Decoder, Frame, Head};

use crate::policy::{self, MAX_KEY_BYTES};

/// Objects whose bodies are on the way at once: two of each rendition, and room for many of those.
pub const MAX_OPEN: usize = 256;

/// Slots that promise something at once.
pub const MAX_SLOTS: usize = 256;

/// One push, as it is received.
#[derive(Debug)]
pub struct Session {
    /// All names begin with it; it ends with `/`.
    prefix: String,
    silence: Duration,
    /// `None`: it was said that it is quiet.
    quiet_until: Option<Instant>,
    decoder: Decoder,
    open: BTreeSet<u32>,
    /// Names by slot that are still to come.
    promised: BTreeMap<u32, Vec<Box<str>>>,
    silent_until: Instant,
}

/// What is to be done. Ids are those of objects that have begun and have not ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// An object begins. Its names lie within the prefix and are canonical.
    Begin { id: u32, head: Head },
    /// More of its body, never empty.
    Data { id: u32, bytes: Bytes },
    /// It is whole.
    End { id: u32 },
    /// It will not become whole by this push.
    Fail { id: u32 },
    /// `added` will come; `withdrawn` will not, though it was promised. `keys` is what the slot says now.
    Promise { slot: u32, keys: Vec<Box<str>>, added: Vec<Box<str>>, withdrawn: Vec<Box<str>> },
    /// The newest part begins with a frame that came in at its POP at this time, microseconds since 1970.
    Time { unix_us: u64 },
    /// Forget what begins with this; it lies within the prefix.
    Purge { prefix: Box<str> },
    /// The stream is over.
    Gone,
}

/// Why a push is given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It makes no sense.
    #[error(transparent)]
    Bad(#[from] Bad),
    /// A name that it has no business with, or in a form that nobody asks for.
    #[error("{key:?} is not a canonical name below {prefix}")]
    Name { key: Box<str>, prefix: String },
    /// Only successes are pushed.
    #[error("object {id} has status {status}")]
    Status { id: u32, status: u16 },
    /// An object begins twice, or goes on before it has begun.
    #[error("object {id} {what}")]
    Object { id: u32, what: &'static str },
    /// More at once than allowed.
    #[error("more than {limit} {what}")]
    TooMany { what: &'static str, limit: usize },
    /// Nothing came for this long, not even a ping.
    #[error("nothing came for {0:?}")]
    Silent(Duration),
}

impl Session {
    /// A push of what begins with `prefix` (which ends with `/`), lost after `silence`.
    pub fn new(now: Instant, prefix: String, silence: Duration) -> Session {
        let (open, promised) = Default::default();
        let (quiet_until, silent_until) = (Some(now + silence / 2), now + silence);
        Session { prefix, silence, quiet_until, decoder: Decoder::default(), open, promised, silent_until }
    }

    /// Takes from the front of `input` up to the next event; `None` when all of it is taken. After an error the push is
    /// over.
    pub fn next(&mut self, now: Instant, input: &mut Bytes) -> Result<Option<Event>, Fault> {
        (self.quiet_until, self.silent_until) = (Some(now + self.silence / 2), now + self.silence);
        while let Some(frame) = self.decoder.next(input)? {
            match frame {
                Frame::Ping => {}
                frame => return self.event(frame).map(Some),
            }
        }
        Ok(None)
    }

    /// When to call [`Session::handle_timeout`].
    pub fn poll_timeout(&self) -> Instant {
        self.quiet_until.unwrap_or(self.silent_until)
    }

    /// Whether it has just become quiet, half as long as it takes to be lost; an error if it has been silent for too long.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<bool, Fault> {
        if now >= self.silent_until {
            return Err(Fault::Silent(self.silence));
        }
        Ok(self.quiet_until.take_if(|quiet| *quiet <= now).is_some())
    }

    fn event(&mut self, frame: Frame) -> Result<Event, Fault> {
        match frame {
            Frame::Begin { id, head } => {
                head.names.iter().try_for_each(|name| self.check(&name.key))?;
                if head.status != 200 {
                    return Err(Fault::Status { id, status: head.status });
                }
                if self.open.len() >= MAX_OPEN {
                    return Err(Fault::TooMany { what: "objects at once", limit: MAX_OPEN });
                }
                if !self.open.insert(id) {
                    return Err(Fault::Object { id, what: "begins twice" });
                }
                for keys in self.promised.values_mut() {
                    keys.retain(|key| head.names.iter().all(|name| name.key != *key));
                }
                Ok(Event::Begin { id, head })
            }
            Frame::Data { id, bytes } if self.open.contains(&id) => Ok(Event::Data { id, bytes }),
            Frame::End { id } if self.open.remove(&id) => Ok(Event::End { id }),
            Frame::Fail { id } if self.open.remove(&id) => Ok(Event::Fail { id }),
            Frame::Data { id, .. } | Frame::End { id } | Frame::Fail { id } => {
                Err(Fault::Object { id, what: "goes on, but has not begun" })
            }
            Frame::Promise { slot, keys } => self.promise(slot, keys),
            Frame::Purge { prefix } => {
                if !prefix.starts_with(&self.prefix) {
                    return Err(Fault::Name { key: prefix, prefix: self.prefix.clone() });
                }
                Ok(Event::Purge { prefix })
            }
            Frame::Time { unix_us } => Ok(Event::Time { unix_us }),
            Frame::Gone | Frame::Ping => Ok(Event::Gone),
        }
    }

    fn promise(&mut self, slot: u32, keys: Vec<Box<str>>) -> Result<Event, Fault> {
        keys.iter().try_for_each(|key| self.check(key))?;
        let before = self.promised.remove(&slot).unwrap_or_default();
        if !keys.is_empty() {
            if self.promised.len() >= MAX_SLOTS {
                return Err(Fault::TooMany { what: "slots that promise", limit: MAX_SLOTS });
            }
            self.promised.insert(slot, keys.clone());
        }
        let added = keys.iter().filter(|key| !before.contains(key)).cloned().collect();
        let withdrawn = before.into_iter().filter(|key| !keys.contains(key)).collect();
        Ok(Event::Promise { slot, keys, added, withdrawn })
    }

    fn check(&self, key: &str) -> Result<(), Fault> {
        let (path, query) = key.split_once('?').map_or((key, None), |(path, query)| (path, Some(query)));
        let printable = key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        let canonical = key.len() <= MAX_KEY_BYTES && printable && policy::key(key, path, query) == key;
        if canonical && path.starts_with(&self.prefix) {
            Ok(())
        } else {
            Err(Fault::Name { key: key.chars().take(100).collect(), prefix: self.prefix.clone() })
        }
    }
}

/// When to ask for a push again: doubling, jittered, and forgotten once a push has lasted.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits between half of `first` and `first` at first, and never more than `most`.
    pub fn new(first: Duration, most: Duration) -> Backoff {
        Backoff { first, most, next: first }
    }

    /// How long to wait now, after a push that lasted for `lasted`; `random` says where within the jitter.
    pub fn after(&mut self, lasted: Duration, random: u64) -> Duration {
        if lasted >= self.most {
            self.next = self.first;
        }
        let now = self.next;
        self.next = (now * 2).min(self.most);
        // Half of it is jitter: those who lost their pushes together come back apart.
        let half = now / 2;
        half + half.mul_f64((random % 1024) as f64 / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use media::push::Name;

    const SILENCE: Duration = Duration::from_secs(2);

    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn session() -> (Session, Instant) {
        let now = Instant::now();
        (Session::new(now, "/live/a/".into(), SILENCE), now)
    }

    fn head(keys: &[&str]) -> Head {
        let name = |key: &&str| Name { key: (*key).into(), control: "max-age=1".into(), live: false };
        Head { slot: 1, keep: 1, status: 200, names: keys.iter().map(name).collect(), ..Head::default() }
    }

    fn events(session: &mut Session, now: Instant, frames: &[Frame]) -> Result<Vec<Event>, Fault> {
        let mut wire = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut wire).unwrap());
        let (mut wire, mut events) = (wire.freeze(), Vec::new());
        while let Some(event) = session.next(now, &mut wire)? {
            events.push(event);
        }
        Ok(events)
    }

    fn boxed(keys: &[&str]) -> Vec<Box<str>> {
        keys.iter().map(|key| (*key).into()).collect()
    }

    #[test]
    fn objects_begin_go_on_and_end() {
        let (mut session, now) = session();
        let bytes = Bytes::from_static(b"x");
        let got = events(
            &mut session,
            now,
            &[
                Frame::Begin { id: 3, head: head(&["/live/a/1.m4s"]) },
                Frame::Ping,
                Frame::Data { id: 3, bytes: bytes.clone() },
                Frame::End { id: 3 },
                Frame::Begin { id: 3, head: head(&["/live/a/2.m4s"]) },
                Frame::Fail { id: 3 },
                Frame::Purge { prefix: "/live/a/1/".into() },
                Frame::Gone,
            ],
        );
        let expected = [
            Event::Begin { id: 3, head: head(&["/live/a/1.m4s"]) },
            Event::Data { id: 3, bytes },
            Event::End { id: 3 },
            Event::Begin { id: 3, head: head(&["/live/a/2.m4s"]) },
            Event::Fail { id: 3 },
            Event::Purge { prefix: "/live/a/1/".into() },
            Event::Gone,
        ];
        assert_eq!(got.unwrap(), expected);
    }

    #[test]
    fn what_it_has_no_business_with_ends_it() {
        let check = |frames: &[Frame], expected: &str| {
            let (mut session, now) = session();
            let fault = events(&mut session, now, frames).unwrap_err().to_string();
            assert!(fault.contains(expected), "{fault}");
        };
        let begin = |id, key: &str| Frame::Begin { id, head: head(&[key]) };
        for key in [
            "/live/b/1.m4s",
            "/live/a",
            "/live/ab/x",
            "x",
            "",
            "/live/a/x?b=1&a=2",
            "/live/a/x y",
            "/live/a/x?token=1",
            "/live/a/\n",
            "/live/a/ä",
            "/live/a/x#y",
        ] {
            check(&[begin(1, key)], "is not a canonical name below /live/a/");
            check(&[Frame::Promise { slot: 1, keys: boxed(&[key]) }], "is not a canonical name");
        }
        check(&[begin(1, &format!("/live/a/{}", "x".repeat(MAX_KEY_BYTES)))], "is not a canonical name");
        check(&[Frame::Purge { prefix: "/live/".into() }], "is not a canonical name");
        let failed = Head { status: 404, ..head(&["/live/a/x"]) };
        check(&[Frame::Begin { id: 1, head: failed }], "object 1 has status 404");
        check(&[begin(1, "/live/a/x"), begin(1, "/live/a/y")], "object 1 begins twice");
        check(&[Frame::End { id: 1 }], "object 1 goes on, but has not begun");
        check(&[begin(1, "/live/a/x"), Frame::End { id: 1 }, Frame::Fail { id: 1 }], "has not begun");
        check(&[Frame::Data { id: 2, bytes: Bytes::from_static(b"x") }], "object 2 goes on");
        let many: Vec<_> = (0..=MAX_OPEN as u32).map(|id| begin(id, "/live/a/x")).collect();
        check(&many, "more than 256 objects at once");
        let promise = |slot| Frame::Promise { slot, keys: boxed(&["/live/a/x"]) };
        let many: Vec<_> = (0..=MAX_SLOTS as u32).map(promise).collect();
        check(&many, "more than 256 slots");
    }

    #[test]
    fn promises_are_kept_or_withdrawn() {
        let (mut session, now) = session();
        let promise = |keys: &[&str]| Frame::Promise { slot: 1, keys: boxed(keys) };
        let (x, y, z) = ("/live/a/x", "/live/a/y", "/live/a/z");
        let got = events(
            &mut session,
            now,
            &[promise(&[x, y]), Frame::Begin { id: 1, head: head(&[x]) }, promise(&[y, z]), promise(&[])],
        );
        let promise = |keys: &[&str], added: &[&str], withdrawn: &[&str]| Event::Promise {
            slot: 1,
            keys: boxed(keys),
            added: boxed(added),
            withdrawn: boxed(withdrawn),
        };
        let expected = [
            promise(&[x, y], &[x, y], &[]),
            Event::Begin { id: 1, head: head(&[x]) },
            promise(&[y, z], &[z], &[]),
            promise(&[], &[], &[y, z]),
        ];
        assert_eq!(got.unwrap(), expected);
    }

    #[test]
    fn silence_is_loss() {
        let (mut session, now) = session();
        let second = Duration::from_secs(1);
        assert_eq!(session.poll_timeout(), now + SILENCE / 2);
        assert_eq!(session.handle_timeout(now + SILENCE / 2), Ok(true));
        assert_eq!(session.handle_timeout(now + SILENCE / 2), Ok(false), "it was said");
        assert_eq!(session.poll_timeout(), now + SILENCE);
        events(&mut session, now + second, &[Frame::Ping]).unwrap();
        assert_eq!(session.handle_timeout(now + SILENCE), Ok(true));
        assert_eq!(session.poll_timeout(), now + 3 * second);
        assert_eq!(session.handle_timeout(now + 3 * second), Err(Fault::Silent(SILENCE)));
    }

    #[test]
    fn backoff_doubles_within_bounds_and_starts_anew_after_a_push_that_lasted() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(200), ms(1000));
        assert_eq!(backoff.after(ms(0), 0), ms(100));
        assert_eq!(backoff.after(ms(0), 512), ms(300));
        assert_eq!(backoff.after(ms(999), 0), ms(400));
        for _ in 0..100 {
            let wait = backoff.after(ms(0), 1023);
            assert!((ms(900)..ms(1000)).contains(&wait), "{wait:?}");
        }
        assert_eq!(backoff.after(ms(1000), 0), ms(100));
    }
}
