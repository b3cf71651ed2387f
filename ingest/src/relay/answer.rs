//! What an origin answers to a relay: lines of JSON.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

use serde::Deserialize;

/// Longest line: an error of a few hundred bytes.
const MAX_LINE_BYTES: usize = 4096;

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Everything that is shown before `resume_ms` is published.
    Published {
        /// The newest published segment.
        segment: u64,
        /// FLV milliseconds as the broadcaster sent them; 32 bits that wrap.
        resume_ms: u32,
    },
    /// The origin will not have this stream: the broadcaster's fault, final.
    Refused {
        /// The RTMP status code to pass on.
        code: String,
        /// Why, in words.
        reason: String,
    },
    /// The request body ended and all of it is published.
    End,
}

/// Cuts the answer's body into lines. Holds at most one line.
#[derive(Debug, Default)]
pub struct AnswerReader {
    line: Vec<u8>,
    answers: VecDeque<Answer>,
}

#[derive(Deserialize)]
struct Line {
    published: Option<u64>,
    resume_ms: Option<u32>,
    error: Option<String>,
    code: Option<String>,
    end: Option<bool>,
}

impl AnswerReader {
    /// Takes the next bytes; the error says what is wrong with the answer.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() > MAX_LINE_BYTES {
                return Err(format!("answer line exceeds {MAX_LINE_BYTES} bytes"));
            }
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                if !line.trim_ascii().is_empty() {
                    self.answers.push_back(parse(&line)?);
                }
            }
        }
        Ok(())
    }

    /// The next line that has come whole.
    pub fn poll(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }
}

fn parse(line: &[u8]) -> Result<Answer, String> {
    let shown = || line.trim_ascii().escape_ascii().take(100).map(char::from).collect::<String>();
    let fields: Line =
        serde_json::from_slice(line).map_err(|error| format!("answer line {}: {error}", shown()))?;
    match fields {
        Line { error: Some(reason), code, .. } => {
            Ok(Answer::Refused { code: code.unwrap_or_else(|| super::REJECTED.into()), reason })
        }
        Line { end: Some(true), .. } => Ok(Answer::End),
        Line { published: Some(segment), resume_ms: Some(resume_ms), .. } => {
            Ok(Answer::Published { segment, resume_ms })
        }
        _ => Err(format!("answer line {} says nothing", shown())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], step: usize) -> Result<Vec<Answer>, String> {
        let mut reader = AnswerReader::default();
        for piece in bytes.chunks(step) {
            reader.push(piece)?;
        }
        Ok(std::iter::from_fn(|| reader.poll()).collect())
    }

    #[test]
    fn lines_are_read_however_they_are_cut() {
        let text = b"{\"published\":7,\"resume_ms\":4294967295}\n\r\n{\"error\":\"no keyframe\",\
            \"code\":\"NetStream.Publish.Rejected\",\"more\":[1]}\n{\"end\":true}\n{\"end\"";
        for step in [1, 3, 1000] {
            let expected = [
                Answer::Published { segment: 7, resume_ms: u32::MAX },
                Answer::Refused { code: "NetStream.Publish.Rejected".into(), reason: "no keyframe".into() },
                Answer::End,
            ];
            assert_eq!(read(text, step).unwrap(), expected);
        }
    }

    #[test]
    fn hostile_lines_are_named() {
        for (text, problem) in [
            (&b"<html>\n"[..], "answer line <html>: expected value"),
            (b"{\"published\":1}\n", "says nothing"),
            (b"{\"published\":-1,\"resume_ms\":0}\n", "invalid value"),
            (&[b'x'; 5000], "answer line exceeds 4096 bytes"),
        ] {
            let error = read(text, 100).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
