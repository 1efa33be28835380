//! Facts about the bytes: what they are in version 1 for ever, what is refused, and how.

use handover_proto::*;

/// Every message of version 1, one a line, with each optional field present and absent. To be
/// added to, never to be changed, once releases that speak version 1 are out there.
const TO_PREDECESSOR: &str = include_str!("golden/v1-to-predecessor.jsonl");
const TO_SUCCESSOR: &str = include_str!("golden/v1-to-successor.jsonl");

#[test]
fn version_one_is_written_and_read_as_ever() {
    fn rewritten<M: Message>(line: &str) -> String {
        let message: M = decode(line.as_bytes()).expect(line);
        String::from_utf8(encode(&message).expect(line)).expect(line)
    }

    for line in TO_PREDECESSOR.lines() {
        assert_eq!(rewritten::<ToPredecessor>(line), line);
    }
    for line in TO_SUCCESSOR.lines() {
        assert_eq!(rewritten::<ToSuccessor>(line), line);
    }
}

#[test]
fn the_golden_transcript_knows_every_message() {
    for (types, golden) in
        [(ToPredecessor::TYPES, TO_PREDECESSOR), (ToSuccessor::TYPES, TO_SUCCESSOR)]
    {
        for name in types {
            assert!(golden.contains(&format!("{{\"type\":\"{name}\"")), "\"{name}\" is missing");
        }
    }
}

#[test]
fn a_message_of_one_direction_is_unknown_in_the_other() {
    // These go both ways.
    let both = ["ack", "state", "stop"];
    for name in ToSuccessor::TYPES.iter().filter(|name| !both.contains(name)) {
        assert_eq!(decode::<ToPredecessor>(&bare(name)), Err(unknown(name)));
    }
    for name in ToPredecessor::TYPES.iter().filter(|name| !both.contains(name)) {
        assert_eq!(decode::<ToSuccessor>(&bare(name)), Err(unknown(name)));
    }
}

#[test]
fn unknown_fields_are_ignored() {
    let ready = br#"{"later":{"deep":[1,{"x":null}]},"type":"ready","more":"x"}"#;
    assert_eq!(decode(ready), Ok(ToPredecessor::Ready {}));

    let hello = br#"{"type":"hello","versions":{"oldest":1,"newest":2,"beta":3},"pid":7,
                     "software":"next","mood":"good"}"#;
    let versions = Versions { oldest: Version(1), newest: Version(2) };
    let software = "next".into();
    assert_eq!(decode(hello), Ok(ToPredecessor::Hello { versions, pid: 7, software }));
}

