//! The `[admin]` table of the configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use super::roles::Role;

/// Tokens: a few people and scrapers, and two of each while they are replaced.
pub(super) const MAX_TOKENS: usize = 32;

/// Who asks where no tokens are wanted; no token may have that name.
pub(super) const NOBODY: &str = "loopback";

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Where operators are answered (`docs/admin.md`). On a loopback address whoever may log in here may use it, unless there
    /// are tokens; elsewhere it needs a certificate and tokens. Default `127.0.0.1:9090`.
    pub listen: SocketAddr,
    /// PEM: the certificate chain it shows; with it, it is HTTPS. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// PEM: its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// A file that gets a line of JSON for each change that an operator makes. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<PathBuf>,
    /// Who may do what, at most 32. Where there is one, nobody gets in without. Read again on every reload.
    pub tokens: Vec<Token>,
}

/// A bearer token of an operator, or of what scrapes metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Whose it is, as logs and the console have it: 1 to 64 of A-Z a-z 0-9 - _ .
    pub name: String,
    /// What it opens.
    pub role: Role,
    /// A file with the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The variable of the environment that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// Its SHA-256 in hexadecimal, so that this node need not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            certificate: None,
            key: None,
            audit: None,
            tokens: Vec::new(),
        }
    }
}

impl Admin {
    /// The certificate and key of HTTPS, if it has them. `ca` is the fleet's.
    pub(crate) fn files(&self, ca: &std::path::Path) -> Option<net::tls::Files> {
        let (certificate, key) = self.certificate.clone().zip(self.key.clone())?;
        Some(net::tls::Files { ca: ca.into(), certificate, key })
    }

    /// What cannot be used, with the path of its key below `at`.
    pub fn problems(&self, at: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if self.certificate.is_some() != self.key.is_some() {
            problems.push(format!("{at}: certificate and key are given together or not at all"));
        }
        let listen = self.listen;
        if !listen.ip().is_loopback() {
            if self.certificate.is_none() {
                problems.push(format!(
                    "{at}.listen: {listen} is not a loopback address, and tokens would cross the network in the clear: give \
                     {at}.certificate and {at}.key, or listen on 127.0.0.1"
                ));
            }
            if self.tokens.is_empty() {
                problems.push(format!(
                    "{at}.listen: {listen} is not a loopback address, and whoever reaches it could do everything: give \
                     [[{at}.tokens]] (rooftop token new-admin makes them), or listen on 127.0.0.1"
                ));
            }
        }
        if self.tokens.len() > MAX_TOKENS {
            problems.push(format!("{at}.tokens: at most {MAX_TOKENS}"));
        }
        for (index, token) in self.tokens.iter().enumerate() {
            let at = format!("{at}.tokens[{index}]");
            if token.name.parse::<media::StreamName>().is_err() {
                problems.push(format!("{at}.name: {:?} is not 1 to 64 of A-Z a-z 0-9 - _ .", token.name));
            }
            if token.name == NOBODY {
                problems
                    .push(format!("{at}.name: {NOBODY:?} is who asks without a token: choose another name"));
            }
            if self.tokens[..index].iter().any(|other| other.name == token.name) {
                problems.push(format!("{at}.name: {:?} is there twice", token.name));
            }
            let given = [token.file.is_some(), token.env.is_some(), token.sha256.is_some()];
            if given.into_iter().filter(|given| *given).count() != 1 {
                problems.push(format!("{at}: give one of file, env and sha256"));
            }
            if token.sha256.as_ref().is_some_and(|hash| super::tokens::hash_of(hash).is_none()) {
                problems.push(format!(
                    "{at}.sha256: must have 64 hexadecimal digits: printf %s TOKEN | sha256sum"
                ));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        toml::from_str::<Admin>(text).unwrap().problems("admin")
    }

    #[test]
    fn what_others_reach_has_a_certificate_and_tokens() {
        assert!(problems("").is_empty());
        assert!(problems("listen = \"[::1]:9090\"").is_empty());
        for listen in ["0.0.0.0:9090", "10.0.0.1:9090", "[::]:9090"] {
            let found = problems(&format!("listen = \"{listen}\""));
            assert_eq!(found.len(), 2, "{found:?}");
            assert!(found.iter().all(|problem| problem.starts_with("admin.listen: ")), "{found:?}");
            assert!(found[0].contains("admin.certificate and admin.key"), "{found:?}");
            assert!(found[1].contains("[[admin.tokens]]"), "{found:?}");
        }
        let whole = "listen = \"0.0.0.0:9090\"\ncertificate = \"a\"\nkey = \"b\"\n";
        assert_eq!(problems(whole).len(), 1, "no tokens");
        let token = "[[tokens]]\nname = \"a\"\nrole = \"view\"\nfile = \"x\"\n";
        assert!(problems(&format!("{whole}{token}")).is_empty());
        assert_eq!(problems(&format!("listen = \"0.0.0.0:9090\"\n{token}")).len(), 1, "no certificate");
        assert_eq!(problems("certificate = \"a\"").len(), 1);
    }

    #[test]
    fn each_token_has_a_name_and_one_secret() {
        let found = problems(
            "[[tokens]]\nname = \"a\"\nrole = \"view\"\n[[tokens]]\nname = \"a\"\nrole = \"admin\"\nenv = \"A\"\nfile = \"a\"\n\
             [[tokens]]\nname = \"loopback\"\nrole = \"operate\"\nsha256 = \"12\"\n[[tokens]]\nname = \"<b>\"\nrole = \"view\"\n\
             env = \"B\"\n",
        );
        for start in [
            "admin.tokens[0]: give one of",
            "admin.tokens[1].name: \"a\" is there twice",
            "admin.tokens[1]: give one of",
            "admin.tokens[2].name: \"loopback\"",
            "admin.tokens[2].sha256: ",
            "admin.tokens[3].name: \"<b>\"",
        ] {
            assert!(found.iter().any(|problem| problem.starts_with(start)), "{start}: {found:#?}");
        }
        assert_eq!(found.len(), 6, "{found:#?}");
        let many: String = (0..=MAX_TOKENS)
            .map(|index| format!("[[tokens]]\nname = \"t{index}\"\nrole = \"view\"\nenv = \"T{index}\"\n"))
            .collect();
        assert_eq!(problems(&many), ["admin.tokens: at most 32"]);
    }
}
