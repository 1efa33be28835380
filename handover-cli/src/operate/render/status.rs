//! What runs, as tables.

use std::fmt::{self, Write};

use console::{Style, StyledObject, measure_text_width, style};
use handover::control::{
    GenerationReport, GenerationState, ListenerReport, StatusReport, UpgradeReport,
};

use super::{Ago, Left, bytes, plain};

/// A status, in full lines.
pub(in crate::operate) struct Overview<'a>(pub(in crate::operate) &'a StatusReport);

impl fmt::Display for Overview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StatusReport { generations, listeners, upgrade, previous_executable } = self.0;
        let mut table = Table::new(["GENERATION", "PID", "VERSION", "STATE", "FOR", "MEMORY", ""]);
        table.rows.extend(generations.iter().map(generation));
        table.fmt(f)?;
        if !listeners.is_empty() {
            let mut table = Table::new(["LISTENER", "KIND", "ADDRESS", "QUEUE"]);
            table.rows.extend(listeners.iter().map(listener));
            write!(f, "\n{table}")?;
        }
        if upgrade.is_some() || previous_executable.is_some() {
            writeln!(f)?;
        }
        if let Some(upgrade) = upgrade {
            writeln!(f, "upgrade under way: {}", UnderWay(upgrade))?;
        }
        if let Some(path) = previous_executable {
            writeln!(f, "rollback goes back to: {}", plain(path))?;
        }
        Ok(())
    }
}

fn generation(generation: &GenerationReport) -> Vec<String> {
    let report = &generation.report;
    let silent = if generation.answers { "" } else { "(does not answer)" };
    vec![
        report.generation.to_string(),
        report.pid.to_string(),
        report.version.as_deref().map_or("-".to_owned(), plain),
        colour(generation.state, doing(generation)).to_string(),
        Ago(report.age_ms).to_string(),
        report.memory_bytes.map_or("-".to_owned(), bytes),
        style(silent).red().to_string(),
    ]
}

/// What a generation is doing, with what belongs to it: `draining (12 in flight, 21 s left)`.
fn doing(generation: &GenerationReport) -> String {
    let report = &generation.report;
    let (name, mut details) = match generation.state {
        GenerationState::Initialising => return "initialising".to_owned(),
        GenerationState::Serving => ("serving", Vec::new()),
        GenerationState::OnProbation => {
            let left = generation.probation_left_ms.map(|left| format!("{} left", Left(left)));
            ("on probation", left.into_iter().collect())
        }
        GenerationState::Standby => ("standby", Vec::new()),
        GenerationState::Draining => ("draining", Vec::new()),
        _ => ("unknown to this version", Vec::new()),
    };
    if report.in_flight > 0 || generation.state == GenerationState::Draining {
        details.push(format!("{} in flight", report.in_flight));
    }
    if let Some(left) = report.drain_left_ms {
        details.push(format!("{} left", Left(left)));
    }
    if details.is_empty() { name.to_owned() } else { format!("{name} ({})", details.join(", ")) }
}

fn colour(state: GenerationState, text: String) -> StyledObject<String> {
    let style = match state {
        GenerationState::Serving => Style::new().green(),
        GenerationState::OnProbation | GenerationState::Initialising => Style::new().yellow(),
        _ => Style::new().dim(),
    };
    style.apply_to(text)
}

fn listener(listener: &ListenerReport) -> Vec<String> {
    let ListenerReport { name, address, kind, queued, backlog } = listener;
    let queue = match (queued, backlog) {
        (Some(queued), Some(backlog)) => format!("{queued} of {backlog}"),
        (Some(queued), None) => queued.to_string(),
        (None, Some(backlog)) => format!("? of {backlog}"),
        (None, None) => "-".to_owned(),
    };
    vec![plain(name), plain(kind), plain(address), queue]
}

struct UnderWay<'a>(&'a UpgradeReport);

