//! How processes start, looked at from within and from without.

use std::fs;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use handover_testkit::{Folder, executables, while_nothing_spawns};

use super::super::poll::wait_readable;
use super::super::process::Condition;
use super::super::signals::unblock;
use super::*;

/// What a test starts, with its stderr in a pipe.
struct Start {
    executable: PathBuf,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    pid_variables: Vec<CString>,
    directory: CString,
    blocked: SignalSet,
    parent: Parent,
    group: Group,
}

impl Start {
    fn of(executable: impl AsRef<Path>) -> Self {
        let executable = executable.as_ref().to_owned();
        Self {
            arguments: vec![c(executable.to_str().unwrap())],
            executable,
            environment: Vec::new(),
            pid_variables: Vec::new(),
            directory: c("/"),
            blocked: SignalSet::blocked(),
            parent: Parent::Us,
            group: Group::Ours,
        }
    }

    /// A shell script that reports on stderr.
    fn script(text: &str) -> Self {
        let mut start = Self::of("/bin/sh");
        start.arguments.extend([c("-c"), c(text)]);
        start
    }

    fn spawn(&self, stderr: Option<BorrowedFd<'_>>) -> Result<Process, Error> {
        let executable = Executable::open(&self.executable).map_err(Error::Execute)?;
        while_nothing_spawns(|| self.command(&executable, [None, None, stderr]).spawn())
    }

    fn command<'a>(
        &'a self,
        executable: &'a Executable,
        streams: [Option<BorrowedFd<'a>>; 3],
    ) -> Command<'a> {
        Command {
            executable,
            arguments: &self.arguments,
            environment: &self.environment,
            pid_variables: &self.pid_variables,
            directory: &self.directory,
            inherit: None,
            streams,
            blocked: self.blocked,
            parent: self.parent,
            group: self.group,
        }
    }

    fn error(&self) -> Error {
        self.spawn(None).unwrap_err()
    }

    /// What it writes to stderr, and how it ends.
    fn run(&self) -> (String, ExitStatus) {
        let (mut reader, writer) = io::pipe().unwrap();
        let process = self.spawn(Some(writer.as_fd())).unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        (text, ended(&process).unwrap())
    }
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// Waits for the end.
fn ended(process: &Process) -> Option<ExitStatus> {
    let deadline = Instant::now() + Duration::from_secs(20);
    wait_readable(&[process.as_fd()], Some(deadline)).unwrap();
    match process.condition() {
        Condition::Ended(status) => status,
        Condition::Running => panic!("it runs still"),
    }
}

fn errno(error: Error) -> (&'static str, i32) {
    match error {
        Error::Clone(source) => ("clone", source.raw_os_error().unwrap()),
        Error::Directory(source) => ("directory", source.raw_os_error().unwrap()),
        Error::Execute(source) => ("execute", source.raw_os_error().unwrap()),
        Error::Replaced => ("replaced", 0),
    }
}

#[test]
fn what_cannot_be_executed_is_told_with_the_number_of_the_kernel() {
    let folder = Folder::create();
    let refused = |path| errno(Start::of(path).error());
    assert_eq!(refused(executables::missing(&folder)), ("execute", libc::ENOENT));
    assert_eq!(refused(executables::without_interpreter(&folder)), ("execute", libc::ENOENT));
    assert_eq!(refused(executables::not_executable(&folder)), ("execute", libc::EACCES));
    assert_eq!(refused(executables::directory(&folder)), ("execute", libc::EACCES));
    assert_eq!(refused(executables::empty(&folder)), ("execute", libc::ENOEXEC));
    assert_eq!(refused(executables::wrong_architecture(&folder)), ("execute", libc::ENOEXEC));
    let below_a_file = folder.write("file", "").join("program");
    assert_eq!(refused(below_a_file), ("execute", libc::ENOTDIR));
}

