//! Many broadcasters in one thread: RTMP over plain TCP or TLS, a clip in real time on each connection, every frame written
//! when it is due. Each frame may end with the moment of its writing, for whoever receives it at the far end.
//!
//! Adobe RTMP 1.0; commands as librtmp sends them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use media::flv::{self, Tag, TagKind};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// What OBS uses.
const CHUNK_BYTES: usize = 4096;

/// C1, S1 and S2 (5.2.3).
const HANDSHAKE_BYTES: usize = 1536;

/// For an answer, or for the server to take what is written.
const PATIENCE: Duration = Duration::from_secs(10);

/// Chunk streams: control, commands, audio, video and metadata.
const CONTROL: u8 = 2;
const COMMANDS: u8 = 3;
const AUDIO: u8 = 4;
const VIDEO: u8 = 6;

/// What `createStream` gives to the first that asks.
const STREAM_ID: u32 = 1;

/// What all broadcasters send, again and again.
pub(crate) struct Clip {
    /// Metadata and configurations, sent once.
    setup: Vec<Tag>,
    /// In the order in which they are due.
    frames: Vec<Tag>,
    length_ms: u32,
}

impl Clip {
    /// Reads an FLV file of `seconds`.
    pub(crate) fn read(path: &Path, seconds: u32) -> anyhow::Result<Clip> {
        let mut decoder = flv::Decoder::new();
        decoder.push(&std::fs::read(path)?);
        let (mut setup, mut frames) = (Vec::new(), Vec::new());
        while let Some(tag) = decoder.poll()? {
            if tag.is_frame() {
                frames.push(tag);
            } else if tag.is_config() || tag.kind == TagKind::Script {
                setup.push(tag);
            }
        }
        let length_ms = seconds * 1000;
        // Audio may be a frame longer than the pictures.
        frames.retain(|tag| tag.timestamp_ms < length_ms);
        frames.sort_by_key(|tag| tag.timestamp_ms);
        ensure!(!frames.is_empty(), "{}: no frames", path.display());
        Ok(Clip { setup, frames, length_ms })
    }

    /// Of what is sent, the moments of writing apart.
    pub(crate) fn kbit_per_s(&self) -> f64 {
        let bytes: usize = self.frames.iter().map(|tag| tag.data.len()).sum();
        bytes as f64 * 8.0 / f64::from(self.length_ms)
    }

    pub(crate) fn frames_per_s(&self) -> f64 {
        self.frames.len() as f64 * 1000.0 / f64::from(self.length_ms)
    }
}

/// What is behind each frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Nothing: the frame can be decoded.
    AsItIs,
    /// The moment of its writing.
    Moment,
}

/// Broadcasters that have been told that they may send.
pub(crate) struct Publishers<'a> {
    clip: &'a Clip,
    ending: Ending,
    links: Vec<Link>,
    /// Frame number and broadcaster, by when they are due.
    due: BinaryHeap<Reverse<(Instant, usize, usize)>>,
    began: Vec<Instant>,
    scratch: Vec<u8>,
    /// Frames written.
    pub(crate) frames: u64,
    /// The latest that a frame was written after it was due.
    pub(crate) latest: Duration,
}

