//! A server that is nothing but hyper, tokio-rustls and a map of answers: what is left when a cache costs nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use net::tls::{self, Clients};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::node::pinned;
use crate::origin;
use crate::process::Running;
use crate::server::Server;

/// First argument of this binary that makes it such a server.
pub(crate) const MODE: &str = "--bare-hyper";

pub(crate) const NAME: &str = "bare hyper";

/// Requests below this are held, each name until somebody asks for [`RELEASE`] and the same name: then all get the object of
/// [`HELD_SIZE`]: how fast a herd can be woken at all.
pub(crate) const HOLD: &str = "/hold";
pub(crate) const RELEASE: &str = "/release";

/// In bytes.
pub(crate) const HELD_SIZE: usize = 20_000;

/// What it answers, by path.
pub(crate) type Answers = BTreeMap<String, Answer>;

/// A 200.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// In their order; names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// Of [`origin::content`].
    pub(crate) size: usize,
}

#[derive(Serialize, Deserialize)]
struct Task {
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    answers: Answers,
}

#[derive(Serialize, Deserialize)]
struct Bound {
    https: SocketAddr,
    http: SocketAddr,
}

/// Starts this binary as such a server and waits until its ports are bound.
pub(crate) fn start(
    folder: &Path,
    answers: &Answers,
    files: &tls::Files,
    cpu: Option<usize>,
) -> anyhow::Result<Server> {
    let folder = folder.join("bare-hyper");
    std::fs::create_dir_all(&folder)?;
    let tls::Files { ca, certificate, key } = files.clone();
    let task = Task { ca, certificate, key, answers: answers.clone() };
    let path = folder.join("task.json");
    std::fs::write(&path, serde_json::to_vec(&task)?)?;
    let log = folder.join("bare-hyper.log");
    let program = std::env::current_exe()?;
    let mut command = pinned(program.to_str().context("a path in UTF-8")?, cpu);
    command.arg(MODE).arg(&path);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
    let mut process = Running::start(NAME, &mut command)?;
    let mut line = String::new();
    // It says nothing more: the pipe may close.
    BufReader::new(process.child().stdout.take().context("no pipe")?).read_line(&mut line)?;
    let Bound { https, http } =
        serde_json::from_str(&line).with_context(|| format!("{NAME} did not start: {}", log.display()))?;
    let title = "hyper, tokio-rustls and a map of answers".into();
    Server::of(NAME, title, process, Some(https), Some(http), &folder)
}

/// What the child process does.
pub(crate) fn child(mut args: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let path = args.next().context("which task?")?;
    let task: Task = serde_json::from_slice(&std::fs::read(path)?)?;
    // A worker per CPU that it may use, as a node has.
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(task))
}

async fn serve(task: Task) -> anyhow::Result<()> {
    let Task { certificate, key, ca, answers } = task;
    let files = tls::Files { certificate, key, ca };
    let tls = TlsAcceptor::from(tls::server_config(&files, Clients::Anyone, &[b"h2", b"http/1.1"])?);
    let mut prepared = BTreeMap::new();
    for (path, answer) in answers {
        let mut headers = HeaderMap::new();
        for (name, value) in &answer.headers {
            headers.append(name.parse::<HeaderName>()?, value.parse::<HeaderValue>()?);
        }
        prepared.insert(path, (headers, origin::content(answer.size)));
    }
    let answers =
        Arc::new(Prepared { answers: prepared, held: origin::content(HELD_SIZE), gates: Mutex::default() });
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (https, http) = (TcpListener::bind(any).await?, TcpListener::bind(any).await?);
    let bound = Bound { https: https.local_addr()?, http: http.local_addr()? };
    println!("{}", serde_json::to_string(&bound)?);
    std::io::stdout().flush()?;
    tokio::try_join!(accept(https, Some(tls), answers.clone()), accept(http, None, answers))?;
    Ok(())
}

struct Prepared {
    answers: BTreeMap<String, (HeaderMap, Bytes)>,
    held: Bytes,
    /// Names that are held; true: no longer.
    gates: Mutex<BTreeMap<String, watch::Sender<bool>>>,
}

impl Prepared {
    fn gate<T>(&self, name: &str, use_it: impl FnOnce(&watch::Sender<bool>) -> T) -> T {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        use_it(gates.entry(name.into()).or_insert_with(|| watch::Sender::new(false)))
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    answers: Arc<Prepared>,
) -> anyhow::Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (tls, answers) = (tls.clone(), answers.clone());
        tokio::spawn(async move {
            // A client that goes away is none of our business.
            let _ = connection(socket, tls, answers).await;
        });
    }
}

async fn connection(
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    answers: Arc<Prepared>,
) -> anyhow::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(answer(&answers, request.uri().path()).await) }
    });
    let h1 = || {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(None);
        builder
    };
    match tls {
        None => h1().serve_connection(TokioIo::new(socket), service).await?,
        Some(tls) => {
            let stream = tls.accept(socket).await?;
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.serve_connection(TokioIo::new(stream), service).await?;
            } else {
                h1().serve_connection(TokioIo::new(stream), service).await?;
            }
        }
    }
    Ok(())
}

async fn answer(prepared: &Prepared, path: &str) -> Response<Full<Bytes>> {
    if let Some((headers, body)) = prepared.answers.get(path) {
        let mut response = Response::new(Full::new(body.clone()));
        *response.headers_mut() = headers.clone();
        return response;
    }
    if let Some(name) = path.strip_prefix(HOLD) {
        let mut open = prepared.gate(name, watch::Sender::subscribe);
        // The gates stay for as long as the process.
        let _ = open.wait_for(|open| *open).await;
        return Response::new(Full::new(prepared.held.clone()));
    }
    let mut response = Response::new(Full::default());
    match path.strip_prefix(RELEASE) {
        Some(name) => prepared.gate(name, |gate| {
            gate.send_replace(true);
        }),
        None => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    response
}

/// What a server answers to a GET of each path, for another to answer the same: its headers and the length of its body,
/// which must be [`origin::content`].
pub(crate) async fn learn(
    http: SocketAddr,
    paths: impl IntoIterator<Item = String>,
) -> anyhow::Result<Answers> {
    let mut answers = Answers::new();
    for path in paths {
        // The second time it is a hit.
        for _ in 0..2 {
            let got = crate::crowd::get(http, &path).await?;
            ensure!(got.status == 200, "{path}: status {}", got.status);
            ensure!(got.body == origin::content(got.body.len()), "{path}: other bytes than those asked for");
            let answer = Answer { size: got.body.len(), headers: got.headers };
            answers.insert(path.clone(), answer);
        }
    }
    Ok(answers)
}
