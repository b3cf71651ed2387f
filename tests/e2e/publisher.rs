//! A broadcaster whose every tag is ours: for what no encoder at hand sends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::fragments::Track;
use crate::kit::*;

/// As large as messages may be, so that each is one chunk.
const CHUNK_BYTES: u32 = 8 << 20;

/// One tag to send.
#[derive(Clone)]
pub struct Tag {
    /// RTMP message type: 8 audio, 9 video, 18 metadata.
    pub kind: u8,
    pub ms: u32,
    pub body: Vec<u8>,
}

/// An RTMP connection that publishes.
pub struct Publisher {
    socket: TcpStream,
    heard: Vec<u8>,
}

impl Publisher {
    /// Connects and asks to publish; returns when the answer has come.
    pub fn publish(node: &Node, stream: &str) -> Publisher {
        Publisher::publish_with(node, stream, 0)
    }

    /// The same for a client that says what it can do: 1 for reconnecting when it is asked to (`CapsExMask` of Enhanced
    /// RTMP v2).
    pub fn publish_with(node: &Node, stream: &str, caps_ex: u8) -> Publisher {
        let mut socket = TcpStream::connect(node.addr("rtmp")).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut hello = vec![0; 1 + 2 * 1536];
        hello[0] = 3;
        socket.write_all(&hello).unwrap();
        let mut publisher = Publisher { socket, heard: Vec::new() };
        publisher.send(2, 1, 0, &CHUNK_BYTES.to_be_bytes());
        let list = [&b"\x00\x0afourCcList\x0a\0\0\0\x01"[..], &string("hvc1")].concat();
        let caps = property("capsEx", &[&[0][..], &f64::from(caps_ex).to_be_bytes()].concat());
        let object = [b"\x03", &property("app", &string("live"))[..], &list, &caps, b"\0\0\x09"].concat();
        publisher.command("connect", &object);
        publisher.command("createStream", b"\x05");
        let key = stream_key(node.config(), stream, "1h");
        publisher.command("publish", &[&b"\x05"[..], &string(&key)].concat());
        publisher.hear("NetStream.Publish.");
        publisher
    }

    /// Sends tags when their time has come, the first at once.
    pub fn send_in_time(&mut self, tags: &[Tag]) -> std::io::Result<()> {
        let (began, first) = (Instant::now(), tags.iter().find(|tag| tag.kind != 18).map_or(0, |tag| tag.ms));
        for tag in tags {
            let due = began + Duration::from_millis(u64::from(tag.ms.wrapping_sub(first)));
            // A broadcaster's pace, not a wait for something.
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            self.send_now(tag)?;
        }
        Ok(())
    }

    /// Sends a tag.
    pub fn send_now(&mut self, tag: &Tag) -> std::io::Result<()> {
        let csid = if tag.kind == 9 { 6 } else { 4 };
        self.socket.write_all(&message(csid, tag.kind, tag.ms, &tag.body))
    }

    /// What the server says from now on, as it comes.
    pub fn ear(&self) -> TcpStream {
        self.socket.try_clone().unwrap()
    }

    /// Ends the broadcast without waiting for the server.
    pub fn unpublish(&mut self) {
        self.command("deleteStream", b"\x05");
    }

    /// Goes away without a word, once all that was sent has arrived.
    pub fn hang_up(mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
        let _ = self.socket.read_to_end(&mut self.heard);
    }

    /// Ends the broadcast and waits until the server has let go.
    pub fn end(mut self) {
        self.command("deleteStream", b"\x05");
        let _ = self.socket.read_to_end(&mut self.heard);
    }

    /// All that the server has said when it closes the connection.
    pub fn rest(mut self) -> String {
        let _ = self.socket.read_to_end(&mut self.heard);
        String::from_utf8_lossy(&self.heard).into_owned()
    }

    fn hear(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        loop {
            if self.heard.windows(text.len()).any(|window| window == text.as_bytes()) {
                return;
            }
            let n = self.socket.read(&mut buffer).unwrap();
            assert!(n > 0, "closed before {text:?}: {}", String::from_utf8_lossy(&self.heard));
            self.heard.extend_from_slice(&buffer[..n]);
        }
    }

    fn command(&mut self, name: &str, rest: &[u8]) {
        let body = [&string(name)[..], b"\x00\x3F\xF0\0\0\0\0\0\0", rest].concat();
        self.send(3, 20, 0, &body);
    }

    fn send(&mut self, csid: u8, kind: u8, ms: u32, body: &[u8]) {
        self.socket.write_all(&message(csid, kind, ms, body)).unwrap();
    }
}

