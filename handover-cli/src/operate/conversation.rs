//! One request over the control socket, and what is answered.
//!
//! The client of the library waits in a thread of its own, so that the command can draw, count down
//! and be interrupted meanwhile.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use handover::control::{Answer, Client, ClientError, ErrorCode, Request};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::exit::Exit;
use super::failure::{Failure, Trouble};

/// The time until another try to reach whoever serves. No event tells when that is possible.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How many lines are read ahead.
const LINES_AHEAD: usize = 16;

/// Where the service is spoken to, and how.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) path: PathBuf,
    /// How long connecting may take, and then the first answer.
    pub(super) timeout: Duration,
    /// Whether to print what is received, as it is.
    pub(super) json: bool,
}

/// A line that was received.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) answer: Answer,
}

/// A request that was sent.
#[derive(Debug)]
pub(super) struct Conversation {
    lines: mpsc::Receiver<Result<Line, ClientError>>,
    service: Service,
}

/// How long the first answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as `--timeout` says.
    Limited,
    /// As long as it takes.
    Unlimited,
}

impl Service {
    /// Sends the request to whoever serves, and waits for the first line of the answer.
    pub(super) async fn ask(
        &self,
        request: &Value,
        patience: Patience,
    ) -> Result<(Line, Conversation), Trouble> {
        let mut deadline = Instant::now() + self.timeout;
        loop {
            let begun = Instant::now();
            let mut conversation = Conversation::open(self, request, patience).await?;
            let line = conversation.next().await?;
            if patience == Patience::Unlimited {
                // To wait for one's turn is not to look for whoever serves.
                deadline += begun.elapsed();
            }
            // It was not done: whoever serves by now is at the other end of the next connection.
            let is_late = matches!(line.answer, Answer::Error { code: ErrorCode::NotServing, .. });
            if !is_late || Instant::now() >= deadline {
                return Ok((line, conversation));
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// The same, but waits for the answer itself.
    pub(super) async fn answer(&self, request: &Value) -> Result<Line, Trouble> {
        let (mut line, mut conversation) = self.ask(request, Patience::Limited).await?;
        while matches!(line.answer, Answer::Event(_)) {
            line = conversation.next().await?;
        }
        Ok(line)
    }
}

impl Conversation {
    /// Connects and sends.
    async fn open(service: &Service, request: &Value, patience: Patience) -> Result<Self, Trouble> {
        let (sent, is_sent) = oneshot::channel();
        let (say, lines) = mpsc::channel(LINES_AHEAD);
        let talk = Talk {
            path: service.path.clone(),
            request: request.clone(),
            first_timeout: (patience == Patience::Limited).then_some(service.timeout),
            say,
        };
        thread::spawn(move || talk.run(sent));
        match timeout(service.timeout, is_sent).await {
            Ok(Ok(Ok(()))) => Ok(Self { lines, service: service.clone() }),
            Ok(Ok(Err(error))) => Err(Trouble::Unreachable(error)),
            Ok(Err(_)) => Err(Trouble::Closed { path: service.path.clone() }),
            // connect(2) waits while the queue of the listener is full.
            Err(_) => {
                Err(Trouble::NotTaken { path: service.path.clone(), within: service.timeout })
            }
        }
    }

    /// Waits for the next line. Nothing is lost if this future is dropped.
    pub(super) async fn next(&mut self) -> Result<Line, Trouble> {
        let path = || self.service.path.clone();
        match self.lines.recv().await {
            Some(Ok(line)) => Ok(line),
            Some(Err(error)) if error.is_timeout() => {
                Err(Trouble::NoAnswer { path: path(), within: self.service.timeout })
            }
            Some(Err(error @ ClientError::Answer { .. })) => Err(Trouble::NotUnderstood(error)),
            Some(Err(error)) => Err(Trouble::Broken(error)),
            None => Err(Trouble::Closed { path: path() }),
        }
    }
}

/// What the thread does.
struct Talk {
    path: PathBuf,
    request: Value,
    first_timeout: Option<Duration>,
    say: mpsc::Sender<Result<Line, ClientError>>,
}

impl Talk {
    fn run(self, sent: oneshot::Sender<Result<(), ClientError>>) {
        let mut client = match Client::connect(&self.path) {
            Ok(client) => client,
            // Nobody waits for it any more if sending fails.
            Err(error) => return drop(sent.send(Err(error))),
        };
        // A service that turns the client away may have closed already; why is still to be read.
        let _ = client.send_command(&self.request);
        if sent.send(Ok(())).is_err() {
            return;
        }
        let mut within = self.first_timeout;
        loop {
            let line = match client.next_line_within(within) {
                Ok(Some(line)) => self.understand(line),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            let is_last = line.is_err();
            if self.say.blocking_send(line).is_err() || is_last {
                return;
            }
            within = None;
        }
    }

    fn understand(&self, line: Vec<u8>) -> Result<Line, ClientError> {
        let answer = serde_json::from_slice(&line)
            .map_err(|source| ClientError::Answer { path: self.path.clone(), source })?;
        // What is JSON is UTF-8.
        Ok(Line { text: String::from_utf8_lossy(&line).into_owned(), answer })
    }
}

/// The request as it goes over the wire.
pub(super) fn to_value(request: &Request) -> Result<Value, Failure> {
    serde_json::to_value(request)
        .context("cannot write the request")
        .map_err(|error| Failure::new(Exit::Failed, error))
}
