use std::collections::HashMap;

use super::answers::CHUNK_BYTES;
use super::*;
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};
use rml_rtmp::sessions::{
    ClientSession, ClientSessionConfig, ClientSessionEvent, ClientSessionResult, PublishRequestType,
    StreamMetadata,
};

const MAX: u32 = 8 << 20;

/// rml_rtmp's client at one end, our session at the other, memory in between.
struct Pair {
    client: ClientSession,
    session: Session,
    events: Vec<Event>,
    answers: Vec<ClientSessionEvent>,
    step: usize,
    /// All that was delivered after the handshake.
    sent: Vec<u8>,
}

impl Pair {
    fn connected(step: usize, app: &str) -> Pair {
        let mut session = Session::new(MAX);
        shake_hands(&mut session, step);
        let config =
            ClientSessionConfig { tc_url: Some(format!("rtmp://h/{app}")), ..ClientSessionConfig::new() };
        let (client, first) = ClientSession::new(config).unwrap();
        let mut pair =
            Pair { client, session, events: Vec::new(), answers: Vec::new(), step, sent: Vec::new() };
        pair.send(first);
        let connect = pair.client.request_connection(app.into()).unwrap();
        pair.send(vec![connect]);
        assert_eq!(pair.answers.remove(0), ClientSessionEvent::ConnectionRequestAccepted);
        pair
    }

    fn send(&mut self, results: Vec<ClientSessionResult>) {
        for result in results {
            match result {
                ClientSessionResult::OutboundResponse(packet) => self.deliver(&packet.bytes),
                ClientSessionResult::RaisedEvent(event) => self.answers.push(event),
                ClientSessionResult::UnhandleableMessageReceived(_) => {}
            }
        }
    }

    fn deliver(&mut self, bytes: &[u8]) {
        self.sent.extend_from_slice(bytes);
        for piece in bytes.chunks(self.step) {
            self.session.input().extend_from_slice(piece);
            while let Some(event) = self.session.poll() {
                self.events.push(event);
            }
        }
        self.hear();
    }

    fn hear(&mut self) {
        let output = self.session.output().split();
        let results = self.client.handle_input(&output).unwrap();
        self.send(results);
    }

    fn command(&mut self, name: &str, arguments: Vec<Amf0Value>) {
        let bytes = command(name, arguments);
        self.deliver(&bytes);
    }

    fn publish(&mut self, key: &str) {
        let request = self.client.request_publishing(key.into(), PublishRequestType::Live).unwrap();
        self.send(vec![request]);
    }
}

fn shake_hands(session: &mut Session, step: usize) {
    let mut client = Handshake::new(PeerType::Client);
    let mut bytes = client.generate_outbound_p0_and_p1().unwrap();
    while session.handshake.is_some() {
        for piece in bytes.chunks(step) {
            session.input().extend_from_slice(piece);
            assert!(session.poll().is_none());
        }
        let answer = session.output().split();
        if answer.is_empty() {
            break;
        }
        bytes = match client.process_bytes(&answer).unwrap() {
            HandshakeProcessResult::InProgress { response_bytes }
            | HandshakeProcessResult::Completed { response_bytes, .. } => response_bytes,
        };
    }
}

/// A command message in one chunk of its own chunk stream.
fn command(name: &str, arguments: Vec<Amf0Value>) -> Vec<u8> {
    let mut values = vec![Amf0Value::Utf8String(name.into()), Amf0Value::Number(9.0), Amf0Value::Null];
    values.extend(arguments);
    message(20, &rml_rtmp::rml_amf0::serialize(&values).unwrap())
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend(&(body.len() as u32).to_be_bytes()[1..]);
    bytes.extend([kind, 1, 0, 0, 0]);
    for (index, chunk) in body.chunks(128).enumerate() {
        if index > 0 {
            bytes.push(0xC8);
        }
        bytes.extend(chunk);
    }
    bytes
}

