//! The admin listener of a running node, from the command line: where it is, what shows who asks, and its answers.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

/// For an answer of the node: a purge goes through all names.
const PATIENCE: Duration = Duration::from_secs(30);

/// The variable of the environment with the token.
const TOKEN_VARIABLE: &str = "ROOFTOP_ADMIN_TOKEN";

/// Which node.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// The node's admin.listen: HOST:PORT, or https://HOST:PORT where it has a certificate
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    pub admin: Address,
    /// What it is asked with.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// What an admin listener is asked with, where it needs that.
#[derive(Debug, Clone, Default, Args)]
pub struct AccessArgs {
    /// A file with a token of its admin.tokens [default: ROOFTOP_ADMIN_TOKEN in the environment, if it is set]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// PEM: who signed its certificate [default: whom this system trusts]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// Where an admin listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    secure: bool,
    authority: Authority,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (secure, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, rest) => (false, rest.unwrap_or(text)),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest).parse::<Authority>().ok();
        let authority = authority.filter(|authority| {
            authority.port_u16().is_some()
                && !authority.host().is_empty()
                && !authority.as_str().contains('@')
        });
        let authority = authority.ok_or("must be HOST:PORT or https://HOST:PORT, as admin.listen has it")?;
        Ok(Address { secure, authority })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.secure { "https://" } else { "" }, self.authority)
    }
}

impl Address {
    /// `host:port`.
    pub(super) fn host_and_port(&self) -> &str {
        self.authority.as_str()
    }

    fn is_here(&self) -> bool {
        let host = self.authority.host();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    }
}

/// What a node is asked.
pub(super) struct Question {
    method: Method,
    path: String,
    body: String,
    headers: Vec<(HeaderName, String)>,
}

impl Question {
    pub(super) fn new(method: Method, path: &str) -> Question {
        Question { method, path: path.into(), body: String::new(), headers: Vec::new() }
    }

    pub(super) fn body(mut self, body: &Value) -> Question {
        self.body = body.to_string();
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Question {
        self.headers.push((HeaderName::from_static(name), value.into()));
        self
    }
}

/// What it answers.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) tag: String,
    body: Value,
}

impl Answered {
    /// The JSON; `None`: it was refused, and why is on standard error.
    pub(super) fn good(&self) -> Option<&Value> {
        if self.status.is_success() {
            return Some(&self.body);
        }
        for line in self.problems() {
            eprintln!("{line}");
        }
        None
    }

    /// Why it was refused, and what to do.
    fn problems(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut lines: Vec<_> = self.body["problems"].as_array().into_iter().flatten().map(text).collect();
        // RFC 9457.
        lines.extend(self.body["detail"].as_str().map(str::to_owned));
        for error in self.body["errors"].as_array().into_iter().flatten() {
            let at = ["pointer", "parameter", "header"].into_iter().find_map(|member| error[member].as_str());
            lines.push(format!("{}: {}", at.unwrap_or_default(), text(&error["detail"])));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            lines.push(format!("give a token of this node: --token-file FILE, or {TOKEN_VARIABLE}"));
        }
        lines
    }
}

/// What the admin listener of a node says in answer to a GET, as text.
pub(super) fn read(node: &NodeArgs, path: &str) -> anyhow::Result<String> {
    let (head, body) = answer(node, Question::new(Method::GET, path))?;
    if head.status != StatusCode::OK {
        let body = serde_json::from_slice(&body).unwrap_or_default();
        let answered = Answered { status: head.status, tag: String::new(), body };
        bail!("{} answered {} for {path}: {}", node.admin, head.status, answered.problems().join("; "));
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Asks the admin listener of a node for JSON.
pub(super) fn exchange(node: &NodeArgs, question: Question) -> anyhow::Result<Answered> {
    let (head, body) = answer(node, question)?;
    let tag = head.headers.get(ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default().to_owned();
    let status = head.status;
    if status == StatusCode::NO_CONTENT {
        return Ok(Answered { status, tag, body: Value::Null });
    }
    let body: Value = serde_json::from_slice(&body)
        .with_context(|| format!("{} answered {status} with what is no JSON: no Rooftop?", node.admin))?;
    Ok(Answered { status, tag, body })
}

fn answer(node: &NodeArgs, question: Question) -> anyhow::Result<(http::response::Parts, Bytes)> {
    let NodeArgs { admin, access } = node;
    let Question { method, path, body, headers } = question;
    let scheme = if admin.secure { "https" } else { "http" };
    let mut request = Request::builder().method(method).uri(format!("{scheme}://{}{path}", admin.authority));
    request = request.header(CONTENT_TYPE, "application/json");
    if let Some(token) = access.token()? {
        if !admin.secure && !admin.is_here() {
            bail!("the token would cross the network in the clear: use --admin https://{}", admin.authority);
        }
        request = request.header(AUTHORIZATION, token);
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(body)))?;
    let roots = if admin.secure { access.roots()? } else { RootCertStore::empty() };
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exchange = async {
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let (head, body) = client.request(request).await?.into_parts();
        anyhow::Ok((head, body.collect().await?.to_bytes()))
    };
    let answered = runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await });
    answered.map_err(anyhow::Error::from).and_then(|answer| answer).with_context(|| {
        format!(
            "no answer from the admin listener at {admin}: is the node running, and is this its admin.listen? (--admin ADDRESS; \
             where it has a certificate, https://HOST:PORT with a name that is in it, and --ca FILE with who signed it)"
        )
    })
}

