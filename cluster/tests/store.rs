//! What a store does: the same suite for the embedded one and for a real etcd.

mod kit;

use std::sync::Arc;
use std::time::Duration;

use cluster::store::{Change, Embedded, Entry, Error, EtcdOptions, EtcdTls, LeaseId, Outcome, Store, Txn};
use kit::Etcd;

/// Every story with an embedded store and with an etcd, which is there for all.
async fn stores() -> Vec<(&'static str, Arc<dyn Store>, Option<Etcd>)> {
    let mut stores: Vec<(_, Arc<dyn Store>, _)> = vec![("embedded", Arc::new(Embedded::default()), None)];
    if let Some(etcd) = Etcd::start() {
        stores.push(("etcd", Arc::new(etcd.store("/fleet/").await), Some(etcd)));
    }
    stores
}

fn put(key: &str, value: &str) -> Txn {
    Txn::new().put(key, value, None)
}

fn done(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Done(revision) => revision,
        Outcome::Differs(found) => panic!("a condition did not hold: {found:?}"),
    }
}

fn texts(entries: &[Entry]) -> Vec<(&str, &str)> {
    entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect()
}

/// As text, without revisions.
fn told(changes: &[Change]) -> Vec<String> {
    let tell = |change: &Change| match change {
        Change::Put(entry) => format!("{}={}", entry.key, entry.value),
        Change::Delete { key, .. } => format!("-{key}"),
    };
    changes.iter().map(tell).collect()
}

#[tokio::test]
async fn a_transaction_is_done_whole_or_not_at_all() {
    for (name, store, _etcd) in stores().await {
        let first = done(store.txn(put("a", "1").put("b", "2", None)).await.unwrap());
        let a = store.get("a").await.unwrap().unwrap();
        assert_eq!((a.value.as_str(), a.revision, a.lease), ("1", first, None), "{name}");
        assert_eq!(store.get("x").await.unwrap(), None, "{name}");

        let taken = Txn::new().if_absent("x").if_absent("a").put("x", "9", None).delete("b");
        let Outcome::Differs(found) = store.txn(taken).await.unwrap() else { panic!("{name}: a was there") };
        assert_eq!(found, [None, Some(a)], "{name}");
        assert_eq!(texts(&store.list("").await.unwrap().entries), [("a", "1"), ("b", "2")], "{name}");

        let replace = || Txn::new().if_revision("a", first).put("a", "3", None).delete("b").delete("nothing");
        let second = done(store.txn(replace()).await.unwrap());
        assert!(second > first, "{name}");
        assert!(matches!(store.txn(replace()).await.unwrap(), Outcome::Differs(_)), "{name}: once");
        let listing = store.list("").await.unwrap();
        assert_eq!((texts(&listing.entries), listing.revision), (vec![("a", "3")], second), "{name}");
        assert_eq!(done(store.txn(Txn::new().delete("nothing")).await.unwrap()), second, "{name}");
    }
}

#[tokio::test]
async fn prefixes_are_listed_in_order_however_many() {
    for (name, store, _etcd) in stores().await {
        let keys: Vec<String> = (0..150).map(|n| format!("p/{n:03}")).collect();
        for chunk in keys.chunks(100) {
            let txn = chunk.iter().fold(Txn::new(), |txn, key| txn.put(key, "x", None));
            store.txn(txn).await.unwrap();
        }
        store.txn(put("p", "no").put("q/1", "no", None).put("p0", "no", None)).await.unwrap();
        let listing = store.list("p/").await.unwrap();
        assert!(listing.entries.iter().map(|entry| &entry.key).eq(&keys), "{name}");
    }
}

#[tokio::test]
async fn one_of_many_claimants_wins() {
    for (name, store, _etcd) in stores().await {
        let claims = (0..20).map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let txn = Txn::new().if_absent("s").put("s", n.to_string(), None);
                matches!(store.txn(txn).await.unwrap(), Outcome::Done(_)).then_some(n.to_string())
            })
        });
        let mut winners = Vec::new();
        for claim in claims.collect::<Vec<_>>() {
            winners.extend(claim.await.unwrap());
        }
        assert_eq!(winners, [store.get("s").await.unwrap().unwrap().value], "{name}");
    }
}

