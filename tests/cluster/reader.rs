//! The bed's own player: reads an HLS rendition by blocking reload, fetches each segment once, and keeps when each came.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use http_body_util::Empty;
use hyper_util::client::legacy::connect::HttpConnector;

use crate::kit::*;
use crate::numbered;
use crate::playlist::{Entry, Playlist};

/// An answer that takes longer is asked for again, as a player would.
const PATIENCE: Duration = Duration::from_secs(4);

/// Pause before what failed is asked for again.
const PAUSE: Duration = Duration::from_millis(100);

/// Times of the day are printed in milliseconds, durations in microseconds: neighbours may be apart by so much.
const ROUNDING_MS: i64 = 3;

type Client = hyper_util::client::legacy::Client<HttpConnector, Empty<bytes::Bytes>>;

/// A segment that was fetched.
struct Got {
    came: Instant,
    map: String,
    bytes: Vec<u8>,
}

/// What was read of a broadcast.
pub struct Read {
    segments: BTreeMap<u64, Got>,
    maps: BTreeMap<String, Vec<u8>>,
    /// What no player should meet: each a sentence.
    pub faults: Vec<String>,
    pub discontinuities: u64,
    /// Answers that were not 200, or none.
    pub failed_requests: u64,
    fetched: Arc<AtomicUsize>,
}

/// A reader on a thread of its own.
pub struct Reader {
    thread: Option<JoinHandle<Read>>,
    stop: CancellationToken,
    fetched: Arc<AtomicUsize>,
}

impl Reader {
    /// Reads `{base}{rendition}.m3u8` until it ends.
    pub fn watch(base: &str, rendition: &str) -> Reader {
        let (base, rendition, stop) = (base.to_owned(), rendition.to_owned(), CancellationToken::new());
        let (stopped, fetched) = (stop.clone(), Arc::<AtomicUsize>::default());
        let counter = fetched.clone();
        let thread = std::thread::spawn(move || {
            let mut read = Read {
                segments: BTreeMap::new(),
                maps: BTreeMap::new(),
                faults: Vec::new(),
                discontinuities: 0,
                failed_requests: 0,
                fetched: counter,
            };
            let reading = async {
                tokio::select! {
                    () = follow(&base, &rendition, &mut read) => {}
                    () = stopped.cancelled() => read.faults.push("the broadcast did not end".into()),
                }
            };
            runtime().block_on(reading);
            read
        });
        Reader { thread: Some(thread), stop, fetched }
    }

    /// Segments fetched so far.
    pub fn fetched(&self) -> usize {
        self.fetched.load(Ordering::Relaxed)
    }

