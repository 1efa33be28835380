//! What `systemctl status` shows of the service.

use std::time::Duration;

use handover_proto::control::Event;

/// The longest text; systemd itself takes 4096 bytes (`NOTIFY_BUFFER_MAX`).
const MAX_BYTES: usize = 1024;

/// One line about the service, kept up to date by what happens.
#[derive(Debug)]
pub(super) struct StatusText {
    generation: u64,
    /// What is true until something else happens.
    line: String,
    /// How many older generations drain.
    older: usize,
}

impl StatusText {
    pub(super) fn new(generation: u64) -> Self {
        Self { generation, line: format!("generation {generation} initialises"), older: 0 }
    }

    /// Takes what has happened into account.
    pub(super) fn follow(&mut self, event: &Event) {
        let own = self.generation;
        let upgrading =
            |to: u64, what: &str| format!("generation {own} serves; upgrade to {to}: {what}");
        self.line = match event {
            Event::Serving { generation, .. } if *generation == own => {
                // After a rollback the line says more.
                if self.line.contains("rolled back") {
                    return;
                }
                format!("generation {own} serves")
            }
            Event::UpgradeBegun { generation, .. } => upgrading(*generation, "begins"),
            Event::Checking { generation } => upgrading(*generation, "the executable is checked"),
            Event::Spawned { generation, .. } => upgrading(*generation, "starts"),
            Event::Initialising { generation, .. } => upgrading(*generation, "initialises"),
            Event::Progress { generation, text } => upgrading(*generation, text),
            Event::Ready { generation } => upgrading(*generation, "is ready"),
            Event::Committed { generation, probation_ms: Some(probation) } => {
                let probation = Duration::from_millis(*probation).as_secs_f64();
                format!(
                    "generation {generation} serves, on probation for {probation:.0} s; generation \
                     {own} stands by"
                )
            }
            Event::UpgradeFailed { generation, phase, reason } => format!(
                "generation {own} serves; upgrade to {generation} failed ({phase}): {reason}"
            ),
            Event::RolledBack { generation, reason } => {
                format!("generation {own} serves again; {generation} was rolled back: {reason}")
            }
            _ => return,
        };
    }

    /// So many older generations drain.
    pub(super) fn set_older(&mut self, older: usize) {
        self.older = older;
    }

    /// Initialisation goes on.
    pub(super) fn initialising(&mut self, what: &str) {
        self.line = format!("generation {} initialises: {what}", self.generation);
    }

    /// This process finishes what it has accepted.
    pub(super) fn stopping(&mut self, in_flight: u64, left: Duration) {
        let left = left.as_secs_f64();
        self.line = format!(
            "generation {} stops: {in_flight} in flight, for {left:.0} s at most",
            self.generation
        );
    }

    /// The line, as systemd takes it.
    pub(super) fn render(&self) -> String {
        let older = match self.older {
            0 => String::new(),
            1 => "; an older generation drains".to_owned(),
            older => format!("; {older} older generations drain"),
        };
        let mut line = one_line(&format!("{}{older}", self.line));
        let mut end = line.len().min(MAX_BYTES);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line
    }
}

/// Line feeds would end the field, and begin another.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_cannot_say_anything_else_to_systemd() {
        let mut status = StatusText::new(1);
        let reason = "no\nSTOPPING=1\n".repeat(1000);
        let (generation, phase) = (2, "initialise".into());
        status.follow(&Event::UpgradeFailed { generation, phase, reason });
        let line = status.render();
        assert!(
            line.starts_with("generation 1 serves; upgrade to 2 failed (initialise): no STOPP")
        );
        assert!(!line.contains('\n') && line.len() <= MAX_BYTES);
    }

    #[test]
    fn a_rollback_is_told_until_something_else_happens() {
        let mut status = StatusText::new(3);
        let (generation, reason) = (4, "it exited".into());
        status.follow(&Event::RolledBack { generation, reason });
        status.follow(&Event::Serving { generation: 3, pid: 1 });
        status.set_older(2);
        let expected = "generation 3 serves again; 4 was rolled back: it exited; 2 older \
                        generations drain";
        assert_eq!(status.render(), expected);
        status.follow(&Event::UpgradeBegun { generation: 4, asked_by: "x".into() });
        status.set_older(0);
        assert_eq!(status.render(), "generation 3 serves; upgrade to 4: begins");
    }
}
