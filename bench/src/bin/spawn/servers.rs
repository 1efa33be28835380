//! Servers with a heap that are upgraded.

use std::error::Error;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use handover_bench::{now, peer};
use handover_testkit::process::{Pid, exited};
use handover_testkit::{Launch, Service, Signal};

use crate::memory::{self, Pages};

/// In the order in which they are shown: ours, the floor, the others.
const NAMES: [&str; 4] = ["handover", "bare", "ecdysis", "shellflip"];

/// Stalls that begin within this are looked at, before the upgrade and from it on.
const WINDOW: Duration = Duration::from_millis(500);

/// The least that servers tell.
const STALL_MIN: Duration = Duration::from_micros(500);

/// How long one thing may take before this program gives up.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) name: &'static str,
    executable: PathBuf,
}

/// What one upgrade was like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upgraded {
    /// From the signal to the first thing in the successor's main.
    pub(crate) to_main: Duration,
    /// The longest stall that began in the window from the signal.
    pub(crate) stalled: Duration,
    /// The same before the signal.
    pub(crate) stalled_before: Duration,
    /// How much of the heap was in huge pages, if it was to be.
    pub(crate) huge_share: f64,
}

/// Those that have been built, with a note if one has not.
pub(crate) fn present(notes: &mut Vec<String>) -> Vec<Server> {
    let find = |name: &'static str| match peer(&format!("serve-{name}")) {
        Some(executable) => Some(Server { name, executable }),
        None => {
            notes.push(format!(
                "{name} was left out: `cargo build --release --manifest-path bench/peers/Cargo.toml` builds it."
            ));
            None
        }
    };
    NAMES.into_iter().filter_map(find).collect()
}

impl Server {
    /// Starts one with a heap, upgrades it, and ends it.
    pub(crate) fn upgrade(&self, gib: u64, pages: Pages) -> Result<Upgraded, Box<dyn Error>> {
        let (service, address) = self.start(gib, pages)?;
        let pid = service.pid();
        let huge_share = match pages {
            Pages::Huge => memory::huge_share(pid, gib)?,
            Pages::Small => 0.0,
        };
        // It keeps the old process until it is completed.
        let mut request = Request::begin(address)?;
        thread::sleep(WINDOW);
        let printed = service.line_count();
        let asked = now();
        service.signal(Signal::HUP);
        let began = wait(&service, printed, "began ")?;
        thread::sleep((asked + WINDOW).saturating_sub(now()));
        let answered = request.complete()?;
        if answered != pid {
            return Err(format!("{}: process {answered} has answered, not {pid}", self.name).into());
        }
        wait(&service, printed, &format!("ends {pid}"))?;
        let stalls = stalls(&service)?;
        // A thread that the upgrade stalls has looked at the clock just before it.
        let (since, until) = (asked - WINDOW, asked + WINDOW);
        let stalled = longest(&stalls, |from, to| to > asked && from < until);
        let stalled_before = longest(&stalls, |from, to| to <= asked && from >= since);
        let upgraded = Upgraded {
            to_main: nanoseconds(&began)?.saturating_sub(asked),
            stalled,
            stalled_before,
            huge_share,
        };
        // The next one needs the memory.
        if !exited(pid, Instant::now() + TIMEOUT) {
            return Err(format!("{}: the old process does not end", self.name).into());
        }
        Ok(upgraded)
    }

    fn start(&self, gib: u64, pages: Pages) -> Result<(Service, SocketAddr), Box<dyn Error>> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let (port, mebibytes) = (address.port().to_string(), (gib * 1024).max(1).to_string());
        let launch = Launch::of(&self.executable).args([&port, "1", &mebibytes, pages.word()]);
        let service = launch.try_start()?;
        wait(&service, 0, "serving ")?;
        Ok((service, address))
    }
}

/// Waits for a line that begins like this, and returns the rest of it.
fn wait(service: &Service, skip: usize, start: &str) -> Result<String, Box<dyn Error>> {
    let deadline = Instant::now() + TIMEOUT;
    let line = service.wait_line_after(skip, |line| line.starts_with(start), deadline);
    Ok(line.map_err(|error| error.to_string())?[start.len()..].to_owned())
}

/// When each began, and how long it was.
fn stalls(service: &Service) -> Result<Vec<(Duration, Duration)>, Box<dyn Error>> {
    let lines = service.lines();
    let stalls = lines.iter().filter_map(|line| line.text.strip_prefix("stall ")?.split_once(' '));
    stalls.map(|(from, length)| Ok((nanoseconds(from)?, nanoseconds(length)?))).collect()
}

fn nanoseconds(text: &str) -> Result<Duration, Box<dyn Error>> {
    Ok(Duration::from_nanos(text.parse()?))
}

fn longest(
    stalls: &[(Duration, Duration)],
    is_meant: impl Fn(Duration, Duration) -> bool,
) -> Duration {
    let meant = stalls.iter().filter(|(from, length)| is_meant(*from, *from + *length));
    meant.map(|(_, length)| *length).max().unwrap_or(STALL_MIN)
}

/// A request of which something is missing.
struct Request(TcpStream);

impl Request {
    fn begin(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n")?;
        Ok(Self(stream))
    }

    /// Sends the rest, and returns who has answered.
    fn complete(&mut self) -> Result<Pid, Box<dyn Error>> {
        self.0.write_all(b"\r\n")?;
        let mut answer = String::new();
        self.0.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim());
        Ok(body.ok_or("there is no answer")?.parse()?)
    }
}
