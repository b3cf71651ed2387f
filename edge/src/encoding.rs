//! gzip: what is worth it, who wants it, and under which names the two forms of one object go.
//!
//! Upstreams are asked for the plain form; the gzip form is made once per object, when the first viewer wants it, and kept
//! with it. A request for a range is answered from the plain form, which RFC 9110 section 12.5.3 lets a server choose:
//! so byte positions always mean the same bytes.
#![deny(clippy::disallowed_methods)]

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};

/// A smaller body gains less than its `Content-Encoding` costs, in bytes.
pub const MIN_BYTES: usize = 256;

/// A larger body goes out as it is, in bytes: hours of playlist fit, and compressing one takes a few milliseconds.
pub const MAX_BYTES: usize = 1 << 20;

/// Whether an answer with these headers may have a gzip form: text in the plain, whole, and nobody forbade it.
pub fn may_have(status: StatusCode, headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    status == StatusCode::OK
        && text(header::CONTENT_TYPE).is_some_and(is_text)
        && !headers.contains_key(header::CONTENT_ENCODING)
        && !headers.get_all(header::CACHE_CONTROL).iter().any(|value| {
            // RFC 9110 section 7.7.
            value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("no-transform"))
        })
}

/// Media types that gzip makes a good deal smaller: manifests, captions, pages.
fn is_text(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let Some((kind, subtype)) = media_type.split_once('/') else {
        return false;
    };
    kind == "text"
        || matches!(
            media_type.as_str(),
            "application/vnd.apple.mpegurl"
                | "application/x-mpegurl"
                | "audio/mpegurl"
                | "audio/x-mpegurl"
                | "application/javascript"
                | "application/json"
                | "application/xml"
        )
        || subtype.ends_with("+xml")
        || subtype.ends_with("+json")
}

/// Whether a request would have gzip rather than the plain form (RFC 9110 section 12.5.3).
pub fn wants_gzip(headers: &HeaderMap) -> bool {
    // In thousandths, so that nothing has to be rounded.
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for member in value.to_str().unwrap_or("").split(',') {
            let mut parts = member.split(';');
            let coding = parts.next().unwrap_or("").trim();
            let weight = parts.find_map(|part| {
                let (name, value) = part.split_once('=')?;
                name.trim().eq_ignore_ascii_case("q").then(|| thousandths(value.trim()))
            });
            let weight = weight.unwrap_or(1000);
            if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
                gzip = gzip.max(Some(weight));
            } else if coding.eq_ignore_ascii_case("identity") {
                identity = Some(weight);
            } else if coding == "*" {
                any = Some(weight);
            }
        }
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

