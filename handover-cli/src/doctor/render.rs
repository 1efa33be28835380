//! The findings, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::finding::{Finding, Severity};
use super::unit::Unit;
use crate::operate::plain;

/// Of a setting: long command lines are cut.
const MAX_SHOWN_CHARS: usize = 160;

/// What is left of a row of 100 behind the label.
const MAX_ROW_CHARS: usize = 91;

/// A paragraph for each finding, and what there is in all.
pub(super) fn people(unit: &Unit, systemd: Option<u32>, findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        line(&mut text, format_args!("{severity}: {}", shown(&finding.setting)));
        if let Some(place) = &finding.place {
            line(&mut text, format_args!("  at     {}:{}", plain(&place.file), place.line));
        }
        for (nth, row) in rows(&plain(&finding.why)).iter().enumerate() {
            let label = if nth == 0 { "why" } else { "" };
            line(&mut text, format_args!("  {label:5}  {row}"));
        }
        for (nth, written) in finding.write.iter().enumerate() {
            let label = if nth == 0 { "write" } else { "" };
            line(&mut text, format_args!("  {label:5}  {}", plain(written)));
        }
        line(&mut text, format_args!(""));
    }
    let release = systemd.map_or_else(String::new, |release| format!(", for systemd {release}"));
    line(&mut text, format_args!("{}: {}{release}", plain(&unit.name), sum(findings)));
    text
}

fn sum(findings: &[Finding]) -> String {
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    match (errors, findings.len() - errors) {
        (0, 0) => "nothing found".to_owned(),
        (errors, 0) => count(errors, "error"),
        (0, warnings) => count(warnings, "warning"),
        (errors, warnings) => {
            format!("{}, {}", count(errors, "error"), count(warnings, "warning"))
        }
    }
}

fn count(count: usize, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}

/// Breaks a text into rows for a terminal. What is to be copied is not broken.
fn rows(text: &str) -> Vec<String> {
    let mut rows = vec![String::new()];
    for word in text.split(' ') {
        let row = rows.last_mut().expect("there is one from the start");
        if row.is_empty() {
            row.push_str(word);
        } else if row.chars().count() + 1 + word.chars().count() <= MAX_ROW_CHARS {
            row.push(' ');
            row.push_str(word);
        } else {
            rows.push(word.to_owned());
        }
    }
    rows
}

fn shown(setting: &str) -> String {
    let mut shown = plain(setting);
    if let Some((cut, _)) = shown.char_indices().nth(MAX_SHOWN_CHARS) {
        shown.truncate(cut);
        shown.push('…');
    }
    shown
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes what is written to it");
}

/// One object.
pub(super) fn json(unit: &Unit, systemd: Option<u32>, findings: &[Finding]) -> String {
    #[derive(Serialize)]
    struct Judged<'a> {
        unit: &'a str,
        section: &'a str,
        systemd: Option<u32>,
        findings: &'a [Finding],
    }
    let section = unit.kind.section();
    object(&Judged { unit: &unit.name, section, systemd, findings })
}

/// One object as well.
pub(super) fn unreadable(unit: &str, error: &anyhow::Error) -> String {
    #[derive(Serialize)]
    struct Unreadable<'a> {
        unit: &'a str,
        error: String,
    }
    object(&Unreadable { unit, error: format!("{error:#}") })
}

fn object(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings, numbers and lists of them") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_as_long_as_they_may_be() {
        assert_eq!(rows("a b"), ["a b"]);
        let long = "x".repeat(MAX_ROW_CHARS - 1);
        assert_eq!(rows(&format!("{long} b")), [&*long, "b"]);
        assert_eq!(rows(&format!("a {long}{long} b")), ["a", &*format!("{long}{long}"), "b"]);
    }

    #[test]
    fn a_long_setting_is_cut() {
        let cut = shown(&"ä".repeat(MAX_SHOWN_CHARS + 1));
        assert_eq!(cut.chars().count(), MAX_SHOWN_CHARS + 1);
        assert!(cut.ends_with('…'));
    }
}
