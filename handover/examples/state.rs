//! State that survives: `state [ADDRESS] [--control PATH]
//! [--probation SECONDS]`, by default at 127.0.0.1:7001.
//!
//! One command a connection: `add` answers with a counter that has grown by one, `get` without
//! growing it, `set KEY VALUE` and `get KEY` use a table. Every answer begins with the number of
//! the process. SIGHUP upgrades, SIGTERM stops.

mod options;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use handover::{Connection, TcpListener};
use serde::{Deserialize, Serialize};

#[derive(Clone, Default, Serialize, Deserialize)]
struct Data {
    counter: u64,
    table: BTreeMap<String, String>,
}

/// The version of `Data`, to be raised when its meaning changes.
const VERSION: u32 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let (address, builder) = options::read("127.0.0.1:7001");

    let handover = builder.start()?;
    let listener: TcpListener = handover.listen("state", &address)?;
    println!("listening on {}", listener.local_addr()?);

    // What this generation will leave to the next: written when it has stopped accepting and
    // answered the last command, so that nothing is missed.
    let data = Arc::new(Mutex::new(Data::default()));
    let left = Arc::clone(&data);
    handover.provide_late_state("data", VERSION, move |out| {
        if !out.wait_idle(Duration::from_secs(5)) {
            return Err("commands are still being served".into());
        }
        out.json(&*left.lock().unwrap_or_else(PoisonError::into_inner))
    })?;

    let running = handover.ready()?;
    match running.handle().late_state("data") {
        Some(state) if state.version() == VERSION => {
            *data.lock().unwrap_or_else(PoisonError::into_inner) = state.json()?;
        }
        Some(state) => return Err(format!("cannot read version {}", state.version()).into()),
        None => {}
    }

    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let data = Arc::clone(&data);
            thread::spawn(move || serve(connection, &data));
        }
    });
    running.wait()?.drain()?;
    Ok(())
}

fn serve(mut connection: Connection<TcpStream>, data: &Mutex<Data>) -> std::io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut line = String::new();
    BufReader::new(&*connection).read_line(&mut line)?;
    let answer = {
        let mut data = data.lock().unwrap_or_else(PoisonError::into_inner);
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["add"] => {
                data.counter += 1;
                data.counter.to_string()
            }
            ["get"] => data.counter.to_string(),
            ["set", key, value] => data.table.insert(key.into(), value.into()).unwrap_or_default(),
            ["get", key] => data.table.get(key).cloned().unwrap_or_default(),
            _ => "add | get | set KEY VALUE | get KEY".into(),
        }
    };
    writeln!(connection, "{} {answer}", std::process::id())
}
