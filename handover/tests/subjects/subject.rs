//! The program under test: a small HTTP service with every knob, and ways to go wrong.
//!
//! It answers each GET with its pid and closes; `GET /hold` is answered with the pid and then held
//! open until the client closes. What happens to it is printed, one line each.
//!
//! | argument | meaning |
//! |---|---|
//! | `--listen ADDRESS` | where to listen |
//! | `--tokio` | serve in a Tokio runtime instead of threads |
//! | `--inline` | without `--tokio`: answer one after the other, without a thread for each |
//! | `--script FILE` | how to go wrong, read at the start; see [`Script`] |
//! | `--early-gate FIFO`, `--late-gate FIFO` | provide a state of that kind, and if the FIFO is there, wait for somebody to write to it; a plain file there says why the state cannot be written |
//! | `--pid-file FILE`, `--ready-timeout MS`, `--commit-timeout MS`, `--drain-timeout MS`, `--sibling` | as the builder has it |
//! | `--chdir DIRECTORY` | go there once started |
//! | `--control PATH`, `--control-group GID`, `--probation MS`, `--answer-timeout MS`, `--max-generations N`, `--cut-oldest`, `--version TEXT`, `--take-over PATH` | as the builder has it |
//! | `--hooks` | print what the hooks are told, and do what the script says then |
//! | `--commit-gate FIFO`, `--rollback-gate FIFO` | before that, wait in the hook of that kind for somebody to write to the FIFO, if it is there |
//! | `--log` | write what the library logs to stderr |
//! | `--check`, `--check-timeout MS` | have executables checked, by starting them with `--checking` |
//! | `--checking` | do what the script says at `check`, and exit |

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, exit, id};
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fs, thread};

use handover::{
    Builder, Connection, Handle, Handover, SuccessorParent, TcpListener, TooMany, UnixListener,
    Verdict, WhoServes,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown};

/// Where the predecessor has left the channel, if there is one.
static CHANNEL: OnceLock<String> = OnceLock::new();

fn main() -> ExitCode {
    let options = Options::parse(env::args_os().skip(1).map(|arg| arg.to_string_lossy().into()));
    if options.is_set("--checking") {
        println!("checking {}", id());
        Script::read(options.path("--script")).reach("check");
        println!("checked {}", id());
        return ExitCode::SUCCESS;
    }
    // The library takes the variable out of the environment.
    let _ = CHANNEL.set(env::var("HANDOVER_CHANNEL").unwrap_or_default());
    if options.is_set("--log") {
        tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    }
    println!("starting {}", id());
    match if options.is_set("--tokio") { serve_in_tokio(&options) } else { serve(&options) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            eprintln!("subject: {error}{source}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Result<(), Box<dyn Error>> {
    let script = Script::read(options.path("--script"));
    script.reach("start");
    let handover = options.builder().start()?;
    let handover = script.reach_with("adopted", handover)?;
    let listener: TcpListener = handover.listen("http", options.text("--listen"))?;
    println!("listening on {}", listener.local_addr()?);
    options.prepare(&handover)?;
    let running = script.reach_with("ready", handover)?.ready()?;
    announce(running.handle());
    script.reach("serving");
    script.reach_later(running.handle());
    let inline = options.is_set("--inline");
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            if inline {
                // It is the client's if it goes away.
                let _ = answer(connection);
            } else {
                thread::spawn(|| answer(connection));
            }
        }
    });
    let draining = running.wait()?;
    println!("draining {} {:?}", id(), draining.ending());
    let drained = draining.drain()?;
    println!("drained {} {drained}", id());
    script.reach("drained");
    Ok(())
}

#[cfg(not(feature = "tokio"))]
fn serve_in_tokio(_: &Options) -> Result<(), Box<dyn Error>> {
    Err("built without the feature tokio".into())
}

#[cfg(feature = "tokio")]
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn serve_in_tokio(options: &Options) -> Result<(), Box<dyn Error>> {
    let script = Script::read(options.path("--script"));
    script.reach("start");
    let handover = options.builder().start()?;
    let handover = script.reach_with("adopted", handover)?;
    let listener: handover::tokio::TcpListener =
        handover.listen("http", options.text("--listen"))?;
    println!("listening on {}", listener.local_addr()?);
    options.prepare(&handover)?;
    let running = handover::tokio::ready(script.reach_with("ready", handover)?).await?;
    announce(running.handle());
    script.reach("serving");
    script.reach_later(running.handle());
    tokio::spawn(async move {
        while let Ok(Some((connection, _))) = listener.accept().await {
            // Not a task that blocks: the end of the runtime would wait for it.
            thread::spawn(|| {
                let (stream, guard) = connection.into_parts();
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                answer(stream)?;
                drop(guard);
                std::io::Result::Ok(())
            });
        }
    });
    println!("draining {} {:?}", id(), running.wait().await);
    let drained = running.drain().await?;
    println!("drained {} {drained}", id());
    script.reach("drained");
    Ok(())
}

