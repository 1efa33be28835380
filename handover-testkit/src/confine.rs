//! A process that may do little: no capability, and no system call but some.
#![allow(unsafe_code)]

use std::io;
use std::mem::offset_of;

use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};

/// A filter of system calls, as [seccomp(2)](https://man7.org/linux/man-pages/man2/seccomp.2.html) has it.
#[derive(Debug)]
pub(crate) struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// Lets these numbers through. Whoever makes another call is killed by SIGSYS, all threads of it.
    pub(crate) fn allowing(calls: impl IntoIterator<Item = i64>) -> Self {
        let load =
            |offset: usize| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32);
        let give = |action| statement(libc::BPF_RET | libc::BPF_K, action);
        let (kill, allow) = (give(libc::SECCOMP_RET_KILL_PROCESS), give(libc::SECCOMP_RET_ALLOW));
        // Another architecture has other numbers.
        let mut program =
            vec![load(offset_of!(libc::seccomp_data, arch)), unless(ARCHITECTURE), kill];
        program.push(load(offset_of!(libc::seccomp_data, nr)));
        for call in calls {
            let number = u32::try_from(call).expect("the number of a system call");
            program.extend([when(number), allow]);
        }
        program.push(kill);
        Self(program)
    }

    /// Takes from the calling thread, and what it executes, all that is not let through. Allocates nothing.
    pub(crate) fn install(&self) -> io::Result<()> {
        // Without it only root may install a filter.
        set_no_new_privs(true)?;
        let len = self.0.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog { len, filter: self.0.as_ptr().cast_mut() };
        let (operation, mode) = (libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER);
        // SAFETY: the kernel copies `len` instructions, which the vector has, and writes nothing.
        match unsafe { libc::prctl(operation, mode, &raw const program, 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Takes all capabilities from what root executes from here on. Others may not, and have none.
pub(crate) fn renounce_capabilities() {
    for capability in CapabilitySet::all().iter() {
        // It fails for those that this kernel does not know.
        let _ = remove_capability_from_bounding_set(capability);
    }
}

/// `AUDIT_ARCH_...` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: u32 = 0;

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Goes on with the next instruction if it is this number, else with the one after that.
fn when(number: u32) -> libc::sock_filter {
    let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    libc::sock_filter { jf: 1, ..statement(code, number) }
}

/// Skips the next instruction if it is this number.
fn unless(number: u32) -> libc::sock_filter {
    let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    libc::sock_filter { jt: 1, ..statement(code, number) }
}
