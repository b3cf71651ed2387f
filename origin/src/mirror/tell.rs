//! The owner's side: tells other origins what streams there are, and mirrors what is new of one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use media::push::PING_EVERY;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};

use super::copy::Teller;
use super::wire::{Listed, Message};
use crate::Shared;
use crate::live::{Live, State};
use crate::relay::unix_ms;

/// How often it is looked whether the list of streams has changed: so much later a new stream is mirrored.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long a mirror may leave what it was told unread.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pieces on their way to a connection; a mirror that is slower is told later, and less often.
pub(crate) const QUEUE: usize = 16;

type Sender = mpsc::Sender<Bytes>;

/// The other side is gone, or as good as.
struct Lost;

/// Tells the list of streams whenever it has changed, until the other side is gone.
pub(crate) async fn tell_streams(shared: Arc<Shared>, sender: Sender) {
    let mut told: Option<Vec<Listed>> = None;
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut ping = tokio::time::interval(PING_EVERY);
    for interval in [&mut look, &mut ping] {
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        let message = tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => break,
            () = sender.closed() => break,
            _ = look.tick() => {
                let list = shared.list();
                if told.as_ref() == Some(&list) {
                    continue;
                }
                told = Some(list.clone());
                Message::Streams(list)
            }
            _ = ping.tick() => Message::Ping,
        };
        if send(&sender, &[message]).await.is_err() {
            break;
        }
    }
}

/// Tells a stream from what is listed now on, until it is over or the other side is gone.
pub(crate) async fn tell_stream(shared: Arc<Shared>, live: Arc<Live>, sender: Sender) {
    debug!(stream = %live.name(), "a mirror begins");
    let mut teller = Teller::default();
    let mut versions = live.versions();
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        versions.mark_unchanged();
        let (mut state, mut messages) = (State::Offline, Some(Vec::new()));
        live.read(|now, broadcast| {
            state = now;
            messages = broadcast.map_or(Some(Vec::new()), |broadcast| teller.look(now, broadcast, unix_ms()));
        });
        let messages = match messages {
            // What of its end is listed does not matter to those who would go on with it.
            _ if state == State::Ended => vec![Message::Gone],
            Some(mut messages) => {
                messages.extend(teller.picture(live.newest_picture()));
                messages
            }
            None => break,
        };
        // A stream that was withdrawn is told by whoever has it now.
        if send(&sender, &messages).await.is_err() || state == State::Ended || !shared.has(&live) {
            break;
        }
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => break,
            () = sender.closed() => break,
            changed = versions.changed() => {
                if changed.is_err() {
                    break;
                }
            }
            _ = ping.tick() => {
                if send(&sender, &[Message::Ping]).await.is_err() {
                    break;
                }
            }
        }
    }
    debug!(stream = %live.name(), "a mirror ends");
}

async fn send(sender: &Sender, messages: &[Message]) -> Result<(), Lost> {
    for message in messages {
        let frames = message.encode().map_err(|fault| {
            warn!(%fault, "not told to a mirror");
            Lost
        })?;
        for bytes in frames {
            match tokio::time::timeout(PATIENCE, sender.send(bytes)).await {
                Ok(Ok(())) => {}
                _ => return Err(Lost),
            }
        }
    }
    Ok(())
}
