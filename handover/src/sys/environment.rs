//! Taking a variable out of the environment.

#![allow(unsafe_code)]

use std::ffi::OsString;

/// Takes the variable out of this process's environment and returns what it was.
pub(crate) fn take(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    // SAFETY: std's own readers and writers hold its lock. What remains is C code that reads the
    // environment in another thread at this moment; the variable is only there in the first
    // instants of a successor, and the documentation of `Builder::start` asks to be called first
    // thing in main for this reason. glibc makes getenv safe against this from 2.41.
    unsafe { std::env::remove_var(name) };
    Some(value)
}
