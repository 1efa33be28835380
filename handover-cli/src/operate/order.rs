//! `handover stop`, `rollback`, `confirm` and `call`: one request, one answer.

use std::time::Duration;

use anyhow::anyhow;
use handover::control::{Answer, Request};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use super::conversation::{Patience, RETRY_PAUSE, Service, to_value};
use super::exit::Exit;
use super::failure::{Failure, Trouble};
use super::follow::{Wish, follow};
use super::{Common, millis, output, render, status};
use crate::duration::positive_duration;

/// Stop the service: accept nothing more, finish what was accepted, exit.
///
/// Returns when nothing more is accepted; what is in flight may still be finishing then. `handover
/// events` shows its end.
#[derive(Debug, clap::Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(super) common: Common,

    /// How long what is in flight may take, such as 30s; never more than the service allows [default:
    /// as the service has it]
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    drain_timeout: Option<Duration>,

    /// Cut what is in flight
    #[arg(long, conflicts_with = "drain_timeout")]
    now: bool,
}

/// Go back to the generation before this one.
///
/// On probation the predecessor serves again, at once. Later it is an upgrade to the executable that
/// the predecessor was started from, with the events, the verdict and the exit codes of one.
#[derive(Debug, clap::Args)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    pub(super) common: Common,

    /// Why, for the log and for whoever asked for the upgrade
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// End probation early: the new generation serves for good, its predecessor lets go.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfirmArgs {
    #[command(flatten)]
    pub(super) common: Common,
}

/// Call a command of the application's own, and print its result.
///
/// A text is printed as it is, anything else as JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct CallArgs {
    #[command(flatten)]
    pub(super) common: Common,

    /// The command's name, as the application has it
    #[arg(value_parser = command_name)]
    name: String,

    /// Its arguments, a JSON object: '{"level":"debug"}' [default: none]
    #[arg(value_name = "JSON", value_parser = arguments)]
    arguments: Option<Value>,
}

fn command_name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a command has a name".to_owned());
    }
    if Request::NAMES.contains(&text) {
        return Err(format!("it is no command of the application; see `handover {text} --help`"));
    }
    Ok(text.to_owned())
}

fn arguments(text: &str) -> Result<Value, String> {
    let value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match &value {
        Value::Object(fields) if fields.contains_key("request") => {
            Err("`request` is the name of the command, and cannot be an argument".to_owned())
        }
        Value::Object(_) => Ok(value),
        _ => Err("must be a JSON object, such as '{\"level\":\"debug\"}'".to_owned()),
    }
}

pub(super) async fn stop(args: &StopArgs) -> Result<Exit, Failure> {
    let service = args.common.service()?;
    let drain_timeout_ms = if args.now { Some(0) } else { args.drain_timeout.map(millis) };
    let request = to_value(&Request::Stop { drain_timeout_ms })?;
    match order(&service, &request).await {
        Err(trouble) if trouble.is_end() => find_out_whether_it_stopped(&service, trouble).await,
        outcome => concluded(&service, outcome).await,
    }
}

/// The service may have ended before it answered, above all if it was to stop at once.
async fn find_out_whether_it_stopped(service: &Service, trouble: Trouble) -> Result<Exit, Failure> {
    let deadline = Instant::now() + service.timeout;
    loop {
        match service.answer(&to_value(&Request::Status {})?).await {
            Err(Trouble::Unreachable(_)) => {
                if !service.json {
                    output::print_line("stopped: it did not answer, and nobody listens any more")?;
                }
                return Ok(Exit::Done);
            }
            // It is about to end: the socket is there, and nobody behind it.
            Err(again) if again.is_end() && Instant::now() < deadline => sleep(RETRY_PAUSE).await,
            _ => return concluded(service, Err(trouble)).await,
        }
    }
}

pub(super) async fn confirm(args: &ConfirmArgs) -> Result<Exit, Failure> {
    let service = args.common.service()?;
    let outcome = order(&service, &to_value(&Request::Confirm {})?).await;
    concluded(&service, outcome).await
}

pub(super) async fn rollback(args: &RollbackArgs) -> Result<Exit, Failure> {
    let service = args.common.service()?;
    let request = to_value(&Request::Rollback { reason: args.reason.clone() })?;
    let wish = Wish { patience: Patience::Limited, awaits_probation: true };
    follow(&service, &request, wish).await
}

pub(super) async fn call(args: &CallArgs) -> Result<Exit, Failure> {
    let service = args.common.service()?;
    let mut request = Map::new();
    if let Some(Value::Object(arguments)) = &args.arguments {
        request.extend(arguments.clone());
    }
    request.insert("request".to_owned(), args.name.clone().into());
    let outcome = order(&service, &request.into()).await;
    concluded(&service, outcome).await
}

/// Sends the request and prints what is answered.
async fn order(service: &Service, request: &Value) -> Result<Result<Exit, Failure>, Trouble> {
    let line = service.answer(request).await?;
    let print = || match &line.answer {
        _ if service.json => output::print_line(&line.text),
        Answer::Done { message } => output::print_line(&render::plain(message)),
        Answer::Result { value: Value::String(text) } => output::print_line(text),
        Answer::Result { value } => output::print_line(&format!("{value:#}")),
        _ => Ok(()),
    };
    Ok(match &line.answer {
        Answer::Done { .. } | Answer::Result { .. } => {
            print().map_err(Failure::from).map(|()| Exit::Done)
        }
        _ => super::with_json(service, super::unexpected(&line)),
    })
}

/// The end of an order: if its answer was lost, with what is known of the service.
async fn concluded(
    service: &Service,
    outcome: Result<Result<Exit, Failure>, Trouble>,
) -> Result<Exit, Failure> {
    let trouble = match outcome {
        Ok(outcome) => return outcome,
        Err(trouble) if trouble.was_asked() => trouble,
        Err(trouble) => return Err(trouble.of_order()),
    };
    let is_end = trouble.is_end();
    let mut failure = trouble.of_order();
    // One that did not answer in time would take as long again.
    if is_end && let Ok(now) = status::sentence(service).await {
        let what = anyhow!("what became of it is not known; by now there is {now}");
        failure.error = failure.error.map(|error| what.context(error.to_string()));
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_an_object_and_do_not_name_the_command() {
        assert!(arguments(r#"{"level":"debug"}"#).is_ok());
        for wrong in ["[]", "1", "{", r#"{"request":"stop"}"#] {
            assert!(arguments(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_has_a_command_of_its_own_is_not_called() {
        assert!(command_name("stop").unwrap_err().contains("handover stop"));
        assert_eq!(command_name("reload-certificates").unwrap(), "reload-certificates");
    }
}
