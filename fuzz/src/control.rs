//! What is said over the control socket.

use std::fmt::Debug;

use handover_proto::control::{Answer, MAX_REQUEST_BYTES, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads each line as a request and as an answer.
///
/// What is read is written and read as the same, on one line, and a request has one of the names that
/// are known.
pub fn control(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        if line.len() > MAX_REQUEST_BYTES {
            continue;
        }
        if let Some(request) = written_again::<Request>(line) {
            let value = serde_json::to_value(request).expect("it was written before");
            let name = value["request"].as_str().expect("a name");
            assert!(Request::NAMES.contains(&name), "{name}");
        }
        if let Some(Answer::Error { message, .. }) = written_again::<Answer>(line) {
            assert!(message.len() <= line.len());
        }
    }
}

fn written_again<T: Serialize + DeserializeOwned + PartialEq + Debug>(line: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(line).ok()?;
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    assert!(!written.contains(&b'\n'), "{value:?}");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(again, value);
    Some(value)
}
