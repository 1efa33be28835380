//! How much of the machine the service has, over time.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::time::Instant;

use handover_testkit::Service;
use handover_testkit::process::{Pid, fds, rss_bytes};
use plotters::prelude::*;

/// What there was at a moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    seconds: f64,
    /// Of the process that serves.
    megabytes: f64,
    files: f64,
    processes: f64,
}

/// What is looked at, and how it is called.
type Row = (&'static str, fn(&Sample) -> f64);

#[derive(Debug)]
pub(crate) struct Samples {
    since: Instant,
    all: Vec<Sample>,
}

impl Default for Samples {
    fn default() -> Self {
        Self { since: Instant::now(), all: Vec::new() }
    }
}

impl Samples {
    /// Looks at the service, between two upgrades; once a second is enough.
    pub(crate) fn take(&mut self, service: &Service, serves: Pid) {
        let seconds = self.since.elapsed().as_secs_f64();
        if self.all.last().is_some_and(|last| seconds < last.seconds + 1.0) {
            return;
        }
        self.all.push(Sample {
            seconds,
            megabytes: rss_bytes(serves) as f64 / 1e6,
            files: fds(serves).len() as f64,
            processes: service.alive().len() as f64,
        });
    }

    /// Draws the three of them, one below the other.
    pub(crate) fn plot(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let root = SVGBackend::new(path, (900, 600)).into_drawing_area();
        root.fill(&WHITE)?;
        let minutes = self.all.last().map_or(1.0, |last| last.seconds / 60.0);
        let rows: [Row; 3] = [
            ("resident memory of the process that serves, MB", |sample| sample.megabytes),
            ("its open files", |sample| sample.files),
            ("processes of the service", |sample| sample.processes),
        ];
        for (area, (title, value)) in root.split_evenly((rows.len(), 1)).into_iter().zip(rows) {
            let most = self.all.iter().map(value).fold(1.0, f64::max);
            let mut chart = ChartBuilder::on(&area)
                .caption(title, ("sans-serif", 15))
                .margin(8)
                .x_label_area_size(24)
                .y_label_area_size(48)
                .build_cartesian_2d(0.0..minutes, 0.0..most * 1.1)?;
            chart.configure_mesh().x_desc("minutes").y_labels(5).light_line_style(WHITE).draw()?;
            let points = self.all.iter().map(|sample| (sample.seconds / 60.0, value(sample)));
            chart.draw_series(LineSeries::new(points, &BLUE))?;
        }
        root.present()?;
        Ok(())
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What begins and ends a run is not of the same life: the halves are compared.
        let (first, second) = self.all.split_at(self.all.len() / 2);
        let median = |half: &[Sample], value: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = half.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        let rows: [Row; 3] = [
            ("memory", |sample| sample.megabytes),
            ("open files", |sample| sample.files),
            ("processes", |sample| sample.processes),
        ];
        for (name, value) in rows {
            let (first, second) = (median(first, value), median(second, value));
            let most = self.all.iter().map(value).fold(0.0, f64::max);
            let unit = if name == "memory" { " MB" } else { "" };
            writeln!(
                f,
                "{name:<14}{first:>9.1}{unit} in the first half, {second:.1}{unit} in the second, {most:.1}{unit} at most"
            )?;
        }
        Ok(())
    }
}
