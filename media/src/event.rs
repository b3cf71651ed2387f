//! What happens at a moment of a stream beside pictures and sound: cues and text that broadcasters send.
#![deny(clippy::disallowed_methods)]

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::time::Ticks;

/// One event of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it happens on the stream's timeline, 90 kHz.
    pub at: Ticks,
    /// What happens.
    #[serde(flatten)]
    pub what: What,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A `splice_info_section` (ANSI/SCTE 35), whole and undamaged.
    Scte35(#[serde(with = "hex")] Bytes),
    /// A data message of a broadcaster.
    Data {
        /// Its name, such as `onTextData`.
        name: Box<str>,
        /// Its value as JSON.
        json: Box<str>,
    },
}

impl Event {
    /// The same for the same event, whoever packages it, and as good as always another for others: FNV-1a of all that it says.
    pub fn id(&self) -> u32 {
        let mut hash = 0x811C_9DC5u32;
        let mut add = |bytes: &[u8]| {
            for &byte in bytes {
                hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            }
        };
        // Times that differ by a rounding are the same.
        add(&(self.at.div_euclid(SAME)).to_be_bytes());
        match &self.what {
            What::Scte35(section) => add(section),
            What::Data { name, json } => {
                add(name.as_bytes());
                add(&[0]);
                add(json.as_bytes());
            }
        }
        hash
    }

    /// Whether both are one event that came twice: what it says is the same, and so is its time but for roundings.
    pub fn is_again(&self, other: &Event) -> bool {
        self.what == other.what && (self.at - other.at).abs() < SAME
    }
}

/// Two moments are the same that are nearer than that: 10 ms.
const SAME: Ticks = 900;

mod hex {
    use bytes::Bytes;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::hex_of(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let pair = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(pair).collect();
        bytes.map(Bytes::from).ok_or_else(|| Error::custom("not an even number of hexadecimal digits"))
    }
}

/// Upper-case hexadecimal digits.
pub fn hex_of(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}
