//! The shell around [`super::session`]: asks for a push, puts what comes into the store, and asks again when it is lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cluster::Node;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use media::Object;
use media::object::Writer;
use media::push::{Head, Hub, MEDIA_TYPE, PATH_PREFIX};
use net::trace::Span;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info};

use super::session::{Backoff, Event, Fault, MAX_OPEN, Session};
use super::{Lease, Promise, Status, Subscription};
use crate::budget::Growing;
use crate::cache::{Content, Entry, Kind, Permit, Verdict};
use crate::flight::{self, Job, Orphan};
use crate::form::Forms;
use crate::sent::Mark;
use crate::tier::Tier;
use crate::{fetch, freshness, upstream};

/// For an upstream to say whether it pushes a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// First wait before a push is asked for again; see [`Backoff`].
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// How often it is looked whether anyone still needs the push.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What each chunk of a growing body costs besides its bytes; as for fetches.
const CHUNK_BYTES: u64 = 64;

/// Why a push, or the attempt to have one, is over.
#[derive(Debug)]
enum End {
    /// Nobody asked for the stream for a while, or delivery is by pull now.
    Unused,
    /// This process ends, or another stream needs the room.
    Stopped,
    /// No upstream pushes the stream.
    Refused(String),
    /// The stream is over.
    Gone,
    /// The connection broke, or the publisher ended it.
    Broken(String),
    /// It broke the rules, or was silent.
    Fault(Fault),
    /// Memory for objects on their way is used up.
    Overloaded,
}

impl End {
    fn reason(&self) -> &'static str {
        match self {
            End::Unused => "unused",
            End::Stopped => "stopped",
            End::Refused(_) => "refused",
            End::Gone => "gone",
            End::Broken(_) => "broken",
            End::Fault(Fault::Silent(_)) => "silent",
            End::Fault(_) => "bad",
            End::Overloaded => "overloaded",
        }
    }
}

/// Has a stream pushed here for as long as it is needed.
pub(super) async fn run(tier: Arc<Tier>, subscription: Arc<Subscription>) {
    let mut backoff = Backoff::new(FIRST_BACKOFF, tier.pushes.config.backoff_max);
    // One for all attempts: they may be shorter than it takes to look.
    let mut unused = std::pin::pin!(unused(&tier, &subscription));
    loop {
        let began = Instant::now();
        let end = tokio::select! {
            biased;
            () = tier.stop.cancelled() => End::Stopped,
            () = subscription.stop.cancelled() => End::Stopped,
            () = &mut unused => End::Unused,
            end = attempt(&tier, &subscription) => end,
        };
        tier.pushes.metrics.ended(end.reason());
        let prefix = &*subscription.prefix;
        match &end {
            End::Broken(why) => info!(tier = tier.name, prefix, why, "push lost"),
            End::Fault(fault) => info!(tier = tier.name, prefix, %fault, "push lost"),
            End::Refused(why) => debug!(tier = tier.name, prefix, why, "not pushed"),
            end => debug!(tier = tier.name, prefix, reason = end.reason(), "push ended"),
        }
        if matches!(end, End::Unused | End::Stopped) {
            break;
        }
        subscription.status.send_replace(Status::Off);
        let wait = backoff.after(began.elapsed(), tier.random());
        tokio::select! {
            biased;
            () = tier.stop.cancelled() => break,
            () = subscription.stop.cancelled() => break,
            () = &mut unused => break,
            () = tokio::time::sleep(wait) => {}
        }
        subscription.status.send_replace(Status::Asking);
    }
    tier.pushes.forget(&subscription);
    // Those who wait to be pushed it hear no.
    subscription.status.send_replace(Status::Off);
}

/// Returns when nobody has needed the stream for a while.
async fn unused(tier: &Tier, subscription: &Subscription) {
    let pushes = &tier.pushes;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now_ms = pushes.now_ms(Instant::now());
        if subscription.is_passed_on() {
            subscription.used_ms.store(now_ms, Ordering::Relaxed);
        }
        let unused_ms = now_ms.saturating_sub(subscription.used_ms.load(Ordering::Relaxed));
        if !super::wanted(tier, &subscription.prefix) || unused_ms >= pushes.config.idle.as_millis() as u64 {
            return;
        }
    }
}

