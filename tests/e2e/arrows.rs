//! Which crate may use which: siblings never import one another, so that roles can run in different versions side by side.

use std::path::Path;

#[test]
fn crates_depend_downwards_only() {
    const ALLOWED: &[(&str, &[&str])] = &[
        ("media", &[]),
        ("net", &[]),
        ("cluster", &[]),
        ("transcode", &["media"]),
        ("ingest", &["cluster", "media", "net"]),
        ("archive", &["media"]),
        ("origin", &["archive", "cluster", "media", "net", "transcode"]),
        ("edge", &["cluster", "media", "net"]),
    ];
    for (name, allowed) in ALLOWED {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(name).join("Cargo.toml");
        let manifest: toml::Table = std::fs::read_to_string(manifest).unwrap().parse().unwrap();
        let used = manifest["dependencies"].as_table().unwrap().keys();
        let ours: Vec<_> = used.filter(|used| ALLOWED.iter().any(|(name, _)| name == used)).collect();
        assert_eq!(ours, *allowed, "{name}");
    }
}
