//! Whatever comes in beside it, a good stream loses nothing; and who sent the bad input can tell why it was refused.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::kit::*;

const SMALL: Recipe = Recipe { size: "320x240", rate: "25", seconds: 12, extra: &["-g", "50", "-bf", "0"] };

#[test]
fn bad_input_is_refused_in_words_and_costs_the_neighbour_nothing() {
    let _turn = real_time(Share::Core);
    let good = Clip::make("neighbour", Recipe { seconds: 25, ..SMALL });
    let folder = Folder::new("bad");
    let mut config = all_in_one(&folder.path().join("state"));
    config
        .get_mut("origin")
        .unwrap()
        .push_str("window = \"60s\"\nreconnect_grace = \"1s\"\nkeyframe_timeout = \"2s\"\n");
    // Strangers on the port are not worth a line each by default.
    config.insert("log", "filter = \"info,ingest=debug\"\n".into());
    let node = Node::start(&folder, "node", &toml(&config));
    let broadcaster = Broadcaster::send(&good, &node.publish_url("rtmps", "good"), 0);
    live(&node, "good");
    let reader = Probe::begin(&node.url("/live/good/240p.m3u8"));

    refused_tokens(&node);
    strangers_on_the_port(&node);
    unsupported_codecs(&node);
    never_a_keyframe(&node);
    tracks_that_are_missing(&node);

    let (sent, said) = broadcaster.wait();
    assert!(sent, "{said}");
    let frames = &reader.end()[0].1;
    assert_eq!(frames.len(), 25 * 25, "the stream beside all this lost nothing");
}

fn refused_tokens(node: &Node) {
    let clip = Clip::make("small", SMALL);
    let base = format!("rtmps://{}/live", node.addr("rtmps"));
    let expired = stream_key(node.config(), "late", "0s");
    let foreign = stream_key(node.config(), "mine", "1h").replacen("mine", "yours", 1);
    let mut forged = stream_key(node.config(), "forged", "1h");
    let flipped = if forged.pop() == Some('A') { 'B' } else { 'A' };
    // The last character of a signature has unused bits; the one before has none.
    forged.pop();
    forged.push(flipped);
    forged.push('A');
    for (key, why) in [
        (expired.as_str(), "token expired"),
        (foreign.as_str(), "token is for stream"),
        (forged.as_str(), "token signature does not match any key"),
        ("late?token=nonsense", "token is malformed"),
        ("late", "no token"),
    ] {
        let (sent, said) = Broadcaster::send(&clip, &format!("{base}/{key}"), 0).wait();
        assert!(!sent, "{why}: the broadcaster must be told");
        assert!(said.to_lowercase().contains("error"), "{said}");
        node.logged(why);
    }
    let secret = expired.split("token=").nth(1).unwrap();
    assert!(!node.log().contains(secret), "no token in the log");
}

fn strangers_on_the_port(node: &Node) {
    for (bytes, why) in [
        (&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], "HTTP"),
        (&[0x77; 4096][..], "0x77"),
        // A TLS ClientHello on the port without TLS.
        (&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03][..], "TLS"),
    ] {
        let mut socket = TcpStream::connect(node.addr("rtmp")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // Closed, with or without an answer; a reset counts as closed.
        let read = socket.read_to_end(&mut answer);
        let closed =
            read.as_ref().map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |_| true);
        assert!(closed, "{why}: {read:?}");
        node.logged(why);
    }
}

fn unsupported_codecs(node: &Node) {
    for (name, extra, why) in [
        ("h263", &["-c:v", "flv1", "-s", "352x288"][..], "unsupported video codec Sorenson H.263"),
        (
            "nellymoser",
            &["-c:a", "nellymoser", "-ar", "44100", "-ac", "1"][..],
            "unsupported audio codec Nellymoser",
        ),
    ] {
        let clip = Clip::make(name, Recipe { extra: leak(extra), ..SMALL });
        let (sent, _) = Broadcaster::send(&clip, &node.publish_url("rtmp", name), 0).wait();
        assert!(!sent, "{name}: the broadcaster must be told");
        node.logged(why);
        assert_eq!(get(&node.url(&format!("/live/{name}/index.m3u8"))).status, 404);
    }
}

fn never_a_keyframe(node: &Node) {
    let clip = Clip::make("small", SMALL);
    let keyless = Clip { path: clip.path.with_file_name("keyless.flv") };
    let made = ffmpeg()
        .arg("-i")
        .arg(&clip.path)
        .args(["-c", "copy", "-copyinkf", "-bsf:v", "noise=drop=key:amount=0"])
        .arg(&keyless.path)
        .status();
    assert!(made.unwrap().success());
    let (sent, _) = Broadcaster::send(&keyless, &node.publish_url("rtmp", "keyless"), 0).wait();
    assert!(!sent, "the broadcaster must be told");
    node.logged("no video keyframe within 2s of media");
}

fn tracks_that_are_missing(node: &Node) {
    let silent = Clip::make("silent", Recipe { extra: &["-g", "50", "-bf", "0", "-an"], ..SMALL });
    let blind = Clip::make("blind", Recipe { extra: &["-vn"], ..SMALL });
    let muted =
        Clip::make("muted", Recipe { extra: &["-g", "50", "-bf", "0", "-af", "atrim=end=3"], ..SMALL });
    let senders = [("silent", &silent), ("blind", &blind), ("muted", &muted)]
        .map(|(stream, clip)| Broadcaster::send(clip, &node.publish_url("rtmp", stream), 0));
    for stream in ["silent", "blind", "muted"] {
        live(node, stream);
    }
    let playlist = |path: &str| get(&node.url(path)).text();
    assert_eq!(renditions(&playlist("/live/silent/index.m3u8")), ["240p"]);
    assert_eq!(renditions(&playlist("/live/blind/index.m3u8")), ["audio"]);
    assert_eq!(renditions(&playlist("/live/muted/index.m3u8")), ["240p", "audio"]);
    let readers = ["/live/silent/240p.m3u8", "/live/blind/audio.m3u8", "/live/muted/240p.m3u8"]
        .map(|path| Probe::begin(&node.url(path)));
    let [silent, heard, muted] = readers.map(|reader| reader.end().remove(0).1.len());
    assert_eq!((silent, muted), (12 * 25, 12 * 25), "video does not wait for audio that does not come");
    assert_eq!(heard, packets(blind.path.to_str().unwrap()).remove(0).1.len());
    let gaps = playlist("/live/muted/audio.m3u8").matches("#EXT-X-GAP").count();
    assert!((3..=9).contains(&gaps), "{gaps} segments without audio are said to be missing");
    for sender in senders {
        assert!(sender.wait().0);
    }
}

fn leak(words: &[&'static str]) -> &'static [&'static str] {
    Box::leak(words.to_vec().into_boxed_slice())
}
