//! Playback tokens: who may watch what is under a path, until when. JWT (RFC 7519) as [`crate::token`] has them, with an audience of their own,
//! so that neither a token to publish opens a stream to watch nor the other way round, even with one key for both.

use std::time::{Duration, SystemTime};

use jsonwebtoken::Validation;
use serde::{Deserialize, Serialize};

use crate::keys::{CannotSign, Keys};
use crate::token::{MAX_TOKEN_BYTES, TokenError, unix_seconds};

/// The audience (`aud`) of playback tokens.
const AUDIENCE: &str = "playback";

/// What a playback token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// `playback`.
    aud: String,
    /// The path that it opens, and all that is under it.
    pub sub: String,
    /// Issued at, unix seconds.
    pub iat: u64,
    /// Not valid from here on, unix seconds.
    pub exp: u64,
}

impl Grant {
    /// Whether it opens `path`, which has no dot segments: by whole segments, so that `/live/a` does not open `/live/ab`.
    pub fn opens(&self, path: &str) -> bool {
        let folder = self.sub.strip_suffix('/').unwrap_or(&self.sub);
        self.sub.starts_with('/')
            && path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Fails if its time is over at `now`.
    pub fn check_time(&self, now: SystemTime) -> Result<(), TokenError> {
        let now = unix_seconds(now);
        if now >= self.exp { Err(TokenError::Expired { seconds: now - self.exp }) } else { Ok(()) }
    }
}

impl Keys {
    /// A token that opens all under `path`, such as `/live/demo`, for `ttl` from `now` on. Fails if the first key
    /// is a public one.
    pub fn issue_playback(&self, path: &str, ttl: Duration, now: SystemTime) -> Result<String, CannotSign> {
        let iat = unix_seconds(now);
        let exp = iat.saturating_add(ttl.as_secs());
        self.encode(&Grant { aud: AUDIENCE.into(), sub: path.into(), iat, exp })
    }

    /// Checks that `token` is a playback token made with one of the keys. Whether its time is over and what it opens is to
    /// be asked of the grant.
    pub fn verify_playback(&self, token: &str) -> Result<Grant, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong(token.len()));
        }
        self.decode(token, |algorithm| {
            let mut rules = Validation::new(algorithm);
            rules.validate_exp = false;
            rules.set_audience(&[AUDIENCE]);
            rules.set_required_spec_claims(&["aud", "exp", "sub"]);
            rules
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn keys(secrets: &[u8]) -> Keys {
        Keys::new(&secrets.iter().map(|byte| vec![*byte; 32]).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_token_opens_what_is_under_its_path_for_its_time() {
        let keys = keys(&[1]);
        let grant = keys.verify_playback(&keys.issue_playback("/live/a", HOUR, at(1000)).unwrap()).unwrap();
        assert!(grant.check_time(at(4599)).is_ok());
        assert_eq!(grant.check_time(at(4610)), Err(TokenError::Expired { seconds: 10 }));
        for (scope, path, expected) in [
            ("/live/a", "/live/a/index.m3u8", true),
            ("/live/a", "/live/a", true),
            ("/live/a/", "/live/a/1/v/7.m4s", true),
            ("/live/a", "/live/ab/index.m3u8", false),
            ("/live/a", "/live", false),
            ("/live/a", "/x/live/a", false),
            ("/", "/live/a", true),
            ("", "/live/a", false),
            ("live", "live/a", false),
        ] {
            let grant = Grant { sub: scope.into(), ..grant.clone() };
            assert_eq!(grant.opens(path), expected, "{scope} {path}");
        }
    }

    #[test]
    fn forgeries_and_tokens_of_the_other_kind_fail() {
        let (ours, theirs) = (keys(&[1]), keys(&[2]));
        let token = ours.issue_playback("/live/a", HOUR, at(0)).unwrap();
        assert!(keys(&[2, 1]).verify_playback(&token).is_ok(), "the old key is still valid");
        assert_eq!(theirs.verify_playback(&token), Err(TokenError::Signature));
        assert_eq!(ours.verify_playback(&"x".repeat(2000)), Err(TokenError::TooLong(2000)));
        let publish = ours.issue("demo", HOUR, at(0)).unwrap();
        let refused = ours.verify_playback(&publish).unwrap_err();
        assert!(matches!(refused, TokenError::Malformed(_)), "{refused}");
        for stream in ["/live/a", "a"] {
            let refused = ours.verify(&token, stream, at(1)).unwrap_err();
            assert!(matches!(refused, TokenError::Malformed(_)), "{refused}");
        }
        let claims = token.split('.').nth(1).unwrap();
        let signature = token.split('.').nth(2).unwrap();
        for forged in [
            // {"alg":"none"}, {"alg":"HS512"}, {"alg":"RS256"}
            format!("eyJhbGciOiJub25lIn0.{claims}."),
            format!("eyJhbGciOiJIUzUxMiJ9.{claims}.{signature}"),
            format!("eyJhbGciOiJSUzI1NiJ9.{claims}.{signature}"),
            format!("..{signature}"),
            "a.b.c".into(),
            "\u{0}\u{ff}".into(),
            String::new(),
        ] {
            let refused = ours.verify_playback(&forged).unwrap_err();
            assert!(matches!(refused, TokenError::Malformed(_)), "{forged}: {refused}");
        }
    }
}
