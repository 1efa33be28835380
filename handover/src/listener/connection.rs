//! What a listener gives out: a stream that counts as in flight while it lives.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};

use crate::drain::Guard;

/// An accepted connection, counted as in flight until it is dropped.
///
/// It is the stream: it dereferences to it, reads and writes. [`into_parts`](Self::into_parts)
/// separates the two for code that wants a bare stream.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    guard: Guard,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, guard: Guard) -> Self {
        Self { stream, guard }
    }

    /// The stream and its guard. The connection counts as in flight while the guard lives.
    pub fn into_parts(self) -> (S, Guard) {
        (self.stream, self.guard)
    }

    /// Makes another stream of this one, such as one with encryption, under the same guard.
    pub fn map<T>(self, make: impl FnOnce(S) -> T) -> Connection<T> {
        Connection { stream: make(self.stream), guard: self.guard }
    }
}

impl<S> Deref for Connection<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.stream
    }
}

impl<S> DerefMut for Connection<S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsFd> AsFd for Connection<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<S: Read> Read for Connection<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.stream.read_vectored(buffers)
    }
}

impl<S: Write> Write for Connection<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
