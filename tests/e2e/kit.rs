//! What the stories share: nodes as child processes, broadcasters, HTTP, packets as ffprobe sees them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Longest wait for anything that should take a second or two: generous, because test machines stall.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a story that must keep up with real time takes of the machine while it lasts, at its busiest.
#[derive(Clone, Copy)]
pub enum Share {
    /// A broadcast of few lines, and readers: less than half a core.
    Half = 1,
    /// A browser as well, or several renditions: a core.
    Core = 2,
    /// Judges how players play that are half a second from running dry, or what many do at once: nothing else runs
    /// beside it.
    Machine,
}

/// Half cores that no story has taken, once the first has asked; told when there are more.
static FREE: (Mutex<Option<usize>>, Condvar) = (Mutex::new(None), Condvar::new());

/// The turn of a story that must keep up with real time; over when it is dropped, which prints what it took.
pub struct Turn {
    halves: usize,
    began: Instant,
}

/// Waits until stories that must keep up with real time leave so much of the machine.
pub fn real_time(share: Share) -> Turn {
    let machine = 2 * std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    let halves = if matches!(share, Share::Machine) { machine } else { share as usize };
    let (free, more) = &FREE;
    let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
    while *free.get_or_insert(machine) < halves {
        free = more.wait(free).unwrap_or_else(PoisonError::into_inner);
    }
    *free = free.map(|free| free - halves);
    Turn { halves, began: Instant::now() }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (free, more) = &FREE;
        let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.map(|free| free + self.halves);
        more.notify_all();
        println!("took {:.1} s", self.began.elapsed().as_secs_f64());
    }
}

/// A folder that goes when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("rooftop-e2e-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Kept for reading when the test failed.
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A rooftop process with all ports chosen by the system.
pub struct Node {
    child: Child,
    listeners: BTreeMap<String, SocketAddr>,
    config: PathBuf,
    log: PathBuf,
    // Keeps the pipe open: a node that cannot write to its standard output would fail.
    _stdout: BufReader<std::process::ChildStdout>,
}

/// Sections of a configuration of one node that is everything.
pub fn all_in_one(state: &Path) -> BTreeMap<&'static str, String> {
    let local = r#"[{ name = "local", address = "127.0.0.1:0" }]"#;
    BTreeMap::from([
        ("node", format!("state_dir = {:?}\n", state.display())),
        ("admin", "listen = \"127.0.0.1:0\"\n".into()),
        ("cluster", format!("origins = {local}\nshields = {local}\n")),
        ("ingest", "rtmp = \"127.0.0.1:0\"\nrtmps = \"127.0.0.1:0\"\ndrain = \"0s\"\n".into()),
        ("origin", "listen = \"127.0.0.1:0\"\n".into()),
        ("shield", "https = \"127.0.0.1:0\"\ndrain = \"1s\"\n".into()),
        ("edge", "https = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\ndrain = \"1s\"\n".into()),
    ])
}

pub fn toml(sections: &BTreeMap<&'static str, String>) -> String {
    sections.iter().map(|(name, keys)| format!("[{name}]\n{keys}\n")).collect()
}

pub fn rooftop() -> Command {
    Command::new(env!("CARGO_BIN_EXE_rooftop"))
}

impl Node {
    /// Starts a node and waits until its ports are bound.
    pub fn start(folder: &Folder, name: &str, config: &str) -> Node {
        let config_path = folder.path().join(format!("{name}.toml"));
        // Nodes of one test share certificates and keys; what they keep is their own.
        let own_archive = match !config.contains("roles") || config.contains("[archive]") {
            true => String::new(),
            false => format!("\n[archive]\npath = {:?}\n", folder.path().join(format!("{name}-archive"))),
        };
        fs::write(&config_path, format!("{config}{own_archive}")).unwrap();
        let log = folder.path().join(format!("{name}.log"));
        let mut child = rooftop()
            .args(["serve", "--config"])
            .arg(&config_path)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let report: serde_json::Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{name} did not start:\n{}", fs::read_to_string(&log).unwrap()));
        let listeners = report["listeners"].as_object().unwrap();
        let listeners =
            listeners.iter().map(|(name, addr)| (name.clone(), addr.as_str().unwrap().parse().unwrap()));
        Node { child, listeners: listeners.collect(), config: config_path, log, _stdout: stdout }
    }