#[test]
fn an_executable_that_is_being_written_is_told() {
    let folder = Folder::create();
    let path = folder.install("/bin/true", "program");
    let busy = fs::OpenOptions::new().append(true).open(&path).unwrap();
    assert_eq!(errno(Start::of(&path).error()), ("execute", libc::ETXTBSY));
    drop(busy);
}

#[test]
fn a_directory_that_cannot_be_entered_is_told() {
    let folder = Folder::create();
    let mut start = Start::of("/bin/true");
    start.directory = c(folder.join("gone").to_str().unwrap());
    assert_eq!(errno(start.error()), ("directory", libc::ENOENT));
    start.directory = c(folder.write("file", "").to_str().unwrap());
    assert_eq!(errno(start.error()), ("directory", libc::ENOTDIR));
}

#[test]
fn arguments_longer_than_the_kernel_takes_are_told() {
    let mut start = Start::of("/bin/true");
    start.arguments.push(c(&"x".repeat(8 << 20)));
    assert_eq!(errno(start.error()), ("execute", libc::E2BIG));
}

#[test]
fn what_failed_to_start_leaves_no_zombie() {
    let folder = Folder::create();
    let start = Start::of(executables::missing(&folder));
    // In a thread of its own, whose children are told apart from those of other tests.
    let children = std::thread::spawn(move || {
        for _ in 0..500 {
            start.error();
        }
        // SAFETY: returns the number of this thread.
        let thread = unsafe { libc::gettid() };
        fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap()
    });
    assert_eq!(children.join().unwrap(), "");
}

#[test]
fn arguments_environment_and_directory_are_those_asked_for() {
    let folder = Folder::create();
    let mut start = Start::script("echo \"$0|$1|$A|$HOME|$(pwd)\" >&2");
    start.arguments.extend([c("zeroth"), c("a b")]);
    start.environment = vec![c("A=1=2")];
    start.directory = c(folder.path().to_str().unwrap());
    let (text, status) = start.run();
    assert_eq!(text, format!("zeroth|a b|1=2||{}\n", folder.path().display()));
    assert!(status.success());
    assert_ne!(std::env::current_dir().unwrap(), folder.path());
}

#[test]
fn the_end_is_told_with_its_status() {
    assert_eq!(Start::script("exit 7").run().1.code(), Some(7));
    assert_eq!(Start::script("kill -KILL $$").run().1.signal(), Some(libc::SIGKILL));
    let (_, status) = Start::script("ulimit -c 0; kill -SEGV $$").run();
    assert_eq!(status.signal(), Some(libc::SIGSEGV));
}

#[test]
fn a_process_that_runs_is_running_until_it_is_killed() {
    let mut start = Start::of("/bin/sleep");
    start.arguments.push(c("1000"));
    let process = start.spawn(None).unwrap();
    assert_eq!(process.condition(), Condition::Running);
    process.kill().unwrap();
    assert_eq!(ended(&process).unwrap().signal(), Some(libc::SIGKILL));
    process.kill().unwrap();
    assert_eq!(process.condition(), Condition::Ended(None));
}

