//! The same broadcasts on a disk and in a real S3-speaking server: the same names, the same bytes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use archive::config::Store;
use archive::index::{Anchor, Entry, Kind, Rendition, Run};
use archive::{BroadcastId, Config, Index, Metrics, NewSegment, Reader};
use bytes::Bytes;
use media::time::{FrameRate, Timescale};
use media::{Epoch, Object, SegmentNumber};
use tokio_util::sync::CancellationToken;

/// moto, which answers as Amazon's S3 does.
struct S3 {
    child: Child,
    address: String,
    credentials: PathBuf,
}

impl S3 {
    /// `None` where it is not installed, and that is allowed.
    fn start(folder: &Path) -> Option<S3> {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/moto/bin/moto_server");
        let program = std::env::var_os("MOTO_SERVER").map_or(tools, PathBuf::from);
        if !program.exists() {
            let strict = std::env::var_os("ROOFTOP_STRICT").is_some_and(|value| value == "1");
            assert!(!strict, "{} is missing: run scripts/deps.sh test", program.display());
            eprintln!("skipped: {} is missing", program.display());
            return None;
        }
        let mut child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .find_map(|line| Some(line.unwrap().split_once("Running on http://")?.1.trim().to_owned()))
            .expect("moto says where it listens");
        // It must not be held up by what nobody reads.
        std::thread::spawn(move || lines.for_each(drop));
        let credentials = folder.join("credentials");
        std::fs::write(&credentials, "key-of-the-test\nsecret-of-the-test\n").unwrap();
        let s3 = S3 { child, address, credentials };
        s3.make_bucket();
        Some(s3)
    }

