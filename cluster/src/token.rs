//! Stream tokens: who may publish which stream, until when. JWT (RFC 7519), signed with HS256 or EdDSA ([`crate::keys`]).
//!
//! The POP checks a token before it spends anything on a session; the origin checks it again and has the last word.

use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, Validation};
use serde::{Deserialize, Serialize};

pub use crate::keys::{CannotSign, Keys};

/// Longest token looked at, in bytes: ours have 150 to 350.
pub const MAX_TOKEN_BYTES: usize = 1024;

/// What a token says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The stream that may be published.
    pub sub: String,
    /// Issued at, unix seconds.
    pub iat: u64,
    /// Not valid from here on, unix seconds.
    pub exp: u64,
    /// Names the token, so that it alone can be revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// Most bits per second that may be sent, over ten seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bitrate: Option<u64>,
    /// Most lines of video that may be sent, counted on the shorter side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_height: Option<u32>,
}

/// What a token may say beside its stream and its time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// See [`Claims::jti`].
    pub id: Option<String>,
    /// See [`Claims::max_bitrate`].
    pub max_bitrate: Option<u64>,
    /// See [`Claims::max_height`].
    pub max_height: Option<u32>,
}

/// Why a token is refused. The messages never contain the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none.
    #[error("no token: the stream key is NAME?token=TOKEN")]
    Missing,
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("token of {0} bytes exceeds {MAX_TOKEN_BYTES}")]
    TooLong(usize),
    /// Not a JWT, or not of the kind that is made here.
    #[error("token is malformed: {0}")]
    Malformed(String),
    /// Made with another key, or changed since.
    #[error("token signature does not match any key")]
    Signature,
    /// It was valid once.
    #[error("token expired {seconds} s ago")]
    Expired {
        /// Seconds since its end.
        seconds: u64,
    },
    /// It belongs to another stream.
    #[error("token is for stream {token:?}, not {wanted:?}")]
    OtherStream {
        /// The stream it names.
        token: String,
        /// The stream that was asked for.
        wanted: String,
    },
}

/// All that is to be said about a token, good or bad: for people who look for what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// What it says, if that can be read. Not to be believed where `problems` has [`TokenError::Signature`].
    pub claims: Option<Claims>,
    /// What is wrong with it; empty if it opens its stream.
    pub problems: Vec<TokenError>,
}

impl Keys {
    /// A token for `stream` that is valid for `ttl` from `now` on. Fails if the first key is a public one.
    pub fn issue(&self, stream: &str, ttl: Duration, now: SystemTime) -> Result<String, CannotSign> {
        self.issue_on(stream, ttl, Terms::default(), now)
    }

    /// The same with limits.
    pub fn issue_on(
        &self,
        stream: &str,
        ttl: Duration,
        terms: Terms,
        now: SystemTime,
    ) -> Result<String, CannotSign> {
        let iat = unix_seconds(now);
        let Terms { id: jti, max_bitrate, max_height } = terms;
        let exp = iat.saturating_add(ttl.as_secs());
        self.encode(&Claims { sub: stream.into(), iat, exp, jti, max_bitrate, max_height })
    }

    /// Checks that `token` allows publishing `stream` at `now`.
    pub fn verify(&self, token: &str, stream: &str, now: SystemTime) -> Result<Claims, TokenError> {
        in_time(self.verify_running(token, stream)?, now)
    }

    /// Checks that `token` allows publishing at `now`, whichever stream it names.
    pub fn read(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        in_time(self.signed(token)?, now)
    }

    /// Checks all but the time: a session that was let in goes on when its token has expired meanwhile.
    pub fn verify_running(&self, token: &str, stream: &str) -> Result<Claims, TokenError> {
        let claims = self.signed(token)?;
        of_stream(&claims, stream)?;
        Ok(claims)
    }

    /// All that is wrong with a token at `now`, also with the stream it should be for if there is one.
    pub fn examine(&self, token: &str, stream: Option<&str>, now: SystemTime) -> Examined {
        let mut problems = Vec::new();
        let claims = match self.signed(token) {
            Ok(claims) => Some(claims),
            Err(problem) => {
                let unread = matches!(problem, TokenError::Missing | TokenError::TooLong(_));
                problems.push(problem);
                if unread {
                    None
                } else {
                    jsonwebtoken::dangerous::insecure_decode_claims::<Claims>(token).ok()
                }
            }
        };
        if let Some(claims) = &claims {
            problems.extend(in_time(claims.clone(), now).err());
            problems.extend(stream.and_then(|stream| of_stream(claims, stream).err()));
        }
        Examined { claims, problems }
    }