fn announce(handle: Handle) {
    println!("serving {} generation {}", id(), handle.generation());
    let until_alone = handle.predecessor_gone();
    thread::spawn(move || {
        until_alone.wait();
        println!("alone {}", id());
    });
    // Somebody keeps a handle to the end, as in most applications.
    thread::spawn(move || {
        handle.draining().wait();
        loop {
            thread::park();
        }
    });
}

fn answer(stream: impl Stream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let mut header = String::new();
    while lines.read_line(&mut header)? > 0 && header.trim_end() != "" {
        header.clear();
    }
    let body = id().to_string();
    let length = body.len();
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    lines.get_mut().write_all(answer.as_bytes())?;
    if first.starts_with("GET /hold ") {
        lines.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

/// Serves at one more address, `NAME ADDRESS`; one with a slash is a path.
fn listen(handover: &Handover, argument: &str) -> Result<(), Box<dyn Error>> {
    let (name, address) = argument.split_once(' ').unwrap_or_default();
    if address.contains('/') {
        let listener: UnixListener = handover.listen(name, PathBuf::from(address))?;
        println!("{name} {} at {address}", id());
        thread::spawn(move || listener.incoming().flatten().for_each(answer_aside));
    } else {
        let listener: TcpListener = handover.listen(name, address)?;
        println!("{name} {} at {}", id(), listener.local_addr()?);
        thread::spawn(move || listener.incoming().flatten().for_each(answer_aside));
    }
    Ok(())
}

fn answer_aside(stream: impl Stream + Send + 'static) {
    thread::spawn(|| answer(stream));
}

trait Stream: Read + Write {}

impl Stream for TcpStream {}

impl Stream for Connection<TcpStream> {}

impl Stream for Connection<UnixStream> {}

/// What was given as arguments.
struct Options(BTreeMap<String, String>);

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Self {
        let mut arguments = arguments.peekable();
        let mut options = BTreeMap::new();
        while let Some(name) = arguments.next() {
            let value = arguments.next_if(|value| !value.starts_with("--")).unwrap_or_default();
            options.insert(name, value);
        }
        Self(options)
    }

    fn is_set(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get(name).map(PathBuf::from)
    }

    fn milliseconds(&self, name: &str) -> Option<Duration> {
        match self.0.get(name)?.as_str() {
            "max" => Some(Duration::MAX),
            number => Some(Duration::from_millis(number.parse().ok()?)),
        }
    }

    fn builder(&self) -> Builder {
        let most = self.0.get("--max-generations").and_then(|n| n.parse().ok()).unwrap_or(100);
        let mut builder = Handover::builder().max_generations(most).on_verdict(print_verdict);
        if let Some(path) = self.path("--control") {
            builder = builder
                .control(path)
                .command("echo", |arguments| Ok::<_, Infallible>(arguments.clone()));
            builder = builder.command("fail", |_| Err("as asked"));
            builder = builder.command("panic", |_| -> Result<_, Infallible> { panic!("as asked") });
        }
        if let Some(group) = self.0.get("--control-group").and_then(|group| group.parse().ok()) {
            builder = builder.control_group(group);
        }
        if let Some(path) = self.path("--take-over") {
            builder = builder.take_over(path);
        }
        if let Some(probation) = self.milliseconds("--probation") {
            builder = builder.probation(probation);
        }
        if let Some(timeout) = self.milliseconds("--answer-timeout") {
            builder = builder.answer_timeout(timeout);
        }
        if self.is_set("--cut-oldest") {
            builder = builder.when_too_many(TooMany::CutOldest);
        }
        if let Some(version) = self.0.get("--version") {
            builder = builder.version(version);
        }
        if self.is_set("--hooks") {
            builder = self.with_hooks(builder);
        }
        if let Some(path) = self.path("--pid-file") {
            builder = builder.pid_file(path);
        }
        if let Some(timeout) = self.milliseconds("--ready-timeout") {
            builder = builder.ready_timeout(timeout);
        }
        if let Some(timeout) = self.milliseconds("--commit-timeout") {
            builder = builder.commit_timeout(timeout);
        }
        if let Some(timeout) = self.milliseconds("--drain-timeout") {
            builder = builder.drain_timeout(timeout);
        }
        if self.is_set("--check") {
            builder = builder.check(["--checking", "--script", self.text("--script")]);
        }
        if let Some(timeout) = self.milliseconds("--check-timeout") {
            builder = builder.check_timeout(timeout);
        }
        if self.is_set("--sibling") {
            builder = builder.successor_parent(SuccessorParent::Supervisor);
        }
        builder
    }

    /// Each hook tells what it was told, does what the script says by then, and tells that.
    fn with_hooks(&self, builder: Builder) -> Builder {
        let reach = |what: String, point: &str, script: &Option<PathBuf>| {
            println!("hook {} {what}", id());
            Script::read(script.clone()).reach(point);
            println!("hooked {} {point}", id());
        };
        let script = || self.path("--script");
        let (on_commit, on_rollback, on_confirm) = (script(), script(), script());
        let gates = [self.path("--commit-gate"), self.path("--rollback-gate")];
        let [commit_gate, rollback_gate] = gates;
        builder
            .on_commit(move |commit| {
                commit_gate.iter().for_each(|gate| drop(pass("commit", gate)));
                reach(format!("{commit:?}"), "on-commit", &on_commit);
            })
            .on_rollback(move |rollback| {
                rollback_gate.iter().for_each(|gate| drop(pass("rollback", gate)));
                let point = match rollback.who_serves {
                    WhoServes::ThisProcess => "taking-back",
                    _ => "giving-back",
                };
                reach(format!("{rollback:?}"), point, &on_rollback);
            })
            .on_confirm(move |confirm| reach(format!("{confirm:?}"), "on-confirm", &on_confirm))
    }

    fn prepare(&self, handover: &Handover) -> Result<(), Box<dyn Error>> {
        if let Some(gate) = self.path("--early-gate") {
            handover.provide_state("early", 1, move |out| {
                pass("early", &gate)?;
                Ok(out.write_all(b"early")?)
            })?;
        }
        if let Some(gate) = self.path("--late-gate") {
            handover.provide_late_state("late", 1, move |out| {
                pass("late", &gate)?;
                Ok(out.write_all(b"late")?)
            })?;
        }
        if let Some(directory) = self.path("--chdir") {
            env::set_current_dir(directory)?;
        }
        Ok(())
    }
}

/// Waits for somebody to write to the FIFO, if there is one; fails with what is in a plain file.
fn pass(what: &str, gate: &Path) -> std::io::Result<()> {
    if gate.is_file() {
        return Err(std::io::Error::other(fs::read_to_string(gate)?));
    }
    if gate.exists() {
        println!("waiting {} {what}", id());
        // Opening it waits for a writer. It may be gone by now: then nobody is to wait.
        let _ = fs::File::open(gate).and_then(|mut gate| gate.read(&mut [0]));
    }
    Ok(())
}

fn print_verdict(verdict: &Verdict) {
    match verdict {
        Verdict::Failed(failure) => {
            let source = failure.source().map(ToString::to_string).unwrap_or_default();
            let status = failure.exit_status.map(|status| status.to_string()).unwrap_or_default();
            println!(
                "verdict failed; phase {}; reason {}; source {source}; status {status}; stderr {}",
                failure.phase,
                failure.reason,
                failure.stderr.join(" | "),
            );
        }
        other => println!("verdict {other}"),
    }
}

/// What to do at which point: one line each, `POINT ACTION ...`.
///
/// The points are `check` (in the check, not in a successor), `start` (the library has not been called), `adopted` (the predecessor's things
/// are here), `ready` (just before it is said), `serving`, `later` (so many milliseconds after that)
/// and `drained`; and in the hooks `on-commit`, `giving-back` (to the predecessor), `taking-back`
/// (this process serves again) and `on-confirm`.
struct Script(Vec<Vec<String>>);

impl Script {
    fn read(path: Option<PathBuf>) -> Self {
        let text = path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let words = |line: &str| line.splitn(3, ' ').map(str::to_owned).collect();
        Self(text.lines().map(words).collect())
    }

    fn reach(&self, point: &str) {
        self.actions(point).for_each(|(action, argument)| act(point, action, argument));
    }

    /// The same while there is a handover to speak through.
    fn reach_with(&self, point: &str, handover: Handover) -> Result<Handover, Box<dyn Error>> {
        for (action, argument) in self.actions(point) {
            match action {
                "progress" => {
                    let more = argument.parse().ok().map(Duration::from_millis);
                    handover.progress("working", more);
                }
                "refuse" => return Err(handover.refuse(argument).into()),
                "listen" => listen(&handover, argument)?,
                _ => act(point, action, argument),
            }
        }
        Ok(handover)
    }

    /// What to do a while after this process has begun to serve: `later MS ACTION ...`.
    fn reach_later(&self, handle: Handle) {
        let lines: Vec<(u64, String)> = self
            .actions("later")
            .filter_map(|(milliseconds, rest)| Some((milliseconds.parse().ok()?, rest.to_owned())))
            .collect();
        thread::spawn(move || {
            for (milliseconds, rest) in lines {
                thread::sleep(Duration::from_millis(milliseconds));
                let (action, argument) = rest.split_once(' ').unwrap_or((&rest, ""));
                println!("later {} {action}", id());
                match action {
                    "confirm" => handle.confirm(),
                    "unhealthy" => handle.unhealthy(argument),
                    "stop-service" => handle.stop(),
                    _ => act("later", action, argument),
                }
            }
        });
    }

    fn actions<'a>(&'a self, point: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let lines = self.0.iter().filter(move |line| line[0] == point);
        lines.map(|line| (line[1].as_str(), line.get(2).map(String::as_str).unwrap_or_default()))
    }
}

