//! Methods, conditions, headers, pages.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response};
use hyper::body::Incoming;

use crate::kit::{Tier, Upstream, body, config, header, next, patient, until};

const FRESH: [(&str, &str); 4] = [
    ("cache-control", "max-age=600"),
    ("etag", "\"v1\""),
    ("content-type", "video/mp4"),
    ("set-cookie", "who=you"),
];

#[tokio::test]
async fn headers_of_a_hit() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let cold = tier.ask(
        1,
        "GET",
        "/x",
        &[("cookie", "who=me"), ("authorization", "Bearer x"), ("range", "bytes=0-")],
    );
    let asked = upstream.asked().await;
    for name in ["cookie", "authorization", "range", "if-none-match"] {
        assert!(!asked.headers.contains_key(name), "{name} is the viewer's own");
    }
    assert_eq!(asked.headers["accept-encoding"], "identity");
    assert_eq!(asked.headers["via"], "1.1 rooftop-edge");
    let sent =
        [("cache-control", "max-age=600"), ("etag", "\"v1\""), ("age", "7"), ("cache-status", "up; hit")];
    asked.answer(200, &sent, b"bytes");
    cold.await.unwrap();
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    let hit = tier.get("/x", &[]).await;
    for (name, expected) in [
        ("age", "7"),
        ("etag", "\"v1\""),
        ("cache-control", "max-age=600"),
        ("content-length", "5"),
        ("accept-ranges", "bytes"),
        ("via", "1.1 rooftop-edge"),
        ("access-control-allow-origin", "*"),
        ("access-control-expose-headers", "age, date, content-length, content-range, etag, cache-status"),
    ] {
        assert_eq!(header(&hit, name), expected, "{name}");
    }
    assert!(header(&hit, "cache-status").starts_with("up; hit, rooftop-edge; hit; ttl=59"), "{hit:?}");
    assert!(hit.headers().contains_key("date"));
    let same = tier.get("/x", &[("if-none-match", "\"v1\"")]).await;
    assert_eq!(same.status(), 304);
    assert_eq!(header(&same, "etag"), "\"v1\"");
    assert_eq!(header(&same, "content-length"), "");
    assert_eq!(body(same).await.unwrap(), "");
    let other = tier.get("/x", &[("if-none-match", "\"v2\"")]).await;
    assert_eq!((other.status().as_u16(), body(other).await.unwrap()), (200, Bytes::from_static(b"bytes")));
    let changed = tier.get("/x", &[("range", "bytes=1-2"), ("if-range", "\"v2\"")]).await;
    assert_eq!(changed.status(), 200);
    let unchanged = tier.get("/x", &[("range", "bytes=1-2"), ("if-range", "\"v1\"")]).await;
    assert_eq!(
        (unchanged.status().as_u16(), body(unchanged).await.unwrap()),
        (206, Bytes::from_static(b"yt"))
    );
    for viewer in [0, 1] {
        let head = tier.ask(viewer, "HEAD", "/x", &[]).await.unwrap();
        assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, "5".into()));
        assert_eq!(body(head).await.unwrap(), "");
    }
    assert_eq!(upstream.requests(), 1);
}

/// A playlist of `lines` segments.
fn playlist(lines: usize) -> String {
    let segments: String = (0..lines).map(|number| format!("#EXTINF:1.0,\n{number}.m4s\n")).collect();
    format!("#EXTM3U\n{segments}")
}

const PLAYLIST: [(&str, &str); 3] = [
    ("cache-control", "max-age=600"),
    ("content-type", "application/vnd.apple.mpegurl"),
    ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
];

