//! Anonymous memory that is handed over: written in place, sealed, mapped (memfd_create(2)).

#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// Memory that is being written.
#[derive(Debug)]
pub(crate) struct Memfd(std::fs::File);

impl Memfd {
    /// Makes an empty one; the name is for people who look into `/proc`.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        // The kernel takes 249 bytes and no NUL.
        let label: String = name.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
        let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels from 6.3 want to be told whether the memory may be executed; older ones refuse
        // the flag.
        let fd = rustix::fs::memfd_create(&*label, base | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| rustix::fs::memfd_create(&*label, base))?;
        Ok(Self(std::fs::File::from(fd)))
    }

    /// Sets the length; new bytes are zero.
    pub(crate) fn resize(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    /// Writes at a position.
    pub(crate) fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
        self.0.write_at(bytes, position)
    }

    /// Maps the memory for writing, over its present length.
    pub(crate) fn map_mut(&self) -> io::Result<MappingMut> {
        Region::map(self.0.as_fd(), ProtFlags::READ | ProtFlags::WRITE).map(MappingMut)
    }

    /// Makes it unchangeable, for everyone and for good.
    ///
    /// # Errors
    ///
    /// `EBUSY` while a writable mapping exists.
    pub(crate) fn seal(self) -> io::Result<OwnedFd> {
        rustix::fs::fcntl_add_seals(&self.0, SEALS)?;
        Ok(self.0.into())
    }
}

/// Sealed memory that holds these bytes.
pub(crate) fn of_bytes(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let memory = Memfd::new(name)?;
    let mut position = 0;
    while position < bytes.len() {
        position += memory.write_at(&bytes[position..], position as u64)?;
    }
    memory.seal()
}

/// How long it is.
pub(crate) fn length(fd: BorrowedFd<'_>) -> io::Result<u64> {
    u64::try_from(rustix::fs::fstat(fd)?.st_size).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Maps memory that came from another process, if it is sealed and as long as it was said to be.
///
/// # Errors
///
/// `InvalidData` if it could still change, or has another length.
pub(crate) fn map_sealed(fd: BorrowedFd<'_>, bytes: u64) -> io::Result<Mapping> {
    let seals = rustix::fs::fcntl_get_seals(fd)?;
    if !seals.contains(SEALS) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the memory is not sealed"));
    }
    let mapping = Region::map(fd, ProtFlags::READ).map(Mapping)?;
    if mapping.len() as u64 != bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the memory has another length"));
    }
    Ok(mapping)
}

/// Sealed memory, mapped.
#[derive(Debug)]
pub(crate) struct Mapping(Region);

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the region is mapped readable for as long as `self`, and sealed: neither its
        // bytes nor its length can change.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.bytes) }
    }
}

/// Unsealed memory of this process, mapped for writing.
#[derive(Debug)]
pub(crate) struct MappingMut(Region);

impl Deref for MappingMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self`; the descriptor has not left this process.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.bytes) }
    }
}

impl std::ops::DerefMut for MappingMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only access through the mapping.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.bytes) }
    }
}

#[derive(Debug)]
struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the region is plain memory that belongs to this value alone.
unsafe impl Send for Region {}
// SAFETY: shared access only reads.
unsafe impl Sync for Region {}

impl Region {
    fn map(fd: BorrowedFd<'_>, protection: ProtFlags) -> io::Result<Self> {
        let bytes = usize::try_from(rustix::fs::fstat(fd)?.st_size)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        if bytes == 0 {
            return Ok(Self { start: NonNull::dangling(), bytes });
        }
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), bytes, protection, MapFlags::SHARED, fd, 0)
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: mapped by `map` with this length, and nothing borrows it any more. It cannot
            // fail for a region that exists.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8]) -> Memfd {
        let memfd = Memfd::new("a name / with \n all sorts").unwrap();
        assert_eq!(memfd.write_at(bytes, 0).unwrap(), bytes.len());
        memfd
    }

    #[test]
    fn sealed_memory_is_mapped_as_it_was_written() {
        let fd = written(b"state").seal().unwrap();
        let mapping = map_sealed(fd.as_fd(), 5).unwrap();
        // The mapping holds the memory by itself.
        drop(fd);
        assert_eq!(&*mapping, b"state");
    }

    #[test]
    fn empty_memory_is_mapped_as_nothing() {
        let fd = Memfd::new("").unwrap().seal().unwrap();
        assert!(map_sealed(fd.as_fd(), 0).unwrap().is_empty());
        assert!(map_sealed(fd.as_fd(), 1).is_err());
    }

    #[test]
    fn another_length_than_was_said_is_refused() {
        let fd = written(b"state").seal().unwrap();
        for bytes in [0, 4, 6, u64::MAX] {
            let error = map_sealed(fd.as_fd(), bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes}");
        }
    }

    #[test]
    fn memory_that_lacks_any_seal_is_refused() {
        for missing in SEALS.iter() {
            let Memfd(file) = written(b"state");
            rustix::fs::fcntl_add_seals(&file, SEALS.difference(missing)).unwrap();
            let error = map_sealed(file.as_fd(), 5).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{missing:?}");
        }
    }

    #[test]
    fn what_is_no_memfd_is_refused() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(map_sealed(reader.as_fd(), 0).is_err());
        let file = std::fs::File::open("/dev/zero").unwrap();
        assert!(map_sealed(file.as_fd(), 0).is_err());
    }

    #[test]
    fn sealed_memory_changes_for_nobody() {
        let fd = written(b"state").seal().unwrap();
        let file = std::fs::File::from(fd.try_clone().unwrap());
        assert!(file.write_at(b"S", 0).is_err());
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(6).is_err());
        assert!(Region::map(fd.as_fd(), ProtFlags::READ | ProtFlags::WRITE).is_err());
    }

    #[test]
    fn memory_that_is_mapped_for_writing_cannot_be_sealed() {
        let memfd = written(b"state");
        let mut mapping = memfd.map_mut().unwrap();
        mapping[0] = b'S';
        assert_eq!(memfd.seal().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(&*mapping, b"State");
    }
}
