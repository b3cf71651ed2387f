//! The store of a fleet: etcd, v3 API.

use std::path::PathBuf;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity, KeyValue,
    PutOptions, TlsOptions, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};

use super::{Change, Entry, Error, LeaseId, Listing, Op, Outcome, Pending, Store, Txn, Watch};

/// For one request, connecting included. A leader is elected anew within 1 to 2 s; who wants longer asks again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// A member of etcd that says nothing is noticed after this and the timeout; etcd allows no more than a ping in 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Entries of one answer to a listing: 64 KiB each at most, and an answer is limited to 4 MiB.
const PAGE: i64 = 60;

/// How to reach etcd.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// URLs such as `https://etcd-1:2379`.
    pub endpoints: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// For `https` endpoints.
    pub tls: Option<EtcdTls>,
}

/// PEM files.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// Who signed etcd's certificate.
    pub ca: PathBuf,
    /// What this node shows, and its key, if etcd asks for it.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// etcd.
pub struct Etcd {
    client: Client,
    prefix: String,
}

impl Etcd {
    /// Reads the certificates; connections are made as they are needed, so that etcd may be away. Fails if a file cannot be
    /// read or an endpoint is no URL.
    pub async fn new(options: &EtcdOptions) -> Result<Etcd, String> {
        let read =
            |file: &PathBuf| std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()));
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(REQUEST_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            // A member that lost the others must not tell us what was once so.
            .with_require_leader(true);
        if let Some(tls) = &options.tls {
            let mut with = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
            if let Some((certificate, key)) = &tls.identity {
                with = with.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            connect = connect.with_tls(with);
        }
        let client = Client::connect(&options.endpoints, Some(connect)).await;
        let client = client.map_err(|error| error.to_string())?;
        Ok(Etcd { client, prefix: options.prefix.clone() })
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// An entry of ours; `None` if it is not text.
    fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        let key = kv.key_str().ok()?.strip_prefix(&self.prefix)?.to_owned();
        let value = kv.value_str().ok()?.to_owned();
        let lease = Some(LeaseId(kv.lease())).filter(|lease| lease.0 != 0);
        Some(Entry { key, value, revision: kv.mod_revision().cast_unsigned(), lease })
    }

    async fn listing(&self, prefix: &str) -> Result<Listing, Error> {
        let (mut from, all) = (self.full(prefix), self.full(prefix));
        let mut listing = Listing::default();
        loop {
            let mut options = GetOptions::new().with_range(after_prefix(&all)).with_limit(PAGE);
            if listing.revision != 0 {
                options = options.with_revision(listing.revision.cast_signed());
            }
            let answer = within(self.client.kv_client().get(from.clone(), Some(options))).await?;
            if listing.revision == 0 {
                listing.revision = revision(answer.header())?;
            }
            listing.entries.extend(answer.kvs().iter().filter_map(|kv| self.entry(kv)));
            match answer.kvs().last() {
                Some(last) if answer.more() => {
                    let last = last.key_str().map_err(|_| Error::Refused("a key is not text".into()))?;
                    from = format!("{last}\0");
                }
                _ => return Ok(listing),
            }
        }
    }

    async fn transact(&self, txn: Txn) -> Result<Outcome, Error> {
        txn.check()?;
        let lease = txn.then.iter().find_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } => None,
        });
        let when = txn.conditions.iter().map(|condition| {
            let revision = condition.revision.unwrap_or(0).cast_signed();
            Compare::mod_revision(self.full(&condition.key), CompareOp::Equal, revision)
        });
        let then = txn.then.iter().map(|op| match op {
            Op::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(self.full(key), value.clone(), options)
            }
            Op::Delete { key } => TxnOp::delete(self.full(key), None),
        });
        let or_else = txn.conditions.iter().map(|condition| TxnOp::get(self.full(&condition.key), None));
        let request = etcd_client::Txn::new()
            .when(when.collect::<Vec<_>>())
            .and_then(then.collect::<Vec<_>>())
            .or_else(or_else.collect::<Vec<_>>());
        let answer =
            within(self.client.kv_client().txn(request)).await.map_err(|error| match (error, lease) {
                (Error::Refused(why), Some(lease)) if why.contains("lease not found") => {
                    Error::LeaseEnded(lease)
                }
                (error, _) => error,
            })?;
        if answer.succeeded() {
            return Ok(Outcome::Done(revision(answer.header())?));
        }
        let found = answer.op_responses().into_iter().map(|response| match response {
            TxnOpResponse::Get(found) => found.kvs().first().and_then(|kv| self.entry(kv)),
            _ => None,
        });
        Ok(Outcome::Differs(found.collect()))
    }
}

