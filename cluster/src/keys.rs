//! The keys of tokens: secrets (HS256) and Ed25519 pairs (EdDSA, RFC 8037), several at a time, exchanged while they are used.
//!
//! A key has one algorithm, which comes from its file and never from a token: a token that names another one is refused
//! before its signature is looked at.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls_pki_types::pem::{PemObject, SectionKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::token::TokenError;

/// Shortest secret: the width of the hash (RFC 7518, 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

/// Most keys at a time: a token without the name of its key is tried with all of its algorithm.
pub const MAX_KEYS: usize = 8;

/// Characters of a key's name in tokens (`kid`): the first of its thumbprint. 96 bits tell all keys apart, and some
/// encoders have little room for a stream key.
const ID_CHARS: usize = 16;

/// What comes before the 32 bytes of an Ed25519 public key in a SubjectPublicKeyInfo, and before those of a private one in
/// PKCS#8 of version 1 and 2 (RFC 8410, 4 and 7; RFC 5958), where the second has two possible lengths at byte 1.
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2A, 0x30, 5, 6, 3, 0x2B, 0x65, 0x70, 3, 0x21, 0];
const PRIVATE_PREFIX: [u8; 16] = [0x30, 0x2E, 2, 1, 0, 0x30, 5, 6, 3, 0x2B, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Why something is no key. The messages never contain any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// No key at all.
    #[error("there is no token key")]
    None,
    /// More than [`MAX_KEYS`].
    #[error("{0} token keys exceed {MAX_KEYS}")]
    TooMany(usize),
    /// A secret that can be guessed.
    #[error("a token key needs at least {MIN_SECRET_BYTES} bytes, this one has {0}")]
    Weak(usize),
    /// PEM that holds something else.
    #[error("{0}: a PUBLIC KEY or PRIVATE KEY of Ed25519 is wanted")]
    Pem(String),
}

/// There is nothing to sign with: only public keys, or the first key is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the first token key is a public one: it can check tokens, but not make them")]
pub struct CannotSign;

/// One key.
#[derive(Clone)]
pub struct Key {
    algorithm: Algorithm,
    /// Of Ed25519 keys: the thumbprint of the public half (RFC 7638).
    thumbprint: Option<String>,
    verifying: DecodingKey,
    signing: Option<EncodingKey>,
}

impl Key {
    /// A key from what its file holds: PEM with an Ed25519 key (`PUBLIC KEY` checks tokens, `PRIVATE KEY` makes them as
    /// well), else a secret of at least 32 bytes, white space at its end not counted.
    pub fn read(file: &[u8]) -> Result<Key, BadKey> {
        // What looks like PEM is never a secret: a public key would be known to all.
        if contains(file, b"-----BEGIN") {
            return Key::from_pem(file);
        }
        Key::from_secret(file.trim_ascii_end())
    }

    /// A secret.
    pub fn from_secret(secret: &[u8]) -> Result<Key, BadKey> {
        if secret.len() < MIN_SECRET_BYTES {
            return Err(BadKey::Weak(secret.len()));
        }
        Ok(Key {
            algorithm: Algorithm::HS256,
            thumbprint: None,
            verifying: DecodingKey::from_secret(secret),
            signing: Some(EncodingKey::from_secret(secret)),
        })
    }

    fn from_pem(pem: &[u8]) -> Result<Key, BadKey> {
        let wrong = |what: &str| BadKey::Pem(what.to_owned());
        let (kind, der) = <(SectionKind, Vec<u8>)>::from_pem_slice(pem)
            .map_err(|error| wrong(&format!("no key in this PEM ({error})")))?;
        match kind {
            SectionKind::PublicKey => {
                let raw = der.strip_prefix(&PUBLIC_PREFIX).filter(|raw| raw.len() == 32);
                let raw = raw.ok_or_else(|| wrong("a PUBLIC KEY of another kind"))?;
                Key::ed25519(DecodingKey::from_ed_der(raw), None)
            }
            SectionKind::PrivateKey => {
                let seed = seed(&der).ok_or_else(|| wrong("a PRIVATE KEY of another kind"))?;
                let signing = EncodingKey::from_ed_der(&[&PRIVATE_PREFIX[..], seed].concat());
                let public = Jwk::from_encoding_key(&signing, Algorithm::EdDSA)
                    .and_then(|jwk| DecodingKey::from_jwk(&jwk))
                    .map_err(|_| wrong("a damaged PRIVATE KEY"))?;
                Key::ed25519(public, Some(signing))
            }
            _ => Err(wrong("PEM of another kind")),
        }
    }