/// One push, from the request to its end. If the future is dropped, it counts as lost.
async fn attempt(tier: &Arc<Tier>, subscription: &Arc<Subscription>) -> End {
    let (node, response) = match ask(tier, subscription).await {
        Ok(answered) => answered,
        Err(why) => return End::Refused(why),
    };
    debug!(tier = tier.name, prefix = %subscription.prefix, node = %node.name, "push begins");
    let version = response.version();
    let mut body = response.into_body();
    let prefix = format!("{}/", subscription.prefix);
    let mut session = Session::new(Instant::now(), prefix, tier.pushes.config.silence);
    let mut receiver = Receiver::new(tier.clone(), subscription.clone(), version);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let frame = tokio::select! {
            biased;
            _ = looks.tick() => {
                receiver.give_up(Instant::now());
                continue;
            }
            frame = body.frame() => frame,
            () = tokio::time::sleep_until(session.poll_timeout().into()) => {
                match session.handle_timeout(Instant::now()) {
                    Ok(quiet) => {
                        if quiet {
                            tier.push_quiet(&subscription.prefix);
                        }
                        continue;
                    }
                    Err(fault) => {
                        // Before those who wait for the push are told: they ask another one.
                        tier.push_silent(&node);
                        return End::Fault(fault);
                    }
                }
            }
        };
        let mut bytes = match frame {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => return End::Broken(net::chain(&error)),
            None => return End::Broken("its publisher ended it".into()),
        };
        loop {
            match session.next(Instant::now(), &mut bytes) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    if let Err(end) = receiver.handle(event) {
                        return end;
                    }
                }
                Err(fault) => return End::Fault(fault),
            }
        }
    }
}

/// Asks the upstreams in turn; the words say why none of them pushes.
async fn ask(tier: &Tier, subscription: &Subscription) -> Result<(Arc<Node>, Response<Incoming>), String> {
    let hash_key = upstream::hash_key(&subscription.prefix, tier.config.upstream.key_segments);
    let (candidates, first) = tier.candidates(&subscription.prefix, hash_key);
    let target: Arc<str> = format!("{PATH_PREFIX}{}", subscription.prefix).into();
    let mut why = String::from("there is no upstream");
    for node in candidates {
        let asked = tier.client.clone().push(node.clone(), target.clone(), subscription.cdn_loop.clone());
        why = match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(response)) => {
                let content_type = response.headers().get(header::CONTENT_TYPE);
                match response.status() {
                    StatusCode::OK if content_type.is_some_and(|value| value == MEDIA_TYPE) => {
                        let is_first = first.as_ref() == Some(&node.name);
                        tier.upstreams().handle_answer(Instant::now(), hash_key, &node.name, is_first);
                        return Ok((node, response));
                    }
                    StatusCode::OK => return Err(format!("{}: answers with something else", node.name)),
                    // It knows the stream, or knows of no pushes.
                    status @ (StatusCode::NOT_FOUND
                    | StatusCode::METHOD_NOT_ALLOWED
                    | StatusCode::NOT_IMPLEMENTED) => return Err(format!("{}: status {status}", node.name)),
                    status => format!("{}: status {status}", node.name),
                }
            }
            Ok(Err(failed)) => format!("{}: {}", node.name, failed.why),
            Err(_) => format!("{}: no answer within {ANSWER_TIMEOUT:?}", node.name),
        };
    }
    Err(why)
}

/// Puts what comes into the store. Dropped, it leaves everything to pull.
struct Receiver {
    tier: Arc<Tier>,
    subscription: Arc<Subscription>,
    version: Version,
    lease: Lease,
    hub: Hub,
    /// `None`: not wanted any more, its bytes are let pass.
    open: HashMap<u32, Option<Coming>>,
    /// Segments that ended since a part's time was told, and how long they are; [`MAX_OPEN`] at most.
    ended: Vec<(Arc<Mark>, u64)>,
}

/// An object on its way.
struct Coming {
    writer: Writer,
    announced: Option<u64>,
    len: u64,
    /// Where its parts end: of a segment, which has no length at first.
    mark: Option<Arc<Mark>>,
    charge: Growing,
    /// What its readers wait for the next byte at most, and until when.
    patience: Duration,
    silent_until: Instant,
    /// The names that this push has; others are being fetched and stay with that.
    names: Vec<(Permit, Arc<Entry>)>,
}

impl Receiver {
    fn new(tier: Arc<Tier>, subscription: Arc<Subscription>, version: Version) -> Receiver {
        let (lease, hub, open, ended) = Default::default();
        let receiver = Receiver { tier, subscription, version, lease, hub, open, ended };
        receiver.tier.pushes.metrics.pushes.inc();
        receiver.subscription.status.send_replace(Status::On(receiver.hub.clone()));
        receiver
    }

