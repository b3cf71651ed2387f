//! One connection: told apart, served, put away while it is idle, cut off when it misbehaves.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, CONTENT_TYPE, HeaderValue, RETRY_AFTER,
};
use http::{Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Options;
use super::body::{Answer, Busy};
use super::cork::Corked;
use super::io::{Io, Vitals};
use super::patience::{Floor, Patience, Rules, Verdict};
use super::priority::Priority;
use super::streams::Streams;
use crate::error::chain;
use crate::guard::Visit;
use crate::{Current, Refusal, Stream};

/// What an h2 client says first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An h1 connection without a request for so long is put away: its buffers are freed, its socket is kept.
const PARK_AFTER: Duration = Duration::from_secs(1);

/// Of h1 connections not put away, in a listener: past it they are as soon as they have nothing to do. Each has some 20 KB of
/// buffers; to build them anew takes half a microsecond.
const MAX_UNPARKED: usize = 256;

/// For an idle h2 connection to close after it was told to, and for a last word on TLS.
const GOODBYE: Duration = Duration::from_secs(5);

/// Requests of a viewer's h2 connection that may have been cancelled beyond those that were answered. Who seeks to and fro
/// cancels a few for each that it lets finish.
const MAX_CANCELLED: u32 = 256;

/// Streams that were reset before they were looked at, on an h2 connection at once. More is an attack (rapid reset).
const MAX_UNSEEN_RESETS: usize = 20;

/// Resets that faults of a viewer may cost us on one h2 connection.
const MAX_FAULT_RESETS: usize = 256;

/// Bytes of a viewer's connection beyond what its requests and window updates explain.
const MAX_CHATTER: u64 = 1 << 20;

/// A window update of 13 bytes stands for a hundred bytes or more.
const BYTES_PER_UPDATE_BYTE: u64 = 8;

/// In h2's hands for one stream. What is handed to it is rationed by `Turns`; this is not to be the tighter bound.
const H2_SEND_BUFFER: usize = 256 << 10;

/// Tells a dead peer from a silent one on h2.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What the connections of a listener share.
pub(super) struct Host<S> {
    options: Options,
    h1: http1::Builder,
    service: Arc<S>,
    stop: CancellationToken,
    unparked: Arc<AtomicUsize>,
}

/// What connections get that come now: a [`Host`] for each value that the options have had.
pub(super) struct Hosts<S> {
    options: Current<Options>,
    latest: Mutex<(Arc<Options>, Arc<Host<S>>)>,
}

/// How a connection's time with one protocol ended.
enum Ended {
    /// It is closed, or to be closed.
    Closed,
    /// By us.
    Refused(Refusal),
    /// An idle h1 connection: its HTTP machinery is gone.
    Parked(Io),
}

/// What tells h1 from h2.
enum Protocol {
    H1,
    H2,
}

impl<S> Hosts<S> {
    pub(super) fn new(options: Current<Options>, stop: CancellationToken, service: S) -> Self {
        let now = options.get();
        let host = Host::new(*now, stop, Arc::new(service), Arc::default());
        Self { options, latest: Mutex::new((now, Arc::new(host))) }
    }

    /// For a connection that comes now.
    pub(super) fn host(&self) -> Arc<Host<S>> {
        let now = self.options.get();
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&latest.0, &now) {
            let Host { stop, service, unparked, .. } = &*latest.1;
            let host = Host::new(*now, stop.clone(), service.clone(), unparked.clone());
            *latest = (now, Arc::new(host));
        }
        latest.1.clone()
    }
}

impl<S> Host<S> {
    fn new(options: Options, stop: CancellationToken, service: Arc<S>, unparked: Arc<AtomicUsize>) -> Self {
        let mut h1 = http1::Builder::new();
        // Time is kept by `Patience`.
        h1.header_read_timeout(None)
            .max_buf_size(options.max_header_bytes.max(8 << 10) as usize)
            .half_close(false);
        Self { options, h1, service, stop, unparked }
    }
}

