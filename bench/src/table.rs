//! Figures as Markdown, which reads well on a terminal too.

use std::fmt;

use crate::{Answer, Figure, Point, Table};

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for figure in &self.figures {
            writeln!(f, "{figure}")?;
        }
        for table in &self.tables {
            writeln!(f, "{table}")?;
        }
        for note in &self.notes {
            writeln!(f, "{note}\n")?;
        }
        Ok(())
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = self.places();
        let floors = self.floors();
        let mut head = vec![self.axis.clone().unwrap_or_default()];
        match &self.axis {
            Some(_) => head.extend(places.iter().map(|place| number(*place))),
            None => head.push(self.unit.clone()),
        }
        let rows = self.subjects.iter().map(|subject| {
            let cell = |place: &f64| match subject.at(*place) {
                Some(point) => {
                    let is_floor = Some(&subject.name) == self.floor.as_ref();
                    let floor = floors.get(&place.to_bits()).filter(|_| !is_floor);
                    cell(point, floor.copied())
                }
                None => "–".to_owned(),
            };
            let mut row = vec![subject.name.clone()];
            row.extend(places.iter().map(cell));
            row
        });
        let of = self.floor.as_ref().map_or_else(String::new, |floor| format!(", and × {floor}"));
        let title = format!("{}, {} (p10 to p90{of})", self.title, self.unit);
        write!(f, "{}", Table { title, head, rows: rows.collect() })
    }
}

fn cell(point: &Point, floor: Option<&[f64]>) -> String {
    let [low, median, high] = [0.1, 0.5, 0.9].map(|share| number(point.quantile(share)));
    let spread =
        if point.samples.len() > 1 { format!(" ({low} to {high})") } else { String::new() };
    let ratio = floor.and_then(|floor| point.ratio(floor));
    let ratio = ratio.map_or_else(String::new, |ratio| format!(", {}×", two_digits(ratio)));
    format!("{median}{spread}{ratio}")
}

fn two_digits(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.2}") } else { number(ratio) }
}

/// A number with three digits that count.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if value == 0.0 => "0".to_owned(),
        _ if value.fract() == 0.0 && size < 1000.0 => format!("{value}"),
        _ if size < 0.0995 => format!("{value:.4}"),
        _ if size < 0.9995 => format!("{value:.3}"),
        _ if size < 9.995 => format!("{value:.2}"),
        _ if size < 99.95 => format!("{value:.1}"),
        _ => grouped(value),
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        let left = digits.len() - place;
        if place > 0 && left.is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:\n", self.title)?;
        let width = |column: usize| {
            let cells = std::iter::once(&self.head).chain(&self.rows).map(|row| &row[column]);
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        row(f, &self.head, &widths)?;
        for width in &widths {
            write!(f, "|{}", "-".repeat(width + 2))?;
        }
        writeln!(f, "|")?;
        self.rows.iter().try_for_each(|cells| row(f, cells, &widths))
    }
}

fn row(f: &mut fmt::Formatter<'_>, cells: &[String], widths: &[usize]) -> fmt::Result {
    for (cell, width) in cells.iter().zip(widths) {
        write!(f, "| {cell:<width$} ")?;
    }
    writeln!(f, "|")
}
