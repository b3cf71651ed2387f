//! AMF0 (Action Message Format, AMF 0 specification) from peers that are not to be trusted.
//!
//! The values are rml_rtmp's; the reading is not: its reader recurses as deep as the peer likes, which ends the whole
//! process when the stack is full.
#![deny(clippy::disallowed_methods)]

use std::collections::HashMap;

use rml_rtmp::rml_amf0::Amf0Value;

/// Objects within objects: encoders nest 2 or 3 deep.
const MAX_DEPTH: usize = 16;

/// Values in one message, members of objects included: `onMetaData` has 10 to 40.
const MAX_VALUES: usize = 4096;

/// Reads all values of a message body. The error says what is wrong at which byte.
pub fn read(data: &[u8]) -> Result<Vec<Amf0Value>, String> {
    let mut reader = Reader { data, at: 0, values: 0 };
    let mut values = Vec::new();
    while reader.at < data.len() {
        values.push(reader.value(0)?);
    }
    Ok(values)
}

/// The string that `data` begins with and the length of its encoding, if it begins with one.
pub fn leading_string(data: &[u8]) -> Option<(String, usize)> {
    let mut reader = Reader { data, at: 0, values: 0 };
    match reader.value(0) {
        Ok(Amf0Value::Utf8String(text)) => Some((text, reader.at)),
        _ => None,
    }
}

struct Reader<'a> {
    data: &'a [u8],
    at: usize,
    values: usize,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Amf0Value, String> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values at byte {}", self.at));
        }
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} at byte {}", self.at));
        }
        let marker = self.take(1)?[0];
        Ok(match marker {
            0x00 => Amf0Value::Number(self.number()?),
            0x01 => Amf0Value::Boolean(self.take(1)?[0] != 0),
            0x02 => Amf0Value::Utf8String(self.short_string()?),
            0x03 => self.object(depth)?,
            0x05 => Amf0Value::Null,
            0x06 | 0x0D => Amf0Value::Undefined,
            0x07 => {
                self.take(2)?;
                Amf0Value::Undefined
            }
            // An ECMA array: an announced length that means nothing, then an object.
            0x08 => {
                self.take(4)?;
                self.object(depth)?
            }
            0x0A => {
                let count = self.u32()?;
                let mut values = Vec::new();
                for _ in 0..count {
                    values.push(self.value(depth + 1)?);
                }
                Amf0Value::StrictArray(values)
            }
            // A date: milliseconds, and a time zone that is always zero.
            0x0B => {
                let milliseconds = self.number()?;
                self.take(2)?;
                Amf0Value::Number(milliseconds)
            }
            0x0C | 0x0F => {
                let len = self.u32()? as usize;
                Amf0Value::Utf8String(String::from_utf8_lossy(self.take(len)?).into_owned())
            }
            0x10 => {
                self.short_string()?;
                self.object(depth)?
            }
            marker => return Err(format!("unknown marker {marker:#04x} at byte {}", self.at - 1)),
        })
    }

    /// Members up to the end marker. Some encoders leave the marker out at the end of the message.
    fn object(&mut self, depth: usize) -> Result<Amf0Value, String> {
        let mut members = HashMap::new();
        while self.at < self.data.len() {
            let name = self.short_string()?;
            if name.is_empty() && self.data.get(self.at) == Some(&0x09) {
                self.at += 1;
                break;
            }
            members.insert(name, self.value(depth + 1)?);
        }
        Ok(Amf0Value::Object(members))
    }

    fn short_string(&mut self) -> Result<String, String> {
        let len = usize::from(u16::from_be_bytes([self.take(1)?[0], self.take(1)?[0]]));
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    fn number(&mut self) -> Result<f64, String> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(f64::from_be_bytes(bytes))
    }

    fn u32(&mut self) -> Result<u32, String> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(u32::from_be_bytes(bytes))
    }

    fn take(&mut self, len: usize) -> Result<&[u8], String> {
        let left = self.data.len() - self.at;
        if len > left {
            return Err(format!("{len} bytes wanted, {left} left at byte {}", self.at));
        }
        self.at += len;
        Ok(&self.data[self.at - len..self.at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rml_rtmp_writes_is_read() {
        let object = HashMap::from([
            ("app".to_string(), Amf0Value::Utf8String("live".into())),
            ("inner".to_string(), Amf0Value::Object(HashMap::from([("x".into(), Amf0Value::Boolean(true))]))),
        ]);
        let values = vec![
            Amf0Value::Utf8String("connect".into()),
            Amf0Value::Number(1.5),
            Amf0Value::Object(object),
            Amf0Value::StrictArray(vec![Amf0Value::Null, Amf0Value::Undefined]),
        ];
        let bytes = rml_rtmp::rml_amf0::serialize(&values).unwrap();
        assert_eq!(read(&bytes).unwrap(), values);
        assert_eq!(leading_string(&bytes), Some(("connect".into(), 10)));
        for len in 0..bytes.len() {
            // Cut anywhere: an error or fewer values, never a panic.
            let _ = read(&bytes[..len]);
        }
    }

    #[test]
    fn what_encoders_send_beside_is_read() {
        let number = |bytes: &[u8]| read(bytes).unwrap().remove(0);
        assert_eq!(number(&[0x0B, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Amf0Value::Number(2.0));
        assert_eq!(number(&[0x0C, 0, 0, 0, 1, b'x']), Amf0Value::Utf8String("x".into()));
        let member = HashMap::from([("a".to_string(), Amf0Value::Boolean(true))]);
        assert_eq!(number(&[0x08, 0, 0, 0, 9, 0, 1, b'a', 1, 1]), Amf0Value::Object(member.clone()));
        assert_eq!(number(&[0x10, 0, 1, b'C', 0, 1, b'a', 1, 1, 0, 0, 9]), Amf0Value::Object(member));
    }

    #[test]
    fn hostile_values_are_named() {
        let deep = [0x0A, 0, 0, 0, 1].repeat(100_000);
        let wide = [&[0x0A, 0xFF, 0xFF, 0xFF, 0xFF][..], &[5; 10_000]].concat();
        for (bytes, problem) in [
            (&deep[..], "nested deeper than 16"),
            (&wide, "more than 4096 values"),
            (&[0x02, 0xFF, 0xFF, 1], "65535 bytes wanted, 1 left at byte 3"),
            (&[0x11], "unknown marker 0x11 at byte 0"),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