#[tokio::test]
async fn a_watch_tells_everything_after_a_revision_once() {
    for (name, store, _etcd) in stores().await {
        let before = done(store.txn(put("w/a", "1")).await.unwrap());
        store.txn(put("w/b", "1")).await.unwrap();
        store.txn(put("other", "1")).await.unwrap();
        let mut watch = store.watch("w/", before).await.unwrap();
        store.txn(Txn::new().delete("w/a")).await.unwrap();
        let last = done(store.txn(put("w/b", "2").put("w/c", "1", None)).await.unwrap());
        let mut changes = Vec::new();
        while changes.len() < 4 {
            changes.extend(watch.next().await.unwrap());
        }
        assert_eq!(told(&changes[..2]), ["w/b=1", "-w/a"], "{name}");
        let mut rest = told(&changes[2..]);
        rest.sort();
        assert_eq!(rest, ["w/b=2", "w/c=1"], "{name}");
        assert!(changes[2..].iter().all(|change| change.revision() == last), "{name}");

        // Dropped while it waits, it loses nothing.
        tokio::select! {
            biased;
            _ = watch.next() => panic!("{name}: nothing has changed"),
            () = tokio::task::yield_now() => {}
        }
        store.txn(put("w/d", "1")).await.unwrap();
        assert_eq!(told(&watch.next().await.unwrap()), ["w/d=1"], "{name}");
    }
}

#[tokio::test]
async fn what_is_leased_goes_with_the_lease() {
    for (name, store, _etcd) in stores().await {
        let lease = store.grant(Duration::from_secs(60)).await.unwrap();
        let first = done(
            store.txn(Txn::new().put("n/1", "x", Some(lease)).put("n/2", "x", Some(lease))).await.unwrap(),
        );
        assert_eq!(store.get("n/1").await.unwrap().unwrap().lease, Some(lease), "{name}");
        // What is put anew without the lease stays.
        store.txn(put("n/2", "y")).await.unwrap();
        let mut watch = store.watch("n/", first + 1).await.unwrap();
        assert!(store.keep_alive(lease).await.unwrap(), "{name}");
        store.revoke(lease).await.unwrap();
        store.revoke(lease).await.unwrap();
        assert_eq!(told(&watch.next().await.unwrap()), ["-n/1"], "{name}");
        assert_eq!(texts(&store.list("n/").await.unwrap().entries), [("n/2", "y")], "{name}");
        assert!(!store.keep_alive(lease).await.unwrap(), "{name}");
        let late = store.txn(Txn::new().put("n/1", "x", Some(lease))).await;
        assert_eq!(late, Err(Error::LeaseEnded(lease)), "{name}");
        assert!(!store.keep_alive(LeaseId(77)).await.unwrap(), "{name}");
    }
}

#[tokio::test]
async fn a_lease_ends_unless_it_is_kept_alive() {
    for (name, store, _etcd) in stores().await {
        let lease = store.grant(Duration::from_secs(1)).await.unwrap();
        let put = done(store.txn(Txn::new().put("n/1", "x", Some(lease))).await.unwrap());
        let mut watch = store.watch("n/", put).await.unwrap();
        assert_eq!(told(&watch.next().await.unwrap()), ["-n/1"], "{name}");
        assert!(!store.keep_alive(lease).await.unwrap(), "{name}");
    }
}

