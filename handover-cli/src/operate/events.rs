//! `handover events`: what happens, as it does.

use anyhow::anyhow;
use handover::control::{Answer, ErrorCode, Event, Request};
use tokio::time::{Instant, sleep};

use super::conversation::{Conversation, Line, Patience, RETRY_PAUSE, Service, to_value};
use super::exit::Exit;
use super::failure::{Failure, Trouble};
use super::live::say;
use super::{Common, output, render};

/// Print what happens from here on, one line for each event, until the service stops or Ctrl-C.
///
/// When the process that answers hands over, the next one is asked; what happens in between is not
/// shown, and stderr says so. Times are UTC. Exits with 0 when the service was told to stop, and has.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) async fn run(args: &Args) -> Result<Exit, Failure> {
    let service = args.common.service()?;
    let request = to_value(&Request::Events {})?;
    let mut heard = Heard::default();
    // Until when the next process may take to be reached; the first one has to be there.
    let mut deadline = None;
    loop {
        let began = Instant::now();
        // Nothing at all may happen for a long time.
        let trouble = match service.ask(&request, Patience::Unlimited).await {
            Err(trouble) => trouble,
            Ok((line, conversation)) => {
                match listen(&service, line, conversation, &mut heard).await? {
                    End::Stopped => return Ok(Exit::Done),
                    End::Refused(exit) => return Ok(exit),
                    End::Ended(trouble) => {
                        deadline = Some(Instant::now() + service.timeout);
                        if heard.stopping.is_none() {
                            say(ENDED);
                            // At once, so that little is missed.
                            continue;
                        }
                        trouble
                    }
                }
            }
        };
        // Nothing had happened before it ended. One that ends again and again is not waited for.
        let was_there = deadline.is_none() || began.elapsed() >= service.timeout;
        if trouble.is_end() && was_there && heard.stopping.is_none() {
            say(ENDED);
            deadline = Some(Instant::now() + service.timeout);
        }
        match trouble {
            Trouble::NotUnderstood(_) => return Err(trouble.of_question()),
            // The process that was stopping has ended, and its end was not told.
            _ if heard.stopping.is_some() => return Ok(Exit::Done),
            _ if deadline.is_none_or(|deadline| Instant::now() >= deadline) => {
                return Err(trouble.of_question());
            }
            _ => sleep(RETRY_PAUSE).await,
        }
    }
}

/// What is said between two processes.
const ENDED: &str =
    "handover: the connection has ended, connecting again: some events may be missing";

/// What was heard over all connections.
#[derive(Debug, Default)]
struct Heard {
    /// The generation that was told to stop.
    stopping: Option<u64>,
}

enum End {
    /// The service was told to stop, and has.
    Stopped,
    Refused(Exit),
    /// Another process may serve.
    Ended(Trouble),
}

async fn listen(
    service: &Service,
    mut line: Line,
    mut conversation: Conversation,
    heard: &mut Heard,
) -> Result<End, Failure> {
    loop {
        if service.json {
            output::print_line(&line.text)?;
        }
        match &line.answer {
            Answer::Event(event) => {
                if !service.json {
                    output::print_line(&render::stamped(event, &line.text))?;
                }
                match &event.event {
                    Event::Draining { generation, ending, .. } if ending == "stopped" => {
                        heard.stopping = Some(*generation);
                    }
                    Event::Drained { generation, .. } if heard.stopping == Some(*generation) => {
                        return Ok(End::Stopped);
                    }
                    _ => {}
                }
            }
            Answer::Error { code: ErrorCode::NotServing, .. } => {
                return Ok(End::Ended(Trouble::Closed { path: service.path.clone() }));
            }
            Answer::Error { code, message } => {
                if !service.json {
                    say(&super::refusal(message));
                }
                return Ok(End::Refused(Exit::refused(*code)));
            }
            _ => return Err(Failure::new(Exit::Failed, anyhow!("not an event: {}", line.text))),
        }
        line = match conversation.next().await {
            Ok(line) => line,
            Err(trouble) => return Ok(End::Ended(trouble)),
        };
    }
}
