//! What must not be seen: certificates' keys and token secrets, from files, made on first start where none are given.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cluster::token::{Keys, MIN_SECRET_BYTES};
use net::tls::{self, Files};

use crate::config::Config;

/// Certificates for the fleet's inside and for the public side.
pub(crate) struct Certificates {
    pub(crate) fleet: Files,
    pub(crate) public: Files,
}

/// Finds the certificates, or makes development ones.
pub(crate) fn certificates(config: &Config) -> anyhow::Result<Certificates> {
    let fleet = match &config.tls {
        crate::config::Tls { ca: Some(ca), certificate: Some(certificate), key: Some(key), .. } => {
            Files { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() }
        }
        tls => tls::development_files(&config.node.state_dir.join("tls"), &config.node.name, &tls.names)?,
    };
    let public = match (&config.tls.public_certificate, &config.tls.public_key) {
        (Some(certificate), Some(key)) => {
            Files { ca: fleet.ca.clone(), certificate: certificate.clone(), key: key.clone() }
        }
        _ => fleet.clone(),
    };
    Ok(Certificates { fleet, public })
}

/// Reads the secrets of tokens to publish, or makes one.
pub(crate) fn token_keys(config: &Config) -> anyhow::Result<Keys> {
    keys(config, &config.tokens.key_files, "token.key")
}

/// Reads the secrets of tokens to watch, or makes one.
pub(crate) fn playback_keys(config: &Config) -> anyhow::Result<Keys> {
    keys(config, &config.edge.playback.key_files, "playback.key")
}

fn keys(config: &Config, files: &[PathBuf], own: &str) -> anyhow::Result<Keys> {
    let mut secrets = Vec::new();
    for path in files {
        secrets.push(read_secret(path)?);
    }
    if secrets.is_empty() {
        let path = config.node.state_dir.join(own);
        if !path.exists() {
            make_secret(&path).with_context(|| format!("{}", path.display()))?;
        }
        secrets.push(read_secret(&path)?);
    }
    Ok(Keys::new(&secrets)?)
}

/// 64 random bits as hexadecimal text: enough to tell all tokens apart.
pub(crate) fn random_id() -> anyhow::Result<String> {
    let mut random = [0; 8];
    fill(&mut random)?;
    Ok(hexadecimal(&random))
}

fn fill(bytes: &mut [u8]) -> anyhow::Result<()> {
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(bytes).map_err(|_| anyhow::anyhow!("the system has no randomness"))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_secret(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut secret = fs::read(path).with_context(|| format!("token key {}", path.display()))?;
    while secret.last().is_some_and(u8::is_ascii_whitespace) {
        secret.pop();
    }
    if secret.len() < MIN_SECRET_BYTES {
        bail!("token key {}: {} bytes are fewer than {MIN_SECRET_BYTES}", path.display(), secret.len());
    }
    Ok(secret)
}

/// 256 random bits as hexadecimal text. Of several processes that start at once, one makes the file.
fn make_secret(path: &Path) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut random = [0; 32];
    fill(&mut random)?;
    let text = hexadecimal(&random);
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_second_start_reads_what_the_first_made() {
        let state_dir = std::env::temp_dir().join(format!("rooftop-secrets-{}", std::process::id()));
        let config = Config {
            node: crate::config::NodeConfig { state_dir: state_dir.clone(), ..Default::default() },
            ..Config::default()
        };
        let token = token_keys(&config).unwrap().issue("demo", Duration::from_secs(60), SystemTime::now());
        assert!(token_keys(&config).unwrap().verify(&token, "demo", SystemTime::now()).is_ok());
        fs::write(state_dir.join("weak.key"), "short\n").unwrap();
        let weak = Config {
            tokens: crate::config::Tokens { key_files: vec![state_dir.join("weak.key")] },
            ..config
        };
        let error = token_keys(&weak).err().unwrap().to_string();
        assert!(error.contains("weak.key: 5 bytes"), "{error}");
        fs::remove_dir_all(state_dir).unwrap();
    }
}
