//! Notices that files have changed: their configuration, certificates and keys, once a second.
//!
//! They are looked at rather than watched: what is behind the path counts, so that editors which rename, certbot's links
//! and a Kubernetes ConfigMap's folder of links all look the same, on every file system.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Cause, Reloader};

/// Between two looks. What has changed must look the same twice: whoever writes several files has as long between two.
const LOOK: Duration = Duration::from_secs(1);

/// What tells a file from the one that was there before; `None`: there is none.
type Mark = Option<[i64; 7]>;

/// What the files looked like at one time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Look(Vec<(PathBuf, Mark)>);

impl Look {
    pub(super) fn at(files: Vec<PathBuf>) -> Look {
        let mark = |path: &PathBuf| {
            // Links are followed. Whoever writes a file changes its ctime, whatever it does to its mtime.
            let meta = std::fs::metadata(path).ok()?;
            let (dev, ino, len) = (meta.dev() as i64, meta.ino() as i64, meta.len() as i64);
            Some([dev, ino, len, meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()])
        };
        Look(files.into_iter().map(|path| (path.clone(), mark(&path))).collect())
    }

    /// From now on it is about `files`; those that are known to it are not looked at again.
    pub(super) fn name(&mut self, files: Vec<PathBuf>) {
        self.0.retain(|(path, _)| files.contains(path));
        let others = files.into_iter().filter(|path| !self.0.iter().any(|(known, _)| known == path));
        let others = Look::at(others.collect());
        self.0.extend(others.0);
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.0.iter().map(|(path, _)| path.clone()).collect()
    }
}

/// Tells when something has changed and come to rest.
#[derive(Debug, Default)]
struct Rest(Option<Look>);

impl Rest {
    /// Whether `now`, which differs from what is `known`, is as it was a look ago.
    fn push(&mut self, known: &Look, now: Look) -> bool {
        if now == *known {
            self.0 = None;
            return false;
        }
        let rests = self.0.as_ref() == Some(&now);
        self.0 = (!rests).then_some(now);
        rests
    }
}

/// Reloads whenever files have changed, until `stop`.
pub(crate) async fn run(reloader: Reloader, stop: CancellationToken) {
    let mut rest = Rest::default();
    while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        if !reloader.watches() {
            continue;
        }
        // A file system may be slow, or hang.
        let looker = reloader.clone();
        let Ok((known, now)) = tokio::task::spawn_blocking(move || looker.look()).await else { continue };
        if rest.push(&known, now) {
            info!("files have changed: reloading the configuration");
            let reloader = reloader.clone();
            let _ = tokio::task::spawn_blocking(move || reloader.reload(Cause::Files)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_way_to_change_a_file_is_seen_once_it_rests() {
        let folder = std::env::temp_dir().join(format!("rooftop-look-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        // As a ConfigMap has it: file -> ..data/file, ..data -> a folder of this version.
        for version in ["1", "2"] {
            fs::create_dir_all(folder.join(version)).unwrap();
            fs::write(folder.join(version).join("file"), "same").unwrap();
        }
        symlink("1", folder.join("..data")).unwrap();
        symlink("..data/file", folder.join("file")).unwrap();
        let plain = folder.join("plain");
        fs::write(&plain, "a").unwrap();
        let look = || Look::at(vec![folder.join("file"), plain.clone(), folder.join("none")]);
        let (mut known, mut rest) = (look(), Rest::default());
        assert!(!rest.push(&known, look()) && !rest.push(&known, look()));
        let exchange = |to: &str| {
            symlink(to, folder.join("next")).unwrap();
            fs::rename(folder.join("next"), folder.join("..data")).unwrap();
        };
        let ways: [(&str, &dyn Fn()); 5] = [
            ("in place, as long as before", &|| fs::write(&plain, "b").unwrap()),
            ("renamed over", &|| {
                fs::write(folder.join("other"), "b").unwrap();
                fs::rename(folder.join("other"), &plain).unwrap();
            }),
            ("a link above it", &|| exchange("2")),
            ("removed", &|| fs::remove_file(&plain).unwrap()),
            ("made", &|| fs::write(folder.join("none"), "").unwrap()),
        ];
        for (way, change) in ways {
            change();
            assert!(!rest.push(&known, look()), "{way}: it may go on to change");
            assert!(rest.push(&known, look()), "{way}: it rests");
            known = look();
            assert!(!rest.push(&known, look()), "{way}: once");
        }
        // What goes on to change does not rest; what is as it was has not changed.
        for _ in 0..3 {
            exchange("1");
            assert!(!rest.push(&known, look()));
            exchange("2");
            assert!(!rest.push(&known, look()));
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