#[test]
fn a_broadcast_from_connect_to_end() {
    for step in [1, 700, 1 << 20] {
        let mut pair = Pair::connected(step, "live");
        pair.command("releaseStream", vec![Amf0Value::Utf8String("demo".into())]);
        pair.command("FCPublish", vec![Amf0Value::Utf8String("demo".into())]);
        pair.command("_checkbw", vec![]);
        pair.answers.clear();
        pair.publish("demo?token=a.b.c");
        let Some(Event::Publish(key)) = pair.events.pop() else { panic!("{:?}", pair.events) };
        assert_eq!((key.stream.as_str(), key.token.as_str()), ("demo", "a.b.c"));
        assert!(pair.answers.is_empty(), "not before it is accepted: {:?}", pair.answers);
        pair.session.accept().unwrap();
        pair.hear();
        assert!(pair.answers.contains(&ClientSessionEvent::PublishRequestAccepted), "{:?}", pair.answers);

        let metadata = StreamMetadata { video_width: Some(640), ..StreamMetadata::new() };
        let sent = pair.client.publish_metadata(&metadata).unwrap();
        pair.send(vec![sent]);
        let body: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
        let sent =
            pair.client.publish_video_data(body.clone().into(), RtmpTimestamp::new(40), false).unwrap();
        pair.send(vec![sent]);
        let sent =
            pair.client.publish_audio_data(vec![0xAF, 1].into(), RtmpTimestamp::new(41), false).unwrap();
        pair.send(vec![sent]);
        let tags: Vec<Tag> = pair
            .events
            .drain(..)
            .map(|event| match event {
                Event::Tag(tag) => tag,
                event => panic!("{event:?}"),
            })
            .collect();
        let kinds: Vec<_> = tags.iter().map(|tag| (tag.kind, tag.timestamp_ms)).collect();
        assert_eq!(kinds[1..], [(TagKind::Video, 40), (TagKind::Audio, 41)]);
        assert_eq!(amf::leading_string(&tags[0].data).unwrap().0, "onMetaData");
        assert_eq!(tags[1].data, body);

        let sent = pair.client.stop_publishing().unwrap();
        pair.send(sent);
        assert!(matches!(pair.events[..], [Event::Ended]), "{:?}", pair.events);
    }
}

#[test]
fn a_refusal_reaches_the_broadcaster() {
    let mut pair = Pair::connected(4096, "live");
    pair.publish("demo?token=x");
    pair.session.refuse(crate::relay::REJECTED, "token expired 12 s ago").unwrap();
    pair.hear();
    let expected = ClientSessionEvent::UnhandleableOnStatusCode { code: "NetStream.Publish.Rejected".into() };
    assert_eq!(pair.answers, [expected]);
    assert!(pair.session.poll().is_none());
}

#[test]
fn keys_without_name_or_token_are_refused_at_once() {
    for key in ["demo", "a b?token=x", "?token=x"] {
        let mut pair = Pair::connected(4096, "live");
        pair.publish(key);
        let expected =
            ClientSessionEvent::UnhandleableOnStatusCode { code: "NetStream.Publish.BadName".into() };
        assert_eq!(pair.answers, [expected], "{key}");
        assert!(matches!(pair.events[..], [Event::Failed(Error::Key(_))]), "{:?}", pair.events);
    }
    let mut pair = Pair::connected(4096, "live?token=x");
    pair.publish("demo");
    assert!(matches!(pair.events[..], [Event::Publish(_)]), "the URL may carry it: {:?}", pair.events);
}

#[test]
fn keys_are_found_where_encoders_leave_them() {
    for (name, app, found) in [
        ("", "live/demo?token=x", "demo"),
        ("/demo?token=x", "live", "demo"),
        ("?token=x", "live/demo/", "demo"),
        ("demo", "live/other?token=x", "demo"),
    ] {
        let mut pair = Pair::connected(4096, app);
        pair.publish(name);
        let Some(Event::Publish(key)) = pair.events.pop() else { panic!("{name} {app}: {:?}", pair.events) };
        assert_eq!((key.stream.as_str(), key.token.as_str()), (found, "x"), "{name} {app}");
    }
}

