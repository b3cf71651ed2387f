//! A broadcast that is pushed from the origin through a shield to a POP: players that follow its live edge cause no
//! request above their POP, and get the bytes that players of a POP which fetches get.

use std::collections::BTreeMap;

use tokio::task::JoinSet;

use crate::kit::*;

const SEGMENTS: usize = 6;

#[test]
fn players_at_the_live_edge_cause_no_requests_upstream() {
    let _turn = real_time(Share::Half);
    let clip = Clip::make(
        "360p",
        Recipe { size: "640x360", rate: "30", seconds: 10, extra: &["-tune", "zerolatency"] },
    );
    let folder = Folder::new("push");
    let state = folder.path().join("state");
    let mut config = all_in_one(&state);
    // A machine that stands still for a moment is not what is tested.
    let patient = "push.silence = \"60s\"\npush.idle = \"1h\"\n\
                   classes = [{ paths = [\"*\"], blocking_timeout = \"60s\", give_up = \"120s\" }]\n";
    for tier in ["shield", "edge"] {
        config.get_mut(tier).unwrap().push_str(patient);
    }
    let node = Node::start(&folder, "node", &toml(&config));
    let shield = format!("[{{ name = \"local\", address = \"{}\" }}]", node.addr("shield"));
    let pulls = Node::start(
        &folder,
        "pulls",
        &format!(
            "[node]\nroles = [\"edge\"]\nstate_dir = {:?}\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [cluster]\norigins = {shield}\nshields = {shield}\n\
             [edge]\nhttp = \"127.0.0.1:0\"\ndelivery = [{{ prefix = \"/\", mode = \"pull\" }}]\n",
            state.display()
        ),
    );
    let _broadcaster = Broadcaster::send(&clip, &node.publish_url("rtmp", "show"), -1);
    live(&node, "show");
    let names = renditions(&get(&node.url("/live/show/index.m3u8")).text());
    eventually("the push", || (node.metric("edge_pushes{tier=\"edge\"}") == 1.0).then_some(()));
    // Each rendition has come, and whatever was fetched before has been replaced.
    let segments =
        |name: &String| get(&node.url(&format!("/live/show/{name}.m3u8"))).text().matches("#EXTINF:").count();
    let before: Vec<_> = names.iter().map(segments).collect();
    for (name, before) in names.iter().zip(before) {
        eventually("two more segments", || (segments(name) >= before + 2).then_some(()));
    }
    assert_eq!(node.metric("edge_push_subscribers{tier=\"shield\"}"), 1.0);
    assert_eq!(node.metric("origin_pushes"), 1.0);

    let origin = || node.metric("origin_requests_total");
    let shield = || {
        let results = ["hit", "miss", "coalesced", "promoted", "stale", "error", "pushed", "refused"];
        results
            .map(|result| node.metric(&format!("edge_requests_total{{tier=\"shield\",result=\"{result}\"}}")))
            .iter()
            .sum::<f64>()
    };
    let (origin_before, shield_before) = (origin(), shield());
    let pushed = play(&node, &names);
    assert_eq!((origin() - origin_before, shield() - shield_before), (0.0, 0.0), "requests above the POP");
    let waited = node.metric("edge_requests_total{tier=\"edge\",result=\"pushed\"}");
    assert!(waited >= (3 * SEGMENTS * names.len()) as f64, "{waited} requests were answered by the push");
    assert_eq!(node.metric("edge_push_promises_missed_total{tier=\"edge\"}"), 0.0);
    for media in pushed.values() {
        assert_eq!(&media[4..8], b"styp");
    }

    // A POP that pulls, from a shield that is pushed to.
    let fetched = play(&pulls, &names);
    assert_eq!(origin() - origin_before, 0.0, "the shield has it all");
    assert!(shield() - shield_before >= (SEGMENTS * names.len()) as f64);
    assert_eq!(pulls.metric("edge_push_objects_total{tier=\"edge\"}"), 0.0);
    // The same objects, either way.
    let mut both = 0;
    for (path, media) in &pushed {
        assert!(get(&pulls.url(path)).body == *media, "{path}");
    }
    for (path, media) in &fetched {
        let answer = get(&node.url(path));
        assert!(answer.body == *media, "{path}");
        both += usize::from(answer.headers["cache-status"].to_str().unwrap().contains("hit"));
    }
    assert_eq!(both, fetched.len(), "pushed on while nobody asked");
    assert_eq!(origin() - origin_before, 0.0);
}

/// Watches some segments of these renditions at the live edge: each one's path and bytes.
fn play(node: &Node, names: &[String]) -> BTreeMap<String, Vec<u8>> {
    runtime().block_on(async {
        let mut players = JoinSet::new();
        for name in names {
            players.spawn(follow(node.url(""), name.clone()));
        }
        players.join_all().await.into_iter().flatten().collect()
    })
}

/// As low-latency players do: the hinted segment before it begins, and each playlist before it is there, as a delta update.
async fn follow(base: String, rendition: String) -> BTreeMap<String, Vec<u8>> {
    let client = client();
    let file = format!("{base}/live/show/{rendition}.m3u8");
    let mut playlist = get_with(&client, &file).await.text();
    let (mut fetches, mut known) = (JoinSet::new(), Vec::new());
    let mut media = BTreeMap::new();
    while media.len() < SEGMENTS {
        if let Some(hint) = tag(&playlist, "#EXT-X-PRELOAD-HINT").and_then(|hint| hint.split('"').nth(1))
            && !known.iter().any(|other| other == hint)
        {
            known.push(hint.to_owned());
            let (client, path) = (client.clone(), format!("/live/show/{hint}"));
            let url = format!("{base}{path}");
            fetches.spawn(async move { (path, get_with(&client, &url).await) });
        }
        while let Some(fetched) = fetches.try_join_next() {
            let (path, answer) = fetched.unwrap();
            assert_eq!(answer.status, 200, "{path}");
            media.insert(path, answer.body);
        }
        let (msn, part) = next(&playlist);
        let query = format!("?_HLS_msn={msn}&_HLS_part={part}&_HLS_skip=v2");
        let answer = get_with(&client, &format!("{file}{query}")).await;
        assert_eq!(answer.status, 200, "{msn} {part}: {}", answer.text());
        playlist = answer.text();
        assert!(next(&playlist) > (msn, part), "what was waited for is there: {msn} {part}");
    }
    assert!(playlist.contains("#EXT-X-SKIP:"), "{playlist}");
    media
}

/// The next part that a playlist does not list yet.
fn next(playlist: &str) -> (u64, usize) {
    let first: u64 = tag(playlist, "#EXT-X-MEDIA-SEQUENCE").unwrap().parse().unwrap();
    let skipped =
        tag(playlist, "#EXT-X-SKIP").and_then(|skip| skip.split(['=', ',']).nth(1)?.parse::<u64>().ok());
    let whole = playlist.matches("#EXTINF:").count() as u64 + skipped.unwrap_or(0);
    let open = playlist.rsplit("#EXTINF:").next().unwrap();
    (first + whole, open.matches("#EXT-X-PART:").count())
}
