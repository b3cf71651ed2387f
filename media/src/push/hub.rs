//! What a publisher has of one stream, and the subscribers that are told of it.
//!
//! A subscriber begins with a snapshot: what is promised and the newest objects of every slot, as far as they have come.
//! Then it gets what is published. It reads bodies that grow at its own pace, straight from the [`Object`]s that the
//! publisher has anyway; one that falls too far behind is ended, and holds nothing from then on.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};

use super::frame::{self, Fault, Frame, Head, MAX_DATA_BYTES};
use crate::Object;
use crate::object::Reader;

/// Subscribers of one stream: the nodes of the tier below.
pub const MAX_SUBSCRIBERS: usize = 1024;

/// Slots of one stream: each rendition has three.
pub const MAX_SLOTS: usize = 256;

/// Things published that a subscriber has not taken yet: some ten seconds of a stream with five renditions.
pub const MAX_WAITING: usize = 512;

/// Bytes that a subscriber has not taken yet: six seconds at 80 Mbit/s. They are shared with the publisher for as long as
/// it has them itself.
pub const MAX_BEHIND_BYTES: u64 = 64 << 20;

/// Pieces up to here are copied together, longer ones are handed on as they are, in bytes.
const COPY_BYTES: usize = 2 << 10;

/// Enough gathered to be sent, in bytes.
const GATHER_BYTES: usize = 16 << 10;

/// One stream's publisher. Cloning is cheap. Dropping the last handle ends nothing: see [`Hub::end`].
#[derive(Clone, Default)]
pub struct Hub(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    slots: BTreeMap<u32, Slot>,
    subscribers: BTreeMap<u64, Queue>,
    next_object: u32,
    next_subscriber: u64,
    over: bool,
    lagged: u64,
    /// Who waits for the last subscriber to leave.
    vacant: Option<Waker>,
}

#[derive(Default)]
struct Slot {
    /// Oldest first.
    items: VecDeque<Item>,
    /// The frame that says so; empty if nothing is promised.
    promise: Bytes,
}

#[derive(Clone)]
struct Item {
    id: u32,
    keys: Arc<[Box<str>]>,
    begin: Bytes,
    body: Object,
}

/// What one subscriber is still to be told.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Event>,
    open: VecDeque<Open>,
    /// Nothing comes any more once these are told, but these last words.
    over: bool,
    last: Bytes,
    /// Told behind what is told next, once all that grows is told as far as it has come.
    time: Option<u64>,
    waker: Option<Waker>,
}

enum Event {
    Item(Item),
    /// One or more frames.
    Said(Bytes),
}

/// An object that the subscriber has heard of.
struct Open {
    id: u32,
    body: Object,
    reader: Reader,
    /// Read, but not told yet.
    rest: Bytes,
    told: u64,
}

/// One subscription: what is to be sent, in order. Dropping it ends it.
pub struct Subscriber {
    hub: Hub,
    id: u64,
    ready: VecDeque<Bytes>,
}

impl Hub {
    /// Nothing published, nobody there.
    pub fn new() -> Hub {
        Hub::default()
    }

    /// Tells everybody of an object; the newest `head.keep` of its slot are kept for those who come later. An error says
    /// why it cannot be told at all: then they will have to ask for it.
    pub fn publish(&self, head: Head, body: Object) -> Result<(), Fault> {
        self.change(|state| {
            state.next_object = state.next_object.wrapping_add(1);
            let (id, slot, keep) = (state.next_object, head.slot, usize::from(head.keep.max(1)));
            let keys = head.names.iter().map(|name| name.key.clone()).collect();
            let mut begin = BytesMut::new();
            Frame::Begin { id, head }.encode(&mut begin)?;
            let item = Item { id, keys, begin: begin.freeze(), body };
            state.tell(|| Event::Item(item.clone()));
            if state.slots.len() < MAX_SLOTS || state.slots.contains_key(&slot) {
                let slot = state.slots.entry(slot).or_default();
                slot.items.push_back(item);
                while slot.items.len() > keep {
                    slot.items.pop_front();
                }
            }
            Ok(())
        })
    }