impl Store for Etcd {
    fn get<'a>(&'a self, key: &'a str) -> Pending<'a, Option<Entry>> {
        Box::pin(async move {
            let answer = within(self.client.kv_client().get(self.full(key), None)).await?;
            Ok(answer.kvs().first().and_then(|kv| self.entry(kv)))
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Pending<'a, Listing> {
        Box::pin(self.listing(prefix))
    }

    fn txn(&self, txn: Txn) -> Pending<'_, Outcome> {
        Box::pin(self.transact(txn))
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: u64) -> Pending<'a, Box<dyn Watch>> {
        Box::pin(async move {
            let all = self.full(prefix);
            let options = WatchOptions::new()
                .with_range(after_prefix(&all))
                .with_start_revision(after.cast_signed() + 1);
            let stream = within(self.client.watch_client().watch(all, Some(options))).await?;
            let prefix = self.prefix.clone();
            Ok(Box::new(Watcher { stream, prefix, after }) as Box<dyn Watch>)
        })
    }

    fn grant(&self, ttl: Duration) -> Pending<'_, LeaseId> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        Box::pin(async move {
            let answer = within(self.client.lease_client().grant(seconds, None)).await?;
            Ok(LeaseId(answer.id()))
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> Pending<'_, bool> {
        Box::pin(async move {
            match tokio::time::timeout(REQUEST_TIMEOUT, self.client.lease_client().keep_alive(lease.0)).await
            {
                Ok(Ok(_)) => Ok(true),
                // The client's own word for a lease that etcd gives no time.
                Ok(Err(etcd_client::Error::LeaseKeepAliveError(_))) => Ok(false),
                Ok(Err(error)) => Err(failed(error)),
                Err(_) => Err(silent()),
            }
        })
    }

    fn revoke(&self, lease: LeaseId) -> Pending<'_, ()> {
        Box::pin(async move {
            match within(self.client.lease_client().revoke(lease.0)).await {
                Err(Error::Refused(why)) if why.contains("lease not found") => Ok(()),
                done => done.map(|_| ()),
            }
        })
    }
}

struct Watcher {
    stream: WatchStream,
    prefix: String,
    after: u64,
}

impl Watch for Watcher {
    fn next(&mut self) -> Pending<'_, Vec<Change>> {
        Box::pin(async {
            loop {
                let answer = match self.stream.message().await {
                    Ok(Some(answer)) => answer,
                    Ok(None) => return Err(Error::Away("the watch has ended".into())),
                    Err(error) => return Err(failed(error)),
                };
                if answer.compact_revision() > 0 {
                    let oldest = answer.compact_revision().cast_unsigned();
                    return Err(Error::Compacted { after: self.after, oldest });
                }
                if answer.canceled() {
                    return Err(Error::Away(format!("the watch was ended: {}", answer.cancel_reason())));
                }
                let changes: Vec<_> =
                    answer.events().iter().filter_map(|event| change(&self.prefix, event)).collect();
                if let Some(last) = changes.last() {
                    self.after = last.revision();
                    return Ok(changes);
                }
            }
        })
    }
}

fn change(prefix: &str, event: &etcd_client::Event) -> Option<Change> {
    let kv = event.kv()?;
    let key = kv.key_str().ok()?.strip_prefix(prefix)?.to_owned();
    let revision = kv.mod_revision().cast_unsigned();
    // What is not text is not ours: as if it were not there.
    Some(match (event.event_type(), kv.value_str()) {
        (EventType::Put, Ok(value)) => {
            let lease = Some(LeaseId(kv.lease())).filter(|lease| lease.0 != 0);
            Change::Put(Entry { key, value: value.to_owned(), revision, lease })
        }
        _ => Change::Delete { key, revision },
    })
}

/// The first key behind all those that begin with `prefix`; keys are text, so that their bytes never reach 0xFF.
fn after_prefix(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    end.push(0xFF);
    end
}

async fn within<T>(asked: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(REQUEST_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(failed),
        Err(_) => Err(silent()),
    }
}

fn silent() -> Error {
    Error::Away(format!("no answer within {REQUEST_TIMEOUT:?}"))
}

/// What etcd says no to can be asked for ever; all else may get better.
fn failed(error: etcd_client::Error) -> Error {
    if let etcd_client::Error::GRpcStatus(status) = &error {
        // gRPC: invalid argument, not found, already exists, permission denied, out of range, unauthenticated.
        return match status.code() as i32 {
            3 | 5 | 6 | 7 | 11 | 16 => Error::Refused(status.message().to_owned()),
            _ => Error::Away(chain(status.message(), status)),
        };
    }
    Error::Away(chain(&error.to_string(), &error))
}

/// What an error says and what it came from: of a connection that cannot be made the transport tells no more than that,
/// and only what is below it names the certificate.
fn chain(says: &str, error: &dyn std::error::Error) -> String {
    let mut text = says.to_owned();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

fn revision(header: Option<&etcd_client::ResponseHeader>) -> Result<u64, Error> {
    let header = header.ok_or_else(|| Error::Away("an answer without a header".into()))?;
    Ok(header.revision().cast_unsigned())
}