impl fmt::Display for UnderWay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UpgradeReport { generation, pid, phase, age_ms, asked_by } = self.0;
        write!(f, "generation {generation}")?;
        if let Some(pid) = pid {
            write!(f, " (pid {pid})")?;
        }
        let (phase, asked_by) = (plain(phase), plain(asked_by));
        write!(f, ", phase {phase}, for {}, asked by {asked_by}", Ago(*age_ms))
    }
}

/// Who does what: `generation 2 (pid 456): serving; generation 1 (pid 123): standby`.
pub(in crate::operate) fn in_one_line(status: &StatusReport) -> String {
    let of_one = |generation: &GenerationReport| {
        let report = &generation.report;
        format!("generation {} (pid {}): {}", report.generation, report.pid, doing(generation))
    };
    status.generations.iter().map(of_one).collect::<Vec<_>>().join("; ")
}

/// Columns as wide as their widest cell.
struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new<const N: usize>(head: [&str; N]) -> Self {
        let head = head.map(|title| style(title).bold().to_string()).into();
        Self { head, rows: Vec::new() }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| {
            rows().map(|row| measure_text_width(&row[column])).max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..self.head.len()).map(width).collect();
        for row in rows() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // What steers the terminal has no width, and format! would count it.
                let gap = width - measure_text_width(cell);
                write!(line, "{cell}{:gap$}  ", "")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use handover::control::Report;

    use super::*;

    fn of(number: u64, state: GenerationState) -> GenerationReport {
        let report = Report { generation: number, pid: number as u32 * 100, ..Report::default() };
        GenerationReport { state, report, probation_left_ms: None, answers: true }
    }

    #[test]
    fn the_tables_show_everything() {
        console::set_colors_enabled(false);
        let mut new = of(2, GenerationState::OnProbation);
        new.probation_left_ms = Some(6_500);
        new.report.version = Some("1.4.2".into());
        new.report.age_ms = 3_500;
        new.report.memory_bytes = Some(24 << 20);
        let mut old = of(1, GenerationState::Draining);
        old.report.in_flight = 12;
        old.report.drain_left_ms = Some(21_000);
        old.report.age_ms = 200_000;
        old.answers = false;
        let listener = ListenerReport {
            name: "http".into(),
            address: "0.0.0.0:8080".into(),
            kind: "tcp".into(),
            queued: Some(3),
            backlog: Some(4096),
        };
        let upgrade = UpgradeReport {
            generation: 3,
            pid: Some(300),
            phase: "initialise".into(),
            age_ms: 12_000,
            asked_by: "uid 0".into(),
        };
        let status = StatusReport {
            generations: vec![new, old],
            listeners: vec![listener],
            upgrade: Some(upgrade),
            previous_executable: Some("/srv/app/41/app".into()),
        };
        assert_eq!(
            Overview(&status).to_string(),
            "\
GENERATION  PID  VERSION  STATE                               FOR     MEMORY
2           200  1.4.2    on probation (7 s left)             3.5 s   24.00 MiB
1           100  -        draining (12 in flight, 21 s left)  3m 20s  -          (does not answer)

LISTENER  KIND  ADDRESS       QUEUE
http      tcp   0.0.0.0:8080  3 of 4096

upgrade under way: generation 3 (pid 300), phase initialise, for 12 s, asked by uid 0
rollback goes back to: /srv/app/41/app
"
        );
    }

    #[test]
    fn a_service_with_nothing_special_is_short() {
        console::set_colors_enabled(false);
        let status = StatusReport {
            generations: vec![of(1, GenerationState::Serving)],
            ..StatusReport::default()
        };
        assert_eq!(
            Overview(&status).to_string(),
            "GENERATION  PID  VERSION  STATE    FOR    MEMORY\n\
             1           100  -        serving  0.0 s  -\n"
        );
        assert_eq!(in_one_line(&status), "generation 1 (pid 100): serving");
    }
}
