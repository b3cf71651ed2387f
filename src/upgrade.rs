//! A new binary takes over from the one that runs: on SIGUSR2 the process starts the next one with its own arguments and
//! hands its listening sockets to it over the pipe that is the next one's standard input. When the next one serves, this one
//! drains. If the next one does not come up, this one goes on as if nothing had been.
//!
//! Both accept from the same queues meanwhile, so that no connection meets a port that nobody listens on.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use net::sockets;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tracing::info;

/// The flag of `serve` that makes it the next process.
pub(crate) const FLAG: &str = "--inherit";

/// For the next process to serve: it may have to reach a store first.
const PATIENCE: Duration = Duration::from_secs(60);

/// Listeners of a node; there are nine names.
const MAX_SOCKETS: usize = 16;

/// What is said about them has some 50 bytes each.
const MAX_TEXT_BYTES: usize = 4096;

/// What the next process says when it serves.
const SERVES: u8 = b'+';

/// One of the sockets that come with it, in the same order.
#[derive(Debug, Serialize, Deserialize)]
struct Named {
    name: String,
    asked: SocketAddr,
}

/// Starts `program` as the next process; its id, once it serves. Blocks. `Err`: it does not, and has ended.
pub(crate) fn start_next(program: &Path) -> anyhow::Result<u32> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1).filter(|argument| argument != FLAG))
        .arg(FLAG)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .with_context(|| program.display().to_string())?;
    let handed = hand_over(ours);
    if handed.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    handed.map(|()| child.id())
}

/// Sends the sockets, and waits until they are served.
fn hand_over(mut next: UnixStream) -> anyhow::Result<()> {
    let open = sockets::open();
    ensure!(open.len() <= MAX_SOCKETS, "{} listeners are more than {MAX_SOCKETS}", open.len());
    let named: Vec<_> =
        open.iter().map(|open| Named { name: open.name.clone(), asked: open.asked }).collect();
    let text = serde_json::to_vec(&named)?;
    ensure!(text.len() <= MAX_TEXT_BYTES, "the names of the listeners have {} bytes", text.len());
    send(&next, &text, &open)?;
    drop(open);
    next.set_read_timeout(Some(PATIENCE))?;
    let mut word = [0];
    match next
        .read(&mut word)
        .with_context(|| format!("the next process does not serve after {PATIENCE:?}"))?
    {
        1 if word[0] == SERVES => Ok(()),
        _ => bail!("the next process has ended before it served: its reasons are in the log above"),
    }
}

fn send(next: &UnixStream, text: &[u8], open: &[sockets::Open]) -> anyhow::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = open.iter().map(|open| open.socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(control.push(SendAncillaryMessage::ScmRights(&fds)), "no room for {} sockets", fds.len());
    let sent = sendmsg(next, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    ensure!(sent == text.len(), "only {sent} of {} bytes were sent", text.len());
    Ok(())
}

/// What the process before waits for. Dropped without a word, that one goes on.
pub(crate) struct Predecessor(UnixStream);

impl Predecessor {
    /// Takes the sockets that come in at standard input, for the listeners that are bound from now on.
    pub(crate) fn inherit() -> anyhow::Result<Predecessor> {
        let stdin = std::io::stdin();
        let mut text = vec![0; MAX_TEXT_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let what = "standard input brings no sockets: this flag is for a process that takes over from another (SIGUSR2)";
        let received =
            recvmsg(stdin.as_fd(), &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = received.context(what)?;
        let fds: Vec<OwnedFd> = control
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                _ => Vec::new(),
            })
            .collect();
        let named: Vec<Named> = serde_json::from_slice(&text[..received.bytes]).context(what)?;
        ensure!(named.len() == fds.len(), "{} names came with {} sockets", named.len(), fds.len());
        for (Named { name, asked }, fd) in named.into_iter().zip(fds) {
            sockets::inherit(name, asked, TcpListener::from(fd));
        }
        Ok(Predecessor(UnixStream::from(stdin.as_fd().try_clone_to_owned()?)))
    }

    /// This process serves: the one before drains.
    pub(crate) fn relieve(mut self) -> anyhow::Result<()> {
        let closed = sockets::close_untaken();
        info!(?closed, "this process takes over: listeners that it does not have are closed");
        self.0.write_all(&[SERVES]).context("the process before is gone")
    }
}
