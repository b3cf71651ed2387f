//! `rooftop top`: a node as it works, once a second.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen,
};
use crossterm::{execute, queue};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::node::NodeArgs;
use super::status::{Seen, Tier, standing, table};

/// Where the size of the terminal is not known.
const SIZE: (u16, u16) = (120, 40);

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Which node
    #[command(flatten)]
    pub node: NodeArgs,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub every: Duration,
    /// Look twice, say what was seen in between, and end
    #[arg(long)]
    pub once: bool,
    /// A line of JSON for each look instead of a screen
    #[arg(long)]
    pub json: bool,
}

/// Shows the node until Ctrl-C.
pub fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    if args.every < Duration::from_millis(100) {
        anyhow::bail!("--every: must be at least 100ms");
    }
    let screen = !args.json && !args.once && std::io::stdout().is_terminal();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let shown = match screen {
        true => {
            execute!(std::io::stdout(), EnterAlternateScreen, Hide)?;
            let shown = runtime.block_on(show(args, screen));
            // Whatever went wrong is said on the screen that was there before.
            execute!(std::io::stdout(), Show, LeaveAlternateScreen)?;
            shown
        }
        false => runtime.block_on(show(args, screen)),
    };
    shown.map(|()| ExitCode::SUCCESS)
}

async fn show(args: &TopArgs, screen: bool) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut ticks = tokio::time::interval(args.every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before: Option<(Seen, Instant)> = None;
    loop {
        tokio::select! {
            biased;
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let node = args.node.clone();
        let seen = tokio::task::spawn_blocking(move || Seen::look(&node)).await??;
        let now = Instant::now();
        if let Some((before, at)) = &before {
            let rates = Rates::between(before, &seen, now - *at);
            let mut out = std::io::stdout();
            if args.json {
                writeln!(out, "{}", rates.json(&seen))?;
            } else if screen {
                let size = crossterm::terminal::size().unwrap_or(SIZE);
                // What is the same is written over itself, so that nothing flickers.
                let rest = format!("{}\n", Clear(ClearType::UntilNewLine));
                queue!(out, BeginSynchronizedUpdate, MoveTo(0, 0))?;
                write!(out, "{}", fitted(&rates.text(&seen, Some(size.0)), size).replace('\n', &rest))?;
                queue!(out, Clear(ClearType::FromCursorDown), EndSynchronizedUpdate)?;
            } else {
                write!(out, "{}", rates.text(&seen, None))?;
            }
            out.flush()?;
            if args.once {
                return Ok(());
            }
        }
        before = Some((seen, now));
    }
}

/// What happened between two looks, a second.
struct Rates(Vec<(&'static str, Tier, Tier)>);

impl Rates {
    fn between(before: &Seen, now: &Seen, time: Duration) -> Rates {
        let seconds = time.as_secs_f64().max(0.001);
        let tiers = ["shield", "edge"].into_iter().filter_map(|tier| {
            let (old, new) = (before.tier(tier)?, now.tier(tier)?);
            // A node that was started anew counts from zero.
            let rate = |figure: fn(&Tier) -> f64| (figure(&new) - figure(&old)).max(0.0) / seconds;
            let rates = Tier {
                requests: rate(|tier| tier.requests),
                hits: rate(|tier| tier.hits),
                failed: rate(|tier| tier.failed),
                fetches: rate(|tier| tier.fetches),
                promotions: rate(|tier| tier.promotions),
                served_bytes: rate(|tier| tier.served_bytes),
                ..new
            };
            Some((tier, rates, new))
        });
        Rates(tiers.collect())
    }

    fn json(&self, seen: &Seen) -> Value {
        let tiers = self.0.iter().map(|(tier, rates, now)| {
            let figures = json!({
                "requests_per_s": rates.requests,
                "hits_per_s": rates.hits,
                "failed_per_s": rates.failed,
                "fetches_per_s": rates.fetches,
                "promotions_per_s": rates.promotions,
                "served_bits_per_s": rates.served_bytes * 8.0,
                "waiters": now.waiters,
                "inflight_names": now.names,
                "cache_bytes": now.cache_bytes,
                "leak_ratio_1m": now.leak_ratio,
            });
            ((*tier).to_owned(), figures)
        });
        json!({
            "node": seen.status["node"],
            "standing": standing(&seen.status),
            "unix_ms": seen.status["unix_ms"],
            "tiers": tiers.collect::<serde_json::Map<_, _>>(),
            "viewers": seen.viewers["viewers"],
            "streams": seen.streams(),
        })
    }

    /// `columns`: of the terminal, if it is for one.
    fn text(&self, seen: &Seen, columns: Option<u16>) -> String {
        let status = &seen.status;
        let uptime = Duration::from_secs(status["uptime_s"].as_u64().unwrap_or_default());
        let mut out = format!(
            "{}  {}  up {}\n",
            status["node"].as_str().unwrap_or_default(),
            standing(status),
            humantime::format_duration(uptime),
        );
        if status["store"]["up"] != true {
            out.push_str("the store cannot be reached\n");
        }
        if !self.0.is_empty() {
            let _ = writeln!(
                out,
                "\n{:<6}{:>9}{:>7}{:>8}{:>8}{:>8}{:>7}{:>8}{:>6}{:>7}{:>6}",
                "tier",
                "req/s",
                "hit %",
                "leak %",
                "fetch/s",
                "promo/s",
                "fail/s",
                "waiting",
                "names",
                "Mbit/s",
                "MiB"
            );
        }
        for (tier, rates, now) in &self.0 {
            let share = |part: f64| 100.0 * part / rates.requests.max(1e-9);
            let hit = if rates.requests > 0.0 { format!("{:.1}", share(rates.hits)) } else { "-".into() };
            let _ = writeln!(
                out,
                "{tier:<6}{:>9.0}{hit:>7}{:>8.3}{:>8.1}{:>8.1}{:>7.1}{:>8.0}{:>6.0}{:>7.0}{:>6.0}",
                rates.requests,
                100.0 * now.leak_ratio,
                rates.fetches,
                rates.promotions,
                rates.failed,
                now.waiters,
                now.names,
                rates.served_bytes * 8.0 / 1e6,
                now.cache_bytes / f64::from(1 << 20),
            );
        }
        let _ = write!(out, "\n{}{}", table(&seen.streams(), columns), seen.covered());
        out
    }
}

/// As much of a text as a terminal of so many columns and rows shows; what is left out is counted.
fn fitted(text: &str, (columns, rows): (u16, u16)) -> String {
    let (columns, rows) = (usize::from(columns.max(1)), usize::from(rows.max(2)));
    let lines: Vec<String> = text.lines().map(|line| line.chars().take(columns).collect()).collect();
    // A terminal in raw mode would need more, this one is not.
    if lines.len() < rows {
        return lines.join("\n") + "\n";
    }
    let more = lines.len() - (rows - 2);
    lines[..rows - 2].join("\n") + &format!("\n{more} more")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::whatif::scrape::Scrape;

    fn seen(hits: u32, fetches: u32) -> Seen {
        Seen {
            status: json!({ "node": "a", "ready": true, "uptime_s": 5, "store": { "up": true }, "streams": [
                { "stream": "demo", "state": "live", "epoch": 1 },
            ] }),
            broadcasts: Vec::new(),
            viewers: Value::Null,
            metrics: Scrape::parse(&format!(
                "edge_waiters{{tier=\"edge\"}} 3\nedge_requests_total{{tier=\"edge\",result=\"hit\"}} {hits}\n\
                 edge_fetches_total{{tier=\"edge\",class=\"x\",outcome=\"answered\"}} {fetches}\n"
            )),
        }
    }

    #[test]
    fn rates_are_those_between_two_looks() {
        let (before, now) = (seen(100, 10), seen(300, 12));
        let rates = Rates::between(&before, &now, Duration::from_secs(2));
        let told = rates.json(&now);
        assert_eq!(told["tiers"]["edge"]["requests_per_s"], 100.0, "{told}");
        assert_eq!(told["tiers"]["edge"]["fetches_per_s"], 1.0, "{told}");
        assert_eq!(told["tiers"]["edge"]["waiters"], 3.0, "{told}");
        let text = rates.text(&now, Some(80));
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(
            text.contains("a  ready  up 5s") && text.contains("demo") && text.contains("100.0"),
            "{text}"
        );
        let anew = Rates::between(&now, &before, Duration::from_secs(1));
        assert_eq!(anew.json(&before)["tiers"]["edge"]["requests_per_s"], 0.0);
    }

    #[test]
    fn a_small_terminal_shows_what_it_can() {
        assert_eq!(fitted("abc\ndef\n", (2, 10)), "ab\nde\n");
        assert_eq!(fitted("1\n2\n3\n4\n5\n", (9, 4)), "1\n2\n3 more");
    }
}
