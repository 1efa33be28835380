//! What the kernel says of a process.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use handover_testkit::process::{Pid, fds};

/// What a process has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) resident_kib: u64,
    pub(crate) private_dirty_kib: u64,
    pub(crate) threads: usize,
    pub(crate) descriptors: usize,
}

/// What it has done since it began, in all threads that it has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub(crate) wakeups: u64,
    pub(crate) processor: Duration,
}

impl Facts {
    pub(crate) fn of(pid: Pid) -> Result<Self, Box<dyn Error>> {
        let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kibibytes = |name| number(&memory, name).ok_or("smaps_rollup has another shape");
        Ok(Self {
            resident_kib: kibibytes("Rss:")?,
            private_dirty_kib: kibibytes("Private_Dirty:")?,
            threads: threads(pid)?.len(),
            descriptors: fds(pid).len(),
        })
    }
}

impl Work {
    pub(crate) fn of(pid: Pid) -> Result<Self, Box<dyn Error>> {
        let mut work = Self::default();
        for thread in threads(pid)? {
            let status = fs::read_to_string(thread.join("status"))?;
            let switches = number(&status, "voluntary_ctxt_switches:");
            work.wakeups += switches.ok_or("status has another shape")?;
            let times = fs::read_to_string(thread.join("schedstat"))?;
            let on_processor = times.split(' ').next().unwrap_or_default();
            work.processor += Duration::from_nanos(on_processor.parse()?);
        }
        Ok(work)
    }
}

/// Whether all threads sleep.
pub(crate) fn is_asleep(pid: Pid) -> bool {
    let sleeps = |thread: &PathBuf| {
        let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
        // The name before it may contain anything.
        stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('S'))
    };
    threads(pid).is_ok_and(|threads| threads.iter().all(sleeps))
}

fn threads(pid: Pid) -> std::io::Result<Vec<PathBuf>> {
    fs::read_dir(format!("/proc/{pid}/task"))?.map(|entry| Ok(entry?.path())).collect()
}

/// The number in the line of that name.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
