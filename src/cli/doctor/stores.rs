//! What is elsewhere: etcd, and where broadcasts are kept.

use std::time::Duration;

use cluster::store::{Etcd, EtcdOptions, EtcdTls, Store as _};

use super::Finding;
use crate::config::{Config, Role, StoreKind};

/// For an answer of a store.
const PATIENCE: Duration = Duration::from_secs(10);

const ARCHIVE: &str = "archive";

const CREDENTIALS: &str = "give it the bucket's key: archive.credentials, a file with id and secret, or AWS_ACCESS_KEY_ID and \
                           AWS_SECRET_ACCESS_KEY in the environment of the service";

pub(super) async fn etcd(config: &Config) -> Option<Finding> {
    if config.cluster.store != StoreKind::Etcd {
        return None;
    }
    let etcd = &config.cluster.etcd;
    let endpoints = etcd.endpoints.join(", ");
    let asked = async {
        let identity = etcd.certificate.clone().zip(etcd.key.clone());
        let tls = etcd.ca.clone().map(|ca| EtcdTls { ca, identity });
        let options = EtcdOptions { endpoints: etcd.endpoints.clone(), prefix: etcd.prefix.clone(), tls };
        let store = Etcd::new(&options).await?;
        store.list(cluster::record::NODES).await.map_err(|error| net::chain(&error))
    };
    Some(match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(listing)) => Finding::good(
            "etcd",
            format!("{endpoints} answers; {} roles are announced", listing.entries.len()),
        ),
        Ok(Err(why)) => of_etcd(&endpoints, &why),
        Err(_) => of_etcd(&endpoints, &format!("no answer within {PATIENCE:?}")),
    })
}

/// What to do about an etcd that does not answer well.
fn of_etcd(endpoints: &str, why: &str) -> Finding {
    let says = |words: &[&str]| words.iter().any(|word| why.contains(word));
    let is_tls = endpoints.contains("https://");
    let advice = if says(&["refused", "dns", "lookup", "timed out", "unreachable"]) {
        "is it running at cluster.etcd.endpoints, and does a firewall let port 2379 through?"
    } else if says(&["peer certificate"]) {
        "cluster.etcd.ca must have signed etcd's certificate (its --cert-file), and that must name the endpoint's host"
    } else if is_tls && says(&["alert", "connection closed"]) {
        "etcd wants to be shown a certificate that its --trusted-ca-file has signed: cluster.etcd.certificate and key"
    } else if !is_tls && says(&["transport error"]) {
        "does etcd speak TLS there? Then the endpoints begin with https://, and cluster.etcd.ca is wanted"
    } else {
        "have its members a leader (etcdctl endpoint status), and may this node reach them?"
    };
    Finding::failure("etcd", format!("{endpoints}: {why}"), advice)
}

pub(super) async fn archive(config: &Config) -> Option<Finding> {
    if !config.has(Role::Origin) {
        return None;
    }
    let failure = |why: &str| match config.archive.store {
        archive::config::Store::S3 => of_bucket(config.archive.bucket.as_deref().unwrap_or_default(), why),
        _ => Finding::failure(ARCHIVE, why, "check archive.path, and that this user may write there"),
    };
    let reader = match archive::open_to_read(&config.archive, &config.node.state_dir) {
        Ok(Some(reader)) => reader,
        Ok(None) => {
            return Some(Finding::good(ARCHIVE, "archive.store is \"none\": broadcasts are not kept"));
        }
        Err(_) if is_absent(&config.archive, &config.node.state_dir) => {
            return Some(Finding::good(ARCHIVE, "the folder is made on the first start"));
        }
        Err(error) => return Some(failure(&net::chain(&error))),
    };
    Some(match tokio::time::timeout(PATIENCE, reader.broadcasts()).await {
        Ok(Ok(broadcasts)) => {
            Finding::good(ARCHIVE, format!("it answers; {} broadcasts are kept", broadcasts.len()))
        }
        Ok(Err(error)) => failure(&net::chain(&error)),
        Err(_) => failure(&format!("no answer within {PATIENCE:?}")),
    })
}

