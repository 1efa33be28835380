//! What was measured of whom.

use handover_bench::{Figure, Subject, Table, quantile};

use crate::NONE;

/// Titles and units of what is measured.
pub(crate) type Row = (&'static str, &'static str);

/// As a figure each, in the order in which they come.
#[derive(Debug, Default)]
pub(crate) struct Sheet(Vec<Figure>);

impl Sheet {
    pub(crate) fn add(&mut self, (title, unit): Row, name: &str, sample: f64) {
        let place = self.0.iter().position(|row| row.title == title).unwrap_or_else(|| {
            self.0.push(Figure::new("", title, unit));
            self.0.len() - 1
        });
        self.0[place].add(name, 0.0, sample);
    }

    /// What all but the first have more than that, if it was measured.
    pub(crate) fn added(&self, (title, unit): Row, name: &str, shown: &str) -> Option<Figure> {
        let row = self.0.iter().find(|row| row.title == title)?;
        let none = samples(row, NONE);
        let mut figure = Figure::new(name, shown, unit);
        for subject in row.subjects.iter().filter(|subject| subject.name != NONE) {
            for difference in differences(subject, none) {
                figure.add(&subject.name, 0.0, difference);
            }
        }
        Some(figure)
    }

    pub(crate) fn table(&self, title: &str) -> Table {
        let mut names: Vec<&str> = Vec::new();
        for subject in self.0.iter().flat_map(|row| &row.subjects) {
            if !names.contains(&&*subject.name) {
                names.push(&subject.name);
            }
        }
        let head =
            std::iter::once(String::new()).chain(names.iter().map(|name| (*name).to_owned()));
        let row = |row: &Figure| {
            let none = samples(row, NONE);
            let cell = |name: &&str| {
                let subject = row.subjects.iter().find(|subject| subject.name == **name);
                subject.map_or_else(|| "–".to_owned(), |subject| cell(subject, none))
            };
            let unit = if row.unit.is_empty() { String::new() } else { format!(", {}", row.unit) };
            let title = format!("{}{unit}", row.title);
            std::iter::once(title).chain(names.iter().map(cell)).collect()
        };
        Table {
            title: title.to_owned(),
            head: head.collect(),
            rows: self.0.iter().map(row).collect(),
        }
    }
}

fn samples<'a>(row: &'a Figure, name: &str) -> &'a [f64] {
    let subject = row.subjects.iter().find(|subject| subject.name == name);
    subject.and_then(|subject| subject.at(0.0)).map_or(&[], |point| &point.samples)
}

/// From those of the same rounds.
fn differences(subject: &Subject, none: &[f64]) -> Vec<f64> {
    let own = subject.at(0.0).map_or(&[][..], |point| &point.samples);
    own.iter().zip(none).map(|(own, none)| own - none).collect()
}

fn cell(subject: &Subject, none: &[f64]) -> String {
    let median = subject.at(0.0).map_or(0.0, |point| point.quantile(0.5));
    let differences = differences(subject, none);
    let more = match quantile(&differences, 0.5) {
        more if subject.name == NONE || differences.is_empty() || more == 0.0 => String::new(),
        more => format!(" ({more:+.*})", digits(more)),
    };
    format!("{median:.*}{more}", digits(median))
}

/// As many after the point as make sense.
fn digits(value: f64) -> usize {
    if value.fract() == 0.0 || value.abs() >= 100.0 { 0 } else { 1 }
}
