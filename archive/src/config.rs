//! What operators choose about the archive.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Where broadcasts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// Nowhere.
    None,
    /// In a folder.
    File,
    /// In a bucket of S3, or of what speaks like it.
    S3,
}

/// `[archive]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `"file"`, `"s3"` or `"none"`. Default `file`.
    pub store: Store,
    /// The folder of `file`, this node's own. Relative to the working directory. Default: `archive` in `node.state_dir`.
    pub path: Option<PathBuf>,
    /// The bucket of `s3`; it must exist.
    pub bucket: Option<String>,
    /// URL of an S3 that is not Amazon's, such as `https://minio.example:9000`. Default: Amazon's of the region.
    pub endpoint: Option<String>,
    /// The region of `s3`. Default `us-east-1`.
    pub region: String,
    /// What names in the bucket begin with, such as `rooftop/`. Several origins share one. Default: nothing.
    pub prefix: String,
    /// A file with the access key's id and its secret, one a line. Default: the environment's `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY`, or what Amazon's machines give their guests.
    pub credentials: Option<PathBuf>,
    /// How much may wait to be written; beyond, segments become holes. Default `256MiB`, 16MiB to 64GiB: 7 minutes of a
    /// 720p ladder while a disk or an S3 is away.
    pub queue: ByteSize,
    /// Objects that are written at a time. Default 8, 1 to 256.
    pub parallel: usize,
    /// Whole broadcasts that ended longer ago are removed. Default `7days`, 1min to 100years.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// When all broadcasts together are larger, the oldest that are over are removed. Default `10GiB`, from 64MiB on.
    pub max_size: ByteSize,
    /// How long what waits may take to be written at shutdown. Default `10s`, 0s to 10min.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store: Store::File,
            path: None,
            bucket: None,
            endpoint: None,
            region: "us-east-1".into(),
            prefix: String::new(),
            credentials: None,
            queue: ByteSize::mib(256),
            parallel: 8,
            max_age: Duration::from_secs(7 * 24 * 3600),
            max_size: ByteSize::gib(10),
            drain: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Everything that is wrong, each entry beginning with the key's path below `path`.
    pub fn problems(&self, path: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if self.store == Store::S3 {
            if cfg!(not(feature = "s3")) {
                problems.push(format!("{path}.store: this binary was built without S3"));
            }
            if self.bucket.as_ref().is_none_or(String::is_empty) {
                problems.push(format!("{path}.bucket: is wanted for store = \"s3\""));
            }
            if self.region.is_empty() {
                problems.push(format!("{path}.region: is empty"));
            }
        }
        if let Some(endpoint) = &self.endpoint {
            let uri = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
            if uri.is_none_or(|rest| rest.is_empty() || rest.contains(['?', '#', '@', ' '])) {
                // What it is may hold a secret.
                problems.push(format!(
                    "{path}.endpoint: is not an http or https URL without credentials and query"
                ));
            }
        }
        if object_store::path::Path::parse(&self.prefix).is_err() {
            problems.push(format!("{path}.prefix: {:?} is not a prefix of object names", self.prefix));
        }
        let (mib, gib) = (ByteSize::mib(1), ByteSize::gib(1));
        if !(16 * mib.as_u64()..=64 * gib.as_u64()).contains(&self.queue.as_u64()) {
            problems.push(format!("{path}.queue: {} is outside 16MiB to 64GiB", self.queue));
        }
        if !(1..=256).contains(&self.parallel) {
            problems.push(format!("{path}.parallel: {} is outside 1 to 256", self.parallel));
        }
        if self.max_size < ByteSize::mib(64) {
            problems.push(format!("{path}.max_size: {} is less than 64MiB", self.max_size));
        }
        let (s, years) = (Duration::from_secs, 31_557_600);
        for (key, value, low, high) in
            [("max_age", self.max_age, s(60), s(100 * years)), ("drain", self.drain, s(0), s(600))]
        {
            if !(low..=high).contains(&value) {
                problems.push(format!("{path}.{key}: {value:?} is outside {low:?} to {high:?}"));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_named() {
        assert_eq!(Config::default().problems("archive"), [""; 0]);
        let config = Config {
            store: Store::S3,
            endpoint: Some("https://key:secret@host".into()),
            prefix: "a//b".into(),
            queue: ByteSize::kib(1),
            parallel: 0,
            max_size: ByteSize::b(1),
            max_age: Duration::ZERO,
            drain: Duration::from_secs(3600),
            ..Config::default()
        };
        let problems = config.problems("archive");
        let keys = problems.iter().map(|problem| problem.split(':').next().unwrap());
        // A binary without S3 has one more to say.
        let keys: Vec<_> = keys.filter(|key| *key != "archive.store").collect();
        assert!(!problems.iter().any(|problem| problem.contains("secret")), "{problems:?}");
        let expected = ["bucket", "endpoint", "prefix", "queue", "parallel", "max_size", "max_age", "drain"];
        assert_eq!(keys, expected.map(|key| format!("archive.{key}")), "{problems:?}");
    }
}