/// The commands in what the session sends, as values.
fn commands(session: &mut Session) -> Vec<Vec<Amf0Value>> {
    let mut reader = ChunkReader::new(MAX, 0);
    // What the session has said once for all its answers.
    assert_eq!(reader.read(&mut message(1, &CHUNK_BYTES.to_be_bytes())[..].into()).unwrap(), None);
    let mut commands = Vec::new();
    while let Some(message) = reader.read(session.output()).unwrap() {
        if message.kind == 20 {
            commands.push(amf::read(&message.data).unwrap());
        }
    }
    commands
}

fn connect(properties: Vec<(&str, Amf0Value)>) -> Vec<u8> {
    let text = |text: &str| Amf0Value::Utf8String(text.into());
    let mut object = HashMap::from([("app".to_string(), text("live"))]);
    object.extend(properties.into_iter().map(|(key, value)| (key.to_string(), value)));
    let values = [text("connect"), Amf0Value::Number(1.0), Amf0Value::Object(object)];
    message(20, &rml_rtmp::rml_amf0::serialize(&values.to_vec()).unwrap())
}

#[test]
fn enhanced_clients_learn_what_is_taken_and_can_be_asked_to_reconnect() {
    let mut session = Session::new(MAX);
    shake_hands(&mut session, 4096);
    let list = Amf0Value::StrictArray(vec![Amf0Value::Utf8String("hvc1".into())]);
    let properties = vec![("fourCcList", list), ("capsEx", Amf0Value::Number(1.0))];
    session.input().extend_from_slice(&connect(properties));
    assert!(session.poll().is_none() && session.can_reconnect());
    let result = commands(&mut session).pop().unwrap();
    let Amf0Value::Object(server) = &result[2] else { panic!("{result:?}") };
    assert_eq!(server["capsEx"], Amf0Value::Number(13.0));
    let Amf0Value::Object(video) = &server["videoFourCcInfoMap"] else { panic!("{server:?}") };
    for fourcc in ["avc1", "hvc1", "av01", "vp09"] {
        assert_eq!(video[fourcc], Amf0Value::Number(1.0), "{fourcc}");
    }
    let Amf0Value::Object(audio) = &server["audioFourCcInfoMap"] else { panic!("{server:?}") };
    assert!(
        audio.len() == 3 && [".mp3", "Opus", "mp4a"].iter().all(|fourcc| audio.contains_key(*fourcc)),
        "{audio:?}"
    );
    let Amf0Value::StrictArray(all) = &server["fourCcList"] else { panic!("{server:?}") };
    assert_eq!(all.len(), 7);

    assert!(session.request_reconnect(Some("rtmps://other/live"), "this server goes away").unwrap());
    let status = commands(&mut session).pop().unwrap();
    assert_eq!(
        status[..3],
        [Amf0Value::Utf8String("onStatus".into()), Amf0Value::Number(0.0), Amf0Value::Null]
    );
    let Amf0Value::Object(info) = &status[3] else { panic!("{status:?}") };
    for (key, value) in [
        ("level", "status"),
        ("code", "NetConnection.Connect.ReconnectRequest"),
        ("description", "this server goes away"),
        ("tcUrl", "rtmps://other/live"),
    ] {
        assert_eq!(info[key], Amf0Value::Utf8String(value.into()));
    }
}

#[test]
fn plain_clients_hear_nothing_new() {
    for caps in [None, Some(f64::NAN), Some(-1.0), Some(2.0)] {
        let mut session = Session::new(MAX);
        shake_hands(&mut session, 4096);
        let properties = caps.map(|caps| ("capsEx", Amf0Value::Number(caps)));
        session.input().extend_from_slice(&connect(properties.into_iter().collect()));
        assert!(session.poll().is_none());
        let result = commands(&mut session).pop().unwrap();
        let Amf0Value::Object(server) = &result[2] else { panic!("{result:?}") };
        assert_eq!(server.contains_key("capsEx"), caps.is_some());
        assert!(!session.can_reconnect() && !session.request_reconnect(None, "").unwrap());
        assert!(session.output().is_empty());
    }
}

