//! Taking over descriptors that this process was started with, by their numbers.

#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;

/// Takes over the descriptor of that number, if it is open and came through exec; it is
/// close-on-exec from here.
///
/// The caller knows by its environment that it was left for this process. That it has no
/// close-on-exec shows that nobody in this process has opened it, or taken it over before.
pub(crate) fn adopt(number: RawFd) -> Option<OwnedFd> {
    if number <= 2 {
        return None;
    }
    // SAFETY: only used for a call that tolerates any number.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    if rustix::io::fcntl_getfd(fd).ok()?.contains(FdFlags::CLOEXEC) {
        return None;
    }
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and was left for whoever takes it over first: see above.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn what_came_through_exec_is_taken_over_once() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let reader = OwnedFd::from(reader);
        assert!(adopt(reader.as_raw_fd()).is_none(), "it is this process's own");
        rustix::io::fcntl_setfd(&reader, FdFlags::empty()).unwrap();
        let number = reader.into_raw_fd();
        let adopted = adopt(number).unwrap();
        assert_eq!(rustix::io::fcntl_getfd(&adopted).unwrap(), FdFlags::CLOEXEC);
        assert!(adopt(number).is_none());
    }

    #[test]
    fn what_is_not_open_is_left_alone() {
        assert!(adopt(1 << 20).is_none());
        assert!(adopt(-1).is_none());
        assert!(adopt(2).is_none());
    }
}
