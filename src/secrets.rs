//! What must not be seen: certificates' keys and token secrets, from files, made on first start where none are given.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use cluster::keys::{Key, Keys};
use net::tls::{self, Files};
use tracing::info;

use crate::admin::{Token, Tokens};
use crate::config::Config;

/// Certificates for the fleet's inside and for the public side.
pub(crate) struct Certificates {
    pub(crate) fleet: Files,
    pub(crate) public: Files,
}

/// Finds the certificates, or makes development ones.
pub(crate) fn certificates(config: &Config) -> anyhow::Result<Certificates> {
    let certificates = named(config);
    if config.tls.ca.is_none() {
        tls::development_files(&config.node.state_dir.join("tls"), &config.node.name, &config.tls.names)?;
    }
    Ok(certificates)
}

/// Where the certificates and their keys are.
pub(crate) fn certificate_paths(config: &Config) -> Vec<PathBuf> {
    let Certificates { fleet, public } = named(config);
    let mut paths = vec![fleet.ca, fleet.certificate, fleet.key, public.certificate, public.key];
    paths.dedup();
    paths.extend(config.admin.certificate.iter().chain(&config.admin.key).cloned());
    paths
}

/// Where the keys of tokens are, with those of playback tokens if they are wanted, and the tokens of operators.
pub(crate) fn key_paths(config: &Config, watch: bool) -> Vec<PathBuf> {
    let mut paths = key_files(config, &config.tokens.key_files, "token.key");
    if watch {
        paths.extend(key_files(config, &config.edge.playback.key_files, "playback.key"));
    }
    paths.extend(config.admin.tokens.iter().filter_map(|token| token.file.clone()));
    paths
}

fn named(config: &Config) -> Certificates {
    let fleet = match &config.tls {
        crate::config::Tls { ca: Some(ca), certificate: Some(certificate), key: Some(key), .. } => {
            Files { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() }
        }
        _ => Files::in_development(&config.node.state_dir.join("tls"), &config.node.name),
    };
    let public = match (&config.tls.public_certificate, &config.tls.public_key) {
        (Some(certificate), Some(key)) => {
            Files { ca: fleet.ca.clone(), certificate: certificate.clone(), key: key.clone() }
        }
        _ => fleet.clone(),
    };
    Certificates { fleet, public }
}

/// Reads the keys of tokens to publish, or makes one.
pub(crate) fn token_keys(config: &Config) -> anyhow::Result<Keys> {
    Ok(Keys::of(publish_keys(config)?)?)
}

/// Reads the keys of tokens to watch, or makes one.
pub(crate) fn playback_keys(config: &Config) -> anyhow::Result<Keys> {
    Ok(Keys::of(watch_keys(config)?)?)
}

fn publish_keys(config: &Config) -> anyhow::Result<Vec<Key>> {
    read_keys(config, &config.tokens.key_files, "token.key")
}

fn watch_keys(config: &Config) -> anyhow::Result<Vec<Key>> {
    read_keys(config, &config.edge.playback.key_files, "playback.key")
}

/// The keys that a running node checks tokens with. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct InUse {
    /// To publish.
    pub(crate) publish: Arc<Keys>,
    /// To watch, where that needs a token.
    pub(crate) watch: Option<Arc<Keys>>,
    /// What opens the admin listener.
    pub(crate) admin: Arc<Tokens>,
}

/// Keys that were read anew, to publish and to watch, and tokens of operators.
pub(crate) struct ReadAnew(Keys, Option<Keys>, Vec<Token>);

impl InUse {
    /// Reads all files anew.
    pub(crate) fn read(&self, config: &Config) -> anyhow::Result<ReadAnew> {
        let publish = Keys::of(publish_keys(config)?)?;
        let watch = match &self.watch {
            Some(_) => Some(Keys::of(watch_keys(config)?)?),
            None => None,
        };
        let admin = self.admin.read(&config.admin)?;
        Ok(ReadAnew(publish, watch, admin))
    }

