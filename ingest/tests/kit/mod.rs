//! An ingest between scripted origins and scripted encoders.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cluster::token::Keys;
use cluster::{Node, Ring};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use ingest::{Config, Deps, Ingest, Metrics};
use media::flv::{Decoder, Tag, TagKind, Video};
use prometheus_client::registry::Registry;
use rml_rtmp::chunk_io::{ChunkDeserializer, ChunkSerializer};
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};
use rml_rtmp::messages::{MessagePayload, RtmpMessage, UserControlEventType};
use rml_rtmp::rml_amf0::Amf0Value;
use rml_rtmp::time::RtmpTimestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How an origin behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Plan {
    /// Acknowledges every keyframe, confirms the end.
    Serve,
    /// Like `Serve`, then all its connections are cut.
    DieAfter(usize),
    /// Like `Serve`, then its answer ends without a word.
    EndAnswerAfter(usize),
    /// Refuses the stream for good after so many media tags.
    RefuseAfter(usize),
    /// Answers so at once.
    Status(u16, &'static str),
}

/// What an origin noted. Origins are numbered in the order in which the ring asks them for "demo".
#[derive(Debug)]
pub(crate) enum Heard {
    Request { origin: usize, headers: HeaderMap },
    Tag { origin: usize, tag: Tag },
    Ended { origin: usize, clean: bool },
}

pub(crate) struct World {
    pub(crate) keys: Arc<Keys>,
    pub(crate) metrics: Metrics,
    pub(crate) rtmp: SocketAddr,
    pub(crate) rtmps: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    heard: mpsc::UnboundedReceiver<Heard>,
    ingest: JoinHandle<()>,
    origins: Vec<JoinHandle<()>>,
}

impl World {
    pub(crate) async fn new(plans: [Plan; 2]) -> World {
        World::with(plans, |_| {}).await
    }

    /// With a configuration of its own.
    pub(crate) async fn with(plans: [Plan; 2], change: impl FnOnce(&mut Config)) -> World {
        let dir = scratch("tls");
        let files = net::tls::development_files(&dir, "node", &[]).unwrap();
        let anyone = net::tls::server_config(&files, net::tls::Clients::Anyone, &[]).unwrap();
        let fleet = net::tls::server_config(&files, net::tls::Clients::Fleet, &[b"h2"]).unwrap();
        let (note, heard) = mpsc::unbounded_channel();

        let name = |name: &str, address: String| Node { name: name.into(), address };
        let order =
            Ring::new(vec![name("dc1", String::new()), name("dc2", String::new())]).candidates("demo");
        let (mut nodes, mut origins) = (Vec::new(), Vec::new());
        for (origin, plan) in plans.into_iter().enumerate() {
            let limits = net::Limits { max_connections: 100, handshake_timeout: Duration::from_secs(10) };
            let listener = net::Listener::bind("127.0.0.1:0".parse().unwrap(), limits).await.unwrap();
            nodes.push(name(&order[origin].name, listener.local_addr().to_string()));
            let (dead, note, fleet) = (CancellationToken::new(), note.clone(), fleet.clone());
            let die = dead.clone();
            let service = move |request, _| answer(origin, plan, request, note.clone(), die.clone());
            origins.push(tokio::spawn(async move {
                let options = net::http::Options::default();
                let serve = net::http::serve(
                    listener,
                    Some(fleet),
                    options,
                    CancellationToken::new(),
                    Duration::ZERO,
                    service,
                );
                dead.run_until_cancelled(serve).await;
            }));
        }

        let addr = Some("127.0.0.1:0".parse().unwrap());
        let mut config = Config { rtmp: addr, rtmps: addr, drain: Duration::ZERO, ..Config::default() };
        change(&mut config);
        let (keys, metrics) =
            (Arc::new(Keys::new(&[vec![7; 32]]).unwrap()), Metrics::register(&mut Registry::default()));
        let client_tls = net::tls::client_config(&files).unwrap();
        let deps = Deps {
            tracer: net::trace::Tracer::default(),
            origins: Ring::new(nodes),
            keys: keys.clone(),
            server_tls: anyone,
            client_tls,
            metrics: metrics.clone(),
        };
        let ingest = Ingest::bind(config, deps).await.unwrap();
        let (rtmp, rtmps) = (ingest.rtmp_addr().unwrap(), ingest.rtmps_addr().unwrap());
        let shutdown = CancellationToken::new();
        let ingest = tokio::spawn(ingest.serve(shutdown.clone()));
        World { keys, metrics, rtmp, rtmps, shutdown, heard, ingest, origins }
    }

    pub(crate) fn url(&self, scheme: &str, stream: &str) -> String {
        let addr = if scheme == "rtmps" { self.rtmps } else { self.rtmp };
        format!("{scheme}://{addr}/live/{}", self.key(stream))
    }

    pub(crate) fn key(&self, stream: &str) -> String {
        let token = self.keys.issue(stream, Duration::from_secs(3600), SystemTime::now()).unwrap();
        format!("{stream}?token={token}")
    }

    pub(crate) async fn heard(&mut self) -> Heard {
        self.heard.recv().await.expect("the origins live")
    }

    /// The next media tag of "demo" that any origin got.
    pub(crate) async fn next_tag(&mut self) -> Tag {
        loop {
            if let Heard::Tag { tag, .. } = self.heard().await
                && is_media(&&tag)
            {
                return tag;
            }
        }
    }

    /// Waits until an origin got a body to its end.
    pub(crate) async fn clean_end(&mut self) {
        while !matches!(self.heard().await, Heard::Ended { clean: true, .. }) {}
    }

    /// Ends the ingest; returns when all its connections are accounted for.
    pub(crate) async fn shut_down(self) {
        self.shutdown.cancel();
        self.ingest.await.unwrap();
        for origin in self.origins {
            origin.abort();
        }
    }
}

async fn answer(
    origin: usize,
    plan: Plan,
    request: Request<Incoming>,
    note: mpsc::UnboundedSender<Heard>,
    die: CancellationToken,
) -> Response<Lines> {
    let (parts, body) = request.into_parts();
    assert!(parts.uri.path().starts_with("/relay/"));
    let _ = note.send(Heard::Request { origin, headers: parts.headers });
    let (send, lines) = mpsc::unbounded_channel();
    let status = match plan {
        Plan::Status(status, text) => {
            send.send(Bytes::from_static(text.as_bytes())).unwrap();
            status
        }
        _ => {
            tokio::spawn(read(origin, plan, body, send, note, die));
            200
        }
    };
    Response::builder().status(status).body(Lines(lines)).unwrap()
}

async fn read(
    origin: usize,
    plan: Plan,
    mut body: Incoming,
    send: mpsc::UnboundedSender<Bytes>,
    note: mpsc::UnboundedSender<Heard>,
    die: CancellationToken,
) {
    let line = |text: String| drop(send.send(Bytes::from(text + "\n")));
    let (mut decoder, mut count, mut segment) = (Decoder::new(), 0, 0);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            let _ = note.send(Heard::Ended { origin, clean: false });
            return;
        };
        decoder.push(frame.data_ref().unwrap());
        while let Some(tag) = decoder.poll().unwrap() {
            if tag.is_keyframe() && count > 0 {
                segment += 1;
                let shown = shown_ms(&tag);
                line(format!("{{\"published\":{segment},\"resume_ms\":{shown},\"continue\":\"{shown}\"}}"));
            }
            count += usize::from(is_media(&&tag));
            let _ = note.send(Heard::Tag { origin, tag });
            match plan {
                Plan::DieAfter(n) if n == count => return die.cancel(),
                Plan::EndAnswerAfter(n) if n == count => return,
                Plan::RefuseAfter(n) if n == count => {
                    let code = "NetStream.Publish.Rejected";
                    line(format!("{{\"error\":\"unsupported video codec x\",\"code\":\"{code}\"}}"));
                }
                _ => {}
            }
        }
    }
    line("{\"end\":true}".into());
    let _ = note.send(Heard::Ended { origin, clean: true });
}