    /// Says which names will be published soon, in place of what this slot promised before.
    pub fn promise(&self, slot: u32, keys: Vec<Box<str>>) -> Result<(), Fault> {
        let none = keys.is_empty();
        let mut said = BytesMut::new();
        Frame::Promise { slot, keys }.encode(&mut said)?;
        let said = said.freeze();
        self.change(|state| {
            state.tell(|| Event::Said(said.clone()));
            if state.slots.len() < MAX_SLOTS || state.slots.contains_key(&slot) {
                state.slots.entry(slot).or_default().promise = if none { Bytes::new() } else { said };
            }
        });
        Ok(())
    }

    /// With what is told next, the newest part begins with a frame that came in at its POP at this time, microseconds since
    /// 1970. By itself it wakes nobody.
    pub fn time(&self, unix_us: u64) {
        for queue in self.lock().subscribers.values_mut() {
            queue.time = Some(unix_us);
        }
    }

    /// Has everybody forget all names that begin with `prefix`; who comes later is not told of them.
    pub fn purge(&self, prefix: &str) -> Result<(), Fault> {
        let mut said = BytesMut::new();
        Frame::Purge { prefix: prefix.into() }.encode(&mut said)?;
        let said = said.freeze();
        self.change(|state| {
            state.tell(|| Event::Said(said.clone()));
            for slot in state.slots.values_mut() {
                slot.items.retain(|item| !item.keys.iter().all(|key| key.starts_with(prefix)));
            }
        });
        Ok(())
    }

    /// The stream is over: what was published still reaches the subscribers, then they are told so and end.
    pub fn gone(&self) {
        let mut said = BytesMut::new();
        Frame::Gone.encode(&mut said).expect("it has no payload");
        let said = said.freeze();
        self.change(|state| {
            state.over = true;
            state.slots.clear();
            for queue in state.subscribers.values_mut().filter(|queue| !queue.over) {
                queue.over = true;
                queue.last = said.clone();
            }
        });
    }

    /// The publisher has lost its own source: subscriptions end at once, and it keeps nothing. After [`Hub::gone`] there is
    /// nothing left to be lost.
    pub fn end(&self) {
        self.change(|state| {
            if state.over {
                return;
            }
            state.over = true;
            state.slots.clear();
            for queue in state.subscribers.values_mut() {
                queue.cut();
            }
        });
    }

    /// A new subscription; `None` if there are [`MAX_SUBSCRIBERS`], or after the end.
    pub fn subscribe(&self) -> Option<Subscriber> {
        let mut state = self.lock();
        if state.over || state.subscribers.len() >= MAX_SUBSCRIBERS {
            return None;
        }
        let mut queue = Queue::default();
        let promises = state.slots.values().filter(|slot| !slot.promise.is_empty());
        queue.waiting.extend(promises.map(|slot| Event::Said(slot.promise.clone())));
        let items = state.slots.values().flat_map(|slot| &slot.items);
        queue.waiting.extend(items.map(|item| Event::Item(item.clone())));
        let id = state.next_subscriber;
        state.next_subscriber += 1;
        state.subscribers.insert(id, queue);
        Some(Subscriber { hub: self.clone(), id, ready: VecDeque::new() })
    }

    /// Whether both are handles on one hub.
    pub fn is(&self, other: &Hub) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// How many there are.
    pub fn subscribers(&self) -> usize {
        self.lock().subscribers.len()
    }

    /// Subscriptions that were ended for being too far behind, so far.
    pub fn lagged(&self) -> u64 {
        self.lock().lagged
    }

    /// Waits until nobody is subscribed. For one task at a time; dropping the future costs nothing.
    pub async fn vacant(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if state.subscribers.is_empty() {
                return Poll::Ready(());
            }
            state.vacant = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What runs under the lock fails, if at all, before it changes anything.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, ends those who are too far behind, and wakes the others.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, woken) = {
            let mut state = self.lock();
            let result = change(&mut state);
            let (mut woken, mut lagged) = (Vec::new(), 0);
            for queue in state.subscribers.values_mut() {
                if queue.is_behind() {
                    queue.cut();
                    lagged += 1;
                }
                woken.extend(queue.waker.take());
            }
            state.lagged += lagged;
            (result, woken)
        };
        for waker in woken {
            waker.wake();
        }
        result
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        write!(f, "Hub({} slots, {} subscribers)", state.slots.len(), state.subscribers.len())
    }
}

