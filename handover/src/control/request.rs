//! Lines of clients: taken apart, and read.

use serde_json::{Map, Value};

use super::{MAX_REQUEST_BYTES, Request};

/// The most that an answer repeats of a line, or of what is wrong with it, in characters.
const MAX_QUOTED_CHARACTERS: usize = 200;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asked {
    /// Something of the library.
    Ours(Request),
    /// A command of the application's own, or of nobody's.
    Command {
        /// The value of `request`.
        name: String,
        /// The object, without `request`.
        arguments: Value,
    },
}

/// A line is no request.
#[derive(Debug)]
pub(super) struct BadRequest {
    /// What is wrong with it, and what would be right.
    pub(super) message: String,
}

/// Reads a line.
pub(super) fn read(line: &[u8]) -> Result<Asked, BadRequest> {
    let bad = |error: &dyn std::fmt::Display, example| Err(bad_request(line, error, example));
    let plain = r#"{"request":"status"}"#;
    let mut object = match serde_json::from_slice::<Map<String, Value>>(line) {
        Ok(object) => object,
        Err(error) => return bad(&error, plain),
    };
    let name = match object.remove("request") {
        Some(Value::String(name)) => name,
        Some(_) => return bad(&"the value of `request` is no text", plain),
        None => return bad(&"there is no field `request`", plain),
    };
    if !Request::NAMES.contains(&name.as_str()) {
        return Ok(Asked::Command { name, arguments: Value::Object(object) });
    }
    // From the text once more: the error then says where in it.
    match serde_json::from_slice(line) {
        Ok(request) => Ok(Asked::Ours(request)),
        Err(error) => bad(&error, example(&name)),
    }
}

/// What a line looks like that would have been taken.
fn example(name: &str) -> &'static str {
    match name {
        "upgrade" => r#"{"request":"upgrade","ready_timeout_ms":60000,"wait":true}"#,
        "stop" => r#"{"request":"stop","drain_timeout_ms":30000}"#,
        "rollback" => r#"{"request":"rollback","reason":"too many errors"}"#,
        "confirm" => r#"{"request":"confirm"}"#,
        "events" => r#"{"request":"events"}"#,
        "take-over" => r#"{"request":"take-over"}"#,
        _ => r#"{"request":"status"}"#,
    }
}

fn bad_request(line: &[u8], error: &dyn std::fmt::Display, example: &str) -> BadRequest {
    let line = quoted(&String::from_utf8_lossy(line));
    let error = quoted(&error.to_string());
    let message = format!("{error}, in: {line} -- write one object a line, such as {example}");
    BadRequest { message }
}

/// The beginning of a text, without anything that moves the cursor.
fn quoted(text: &str) -> String {
    let mut characters = text.chars();
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut quoted: String = characters.by_ref().take(MAX_QUOTED_CHARACTERS).map(shown).collect();
    if characters.next().is_some() {
        quoted.push('…');
    }
    quoted
}

/// What has come of a client and was not looked at yet: never more than one line may have.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    /// Up to where there is no end of a line.
    searched: usize,
}

/// There is no end of a line in as many bytes as a line may have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Input {
    /// How much may come.
    pub(super) fn room(&self) -> usize {
        MAX_REQUEST_BYTES.saturating_sub(self.bytes.len())
    }

    /// Adds what has come, not more than there is room for.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room());
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether there is something to look at before more is read. `ended` says that no more comes.
    pub(super) fn is_due(&self, ended: bool) -> bool {
        self.room() == 0
            || (ended && !self.bytes.is_empty())
            || self.bytes[self.searched..].contains(&b'\n')
    }

    /// Takes the next line, without its end; empty lines do not count. What comes last needs no end:
    /// a part of an object is none.
    pub(super) fn next_line(&mut self, ended: bool) -> Result<Option<Vec<u8>>, TooLong> {
        let blank = self.bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        if blank > 0 {
            self.bytes.drain(..blank);
            self.searched = self.searched.saturating_sub(blank);
        }
        let end = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
        let length = match end {
            Some(end) => self.searched + end + 1,
            None if self.room() == 0 => return Err(TooLong),
            None if ended => self.bytes.len(),
            None => {
                self.searched = self.bytes.len();
                0
            }
        };
        if self.bytes.is_empty() {
            // An idle client needs no memory.
            self.bytes = Vec::new();
        }
        if length == 0 {
            return Ok(None);
        }
        let rest = self.bytes.split_off(length);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        self.searched = 0;
        line.truncate(line.trim_ascii_end().len());
        Ok(Some(line))
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_however_they_come() {
        let text = b"one\r\n\n  two words \n\t\n\xff\nthree\n\n\nlast";
        let expected: [&[u8]; 5] = [b"one", b"two words", b"\xff", b"three", b"last"];
        for size in 1..=text.len() {
            let (mut input, mut lines) = (Input::default(), Vec::new());
            let mut parts = text.chunks(size).peekable();
            while let Some(part) = parts.next() {
                input.add(part);
                let ended = parts.peek().is_none();
                while input.is_due(ended) {
                    lines.extend(input.next_line(ended).unwrap());
                }
            }
            assert_eq!(lines, expected, "in parts of {size}");
        }
    }

    #[test]
    fn never_more_than_one_line_is_kept() {
        let mut input = Input::default();
        while input.room() > 0 {
            assert_eq!(input.next_line(false), Ok(None));
            let part = vec![b'x'; input.room().min(1000)];
            input.add(&part);
        }
        assert_eq!(input.next_line(false), Err(TooLong));
        assert!(input.bytes.capacity() <= 2 * MAX_REQUEST_BYTES);
        input.clear();
        assert_eq!(input.bytes.capacity(), 0);
    }

    #[test]
    fn blank_space_without_end_is_forgotten() {
        let mut input = Input::default();
        for _ in 0..1000 {
            input.add(&[b' '; 1000]);
            assert_eq!(input.next_line(false), Ok(None));
            assert_eq!(input.bytes.capacity(), 0);
        }
    }

    #[test]
    fn a_bad_line_is_quoted_in_part_and_without_control_characters() {
        let line = format!("\u{1b}[2J{}", "é".repeat(30_000));
        let BadRequest { message } = read(line.as_bytes()).unwrap_err();
        assert!(!message.contains('\u{1b}'), "{message}");
        assert!(message.contains("[2Jé") && message.contains('…'), "{message}");
        assert!(message.chars().count() < 3 * MAX_QUOTED_CHARACTERS, "{message}");
        // What serde says may repeat it as well.
        let line =
            format!("{{\"request\":\"stop\",\"drain_timeout_ms\":\"{}\"}}", "x".repeat(60_000));
        let BadRequest { message } = read(line.as_bytes()).unwrap_err();
        assert!(message.chars().count() < 3 * MAX_QUOTED_CHARACTERS, "{message}");
    }

    #[test]
    fn what_is_nested_too_deeply_is_no_request() {
        let line = "[".repeat(MAX_REQUEST_BYTES);
        assert!(read(line.as_bytes()).is_err());
        let line = format!("{{\"request\":\"x\",\"y\":{}", "[".repeat(10_000));
        assert!(read(line.as_bytes()).is_err());
    }

    #[test]
    fn every_example_is_a_request_of_its_name() {
        for name in Request::NAMES {
            let line = example(name);
            assert!(matches!(read(line.as_bytes()), Ok(Asked::Ours(_))), "{line}");
            assert!(line.contains(&format!("\"request\":\"{name}\"")), "{line}");
        }
    }
}
