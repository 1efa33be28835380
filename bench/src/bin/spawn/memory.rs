//! A heap of a known size, in pages of a known size.

#![allow(unsafe_code)]

use std::fmt;
use std::fs;
use std::io;
use std::ptr;

use clap::ValueEnum;
use handover_testkit::process::Pid;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

pub(crate) const GIB: u64 = 1 << 30;

const PAGE_BYTES: usize = 4096;

/// Those of x86-64 and, with small pages of 4 KiB, of arm64.
const HUGE_PAGE_BYTES: usize = 2 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pages {
    Small,
    Huge,
}

impl Pages {
    /// The word for it on a command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Huge => "huge",
        }
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "pages of 4 KiB",
            Self::Huge => "huge pages",
        })
    }
}

/// Takes memory, writes to each page of it, and keeps it to the end of the process.
pub(crate) fn fill(gib: u64, pages: Pages) -> io::Result<()> {
    if gib == 0 {
        return Ok(());
    }
    let bytes = usize::try_from(gib * GIB).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    let mapped = bytes + HUGE_PAGE_BYTES;
    // SAFETY: a new mapping, at an address of the kernel's choice, overlaps nothing.
    let mapping = unsafe { mmap_anonymous(ptr::null_mut(), mapped, protection, flags) }?;
    let mapping = mapping.cast::<u8>();
    // SAFETY: the mapping is longer than what is to be used by what may be left out.
    let start = unsafe { mapping.add(mapping.align_offset(HUGE_PAGE_BYTES)) };
    let advice = match pages {
        Pages::Small => Advice::LinuxNoHugepage,
        Pages::Huge => Advice::LinuxHugepage,
    };
    // SAFETY: the range is within the mapping; the advice changes no content.
    unsafe { madvise(start.cast(), bytes, advice) }?;
    for offset in (0..bytes).step_by(PAGE_BYTES) {
        // SAFETY: within the mapping, which is writable and never unmapped; nobody else uses it.
        unsafe { start.add(offset).write_volatile(1) };
    }
    Ok(())
}

/// How much of a heap of this size is in huge pages.
pub(crate) fn huge_share(pid: Pid, gib: u64) -> io::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let value = text.lines().find_map(|line| line.strip_prefix("AnonHugePages:"));
    let kibibytes = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok((kibibytes.unwrap_or_default() * 1024) as f64 / (gib * GIB) as f64)
}
