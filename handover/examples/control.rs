//! Commands of its own, over the control socket: `control [ADDRESS] --control PATH
//! [--probation SECONDS]`, by default at 127.0.0.1:7003.
//!
//! Each connection is answered with a greeting. `handover call greeting` prints it, with
//! `'{"text":"good evening"}'` it is another one from then on, also in later generations.
//! SIGHUP upgrades, SIGTERM stops.

mod options;

use std::error::Error;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use handover::{Handover, TcpListener};
use serde_json::Value;

/// What is told to everybody who connects.
#[derive(Clone)]
struct Greeting(Arc<Mutex<String>>);

fn main() -> Result<(), Box<dyn Error>> {
    let (address, builder) = options::read("127.0.0.1:7003");
    let greeting = Greeting(Arc::new(Mutex::new("hello".into())));
    let called = greeting.clone();
    let handover = builder
        // To be shown by `handover status`.
        .version(env!("CARGO_PKG_VERSION"))
        .command("greeting", move |arguments| called.called(arguments))
        .start()?;
    serve(handover, &address, greeting)
}

fn serve(handover: Handover, address: &str, greeting: Greeting) -> Result<(), Box<dyn Error>> {
    let listener: TcpListener = handover.listen("greetings", address)?;
    println!("listening on {}", listener.local_addr()?);
    let left = greeting.clone();
    handover.provide_late_state("greeting", 1, move |out| Ok(write!(out, "{}", left.text())?))?;

    let running = handover.ready()?;
    if let Some(left) = running.handle().late_state("greeting") {
        *greeting.text() = std::str::from_utf8(&left)?.to_owned();
    }
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let text = greeting.text().clone();
            let _ = writeln!(connection, "{text}");
        }
    });
    running.wait()?.drain()?;
    Ok(())
}

impl Greeting {
    /// The command: what it returns is printed, or is why it failed.
    fn called(&self, arguments: &Value) -> Result<Value, &'static str> {
        match arguments.get("text") {
            None => {}
            Some(Value::String(text)) if !text.is_empty() => *self.text() = text.clone(),
            Some(_) => return Err("`text` is to be the new greeting"),
        }
        Ok(self.text().clone().into())
    }

    fn text(&self) -> MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