fn message(csid: u8, kind: u8, ms: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![csid];
    bytes.extend(&ms.min(0xFF_FFFF).to_be_bytes()[1..]);
    bytes.extend(&(body.len() as u32).to_be_bytes()[1..]);
    bytes.extend([kind, 1, 0, 0, 0]);
    if ms >= 0xFF_FFFF {
        bytes.extend(ms.to_be_bytes());
    }
    bytes.extend(body);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    [&b"\x02"[..], &(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn property(name: &str, value: &[u8]) -> Vec<u8> {
    [&string(name)[1..], value].concat()
}

/// How video is put into tags.
#[derive(Clone, Copy, PartialEq)]
pub enum Dress {
    /// An ExVideoTagHeader with this FourCC.
    FourCc(&'static [u8; 4]),
    /// The same, with a nanosecond offset in front of every frame.
    Nanos(&'static [u8; 4]),
    /// As track 0 of a message that also holds a track 1 of another codec.
    FirstOfTwo(&'static [u8; 4]),
    /// The codec's number in the old header.
    Number(u8),
}

/// Tags of a video track whose times are in milliseconds.
pub fn video(track: &Track, dress: Dress, first_ms: u32) -> Vec<Tag> {
    let tag = |ms: u32, packet: u8, key: bool, composition: i32, data: &[u8]| {
        let frame = if key { 0x10 } else { 0x20 };
        let composition = &composition.to_be_bytes()[1..];
        let body = |fourcc: &[u8; 4]| match (packet, fourcc) {
            (1, b"hvc1" | b"avc1") => [composition, data].concat(),
            _ => data.to_vec(),
        };
        let body = match dress {
            Dress::FourCc(fourcc) => [&[0x80 | frame | packet][..], fourcc, &body(fourcc)].concat(),
            Dress::Nanos(fourcc) if packet == 1 => {
                [&[0x87 | frame, 2, 0, 0x03, 0xE8, packet][..], fourcc, &body(fourcc)].concat()
            }
            Dress::Nanos(fourcc) => [&[0x80 | frame | packet][..], fourcc, &body(fourcc)].concat(),
            Dress::FirstOfTwo(fourcc) => {
                let body = body(fourcc);
                let len = &(body.len() as u32).to_be_bytes()[1..];
                let head = [0x86 | frame, 0x20 | packet];
                [&head[..], b"vvc1\x01\0\0\x02xx", fourcc, b"\0", len, &body].concat()
            }
            Dress::Number(codec) => [&[frame | codec, packet][..], composition, data].concat(),
        };
        Tag { kind: 9, ms: first_ms.wrapping_add(ms), body }
    };
    let zero = track.frames[0].dts;
    let mut tags = vec![tag(0, 0, true, 0, &track.record)];
    tags.extend(track.frames.iter().map(|frame| {
        let composition = (frame.pts - frame.dts) as i32;
        tag((frame.dts - zero) as u32, 1, frame.key, composition, &frame.data)
    }));
    tags
}

/// Tags of an Opus track whose times are in samples of 48 kHz.
pub fn opus(track: &Track, first_ms: u32) -> Vec<Tag> {
    let tag = |ms: u32, packet: u8, data: &[u8]| Tag {
        kind: 8,
        ms: first_ms.wrapping_add(ms),
        body: [&[0x90 | packet][..], b"Opus", data].concat(),
    };
    let mut tags = vec![tag(0, 0, &track.record)];
    tags.extend(track.frames.iter().map(|frame| tag((frame.dts.max(0) / 48) as u32, 1, &frame.data)));
    tags
}

/// Both tracks in order of time, configuration first, behind metadata that names the frame rate.
pub fn broadcast(fps: f64, video: Vec<Tag>, audio: Vec<Tag>) -> Vec<Tag> {
    let first_ms = video[0].ms;
    let rate = [&b"\x00\x09framerate\x00"[..], &fps.to_be_bytes()].concat();
    let body = [&string("onMetaData")[..], b"\x08\0\0\0\x01", &rate, b"\0\0\x09"].concat();
    let mut tags = [video, audio].concat();
    tags.sort_by_key(|tag| tag.ms.wrapping_sub(first_ms));
    tags.insert(0, Tag { kind: 18, ms: first_ms, body });
    tags
}

/// The tags of an FLV file.
pub fn tags_of(flv: &[u8]) -> Vec<Tag> {
    let mut rest = &flv[9 + 4..];
    let mut tags = Vec::new();
    while let Some((header, behind)) = rest.split_first_chunk::<11>() {
        let len = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
        let ms = u32::from_be_bytes([header[7], header[4], header[5], header[6]]);
        tags.push(Tag { kind: header[0], ms, body: behind[..len].to_vec() });
        rest = &behind[len + 4..];
    }
    tags
}