#[test]
fn other_versions_are_answered_with_ours() {
    for version in [0, 1, 2, 4, 5, 7] {
        let mut session = Session::new(MAX);
        let mut bytes = vec![0; 1537];
        bytes[0] = version;
        session.input().extend_from_slice(&bytes);
        assert!(session.poll().is_none());
        assert_eq!((session.output()[0], session.output().len()), (3, 1 + 1536 + 1536), "{version}");
    }
}

#[test]
fn before_it_publishes_a_peer_makes_us_hold_little() {
    let chunk = |format: u8, csid: u8, len: u32| {
        let mut bytes = vec![format << 6 | csid];
        if format == 0 {
            bytes.extend([0; 3]);
            bytes.extend(&len.to_be_bytes()[1..]);
            bytes.extend([9, 1, 0, 0, 0]);
        }
        bytes.extend([7; 128]);
        bytes
    };
    // One message above the bound, then many below it, none of them ever complete.
    for (streams, len, problem) in [
        (1, 65_537, "message of 65537 bytes exceeds 65536"),
        (28, 65_536, "unfinished messages exceed 65536 bytes together"),
    ] {
        let mut pair = Pair::connected(1 << 20, "live");
        pair.deliver(&message(1, &128u32.to_be_bytes()));
        let mut most = 0;
        'sending: for round in 0..1000 {
            for csid in 0..streams {
                let format = if round == 0 { 0 } else { 3 };
                pair.session.input().extend_from_slice(&chunk(format, 4 + csid, len));
                let event = pair.session.poll();
                most = most.max(pair.session.held_bytes());
                match event {
                    None => {}
                    Some(Event::Failed(error)) if error.to_string().contains(problem) => break 'sending,
                    event => panic!("{event:?}"),
                }
            }
            assert!(round < 999, "{problem}");
        }
        assert!(most < 256 << 10, "{most} bytes were held");
    }
    // What is too much before is welcome after.
    let mut pair = Pair::connected(1 << 20, "live");
    pair.publish("demo?token=x");
    pair.deliver(&message(1, &0x00FF_FFFFu32.to_be_bytes()));
    let mut video = vec![6, 0, 0, 0];
    video.extend(&200_000u32.to_be_bytes()[1..]);
    video.extend([9, 1, 0, 0, 0]);
    video.resize(12 + 200_000, 7);
    pair.deliver(&video);
    assert!(matches!(pair.events.last(), Some(Event::Tag(tag)) if tag.data.len() == 200_000));
}

#[test]
fn the_acknowledgement_counter_wraps() {
    let mut pair = Pair::connected(1 << 20, "live");
    pair.deliver(&message(5, &1000u32.to_be_bytes()));
    pair.session.chunks.start_at((1 << 32) - 500);
    pair.session.ack.acknowledged = (1 << 32) - 500 + HANDSHAKE_BYTES as u64;
    pair.answers.clear();
    pair.deliver(&message(9, &[0; 1200]));
    let [ClientSessionEvent::AcknowledgementReceived { bytes_received }] = pair.answers[..] else {
        panic!("{:?}", pair.answers)
    };
    assert!((700..4000).contains(&bytes_received), "{bytes_received}");
}

#[test]
fn what_is_not_rtmp_is_named() {
    for (bytes, message) in [
        (&b"GET /live?token=x HTTP/1.1\r\nHost: x\r\n"[..], "HTTP request on the RTMP port: \"GET /live\""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP request on the RTMP port: \"PRI * HTTP/2.0\""),
        (
            &[0x16, 3, 1, 2, 0],
            "TLS ClientHello on the plain RTMP port: use the RTMPS port, or rtmp:// instead of rtmps://",
        ),
        (&[0xFF, 3], "first byte 0xff: not an RTMP handshake"),
        (&[6], "first byte 0x06: not an RTMP handshake"),
    ] {
        let mut session = Session::new(MAX);
        session.input().extend_from_slice(bytes);
        match session.poll() {
            Some(Event::Failed(error)) => assert_eq!(error.to_string(), message),
            event => panic!("{event:?}"),
        }
        assert!(session.poll().is_none());
        assert_eq!(session.output().starts_with(b"HTTP/1.1 400"), message.starts_with("HTTP"));
    }
}