fn act(point: &str, action: &str, argument: &str) {
    match action {
        "abort" => std::process::abort(),
        "child" => start_child(point),
        "helper" => start_helper(),
        "exit" => {
            let (code, text) = argument.split_once(' ').unwrap_or((argument, ""));
            eprintln!("{text}");
            exit(code.parse().unwrap_or(1));
        }
        "hang" => {
            println!("hanging {} {point}", id());
            loop {
                thread::park();
            }
        }
        "panic" => panic!("{argument}"),
        "raw" => speak(argument),
        "raw-beside" => speak_beside_the_library(argument),
        "rename" => {
            let (from, to) = argument.split_once(' ').unwrap_or_default();
            fs::rename(from, to).expect("both names are in one folder");
        }
        "shout" => shout(argument.parse().unwrap_or(0)),
        "shout-aside" => {
            let bytes = argument.parse().unwrap_or(0);
            thread::spawn(move || shout(bytes));
        }
        "stop" => stop_itself(),
        "wait" => pass(point, Path::new(argument)).expect("a gate"),
        other => panic!("no such action: {other}"),
    }
}

/// Starts a process that tells what it has from this one.
fn start_child(point: &str) {
    const LIST: &str = "cd /proc/self/fd && echo $(env | grep HANDOVER_CHANNEL | wc -l) *";
    let command = std::process::Command::new("sh").args(["-c", LIST]).output();
    let output = String::from_utf8_lossy(&command.expect("there is a shell").stdout).into_owned();
    println!("child {} {point} has variables and descriptors {}", id(), output.trim_end());
}

