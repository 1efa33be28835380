//! A unit as systemd understands it: what a setting is in the end.

use super::command_line::CommandLine;
use super::timespan::Span;
use super::unit_file::{Assignment, Ignored, UnitFile};

/// What there is to judge.
#[derive(Debug)]
pub(super) struct Unit {
    /// With its suffix.
    pub(super) name: String,
    pub(super) kind: Kind,
    file: UnitFile,
}

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Service,
    Socket,
}

impl Kind {
    /// Where its settings are.
    pub(super) fn section(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Socket => "Socket",
        }
    }
}

/// A setting that was found, and what it means.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a, T> {
    pub(super) value: T,
    pub(super) at: &'a Assignment,
}

impl Unit {
    /// `None` if it is of no kind that can be judged.
    pub(super) fn of(name: &str, file: UnitFile) -> Option<Self> {
        let kinds = [Kind::Service, Kind::Socket];
        let has = |kind: &Kind| file.sections.iter().any(|section| **section == *kind.section());
        let kind = kinds.into_iter().find(has)?;
        Some(Self { name: name.to_owned(), kind, file })
    }

    /// The name without the suffix.
    pub(super) fn stem(&self) -> &str {
        self.name.rsplit_once('.').map_or(&*self.name, |(stem, _)| stem)
    }

    pub(super) fn ignored(&self) -> &[Ignored] {
        &self.file.ignored
    }

    /// All assignments to these names, in order.
    fn assignments(&self, names: &[&str]) -> Vec<&Assignment> {
        let section = self.kind.section();
        let belongs = |a: &&Assignment| *a.section == *section && names.contains(&&*a.name);
        self.file.assignments.iter().filter(belongs).collect()
    }

    /// What the last assignment says that can be read; `None` if it was made empty after that.
    fn last<'a, T>(
        &'a self,
        names: &[&str],
        read: impl Fn(&'a str) -> Option<T>,
    ) -> Option<Found<'a, T>> {
        for at in self.assignments(names).into_iter().rev() {
            if at.value.is_empty() {
                return None;
            }
            if let Some(value) = read(&at.value) {
                return Some(Found { value, at });
            }
        }
        None
    }

    /// A setting that is one word, or any text.
    pub(super) fn text(&self, name: &'static str) -> Option<Found<'_, &str>> {
        self.last(&[name], Some)
    }

    /// A setting that is one of several words. Others are ignored.
    pub(super) fn choice(&self, name: &'static str, choices: &[&str]) -> Option<Found<'_, &str>> {
        self.last(&[name], |value| choices.contains(&value).then_some(value))
    }

    /// A setting that is on or off.
    pub(super) fn flag(&self, name: &'static str) -> Option<Found<'_, bool>> {
        self.last(&[name], boolean)
    }

    /// A setting that is a time; one of several names for it.
    pub(super) fn span(&self, names: &[&str]) -> Option<Found<'_, Span>> {
        self.last(names, Span::parse)
    }

    /// A setting that is a number.
    pub(super) fn number(&self, name: &'static str) -> Option<Found<'_, u32>> {
        self.last(&[name], |value| value.parse().ok())
    }

    /// A setting that adds up: what was assigned since it was last made empty.
    pub(super) fn list(&self, name: &'static str) -> Vec<&Assignment> {
        let mut list = Vec::new();
        for at in self.assignments(&[name]) {
            if at.value.is_empty() {
                list.clear();
            } else {
                list.push(at);
            }
        }
        list
    }

    /// The words of such a setting.
    pub(super) fn words(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.list(name).into_iter().flat_map(|at| at.value.split_whitespace())
    }

    /// The commands of such a setting.
    pub(super) fn commands(&self, name: &'static str) -> Vec<Found<'_, CommandLine>> {
        let commands = |at| {
            let at: &Assignment = at;
            CommandLine::read(&at.value).into_iter().map(move |value| Found { value, at })
        };
        self.list(name).into_iter().flat_map(commands).collect()
    }
}

/// As `parse_boolean` of systemd reads it.
pub(super) fn boolean(value: &str) -> Option<bool> {
    let is = |words: &[&str]| words.iter().any(|word| value.eq_ignore_ascii_case(word));
    if is(&["1", "yes", "y", "true", "t", "on"]) {
        Some(true)
    } else if is(&["0", "no", "n", "false", "f", "off"]) {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn unit(text: &str) -> Unit {
        let mut file = UnitFile::default();
        file.read("x.service", &format!("[Service]\n{text}"));
        Unit::of("x.service", file).unwrap()
    }

    #[test]
    fn the_last_that_can_be_read_counts() {
        let unit = unit("Type=simple\nType=notify\nType=bogus\nA=yes\nA=maybe\nA=OFF\n");
        let choice = unit.choice("Type", &["simple", "notify"]).unwrap();
        assert_eq!((choice.value, choice.at.place.line), ("notify", 3));
        assert_eq!(unit.flag("A").map(|flag| flag.value), Some(false));
    }

    #[test]
    fn an_empty_one_takes_back_what_was_before() {
        let unit =
            unit("B=1\nB=\nKillMode=none\nKillMode=\nTimeoutSec=1\nTimeoutStopSec=2\nB=2 3\nB=4");
        assert!(unit.choice("KillMode", &["none"]).is_none());
        assert_eq!(unit.words("B").collect::<Vec<_>>(), ["2", "3", "4"]);
        let span = unit.span(&["TimeoutSec", "TimeoutStopSec"]).unwrap().value;
        assert_eq!(span, Span::Of(Duration::from_secs(2)));
    }

    #[test]
    fn settings_of_other_sections_do_not_count() {
        let unit = unit("A=1\n[Install]\nA=2\n");
        assert_eq!(unit.text("A").unwrap().value, "1");
    }

    #[test]
    fn what_is_neither_a_service_nor_a_socket_is_not_judged() {
        let mut file = UnitFile::default();
        file.read("x.timer", "[Timer]\nOnBootSec=1\n");
        assert!(Unit::of("x.timer", file).is_none());
    }
}