impl<S, F, B> Host<S>
where
    S: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    /// Serves a connection to its end.
    pub(super) async fn serve(self: Arc<Self>, stream: Stream, peer: SocketAddr, visit: Visit) {
        let visit = Arc::new(visit);
        if let Some(why) = self.served(stream, peer, &visit).await {
            visit.refused(why);
            debug!(%peer, why = why.as_str(), "connection cut off");
        }
    }

    /// The same; why it was cut off, if it was.
    async fn served(&self, stream: Stream, peer: SocketAddr, visit: &Arc<Visit>) -> Option<Refusal> {
        let vitals = Arc::new(Vitals::default());
        let mut patience = Patience::new(self.rules(true), Instant::now().into_std());
        let mut io = Io::new(stream, vitals.clone());
        let protocol = if io.stream().is_tls() {
            // A request may have come with the end of the handshake: it is the TLS layer that would know.
            Some(if io.stream().alpn() == Some(b"h2") { Protocol::H2 } else { Protocol::H1 })
        } else {
            match self.readable(&io, &patience).await {
                Some(()) => self.told_apart(&mut io, &patience).await,
                None => None,
            }
        };
        let Some(protocol) = protocol else { return self.unasked(io, &vitals).await };
        if matches!(protocol, Protocol::H2) {
            let mut patience = Patience::new(self.rules(false), Instant::now().into_std());
            // Boxed, as h1's below: an idle h1 connection has no use for the room.
            return match Box::pin(self.h2(io, peer, visit, &vitals, &mut patience)).await {
                Ended::Refused(why) => Some(why),
                Ended::Closed | Ended::Parked(_) => None,
            };
        }
        loop {
            match Box::pin(self.h1(io, peer, visit, &vitals, &mut patience)).await {
                Ended::Parked(parked) => io = parked,
                Ended::Refused(why) => return Some(why),
                Ended::Closed => return None,
            }
            if self.readable(&io, &patience).await.is_none() {
                return self.unasked(io, &vitals).await;
            }
        }
    }

    fn rules(&self, h1: bool) -> Rules {
        let Options { header_timeout, send_timeout, .. } = self.options;
        Rules { header_timeout, park_after: h1.then_some(PARK_AFTER), reading: self.floor(send_timeout) }
    }

    fn floor(&self, timeout: Duration) -> Floor {
        let bytes = u128::from(self.options.min_send_rate) * timeout.as_millis() / 1000;
        Floor { timeout, bytes: bytes.try_into().unwrap_or(u64::MAX).max(1) }
    }

    /// Waits for bytes, with next to nothing in memory. `None`: they are not to be waited for any longer.
    async fn readable(&self, io: &Io, patience: &Patience) -> Option<()> {
        if io.has_unread() {
            return Some(());
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            ready = io.stream().readable() => ready.ok(),
            () = until(patience) => None,
        }
    }

    /// What a connection without ALPN speaks, by its first bytes, which are read again.
    async fn told_apart(&self, io: &mut Io, patience: &Patience) -> Option<Protocol> {
        let mut first = [0; PREFACE.len()];
        let mut len = 0;
        while len < PREFACE.len() && PREFACE.starts_with(&first[..len]) {
            let read = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                read = io.read(&mut first[len..]) => read,
                () = until(patience) => return None,
            };
            match read {
                Ok(0) | Err(_) => return None,
                Ok(bytes) => len += bytes,
            }
        }
        io.unread(Bytes::copy_from_slice(&first[..len]));
        Some(if first[..len] == *PREFACE { Protocol::H2 } else { Protocol::H1 })
    }

    /// Closes a connection that has nothing under way; why, if that is a refusal.
    async fn unasked(&self, mut io: Io, vitals: &Vitals) -> Option<Refusal> {
        let _ = tokio::time::timeout(GOODBYE, io.shutdown()).await;
        (vitals.requests() == 0 && !self.stop.is_cancelled()).then_some(Refusal::Silent)
    }

    async fn h1(
        &self,
        io: Io,
        peer: SocketAddr,
        visit: &Arc<Visit>,
        vitals: &Arc<Vitals>,
        patience: &mut Patience,
    ) -> Ended {
        let service = self.service(peer, visit, vitals, None);
        let _unparked = Unparked::new(&self.unparked);
        let mut connection = self.h1.serve_connection(TokioIo::new(io), service);
        let mut timer = pin!(tokio::time::sleep(PARK_AFTER));
        let mut stop = pin!(self.stop.cancelled());
        let mut stopping = false;
        let ended = poll_fn(|cx| {
            if !stopping && stop.as_mut().poll(cx).is_ready() {
                stopping = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(Some(
                    ended.map_or_else(|error| self.failed(peer, &error), |()| Ended::Closed),
                ));
            }
            patience.handle(vitals.signs(), || Instant::now().into_std());
            let rests = !stopping && vitals.at_rest();
            if rests && self.unparked.load(Relaxed) > MAX_UNPARKED {
                return Poll::Ready(None);
            }
            while timer.as_mut().poll(cx).is_ready() {
                match patience.handle_timeout(Instant::now().into_std(), vitals.signs()) {
                    Verdict::Park if rests => return Poll::Ready(None),
                    // Something is left to be said or heard.
                    Verdict::Park => timer.as_mut().reset(Instant::now() + PARK_AFTER),
                    Verdict::Wait(until) => timer.as_mut().reset(until.into()),
                    Verdict::Slow => return Poll::Ready(Some(Ended::Refused(Refusal::SlowReader))),
                    Verdict::Idle => return Poll::Ready(Some(idle(vitals))),
                }
                if self.chatters(vitals) {
                    return Poll::Ready(Some(Ended::Refused(Refusal::Chatter)));
                }
            }
            Poll::Pending
        })
        .await;
        if let Some(ended) = ended {
            return ended;
        }
        let parts = connection.into_parts();
        let mut io = parts.io.into_inner();
        if !parts.read_buf.is_empty() {
            io.unread(parts.read_buf);
        }
        Ended::Parked(io)
    }

    async fn h2(
        &self,
        io: Io,
        peer: SocketAddr,
        visit: &Arc<Visit>,
        vitals: &Arc<Vitals>,
        patience: &mut Patience,
    ) -> Ended {
        let streams = Arc::<Streams>::default();
        // However this ends, nothing of it goes on.
        let _aborts = Aborts(streams.clone());
        let service = self.service(peer, visit, vitals, Some(streams.clone()));
        let gathers = io.stream().is_tls();
        let cork = Corked::new(io, gathers);
        let connection =
            self.h2_builder(streams.clone()).serve_connection(TokioIo::new(cork.clone()), service);
        let mut connection = pin!(connection);
        let floor = self.floor(self.options.send_timeout);
        let mut timer = pin!(tokio::time::sleep(PARK_AFTER));
        let mut stop = pin!(self.stop.cancelled());
        let (mut stopping, mut goodbye) = (false, false);
        let signs = || {
            let signs = vitals.signs();
            super::patience::Signs { busy: signs.busy || !streams.is_empty(), ..signs }
        };
        poll_fn(|cx| {
            if !stopping && stop.as_mut().poll(cx).is_ready() {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(ended) = cork.poll_drive(connection.as_mut(), cx) {
                let ended = ended.map_err(|error| self.failed(peer, error.as_ref()));
                return Poll::Ready(ended.map_or_else(|ended| ended, |()| Ended::Closed));
            }
            if self.options.viewers && cancels(vitals) {
                return Poll::Ready(Ended::Refused(Refusal::Resets));
            }
            while timer.as_mut().poll(cx).is_ready() {
                let (now, signs) = (Instant::now(), signs());
                if self.chatters(vitals) {
                    return Poll::Ready(Ended::Refused(Refusal::Chatter));
                }
                if !signs.blocked {
                    let (cut, all) = streams.cut_stalled(now.into_std(), floor);
                    if !all {
                        return Poll::Ready(Ended::Refused(Refusal::SlowStream));
                    }
                    (0..cut).for_each(|_| visit.refused(Refusal::SlowStream));
                }
                match patience.handle_timeout(now.into_std(), signs) {
                    Verdict::Wait(until) => timer.as_mut().reset(until.into()),
                    Verdict::Slow => return Poll::Ready(Ended::Refused(Refusal::SlowReader)),
                    Verdict::Idle | Verdict::Park if vitals.requests() == 0 => {
                        return Poll::Ready(Ended::Refused(Refusal::Silent));
                    }
                    // The fleet's connections stay.
                    Verdict::Idle | Verdict::Park if !self.options.viewers => {
                        timer.as_mut().reset(now + self.options.header_timeout);
                    }
                    Verdict::Idle | Verdict::Park if !goodbye => {
                        goodbye = true;
                        connection.as_mut().graceful_shutdown();
                        timer.as_mut().reset(now + GOODBYE);
                        // It has something to say now.
                        cx.waker().wake_by_ref();
                    }
                    // It does not answer, be it that a header began and never ends.
                    Verdict::Idle | Verdict::Park => {
                        return Poll::Ready(Ended::Refused(Refusal::HeaderTimeout));
                    }
                }
            }
            Poll::Pending
        })
        .await
    }

    fn service(
        &self,
        peer: SocketAddr,
        visit: &Arc<Visit>,
        vitals: &Arc<Vitals>,
        streams: Option<Arc<Streams>>,
    ) -> impl hyper::service::Service<
        Request<Incoming>,
        Response = Response<Answer<B>>,
        Error = Infallible,
        Future: Send,
    > + Unpin
    + use<S, F, B> {
        let (service, visit, vitals) = (self.service.clone(), visit.clone(), vitals.clone());
        service_fn(move |request: Request<Incoming>| {
            let busy = Busy::new(vitals.clone());
            let place =
                streams.as_ref().map(|streams| streams.open(Priority::default().merged(request.headers())));
            let answering = visit.request().map(|()| service(request, peer));
            async move {
                Ok(match answering {
                    Ok(answering) => {
                        let (head, body) = answering.await.into_parts();
                        if let Some(place) = &place {
                            place.answered(&head.headers);
                        }
                        Response::from_parts(head, Answer::service(body, place, busy))
                    }
                    Err(wait) => slow_down(wait).map(|text| Answer::own(text, place, busy)),
                })
            }
        })
    }

    fn h2_builder(&self, streams: Arc<Streams>) -> http2::Builder<Spawn> {
        let Options { h2_max_streams, max_header_bytes, h2_stream_window, h2_connection_window, .. } =
            self.options;
        let mut builder = http2::Builder::new(Spawn(streams));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(h2_max_streams)
            .max_header_list_size(max_header_bytes)
            .initial_stream_window_size(h2_stream_window)
            .initial_connection_window_size(h2_connection_window)
            .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
            .max_send_buf_size(H2_SEND_BUFFER)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        if self.options.viewers {
            // Counted over a connection's life, and the fleet's live for months.
            builder.max_local_error_reset_streams(MAX_FAULT_RESETS);
        }
        builder
    }

    /// Whether far more came than was called for.
    fn chatters(&self, vitals: &Vitals) -> bool {
        let called_for = MAX_CHATTER
            + vitals.requests() * u64::from(self.options.max_header_bytes)
            + vitals.signs().taken / BYTES_PER_UPDATE_BYTE;
        self.options.viewers && vitals.received() > called_for
    }

    fn failed(&self, peer: SocketAddr, error: &(dyn StdError + 'static)) -> Ended {
        debug!(%peer, error = %chain(error), "HTTP connection ended early");
        match fault(error) {
            Some(why) => Ended::Refused(why),
            None => Ended::Closed,
        }
    }
}

/// To an address that asks for too much.
fn slow_down(wait: Duration) -> Response<&'static str> {
    let mut response = Response::new("too many requests from this address\n");
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, seconds.into());
    // Players in web pages are to see it for what it is.
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// What a peer did to make its connection fail, if it was the peer.
fn fault(error: &(dyn StdError + 'static)) -> Option<Refusal> {
    if let Some(error) = error.downcast_ref::<hyper::Error>() {
        if error.is_parse_too_large() {
            return Some(Refusal::HeaderSize);
        }
        if error.is_parse() {
            return Some(Refusal::Protocol);
        }
    }
    let h2 = error.source()?.downcast_ref::<h2::Error>()?;
    match h2.reason()? {
        h2::Reason::ENHANCE_YOUR_CALM => Some(Refusal::Flood),
        // It may say so as well when it ends.
        _ if h2.is_remote() => None,
        h2::Reason::NO_ERROR | h2::Reason::CANCEL => None,
        _ => Some(Refusal::Protocol),
    }
}

/// An idle connection's end.
fn idle(vitals: &Vitals) -> Ended {
    match (vitals.partial(), vitals.requests()) {
        (true, _) => Ended::Refused(Refusal::HeaderTimeout),
        (false, 0) => Ended::Refused(Refusal::Silent),
        (false, _) => Ended::Closed,
    }
}

fn cancels(vitals: &Vitals) -> bool {
    vitals.cancelled.load(Relaxed) > vitals.finished.load(Relaxed).saturating_add(MAX_CANCELLED)
}

async fn until(patience: &Patience) {
    tokio::time::sleep_until(patience.idle_until(Instant::now().into_std()).into()).await;
}

/// Counts an h1 connection that is not put away.
struct Unparked<'a>(&'a AtomicUsize);

impl<'a> Unparked<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Unparked(count)
    }
}

impl Drop for Unparked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Spawns the streams of one h2 connection.
#[derive(Clone)]
struct Spawn(Arc<Streams>);

impl<F> Executor<F> for Spawn
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawned(tokio::spawn(stream).abort_handle());
    }
}

/// Ends the streams of a connection with it.
struct Aborts(Arc<Streams>);

impl Drop for Aborts {
    fn drop(&mut self) {
        self.0.abort();
    }
}
