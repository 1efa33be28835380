//! HTTP with std alone: `http_blocking [ADDRESS] [--control PATH]
//! [--probation SECONDS] [--fd-store]`, by default at 127.0.0.1:8080.
//!
//! `GET /` answers with the process and the generation that served it. SIGHUP upgrades, SIGTERM
//! stops. An upgrade loses no request. There are no time limits, and bodies are not read. Builds with
//! `--no-default-features`.

mod options;

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use handover::{Connection, TcpListener, Until};

const MAX_HEAD_BYTES: u64 = 16 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let (address, builder) = options::read("127.0.0.1:8080");
    let handover = builder.start()?;
    let http: TcpListener = handover.listen("http", &address)?;
    println!("listening on {}", http.local_addr()?);

    let answer = format!("{} {}\n", std::process::id(), handover.generation());

    let running = handover.ready()?;
    let draining = running.handle().draining();
    thread::spawn(move || {
        // Ends by itself when this generation must not accept any more.
        for connection in http.incoming().flatten() {
            let (answer, draining) = (answer.clone(), draining.clone());
            thread::spawn(move || serve(&connection, &answer, &draining));
        }
    });

    // What was accepted is answered. A connection that stays idle is closed in the end.
    running.wait()?.drain()?;
    Ok(())
}

/// A connection counts as in flight for as long as it lives.
fn serve(connection: &Connection<TcpStream>, answer: &str, draining: &Until) -> io::Result<()> {
    let mut stream: &TcpStream = connection;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        // The client comes back on another connection, which will be the successor's.
        let closes = request.closes || draining.has_come();
        let (status, body) =
            if request.is_known { ("200 OK", answer) } else { ("404 Not Found", "") };
        let (length, close) = (body.len(), if closes { "Connection: close\r\n" } else { "" });
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{close}\r\n");
        stream.write_all(format!("{head}{body}").as_bytes())?;
        if closes {
            break;
        }
    }
    // The client is to close first. If it has sent more, closing here would be a reset, and that
    // could overtake the answer.
    stream.shutdown(Shutdown::Write)?;
    io::copy(&mut reader, &mut io::sink())?;
    Ok(())
}

struct Request {
    is_known: bool,
    closes: bool,
}

/// Reads one up to its empty line; `None` if the connection ends before, or it is too long.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut reader = reader.take(MAX_HEAD_BYTES);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let is_known = line.starts_with("GET / HTTP/1.");
    let mut closes = !line.trim_end().ends_with("HTTP/1.1");
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end().to_ascii_lowercase();
        match line.split_once(':') {
            Some(("connection", value)) => closes |= value.contains("close"),
            Some(("content-length" | "transfer-encoding", _)) => closes = true,
            _ if line.is_empty() => return Ok(Some(Request { is_known, closes })),
            _ => {}
        }
    }
}
