//! The shelf of complete objects beside the caches it could have been built on: what a hit costs, whether memory keeps
//! within its budget in a burst, whether hot names survive a scan, whether new objects get in
//! (`docs/decisions/0010-an-own-shelf.md`).

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use edge::budget::{Budget, Gauges};
use edge::shelf::{Counters, Shelf};

use crate::Folders;
use crate::report::{Better, Report};

/// Bytes of a body: a small segment.
const BODY: usize = 64 << 10;

/// What each cache may hold, in bytes.
const BUDGET: u64 = 256 << 20;

/// Bodies that are alive, whoever holds them, and the most there were.
static ALIVE: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

struct Body(Vec<u8>);

impl Body {
    fn new(bytes: usize) -> Arc<Body> {
        let alive = ALIVE.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        PEAK.fetch_max(alive, Ordering::Relaxed);
        Arc::new(Body(vec![1; bytes]))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        ALIVE.fetch_sub(self.0.len() as u64, Ordering::Relaxed);
    }
}

trait Cache: Send + Sync {
    fn put(&self, key: &str, bytes: usize);
    fn get(&self, key: &str) -> Option<Arc<Body>>;
    /// Does what it has put off.
    fn settle(&self) {}
}

struct Ours(Shelf<Body>, Instant);

impl Ours {
    fn new(budget: u64) -> Ours {
        let budget = Budget::new(budget, 0, Gauges::default());
        Ours(Shelf::new(budget, Counters::default()), Instant::now())
    }
}

impl Cache for Ours {
    fn put(&self, key: &str, bytes: usize) {
        let until = self.1 + Duration::from_secs(3600);
        let Some(charge) = self.0.reserve(bytes as u64, self.1) else {
            return;
        };
        self.0.insert(key.into(), Body::new(bytes), charge, until, self.1, |_| true);
    }

    fn get(&self, key: &str) -> Option<Arc<Body>> {
        // A tier has the time already.
        self.0.get(key, self.1)
    }
}

/// moka's policies as they are; `swept`: its pending work is done after every insertion.
struct Moka {
    cache: moka::sync::Cache<Arc<str>, Arc<Body>>,
    swept: bool,
}

impl Moka {
    fn new(budget: u64, policy: moka::policy::EvictionPolicy, swept: bool) -> Moka {
        let cache = moka::sync::Cache::builder()
            .max_capacity(budget)
            .eviction_policy(policy)
            .weigher(|_, body: &Arc<Body>| body.0.len() as u32)
            .build();
        Moka { cache, swept }
    }
}

impl Cache for Moka {
    fn put(&self, key: &str, bytes: usize) {
        self.cache.insert(key.into(), Body::new(bytes));
        if self.swept {
            self.cache.run_pending_tasks();
        }
    }

    fn get(&self, key: &str) -> Option<Arc<Body>> {
        self.cache.get(key)
    }

    fn settle(&self) {
        self.cache.run_pending_tasks();
    }
}

/// Two caches of moka's, probation and protected, whose bodies are let go by the eviction listener: what moka could be made
/// to do.
struct TwoMokas {
    probation: moka::sync::Cache<Arc<str>, Arc<Slot>>,
    protected: moka::sync::Cache<Arc<str>, Arc<Slot>>,
}

struct Slot {
    body: Mutex<Option<Arc<Body>>>,
    bytes: u32,
    asked: AtomicBool,
}

impl TwoMokas {
    fn new(budget: u64) -> TwoMokas {
        let cache = |budget: u64| {
            moka::sync::Cache::builder()
                .max_capacity(budget)
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .weigher(|_, slot: &Arc<Slot>| slot.bytes)
                .eviction_listener(|_, slot: Arc<Slot>, cause| {
                    // One that was moved to the other half lives on there.
                    if cause.was_evicted() {
                        slot.body.lock().unwrap().take();
                    }
                })
                .build()
        };
        TwoMokas { probation: cache(budget / 5), protected: cache(budget / 5 * 4) }
    }
}

impl Cache for TwoMokas {
    fn put(&self, key: &str, bytes: usize) {
        let body = Mutex::new(Some(Body::new(bytes)));
        let slot = Slot { body, bytes: bytes as u32, asked: AtomicBool::new(false) };
        self.probation.insert(key.into(), Arc::new(slot));
        self.probation.run_pending_tasks();
    }

