//! A program under test: what a service does with systemd.
//!
//! Each argument is a word, a colon, and what belongs to it:
//!
//! | argument | meaning |
//! |---|---|
//! | `tcp:NAME[=ADDRESS]`, `udp:`, `unix:`, `datagram:`, `seqpacket:` | claim that socket, bound to the address if there is one; without one it has to come from systemd |
//! | `only:`, `never:` before one of these | it has to come from systemd, or must not |
//! | `all:tcp:NAME` | claim all of that name |
//! | `fifo:NAME` | claim the FIFO that systemd has passed |
//! | `store:` | use the fd store |
//! | `state:NAME` | count requests in a state of that name; `GET /save` saves it |
//! | `gate:FIFO` | write that state only when somebody has written to the FIFO, if it is there |
//! | `later:NAME` | leave a socket of that name to a later generation |
//! | `control:PATH`, `probation:MS`, `drain:MS` | as the builder has it |
//! | `fail:FILE` | fail at the start if there is such a file, saying what is in it |
//! | `slow:FILE` | if there is such a file, initialise for so many milliseconds as it says, and ask for that time |
//! | `ill:FILE` | withhold signs of life while there is such a file |
//! | `hang:FILE` | hang in the thread that gives them, if there is such a file when it serves |
//!
//! Streams are answered as HTTP with `PID COUNT`, and `GET /hold` is then held open until the client
//! closes. `GET /listen` binds one more socket, which `GET /unlisten` drops, and `GET /listen-long` one of a
//! name that is too long. `GET /child` starts a program that tells systemd what is not its to tell. Datagrams are answered with the pid. What happens is printed, one line each.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, id};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;
use std::{env, fs, thread};

use handover::{
    Bind, Claim, Connection, FromSystemd, Handle, Handover, SeqpacketStream, TcpListener,
    UdpSocket, UnixDatagram, UnixListener, UnixSeqpacketListener,
};

/// What names a process, or what is its own.
const VARIABLES: [&str; 6] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "WATCHDOG_PID",
    "SYSTEMD_EXEC_PID",
];

/// How many requests were answered, in this process and in those before it.
static COUNT: AtomicU64 = AtomicU64::new(0);

static HANDLE: OnceLock<Handle> = OnceLock::new();

/// A socket that was bound later.
static LATE: Mutex<Option<TcpListener>> = Mutex::new(None);

/// What the state waits for.
static GATE: OnceLock<PathBuf> = OnceLock::new();

