//! The tokens of operators: only their hashes are kept, and compared in constant time.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, bail};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use http::header::{AUTHORIZATION, HeaderMap};

use super::config::{self, Role};

/// Shortest token, in bytes: nobody guesses one that is made at random.
const MIN_TOKEN_BYTES: usize = 32;

/// SHA-256.
pub(super) type Hash = [u8; 32];

/// A token that opens the listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) hash: Hash,
}

/// Those in force.
pub(crate) struct Tokens {
    /// Whether the listener may go without: it is on a loopback address.
    may_be_none: bool,
    running: RwLock<Arc<[Token]>>,
}

impl Tokens {
    /// Reads the tokens of a configuration.
    pub(crate) fn open(config: &config::Admin) -> anyhow::Result<Tokens> {
        Ok(Tokens {
            may_be_none: config.listen.ip().is_loopback(),
            running: RwLock::new(read(config)?.into()),
        })
    }

    /// Reads those of another configuration, which [`Tokens::replace`] puts in force. Fails if the listener, which stays where
    /// it is, would be open to everyone.
    pub(crate) fn read(&self, config: &config::Admin) -> anyhow::Result<Vec<Token>> {
        let read = read(config)?;
        if read.is_empty() && !self.may_be_none {
            bail!(
                "admin.tokens: the admin listener is not on a loopback address as long as this process runs, so it needs one"
            );
        }
        Ok(read)
    }

    /// Puts tokens in force. Who signed in with one that is gone is out.
    pub(crate) fn replace(&self, tokens: Vec<Token>) {
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = tokens.into();
    }

    pub(super) fn running(&self) -> Arc<[Token]> {
        self.running.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The one with this hash, if there is one.
pub(super) fn find<'a>(tokens: &'a [Token], hash: &Hash) -> Option<&'a Token> {
    // All of them, so that it takes as long whichever it is.
    tokens.iter().fold(None, |found, token| {
        let equal = verify_slices_are_equal(&token.hash, hash).is_ok();
        if equal { Some(token) } else { found }
    })
}

/// What a secret is known by.
pub(super) fn hash(secret: &[u8]) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(digest(&SHA256, secret).as_ref());
    hash
}

/// The secret of `Authorization: Bearer SECRET`; `Some` without a secret if there is such a header of another kind.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    match value.split_at_checked("Bearer ".len()) {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case(b"Bearer ") => Some(secret.trim_ascii()),
        _ => Some(b""),
    }
}

/// A hash in hexadecimal.
pub(super) fn hash_of(text: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    if text.len() != 2 * hash.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(hash)
}

fn read(config: &config::Admin) -> anyhow::Result<Vec<Token>> {
    let mut tokens: Vec<Token> = Vec::new();
    for (index, token) in config.tokens.iter().enumerate() {
        let at = format!("admin.tokens[{index}] ({})", token.name);
        let config::Token { name, role, file, env, sha256 } = token;
        let hash = match (file, env, sha256) {
            (Some(path), ..) => {
                let of_file = || format!("{at}.file: {}", path.display());
                secret(&std::fs::read_to_string(path).with_context(of_file)?).with_context(of_file)?
            }
            (None, Some(variable), _) => {
                let of_variable = || format!("{at}.env: {variable}");
                // What is in it is not shown, not even where it is no text.
                let value = std::env::var_os(variable).context("is not set").with_context(of_variable)?;
                let value = value.into_string().ok().context("is no text").with_context(of_variable)?;
                secret(&value).with_context(of_variable)?
            }
            (None, None, text) => {
                let hash = text.as_deref().and_then(hash_of);
                hash.with_context(|| format!("{at}.sha256: must have 64 hexadecimal digits"))?
            }
        };
        if let Some(other) = tokens.iter().find(|other| other.hash == hash) {
            bail!("{at}: is the same token as {}: each needs its own", other.name);
        }
        tokens.push(Token { name: name.clone(), role: *role, hash });
    }
    Ok(tokens)
}

