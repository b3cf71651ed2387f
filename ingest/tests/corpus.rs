//! What the fuzzer has found worth keeping (`fuzz/corpus`) and the captures, through the very functions that it runs: no
//! fuzzer is needed for that.

use std::path::Path;

#[path = "../../fuzz/targets.rs"]
mod targets;

/// Runs all files of a folder below the workspace; how many there were.
fn replay(folder: &str, target: fn(&[u8])) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    files.map(|file| target(&std::fs::read(file.unwrap().path()).unwrap())).count()
}

/// What a fuzzer does first, without what it learns: the same bytes each time.
fn at_random(target: fn(&[u8])) {
    let mut seed = 11u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize
    };
    for _ in 0..2000 {
        let len = random() % 1500;
        target(&(0..len).map(|_| random() as u8).collect::<Vec<u8>>());
    }
}

#[test]
fn nothing_that_was_found_panics_or_hoards() {
    for (name, target) in [
        ("session", targets::session as fn(&[u8])),
        ("broadcast", targets::broadcast),
        ("chunk", targets::chunk),
        ("amf", targets::amf),
        ("flv", targets::flv),
        ("records", targets::records),
    ] {
        assert!(replay(&format!("fuzz/corpus/{name}"), target) >= 10, "{name}: the corpus is gone");
        if name == "broadcast" {
            at_random(target);
        }
        // Not what it is made for, and all the better for that.
        assert!(replay("ingest/testdata", target) >= 5);
    }
}
