//! As much of an ELF file as tells why it cannot be started (elf(5)).

use std::fmt;

/// The size of the header of a 64-bit file, the larger one.
pub(super) const HEADER_BYTES: usize = 64;

/// More program headers than any executable has; a file that claims more is not looked into.
const MAX_SEGMENTS: u64 = 256;

/// The segment is loaded.
const PT_LOAD: u64 = 1;

/// The segment is the path of the dynamic loader.
const PT_INTERP: u64 = 3;

/// What a file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) machine: Machine,
    segments_at: u64,
    segment_bytes: u64,
    segments: u64,
}

/// What a file is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    number: u16,
    is_64_bit: bool,
    is_little_endian: bool,
}

/// What the program headers say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Segments {
    /// Where the last segment that is loaded ends in the file.
    pub(super) end: u64,
    /// Where the path of the dynamic loader is, and its length.
    pub(super) interpreter: Option<(u64, u64)>,
}

impl Header {
    /// Of a file that begins like this; `None` if it is not one of this format.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(b"\x7fELF") {
            return None;
        }
        let is_64_bit = *bytes.get(4)? == 2;
        let is_little_endian = *bytes.get(5)? == 1;
        let number = |at, bytes_of_it| read(bytes, is_little_endian, at, bytes_of_it);
        let machine = u16::try_from(number(18, 2)?).ok()?;
        let (segments_at, sizes_at) =
            if is_64_bit { (number(32, 8)?, 54) } else { (number(28, 4)?, 42) };
        Some(Self {
            machine: Machine { number: machine, is_64_bit, is_little_endian },
            segments_at,
            segment_bytes: number(sizes_at, 2)?,
            segments: number(sizes_at + 2, 2)?,
        })
    }

    /// Where the program headers are, and their length; `None` if that makes no sense.
    pub(super) fn segments_at(&self) -> Option<(u64, u64)> {
        let least = if self.machine.is_64_bit { 56 } else { 32 };
        let sensible = self.segment_bytes >= least && self.segments <= MAX_SEGMENTS;
        sensible.then_some((self.segments_at, self.segment_bytes * self.segments))
    }

    /// Looks through the program headers.
    pub(super) fn segments(&self, table: &[u8]) -> Segments {
        let mut found = Segments::default();
        let Ok(bytes) = usize::try_from(self.segment_bytes) else { return found };
        for segment in table.chunks_exact(bytes.max(1)) {
            let number = |at, bytes| read(segment, self.machine.is_little_endian, at, bytes);
            let (offset, length) = if self.machine.is_64_bit {
                (number(8, 8), number(32, 8))
            } else {
                (number(4, 4), number(16, 4))
            };
            let (Some(kind), Some(offset), Some(length)) = (number(0, 4), offset, length) else {
                continue;
            };
            match kind {
                PT_LOAD => found.end = found.end.max(offset.saturating_add(length)),
                PT_INTERP => found.interpreter = Some((offset, length)),
                _ => {}
            }
        }
        found
    }
}

fn read(bytes: &[u8], is_little_endian: bool, at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    Some(if is_little_endian { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) })
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.is_64_bit { 64 } else { 32 };
        match (self.number, self.is_64_bit, self.is_little_endian) {
            (3, ..) => write!(f, "x86"),
            (8, ..) => write!(f, "{bits}-bit MIPS"),
            (20, ..) => write!(f, "PowerPC"),
            (21, _, false) => write!(f, "PowerPC64 (big-endian)"),
            (21, _, true) => write!(f, "PowerPC64 (little-endian)"),
            (22, ..) => write!(f, "s390x"),
            (40, ..) => write!(f, "ARM"),
            (43, ..) => write!(f, "SPARC"),
            (62, true, _) => write!(f, "x86-64"),
            (62, false, _) => write!(f, "x32"),
            (183, ..) => write!(f, "AArch64"),
            (243, ..) => write!(f, "{bits}-bit RISC-V"),
            (258, ..) => write!(f, "LoongArch"),
            (number, ..) => write!(f, "machine {number}, {bits}-bit"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn the_running_program_is_whole_and_for_this_machine() {
        let file = own();
        let header = Header::parse(&file[..HEADER_BYTES]).unwrap();
        let names = [("x86_64", "x86-64"), ("aarch64", "AArch64"), ("x86", "x86")];
        if let Some((_, name)) = names.iter().find(|(arch, _)| *arch == std::env::consts::ARCH) {
            assert_eq!(header.machine.to_string(), *name);
        }
        let (at, bytes) = header.segments_at().unwrap();
        let (at, bytes) = (usize::try_from(at).unwrap(), usize::try_from(bytes).unwrap());
        let segments = header.segments(&file[at..at + bytes]);
        assert!(segments.end > 0 && segments.end <= file.len() as u64, "{segments:?}");
    }

    #[test]
    fn what_is_no_elf_file_is_not_taken_for_one() {
        assert_eq!(Header::parse(b""), None);
        assert_eq!(Header::parse(b"#!/bin/sh\n"), None);
    }

    #[test]
    fn any_beginning_and_any_content_is_looked_at_without_a_panic() {
        let file = own();
        for length in 0..HEADER_BYTES {
            Header::parse(&file[..length]);
        }
        for fill in [0x00, 0x01, 0x02, 0x7f, 0xff] {
            let mut bytes = [fill; HEADER_BYTES];
            bytes[..4].copy_from_slice(b"\x7fELF");
            for class in [1, 2] {
                bytes[4] = class;
                let header = Header::parse(&bytes).unwrap();
                header.segments_at();
                header.segments(&[fill; 300]);
            }
        }
    }
}
