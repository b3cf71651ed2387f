//! TLS (rustls, 1.2 and newer): certificates from files, mutual authentication between roles, and the development CA
//! that is made on first start.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};

use crate::{Error, Identity};

/// Where a node's certificate, its key and the CA that the roles trust among themselves are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// PEM: the CA that signs the nodes of this fleet.
    pub ca: PathBuf,
    /// PEM: this node's certificate chain.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

impl Files {
    /// Where [`development_files`] has those of `node`.
    pub fn in_development(dir: &Path, node: &str) -> Files {
        Files {
            ca: dir.join("ca.pem"),
            certificate: dir.join(format!("{node}.pem")),
            key: dir.join(format!("{node}.key")),
        }
    }
}

/// Whether a client must show a certificate of the fleet's CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Viewers and broadcasters: anyone.
    Anyone,
    /// Other roles: mTLS.
    Fleet,
}

/// A server side that offers `alpn` in this order, by files that are not read again.
pub fn server_config(files: &Files, clients: Clients, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
    Identity::load(files)?.server(clients, alpn)
}

/// A client side that trusts the fleet's CA and shows this node's certificate. ALPN is left empty.
pub fn client_config(files: &Files) -> Result<Arc<ClientConfig>, Error> {
    Identity::load(files)?.client()
}

/// When the first certificate of a PEM file expires.
pub fn not_after(path: &Path) -> Result<SystemTime, Error> {
    let chain = chain(path)?;
    let own = ParsedCertificate::try_from(&chain[0])?;
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    // In a time when no certificate is good any more, the first thing that is wrong with it is its age.
    let far = UnixTime::since_unix_epoch(Duration::from_secs(u64::from(u32::MAX) * 60));
    let verified =
        verify_server_cert_signed_by_trust_anchor(&own, &RootCertStore::empty(), &[], far, algorithms.all);
    match verified {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.as_secs()))
        }
        other => {
            let problem = format!("its time cannot be read: {other:?}");
            Err(Error::Pem { path: path.into(), problem })
        }
    }
}

/// Whether the first certificate of a PEM file is for this host name or address.
pub fn is_for(path: &Path, host: &str) -> Result<bool, Error> {
    let chain = chain(path)?;
    let own = ParsedCertificate::try_from(&chain[0])?;
    let name = ServerName::try_from(host);
    let name = name.map_err(|error| Error::Pem { path: path.into(), problem: format!("{host}: {error}") })?;
    Ok(verify_server_name(&own, &name).is_ok())
}

/// Makes what is missing in `dir`: a development CA (`ca.pem`, `ca.key`), and a certificate that it signed for `node`
/// (`{node}.pem`, `{node}.key`), valid for that name, for `names`, and for localhost. What is there stays as it is.
pub fn development_files(dir: &Path, node: &str, names: &[String]) -> Result<Files, Error> {
    fs::create_dir_all(dir).map_err(|source| Error::File { path: dir.into(), source })?;
    // Several nodes on one machine may start at once: only one of them makes the CA.
    let lock_path = dir.join("lock");
    let lock = fs::File::create(&lock_path).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.map_err(|source| Error::File { path: lock_path, source })?;
    let files = Files::in_development(dir, node);
    let (ca, ca_key) = (files.ca.clone(), dir.join("ca.key"));
    if !(ca.exists() && ca_key.exists()) {
        let key = KeyPair::generate()?;
        let certificate = authority().self_signed(&key)?;
        write(&ca_key, &key.serialize_pem(), true)?;
        write(&ca, &certificate.pem(), false)?;
    } else if files.certificate.exists() && files.key.exists() {
        return Ok(files);
    }
    let ca_key = KeyPair::from_pem(&read(&ca_key)?)?;
    // The issuer is what `authority` says, with the key from the file: the certificate itself need not be parsed.
    let issuer = Issuer::new(authority(), ca_key);
    let key = KeyPair::generate()?;
    let certificate = leaf(node, names)?.signed_by(&key, &issuer)?;
    write(&files.key, &key.serialize_pem(), true)?;
    write(&files.certificate, &certificate.pem(), false)?;
    Ok(files)
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("Rooftop development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(node: &str, names: &[String]) -> Result<CertificateParams, Error> {
    let mut names: Vec<String> = names.to_vec();
    names.extend(["localhost", "127.0.0.1", "::1", node].map(String::from));
    names.dedup();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = name(node);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    // Browsers and Apple's players refuse certificates that live longer than 398 days.
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + Duration::from_secs(390 * 86400)).into();
    Ok(params)
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Written whole or not at all, keys readable by the owner only: a second process may start at the same time.
fn write(path: &Path, text: &str, secret: bool) -> Result<(), Error> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mode = if secret { 0o600 } else { 0o644 };
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let put = || -> std::io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    put().map_err(|source| Error::File { path: path.into(), source })
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })
}

