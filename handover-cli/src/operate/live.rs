//! Showing how an upgrade proceeds while it does.

use std::io::Write;
use std::time::Duration;

use console::{Term, style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::render::Left;

/// How often the live line is drawn.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// The progress on stderr: one line that changes on a terminal, a line for each phase elsewhere,
/// and nothing where a program reads.
pub(super) enum Live {
    Line { bar: ProgressBar, probation: Option<Instant> },
    Lines,
    Silent,
}

impl Live {
    pub(super) fn start(is_silent: bool) -> Self {
        if is_silent {
            return Self::Silent;
        }
        if !is_screen(&Term::stderr()) {
            return Self::Lines;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{spinner} [{elapsed}] {wide_msg}");
        bar.set_style(style.expect("the template is valid"));
        Self::Line { bar, probation: None }
    }

    /// Shows what the service does.
    pub(super) fn phase(&mut self, phase: String) {
        match self {
            Self::Line { bar, probation } => {
                // While probation is counted down, an old generation's drain is no news.
                if probation.is_none() {
                    bar.set_message(phase);
                }
            }
            Self::Lines => say(&phase),
            Self::Silent => {}
        }
    }

    /// Counts down to the end of probation.
    pub(super) fn probation(&mut self, left: Option<Duration>) {
        if let Self::Line { probation, .. } = self {
            *probation = left.map(|left| Instant::now() + left);
            self.tick();
        }
    }

    /// Says something that stays to be read.
    pub(super) fn note(&self, note: &str) {
        match self {
            Self::Line { bar, .. } => bar.println(note),
            Self::Lines | Self::Silent => say(note),
        }
    }

    /// Draws the line, every [`TICK`].
    pub(super) fn tick(&mut self) {
        if let Self::Line { bar, probation } = self {
            if let Some(end) = probation {
                let left = end.saturating_duration_since(Instant::now());
                let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                let message = format!("committed, probation {} left", Left(left));
                if bar.message() != message {
                    return bar.set_message(message);
                }
            }
            bar.tick();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Self::Line { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}

/// Whether it is a terminal that can draw over what it shows.
pub(super) fn is_screen(term: &Term) -> bool {
    term.features().is_attended() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes a line to stderr, if there is one.
pub(super) fn say(text: &str) {
    // There is no other place to say that it cannot be said.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Says what is wrong.
pub(super) fn complain(complaint: &dyn std::fmt::Display) {
    say(&format!("{} {complaint}", style("handover:").for_stderr().red()));
}
