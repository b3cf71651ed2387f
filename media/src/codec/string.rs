//! Codec strings of video (RFC 6381 and what the codecs' bindings add to it), from configuration records.
#![deny(clippy::disallowed_methods)]

use super::{VideoCodec, VideoConfig};

impl VideoConfig {
    /// Such as `avc1.64001f`, `hvc1.1.6.L93.b0` (ISO/IEC 14496-15, annex E), `av01.0.04M.08` (AV1 ISO media file format
    /// binding, 5) or `vp09.00.31.08`. Only the FourCC of a record that is cut short.
    pub fn codec_string(&self) -> String {
        let of = match self.codec {
            VideoCodec::Avc => avc,
            VideoCodec::Hevc => hevc,
            VideoCodec::Av1 => av1,
            VideoCodec::Vp9 => vp9,
        };
        of(&self.record).unwrap_or_else(|| self.codec.fourcc().to_owned())
    }
}

fn avc(record: &[u8]) -> Option<String> {
    let [profile, constraints, level] = *record.get(1..4)?.first_chunk()?;
    Some(format!("avc1.{profile:02x}{constraints:02x}{level:02x}"))
}

fn hevc(record: &[u8]) -> Option<String> {
    let general = record.get(1..13)?;
    let space = ["", "A", "B", "C"][usize::from(general[0] >> 6)];
    let profile = general[0] & 0x1F;
    let compatible = u32::from_be_bytes(*general.get(1..5)?.first_chunk()?).reverse_bits();
    let tier = if general[0] & 0x20 != 0 { 'H' } else { 'L' };
    let level = general[11];
    let constraints = &general[5..11];
    let last = constraints.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let constraints: String = constraints[..last].iter().map(|byte| format!(".{byte:x}")).collect();
    Some(format!("hvc1.{space}{profile}.{compatible:x}.{tier}{level}{constraints}"))
}

fn av1(record: &[u8]) -> Option<String> {
    let [profile_level, flags] = *record.get(1..3)?.first_chunk()?;
    let tier = if flags & 0x80 != 0 { 'H' } else { 'M' };
    let depth = match (flags & 0x40 != 0, flags & 0x20 != 0) {
        (false, _) => 8,
        (true, false) => 10,
        (true, true) => 12,
    };
    Some(format!("av01.{}.{:02}{tier}.{depth:02}", profile_level >> 5, profile_level & 0x1F))
}

fn vp9(record: &[u8]) -> Option<String> {
    let [profile, level, flags] = *record.first_chunk()?;
    Some(format!("vp09.{profile:02}.{level:02}.{:02}", flags >> 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn strings_are_exact() {
        let check = |codec, record: &'static [u8], expected: &str| {
            let record = Bytes::from_static(record);
            let config = VideoConfig { codec, record, width: 16, height: 16, sar: (1, 1), frame_rate: None };
            assert_eq!(config.codec_string(), expected);
        };
        check(VideoCodec::Avc, &[1, 0x64, 0, 0x1F], "avc1.64001f");
        // What x265 writes for Main and Main 10; the first is the example of annex E.
        let main = &[1, 1, 0x60, 0, 0, 0, 0xB0, 0, 0, 0, 0, 0, 93];
        check(VideoCodec::Hevc, main, "hvc1.1.6.L93.b0");
        check(VideoCodec::Hevc, &[1, 0x62, 0x20, 0, 0, 0, 0x90, 0, 1, 0, 0, 0, 120], "hvc1.A2.4.H120.90.0.1");
        check(VideoCodec::Hevc, &[1, 1, 0x60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 60], "hvc1.1.6.L60");
        check(VideoCodec::Av1, &[0x81, 0x04, 0x0C, 0], "av01.0.04M.08");
        check(VideoCodec::Av1, &[0x81, 0x0D, 0xCC, 0], "av01.0.13H.10");
        check(VideoCodec::Vp9, &[0, 31, 0x82, 1, 1, 1, 0, 0], "vp09.00.31.08");
        check(VideoCodec::Hevc, &[1, 1], "hvc1");
    }
}
