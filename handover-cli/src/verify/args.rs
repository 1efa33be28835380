//! What `handover verify` can be told.

use std::path::PathBuf;
use std::time::Duration;

use super::target::HttpUrl;
use crate::duration::positive_duration;

/// Upgrade a running HTTP service under load, and account for every request.
///
/// The service may use any library or none. Its answer must tell which process answered: by default
/// the body begins with a number, the pid; `--identity-header` names a response header instead.
///
/// Four kinds of clients are kept up while COMMAND upgrades the service again and again:
/// new connections at a fixed rate, one request on each; connections that are kept alive and reused;
/// HTTP/2 connections with several requests at once;
/// and streams, which are read for as long as the service sends.
/// Each request is due at an instant fixed in advance, and its latency counts from that instant,
/// so that a stalled service cannot hide its stall by slowing the load down.
///
/// Exits with 0 if no request was lost and every upgrade happened (with --no-idle-close: and no
/// connection was closed), with 1 if not, and with 2 if called wrongly.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTERWORD)]
pub(crate) struct Args {
    /// The address to ask, http://HOST:PORT/PATH
    #[arg(long, value_name = "URL")]
    pub(crate) url: HttpUrl,

    /// The shell command that asks for one upgrade; $HANDOVER_VERIFY_PID is the pid that answers
    #[arg(long, value_name = "COMMAND")]
    pub(crate) upgrade: String,

    /// How many times to upgrade
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) upgrades: u32,

    /// The time from one upgrade to the next, and before the first
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(crate) every: Duration,

    /// How long an upgrade may take, from asking until another process answers
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = positive_duration)]
    pub(crate) upgrade_timeout: Duration,

    /// New connections per second, with one request each
    #[arg(long, value_name = "R", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,

    /// Connections that are kept alive; each asks every 100 ms
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub(crate) keep_alive: u32,

    /// HTTP/2 connections, without TLS and by prior knowledge (h2c); each asks every 100 ms
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub(crate) http2: u32,

    /// How many requests each HTTP/2 connection sends at once, and has under way at most [default: 1]
    #[arg(long, value_name = "M", requires = "http2", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) http2_streams: Option<u32>,

    /// Fail if the service closes a connection that was to last, be it announced or not
    ///
    /// For a service whose connections outlive the process. It is about the connections of
    /// --keep-alive and --http2; the others end by themselves.
    #[arg(long)]
    pub(crate) no_idle_close: bool,

    /// Connections whose answer is read for as long as the service sends
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub(crate) streams: u32,

    /// The address that streams ask, if it is another; on the same host and port
    #[arg(long, value_name = "URL")]
    pub(crate) stream_url: Option<HttpUrl>,

    /// How long an answer may take, from the instant the request is due
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = positive_duration)]
    pub(crate) timeout: Duration,

    /// The response header that tells the processes apart, instead of the number at the body's start
    #[arg(long, value_name = "NAME")]
    pub(crate) identity_header: Option<http::HeaderName>,

    /// The most requests under way at once; one more is not sent, and counts as lost
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_in_flight: u32,

    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    /// Write the test as a page for the browser: who answered over time, how fast, what was lost
    ///
    /// One file, which asks nobody for anything and names the URL and COMMAND. It is written when the
    /// test has ended, whatever its outcome.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,

    /// The command of the demo that runs this test, for the page
    #[arg(long, hide = true, requires = "report")]
    pub(crate) demo_command: Option<String>,
}

impl Args {
    /// Says what is wrong with options that each are right.
    pub(crate) fn misuse(&self) -> Option<String> {
        if self.http2_streams.is_some() && self.http2 == 0 {
            return Some(
                "--http2-streams is about the connections of --http2, of which there are 0".into(),
            );
        }
        if self.no_idle_close && self.keep_alive == 0 && self.http2 == 0 {
            let why = "--no-idle-close is about connections that last, of which there are none: \
                add --keep-alive or --http2";
            return Some(why.into());
        }
        None
    }

    pub(crate) fn streams_per_http2(&self) -> u32 {
        self.http2_streams.unwrap_or(1)
    }
}

const AFTERWORD: &str = "\
What becomes of a request:
  answered    2xx, complete, in time, and it tells who answered
  refused     nobody listened
  reset       the connection was reset before any of the answer, as when a
              process leaves with requests that it has not read; or the
              stream of HTTP/2 was
  cut         the connection ended before the answer did
  timed out   no complete answer within --timeout
  wrong       not HTTP, not 2xx, or it does not tell who answered
  idle race   it met the unannounced close of a kept-alive connection: the
              service had closed when the request came
  other       anything else, such as more than --max-in-flight at once
All but the first are lost. To close a connection that carries no request
loses nothing by itself; the report tells how many closes were announced
(\"Connection: close\" on the answer before, or GOAWAY) and how many were not.
With --no-idle-close each of them fails the test.

A request on HTTP/2 that the service has said it did not process, by GOAWAY
or REFUSED_STREAM, is sent again and counted as such, up to nine times; its
latency still counts from the instant it was due.

Latencies count up to the last byte of an answer, and are told in total, for
upgrades (requests under way at any moment from the asking until half a second
after another process was seen to answer), and for the rest.

Examples:
  handover verify --url http://127.0.0.1:8080/ \\
      --upgrade 'kill -HUP \"$HANDOVER_VERIFY_PID\"'
  handover verify --url http://127.0.0.1:8080/health --upgrades 100 \\
      --identity-header x-pid --upgrade 'systemctl reload my.service'
  handover verify --url http://127.0.0.1:8080/ --http2 4 --http2-streams 8 \\
      --upgrade 'kill -HUP \"$HANDOVER_VERIFY_PID\"'";
