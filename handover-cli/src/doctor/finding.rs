//! What was found.

use serde::{Serialize, Serializer};

use super::unit::Found;
use super::unit_file::{Assignment, Place};

/// Something in a unit that bites.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// What it is about: a setting, as systemd calls it.
    pub(super) about: &'static str,
    /// The setting as it is; what it is by default, if nothing is written.
    pub(super) setting: String,
    #[serde(flatten, serialize_with = "flat")]
    pub(super) place: Option<Place>,
    /// In one sentence.
    pub(super) why: String,
    /// The lines to write, in the unit or in a drop-in. There are none if it is no line that is
    /// missing.
    pub(super) write: Vec<String>,
}

/// How much it bites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Something is lost, or reported wrongly.
    Error,
    /// Something can be, or less is known than could be.
    Warning,
}

/// The findings of a unit, as they come.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Finding {
    pub(super) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// What to write instead.
    pub(super) fn write(&mut self, lines: &[impl AsRef<str>]) -> &mut Self {
        self.write.extend(lines.iter().map(|line| line.as_ref().to_owned()));
        self
    }
}

impl Findings {
    /// An assignment that loses something.
    pub(super) fn error(
        &mut self,
        about: &'static str,
        at: &Assignment,
        why: impl Into<String>,
    ) -> &mut Finding {
        self.at(Severity::Error, about, at, why)
    }

    /// An assignment that can lose something.
    pub(super) fn warning(
        &mut self,
        about: &'static str,
        at: &Assignment,
        why: impl Into<String>,
    ) -> &mut Finding {
        self.at(Severity::Warning, about, at, why)
    }

    pub(super) fn at(
        &mut self,
        severity: Severity,
        about: &'static str,
        at: &Assignment,
        why: impl Into<String>,
    ) -> &mut Finding {
        let setting = format!("{}={}", at.name, at.value);
        self.push(severity, about, setting, Some(at.place.clone()), why.into())
    }

    /// Something that is not written, and what holds then.
    pub(super) fn missing(
        &mut self,
        severity: Severity,
        about: &'static str,
        instead: &str,
        why: impl Into<String>,
    ) -> &mut Finding {
        let setting = match instead {
            "" => format!("no {about}="),
            instead => format!("no {about}= ({instead})"),
        };
        self.push(severity, about, setting, None, why.into())
    }

    /// Either, by whether it is written.
    pub(super) fn either<T>(
        &mut self,
        severity: Severity,
        about: &'static str,
        found: Option<&Found<'_, T>>,
        instead: &str,
        why: impl Into<String>,
    ) -> &mut Finding {
        match found {
            Some(found) => self.at(severity, about, found.at, why),
            None => self.missing(severity, about, instead, why),
        }
    }

    pub(super) fn push(
        &mut self,
        severity: Severity,
        about: &'static str,
        setting: String,
        place: Option<Place>,
        why: String,
    ) -> &mut Finding {
        self.0.push(Finding { severity, about, setting, place, why, write: Vec::new() });
        self.0.last_mut().expect("it was just put there")
    }

    /// The errors first.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| finding.severity);
        self.0
    }
}

fn flat<S: Serializer>(place: &Option<Place>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Flat<'a> {
        file: Option<&'a str>,
        line: Option<usize>,
    }
    let file = place.as_ref().map(|place| &*place.file);
    Flat { file, line: place.as_ref().map(|place| place.line) }.serialize(serializer)
}