/// A weight (section 12.4.2); one that cannot be read refuses.
fn thousandths(weight: &str) -> u32 {
    let (whole, part) = weight.split_once('.').unwrap_or((weight, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if part.len() > 3 || !digits(part) {
        return 0;
    }
    match whole {
        "1" => 1000,
        "0" => format!("{part:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}

/// The gzip form; `None` if it is not worth it.
pub fn gzip(body: &[u8]) -> Option<Bytes> {
    if !(MIN_BYTES..=MAX_BYTES).contains(&body.len()) {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 2), Compression::default());
    encoder.write_all(body).ok()?;
    let mut zipped = encoder.finish().ok()?;
    zipped.shrink_to_fit();
    (zipped.len() < body.len()).then(|| zipped.into())
}

/// Turns the headers of the plain form, but for its length, into those of the gzip form.
pub fn mark(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    if let Some(tag) = headers.remove(header::ETAG).as_ref().and_then(gzip_tag) {
        headers.insert(header::ETAG, tag);
    }
}

/// The entity tag of the gzip form: two forms of one object are two entities (section 8.8.3.3).
pub fn gzip_tag(tag: &HeaderValue) -> Option<HeaderValue> {
    let plain = tag.as_bytes().strip_suffix(b"\"")?;
    HeaderValue::from_bytes(&[plain, b"-gzip\""].concat()).ok()
}

/// Says that the form depends on `Accept-Encoding`, beside whatever `Vary` says already.
pub fn vary(headers: &mut HeaderMap) {
    let said = headers.get_all(header::VARY).iter().any(|value| {
        let members = value.to_str().unwrap_or("").split(',').map(str::trim);
        members.into_iter().any(|name| name == "*" || name.eq_ignore_ascii_case("accept-encoding"))
    });
    if !said {
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn who_wants_it() {
        for (value, expected) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("x-gzip", true),
            ("gzip, deflate, br, zstd", true),
            ("*", true),
            ("*;q=0", false),
            ("gzip;q=0, *", false),
            ("gzip;q=0.000", false),
            ("gzip; q=0.001", true),
            ("gzip;q=1.000", true),
            ("gzip;q=0.5, identity", false),
            ("gzip;q=0.5, identity;q=0.5", true),
            ("identity;q=0, gzip;q=0.1", true),
            ("identity", false),
            ("br", false),
            ("gzip;q=x", false),
            ("gzip;q=0.12345", false),
            ("gzip;q=+1", false),
            ("notgzip", false),
            ("", false),
        ] {
            assert_eq!(wants_gzip(&headers(&[("accept-encoding", value)])), expected, "{value}");
        }
        assert!(!wants_gzip(&HeaderMap::new()), "who does not say has no need of it");
    }

    #[test]
    fn what_may_have_it() {
        let check = |status, pairs: &[(&'static str, &str)], expected| {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(may_have(status, &headers(pairs)), expected, "{status} {pairs:?}");
        };
        for (content_type, expected) in [
            ("application/vnd.apple.mpegurl", true),
            ("Application/X-MpegURL; charset=utf-8", true),
            ("application/dash+xml", true),
            ("image/svg+xml", true),
            ("text/vtt", true),
            ("application/json", true),
            ("video/mp4", false),
            ("image/png", false),
            ("textual", false),
        ] {
            check(200, &[("content-type", content_type)], expected);
        }
        check(200, &[], false);
        check(404, &[("content-type", "text/html")], false);
        check(200, &[("content-type", "text/html"), ("content-encoding", "br")], false);
        check(200, &[("content-type", "text/html"), ("cache-control", "max-age=1, No-Transform")], false);
    }

    #[test]
    fn forms() {
        let text = "#EXTM3U\n".repeat(1000);
        let zipped = gzip(text.as_bytes()).unwrap();
        let mut back = String::new();
        flate2::read::GzDecoder::new(&zipped[..]).read_to_string(&mut back).unwrap();
        assert_eq!(back, text);
        assert!(zipped.len() * 10 < text.len());
        assert_eq!(gzip(&text.as_bytes()[..MIN_BYTES - 1]), None, "too small");
        assert_eq!(gzip(&vec![0; MAX_BYTES + 1]), None, "too large");
        let mut noise = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        })
        .take(1000)
        .collect();
        assert_eq!(gzip(&noise), None, "it would be larger");
    }

    #[test]
    fn names_of_the_forms() {
        let tag = |text: &'static str| gzip_tag(&HeaderValue::from_static(text));
        assert_eq!(tag("\"a\"").unwrap(), "\"a-gzip\"");
        assert_eq!(tag("W/\"a\"").unwrap(), "W/\"a-gzip\"");
        assert_eq!(tag("a"), None);
        for (before, expected) in [
            (&[][..], "accept-encoding"),
            (&[("vary", "origin")], "origin|accept-encoding"),
            (&[("vary", "origin, Accept-Encoding")], "origin, Accept-Encoding"),
            (&[("vary", "*")], "*"),
        ] {
            let mut map = headers(before);
            vary(&mut map);
            let all: Vec<_> = map.get_all("vary").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(all.join("|"), expected);
        }
    }
}