#[test]
fn one_descriptor_is_inherited_beyond_the_standard_three() {
    let (inherited, _writer) = io::pipe().unwrap();
    let number = inherited.as_raw_fd();
    let (mut reader, writer) = io::pipe().unwrap();
    // Names are expanded before the shell opens what it redirects to.
    let start = Start::script("exec /bin/ls /proc/self/fd >&2");
    let executable = Executable::open(&start.executable).unwrap();
    let mut command = start.command(&executable, [None, None, Some(writer.as_fd())]);
    command.inherit = Some(inherited.as_fd());
    let process = while_nothing_spawns(|| command.spawn()).unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    ended(&process);
    let mut numbers: Vec<i32> = text.lines().map(|line| line.parse().unwrap()).collect();
    numbers.retain(|found| *found > 2 && *found != number);
    // The one more is the directory that `ls` lists. What the tests' runner left open in this
    // process is not ours to close.
    let strays = strays();
    numbers.retain(|found| !strays.contains(found));
    assert!(text.lines().any(|line| line == number.to_string()), "{text}");
    assert!(numbers.len() <= 1, "{text}");
    // In this process it is as it was.
    let flags = rustix::io::fcntl_getfd(&inherited).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

/// Descriptors of this process that any child inherits.
fn strays() -> Vec<RawFd> {
    let numbers = handover_testkit::process::fds(std::process::id()).into_keys();
    let inherited = |number: &RawFd| {
        // SAFETY: any number will do; one that is not open is refused.
        unsafe { libc::fcntl(*number, libc::F_GETFD) == 0 }
    };
    numbers.filter(|number| *number > 2).filter(inherited).collect()
}

#[test]
fn the_file_that_was_opened_is_executed_whatever_the_path_leads_to() {
    let folder = Folder::create();
    let path = folder.install("/bin/sh", "program");
    let executable = Executable::open(&path).unwrap();
    let mut start = Start::script("echo \"$0\" >&2");
    start.arguments[0] = c("zeroth");
    start.arguments.push(c("first"));
    for other in ["/bin/false", "/nowhere"] {
        fs::remove_file(&path).unwrap();
        folder.link("program", other);
        let (mut reader, writer) = io::pipe().unwrap();
        let command = start.command(&executable, [None, None, Some(writer.as_fd())]);
        let process = while_nothing_spawns(|| command.spawn()).unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(ended(&process).unwrap().success());
        assert!(text.starts_with("first\n"), "{text}");
    }
}

#[test]
fn a_script_is_executed_if_its_path_leads_to_it_still() {
    let folder = Folder::create();
    let path = folder.write_executable("script", "#!/bin/sh\necho $0 >&2\n");
    let (text, status) = Start::of(&path).run();
    assert!(status.success());
    assert_eq!(text.trim(), path.to_str().unwrap());

    let executable = Executable::open(&path).unwrap();
    let start = Start::of(&path);
    folder.write_executable("script", "#!/bin/sh\nexit 3\n");
    let command = start.command(&executable, [None; 3]);
    assert_eq!(errno(while_nothing_spawns(|| command.spawn()).unwrap_err()), ("replaced", 0));
}

#[test]
fn where_no_descriptor_can_be_executed_the_path_is_taken() {
    let folder = Folder::create();
    let path = folder.install("/bin/sh", "program");
    for errno in [libc::ENOSYS, libc::EPERM] {
        let path = path.clone();
        // A filter is of one thread and its children, and for good.
        let thread = std::thread::spawn(move || {
            refuse_execveat(errno);
            let executable = Executable::open(&path).unwrap();
            let mut start = Start::of(&path);
            start.arguments.extend([c("-c"), c("exit 5")]);
            let process = while_nothing_spawns(|| start.command(&executable, [None; 3]).spawn());
            assert_eq!(ended(&process.unwrap()).unwrap().code(), Some(5), "{errno}");
        });
        thread.join().unwrap();
    }
}

/// Has the call fail in this thread and what it starts, as a container's runtime may.
fn refuse_execveat(errno: c_int) {
    let number = u32::try_from(libc::SYS_execveat).unwrap();
    let refusal = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    let statement = |code: u32, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = [
        // The number of the call comes first in `seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            jf: 1,
            ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number)
        },
        statement(libc::BPF_RET | libc::BPF_K, refusal),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program is well-formed and outlives the call.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, 0, 0) }, 0);
}