async fn unzipped(response: Response<Incoming>) -> String {
    use std::io::Read;
    assert_eq!(header(&response, "content-encoding"), "gzip");
    let zipped = body(response).await.unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(&zipped[..]).read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn playlists_are_zipped_for_those_who_want_it() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let text = playlist(100);
    let gzip = [("accept-encoding", "br, gzip;q=0.8")];
    // On the way already: the first viewers of a playlist are the many.
    let first = tier.ask(1, "GET", "/p", &gzip);
    let asked = upstream.asked().await;
    let waiting: Vec<_> = (0..20).map(|viewer| tier.ask(viewer, "GET", "/p", &gzip)).collect();
    tier.until_waiting(21).await;
    let length = text.len().to_string();
    let chunks = asked.begin(200, &[&PLAYLIST[..], &[("content-length", length.as_str())]].concat());
    chunks.send(&text.as_bytes()[..1000]);
    chunks.send(&text.as_bytes()[1000..]);
    chunks.end();
    assert_eq!(unzipped(first.await.unwrap()).await, text);
    for viewer in waiting {
        assert_eq!(unzipped(viewer.await.unwrap()).await, text);
    }
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    // The two forms are two entities, and both say what they depend on.
    let (zipped, plain) = (tier.get("/p", &gzip).await, tier.get("/p", &[]).await);
    let tags = [header(&zipped, "etag"), header(&plain, "etag")];
    assert_eq!(tags[0], format!("{}-gzip\"", tags[1].trim_end_matches('"')), "{tags:?}");
    for (response, length) in [(&zipped, None), (&plain, Some(length.as_str()))] {
        assert_eq!(header(response, "vary"), "accept-encoding");
        assert!(length.is_none_or(|length| header(response, "content-length") == length));
    }
    let length = header(&zipped, "content-length");
    assert_eq!(unzipped(zipped).await, text);
    assert_eq!(
        (header(&plain, "content-encoding"), body(plain).await.unwrap()),
        (String::new(), text.clone().into())
    );
    for viewer in [0, 1] {
        let head = tier.ask(viewer, "HEAD", "/p", &gzip).await.unwrap();
        assert_eq!(
            [header(&head, "content-length"), header(&head, "content-encoding"), header(&head, "etag")],
            [length.clone(), "gzip".into(), tags[0].clone()]
        );
    }
    for (tag, encoding, status) in [
        (&tags[0], "gzip", 304),
        (&tags[1], "gzip", 200),
        (&tags[1], "identity", 304),
        (&tags[0], "gzip;q=0", 200),
    ] {
        let asking = [("if-none-match", tag.as_str()), ("accept-encoding", encoding)];
        let response = tier.get("/p", &asking).await;
        assert_eq!(
            (response.status().as_u16(), header(&response, "vary")),
            (status, "accept-encoding".into())
        );
    }
    // A range is of the plain form, unless it was begun with the other.
    let range = [("range", "bytes=1-6"), gzip[0]];
    let part = tier.get("/p", &range).await;
    assert_eq!(
        (header(&part, "content-encoding"), body(part).await.unwrap()),
        (String::new(), "EXTM3U".into())
    );
    let other = tier.get("/p", &[range[0], range[1], ("if-range", tags[0].as_str())]).await;
    assert_eq!((other.status().as_u16(), unzipped(other).await), (200, text));
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn what_is_not_worth_zipping_goes_out_as_it_is() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let gzip = [("accept-encoding", "gzip")];
    let text = playlist(100);
    for (path, headers, body) in [
        ("/small", &PLAYLIST[..2], &playlist(1)),
        ("/media", &[("cache-control", "max-age=600"), ("content-type", "video/mp4")], &text),
        ("/never", &[("cache-control", "max-age=600, no-transform"), ("content-type", "text/plain")], &text),
        ("/done", &[PLAYLIST[0], PLAYLIST[1], ("content-encoding", "br")], &text),
        ("/error", &[("content-type", "text/plain")], &text),
    ] {
        let status = if path == "/error" { 404 } else { 200 };
        for round in 0..2 {
            let response = tier.ask(1, "GET", path, &gzip);
            if round == 0 {
                upstream.asked().await.answer(status, headers, body.as_bytes());
            }
            let response = response.await.unwrap();
            let expected = if path == "/done" { "br" } else { "" };
            assert_eq!(header(&response, "content-encoding"), expected, "{path} {round}");
            assert_eq!(crate::kit::body(response).await.unwrap(), *body, "{path} {round}");
            until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
        }
    }
}

#[tokio::test]
async fn a_zipped_body_that_breaks_is_an_error() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    // Without a validator: it cannot be read on from elsewhere.
    let headers = [PLAYLIST[0], PLAYLIST[1], ("content-length", "5000")];
    let follower = tier.ask(1, "GET", "/p", &[]);
    let chunks = upstream.asked().await.begin(200, &headers);
    chunks.send(b"#EXTM3U\n");
    assert_eq!(next(&mut follower.await.unwrap()).await.unwrap(), "#EXTM3U\n");
    let answer = tier.ask(1, "GET", "/p", &[("accept-encoding", "gzip")]);
    tier.until_waiting(1).await;
    chunks.cut();
    assert_eq!(answer.await.unwrap().status(), 502);
}

