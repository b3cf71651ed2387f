//! `rooftop archive ls | verify | rm | export`

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use archive::index::{Entry, Index, Kind, Rendition, Span};
use archive::{BroadcastId, Reader};
use bytes::{Buf, Bytes};
use clap::{Args, Subcommand};
use media::{Epoch, RenditionId, SegmentNumber};
use serde_json::json;
use tokio::runtime::Handle;
use transcode::remux::{self, Cut, Track};

use super::{EXIT_BAD_CONFIG, load};

/// Arguments of `archive`.
#[derive(Debug, Args)]
pub struct ArchiveArgs {
    /// What to do with what is kept.
    #[command(subcommand)]
    pub command: ArchiveCommand,
}

/// Arguments of all of them.
#[derive(Debug, Args)]
pub struct Common {
    /// The configuration file of a node that writes the archive
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The subcommands of `archive`.
#[derive(Debug, Subcommand)]
pub enum ArchiveCommand {
    /// List the broadcasts that are kept
    Ls(Common),
    /// Read everything and compare checksums; exits 1 if an object is damaged or missing
    Verify {
        /// One broadcast; default: all
        broadcast: Option<BroadcastId>,
        #[command(flatten)]
        common: Common,
    },
    /// Remove a broadcast
    Rm {
        /// Which
        broadcast: BroadcastId,
        /// Also if it is not over
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Write a broadcast to one MP4, as it is, without encoding anything anew
    Export(ExportArgs),
}

/// Arguments of `archive export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Which broadcast
    pub broadcast: BroadcastId,
    /// The file to write; it must not exist
    pub file: PathBuf,
    /// The rendition; default: the largest
    #[arg(long)]
    pub rendition: Option<RenditionId>,
    /// Only this run; default: all
    #[arg(long)]
    pub epoch: Option<u64>,
    /// Of all of them
    #[command(flatten)]
    pub common: Common,
}

/// Does what is asked.
pub fn run(args: &ArchiveArgs) -> anyhow::Result<ExitCode> {
    let common = match &args.command {
        ArchiveCommand::Ls(common)
        | ArchiveCommand::Verify { common, .. }
        | ArchiveCommand::Rm { common, .. }
        | ArchiveCommand::Export(ExportArgs { common, .. }) => common,
    };
    let Some(config) = load(&common.config) else {
        return Ok(ExitCode::from(EXIT_BAD_CONFIG));
    };
    let reader = archive::open_to_read(&config.archive, &config.node.state_dir)?;
    let reader = reader.context("archive.store is \"none\": nothing is kept")?;
    let runtime = tokio::runtime::Runtime::new()?;
    match &args.command {
        ArchiveCommand::Ls(_) => runtime.block_on(list(&reader, common.json)),
        ArchiveCommand::Verify { broadcast, .. } => {
            runtime.block_on(verify(&reader, broadcast.as_ref(), common.json))
        }
        ArchiveCommand::Rm { broadcast, force, .. } => {
            runtime.block_on(archive::remove(&reader, broadcast, *force)).map_err(|error| match error {
                archive::Error::Live(_) => {
                    anyhow::anyhow!(
                        "{error} or its writer has not been missed yet: --force removes it all the same"
                    )
                }
                error => error.into(),
            })?;
            if common.json {
                println!("{}", json!({ "removed": broadcast }));
            }
            Ok(ExitCode::SUCCESS)
        }
        ArchiveCommand::Export(export_args) => export(&runtime, &reader, export_args, common.json),
    }
}

async fn list(reader: &Reader, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut listed = Vec::new();
    for broadcast in reader.broadcasts().await? {
        // Removed since it was listed: nothing to say.
        if let Some(index) = reader.index(&broadcast).await? {
            listed.push(index.summary());
        }
    }
    if as_json {
        println!("{}", json!({ "broadcasts": listed }));
        return Ok(ExitCode::SUCCESS);
    }
    for summary in &listed {
        let state = if summary.ended_unix_ms.is_some() { "over" } else { "open" };
        println!(
            "{}  {state}  {}  {:.1} MiB  {} segments, {} missing",
            summary.broadcast,
            humantime::format_duration(std::time::Duration::from_millis(summary.duration_ms.max(0) as u64)),
            summary.bytes as f64 / f64::from(1 << 20),
            summary.segments,
            summary.missing
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn verify(reader: &Reader, one: Option<&BroadcastId>, as_json: bool) -> anyhow::Result<ExitCode> {
    let broadcasts = match one {
        Some(one) => vec![one.clone()],
        None => reader.broadcasts().await?,
    };
    let (mut reports, mut bad) = (Vec::new(), 0);
    for broadcast in broadcasts {
        let report = match reader.verify(&broadcast).await {
            // Removed since it was listed.
            Err(archive::Error::NoBroadcast(_)) if one.is_none() => continue,
            report => report?,
        };
        bad += report.findings.len();
        if !as_json {
            println!(
                "{broadcast}: {} good, {} bad, {} holes",
                report.good,
                report.findings.len(),
                report.holes.len()
            );
            for finding in &report.findings {
                println!("  {}: {}", finding.object, finding.problem);
            }
            for hole in &report.holes {
                println!("  never written: {hole}");
            }
        }
        reports.push(report);
    }
    if as_json {
        println!("{}", json!({ "broadcasts": reports }));
    }
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn export(
    runtime: &tokio::runtime::Runtime,
    reader: &Reader,
    args: &ExportArgs,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let ExportArgs { broadcast, file, rendition, epoch, .. } = args;
    ensure!(!file.exists(), "{} exists", file.display());
    let index = runtime.block_on(reader.index(broadcast))?;
    let index = index.ok_or_else(|| archive::Error::NoBroadcast(broadcast.clone()))?;
    let mut spans = index.spans();
    if let Some(epoch) = epoch {
        spans.retain(|span| span.epoch == Epoch(*epoch));
        ensure!(!spans.is_empty(), "broadcast {broadcast} has no run {epoch} that is played");
    }
    let chosen = choose(&index, &spans, rendition.as_ref())?;
    let tracks = chosen.into_iter().map(|(id, init)| {
        let parts = parts(&index, &spans, &id)?;
        let source =
            Source { handle: runtime.handle().clone(), reader: reader.clone(), index: index.clone() };
        let bytes = Segments { source, id: id.clone(), left: parts.into_iter(), now: init };
        Ok(Track { name: id.to_string(), bytes: Box::new(bytes) })
    });
    let tracks = tracks.collect::<anyhow::Result<Vec<_>>>()?;
    let names: Vec<_> = tracks.iter().map(|track| track.name.clone()).collect();
    let written = match remux::remux(tracks, &cuts(&index, &spans), file) {
        Ok(written) => written,
        Err(error) => {
            // Half a file would pass for a whole one.
            let _ = std::fs::remove_file(file);
            return Err(error.into());
        }
    };
    if as_json {
        let frames: serde_json::Map<_, _> =
            names.into_iter().zip(&written).map(|(name, written)| (name, json!(written.frames))).collect();
        println!(
            "{}",
            json!({ "broadcast": broadcast, "file": file, "runs": spans.len(), "frames": frames })
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The tracks to write, with the init segment that is theirs in all runs.
fn choose(
    index: &Index,
    spans: &[Span],
    wanted: Option<&RenditionId>,
) -> anyhow::Result<Vec<(RenditionId, Bytes)>> {
    let runs: Vec<_> = spans.iter().filter_map(|span| index.run(span.epoch)).collect();
    let Some(newest) = runs.last() else { bail!("broadcast {} has no media", index.broadcast()) };
    let is_audio = |rendition: &&Rendition| matches!(rendition.kind, Kind::Audio { .. });
    let first = match wanted {
        Some(wanted) => {
            newest.renditions.iter().find(|rendition| rendition.id == *wanted).with_context(|| {
                let there: Vec<_> = newest.renditions.iter().map(|rendition| rendition.id.as_str()).collect();
                format!("there is no rendition {wanted}: there are {}", there.join(", "))
            })?
        }
        // The largest is the first.
        None => newest.renditions.first().context("its newest run has no rendition")?,
    };
    let audio = newest.renditions.iter().find(is_audio).filter(|audio| audio.id != first.id);
    let mut chosen = Vec::new();
    for rendition in std::iter::once(first).chain(audio) {
        for run in &runs {
            let same = run.renditions.iter().find(|other| other.id == rendition.id);
            if same.map(|same| &same.init) != Some(&rendition.init) {
                let epochs: Vec<_> = runs.iter().map(|run| run.epoch.to_string()).collect();
                bail!(
                    "rendition {} is coded otherwise in run {} than in run {}, and one track of an MP4 cannot be both: \
                     export the runs one by one with --epoch ({})",
                    rendition.id,
                    run.epoch,
                    newest.epoch,
                    epochs.join(", ")
                );
            }
        }
        chosen.push((rendition.id.clone(), rendition.init.clone()));
    }
    Ok(chosen)
}

/// What is kept of a rendition within `spans`, in order.
fn parts(index: &Index, spans: &[Span], id: &RenditionId) -> anyhow::Result<Vec<archive::index::Segment>> {
    let within = |segment: &archive::index::Segment| spans.iter().any(|span| span.epoch == segment.epoch);
    let entries = index.entries(id, SegmentNumber(0));
    let parts: Vec<_> = entries
        .filter_map(|entry| match entry {
            Entry::Segment(segment) => Some(*segment),
            Entry::Missing { .. } => None,
        })
        .filter(within)
        .collect();
    ensure!(!parts.is_empty(), "rendition {id} has no media");
    Ok(parts)
}

/// The pauses between runs.
fn cuts(index: &Index, spans: &[Span]) -> Vec<Cut> {
    let extents: Vec<_> = spans.iter().filter_map(|span| index.extent(*span)).collect();
    let cut = |pair: &[std::ops::Range<i64>]| Cut { at: pair[1].start, length: pair[1].start - pair[0].end };
    extents.windows(2).map(cut).filter(|cut| cut.length > 0).collect()
}

struct Source {
    handle: Handle,
    reader: Reader,
    index: std::sync::Arc<Index>,
}

/// A rendition as one run of bytes, one segment in memory at a time.
struct Segments {
    source: Source,
    id: RenditionId,
    left: std::vec::IntoIter<archive::index::Segment>,
    now: Bytes,
}

impl Read for Segments {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            let Some(segment) = self.left.next() else { return Ok(0) };
            let Source { handle, reader, index } = &self.source;
            let got = handle.block_on(reader.media(index.broadcast(), &self.id, &segment, None));
            self.now = got.map_err(|error| {
                eprintln!("rooftop: segment {} of {}: {error}", segment.number, self.id);
                io::Error::other(error)
            })?;
        }
        let len = self.now.len().min(to.len());
        self.now.copy_to_slice(&mut to[..len]);
        Ok(len)
    }
}
