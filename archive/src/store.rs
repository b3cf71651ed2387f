//! The object store that the configuration names.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use crate::config::{Config, Store};
use crate::error::Error;

/// A store that was opened, and for a folder the lock that keeps other writers out.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The folder of a local disk: whoever holds its lock is its only writer.
    pub(crate) lock: Option<Arc<File>>,
}

/// Opens it; `None` where nothing is kept. A writer of a folder must be the only one.
pub(crate) fn open(config: &Config, state_dir: &Path, write: bool) -> Result<Option<Opened>, Error> {
    match config.store {
        Store::None => Ok(None),
        Store::File => {
            let path = config.path.clone().unwrap_or_else(|| state_dir.join("archive"));
            let folder = |source| Error::Folder { path: path.display().to_string(), source };
            let mut lock = None;
            if write {
                fs::create_dir_all(&path).map_err(folder)?;
                let file = File::create(path.join(".lock")).map_err(folder)?;
                match file.try_lock() {
                    Ok(()) => lock = Some(Arc::new(file)),
                    Err(TryLockError::WouldBlock) => return Err(Error::Taken(path.display().to_string())),
                    Err(TryLockError::Error(source)) => return Err(folder(source)),
                }
                remove_staged(&path).map_err(folder)?;
            }
            // Without it a file that was renamed may be empty after a power cut.
            // And folders that hold nothing any more would be listed as broadcasts.
            let store =
                LocalFileSystem::new_with_prefix(&path)?.with_fsync(true).with_automatic_cleanup(true);
            Ok(Some(Opened { store: Arc::new(store), lock }))
        }
        Store::S3 => s3(config).map(|store| Some(Opened { store, lock: None })),
    }
}

/// Files that were being written when a process was killed: `LocalFileSystem` writes to `name#number`, which it neither
/// lists nor removes.
fn remove_staged(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_staged(&entry.path())?;
        } else if entry
            .file_name()
            .to_str()
            .and_then(|name| name.rsplit_once('#'))
            .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(feature = "s3")]
fn s3(config: &Config) -> Result<Arc<dyn ObjectStore>, Error> {
    use std::time::Duration;

    use object_store::aws::AmazonS3Builder;
    use object_store::prefix::PrefixStore;
    use object_store::{BackoffConfig, ClientOptions, RetryConfig};

    // An attempt has an end; what failed is tried again by the queue, which says so.
    let client = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout(Duration::from_secs(60))
        .with_allow_http(config.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")));
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 1,
        retry_timeout: Duration::from_secs(10),
    };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(config.bucket.clone().unwrap_or_default())
        .with_region(&config.region)
        .with_client_options(client)
        .with_retry(retry);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(path) = &config.credentials {
        let wrong = |why: &str| Error::Credentials { path: path.display().to_string(), why: why.into() };
        let text = fs::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let (Some(id), Some(secret), None) = (lines.next(), lines.next(), lines.next()) else {
            return Err(wrong("there must be two lines: the key's id and its secret"));
        };
        builder = builder.with_access_key_id(id).with_secret_access_key(secret);
    }
    let store = builder.build()?;
    let prefix = object_store::path::Path::from(config.prefix.as_str());
    if prefix.as_ref().is_empty() {
        Ok(Arc::new(store))
    } else {
        Ok(Arc::new(PrefixStore::new(store, prefix)))
    }
}

#[cfg(not(feature = "s3"))]
fn s3(_: &Config) -> Result<Arc<dyn ObjectStore>, Error> {
    let source = "this binary was built without S3".into();
    Err(Error::Store(object_store::Error::Generic { store: "s3", source }))
}
