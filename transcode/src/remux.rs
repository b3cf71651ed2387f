//! Puts tracks of CMAF into one MP4, without touching a frame.

use std::io::Read;
use std::path::Path;

use ffmpeg_next::format::context::{Input, Output, StreamIo};
use ffmpeg_next::{Dictionary, Packet, Rational, Rescale, codec, encoder, format};
use media::time::Ticks;

/// One track: an init segment and the segments that belong to it, one after the other.
pub struct Track {
    /// What errors call it.
    pub name: String,
    /// Its bytes. An error of it ends the export.
    pub bytes: Box<dyn Read + Send>,
}

/// A pause that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Where it ends: what is shown from here on moves, 90 kHz.
    pub at: Ticks,
    /// How long it is, 90 kHz.
    pub length: Ticks,
}

/// What was written of a track.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Frames.
    pub frames: u64,
    /// Frames that were moved by a tick or a few, since the run before reached beyond the beginning of theirs.
    pub moved: u64,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A track cannot be read, or is not what libav takes for one.
    #[error("track {name}: {source}")]
    Track {
        /// Which.
        name: String,
        /// libav's word for it.
        source: ffmpeg_next::Error,
    },
    /// The file cannot be written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// libav's word for it.
        source: ffmpeg_next::Error,
    },
}

const VIDEO: Rational = Rational(1, 90_000);

struct Source {
    name: String,
    input: Input,
    time_base: Rational,
    next: Option<Packet>,
    newest_dts: Option<i64>,
    written: Written,
}

impl Source {
    fn open(index: usize, track: Track, output: &mut Output, path: &Path) -> Result<Self, Error> {
        let Track { name, bytes } = track;
        let wrong = |source| Error::Track { name: name.clone(), source };
        let io = StreamIo::from_read(bytes).map_err(wrong)?;
        let input = format::input_from_stream(io, Some("track.mp4"), None).map_err(wrong)?;
        let (parameters, time_base) = {
            let stream = input.streams().next().ok_or_else(|| wrong(ffmpeg_next::Error::StreamNotFound))?;
            (stream.parameters(), stream.time_base())
        };
        let unwritable = |source| Error::File { path: path.display().to_string(), source };
        let mut stream = output.add_stream(encoder::find(codec::Id::None)).map_err(unwritable)?;
        stream.set_parameters(parameters);
        stream.set_time_base(time_base);
        debug_assert_eq!(stream.index(), index);
        let mut source =
            Self { next: None, input, time_base, newest_dts: None, written: Written::default(), name };
        source.advance()?;
        Ok(source)
    }

    /// Reads the next packet of the first stream.
    fn advance(&mut self) -> Result<(), Error> {
        loop {
            let mut packet = Packet::empty();
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() == 0 => {
                    self.next = Some(packet);
                    return Ok(());
                }
                Ok(()) => {}
                Err(ffmpeg_next::Error::Eof) => {
                    self.next = None;
                    return Ok(());
                }
                Err(source) => return Err(Error::Track { name: self.name.clone(), source }),
            }
        }
    }

    /// Decoding time of what is next, 90 kHz.
    fn due(&self) -> Option<i64> {
        let packet = self.next.as_ref()?;
        Some(packet.dts().or(packet.pts()).unwrap_or(0).rescale(self.time_base, VIDEO))
    }
}

/// Writes `tracks` to `path`, in the order of their times, beginning at zero, without the pauses `cuts` (oldest first).
/// The index of the file comes first, so that it plays while it is fetched. Blocks; returns what was written of each.
pub fn remux(tracks: Vec<Track>, cuts: &[Cut], path: &Path) -> Result<Vec<Written>, Error> {
    crate::libav::route_to_tracing();
    let unwritable = |source| Error::File { path: path.display().to_string(), source };
    let mut output = format::output_as(path, "mp4").map_err(unwritable)?;
    let mut sources = Vec::new();
    for (index, track) in tracks.into_iter().enumerate() {
        sources.push(Source::open(index, track, &mut output, path)?);
    }
    let mut options = Dictionary::new();
    options.set("movflags", "+faststart");
    output.write_header_with(options).map_err(unwritable)?;
    let bases: Vec<_> = (0..sources.len())
        .map(|index| output.stream(index).map_or(VIDEO, |stream| stream.time_base()))
        .collect();
    let began = sources.iter().filter_map(Source::due).min().unwrap_or(0);
    while let Some((index, _)) = sources
        .iter()
        .enumerate()
        .filter_map(|(i, source)| Some((i, source.due()?)))
        .min_by_key(|(_, due)| *due)
    {
        let source = &mut sources[index];
        let Some(mut packet) = source.next.take() else { break };
        let shown = packet.pts().or(packet.dts()).unwrap_or(0).rescale(source.time_base, VIDEO);
        let left_out: Ticks = cuts.iter().take_while(|cut| cut.at <= shown).map(|cut| cut.length).sum();
        let shift = (began + left_out).rescale(VIDEO, source.time_base);
        packet.set_pts(packet.pts().map(|pts| pts - shift));
        packet.set_dts(packet.dts().map(|dts| dts - shift));
        packet.set_stream(index);
        packet.set_position(-1);
        packet.rescale_ts(source.time_base, bases[index]);
        if let (Some(dts), Some(newest)) = (packet.dts(), source.newest_dts)
            && dts <= newest
        {
            packet.set_dts(Some(newest + 1));
            packet.set_pts(packet.pts().map(|pts| pts.max(newest + 1)));
            source.written.moved += 1;
        }
        source.newest_dts = packet.dts().or(source.newest_dts);
        source.written.frames += 1;
        packet.write_interleaved(&mut output).map_err(unwritable)?;
        source.advance()?;
    }
    output.write_trailer().map_err(unwritable)?;
    Ok(sources.into_iter().map(|source| source.written).collect())
}
