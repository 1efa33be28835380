//! Facts about the lines of the control socket: what they are for ever.

use handover_proto::control::{Answer, ErrorCode, Event, GenerationState, Request, TimedEvent};
use serde::{Serialize, de::DeserializeOwned};

/// Every request and answer, one a line, with each optional field present and absent. To be added to,
/// never to be changed, once there are releases: clients are older and newer than a service.
const REQUESTS: &str = include_str!("golden/control-requests.jsonl");
const ANSWERS: &str = include_str!("golden/control-answers.jsonl");

#[test]
fn lines_are_written_and_read_as_ever() {
    REQUESTS.lines().for_each(|line| assert_eq!(rewritten::<Request>(line), line));
    ANSWERS.lines().for_each(|line| assert_eq!(rewritten::<Answer>(line), line));
}

#[test]
fn every_request_is_there() {
    for name in Request::NAMES {
        assert!(REQUESTS.contains(&format!("{{\"request\":\"{name}\"")), "\"{name}\" is missing");
    }
}

#[test]
fn no_line_is_one_that_is_not_known() {
    for line in ANSWERS.lines() {
        match serde_json::from_str(line).expect(line) {
            Answer::Event(TimedEvent { event, .. }) => assert_ne!(event, Event::Other, "{line}"),
            Answer::Error { code, .. } => assert_ne!(code, ErrorCode::Other, "{line}"),
            Answer::Status(status) => {
                let mut states = status.generations.iter().map(|generation| generation.state);
                assert!(states.all(|state| state != GenerationState::Other), "{line}");
            }
            Answer::Verdict(_)
            | Answer::Done { .. }
            | Answer::Result { .. }
            | Answer::Channel { .. } => {}
        }
    }
}

#[test]
fn what_a_later_service_answers_can_be_read() {
    let event: Answer =
        serde_json::from_str(r#"{"type":"event","at_ms":1,"event":"moonrise","phase":"full"}"#)
            .expect("an event");
    assert_eq!(event, Answer::Event(TimedEvent { at_ms: 1, event: Event::Other }));
    for line in ANSWERS.lines() {
        let later = line.replacen('{', r#"{"moon":{"phase":["full"]},"#, 1);
        let (later, known): (Answer, Answer) = (
            serde_json::from_str(&later).expect("it is read"),
            serde_json::from_str(line).expect(line),
        );
        assert_eq!(later, known);
    }
}

fn rewritten<T: Serialize + DeserializeOwned>(line: &str) -> String {
    let value: T = serde_json::from_str(line).expect(line);
    serde_json::to_string(&value).expect(line)
}
