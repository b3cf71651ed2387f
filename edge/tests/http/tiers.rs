//! Edge over shield over upstream, by h2 over TLS.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use cluster::Node;
use edge::{Config, Edge};
use http::{Request, Version};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use net::tls::{Clients, client_config, development_files, server_config};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::kit::{Tier, Upstream, body, config as plain, deps, next, patient, until, within};

struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn two_tiers_over_h2_and_tls() {
    let dir = Dir(std::env::temp_dir().join(format!("rooftop-edge-tiers-{}", std::process::id())));
    let files = development_files(&dir.0, "node", &[]).unwrap();
    let client_tls = client_config(&files).unwrap();
    let mut upstream = Upstream::start("origin").await;
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config { https: Some(local), http: None, ..plain(patient()) };
    let alpn: &[&[u8]] = &[b"h2", b"http/1.1"];
    let shutdown = CancellationToken::new();
    let mut registry = Registry::default();

    let mut shield = deps(&mut registry, vec![upstream.node.clone()]);
    shield.tier = "shield";
    shield.server_tls = Some(server_config(&files, Clients::Fleet, alpn).unwrap());
    let metrics = shield.metrics.clone();
    let shield = Edge::bind(config.clone(), shield).await.unwrap();
    let node = Node { name: "shield-1".into(), address: shield.https_addr().unwrap().to_string() };
    let shield = tokio::spawn(shield.serve(shutdown.clone()));

    let mut pop = deps(&mut Registry::default(), vec![node]);
    pop.metrics = metrics;
    pop.client_tls = Some(client_tls.clone());
    pop.server_tls = Some(server_config(&files, Clients::Anyone, alpn).unwrap());
    let pop = Edge::bind(config, pop).await.unwrap();
    let url = format!("https://{}/live/s/1.m4s", pop.https_addr().unwrap());
    let pop = tokio::spawn(pop.serve(shutdown.clone()));

    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(rustls::ClientConfig::clone(&client_tls))
        .https_only()
        .enable_all_versions()
        .build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let get = || {
        let request = Request::get(&url).body(Empty::new()).unwrap();
        let response = client.request(request);
        tokio::spawn(async move { within("an answer", response).await.unwrap() })
    };
    let viewers: Vec<_> = (0..20).map(|_| get()).collect();
    let asked = upstream.asked().await;
    let cdn_loop = asked.headers["cdn-loop"].to_str().unwrap();
    assert!(cdn_loop.contains("node=edge-") && cdn_loop.contains("node=shield-"), "{cdn_loop}");
    let chunks = asked.begin(200, &[("cache-control", "max-age=600")]);
    let whole: Vec<u8> = (0..200_000_u32).map(|n| (n % 253) as u8).collect();
    let (half, rest) = whole.split_at(80_000);
    chunks.send(half);
    let mut answers = Vec::new();
    for viewer in viewers {
        let mut answer = viewer.await.unwrap();
        assert_eq!(answer.version(), Version::HTTP_2);
        let mut got = Vec::new();
        while got.len() < half.len() {
            let frame = within("the first half", answer.body_mut().frame()).await.unwrap().unwrap();
            got.extend_from_slice(&frame.into_data().unwrap());
        }
        answers.push((answer, got));
    }
    chunks.send(rest);
    chunks.end();
    for (answer, mut got) in answers {
        got.extend_from_slice(&answer.into_body().collect().await.unwrap().to_bytes());
        assert!(got == whole);
    }
    let hit = get().await.unwrap();
    let words: Vec<_> =
        hit.headers().get_all("cache-status").iter().map(|value| value.to_str().unwrap()).collect();
    assert!(
        words[0] == "rooftop-shield; fwd=miss; stored" && words[1].starts_with("rooftop-edge; hit"),
        "{words:?}"
    );
    let via: Vec<_> = hit.headers().get_all("via").iter().collect();
    assert_eq!(via, ["1.1 rooftop-shield", "2 rooftop-edge"]);
    assert_eq!(upstream.requests(), 1);
    drop(client);
    shutdown.cancel();
    within("both ends", async { tokio::try_join!(pop, shield) }).await.unwrap();
}

#[tokio::test]
async fn a_shield_may_die_within_a_body() {
    const TAGGED: [(&str, &str); 2] = [("cache-control", "max-age=600"), ("etag", "\"7-720p-3\"")];
    let mut origin = Upstream::start("origin").await;
    let mut shields = Vec::new();
    for _ in 0..2 {
        let nodes = vec![origin.node.clone()];
        shields.push(Tier::start(plain(patient()), nodes, |deps| deps.tier = "shield").await);
    }
    let nodes = shields.iter().enumerate().map(|(n, shield)| shield.node(&format!("shield-{n}"))).collect();
    let pop = Tier::start(plain(patient()), nodes, |_| {}).await;
    let mut viewers: Vec<_> = (0..20).map(|n| pop.ask(n, "GET", "/live/s/7/720p/3.m4s", &[])).collect();
    let growing = origin.asked().await.begin(200, &TAGGED);
    growing.send(b"the first part, ");
    let mut answers = Vec::new();
    for viewer in viewers.drain(..) {
        let mut answer = viewer.await.unwrap();
        assert_eq!(next(&mut answer).await.unwrap(), "the first part, ");
        answers.push(answer);
    }
    let fetched = "edge_fetches_total{tier=\"shield\",class=\"other\",outcome=\"answered\"}";
    let in_use = shields.iter().position(|shield| shield.metric(fetched) == 1).unwrap();
    shields.swap_remove(in_use).kill().await;
    growing.gone().await;
    // The other shield fetches the object from its beginning, as it grows, and gives the POP what that lacks.
    let again = origin.asked().await;
    assert!(!again.headers.contains_key("range"), "objects are fetched whole");
    let growing = again.begin(200, &TAGGED);
    growing.send(b"the first part, ");
    growing.send(b"the second, ");
    for answer in &mut answers {
        assert_eq!(next(answer).await.unwrap(), "the second, ");
    }
    growing.send(b"and the last");
    growing.end();
    for answer in answers {
        assert_eq!(body(answer).await.unwrap(), "and the last");
    }
    assert_eq!(origin.requests(), 2);
    assert_eq!(pop.metric("edge_fetches_total{tier=\"edge\",class=\"other\",outcome=\"resumed\"}"), 1);
    until("the flight's end", || pop.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    let hit = pop.get("/live/s/7/720p/3.m4s", &[]).await;
    assert_eq!(body(hit).await.unwrap(), "the first part, the second, and the last");
}
