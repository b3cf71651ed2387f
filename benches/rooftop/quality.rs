//! How near renditions come to their source: PSNR and SSIM, as ffmpeg's filters count them, beside the bits they took.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use transcode::Rung;

use crate::clip::Recipe;
use crate::report::{Better, Report};

/// Of one rendition.
struct Quality {
    kbit_per_s: f64,
    /// Of all planes, over all frames.
    psnr_db: f64,
    ssim: f64,
}

/// Prints and records the rungs in both folders (Rooftop's and the peer's), `{rung}.mp4` each.
pub(crate) fn compare(
    what: &str,
    clip: &Path,
    rungs: &[Rung],
    seconds: u32,
    folders: [&Path; 2],
    peer: &str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for rung in rungs {
        let file = |folder: &Path| folder.join(format!("{}.mp4", rung.id));
        let of = |folder: &Path| measure(&file(folder), clip, rung, seconds);
        let [ours, theirs] = [of(folders[0])?, of(folders[1])?];
        let mut record = |name: &str, unit, better, figure: fn(&Quality) -> f64| {
            let name = format!("ladder/{what}/{name}/{}", rung.id);
            report.record(name, unit, better, figure(&ours), &[(peer, figure(&theirs))]);
        };
        record("bitrate", "kbit/s", Better::Lower, |quality| quality.kbit_per_s);
        record("psnr", "dB", Better::Higher, |quality| quality.psnr_db);
        record("ssim", "", Better::Higher, |quality| quality.ssim);
        let cells = [
            rung.id.to_string(),
            format!("{:.0}", ours.kbit_per_s),
            format!("{:.0}", theirs.kbit_per_s),
            format!("{:.2}", ours.psnr_db),
            format!("{:.2}", theirs.psnr_db),
            format!("{:.4}", ours.ssim),
            format!("{:.4}", theirs.ssim),
        ];
        rows.push(cells.to_vec());
    }
    let head =
        ["", "kbit/s", "ffmpeg's", "PSNR dB", "ffmpeg's", "SSIM", "ffmpeg's"].map(String::from).to_vec();
    report.table(
        &format!("ladder/{what}: every frame is in every rendition; what they are worth"),
        head,
        rows,
    );
    Ok(())
}

/// Frame by frame, against the source scaled by a scaler that neither has used.
fn measure(file: &Path, clip: &Path, rung: &Rung, seconds: u32) -> anyhow::Result<Quality> {
    // Both have all frames: their places are their times.
    let frames = format!("settb=1/{},setpts=N", Recipe::FPS);
    let scaled = format!("scale={}:{}:flags=lanczos", rung.width, rung.height);
    let graph =
        format!("[0:v]{frames},split[a][b];[1:v]{scaled},{frames},split[c][d];[a][c]psnr[p];[b][d]ssim[s]");
    let output = Command::new("ffmpeg")
        .args(["-nostdin", "-hide_banner", "-nostats", "-i"])
        .arg(file)
        .arg("-i")
        .arg(clip)
        .args(["-filter_complex", &graph, "-map", "[p]", "-map", "[s]", "-f", "null", "-"])
        .output()
        .context("ffmpeg")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ffmpeg compares {}: {said}", file.display());
    let figure = |filter: &str, name: &str| -> Option<f64> {
        let line = said.lines().find(|line| line.contains(filter) && line.contains(name))?;
        line.split_once(name)?.1.split_whitespace().next()?.parse().ok()
    };
    let bytes = std::fs::metadata(file)?.len() as f64;
    Ok(Quality {
        kbit_per_s: bytes * 8.0 / 1000.0 / f64::from(seconds),
        psnr_db: figure("PSNR", "average:").with_context(|| format!("no PSNR: {said}"))?,
        ssim: figure("SSIM", "All:").with_context(|| format!("no SSIM: {said}"))?,
    })
}