    pub fn addr(&self, listener: &str) -> SocketAddr {
        self.listeners[listener]
    }

    /// URL of a path at the plain HTTP listener of the edge.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr("http"))
    }

    /// What to give a broadcaster: the whole URL, with a fresh key.
    pub fn publish_url(&self, scheme: &str, stream: &str) -> String {
        let key = stream_key(&self.config, stream, "1h");
        format!("{scheme}://{}/live/{key}", self.addr(scheme))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the log holds `text`.
    pub fn logged(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), || self.log().contains(text).then_some(()));
    }

    /// The value of a counter, its labels included in `name`.
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = get(&format!("http://{}/metrics", self.addr("admin"))).text();
        let line =
            metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Gone without a word.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Still there, but it does nothing any more.
    pub fn freeze(&self) {
        signal(&self.child, "-STOP");
    }

    /// It goes on where it was frozen.
    pub fn thaw(&self) {
        signal(&self.child, "-CONT");
    }

    /// SIGTERM, without waiting for what it does.
    pub fn ask_to_end(&self) {
        terminate(&self.child);
    }

    /// Waits until it has ended by itself.
    pub fn ended(mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// SIGTERM; the exit status and how long it took.
    pub fn stop(mut self) -> (std::process::ExitStatus, Duration) {
        let began = Instant::now();
        terminate(&self.child);
        (self.child.wait().unwrap(), began.elapsed())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if std::thread::panicking() {
            eprintln!("--- log of the node ---\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// SIGTERM.
pub fn terminate(child: &Child) {
    signal(child, "-TERM");
}

fn signal(child: &Child, signal: &str) {
    let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

pub fn stream_key(config: &Path, stream: &str, ttl: &str) -> String {
    let output = rooftop()
        .args(["stream", "create", stream, "--json", "--ttl", ttl, "--config"])
        .arg(config)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let created: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    created["key"].as_str().unwrap().to_owned()
}

/// Asks until there is an answer; fails the test when there is none in time.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A clip to broadcast: FLV, so that what is sent is exactly what is in the file.
pub struct Clip {
    pub path: PathBuf,
}

/// What a clip is made of.
#[derive(Clone, Copy)]
pub struct Recipe {
    pub size: &'static str,
    pub rate: &'static str,
    pub seconds: u32,
    /// Arguments that come after the defaults.
    pub extra: &'static [&'static str],
}

impl Clip {
    /// Makes a clip, once per recipe and run.
    pub fn make(name: &str, recipe: Recipe) -> Clip {
        static MADE: OnceLock<Folder> = OnceLock::new();
        static MAKING: Mutex<()> = Mutex::new(());
        let folder = MADE.get_or_init(|| Folder::new("clips"));
        let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let path = folder.path().join(format!("{name}.flv"));
        if !path.exists() {
            let Recipe { size, rate, seconds, extra } = recipe;
            let temporary = folder.path().join(format!("{name}.part.flv"));
            let status = ffmpeg()
                .args(["-f", "lavfi", "-i", &format!("testsrc2=size={size}:rate={rate}:duration={seconds}")])
                .args([
                    "-f",
                    "lavfi",
                    "-i",
                    &format!("sine=frequency=440:sample_rate=48000:duration={seconds}"),
                ])
                .args([
                    "-c:v",
                    "libx264",
                    "-preset",
                    "superfast",
                    "-pix_fmt",
                    "yuv420p",
                    "-g",
                    "60",
                    "-b:v",
                    "1M",
                ])
                .args(["-c:a", "aac", "-b:a", "96k", "-ac", "2"])
                .args(extra)
                .arg(&temporary)
                .status()
                .unwrap();
            assert!(status.success(), "ffmpeg could not make {name}");
            fs::rename(temporary, &path).unwrap();
        }
        Clip { path }
    }
}

pub fn ffmpeg() -> Command {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-hide_banner", "-loglevel", "error", "-y"]).stdin(Stdio::null());
    command
}

/// A broadcaster that is killed when it is dropped.
pub struct Broadcaster(Child);

impl Broadcaster {
    /// Sends a file in real time, as it is; `loops` more times after the first (-1: for ever).
    pub fn send(clip: &Clip, url: &str, loops: i32) -> Broadcaster {
        let child = ffmpeg()
            .args(["-re", "-stream_loop", &loops.to_string(), "-i"])
            .arg(&clip.path)
            .args(["-c", "copy", "-copyinkf", "-f", "flv", url])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Broadcaster(child)
    }

    /// Waits for its end; whether it succeeded, and what it said.
    pub fn wait(mut self) -> (bool, String) {
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.0.wait().unwrap().success(), said)
    }

    /// Goes away without a word, as a broadcaster whose battery died.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Broadcaster {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An HTTP answer.
pub struct Answer {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub fn client() -> Client<HttpConnector, Empty<bytes::Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

pub fn get(url: &str) -> Answer {
    runtime().block_on(get_with(&client(), url))
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// GET; status 0 when there was no whole answer.
pub async fn get_with(client: &Client<HttpConnector, Empty<bytes::Bytes>>, url: &str) -> Answer {
    let answered = async {
        let response = client.get(url.parse().unwrap()).await.ok()?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.ok()?.to_bytes().to_vec();
        Some(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    };
    answered.await.unwrap_or(Answer { status: 0, headers: hyper::HeaderMap::new(), body: Vec::new() })
}

/// Waits until a stream can be watched.
pub fn live(node: &Node, stream: &str) {
    eventually(&format!("stream {stream}"), || {
        (get(&node.url(&format!("/live/{stream}/index.m3u8"))).status == 200).then_some(())
    });
}

/// One packet, times in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    pub pts: f64,
    pub key: bool,
    pub hash: String,
}

/// The packets of a source by stream: index, then `video` or `audio`, then packets in presentation order.
pub fn packets(input: &str) -> Vec<(String, Vec<Packet>)> {
    Probe::begin(input).end()
}

/// An ffprobe that reads while the test goes on.
pub struct Probe(Child);

impl Probe {
    /// Reads from the oldest segment on, to the end of the broadcast.
    pub fn begin(input: &str) -> Probe {
        let mut command = Command::new("ffprobe");
        command.args([
            "-v",
            "error",
            "-show_streams",
            "-show_packets",
            "-show_data_hash",
            "md5",
            "-of",
            "json",
        ]);
        if input.ends_with(".m3u8") {
            command.args(["-live_start_index", "0"]);
        }
        let child = command.arg(input).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Probe(child.spawn().unwrap())
    }

    pub fn end(mut self) -> Vec<(String, Vec<Packet>)> {
        let report: serde_json::Value = serde_json::from_reader(self.0.stdout.take().unwrap()).unwrap();
        assert!(self.0.wait().unwrap().success());
        let kind = |stream: &serde_json::Value| stream["codec_type"].as_str().unwrap().to_owned();
        let mut streams: Vec<_> =
            report["streams"].as_array().unwrap().iter().map(|stream| (kind(stream), Vec::new())).collect();
        for packet in report["packets"].as_array().unwrap() {
            let index = packet["stream_index"].as_u64().unwrap() as usize;
            streams[index].1.push(Packet {
                pts: packet["pts_time"].as_str().unwrap().parse().unwrap(),
                key: packet["flags"].as_str().unwrap().starts_with('K'),
                hash: packet["data_hash"].as_str().unwrap_or("").to_owned(),
            });
        }
        for (_, packets) in &mut streams {
            packets.sort_by(|a, b| a.pts.total_cmp(&b.pts));
        }
        streams
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The value behind `tag:` in a playlist.
pub fn tag<'a>(playlist: &'a str, tag: &str) -> Option<&'a str> {
    playlist.lines().find_map(|line| line.strip_prefix(tag)?.strip_prefix(':'))
}

/// The names of a multivariant playlist's renditions, audio last.
pub fn renditions(multivariant: &str) -> Vec<String> {
    let mut names: Vec<_> =
        multivariant.lines().filter_map(|line| line.strip_suffix(".m3u8")).map(str::to_owned).collect();
    if multivariant.contains("URI=\"audio.m3u8\"") {
        names.push("audio".into());
    }
    names
}
