//! A heap of a known size, and a fork of it.

#![allow(unsafe_code)]

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

const PAGE_BYTES: u64 = 4096;

/// Takes memory in pages of 4 KiB, touches each of them, and keeps them to the end of the process.
pub(crate) fn fill(bytes: u64) {
    if bytes == 0 {
        return;
    }
    let length = usize::try_from(bytes).expect("the bench is for 64 bits");
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice, overlaps nothing.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), length, protection, MapFlags::PRIVATE) };
    let start = start.expect("there is memory");
    // Huge pages would make forking five hundred times cheaper; few services have all their heap
    // in them.
    // SAFETY: the range is the mapping made above; the advice changes no content.
    unsafe { madvise(start, length, Advice::LinuxNoHugepage) }.expect("the advice is known");
    for offset in (0..bytes).step_by(PAGE_BYTES as usize) {
        // SAFETY: within the mapping, which is writable and never unmapped.
        let page = unsafe { start.cast::<u8>().add(offset as usize) };
        // SAFETY: as above; nothing else uses this memory.
        unsafe { page.write_volatile(1) };
    }
}

/// Has a command start by fork(2) and exec instead of posix_spawn(3), as everything does that has
/// to run code of its own in between.
pub(crate) fn by_fork(command: &mut Command) -> &mut Command {
    // SAFETY: the code between fork and exec does nothing.
    unsafe { command.pre_exec(|| Ok(())) }
}
