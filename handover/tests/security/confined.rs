//! A service that may do no more than docs/security.md says it has to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;

use handover::control::{Answer, Event, Request, UpgradeRequest, VerdictOutcome, VerdictReport};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Folder, Launch, Service, example, is_root, soon};

use crate::common::{ask, serving, status};
use crate::whole::{Caller, Whole};

/// A user who has nothing; it needs no name.
const NOBODY: u32 = 61_003;

/// Names system calls, with their numbers.
macro_rules! calls {
    ($($name:ident: $number:ident),* $(,)?) => {
        [$((stringify!($name), libc::$number)),*]
    };
}

/// What the document may name.
fn known() -> BTreeMap<&'static str, i64> {
    BTreeMap::from(
        calls! { accept4: SYS_accept4, access: SYS_access, arch_prctl: SYS_arch_prctl, bind: SYS_bind, brk: SYS_brk, chdir: SYS_chdir, chmod: SYS_chmod, clock_gettime: SYS_clock_gettime, clock_nanosleep: SYS_clock_nanosleep, clone: SYS_clone, clone3: SYS_clone3, close: SYS_close, connect: SYS_connect, dup2: SYS_dup2, epoll_create1: SYS_epoll_create1, epoll_ctl: SYS_epoll_ctl, epoll_pwait: SYS_epoll_pwait, epoll_wait: SYS_epoll_wait, eventfd2: SYS_eventfd2, execve: SYS_execve, execveat: SYS_execveat, exit: SYS_exit, exit_group: SYS_exit_group, faccessat2: SYS_faccessat2, fchmod: SYS_fchmod, fchownat: SYS_fchownat, fcntl: SYS_fcntl, fstat: SYS_fstat, fstatfs: SYS_fstatfs, ftruncate: SYS_ftruncate, futex: SYS_futex, getcwd: SYS_getcwd, getdents64: SYS_getdents64, getegid: SYS_getegid, geteuid: SYS_geteuid, getgid: SYS_getgid, getpid: SYS_getpid, getrandom: SYS_getrandom, getsockname: SYS_getsockname, getsockopt: SYS_getsockopt, gettid: SYS_gettid, getuid: SYS_getuid, ioctl: SYS_ioctl, kill: SYS_kill, listen: SYS_listen, lseek: SYS_lseek, madvise: SYS_madvise, memfd_create: SYS_memfd_create, mmap: SYS_mmap, mprotect: SYS_mprotect, mremap: SYS_mremap, munmap: SYS_munmap, newfstatat: SYS_newfstatat, open: SYS_open, openat: SYS_openat, pidfd_open: SYS_pidfd_open, pidfd_send_signal: SYS_pidfd_send_signal, pipe2: SYS_pipe2, poll: SYS_poll, ppoll: SYS_ppoll, prctl: SYS_prctl, pread64: SYS_pread64, prlimit64: SYS_prlimit64, pwrite64: SYS_pwrite64, read: SYS_read, readlink: SYS_readlink, recvfrom: SYS_recvfrom, recvmsg: SYS_recvmsg, rename: SYS_rename, restart_syscall: SYS_restart_syscall, rseq: SYS_rseq, rt_sigaction: SYS_rt_sigaction, rt_sigprocmask: SYS_rt_sigprocmask, rt_sigreturn: SYS_rt_sigreturn, sched_getaffinity: SYS_sched_getaffinity, sched_yield: SYS_sched_yield, sendmsg: SYS_sendmsg, sendto: SYS_sendto, set_robust_list: SYS_set_robust_list, set_tid_address: SYS_set_tid_address, setpgid: SYS_setpgid, setsockopt: SYS_setsockopt, shutdown: SYS_shutdown, sigaltstack: SYS_sigaltstack, socket: SYS_socket, socketpair: SYS_socketpair, statx: SYS_statx, tgkill: SYS_tgkill, unlink: SYS_unlink, wait4: SYS_wait4, waitid: SYS_waitid, write: SYS_write, writev: SYS_writev },
    )
}

