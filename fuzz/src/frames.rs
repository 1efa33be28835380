//! The decoders of frames.

use handover_proto::moving::{
    MAX_CONNECTION_BYTES, MAX_CONNECTIONS_PER_FRAME, ToGiver, ToTaker, decode_for_taker,
};
use handover_proto::*;

/// Reads each line as a frame of every kind; and all of it as one, too.
///
/// What is read can be written in no more bytes than a frame may have, is then read as the same, and
/// keeps to the limits.
pub fn frames(data: &[u8]) {
    frame(data);
    data.split(|byte| *byte == b'\n').for_each(frame);
}

fn frame(frame: &[u8]) {
    if let Some(message) = written_again::<ToPredecessor>(frame) {
        to_predecessor(&message);
    }
    if let Some(message) = written_again::<ToSuccessor>(frame) {
        to_successor(&message);
    }
    if let Some(ToGiver::Takes { name, .. }) = written_again::<ToGiver>(frame) {
        is_bounded(&name);
    }
    written_again::<ToTaker>(frame);
    if let Some(preamble) = Preamble::decode(frame) {
        assert!(frame.len() <= Preamble::MAX_BYTES);
        let written = preamble.encode();
        // Escapes may make it longer, but nobody writes tokens that need some.
        if written.len() <= Preamble::MAX_BYTES {
            assert_eq!(Preamble::decode(&written), Some(preamble));
        }
    }
}

/// What the frame says, if it is of that direction.
pub(crate) fn written_again<M: Message + PartialEq + std::fmt::Debug>(frame: &[u8]) -> Option<M> {
    let message: M = match decode(frame) {
        Ok(message) => message,
        Err(violation) => {
            is_told(&violation);
            return None;
        }
    };
    assert!(frame.len() <= MAX_FRAME_BYTES);
    assert!(M::TYPES.contains(&message.name()));
    match encode(&message) {
        Ok(written) => {
            assert!(written.len() <= MAX_FRAME_BYTES);
            assert_eq!(decode(&written).as_ref(), Ok(&message));
        }
        // A field that was absent is written out: a frame that was full of items without it is too long.
        Err(violation) => assert!(matches!(violation, Violation::TooLong { .. }), "{violation}"),
    }
    Some(message)
}

/// A violation goes into logs and verdicts: it may repeat a part of the frame only.
fn is_told(violation: &Violation) {
    let text = violation.to_string();
    assert!(!text.is_empty());
    if let Violation::UnknownMessage { name } = violation {
        assert!(name.chars().count() <= 64);
    }
}

fn to_predecessor(message: &ToPredecessor) {
    match message {
        ToPredecessor::Claim { names } => names.iter().for_each(is_bounded),
        ToPredecessor::State { name, .. } => is_bounded(name),
        ToPredecessor::Hello { versions, .. } => {
            if let Some(version) = Versions::OURS.agree(*versions) {
                assert!(versions.oldest <= version && version <= versions.newest);
                assert!(Versions::OURS.oldest <= version && version <= VERSION);
            }
            assert_eq!(Versions::OURS.agree(*versions), versions.agree(Versions::OURS));
        }
        ToPredecessor::Ack { .. }
        | ToPredecessor::Progress { .. }
        | ToPredecessor::Ready {}
        | ToPredecessor::Refuse { .. }
        | ToPredecessor::Serving {}
        | ToPredecessor::Healthy {}
        | ToPredecessor::Unhealthy { .. }
        | ToPredecessor::Pong {}
        | ToPredecessor::Stopped { .. }
        | ToPredecessor::StatesComplete {}
        | ToPredecessor::Stop { .. }
        | ToPredecessor::Inquire { .. } => {}
    }
}

fn to_successor(message: &ToSuccessor) {
    match message {
        ToSuccessor::Descriptors { items, .. } => {
            items.iter().for_each(|item| is_bounded(&item.name));
        }
        ToSuccessor::State { name, .. } => is_bounded(name),
        ToSuccessor::Welcome { .. }
        | ToSuccessor::Commit { .. }
        | ToSuccessor::Upgrade {}
        | ToSuccessor::Stop { .. }
        | ToSuccessor::Ping {}
        | ToSuccessor::Confirmed {}
        | ToSuccessor::Announced {}
        | ToSuccessor::Ack { .. }
        | ToSuccessor::Report { .. }
        | ToSuccessor::Rollback { .. }
        | ToSuccessor::Resumed {}
        | ToSuccessor::Abort { .. } => {}
    }
}

fn is_bounded(name: &Name) {
    let text = name.as_str();
    assert!((1..=MAX_NAME_BYTES).contains(&text.len()));
    assert!(!text.chars().any(char::is_control));
}

/// Reads a frame of connections that change hands.
///
/// The bytes that come with it are as many as it says, and so are those of each connection that are to
/// be taken out of them; the limits are kept.
pub fn moving(data: &[u8]) {
    let Ok((message, payload)) = decode_for_taker(data) else { return };
    let ToTaker::Connections { connections, .. } = &message;
    assert!(connections.len() <= MAX_CONNECTIONS_PER_FRAME);
    let mut rest = payload;
    for moving in connections {
        is_bounded(&moving.name);
        assert!(moving.bytes() <= MAX_CONNECTION_BYTES);
        assert!((1..=2).contains(&moving.descriptors()));
        let (own, others) = rest.split_at(moving.inline_bytes());
        let (unread, state) = if moving.apart { (0, 0) } else { (moving.unread, moving.state) };
        assert_eq!(own.len(), unread as usize + state as usize);
        rest = others;
    }
    assert!(rest.is_empty());
    let mut written = match encode(&message) {
        Ok(written) => written,
        Err(violation) => return assert!(matches!(violation, Violation::TooLong { .. })),
    };
    if !payload.is_empty() {
        written.push(0);
        written.extend_from_slice(payload);
    }
    assert_eq!(decode_for_taker(&written), Ok((message.clone(), payload)));
}
