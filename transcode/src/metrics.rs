//! What all jobs of this process have done.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of all jobs of this process; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Transcode jobs that are running.
    pub jobs: Gauge,
    /// Access units given to the decoder.
    pub access_units: Counter,
    /// Pictures that came out of the decoder.
    pub frames_decoded: Counter,
    /// Pictures encoded, all rungs together.
    pub frames_encoded: Counter,
    /// Pictures of two fields that were made progressive.
    pub frames_deinterlaced: Counter,
    /// Pictures with errors that the decoder patched over.
    pub frames_damaged: Counter,
    /// Pictures that could not be decoded and for which the neighbouring one was shown again.
    pub frames_repeated: Counter,
    /// Pictures shown again because the source had none for so long.
    pub frames_filled: Counter,
    /// Pictures that could not be decoded and that no other could stand in for.
    pub frames_lost: Counter,
    /// Constructs of caption data (`cc_data_pkt`) that a rung had no room for in the pictures that it shows.
    pub captions_lost: Counter,
    /// Audio frames encoded.
    pub audio_encoded: Counter,
    /// Audio packets that could not be decoded.
    pub audio_damaged: Counter,
    /// Rungs that are shed at present, all jobs together.
    pub rungs_shed: Gauge,
    /// Times that a rung was shed because the encoders fell behind.
    pub sheds: Counter,
    /// Times that a job fell behind with all rungs but the smallest shed.
    pub exhausted: Counter,
    /// Thumbnails drawn.
    pub thumbnails: Counter,
    /// Thumbnails left out because the encoders fell behind.
    pub thumbnails_left_out: Counter,
    /// Bytes that came out of the encoders, all rungs together.
    pub encoded_bytes: Counter,
    /// Times that a thread waited because the queue to the next one was full.
    pub queue_waits: Counter,
}

impl Metrics {
    /// Counters under `transcode_*` in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = &metrics;
        registry.register("transcode_jobs", "Transcode jobs that are running", m.jobs.clone());
        let help = "Rungs that are shed at present, all jobs together";
        registry.register("transcode_rungs_shed", help, m.rungs_shed.clone());
        for (name, help, counter) in [
            ("transcode_sheds", "Times that a rung was shed because the encoders fell behind", &m.sheds),
            (
                "transcode_exhausted",
                "Times that a job fell behind with all rungs but the smallest shed",
                &m.exhausted,
            ),
            ("transcode_access_units", "Access units given to the decoder", &m.access_units),
            ("transcode_frames_decoded", "Pictures that came out of the decoder", &m.frames_decoded),
            ("transcode_frames_encoded", "Pictures encoded, all rungs together", &m.frames_encoded),
            (
                "transcode_frames_deinterlaced",
                "Pictures of two fields that were made progressive",
                &m.frames_deinterlaced,
            ),
            (
                "transcode_frames_damaged",
                "Pictures with errors that the decoder patched over",
                &m.frames_damaged,
            ),
            (
                "transcode_frames_repeated",
                "Pictures that could not be decoded and for which the neighbouring one was shown again",
                &m.frames_repeated,
            ),
            (
                "transcode_frames_filled",
                "Pictures shown again because the source had none for so long",
                &m.frames_filled,
            ),
            (
                "transcode_frames_lost",
                "Pictures that could not be decoded and that no other could stand in for",
                &m.frames_lost,
            ),
            (
                "transcode_captions_lost",
                "Constructs of caption data (cc_data_pkt) that a rung had no room for in the pictures that it shows",
                &m.captions_lost,
            ),
            ("transcode_audio_encoded", "Audio frames encoded", &m.audio_encoded),
            ("transcode_audio_damaged", "Audio packets that could not be decoded", &m.audio_damaged),
            ("transcode_thumbnails", "Thumbnails drawn", &m.thumbnails),
            (
                "transcode_thumbnails_left_out",
                "Thumbnails left out because the encoders fell behind",
                &m.thumbnails_left_out,
            ),
            (
                "transcode_encoded_bytes",
                "Bytes that came out of the encoders, all rungs together",
                &m.encoded_bytes,
            ),
            (
                "transcode_queue_waits",
                "Times that a thread waited because the queue to the next one was full",
                &m.queue_waits,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        metrics
    }
}