    /// Puts what was read in force.
    pub(crate) fn replace(&self, ReadAnew(publish, watch, admin): ReadAnew) {
        self.admin.replace(admin);
        info!(keys = ?publish, "stream tokens are checked with these keys");
        self.publish.replace(publish);
        if let (Some(running), Some(watch)) = (&self.watch, watch) {
            info!(keys = ?watch, "playback tokens are checked with these keys");
            running.replace(watch);
        }
    }
}

/// The files that are named, or the node's own.
fn key_files(config: &Config, files: &[PathBuf], own: &str) -> Vec<PathBuf> {
    if files.is_empty() { vec![config.node.state_dir.join(own)] } else { files.to_vec() }
}

fn read_keys(config: &Config, named: &[PathBuf], own: &str) -> anyhow::Result<Vec<Key>> {
    let files = key_files(config, named, own);
    if named.is_empty() && !files[0].exists() {
        make_secret(&files[0]).with_context(|| format!("{}", files[0].display()))?;
    }
    files.iter().map(|path| read_key(path)).collect()
}

/// Reads one key file.
pub(crate) fn read_key(path: &Path) -> anyhow::Result<Key> {
    let file = fs::read(path).with_context(|| format!("token key {}", path.display()))?;
    Key::read(&file).with_context(|| format!("token key {}", path.display()))
}

/// Makes an Ed25519 key pair: the private half in `path`, which must not exist, the public one beside it with `.pub` at its
/// end, where it is returned.
pub(crate) fn make_key_pair(path: &Path) -> anyhow::Result<PathBuf> {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let mut public = path.as_os_str().to_owned();
    public.push(".pub");
    let public = PathBuf::from(public);
    for (path, mode, pem) in [(path, 0o600, pair.serialize_pem()), (&public, 0o644, pair.public_key_pem())] {
        write_new(path, mode, &pem)?;
    }
    Ok(public)
}

/// Makes a token for an admin listener in `path`, which must not exist; its SHA-256 in hexadecimal.
pub(crate) fn make_admin_token(path: &Path) -> anyhow::Result<String> {
    // Named, so that those who look for secrets in the wrong places know it for one.
    let token = format!("rooftop_admin_{}", random_secret()?);
    write_new(path, 0o600, &format!("{token}\n"))?;
    Ok(hexadecimal(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes()).as_ref()))
}

fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let of_file = || format!("{}", path.display());
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path).with_context(of_file)?;
    file.write_all(text.as_bytes()).with_context(of_file)?;
    file.sync_all().with_context(of_file)
}

/// 64 random bits as hexadecimal text: enough to tell all tokens apart.
pub(crate) fn random_id() -> anyhow::Result<String> {
    let mut random = [0; 8];
    fill(&mut random)?;
    Ok(hexadecimal(&random))
}

/// 256 random bits as hexadecimal text: nobody guesses it.
pub(crate) fn random_secret() -> anyhow::Result<String> {
    let mut random = [0; 32];
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

/// 256 random bits as hexadecimal text. Of several processes that start at once, one makes the file.
fn make_secret(path: &Path) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let text = random_secret()?;
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
        let token =
            token_keys(&config).unwrap().issue("demo", Duration::from_secs(60), SystemTime::now()).unwrap();
        assert!(token_keys(&config).unwrap().verify(&token, "demo", SystemTime::now()).is_ok());
        fs::write(state_dir.join("weak.key"), "short\n").unwrap();
        let weak = Config {
            tokens: crate::config::Tokens { key_files: vec![state_dir.join("weak.key")] },
            ..config
        };
        let error = format!("{:#}", token_keys(&weak).unwrap_err());
        assert!(error.ends_with("weak.key: a token key needs at least 32 bytes, this one has 5"), "{error}");
        fs::remove_dir_all(state_dir).unwrap();
    }
}