impl State {
    fn tell(&mut self, event: impl Fn() -> Event) {
        for queue in self.subscribers.values_mut().filter(|queue| !queue.over) {
            queue.waiting.push_back(event());
        }
    }
}

impl Queue {
    fn is_behind(&self) -> bool {
        let open = self.open.iter().map(|open| open.body.progress().len.saturating_sub(open.told));
        let waiting = self.waiting.iter().map(|event| match event {
            Event::Item(item) => item.body.progress().len,
            Event::Said(said) => said.len() as u64,
        });
        // The snapshot of a stream with many renditions is no sign of slowness.
        self.waiting.len() > MAX_WAITING + MAX_SLOTS
            || (!self.over && open.chain(waiting).sum::<u64>() > MAX_BEHIND_BYTES)
    }

    fn cut(&mut self) {
        self.over = true;
        self.last = Bytes::new();
        self.waiting.clear();
        self.open.clear();
    }

    /// Moves what can be told now to `ready`; whether nothing will ever follow.
    fn fill(&mut self, cx: &mut Context<'_>, ready: &mut VecDeque<Bytes>) -> bool {
        let mut out = BytesMut::new();
        while out.len() < GATHER_BYTES
            && let Some(event) = self.waiting.pop_front()
        {
            match event {
                Event::Said(said) => out.extend_from_slice(&said),
                Event::Item(Item { id, begin, body, .. }) => {
                    out.extend_from_slice(&begin);
                    let reader = body.read(0..u64::MAX);
                    self.open.push_back(Open { id, body, reader, rest: Bytes::new(), told: 0 });
                }
            }
        }
        // A frame of each in turn: a long body does not hold up the others.
        self.open.retain_mut(|open| open.advance(cx, &mut out, ready));
        let telling = !out.is_empty() || !ready.is_empty();
        if telling
            && self.waiting.is_empty()
            && self.open.iter().all(|open| open.rest.is_empty())
            && let Some(unix_us) = self.time.take()
        {
            Frame::Time { unix_us }.encode(&mut out).expect("its payload has eight bytes");
        }
        if !out.is_empty() {
            ready.push_back(out.freeze());
        }
        if !self.over || !self.waiting.is_empty() || !self.open.is_empty() {
            return false;
        }
        ready.extend(Some(std::mem::take(&mut self.last)).filter(|last| !last.is_empty()));
        true
    }
}

impl Open {
    /// Tells up to a frame of the body; false at its end.
    fn advance(&mut self, cx: &mut Context<'_>, out: &mut BytesMut, ready: &mut VecDeque<Bytes>) -> bool {
        let mut goes_on = self.read(cx, out);
        if !self.rest.is_empty() {
            let piece = self.rest.split_to(self.rest.len().min(MAX_DATA_BYTES));
            self.told += piece.len() as u64;
            frame::data_header(out, self.id, piece.len());
            if piece.len() <= COPY_BYTES {
                out.extend_from_slice(&piece);
            } else {
                ready.push_back(out.split().freeze());
                ready.push_back(piece);
            }
            // That this was all is told with it, not a turn later.
            goes_on = self.read(cx, out);
        }
        goes_on
    }

    /// Has something to tell, if there is anything; false if there was the end, which is then told.
    fn read(&mut self, cx: &mut Context<'_>, out: &mut BytesMut) -> bool {
        if !self.rest.is_empty() {
            return true;
        }
        let end = match self.reader.poll_next(cx) {
            Poll::Pending => return true,
            Poll::Ready(Some(Ok(bytes))) => {
                self.rest = bytes;
                return true;
            }
            Poll::Ready(None) => Frame::End { id: self.id },
            Poll::Ready(Some(Err(_))) => Frame::Fail { id: self.id },
        };
        end.encode(out).expect("these frames have no payload");
        false
    }
}

