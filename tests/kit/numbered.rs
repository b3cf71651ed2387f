//! A broadcast whose pictures bear their own numbers, and viewers who read them back after decoding: whether each came
//! exactly once, and in turn.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::kit::*;

/// Bits of the number that a picture bears, each a bar of 16 pixels: 4096 pictures.
pub const BITS: u32 = 12;

/// Makes a broadcast with B-frames, whose groups of pictures do not divide into segments evenly: `rate` pictures a second,
/// 96 lines each, for so many seconds.
pub fn make(path: &Path, rate: u32, seconds: u32) {
    assert!(rate * seconds <= 1 << BITS, "more pictures than numbers");
    let bars = "geq=lum='if(mod(floor(N/pow(2,floor(X/16))),2),235,16)':cb=128:cr=128";
    let status = ffmpeg()
        .args(["-f", "lavfi", "-i"])
        .arg(format!("nullsrc=size={}x96:rate={rate}:duration={seconds},format=yuv420p,{bars}", BITS * 16))
        .args(["-f", "lavfi", "-i"])
        .arg(format!("sine=frequency=440:sample_rate=48000:duration={seconds}"))
        .args(["-c:v", "libx264", "-preset", "superfast", "-bf", "2", "-sc_threshold", "0"])
        .args(["-g", &(rate * 3 / 2).to_string()])
        .args(["-b:v", "300k", "-c:a", "aac", "-b:a", "64k", "-ac", "2"])
        .arg(path)
        .status()
        .unwrap();
    assert!(status.success());
}

/// What makes decoded pictures small enough to read their numbers from: arguments of an ffmpeg output.
pub fn readable(command: &mut std::process::Command) -> &mut std::process::Command {
    command
        .args(["-map", "0:v", "-fps_mode", "passthrough", "-vf", &format!("scale={BITS}:1:flags=area")])
        .args(["-pix_fmt", "gray", "-f", "rawvideo"])
}

/// The numbers of pictures that were made readable.
pub fn numbers(pictures: &[u8]) -> Vec<u32> {
    let bits = |row: &[u8]| row.iter().enumerate().map(|(bit, grey)| u32::from(*grey > 125) << bit).sum();
    pictures.chunks(BITS as usize).map(bits).collect()
}

/// A viewer: ffmpeg, which decodes the video and copies the audio.
pub struct Viewer {
    child: Child,
    pictures: PathBuf,
    sounds: PathBuf,
}

impl Viewer {
    /// Reads from the oldest listed segment on; keeps what it got in `folder`.
    pub fn watch(folder: &Path, url: &str) -> Viewer {
        let (pictures, sounds) = (folder.join("pictures"), folder.join("sounds"));
        let mut command = ffmpeg();
        command.args(["-live_start_index", "0", "-i", url]);
        let child = readable(&mut command)
            .arg(&pictures)
            .args(["-map", "0:a", "-c", "copy", "-f", "framemd5"])
            .arg(&sounds)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Viewer { child, pictures, sounds }
    }

    /// After the end of the broadcast: the number of each picture, the hash of each audio frame, what it complained of.
    /// An error if it did not come to the end.
    pub fn end(mut self) -> Result<(Vec<u32>, Vec<String>, String), String> {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        if !self.child.wait().unwrap().success() {
            return Err(said);
        }
        let sounds = std::fs::read_to_string(&self.sounds).unwrap();
        let hash = |line: &str| line.rsplit(',').next().unwrap().trim().to_owned();
        let sounds = sounds.lines().filter(|line| !line.starts_with('#')).map(hash).collect();
        Ok((numbers(&std::fs::read(&self.pictures).unwrap()), sounds, said))
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
