//! A program under test: what it counts goes to the successor, and comes back with a rollback.
//!
//! `subject_counter FOLDER` answers each GET with its pid and how many there were, in all
//! generations. Its control socket is `control` in the folder, and what it does wrong when its
//! count goes back stands in the file `returning`: `error`, `panic`.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::id;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use handover::{Connection, Handle, Handover, StateError, StateWriter, TcpListener, WhoServes};

/// How long the last requests may take before the count is written.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("which folder?")?);
    let (count, handle) = (Arc::new(AtomicU64::new(0)), Arc::new(OnceLock::<Handle>::new()));
    let handover = Handover::builder()
        .probation(Duration::from_secs(60))
        .answer_timeout(Duration::from_secs(20))
        .control(folder.join("control"))
        .on_verdict(|verdict| println!("verdict {verdict}"))
        .on_rollback({
            let (count, handle) = (Arc::clone(&count), Arc::clone(&handle));
            move |rollback| {
                if rollback.who_serves == WhoServes::ThisProcess {
                    println!("back {}", take(&count, handle.get().expect("it serves")));
                }
            }
        })
        .start()?;
    let listener: TcpListener = handover.listen("http", "127.0.0.1:0")?;
    println!("listening on {}", listener.local_addr()?);
    let (counted, returning) = (Arc::clone(&count), folder.join("returning"));
    let is_successor = handover.is_successor();
    handover.provide_late_state("count", 1, move |out| {
        match std::fs::read_to_string(&returning).as_deref() {
            Ok("error") if is_successor => return Err("the disk is on fire".into()),
            Ok("panic") if is_successor => panic!("a bug of the application"),
            _ => {}
        }
        write(&counted, out)
    })?;

    let running = handover.ready()?;
    take(&count, &running.handle());
    let _ = handle.set(running.handle());
    println!("serving {}", id());
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let count = Arc::clone(&count);
            thread::spawn(move || answer(connection, &count));
        }
    });
    let draining = running.wait()?;
    println!("draining {} {:?}", id(), draining.ending());
    draining.drain()?;
    println!("drained {}", id());
    Ok(())
}

/// Goes on with the count that another process has left; returns it, if there is one.
fn take(count: &AtomicU64, handle: &Handle) -> String {
    let Some(state) = handle.late_state("count") else { return "without a count".into() };
    let text = String::from_utf8_lossy(&state).into_owned();
    count.store(text.parse().expect("a number"), Ordering::SeqCst);
    text
}

fn write(count: &AtomicU64, out: &mut StateWriter) -> Result<(), StateError> {
    if !out.wait_idle(IDLE_TIMEOUT) {
        return Err("requests take too long".into());
    }
    Ok(write!(out, "{}", count.load(Ordering::SeqCst))?)
}

fn answer(connection: Connection<TcpStream>, count: &AtomicU64) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 && line.trim_end() != "" {
        line.clear();
    }
    let body = format!("{} {}", id(), count.fetch_add(1, Ordering::SeqCst) + 1);
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    lines.get_mut().write_all((head + &body).as_bytes())
}
