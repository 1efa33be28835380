//! A program under test: all that the library does, in one service.
//!
//! `subject_whole FOLDER [--children] [--leak] [--log]` echoes lines, each with the number of the process before
//! it, at a TCP address and in the folder on `echo`. Its connections change hands, with what was read of them,
//! and so do an early and a late state; `control` and `pid` are in the folder, too.
//!
//! With `--children` it starts programs all the time, from four threads, and tells of each that has anything
//! else than its three streams; with `--leak` it has something for them. With `--log` it writes all that the
//! library logs to stderr, and the variable `SECRET` is in each state.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::future::pending;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, id};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{env, fs, io, thread};

use handover::live::{Baggage, Departure, Departures, NoDeparture};
use handover::tokio::{TcpListener, UnixListener, ready};
use handover::{Connection, Handover};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// How large the states are; the connections' are longer than fits a frame.
const STATE_BYTES: usize = 100_000;

fn main() -> Result<(), Box<dyn Error>> {
    tell_strays();
    let folder = PathBuf::from(env::args_os().nth(1).ok_or("which folder?")?);
    let is_set = |option: &str| env::args().any(|argument| argument == option);
    if is_set("--log") {
        let all = tracing_subscriber::filter::LevelFilter::TRACE;
        let log = tracing_subscriber::fmt().with_max_level(all).with_ansi(false);
        log.with_writer(io::stderr).init();
    }
    let handover = Handover::builder()
        .control(folder.join("control"))
        .pid_file(folder.join("pid"))
        .drain_timeout(Duration::from_secs(20))
        .max_generations(100)
        .start()?;
    let started = Arc::new(AtomicUsize::new(0));
    if is_set("--leak") {
        let leak = OwnedFd::from(fs::File::open(env::current_exe()?)?);
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty())?;
        std::mem::forget(leak);
    }
    if is_set("--children") {
        for number in 0..4 {
            let started = Arc::clone(&started);
            thread::spawn(move || start_children(number, &started));
        }
    }
    Runtime::new()?.block_on(serve(handover, &folder))?;
    println!("drained {} after {} children", id(), started.load(Ordering::SeqCst));
    Ok(())
}

/// Says what this process was started with beside its streams and its channel.
fn tell_strays() {
    let channel = env::var("HANDOVER_CHANNEL").unwrap_or_default();
    let channel = channel.split(':').next().unwrap_or_default().to_owned();
    for (name, what) in descriptors() {
        if !["0", "1", "2", &*channel].contains(&&*name) && !what.contains("/proc/") {
            println!("stray {} {name} {what}", id());
        }
    }
}

fn descriptors() -> Vec<(String, String)> {
    let entries = fs::read_dir("/proc/self/fd").expect("there is /proc");
    let what = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).map_or_else(|e| e.to_string(), |it| it.display().to_string())
    };
    let named = |entry: fs::DirEntry| (entry.file_name().to_string_lossy().into(), what(&entry));
    entries.flatten().map(named).collect()
}

/// Starts one program after the other, each of which lists what it has.
fn start_children(number: u32, started: &AtomicUsize) {
    loop {
        let mut command = Command::new("ls");
        command.arg("/proc/self/fd").stdin(Stdio::null());
        if number.is_multiple_of(2) {
            // std forks for this, and else it does not.
            command.uid(rustix::process::geteuid().as_raw());
        }
        let output = command.output().expect("there is ls");
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        // The last one is the folder that is listed.
        if listed.split_whitespace().ne(["0", "1", "2", "3"]) {
            let ours = descriptors();
            println!("leak {} {} of {ours:?}", id(), listed.replace('\n', " "));
        }
        started.fetch_add(1, Ordering::SeqCst);
    }
}

async fn serve(handover: Handover, folder: &Path) -> Result<(), Box<dyn Error>> {
    let tcp: TcpListener = handover.listen("tcp", "127.0.0.1:0")?;
    let unix: UnixListener = handover.listen("unix", folder.join("echo").as_path())?;
    println!("listening on {}", tcp.local_addr()?);
    let state = || {
        let mut state = env::var("SECRET").unwrap_or_default().into_bytes();
        state.resize(STATE_BYTES, b'.');
        state
    };
    let (early, late) = (state(), state());
    if handover.is_successor() {
        let inherited = handover.state("early").ok_or("no early state")?;
        assert_eq!(inherited[..], early);
    }
    handover.provide_state("early", 1, move |out| Ok(io::Write::write_all(out, &early)?))?;
    handover.provide_late_state("late", 1, move |out| Ok(io::Write::write_all(out, &late)?))?;

    let is_successor = handover.is_successor();
    let running = ready(handover).await?;
    let handle = running.handle();
    let late = handle.late_state("late");
    assert_eq!(late.is_some_and(|late| late.len() == STATE_BYTES), is_successor);
    let departures = handle.departures("echo", 1)?;
    let mut arrivals = handle.arrivals("echo", 1..=1)?;
    let going_on = departures.clone();
    tokio::spawn(async move {
        while let Some(arrival) = arrivals.next().await {
            tracing::debug!(?arrival, "it goes on here");
            if let Ok((connection, Baggage { unread, .. })) = arrival.into_connection() {
                tokio::spawn(echo(connection, unread, Some(going_on.clone())));
            }
        }
    });
    tokio::spawn(async move { while let Ok(Some(_)) = unix.accept().await {} });
    println!("serving {} generation {}", id(), handle.generation());
    let accepting = tokio::spawn(async move {
        while let Ok(Some((connection, _))) = tcp.accept().await {
            tokio::spawn(echo(connection, Vec::new(), Some(departures.clone())));
        }
    });
    running.wait().await;
    accepting.await?;
    running.drain().await?;
    Ok(())
}

async fn echo(
    mut connection: Connection<TcpStream>,
    mut unread: Vec<u8>,
    mut departures: Option<Departures>,
) -> io::Result<()> {
    loop {
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            connection.write_all(&[format!("{} ", id()).as_bytes(), &line].concat()).await?;
        }
        tokio::select! {
            read = connection.read_buf(&mut unread) => if read? == 0 {
                return Ok(());
            },
            slot = slot(departures.as_ref()) => match slot {
                Ok(departure) => {
                    let baggage = Baggage { unread, state: vec![b'.'; STATE_BYTES] };
                    let Err(back) = departure.send(connection, baggage).await else {
                        return Ok(());
                    };
                    println!("back {} {}", back.connection.as_ref().map_or(-1, |it| it.as_raw_fd()), back.reason);
                    (connection, unread, departures) = (back.connection?, back.baggage.unread, None);
                }
                Err(_) => departures = None,
            },
        }
    }
}

async fn slot(departures: Option<&Departures>) -> Result<Departure, NoDeparture> {
    match departures {
        Some(departures) => departures.slot().await,
        None => pending().await,
    }
}
