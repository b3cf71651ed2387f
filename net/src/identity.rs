//! What a node shows of itself over TLS and whom it trusts, exchanged while connections are open: handshakes from then on go
//! by the new files, connections that are there stay.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError, ServerConfig, SignatureScheme,
};

use crate::tls::{Clients, Files, chain, key, roots};
use crate::{Current, Error};

/// Files that were read and fit together.
#[derive(Debug)]
pub struct Loaded {
    shown: Arc<CertifiedKey>,
    servers: Arc<dyn ServerCertVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    /// The certificates of the fleet's CA.
    trusted: Vec<CertificateDer<'static>>,
}

impl Loaded {
    /// Reads the files. Fails if one of them is not what it should be, or the key is not the certificate's.
    pub fn read(files: &Files) -> Result<Loaded, Error> {
        let provider = provider();
        let trusts = Arc::new(roots(&files.ca)?);
        let wrong = |path: &std::path::Path, problem: String| Error::Pem { path: path.into(), problem };
        let shown = CertifiedKey::from_der(chain(&files.certificate)?, key(&files.key)?, &provider);
        let shown = shown.map_err(|error| {
            wrong(&files.key, format!("does not go with {}: {error}", files.certificate.display()))
        })?;
        let servers = WebPkiServerVerifier::builder_with_provider(trusts.clone(), provider.clone()).build();
        let clients = WebPkiClientVerifier::builder_with_provider(trusts, provider).build();
        Ok(Loaded {
            shown: Arc::new(shown),
            servers: servers.map_err(|error| wrong(&files.ca, error.to_string()))?,
            clients: clients.map_err(|error| wrong(&files.ca, error.to_string()))?,
            trusted: chain(&files.ca)?,
        })
    }
}

/// Handles to what a node shows and trusts. Cloning is cheap; configurations that were made of it follow it.
#[derive(Debug, Clone)]
pub struct Identity(Current<Loaded>);

impl Identity {
    /// Reads the files.
    pub fn load(files: &Files) -> Result<Identity, Error> {
        Ok(Identity(Loaded::read(files)?.into()))
    }

    /// From now on `loaded` counts. Whether it shows another certificate, or trusts others, than what counted before.
    pub fn replace(&self, loaded: Loaded) -> bool {
        let before = self.0.get();
        let same = before.shown.cert == loaded.shown.cert && before.trusted == loaded.trusted;
        self.0.set(loaded);
        !same
    }

    /// A server side that offers `alpn` in this order.
    pub fn server(&self, clients: Clients, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
        let builder =
            ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let resolver = Arc::new(self.clone());
        let mut config = match clients {
            Clients::Anyone => builder.with_no_client_auth().with_cert_resolver(resolver),
            Clients::Fleet => {
                let verifier = Arc::new(self.clone());
                let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(resolver);
                // Who was let in once is looked at again: the CA may be another by then.
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
                config
            }
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// A client side that trusts the fleet's CA and shows this node's certificate. ALPN is left empty.
    pub fn client(&self) -> Result<Arc<ClientConfig>, Error> {
        let builder =
            ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let config = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.clone()))
            .with_client_cert_resolver(Arc::new(self.clone()));
        Ok(Arc::new(config))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.get().shown.clone())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.get().shown.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ServerCertVerifier for Identity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.0.get().servers.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.get().servers.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.get().servers.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.get().servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Identity {
    /// No hints: a node has one certificate to show.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        self.0.get().clients.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.get().clients.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.get().clients.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.get().clients.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::development_files;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

    type Both = (client::TlsStream<DuplexStream>, server::TlsStream<DuplexStream>);

    /// A connection of two nodes, and a byte there and back.
    async fn connect(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Option<Both> {
        let (near, far) = tokio::io::duplex(64 << 10);
        let name = ServerName::try_from("localhost").unwrap();
        let (client, server) = tokio::join!(
            TlsConnector::from(client.clone()).connect(name, near),
            TlsAcceptor::from(server.clone()).accept(far)
        );
        let mut both = (client.ok()?, server.ok()?);
        echo(&mut both).await.ok()?;
        Some(both)
    }

    async fn echo((client, server): &mut Both) -> std::io::Result<()> {
        let mut byte = [0];
        client.write_all(b"a").await?;
        server.read_exact(&mut byte).await?;
        server.write_all(&byte).await?;
        client.read_exact(&mut byte).await.map(|_| ())
    }

    #[tokio::test]
    async fn new_handshakes_go_by_new_files_and_open_connections_stay() {
        let base = std::env::temp_dir().join(format!("rooftop-identity-{}", std::process::id()));
        let files = |folder: &str, node| development_files(&base.join(folder), node, &[]).unwrap();
        let (pop, origin) = (files("old", "pop"), files("old", "origin"));
        let (at_pop, at_origin) = (Identity::load(&pop).unwrap(), Identity::load(&origin).unwrap());
        let client = at_pop.client().unwrap();
        let server = at_origin.server(Clients::Fleet, &[]).unwrap();
        let mut open = connect(&client, &server).await.expect("one CA");

        assert!(!at_origin.replace(Loaded::read(&origin).unwrap()), "the same files change nothing");
        let renewed = files("new", "origin");
        assert!(at_origin.replace(Loaded::read(&renewed).unwrap()));
        assert!(
            connect(&client, &server).await.is_none(),
            "the other side has the old CA, also on its second visit"
        );
        assert!(at_pop.replace(Loaded::read(&files("new", "pop")).unwrap()));
        let (client_side, _) = connect(&client, &server).await.expect("the new CA");
        let shown = client_side.get_ref().1.peer_certificates().unwrap();
        assert_eq!(shown, chain(&renewed.certificate).unwrap());
        echo(&mut open).await.expect("stays");

        let mixed = Files { key: pop.key.clone(), ..origin };
        let wrong = Loaded::read(&mixed).unwrap_err().to_string();
        assert!(wrong.contains("pop.key: does not go with") && wrong.contains("origin.pem"), "{wrong}");
        std::fs::remove_dir_all(base).unwrap();
    }
}
