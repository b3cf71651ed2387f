//! Where a broadcast is sent, and where it is watched.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::token::Keys;
use serde_json::{Value, json};

use super::broadcast::{Broadcast, Token};
use crate::config::{Config, Pop};

/// Where broadcasters and viewers reach the platform.
pub(crate) struct Urls {
    /// The POPs that take broadcasts.
    pub(crate) pops: Vec<Pop>,
    /// The region that is meant where the caller names none.
    pub(crate) region: Option<String>,
    /// What playback URLs begin with, such as `https://live.example.com`.
    pub(crate) bases: Vec<String>,
    /// What playback tokens are signed with, if they are wanted.
    pub(crate) playback: Option<Arc<Keys>>,
}

impl Urls {
    /// As the configuration says; where it says nothing, this node by its `public.host` and the ports of its `listeners`.
    pub(crate) fn new(
        config: &Config,
        listeners: &BTreeMap<&'static str, SocketAddr>,
        playback: Option<Arc<Keys>>,
    ) -> Urls {
        let public = &config.public;
        let here = |listener| Some(format!("{}:{}", public.host, listeners.get(listener)?.port()));
        let mut pops = public.pops.clone();
        let (rtmps, rtmp) = (here("rtmps"), here("rtmp"));
        if pops.is_empty() && (rtmps.is_some() || rtmp.is_some()) {
            let (name, region) = (config.node.name.clone(), public.region.clone());
            pops.push(Pop { name, region, rtmps, rtmp });
        }
        let mut bases = public.playback.clone();
        if bases.is_empty() {
            let edge = ["https", "http"]
                .into_iter()
                .filter_map(|scheme| Some(format!("{scheme}://{}", here(scheme)?)));
            bases.extend(edge);
        }
        Urls { pops, region: public.region.clone(), bases, playback }
    }

    /// The POPs, those of the region first, otherwise in the order of the configuration; with a key, also what to give to
    /// an encoder that wants all in one.
    pub(crate) fn ingest(&self, region: Option<&str>, key: Option<&str>) -> Value {
        let wanted = region.or(self.region.as_deref());
        let mut pops: Vec<_> = self.pops.iter().collect();
        pops.sort_by_key(|pop| wanted.is_none() || pop.region.as_deref() != wanted);
        let entry = |pop: &&Pop| {
            let mut entry = json!({ "pop": pop.name });
            if let Some(region) = &pop.region {
                entry["region"] = json!(region);
            }
            for (scheme, address) in [("rtmps", &pop.rtmps), ("rtmp", &pop.rtmp)] {
                if let Some(address) = address {
                    let server = format!("{scheme}://{address}/live");
                    if let Some(key) = key {
                        entry[format!("{scheme}_publish")] = format!("{server}/{key}").into();
                    }
                    entry[scheme] = server.into();
                }
            }
            entry
        };
        pops.iter().map(entry).collect()
    }

