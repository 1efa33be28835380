//! How a program is called, and how it tells the time.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::Answer;

/// What each program takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Takes fewer rounds, and leaves out what is large.
    #[arg(long)]
    pub quick: bool,
    /// Where to write the figures as JSON, besides showing them.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Options {
    /// One of two, the second if there is no hurry.
    pub fn pick<T>(&self, quick: T, whole: T) -> T {
        if self.quick { quick } else { whole }
    }

    /// Shows an answer, and writes it where it was asked for.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    #[allow(clippy::print_stdout, reason = "it is what the programs are for")]
    pub fn tell(&self, answer: &Answer) -> Result<(), Box<dyn Error>> {
        println!("{answer}");
        if let Some(path) = &self.json {
            std::fs::write(path, serde_json::to_vec_pretty(answer)?)?;
        }
        Ok(())
    }
}

/// The time on the clock that all processes share, CLOCK_MONOTONIC.
#[must_use]
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    time.try_into().expect("the machine has been up for a positive time")
}

/// A time as figures tell it.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The sample that this share of all stays below; of none, 0.
#[must_use]
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

/// How much memory can be had, in MiB: what is free, and what the kernel would give up for it.
#[must_use]
pub fn available_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or_default() / 1024
}
