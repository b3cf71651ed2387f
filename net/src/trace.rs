//! Spans: what a request or a broadcast took at each node, for the few that are sampled. Nodes name the span that a request
//! belongs to by `traceparent` (W3C Trace Context); who is no member of the fleet is not asked for one.
//!
//! It refuses to know where spans go: whoever makes a [`Tracer`] gives it a [`Collect`]. A span that is not sampled is a null
//! pointer.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};

/// W3C Trace Context, section 3.2.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Attributes of a span; more are left out.
const MAX_ATTRIBUTES: usize = 16;

/// Longest text of an attribute, in bytes: viewers choose paths.
const MAX_TEXT_BYTES: usize = 512;

/// Where ended spans go. Called by those who serve: be quick, and never wait.
pub trait Collect: Send + Sync {
    /// A span has ended.
    fn collect(&self, span: Ended);
}

/// Which side of a request a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was asked.
    Server,
    /// It asks.
    Client,
    /// Neither.
    Internal,
}

/// What an attribute says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text, cut off after 512 bytes.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(cut(text).to_owned())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Value {
        Value::Number(number.into())
    }
}

/// Names a span, for its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Of all spans that began with the same request.
    pub trace: u128,
    /// Of this one.
    pub span: u64,
}

impl Context {
    /// What a request belongs to, if that is sampled. Versions beyond 00 may say more (section 4.3).
    pub fn of(headers: &HeaderMap) -> Option<Context> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let (Some(value), None) = (all.next(), all.next()) else { return None };
        let mut fields = value.to_str().ok()?.split('-');
        let mut hex = |digits: usize| {
            let field = fields.next().filter(|field| field.len() == digits)?;
            let is_hex = field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_hex.then(|| u128::from_str_radix(field, 16).ok()).flatten()
        };
        let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let more = fields.next().is_some();
        let fits = version != 0xff && trace != 0 && span != 0 && !(version == 0 && more);
        (fits && flags & 1 == 1).then_some(Context { trace, span: span as u64 })
    }

    fn header(self) -> HeaderValue {
        let text = format!("00-{:032x}-{:016x}-01", self.trace, self.span);
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
    }
}

/// A span that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// What was done.
    pub name: &'static str,
    /// Which side of it this is.
    pub kind: Kind,
    /// Its own name.
    pub context: Context,
    /// The span that it is a part of; 0: it is the first of its trace.
    pub parent: u64,
    /// Whether that is another node's, or this one's behind a socket.
    pub is_parent_remote: bool,
    /// When it began.
    pub began: SystemTime,
    /// When it ended, by the same clock.
    pub ended: SystemTime,
    /// What is said of it, at most 16.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// Begins spans. Cloning is cheap. The default begins none.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    collect: Box<dyn Collect>,
    /// Of all 64-bit numbers, so many are sampled, less one.
    requests: Option<u64>,
    sessions: Option<u64>,
}

impl Tracer {
    /// One that samples these shares (0 to 1) of viewers' requests and of broadcasters' sessions.
    pub fn new(collect: impl Collect + 'static, request_ratio: f64, session_ratio: f64) -> Tracer {
        let most = |ratio: f64| (ratio > 0.0).then_some((ratio.min(1.0) * u64::MAX as f64) as u64);
        let (requests, sessions) = (most(request_ratio), most(session_ratio));
        Tracer(Some(Arc::new(Inner { collect: Box::new(collect), requests, sessions })))
    }

    /// A viewer's request, if it is sampled.
    pub fn request(&self, name: &'static str) -> Span {
        self.root(name, |inner| inner.requests)
    }

    /// A broadcaster's session, if it is sampled.
    pub fn session(&self, name: &'static str) -> Span {
        self.root(name, |inner| inner.sessions)
    }

    /// What another node asks for, if it says that it is sampled. For listeners that let nobody else in.
    pub fn continued(&self, name: &'static str, headers: &HeaderMap) -> Span {
        let Some(inner) = &self.0 else { return Span::default() };
        let Some(Context { trace, span }) = Context::of(headers) else { return Span::default() };
        Span::begin(inner, name, Kind::Server, trace, span, true)
    }

    fn root(&self, name: &'static str, ratio: impl FnOnce(&Inner) -> Option<u64>) -> Span {
        let Some(inner) = &self.0 else { return Span::default() };
        match ratio(inner) {
            Some(most) if random() <= most => {
                let trace = u128::from(random()) << 64 | u128::from(random().max(1));
                Span::begin(inner, name, Kind::Server, trace, 0, false)
            }
            _ => Span::default(),
        }
    }
}

/// A span under way, if it is sampled. It ends when it is dropped. The default is not sampled.
#[derive(Default)]
pub struct Span(Option<Box<Sampled>>);

/// A span that is sampled.
pub struct Sampled {
    tracer: Arc<Inner>,
    clock: Instant,
    span: Ended,
}

impl Span {
    fn begin(
        tracer: &Arc<Inner>,
        name: &'static str,
        kind: Kind,
        trace: u128,
        parent: u64,
        is_parent_remote: bool,
    ) -> Span {
        let now = SystemTime::now();
        let span = Ended {
            name,
            kind,
            context: Context { trace, span: random().max(1) },
            parent,
            is_parent_remote,
            began: now,
            ended: now,
            attributes: Vec::new(),
            failure: None,
        };
        Span(Some(Box::new(Sampled { tracer: tracer.clone(), clock: Instant::now(), span })))
    }

    /// A part of it, which may outlive it.
    pub fn child(&self, name: &'static str, kind: Kind) -> Span {
        let Some(sampled) = &self.0 else { return Span::default() };
        let Context { trace, span } = sampled.span.context;
        Span::begin(&sampled.tracer, name, kind, trace, span, false)
    }