/// Starts a process that stays, with all that it can have of this one.
fn start_helper() {
    let helper = std::process::Command::new("sleep").arg("1000").spawn();
    println!("helper {}", helper.expect("there is sleep").id());
}

fn stop_itself() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
}

/// Writes numbered lines to stderr until they are this many bytes.
fn shout(bytes: usize) {
    const LINE_BYTES: usize = 100;
    let lines = bytes / LINE_BYTES;
    println!("shouting {}", id());
    (0..lines).for_each(|n| eprintln!("shout {n:0>93}"));
    println!("shouted {} {lines}", id());
}

/// Speaks the protocol itself, and wrongly; then waits to be called off, and says how.
fn speak(what: &str) {
    let hello = |newest: u32| {
        let pid = id();
        format!(
            r#"{{"type":"hello","versions":{{"oldest":{newest},"newest":{newest}}},"pid":{pid},"software":"subject"}}"#
        )
    };
    let channel = channel();
    let mut buffer = vec![0; 1 << 17];
    let preamble = receive(&channel, &mut buffer);
    assert!(preamble.contains("token"), "the preamble comes first: {preamble}");
    match what {
        "garbage" => send(&channel, b"\xff\xfe no JSON", &[]),
        "brand-new" => send(&channel, br#"{"type":"brand-new"}"#, &[]),
        "version-99" => send(&channel, hello(99).as_bytes(), &[]),
        "descriptor" => {
            send(&channel, hello(1).as_bytes(), &[std::io::stdout().as_fd()]);
        }
        "descriptors" => {
            send(&channel, hello(1).as_bytes(), &[std::io::stdout().as_fd(); 253]);
        }
        "flood" => {
            send(&channel, hello(1).as_bytes(), &[]);
            println!("flooding {}", id());
            flood(&channel);
        }
        "huge" => {
            let text = format!(r#"{{"type":"{}"}}"#, "x".repeat(70_000));
            send(&channel, text.as_bytes(), &[]);
        }
        "ready" => {
            send(&channel, hello(1).as_bytes(), &[]);
            send(&channel, br#"{"type":"ready"}"#, &[]);
        }
        "serving" => {
            send(&channel, hello(1).as_bytes(), &[]);
            send(&channel, br#"{"type":"serving"}"#, &[]);
        }
        "stop-when-replaced" => {
            send(&channel, hello(1).as_bytes(), &[]);
            until_commit(&channel, &mut buffer);
            send(&channel, br#"{"type":"serving"}"#, &[]);
            send(&channel, br#"{"type":"unhealthy","reason":"no"}"#, &[]);
            until(&channel, &mut buffer, r#""type":"rollback""#);
            send(&channel, br#"{"type":"stopped"}"#, &[]);
            until(&channel, &mut buffer, r#""type":"resumed""#);
            send(&channel, br#"{"type":"stop"}"#, &[]);
            exit(0);
        }
        "commit-hang" | "commit-exit" | "commit-refuse" => {
            send(&channel, hello(1).as_bytes(), &[]);
            until_commit(&channel, &mut buffer);
            match what {
                "commit-exit" => exit(5),
                "commit-refuse" => send(&channel, br#"{"type":"refuse","reason":"no"}"#, &[]),
                _ => act("commit", "hang", ""),
            }
        }
        other => panic!("no such misbehaviour: {other}"),
    }
    loop {
        let frame = receive(&channel, &mut buffer);
        if frame.is_empty() || frame.contains(r#""type":"abort""#) {
            eprintln!("called off: {frame}");
            exit(4);
        }
    }
}

/// Says that it makes progress, faster than anybody can hear it, whatever the answer.
fn flood(channel: &OwnedFd) -> ! {
    const PROGRESS: &[u8] = br#"{"type":"progress","text":"still"}"#;
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    // What does not fit is said again.
                    let _ = rustix::net::send(channel, PROGRESS, SendFlags::NOSIGNAL);
                }
            });
        }
    });
    unreachable!("nobody tires")
}

/// Misuses the channel that the library has.
fn speak_beside_the_library(what: &str) {
    let channel = channel();
    match what {
        "garbage" => send(&channel, b"\xff\xfe no JSON", &[]),
        "close" => rustix::net::shutdown(&channel, Shutdown::Both).expect("it is connected"),
        other => panic!("no such misbehaviour: {other}"),
    }
}

/// Waits for a frame that says this.
fn until(channel: &OwnedFd, buffer: &mut [u8], what: &str) {
    while !receive(channel, buffer).contains(what) {}
}

/// Does all that a successor does that claims the listener, until it is told to accept.
fn until_commit(channel: &OwnedFd, buffer: &mut [u8]) {
    loop {
        let frame = receive(channel, buffer);
        if let Some((_, number)) = frame.split_once(r#""frame":"#) {
            let number: String = number.chars().take_while(char::is_ascii_digit).collect();
            send(channel, format!(r#"{{"type":"ack","frame":{number}}}"#).as_bytes(), &[]);
        }
        if frame.contains(r#""name":"early""#) {
            send(channel, br#"{"type":"claim","names":["http"]}"#, &[]);
            send(channel, br#"{"type":"ready"}"#, &[]);
        }
        if frame.contains(r#""type":"commit""#) {
            return;
        }
    }
}

/// Another descriptor of the channel, had without believing a bare number.
fn channel() -> OwnedFd {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

    let variable = CHANNEL.get().map(String::as_str).unwrap_or_default();
    let number = variable.split_once(':').and_then(|(number, _)| number.parse().ok());
    let own = pidfd_open(getpid(), PidfdFlags::empty()).expect("a pidfd of this process");
    pidfd_getfd(own, number.expect("a channel"), PidfdGetfdFlags::empty()).expect("is open")
}

fn send(channel: &OwnedFd, frame: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let bytes = [std::io::IoSlice::new(frame)];
    rustix::net::sendmsg(channel, &bytes, &mut ancillary, SendFlags::NOSIGNAL).expect("sent");
}

/// Waits for a frame; empty at the end.
fn receive(channel: &OwnedFd, buffer: &mut [u8]) -> String {
    use rustix::event::{PollFd, PollFlags, poll};

    let _ = poll(&mut [PollFd::new(channel, PollFlags::IN)], None);
    let received = rustix::net::recv(channel, &mut buffer[..], rustix::net::RecvFlags::empty());
    let bytes = received.map_or(0, |(bytes, _)| bytes);
    String::from_utf8_lossy(&buffer[..bytes]).into_owned()
}
