//! One line for each event.

use std::time::{Duration, SystemTime};

use handover::control::{Event, TimedEvent};
use serde_json::Value;

use super::{Left, bytes, count, plain};

/// The phase of an upgrade that the event begins, or what else it tells.
///
/// `None` for what this version does not know.
pub(in crate::operate) fn phase(event: &Event) -> Option<String> {
    Some(match event {
        Event::Serving { generation, pid } => format!("generation {generation} serves, pid {pid}"),
        Event::UpgradeBegun { generation, asked_by } => {
            format!("upgrade to generation {generation} begun, asked by {}", plain(asked_by))
        }
        Event::Checking { .. } => "checking the new executable".to_owned(),
        Event::Spawned { pid, .. } => format!("spawned pid {pid}"),
        Event::Hello { software, .. } => format!("hello from {}", plain(software)),
        Event::State { name, bytes: length, late, .. } => {
            let late = if *late { "late state" } else { "state" };
            format!("{late} {} {}", plain(name), bytes(*length))
        }
        Event::Initialising { descriptors, .. } => {
            format!("initialising with {}", count(*descriptors, "descriptor"))
        }
        Event::Progress { text, .. } => format!("initialising: {}", plain(text)),
        Event::Ready { .. } => "ready".to_owned(),
        Event::Committed { probation_ms: Some(millis @ 1..), .. } => {
            format!("committed, on probation for {}", Left(*millis))
        }
        Event::Committed { .. } => "committed".to_owned(),
        Event::Confirmed { .. } => "confirmed".to_owned(),
        Event::RolledBack { generation, reason } => {
            format!("generation {generation} rolled back: {}", plain(reason))
        }
        Event::UpgradeFailed { phase, reason, .. } => {
            format!("upgrade failed in phase {}: {}", plain(phase), plain(reason))
        }
        Event::Draining { generation, ending, in_flight, timeout_ms } => format!(
            "generation {generation} draining ({}): {in_flight} in flight, at most {}",
            plain(ending),
            Left(*timeout_ms)
        ),
        Event::Drained { generation, finished, cut } => {
            format!("generation {generation} drained: {finished} finished, {cut} cut")
        }
        Event::Gone { generation } => format!("generation {generation} has ended"),
        Event::Missed { events } => format!("{} missed", count(*events, "event")),
        _ => return None,
    })
}

/// The event with its time, and with whom it is about; `line` is how it was received.
pub(in crate::operate) fn stamped(TimedEvent { at_ms, event }: &TimedEvent, line: &str) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(*at_ms));
    // What is beyond the year 9999 cannot be written.
    const END: Duration = Duration::from_secs(253_402_300_800);
    let at = at.filter(|_| Duration::from_millis(*at_ms) < END).unwrap_or(SystemTime::UNIX_EPOCH);
    let at = humantime::format_rfc3339_millis(at);
    match (phase(event), successor(event)) {
        (Some(phase), Some(generation)) => format!("{at}  generation {generation}: {phase}"),
        (Some(phase), None) => format!("{at}  {phase}"),
        (None, _) => format!("{at}  {}", unknown(line)),
    }
}

/// Whom the event is about, if [`phase`] does not say it.
fn successor(event: &Event) -> Option<u64> {
    match event {
        Event::Checking { generation }
        | Event::Spawned { generation, .. }
        | Event::Hello { generation, .. }
        | Event::State { generation, .. }
        | Event::Initialising { generation, .. }
        | Event::Progress { generation, .. }
        | Event::Ready { generation }
        | Event::Committed { generation, .. }
        | Event::Confirmed { generation }
        | Event::UpgradeFailed { generation, .. } => Some(*generation),
        _ => None,
    }
}

/// An event of a later version.
fn unknown(line: &str) -> String {
    let line: Value = serde_json::from_str(line).unwrap_or_default();
    let name = line.get("event").and_then(Value::as_str).unwrap_or("an event");
    format!("{} (unknown to this version)", plain(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_a_line() {
        for (event, expected) in [
            (Event::Spawned { generation: 2, pid: 123 }, "spawned pid 123"),
            (
                Event::State {
                    generation: 2,
                    name: "sessions".into(),
                    bytes: 1_288_490_189,
                    late: false,
                },
                "state sessions 1.20 GiB",
            ),
            (
                Event::State { generation: 2, name: "count".into(), bytes: 8, late: true },
                "late state count 8 B",
            ),
            (
                Event::Initialising { generation: 2, descriptors: 1 },
                "initialising with 1 descriptor",
            ),
            (
                Event::Progress { generation: 2, text: "warming cache 40 %".into() },
                "initialising: warming cache 40 %",
            ),
            (Event::Committed { generation: 2, probation_ms: None }, "committed"),
            (Event::Committed { generation: 2, probation_ms: Some(0) }, "committed"),
            (
                Event::Committed { generation: 2, probation_ms: Some(10_000) },
                "committed, on probation for 10 s",
            ),
            (
                Event::Draining {
                    generation: 1,
                    ending: "handed-over".into(),
                    in_flight: 12,
                    timeout_ms: 30_000,
                },
                "generation 1 draining (handed-over): 12 in flight, at most 30 s",
            ),
            (Event::Missed { events: 2 }, "2 events missed"),
        ] {
            assert_eq!(phase(&event).as_deref(), Some(expected));
        }
        assert_eq!(phase(&Event::Other), None);
    }

    #[test]
    fn a_line_has_its_time_and_whom_it_is_about() {
        let event = TimedEvent { at_ms: 86_400_012, event: Event::Ready { generation: 2 } };
        assert_eq!(stamped(&event, ""), "1970-01-02T00:00:00.012Z  generation 2: ready");
        let event = TimedEvent { at_ms: 0, event: Event::Gone { generation: 1 } };
        assert_eq!(stamped(&event, ""), "1970-01-01T00:00:00.000Z  generation 1 has ended");
    }

    #[test]
    fn an_event_of_a_later_version_is_named() {
        let event = TimedEvent { at_ms: u64::MAX, event: Event::Other };
        let line = r#"{"type":"event","event":"moonrise"}"#;
        let expected = "1970-01-01T00:00:00.000Z  moonrise (unknown to this version)";
        assert_eq!(stamped(&event, line), expected);
    }
}
