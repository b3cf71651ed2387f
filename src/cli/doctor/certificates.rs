//! Certificates and token keys: there, fitting, for the right names, and for how long.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use net::tls::{self, Clients, Files};

use super::Finding;
use crate::config::{Config, Role};

const CERTIFICATE: &str = "certificate";

/// Somebody has to act by then.
const SOON: Duration = Duration::from_secs(21 * 86_400);

/// Those of the fleet and those that viewers and broadcasters see.
pub(super) fn all(config: &Config, now: SystemTime) -> Vec<Finding> {
    let given = &config.tls;
    let admin = match (&config.admin.certificate, &config.admin.key) {
        (Some(certificate), Some(key)) => {
            let files = Files { ca: certificate.clone(), certificate: certificate.clone(), key: key.clone() };
            Some(one(&files, Clients::Anyone, now))
        }
        _ => None,
    };
    let (Some(ca), Some(certificate), Some(key)) = (&given.ca, &given.certificate, &given.key) else {
        return std::iter::once(development(config)).chain(admin).collect();
    };
    let fleet = Files { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() };
    let mut findings = vec![one(&fleet, Clients::Fleet, now), expiry(ca, now)];
    findings.extend(admin);
    if let (Some(certificate), Some(key)) = (&given.public_certificate, &given.public_key) {
        let public = Files { ca: fleet.ca.clone(), certificate: certificate.clone(), key: key.clone() };
        findings.push(one(&public, Clients::Anyone, now));
    }
    let shown = given.public_certificate.as_ref().unwrap_or(certificate);
    if config.has(Role::Edge) || config.has(Role::Ingest) {
        findings.push(names(shown, &config.public.host));
    }
    findings
}

fn development(config: &Config) -> Finding {
    let folder = config.node.state_dir.join("tls");
    let found = format!("development certificates in {}", folder.display());
    let alone = config.public.host == "localhost";
    if alone {
        return Finding::good(CERTIFICATE, found);
    }
    Finding::warning(
        CERTIFICATE,
        format!("{found}: players and broadcasters do not trust them"),
        "give tls.ca, tls.certificate and tls.key to all nodes, and tls.public_certificate and tls.public_key for the outside",
    )
}

/// A chain with its key.
fn one(files: &Files, clients: Clients, now: SystemTime) -> Finding {
    match tls::server_config(files, clients, &[]) {
        Ok(_) => expiry(&files.certificate, now),
        Err(error) => Finding::failure(
            CERTIFICATE,
            net::chain(&error),
            "give a PEM chain, the node's own certificate first, and the key that belongs to it",
        ),
    }
}

fn expiry(certificate: &Path, now: SystemTime) -> Finding {
    let file = certificate.display();
    let until = match tls::not_after(certificate) {
        Ok(until) => until,
        Err(error) => {
            return Finding::failure(CERTIFICATE, net::chain(&error), "give a readable PEM certificate");
        }
    };
    let renew = "renew it, then drain and start the node anew: it reads certificates when it starts";
    let day = humantime::format_rfc3339_seconds(until);
    match until.duration_since(now) {
        Err(_) => Finding::failure(CERTIFICATE, format!("{file} has expired on {day}"), renew),
        Ok(left) if left < SOON => {
            Finding::warning(CERTIFICATE, format!("{file} expires soon, on {day}"), renew)
        }
        Ok(_) => Finding::good(CERTIFICATE, format!("{file} is good until {day}")),
    }
}

fn names(certificate: &Path, host: &str) -> Finding {
    let file = certificate.display();
    match tls::is_for(certificate, host) {
        Ok(true) => Finding::good(CERTIFICATE, format!("{file} is for {host}")),
        Ok(false) => Finding::failure(
            CERTIFICATE,
            format!("{file} is not for {host}, the host of this node's URLs (public.host)"),
            "get a certificate with that name, or set public.host to a name that it has",
        ),
        Err(error) => Finding::failure(CERTIFICATE, net::chain(&error), "set public.host to a host name"),
    }
}

/// Files with secrets that others may read.
pub(super) fn keys(config: &Config) -> Vec<Finding> {
    let secrets = [&config.tokens.key_files, &config.edge.playback.key_files, &config.api.key_files];
    let tls = [&config.tls.key, &config.tls.public_key, &config.admin.key].into_iter().flatten();
    let tokens = config.admin.tokens.iter().filter_map(|token| token.file.as_ref());
    let mut findings = Vec::new();
    for path in secrets.into_iter().flatten().chain(tls).chain(tokens) {
        let file = path.display();
        findings.push(match std::fs::metadata(path) {
            Err(error) => Finding::failure(
                "key",
                format!("{file}: {error}"),
                "make the file readable for the user that Rooftop runs as",
            ),
            Ok(metadata) if metadata.permissions().mode() & 0o007 != 0 && !is_public(path) => {
                let found = format!("{file} can be read by everyone on this machine");
                Finding::warning("key", found, format!("chmod 600 {file}"))
            }
            Ok(_) => Finding::good("key", file.to_string()),
        });
    }
    findings
}

/// Whether it is the public half of a pair.
fn is_public(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|text| text.starts_with(b"-----BEGIN PUBLIC KEY-----"))
}