#[test]
fn what_may_be_executed_and_not_read_is_executed() {
    if rustix::process::geteuid().is_root() {
        return as_nobody("what_may_be_executed_and_not_read_is_executed");
    }
    let folder = Folder::create();
    let path = folder.install("/bin/sh", "program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o111)).unwrap();
    assert!(fs::File::open(&path).is_err());
    let mut start = Start::of(&path);
    start.arguments.extend([c("-c"), c("exit 5")]);
    let executable = Executable::open(&path).unwrap();
    executable.permission().unwrap();
    fs::remove_file(&path).unwrap();
    let process = while_nothing_spawns(|| start.command(&executable, [None; 3]).spawn());
    assert_eq!(ended(&process.unwrap()).unwrap().code(), Some(5));
}

#[test]
fn the_standard_streams_are_those_asked_for() {
    let nothing = super::super::file::nothing().unwrap();
    let start = Start::script("cat; echo out; echo err >&2");
    let executable = Executable::open(&start.executable).unwrap();
    let (mut reader, writer) = io::pipe().unwrap();
    let streams = [Some(nothing.as_fd()), Some(writer.as_fd()), Some(writer.as_fd())];
    let command = start.command(&executable, streams);
    let process = while_nothing_spawns(|| command.spawn()).unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    ended(&process);
    assert_eq!(text, "out\nerr\n");
}

#[test]
fn what_has_the_number_of_a_standard_stream_is_out_of_its_way() {
    let mut aside = Vec::new();
    assert_eq!(beyond_standard(NONE, &mut aside).unwrap(), NONE);
    let (reader, _writer) = io::pipe().unwrap();
    let number = reader.as_raw_fd();
    assert_eq!(beyond_standard(number, &mut aside).unwrap(), number);
    assert!(aside.is_empty());
    let number = beyond_standard(2, &mut aside).unwrap();
    assert!(number > 2);
    assert_eq!(aside[0].as_raw_fd(), number);
    let flags = rustix::io::fcntl_getfd(&aside[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn a_group_ends_together() {
    let mut start = Start::script("sleep 1000 & echo >&2; wait");
    start.group = Group::Own;
    let (mut reader, writer) = io::pipe().unwrap();
    let process = start.spawn(Some(writer.as_fd())).unwrap();
    drop(writer);
    reader.read_exact(&mut [0]).unwrap();
    process.kill_group().unwrap();
    assert_eq!(ended(&process).unwrap().signal(), Some(libc::SIGKILL));
    // The other one had the pipe, too.
    assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0);
    process.kill_group().unwrap();
}

#[test]
fn the_signals_that_are_blocked_are_those_asked_for() {
    let report = "exec /bin/grep Sig /proc/self/status >&2";
    let mut start = Start::script(report);
    unblock(&[libc::SIGHUP, libc::SIGTERM]);
    start.blocked = SignalSet::blocked();
    start.blocked.insert(libc::SIGHUP);
    start.blocked.insert(libc::SIGTERM);
    let before = mask("/proc/thread-self/status", "SigBlk:");
    let (text, _) = start.run();
    let asked = before | bit(libc::SIGHUP) | bit(libc::SIGTERM);
    assert_eq!(field(&text, "SigBlk:"), asked, "{text}");
    // And this thread blocks what it did before.
    assert_eq!(mask("/proc/thread-self/status", "SigBlk:"), before);
}

#[test]
fn handlers_are_gone_what_was_ignored_is_ignored_and_sigpipe_kills() {
    // For the whole process, so these are signals that nothing else here uses.
    // SAFETY: the action does nothing.
    unsafe { signal_hook_registry::register(libc::SIGWINCH, || {}) }.unwrap();
    // SAFETY: no handler.
    unsafe { libc::signal(libc::SIGTTIN, libc::SIG_IGN) };
    let ours = fs::read_to_string("/proc/self/status").unwrap();
    assert_ne!(field(&ours, "SigCgt:") & bit(libc::SIGWINCH), 0);
    assert_ne!(field(&ours, "SigIgn:") & bit(libc::SIGPIPE), 0, "Rust ignores it");

    let (text, _) = Start::script("exec /bin/grep Sig /proc/self/status >&2").run();

    assert_eq!(field(&text, "SigCgt:") & bit(libc::SIGWINCH), 0, "{text}");
    let ignored = field(&text, "SigIgn:");
    assert_eq!(ignored & bit(libc::SIGTTIN), bit(libc::SIGTTIN), "{text}");
    assert_eq!(ignored & (bit(libc::SIGPIPE) | bit(libc::SIGWINCH)), 0, "{text}");
    // The child has changed its own alone.
    let after = fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(field(&after, "SigCgt:"), field(&ours, "SigCgt:"));
    assert_eq!(field(&after, "SigIgn:"), field(&ours, "SigIgn:"));
}

fn mask(path: &str, name: &str) -> u64 {
    field(&fs::read_to_string(path).unwrap(), name)
}

fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(value.trim(), 16).unwrap()
}

fn bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

#[test]
fn a_process_for_the_supervisor_is_a_child_of_our_parent() {
    let mut start = Start::script("echo $PPID >&2; read _");
    let us = std::process::id();
    assert_eq!(start.run().0.trim(), us.to_string());

    start.parent = Parent::Ours;
    let (mut reader, writer) = io::pipe().unwrap();
    let process = start.spawn(Some(writer.as_fd())).unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text.trim(), handover_testkit::process::parent(us).to_string());
    // Its end is seen, its status is the other's to know.
    assert_eq!(ended(&process), None);
}

#[test]
fn a_process_for_the_supervisor_that_cannot_start_is_told_as_well() {
    let folder = Folder::create();
    let mut start = Start::of(executables::missing(&folder));
    start.parent = Parent::Ours;
    assert_eq!(errno(start.error()), ("execute", libc::ENOENT));
}

#[test]
fn many_threads_spawn_at_once() {
    let folder = Folder::create();
    let missing = executables::missing(&folder);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let missing = &missing;
            scope.spawn(move || {
                for round in 0..20 {
                    let text = format!("{number} {round}");
                    let (echoed, _) = Start::script(&format!("echo {text} >&2")).run();
                    assert_eq!(echoed.trim(), text);
                    assert_eq!(errno(Start::of(missing).error()), ("execute", libc::ENOENT));
                }
            });
        }
    });
}

