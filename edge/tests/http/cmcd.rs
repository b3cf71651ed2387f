//! What players say of their playback: it is counted, and it splits nothing. And how many there are.

use edge::cmcd::Playing;
use edge::viewers::Watched;

use crate::kit::{Tier, Upstream, body, patient};

#[tokio::test]
async fn what_players_say_is_counted_and_is_no_part_of_a_name() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let target = "/live/show/1/v/1.m4s";
    let said = format!("{target}?CMCD=bl%3D1000%2Cbr%3D3000%2Csid%3D%22x%22");
    let first = tier.ask(0, "GET", &said, &[]);
    let asked = upstream.asked().await;
    assert_eq!(asked.target, target, "nothing of it goes upstream");
    assert!(asked.headers.keys().all(|name| !name.as_str().starts_with("cmcd")));
    asked.answer(200, &[("cache-control", "max-age=600")], b"media");
    assert_eq!(body(first.await.unwrap()).await.unwrap(), "media");
    let headers =
        [("cmcd-request", "bl=3000,mtp=9000"), ("cmcd-status", "bs"), ("cmcd-session", "sid=\"y\"")];
    tier.get(target, &headers).await;
    tier.get(&format!("{target}?CMCD=bs"), &[]).await;
    tier.get(target, &[]).await;
    assert_eq!(upstream.requests(), 1);
    // Who asks for what is not there has not played.
    let missing = tier.ask(0, "GET", "/live/other/1/v/1.m4s?CMCD=bs", &[]);
    upstream.asked().await.answer(404, &[], b"");
    assert_eq!(missing.await.unwrap().status(), 404);
    let expected = Playing {
        stream: "/live/show".into(),
        requests: 3,
        starvations: 2,
        buffer_ms: Some(2000),
        bitrate_kbps: Some(3000),
        throughput_kbps: Some(9000),
    };
    assert_eq!(tier.control.playing(), Some(vec![expected]));
    assert_eq!(tier.metric("edge_cmcd_requests_total"), 3);
    assert_eq!(tier.metric("edge_cmcd_starvations_total"), 2);
    assert_eq!(tier.metric("edge_cmcd_buffer_seconds_count"), 2);
}

#[tokio::test]
async fn who_has_something_of_a_stream_is_a_viewer_of_it() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    for (target, kind) in
        [("/live/show/index.m3u8", "application/x"), ("/live/show/thumbnail.jpg", "image/jpeg")]
    {
        let first = tier.ask(0, "GET", target, &[("user-agent", kind)]);
        upstream.asked().await.answer(200, &[("cache-control", "max-age=600"), ("content-type", kind)], b"x");
        assert_eq!(first.await.unwrap().status(), 200);
    }
    let viewers = || tier.control.viewers_of("/live/show");
    assert_eq!(viewers(), Some(1), "who looks at a picture does not watch");
    for session in ["a", "b", "b"] {
        let said = format!("/live/show/index.m3u8?CMCD=sid%3D%22{session}%22");
        tier.get(&said, &[("user-agent", "x")]).await;
    }
    tier.get("/live/show/index.m3u8", &[("user-agent", "x"), ("x-forwarded-for", "192.0.2.1")]).await;
    tier.ask(1, "HEAD", "/live/show/index.m3u8", &[("user-agent", "y")]).await.unwrap();
    let missing = tier.ask(0, "GET", "/live/other/index.m3u8", &[]);
    upstream.asked().await.answer(404, &[], b"");
    assert_eq!(missing.await.unwrap().status(), 404);
    let expected = Watched { stream: "/live/show".into(), viewers: 4 };
    assert_eq!(tier.control.watched(), Some(vec![expected]));
    assert_eq!((viewers(), tier.control.viewers()), (Some(4), Some(4)));
}
