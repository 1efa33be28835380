//! A program under test: states, drain and the blocking API.
//!
//! `subject_state FOLDER [NAME=VALUE]...`, where the settings are those of [`Settings`]. It echoes
//! lines, each with the number of the process before it. A connection whose first line is
//! `control` is not counted as in flight and takes the commands of `commands.rs`. What a successor
//! does differently stands in the file `successor` of the folder, one instruction a line.

#[path = "state/commands.rs"]
mod commands;
#[path = "state/providers.rs"]
mod providers;
#[path = "state/settings.rs"]
mod settings;

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use handover::{Connection, Handover, TcpListener, Verdict};

use commands::{App, obey};
use providers::{Knobs, provide, show};
use settings::Settings;

fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings::read();
    let handover =
        settings.apply(Handover::builder()).max_generations(100).on_verdict(tell).start()?;
    let generation = handover.generation();
    if settings.nested {
        println!("nested generation {generation} successor {}", handover.is_successor());
        return Ok(());
    }
    let listener: TcpListener = handover.listen("echo", "127.0.0.1:0")?;
    println!("listening on {}", listener.local_addr()?);

    let knobs = Arc::new(Knobs::default());
    let instructions = settings.instructions(handover.is_successor());
    let (early, late) = (&settings.early, &settings.late);
    for wanted in early {
        if let Some(state) = handover.state(&wanted.name) {
            if instructions.iter().any(|i| *i == format!("needs {} 2", wanted.name)) {
                let why = format!("\"{}\" has version {}, not 2", wanted.name, state.version());
                return Err(handover.refuse(why).into());
            }
            println!("early {}", show(&state, wanted.how));
            assert!(handover.state(&wanted.name).is_none(), "it is taken");
        }
        let write = provide("early", wanted, generation, &knobs);
        handover.provide_state(&wanted.name, wanted.version, write)?;
    }
    for wanted in late {
        let write = provide("late", wanted, generation, &knobs);
        handover.provide_late_state(&wanted.name, wanted.version, write)?;
    }
    initialise(&handover, &instructions);

    let running = handover.ready()?;
    let handle = running.handle();
    for wanted in late {
        match handle.late_state(&wanted.name) {
            Some(state) => println!("late {}", show(&state, wanted.how)),
            None if generation > 1 => println!("no late {}", wanted.name),
            None => {}
        }
    }
    println!("serving {generation}");
    announce(&handle);

    let listener = Arc::new(listener);
    let app = Arc::new(App { handle, knobs: Arc::clone(&knobs), guards: Mutex::default() });
    let acceptors: Vec<_> = (0..settings.threads)
        .map(|_| {
            let (listener, app) = (Arc::clone(&listener), Arc::clone(&app));
            thread::spawn(move || {
                for connection in listener.incoming() {
                    let app = Arc::clone(&app);
                    let connection = connection.expect("the listener works");
                    thread::spawn(move || serve(connection, app));
                }
            })
        })
        .collect();

    let draining = running.wait()?;
    println!("draining {generation} {:?}", draining.ending());
    let drained = draining.drain()?;
    println!("drained {generation} {} {}", drained.finished, drained.cut);
    for acceptor in acceptors {
        acceptor.join().expect("no panic");
    }
    // From here on nothing of the library is in use.
    drop(app);
    if knobs.is_set("start-again") {
        println!("again {}", commands::start_again());
    }
    if knobs.is_set("stay") {
        println!("staying {generation}");
        settings.wait_for_file("go");
    }
    Ok(())
}

/// Prints what comes by itself.
fn announce(handle: &handover::Handle) {
    let (generation, gone) = (handle.generation(), handle.predecessor_gone());
    thread::spawn(move || {
        gone.wait();
        println!("predecessor of {generation} gone");
    });
    let draining = handle.draining();
    thread::spawn(move || {
        draining.wait();
        println!("until {generation} drains");
    });
}

/// Takes its time, as instructed: `slow MILLISECONDS`, telling of its progress at every tenth with
/// the instruction `progress`.
fn initialise(handover: &Handover, instructions: &[String]) {
    let progress = instructions.iter().any(|i| i == "progress");
    let slow = instructions.iter().find_map(|i| i.strip_prefix("slow ")?.parse().ok());
    let Some(slow) = slow.map(Duration::from_millis) else { return };
    let begun = Instant::now();
    while begun.elapsed() < slow {
        if progress {
            handover.progress("loading", Some(slow / 2));
        }
        thread::sleep(slow / 10);
    }
}

fn serve(connection: Connection<TcpStream>, app: Arc<App>) -> std::io::Result<()> {
    let pid = std::process::id();
    connection.set_nodelay(true)?;
    // What is counted is the guard, whatever became of the stream.
    let (stream, guard) = connection.map(BufReader::new).into_parts();
    let mut stream = stream;
    let mut line = String::new();
    while stream.read_line(&mut line)? > 0 {
        if line == "control\n" {
            let weak = Arc::downgrade(&app);
            drop((guard, app));
            return obey(stream, &weak);
        }
        stream.get_mut().write_all(format!("{pid} {line}").as_bytes())?;
        line.clear();
    }
    drop(guard);
    Ok(())
}

fn tell(verdict: &Verdict) {
    println!("verdict {}", commands::describe(verdict));
}