impl Subscriber {
    /// The next bytes to send; `None` at the end of the subscription.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while self.ready.is_empty() {
            let mut state = self.hub.lock();
            let Some(queue) = state.subscribers.get_mut(&self.id) else {
                return Poll::Ready(None);
            };
            if queue.fill(cx, &mut self.ready) && self.ready.is_empty() {
                return Poll::Ready(None);
            }
            if self.ready.is_empty() {
                queue.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(self.ready.pop_front())
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        let queue = state.subscribers.remove(&self.id);
        let vacant = if state.subscribers.is_empty() { state.vacant.take() } else { None };
        drop(state);
        // Its objects may be the last of their kind: let them go outside the lock.
        drop(queue);
        if let Some(waker) = vacant {
            waker.wake();
        }
    }
}

impl std::fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subscriber({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::frame::tests::{decode, head};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// What a subscriber is told now, as short words, and whether it has ended.
    fn told(subscriber: &mut Subscriber, count: &Arc<Count>) -> (String, bool) {
        let waker = Waker::from(count.clone());
        let (mut wire, mut cx) = (Vec::new(), Context::from_waker(&waker));
        let ended = loop {
            match subscriber.poll_next(&mut cx) {
                Poll::Ready(Some(bytes)) => wire.extend_from_slice(&bytes),
                Poll::Ready(None) => break true,
                Poll::Pending => break false,
            }
        };
        if wire.is_empty() {
            return (String::new(), ended);
        }
        let words = decode(&wire, &[wire.len()]).unwrap().into_iter().map(|frame| match frame {
            Frame::Begin { id, head } => format!("{id}={}", head.names[0].key),
            Frame::Data { id, bytes } if bytes.len() < 20 => {
                format!("{id}:{}", String::from_utf8_lossy(&bytes))
            }
            Frame::Data { id, bytes } => format!("{id}:{}B", bytes.len()),
            Frame::End { id } => format!("{id}."),
            Frame::Fail { id } => format!("{id}!"),
            Frame::Promise { slot, keys } => format!("{slot}?{}", keys.join(",")),
            Frame::Purge { prefix } => format!("purge {prefix}"),
            Frame::Time { unix_us } => format!("@{unix_us}"),
            Frame::Ping => "ping".into(),
            Frame::Gone => "gone".into(),
        });
        (words.collect::<Vec<_>>().join(" "), ended)
    }

    fn whole(text: &'static str) -> Object {
        Object::complete(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn a_snapshot_then_what_follows() {
        let (hub, count) = (Hub::new(), Arc::new(Count::default()));
        hub.publish(head(1, &["/old"]), whole("x")).unwrap();
        hub.publish(head(1, &["/list"]), whole("a list")).unwrap();
        hub.promise(1, vec!["/next".into()]).unwrap();
        hub.promise(2, vec!["/gone".into()]).unwrap();
        hub.promise(2, Vec::new()).unwrap();
        let (mut writer, growing) = Object::growing();
        writer.push(Bytes::from_static(b"ab"));
        hub.publish(head(2, &["/media"]), growing).unwrap();
        let mut early = hub.subscribe().unwrap();
        let said = told(&mut early, &count);
        assert_eq!(said, ("1?/next 2=/list 3=/media 2:a list 2. 3:ab".into(), false));

        writer.push(Bytes::from_static(b"cd"));
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "woken by the bytes");
        hub.publish(head(1, &["/list"]), whole("more")).unwrap();
        let mut late = hub.subscribe().unwrap();
        assert_eq!(told(&mut early, &count).0, "4=/list 3:cd 4:more 4.");
        assert_eq!(told(&mut late, &count).0, "1?/next 4=/list 3=/media 4:more 4. 3:abcd");
        drop(late);
        assert_eq!(hub.subscribers(), 1);
        drop(writer);
        hub.purge("/live/").unwrap();
        hub.gone();
        hub.end();
        assert_eq!(told(&mut early, &count), ("purge /live/ 3! gone".into(), true));
        assert!(hub.subscribe().is_none(), "nothing to hear any more");
    }

    #[test]
    fn the_time_of_the_newest_part_follows_what_is_told_with_it() {
        let (hub, count) = (Hub::new(), Arc::new(Count::default()));
        hub.time(1);
        let mut subscriber = hub.subscribe().unwrap();
        assert_eq!(told(&mut subscriber, &count).0, "");
        hub.time(2);
        assert_eq!(count.0.load(Ordering::SeqCst), 0, "it wakes nobody");
        assert_eq!(told(&mut subscriber, &count).0, "");
        hub.time(3);
        hub.publish(head(1, &["/long"]), Object::complete(vec![0; 2 * MAX_DATA_BYTES].into())).unwrap();
        hub.publish(head(2, &["/list"]), whole("a list")).unwrap();
        assert_eq!(told(&mut subscriber, &count).0, "1=/long 2=/list 1:65536B 2:a list 2. 1:65536B 1. @3");
        hub.publish(head(2, &["/list"]), whole("more")).unwrap();
        assert_eq!(told(&mut subscriber, &count).0, "3=/list 3:more 3.", "told once");
    }

    #[test]
    fn what_is_purged_is_not_told_to_who_comes_later() {
        let (hub, count) = (Hub::new(), Arc::new(Count::default()));
        hub.publish(head(1, &["/live/a/1", "/live/a/1?x"]), whole("x")).unwrap();
        hub.publish(head(2, &["/live/a/1", "/live/b/1"]), whole("y")).unwrap();
        hub.purge("/live/a/").unwrap();
        assert_eq!(told(&mut hub.subscribe().unwrap(), &count).0, "2=/live/a/1 2:y 2.");
    }

    #[test]
    fn a_long_body_does_not_hold_up_a_short_one() {
        let (hub, count) = (Hub::new(), Arc::new(Count::default()));
        hub.publish(head(1, &["/long"]), Object::complete(vec![0; 3 * MAX_DATA_BYTES].into())).unwrap();
        hub.publish(head(2, &["/short"]), whole("short")).unwrap();
        let mut subscriber = hub.subscribe().unwrap();
        assert_eq!(told(&mut subscriber, &count).0, "1=/long 2=/short 1:65536B 2:short 2. 1:131072B 1.");
    }

    #[test]
    fn who_is_too_slow_is_ended_and_holds_nothing() {
        let (hub, count) = (Hub::new(), Arc::new(Count::default()));
        let (mut slow, mut good) = (hub.subscribe().unwrap(), hub.subscribe().unwrap());
        let (mut writer, growing) = Object::growing();
        hub.publish(head(1, &["/media"]), growing.clone()).unwrap();
        told(&mut slow, &count);
        for _ in 0..=MAX_BEHIND_BYTES >> 20 {
            writer.push(vec![0; 1 << 20].into());
            told(&mut good, &count);
        }
        hub.publish(head(2, &["/list"]), whole("l")).unwrap();
        assert_eq!(told(&mut slow, &count), (String::new(), true));
        assert_eq!(told(&mut good, &count).0, "2=/list 2:l 2.");
        assert_eq!((hub.lagged(), hub.subscribers()), (1, 2));
        // Or by many small things.
        for _ in 0..MAX_WAITING + MAX_SLOTS {
            hub.publish(head(2, &["/list"]), whole("l")).unwrap();
        }
        assert_eq!(hub.lagged(), 1);
        hub.publish(head(2, &["/list"]), whole("l")).unwrap();
        assert_eq!(hub.lagged(), 2);
        assert_eq!(told(&mut good, &count), (String::new(), true));
    }

    #[test]
    fn bounds_hold_and_the_last_to_leave_is_noticed() {
        let (hub, count) = (Hub::new(), Arc::new(Count::default()));
        let mut all: Vec<_> = (0..MAX_SUBSCRIBERS).map(|_| hub.subscribe().unwrap()).collect();
        assert!(hub.subscribe().is_none());
        let waker = Waker::from(count.clone());
        let mut vacant = Box::pin(hub.vacant());
        let mut ready = || vacant.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        assert!(!ready());
        all.truncate(1);
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        all.clear();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(ready());
        for slot in 0..2 * MAX_SLOTS as u32 {
            hub.publish(head(slot, &["/x"]), whole("x")).unwrap();
            hub.promise(slot, vec!["/y".into()]).unwrap();
        }
        assert_eq!(hub.lock().slots.len(), MAX_SLOTS);
        let mut last = hub.subscribe().unwrap();
        hub.end();
        assert_eq!(told(&mut last, &count), (String::new(), true));
    }
}
