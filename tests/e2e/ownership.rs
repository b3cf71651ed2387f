//! A fleet around a real etcd: the origin that has a stream is killed, and the other goes on with it under a higher epoch;
//! etcd is away in between, and nobody notices but who brings a new stream.

use std::process::Command;

use crate::etcd::Etcd;
use crate::kit::*;

/// What etcd holds under a prefix, as a third party sees it.
fn records(etcd: &Etcd, prefix: &str) -> Vec<serde_json::Value> {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", etcd.url(), "get", "--prefix", "--print-value-only", prefix])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The epoch of the newest segment that a playlist lists.
fn newest_epoch(edge: &Node) -> Option<u64> {
    let playlist = get(&edge.url("/live/show/240p.m3u8"));
    let text = (playlist.status == 200).then(|| playlist.text())?;
    let segment = text.lines().rfind(|line| line.ends_with(".m4s"))?;
    segment.split('/').next()?.parse().ok()
}

#[test]
fn a_stream_outlives_its_origin_and_etcd() {
    let Some(etcd) = Etcd::start() else { return };
    let _turn = real_time(Share::Half);
    let folder = Folder::new("cluster");
    let node = |name: &str, roles: &str, keys: &str| {
        let config = format!(
            "[node]\nname = \"{name}\"\nroles = [{roles}]\nstate_dir = {:?}\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [cluster]\nstore = \"etcd\"\nhost = \"127.0.0.1\"\n[cluster.etcd]\nendpoints = [{:?}]\n{keys}\n",
            folder.path().join("state").display(),
            etcd.url()
        );
        Node::start(&folder, name, &config)
    };
    let origin = "[origin]\nlisten = \"127.0.0.1:0\"";
    let origins = ["origin-1", "origin-2"].map(|name| node(name, "\"origin\"", origin));
    let tiers = "[shield]\nhttps = \"127.0.0.1:0\"\n[edge]\nhttp = \"127.0.0.1:0\"";
    let edge = node("edge", "\"shield\", \"edge\"", tiers);
    let pop = node("pop", "\"ingest\"", "[ingest]\nrtmp = \"127.0.0.1:0\"");
    for node in origins.iter().chain([&edge, &pop]) {
        eventually("the node is ready", || {
            (get(&format!("http://{}/readyz", node.addr("admin"))).status == 200).then_some(())
        });
        eventually("it knows all five roles", || (node.metric("cluster_nodes") == 5.0).then_some(()));
    }

    let recipe = Recipe { size: "320x240", rate: "30", seconds: 60, extra: &[] };
    let broadcaster = Broadcaster::send(&Clip::make("cluster", recipe), &pop.publish_url("rtmp", "show"), 0);
    live(&edge, "show");
    let first = eventually("a segment", || newest_epoch(&edge));
    let record = eventually("the record", || records(&etcd, "/rooftop/streams/show").pop());
    let owner = record["owner"].as_str().unwrap().to_owned();
    assert_eq!(record["epoch"], first);
    let is_owner = |node: &Node| node.config().ends_with(format!("{owner}.toml"));
    let [one, two] = origins;
    let (owner, other) = if is_owner(&one) { (one, two) } else { (two, one) };
    eventually("the POP sees the load", || {
        let nodes = records(&etcd, "/rooftop/nodes/origin/");
        nodes
            .iter()
            .any(|node| {
                node["load"].as_u64() >= Some(1) && node["address"] == owner.addr("origin").to_string()
            })
            .then_some(())
    });

    // etcd stands still for longer than the leases last: what runs goes on, a new stream is told why not.
    etcd.freeze();
    for node in [&owner, &other] {
        eventually("the loss is noticed", || (node.metric("cluster_store_up") == 0.0).then_some(()));
    }
    let acknowledged = pop.metric("ingest_acknowledged_segments_total");
    let refused = Broadcaster::send(&Clip::make("cluster", recipe), &pop.publish_url("rtmp", "other"), 0);
    pop.logged("the store cannot be reached");
    drop(refused);
    eventually("the stream goes on for longer than a lease", || {
        (pop.metric("ingest_acknowledged_segments_total") >= acknowledged + 6.0).then_some(())
    });
    etcd.thaw();
    for node in [&owner, &other] {
        eventually("etcd is back", || (node.metric("cluster_store_up") == 1.0).then_some(()));
    }
    assert_eq!(newest_epoch(&edge), Some(first), "nobody took it over");
    assert_eq!(pop.metric("ingest_replays_total"), 0.0);

    let began = std::time::Instant::now();
    owner.kill();
    let second =
        eventually("a segment of the other origin", || newest_epoch(&edge).filter(|epoch| *epoch != first));
    println!("a segment of the next origin after {:?}", began.elapsed());
    assert!(second > first, "{second} after {first}");
    let record = records(&etcd, "/rooftop/streams/show").pop().unwrap();
    assert_eq!(record["address"], other.addr("origin").to_string());
    assert!(record["epoch"].as_u64().unwrap() >= second);
    assert!(other.metric("cluster_claims_total{outcome=\"granted\"}") >= 1.0);
    assert_eq!(pop.metric("ingest_replays_total"), 1.0);
    eventually("the dead origin's record goes with its lease", || {
        (records(&etcd, "/rooftop/nodes/origin/").len() == 1).then_some(())
    });
    drop(broadcaster);
}