    fn ed25519(verifying: DecodingKey, signing: Option<EncodingKey>) -> Result<Key, BadKey> {
        let jwk = Jwk::from_decoding_key(&verifying, Some(Algorithm::EdDSA));
        let thumbprint = jwk
            .and_then(|jwk| jwk.thumbprint(ThumbprintHash::SHA256))
            .map_err(|_| BadKey::Pem("a damaged key".into()))?;
        Ok(Key { algorithm: Algorithm::EdDSA, thumbprint: Some(thumbprint), verifying, signing })
    }

    /// What tokens name it by (`kid`); secrets have no name.
    pub fn id(&self) -> Option<&str> {
        self.thumbprint.as_ref().map(|thumbprint| &thumbprint[..ID_CHARS])
    }

    fn is_named(&self, kid: &str) -> bool {
        self.id() == Some(kid) || self.thumbprint.as_deref() == Some(kid)
    }
}

/// Neither the key nor its secret: who it is, and what it can do.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let can = if self.signing.is_some() { "signs" } else { "checks" };
        write!(f, "{:?} {} {can}", self.algorithm, self.id().unwrap_or("secret"))
    }
}

/// The keys in use. Tokens are made with the first and accepted with any, so that keys can be rotated.
pub struct Keys(RwLock<Arc<Set>>);

struct Set {
    keys: Vec<Key>,
    generation: u64,
}

impl Keys {
    /// Keys from secrets, the one to sign with first. Fails if there is none or one is shorter than 32 bytes.
    pub fn new(secrets: &[Vec<u8>]) -> Result<Keys, BadKey> {
        Keys::of(secrets.iter().map(|secret| Key::from_secret(secret)).collect::<Result<_, _>>()?)
    }

    /// The one to sign with first. Fails if there is none or there are too many.
    pub fn of(keys: Vec<Key>) -> Result<Keys, BadKey> {
        match keys.len() {
            0 => Err(BadKey::None),
            1..=MAX_KEYS => Ok(Keys(RwLock::new(Arc::new(Set { keys, generation: 0 })))),
            many => Err(BadKey::TooMany(many)),
        }
    }

    /// `keys` take the place of all that were in use, at once; whoever has been let in stays.
    pub fn replace(&self, keys: Keys) {
        let keys = keys.set().keys.clone();
        let mut set = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *set = Arc::new(Set { keys, generation: set.generation + 1 });
    }

    /// Grows with each [`Keys::replace`]: what was found good before is to be checked again.
    pub fn generation(&self) -> u64 {
        self.set().generation
    }

    pub(crate) fn encode<T: Serialize>(&self, claims: &T) -> Result<String, CannotSign> {
        let set = self.set();
        let key = set.keys.first().ok_or(CannotSign)?;
        let header = Header { kid: key.id().map(str::to_owned), ..Header::new(key.algorithm) };
        let token = jsonwebtoken::encode(&header, claims, key.signing.as_ref().ok_or(CannotSign)?);
        Ok(token.expect("claims are plain JSON, and a key that was read can sign"))
    }

    /// What a token says, if one of the keys has signed it: the one it names if we have that, else any of its algorithm.
    /// `rules` says what else must be in it; the algorithm is the key's.
    pub(crate) fn decode<T: DeserializeOwned>(
        &self,
        token: &str,
        rules: impl Fn(Algorithm) -> Validation,
    ) -> Result<T, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(malformed)?;
        let set = self.set();
        let kid = header.kid.as_deref();
        let named = kid.and_then(|kid| set.keys.iter().find(|key| key.is_named(kid)));
        let candidates = named.map_or(&set.keys[..], std::slice::from_ref);
        let mut fits = candidates.iter().filter(|key| key.algorithm == header.alg).peekable();
        if fits.peek().is_none() {
            let problem = format!("its algorithm {:?} is not that of its key", header.alg);
            return Err(TokenError::Malformed(problem));
        }
        for key in fits {
            match jsonwebtoken::decode::<T>(token, &key.verifying, &rules(key.algorithm)) {
                Ok(data) => return Ok(data.claims),
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {}
                Err(error) => return Err(malformed(error)),
            }
        }
        Err(TokenError::Signature)
    }

    fn set(&self) -> Arc<Set> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.set().keys).finish()
    }
}

fn malformed(error: jsonwebtoken::errors::Error) -> TokenError {
    TokenError::Malformed(error.to_string())
}

