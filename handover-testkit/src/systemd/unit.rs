//! Units: what they are told, what they are at, what they have said.

use std::time::Instant;

use super::Systemd;
use crate::deadline::recheck;
use crate::process::Pid;

impl Systemd {
    /// Writes the unit `name`, such as `web.service` or `web.service.d/more.conf`, and has systemd
    /// read it.
    ///
    /// # Panics
    ///
    /// If it cannot be written or read. What is wrong within it is known when it starts.
    #[track_caller]
    pub fn put_unit(&self, name: &str, text: &str) {
        self.write(&format!("/etc/systemd/system/{name}"), text);
        let reloaded = self.systemctl(&["daemon-reload"]);
        assert!(reloaded.success(), "daemon-reload: {}\n{}", reloaded.stderr, self.state());
    }

    /// Starts a unit, and waits until it has started: a service with `Type=notify` is ready then.
    ///
    /// # Panics
    ///
    /// If it does not start; the panic shows its status and its journal. Where that is what is
    /// tested, use [`systemctl`](Self::systemctl).
    #[track_caller]
    pub fn start_unit(&self, unit: &str) {
        let started = self.systemctl(&["start", unit]);
        assert!(started.success(), "{unit} does not start\n{}", self.report(unit));
    }

    /// Returns a property of a unit, as `systemctl show` prints it; one line for each value that
    /// it has. Empty if it has none.
    ///
    /// # Panics
    ///
    /// If no unit of its kind has such a property. A unit that does not exist has properties, too.
    #[track_caller]
    pub fn show(&self, unit: &str, property: &str) -> String {
        let ran = self.systemctl(&["show", "--property", property, "--", unit]);
        let name = format!("{property}=");
        let mut values = ran.stdout.lines().filter_map(|line| line.strip_prefix(&*name)).peekable();
        assert!(
            ran.success() && values.peek().is_some(),
            "{unit} has no {property}: {}{}",
            ran.stdout,
            ran.stderr
        );
        values.collect::<Vec<_>>().join("\n")
    }

    /// Waits until a property of a unit has a value that `accepts`, and returns that.
    ///
    /// It asks again and again, because there is nothing to wait on from outside. So a value that
    /// passes quickly may be missed.
    ///
    /// # Panics
    ///
    /// If it has none by `deadline`; the panic shows the last value, the status and the journal of
    /// the unit.
    #[track_caller]
    pub fn wait_show(
        &self,
        unit: &str,
        property: &str,
        mut accepts: impl FnMut(&str) -> bool,
        deadline: Instant,
    ) -> String {
        let mut last = String::new();
        let accepted = recheck(deadline, || {
            last = self.show(unit, property);
            accepts(&last).then_some(())
        });
        assert!(accepted.is_some(), "{property} of {unit} is {last}\n{}", self.report(unit));
        last
    }

    /// Returns what the journal has of a unit, what systemd says about it included, a line each,
    /// as `[  123.456789] sh[42]: text`.
    ///
    /// A line that was printed just before may be missing yet: [`wait_journal`](Self::wait_journal)
    /// waits for one.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    #[track_caller]
    pub fn journal(&self, unit: &str) -> String {
        // Has the journal take in what was sent to it; that it cannot is no reason not to read.
        self.run(&["journalctl", "--sync"]);
        self.run(&JOURNAL.into_iter().chain([unit]).collect::<Vec<_>>()).stdout
    }

    /// Waits until the journal has a line of the unit that `matches`, and returns it.
    ///
    /// # Panics
    ///
    /// If it has none by `deadline`; the panic shows the status and the journal of the unit.
    #[track_caller]
    pub fn wait_journal(
        &self,
        unit: &str,
        mut matches: impl FnMut(&str) -> bool,
        deadline: Instant,
    ) -> String {
        let line = recheck(deadline, || {
            self.journal(unit).lines().find(|line| matches(line)).map(str::to_owned)
        });
        line.unwrap_or_else(|| panic!("no such line of {unit}\n{}", self.report(unit)))
    }

    /// Returns the pid inside of the main process of a unit; `None` if it has none.
    ///
    /// # Panics
    ///
    /// As [`show`](Self::show).
    #[track_caller]
    pub fn main_pid(&self, unit: &str) -> Option<Pid> {
        let pid = self.show(unit, "MainPID").parse().expect("a pid is a number");
        (pid != 0).then_some(pid)
    }

    /// Returns the pid on the host of the main process of a unit, for [`process`](crate::process).
    ///
    /// # Panics
    ///
    /// If it has none; the panic shows its status and its journal.
    #[track_caller]
    pub fn main(&self, unit: &str) -> Pid {
        match self.main_pid(unit).and_then(|inside| self.host_pid(inside)) {
            Some(pid) => pid,
            None => panic!("{unit} has no main process\n{}", self.report(unit)),
        }
    }

    /// Returns the status and the journal of a unit: what a test that fails wants to show.
    pub fn report(&self, unit: &str) -> String {
        let status = self.output(&["systemctl", "status", "--no-pager", "--full", "-n0", unit]);
        // As in `journal`; the output is empty.
        self.output(&["journalctl", "--sync"]);
        let journal = self.output(&JOURNAL.into_iter().chain([unit]).collect::<Vec<_>>());
        format!("{status}\n{journal}")
    }
}

/// Prints the journal of the unit that follows.
const JOURNAL: [&str; 5] =
    ["journalctl", "--no-pager", "--no-hostname", "--output=short-monotonic", "--unit"];