#[tokio::test]
async fn versions_without_a_tag_get_one() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let mut tags = Vec::new();
    for (path, bytes) in [("/a", "one"), ("/b", "one"), ("/c", "two")] {
        let cold = tier.ask(1, "GET", path, &[]);
        upstream.asked().await.answer(200, &[("cache-control", "max-age=600")], bytes.as_bytes());
        cold.await.unwrap();
        until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
        let tag = header(&tier.get(path, &[]).await, "etag");
        assert_eq!(tier.get(path, &[("if-none-match", &tag)]).await.status(), 304);
        let part = tier.get(path, &[("range", "bytes=1-"), ("if-range", &tag)]).await;
        assert_eq!((part.status().as_u16(), header(&part, "etag")), (206, tag.clone()));
        tags.push(tag);
    }
    assert!(tags[0] == tags[1] && tags[0] != tags[2], "by content: {tags:?}");
}

#[tokio::test]
async fn cookies_are_neither_kept_nor_passed_on() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    for _ in 0..2 {
        let answer = tier.ask(1, "GET", "/x", &[]);
        upstream.asked().await.answer(200, &FRESH, b"bytes");
        assert_eq!(header(&answer.await.unwrap(), "set-cookie"), "");
    }
}

#[tokio::test]
async fn other_methods() {
    let upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let asking = [("origin", "https://a"), ("access-control-request-method", "GET")];
    let preflight = tier.ask(1, "OPTIONS", "/x", &asking).await.unwrap();
    assert_eq!(preflight.status(), 204);
    assert_eq!(header(&preflight, "access-control-allow-methods"), "GET, HEAD, OPTIONS");
    assert_eq!(header(&preflight, "access-control-allow-origin"), "*");
    assert_eq!(header(&preflight, "access-control-allow-headers"), "*, authorization");
    let post = tier.ask(1, "POST", "/x", &[]).await.unwrap();
    assert_eq!((post.status().as_u16(), header(&post, "allow")), (405, "GET, HEAD, OPTIONS".into()));
    let long = format!("/{}", "x".repeat(3000));
    assert_eq!(tier.get(&long, &[]).await.status(), 414);
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"refused\"}"), 2);
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_request_that_comes_round_is_stopped() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let answer = tier.ask(1, "GET", "/x", &[("cdn-loop", "other")]);
    let asked = upstream.asked().await;
    let cdn_loop = asked.headers["cdn-loop"].to_str().unwrap().to_owned();
    assert!(cdn_loop.starts_with("other, rooftop; node=edge-"), "{cdn_loop}");
    let round = tier.get("/x", &[("cdn-loop", &cdn_loop)]).await;
    assert_eq!(round.status(), 508);
    asked.answer(200, &FRESH, b"bytes");
    assert_eq!(answer.await.unwrap().status(), 200);
}

struct Watch;

impl edge::Pages for Watch {
    fn page(&self, path: &str, _: &HeaderMap) -> Option<Response<Bytes>> {
        (path == "/watch").then(|| Response::new(Bytes::from_static(b"<html>")))
    }
}

#[tokio::test]
async fn pages_come_first() {
    let mut upstream = Upstream::start("a").await;
    let nodes = vec![upstream.node.clone()];
    let tier = Tier::start(config(patient()), nodes, |deps| deps.pages = Some(Arc::new(Watch))).await;
    let page = tier.get("/watch", &[]).await;
    assert_eq!(header(&page, "access-control-allow-origin"), "*");
    assert_eq!(body(page).await.unwrap(), "<html>");
    let head = tier.ask(1, "HEAD", "/watch", &[]).await.unwrap();
    assert_eq!(header(&head, "content-length"), "6");
    let other = tier.ask(1, "GET", "/watched", &[]);
    upstream.asked().await.answer(200, &[], b"x");
    assert_eq!(other.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_purge_forgets() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    for expected in [b"old", b"new"] {
        let answer = tier.ask(1, "GET", "/live/s/x", &[]);
        upstream.asked().await.answer(200, &[("cache-control", "max-age=600")], expected);
        assert_eq!(body(answer.await.unwrap()).await.unwrap(), &expected[..]);
        until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
        assert_eq!(tier.control.purge("/live/other/"), 0);
        assert_eq!(body(tier.get("/live/s/x", &[]).await).await.unwrap(), &expected[..]);
        assert_eq!(tier.control.purge("/live/s/"), 1);
    }
}
