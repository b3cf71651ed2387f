//! The client side: one request to one upstream, and what its answer means.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes};
use cluster::Node;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version, response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use net::trace::Span;

use crate::coalesce::Failure;
use crate::form::CACHE_STATUS;
use crate::resume::{Found, Rest, Until};
use crate::upstream::Probed;

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

/// For the answer to a probe, its connection included.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

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

/// What a fetch asks for.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    /// The object.
    Whole,
    /// The object, unless it is still the one that these conditions name.
    IfChanged(HeaderMap),
    /// What is missing of its body.
    Rest(Rest),
}

/// What a fetch found.
pub(crate) enum Answer {
    /// The object, or a status that says that it is not there.
    Whole(Response<Incoming>),
    /// It is still the same (304).
    NotModified(response::Parts),
    /// What was missing, its first bytes there already.
    Rest { first: Bytes, incoming: Incoming, until: Until },
    /// Nothing was missing.
    Nothing,
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

    /// Asks `node` for `target`; `span` ends with the answer's head. Dropping the future ends the request.
    pub(crate) async fn get(
        self,
        node: Arc<Node>,
        target: Arc<str>,
        cdn_loop: HeaderValue,
        ask: Ask,
        mut span: Span,
    ) -> Result<Answer, Failed> {
        let found = self.ask(node, target, cdn_loop, ask, &span).await;
        if let (Some(span), Err(failed)) = (span.sampled(), &found) {
            span.fail(&failed.why);
        }
        found
    }

    async fn ask(
        self,
        node: Arc<Node>,
        target: Arc<str>,
        cdn_loop: HeaderValue,
        ask: Ask,
        span: &Span,
    ) -> Result<Answer, Failed> {
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
        span.propagate(headers);
        match &ask {
            Ask::Whole => {}
            Ask::IfChanged(conditions) => headers.extend(conditions.clone()),
            Ask::Rest(rest) => rest.ask(headers),
        }
        let response = self.http.request(request).await.map_err(|error| Failed {
            failure: if is_timeout(&error) { Failure::TimedOut } else { Failure::Broken },
            unreachable: error.is_connect(),
            why: net::chain(&error),
        })?;
        refused(response.status())?;
        match ask {
            Ask::IfChanged(conditions) if response.status() == StatusCode::NOT_MODIFIED => {
                confirms(&conditions, response.headers())?;
                Ok(Answer::NotModified(response.into_parts().0))
            }
            Ask::Whole | Ask::IfChanged(_) => {
                judge(response.status(), response.headers(), self.max_object)?;
                Ok(Answer::Whole(response))
            }
            Ask::Rest(rest) => read_on(&rest, response).await,
        }
    }

    /// Whether `node` answers at all: any status will do. OPTIONS, because nobody has to ask another to answer that.
    pub(crate) async fn probe(self, node: Arc<Node>) -> Probed {
        let uri = Uri::builder().scheme(self.scheme).authority(node.address.as_str()).path_and_query("/");
        let request = uri.build().map(|uri| Request::options(uri).header(header::USER_AGENT, self.agent));
        match request.map(|request| request.body(Empty::new())) {
            Ok(Ok(request)) => match tokio::time::timeout(PROBE_TIMEOUT, self.http.request(request)).await {
                Ok(Ok(_)) => Probed::Answered,
                Ok(Err(error)) if !is_timeout(&error) => Probed::Refused,
                Ok(Err(_)) | Err(_) => Probed::Silent,
            },
            _ => Probed::Refused,
        }
    }
}

impl Client {
    /// Asks `node` to push. Whatever it answers; `Err` if it does not. Dropping the future ends the request.
    pub(crate) async fn push(
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
        headers.insert(header::ACCEPT, HeaderValue::from_static(media::push::MEDIA_TYPE));
        headers.insert(header::USER_AGENT, self.agent);
        headers.insert(header::VIA, self.via);
        headers.insert(CDN_LOOP, cdn_loop);
        let answered = self.http.request(request).await;
        answered.map_err(|error| Failed::new(Failure::Broken, net::chain(&error)))
    }
}

/// Whether a 304 speaks of the object that the conditions name (RFC 9111 section 4.3.4).
fn confirms(conditions: &HeaderMap, headers: &HeaderMap) -> Result<(), Failed> {
    let same = |ours: &HeaderValue, theirs: &HeaderValue| {
        let opaque =
            |tag: &HeaderValue| tag.as_bytes().strip_prefix(b"W/").unwrap_or(tag.as_bytes()).to_vec();
        opaque(ours) == opaque(theirs)
    };
    match (conditions.get(header::IF_NONE_MATCH), headers.get(header::ETAG)) {
        (Some(ours), Some(theirs)) if !same(ours, theirs) => {
            Err(Failed::new(Failure::Unfit, format!("304 for {theirs:?}, not {ours:?}")))
        }
        _ => Ok(()),
    }
}