#[tokio::test]
async fn what_can_never_be_done_is_refused() {
    for (name, store, _etcd) in stores().await {
        let long = "k".repeat(cluster::store::MAX_KEY_BYTES + 1);
        let large = "v".repeat(cluster::store::MAX_VALUE_BYTES + 1);
        let many = (0..200).fold(Txn::new(), |txn, n| txn.put(n.to_string(), "", None));
        for txn in [put("", "1"), put(&long, "1"), put("a", &large), put("a", "1").delete("a"), many] {
            let refused = store.txn(txn).await;
            assert!(matches!(refused, Err(Error::Refused(_))), "{name}: {refused:?}");
        }
        let full = "v".repeat(cluster::store::MAX_VALUE_BYTES);
        let txn = (0..20).fold(Txn::new(), |txn, n| txn.put(format!("f/{n}"), full.clone(), None));
        store.txn(txn).await.unwrap();
        assert_eq!(store.list("f/").await.unwrap().entries.len(), 20, "{name}");
        assert_eq!(store.list("").await.unwrap().entries.len(), 20, "{name}");
    }
}

#[tokio::test]
async fn the_embedded_store_outlives_its_process_by_its_file() {
    let folder = kit::Folder::new("file");
    let file = folder.path().join("state").join("cluster.json");
    let stop = tokio_util::sync::CancellationToken::new();
    let store = Embedded::open(&file).unwrap();
    let keep = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move { store.keep(stop).await }
    });
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let last = done(store.txn(put("a", "1").put("node", "x", Some(lease))).await.unwrap());
    stop.cancel();
    keep.await.unwrap();
    let again = Embedded::open(&file).unwrap();
    assert_eq!(texts(&again.list("").await.unwrap().entries), [("a", "1")]);
    assert!(done(again.txn(put("b", "1")).await.unwrap()) > last);

    std::fs::write(&file, "{\"revision\":").unwrap();
    let error = Embedded::open(&file).err().unwrap().to_string();
    assert!(error.contains("cluster.json holds no records"), "{error}");
}

/// An authority, and what it has signed: a certificate for 127.0.0.1 that servers and clients may show.
fn certificates(folder: &kit::Folder, name: &str) -> kit::Tls {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let write = |kind: &str, pem: String| {
        let path = folder.path().join(format!("{name}-{kind}.pem"));
        std::fs::write(&path, pem).unwrap();
        path
    };
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = write("ca", params.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(params, ca_key);
    let params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
    let certificate = write("certificate", params.signed_by(&key, &issuer).unwrap().pem());
    kit::Tls { certificate, key: write("key", key.serialize_pem()), ca }
}

#[tokio::test]
async fn an_etcd_that_wants_certificates_lets_in_who_has_one_and_is_trusted_by_its_own() {
    let folder = kit::Folder::new("etcd-tls");
    let (ours, others) = (certificates(&folder, "ours"), certificates(&folder, "others"));
    let Some(etcd) = Etcd::start_with(Some(&ours)) else { return };
    let store = |ca: &kit::Tls, identity: Option<&kit::Tls>| {
        let identity = identity.map(|files| (files.certificate.clone(), files.key.clone()));
        let tls = Some(EtcdTls { ca: ca.ca.clone(), identity });
        let options = EtcdOptions { endpoints: vec![etcd.url().to_owned()], prefix: "/fleet/".into(), tls };
        async move { cluster::store::Etcd::new(&options).await }
    };
    let good = store(&ours, Some(&ours)).await.unwrap();
    let revision = done(good.txn(put("a", "1")).await.unwrap());
    let mut watch = good.watch("a", revision - 1).await.unwrap();
    assert_eq!(told(&watch.next().await.unwrap()), ["a=1"]);
    match store(&others, Some(&ours)).await.unwrap().get("a").await {
        Err(Error::Away(said)) => assert!(said.contains("certificate"), "it says what is wrong: {said}"),
        other => panic!("{other:?}"),
    }
    // What etcd makes of ours it may say only after the handshake: a connection that breaks is all that is sure.
    for identity in [Some(&others), None] {
        let refused = store(&ours, identity).await.unwrap().get("a").await;
        assert!(matches!(refused, Err(Error::Away(_))), "{refused:?}");
    }
    let none = kit::Tls { ca: folder.path().join("none.pem"), ..ours.clone() };
    assert!(store(&none, None).await.is_err_and(|said| said.contains("none.pem")));
}
