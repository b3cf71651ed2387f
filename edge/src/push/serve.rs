//! Pushing on to the tier below what is pushed here: one push from above serves any number of nodes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};
use media::push::{Frame, MEDIA_TYPE, PING_EVERY, Subscriber};
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Interval, MissedTickBehavior};

use super::Status;
use crate::body::Body;
use crate::tier::Tier;
use crate::upstream;

/// For the tier above to say whether it pushes the stream: shorter than a node below waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Answers a request for the push of `prefix`. `Err`: the status, and why there is none.
pub(crate) async fn serve(
    tier: &Arc<Tier>,
    method: &Method,
    prefix: &str,
    cdn_loop: impl FnOnce() -> HeaderValue,
) -> Result<Response<Body>, (StatusCode, &'static str)> {
    let pushes = &tier.pushes;
    // A file below it has the prefix that is meant, and nothing in between.
    let whole = upstream::prefix(&format!("{prefix}/x"), pushes.key_segments) == Some(prefix);
    if !pushes.serves || !super::wanted(tier, prefix) || !whole {
        return Err((StatusCode::NOT_FOUND, "nothing is pushed from here"));
    }
    if method != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "a push is asked for with GET"));
    }
    let closed = (StatusCode::SERVICE_UNAVAILABLE, "this node is shutting down");
    if pushes.closed.load(Ordering::SeqCst) {
        return Err(closed);
    }
    let full = (StatusCode::SERVICE_UNAVAILABLE, "too many pushes");
    let subscription = super::subscribe(tier, prefix, Instant::now(), cdn_loop).ok_or(full)?;
    let mut status = subscription.status.subscribe();
    let settled = status.wait_for(|status| !matches!(status, Status::Asking));
    let hub = match tokio::time::timeout(ANSWER_TIMEOUT, settled).await {
        Ok(Ok(status)) => match &*status {
            Status::On(hub) => hub.clone(),
            _ => return Err((StatusCode::NOT_FOUND, "the stream is not pushed here")),
        },
        _ => return Err((StatusCode::SERVICE_UNAVAILABLE, "the tier above does not answer")),
    };
    let subscriber = hub.subscribe().ok_or(full)?;
    // Looked at again: what is subscribed to behind this look is ended by who closes.
    if pushes.closed.load(Ordering::SeqCst) {
        return Err(closed);
    }
    let told = Told::new(subscriber, &pushes.metrics.subscribers);
    let mut response = Response::new(Body::push(told, &tier.metrics.served_bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// What one node of the tier below is told: the body of its answer, with a sign of life now and then.
#[derive(Debug)]
pub(crate) struct Told {
    subscriber: Subscriber,
    ping: Interval,
    subscribers: Gauge,
}

impl Told {
    fn new(subscriber: Subscriber, subscribers: &Gauge) -> Told {
        let mut ping = tokio::time::interval(PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        subscribers.inc();
        Told { subscriber, ping, subscribers: subscribers.clone() }
    }

    /// The next bytes; `None` at the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.subscriber.poll_next(cx) {
            Poll::Pending => self.ping.poll_tick(cx).map(|_| {
                let mut ping = BytesMut::new();
                Frame::Ping.encode(&mut ping).expect("it has no payload");
                Some(ping.freeze())
            }),
            next => next,
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.subscribers.dec();
    }
}