    /// To say something of it, if it is sampled.
    pub fn sampled(&mut self) -> Option<&mut Sampled> {
        self.0.as_deref_mut()
    }

    /// Tells who is asked what it belongs to.
    pub fn propagate(&self, headers: &mut HeaderMap) {
        if let Some(sampled) = &self.0 {
            headers.insert(TRACEPARENT, sampled.span.context.header());
        }
    }
}

impl Sampled {
    /// Says something of it.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) -> &mut Sampled {
        if self.span.attributes.len() < MAX_ATTRIBUTES {
            self.span.attributes.push((key, value.into()));
        }
        self
    }

    /// It has failed.
    pub fn fail(&mut self, why: &str) {
        self.span.failure = Some(cut(why).to_owned());
    }
}

impl Drop for Sampled {
    fn drop(&mut self) {
        let Context { trace, span } = self.span.context;
        let ended = Ended {
            // Clocks may be set meanwhile.
            ended: self.span.began + self.clock.elapsed(),
            attributes: std::mem::take(&mut self.span.attributes),
            failure: self.span.failure.take(),
            context: Context { trace, span },
            ..self.span
        };
        self.tracer.collect.collect(ended);
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Random enough to sample and to name by: SplitMix64, seeded for each thread.
fn random() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
    }
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let next = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let next = (next ^ (next >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        next ^ (next >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default, Clone)]
    struct Kept(Arc<Mutex<Vec<Ended>>>);

    impl Collect for Kept {
        fn collect(&self, span: Ended) {
            self.0.lock().unwrap().push(span);
        }
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| _ = headers.append(TRACEPARENT, value.parse().unwrap()));
        headers
    }

    #[test]
    fn who_asks_says_what_it_belongs_to() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let good = format!("00-{trace}-{span}-01");
        let found = Context { trace: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, span: 0x00f0_67aa_0ba9_02b7 };
        assert_eq!(Context::of(&headers(&[&good])), Some(found));
        assert_eq!(found.header(), good);
        assert_eq!(Context::of(&headers(&[&format!("cc-{trace}-{span}-03-what-else")])), Some(found));
        for bad in [
            "",
            "00",
            "x",
            &format!("00-{trace}-{span}-00"),
            &format!("00-{trace}-{span}-01-x"),
            &format!("ff-{trace}-{span}-01"),
            &format!("00-{}-{span}-01", "0".repeat(32)),
            &format!("00-{trace}-{}-01", "0".repeat(16)),
            &format!("00-{}-{span}-01", trace.to_uppercase()),
            &format!("00-+{}-{span}-01", &trace[1..]),
            &format!("00-{trace}0-{span}-01"),
        ] {
            assert_eq!(Context::of(&headers(&[bad])), None, "{bad}");
        }
        assert_eq!(Context::of(&headers(&[&good, &good])), None, "which of them?");
        assert_eq!(Context::of(&headers(&[])), None);
    }

    #[test]
    fn a_request_is_one_trace_through_all_nodes() {
        let kept = Kept::default();
        let tracer = Tracer::new(kept.clone(), 1.0, 0.0);
        assert!(tracer.session("broadcast").0.is_none(), "none of those");
        let mut request = tracer.request("request");
        request.sampled().unwrap().set("a", "b").set("status", 200).fail("no");
        let fetch = request.child("fetch", Kind::Client);
        let mut sent = HeaderMap::new();
        fetch.propagate(&mut sent);
        drop(tracer.continued("request", &sent));
        drop(request);
        drop(fetch);
        let kept = kept.0.lock().unwrap();
        let [origin, edge, fetch] = &kept[..] else { panic!("{kept:#?}") };
        assert!(kept.iter().all(|span| span.context.trace == edge.context.trace && span.ended >= span.began));
        assert_eq!((edge.parent, edge.kind, edge.is_parent_remote), (0, Kind::Server, false));
        assert_eq!(
            (fetch.parent, fetch.kind, fetch.is_parent_remote),
            (edge.context.span, Kind::Client, false)
        );
        assert_eq!(
            (origin.parent, origin.kind, origin.is_parent_remote),
            (fetch.context.span, Kind::Server, true)
        );
        let said = [("a", Value::Text("b".into())), ("status", Value::Number(200))];
        assert_eq!((&edge.attributes[..], edge.failure.as_deref()), (&said[..], Some("no")));
    }

    #[test]
    fn as_many_are_sampled_as_are_wanted() {
        let kept = Kept::default();
        let tracer = Tracer::new(kept.clone(), 0.25, 1.0);
        let sampled = (0..10_000).filter(|_| tracer.request("request").0.is_some()).count();
        assert!((2200..=2800).contains(&sampled), "{sampled}");
        assert!((0..100).all(|_| tracer.session("broadcast").0.is_some()));
        let off = Tracer::default();
        let asked = headers(&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]);
        for mut span in [off.request("a"), off.session("a"), off.continued("a", &asked), Span::default()] {
            assert!(span.sampled().is_none() && span.child("b", Kind::Internal).0.is_none());
        }
        assert_eq!(std::mem::size_of::<Span>(), std::mem::size_of::<usize>());
    }

    #[test]
    fn what_is_said_has_bounds() {
        let kept = Kept::default();
        let tracer = Tracer::new(kept.clone(), 1.0, 1.0);
        let mut span = tracer.request("request");
        for _ in 0..100 {
            span.sampled().unwrap().set("a", &*"ä".repeat(1000));
        }
        drop(span);
        let kept = kept.0.lock().unwrap();
        assert_eq!(kept[0].attributes.len(), MAX_ATTRIBUTES);
        assert_eq!(kept[0].attributes[0].1, Value::Text("ä".repeat(256)));
    }
}
