//! What another origin has claimed is no more archived here, however the session before ends.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_another_origin_has_claimed_is_no_more_archived_here() {
    use cluster::record::Role;
    use cluster::{Member, Metrics, Ring, member::Options, store::Embedded};

    for (round, then) in [Then::Pauses, Then::Breaks].into_iter().enumerate() {
        let store = Arc::new(Embedded::default());
        let member = |name: &str, instance| {
            let options = Options {
                name: name.into(),
                instance,
                lease_ttl: Duration::from_secs(10),
                revocations_kept: Duration::from_secs(60),
                resume_within: Duration::from_secs(60),
                follow_nodes: true,
            };
            let ring = || Ring::new(Vec::new());
            let member = Member::new(store.clone(), options, ring(), ring(), Metrics::unread());
            member.announce(Role::Origin, &format!("{name}:1"), 10);
            member
        };
        let (a, b) = (member("a", 1), member("b", 2));
        let stop = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        for member in [a.clone(), b.clone()] {
            let stop = stop.clone();
            tasks.spawn(async move { member.serve(stop).await });
        }
        let folder = std::env::temp_dir().join(format!("rooftop-claimed-{}-{round}", std::process::id()));
        let config = archive::Config { path: Some(folder.clone()), ..archive::Config::default() };
        let mut registry = Registry::default();
        let metrics = archive::Metrics::register(&mut registry);
        let (writer, _) = archive::open(&config, &folder, metrics).unwrap().unwrap();
        let shared = Arc::new(Shared {
            store: a.clone(),
            archive: writer.sink(),
            ..Arc::into_inner(shared()).unwrap()
        });

        let live = shared.stream_for_publishing(&"demo".parse().unwrap()).unwrap();
        let grant = a.claim("demo", "s1", Vec::new()).await.unwrap();
        let epoch = Epoch(grant.epoch);
        let (lines, _answer) = mpsc::channel(LINE_QUEUE);
        let (body, shutdown) = (audio_relay(0..333, 0, then), shared.shutdown.clone());
        let right = Right::Claimed(grant);
        let first = session(shared.clone(), live.clone(), right, request("s1"), body, lines, shutdown);
        let first = tokio::spawn(first);
        live.versions().wait_for(|version| *version > 10).await.unwrap();
        b.claim("demo", "s2", vec!["a".into()]).await.unwrap();
        first.await.unwrap();
        // An interruption is waited out.
        shared.tasks.close();
        shared.tasks.wait().await;
        assert!(!shared.has(&live), "it is forgotten here");
        assert_ne!(live.state(), crate::live::State::Ended, "it goes on");

        let (anchor, ..) = live.line().unwrap();
        let run = archive::index::Run {
            epoch,
            first: SegmentNumber(1),
            start: 0,
            anchor: archive::index::Anchor { unix_ms: anchor.unix_ms, ticks: anchor.ticks },
            segment_duration: 90_000,
            part_target: 18_000,
            breaks: 0,
            captions: Vec::new(),
            tiles: None,
            renditions: Vec::new(),
        };
        shared.archive.run(&live.broadcast_id().unwrap(), run);
        let mut said = String::new();
        prometheus_client::encoding::text::encode(&mut said, &registry).unwrap();
        let refused = said.lines().find(|line| line.contains("refused_segments_total ")).unwrap();
        assert!(!refused.ends_with(" 0"), "{refused}");
        stop.cancel();
        tasks.join_all().await;
        std::fs::remove_dir_all(folder).unwrap();
    }
}
