//! Small pieces that plug one crate's trait into what another has.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, VARY,
};
use http::{Response, StatusCode};
use media::StreamName;

include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// The pages that an edge answers itself: the watch page with its files, the clock for DASH players, a health check for
/// load balancers.
pub(crate) struct WatchPages;

impl edge::Pages for WatchPages {
    fn page(&self, path: &str, headers: &HeaderMap) -> Option<Response<Bytes>> {
        match path {
            "/time" => return Some(time()),
            "/healthz" => return Some(text("ok\n".into())),
            _ => {}
        }
        let name = path.strip_prefix("/watch/")?;
        Some(match (name.strip_prefix("assets/"), name.parse::<StreamName>()) {
            (Some(name), _) => asset(WATCH, name, headers),
            (None, Ok(_)) => asset(WATCH, "watch.html", headers),
            (None, Err(_)) => not_found(),
        })
    }
}

/// A file of `assets`, or that there is none of that name.
pub(crate) fn asset(assets: &'static [Asset], name: &str, headers: &HeaderMap) -> Response<Bytes> {
    let found = assets.binary_search_by(|asset| asset.0.cmp(name)).ok();
    found.map_or_else(not_found, |index| serve(&assets[index], headers))
}

fn serve(&(_, content_type, body, gzip, etag): &'static Asset, headers: &HeaderMap) -> Response<Bytes> {
    let has = |name, wanted: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains(wanted))
    };
    let zipped = edge::encoding::wants_gzip(headers);
    // Two forms of one page are two entities (RFC 9110, 8.8.3).
    let etag = if zipped { format!("{}-gz\"", etag.trim_end_matches('"')) } else { etag.to_owned() };
    let mut response = Response::new(Bytes::new());
    if has(IF_NONE_MATCH, &etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else if zipped {
        *response.body_mut() = Bytes::from_static(gzip);
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    } else {
        *response.body_mut() = Bytes::from_static(body);
    }
    let out = response.headers_mut();
    out.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    out.extend(HeaderValue::try_from(etag).map(|etag| (ETAG, etag)));
    out.insert(VARY, HeaderValue::from_static("accept-encoding"));
    // Names do not change with the content: ask each time, download when it changed.
    out.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The wall clock (DASH `urn:mpeg:dash:utc:http-iso:2014` and `http-xsdate:2014` take the same text).
fn time() -> Response<Bytes> {
    let mut response = text(humantime::format_rfc3339_millis(SystemTime::now()).to_string());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn not_found() -> Response<Bytes> {
    let mut response = text("no such page\n".into());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn text(body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge::Pages;

    #[test]
    fn pages_are_found_and_nothing_else() {
        let get = |path: &str| WatchPages.page(path, &HeaderMap::new());
        let page = get("/watch/demo").unwrap();
        assert!(page.status() == StatusCode::OK && page.body().starts_with(b"<!"));
        for asset in WATCH {
            let response = get(&format!("/watch/assets/{}", asset.0)).unwrap();
            assert_eq!(response.body().as_ref(), asset.2, "{}", asset.0);
        }
        for missing in ["/watch/a b", "/watch/", "/watch/assets/none.js", "/watch/../x"] {
            assert_eq!(get(missing).unwrap().status(), StatusCode::NOT_FOUND, "{missing}");
        }
        assert!(get("/live/demo/index.m3u8").is_none());
        assert_eq!(get("/time").unwrap().headers()[CACHE_CONTROL], "no-store");
    }

    #[test]
    fn a_known_page_is_not_sent_again() {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::ACCEPT_ENCODING, HeaderValue::from_static("br, gzip"));
        let first = WatchPages.page("/watch/demo", &headers).unwrap();
        assert_eq!(first.headers()[CONTENT_ENCODING], "gzip");
        headers.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
        let second = WatchPages.page("/watch/demo", &headers).unwrap();
        assert_eq!(second.status(), StatusCode::NOT_MODIFIED);
        assert!(second.body().is_empty());
        headers.insert(http::header::ACCEPT_ENCODING, HeaderValue::from_static("gzip;q=0"));
        let plain = WatchPages.page("/watch/demo", &headers).unwrap();
        assert_eq!((plain.status(), plain.headers().get(CONTENT_ENCODING)), (StatusCode::OK, None));
    }
}
