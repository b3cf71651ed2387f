//! The forms of a complete object: its headers and bytes as viewers get them, prepared once, so that a hit has next to
//! nothing left to do.

use std::hash::Hasher;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, Entry as Slot, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::OnceCell;

use crate::body::Body;
use crate::cache::Entry;
use crate::encoding;
use crate::metrics::Answered;

/// RFC 9211.
pub(crate) const CACHE_STATUS: HeaderName = header::CACHE_STATUS;

/// What an entry's answers are made from. A clone is of the same body, but perhaps of other headers: it shares the gzip
/// bytes and prepares its headers anew.
#[derive(Debug, Default)]
pub(crate) struct Forms {
    plain: OnceLock<Form>,
    gzip: OnceLock<Option<Form>>,
    /// `None`: not worth it. Asynchronous, so that who wants it while it is made waits without blocking a thread.
    pub(crate) zipped: Arc<OnceCell<Option<Bytes>>>,
}

impl Clone for Forms {
    fn clone(&self) -> Self {
        Forms { zipped: self.zipped.clone(), ..Forms::default() }
    }
}

impl Forms {
    /// The object as it came.
    pub(crate) fn plain(&self, entry: &Entry, bytes: &Bytes) -> &Form {
        self.plain.get_or_init(|| Form::plain(entry, bytes))
    }

    /// The gzip form. `None`: nobody has tried to make it yet; `Some(None)`: it is not worth it.
    pub(crate) fn gzip(&self, entry: &Entry, bytes: &Bytes) -> Option<Option<&Form>> {
        let zipped = self.zipped.get()?;
        let form = self.gzip.get_or_init(|| Some(self.plain(entry, bytes).zipped(zipped.clone()?)));
        Some(form.as_ref())
    }
}

/// One form of an object.
#[derive(Debug)]
pub(crate) struct Form {
    /// All of them, with places for `Age` and this tier's `Cache-Status`.
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
    /// Whether the object may have a gzip form.
    pub(crate) may_zip: bool,
    /// What `Age` and the `Cache-Status` of a hit say, and since which second after it was received.
    second: Mutex<Option<(u64, HeaderValue, HeaderValue)>>,
}

impl Form {
    fn plain(entry: &Entry, bytes: &Bytes) -> Form {
        // Copied: values that came from a socket hold on to all that was read with them.
        let mut headers = HeaderMap::with_capacity(entry.headers.len() + 4);
        for (name, value) in &entry.headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
            headers.append(name.clone(), value);
        }
        let may_zip = encoding::may_have(entry.status, &headers);
        if may_zip {
            encoding::vary(&mut headers);
        }
        if entry.status == StatusCode::OK && !headers.contains_key(header::ETAG) {
            headers.extend(tag(bytes).map(|tag| (header::ETAG, tag)));
        }
        if entry.status != StatusCode::NO_CONTENT {
            headers.insert(header::CONTENT_LENGTH, bytes.len().into());
        }
        headers.insert(header::AGE, HeaderValue::from_static(""));
        headers.append(CACHE_STATUS, HeaderValue::from_static(""));
        Form { headers, bytes: bytes.clone(), may_zip, second: Mutex::default() }
    }

    fn zipped(&self, bytes: Bytes) -> Form {
        let mut headers = self.headers.clone();
        encoding::mark(&mut headers);
        headers.insert(header::CONTENT_LENGTH, bytes.len().into());
        Form { headers, bytes, may_zip: true, second: Mutex::default() }
    }

    /// The whole of it.
    pub(crate) fn answer(&self, head: Head<'_>, served: &Counter) -> Response<Body> {
        let mut response = Response::new(Body::whole(self.bytes.clone(), served));
        *response.status_mut() = head.entry.status;
        *response.headers_mut() = self.headers(head);
        response
    }

    /// Its headers at this moment.
    pub(crate) fn headers(&self, head: Head<'_>) -> HeaderMap {
        let mut headers = self.headers.clone();
        let (age, status) = self.now(head);
        headers.insert(header::AGE, age);
        if let Slot::Occupied(mut slot) = headers.entry(CACHE_STATUS)
            && let Some(last) = slot.iter_mut().next_back()
        {
            *last = status;
        }
        headers
    }

    fn now(&self, head: Head<'_>) -> (HeaderValue, HeaderValue) {
        let make = || (head.age(), head.cache_status());
        if head.answered != Answered::Hit {
            return make();
        }
        let second = head.elapsed().as_secs();
        // Nobody waits for the other: making them is cheap enough.
        let Ok(mut kept) = self.second.try_lock() else {
            return make();
        };
        match &*kept {
            Some((when, age, status)) if *when == second => (age.clone(), status.clone()),
            _ => {
                let (age, status) = make();
                *kept = Some((second, age.clone(), status.clone()));
                (age, status)
            }
        }
    }
}

/// What the headers of one answer depend on besides the object.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) tier: &'static str,
    pub(crate) entry: &'a Entry,
    pub(crate) answered: Answered,
    pub(crate) now: Instant,
}

impl Head<'_> {
    fn elapsed(&self) -> Duration {
        // While its push lasts it is as good as new.
        if self.entry.is_leased() {
            return Duration::ZERO;
        }
        self.now.saturating_duration_since(self.entry.received)
    }

    pub(crate) fn age(&self) -> HeaderValue {
        self.entry.age(self.now).as_secs().into()
    }

    /// RFC 9211; `detail` says what its own words cannot. `fwd-status` is left out where it is the answer's own.
    pub(crate) fn cache_status(&self) -> HeaderValue {
        // Rounded down to the second, and below zero when it is stale.
        let (fresh, elapsed) = (self.entry.freshness.fresh, self.elapsed());
        let ttl = match fresh.checked_sub(Duration::from_secs(elapsed.as_secs() + 1)) {
            Some(left) => left.as_secs() as i64,
            None if elapsed < fresh => 0,
            None => -((elapsed - fresh).as_secs() as i64),
        };
        let stored = if self.entry.freshness.keep().is_zero() { "" } else { "; stored" };
        let tier = self.tier;
        let text = match self.answered {
            Answered::Hit => format!("rooftop-{tier}; hit; ttl={ttl}"),
            Answered::Revalidated => format!("rooftop-{tier}; fwd=stale; fwd-status=304{stored}; ttl={ttl}"),
            Answered::Pushed => format!("rooftop-{tier}; hit; ttl={ttl}; detail=pushed"),
            Answered::Stale => format!("rooftop-{tier}; hit; ttl={ttl}; detail=stale"),
            Answered::Miss => format!("rooftop-{tier}; fwd=miss{stored}"),
            Answered::Coalesced => format!("rooftop-{tier}; fwd=miss; collapsed"),
            Answered::Promoted => format!("rooftop-{tier}; fwd=miss{stored}; detail=promoted"),
            other => format!("rooftop-{tier}; fwd=miss; detail={}", other.as_str()),
        };
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("rooftop"))
    }
}

/// A strong entity tag from the content, the same on every node.
fn tag(bytes: &Bytes) -> Option<HeaderValue> {
    // Fixed keys: it names content among versions of one object, it does not protect anything.
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    HeaderValue::try_from(format!("\"{:x}-{:016x}\"", bytes.len(), hasher.finish())).ok()
}
