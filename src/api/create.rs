//! What is asked for: the body of a creation and the query of a listing, read strictly, every problem at once.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use media::StreamName;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::events::State;
use super::problem::Wrong;

/// Longest title, in characters.
const MAX_TITLE: usize = 200;

/// Entries of `metadata`.
const MAX_METADATA: usize = 16;

/// Problems of a query that are named.
const MAX_WRONG: usize = 16;

/// Longest name of an entry, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// Longest value of an entry, in characters.
const MAX_VALUE: usize = 512;

/// How long a token may be valid, in seconds: from a minute to 30 days, as long as revocations are remembered by default.
const TTL_SECONDS: std::ops::RangeInclusive<u64> = 60..=30 * 86_400;

/// Default of `token_ttl_seconds`.
const DEFAULT_TTL_SECONDS: u64 = 86_400;

/// Broadcasts of one answer.
pub(crate) const MAX_LIMIT: usize = 200;

/// Default of `limit`.
const DEFAULT_LIMIT: usize = 50;

/// A broadcast that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Create {
    pub(crate) stream: Option<StreamName>,
    pub(crate) title: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) token_ttl_seconds: u64,
    pub(crate) max_bitrate_bps: Option<u64>,
    pub(crate) max_height: Option<u32>,
    pub(crate) region: Option<String>,
}

impl Create {
    /// Reads the body of a request.
    pub(crate) fn read(body: Value) -> Result<Create, Vec<Wrong>> {
        let Value::Object(fields) = body else {
            return Err(vec![Wrong::body("", "the body must be a JSON object")]);
        };
        let mut fields = Fields { fields, wrong: Vec::new() };
        let create = Create {
            stream: fields.take("stream", |_: &StreamName| None),
            title: fields.take("title", |title: &String| text(title, MAX_TITLE)),
            metadata: fields.metadata(),
            token_ttl_seconds: fields
                .take("token_ttl_seconds", |ttl| (!TTL_SECONDS.contains(ttl)).then(|| range(&TTL_SECONDS)))
                .unwrap_or(DEFAULT_TTL_SECONDS),
            max_bitrate_bps: fields.take("max_bitrate_bps", |most: &u64| {
                let allowed = 1_000..=10_000_000_000;
                (!allowed.contains(most)).then(|| range(&allowed))
            }),
            max_height: fields.take("max_height", |most: &u32| {
                let allowed = 16..=8_192;
                (!allowed.contains(most)).then(|| range(&allowed))
            }),
            region: fields.take("region", |region: &String| text(region, MAX_NAME_BYTES)),
        };
        let Fields { fields, mut wrong } = fields;
        wrong.extend(fields.keys().map(|name| Wrong::body(pointer(name), "there is no such field")));
        if wrong.is_empty() { Ok(create) } else { Err(wrong) }
    }
}

struct Fields {
    fields: Map<String, Value>,
    wrong: Vec<Wrong>,
}

impl Fields {
    /// A field, if it is there and good; `bad` says what else is wrong with it.
    fn take<T: DeserializeOwned>(&mut self, name: &str, bad: impl FnOnce(&T) -> Option<String>) -> Option<T> {
        let value = self.fields.remove(name)?;
        let problem = match serde_json::from_value::<T>(value) {
            Ok(value) => match bad(&value) {
                None => return Some(value),
                Some(problem) => problem,
            },
            Err(error) => error.to_string(),
        };
        self.wrong.push(Wrong::body(pointer(name), problem));
        None
    }

    fn metadata(&mut self) -> BTreeMap<String, String> {
        let Some(metadata) = self.take("metadata", |_: &Map<String, Value>| None) else {
            return BTreeMap::new();
        };
        if metadata.len() > MAX_METADATA {
            self.wrong.push(Wrong::body("/metadata", format!("has more than {MAX_METADATA} entries")));
            return BTreeMap::new();
        }
        let mut read = BTreeMap::new();
        for (name, value) in metadata {
            let at = format!("/metadata{}", pointer(&name));
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if !plain || !(1..=MAX_NAME_BYTES).contains(&name.len()) {
                self.wrong
                    .push(Wrong::body(at, format!("names are 1 to {MAX_NAME_BYTES} of A-Z a-z 0-9 - _ .")));
                continue;
            }
            match value {
                Value::String(value) => match text(&value, MAX_VALUE) {
                    None => {
                        read.insert(name, value);
                    }
                    Some(problem) => self.wrong.push(Wrong::body(at, problem)),
                },
                _ => self.wrong.push(Wrong::body(at, "must be a string")),
            }
        }
        read
    }
}

/// Which broadcasts are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) state: Option<State>,
    pub(crate) stream: Option<StreamName>,
    pub(crate) limit: usize,
    /// The last broadcast of the page before.
    pub(crate) after: Option<String>,
}

