//! Stream tokens: who may publish which stream, until when. JWT (RFC 7519), HS256.
//!
//! The POP checks a token before it spends anything on a session; the origin checks it again and has the last word.

use std::time::{Duration, SystemTime};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest token looked at, in bytes: ours have about 150.
pub const MAX_TOKEN_BYTES: usize = 1024;

/// Signing keys. Tokens are made with the first and accepted with any, so that keys can be rotated.
pub struct Keys {
    pub(crate) signing: EncodingKey,
    verifying: Vec<DecodingKey>,
}

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

/// No key to sign with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token key needs at least {MIN_SECRET_BYTES} bytes, this one has {0}")]
pub struct WeakSecret(usize);

/// Shortest secret: the width of the hash (RFC 7518, 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

impl Keys {
    /// Keys from secrets, the one to sign with first. Fails if there is none or one is shorter than 32 bytes.
    pub fn new(secrets: &[Vec<u8>]) -> Result<Keys, WeakSecret> {
        let signing = secrets.first().ok_or(WeakSecret(0))?;
        if let Some(weak) = secrets.iter().find(|secret| secret.len() < MIN_SECRET_BYTES) {
            return Err(WeakSecret(weak.len()));
        }
        Ok(Keys {
            signing: EncodingKey::from_secret(signing),
            verifying: secrets.iter().map(|secret| DecodingKey::from_secret(secret)).collect(),
        })
    }

    /// A token for `stream` that is valid for `ttl` from `now` on.
    pub fn issue(&self, stream: &str, ttl: Duration, now: SystemTime) -> String {
        self.issue_on(stream, ttl, Terms::default(), now)
    }

    /// The same with limits.
    pub fn issue_on(&self, stream: &str, ttl: Duration, terms: Terms, now: SystemTime) -> String {
        let iat = unix_seconds(now);
        let Terms { id: jti, max_bitrate, max_height } = terms;
        let exp = iat.saturating_add(ttl.as_secs());
        let claims = Claims { sub: stream.into(), iat, exp, jti, max_bitrate, max_height };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.signing)
            .expect("HS256 with a key from a secret cannot fail")
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
        if claims.sub != stream {
            return Err(TokenError::OtherStream { token: claims.sub, wanted: stream.into() });
        }
        Ok(claims)
    }

    fn signed(&self, token: &str) -> Result<Claims, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong(token.len()));
        }
        let mut rules = Validation::new(Algorithm::HS256);
        rules.validate_exp = false;
        self.decode(token, &rules)
    }

    pub(crate) fn decode<T: DeserializeOwned>(
        &self,
        token: &str,
        rules: &Validation,
    ) -> Result<T, TokenError> {
        for key in &self.verifying {
            match jsonwebtoken::decode::<T>(token, key, rules) {
                Ok(data) => return Ok(data.claims),
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {}
                Err(error) => return Err(TokenError::Malformed(error.to_string())),
            }
        }
        Err(TokenError::Signature)
    }
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
        let token = keys.issue("demo", HOUR, at(1000));
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
        let token = keys.issue_on("demo", HOUR, terms, at(1000));
        let claims = keys.verify(&token, "demo", at(1000)).unwrap();
        let said = (claims.jti.as_deref(), claims.max_bitrate, claims.max_height);
        assert_eq!(said, (Some("7f"), Some(6_000_000), Some(720)));
        let plain = keys.verify(&keys.issue("demo", HOUR, at(0)), "demo", at(0)).unwrap();
        assert_eq!((plain.jti, plain.max_bitrate, plain.max_height), (None, None, None));
    }

    #[test]
    fn keys_rotate_and_forgeries_fail() {
        let token = keys(&[1]).issue("demo", HOUR, at(0));
        assert!(keys(&[2, 1]).verify(&token, "demo", at(1)).is_ok(), "the old key is still valid");
        assert_eq!(keys(&[2]).verify(&token, "demo", at(1)), Err(TokenError::Signature));
        // {"alg":"none"} with the claims of a valid token and no signature.
        let claims = token.split('.').nth(1).unwrap();
        let forged = format!("eyJhbGciOiJub25lIn0.{claims}.");
        assert!(matches!(keys(&[1]).verify(&forged, "demo", at(1)), Err(TokenError::Malformed(_))));
        assert!(Keys::new(&[vec![0; 31]]).is_err() && Keys::new(&[]).is_err());
    }
}
