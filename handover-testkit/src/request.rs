//! One request, and what can become of it.

use std::time::{Duration, Instant};
use std::{error, fmt};

use rustix::io::Errno;

use crate::process::Pid;
use crate::response::{Response, leading_pid};
use crate::target::{Connection, Target};

/// How long the service may take to close after its answer, before the client does.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What became of a request that was not answered as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens.
    Refused,
    /// The connection was reset, before the answer was complete.
    Reset,
    /// The connection was closed in an orderly way, before the answer was complete or begun.
    Cut,
    /// There was no complete answer in time.
    TimedOut,
    /// There was another answer than the right one: this.
    Wrong(String),
    /// The client failed itself, as when it runs out of fds or ports.
    Client(Errno),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => write!(f, "refused"),
            Self::Reset => write!(f, "reset"),
            Self::Cut => write!(f, "cut"),
            Self::TimedOut => write!(f, "timed out"),
            Self::Wrong(answer) => write!(f, "wrong answer: {answer:?}"),
            Self::Client(errno) => write!(f, "client failed: {errno}"),
        }
    }
}

impl error::Error for Fault {}

/// What is asked on each connection, and what is the right answer.
#[derive(Clone, Debug)]
pub(crate) enum Protocol {
    /// A GET; right is a complete answer with status 200.
    Http { path: String },
    /// A line; right is the same line, alone or after a pid and a space.
    Echo,
}

impl Protocol {
    /// Makes one request on a connection of its own. Returns the pid that answered, if the answer
    /// tells, and when the answer was complete.
    pub(crate) fn request(
        &self,
        target: &Target,
        number: usize,
        deadline: Instant,
    ) -> Result<(Option<Pid>, Instant), Fault> {
        let connection = Connection::open(target, deadline)?;
        let pid = match self {
            Self::Http { path } => get(&connection, target, path, deadline)?,
            Self::Echo => {
                let answer = echo(&connection, number, deadline);
                connection.finish_sending();
                answer?
            }
        };
        let answered_at = Instant::now();
        connection.close_last(answered_at + CLOSE_TIMEOUT);
        Ok((pid, answered_at))
    }
}

/// Sends the line of this number, and waits for its echo.
pub(crate) fn echo(
    connection: &Connection,
    number: usize,
    deadline: Instant,
) -> Result<Option<Pid>, Fault> {
    let line = format!("ping {number}");
    connection.send_all(format!("{line}\n").as_bytes())?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') {
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(wrong(&answer));
        }
        if !connection.receive(&mut answer, deadline)? {
            return Err(Fault::Cut);
        }
    }
    let text = String::from_utf8_lossy(&answer);
    match text.strip_suffix(&format!("{line}\n")) {
        Some("") => Ok(None),
        Some(before) => {
            let pid = before.strip_suffix(' ').and_then(|pid| pid.parse().ok());
            pid.map(Some).ok_or_else(|| wrong(&answer))
        }
        None => Err(wrong(&answer)),
    }
}

fn get(
    connection: &Connection,
    target: &Target,
    path: &str,
    deadline: Instant,
) -> Result<Option<Pid>, Fault> {
    let host = match target {
        Target::Tcp(address) => address.to_string(),
        Target::Unix(_) => "localhost".to_owned(),
    };
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    connection.send_all(head.as_bytes())?;
    let mut answer = Vec::new();
    loop {
        match Response::parse(&answer) {
            Ok(None) if answer.len() <= ANSWER_BYTES_MAX => {}
            Ok(Some(Response { status: 200, body })) => return Ok(leading_pid(&body)),
            _ => return Err(wrong(&answer)),
        }
        if !connection.receive(&mut answer, deadline)? {
            return Err(Fault::Cut);
        }
    }
}

/// Shows the beginning of an answer.
pub(crate) fn wrong(answer: &[u8]) -> Fault {
    const SHOWN_BYTES_MAX: usize = 200;
    let shown = &answer[..answer.len().min(SHOWN_BYTES_MAX)];
    Fault::Wrong(String::from_utf8_lossy(shown).into_owned())
}