/// The 32 bytes that an Ed25519 private key is made of. In version 2 of PKCS#8 the public half follows them.
fn seed(der: &[u8]) -> Option<&[u8]> {
    let (head, rest) = der.split_at_checked(PRIVATE_PREFIX.len())?;
    let mut expected = PRIVATE_PREFIX;
    if head.get(4) == Some(&1) {
        (expected[1], expected[4]) = (head[1], 1);
    } else if rest.len() != 32 {
        return None;
    }
    (head == expected).then(|| rest.get(..32)).flatten()
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Claims;
    use std::time::{Duration, SystemTime};

    /// RFC 8037, appendix A.1 and A.2, as openssl writes them.
    const PRIVATE: &[u8] = b"-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";
    const PUBLIC: &[u8] = b"-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
-----END PUBLIC KEY-----
";
    /// Appendix A.3.
    const THUMBPRINT: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

    /// RFC 8410, section 10.3: version 2, with attributes and the public half, and the half alone.
    const OTHER_PRIVATE: &[u8] = b"-----BEGIN PRIVATE KEY-----
MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB
Z9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PRIVATE KEY-----
";
    const OTHER_PUBLIC: &[u8] = b"-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
";

    /// Signed by openssl with the key of RFC 8037, whose whole thumbprint it has as `kid`: demo, from 1000 to 4600.
    const BY_OPENSSL: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSIsImtpZCI6ImtQcktfcW14VldhWVZBOXd3QkY2SXVvM3ZWeno3\
        VHhIQ1R3WEJ5Z3JTNGsifQ.eyJzdWIiOiJkZW1vIiwiaWF0IjoxMDAwLCJleHAiOjQ2MDB9.-OAm7Q36qMVUsdaBMJprF5aG3KOPGe8jF-\
        VFbZHKf4-as-odBlG4-iKmETNFjns0eQRkbIutBgHaUqKioaMVBA";

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn keys(files: &[&[u8]]) -> Keys {
        Keys::of(files.iter().map(|file| Key::read(file).unwrap()).collect()).unwrap()
    }

    fn open(keys: &Keys, token: &str) -> Result<Claims, TokenError> {
        keys.verify(token, "demo", at(1000))
    }

    #[test]
    fn a_public_key_checks_what_the_private_one_signs() {
        let signs = keys(&[PRIVATE]);
        for (signs, checks) in [(&signs, keys(&[PUBLIC])), (&keys(&[OTHER_PRIVATE]), keys(&[OTHER_PUBLIC]))] {
            let token = signs.issue("demo", HOUR, at(1000)).unwrap();
            assert_eq!(open(signs, &token).unwrap().exp, 4600);
            assert_eq!(open(&checks, &token).unwrap().exp, 4600);
            let watch = signs.issue_playback("/live/demo", HOUR, at(1000)).unwrap();
            assert!(checks.verify_playback(&watch).unwrap().opens("/live/demo/index.m3u8"));
            assert_eq!(checks.issue("demo", HOUR, at(1000)), Err(CannotSign));
            assert_eq!(checks.issue_playback("/", HOUR, at(1000)), Err(CannotSign));
        }
        assert_eq!(open(&signs, BY_OPENSSL).unwrap().exp, 4600);
        let key = Key::read(PRIVATE).unwrap();
        assert_eq!(key.thumbprint.as_deref(), Some(THUMBPRINT));
        assert_eq!(
            (key.id(), format!("{key:?}")),
            (Some(&THUMBPRINT[..16]), "EdDSA kPrK_qmxVWaYVA9w signs".into())
        );
        let header = jsonwebtoken::decode_header(signs.issue("demo", HOUR, at(0)).unwrap()).unwrap();
        assert_eq!((header.alg, header.kid.as_deref()), (Algorithm::EdDSA, key.id()));
    }

    #[test]
    fn two_keys_of_either_kind_are_good_at_a_time() {
        let secret = &[7; 32][..];
        let old = keys(&[secret]).issue("demo", HOUR, at(1000)).unwrap();
        let new = keys(&[PRIVATE]).issue("demo", HOUR, at(1000)).unwrap();
        let newer = keys(&[OTHER_PRIVATE]).issue("demo", HOUR, at(1000)).unwrap();
        let both = keys(&[secret, PUBLIC, OTHER_PUBLIC]);
        for token in [&old, &new, &newer] {
            assert!(open(&both, token).is_ok());
        }
        // One after the other, while it runs.
        assert_eq!(both.generation(), 0);
        both.replace(keys(&[OTHER_PUBLIC, PUBLIC]));
        assert_eq!(both.generation(), 1);
        assert!(open(&both, &new).is_ok() && open(&both, &newer).is_ok());
        assert!(matches!(open(&both, &old), Err(TokenError::Malformed(_))));
        both.replace(keys(&[OTHER_PUBLIC]));
        assert!(open(&both, &newer).is_ok());
        assert_eq!(open(&both, &new), Err(TokenError::Signature));
        assert_eq!(
            format!("{both:?}"),
            "[EdDSA VALUE checks]".replace("VALUE", Key::read(OTHER_PUBLIC).unwrap().id().unwrap())
        );
        let many = vec![Key::read(PUBLIC).unwrap(); MAX_KEYS + 1];
        assert_eq!(Keys::of(many).unwrap_err(), BadKey::TooMany(MAX_KEYS + 1));
    }

    #[test]
    fn the_algorithm_is_the_keys() {
        // What is public, as the secret of a token that says HS256: text, DER and raw.
        let raw = Key::read(PUBLIC).unwrap();
        let raw = raw.verifying.try_get_as_bytes().unwrap();
        let claims = Claims { sub: "demo".into(), iat: 0, exp: u64::MAX, ..Claims::default() };
        let forge = |algorithm, kid: Option<&str>, secret: &[u8]| {
            let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
            jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret)).unwrap()
        };
        let secret = &[7; 32][..];
        let both = keys(&[PUBLIC, secret]);
        for kid in [None, Some(THUMBPRINT), Some(&THUMBPRINT[..16]), Some("other")] {
            for known in [PUBLIC, PUBLIC.trim_ascii_end(), &[&PUBLIC_PREFIX[..], raw].concat(), raw] {
                let forged = forge(Algorithm::HS256, kid, known);
                assert!(matches!(open(&keys(&[PUBLIC]), &forged), Err(TokenError::Malformed(_))));
                assert!(open(&both, &forged).is_err());
            }
            // The right secret with another algorithm, or under another key's name.
            assert!(matches!(
                open(&both, &forge(Algorithm::HS384, kid, secret)),
                Err(TokenError::Malformed(_))
            ));
            let honest = open(&both, &forge(Algorithm::HS256, kid, secret));
            assert_eq!(honest.is_ok(), kid.is_none_or(|kid| kid == "other"), "{kid:?}: {honest:?}");
        }
        let (_, rest) = BY_OPENSSL.split_once('.').unwrap();
        // {"alg":"HS256"}, {"alg":"none"}, {"alg":"EdDSA"} with nothing behind it.
        for forged in [
            format!("eyJhbGciOiJIUzI1NiJ9.{rest}"),
            format!("eyJhbGciOiJub25lIn0.{}.", rest.split('.').next().unwrap()),
            format!("eyJhbGciOiJFZERTQSJ9.{}.", rest.split('.').next().unwrap()),
            format!("eyJhbGciOiJFZERTQSJ9.{rest}"),
        ] {
            assert!(open(&both, &forged).is_err(), "{forged}");
        }
    }

    #[test]
    fn what_is_no_key_is_named() {
        const CURVE: &[u8] = b"-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEHVdT6Lv94DyYc92zMo9nW8YOYEEG
S+AsUbko1Hux7mYOY6DZvhXKuSJNjCQtv463/CRwD9B2CSOCvUUNtHZLMg==
-----END PUBLIC KEY-----
";
        let cut = |pem: &[u8]| [&pem[..40], &pem[60..]].concat();
        for (file, message) in [
            (&b"short\n"[..], "a token key needs at least 32 bytes, this one has 5"),
            (CURVE, "a PUBLIC KEY of another kind: a PUBLIC KEY or PRIVATE KEY of Ed25519 is wanted"),
            (&cut(PUBLIC), "a PUBLIC KEY of another kind: a PUBLIC KEY or PRIVATE KEY of Ed25519 is wanted"),
            (
                &cut(PRIVATE),
                "a PRIVATE KEY of another kind: a PUBLIC KEY or PRIVATE KEY of Ed25519 is wanted",
            ),
            (
                b"-----BEGIN CERTIFICATE-----\nMC4C\n-----END CERTIFICATE-----\n",
                "PEM of another kind: a PUBLIC KEY or PRIVATE KEY of Ed25519 is wanted",
            ),
        ] {
            assert_eq!(Key::read(file).unwrap_err().to_string(), message);
        }
        let error =
            Key::read(b"-----BEGIN PUBLIC KEY-----\nnever ends, and is longer than a secret").unwrap_err();
        assert!(error.to_string().starts_with("no key in this PEM"), "{error}");
        assert!(Keys::of(Vec::new()).is_err());
    }
}