    fn get(&self, key: &str) -> Option<Arc<Body>> {
        let slot = match self.protected.get(key) {
            Some(slot) => slot,
            None => {
                // Another thread may move it just now.
                let Some(slot) = self.probation.get(key) else {
                    return self.protected.get(key)?.body.lock().unwrap().clone();
                };
                if slot.asked.swap(true, Ordering::Relaxed) {
                    self.protected.insert(key.into(), slot.clone());
                    self.probation.invalidate(key);
                    self.protected.run_pending_tasks();
                }
                slot
            }
        };
        slot.body.lock().unwrap().clone()
    }

    fn settle(&self) {
        self.probation.run_pending_tasks();
        self.protected.run_pending_tasks();
    }
}

#[derive(Clone)]
struct Bytes;

impl quick_cache::Weighter<Arc<str>, Arc<Body>> for Bytes {
    fn weight(&self, _: &Arc<str>, body: &Arc<Body>) -> u64 {
        body.0.len() as u64
    }
}

struct Quick(quick_cache::sync::Cache<Arc<str>, Arc<Body>, Bytes>);

impl Quick {
    fn new(budget: u64) -> Quick {
        Quick(quick_cache::sync::Cache::with_weighter((budget / BODY as u64) as usize, budget, Bytes))
    }
}

impl Cache for Quick {
    fn put(&self, key: &str, bytes: usize) {
        self.0.insert(key.into(), Body::new(bytes));
    }

    fn get(&self, key: &str) -> Option<Arc<Body>> {
        self.0.get(key)
    }
}

type Make = fn(u64) -> Box<dyn Cache>;

const CACHES: [(&str, Make); 6] = [
    ("shelf", |budget| Box::new(Ours::new(budget))),
    ("moka, LRU", |budget| Box::new(Moka::new(budget, moka::policy::EvictionPolicy::lru(), false))),
    ("moka, LRU, swept", |budget| Box::new(Moka::new(budget, moka::policy::EvictionPolicy::lru(), true))),
    ("moka, TinyLFU", |budget| Box::new(Moka::new(budget, moka::policy::EvictionPolicy::tiny_lfu(), false))),
    ("two mokas", |budget| Box::new(TwoMokas::new(budget))),
    ("quick_cache", |budget| Box::new(Quick::new(budget))),
];

pub(crate) fn run(_: &Folders, _: &tokio::runtime::Handle, report: &mut Report) -> anyhow::Result<()> {
    let figures = CACHES.iter().map(|(name, make)| Ok((*name, measure(*make)?)));
    let figures = figures.collect::<anyhow::Result<Vec<_>>>()?;
    let (_, ours) = &figures[0];
    for (name, theirs) in &figures[1..] {
        for ((what, unit, better, ours), (_, _, _, theirs)) in ours.iter().zip(theirs) {
            report.add(format!("store/{what}/{name}"), unit, *better, *ours, Some((*name, *theirs)));
        }
    }
    Ok(())
}

type Figure = (String, &'static str, Better, f64);

fn measure(make: Make) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for threads in [1, 2, 4] {
        let cache = make(BUDGET);
        cache.put("/live/demo/1/720p/1.m4s", 1500);
        figures.push((
            format!("get one name, {threads} threads"),
            "ns",
            Better::Lower,
            hits(&*cache, threads, |_| "/live/demo/1/720p/1.m4s")?,
        ));
    }
    let keys: Vec<String> = (0..4000).map(|number| format!("/live/demo/1/720p/{number}.m4s")).collect();
    let cache = make(BUDGET);
    for key in &keys {
        cache.put(key, 1500);
    }
    let spread = hits(&*cache, 2, |turn| &keys[turn * 7919 % keys.len()])?;
    figures.push(("get 4000 names, 2 threads".into(), "ns", Better::Lower, spread));
    drop(cache);

    figures.extend(burst(make));
    figures.push(("hot names after a scan".into(), "%", Better::Higher, scan(make)));
    figures.push(("new objects that get in".into(), "%", Better::Higher, admitted(make)));
    figures.push(("hits of a Zipf mix".into(), "%", Better::Higher, zipf(make)));
    ensure!(ALIVE.load(Ordering::Relaxed) == 0 || wait_for_none(), "bodies are left");
    Ok(figures)
}