pub(crate) struct Lines(mpsc::UnboundedReceiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// When a tag is shown; configuration and metadata are never.
pub(crate) fn shown_ms(tag: &Tag) -> u32 {
    match tag.kind {
        TagKind::Video => match tag.video() {
            Ok(Video::Frame { composition_ms, .. }) => tag.timestamp_ms.wrapping_add_signed(composition_ms),
            _ => tag.timestamp_ms,
        },
        _ => tag.timestamp_ms,
    }
}

/// Frames of either track.
pub(crate) fn is_media(tag: &&Tag) -> bool {
    match tag.kind {
        TagKind::Script => false,
        TagKind::Audio => !tag.is_config(),
        TagKind::Video => matches!(tag.video(), Ok(Video::Frame { .. })),
    }
}

/// A directory of this test's own.
fn scratch(name: &str) -> PathBuf {
    let test = std::thread::current().name().unwrap_or("test").replace("::", "-");
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{name}"));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn clip_path(name: &str) -> PathBuf {
    scratch(name).join("clip.flv")
}

/// Makes six seconds of H.264 (with B-frames) and AAC and returns the tags.
pub(crate) async fn clip(name: &str) -> Vec<Tag> {
    let path = clip_path(name);
    let made = Command::new("ffmpeg")
        .args("-v error -y -f lavfi -i testsrc2=s=320x180:r=30 -f lavfi -i sine=r=48000 -t 6".split(' '))
        .args("-c:v libx264 -preset ultrafast -bf 2 -g 30 -b:v 400k -c:a aac -b:a 64k".split(' '))
        .arg(&path)
        .status()
        .await
        .expect("ffmpeg is installed");
    assert!(made.success());
    let mut decoder = Decoder::new();
    decoder.push(&std::fs::read(path).unwrap());
    std::iter::from_fn(|| decoder.poll().unwrap()).collect()
}

/// Publishes what [`clip`] made, as fast as it goes.
pub(crate) fn publish_clip(name: &str, url: &str) -> Child {
    Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(clip_path(name))
        .args(["-c", "copy", "-f", "flv", url])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("ffmpeg is installed")
}

/// Publishes a test picture, which must fail; returns what ffmpeg says about it.
pub(crate) async fn refused_ffmpeg(url: &str) -> String {
    let output = Command::new("ffmpeg")
        .args("-v error -f lavfi -i testsrc2=s=64x64:d=1 -c:v libx264 -f flv".split(' '))
        .arg(url)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("ffmpeg is installed");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An encoder driven by hand, built on rml_rtmp's chunks and messages.
pub(crate) struct Encoder {
    socket: TcpStream,
    serializer: ChunkSerializer,
    deserializer: ChunkDeserializer,
    received: VecDeque<RtmpMessage>,
}

impl Encoder {
    /// After the handshake, `connect` and `createStream`.
    pub(crate) async fn connect(addr: SocketAddr) -> Encoder {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut handshake = Handshake::new(PeerType::Client);
        socket.write_all(&handshake.generate_outbound_p0_and_p1().unwrap()).await.unwrap();
        let mut buffer = [0; 4096];
        loop {
            let n = socket.read(&mut buffer).await.unwrap();
            match handshake.process_bytes(&buffer[..n]).unwrap() {
                HandshakeProcessResult::InProgress { response_bytes } => {
                    socket.write_all(&response_bytes).await.unwrap();
                }
                HandshakeProcessResult::Completed { response_bytes, .. } => {
                    socket.write_all(&response_bytes).await.unwrap();
                    break;
                }
            }
        }
        let (serializer, deserializer) = (ChunkSerializer::new(), ChunkDeserializer::new());
        let mut encoder = Encoder { socket, serializer, deserializer, received: VecDeque::new() };
        let app = [("app".to_string(), Amf0Value::Utf8String("live".into()))].into();
        encoder.command("connect", Amf0Value::Object(app), vec![]).await;
        encoder.command("createStream", Amf0Value::Null, vec![]).await;
        encoder
    }

    /// Connected, and told that it may send.
    pub(crate) async fn publishing(world: &World, stream: &str) -> Encoder {
        let mut encoder = Encoder::connect(world.rtmp).await;
        encoder.request_publish(&world.key(stream)).await;
        assert_eq!(encoder.status().await.0, "NetStream.Publish.Start");
        encoder
    }

    pub(crate) async fn request_publish(&mut self, key: &str) {
        self.command("publish", Amf0Value::Null, vec![Amf0Value::Utf8String(key.into())]).await;
    }

    pub(crate) async fn request_play(&mut self, stream: &str) {
        self.command("play", Amf0Value::Null, vec![Amf0Value::Utf8String(stream.into())]).await;
    }

    pub(crate) async fn video(&mut self, timestamp_ms: u32, key: bool) {
        let data = vec![if key { 0x17 } else { 0x27 }, 1, 0, 0, 0, 1, 2, 3];
        self.send(RtmpMessage::VideoData { data: data.into() }, timestamp_ms).await;
    }

    /// A keyframe of so many bytes more. A connection that is being closed is no failure.
    pub(crate) async fn padded_video(&mut self, timestamp_ms: u32, bytes: usize) {
        let mut data = vec![0x17, 1, 0, 0, 0];
        data.resize(5 + bytes, 7);
        self.try_send(RtmpMessage::VideoData { data: data.into() }, timestamp_ms).await;
    }

    /// Waits for a ping, and does not answer it.
    pub(crate) async fn pinged(&mut self) {
        loop {
            let message = self.receive().await.expect("a ping comes before the end");
            if matches!(
                message,
                RtmpMessage::UserControl { event_type: UserControlEventType::PingRequest, .. }
            ) {
                return;
            }
        }
    }

    pub(crate) async fn stop(&mut self) {
        self.command("deleteStream", Amf0Value::Null, vec![Amf0Value::Number(1.0)]).await;
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        assert!(self.try_raw(bytes).await);
    }

    /// Whether the connection still takes it.
    pub(crate) async fn try_raw(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).await.is_ok()
    }

    /// Code and description of the next `onStatus`.
    pub(crate) async fn status(&mut self) -> (String, String) {
        loop {
            let message = self.receive().await.expect("a status comes before the end");
            let RtmpMessage::Amf0Command { command_name, mut additional_arguments, .. } = message else {
                continue;
            };
            if command_name == "onStatus" {
                let mut object = additional_arguments.remove(0).get_object_properties().unwrap();
                let mut text = |key| object.remove(key).unwrap().get_string().unwrap();
                return (text("code"), text("description"));
            }
        }
    }

    /// Whether the connection ends.
    pub(crate) async fn closed(&mut self) -> bool {
        while self.receive().await.is_some() {}
        true
    }

    async fn command(&mut self, name: &str, object: Amf0Value, arguments: Vec<Amf0Value>) {
        let message = RtmpMessage::Amf0Command {
            command_name: name.into(),
            transaction_id: 1.0,
            command_object: object,
            additional_arguments: arguments,
        };
        self.send(message, 0).await;
    }

    async fn send(&mut self, message: RtmpMessage, timestamp_ms: u32) {
        assert!(self.try_send(message, timestamp_ms).await, "the connection is closed");
    }

    async fn try_send(&mut self, message: RtmpMessage, timestamp_ms: u32) -> bool {
        let payload =
            MessagePayload::from_rtmp_message(message, RtmpTimestamp::new(timestamp_ms), 1).unwrap();
        let packet = self.serializer.serialize(&payload, false, false).unwrap();
        self.socket.write_all(&packet.bytes).await.is_ok()
    }

    async fn receive(&mut self) -> Option<RtmpMessage> {
        let mut buffer = [0; 4096];
        let mut n = 0;
        loop {
            if let Some(message) = self.received.pop_front() {
                return Some(message);
            }
            while let Some(payload) = self.deserializer.get_next_message(&buffer[..n]).unwrap() {
                n = 0;
                let message = payload.to_rtmp_message().unwrap();
                if let RtmpMessage::SetChunkSize { size } = message {
                    self.deserializer.set_max_chunk_size(size as usize).unwrap();
                }
                self.received.push_back(message);
            }
            if self.received.is_empty() {
                n = self.socket.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
            }
        }
    }
}