    /// What it read, once the broadcast has ended; within `patience`.
    pub fn end(mut self, patience: Duration) -> Read {
        let (thread, began) = (self.thread.take().unwrap(), Instant::now());
        while !thread.is_finished() && began.elapsed() < patience {
            std::thread::sleep(PAUSE);
        }
        self.stop.cancel();
        thread.join().unwrap()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn follow(base: &str, rendition: &str, read: &mut Read) {
    let client = client();
    let mut last: Option<Playlist> = None;
    let mut blocking = true;
    loop {
        let query = match &last {
            Some(playlist) if blocking => format!("?_HLS_msn={}", playlist.next()),
            _ => String::new(),
        };
        let url = format!("{base}{rendition}.m3u8{query}");
        let answer = tokio::time::timeout(PATIENCE, get_with(&client, &url)).await.ok();
        let Some(answer) = answer.filter(|answer| answer.status == 200) else {
            // A player goes back to plain polling when blocking fails.
            (blocking, read.failed_requests) = (false, read.failed_requests + 1);
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let came = Instant::now();
        let playlist = match Playlist::parse(&answer.text()) {
            Ok(playlist) => playlist,
            Err(error) => {
                read.faults.push(format!("{error}: {}", answer.text()));
                return;
            }
        };
        let fresh = last.as_ref().is_none_or(|last| playlist.next() > last.next());
        read.compare(last.as_ref(), &playlist);
        for entry in &playlist.entries {
            // What cannot be fetched now is tried again at the next reload, before what comes after it.
            if !read.fetch(&client, base, entry, came).await {
                break;
            }
        }
        if playlist.ended {
            return;
        }
        if !fresh && !blocking {
            tokio::time::sleep(PAUSE).await;
        }
        // One that is behind may be an edge's copy: what is known does not go back.
        if fresh {
            last = Some(playlist);
        }
        blocking = true;
    }
}

impl Read {
    /// What follows from one playlist to the next.
    fn compare(&mut self, last: Option<&Playlist>, playlist: &Playlist) {
        let Some(last) = last else { return };
        let known = last.entries.first().map_or(0, |entry| entry.number);
        if playlist.next() <= known {
            self.faults.push(format!("numbers began anew at {} after {}", playlist.next(), last.next()));
        }
        let joined = |pair: &&[Entry]| pair[0].discontinuities == pair[1].discontinuities && !pair[1].gap;
        for pair in playlist.entries.windows(2).filter(joined) {
            let off = pair[1].wall_ms - pair[0].wall_ms - (pair[0].seconds * 1000.0) as i64;
            if off.abs() > ROUNDING_MS {
                self.faults.push(format!("segment {}: its time of day is {off} ms off", pair[1].number));
            }
        }
        for entry in &playlist.entries {
            let Some(before) = last.entry(entry.number) else { continue };
            if entry.discontinuities != before.discontinuities {
                self.faults.push(format!(
                    "segment {}: discontinuity sequence {}, then {}",
                    entry.number, before.discontinuities, entry.discontinuities
                ));
            }
            if (entry.wall_ms - before.wall_ms).abs() > ROUNDING_MS {
                self.faults.push(format!(
                    "segment {}: its time of day moved by {} ms",
                    entry.number,
                    entry.wall_ms - before.wall_ms
                ));
            }
        }
    }

    /// Fetches a segment unless it is here or behind what is; whether that succeeded.
    async fn fetch(&mut self, client: &Client, base: &str, entry: &Entry, came: Instant) -> bool {
        let newest = self.segments.last_key_value().map(|(newest, _)| *newest);
        // A gap is nothing to fetch; whatever comes behind it shows what is missing.
        if entry.gap || newest.is_some_and(|newest| entry.number <= newest) {
            return true;
        }
        if !self.maps.contains_key(&entry.map) {
            let Some(bytes) = self.media(client, &format!("{base}{}", entry.map)).await else { return false };
            self.maps.insert(entry.map.clone(), bytes);
        }
        let Some(bytes) = self.media(client, &format!("{base}{}", entry.uri)).await else { return false };
        if let Some(newest) = newest.filter(|newest| entry.number > newest + 1) {
            self.faults.push(format!("segments {} to {} were never there", newest + 1, entry.number - 1));
        }
        self.discontinuities = self.discontinuities.max(entry.discontinuities);
        self.segments.insert(entry.number, Got { came, map: entry.map.clone(), bytes });
        self.fetched.store(self.segments.len(), Ordering::Relaxed);
        true
    }

    async fn media(&mut self, client: &Client, url: &str) -> Option<Vec<u8>> {
        match tokio::time::timeout(PATIENCE, get_with(client, url)).await {
            Ok(answer) if answer.status == 200 => Some(answer.body),
            _ => {
                self.failed_requests += 1;
                None
            }
        }
    }

    /// The longest time between one new segment and the next, after the first `settled`.
    pub fn longest_gap(&self, settled: usize) -> Duration {
        let times: Vec<_> = self.segments.values().skip(settled).map(|got| got.came).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// The numbers of all pictures, decoded from init segments and segments as a player appends them.
    pub fn pictures(&self, folder: &Path) -> Vec<u32> {
        let mut runs: Vec<(&str, Vec<u8>)> = Vec::new();
        for got in self.segments.values() {
            if runs.last().is_none_or(|(map, _)| *map != got.map) {
                runs.push((&got.map, self.maps[&got.map].clone()));
            }
            runs.last_mut().unwrap().1.extend(&got.bytes);
        }
        runs.iter().enumerate().flat_map(|(index, (_, bytes))| decode(folder, index, bytes)).collect()
    }
}

fn decode(folder: &Path, index: usize, bytes: &[u8]) -> Vec<u32> {
    let path = |kind: &str| -> PathBuf { folder.join(format!("run-{index}.{kind}")) };
    fs::write(path("mp4"), bytes).unwrap();
    let mut command = ffmpeg();
    command.arg("-i").arg(path("mp4"));
    let status = numbered::readable(&mut command).arg(path("gray")).status().unwrap();
    assert!(status.success(), "segments that do not decode: {}", path("mp4").display());
    numbered::numbers(&fs::read(path("gray")).unwrap())
}
