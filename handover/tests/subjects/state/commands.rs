//! What a control connection can ask for: one line, one answer.

use std::error::Error as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use handover::{Guard, Handle, Handover, Verdict};

use crate::providers::Knobs;

/// What commands work on.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) handle: Handle,
    pub(crate) knobs: Arc<Knobs>,
    pub(crate) guards: Mutex<Vec<Guard>>,
}

/// Takes commands until the other end is closed.
pub(crate) fn obey(mut stream: BufReader<TcpStream>, app: &Weak<App>) -> std::io::Result<()> {
    let mut answer = std::process::id().to_string();
    let mut guard = None;
    loop {
        stream.get_mut().write_all(format!("{answer}\n").as_bytes())?;
        drop(guard.take());
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let Some(app) = app.upgrade() else { return Ok(()) };
        // The process that is asked to go still has to say how that went.
        guard = line.starts_with("upgrade").then(|| app.handle.guard());
        answer = obey_one(line.trim_end(), &app);
    }
}

fn obey_one(line: &str, app: &App) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["set", name, value] => app.knobs.set(name, value),
        ["clear", name] => app.knobs.clear(name),
        ["guard"] => app.guards.lock().expect("no panic").push(app.handle.guard()),
        ["release"] => app.guards.lock().expect("no panic").clear(),
        ["in-flight"] => return app.handle.in_flight().to_string(),
        ["generation"] => return app.handle.generation().to_string(),
        ["upgrade"] => return describe(&app.handle.upgrade().wait()),
        // The second is asked for while the first is pending or under way.
        ["upgrade-twice"] => {
            let (first, second) = (app.handle.upgrade(), app.handle.upgrade());
            return format!("{}; {}", describe(&second.wait()), describe(&first.wait()));
        }
        ["stop"] => app.handle.stop(),
        ["draining"] => return app.handle.draining().has_come().to_string(),
        ["predecessor-gone"] => return app.handle.predecessor_gone().has_come().to_string(),
        ["close-streams"] => close_streams(),
        ["start-again"] => return start_again(),
        ["nested"] => return nested(),
        _ => panic!("no such command: {line}"),
    }
    "done".to_owned()
}

/// Says in one line what became of an upgrade, with every cause.
pub(crate) fn describe(verdict: &Verdict) -> String {
    let failure = match verdict {
        Verdict::Succeeded(success) => return format!("generation {} serves", success.generation),
        Verdict::Failed(failure) => failure,
        _ => return "a new kind of verdict".to_owned(),
    };
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(source) = cause {
        text += &format!(": {source}");
        cause = source.source();
    }
    text
}

pub(crate) fn start_again() -> String {
    match Handover::builder().start() {
        Ok(handover) => format!("generation {}", handover.generation()),
        Err(error) => format!("{:?}: {error}", error.kind()),
    }
}

/// Closes stdin and stderr, as daemons do. The numbers are given to what is opened next.
#[allow(unsafe_code)]
fn close_streams() {
    for number in [0, 2] {
        // SAFETY: this program neither reads the one nor writes to the other.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
}

/// What another program makes of the library that inherits all of our environment.
fn nested() -> String {
    let program = std::env::current_exe().expect("a path");
    let output = Command::new(program).args([".", "nested=1"]).output().expect("it starts");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}
