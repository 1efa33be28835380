//! The state as it lies in memory, and memory that is mapped.

#![allow(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const PAGE_BYTES: usize = 4096;

/// The bytes that all senders send. They are in memory that can be mapped by all of them, so that they need not have
/// as much each.
#[derive(Debug)]
pub(crate) struct Source {
    file: File,
    bytes: Mapping,
}

impl Source {
    /// Makes as many, no two pages of which are alike.
    pub(crate) fn fill(bytes: u64) -> Result<Self, Box<dyn Error>> {
        let file = File::from(memfd_create("state", MemfdFlags::CLOEXEC)?);
        file.set_len(bytes)?;
        let mut all = Mapping::new(file.as_fd(), bytes, Access::Write)?;
        for (page, number) in all.chunks_exact_mut(PAGE_BYTES).zip(1_u64..) {
            let word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            page.chunks_exact_mut(8).for_each(|place| place.copy_from_slice(&word.to_le_bytes()));
        }
        Ok(Self { file, bytes: all })
    }

    /// Where other processes of this user find it, for as long as it is here.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// What [`touch`] returns for so many bytes of it.
    pub(crate) fn sum(&self, bytes: u64) -> u64 {
        touch(&self.bytes[..usize::try_from(bytes).expect("it is mapped")])
    }

    /// Maps it in another process, with all its pages.
    pub(crate) fn open(path: &str, bytes: u64) -> io::Result<Mapping> {
        Mapping::new(File::open(path)?.as_fd(), bytes, Access::ReadAllPages)
    }
}

/// Reads something of each page.
pub(crate) fn touch(bytes: &[u8]) -> u64 {
    let pages = bytes.chunks_exact(PAGE_BYTES).filter_map(|page| page.first_chunk());
    pages.fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

/// How memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// To be read, at once.
    ReadAllPages,
    /// To be read, each page when it is.
    Read,
    /// To be written.
    Write,
}

/// Mapped memory. Nobody writes to it but its owner.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is plain memory that belongs to this value alone.
unsafe impl Send for Mapping {}

impl Mapping {
    pub(crate) fn new(file: BorrowedFd<'_>, bytes: u64, access: Access) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let protection = match access {
            Access::ReadAllPages | Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        let all_pages = access == Access::ReadAllPages;
        let populate = if all_pages { MapFlags::POPULATE } else { MapFlags::empty() };
        let flags = MapFlags::SHARED | populate;
        // SAFETY: a new mapping, at an address of the kernel's choice, overlaps nothing.
        let start = unsafe { mmap(ptr::null_mut(), bytes, protection, flags, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self`; those who map the same only read.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above. Only what is mapped for writing is written to, or this process ends by a signal.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nothing borrows it any more. It cannot fail for a region that
        // exists.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