    fn signed(&self, token: &str) -> Result<Claims, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong(token.len()));
        }
        self.decode(token, |algorithm: Algorithm| {
            let mut rules = Validation::new(algorithm);
            rules.validate_exp = false;
            rules
        })
    }
}

fn of_stream(claims: &Claims, stream: &str) -> Result<(), TokenError> {
    if claims.sub == stream {
        return Ok(());
    }
    Err(TokenError::OtherStream { token: claims.sub.clone(), wanted: stream.into() })
}

fn in_time(claims: Claims, now: SystemTime) -> Result<Claims, TokenError> {
    // Compared here, not by the library: it reads the clock itself and allows a minute of grace.
    let now = unix_seconds(now);
    if now >= claims.exp {
        return Err(TokenError::Expired { seconds: now - claims.exp });
    }
    Ok(claims)
}

pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
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
    fn a_token_opens_its_stream_until_it_expires() {
        let keys = keys(&[1]);
        let token = keys.issue("demo", HOUR, at(1000)).unwrap();
        assert_eq!(keys.verify(&token, "demo", at(1000)).unwrap().exp, 4600);
        assert!(keys.verify(&token, "demo", at(4599)).is_ok());
        assert_eq!(keys.read(&token, at(1000)).unwrap().sub, "demo");
        assert_eq!(keys.read(&token, at(4600)), Err(TokenError::Expired { seconds: 0 }));
        let refused = |token: &str, stream: &str, now| keys.verify(token, stream, at(now)).unwrap_err();
        assert_eq!(refused(&token, "demo", 4612), TokenError::Expired { seconds: 12 });
        assert_eq!(refused(&token, "other", 1000).to_string(), "token is for stream \"demo\", not \"other\"");
        assert_eq!(refused("", "demo", 0), TokenError::Missing);
        assert_eq!(refused(&"x".repeat(2000), "demo", 0), TokenError::TooLong(2000));
        assert!(keys.verify_running(&token, "demo").is_ok() && keys.verify_running(&token, "other").is_err());
        assert!(matches!(refused("not.a.token", "demo", 0), TokenError::Malformed(_)));
    }

    #[test]
    fn limits_are_signed_too() {
        let keys = keys(&[1]);
        let terms = Terms { id: Some("7f".into()), max_bitrate: Some(6_000_000), max_height: Some(720) };
        let token = keys.issue_on("demo", HOUR, terms, at(1000)).unwrap();
        let claims = keys.verify(&token, "demo", at(1000)).unwrap();
        let said = (claims.jti.as_deref(), claims.max_bitrate, claims.max_height);
        assert_eq!(said, (Some("7f"), Some(6_000_000), Some(720)));
        let plain = keys.verify(&keys.issue("demo", HOUR, at(0)).unwrap(), "demo", at(0)).unwrap();
        assert_eq!((plain.jti, plain.max_bitrate, plain.max_height), (None, None, None));
    }

    #[test]
    fn keys_rotate_and_forgeries_fail() {
        let token = keys(&[1]).issue("demo", HOUR, at(0)).unwrap();
        assert!(keys(&[2, 1]).verify(&token, "demo", at(1)).is_ok(), "the old key is still valid");
        assert_eq!(keys(&[2]).verify(&token, "demo", at(1)), Err(TokenError::Signature));
        // {"alg":"none"} with the claims of a valid token and no signature.
        let claims = token.split('.').nth(1).unwrap();
        let forged = format!("eyJhbGciOiJub25lIn0.{claims}.");
        assert!(matches!(keys(&[1]).verify(&forged, "demo", at(1)), Err(TokenError::Malformed(_))));
        assert!(Keys::new(&[vec![0; 31]]).is_err() && Keys::new(&[]).is_err());
    }

    #[test]
    fn all_that_is_wrong_with_a_token_is_said_at_once() {
        let token = keys(&[1]).issue("demo", HOUR, at(1000)).unwrap();
        let good = keys(&[1]).examine(&token, Some("demo"), at(1000));
        assert_eq!((good.claims.unwrap().sub.as_str(), good.problems), ("demo", vec![]));
        let bad = keys(&[2]).examine(&token, Some("other"), at(4612));
        assert_eq!(bad.claims.unwrap().exp, 4600);
        let other = TokenError::OtherStream { token: "demo".into(), wanted: "other".into() };
        assert_eq!(bad.problems, [TokenError::Signature, TokenError::Expired { seconds: 12 }, other]);
        let garbage = keys(&[1]).examine("a.b.c", None, at(0));
        assert!(garbage.claims.is_none() && matches!(garbage.problems[..], [TokenError::Malformed(_)]));
        assert_eq!(keys(&[1]).examine("", None, at(0)).problems, [TokenError::Missing]);
    }
}