impl AccessArgs {
    fn token(&self) -> anyhow::Result<Option<HeaderValue>> {
        let (from, text) = match &self.token_file {
            Some(file) => {
                let of_file = || format!("--token-file {}", file.display());
                (of_file(), std::fs::read_to_string(file).with_context(of_file)?)
            }
            None => match std::env::var(TOKEN_VARIABLE) {
                Ok(text) if !text.trim().is_empty() => (TOKEN_VARIABLE.to_owned(), text),
                _ => return Ok(None),
            },
        };
        let value = HeaderValue::try_from(format!("Bearer {}", text.trim()));
        // What it says is not repeated.
        let mut value =
            value.ok().with_context(|| format!("{from}: is no token: it is more than one line"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(file) => {
                let of_file = || format!("--ca {}", file.display());
                for certificate in CertificateDer::pem_file_iter(file).with_context(of_file)? {
                    roots.add(certificate.with_context(of_file)?).with_context(of_file)?;
                }
                if roots.is_empty() {
                    bail!("{}: holds no certificate", of_file());
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    bail!("this system trusts nobody: name who signed the node's certificate (--ca FILE)");
                }
            }
        }
        Ok(roots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, shown, here) in [
            ("127.0.0.1:9090", "127.0.0.1:9090", true),
            ("http://localhost:9090/", "localhost:9090", true),
            ("[::1]:9090", "[::1]:9090", true),
            ("https://origin-1.example.com:9090", "https://origin-1.example.com:9090", false),
            ("10.0.0.1:9090", "10.0.0.1:9090", false),
        ] {
            let address: Address = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!((address.to_string().as_str(), address.is_here()), (shown, here));
        }
        for bad in [
            "",
            "localhost",
            "https://",
            "https://a",
            ":9090",
            "ftp://a:1",
            "https://a:1/x",
            "u:p@a:1",
            "a:b",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let answered = |status: u16, body: Value| {
            let status = StatusCode::from_u16(status).unwrap();
            Answered { status, tag: String::new(), body }.problems().join("\n")
        };
        let said = answered(401, serde_json::json!({ "problems": ["this needs a token"] }));
        assert!(said.starts_with("this needs a token\n") && said.contains("--token-file"), "{said}");
        let said = answered(
            422,
            serde_json::json!({ "detail": "no", "errors": [{ "pointer": "/a", "detail": "b" }] }),
        );
        assert_eq!(said, "no\n/a: b");
    }

    #[test]
    fn tokens_are_not_sent_in_the_clear_nor_repeated() {
        let file = std::env::temp_dir().join(format!("rooftop-cli-token-{}", std::process::id()));
        std::fs::write(&file, "s3cret\n").unwrap();
        let node = |admin: &str| NodeArgs {
            admin: admin.parse().unwrap(),
            access: AccessArgs { token_file: Some(file.clone()), ca: None },
        };
        let refused = read(&node("192.0.2.1:9090"), "/metrics").unwrap_err().to_string();
        assert!(refused.contains("--admin https://192.0.2.1:9090"), "{refused}");
        assert_eq!(node("a:1").access.token().unwrap().unwrap(), "Bearer s3cret");
        std::fs::write(&file, "s3cret\ns3cret\n").unwrap();
        let refused = format!("{:#}", node("a:1").access.token().unwrap_err());
        assert!(refused.contains("more than one line") && !refused.contains("s3cret"), "{refused}");
        std::fs::remove_file(&file).unwrap();
    }
}
