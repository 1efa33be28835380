//! What the kernel knows about one process, and signals to it.
//!
//! Every function takes a pid, because the generations that a test looks at are rarely its own
//! children. The functions that read facts panic if the process is gone: a test that looks at a
//! process believes it to be there. [`state`] and [`exited`] are for when it may not be.
//! See [proc(5)](https://man7.org/linux/man-pages/man5/proc.5.html).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Instant;
use std::{fs, io};

use rustix::io::Errno;
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid};

pub use rustix::process::Signal;

use crate::deadline::{recheck, wait_readable};

/// The number of a process, as [`std::process::id`] returns it.
pub type Pid = u32;

/// What a process is doing: the third field of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// On a CPU, or waiting for one (`R`).
    Running,
    /// Waiting for an event (`S`), or idle in the kernel (`I`).
    Sleeping,
    /// Waiting for a disk or another thing that no signal interrupts (`D`).
    Blocked,
    /// Stopped by a signal or a tracer (`T`, `t`).
    Stopped,
    /// Exited, and not waited for by its parent (`Z`, `X`).
    Zombie,
}

/// Returns what the process is doing; `None` if there is no such process.
pub fn state(pid: Pid) -> Option<State> {
    stat(pid).map(|stat| stat.state)
}

/// Returns whether the process runs: it is there, and it is not a zombie.
pub fn is_alive(pid: Pid) -> bool {
    state(pid).is_some_and(|state| state != State::Zombie)
}

/// Returns the open fds of the process, and what each one names (`socket:[4711]`, a path, ...).
pub fn fds(pid: Pid) -> BTreeMap<i32, String> {
    match fds_if_readable(pid) {
        Ok(fds) => fds,
        Err(error) => panic!("the fds of process {pid} cannot be read: {error}"),
    }
}

/// Returns the highest open fd of the process: what creeps up where an upgrade leaks one.
pub fn highest_fd(pid: Pid) -> i32 {
    *fds(pid).keys().next_back().unwrap_or_else(|| panic!("process {pid} has no open fd"))
}

/// Returns the memory that the process has resident, in bytes.
pub fn rss_bytes(pid: Pid) -> u64 {
    let status = read(pid, "status");
    let status = String::from_utf8_lossy(&status);
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = resident.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or_else(|| panic!("process {pid} has no memory: it is a zombie")) * 1024
}

/// Returns the children of the process that exist, zombies among them, lowest pid first.
pub fn children(pid: Pid) -> Vec<Pid> {
    all().into_iter().filter(|&other| stat(other).is_some_and(|s| s.parent == pid)).collect()
}

/// Returns the children that have exited and that the process has not waited for.
pub fn zombies(pid: Pid) -> Vec<Pid> {
    let mut children = children(pid);
    children.retain(|&child| state(child) == Some(State::Zombie));
    children
}

/// Returns the pid of the parent of the process.
pub fn parent(pid: Pid) -> Pid {
    stat(pid).unwrap_or_else(|| panic!("there is no process {pid}")).parent
}

/// Returns the directory that the process works in.
pub fn cwd(pid: Pid) -> PathBuf {
    match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(path) => path,
        Err(error) => panic!("the directory of process {pid} cannot be read: {error}"),
    }
}

/// Returns the executable that the process runs; ends in ` (deleted)` if it was replaced.
pub fn executable(pid: Pid) -> PathBuf {
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(path) => path,
        Err(error) => panic!("the executable of process {pid} cannot be read: {error}"),
    }
}

/// Returns the arguments that the process was started with, its name first.
pub fn arguments(pid: Pid) -> Vec<OsString> {
    let text = read(pid, "cmdline");
    let text = text.strip_suffix(b"\0").unwrap_or(&text);
    text.split(|&byte| byte == 0).map(|arg| OsStr::from_bytes(arg).to_owned()).collect()
}

/// Returns the environment that the process was *started* with: what it set itself is not seen.
pub fn environ(pid: Pid) -> BTreeMap<OsString, OsString> {
    let text = read(pid, "environ");
    let settings = text.split(|&byte| byte == 0).filter_map(|setting| {
        let equals = setting.iter().position(|&byte| byte == b'=')?;
        let (name, value) = (setting[..equals].to_vec(), setting[equals + 1..].to_vec());
        Some((OsString::from_vec(name), OsString::from_vec(value)))
    });
    settings.collect()
}

/// Sends a signal.
///
/// # Panics
///
/// If the process is gone: a test whose signal reaches nobody does not test what it says. Where
/// that may happen, use [`try_signal`].
#[track_caller]
pub fn signal(pid: Pid, signal: Signal) {
    if let Err(error) = try_signal(pid, signal) {
        panic!("{signal:?} cannot be sent to process {pid}: {error}");
    }
}

/// Sends a signal to a process that may be gone.
///
/// # Errors
///
/// `ESRCH` if it is gone (a zombie is not, yet), `EPERM` if it belongs to another user.
pub fn try_signal(pid: Pid, signal: Signal) -> io::Result<()> {
    Ok(kill_process(known(pid), signal)?)
}

/// Waits until the process has exited; false if it has not by `deadline`.
///
/// A zombie has exited. A pid that is in nobody's use counts as exited, too.
#[must_use]
pub fn exited(pid: Pid, deadline: Instant) -> bool {
    pidfd(pid).is_none_or(|pidfd| wait_readable(&[pidfd], deadline))
}