#[test]
fn wrong_commands_are_named() {
    let play = command("play", vec![Amf0Value::Utf8String("demo".into())]);
    let create = command("createStream", vec![]).repeat(9);
    let publish = command("publish", vec![Amf0Value::Utf8String("demo".into())]);
    for (bytes, expected) in [
        (&play, "play request: this port takes broadcasts, viewers use HLS or DASH"),
        (&create, "more than 8 createStream commands"),
        (&publish, "command \"publish\" before createStream"),
        (&message(20, &[2, 0, 9, b'x']), "a command is not AMF0: 9 bytes wanted, 1 left at byte 3"),
        (&message(20, &[5]), "a command is not AMF0: it does not begin with its name"),
        (
            &message(20, &[0; 70_000]),
            "chunk stream 8: message of 70000 bytes exceeds 65536 (connection byte N)",
        ),
        (&message(22, &[0]), "aggregate message: header of 1 bytes at byte 0"),
        (
            &message(22, &[8, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1]),
            "aggregate message: message of 9 bytes at byte 0, where 1 are left",
        ),
    ] {
        let mut pair = Pair::connected(1 << 20, "live");
        pair.command("setPeerInfo", vec![]);
        // The client has set a larger chunk size by now.
        pair.deliver(&message(1, &128u32.to_be_bytes()));
        pair.deliver(bytes);
        match &pair.events[..] {
            [Event::Failed(error)] => {
                let text = error.to_string();
                let text = match text.split_once("connection byte") {
                    Some((problem, _)) => format!("{problem}connection byte N)"),
                    None => text,
                };
                assert_eq!(text, expected);
            }
            events => panic!("{expected}: {events:?}"),
        }
    }
    let mut session = Session::new(MAX);
    shake_hands(&mut session, 4096);
    session.input().extend_from_slice(&publish);
    let failed = session.poll();
    assert!(
        matches!(&failed, Some(Event::Failed(error)) if error.to_string() == "command \"publish\" before connect"),
        "{failed:?}"
    );
}

#[test]
fn pings_are_answered_and_bytes_acknowledged() {
    let mut pair = Pair::connected(1 << 20, "live");
    pair.deliver(&message(5, &1000u32.to_be_bytes()));
    pair.session.output().clear();
    pair.session.input().extend_from_slice(&message(4, &[0, 6, 1, 2, 3, 4]));
    assert!(pair.session.poll().is_none());
    let sent = pair.session.output().split();
    assert!(sent.windows(6).any(|bytes| bytes == [0, 7, 1, 2, 3, 4]), "{sent:?}");
    // A video message before publish is nobody's; it still counts.
    pair.deliver(&message(9, &[0; 1200]));
    assert!(pair.events.is_empty());
    let acknowledged: Vec<_> = pair
        .answers
        .iter()
        .filter_map(|answer| match answer {
            ClientSessionEvent::AcknowledgementReceived { bytes_received } => Some(*bytes_received),
            _ => None,
        })
        .collect();
    let received = pair.session.chunks.offset() as u32 + HANDSHAKE_BYTES as u32;
    assert_eq!(acknowledged.last(), Some(&received), "{acknowledged:?}");
}

#[test]
fn damaged_broadcasts_never_panic() {
    let mut pair = Pair::connected(1 << 20, "live");
    pair.publish("demo?token=x");
    pair.session.accept().unwrap();
    pair.hear();
    let sent = pair.client.publish_metadata(&StreamMetadata::new()).unwrap();
    pair.send(vec![sent]);
    for time in 0..20 {
        let body = vec![0x17; 500].into();
        let sent = pair.client.publish_video_data(body, RtmpTimestamp::new(time), false).unwrap();
        pair.send(vec![sent]);
    }
    pair.command("deleteStream", vec![]);
    assert!(matches!(pair.events.last(), Some(Event::Ended)));
    let mut seed = 3u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for _ in 0..2000 {
        let mut bytes = pair.sent.clone();
        for _ in 0..1 + random(4) {
            let at = if random(2) == 0 { random(bytes.len()) } else { random(600) };
            match random(3) {
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.drain(at..(at + random(20)).min(bytes.len()))),
                _ => bytes.insert(at, random(256) as u8),
            }
        }
        let mut session = Session::new(1 << 16);
        session.handshake = None;
        for piece in bytes.chunks(1 + random(2000)) {
            session.input().extend_from_slice(piece);
            while session.poll().is_some() {}
        }
        assert!(session.output().len() < 64 << 10, "answers are in proportion to questions");
    }
}

