//! Broadcasts to work on: made by ffmpeg's own sources once, read as FLV tags.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::process::Running;

/// What a clip is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe {
    /// Also its file's name: change it with the recipe.
    pub(crate) name: &'static str,
    /// An ffmpeg filter graph that ends in pictures.
    pub(crate) pictures: &'static str,
    pub(crate) seconds: u32,
    /// For libx264.
    pub(crate) encoder: &'static str,
}

/// As OBS would send it.
const BROADCASTER: &str = "-preset veryfast -profile:v high -bf 2 -g 60 -keyint_min 60 -sc_threshold 0 \
    -b:v 4500k -maxrate 4500k -bufsize 4500k";

/// The test pattern: flat areas, sharp edges, little noise. Cheap to code.
pub(crate) const PATTERN: Recipe = Recipe {
    name: "pattern-720p30",
    pictures: "testsrc2=size=1280x720:rate=30",
    seconds: 10,
    encoder: BROADCASTER,
};

/// Nearer to a camera: fine structure at all scales that moves everywhere, and a sensor's noise.
pub(crate) const TEXTURE: Recipe = Recipe {
    name: "texture-720p30",
    pictures: "mandelbrot=size=1280x720:rate=30:start_x=-0.743643887037151:start_y=-0.131825904205330:\
        start_scale=0.02:end_scale=0.0004:end_pts=300:maxiter=400,noise=alls=10:allf=t+u",
    seconds: 10,
    encoder: BROADCASTER,
};

/// What the latency scenario broadcasts: encoded without delay, so that a frame's time is its place in the file.
pub(crate) const LIVE: Recipe = Recipe {
    name: "live-360p30",
    pictures: "testsrc2=size=640x360:rate=30",
    seconds: 20,
    encoder: "-preset superfast -tune zerolatency -profile:v high -g 60 -keyint_min 60 -sc_threshold 0 \
        -b:v 800k -maxrate 800k -bufsize 800k",
};

/// The same of what has a whole ladder below it, in pictures that take some coding.
pub(crate) const LIVE_720: Recipe = Recipe {
    name: "live-texture-720p30",
    pictures: TEXTURE.pictures,
    seconds: 20,
    encoder: "-preset superfast -tune zerolatency -profile:v high -g 60 -keyint_min 60 -sc_threshold 0 \
        -b:v 4500k -maxrate 4500k -bufsize 4500k",
};

/// What the broadcasters of the ingest scenario send: 800 kbit/s with its sound, as OBS would code it.
pub(crate) const BROADCAST: Recipe = Recipe {
    name: "broadcast-360p30",
    pictures: "mandelbrot=size=640x360:rate=30:start_x=-0.743643887037151:start_y=-0.131825904205330:\
        start_scale=0.02:end_scale=0.0004:end_pts=300:maxiter=400,noise=alls=10:allf=t+u",
    seconds: 10,
    encoder: "-preset veryfast -profile:v high -bf 2 -g 60 -keyint_min 60 -sc_threshold 0 \
        -b:v 672k -maxrate 672k -bufsize 672k",
};

impl Recipe {
    /// Frames per second of all clips.
    pub(crate) const FPS: u32 = 30;

    /// The file, made if it is not there: H.264 and stereo AAC in FLV.
    pub(crate) fn make(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let path = folder.join(format!("{}.flv", self.name));
        if path.exists() {
            return Ok(path);
        }
        let unfinished = folder.join(format!("{}.making-{}", self.name, std::process::id()));
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", self.pictures]);
        command.args(["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000"]);
        command.args(["-t", &self.seconds.to_string(), "-pix_fmt", "yuv420p", "-c:v", "libx264"]);
        command.args(self.encoder.split_whitespace());
        command.args(["-c:a", "aac", "-b:a", "128k", "-ac", "2", "-flvflags", "no_duration_filesize"]);
        command.args(["-f", "flv"]).arg(&unfinished).stdin(Stdio::null());
        Running::start("ffmpeg (clip)", &mut command)?
            .succeed(Duration::from_secs(120))
            .with_context(|| format!("clip {}", self.name))?;
        std::fs::rename(&unfinished, &path)?;
        Ok(path)
    }
}