/// The system calls that the document lists.
fn listed() -> Vec<i64> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("\n### System calls\n").expect("a section");
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```text\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let known = known();
    let number = |name| *known.get(name).unwrap_or_else(|| panic!("{name} has no number here"));
    blocks.flat_map(str::split_whitespace).map(number).collect()
}

/// What starts a program with nothing but those, as a user who has nothing.
fn confined(folder: &Folder, program: &str) -> Launch {
    let launch = Launch::of(folder.install(example(program), program)).allow_only(listed());
    if is_root() { launch.user(NOBODY, NOBODY) } else { launch }
}

#[track_caller]
fn upgraded(control: &Path, how: UpgradeRequest) -> VerdictReport {
    match ask(control, &Request::Upgrade(how)) {
        Answer::Verdict(verdict) => verdict,
        other => panic!("no verdict: {other:?}"),
    }
}

fn on_probation() -> UpgradeRequest {
    UpgradeRequest { probation_ms: Some(60_000), ..UpgradeRequest::default() }
}

/// Upgrades with probation, and has it end by a word.
#[track_caller]
fn tried(control: &Path, word: &Request) -> VerdictReport {
    let mut events = handover::control::Client::connect(control).unwrap();
    events.send(&Request::Events {}).unwrap();
    thread::scope(|scope| {
        let verdict = scope.spawn(|| upgraded(control, on_probation()));
        loop {
            match events.next_answer().unwrap() {
                Some(Answer::Event(it)) if matches!(it.event, Event::Committed { .. }) => break,
                Some(Answer::Event(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        let answer = ask(control, word);
        assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
        verdict.join().unwrap()
    })
}

/// All that an operator can ask for.
fn operate(control: &Path) {
    let succeeded = |verdict: VerdictReport| {
        assert_eq!(verdict.outcome, VerdictOutcome::Succeeded, "{verdict:?}");
    };
    succeeded(upgraded(control, UpgradeRequest::default()));
    let rolled_back = tried(control, &Request::Rollback { reason: None });
    assert_eq!(rolled_back.outcome, VerdictOutcome::RolledBack, "{rolled_back:?}");
    succeeded(tried(control, &Request::Confirm {}));
    let Answer::Verdict(back) = ask(control, &Request::Rollback { reason: None }) else {
        panic!("no verdict");
    };
    succeeded(back);
    // One that has to be killed.
    let hangs = UpgradeRequest {
        executable: Some("/bin/sleep".into()),
        arguments: Some(vec!["1000".into()]),
        ready_timeout_ms: Some(300),
        ..UpgradeRequest::default()
    };
    let failed = upgraded(control, hangs);
    assert_eq!(
        (failed.outcome, failed.reason.as_deref()),
        (VerdictOutcome::Failed, Some("timed-out"))
    );
}

#[track_caller]
fn assert_confined(service: &Service) {
    for pid in service.alive() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name} in {status}")).trim().to_owned()
        };
        assert_eq!((&*field("Seccomp:"), &*field("NoNewPrivs:")), ("2", "1"));
        for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
    }
}

fn stop(control: &Path, service: &Service) {
    assert_confined(service);
    process::signal(serving(&status(control)), Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
    let killed = service.lines().iter().any(|line| line.text.contains("signal: 31"));
    assert!(!killed, "{:?}", service.lines());
}

fn example_of(program: &str, options: &[&str]) -> (Service, Folder, PathBuf, SocketAddr) {
    let folder = Folder::create().open_to_all();
    let control = folder.join("control");
    let launch = confined(&folder, program).arg("127.0.0.1:0").args(options);
    let service = launch.arg("--control").arg(&control).start();
    let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
    (service, folder, control, line["listening on ".len()..].parse().unwrap())
}

#[test]
fn echo_needs_no_more_than_the_document_lists() {
    let (service, _folder, control, address) = example_of("echo", &["--live"]);
    let mut caller = Caller::new(address);
    let first = caller.call("before");
    operate(&control);
    let last = caller.call("after");
    assert_ne!(last, first, "the connection has changed hands");
    assert_eq!(last, serving(&status(&control)));
    drop(caller);
    stop(&control, &service);
}

#[test]
fn state_needs_no_more_than_the_document_lists() {
    let (service, _folder, control, address) = example_of("state", &[]);
    let add = || {
        let mut caller = Caller::new(address);
        caller.send("add\n");
        caller.hear().1
    };
    assert_eq!(add(), "1");
    operate(&control);
    assert_eq!(add(), "2");
    stop(&control, &service);
}

#[test]
fn a_service_that_does_all_there_is_needs_no_more_than_the_document_lists() {
    let folder = Folder::create().open_to_all();
    let whole = Whole::with(folder, |folder| confined(folder, "subject_whole").arg(folder.path()));
    let mut caller = Caller::new(whole.address);
    // Half of it moves with the connection.
    caller.send("half");
    operate(&whole.control());
    caller.send(" and half\n");
    let (pid, heard) = caller.hear();
    assert_eq!(heard, "half and half");
    assert_eq!(pid, serving(&status(&whole.control())));
    assert_eq!(whole.folder.read("pid").unwrap().trim(), pid.to_string());
    drop(caller);
    stop(&whole.control(), &whole.service);
    assert!(!whole.folder.join("pid").exists() && !whole.control().exists());
}

#[test]
fn whoever_makes_another_call_is_killed() {
    // It lists a folder.
    let calls = listed().into_iter().filter(|call| *call != libc::SYS_getdents64);
    let ended = Launch::of("ls").allow_only(calls).start().finish(soon()).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended.status), Some(libc::SIGSYS));
}