/// As FLV has it, with its back pointer.
fn flv_tag(kind: u8, time: u32, body: &[u8]) -> Vec<u8> {
    let [high, time @ ..] = time.to_be_bytes();
    let len = body.len() as u32;
    let mut bytes = [&[kind][..], &len.to_be_bytes()[1..], &time, &[high, 0, 0, 0], body].concat();
    bytes.extend((len + 11).to_be_bytes());
    bytes
}

/// A message at its time.
fn timed(kind: u8, time: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = message(kind, body);
    bytes[1..4].copy_from_slice(&time.min(0xFF_FFFF).to_be_bytes()[1..]);
    if time >= 0xFF_FFFF {
        assert!(body.len() <= 128, "a second chunk would repeat it");
        bytes.splice(12..12, time.to_be_bytes());
    }
    bytes
}

fn tags(pair: &mut Pair) -> Vec<Tag> {
    let tag = |event| match event {
        Event::Tag(tag) => tag,
        event => panic!("{event:?}"),
    };
    pair.events.drain(..).map(tag).collect()
}

fn publishing(step: usize) -> Pair {
    let mut pair = Pair::connected(step, "live");
    pair.publish("demo?token=x");
    assert!(matches!(pair.events.pop(), Some(Event::Publish(_))));
    pair.deliver(&message(1, &128u32.to_be_bytes()));
    pair
}

#[test]
fn aggregates_are_what_is_in_them() {
    let mut seed = 7u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for begin in [0u32, 5000, 0xFF_FF00, u32::MAX - 200] {
        let step = 1 + random(500);
        let (mut plain, mut packed) = (publishing(1 << 20), publishing(step));
        let mut time = begin;
        for _ in 0..40 {
            // Their clock inside begins wherever it likes.
            let (first, mut inside) = (time, [0, time, 77, u32::MAX - 20][random(4)]);
            let mut body = Vec::new();
            for _ in 0..1 + random(5) {
                let (kind, tag) = match random(4) {
                    0 => (8, vec![0xAF, 1, 9]),
                    1 => (18, [&[2, 0, 10][..], b"onMetaData"].concat()),
                    _ => (9, [&[0x27, 1, 0, 0, 0][..], &vec![time as u8; random(100)]].concat()),
                };
                plain.deliver(&timed(kind, time, &tag));
                body.extend(flv_tag(kind, inside, &tag));
                // Types that have no business there are passed over.
                if random(4) == 0 {
                    body.extend(flv_tag([20, 22, 1, 99][random(4)], inside, b"\x00\x00\x00\x01"));
                }
                let pause = random(60) as u32;
                (time, inside) = (time.wrapping_add(pause), inside.wrapping_add(pause));
            }
            if random(3) == 0 {
                body.truncate(body.len() - 4);
            }
            if first >= 0xFF_FFFF {
                // Larger chunks, so that there is only one.
                packed.deliver(&message(1, &70_000u32.to_be_bytes()));
                let mut header = vec![8, 0xFF, 0xFF, 0xFF];
                header.extend(&(body.len() as u32).to_be_bytes()[1..]);
                header.extend([22, 1, 0, 0, 0]);
                header.extend(first.to_be_bytes());
                packed.deliver(&[header, body].concat());
                packed.deliver(&message(1, &128u32.to_be_bytes()));
            } else {
                packed.deliver(&timed(22, first, &body));
            }
        }
        let (plain, packed) = (tags(&mut plain), tags(&mut packed));
        assert!(plain.len() > 40);
        assert_eq!(plain, packed, "from {begin}");
    }
}

