//! A control socket that plays back what the test says, and the command run against it.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

/// What the service does after a request, one after the other; then it closes the connection.
#[derive(Debug)]
pub(crate) enum Step {
    /// Writes a line.
    Say(String),
    /// Waits until the test lets it go on.
    Await(Receiver<()>),
    /// Keeps the connection open until the client closes it.
    Hold,
    /// Removes the socket: nobody can connect any more.
    Vanish,
}

/// A service, in threads of the test.
pub(crate) struct Service {
    shared: Arc<Shared>,
    folder: tempfile::TempDir,
}

struct Shared {
    path: PathBuf,
    /// What is done when a request of that name comes for the first time, for the second, ...
    scripts: Mutex<BTreeMap<String, VecDeque<Vec<Step>>>>,
    heard: Mutex<Vec<Value>>,
}

/// What the command printed and how it exited.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Service {
    /// A service of which generation 1 with pid 100 serves, as often as it is asked. Other requests
    /// are not known to it.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let (scripts, heard) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { path, scripts, heard });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let serving = Arc::clone(&serving);
                // A client that has left is the test's business.
                thread::spawn(move || serving.converse(stream.unwrap()));
            }
        });
        Self { shared, folder }
    }

    /// Adds what is done when this is asked for the next time.
    pub(crate) fn on(self, request: &str, steps: impl IntoIterator<Item = Step>) -> Self {
        let mut scripts = self.shared.scripts.lock().unwrap();
        scripts.entry(request.to_owned()).or_default().push_back(steps.into_iter().collect());
        drop(scripts);
        self
    }

    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The command, with the socket in the environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = handover(args);
        command.env("HANDOVER_SOCKET", self.path());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        self.command(args).output().unwrap().into()
    }

    /// The requests so far, without those for the status.
    pub(crate) fn heard(&self) -> Vec<Value> {
        let mut heard = self.shared.heard.lock().unwrap().clone();
        heard.retain(|request| request["request"] != "status");
        heard
    }
}

impl Shared {
    fn converse(&self, stream: UnixStream) {
        let mut requests = BufReader::new(stream);
        let mut line = String::new();
        if requests.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let request: Value = serde_json::from_str(&line).unwrap();
        self.heard.lock().unwrap().push(request.clone());
        for step in self.script(request["request"].as_str().unwrap()) {
            match step {
                Step::Say(line) => {
                    if requests.get_mut().write_all(format!("{line}\n").as_bytes()).is_err() {
                        return;
                    }
                }
                // The test has ended if nobody is left to open the gate.
                Step::Await(gate) => drop(gate.recv()),
                Step::Hold => drop(requests.read_to_end(&mut Vec::new())),
                Step::Vanish => fs::remove_file(&self.path).unwrap(),
            }
        }
    }

    fn script(&self, request: &str) -> Vec<Step> {
        let next = self.scripts.lock().unwrap().get_mut(request).and_then(VecDeque::pop_front);
        next.unwrap_or_else(|| match request {
            "status" => vec![say(status(&[serving(1, 100)]))],
            _ => vec![say(error("unknown-request", "there is no such request"))],
        })
    }
}

/// The command, with nothing in the environment that it looks at.
pub(crate) fn handover(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    command.args(args).stdin(Stdio::null());
    for variable in ["HANDOVER_SOCKET", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS"] {
        command.env_remove(variable);
    }
    command
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code().expect("it was not killed"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

pub(crate) fn say(line: Value) -> Step {
    Step::Say(line.to_string())
}

/// A step that waits, and what lets it go on.
pub(crate) fn gate() -> (Step, Sender<()>) {
    let (open, gate) = channel();
    (Step::Await(gate), open)
}

/// An event; `fields` has its name and the rest.
pub(crate) fn event(name: &str, fields: Value) -> Step {
    let mut event = json!({"type": "event", "at_ms": 1_700_000_000_000_u64, "event": name});
    event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    say(event)
}

/// The events of an upgrade to generation 2, pid 200, up to the commit.
pub(crate) fn events_to_commit(probation_ms: Option<u64>) -> Vec<Step> {
    let mut steps = events_to_spawned();
    steps.extend([
        event("hello", json!({"generation": 2, "software": "handover 0.1.0"})),
        event(
            "state",
            json!({"generation": 2, "name": "sessions", "bytes": 1_288_490_189, "late": false}),
        ),
        event("initialising", json!({"generation": 2, "descriptors": 3})),
        event("progress", json!({"generation": 2, "text": "warming cache 40 %"})),
        event("ready", json!({"generation": 2})),
        event("committed", json!({"generation": 2, "probation_ms": probation_ms})),
    ]);
    steps
}

pub(crate) fn events_to_spawned() -> Vec<Step> {
    vec![
        event("upgrade-begun", json!({"generation": 2, "asked_by": "uid 0"})),
        event("spawned", json!({"generation": 2, "pid": 200})),
    ]
}

pub(crate) fn succeeded() -> Value {
    json!({
        "type": "verdict", "outcome": "succeeded", "generation": 2, "pid": 200, "message": "it serves",
        "timings_us": {"spawn": 300, "initialise": 1_200_000, "commit": 250, "total": 1_256_000},
    })
}

pub(crate) fn failed() -> Value {
    json!({
        "type": "verdict", "outcome": "failed", "generation": 2, "pid": 200, "phase": "initialise",
        "reason": "exited", "message": "the successor ended before it served", "signal": 11,
        "stderr": ["\u{1b}[31mERROR\u{1b}[0m no cache", "giving up"], "timings_us": {"total": 5000},
    })
}

pub(crate) fn error(code: &str, message: &str) -> Value {
    json!({"type": "error", "code": code, "message": message})
}

pub(crate) fn done(message: &str) -> Value {
    json!({"type": "done", "message": message})
}

pub(crate) fn status(generations: &[Value]) -> Value {
    json!({"type": "status", "generations": generations, "listeners": []})
}

pub(crate) fn serving(generation: u64, pid: u32) -> Value {
    generation_report(generation, pid, "serving")
}

pub(crate) fn generation_report(generation: u64, pid: u32, state: &str) -> Value {
    json!({
        "generation": generation, "pid": pid, "state": state, "in_flight": 0, "age_ms": 5000,
        "answers": true,
    })
}
