//! What ends the services of a test process that is killed itself.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::process::Pid;
use crate::spawn::while_nothing_spawns;

/// Keeps a list of process groups, as told on standard input, and kills those on it at its end.
///
/// The list is in blanks, so that a group can be cut out of it: `%%` takes all before, `#` all after.
/// Some shells know `--` after `kill -s KILL`, but not after `kill -KILL`.
const SCRIPT: &str = r#"
list=" "
while read -r what group; do
    case $what in
    add) list="$list$group " ;;
    remove) list="${list%% $group *} ${list#* $group }" ;;
    esac
done
for group in $list; do kill -s KILL -- "-$group"; done
"#;

/// Has the process group of a service killed, should this process end before [`leave`].
///
/// A runner kills a test that takes too long, and then nothing is dropped. The services are in
/// sessions of their own, out of the runner's reach, and would run for ever. One process watches
/// for all tests of this process: it is a child of the test, which a test that counts children
/// sees.
pub(crate) fn watch(group: Pid) {
    tell("add", group);
}

/// Takes a service off the list: its pid may pass to another process from here on.
pub(crate) fn leave(group: Pid) {
    tell("remove", group);
}

fn tell(what: &str, group: Pid) {
    static GUARD: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    let guard = GUARD.get_or_init(|| Mutex::new(start()));
    // A whole line was written, or the guard is gone.
    let mut guard = guard.lock().unwrap_or_else(PoisonError::into_inner);
    // Without a guard, if someone has killed it, tests run as well.
    let _ = guard.write_all(format!("{what} {group}\n").as_bytes());
}

fn start() -> ChildStdin {
    let mut command = Command::new("sh");
    // In a group of its own, so that it outlives the kill of the test's group. Silent, because a
    // runner waits for the end of the test's output.
    command.args(["-c", SCRIPT]).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let guard = while_nothing_spawns(|| command.stdin(Stdio::piped()).spawn());
    guard.expect("there is a shell").stdin.take().expect("stdin is a pipe")
}

#[cfg(test)]
mod tests {
    use std::env;

    use crate::process::{exited, is_alive, signal};
    use crate::{Launch, Signal, soon};

    /// The process that is killed must not be this one, so the test runs itself in another.
    #[test]
    fn services_end_with_a_test_process_that_is_killed() {
        const ROLE: &str = "TESTKIT_IS_KILLED";
        if env::var_os(ROLE).is_some() {
            drop(Launch::of("true").start());
            let service = Launch::of("sleep").arg("1000").start();
            drop(Launch::of("true").start());
            println!("started {}", service.pid());
            assert!(!exited(service.pid(), soon()), "ends only with this process");
            return;
        }
        let test = Launch::of(env::current_exe().unwrap())
            .args(["--exact", "guard::tests::services_end_with_a_test_process_that_is_killed"])
            .args(["--nocapture", "--test-threads=1"])
            .env(ROLE, "1")
            .start();
        let line = test.wait_line(|line| line.contains("started "), soon()).unwrap();
        let service = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(is_alive(service));

        signal(test.pid(), Signal::KILL);

        assert!(exited(service, soon()));
    }
}
