//! Who is signed in at the console: a random identifier in a cookie stands for a token, which no page keeps.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::tokens::Hash;

/// Browsers that are signed in; for one more, the one that was silent the longest is signed out.
const MAX_SESSIONS: usize = 256;

/// A session ends after so long.
pub(super) const LIFE: Duration = Duration::from_secs(12 * 3600);

/// A session ends when nothing was asked for so long; an open console asks every two seconds.
const IDLE: Duration = Duration::from_secs(3600);

/// The sessions, by the hashes of their identifiers.
#[derive(Debug, Default)]
pub(super) struct Sessions(BTreeMap<Hash, Session>);

#[derive(Debug)]
struct Session {
    token: Hash,
    began: Instant,
    used: Instant,
}

impl Sessions {
    /// Begins one for the bearer of `token`.
    pub(super) fn begin(&mut self, now: Instant, id: Hash, token: Hash) {
        self.0.retain(|_, session| session.lives(now));
        if self.0.len() >= MAX_SESSIONS {
            let longest = self.0.iter().min_by_key(|(_, session)| session.used).map(|(id, _)| *id);
            longest.map(|id| self.0.remove(&id));
        }
        self.0.insert(id, Session { token, began: now, used: now });
    }

    /// The token that it stands for, if it has not ended.
    pub(super) fn token(&mut self, now: Instant, id: &Hash) -> Option<Hash> {
        let session = self.0.get_mut(id).filter(|session| session.lives(now))?;
        session.used = now;
        Some(session.token)
    }

    /// Ends it.
    pub(super) fn end(&mut self, id: &Hash) {
        self.0.remove(id);
    }
}

impl Session {
    fn lives(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) < LIFE && now.saturating_duration_since(self.used) < IDLE
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests choose their own begin of time")]
mod tests {
    use super::*;

    #[test]
    fn sessions_end() {
        let (mut sessions, began) = (Sessions::default(), Instant::now());
        let (id, token) = ([1; 32], [7; 32]);
        sessions.begin(began, id, token);
        assert_eq!(sessions.token(began, &[2; 32]), None);
        let mut now = began;
        while now < began + LIFE {
            assert_eq!(sessions.token(now, &id), Some(token));
            now += IDLE / 2;
        }
        assert_eq!(sessions.token(now, &id), None, "its time is over");
        sessions.begin(now, id, token);
        assert_eq!(sessions.token(now + IDLE, &id), None, "nobody asked");
        sessions.begin(now, id, token);
        sessions.end(&id);
        assert_eq!(sessions.token(now, &id), None, "signed out");
    }

    #[test]
    fn sessions_are_bounded() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let id = |index: usize| {
            let mut id = Hash::default();
            id[..8].copy_from_slice(&index.to_be_bytes());
            id
        };
        for index in 0..=MAX_SESSIONS {
            sessions.begin(now + Duration::from_millis(index as u64), id(index), [0; 32]);
        }
        assert_eq!(sessions.0.len(), MAX_SESSIONS);
        assert_eq!(sessions.token(now, &id(0)), None);
        sessions.begin(now + IDLE * 2, id(0), [0; 32]);
        assert_eq!(sessions.0.len(), 1, "those that ended leave");
    }
}
