//! What all servers here do besides being upgraded: the same arguments, the same answers, the same end.
//!
//! They are called `serve-NAME PORT LISTENERS HEAP_MIB small|huge`, and print, as lines, when they began
//! (`began NANOSECONDS`), which of them serves (`serving PID`), and when they end the stalls that their busy
//! threads have seen (`stall FROM LENGTH`, in nanoseconds). All times are CLOCK_MONOTONIC.

#![allow(unsafe_code)]

use std::convert::Infallible;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpStream;

/// How long requests that are under way may take when a server ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// As many connections may wait to be accepted. The kernel allows no more by default.
pub const BACKLOG: u32 = 4096;

const PAGE_BYTES: usize = 4096;

/// Shorter ones are what any busy machine has.
const STALL_MIN: Duration = Duration::from_micros(500);

/// What a server is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    heap_bytes: usize,
    pages: Advice,
}

impl Settings {
    /// Says when the process began, and reads its arguments. To be called first thing in main.
    ///
    /// # Errors
    ///
    /// If they are not what they should be.
    pub fn read() -> Result<Self, Box<dyn Error>> {
        println!("began {}", now().as_nanos());
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let [port, listeners, heap_mib, pages] = &arguments[..] else {
            return Err("PORT LISTENERS HEAP_MIB small|huge".into());
        };
        let (port, listeners): (u16, u32) = (port.parse()?, listeners.parse()?);
        let most = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
        // All with one port: 10 000 of them would collide with what others have.
        let address = |number| Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + number);
        Ok(Self {
            addresses: (0..listeners).map(|number| (address(number), port).into()).collect(),
            heap_bytes: heap_mib.parse::<usize>()? << 20,
            pages: if pages == "huge" { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage },
        })
    }

    /// Has a heap, of which two busy threads use what they can. Only in the first process, which is the one that
    /// is looked at: its successors are to cost nothing but what they do to it.
    pub fn work(&self, is_first: bool) -> Stalls {
        let stalls: Stalls = Box::leak(Box::default());
        if is_first && self.heap_bytes > 0 {
            let start = fill(self.heap_bytes, self.pages);
            for seed in [1, 2] {
                let bytes = self.heap_bytes;
                thread::spawn(move || keep_busy(start, bytes, seed, stalls));
            }
        }
        stalls
    }
}

/// When busy threads could not go on, and for how long.
pub type Stalls = &'static Mutex<Vec<(Duration, Duration)>>;

/// Takes memory, touches each page of it, and keeps it to the end of the process.
fn fill(bytes: usize, pages: Advice) -> usize {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice, overlaps nothing.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE) };
    let start = start.expect("there is memory");
    // SAFETY: the range is the mapping made above; the advice changes no content.
    unsafe { madvise(start, bytes, pages) }.expect("the advice is known");
    for offset in (0..bytes).step_by(PAGE_BYTES) {
        // SAFETY: within the mapping, which is writable and never unmapped; nobody else knows of it yet.
        unsafe { start.cast::<u8>().add(offset).write_volatile(1) };
    }
    start as usize
}

/// Writes here and there in a heap, looks at the clock each time, and notes when that took long.
fn keep_busy(start: usize, bytes: usize, seed: usize, stalls: Stalls) {
    let (mut state, mut before) = (seed, now());
    let mut pause_at = before;
    loop {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let page = (state >> 20) % (bytes / PAGE_BYTES);
        // The two threads write different bytes of a page.
        let address = start + page * PAGE_BYTES + seed;
        // SAFETY: within the mapping of `fill`, which is never unmapped; only this thread uses the byte.
        unsafe { (address as *mut u8).write_volatile(2) };
        let after = now();
        if after - before > STALL_MIN {
            let stall = (before, after - before);
            stalls.lock().unwrap_or_else(PoisonError::into_inner).push(stall);
        }
        before = after;
        if after > pause_at {
            // The service has two cores for itself and its clients: a third of one will do for each thread.
            thread::sleep(Duration::from_micros(200));
            before = now();
            pause_at = before + Duration::from_micros(100);
        }
    }
}

/// Answers requests.
pub struct Site {
    graceful: GracefulShutdown,
    stalls: Stalls,
}

impl Site {
    /// Says that this process serves now.
    #[must_use]
    pub fn open(stalls: Stalls) -> Self {
        println!("serving {}", std::process::id());
        Self { graceful: GracefulShutdown::new(), stalls }
    }

    /// Answers what comes on a connection, in a task of its own. As hyper's documentation has it, with a watcher that
    /// ends it gracefully.
    pub fn serve(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut http = http1::Builder::new();
        let connection = http
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service_fn(answer));
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            // What becomes of a connection is its client's to know.
            let _ = connection.await;
        });
    }

    /// Has all connections end, and waits for those that are being answered.
    pub async fn close(self) {
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, self.graceful.shutdown()).await;
        tell(self.stalls);
    }
}

/// Says what stalls there were.
pub fn tell(stalls: Stalls) {
    for (from, length) in stalls.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("stall {} {}", from.as_nanos(), length.as_nanos());
    }
    println!("ends {}", std::process::id());
}

/// What all of them answer: the number of the process.
#[must_use]
pub fn body() -> String {
    format!("{}\n", std::process::id())
}

async fn answer(_: Request<Incoming>) -> Result<Response<String>, Infallible> {
    Ok(Response::new(body()))
}

/// The time on the clock that all processes share.
#[must_use]
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    time.try_into().expect("the machine has been up for a positive time")
}
