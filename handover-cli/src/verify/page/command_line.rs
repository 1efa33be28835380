//! How a test is made again: the command, with every option that shaped it.

use std::fmt::Write;

use crate::verify::Args;

/// The options as a shell reads them, one to a line.
pub(super) fn command_line(args: &Args) -> String {
    let time = |duration| humantime::format_duration(duration).to_string();
    let mut options = vec![
        ("url", args.url.to_string()),
        ("upgrade", args.upgrade.clone()),
        ("upgrades", args.upgrades.to_string()),
        ("every", time(args.every)),
        ("rate", args.rate.to_string()),
        ("keep-alive", args.keep_alive.to_string()),
    ];
    if args.http2 > 0 {
        options.push(("http2", args.http2.to_string()));
        options.push(("http2-streams", args.streams_per_http2().to_string()));
    }
    if args.streams > 0 {
        options.push(("streams", args.streams.to_string()));
    }
    if let Some(stream_url) = &args.stream_url {
        options.push(("stream-url", stream_url.to_string()));
    }
    if let Some(header) = &args.identity_header {
        options.push(("identity-header", header.to_string()));
    }
    options.extend([
        ("timeout", time(args.timeout)),
        ("upgrade-timeout", time(args.upgrade_timeout)),
        ("max-in-flight", args.max_in_flight.to_string()),
    ]);
    let mut line =
        options.into_iter().fold("handover verify".to_owned(), |mut line, (name, value)| {
            // Writing to a string cannot fail.
            let _ = write!(line, " \\\n  --{name} {}", quoted(&value));
            line
        });
    if args.no_idle_close {
        line.push_str(" \\\n  --no-idle-close");
    }
    line
}

/// A word that a POSIX shell takes as it is, or in single quotes.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
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

    fn parse(words: &[String]) -> Args {
        let words = std::iter::once("verify".to_owned()).chain(words.iter().cloned());
        Cli::parse_from(words).args
    }

    #[test]
    fn a_shell_reads_the_options_that_were_used() {
        let upgrade = "kill -HUP \"$(cat 'a b')\"\n# ä";
        let words = [
            "--url",
            "http://[::1]:80/x?a=b&c",
            "--upgrade",
            upgrade,
            "--every",
            "1m 5s",
            "--http2",
            "2",
            "--no-idle-close",
        ];
        let words = words.map(str::to_owned);
        let line = command_line(&parse(&words));

        let echo = line.replacen("handover verify", "printf '%s\\0'", 1);
        let output = std::process::Command::new("sh").args(["-c", &echo]).output().unwrap();
        let read = String::from_utf8(output.stdout).unwrap();
        let read: Vec<_> = read.split_terminator('\0').map(str::to_owned).collect();
        assert_eq!(command_line(&parse(&read)), line);
        assert!(read.contains(&upgrade.to_owned()), "{read:?}");
        assert!(read.contains(&"--no-idle-close".to_owned()), "{read:?}");
    }
}
