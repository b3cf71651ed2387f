//! Whole broadcasts over real sockets: real encoders and a hand-driven one at one end, an origin that notes what it gets
//! at the other.

#[path = "broadcasts/addresses.rs"]
mod addresses;
mod kit;
#[path = "broadcasts/limits.rs"]
mod limits;

use std::time::{Duration, SystemTime};

use ingest::metrics::{Reason, Why};
use kit::{Encoder, Heard, Plan, World};
use media::flv::{Tag, TagKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn ffmpeg_over_rtmp_loses_nothing_when_an_origin_dies() {
    let world = World::new([Plan::DieAfter(100), Plan::Serve]).await;
    a_broadcast_moves_to_the_second_origin(world, "rtmp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ffmpeg_over_rtmps_resumes_where_the_first_origin_stopped() {
    let world = World::new([Plan::EndAnswerAfter(150), Plan::Serve]).await;
    let resume = a_broadcast_moves_to_the_second_origin(world, "rtmps").await;
    assert!(resume.is_some(), "its acknowledgements came before the end of its answer");
}

/// Publishes a file as fast as it goes and compares what the two origins got with what is in it.
async fn a_broadcast_moves_to_the_second_origin(mut world: World, scheme: &str) -> Option<u32> {
    let sent = kit::clip(scheme).await;
    let mut ffmpeg = kit::publish_clip(scheme, &world.url(scheme, "demo"));
    let (mut got, mut requests) = ([Vec::new(), Vec::new()], Vec::new());
    loop {
        match world.heard().await {
            Heard::Request { origin, headers } => requests.push((origin, headers)),
            Heard::Tag { origin, tag } => got[origin].push(tag),
            Heard::Ended { origin: 1, clean: true } => break,
            Heard::Ended { origin, .. } => assert_eq!(origin, 0),
        }
    }
    assert!(ffmpeg.wait().await.unwrap().success());

    assert_eq!(requests.iter().map(|(origin, _)| *origin).collect::<Vec<_>>(), [0, 1]);
    let header = |index: usize, name: &str| {
        requests[index].1.get(name).map(|value: &http::HeaderValue| value.to_str().unwrap().to_owned())
    };
    assert_eq!(header(0, "content-type").as_deref(), Some("video/x-flv"));
    assert_eq!(header(0, "rooftop-continue"), None);
    assert!(header(0, "authorization").unwrap().starts_with("Bearer ey"));
    assert_eq!(header(0, "rooftop-session"), header(1, "rooftop-session"));
    assert!(header(1, "rooftop-received").unwrap().parse::<u64>().unwrap() > 1_700_000_000_000);
    let resume = header(1, "rooftop-continue").map(|ms| ms.parse().unwrap());

    // The second body is whole in itself: configuration, then a keyframe.
    let setup = got[1].iter().position(|tag| !(tag.kind == TagKind::Script || tag.is_config())).unwrap();
    let mut kinds: Vec<_> = got[1][..setup].iter().map(|tag| tag.kind as u8).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [TagKind::Audio as u8, TagKind::Video as u8, TagKind::Script as u8]);
    assert!(got[1].iter().find(|tag| tag.kind == TagKind::Video && !tag.is_config()).unwrap().is_keyframe());

    // Together the two hold every tag once.
    let published = |tag: &&Tag| resume.is_some_and(|resume| kit::shown_ms(tag) < resume);
    let first = got[0].iter().filter(kit::is_media).filter(published);
    let second = got[1].iter().filter(kit::is_media).filter(|tag| !published(tag));
    let mut whole: Vec<&Tag> = first.chain(second).collect();
    let mut expected: Vec<&Tag> = sent.iter().filter(kit::is_media).collect();
    for tags in [&mut whole, &mut expected] {
        tags.sort_by_key(|tag| (tag.kind as u8, tag.timestamp_ms));
    }
    assert_eq!(whole.len(), expected.len());
    assert!(whole == expected, "the bytes differ");

    let metrics = world.metrics.clone();
    world.shut_down().await;
    assert_eq!((metrics.sessions.get(), metrics.connections.get(), metrics.replays.get()), (0, 0, 1));
    assert_eq!(metrics.sessions_ended.get_or_create(&Reason { reason: Why::Closed }).get(), 1);
    resume
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_reach_the_broadcaster_with_their_reason() {
    let world = World::new([Plan::Status(403, "token revoked\n"), Plan::Serve]).await;
    let past = SystemTime::now() - 2 * HOUR;
    let expired = world.keys.issue("demo", HOUR, past).unwrap();
    let other = world.keys.issue("other", HOUR, SystemTime::now()).unwrap();
    let good = world.keys.issue("demo", HOUR, SystemTime::now()).unwrap();
    for (key, code, reason) in [
        ("demo".to_string(), "NetStream.Publish.BadName", "the key has no token"),
        (format!("..?token={good}"), "NetStream.Publish.BadName", "starts with '.'"),
        (format!("demo?token={expired}"), "NetStream.Publish.Rejected", "token expired"),
        (format!("demo?token={other}"), "NetStream.Publish.Rejected", "token is for stream \"other\""),
        (format!("demo?token={good}x"), "NetStream.Publish.Rejected", "token"),
        (format!("demo?token={good}"), "NetStream.Publish.Rejected", "token revoked"),
    ] {
        let mut encoder = Encoder::connect(world.rtmp).await;
        encoder.request_publish(&key).await;
        let (got, text) = encoder.status().await;
        assert_eq!(got, code, "{key}: {text}");
        assert!(text.contains(reason) && !text.contains(&good), "{text}");
        assert!(encoder.closed().await, "after the status comes the end");
    }
    let stderr = kit::refused_ffmpeg(&world.url("rtmps", "demo").replace("token=", "token=x")).await;
    assert!(stderr.contains("token is malformed") || stderr.contains("does not match any key"), "{stderr}");
    let metrics = world.metrics.clone();
    world.shut_down().await;
    let refused = |reason| metrics.refused.get_or_create(&Reason { reason }).get();
    assert_eq!((refused(Why::BadName), refused(Why::Token), refused(Why::Refused)), (2, 4, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_on_the_port_are_told_and_the_stream_beside_goes_on() {
    let mut world = World::new([Plan::Serve, Plan::Serve]).await;
    let mut encoder = Encoder::publishing(&world, "demo").await;
    encoder.video(0, true).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 0);

    for (bytes, answer) in [
        (&b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"[..], "HTTP/1.1 400 Bad Request"),
        (&[0xFF; 5000], ""),
        (&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0], ""),
    ] {
        let mut stranger = TcpStream::connect(world.rtmp).await.unwrap();
        stranger.write_all(bytes).await.unwrap();
        let mut heard = String::new();
        stranger.read_to_string(&mut heard).await.unwrap();
        assert!(heard.starts_with(answer) && heard.is_empty() == answer.is_empty(), "{heard}");
    }
    let mut torn = Encoder::publishing(&world, "torn").await;
    torn.raw(&[0xFF; 64]).await;
    assert!(torn.closed().await, "garbage in a session ends that session");
    drop(torn);
    let mut player = Encoder::connect(world.rtmp).await;
    player.request_play("demo").await;
    assert_eq!(player.status().await.0, "NetStream.Play.Failed");
    drop(player);

    encoder.video(40, false).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 40);
    encoder.stop().await;
    world.clean_end().await;
    let metrics = world.metrics.clone();
    world.shut_down().await;
    let refused = |reason| metrics.refused.get_or_create(&Reason { reason }).get();
    assert_eq!((refused(Why::NotRtmp), refused(Why::Protocol)), (3, 1));
    assert_eq!(metrics.sessions_ended.get_or_create(&Reason { reason: Why::Protocol }).get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_may_end_a_session() {
    let mut world = World::new([Plan::RefuseAfter(1), Plan::Serve]).await;
    let mut encoder = Encoder::publishing(&world, "demo").await;
    encoder.video(0, true).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 0);
    let (code, text) = encoder.status().await;
    assert_eq!((code.as_str(), text.as_str()), ("NetStream.Publish.Rejected", "unsupported video codec x"));
    assert!(encoder.closed().await);
    drop(encoder);
    let ended = loop {
        if let Heard::Ended { clean, .. } = world.heard().await {
            break clean;
        }
    };
    assert!(!ended, "a body that is cut must not look whole");
    world.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_tells_the_broadcaster_and_ends_the_relay_cleanly() {
    let mut world = World::new([Plan::Status(503, "draining"), Plan::Serve]).await;
    let mut encoder = Encoder::publishing(&world, "demo").await;
    encoder.video(0, true).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 0);
    world.shutdown.cancel();
    let (code, text) = encoder.status().await;
    assert_eq!((code.as_str(), text.as_str()), ("NetStream.Publish.Rejected", "server shuts down"));
    drop(encoder);
    world.clean_end().await;
    let metrics = world.metrics.clone();
    world.shut_down().await;
    assert_eq!((metrics.replays.get(), metrics.abandoned_attempts.get()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_closed() {
    let world = World::new([Plan::Serve, Plan::Serve]).await;
    let mut silent = TcpStream::connect(world.rtmp).await.unwrap();
    let mut heard = Vec::new();
    silent.read_to_end(&mut heard).await.unwrap();
    assert!(heard.is_empty());
    drop(silent);
    let metrics = world.metrics.clone();
    world.shut_down().await;
    assert_eq!(metrics.refused.get_or_create(&Reason { reason: Why::Timeout }).get(), 1);
}
