//! Ending every process of a service, however it was started.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::process;
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitOptions, pidfd_send_signal, waitpid};

use crate::deadline::wait_readable;
use crate::process::{Pid, State, all, fds_if_readable, known, pidfd, stat};

/// How long a process may take to die of SIGKILL: only one that is blocked in the kernel does.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);

/// The marks by which the processes of one service are known.
///
/// A generation may be the child of its predecessor, its sibling, or an orphan, so ancestry tells
/// nothing. All of them are in the session that the first one led; one that left it (a daemon)
/// still holds the write end of a pipe that the service prints to.
#[derive(Debug)]
pub(crate) struct Marks {
    session: Pid,
    /// The session of this process.
    own_session: Pid,
    /// As `/proc/PID/fd` shows them: `pipe:[4711]`.
    pipes: [String; 2],
}

impl Marks {
    /// Notes the marks of the service whose first process is `session`, with the pipes to which it
    /// prints.
    pub(crate) fn new(session: Pid, pipes: [&dyn PipeEnd; 2]) -> Self {
        let own = stat(process::id()).expect("this process is there");
        Self { session, own_session: own.session, pipes: pipes.map(name_of) }
    }

    /// Returns the processes of the service that run, lowest pid first.
    pub(crate) fn alive(&self) -> Vec<Pid> {
        let mut pids = all();
        pids.retain(|&pid| self.is_alive_member(pid));
        pids
    }

    /// Kills every process of the service and reaps those that are children of this one.
    pub(crate) fn sweep(&self) {
        let deadline = Instant::now() + DEATH_TIMEOUT;
        let mut dead = BTreeSet::new();
        loop {
            let alive = self.alive();
            for &pid in &alive {
                if let Some(pidfd) = self.kill(pid)
                    && wait_readable(&[pidfd], deadline)
                {
                    dead.insert(pid);
                }
            }
            dead.extend(self.zombies());
            self.reap(&mut dead);
            // A process may have started another while it was about to be killed, so there is a
            // last look that finds nothing. A dying parent leaves its zombies to us.
            if alive.is_empty() || Instant::now() >= deadline {
                return;
            }
        }
    }

    fn is_alive_member(&self, pid: Pid) -> bool {
        let Some(stat) = stat(pid) else { return false };
        let in_session = stat.session == self.session;
        // A process in our own session is never a stray generation, but may be one that a test
        // has just forked and that has not closed our fds yet, as it does at exec.
        let in_ours = stat.session == self.own_session;
        stat.state != State::Zombie && (in_session || (!in_ours && self.writes_to_us(pid)))
    }

    fn writes_to_us(&self, pid: Pid) -> bool {
        // Unreadable are the fds of other users and of processes just gone.
        let Ok(fds) = fds_if_readable(pid) else { return false };
        let mut ours = fds.into_iter().filter(|(_, name)| self.pipes.contains(name));
        ours.any(|(number, _)| is_for_writing(pid, number))
    }

    /// Kills a process and returns its pidfd; `None` if it is gone.
    fn kill(&self, pid: Pid) -> Option<OwnedFd> {
        let pidfd = pidfd(pid)?;
        // The pid may have passed to another process before the pidfd was open, not after.
        if !self.is_alive_member(pid) {
            return None;
        }
        pidfd_send_signal(&pidfd, Signal::KILL).ok()?;
        Some(pidfd)
    }

    /// Returns the zombies in the session of which this process is the parent.
    fn zombies(&self) -> Vec<Pid> {
        let me = process::id();
        let mut pids = all();
        pids.retain(|&pid| {
            stat(pid).is_some_and(|stat| {
                stat.state == State::Zombie && stat.session == self.session && stat.parent == me
            })
        });
        pids
    }

    fn reap(&self, dead: &mut BTreeSet<Pid>) {
        // By pid, never for any child: the others belong to tests that run beside this one. The
        // pid of a zombie is not used again, and a process that is no child of ours is an error.
        dead.retain(|&pid| !matches!(waitpid(Some(known(pid)), WaitOptions::NOHANG), Ok(Some(_))));
    }
}

/// An end of a pipe of which the name can be asked.
pub(crate) trait PipeEnd {
    /// Returns the number of its inode.
    fn inode(&self) -> u64;
}

impl<F: AsFd> PipeEnd for F {
    fn inode(&self) -> u64 {
        rustix::fs::fstat(self).expect("fstat(2) of our own fd does not fail").st_ino
    }
}

fn name_of(pipe: &dyn PipeEnd) -> String {
    format!("pipe:[{}]", pipe.inode())
}

/// Both ends of a pipe have one name; the flags of the fd tell which it is.
fn is_for_writing(pid: Pid, number: i32) -> bool {
    const O_ACCMODE: u32 = 3;
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & O_ACCMODE != 0)
}