    fn make_bucket(&self) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "PUT /rooftop HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.address
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn config(&self) -> Config {
        Config {
            store: Store::S3,
            endpoint: Some(format!("http://{}", self.address)),
            bucket: Some("rooftop".into()),
            prefix: "a/b".into(),
            credentials: Some(self.credentials.clone()),
            ..Config::default()
        }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(epoch: u64, first: u64) -> Run {
    let (video, audio) = (
        Kind::Video { width: 640, height: 360, frame_rate: Some(FrameRate { num: 30_000, den: 1001 }) },
        Kind::Audio { channels: 2, sample_rate: 48_000 },
    );
    let rendition = |id: &str, timescale, kind| Rendition {
        id: id.parse().unwrap(),
        codec: "avc1.64001f".into(),
        bitrate_bps: 700_000,
        timescale,
        kind,
        init: Bytes::from_static(b"\0\x01init"),
    };
    Run {
        epoch: Epoch(epoch),
        first: SegmentNumber(first),
        start: 90_000 * first as i64,
        anchor: Anchor { unix_ms: 1_700_000_000_000, ticks: 90_000 },
        segment_duration: 90_000,
        part_target: 18_000,
        breaks: 0,
        captions: Vec::new(),
        tiles: None,
        renditions: vec![
            rendition("360p", Timescale::VIDEO, video),
            rendition("audio", Timescale::OPUS, audio),
        ],
    }
}

/// Segments of up to 300 kB whose bytes follow from their names.
fn body(rendition: &str, number: u64) -> Bytes {
    let mut state = number * 7919 + rendition.len() as u64;
    let len = 1000 + (number * 37_171) % 300_000;
    let bytes = (0..len).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    bytes.collect()
}

/// Two broadcasts, the first in two runs with a hole, written, finished and read back, by two processes' worth of writers.
async fn keep(config: &Config, folder: &Path) -> (Reader, BTreeMap<String, (Index, Vec<Bytes>)>) {
    let ids = ["demo-1700000000000", "a.b-c-5"].map(|id| id.parse::<BroadcastId>().unwrap());
    for (id, epoch, numbers) in [(&ids[0], 5, 10..20), (&ids[0], 6, 18..25), (&ids[1], 7, 1..4)] {
        let metrics = Metrics::default();
        let (writer, _) = archive::open(config, folder, metrics.clone()).unwrap().unwrap();
        let sink = writer.sink();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(writer.serve(shutdown.clone()));
        sink.run(id, run(epoch, numbers.start));
        for number in numbers {
            for (rendition, second) in [("360p", 90_000), ("audio", 48_000)] {
                let rendition: media::RenditionId = rendition.parse().unwrap();
                let (epoch, number) = (Epoch(epoch), SegmentNumber(number));
                if number.0 == 21 {
                    sink.gap(id, epoch, &rendition, number);
                    continue;
                }
                sink.segment(NewSegment {
                    broadcast: id.clone(),
                    epoch,
                    number,
                    start: second * number.0 as i64,
                    duration: second,
                    discontinuity: number.0 == 18 && epoch.0 == 6,
                    lead: 0,
                    object: Object::complete(body(rendition.as_str(), number.0)),
                    rendition,
                });
            }
        }
        sink.ended(id, Epoch(epoch));
        tokio::time::timeout(Duration::from_secs(60), async {
            while metrics.finished_broadcasts.get() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("it is finished");
        shutdown.cancel();
        serving.await.unwrap();
    }
    let reader = archive::open_to_read(config, folder).unwrap().unwrap();
    let mut kept = BTreeMap::new();
    for id in reader.broadcasts().await.unwrap() {
        let report = reader.verify(&id).await.unwrap();
        assert_eq!((report.findings, report.holes), (vec![], vec![]), "{id}");
        let index = Index::clone(&*reader.index(&id).await.unwrap().unwrap());
        let mut bodies = Vec::new();
        for rendition in index.renditions() {
            for entry in index.entries(&rendition.id, SegmentNumber(0)) {
                let Entry::Segment(segment) = entry else { continue };
                let media = reader.segment(&id, segment.epoch, &rendition.id, segment.number, None).await;
                let media = media.unwrap().unwrap();
                assert_eq!(media.bytes, body(rendition.id.as_str(), segment.number.0));
                bodies.push(media.bytes);
            }
        }
        kept.insert(id.to_string(), (index, bodies));
    }
    assert_eq!(kept.len(), 2);
    assert_eq!(kept["demo-1700000000000"].1.len(), 2 * 14, "10 to 24 but 21, once");
    (reader, kept)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_and_s3_keep_the_same() {
    let folder = std::env::temp_dir().join(format!("rooftop-stores-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let (disk, on_disk) = keep(&Config::default(), &folder).await;
    let names = |reader: &Reader| {
        let reader = reader.clone();
        async move { reader.broadcasts().await.unwrap() }
    };
    if let Some(s3) = S3::start(&folder) {
        let (bucket, in_s3) = keep(&s3.config(), &folder).await;
        // All but when it ended, which the clock tells.
        for (id, (index, bodies)) in &on_disk {
            let (other, others) = &in_s3[id];
            assert_eq!(index.objects().collect::<Vec<_>>(), other.objects().collect::<Vec<_>>(), "{id}");
            assert_eq!(index.runs().collect::<Vec<_>>(), other.runs().collect::<Vec<_>>(), "{id}");
            assert_eq!(index.holes().collect::<Vec<_>>(), other.holes().collect::<Vec<_>>(), "{id}");
            assert!(bodies == others, "{id}: byte for byte");
        }
        archive::remove(&bucket, &"a.b-c-5".parse().unwrap(), false).await.unwrap();
        assert_eq!(names(&bucket).await.len(), 1);
        // It goes away: that is said, and no secret with it.
        let config = s3.config();
        drop(s3);
        let away = archive::open_to_read(&config, &folder).unwrap().unwrap();
        let said = away.broadcasts().await.unwrap_err().to_string();
        assert!(!said.contains("secret-of-the-test"), "{said}");
    }
    archive::remove(&disk, &"a.b-c-5".parse().unwrap(), false).await.unwrap();
    assert_eq!(names(&disk).await.len(), 1);
    std::fs::remove_dir_all(&folder).unwrap();
}