fn secret(text: &str) -> anyhow::Result<Hash> {
    let secret = text.trim().as_bytes();
    if secret.len() < MIN_TOKEN_BYTES {
        bail!(
            "a token needs at least {MIN_TOKEN_BYTES} bytes, this one has {} (rooftop token new-admin makes good ones)",
            secret.len()
        );
    }
    Ok(hash(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> config::Admin {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn secrets_come_from_files_the_environment_and_as_hashes() {
        let folder = std::env::temp_dir().join(format!("rooftop-admin-tokens-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("token");
        let a = "a".repeat(32);
        std::fs::write(&file, format!("{a}\n")).unwrap();
        let hex =
            |secret: &str| hash(secret.as_bytes()).iter().map(|b| format!("{b:02X}")).collect::<String>();
        let table =
            |name: &str, rest: &str| format!("[[tokens]]\nname = \"{name}\"\nrole = \"view\"\n{rest}\n");
        let by_file = table("file", &format!("file = {:?}", file.display().to_string()));
        let by_hash = table("hash", &format!("sha256 = \"{}\"", hex(&"b".repeat(40))));
        // Some variable that is always set; it may be too short.
        let by_env = table("env", "env = \"PATH\"");
        let both = config(&format!("{by_file}{by_hash}"));
        let tokens = Tokens::open(&both).unwrap();
        let running = tokens.running();
        let name = |secret: &str| find(&running, &hash(secret.as_bytes())).map(|token| token.name.as_str());
        assert_eq!(name(&a), Some("file"));
        assert_eq!(name(&"b".repeat(40)), Some("hash"));
        for wrong in [format!("{a}\n"), "a".repeat(31), "a".repeat(33), String::new(), hex(&a)] {
            assert_eq!(name(&wrong), None, "{wrong}");
        }
        let variable = std::env::var("PATH").unwrap();
        let from_variable = read(&config(&by_env));
        match variable.len() >= MIN_TOKEN_BYTES {
            true => assert_eq!(from_variable.unwrap()[0].hash, hash(variable.as_bytes())),
            false => assert!(format!("{:#}", from_variable.unwrap_err()).contains("at least 32")),
        }

        std::fs::write(&file, "hunter2").unwrap();
        let said = |text: &str| format!("{:#}", read(&config(text)).unwrap_err());
        let short = said(&by_file);
        assert!(short.contains("token: a token needs at least 32 bytes, this one has 7"), "{short}");
        assert!(!short.contains("hunter2"), "{short}");
        assert!(said(&table("e", "env = \"ROOFTOP_NO_SUCH_VARIABLE\"")).contains("is not set"));
        assert!(said(&table("f", "file = \"/nowhere/token\"")).contains("/nowhere/token"));
        let twice = format!("{by_hash}{}", by_hash.replace("\"hash\"", "\"other\""));
        assert!(said(&twice).contains("the same token as hash"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_others_reach_is_never_left_open() {
        let token = format!("[[tokens]]\nname = \"a\"\nrole = \"view\"\nsha256 = \"{}\"\n", "0".repeat(64));
        let tokens = Tokens::open(&config(&format!("listen = \"0.0.0.0:1\"\n{token}"))).unwrap();
        // The file may say that it is on a loopback address, but that takes a restart.
        assert!(tokens.read(&config("")).is_err());
        tokens.replace(tokens.read(&config(&token)).unwrap());
        let here = Tokens::open(&config(&token)).unwrap();
        here.replace(here.read(&config("")).unwrap());
        assert!(here.running().is_empty());
    }

    #[test]
    fn only_bearers_are_read() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(AUTHORIZATION, http::HeaderValue::from_static(value))])
        };
        for (value, expected) in [
            ("Bearer abc", b"abc".as_slice()),
            ("bearer  abc ", b"abc"),
            ("Basic abc", b""),
            ("Bearer", b""),
            ("", b""),
        ] {
            assert_eq!(bearer(&headers(value)), Some(expected), "{value}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