pub(crate) fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in chain(path)? {
        store.add(certificate)?;
    }
    Ok(store)
}

pub(crate) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(Error::Pem { path: path.into(), problem: "holds no certificate".into() }),
        Err(error) => Err(Error::Pem { path: path.into(), problem: error.to_string() }),
    }
}

pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(read(path)?.as_bytes())
        .map_err(|error| Error::Pem { path: path.into(), problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// Whether a client with this config gets an answer over a real handshake.
    async fn connects(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            if let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(server).accept(socket).await {
                let _ = stream.write_all(b"x").await;
                let _ = stream.shutdown().await;
            }
        });
        let socket = TcpStream::connect(addr).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
        let mut byte = [0];
        let answered = match tokio_rustls::TlsConnector::from(client).connect(name, socket).await {
            Ok(mut stream) => stream.read(&mut byte).await.is_ok_and(|n| n == 1),
            Err(_) => false,
        };
        serve.await.unwrap();
        answered
    }

    #[tokio::test]
    async fn the_fleet_trusts_itself_and_nobody_else() {
        let base = std::env::temp_dir().join(format!("rooftop-tls-{}", std::process::id()));
        let ours = base.join("ours");
        let node = development_files(&ours, "origin-1", &[]).unwrap();
        let other_node = development_files(&ours, "pop-1", &["pop.example".into()]).unwrap();
        assert_eq!(development_files(&ours, "origin-1", &[]).unwrap(), node);
        let before = fs::read(&node.certificate).unwrap();
        development_files(&ours, "origin-1", &[]).unwrap();
        assert_eq!(fs::read(&node.certificate).unwrap(), before, "a second start changes nothing");
        let stranger = development_files(&base.join("theirs"), "origin-1", &[]).unwrap();

        let fleet = || server_config(&node, Clients::Fleet, &[b"h2"]).unwrap();
        assert!(connects(fleet(), client_config(&other_node).unwrap()).await);
        assert!(
            !connects(fleet(), client_config(&stranger).unwrap()).await,
            "the client distrusts the server"
        );
        let uncertified =
            ClientConfig::builder().with_root_certificates(roots(&node.ca).unwrap()).with_no_client_auth();
        assert!(!connects(fleet(), Arc::new(uncertified.clone())).await, "no client certificate");
        let anyone = server_config(&node, Clients::Anyone, &[]).unwrap();
        assert!(connects(anyone, Arc::new(uncertified)).await);
        let until = not_after(&node.certificate).unwrap();
        let days = until.duration_since(SystemTime::now()).unwrap().as_secs() / 86_400;
        assert!((389..=390).contains(&days), "{days}");
        assert!(not_after(&node.ca).unwrap() > until, "the CA's is far");
        assert!(matches!(not_after(&node.key), Err(Error::Pem { .. })));
        for (host, expected) in
            [("origin-1", true), ("localhost", true), ("127.0.0.1", true), ("example.com", false)]
        {
            assert_eq!(is_for(&node.certificate, host).unwrap(), expected, "{host}");
        }
        assert!(is_for(&node.certificate, "no host").is_err());
        fs::remove_dir_all(base).unwrap();
    }
}
