//! The clients: every request that they make is answered as it should be, or told of.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::ledger::{Ledger, Owner};
use crate::pattern;

/// How long any request may take. More than the service waits for anything.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What there is besides the bytes that were asked for.
const HEAD: usize = 32;

/// How much is asked, and how.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Volume {
    /// Requests a second.
    #[arg(long, default_value_t = 2000)]
    pub(crate) rate: u32,
    /// How many connections are kept, and how many clients make a new one for each request.
    #[arg(long, default_value_t = 40)]
    pub(crate) clients: u32,
    /// How long a body may be, either way.
    #[arg(long, default_value_t = 64 * 1024)]
    pub(crate) bytes: usize,
}

/// A connection that did not do what it should.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// When the last request was begun on it that was answered; if there is none, when it was opened, or was to be.
    pub(crate) since: Instant,
    /// Whether there is one.
    pub(crate) was_answered: bool,
    /// When it was found out.
    pub(crate) found: Instant,
    /// Whose it was, as far as is known.
    pub(crate) owner: Option<Owner>,
    pub(crate) what: String,
    /// Whether it is one that a killed process can be the reason of: an end, and nothing wrong.
    pub(crate) is_end: bool,
}

/// What all clients know.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: AtomicU64,
    pub(crate) connections: AtomicU64,
    stop: AtomicBool,
    failures: Mutex<Vec<Failure>>,
}

pub(crate) struct Load {
    runtime: Runtime,
    tally: Arc<Tally>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(
        address: SocketAddr,
        volume: Volume,
        ledger: &Ledger,
        rng: &mut Rng,
    ) -> io::Result<Self> {
        let (runtime, tally) = (Runtime::new()?, Arc::new(Tally::default()));
        let every = Duration::from_secs(1) * 2 * volume.clients / volume.rate;
        let clients = (0..2 * volume.clients).map(|number| {
            let client = Client {
                address,
                is_kept: number % 2 == 0,
                bytes: volume.bytes,
                ledger: ledger.clone(),
                tally: Arc::clone(&tally),
                rng: rng.fork(),
            };
            runtime.spawn(client.run(every))
        });
        let clients = clients.collect();
        Ok(Self { runtime, tally, clients })
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Waits for what is under way.
    pub(crate) fn stop(self) -> Arc<Tally> {
        self.tally.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            if let Err(error) = self.runtime.block_on(client) {
                self.tally.fail(Failure {
                    since: Instant::now(),
                    was_answered: false,
                    found: Instant::now(),
                    owner: None,
                    what: error.to_string(),
                    is_end: false,
                });
            }
        }
        self.tally
    }
}

impl Tally {
    pub(crate) fn take_failures(&self) -> Vec<Failure> {
        std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fail(&self, failure: Failure) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }
}

struct Client {
    address: SocketAddr,
    is_kept: bool,
    bytes: usize,
    ledger: Ledger,
    tally: Arc<Tally>,
    rng: Rng,
}

/// An open connection.
struct Open {
    stream: TcpStream,
    port: u16,
    /// When the last request was begun that was answered, or when it was opened. Whoever has it later was alive then, or
    /// has got it later.
    since: Instant,
    was_answered: bool,
}

/// What became of a request that was not answered, and whose its connection was.
struct Unanswered {
    error: io::Error,
    owner: Option<Owner>,
}

impl From<io::Error> for Unanswered {
    /// There was no connection, or there is no more time for it.
    fn from(error: io::Error) -> Self {
        Self { error, owner: None }
    }
}

impl Client {
    async fn run(mut self, every: Duration) {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::time::sleep(every.mul_f64(self.rng.f64())).await;
        let mut open: Option<Open> = None;
        while !self.tally.stop.load(Ordering::SeqCst) {
            ticks.tick().await;
            let begun = Instant::now();
            let (since, was_answered) =
                open.as_ref().map_or((begun, false), |open| (open.since, open.was_answered));
            let asking = self.ask(&mut open, begun);
            let outcome = tokio::time::timeout(TIMEOUT, asking).await;
            let outcome =
                outcome.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
            self.tally.requests.fetch_add(1, Ordering::Relaxed);
            if let Err(Unanswered { error, owner }) = outcome {
                use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
                let is_end = matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof);
                let (found, what) = (Instant::now(), error.to_string());
                self.tally.fail(Failure { since, was_answered, found, owner, what, is_end });
            }
        }
    }

    /// Makes a request, on this connection or a new one.
    async fn ask(&mut self, open: &mut Option<Open>, begun: Instant) -> Result<(), Unanswered> {
        let mut now = match open.take() {
            Some(open) => open,
            None => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                let port = stream.local_addr()?.port();
                self.tally.connections.fetch_add(1, Ordering::Relaxed);
                Open { stream, port, since: begun, was_answered: false }
            }
        };
        let outcome = self.exchange(&mut now.stream).await;
        if matches!(outcome, Ok(true)) && self.is_kept {
            *open = Some(Open { since: begun, was_answered: true, ..now });
            return Ok(());
        }
        let owner = self.ledger.owner(now.port);
        // Before the port can be somebody else's.
        self.ledger.note(now.port, None);
        outcome.map(drop).map_err(|error| Unanswered { error, owner })
    }

    /// Returns whether the connection goes on.
    async fn exchange(&mut self, stream: &mut TcpStream) -> io::Result<bool> {
        let (sent, wanted) = (self.size(), self.size());
        let body: Vec<u8> = (0..sent).map(|_| self.rng.u8(..)).collect();
        let sum = body.iter().fold(0_u64, |sum, b| sum.wrapping_mul(31).wrapping_add((*b).into()));
        let close = if self.is_kept { "" } else { "Connection: close\r\n" };
        let head = format!(
            "POST /{wanted} HTTP/1.1\r\nHost: soak\r\nContent-Length: {sent}\r\n{close}\r\n"
        );
        stream.write_all(&[head.as_bytes(), &body].concat()).await?;
        let (mut read, mut end) = (Vec::new(), None);
        let (head, total) = loop {
            if let Some((head, total)) = end
                && read.len() >= total
            {
                break (head, total);
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if end.is_none() {
                end = head_of(&read)?;
            }
        };
        let body = &read[head..];
        let told = std::str::from_utf8(&body[..HEAD]).unwrap_or_default();
        let is_right = told.split_whitespace().nth(1) == Some(&sum.to_string())
            && body[HEAD..].iter().enumerate().all(|(at, byte)| *byte == pattern(at as u64));
        if read.len() != total || body.len() != HEAD + wanted || !is_right {
            return Err(io::Error::other(format!(
                "a wrong answer: {told:?}, {} bytes",
                body.len()
            )));
        }
        let head = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
        Ok(!head.contains("connection: close"))
    }

    /// Mostly few bytes.
    fn size(&mut self) -> usize {
        let most = self.bytes.max(1);
        if self.rng.u8(..10) == 0 {
            self.rng.usize(..most)
        } else {
            self.rng.usize(..most.min(512))
        }
    }
}

/// How long the head is, and the whole answer, if that is known yet.
fn head_of(read: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200 ") {
        return Err(io::Error::other(format!("no answer but {head:?}")));
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: Option<usize> = length.and_then(|length| length.parse().ok());
    let length = length.ok_or_else(|| io::Error::other(format!("no length in {head:?}")))?;
    Ok(Some((end + 4, end + 4 + length)))
}
