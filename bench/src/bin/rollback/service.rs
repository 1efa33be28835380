//! The service that is upgraded, and the processes that end.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::id;
use std::thread;
use std::time::Duration;

use handover::{Connection, Handover, TcpListener, Verdict};
use handover_bench::now;

/// Has who accepts it abort.
pub(crate) const DIE: &str = "die";

/// Longer than this bench takes.
const PROBATION: Duration = Duration::from_secs(3600);

/// For whoever watches a bare process to be there.
const BARE_LIFE: Duration = Duration::from_millis(20);

pub(crate) fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let handover = Handover::builder().probation(PROBATION).on_verdict(tell).start()?;
    let listener: TcpListener = handover.listen("service", "127.0.0.1:0")?;
    println!("listening on {}", listener.local_addr()?);
    let running = handover.ready()?;
    println!("serving {}", id());
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let accepted = now();
            // What becomes of one connection is its client's to know.
            let _ = answer(connection, accepted);
        }
    });
    running.wait()?.drain()?;
    Ok(())
}

fn tell(verdict: &Verdict) {
    match verdict {
        Verdict::RolledBack(_) => println!("rolled back"),
        other => panic!("{other}"),
    }
}

fn answer(connection: Connection<TcpStream>, accepted: Duration) -> std::io::Result<()> {
    let mut stream = BufReader::new(connection);
    let mut line = String::new();
    stream.read_line(&mut line)?;
    if line.trim_end() == DIE {
        die();
    }
    writeln!(stream.get_mut(), "{} {}", id(), accepted.as_nanos())
}

pub(crate) fn die_bare() -> ! {
    thread::sleep(BARE_LIFE);
    die()
}

fn die() -> ! {
    println!("dying {}", now().as_nanos());
    std::process::abort()
}
