//! Before every route of the admin listener: whether a request may be made, and who makes it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;
use tracing::warn;

use super::attempts::{Attempts, Verdict};
use super::config::NOBODY;
use super::foreign;
use super::metrics::{Metrics, Reason};
use super::roles::{self, Need, Role};
use super::sessions::{self, Sessions};
use super::tokens::{self, Hash, Token, Tokens};
use crate::secrets;

/// Between two log lines about refusals; what is not said is counted in the next.
const QUIET: Duration = Duration::from_secs(1);

/// Who makes a request that may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The name of its token, or `loopback`.
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) peer: SocketAddr,
}

/// Why a request may not be made.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) why: String,
    /// The label in the metrics.
    reason: &'static str,
    headers: Vec<(header::HeaderName, HeaderValue)>,
    /// Who it was, if that is known.
    pub(super) caller: Option<Box<Caller>>,
}

/// Who may do what.
pub(super) struct Gate {
    tokens: Arc<Tokens>,
    /// Whether it is HTTPS.
    secure: bool,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sessions: Sessions,
    attempts: Attempts,
    said: Option<Instant>,
    unsaid: u64,
}

impl Gate {
    pub(super) fn new(tokens: Arc<Tokens>, secure: bool, metrics: Metrics) -> Gate {
        Gate { tokens, secure, metrics, state: Mutex::default() }
    }

    /// Whether a request may be made, and by whom it is; `None`: anyone may.
    pub(super) fn admit(
        &self,
        head: &Parts,
        peer: SocketAddr,
        now: Instant,
    ) -> Result<Option<Caller>, Refused> {
        let admitted = self.judge(head, peer, now);
        admitted.inspect_err(|refused| self.tell(refused, head, peer, now))
    }

    fn judge(&self, head: &Parts, peer: SocketAddr, now: Instant) -> Result<Option<Caller>, Refused> {
        let need = roles::needed(&head.method, head.uri.path());
        if need == Need::Anyone {
            return Ok(None);
        }
        let host = foreign::host(head);
        // With tokens it does not matter by which name it is found: a page of that name has none.
        if self.tokens.running().is_empty() && !foreign::is_this_machine(host) {
            let why = format!("host {host:?} is not this machine: use 127.0.0.1, [::1] or localhost");
            return Err(Refused::new(StatusCode::FORBIDDEN, "foreign_host", why));
        }
        let shows_nothing = need == Need::Page && roles::reads(&head.method);
        if let Some(why) = foreign::page(head).filter(|_| !shows_nothing) {
            return Err(Refused::new(StatusCode::FORBIDDEN, "foreign_page", why.into()));
        }
        let Need::Role(role) = need else { return Ok(None) };
        let Some(caller) = self.caller(head, peer, now)? else {
            let why = "this needs a token: send Authorization: Bearer TOKEN, or sign in at /console/";
            return Err(Refused::new(StatusCode::UNAUTHORIZED, "no_token", why.into()).challenge(""));
        };
        if caller.role < role {
            let Caller { name, role: has, .. } = &caller;
            let (has, role) = (has.as_str(), role.as_str());
            let why = format!(
                "{name} has the role {has}, and {} {} needs {role}: ask with a token that has it",
                head.method,
                head.uri.path()
            );
            let refused = Refused::new(StatusCode::FORBIDDEN, "role", why).challenge("insufficient_scope");
            return Err(Refused { caller: Some(Box::new(caller)), ..refused });
        }
        Ok(Some(caller))
    }

    /// Who it is; `None`: nothing says so.
    fn caller(&self, head: &Parts, peer: SocketAddr, now: Instant) -> Result<Option<Caller>, Refused> {
        let tokens = self.tokens.running();
        if tokens.is_empty() {
            return Ok(Some(Caller { name: NOBODY.into(), role: Role::Admin, peer }));
        }
        let token = match tokens::bearer(&head.headers).filter(|secret| !secret.is_empty()) {
            Some(secret) => Some(self.right(&tokens, secret, peer, now)?),
            None => session_of(head).and_then(|id| {
                let hash = self.lock().sessions.token(now, &id)?;
                tokens::find(&tokens, &hash)
            }),
        };
        Ok(token.map(|token| Caller { name: token.name.clone(), role: token.role, peer }))
    }

