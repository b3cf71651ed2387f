//! Stream keys: what a broadcaster types into its encoder, `NAME?token=TOKEN`.
#![deny(clippy::disallowed_methods)]

use std::fmt;

use media::StreamName;
use media::name::InvalidName;

/// Longest key, app or URL that is looked at: a name, a token of up to 1024 bytes and parameters of the encoder's own.
const MAX_KEY_BYTES: usize = 4096;

/// A stream's name and the token that should open it. Neither `Debug` nor an error ever shows the token.
#[derive(Clone, PartialEq, Eq)]
pub struct StreamKey {
    /// The stream to publish.
    pub stream: StreamName,
    /// Not empty, not yet verified.
    pub token: String,
}

/// Why a publish name is not a stream key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// The part before `?` cannot name a stream.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// No token, neither in the key nor in the URL.
    #[error("stream {0}: the key has no token: it should be NAME?token=TOKEN")]
    NoToken(StreamName),
    /// Too long to be one.
    #[error("stream key of {0} bytes exceeds {MAX_KEY_BYTES}")]
    TooLong(usize),
}

impl StreamKey {
    /// Reads the publish name; the token may also stand in the query of `app` or `tc_url`, where some encoders put it.
    pub fn parse(publish_name: &str, app: &str, tc_url: &str) -> Result<StreamKey, InvalidKey> {
        if let Some(long) = [publish_name, app, tc_url].iter().find(|text| text.len() > MAX_KEY_BYTES) {
            return Err(InvalidKey::TooLong(long.len()));
        }
        let name = publish_name.split(['?', '&']).next().unwrap_or_default();
        let stream: StreamName = name.parse()?;
        match [publish_name, app, tc_url].into_iter().find_map(token) {
            Some(token) => Ok(StreamKey { stream, token: token.into() }),
            None => Err(InvalidKey::NoToken(stream)),
        }
    }
}

impl fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}?token=...", self.stream)
    }
}

fn token(text: &str) -> Option<&str> {
    let (_, query) = text.split_once('?')?;
    // A second `?` comes from encoders that append the key to a URL that has a query already.
    query
        .split(['&', '?', '/'])
        .find_map(|pair| pair.strip_prefix("token="))
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_where_encoders_put_them() {
        for (name, app, url) in [
            ("demo?token=a.b.c", "live", "rtmp://h/live"),
            ("demo?x=1&token=a.b.c&y", "live", ""),
            ("demo", "live?token=a.b.c", ""),
            ("demo", "live", "rtmps://h:1936/live?token=a.b.c"),
            ("demo?token=a.b.c", "live?token=other", ""),
            ("demo", "live", "rtmp://h/live?token=a.b.c/demo"),
        ] {
            let key = StreamKey::parse(name, app, url).unwrap();
            assert_eq!((key.stream.as_str(), key.token.as_str()), ("demo", "a.b.c"), "{name} {app} {url}");
            assert_eq!(format!("{key:?}"), "demo?token=...");
        }
    }

    #[test]
    fn what_is_wrong_with_a_key_is_said_without_the_token() {
        for (name, message) in [
            ("", "name \"\": is empty"),
            ("demo", "stream demo: the key has no token: it should be NAME?token=TOKEN"),
            ("demo?token=", "stream demo: the key has no token: it should be NAME?token=TOKEN"),
            ("a b?token=x", "name \"a b\": has a character outside A-Z a-z 0-9 - _ ."),
            (&"x".repeat(5000), "stream key of 5000 bytes exceeds 4096"),
        ] {
            assert_eq!(StreamKey::parse(name, "live", "").unwrap_err().to_string(), message);
        }
    }
}
