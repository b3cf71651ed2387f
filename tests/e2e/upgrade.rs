//! A POP and an edge are upgraded under load: each starts its next process, hands it its sockets, and drains. Viewers see no
//! error, and a broadcaster that reconnects when it is asked to loses no frame.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::kit::*;
use crate::numbered::Viewer;
use crate::succession::{Connection, Encoder, Fleet, Pace};

/// The process that took over from a node's, ended when this is dropped.
struct Next(u32);

impl Next {
    /// SIGUSR2.
    fn ask(node: &Node) {
        assert!(Command::new("kill").args(["-USR2", &node.pid().to_string()]).status().unwrap().success());
    }

    fn of(node: &Node) -> Next {
        let pid = || {
            let log = node.log();
            let line = log.lines().find(|line| line.contains("the next process serves"))?.to_owned();
            line.split("pid=").nth(1)?.split_whitespace().next()?.parse().ok()
        };
        Next(eventually("the next process", pid))
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.0.to_string()]).status();
    }
}

/// Asks over and over, on connections that it keeps, until `done`; how many answers there were. As browsers do, it asks once
/// more where a connection that it has kept is closed at that moment.
fn watch_playlist(edge: &Node, done: &AtomicBool) -> usize {
    let url = edge.url("/live/show/index.m3u8");
    let client = client();
    runtime().block_on(async {
        let mut answers = 0;
        while !done.load(Ordering::Relaxed) {
            let mut answer = get_with(&client, &url).await;
            if answer.status == 0 {
                answer = get_with(&client, &url).await;
            }
            assert_eq!(answer.status, 200, "answer {answers}: {}", answer.text());
            answers += 1;
            // A player's pace.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        answers
    })
}

#[test]
fn a_pop_and_an_edge_are_upgraded_under_load() {
    let _turn = real_time(Share::Half);
    let Fleet { origin, pops: [pop, _], edge, folder } = Fleet::start("upgrade", "2s", "6s");
    // An origin keeps its streams: it is drained instead.
    Next::ask(&origin);
    origin.logged("not upgraded: the streams of an origin");
    let mut encoder = Encoder::new();
    let end = encoder.keyframe_from(encoder.at(12_000));
    encoder.media.truncate(end);
    let (done, pace) = (AtomicBool::new(false), Pace(Instant::now()));
    let (pictures, sounds, said) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            live(&edge, "show");
            Viewer::watch(folder.path(), &edge.url("/live/show/index.m3u8")).end().unwrap()
        });
        let asking = scope.spawn(|| {
            live(&edge, "show");
            watch_playlist(&edge, &done)
        });
        let mut old = Some(Connection::open(&pop, "show", 1, 0));
        old.as_mut().unwrap().begin(&encoder, 0);
        let (mut new, mut switch, mut upgrading) = (None::<Connection>, usize::MAX, false);
        for (index, tag) in encoder.media.iter().enumerate() {
            pace.wait_for(tag.ms);
            if !upgrading && tag.ms >= 4_000 {
                upgrading = true;
                Next::ask(&pop);
                Next::ask(&edge);
            }
            if new.is_none() && old.as_ref().is_some_and(Connection::is_asked) {
                switch = encoder.keyframe_from(index);
                // The same address: it is the next process that takes it.
                new = Some(Connection::open(&pop, "show", 1, 0));
                new.as_mut().unwrap().begin(&encoder, encoder.media[switch].ms);
            }
            if index >= switch
                && let Some(old) = old.take()
            {
                scope.spawn(move || old.end());
            }
            if let Some(old) = &mut old {
                old.send(tag).unwrap();
            }
            if let Some(new) = new.as_mut().filter(|_| index >= switch) {
                new.send(tag).unwrap();
            }
        }
        new.expect("it was asked to reconnect").end();
        // Nobody asks on when the broadcast is forgotten.
        done.store(true, Ordering::Relaxed);
        println!("{} playlists without an error", asking.join().unwrap());
        watching.join().unwrap()
    });
    let nexts = [Next::of(&pop), Next::of(&edge)];
    let (sent_pictures, sent_sounds) = encoder.sent(|_| true);
    assert_eq!(pictures, sent_pictures, "ffmpeg: {said}");
    let skipped = sent_sounds.iter().position(|hash| *hash == sounds[0]).unwrap();
    assert!(skipped <= 2 && sent_sounds[skipped..] == sounds, "{} audio frames", sounds.len());
    assert_eq!(origin.metric("origin_runs_total"), 1.0);
    // The processes before have ended in good order, and those after serve.
    let (pop_log, edge_log) = (pop.log(), edge.log());
    assert_eq!(get(&format!("http://{}/readyz", edge.addr("admin"))).status, 200);
    assert!(pop.ended().success(), "{pop_log}");
    assert!(edge.ended().success(), "{edge_log}");
    drop(nexts);
}
