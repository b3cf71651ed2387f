//! The client side: one request for a whole object to one upstream, and what its answer means.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cluster::Node;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::coalesce::Failure;
use crate::http::CACHE_STATUS;

/// RFC 8586.
pub(crate) const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// Flow-control windows of h2, in bytes: bodies are read into memory as fast as they come, so the window only has to cover
/// bandwidth times delay (16 MiB: 1.3 Gbit/s at 100 ms), and one connection carries them all.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// Largest h2 frame that is accepted, in bytes: fewer pieces per body, and no later, since a frame holds what is there.
const FRAME: u32 = 256 << 10;

/// A connection whose peer has vanished is noticed after this and again as much.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Largest header of an answer, in bytes.
const MAX_HEADER: u32 = 64 << 10;

/// Headers of a connection, not of an answer (RFC 9110 section 7.6.1), and those that every tier says for itself.
const NOT_PASSED_ON: [HeaderName; 17] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::CONTENT_LENGTH,
    header::AGE,
    header::ACCEPT_RANGES,
    header::ALT_SVC,
    header::SET_COOKIE,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
];

/// Why a fetch has no answer, in terms of the flight and in words.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    /// No connection could be made: the node may be down.
    pub(crate) unreachable: bool,
    pub(crate) why: String,
}

impl Failed {
    pub(crate) fn new(failure: Failure, why: impl Into<String>) -> Failed {
        Failed { failure, unreachable: false, why: why.into() }
    }
}

/// Sends fetches. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    scheme: &'static str,
    agent: HeaderValue,
    via: HeaderValue,
    max_object: u64,
}

impl Client {
    /// Over TLS if `tls` is given: h2 where the upstream speaks it, else h1.
    pub(crate) fn new(
        tls: Option<Arc<rustls::ClientConfig>>,
        connect_timeout: Duration,
        max_object: u64,
        tier: &str,
    ) -> Client {
        let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("rooftop"));
        // One fetch serves viewers of any version.
        let (agent, via) = (value(format!("rooftop-{tier}")), value(format!("1.1 rooftop-{tier}")));
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect_timeout));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut tls = tls.map_or_else(no_tls, |tls| rustls::ClientConfig::clone(&tls));
        // The connector sets it to what it can speak.
        tls.alpn_protocols.clear();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(tcp);
        let http = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_frame_size(FRAME)
            .http2_max_header_list_size(MAX_HEADER)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(KEEP_ALIVE)
            .http1_max_buf_size(8 * MAX_HEADER as usize)
            .build(connector);
        Client { http, scheme, agent, via, max_object }
    }

    /// Asks `node` for the whole of `target`. Dropping the future ends the request.
    pub(crate) async fn get(
        self,
        node: Arc<Node>,
        target: Arc<str>,
        cdn_loop: HeaderValue,
    ) -> Result<Response<Incoming>, Failed> {
        let uri =
            Uri::builder().scheme(self.scheme).authority(node.address.as_str()).path_and_query(&*target);
        let uri = uri.build().map_err(|error| Failed::new(Failure::Broken, error.to_string()))?;
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(header::USER_AGENT, self.agent);
        headers.insert(header::VIA, self.via);
        headers.insert(CDN_LOOP, cdn_loop);
        let response = self.http.request(request).await.map_err(|error| Failed {
            failure: if is_timeout(&error) { Failure::TimedOut } else { Failure::Broken },
            unreachable: error.is_connect(),
            why: net::chain(&error),
        })?;
        judge(response.status(), response.headers(), self.max_object)?;
        Ok(response)
    }
}

