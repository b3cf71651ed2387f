//! A real etcd, if there is one: started by the test on ports of the system's choosing, ended by its process id.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its share")]

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cluster::store::EtcdOptions;

const PATIENCE: Duration = Duration::from_secs(30);

/// A folder that goes when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (id, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("rooftop-cluster-{id}-{count}-{name}"));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An etcd of one member.
pub struct Etcd {
    child: Option<Child>,
    url: String,
    peer: String,
    folder: Folder,
    /// What it shows, and whose clients it lets in, by the names that [`Etcd::start_with`] was given.
    tls: Option<Tls>,
}

/// PEM files of an etcd that asks for client certificates.
#[derive(Clone)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

impl Etcd {
    /// `None` where etcd is not installed; in strict mode that is a failure.
    pub fn start() -> Option<Etcd> {
        Etcd::start_with(None)
    }

    /// Over TLS if files are given.
    pub fn start_with(tls: Option<&Tls>) -> Option<Etcd> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            let strict = std::env::var_os("ROOFTOP_STRICT").is_some_and(|value| value == "1");
            assert!(!strict, "etcd is not installed");
            eprintln!("skipped: etcd is not installed");
            return None;
        }
        // A port may be taken in between: then others are tried.
        for _ in 0..5 {
            let address = |listener: &TcpListener| listener.local_addr().unwrap();
            let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
            let scheme = if tls.is_some() { "https" } else { "http" };
            let url = format!("{scheme}://{}", address(&listeners[0]));
            let peer = format!("http://{}", address(&listeners[1]));
            drop(listeners);
            let tls = tls.cloned();
            let mut etcd = Etcd { child: None, url, peer, folder: Folder::new("etcd"), tls };
            if etcd.run() {
                return Some(etcd);
            }
        }
        panic!("etcd does not start");
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn store(&self, prefix: &str) -> cluster::store::Etcd {
        let endpoints = vec![self.url.clone()];
        let options = EtcdOptions { endpoints, prefix: prefix.into(), tls: None };
        cluster::store::Etcd::new(&options).await.unwrap()
    }

    /// SIGKILL; its data stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// After [`Etcd::kill`], with the same data and ports.
    pub fn restart(&mut self) {
        assert!(self.run(), "etcd does not start again");
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    fn run(&mut self) -> bool {
        let log = File::create(self.folder.path().join("log")).unwrap();
        let mut command = Command::new("etcd");
        command.args(["--name", "one"]).arg("--data-dir").arg(self.folder.path().join("data"));
        command.args(["--listen-client-urls", &self.url, "--advertise-client-urls", &self.url]);
        command.args(["--listen-peer-urls", &self.peer, "--initial-advertise-peer-urls", &self.peer]);
        command.args(["--initial-cluster", &format!("one={}", self.peer)]);
        if let Some(Tls { certificate, key, ca }) = &self.tls {
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let child = self.child.insert(child);
        let began = Instant::now();
        loop {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            let mut asked = Command::new("etcdctl");
            if let Some(Tls { certificate, key, ca }) = &self.tls {
                asked.arg("--cert").arg(certificate).arg("--key").arg(key).arg("--cacert").arg(ca);
            }
            let asked = asked
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &self.url])
                .args(["--command-timeout", "1s", "endpoint", "health"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if asked.is_ok_and(|status| status.success()) {
                return true;
            }
            assert!(began.elapsed() < PATIENCE, "etcd does not get well");
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