#[test]
fn a_permission_that_is_missing_in_the_path_is_told() {
    if rustix::process::geteuid().is_root() {
        return as_nobody("a_permission_that_is_missing_in_the_path_is_told");
    }
    let folder = Folder::create();
    fs::create_dir(folder.join("closed")).unwrap();
    fs::set_permissions(folder.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    let path = folder.join("closed/program");
    assert_eq!(errno(Start::of(path).error()), ("execute", libc::EACCES));
}

/// Runs a test again as a user who may not do everything.
fn as_nobody(test: &str) {
    use std::os::unix::process::CommandExt as _;
    const NOBODY: u32 = 65534;
    let folder = Folder::create().open_to_all();
    let tests = folder.install(std::env::current_exe().unwrap(), "tests");
    let mut command = std::process::Command::new(tests);
    let output = command.arg(test).uid(NOBODY).gid(NOBODY).current_dir("/").output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

#[test]
fn a_process_finds_its_own_number_in_its_variables() {
    let mut start =
        Start::script(r#"echo "$$ $FIRST $SECOND $KEPT" >&2; tr '\0' '\n' </proc/$$/environ >&2"#);
    start.environment = vec![c("KEPT=1")];
    start.pid_variables = vec![c("FIRST"), c("SECOND")];

    let (said, status) = start.run();

    assert!(status.success());
    let mut lines = said.lines();
    let numbers: Vec<&str> = lines.next().unwrap().split(' ').collect();
    assert_eq!(numbers[..3], [numbers[0]; 3]);
    assert_eq!(numbers[3], "1");
    let from_the_start: Vec<&str> = lines.collect();
    assert!(from_the_start.contains(&&*format!("FIRST={}", numbers[0])), "{from_the_start:?}");
}

#[test]
fn numbers_of_any_length_are_written() {
    for number in [0, 7, 10, 4_194_304, u32::MAX] {
        let mut bytes = [b'x'; PID_BYTES];
        write_number(number, &mut bytes);
        let text = CStr::from_bytes_until_nul(&bytes).unwrap();
        assert_eq!(text.to_str().unwrap(), number.to_string());
    }
}