impl<'a> Publishers<'a> {
    /// One connection for each of `keys`, to `addr`, over TLS if given. Their clips begin one after the other within
    /// `spread` from when all are connected.
    pub(crate) fn connect(
        clip: &'a Clip,
        addr: SocketAddr,
        tls: Option<&Arc<ClientConfig>>,
        app: &str,
        keys: &[String],
        ending: Ending,
        spread: Duration,
    ) -> anyhow::Result<Publishers<'a>> {
        let mut scratch = Vec::new();
        let mut links = Vec::new();
        for key in keys {
            let mut link = Link::open(addr, tls)?;
            link.publish(app, key).context("a broadcaster is not let in")?;
            for tag in &clip.setup {
                scratch.clear();
                message(&mut scratch, tag, 0, &[]);
                link.write_all(&scratch)?;
            }
            links.push(link);
        }
        let begin = Instant::now();
        let began: Vec<Instant> =
            (0..keys.len()).map(|index| begin + spread * index as u32 / keys.len() as u32).collect();
        let due = began.iter().enumerate().map(|(link, &at)| Reverse((at, 0, link))).collect();
        Ok(Publishers { clip, ending, links, due, began, scratch, frames: 0, latest: Duration::ZERO })
    }

    /// Sends what is due, for so long.
    pub(crate) fn run(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        self.latest = Duration::ZERO;
        while let Some(&Reverse((due, number, index))) = self.due.peek() {
            let now = Instant::now();
            if due >= end && now >= end {
                break;
            }
            if due > now {
                std::thread::sleep(due.min(end) - now);
                continue;
            }
            self.latest = self.latest.max(now - due);
            self.due.pop();
            let round = (number / self.clip.frames.len()) as u32;
            let tag = &self.clip.frames[number % self.clip.frames.len()];
            self.scratch.clear();
            let moment = unix_nanos().to_be_bytes();
            let tail = if self.ending == Ending::Moment { &moment[..] } else { &[] };
            message(&mut self.scratch, tag, round * self.clip.length_ms, tail);
            self.links[index].write_all(&self.scratch).context("a broadcaster was cut off")?;
            self.frames += 1;
            let number = number + 1;
            let round = (number / self.clip.frames.len()) as u32;
            let next_ms =
                round * self.clip.length_ms + self.clip.frames[number % self.clip.frames.len()].timestamp_ms;
            let next = self.began[index] + Duration::from_millis(u64::from(next_ms));
            self.due.push(Reverse((next, number, index)));
        }
        Ok(())
    }

    /// Ends all broadcasts in an orderly way; returns when the server has closed the connections.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        for link in &mut self.links {
            let mut bytes = Vec::new();
            command(&mut bytes, "FCUnpublish", 6.0, &[Value::Null, Value::Text("")]);
            command(&mut bytes, "deleteStream", 7.0, &[Value::Null, Value::Number(STREAM_ID.into())]);
            link.write_all(&bytes)?;
            link.socket().shutdown(Shutdown::Write)?;
        }
        for link in &mut self.links {
            link.until_closed();
        }
        Ok(())
    }
}