/// Why a bucket cannot be read, in a line, and what to do: S3 names a code (Amazon S3 API reference, error responses).
fn of_bucket(bucket: &str, why: &str) -> Finding {
    let element = |name: &str| {
        let (_, rest) = why.split_once(&format!("<{name}>"))?;
        rest.split_once('<').map(|(text, _)| text.trim())
    };
    let code = element("Code").unwrap_or_default();
    let found = match element("Message") {
        Some(message) if !code.is_empty() => format!("bucket {bucket}: {code}: {message}"),
        _ => format!("bucket {bucket}: {}", why.split_whitespace().collect::<Vec<_>>().join(" ")),
    };
    let advice = match code {
        "NoSuchBucket" => "make the bucket, or correct archive.bucket, archive.endpoint and archive.region",
        "AccessDenied" => {
            "the key is known but may not: allow it s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject for the bucket"
        }
        "RequestTimeTooSkewed" => "set the clock: run chrony or systemd-timesyncd",
        "PermanentRedirect" | "AuthorizationHeaderMalformed" => "correct archive.region",
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" => CREDENTIALS,
        // The address that cloud machines have for such questions.
        _ if why.contains("169.254.169.254") => CREDENTIALS,
        _ => "is it running at archive.endpoint, and does a firewall let it through?",
    };
    Finding::failure(ARCHIVE, found, advice)
}

/// Whether broadcasts are kept in a folder that is not there yet.
fn is_absent(archive: &archive::Config, state_dir: &std::path::Path) -> bool {
    let folder = archive.path.clone().unwrap_or_else(|| state_dir.join("archive"));
    archive.store == archive::config::Store::File && !folder.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etcd_that_does_not_answer_is_told_from_one_that_refuses() {
        // As etcd 3.4 was seen to fail.
        for (endpoint, why, advice) in [
            (
                "http://e:2379",
                "tcp connect error: transport error: Connection refused (os error 111)",
                "is it running",
            ),
            (
                "https://e:2379",
                "invalid peer certificate: UnknownIssuer: transport error",
                "cluster.etcd.ca must",
            ),
            (
                "https://e:2379",
                "operation was canceled: transport error: connection closed",
                "--trusted-ca-file",
            ),
            ("https://e:2379", "connection error: received fatal alert: BadCertificate", "--trusted-ca-file"),
            (
                "http://e:2379",
                "transport error: connection error: stream closed because of a broken pipe",
                "https://",
            ),
            ("http://e:2379", "no answer within 10s", "a leader"),
        ] {
            let given = of_etcd(endpoint, why).advice.unwrap();
            assert!(given.contains(advice), "{why}: {given}");
        }
    }

    #[test]
    fn a_bucket_that_refuses_is_told_in_a_line() {
        let check = |why: &str, found: &str, advice: &str| {
            let finding = of_bucket("kept", why);
            assert_eq!(finding.found, format!("bucket kept: {found}"));
            let given = finding.advice.unwrap();
            assert!(given.contains(advice), "{given}");
        };
        let refused = |code: &str| {
            format!(
                "GET http://s3/kept - 403 Forbidden: <?xml?>\n<Error><Code>{code}</Code><Message>No.</Message></Error>"
            )
        };
        for (code, advice) in [
            ("NoSuchBucket", "make the bucket"),
            ("InvalidAccessKeyId", "archive.credentials"),
            ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
            ("AccessDenied", "s3:ListBucket"),
            ("RequestTimeTooSkewed", "chrony"),
            ("AuthorizationHeaderMalformed", "archive.region"),
            ("SlowDown", "is it running"),
        ] {
            check(&refused(code), &format!("{code}: No."), advice);
        }
        check("connection\n refused", "connection refused", "archive.endpoint");
        check(
            "PUT http://169.254.169.254/latest: no",
            "PUT http://169.254.169.254/latest: no",
            "archive.credentials",
        );
    }
}
