//! `handover status`: what runs.

use std::fmt::Write;
use std::io;
use std::time::Duration;

use anyhow::anyhow;
use console::{Term, style};
use handover::control::{Answer, Request, StatusReport};
use tokio::time::{Instant, sleep, sleep_until};

use super::conversation::{Line, RETRY_PAUSE, Service, to_value};
use super::exit::Exit;
use super::failure::Failure;
use super::live::{is_screen, say};
use super::render::{self, Overview};
use super::{Common, output};
use crate::duration::positive_duration;

/// Show what runs: generations, listeners, the upgrade under way.
///
/// A generation is one process of the service. The one that serves comes first; older ones finish what
/// they have accepted. Sizes are those of the resident memory, and QUEUE is how many connections wait
/// to be accepted, of how many that may.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) common: Common,

    /// Show it again and again, in place on a terminal, until Ctrl-C: every SECONDS, or a time such as
    /// 500ms [default: 1]
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = interval
    )]
    pub(super) watch: Option<Duration>,
}

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|interval| !interval.is_zero())
            .ok_or_else(|| "must be longer than nothing".to_owned()),
        Err(_) => positive_duration(text),
    }
}

pub(super) async fn run(args: &Args) -> Result<Exit, Failure> {
    let service = args.common.service()?;
    let (line, report) = match ask(&service).await {
        Ok(answer) => answer,
        Err(failure) => return super::with_json(&service, failure),
    };
    let Some(interval) = args.watch else {
        let text = if service.json { line.text + "\n" } else { Overview(&report).to_string() };
        output::print(&text)?;
        return Ok(Exit::Done);
    };
    Watch::new(&service).run(interval, (line, report)).await
}

/// Asks what runs.
pub(super) async fn ask(service: &Service) -> Result<(Line, StatusReport), Failure> {
    let request = to_value(&Request::Status {})?;
    let line = service.answer(&request).await.map_err(super::failure::Trouble::of_question)?;
    match line.answer.clone() {
        Answer::Status(report) => Ok((line, report)),
        _ => Err(super::unexpected(&line)),
    }
}

/// Showing the status again and again.
struct Watch<'a> {
    service: &'a Service,
    /// The screen to draw on, if there is one.
    screen: Option<Term>,
}

impl<'a> Watch<'a> {
    fn new(service: &'a Service) -> Self {
        let stdout = Term::stdout();
        let has_screen = !service.json && is_screen(&stdout);
        Self { service, screen: has_screen.then_some(stdout) }
    }

    /// Every refresh connects anew, for another process may serve by then.
    async fn run(&self, interval: Duration, first: (Line, StatusReport)) -> Result<Exit, Failure> {
        if let Some(screen) = &self.screen {
            screen.clear_screen()?;
        }
        let mut shown = first;
        let mut next = Instant::now() + interval;
        self.show(&shown, None)?;
        let mut silent_since = None;
        loop {
            sleep_until(next).await;
            next = Instant::now() + interval;
            match ask(self.service).await {
                Ok(answer) => {
                    silent_since = None;
                    shown = answer;
                    self.show(&shown, None)?;
                }
                Err(failure) => {
                    let since = *silent_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.service.timeout {
                        return Err(failure);
                    }
                    self.show(&shown, Some(&failure))?;
                    sleep(RETRY_PAUSE).await;
                    next = Instant::now();
                }
            }
        }
    }

    fn show(
        &self,
        (line, report): &(Line, StatusReport),
        silence: Option<&Failure>,
    ) -> io::Result<()> {
        let silence = silence.map(|failure| {
            let why = failure.error.as_ref().map(|error| format!("{error:#}")).unwrap_or_default();
            format!("not answered, trying again: {}", render::plain(&why))
        });
        let Some(screen) = &self.screen else {
            return match silence {
                Some(silence) => {
                    say(&format!("handover: {silence}"));
                    Ok(())
                }
                None if self.service.json => output::print_line(&line.text),
                None => output::print(&format!("{}\n", Overview(report))),
            };
        };
        let mut text = Overview(report).to_string();
        if let Some(silence) = silence {
            // What is shown is how it was.
            let _ = write!(text, "\n{}\n", style(silence).yellow());
        }
        draw(screen, &text)
    }
}

/// Draws over what was there, and clears only what is left of it, so that nothing flickers.
fn draw(screen: &Term, text: &str) -> io::Result<()> {
    let width = usize::from(screen.size().1).max(1);
    let mut frame = String::from("\x1b[H");
    for line in text.lines() {
        // A line that wraps would shift those below it.
        frame.push_str(&console::truncate_str(line, width, "…"));
        frame.push_str("\x1b[K\n");
    }
    frame.push_str("\x1b[J");
    screen.write_str(&frame)?;
    screen.flush()
}

/// What is known of the service, as part of a sentence.
pub(super) async fn sentence(service: &Service) -> Result<String, Failure> {
    let (_, report) = ask(service).await?;
    let text = render::in_one_line(&report);
    if text.is_empty() {
        return Err(Failure::new(Exit::Failed, anyhow!("the service names no generation")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_seconds_unless_it_has_a_unit() {
        assert_eq!(interval("1"), Ok(Duration::from_secs(1)));
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["0", "0s", "-1", "NaN", "inf", "soon"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
