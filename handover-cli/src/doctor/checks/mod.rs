//! What is looked for in a unit.

mod main_process;
mod program;
mod reload;
mod sandbox;
mod socket;
mod stop;
mod store;
mod values;
mod visible;

use std::time::Duration;

use super::command_line::CommandLine;
use super::finding::{Finding, Findings};
use super::timespan::Span;
use super::unit::{Kind, Unit};

/// What the unit has to be good for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) drain_timeout: Duration,
    pub(super) ready_timeout: Duration,
    /// How many fds are to be kept, at least.
    pub(super) fd_store: Option<u32>,
    pub(super) watchdog: bool,
    pub(super) control: Option<String>,
    /// The major version; without one nothing depends on it.
    pub(super) systemd: Option<u32>,
    /// What holds if the unit does not say how long a start may take.
    pub(super) start_timeout: Span,
    /// And a stop.
    pub(super) stop_timeout: Span,
    /// Where this command is.
    pub(super) command: Option<String>,
}

impl Asked {
    /// Whether systemd is known to lack what came with a release.
    fn is_before(&self, release: u32) -> bool {
        self.systemd.is_some_and(|systemd| systemd < release)
    }

    /// The control socket: that which was named, or that which a reload speaks to.
    fn control(&self, unit: &Unit) -> Option<String> {
        let named = self.control.clone();
        named.or_else(|| upgrade(unit)?.option("--socket").map(str::to_owned))
    }

    /// A reload that has a verdict, in place of any other, and the directory that it needs.
    fn upgrade_lines(&self, unit: &Unit) -> Vec<String> {
        let written = upgrade(unit).filter(|command| command.program().starts_with('/'));
        let written = written.map(|command| command.program().to_owned());
        let is_seen = |path: &String| !visible::is_hidden(unit, path);
        let command = written.or_else(|| self.command.clone()).filter(is_seen);
        let command = command.as_deref().unwrap_or("/usr/local/bin/handover");
        let known = self.control(unit);
        let control = known.clone().unwrap_or_else(|| format!("/run/{}/control", unit.stem()));
        let mut lines = vec!["ExecReload=".to_owned()];
        lines.push(format!("ExecReload={command} upgrade --socket {control}"));
        // Of one that is known it is judged apart whether it has a place.
        if known.is_none() && unit.list("RuntimeDirectory").is_empty() {
            lines.extend(visible::runtime_lines(unit.stem()));
        }
        lines
    }
}

/// The reload by this command, if there is one.
fn upgrade(unit: &Unit) -> Option<CommandLine> {
    let commands = unit.commands("ExecReload").into_iter().map(|command| command.value);
    commands.into_iter().find(|command| command.name() == "handover")
}

/// Looks at everything.
pub(super) fn check(unit: &Unit, asked: &Asked) -> Vec<Finding> {
    let mut findings = Findings::default();
    match unit.kind {
        Kind::Service => {
            program::check(unit, &mut findings);
            main_process::check(unit, asked, &mut findings);
            reload::check(unit, asked, &mut findings);
            stop::check(unit, asked, &mut findings);
            store::check(unit, asked, &mut findings);
            visible::check(unit, asked, &mut findings);
            sandbox::check(unit, &mut findings);
        }
        Kind::Socket => socket::check(unit, &mut findings),
    }
    values::check(unit, &mut findings);
    findings.finish()
}

/// Adding to a time so that it is longer than this one, in whole seconds.
fn longer_than(time: Duration, margin: Duration) -> String {
    let longer = time.saturating_add(margin);
    let seconds = longer.as_secs() + u64::from(longer.subsec_nanos() > 0);
    format!("{seconds}s")
}