    /// The token that `secret` is.
    fn right<'a>(
        &self,
        tokens: &'a [Token],
        secret: &[u8],
        peer: SocketAddr,
        now: Instant,
    ) -> Result<&'a Token, Refused> {
        let found = tokens::find(tokens, &tokens::hash(secret));
        let verdict = self.lock().attempts.attempt(now, peer.ip(), found.map(|token| token.hash));
        match (verdict, found) {
            (Verdict::Right, Some(token)) => Ok(token),
            (Verdict::TooMany(again), _) => {
                let seconds = again.as_secs() + u64::from(again.subsec_nanos() > 0);
                let why = format!("too many wrong tokens from this address: try again in {seconds} s");
                let mut refused = Refused::new(StatusCode::TOO_MANY_REQUESTS, "too_many", why);
                refused.headers.push((header::RETRY_AFTER, seconds.into()));
                Err(refused)
            }
            _ => {
                let why =
                    "this token opens nothing here: is it for this node (admin.tokens), and was it replaced?";
                let refused = Refused::new(StatusCode::UNAUTHORIZED, "bad_token", why.into());
                Err(refused.challenge("invalid_token"))
            }
        }
    }

    /// Who asks, as the console is told.
    pub(super) fn who(
        &self,
        head: &Parts,
        peer: SocketAddr,
        now: Instant,
    ) -> Result<Response<Full<Bytes>>, Refused> {
        let caller = self.caller(head, peer, now)?;
        Ok(self.said(caller.as_ref()))
    }

    /// Signs in with a token.
    pub(super) fn sign_in(
        &self,
        head: &Parts,
        secret: &str,
        peer: SocketAddr,
        now: Instant,
    ) -> Result<(Response<Full<Bytes>>, Caller), Refused> {
        let tokens = self.tokens.running();
        if tokens.is_empty() {
            let caller = Caller { name: NOBODY.into(), role: Role::Admin, peer };
            return Ok((self.said(Some(&caller)), caller));
        }
        let token = self.right(&tokens, secret.trim().as_bytes(), peer, now);
        let token = token.inspect_err(|refused| self.tell(refused, head, peer, now))?;
        let id = secrets::random_secret().map_err(|error| {
            Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "no_token", format!("{error:#}"))
        })?;
        self.lock().sessions.begin(now, tokens::hash(id.as_bytes()), token.hash);
        let caller = Caller { name: token.name.clone(), role: token.role, peer };
        let mut response = self.said(Some(&caller));
        let cookie = self.cookie(head, &id, sessions::LIFE.as_secs());
        response.headers_mut().extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
        Ok((response, caller))
    }

    /// Ends the session of a request.
    pub(super) fn sign_out(&self, head: &Parts) -> Response<Full<Bytes>> {
        if let Some(id) = session_of(head) {
            self.lock().sessions.end(&id);
        }
        let mut response = self.said(None);
        let cookie = self.cookie(head, "", 0);
        response.headers_mut().extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
        response
    }

    fn said(&self, caller: Option<&Caller>) -> Response<Full<Bytes>> {
        super::json_of(
            StatusCode::OK,
            &json!({
                "sign_in": !self.tokens.running().is_empty(),
                "name": caller.map(|caller| &caller.name),
                "role": caller.map(|caller| caller.role),
            }),
        )
    }

    /// The cookie of a session: for this listener only, out of the reach of scripts and of other sites.
    fn cookie(&self, head: &Parts, id: &str, seconds: u64) -> Option<HeaderValue> {
        let origin = head.headers.get(header::ORIGIN);
        // Behind a proxy that ends TLS the browser has a secure connection, and this listener has none.
        let secure = self.secure || origin.is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
        let [strong, plain] = cookie_names(head);
        let (name, secure) = if secure { (strong, "; Secure") } else { (plain, "") };
        let text = format!("{name}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}");
        HeaderValue::try_from(text).ok()
    }

    /// Counts a refusal, and logs it if none was a moment ago.
    fn tell(&self, refused: &Refused, head: &Parts, peer: SocketAddr, now: Instant) {
        let Refused { reason, why, caller, .. } = refused;
        self.metrics.refused.get_or_create(&Reason { reason }).inc();
        let mut state = self.lock();
        if state.said.is_some_and(|said| now.saturating_duration_since(said) < QUIET) {
            state.unsaid += 1;
            return;
        }
        state.said = Some(now);
        let unsaid = std::mem::take(&mut state.unsaid);
        drop(state);
        let who = caller.as_ref().map(|caller| caller.name.as_str());
        warn!(%peer, who, method = %head.method, reason, why, unsaid, "request to the admin listener refused");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refused {
    fn new(status: StatusCode, reason: &'static str, why: String) -> Refused {
        Refused { status, why, reason, headers: Vec::new(), caller: None }
    }

    /// RFC 6750, section 3.
    fn challenge(mut self, error: &'static str) -> Refused {
        let value = match error {
            "" => "Bearer realm=\"rooftop admin\"".to_owned(),
            error => format!("Bearer realm=\"rooftop admin\", error=\"{error}\""),
        };
        self.headers.extend(HeaderValue::try_from(value).map(|value| (header::WWW_AUTHENTICATE, value)));
        self
    }

    /// Adds what its status needs.
    pub(super) fn mark(&self, headers: &mut HeaderMap) {
        headers.extend(self.headers.iter().cloned());
    }
}

/// The identifier of the session in a request's cookies, hashed.
fn session_of(head: &Parts) -> Option<Hash> {
    let cookies = head.headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let names = cookie_names(head);
    let (_, id) = pairs.find(|(name, id)| names.iter().any(|known| known == name) && !id.is_empty())?;
    Some(tokens::hash(id.as_bytes()))
}

/// What the cookie of a session may be called, with and without a secure connection. Cookies do not know ports, and consoles of
/// several nodes are looked at by one host name.
fn cookie_names(head: &Parts) -> [String; 2] {
    let port = foreign::split(foreign::host(head)).1.unwrap_or("0");
    [format!("__Host-rooftop-{port}"), format!("rooftop-{port}")]
}

/// Whether a request is one that [`Gate::sign_in`] and [`Gate::sign_out`] are for.
pub(super) fn is_session(method: &Method, path: &str) -> bool {
    path == roles::SESSION && roles::needed(method, path) == Need::Page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::config;

    const SECRETS: [(&str, &str); 3] = [("viewer", "view"), ("operator", "operate"), ("chief", "admin")];

    fn secret(name: &str) -> String {
        format!("{name}-{}", "s".repeat(32))
    }

    fn gate(listen: &str, secure: bool) -> Gate {
        let mut text = format!("listen = {listen:?}\n");
        for (name, role) in SECRETS {
            let hash: String =
                tokens::hash(secret(name).as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
            text += &format!("[[tokens]]\nname = {name:?}\nrole = {role:?}\nsha256 = \"{hash}\"\n");
        }
        let config: config::Admin = toml::from_str(&text).unwrap();
        Gate::new(Arc::new(Tokens::open(&config).unwrap()), secure, Metrics::default())
    }

    fn open_gate() -> Gate {
        Gate::new(Arc::new(Tokens::open(&config::Admin::default()).unwrap()), false, Metrics::default())
    }

    fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "localhost:9090");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn peer() -> SocketAddr {
        "192.0.2.7:5000".parse().unwrap()
    }

    #[test]
    fn without_tokens_this_machine_may_do_everything_and_pages_of_others_nothing() {
        let gate = open_gate();
        let admit = |method: &str, path: &str, headers: &[(&str, &str)]| {
            gate.admit(&head(method, path, headers), peer(), Instant::now()).map_err(|refused| refused.status)
        };
        let caller = admit("POST", "/admin/revoke", &[]).unwrap().unwrap();
        assert_eq!((caller.name.as_str(), caller.role), ("loopback", Role::Admin));
        for (method, path, headers) in [
            ("GET", "/admin/status", [("host", "example.com:9090")].as_slice()),
            ("GET", "/metrics", &[("host", "example.com")]),
            ("GET", "/console/", &[("host", "example.com")]),
            ("GET", "/admin/session", &[("host", "example.com")]),
            ("POST", "/admin/purge", &[("origin", "http://example.com")]),
            ("POST", "/admin/session", &[("origin", "http://example.com")]),
            ("DELETE", "/v1/broadcasts/x", &[("sec-fetch-site", "cross-site")]),
            ("PUT", "/admin/not-yet-there", &[("sec-fetch-site", "same-site")]),
            ("GET", "/admin/policy", &[("origin", "http://example.com")]),
        ] {
            assert_eq!(admit(method, path, headers).unwrap_err(), StatusCode::FORBIDDEN, "{method} {path}");
        }
        // What says nothing of the node may be linked to, and load balancers call it what they like.
        assert_eq!(admit("GET", "/console/", &[("sec-fetch-site", "cross-site")]), Ok(None));
        assert_eq!(admit("GET", "/healthz", &[("host", "lb.example.com")]), Ok(None));
    }

    #[test]
    fn each_role_opens_what_the_table_says() {
        let gate = gate("0.0.0.0:9090", true);
        let now = Instant::now();
        let status = |method: &str, path: &str, token: Option<&str>| {
            let token = token.map(|token| format!("Bearer {token}"));
            let headers: Vec<_> = token.iter().map(|token| ("authorization", token.as_str())).collect();
            match gate.admit(&head(method, path, &headers), peer(), now) {
                Ok(_) => 200,
                Err(refused) => refused.status.as_u16(),
            }
        };
        for (method, path, [view, operate, admin]) in [
            ("GET", "/metrics", [200, 200, 200]),
            ("GET", "/admin/status", [200, 200, 200]),
            ("GET", "/v1/broadcasts", [200, 200, 200]),
            ("PUT", "/admin/policy/edge", [403, 200, 200]),
            ("POST", "/admin/purge", [403, 200, 200]),
            ("POST", "/admin/drain", [403, 200, 200]),
            ("POST", "/v1/broadcasts/x/end", [403, 200, 200]),
            ("POST", "/admin/revoke", [403, 403, 200]),
            ("POST", "/admin/reload", [403, 403, 200]),
            ("GET", "/admin/unheard-of", [403, 403, 200]),
        ] {
            for ((name, _), expected) in SECRETS.into_iter().zip([view, operate, admin]) {
                assert_eq!(status(method, path, Some(&secret(name))), expected, "{name} {method} {path}");
            }
            assert_eq!(status(method, path, None), 401, "{method} {path}");
        }
        for open in ["/healthz", "/readyz", "/console/", "/console/console.js", "/admin/session"] {
            assert_eq!(status("GET", open, None), 200, "{open}");
        }
        assert_eq!(gate.metrics.refused.get_or_create(&Reason { reason: "no_token" }).get(), 10);
        assert_eq!(gate.metrics.refused.get_or_create(&Reason { reason: "role" }).get(), 10);
        // Its name does not matter: no page of another name has a token.
        let named = head("GET", "/admin/status", &[("host", "origin-1.example:9090")]);
        assert_eq!(gate.admit(&named, peer(), now).unwrap_err().reason, "no_token");
    }

    #[test]
    fn wrong_tokens_are_refused_without_being_repeated() {
        let gate = gate("127.0.0.1:9090", false);
        let now = Instant::now();
        let wrong =
            head("GET", "/admin/status", &[("authorization", "Bearer hunter2-hunter2-hunter2-hunter2")]);
        let refused = gate.admit(&wrong, peer(), now).unwrap_err();
        let mut headers = HeaderMap::new();
        refused.mark(&mut headers);
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert!(headers[header::WWW_AUTHENTICATE].to_str().unwrap().contains("invalid_token"));
        assert!(!refused.why.contains("hunter2"), "{}", refused.why);
        let last = std::iter::repeat_with(|| gate.admit(&wrong, peer(), now).unwrap_err()).take(30).last();
        let last = last.unwrap();
        let mut headers = HeaderMap::new();
        last.mark(&mut headers);
        assert_eq!(
            (last.status, &headers[header::RETRY_AFTER]),
            (StatusCode::TOO_MANY_REQUESTS, &"3".parse().unwrap())
        );
        let basic = head("GET", "/admin/status", &[("authorization", "Basic dTpw")]);
        assert_eq!(gate.admit(&basic, peer(), now).unwrap_err().reason, "no_token");
        // One log line a second: the others wait to be counted.
        assert_eq!(gate.lock().unsaid, 31);
    }

    #[test]
    fn who_signed_in_has_a_cookie_until_the_token_or_the_session_ends() {
        let gate = gate("0.0.0.0:9090", true);
        let now = Instant::now();
        let to_sign_in = head("POST", "/admin/session", &[]);
        assert!(gate.admit(&to_sign_in, peer(), now).unwrap().is_none());
        let refused = gate.sign_in(&to_sign_in, "nothing", peer(), now).unwrap_err();
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        let (response, caller) = gate.sign_in(&to_sign_in, &secret("operator"), peer(), now).unwrap();
        assert_eq!((caller.name.as_str(), caller.role), ("operator", Role::Operate));
        let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
        for attribute in ["; HttpOnly", "; SameSite=Strict", "; Secure", "; Path=/", "; Max-Age=43200"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        assert!(cookie.starts_with("__Host-rooftop-9090=") && !cookie.contains("operator"), "{cookie}");
        let cookie = format!("a=b; {}; c", cookie.split(';').next().unwrap());
        let with = |method: &str, path: &str, more: &[(&str, &str)]| {
            head(method, path, &[[("cookie", cookie.as_str())].as_slice(), more].concat())
        };
        let purge = with("POST", "/admin/purge", &[("origin", "https://localhost:9090")]);
        assert_eq!(gate.admit(&purge, peer(), now).unwrap().unwrap(), caller);
        assert_eq!(gate.admit(&with("POST", "/admin/revoke", &[]), peer(), now).unwrap_err().reason, "role");
        let foreign = with("POST", "/admin/purge", &[("origin", "https://localhost:9091")]);
        assert_eq!(gate.admit(&foreign, peer(), now).unwrap_err().reason, "foreign_page");
        // A console at another port has a cookie of its own.
        let other = with("GET", "/admin/status", &[("host", "localhost:9091")]);
        assert_eq!(gate.admit(&other, peer(), now).unwrap_err().reason, "no_token");
        let forged = head("GET", "/admin/status", &[("cookie", "rooftop-9090=0123456789abcdef")]);
        assert_eq!(gate.admit(&forged, peer(), now).unwrap_err().reason, "no_token");

        let later = now + sessions::LIFE;
        assert_eq!(gate.admit(&purge, peer(), later).unwrap_err().reason, "no_token");
        let (response, _) = gate.sign_in(&to_sign_in, &secret("viewer"), peer(), later).unwrap();
        let cookie =
            response.headers()[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
        let look = head("GET", "/admin/status", &[("cookie", &cookie)]);
        assert!(gate.admit(&look, peer(), later).is_ok());
        let left = gate.tokens.running().iter().filter(|token| token.name != "viewer").cloned().collect();
        gate.tokens.replace(left);
        assert_eq!(gate.admit(&look, peer(), later).unwrap_err().reason, "no_token", "its token is gone");
        gate.sign_out(&look);
        assert_eq!(gate.lock().sessions.token(later, &session_of(&look).unwrap()), None);
    }
}