    fn handle(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Begin { id, head } => {
                if self.tier.metrics.inflight_bytes.get()
                    > self.tier.config.inflight_size.as_u64() as i64 / 4 * 3
                {
                    return Err(End::Overloaded);
                }
                let coming = self.begin(head);
                self.open.insert(id, coming);
            }
            Event::Data { id, bytes } => {
                if let Some(coming) = self.open.get_mut(&id) {
                    self.tier.pushes.metrics.bytes.inc_by(bytes.len() as u64);
                    let config = &self.tier.config;
                    if let Some(into) = coming {
                        if !self.tier.store.grow(&into.charge, bytes.len() as u64 + CHUNK_BYTES) {
                            return Err(End::Overloaded);
                        }
                        // Only what is there: a fetch may have to go on behind it.
                        into.len += bytes.len() as u64;
                        into.silent_until = Instant::now() + into.patience;
                        // Too large to be had by a fetch as well, or not what was announced: readers see it break.
                        let most = into.announced.unwrap_or(u64::MAX).min(config.max_object.as_u64());
                        if into.len > most {
                            outdate(&self.tier, &into.names);
                            *coming = None;
                        } else {
                            into.writer.push(bytes);
                        }
                    }
                }
            }
            Event::End { id } => {
                if let Some(coming) = self.open.remove(&id).flatten() {
                    self.end(coming);
                }
            }
            Event::Fail { id } => {
                if let Some(coming) = self.open.remove(&id).flatten() {
                    self.leave_to_pull(coming);
                }
            }
            Event::Promise { slot, keys, added, withdrawn } => {
                self.promise(added, &withdrawn);
                self.pass_on(|hub| hub.promise(slot, keys));
            }
            Event::Purge { prefix } => {
                let count = self.tier.store.purge(&prefix, None);
                debug!(tier = self.tier.name, prefix, count, "purged by push");
                self.pass_on(|hub| hub.purge(&prefix));
            }
            Event::Time { unix_us } => {
                self.subscription.came(&self.tier.pushes.metrics, unix_us, SystemTime::now());
                self.mark(unix_us);
                if self.tier.pushes.serves {
                    self.hub.time(unix_us);
                }
            }
            Event::Gone => {
                self.hub.gone();
                return Err(End::Gone);
            }
        }
        Ok(())
    }

    fn begin(&mut self, head: Head) -> Option<Coming> {
        let tier = self.tier.clone();
        tier.pushes.metrics.objects.inc();
        if head.length.is_some_and(|length| length > tier.config.max_object.as_u64()) {
            self.refuse(&head);
            return None;
        }
        let (announced, charge) = (head.length, tier.store.growing());
        let mark = announced.is_none().then(|| Arc::new(Mark::new(self.subscription.sent.clone())));
        let (writer, object) = Object::growing_with(charge.charge().clone());
        let (now, wall) = (Instant::now(), SystemTime::now());
        let headers = fetch::for_viewers(self.version, &fields(&head), tier.name, wall);
        // One gzip form for all its names.
        let forms = Forms::default();
        let mut names = Vec::with_capacity(head.names.len());
        let mut patience = Duration::ZERO;
        for name in &head.names {
            // Its name says how long it may be used.
            let mut headers = headers.clone();
            if let Ok(control) = HeaderValue::from_str(&name.control) {
                headers.insert(header::CACHE_CONTROL, control);
            }
            let class = tier.class(&name.key);
            patience = patience.max(class.give_up);
            let entry = Arc::new(Entry {
                status: StatusCode::OK,
                body: Content::Growing { object: object.clone(), length: head.length, mark: mark.clone() },
                received: now,
                freshness: freshness::freshness(&class, StatusCode::OK, &headers, wall),
                headers,
                failed: false,
                grace_until: None,
                charge: None,
                counts: tier.metrics.class(&class.name),
                forms: forms.clone(),
                lease: name.live.then(|| self.lease.clone()),
            });
            let permit = tier.store.seize(&name.key).or_else(|| self.succeed(&name.key));
            if let Some(permit) = permit
                && permit.tell(Verdict { entry: entry.clone(), kind: Kind::Pushed })
            {
                names.push((permit, entry));
            } else if name.live {
                tier.store.forget(&name.key);
            }
            // Only now: who asks in between finds it promised or finds it there.
            if self.subscription.promises().remove(&name.key).is_some_and(|promise| promise.awaited) {
                tier.pushes.metrics.kept.inc();
            }
        }
        self.publish(head, &headers, object);
        let silent_until = now + patience;
        Some(Coming { writer, announced, len: 0, mark, charge, patience, silent_until, names })
    }

    /// What is here of segments is up to the end of parts, of which the newest came in at this time.
    fn mark(&mut self, unix_us: u64) {
        let growing = self.open.values().flatten();
        let growing = growing.filter_map(|coming| Some((coming.mark.clone()?, coming.len)));
        for (mark, len) in growing.chain(self.ended.drain(..)) {
            mark.set(len, unix_us);
        }
    }

    /// Breaks bodies that have been silent for too long, as a fetch would: the push itself may well be alive.
    fn give_up(&mut self, now: Instant) {
        for coming in self.open.values_mut() {
            if let Some(silent) = coming.take_if(|coming| coming.silent_until <= now) {
                debug!(tier = self.tier.name, prefix = %self.subscription.prefix, silent.len, "pushed body fell silent");
                outdate(&self.tier, &silent.names);
            }
        }
    }

    /// Takes a name over from an older version of it that this push has not ended yet: who reads that one reads on.
    fn succeed(&mut self, key: &str) -> Option<Permit> {
        let mut found = false;
        for older in self.open.values_mut().flatten() {
            let before = older.names.len();
            older.names.retain(|(permit, _)| *permit.key != *key);
            found |= older.names.len() < before;
        }
        if found { self.tier.store.seize(key) } else { None }
    }

    /// Leaves an object to pull before any of it is here.
    fn refuse(&self, head: &Head) {
        for name in &head.names {
            if name.live {
                self.tier.store.forget(&name.key);
            }
            let promise = self.subscription.promises().remove(&name.key);
            self.lost(promise.into_iter().collect());
        }
    }

    fn publish(&self, head: Head, headers: &HeaderMap, object: Object) {
        if self.tier.pushes.serves {
            let fields = headers.iter().filter(|(name, _)| *name != header::CACHE_CONTROL);
            let fields = fields
                .map(|(name, value)| (name.as_str().into(), Bytes::copy_from_slice(value.as_bytes())))
                .collect();
            self.pass_on(|hub| hub.publish(Head { fields, ..head }, object));
        }
    }

    fn pass_on<E: std::error::Error>(&self, say: impl FnOnce(&Hub) -> Result<(), E>) {
        if self.tier.pushes.serves
            && let Err(error) = say(&self.hub)
        {
            debug!(tier = self.tier.name, prefix = %self.subscription.prefix, %error, "not pushed on");
        }
    }

    fn end(&mut self, coming: Coming) {
        let Coming { writer, announced, len, mark, names, .. } = coming;
        if self.ended.len() < MAX_OPEN {
            self.ended.extend(mark.map(|mark| (mark, len)));
        }
        if announced.is_some_and(|announced| announced != len) {
            debug!(tier = self.tier.name, prefix = %self.subscription.prefix, len, ?announced, "pushed body is cut short");
            outdate(&self.tier, &names);
            return;
        }
        writer.finish();
        for (permit, entry) in names {
            if entry.lease.is_some() || !entry.freshness.keep().is_zero() {
                self.tier.store.keep(&permit, Entry::clone(&entry));
            }
        }
    }

    fn promise(&self, added: Vec<Box<str>>, withdrawn: &[Box<str>]) {
        let mut promises = self.subscription.promises();
        let lost: Vec<_> = withdrawn.iter().filter_map(|key| promises.remove(key)).collect();
        for key in added {
            promises.entry(key).or_default();
        }
        drop(promises);
        self.lost(lost);
    }

    /// Someone may be reading it.
    fn leave_to_pull(&self, coming: Coming) {
        let Coming { writer, len, charge, names, .. } = coming;
        outdate(&self.tier, &names);
        // Its other names are asked for anew.
        if let Some((permit, entry)) = names.into_iter().next() {
            let class = self.tier.class(&permit.key);
            let counts = entry.counts.clone();
            let cdn_loop = self.subscription.cdn_loop.clone();
            let span = Span::default();
            let job = Job { permit, class, counts, stale: None, cdn_loop, promised: None, span };
            let orphan = Orphan { entry, writer, len, charge };
            self.tier.tasks.spawn(flight::adopt(self.tier.clone(), job, orphan));
        }
    }

    fn lost(&self, promises: Vec<Promise>) {
        for promise in promises {
            if promise.awaited {
                self.tier.pushes.metrics.missed.inc();
            }
            promise.lost.cancel();
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.lease.end();
        self.hub.end();
        self.tier.pushes.metrics.pushes.dec();
        let promises = std::mem::take(&mut *self.subscription.promises());
        self.lost(promises.into_values().collect());
        if self.tier.stop.is_cancelled() {
            return;
        }
        for coming in std::mem::take(&mut self.open).into_values().flatten() {
            self.leave_to_pull(coming);
        }
    }
}

/// What was pushed before under these names is current no more, though what was to take its place did not come. Without
/// the push it is as old as it is anyway, and may be served stale.
fn outdate(tier: &Tier, names: &[(Permit, Arc<Entry>)]) {
    for (permit, _) in names.iter().filter(|(_, entry)| entry.is_leased()) {
        tier.store.forget(&permit.key);
    }
}

/// What is not valid in a header is left out.
fn fields(head: &Head) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(head.fields.len() + 4);
    for (name, value) in &head.fields {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_maybe_shared(value.clone()))
        {
            map.append(name, value);
        }
    }
    map
}