/// Waits until the process has exited, and returns how; `None` if it has not by `deadline`.
///
/// Only for children of this process: the first generation of a service, and a later one that
/// was started as its sibling or whose parent has died (see
/// [`adopt_orphans`](crate::adopt_orphans)). The zombie is left, so that it can be asked again.
///
/// # Panics
///
/// If the process is not a child of this one.
#[track_caller]
pub fn exit_status(pid: Pid, deadline: Instant) -> Option<ExitStatus> {
    if !exited(pid, deadline) {
        return None;
    }
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = match waitid(WaitId::Pid(known(pid)), options) {
        Ok(status) => status?,
        Err(error) => panic!("process {pid} is not a child of this one: {error}"),
    };
    // The two halves of a wait(2) status: exit code above, signal below. siginfo has only one.
    let raw = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code << 8,
        (None, Some(signal)) => signal,
        (None, None) => unreachable!("only exits were asked for"),
    };
    Some(ExitStatus::from_raw(raw))
}

/// Waits until the process is stopped, as by SIGSTOP; false if it is not by `deadline`.
#[must_use]
pub fn wait_state_stopped(pid: Pid, deadline: Instant) -> bool {
    // Only its parent is told of a stop, and that may be another process: /proc tells everyone.
    recheck(deadline, || (state(pid) == Some(State::Stopped)).then_some(())).is_some()
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) state: State,
    pub(crate) parent: Pid,
    pub(crate) session: Pid,
}

/// Reads `/proc/PID/stat`; `None` if there is no such process.
pub(crate) fn stat(pid: Pid) -> Option<Stat> {
    // ESRCH, not ENOENT, if the process goes between open and read: either way it is gone.
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name in brackets may hold anything, brackets and spaces too.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = match fields.next()? {
        "S" | "I" => State::Sleeping,
        "D" => State::Blocked,
        "T" | "t" => State::Stopped,
        "Z" | "X" | "x" => State::Zombie,
        _ => State::Running,
    };
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, parent, session })
}

/// Returns the pids of all processes, lowest first.
pub(crate) fn all() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut pids: Vec<Pid> = names.filter_map(|name| name.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

pub(crate) fn fds_if_readable(pid: Pid) -> io::Result<BTreeMap<i32, String>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    // An fd that is closed between the listing and the look is not open.
    let open = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        let names = fs::read_link(entry.path()).ok()?;
        Some((number, names.to_string_lossy().into_owned()))
    });
    Ok(open.collect())
}

/// Opens a pidfd; `None` if there is no such process.
pub(crate) fn pidfd(pid: Pid) -> Option<OwnedFd> {
    match pidfd_open(known(pid), PidfdFlags::empty()) {
        Ok(pidfd) => Some(pidfd),
        Err(Errno::SRCH) => None,
        Err(error) => panic!("no pidfd of process {pid}: {error}"),
    }
}

pub(crate) fn known(pid: Pid) -> rustix::process::Pid {
    let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    raw.unwrap_or_else(|| panic!("{pid} cannot be the pid of a process"))
}

fn read(pid: Pid, file: &str) -> Vec<u8> {
    match fs::read(format!("/proc/{pid}/{file}")) {
        Ok(text) => text,
        Err(error) => panic!("/proc/{pid}/{file} cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process;

    use super::*;
    use crate::{Launch, soon};

    #[test]
    fn sees_its_own_fds_memory_and_directory() {
        let me = process::id();
        let file = File::open("/dev/null").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        assert_eq!(fds(me)[&number], "/dev/null");
        assert!(highest_fd(me) >= number);
        assert!(rss_bytes(me) > 100_000);
        assert_eq!(cwd(me), std::env::current_dir().unwrap());
        assert_eq!(executable(me), std::env::current_exe().unwrap());
        assert!(is_alive(me));
    }

    #[test]
    fn sees_environment_arguments_and_parent_of_another() {
        let service = Launch::of("sleep").arg("1000").env("COLOUR", "a=b").start();
        let pid = service.pid();
        assert_eq!(environ(pid)[OsStr::new("COLOUR")], "a=b");
        assert_eq!(arguments(pid), ["sleep", "1000"]);
        assert_eq!(parent(pid), process::id());
        assert!(children(process::id()).contains(&pid));
    }

    #[test]
    fn stop_and_continue_are_seen() {
        let service = Launch::of("sleep").arg("1000").start();
        signal(service.pid(), Signal::STOP);
        assert!(wait_state_stopped(service.pid(), soon()));
        signal(service.pid(), Signal::CONT);
        let woken =
            recheck(soon(), || (state(service.pid()) == Some(State::Sleeping)).then_some(()));
        assert!(woken.is_some());
    }

    #[test]
    fn exit_is_seen_and_leaves_a_zombie_with_its_status() {
        let service = Launch::of("sh").args(["-c", "exit 7"]).start();
        let pid = service.pid();
        assert!(exited(pid, soon()));
        assert_eq!(exit_status(pid, soon()).unwrap().code(), Some(7));
        assert_eq!(exit_status(pid, soon()).unwrap().code(), Some(7), "asking again is fine");
        assert_eq!(state(pid), Some(State::Zombie));
        assert!(zombies(process::id()).contains(&pid));
        assert!(!is_alive(pid));
    }

    #[test]
    fn death_by_signal_is_told_from_an_exit() {
        let service = Launch::of("sleep").arg("1000").start();
        assert!(!exited(service.pid(), Instant::now()));
        assert_eq!(exit_status(service.pid(), Instant::now()), None);
        signal(service.pid(), Signal::KILL);
        assert_eq!(exit_status(service.pid(), soon()).unwrap().signal(), Some(9));
    }

    #[test]
    fn a_pid_in_no_use_has_exited() {
        let service = Launch::of("true").start();
        let pid = service.pid();
        drop(service);
        assert!(exited(pid, Instant::now()));
        assert_eq!(state(pid), None);
        assert!(try_signal(pid, Signal::TERM).is_err());
    }
}
