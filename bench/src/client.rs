//! A client that asks again and again, each time on a new connection.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::now;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks once, on a new connection, and returns the number that the answer is.
///
/// # Errors
///
/// If there is no such answer.
pub fn ask(address: SocketAddr) -> io::Result<u32> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim());
    body.and_then(|body| body.parse().ok()).ok_or_else(|| io::Error::other("no number"))
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// When the connection was begun.
    pub from: Duration,
    /// When the answer was complete.
    pub to: Duration,
    /// What it was; `None` if there was none.
    pub answer: Option<u32>,
}

/// A client that asks without a pause.
#[derive(Debug)]
pub struct Hammer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Asked>>,
}

impl Hammer {
    /// Starts it; `news` is called with each answer that differs from the one before, and the first.
    pub fn start(address: SocketAddr, mut news: impl FnMut(u32) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut all, mut last) = (Vec::new(), None);
            while !stopped.load(Ordering::Relaxed) {
                let from = now();
                let answer = ask(address).ok();
                all.push(Asked { from, to: now(), answer });
                if let (Some(answer), true) = (answer, answer != last) {
                    last = Some(answer);
                    news(answer);
                }
            }
            all
        });
        Self { stop, thread }
    }

    /// Stops it, and returns all that it has been answered.
    #[must_use]
    pub fn stop(self) -> Vec<Asked> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}
