//! `rooftop stream show NAME`: how one stream stands, as a running node knows it.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use http::Method;
use media::StreamName;
use serde_json::Value;

use super::node::{NodeArgs, Question, exchange};
use super::status::covered;

/// Arguments of `stream show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Name of the stream
    pub name: StreamName,
    /// Which node: its owner knows the ladder, the POP that takes it what comes in, edges how many watch
    #[command(flatten)]
    pub node: NodeArgs,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// Asks the node. Exit code 1: there is no such stream.
pub fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let path = format!("/admin/streams/{}", args.name);
    let answered = exchange(&args.node, Question::new(Method::GET, &path))?;
    let Some(stream) = answered.good() else { return Ok(ExitCode::FAILURE) };
    if args.json {
        println!("{stream}");
    } else {
        print!("{}", in_words(stream));
    }
    Ok(ExitCode::SUCCESS)
}

fn in_words(stream: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kbps = |value: &Value| value.as_f64().unwrap_or_default() / 1000.0;
    let mut out = format!(
        "{}: {}, owned by {} ({}), epoch {}\n",
        text(&stream["name"]),
        text(&stream["state"]),
        text(&stream["owner"]),
        text(&stream["address"]),
        stream["epoch"],
    );
    if let Some(viewers) = stream["viewers"].as_u64() {
        let _ = writeln!(out, "{viewers} {}", if viewers == 1 { "viewer" } else { "viewers" });
    }
    out += &covered(stream);
    match &stream["ingest"] {
        Value::Null => out += "its broadcaster is at another node, or away\n",
        ingest => {
            let _ = writeln!(
                out,
                "in: {:.0} kbit/s, {:.2} frames a second, {} ms behind the clock, from {}",
                kbps(&ingest["bitrate_bps"]),
                ingest["fps"].as_f64().unwrap_or_default(),
                ingest["lag_ms"],
                text(&ingest["peer"]),
            );
            for warning in ingest["warnings"].as_array().into_iter().flatten() {
                let _ = writeln!(out, "  warning: {}", text(&warning["says"]));
            }
        }
    }
    let Some(ladder) = stream["ladder"].as_array() else {
        let _ = writeln!(out, "its ladder is known at {}", text(&stream["owner"]));
        return out;
    };
    let _ = writeln!(
        out,
        "{:<16}{:<12}{:<28}{:>8}{:>14}{:>8}",
        "rendition", "form", "codec", "kbit/s", "segment", "lag ms"
    );
    for rung in ladder {
        let form = match rung["height"].as_u64() {
            Some(height) => format!("{}x{height}", rung["width"]),
            None if rung["channels"] == 1 => "1 channel".into(),
            None => format!("{} channels", rung["channels"]),
        };
        let figure = |value: &Value| if value.is_null() { "-".to_owned() } else { value.to_string() };
        let lag = if rung["gap"] == true { "gap".to_owned() } else { figure(&rung["lag_ms"]) };
        let _ = writeln!(
            out,
            "{:<16}{form:<12}{:<28}{:>8.0}{:>14}{lag:>8}",
            text(&rung["name"]),
            text(&rung["codec"]),
            kbps(&rung["bitrate_bps"]),
            figure(&rung["newest_segment"]),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_told_in_words() {
        let mut stream = serde_json::json!({
            "name": "demo", "state": "live", "owner": "o1", "address": "o1:8443", "epoch": 7, "viewers": 3,
            "viewers_at": ["pop-1"], "viewers_not_at": ["pop-2"],
            "ingest": {
                "bitrate_bps": 2_500_000, "fps": 29.97, "lag_ms": 4, "peer": "1.2.3.4:5",
                "warnings": [{ "kind": "uplink", "says": "the uplink is too slow" }],
            },
            "ladder": [
                { "name": "720p", "codec": "avc1.64001f", "width": 1280, "height": 720, "bitrate_bps": 2_400_000, "newest_segment": 12, "gap": false, "lag_ms": 800 },
                { "name": "audio", "codec": "mp4a.40.2", "channels": 2, "bitrate_bps": 128_000, "newest_segment": null, "gap": true, "lag_ms": null },
            ],
        });
        let said = in_words(&stream);
        for words in [
            "demo: live, owned by o1 (o1:8443), epoch 7\n3 viewers\nviewers: those at pop-1; not those at pop-2\n",
            "in: 2500 kbit/s, 29.97 frames a second, 4 ms behind the clock, from 1.2.3.4:5\n  warning: the uplink is too slow\n",
            "720p            1280x720    avc1.64001f                     2400            12     800\n",
            "audio           2 channels  mp4a.40.2                        128             -     gap\n",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
        for key in ["ladder", "ingest", "viewers"] {
            stream[key] = Value::Null;
        }
        stream["viewers_at"] = serde_json::json!([]);
        let said = in_words(&stream);
        for words in ["ask pop-2", "is at another node", "is known at o1"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert!(!said.contains(" viewers\n"), "{said}");
    }
}