fn main() -> ExitCode {
    if env::var_os("SUBJECT_LOG").is_some() {
        tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    }
    if env::args().nth(1).as_deref() == Some(CHILD) {
        speak_out_of_turn();
    }
    match serve(env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("subject: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// What is told to somebody who is to be taken for the service.
const CHILD: &str = "--child";

/// Says what only the main process may say, to whom its environment names, and stays: systemd looks who has
/// spoken.
fn speak_out_of_turn() -> ! {
    let words = format!("READY=1\nSTATUS=mine\nMAINPID={}\nFDSTOREREMOVE=1\nFDNAME=x", id());
    let socket = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    let notify = env::var_os("NOTIFY_SOCKET").expect("it is inherited");
    for words in [&*words, "STOPPING=1"] {
        socket.send_to(words.as_bytes(), &notify).expect("systemd listens");
    }
    println!("spoken");
    loop {
        thread::park();
    }
}

fn serve(arguments: Vec<String>) -> Result<(), Box<dyn Error>> {
    let mut builder = Handover::builder().max_generations(100);
    for argument in &arguments {
        let milliseconds = |text: &str| text.parse().map(Duration::from_millis);
        builder = match argument.split_once(':').unwrap_or((argument, "")) {
            ("store", _) => builder.fd_store(),
            ("control", path) => builder.control(path),
            ("probation", text) => builder.probation(milliseconds(text)?),
            ("drain", text) => builder.drain_timeout(milliseconds(text)?),
            ("ill", file) => {
                let file = PathBuf::from(file);
                builder.watchdog(move || !file.exists())
            }
            _ => builder,
        };
    }
    let handover = builder.start()?;
    let pid = id();
    for name in VARIABLES {
        println!("variable {pid} {name}={}", env::var(name).unwrap_or_default());
    }
    println!(
        "started {pid} successor {} recovery {}",
        handover.is_successor(),
        handover.is_recovery()
    );
    let mut hangs = None;
    for argument in &arguments {
        match argument.split_once(':').unwrap_or((argument, "")) {
            ("fail", file) if Path::new(file).exists() => {
                return Err(fs::read_to_string(file)?.into());
            }
            ("slow", file) if Path::new(file).exists() => {
                let time = Duration::from_millis(fs::read_to_string(file)?.trim().parse()?);
                handover.progress("warming up", Some(time + Duration::from_secs(60)));
                println!("warming up {pid}");
                thread::sleep(time);
            }
            ("hang", file) => hangs = Some(PathBuf::from(file)),
            ("gate", file) => drop(GATE.set(file.into())),
            ("later", name) => println!("later {pid} {name} {}", handover.claim_later(name)),
            ("state", name) => restore(&handover, name)?,
            _ => claim(&handover, argument)?,
        }
    }
    let running = handover.ready()?;
    let handle = running.handle();
    println!("serving {pid} generation {}", handle.generation());
    let _ = HANDLE.set(handle);
    if hangs.is_some_and(|file| file.exists()) {
        println!("hanging {pid}");
        loop {
            thread::park();
        }
    }
    let draining = running.wait()?;
    println!("draining {pid} {:?}", draining.ending());
    println!("drained {pid} {}", draining.drain()?);
    Ok(())
}

fn restore(handover: &Handover, name: &str) -> Result<(), Box<dyn Error>> {
    if let Some(state) = handover.state(name) {
        let count: u64 = std::str::from_utf8(&state)?.parse()?;
        COUNT.store(count, Ordering::SeqCst);
        let is_old = state.age().map_or("handed over", |_| "saved");
        println!("state {} {name} version {} {is_old}: {count}", id(), state.version());
    }
    handover.provide_state(name, 7, |out| {
        if let Some(gate) = GATE.get().filter(|gate| gate.exists()) {
            println!("waiting {}", id());
            // Opening it waits for who writes.
            let _ = fs::File::open(gate)?.read(&mut [0]);
            // What the application may do while it writes.
            println!("generation {}", HANDLE.get().map_or(0, Handle::generation));
        }
        Ok(write!(out, "{}", COUNT.load(Ordering::SeqCst))?)
    })?;
    Ok(())
}

fn claim(handover: &Handover, argument: &str) -> Result<(), Box<dyn Error>> {
    let (word, rest) = argument.split_once(':').unwrap_or((argument, ""));
    let (from, word, rest) = match word {
        "only" | "never" | "all" => {
            let (kind, rest) = rest.split_once(':').unwrap_or((rest, ""));
            (word, kind, rest)
        }
        _ => ("", word, rest),
    };
    let (name, address) = rest.split_once('=').unwrap_or((rest, ""));
    let bind = || {
        let bind = match address {
            "" => Bind::passed_by_systemd(),
            address => Bind::to(address),
        };
        match from {
            "only" => bind.from_systemd(FromSystemd::Only),
            "never" => bind.from_systemd(FromSystemd::Never),
            _ => bind,
        }
    };
    match (word, from) {
        ("tcp", "all") => {
            for listener in handover.listen_all::<TcpListener>(name, bind())? {
                println!("claimed {} {name} {}", id(), listener.local_addr()?);
                serve_tcp(listener);
            }
        }
        ("tcp", _) => {
            let listener: TcpListener = handover.listen(name, bind())?;
            println!("claimed {} {name} {}", id(), listener.local_addr()?);
            serve_tcp(listener);
        }
        ("udp", _) => {
            let socket: UdpSocket = claimed(handover, name, bind())?;
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(Some((_, from, _guard))) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(id().to_string().as_bytes(), from);
                }
            });
        }
        ("unix", _) => {
            let listener: UnixListener = claimed(handover, name, bind())?;
            thread::spawn(move || {
                for connection in listener.incoming().flatten() {
                    thread::spawn(|| answer(connection));
                }
            });
        }
        ("datagram", _) => {
            let socket: UnixDatagram = claimed(handover, name, bind())?;
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(Some((bytes, _, _guard))) = socket.recv_from(&mut buffer) {
                    println!("datagram {} {}", id(), String::from_utf8_lossy(&buffer[..bytes]));
                }
            });
        }
        ("seqpacket", _) => {
            let listener: UnixSeqpacketListener = claimed(handover, name, bind())?;
            thread::spawn(move || {
                for connection in listener.incoming().flatten() {
                    let _ = greet(&connection);
                }
            });
        }
        ("fifo", _) => {
            let fifo = handover.descriptor(name, || Err(std::io::ErrorKind::NotFound.into()))?;
            println!("claimed {} {name} fifo", id());
            let fd = fifo.as_fd().try_clone_to_owned()?;
            thread::spawn(move || {
                // It has no end: systemd has it open as well, for writing, too.
                for line in BufReader::new(fs::File::from(fd)).lines().map_while(Result::ok) {
                    println!("fifo {} {line}", id());
                }
            });
            std::mem::forget(fifo);
        }
        _ => {}
    }
    Ok(())
}

fn claimed<S: Claim>(handover: &Handover, name: &str, bind: Bind) -> Result<S, Box<dyn Error>> {
    let socket = handover.listen(name, bind)?;
    println!("claimed {} {name}", id());
    Ok(socket)
}

fn serve_tcp(listener: TcpListener) {
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(|| answer(connection));
        }
    });
}

fn greet(connection: &Connection<SeqpacketStream>) -> std::io::Result<usize> {
    connection.send(id().to_string().as_bytes())
}

fn answer(stream: impl Read + Write) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let mut header = String::new();
    while lines.read_line(&mut header)? > 0 && header.trim_end() != "" {
        header.clear();
    }
    let count = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    let mut body = format!("{} {count}", id());
    let handle = HANDLE.get();
    if first.starts_with("GET /save ") {
        let saved = handle.map(|handle| handle.save_state("count"));
        body += &format!(" {saved:?}");
    }
    if first.starts_with("GET /child ") {
        let mut child = std::process::Command::new(env::current_exe()?);
        let child = child.arg(CHILD).stdout(std::process::Stdio::piped()).spawn()?;
        let mut said = String::new();
        BufReader::new(child.stdout.unwrap()).read_line(&mut said)?;
        body += &format!(" {}", said.trim_end());
    }
    let listen = |name: &str| handle.map(|handle| handle.listen(name, "127.0.0.1:0"));
    if first.starts_with("GET /listen ") {
        let listened =
            listen("late").map(|late| late.map(|late| *LATE.lock().unwrap() = Some(late)));
        body += &format!(" {listened:?}");
    }
    if first.starts_with("GET /unlisten ") {
        LATE.lock().unwrap().take();
    }
    if first.starts_with("GET /listen-long ") {
        body +=
            &format!(" {:?}", listen(&"ä".repeat(80)).map(|late| late.map(|_: TcpListener| ())));
    }
    let length = body.len();
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    lines.get_mut().write_all(answer.as_bytes())?;
    if first.starts_with("GET /hold ") {
        lines.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}
