//! A node takes another configuration while it works: nobody is sent away, no frame is lost.

use std::fs;
use std::path::Path;
use std::process::Command;

use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use net::tls::{Files, client_config, development_files};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::kit::*;
use crate::policy::{JSON, ask};

const SOURCE: Recipe =
    Recipe { size: "320x180", rate: "30", seconds: 12, extra: &["-g", "30", "-b:v", "300k"] };

/// Good and bad files, one after the other.
const STORM: usize = 100;

const LADDERS: [&str; 2] = [
    "rungs = [{ height = 180, bitrate_kbps = 300 }, { height = 90, bitrate_kbps = 100 }]\n",
    "rungs = [{ height = 180, bitrate_kbps = 250 }, { height = 120, bitrate_kbps = 150 }]\n",
];

/// A viewer who keeps one connection for everything.
struct Viewer {
    sender: http1::SendRequest<Empty<bytes::Bytes>>,
    /// The certificate that it was shown.
    certificate: Vec<u8>,
}

impl Viewer {
    async fn connect(node: &Node, trusted: &Files) -> Viewer {
        let socket = TcpStream::connect(node.addr("https")).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(client_config(trusted).unwrap());
        let stream = connector.connect("localhost".try_into().unwrap(), socket).await.unwrap();
        let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Viewer { sender, certificate }
    }

    async fn watches(&mut self) {
        let request = http::Request::get("/live/show/180p.m3u8").header("host", "localhost");
        let answer =
            self.sender.send_request(request.body(Empty::new()).unwrap()).await.expect("not cut off");
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
    }
}

fn reload(node: &Node) -> (u16, Value) {
    let (status, _, body) = ask(node, "POST", "/admin/reload", &[JSON], "");
    (status, serde_json::from_str(&body).unwrap())
}

/// Puts files in the place of others, as certbot does.
fn show(files: &Files, folder: &Path) {
    for (from, to) in [(&files.certificate, "live.pem"), (&files.key, "live.key")] {
        fs::copy(from, folder.join("next")).unwrap();
        fs::rename(folder.join("next"), folder.join(to)).unwrap();
    }
}

fn certificate_for(runtime: &Runtime, node: &Node, trusted: &Files) -> Vec<u8> {
    runtime.block_on(Viewer::connect(node, trusted)).certificate
}

