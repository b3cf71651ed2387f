//! Playback tokens.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cluster::token::Keys;
use edge::config::Playback;

use crate::kit::{Tier, Upstream, body, config, header, patient, until};

const HOUR: Duration = Duration::from_secs(3600);

async fn guarded(upstream: &Upstream) -> (Arc<Keys>, Tier) {
    let keys = Arc::new(Keys::new(&[vec![1; 32]]).unwrap());
    let playback = Playback { paths: vec!["/live/*".into()], ..Playback::default() };
    let config = edge::Config { playback, ..config(patient()) };
    let deps = keys.clone();
    let tier = Tier::start(config, vec![upstream.node.clone()], |d| d.playback_keys = Some(deps)).await;
    (keys, tier)
}

#[tokio::test]
async fn one_object_for_all_tokens_and_none_goes_upstream() {
    let mut upstream = Upstream::start("a").await;
    let (keys, tier) = guarded(&upstream).await;
    let now = SystemTime::now();
    let (mine, yours) = (
        keys.issue_playback("/live/a", HOUR, now).unwrap(),
        keys.issue_playback("/live/", HOUR * 2, now).unwrap(),
    );
    let first = tier.ask(1, "GET", &format!("/t/{mine}/live/a/v.m3u8?_HLS_msn=3"), &[]);
    let asked = upstream.asked().await;
    assert_eq!(asked.target, "/live/a/v.m3u8?_HLS_msn=3");
    let told = asked.headers.iter().any(|(_, value)| value.to_str().unwrap().contains(&mine));
    assert!(!told && !asked.headers.contains_key("authorization"), "{:?}", asked.headers);
    asked.answer(200, &[("cache-control", "max-age=600")], b"bytes");
    assert_eq!(body(first.await.unwrap()).await.unwrap(), "bytes");
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    let bearer = format!("Bearer {yours}");
    for (target, headers) in [
        (format!("/t/{yours}/live/a/v.m3u8?_HLS_msn=3"), &[][..]),
        (format!("/live/a/v.m3u8?token={yours}&_HLS_msn=3"), &[]),
        ("/live/a/v.m3u8?_HLS_msn=3".into(), &[("authorization", bearer.as_str())]),
    ] {
        for viewer in [0, 1] {
            let hit = tier.ask(viewer, "GET", &target, headers).await.unwrap();
            assert!(header(&hit, "cache-status").contains("; hit"), "{hit:?}");
            assert_eq!(body(hit).await.unwrap(), "bytes");
        }
    }
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn who_may_not_watch_is_told_why() {
    let upstream = Upstream::start("a").await;
    let (keys, tier) = guarded(&upstream).await;
    let now = SystemTime::now();
    let good = keys.issue_playback("/live/a", HOUR, now).unwrap();
    let old = keys.issue_playback("/live/a", HOUR, now - 2 * HOUR).unwrap();
    let forged = Keys::new(&[vec![2; 32]]).unwrap().issue_playback("/live/a", HOUR, now).unwrap();
    let publish = keys.issue("a", HOUR, now).unwrap();
    let long = "x".repeat(1500);
    let with = |token: &str, path: &str| format!("/t/{token}{path}");
    let mut count = 0;
    for (target, status, why) in [
        ("/live/a/x".into(), 401, "needs a playback token"),
        (with(&good, "/live/b/x"), 403, "does not open this path"),
        (with(&good, "/live/ab/x"), 403, "does not open this path"),
        (with(&good, "/live/a/..%2fb/x"), 400, "dot segments"),
        (with(&old, "/live/a/x"), 401, "token expired 3"),
        (with(&forged, "/live/a/x"), 401, "signature does not match"),
        (with(&publish, "/live/a/x"), 401, "malformed"),
        (with(&long, "/live/a/x"), 401, "exceeds 1024"),
        (with("garbage", "/live/a/x"), 401, "malformed"),
        (with("", "/live/a/x"), 401, "malformed"),
        (format!("/live/a/x?token={forged}"), 401, "signature does not match"),
    ] {
        let refused = tier.get(&target, &[]).await;
        assert_eq!(refused.status(), status, "{target}");
        assert_eq!(header(&refused, "www-authenticate").starts_with("Bearer"), status != 400);
        assert_eq!(header(&refused, "cache-control"), "no-store");
        assert_eq!(header(&refused, "access-control-allow-origin"), "*");
        let text = String::from_utf8(body(refused).await.unwrap().to_vec()).unwrap();
        assert!(text.contains(why), "{target}: {text}");
        assert!([&good, &old, &forged, &publish].iter().all(|token| !text.contains(*token)), "{text}");
        count += 1;
    }
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"forbidden\"}"), count);
    assert_eq!(upstream.requests(), 0);
    let preflight = tier.ask(1, "OPTIONS", "/live/a/x", &[("origin", "https://a")]).await.unwrap();
    assert_eq!(preflight.status(), 204, "a page asks before it may send its token");
}

#[tokio::test]
async fn what_needs_no_token_goes_on_as_before() {
    let mut upstream = Upstream::start("a").await;
    let (_, tier) = guarded(&upstream).await;
    let open = tier.ask(1, "GET", "/vod/a", &[]);
    upstream.asked().await.answer(200, &[], b"open");
    assert_eq!(body(open.await.unwrap()).await.unwrap(), "open");
    // Without tokens `/t/` is a path like any other.
    let tier = Tier::over(&[&upstream], patient()).await;
    let plain = tier.ask(1, "GET", "/t/x/live/a", &[]);
    let asked = upstream.asked().await;
    assert_eq!(asked.target, "/t/x/live/a");
    asked.answer(200, &[], b"plain");
    assert_eq!(body(plain.await.unwrap()).await.unwrap(), "plain");
}