/// When a frame was written, of one that has come through.
pub(crate) fn written_unix_nanos(tag: &Tag) -> Option<u64> {
    tag.data.last_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

pub(crate) fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

enum Link {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Link {
    fn open(addr: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> anyhow::Result<Link> {
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(match tls {
            None => Link::Plain(socket),
            Some(tls) => {
                let name = ServerName::IpAddress(addr.ip().into());
                let connection = ClientConnection::new(tls.clone(), name)?;
                Link::Tls(Box::new(StreamOwned::new(connection, socket)))
            }
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Link::Plain(socket) => socket.write_all(bytes),
            Link::Tls(stream) => stream.write_all(bytes),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Link::Plain(socket) => socket.read(bytes),
            Link::Tls(stream) => stream.read(bytes),
        }
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Link::Plain(socket) => socket,
            Link::Tls(stream) => &stream.sock,
        }
    }

    /// Until the server says that the broadcast may begin.
    fn publish(&mut self, app: &str, key: &str) -> anyhow::Result<()> {
        let mut hello = vec![3];
        hello.resize(1 + HANDSHAKE_BYTES, 0);
        self.write_all(&hello)?;
        let mut answer = vec![0; 1 + 2 * HANDSHAKE_BYTES];
        let mut have = 0;
        while have < answer.len() {
            let n = self.read(&mut answer[have..])?;
            ensure!(n > 0, "closed in the handshake");
            have += n;
        }
        let mut bytes = answer[1..1 + HANDSHAKE_BYTES].to_vec();
        header(&mut bytes, CONTROL, 0, 4, 1, 0);
        bytes.extend((CHUNK_BYTES as u32).to_be_bytes());
        let url = format!("rtmp://127.0.0.1/{app}");
        let about = [("app", app), ("type", "nonprivate"), ("flashVer", "FMLE/3.0"), ("tcUrl", &url)];
        command(&mut bytes, "connect", 1.0, &[Value::Object(&about)]);
        command(&mut bytes, "releaseStream", 2.0, &[Value::Null, Value::Text(key)]);
        command(&mut bytes, "FCPublish", 3.0, &[Value::Null, Value::Text(key)]);
        command(&mut bytes, "createStream", 4.0, &[Value::Null]);
        command(&mut bytes, "publish", 5.0, &[Value::Null, Value::Text(key), Value::Text("live")]);
        self.write_all(&bytes)?;
        let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
        let says = |heard: &[u8], text: &[u8]| heard.windows(text.len()).any(|window| window == text);
        while !says(&heard, b"onStatus") || !says(&heard, b"NetStream.Publish.Start") {
            let n = self.read(&mut buffer)?;
            heard.extend_from_slice(&buffer[..n]);
            let shown = String::from_utf8_lossy(&heard);
            if n == 0 || says(&heard, b"NetStream.Publish.Bad") || says(&heard, b"Rejected") {
                bail!("{shown:?}");
            }
        }
        Ok(())
    }

    /// What is left to be read goes unread: closing before it has come would take back what is on its way.
    fn until_closed(&mut self) {
        let mut buffer = [0; 4096];
        while self.read(&mut buffer).is_ok_and(|n| n > 0) {}
    }
}

/// A tag as a message that ends with `tail`, its time moved on by `later_ms`.
fn message(out: &mut Vec<u8>, tag: &Tag, later_ms: u32, tail: &[u8]) {
    let (csid, kind) = match tag.kind {
        TagKind::Audio => (AUDIO, 8),
        TagKind::Video => (VIDEO, 9),
        TagKind::Script => (AUDIO, 18),
    };
    // Metadata is to be kept for those who come later.
    let lead: &[u8] = if tag.kind == TagKind::Script { b"\x02\x00\x0D@setDataFrame" } else { &[] };
    let len = lead.len() + tag.data.len() + tail.len();
    header(out, csid, tag.timestamp_ms + later_ms, len, kind, STREAM_ID);
    chunks(out, csid, lead.iter().chain(&tag.data).chain(tail).copied());
}

enum Value<'a> {
    Null,
    Number(f64),
    Text(&'a str),
    Object(&'a [(&'a str, &'a str)]),
}

/// AMF0 command (7).
fn command(out: &mut Vec<u8>, name: &str, transaction: f64, values: &[Value<'_>]) {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u16).to_be_bytes());
        out.extend(text.as_bytes());
    }
    let mut body = Vec::new();
    for value in [Value::Text(name), Value::Number(transaction)].iter().chain(values) {
        match value {
            Value::Null => body.push(5),
            Value::Number(number) => {
                body.push(0);
                body.extend(number.to_be_bytes());
            }
            Value::Text(value) => {
                body.push(2);
                text(&mut body, value);
            }
            Value::Object(fields) => {
                body.push(3);
                for (name, value) in *fields {
                    text(&mut body, name);
                    body.push(2);
                    text(&mut body, value);
                }
                body.extend([0, 0, 9]);
            }
        }
    }
    let stream_id = if name == "publish" { STREAM_ID } else { 0 };
    header(out, COMMANDS, 0, body.len(), 20, stream_id);
    chunks(out, COMMANDS, body.into_iter());
}

/// A chunk header of type 0 (5.3.1.2.1). Times stay below those that need 32 bits.
fn header(out: &mut Vec<u8>, csid: u8, time_ms: u32, len: usize, kind: u8, stream_id: u32) {
    out.push(csid);
    out.extend(&time_ms.to_be_bytes()[1..]);
    out.extend(&(len as u32).to_be_bytes()[1..]);
    out.push(kind);
    out.extend(stream_id.to_le_bytes());
}

/// The payload, cut where chunks end.
fn chunks(out: &mut Vec<u8>, csid: u8, payload: impl Iterator<Item = u8>) {
    for (index, byte) in payload.enumerate() {
        if index > 0 && index % CHUNK_BYTES == 0 {
            out.push(3 << 6 | csid);
        }
        out.push(byte);
    }
}
