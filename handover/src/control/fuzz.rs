//! What clients of the control socket say, if they may say anything.

use super::MAX_REQUEST_BYTES;
use super::request::{Asked, BadRequest, Input, TooLong, read};

/// Cuts what a client sends into lines, and reads those. The first byte says in which parts it comes.
///
/// The lines are the same as when it comes at once; never more than one is kept; and what is refused is
/// told in a short line that cannot move the cursor of a terminal.
pub fn requests(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let in_parts = lines(data, usize::from(*first) + 1);
    assert_eq!(in_parts, lines(data, MAX_REQUEST_BYTES));
    let (lines, _) = in_parts;
    for line in &lines {
        match read(line) {
            Ok(Asked::Ours(request)) => {
                let written = serde_json::to_vec(&request).expect("what was read can be written");
                let again = read(&written).expect("what was written can be read");
                assert_eq!(again, Asked::Ours(request));
            }
            Ok(Asked::Command { name, arguments }) => {
                assert!(!super::Request::NAMES.contains(&name.as_str()));
                assert!(arguments.is_object());
            }
            Err(BadRequest { message }) => {
                assert!(message.chars().count() < 1000, "{message}");
                assert!(!message.chars().any(char::is_control), "{message:?}");
            }
        }
    }
}

/// The lines, as they are read of what comes in such parts, and whether one is too long.
fn lines(data: &[u8], part: usize) -> (Vec<Vec<u8>>, Result<(), TooLong>) {
    let (mut input, mut lines, mut rest) = (Input::default(), Vec::new(), data);
    loop {
        let (now, later) = rest.split_at(rest.len().min(part).min(input.room()));
        input.add(now);
        rest = later;
        let ended = rest.is_empty();
        while input.is_due(ended) {
            match input.next_line(ended) {
                Ok(Some(line)) => {
                    assert!(line.len() <= MAX_REQUEST_BYTES && !line.contains(&b'\n'));
                    lines.push(line);
                }
                Ok(None) => {}
                Err(error) => return (lines, Err(error)),
            }
        }
        if ended {
            return (lines, Ok(()));
        }
    }
}
