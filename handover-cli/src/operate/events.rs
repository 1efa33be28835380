//! `handover events`: what happens, as it does.

use anyhow::anyhow;
use handover::control::{Answer, Event, Request};
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
    // Nothing at all may happen for a long time.
    let mut deadline = Instant::now();
    loop {
        let trouble = match service.ask(&request, Patience::Unlimited).await {
            Ok((line, conversation)) => {
                match listen(&service, line, conversation, &mut heard).await? {
                    End::Stopped => return Ok(Exit::Done),
                    End::Refused(exit) => return Ok(exit),
                    End::Trouble(trouble) => {
                        deadline = Instant::now() + service.timeout;
                        trouble
                    }
                }
            }
            Err(trouble) => trouble,
        };
        if heard.stopping.is_some() && !matches!(trouble, Trouble::NotUnderstood(_)) {
            // The process that was stopping has ended, and its end was not told.
            return Ok(Exit::Done);
        }
        // Closed before anything happened is as good as closed after.
        let goes_on = trouble.is_end() || Instant::now() < deadline;
        if !goes_on || matches!(trouble, Trouble::NotUnderstood(_)) {
            return Err(trouble.of_question());
        }
        if trouble.is_end() {
            deadline = Instant::now() + service.timeout;
            say("handover: the connection has ended, connecting again: some events may be missing");
        }
        sleep(RETRY_PAUSE).await;
    }
}

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
    Trouble(Trouble),
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
            Err(trouble) => return Ok(End::Trouble(trouble)),
        };
    }
}
