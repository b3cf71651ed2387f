//! What an origin answers to a relay: lines of JSON.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

use serde::Deserialize;

/// Longest line: an error of a few hundred bytes.
const MAX_LINE_BYTES: usize = 4096;

/// Longest text that is passed on to the next origin.
pub const MAX_CONTINUE_BYTES: usize = 512;

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A segment is published, and all before it.
    Published {
        /// Its number.
        segment: u64,
        /// What is published by now.
        until: Until,
        /// What to tell the next origin: text of at most [`MAX_CONTINUE_BYTES`] printable characters.
        next: String,
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

/// How far an acknowledgement reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Everything that is shown before this time: FLV milliseconds as the broadcaster sent them; 32 bits that wrap.
    Shown(u32),
    /// So many tags from the beginning of this body: times behind them are of another clock.
    Tags(u64),
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
    passed: Option<u64>,
    r#continue: Option<String>,
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
        Line { published: Some(segment), resume_ms, passed, r#continue: Some(next), .. } => {
            if next.len() > MAX_CONTINUE_BYTES || !next.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                return Err(format!("answer line {} cannot be passed on", shown()));
            }
            let until = resume_ms.map(Until::Shown).or(passed.map(Until::Tags));
            let until = until.ok_or_else(|| format!("answer line {} says nothing", shown()))?;
            Ok(Answer::Published { segment, until, next })
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
        let text = b"{\"published\":7,\"resume_ms\":4294967295,\"continue\":\"1 2\"}\n\r\n\
            {\"published\":7,\"passed\":9,\"continue\":\"3\"}\n{\"error\":\"no keyframe\",\
            \"code\":\"NetStream.Publish.Rejected\",\"more\":[1]}\n{\"end\":true}\n{\"end\"";
        for step in [1, 3, 1000] {
            let expected = [
                Answer::Published { segment: 7, until: Until::Shown(u32::MAX), next: "1 2".into() },
                Answer::Published { segment: 7, until: Until::Tags(9), next: "3".into() },
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
            (b"{\"published\":1,\"continue\":\"1\"}\n", "says nothing"),
            (b"{\"published\":1,\"passed\":1,\"continue\":\"a\\nb\"}\n", "cannot be passed on"),
            (b"{\"published\":-1,\"resume_ms\":0}\n", "invalid value"),
            (&[b'x'; 5000], "answer line exceeds 4096 bytes"),
        ] {
            let error = read(text, 100).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