#[test]
fn a_storm_of_reloads_cuts_nobody_off() {
    let _turn = real_time(Share::Half);
    let clip = Clip::make("reload", SOURCE);
    let source = packets(clip.path.to_str().unwrap());
    let folder = Folder::new("storm");
    // Two certificates of one CA.
    let certificates =
        ["first", "second"].map(|node| development_files(&folder.path().join("ca"), node, &[]).unwrap());
    let ders = certificates
        .each_ref()
        .map(|files| CertificateDer::from_pem_file(&files.certificate).unwrap().to_vec());
    show(&certificates[0], folder.path());
    let mut config = all_in_one(&folder.path().join("state"));
    let [pem, key] = ["live.pem", "live.key"].map(|name| folder.path().join(name));
    config.insert("tls", format!("public_certificate = {pem:?}\npublic_key = {key:?}\n"));
    config.get_mut("node").unwrap().push_str("watch_config = false\n");
    config.get_mut("origin").unwrap().push_str("window = \"60s\"\nreconnect_grace = \"1s\"\n");
    config.insert("transcode", LADDERS[0].into());
    let node = Node::start(&folder, "node", &toml(&config));
    let broadcaster = Broadcaster::send(&clip, &node.publish_url("rtmps", "show"), 0);
    live(&node, "show");
    let names = renditions(&get(&node.url("/live/show/index.m3u8")).text());
    assert_eq!(names, ["180p", "90p", "audio"]);
    let readers: Vec<_> =
        names.iter().map(|name| Probe::begin(&node.url(&format!("/live/show/{name}.m3u8")))).collect();

    let runtime = runtime();
    let mut early = runtime.block_on(Viewer::connect(&node, &certificates[0]));
    assert_eq!(early.certificate, ders[0]);
    for round in 0..STORM {
        let turn = round / 4 % 2;
        let mut wanted = config.clone();
        let expected = match round % 4 {
            // Another ladder, other limits, another log.
            0 => {
                wanted.insert("transcode", LADDERS[1 - turn].into());
                wanted.get_mut("ingest").unwrap().push_str(&format!("max_connections = {}\n", 100 + round));
                wanted.insert("edge.limits", format!("max_connections = {}\n", 1000 + round));
                let filter = ["info", "info,edge=debug"][turn];
                wanted.insert("log", format!("filter = {filter:?}\n"));
                Ok(())
            }
            1 => {
                wanted.insert("edge.limits", "max_connections = 0\n".into());
                Err("edge.limits.max_connections: must be 1 or more")
            }
            2 => {
                show(&certificates[1 - turn], folder.path());
                Ok(())
            }
            _ => {
                wanted.insert("tls", format!("public_certificate = {pem:?}\npublic_key = {pem:?}\n"));
                Err("live.pem: ")
            }
        };
        fs::write(node.config(), toml(&wanted)).unwrap();
        let (status, said) = reload(&node);
        match expected {
            Ok(()) => assert_eq!((status, &said["needs_restart"]), (200, &serde_json::json!([])), "{said}"),
            Err(why) => {
                let problems = said["problems"].to_string();
                assert!(status == 422 && problems.contains(why), "{status} {said}");
            }
        }
        runtime.block_on(early.watches());
        if round % 4 == 2 {
            assert_eq!(said["certificates"], serde_json::json!(["public"]));
            assert_eq!(certificate_for(&runtime, &node, &certificates[0]), ders[1 - turn]);
        }
    }
    assert_eq!(node.metric("config_reloads_total{result=\"taken\"}"), STORM as f64 / 2.0);
    assert_eq!(node.metric("config_reloads_total{result=\"refused\"}"), STORM as f64 / 2.0);

    let (sent, said) = broadcaster.wait();
    assert!(sent, "{said}");
    let media: Vec<_> = readers.into_iter().flat_map(Probe::end).collect();
    let of = |streams: &[(String, Vec<Packet>)], kind: &str| -> Vec<Vec<Packet>> {
        streams.iter().filter(|(of, _)| of == kind).map(|(_, packets)| packets.clone()).collect()
    };
    let (video, sent_video) = (of(&media, "video"), of(&source, "video").remove(0));
    assert_eq!(video.iter().map(Vec::len).collect::<Vec<_>>(), [sent_video.len(); 2], "every frame, once");
    let hashes = |packets: &[Packet]| packets.iter().map(|packet| packet.hash.clone()).collect::<Vec<_>>();
    let (sent, got) = (hashes(&of(&source, "audio")[0]), hashes(&of(&media, "audio")[0]));
    assert!(
        sent.ends_with(&got) && got.len() + 2 >= sent.len(),
        "{} of {} audio frames",
        got.len(),
        sent.len()
    );
    assert_eq!(node.metric("origin_runs_total"), 1.0);
    runtime.block_on(early.watches());

    // What needs a restart is said by name, by the command, too, and until it is so.
    config.insert("transcode", LADDERS[1].into());
    config.insert("edge", config["edge"].replace("drain = \"1s\"", "drain = \"2s\""));
    config.insert("node", config["node"].replace("watch_config = false", "watch_config = true"));
    fs::write(node.config(), toml(&config)).unwrap();
    let admin = format!("--admin={}", node.addr("admin"));
    let output = rooftop().args(["reload", &admin]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("node.watch_config: false -> true, at once"), "{said}");
    assert!(said.contains("edge.drain needs a restart: still 1s, the file says 2s"), "{said}");
    let status: Value =
        serde_json::from_str(&get(&format!("http://{}/admin/status", node.addr("admin"))).text()).unwrap();
    assert_eq!(status["config"]["needs_restart"][0]["key"], "edge.drain", "{status}");
    assert_eq!(node.metric("config_keys_waiting"), 1.0);

    // A new certificate is found by itself; a file that is changed as well, and SIGHUP does the same.
    let shown = certificate_for(&runtime, &node, &certificates[0]);
    let other = ders.iter().position(|der| *der != shown).unwrap();
    show(&certificates[other], folder.path());
    eventually("the new certificate", || {
        (certificate_for(&runtime, &node, &certificates[0]) == ders[other]).then_some(())
    });
    fs::write(node.config(), "[edge]\nhttp = 1\n").unwrap();
    node.logged("problem=\"edge.http: ");
    fs::write(node.config(), toml(&config).replace("drain = \"2s\"", "drain = \"1s\"")).unwrap();
    let hang_up = Command::new("kill").args(["-HUP", &node.pid().to_string()]).status().unwrap();
    assert!(hang_up.success());
    eventually("nothing to wait for", || (node.metric("config_keys_waiting") == 0.0).then_some(()));

    // The next broadcast has the ladder of the file.
    let broadcaster = Broadcaster::send(&clip, &node.publish_url("rtmps", "next"), 0);
    live(&node, "next");
    let names = renditions(&get(&node.url("/live/next/index.m3u8")).text());
    assert_eq!(names, ["180p", "120p", "audio"]);
    broadcaster.kill();
}