/// Nanoseconds that a hit takes for who asks, with others asking at the same time.
fn hits<'a>(cache: &dyn Cache, threads: usize, key: impl Fn(usize) -> &'a str + Sync) -> anyhow::Result<f64> {
    const TURNS: usize = 1_000_000;
    let found = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (found, key) = (&found, &key);
            scope.spawn(move || {
                let mut hits = 0;
                for turn in 0..TURNS {
                    hits += u64::from(std::hint::black_box(cache.get(key(turn + thread))).is_some());
                }
                found.fetch_add(hits, Ordering::Relaxed);
            });
        }
    });
    let took = began.elapsed();
    ensure!(found.into_inner() == (threads * TURNS) as u64, "not every request was a hit");
    Ok(took.as_nanos() as f64 / TURNS as f64)
}

/// 1 GB by four threads: how far beyond the budget memory goes, and the time of an insertion.
fn burst(make: Make) -> [Figure; 2] {
    const THREADS: usize = 4;
    const EACH: usize = 4096;
    let cache = make(BUDGET);
    PEAK.store(0, Ordering::Relaxed);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let cache = &cache;
            scope.spawn(move || {
                for number in 0..EACH {
                    cache.put(&format!("/{thread}/{number}"), BODY);
                }
            });
        }
    });
    let each = began.elapsed().as_nanos() as f64 / (THREADS * EACH) as f64;
    // A body is made when its room is there; the caches that take it first have one more per thread.
    let over = PEAK.load(Ordering::Relaxed).saturating_sub(BUDGET) as f64 / f64::from(1 << 20);
    [
        ("over the budget in a burst".into(), "MiB", Better::Lower, over),
        ("insert 64 KiB into a full cache, 4 threads".into(), "ns", Better::Lower, each),
    ]
}

/// A tenth of the cache is hot and asked for now and then while twenty times the cache's size of cold names pass.
fn scan(make: Make) -> f64 {
    let budget = 16 << 20;
    let cache = make(budget);
    let fits = (budget / 4096) as usize;
    let hot: Vec<String> = (0..fits / 10).map(|number| format!("/hot/{number}")).collect();
    for _ in 0..3 {
        for key in &hot {
            if cache.get(key).is_none() {
                cache.put(key, 4096);
            }
        }
    }
    let (mut asked, mut found) = (0, 0);
    for number in 0..20 * fits {
        cache.put(&format!("/cold/{number}"), 4096);
        // Each hot name once per two sizes of the cache.
        if number % 20 == 0 {
            asked += 1;
            found += usize::from(cache.get(&hot[number / 20 % hot.len()]).is_some());
        }
    }
    100.0 * found as f64 / asked as f64
}

/// Into a cache that is full of names that were asked for often: whether a new one is there when it is asked for.
fn admitted(make: Make) -> f64 {
    let cache = make(16 << 20);
    let old: Vec<String> = (0..256).map(|number| format!("/old/{number}")).collect();
    for _ in 0..10 {
        for key in &old {
            if cache.get(key).is_none() {
                cache.put(key, BODY);
            }
        }
        cache.settle();
    }
    let mut there = 0;
    for number in 0..100 {
        let key = format!("/live/{number}");
        cache.put(&key, BODY);
        // Its waiters were served; this is the first who comes behind them.
        cache.settle();
        there += usize::from(cache.get(&key).is_some());
    }
    f64::from(there as u32)
}

/// Names by Zipf's law (exponent 0.9), a cache for a tenth of them: what VOD looks like.
fn zipf(make: Make) -> f64 {
    const NAMES: usize = 20_000;
    let cache = make((NAMES / 10 * 1024) as u64);
    let weights = (1..=NAMES).map(|rank| (rank as f64).powf(-0.9));
    let sums: Vec<f64> = weights
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect();
    let mut seed = 1_u64;
    let (mut asked, mut found) = (0, 0);
    for turn in 0..400_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let point = (seed >> 11) as f64 / (1_u64 << 53) as f64 * sums[NAMES - 1];
        let key = format!("/vod/{}", sums.partition_point(|sum| *sum < point));
        let hit = cache.get(&key).is_some();
        if !hit {
            cache.put(&key, 1024);
        }
        if turn > 100_000 {
            asked += 1;
            found += usize::from(hit);
        }
    }
    100.0 * f64::from(found as u32) / f64::from(asked)
}

/// moka lets go a little later.
fn wait_for_none() -> bool {
    let began = Instant::now();
    while ALIVE.load(Ordering::Relaxed) > 0 && began.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(10));
    }
    ALIVE.store(0, Ordering::Relaxed);
    true
}
