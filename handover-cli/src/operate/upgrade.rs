//! `handover upgrade`: replace the process that serves.

use std::time::Duration;

use clap::ValueHint;
use handover::control::{Request, UpgradeRequest};

use super::conversation::{Patience, to_value};
use super::exit::{EXIT_CODES, Exit};
use super::failure::Failure;
use super::follow::{Wish, follow};
use super::{Common, millis};
use crate::duration::positive_duration;

/// Replace the process that serves by a new one, and say what became of it.
///
/// The new process starts, initialises, and takes over when it is ready; the old one serves until
/// then, and finishes what it has accepted. If anything fails the old one serves on, and what is known
/// of the failure is printed: where, why, the exit status, the last lines on stderr.
///
/// Progress goes to stderr, the verdict to stdout. What is not given is as the service has it: the
/// executable is looked up again at the path that the service was started by.
#[derive(Debug, clap::Args)]
#[command(after_help = afterword())]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) common: Common,

    /// The executable; a relative path counts from the directory that the service was started in
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    executable: Option<String>,

    /// An argument for it, in place of those that the service was started with; can be repeated
    #[arg(
        long = "argument",
        value_name = "ARGUMENT",
        allow_hyphen_values = true,
        conflicts_with_all = ["rest", "no_arguments"]
    )]
    arguments: Vec<String>,

    /// Start it without arguments
    #[arg(long, conflicts_with = "rest")]
    no_arguments: bool,

    /// A variable of its environment to set; can be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,

    /// A variable of its environment to remove; can be repeated
    #[arg(long = "env-remove", value_name = "NAME", value_parser = variable)]
    remove: Vec<String>,

    /// How long it may take to become ready, such as 60s [default: as the service has it]
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    ready_timeout: Option<Duration>,

    /// How long the old process can take back over, such as 10s; 0s for not at all [default: as the
    /// service has it]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    probation: Option<Duration>,

    /// Wait for one's turn if the service is busy, instead of exiting with 5
    #[arg(long)]
    wait: bool,

    /// Exit with 0 when the new process serves, though it is on probation
    #[arg(long)]
    no_wait_probation: bool,

    /// The arguments for it, all of them
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

fn afterword() -> String {
    format!(
        "\
Examples:
  handover upgrade --socket /run/app/control
  handover upgrade --executable /srv/app/42/app --probation 30s
  handover upgrade --env RUST_LOG=debug -- --config /etc/app.toml --verbose

{EXIT_CODES}"
    )
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((variable(name)?, value.to_owned()))
}

fn variable(name: &str) -> Result<String, String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err("is no name of a variable".to_owned());
    }
    Ok(name.to_owned())
}

impl Args {
    fn request(&self) -> UpgradeRequest {
        let arguments = [&self.arguments, &self.rest].into_iter().find(|given| !given.is_empty());
        let set = self.set.iter().map(|(name, value)| (name.clone(), Some(value.clone())));
        let remove = self.remove.iter().map(|name| (name.clone(), None));
        UpgradeRequest {
            executable: self.executable.clone(),
            arguments: arguments.cloned().or(self.no_arguments.then(Vec::new)),
            environment: remove.chain(set).collect(),
            ready_timeout_ms: self.ready_timeout.map(millis),
            probation_ms: self.probation.map(millis),
            wait: self.wait,
        }
    }

    /// What is wrong with the options together.
    pub(super) fn conflict(&self) -> Option<String> {
        let both = |name: &&String| self.set.iter().any(|(set, _)| set == *name);
        let name = self.remove.iter().find(both)?;
        Some(format!("{name} cannot be both set (--env) and removed (--env-remove)"))
    }
}

pub(super) async fn run(args: &Args) -> Result<Exit, Failure> {
    let service = args.common.service()?;
    let request = to_value(&Request::Upgrade(args.request()))?;
    // Whoever waits for a turn may hear nothing until it comes.
    let patience = if args.wait { Patience::Unlimited } else { Patience::Limited };
    let wish = Wish { patience, awaits_probation: !args.no_wait_probation };
    follow(&service, &request, wish).await
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn request(args: &[&str]) -> serde_json::Value {
        let args = [&["upgrade", "--socket", "s"], args].concat();
        serde_json::to_value(Cli::parse_from(args).args.request()).unwrap()
    }

    #[test]
    fn what_is_not_given_is_not_asked_for() {
        assert_eq!(request(&[]), serde_json::json!({}));
    }

    #[test]
    fn every_option_reaches_the_request() {
        let given = request(&[
            "--executable=/srv/app",
            "--env=A=b=c",
            "--env=D=",
            "--env-remove=E",
            "--ready-timeout=1m",
            "--probation=0s",
            "--wait",
            "--",
            "--verbose",
            "x",
        ]);
        let expected = serde_json::json!({
            "executable": "/srv/app",
            "arguments": ["--verbose", "x"],
            "environment": {"A": "b=c", "D": "", "E": null},
            "ready_timeout_ms": 60_000,
            "probation_ms": 0,
            "wait": true,
        });
        assert_eq!(given, expected);
    }

    #[test]
    fn arguments_are_replaced_as_a_whole() {
        let given = request(&["--argument", "--verbose", "--argument", "x"]);
        assert_eq!(given["arguments"], serde_json::json!(["--verbose", "x"]));
        assert_eq!(request(&["--no-arguments"])["arguments"], serde_json::json!([]));
    }
}
