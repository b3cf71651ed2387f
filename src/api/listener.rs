//! The API's own listener: HTTPS, for those who have an API key.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use http::Request;
use http::header::{AUTHORIZATION, HeaderMap};
use hyper::body::Incoming;
use net::Current;
use tokio_util::sync::CancellationToken;

use super::config;
use super::http::Api;
use super::problem::Problem;

/// Other services, not viewers.
const LIMITS: net::Limits = net::Limits { max_connections: 1024, handshake_timeout: Duration::from_secs(10) };

/// An answer takes milliseconds, a body that is on its way seconds.
const DRAIN: Duration = Duration::from_secs(2);

/// Shortest key, in bytes.
const MIN_KEY_BYTES: usize = 32;

/// The variable of the environment with one more key.
pub(crate) const KEY_VARIABLE: &str = "ROOFTOP_API_KEY";

/// Who may ask: hashes of the keys, so that comparing takes as long whatever their lengths.
pub(crate) struct ApiKeys(Vec<Digest>);

/// The listener, bound.
pub(crate) struct Listener {
    listener: net::Listener,
    tls: Arc<rustls::ServerConfig>,
    keys: Current<ApiKeys>,
}

impl ApiKeys {
    /// Reads the keys. Fails if there is none, or one is too short.
    pub(crate) fn read(config: &config::Api) -> anyhow::Result<ApiKeys> {
        let mut keys = Vec::new();
        for path in &config.key_files {
            let key = std::fs::read_to_string(path).with_context(|| format!("API key {}", path.display()))?;
            keys.push((path.display().to_string(), key));
        }
        if let Ok(key) = std::env::var(KEY_VARIABLE) {
            keys.push((KEY_VARIABLE.to_owned(), key));
        }
        if keys.is_empty() {
            bail!("api.listen: needs a key: api.key_files or {KEY_VARIABLE} in the environment");
        }
        let hashes = keys.iter().map(|(from, key)| {
            let key = key.trim();
            if key.len() < MIN_KEY_BYTES {
                bail!("API key {from}: {} bytes are fewer than {MIN_KEY_BYTES}", key.len());
            }
            Ok(digest(&SHA256, key.as_bytes()))
        });
        Ok(ApiKeys(hashes.collect::<anyhow::Result<_>>()?))
    }

    fn open(&self, headers: &HeaderMap) -> bool {
        let key = headers.get(AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
        });
        let Some(key) = key else { return false };
        let hash = digest(&SHA256, key);
        // All of them, so that it takes as long whichever it is.
        let equal = |ours: &Digest| verify_slices_are_equal(ours.as_ref(), hash.as_ref()).is_ok();
        self.0.iter().fold(false, |open, ours| equal(ours) | open)
    }
}

impl Listener {
    pub(crate) async fn bind(
        addr: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        keys: ApiKeys,
    ) -> Result<Listener, net::Error> {
        Ok(Listener { listener: net::Listener::named("api", addr, LIMITS).await?, tls, keys: keys.into() })
    }

    pub(crate) fn keys(&self) -> Current<ApiKeys> {
        self.keys.clone()
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    pub(crate) async fn serve(self, api: Arc<Api>, shutdown: CancellationToken) {
        let Listener { listener, tls, keys } = self;
        let service = move |request: Request<Incoming>, _peer| {
            let (api, keys) = (api.clone(), keys.clone());
            async move {
                let refused = if !keys.get().open(request.headers()) {
                    Some(Problem::unauthorized())
                } else if !Api::has(request.uri().path()) {
                    Some(Problem::not_found("the Live API is below /v1/"))
                } else {
                    None
                };
                match refused {
                    None => api.answer(request).await,
                    Some(problem) => {
                        api.count(problem.status);
                        problem.response()
                    }
                }
            }
        };
        net::http::serve(listener, Some(tls), net::http::Options::default(), shutdown, DRAIN, service).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_a_whole_key_opens() {
        let keys =
            ApiKeys([b"a".repeat(32), b"b".repeat(40)].iter().map(|key| digest(&SHA256, key)).collect());
        for (value, expected) in [
            (format!("Bearer {}", "a".repeat(32)), true),
            (format!("bearer {}", "b".repeat(40)), true),
            (format!("Bearer {}", "a".repeat(31)), false),
            (format!("Bearer {}", "a".repeat(33)), false),
            (format!("Basic {}", "a".repeat(32)), false),
            ("Bearer ".into(), false),
            ("Bearer".into(), false),
            (String::new(), false),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(&value).unwrap())]);
            assert_eq!(keys.open(&headers), expected, "{value}");
        }
        assert!(!keys.open(&HeaderMap::new()));
    }

    #[test]
    fn keys_that_are_too_short_are_refused_unseen() {
        let folder = std::env::temp_dir().join(format!("rooftop-api-keys-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("api.key");
        let config = config::Api { key_files: vec![file.clone()], ..config::Api::default() };
        std::fs::write(&file, "hunter2\n").unwrap();
        let refused = ApiKeys::read(&config).err().unwrap().to_string();
        assert!(refused.contains("api.key: 7 bytes") && !refused.contains("hunter2"), "{refused}");
        std::fs::write(&file, "k".repeat(32)).unwrap();
        assert!(ApiKeys::read(&config).is_ok());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