impl Page {
    /// Reads a query. Values are plain: nothing in them needs an escape.
    pub(crate) fn read(query: &str) -> Result<Page, Vec<Wrong>> {
        let mut page = Page { state: None, stream: None, limit: DEFAULT_LIMIT, after: None };
        let (mut seen, mut wrong) = (Vec::new(), Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            if wrong.len() >= MAX_WRONG {
                break;
            }
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if seen.contains(&name) {
                wrong.push(Wrong::parameter(name, "is there twice"));
                continue;
            }
            seen.push(name);
            match name {
                "state" => match State::ALL.into_iter().find(|state| state.as_str() == value) {
                    Some(state) => page.state = Some(state),
                    None => {
                        let states = State::ALL.map(State::as_str).join(", ");
                        wrong.push(Wrong::parameter(name, format!("is one of {states}")));
                    }
                },
                "stream" => match value.parse() {
                    Ok(stream) => page.stream = Some(stream),
                    Err(error) => wrong.push(Wrong::parameter(name, error.to_string())),
                },
                "limit" => match value.parse() {
                    Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => page.limit = limit,
                    _ => wrong.push(Wrong::parameter(name, format!("is 1 to {MAX_LIMIT}"))),
                },
                "after" if is_id(value) => page.after = Some(value.to_owned()),
                "after" => wrong.push(Wrong::parameter(name, "is what next was in the page before")),
                _ => {
                    let name = name.chars().take(64).collect::<String>();
                    wrong.push(Wrong::parameter(name, "there are state, stream, limit and after"));
                }
            }
        }
        if wrong.is_empty() { Ok(page) } else { Err(wrong) }
    }
}

/// Whether it could be the identifier of a broadcast: the time in milliseconds and 40 random bits, both as hexadecimal text.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 21 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The step of a JSON pointer to a field, cut to what is safe to repeat.
fn pointer(name: &str) -> String {
    let name = name.chars().take(MAX_NAME_BYTES).collect::<String>();
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn text(text: &str, most: usize) -> Option<String> {
    if text.is_empty() || text.chars().count() > most {
        return Some(format!("must have 1 to {most} characters"));
    }
    text.chars().any(char::is_control).then(|| "must have no control characters".into())
}

fn range<T: std::fmt::Display>(range: &std::ops::RangeInclusive<T>) -> String {
    format!("must be {} to {}", range.start(), range.end())
}

#[cfg(test)]
mod tests {
    use super::super::problem::At;
    use super::*;
    use serde_json::json;

    fn wrong(body: Value) -> Vec<String> {
        let wrong = Create::read(body).unwrap_err().into_iter();
        wrong
            .map(|wrong| match wrong.at {
                At::Body(pointer) => pointer,
                at => panic!("{at:?}"),
            })
            .collect()
    }

    #[test]
    fn all_that_is_wrong_is_named() {
        for (body, expected) in [
            (json!([]), vec![""]),
            (json!({ "stream": "a b" }), vec!["/stream"]),
            (json!({ "stream": null }), vec!["/stream"]),
            (json!({ "title": "" }), vec!["/title"]),
            (json!({ "title": "x".repeat(201) }), vec!["/title"]),
            (json!({ "title": "a\u{0}" }), vec!["/title"]),
            (json!({ "token_ttl_seconds": 59, "max_height": -1 }), vec!["/token_ttl_seconds", "/max_height"]),
            (json!({ "token_ttl_seconds": "1h" }), vec!["/token_ttl_seconds"]),
            (json!({ "max_bitrate_bps": 0, "region": "" }), vec!["/max_bitrate_bps", "/region"]),
            (json!({ "colour": 1, "a/b~": 1 }), vec!["/a~1b~0", "/colour"]),
            (
                json!({ "metadata": { "a b": "x", "c": 1, "d": "x".repeat(513), "e": "fine" } }),
                vec!["/metadata/a b", "/metadata/c", "/metadata/d"],
            ),
            (json!({ "metadata": [] }), vec!["/metadata"]),
        ] {
            assert_eq!(wrong(body.clone()), expected, "{body}");
        }
        let many: Map<String, Value> = (0..17).map(|n| (n.to_string(), "x".into())).collect();
        assert_eq!(wrong(json!({ "metadata": many })), ["/metadata"]);
    }

    #[test]
    fn everything_may_be_left_out() {
        let create = Create::read(json!({})).unwrap();
        assert_eq!((create.stream, create.token_ttl_seconds), (None, 86_400));
        let create = Create::read(json!({
            "stream": "show", "title": "Späti", "metadata": { "a": "b" }, "token_ttl_seconds": 3600,
            "max_bitrate_bps": 6_000_000, "max_height": 1080, "region": "eu"
        }));
        let create = create.unwrap();
        assert_eq!((create.title.as_deref(), create.max_height), (Some("Späti"), Some(1080)));
        assert_eq!(create.metadata["a"], "b");
    }

    #[test]
    fn queries_are_strict_too() {
        let page = Page::read("state=live&limit=7&after=0199aabbccddeeff00112&stream=show").unwrap();
        assert_eq!((page.state, page.limit), (Some(State::Live), 7));
        assert_eq!(Page::read("").unwrap().limit, 50);
        for (query, expected) in [
            ("state=LIVE", 1),
            ("limit=0&limit=0", 2),
            ("limit=201", 1),
            ("after=../x", 1),
            ("colour=1&stream=a%20b", 2),
        ] {
            assert_eq!(Page::read(query).unwrap_err().len(), expected, "{query}");
        }
        let hostile = "x&".repeat(10_000);
        assert!(Page::read(&hostile).unwrap_err().len() <= MAX_WRONG);
    }
}
