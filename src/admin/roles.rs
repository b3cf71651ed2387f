//! Which role may do what. One table for all of the admin listener; what is not in it needs `admin`.
#![deny(clippy::disallowed_methods)]

use http::Method;
use serde::{Deserialize, Serialize};

/// What a token opens; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees everything.
    View,
    /// Turns what runs: policies, purges, broadcasts, the end of the node in good order.
    Operate,
    /// Everything, such as taking tokens back.
    Admin,
}

impl Role {
    /// Its name, as the file has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::View => "view",
            Role::Operate => "operate",
            Role::Admin => "admin",
        }
    }
}

/// Who may ask for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Load balancers, also where the host that they ask for is not this one.
    Anyone,
    /// Whoever reaches the listener: the console's pages, which say nothing of this node, and the way to sign in.
    Page,
    /// Who has this role at least.
    Role(Role),
}

static READ: &[Method] = &[Method::GET, Method::HEAD];
static PUT: &[Method] = &[Method::PUT];
static POST: &[Method] = &[Method::POST];
static DELETE: &[Method] = &[Method::DELETE];

/// Methods, path (`*` at its end: anything behind it), need. The first that fits counts. `docs/admin.md` has the same table.
static TABLE: &[(&[Method], &str, Need)] = &[
    (READ, "/healthz", Need::Anyone),
    (READ, "/readyz", Need::Anyone),
    (READ, "/", Need::Page),
    (READ, "/console", Need::Page),
    (READ, "/console/*", Need::Page),
    (READ, SESSION, Need::Page),
    (POST, SESSION, Need::Page),
    (DELETE, SESSION, Need::Page),
    (READ, "/metrics", Need::Role(Role::View)),
    (READ, "/admin/status", Need::Role(Role::View)),
    (READ, "/admin/streams", Need::Role(Role::View)),
    (READ, "/admin/streams/*", Need::Role(Role::View)),
    (READ, "/admin/history", Need::Role(Role::View)),
    (READ, "/admin/playback", Need::Role(Role::View)),
    (READ, "/admin/viewers", Need::Role(Role::View)),
    (READ, "/admin/ingest", Need::Role(Role::View)),
    (READ, "/admin/latency", Need::Role(Role::View)),
    (READ, "/admin/policy", Need::Role(Role::View)),
    (READ, "/admin/policy/*", Need::Role(Role::View)),
    (READ, "/admin/audit", Need::Role(Role::View)),
    (READ, "/admin/what-if", Need::Role(Role::View)),
    (READ, "/v1/*", Need::Role(Role::View)),
    (PUT, "/admin/policy", Need::Role(Role::Operate)),
    (PUT, "/admin/policy/*", Need::Role(Role::Operate)),
    (POST, "/admin/what-if", Need::Role(Role::Operate)),
    (POST, "/admin/purge", Need::Role(Role::Operate)),
    (POST, "/admin/drain", Need::Role(Role::Operate)),
    (POST, "/v1/broadcasts", Need::Role(Role::Operate)),
    (POST, "/v1/broadcasts/*", Need::Role(Role::Operate)),
    (DELETE, "/v1/broadcasts/*", Need::Role(Role::Operate)),
    (POST, "/admin/reload", Need::Role(Role::Admin)),
    (POST, "/admin/revoke", Need::Role(Role::Admin)),
];

/// Where one signs in, signs out, and asks who one is.
pub(super) const SESSION: &str = "/admin/session";

/// What a request needs.
pub(crate) fn needed(method: &Method, path: &str) -> Need {
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => path == pattern,
    };
    let found = TABLE.iter().find(|(methods, pattern, _)| methods.contains(method) && fits(pattern));
    found.map_or(Need::Role(Role::Admin), |(_, _, need)| *need)
}

/// Whether a request only reads.
pub(crate) fn reads(method: &Method) -> bool {
    READ.contains(method)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_the_table_needs_admin() {
        let role = |method: Method, path: &str| match needed(&method, path) {
            Need::Role(role) => role,
            open => panic!("{method} {path}: {open:?}"),
        };
        for (method, path) in [
            (Method::POST, "/admin/reload"),
            (Method::POST, "/admin/revoke"),
            (Method::GET, "/admin/secrets"),
            (Method::GET, "/admin"),
            (Method::GET, "/admin//policy"),
            (Method::GET, "//healthz"),
            (Method::GET, "/healthz/"),
            (Method::GET, "/consoles"),
            (Method::POST, "/console/"),
            (Method::POST, "/healthz"),
            (Method::PUT, SESSION),
            (Method::DELETE, "/admin/policy"),
            (Method::PUT, "/admin/policies"),
            (Method::OPTIONS, "/admin/policy"),
            (Method::TRACE, "/admin/status"),
            (Method::DELETE, "/v1/broadcasts"),
            (Method::PUT, "/v1/broadcasts/x"),
        ] {
            assert_eq!(role(method.clone(), path), Role::Admin, "{method} {path}");
        }
        assert_eq!(role(Method::HEAD, "/admin/policy/edge"), Role::View);
        assert_eq!(role(Method::PUT, "/admin/policy/edge"), Role::Operate);
        assert_eq!(role(Method::POST, "/v1/broadcasts/1/end"), Role::Operate);
        assert!(Role::View < Role::Operate && Role::Operate < Role::Admin);
    }

    #[test]
    fn the_documentation_has_the_same_table() {
        let text = include_str!("../../docs/admin.md");
        let rows = text.lines().skip_while(|line| !line.starts_with("| Method ")).skip(2);
        let rows: Vec<Vec<&str>> = rows
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect())
            .collect();
        let ours: Vec<Vec<&str>> = TABLE
            .iter()
            .map(|(methods, path, need)| {
                let need = match need {
                    Need::Anyone | Need::Page => "nothing",
                    Need::Role(role) => role.as_str(),
                };
                vec![methods[0].as_str(), path, need]
            })
            .chain([vec!["any other", "any other", "admin"]])
            .collect();
        assert_eq!(rows, ours);
    }
}
