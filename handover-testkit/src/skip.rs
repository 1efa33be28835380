//! Tests that cannot run here, and what decides it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::{env, io, thread};

/// Names the file to which skipped tests are appended.
const LOG_VARIABLE: &str = "HANDOVER_SKIP_LOG";

/// Leaves a test that cannot run here: notes it as [`skipped_test`] does, and returns.
///
/// ```
/// # use handover_testkit::{is_root, skip};
/// fn runs_as_another_user() {
///     if !is_root() {
///         skip!("runs_as_another_user", "only root may change the user");
///     }
///     // ...
/// }
/// ```
#[macro_export]
macro_rules! skip {
    ($name:expr, $reason:expr $(,)?) => {{
        $crate::skipped_test($name, $reason);
        return;
    }};
}

/// Notes that the running test is skipped, by the name that its thread or its runner gives it.
///
/// See [`skipped_test`].
pub fn skipped(reason: &str) {
    let thread = thread::current();
    match thread.name() {
        Some(name) if name != "main" => skipped_test(name, reason),
        // A runner with one process per test may run it on the main thread.
        _ => {
            let name = env::var("NEXTEST_TEST_NAME");
            skipped_test(name.as_deref().unwrap_or("a test"), reason);
        }
    }
}

/// Notes that the test `name` is skipped: prints `SKIPPED: name: reason` to standard error, even
/// while output is captured, and appends it to the file that `HANDOVER_SKIP_LOG` names.
///
/// # Panics
///
/// If that file cannot be written: a skip that goes unnoticed looks like a test that passed.
pub fn skipped_test(name: &str, reason: &str) {
    let line = format!("SKIPPED: {name}: {reason}\n");
    // Where standard error is closed there is nobody to tell.
    let _ = io::stderr().write_all(line.as_bytes());
    if let Some(log) = env::var_os(LOG_VARIABLE) {
        let file = OpenOptions::new().create(true).append(true).open(&log);
        // In one write, so that tests that run at once do not mix their lines.
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.unwrap_or_else(|error| panic!("{}: {error}", log.display()));
    }
}

/// Returns whether the test runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns whether `unshare` can make a network namespace: as root, or else within a user
/// namespace of its own (`unshare --map-root-user --net`).
pub fn can_make_network_namespace() -> bool {
    let as_user: &[&str] = if is_root() { &[] } else { &["--map-root-user"] };
    let mut command = Command::new("unshare");
    command.args(as_user).args(["--net", "true"]).stdin(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use crate::{Folder, Launch, soon};

    /// The environment belongs to all tests of a process, so the test runs itself again in another.
    #[test]
    fn a_skip_is_printed_and_logged() {
        const ROLE: &str = "TESTKIT_SKIPS";
        if std::env::var_os(ROLE).is_some() {
            skip!("some_test", "some reason");
        }
        let folder = Folder::create();
        let again = Launch::of(std::env::current_exe().unwrap())
            .args(["--exact", "skip::tests::a_skip_is_printed_and_logged"])
            .env(ROLE, "1")
            .env("HANDOVER_SKIP_LOG", folder.join("log"));
        let finished = again.start().finish(soon()).unwrap();
        assert!(finished.status.success());
        assert_eq!(finished.stderr(), "SKIPPED: some_test: some reason\n");
        assert_eq!(folder.read("log").as_deref(), Some("SKIPPED: some_test: some reason\n"));
    }
}
