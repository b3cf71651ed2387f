//! Signatures of events, by the Standard Webhooks specification (symmetric, `v1`): HMAC-SHA256 over
//! `{id}.{unix seconds}.{body}`, as base64, with each of the receiver's secrets.
#![deny(clippy::disallowed_methods)]

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Secrets of one receiver: the one in use, and its successors.
pub(crate) const MAX_SECRETS: usize = 4;

/// What a secret begins with.
const PREFIX: &str = "whsec_";

/// Bytes of a secret.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// What events are signed with.
#[derive(Debug)]
pub(crate) struct Secrets(Vec<hmac::Key>);

/// Why secrets cannot be used. The messages never contain one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecretError {
    /// There must be one, and only so many.
    #[error("{0} secrets, not 1 to {MAX_SECRETS}")]
    Count(usize),
    /// Not base64 after `whsec_`.
    #[error("secret {0}: is not {PREFIX} and base64")]
    Form(usize),
    /// Too short to be safe, or too long to be one.
    #[error("secret {index}: {bytes} bytes are not 24 to 64")]
    Length {
        /// Which, from 1 on.
        index: usize,
        /// How many it has.
        bytes: usize,
    },
}

impl Secrets {
    /// Reads secrets that white space separates.
    pub(crate) fn read(text: &str) -> Result<Secrets, SecretError> {
        let mut keys = Vec::new();
        for (index, word) in text.split_ascii_whitespace().enumerate() {
            let index = index + 1;
            let coded = word.strip_prefix(PREFIX).ok_or(SecretError::Form(index))?;
            let secret = STANDARD.decode(coded).map_err(|_| SecretError::Form(index))?;
            if !SECRET_BYTES.contains(&secret.len()) {
                return Err(SecretError::Length { index, bytes: secret.len() });
            }
            keys.push(hmac::Key::new(hmac::HMAC_SHA256, &secret));
        }
        if !(1..=MAX_SECRETS).contains(&keys.len()) {
            return Err(SecretError::Count(keys.len()));
        }
        Ok(Secrets(keys))
    }

    /// The value of `webhook-signature`.
    pub(crate) fn sign(&self, id: &str, unix_seconds: u64, body: &str) -> String {
        let message = format!("{id}.{unix_seconds}.{body}");
        let sign = |key| format!("v1,{}", STANDARD.encode(hmac::sign(key, message.as_bytes())));
        self.0.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_own_example() {
        let secrets = Secrets::read("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let signed = secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn two_secrets_make_two_signatures() {
        let (one, other) = (format!("whsec_{}", "A".repeat(32)), format!("whsec_{}", "B".repeat(32)));
        let both = Secrets::read(&format!("{one} {other}")).unwrap().sign("a", 1, "{}");
        let each = [one, other].map(|secret| Secrets::read(&secret).unwrap().sign("a", 1, "{}"));
        assert_eq!(both, each.join(" "));
    }

    #[test]
    fn bad_secrets_are_refused_unseen() {
        let refused = |text: &str| Secrets::read(text).unwrap_err();
        assert_eq!(refused(""), SecretError::Count(0));
        assert_eq!(refused("hunter2"), SecretError::Form(1));
        assert_eq!(refused("whsec_!!"), SecretError::Form(1));
        assert_eq!(refused("whsec_AAAA"), SecretError::Length { index: 1, bytes: 3 });
        let five = vec![format!("whsec_{}", "A".repeat(32)); 5].join("\n");
        assert_eq!(refused(&five), SecretError::Count(5));
        assert!(!refused("hunter2").to_string().contains("hunter2"));
    }
}