/// Reads up to the first byte that is missing.
async fn read_on(rest: &Rest, response: Response<Incoming>) -> Result<Answer, Failed> {
    let unfit = |why: String| Failed::new(Failure::Unfit, why);
    let (mut skip, until) = match rest.judge(response.status(), response.headers()).map_err(unfit)? {
        Found::Nothing => return Ok(Answer::Nothing),
        Found::Body { skip, until } => (skip, until),
    };
    let mut incoming = response.into_body();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| Failed::new(Failure::Broken, net::chain(&error)))?;
        let Ok(mut data) = frame.into_data() else {
            continue;
        };
        let skipped = skip.min(data.len() as u64);
        data.advance(skipped as usize);
        skip -= skipped;
        if !data.is_empty() {
            return Ok(Answer::Rest { first: data, incoming, until });
        }
    }
    let whole = match until {
        Until::Total(total) => total == rest.from,
        Until::End => skip == 0,
        Until::Part => false,
    };
    if whole {
        Ok(Answer::Nothing)
    } else {
        Err(Failed::new(Failure::Broken, "nothing came behind the bytes that are there"))
    }
}

/// Statuses by which an upstream says that it has no answer.
fn refused(status: StatusCode) -> Result<(), Failed> {
    let failure = match status {
        StatusCode::MISDIRECTED_REQUEST => Failure::NotMine,
        StatusCode::SERVICE_UNAVAILABLE => Failure::Unavailable,
        StatusCode::GATEWAY_TIMEOUT => Failure::TimedOut,
        _ if status.is_server_error() => Failure::Erred,
        _ => return Ok(()),
    };
    Err(Failed::new(failure, format!("status {status}")))
}

/// Whether headers answer a request for the whole object.
fn judge(status: StatusCode, headers: &HeaderMap, max_object: u64) -> Result<(), Failed> {
    let erred = |why: String| Err(Failed::new(Failure::Erred, why));
    match content_length(headers) {
        // Nobody asked for a part, or named a condition.
        _ if matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED) => {
            erred(format!("status {status}"))
        }
        Some(length) if length > max_object => {
            erred(format!("{length} bytes exceed max_object = {max_object}"))
        }
        _ => Ok(()),
    }
}

/// What makes a fetch conditional, so that an object that is there need not come again: of a 200 with a validator.
pub(crate) fn conditions(status: StatusCode, headers: &HeaderMap) -> Option<HeaderMap> {
    let mut conditions = HeaderMap::new();
    for (validator, condition) in
        [(header::ETAG, header::IF_NONE_MATCH), (header::LAST_MODIFIED, header::IF_MODIFIED_SINCE)]
    {
        if let Some(value) = headers.get(validator) {
            conditions.insert(condition, value.clone());
        }
    }
    (status == StatusCode::OK && !conditions.is_empty()).then_some(conditions)
}

/// The headers of an object that a 304 has confirmed: what is new replaces what was there (RFC 9111 section 3.2), except
/// what describes the body that was not sent.
pub(crate) fn updated(there: &HeaderMap, news: HeaderMap) -> HeaderMap {
    const OF_THE_BODY: [HeaderName; 3] =
        [header::CONTENT_ENCODING, header::CONTENT_RANGE, HeaderName::from_static("content-md5")];
    let mut headers = there.clone();
    let mut last = None;
    for (name, value) in news {
        // Further values of a name come without it.
        let first = name.is_some();
        last = name.or(last);
        match &last {
            Some(name) if OF_THE_BODY.contains(name) => {}
            Some(name) if first => drop(headers.insert(name, value)),
            Some(name) => drop(headers.append(name, value)),
            None => {}
        }
    }
    headers
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
            let status = StatusCode::from_u16(status).unwrap();
            let got = refused(status).and_then(|()| judge(status, &headers, 100));
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
    fn a_304_is_about_the_object_that_was_named() {
        let headers = |pairs: &[(HeaderName, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
        };
        let there = headers(&[(header::ETAG, "\"a\""), (header::LAST_MODIFIED, "then")]);
        let asked = conditions(StatusCode::OK, &there).unwrap();
        assert_eq!(asked, headers(&[(header::IF_NONE_MATCH, "\"a\""), (header::IF_MODIFIED_SINCE, "then")]));
        assert_eq!(conditions(StatusCode::NOT_FOUND, &there), None);
        assert_eq!(conditions(StatusCode::OK, &HeaderMap::new()), None);
        for (tag, expected) in [("\"a\"", true), ("W/\"a\"", true), ("\"b\"", false)] {
            assert_eq!(confirms(&asked, &headers(&[(header::ETAG, tag)])).is_ok(), expected, "{tag}");
        }
        assert!(confirms(&asked, &HeaderMap::new()).is_ok());
    }

    #[test]
    fn news_of_a_304_replace_what_was_there() {
        let mut there = HeaderMap::new();
        for (name, value) in [("via", "1"), ("via", "2"), ("content-md5", "a"), ("x-old", "1")] {
            there.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static(value));
        }
        let mut news = HeaderMap::new();
        for (name, value) in [("via", "3"), ("via", "4"), ("content-md5", "b"), ("date", "now")] {
            news.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static(value));
        }
        let got = updated(&there, news);
        let all =
            |name: &str| got.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>().join("|");
        for (name, expected) in [("via", "3|4"), ("content-md5", "a"), ("x-old", "1"), ("date", "now")] {
            assert_eq!(all(name), expected, "{name}");
        }
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
