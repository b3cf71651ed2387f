//! One attempt to deliver one event.

use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::signature::Secrets;
use crate::api::config::Webhooks;
use crate::api::outbox::Event;

/// What is read of an answer's body, so that its connection can be used again.
const MAX_ANSWER_BYTES: usize = 16 << 10;

/// How long a connection is kept for the next event.
const IDLE: Duration = Duration::from_secs(30);

pub(super) type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// One receiver.
pub(super) struct Sender {
    pub(super) name: String,
    pub(super) url: Uri,
    pub(super) secrets: Secrets,
    pub(super) client: Http,
    pub(super) timeout: Duration,
}

/// How an attempt went.
#[derive(Debug)]
pub(super) enum Answer {
    /// 2xx.
    Taken,
    /// Anything else; a redirection is not followed: the URL is to be put right.
    No { status: Option<StatusCode>, why: String, retry_after_ms: u64 },
}

/// A client that trusts whom the configuration says.
pub(super) fn client(config: &Webhooks) -> anyhow::Result<Http> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = &config.ca {
        let of_file = || file.display().to_string();
        for certificate in CertificateDer::pem_file_iter(file).with_context(of_file)? {
            roots.add(certificate.with_context(of_file)?).with_context(of_file)?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let tls_is_wanted = config.endpoints.iter().any(|endpoint| endpoint.url.starts_with("https:"));
    if roots.is_empty() && tls_is_wanted {
        bail!("webhooks.ca: this system trusts nobody: name a file with the authorities of the receivers");
    }
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    let mut builder = Client::builder(TokioExecutor::new());
    Ok(builder.pool_idle_timeout(IDLE).pool_timer(TokioTimer::new()).build(connector))
}

impl Sender {
    /// Posts an event and waits for the answer, at most for the timeout.
    pub(super) async fn send(&self, event: &Event) -> Answer {
        let no = |why: String| Answer::No { status: None, why, retry_after_ms: 0 };
        match tokio::time::timeout(self.timeout, self.post(event)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => no(format!("{error:#}")),
            Err(_) => no(format!("no answer within {:?}", self.timeout)),
        }
    }

    async fn post(&self, event: &Event) -> anyhow::Result<Answer> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let request = Request::post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("rooftop/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &event.id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", self.secrets.sign(&event.id, now, &event.body))
            .body(Full::new(Bytes::from(event.body.clone())))?;
        let response = self.client.request(request).await?;
        let (head, body) = response.into_parts();
        let _ = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        if head.status.is_success() {
            return Ok(Answer::Taken);
        }
        let seconds =
            head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let retry_after_ms = seconds.unwrap_or(0).saturating_mul(1000);
        Ok(Answer::No { status: Some(head.status), why: String::new(), retry_after_ms })
    }
}
