//! 500 viewers ask for the same cold segment at once.

use crate::kit::*;

#[test]
fn five_hundred_viewers_are_one_request_to_the_origin() {
    let _turn = real_time(Share::Machine);
    let clip = Clip::make(
        "360p",
        Recipe { size: "640x360", rate: "30", seconds: 10, extra: &["-tune", "zerolatency"] },
    );
    let folder = Folder::new("herd");
    let mut config = all_in_one(&folder.path().join("state"));
    // By push the segment would be here already.
    for tier in ["shield", "edge"] {
        config.get_mut(tier).unwrap().push_str("delivery = [{ prefix = \"/\", mode = \"pull\" }]\n");
    }
    let node = Node::start(&folder, "node", &toml(&config));
    let _broadcaster = Broadcaster::send(&clip, &node.publish_url("rtmp", "show"), -1);
    live(&node, "show");
    let playlist = eventually("three segments", || {
        let playlist = get(&node.url("/live/show/360p.m3u8")).text();
        (playlist.matches("#EXTINF").count() >= 3).then_some(playlist)
    });
    let segment = playlist.lines().find(|line| line.ends_with(".m4s") && !line.starts_with('#')).unwrap();
    let url = node.url(&format!("/live/show/{segment}"));

    // Nobody else asks for anything meanwhile: no player is connected.
    let before = node.metric("origin_requests_total");
    let bodies = runtime().block_on(async {
        let client = client();
        let gate = std::sync::Arc::new(tokio::sync::Barrier::new(500));
        let mut viewers = tokio::task::JoinSet::new();
        for _ in 0..500 {
            let (client, url, gate) = (client.clone(), url.clone(), gate.clone());
            viewers.spawn(async move {
                gate.wait().await;
                get_with(&client, &url).await
            });
        }
        viewers.join_all().await
    });
    assert_eq!(bodies.len(), 500);
    let first = &bodies[0].body;
    assert!(first.len() > 1000);
    for answer in &bodies {
        assert!(answer.status == 200 && answer.body == *first, "status {}", answer.status);
    }
    assert_eq!(node.metric("origin_requests_total") - before, 1.0);
}
