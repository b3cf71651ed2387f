//! What a web page of others may have caused: by the name it was asked for (DNS rebinding), and by what browsers say of where
//! a request comes from (cross-site requests).
#![deny(clippy::disallowed_methods)]

use std::net::IpAddr;

use http::header::{HOST, HeaderName, HeaderValue, ORIGIN};
use http::request::Parts;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The host that a request is for, as it says.
pub(super) fn host(head: &Parts) -> &str {
    let named = head.headers.get(HOST).and_then(|host| host.to_str().ok());
    head.uri.authority().map(http::uri::Authority::as_str).or(named).unwrap_or_default()
}

/// Whether a host is this machine's own name for itself: a name of someone else's that resolves to it is not.
pub(super) fn is_this_machine(host: &str) -> bool {
    let (name, _) = split(host);
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// The name and the port of a host.
pub(super) fn split(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
        _ => (host, None),
    }
}

/// Why a request is some other site's doing; `None`: nothing says so.
pub(super) fn page(head: &Parts) -> Option<&'static str> {
    if let Some(origin) = head.headers.get(ORIGIN) {
        // The console's own pages say where they are from when they change something.
        let of = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        let own = of.is_some_and(|(scheme, of)| {
            ["http", "https"].contains(&scheme) && of.eq_ignore_ascii_case(host(head))
        });
        if !own {
            return Some("requests of other sites' pages (by Origin) are refused");
        }
    }
    let site = head.headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    let foreign = site.is_some_and(|site| site != b"none" && site != b"same-origin");
    foreign.then_some("requests of other sites (by Sec-Fetch-Site) are refused")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for host in ["127.0.0.1", "127.0.0.1:9090", "localhost:9090", "LocalHost", "[::1]:9090", "[::1]"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in
            ["", "example.com", "localhost.example.com:9090", "10.0.0.1:9090", "127.0.0.1.example.com"]
        {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn pages_of_others() {
        let head = |headers: &[(&str, &str)]| {
            let mut request = http::Request::post("/admin/purge").header("host", "127.0.0.1:9090");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.body(()).unwrap().into_parts().0
        };
        for own in [
            [].as_slice(),
            &[("origin", "http://127.0.0.1:9090")],
            &[("origin", "https://127.0.0.1:9090"), ("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
        ] {
            assert_eq!(page(&head(own)), None, "{own:?}");
        }
        for foreign in [
            [("origin", "http://127.0.0.1:9091")].as_slice(),
            &[("origin", "http://localhost:9090")],
            &[("origin", "http://example.com")],
            &[("origin", "null")],
            &[("origin", "")],
            &[("origin", "ftp://127.0.0.1:9090")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("origin", "http://127.0.0.1:9090"), ("sec-fetch-site", "cross-site")],
        ] {
            assert!(page(&head(foreign)).is_some(), "{foreign:?}");
        }
        let of_h2 = http::Request::get("https://admin.example:9090/").body(()).unwrap().into_parts().0;
        assert_eq!((host(&of_h2), split(host(&of_h2)).1), ("admin.example:9090", Some("9090")));
    }
}
