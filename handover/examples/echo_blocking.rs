//! The same echo without a runtime: `echo_blocking [ADDRESS] [--control PATH]
//! [--probation SECONDS]`, by default at 127.0.0.1:7000.
//!
//! Each line comes back with the number of the process before it. SIGHUP upgrades, SIGTERM stops.
//! Builds with `--no-default-features`.

mod options;

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::thread;

use handover::{Connection, TcpListener};

fn main() -> Result<(), Box<dyn Error>> {
    let (address, builder) = options::read("127.0.0.1:7000");

    let handover = builder.start()?;
    let listener: TcpListener = handover.listen("echo", &address)?;
    println!("listening on {}", listener.local_addr()?);

    let running = handover.ready()?;
    thread::spawn(move || {
        // Ends by itself when this generation must not accept any more.
        for connection in listener.incoming().flatten() {
            thread::spawn(|| echo(connection));
        }
    });

    // Signals and upgrades are handled here, until a successor serves or a stop was asked for.
    let drained = running.wait()?.drain()?;
    eprintln!("{drained}");
    Ok(())
}

/// A connection counts as in flight for as long as it lives.
fn echo(mut connection: Connection<TcpStream>) -> std::io::Result<()> {
    let pid = std::process::id();
    let mut lines = BufReader::new(connection.try_clone()?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        connection.write_all(format!("{pid} {line}").as_bytes())?;
        line.clear();
    }
    Ok(())
}