    /// Playback URLs. Where a token is needed it is one and the same for the whole broadcast, valid as long as its token to
    /// publish; those of recordings are valid as long from `now` on, or up to twice as long. A node that cannot sign gives
    /// URLs without.
    pub(crate) fn playback(&self, broadcast: &Broadcast, now: SystemTime) -> Value {
        let stream = &broadcast.stream;
        let Token { issued, expires, .. } = broadcast.token;
        let ttl = expires.saturating_sub(issued).max(1);
        let token = |path: &str, issued: u64, ttl: u64| {
            let issued = UNIX_EPOCH + Duration::from_secs(issued);
            self.playback.as_ref()?.issue_playback(path, Duration::from_secs(ttl), issued).ok()
        };
        let (folder, query) = match token(&format!("/live/{stream}"), issued, ttl) {
            Some(token) => (format!("/t/{token}"), format!("?token={token}")),
            None => (String::new(), String::new()),
        };
        let urls = |path: String| self.bases.iter().map(|base| format!("{base}{path}")).collect::<Vec<_>>();
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let recording = |name: &String| {
            // The same for a while, so that those who ask often get no token each.
            let token = token(&format!("/vod/{name}"), now / ttl * ttl, ttl.saturating_mul(2));
            let folder = token.map(|token| format!("/t/{token}")).unwrap_or_default();
            json!({
                "archive": name,
                "hls": urls(format!("{folder}/vod/{name}/index.m3u8")),
                "dash": urls(format!("{folder}/vod/{name}/manifest.mpd")),
            })
        };
        let recordings: Vec<_> = broadcast.recordings.iter().map(recording).collect();
        json!({
            "recordings": recordings,
            "hls": urls(format!("{folder}/live/{stream}/index.m3u8")),
            "dash": urls(format!("{folder}/live/{stream}/manifest.mpd")),
            "watch": urls(format!("/watch/{stream}{query}")),
            "protected": self.playback.is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::broadcast::tests::created;
    use super::*;

    fn pop(name: &str, region: Option<&str>, rtmp: Option<&str>) -> Pop {
        let rtmps = Some(format!("{name}.example:1936"));
        Pop { name: name.into(), region: region.map(Into::into), rtmps, rtmp: rtmp.map(Into::into) }
    }

    fn urls(region: Option<&str>, playback: bool) -> Urls {
        Urls {
            pops: vec![
                pop("a", None, Some("a:1935")),
                pop("b", Some("eu"), None),
                pop("c", Some("us"), None),
            ],
            region: region.map(Into::into),
            bases: vec!["https://live.example".into()],
            playback: playback.then(|| Arc::new(Keys::new(&[vec![7; 32]]).unwrap())),
        }
    }

    #[test]
    fn the_pops_of_the_region_come_first() {
        let order = |region, hint| {
            let listed = urls(region, false).ingest(hint, None);
            listed
                .as_array()
                .unwrap()
                .iter()
                .map(|pop| pop["pop"].as_str().unwrap().to_owned())
                .collect::<String>()
        };
        assert_eq!(order(None, None), "abc");
        assert_eq!(order(None, Some("us")), "cab");
        assert_eq!(order(Some("eu"), None), "bac");
        assert_eq!(order(Some("eu"), Some("us")), "cab");
        assert_eq!(order(Some("eu"), Some("mars")), "abc");
        let listed = urls(None, false).ingest(None, Some("demo?token=x"));
        assert_eq!(listed[0]["rtmps"], "rtmps://a.example:1936/live");
        assert_eq!(listed[0]["rtmp_publish"], "rtmp://a:1935/live/demo?token=x");
        assert!(listed[1].get("rtmp").is_none());
    }

    #[test]
    fn a_protected_stream_has_its_token_in_the_path() {
        let now = UNIX_EPOCH + Duration::from_secs(200_000);
        let open = urls(None, false).playback(&created(), now);
        assert_eq!(open["hls"][0], "https://live.example/live/demo/index.m3u8");
        assert_eq!(open["protected"], false);
        assert_eq!(open["recordings"], json!([]), "not yet");
        let recorded = Broadcast { recordings: vec!["demo-1900".into()], ..created() };
        let later = now + Duration::from_secs(3600);
        let (first, second) =
            (urls(None, true).playback(&recorded, now), urls(None, true).playback(&recorded, later));
        assert_eq!(first, second, "asked twice, the same");
        let dash = first["recordings"][0]["dash"][0].as_str().unwrap();
        let (token, path) = dash.strip_prefix("https://live.example/t/").unwrap().split_once('/').unwrap();
        let grant = Keys::new(&[vec![7; 32]]).unwrap().verify_playback(token).unwrap();
        assert_eq!(path, "vod/demo-1900/manifest.mpd");
        assert!(grant.opens("/vod/demo-1900/manifest.mpd") && !grant.opens("/live/demo/index.m3u8"));
        assert_eq!(grant.exp, 4 * 86_400, "longer than the token to publish");
        assert_ne!(first, urls(None, true).playback(&recorded, now + Duration::from_secs(86_400)));
        let hls = first["hls"][0].as_str().unwrap();
        let token = hls.strip_prefix("https://live.example/t/").unwrap().split('/').next().unwrap();
        let grant = Keys::new(&[vec![7; 32]]).unwrap().verify_playback(token).unwrap();
        assert!(grant.opens("/live/demo/index.m3u8") && grant.exp == 86_400);
    }
}