#[test]
fn aggregates_before_publish_and_half_ones_say_nothing() {
    let mut pair = Pair::connected(4096, "live");
    pair.deliver(&message(1, &128u32.to_be_bytes()));
    pair.deliver(&message(22, &flv_tag(9, 0, &[0x17, 1, 0, 0, 0])));
    pair.deliver(&message(22, &[]));
    assert!(pair.events.is_empty(), "{:?}", pair.events);
    // What comes before the damage counts.
    let mut pair = publishing(4096);
    pair.deliver(&message(
        22,
        &[flv_tag(9, 0, &[0x17, 1, 0, 0, 0]), vec![9, 0xFF, 0xFF, 0xFF, 0, 0, 0]].concat(),
    ));
    let [Event::Tag(_), Event::Failed(error)] = &pair.events[..] else { panic!("{:?}", pair.events) };
    assert_eq!(error.to_string(), "aggregate message: header of 7 bytes at byte 20");
    assert_eq!(pair.session.held_bytes() >> 20, 0, "nothing of it is kept");
}

/// As some hardware encoders and all of Adobe's do: the types of AMF3, but what is in them is AMF0 behind a zero.
#[test]
fn commands_and_metadata_marked_as_amf3() {
    let text = |text: &str| Amf0Value::Utf8String(text.into());
    let marked = |kind: u8, values: Vec<Amf0Value>| {
        message(kind, &[&[0][..], &rml_rtmp::rml_amf0::serialize(&values).unwrap()].concat())
    };
    let mut session = Session::new(MAX);
    shake_hands(&mut session, 4096);
    let object = HashMap::from([
        ("app".to_string(), text("live/demo?token=x")),
        ("objectEncoding".to_string(), Amf0Value::Number(3.0)),
    ]);
    let mut events = Vec::new();
    let call = |name, number| vec![text(name), Amf0Value::Number(number), Amf0Value::Null];
    let metadata = HashMap::from([("width".to_string(), Amf0Value::Number(640.0))]);
    for bytes in [
        marked(17, vec![text("connect"), Amf0Value::Number(1.0), Amf0Value::Object(object)]),
        marked(17, [call("releaseStream", 2.0), vec![text("")]].concat()),
        marked(17, [call("FCPublish", 3.0), vec![text("")]].concat()),
        marked(17, call("createStream", 4.0)),
        marked(17, [call("publish", 5.0), vec![text(""), text("live")]].concat()),
        marked(15, vec![text("@setDataFrame"), text("onMetaData"), Amf0Value::Object(metadata)]),
        // Without the command, which some leave out; and the one that takes it back, which says nothing here.
        marked(15, vec![text("onMetaData"), Amf0Value::Null]),
        marked(15, vec![text("@clearDataFrame"), text("onMetaData")]),
        marked(17, [call("FCUnpublish", 6.0), vec![text("")]].concat()),
    ] {
        session.input().extend_from_slice(&bytes);
        events.extend(std::iter::from_fn(|| session.poll()));
    }
    let [Event::Publish(key), Event::Tag(first), Event::Tag(second), Event::Ended] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!((key.stream.as_str(), key.token.as_str()), ("demo", "x"));
    for tag in [first, second] {
        assert_eq!(amf::leading_string(&tag.data).unwrap().0, "onMetaData", "as AMF0, behind no zero");
    }
    // We speak AMF0, and say so.
    let said = commands(&mut session);
    let results: Vec<_> =
        said.iter().filter(|values| values[0] == text("_result")).map(|v| v[1].clone()).collect();
    assert_eq!(results, [1.0, 2.0, 3.0, 4.0].map(Amf0Value::Number));
    let Amf0Value::Object(status) = &said[0][3] else { panic!("{said:?}") };
    assert_eq!(status["objectEncoding"], Amf0Value::Number(0.0));
    assert!(said.iter().any(|values| values[0] == text("onFCPublish")));
}