/// Whether headers answer a request that asked for the whole object, without conditions.
fn judge(status: StatusCode, headers: &HeaderMap, max_object: u64) -> Result<(), Failed> {
    let failure = match status {
        StatusCode::MISDIRECTED_REQUEST => Failure::NotMine,
        StatusCode::SERVICE_UNAVAILABLE => Failure::Unavailable,
        StatusCode::GATEWAY_TIMEOUT => Failure::TimedOut,
        _ if status.is_server_error() => Failure::Erred,
        // Nobody asked for a part or named a condition.
        StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED => Failure::Erred,
        _ => match content_length(headers) {
            Some(length) if length > max_object => {
                return Err(Failed::new(
                    Failure::Erred,
                    format!("{length} bytes exceed max_object = {max_object}"),
                ));
            }
            _ => return Ok(()),
        },
    };
    Err(Failed::new(failure, format!("status {status}")))
}

/// The announced length, if there is one.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The headers that viewers get: end-to-end ones of the upstream, with this tier's `Via`, CORS, and a `Date`.
pub(crate) fn for_viewers(version: Version, headers: &HeaderMap, tier: &str, now: SystemTime) -> HeaderMap {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> =
        named.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect();
    let mut kept = HeaderMap::with_capacity(headers.len() + 6);
    for (name, value) in headers {
        if !NOT_PASSED_ON.contains(name) && !named.iter().any(|other| other == name.as_str()) {
            kept.append(name.clone(), value.clone());
        }
    }
    if !kept.contains_key(header::DATE)
        && let Ok(date) = httpdate::fmt_http_date(now).parse()
    {
        kept.insert(header::DATE, date);
    }
    let version = if version == Version::HTTP_2 { "2" } else { "1.1" };
    if let Ok(via) = format!("{version} rooftop-{tier}").parse() {
        kept.append(header::VIA, via);
    }
    cors(&mut kept);
    kept.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    kept
}

/// Lets pages of any origin read the answer and what players need of its headers.
pub(crate) fn cors(headers: &mut HeaderMap) {
    const EXPOSED: &str = "age, date, content-length, content-range, etag, cache-status";
    debug_assert!(EXPOSED.ends_with(CACHE_STATUS.as_str()));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
}

/// For plain upstreams: the connector wants a TLS configuration all the same, and never uses this one.
fn no_tls() -> rustls::ClientConfig {
    rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

fn is_timeout(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut)
        {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let check = |status: u16, length: &'static str, expected: Option<Failure>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static(length));
            let got = judge(StatusCode::from_u16(status).unwrap(), &headers, 100);
            assert_eq!(got.err().map(|failed| failed.failure), expected, "{status} {length}");
        };
        check(200, "100", None);
        check(200, "101", Some(Failure::Erred));
        check(200, "-1", None);
        check(404, "0", None);
        check(302, "0", None);
        check(206, "1", Some(Failure::Erred));
        check(304, "0", Some(Failure::Erred));
        check(421, "0", Some(Failure::NotMine));
        check(500, "0", Some(Failure::Erred));
        check(503, "0", Some(Failure::Unavailable));
        check(504, "0", Some(Failure::TimedOut));
    }

    #[test]
    fn hop_headers_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "3"),
            ("set-cookie", "a=b"),
            ("age", "3"),
            ("content-length", "3"),
            ("access-control-allow-origin", "https://a"),
            ("via", "2 rooftop-shield"),
            ("etag", "\"x\""),
            ("x-kept", "1"),
            ("x-kept", "2"),
        ] {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let kept = for_viewers(Version::HTTP_2, &headers, "edge", SystemTime::UNIX_EPOCH);
        let all =
            |name: &str| kept.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>().join("|");
        for (name, expected) in [
            ("connection", ""),
            ("x-secret", ""),
            ("keep-alive", ""),
            ("set-cookie", ""),
            ("age", ""),
            ("content-length", ""),
            ("access-control-allow-origin", "*"),
            ("via", "2 rooftop-shield|2 rooftop-edge"),
            ("etag", "\"x\""),
            ("x-kept", "1|2"),
            ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("accept-ranges", "bytes"),
        ] {
            assert_eq!(all(name), expected, "{name}");
        }
    }
}