#[test]
fn what_is_absent_is_what_an_older_release_meant() {
    for (frame, message) in [
        (
            &br#"{"type":"unhealthy","reason":"500s"}"#[..],
            ToPredecessor::Unhealthy { reason: "500s".into(), requested: false },
        ),
        (br#"{"type":"stopped"}"#, ToPredecessor::Stopped { states: 0 }),
        (br#"{"type":"stopped","states":0}"#, ToPredecessor::Stopped { states: 0 }),
        (br#"{"type":"stop"}"#, ToPredecessor::Stop { drain_ms: None }),
        (br#"{"type":"stop","drain_ms":null}"#, ToPredecessor::Stop { drain_ms: None }),
    ] {
        assert_eq!(decode(frame), Ok(message));
    }
}

#[test]
fn a_report_may_say_more_than_is_understood() {
    let frame = br#"{"type":"report","number":3,"report":{"generation":1,"pid":7,"in_flight":2,
                     "age_ms":9,"mood":"good","threads":[1,2]}}"#;

    let report = Report { generation: 1, pid: 7, in_flight: 2, age_ms: 9, ..Report::default() };
    assert_eq!(decode(frame), Ok(ToSuccessor::Report { number: 3, report }));
}

#[test]
fn an_unknown_message_is_refused_by_its_name_whatever_else_it_has() {
    let frame = br#"{"steps":[1,2],"type":"dance"}"#;
    assert_eq!(decode::<ToSuccessor>(frame), Err(unknown("dance")));
}

#[test]
fn the_name_of_an_unknown_message_is_cut() {
    let frame = bare(&"x".repeat(1000));
    assert_eq!(decode::<ToSuccessor>(&frame), Err(unknown(&"x".repeat(64))));
}

#[test]
fn a_missing_or_wrong_field_is_told_with_the_name_of_the_message() {
    for frame in [
        &br#"{"type":"ack"}"#[..],
        br#"{"type":"ack","frame":-1}"#,
        br#"{"type":"ack","frame":4294967296}"#,
        br#"{"type":"ack","frame":"1"}"#,
        br#"{"type":"ack","frame":1.5}"#,
        br#"{"type":"ack","frame":1,"frame":1}"#,
    ] {
        let violation = decode::<ToPredecessor>(frame).expect_err("refused");

        let Violation::Malformed { message, .. } = violation else { panic!("{violation:?}") };
        assert_eq!(message.as_deref(), Some("ack"), "{}", String::from_utf8_lossy(frame));
    }
}

#[test]
fn what_is_not_an_object_with_one_type_is_not_a_message() {
    for frame in [
        &b""[..],
        b" ",
        b"null",
        b"7",
        b"\"ready\"",
        b"[]",
        br#"["ready"]"#,
        br#"[{"type":"ready"}]"#,
        b"{}",
        br#"{"type":null}"#,
        br#"{"type":["ready"]}"#,
        br#"{"type":"ready""#,
        br#"{"type":"ready"}x"#,
        br#"{"type":"ready"}{"type":"ready"}"#,
        br#"{"type":"ready","type":"ready"}"#,
        b"{\"type\":\"ready\xff\"}",
        b"\0",
    ] {
        let violation = decode::<ToPredecessor>(frame).expect_err("refused");

        assert!(
            matches!(violation, Violation::Malformed { message: None, .. }),
            "{violation:?} for {}",
            String::from_utf8_lossy(frame)
        );
    }
}

#[test]
fn space_around_a_message_does_not_matter() {
    assert_eq!(decode(b" \n{ \"type\" : \"ready\" } "), Ok(ToPredecessor::Ready {}));
}

#[test]
fn a_type_may_be_written_with_escapes() {
    assert_eq!(decode(br#"{"type":"r\u0065ady"}"#), Ok(ToPredecessor::Ready {}));
}

#[test]
fn nesting_without_end_is_refused_not_followed() {
    let frame = format!("{{\"type\":\"ready\",\"x\":{}", "[".repeat(60_000));

    let violation = decode::<ToPredecessor>(frame.as_bytes()).expect_err("refused");

    assert!(matches!(violation, Violation::Malformed { .. }), "{violation:?}");
}

#[test]
fn a_frame_may_be_as_long_as_the_limit_and_not_a_byte_longer() {
    let mut frame = br#"{"type":"ready"}"#.to_vec();
    frame.resize(MAX_FRAME_BYTES, b' ');
    assert_eq!(decode(&frame), Ok(ToPredecessor::Ready {}));

    frame.push(b' ');

    let too_long = Violation::TooLong { bytes: MAX_FRAME_BYTES + 1 };
    assert_eq!(decode::<ToPredecessor>(&frame), Err(too_long));
}

#[test]
fn a_message_that_fits_no_frame_is_not_written() {
    let long = ToPredecessor::Refuse { reason: "x".repeat(MAX_FRAME_BYTES) };

    assert!(matches!(encode(&long), Err(Violation::TooLong { .. })));
}

#[test]
fn a_name_has_one_to_255_bytes_and_no_control_character() {
    for good in ["a", " ", "[::1]:80", "é", &"x".repeat(MAX_NAME_BYTES)] {
        assert_eq!(Name::new(good).map(String::from), Ok(good.to_owned()));
    }
    assert_eq!(Name::new(""), Err(InvalidName::Empty));
    assert_eq!(Name::new("x".repeat(256)), Err(InvalidName::TooLong { bytes: 256 }));
    assert_eq!(Name::new("é".repeat(128)), Err(InvalidName::TooLong { bytes: 256 }));
    for bad in ["a\0", "\n", "a\u{7f}b", "\u{85}"] {
        assert_eq!(Name::new(bad), Err(InvalidName::Control), "{bad:?}");
    }
}

#[test]
fn a_name_on_the_wire_is_checked() {
    for name in ["", "a\\u0000", &"x".repeat(256)] {
        let frame = format!(r#"{{"type":"claim","names":["ok","{name}"]}}"#);

        let violation = decode::<ToPredecessor>(frame.as_bytes()).expect_err("refused");

        assert!(matches!(violation, Violation::Malformed { .. }), "{violation:?}");
    }
}

#[test]
fn a_preamble_is_written_and_read_as_ever() {
    let preamble = Preamble { token: "0123456789abcdef".into(), generation: 2 };

    let bytes = br#"{"generation":2,"token":"0123456789abcdef"}"#;
    assert_eq!(preamble.encode(), bytes);
    assert_eq!(Preamble::decode(bytes), Some(preamble.clone()));
    let later = br#"{"token":"0123456789abcdef","colour":"blue","generation":2}"#;
    assert_eq!(Preamble::decode(later), Some(preamble));
}

#[test]
fn other_bytes_are_no_preamble() {
    let long = Preamble { token: "x".repeat(Preamble::MAX_BYTES), generation: 2 }.encode();
    for bytes in [&b""[..], b"{}", br#"["token",2]"#, br#"{"token":"t"}"#, b"\xff\xff", &long] {
        assert_eq!(Preamble::decode(bytes), None, "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn each_violation_says_what_is_wrong() {
    for (violation, text) in [
        (Violation::TooLong { bytes: 70_000 }, "a frame of 70000 bytes, more than the 65536"),
        (unknown("dance"), "an unknown message \"dance\""),
        (
            Violation::OutOfOrder { message: "ready", during: "probation" },
            "the message \"ready\" does not belong in probation",
        ),
        (
            Violation::DescriptorCount { expected: 2, received: 1 },
            "1 descriptors came with a frame that says 2",
        ),
        (Violation::Truncated, "RLIMIT_NOFILE"),
        (Violation::TooMany { what: "claims" }, "too many claims"),
        (Violation::UnexpectedAck { frame: 3 }, "frame 3 was acked"),
        (Violation::Malformed { message: None, why: "x".into() }, "not a message: x"),
        (
            Violation::Malformed { message: Some("ack".into()), why: "x".into() },
            "a malformed message \"ack\": x",
        ),
    ] {
        assert!(violation.to_string().contains(text), "{violation}");
    }
}

fn bare(name: &str) -> Vec<u8> {
    format!("{{\"type\":\"{name}\"}}").into_bytes()
}

fn unknown(name: &str) -> Violation {
    Violation::UnknownMessage { name: name.into() }
}
