//! The clients of the service.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

use handover_bench::quantile;

use crate::TIMEOUT;

/// How often each one asks.
pub(crate) const EVERY: Duration = Duration::from_secs(1);

/// Clients that say nothing while connections move.
pub(crate) struct Idle(Vec<BufReader<TcpStream>>);

impl Idle {
    pub(crate) fn connect(address: SocketAddr, connections: usize) -> std::io::Result<Self> {
        let connect = |_| {
            let stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            Ok(BufReader::new(stream))
        };
        (0..connections).map(connect).collect::<std::io::Result<_>>().map(Self)
    }

    /// Has each of them half said something.
    pub(crate) fn begin_lines(&mut self) -> std::io::Result<()> {
        for (number, client) in self.0.iter_mut().enumerate() {
            write!(client.get_mut(), "{number:0>8} half")?;
        }
        Ok(())
    }

    /// Has each of them end that, and looks at the answer.
    pub(crate) fn end_lines(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        for (number, client) in self.0.iter_mut().enumerate() {
            writeln!(client.get_mut(), " and half {number}")?;
            let mut line = String::new();
            client.read_line(&mut line)?;
            // Accepted in the order in which they connected.
            let expected = format!("{number:0>64} {number:0>8} half and half {number}\n");
            if line != expected {
                return Err(format!("{line:?} is not {expected:?}").into());
            }
        }
        Ok(())
    }
}

/// Clients that ask now and then.
pub(crate) struct Asking {
    answers: Arc<Answers>,
    _runtime: Runtime,
}

#[derive(Default)]
struct Answers {
    times: Mutex<Vec<Duration>>,
    failure: Mutex<Option<String>>,
}

/// How long answers took.
pub(crate) struct Times(Vec<Duration>);

impl Asking {
    pub(crate) fn start(address: SocketAddr, clients: usize) -> std::io::Result<Self> {
        let runtime = Runtime::new()?;
        let answers = Arc::new(Answers::default());
        for number in 0..clients {
            let answers = Arc::clone(&answers);
            let delay = EVERY.mul_f64(number as f64 / clients as f64);
            runtime.spawn(async move {
                if let Err(error) = ask(address, number, delay, &answers).await {
                    *answers.failure.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(error.to_string());
                }
            });
        }
        Ok(Self { answers, _runtime: runtime })
    }

    /// Lets them ask until then.
    pub(crate) fn ask_on(&self, until: Instant) {
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }

    /// What there was since the last time.
    pub(crate) fn take(&self) -> Result<Times, String> {
        let failure = self.answers.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut times = self.answers.times.lock().unwrap_or_else(PoisonError::into_inner);
        failure.map_or_else(|| Ok(Times(std::mem::take(&mut times))), Err)
    }
}

async fn ask(
    address: SocketAddr,
    number: usize,
    delay: Duration,
    answers: &Answers,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    tokio::time::sleep(delay).await;
    let mut stream = tokio::io::BufReader::new(tokio::net::TcpStream::connect(address).await?);
    let mut ticks = tokio::time::interval(EVERY);
    let mut line = String::new();
    let mut state: Option<String> = None;
    for count in 0.. {
        ticks.tick().await;
        let (begun, asked) = (Instant::now(), format!("{number} {count}\n"));
        stream.get_mut().write_all(asked.as_bytes()).await?;
        line.clear();
        stream.read_line(&mut line).await?;
        let took = begun.elapsed();
        let (before, said) = line.split_once(' ').ok_or("it ended")?;
        if said != asked || state.get_or_insert_with(|| before.to_owned()) != before {
            return Err(format!("{line:?} in answer to {asked:?}").into());
        }
        answers.times.lock().unwrap_or_else(PoisonError::into_inner).push(took);
    }
    Ok(())
}

impl Times {
    /// How many there were, and how long they took, in milliseconds.
    pub(crate) fn cells(&self) -> Vec<String> {
        let times: Vec<f64> = self.0.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        let shares = [0.5, 0.999, 1.0].map(|share| format!("{:.2}", quantile(&times, share)));
        [vec![times.len().to_string()], shares.into()].concat()
    }
}
