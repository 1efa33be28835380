//! A new version that proves itself, and work that only one process may do: `probation [ADDRESS]
//! [--control PATH] [--probation SECONDS]`, by default at 127.0.0.1:7002.
//!
//! Each connection is answered with the number of the process and the greeting in the variable
//! `GREETING`. Meanwhile a worker counts, and prints each number with its process: none twice and
//! none left out, through upgrades and rollbacks. On probation the process tests itself: with an
//! empty greeting it is rolled back. SIGHUP upgrades, SIGTERM stops.

mod options;

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use handover::{Handle, State, TcpListener, WhoServes};

/// How long the self-test waits for anything.
const PATIENCE: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    let (address, builder) = options::read("127.0.0.1:7002");
    let worker = Arc::new(Worker::default());
    let handle = Arc::new(OnceLock::<Handle>::new());

    let (at_commit, at_rollback) = (Arc::clone(&worker), Arc::clone(&worker));
    let returned = Arc::clone(&handle);
    let handover = builder
        // In the predecessor. The successor does not serve before this has returned.
        .on_commit(move |_| at_commit.stop())
        // In both. First the successor stops; what it has counted comes back as a late state.
        .on_rollback(move |rollback| match rollback.who_serves {
            WhoServes::ThisProcess => {
                at_rollback.start(returned.get().and_then(|handle| handle.late_state("count")));
            }
            _ => at_rollback.stop(),
        })
        // In both: what was kept for a rollback can go.
        .on_confirm(|confirm| println!("generation {} serves for good", confirm.generation))
        .start()?;
    let listener: TcpListener = handover.listen("probation", &address)?;
    let address = listener.local_addr()?.socket_addr().ok_or("no TCP address")?;
    println!("listening on {address}");
    let counted = Arc::clone(&worker);
    handover.provide_late_state("count", 1, move |out| Ok(write!(out, "{}", *counted.count())?))?;

    let running = handover.ready()?;
    let handle = handle.get_or_init(|| running.handle()).clone();
    worker.start(handle.late_state("count"));
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let _ = writeln!(connection, "{} {}", std::process::id(), greeting());
        }
    });
    if !handle.confirmed().has_come() {
        let worker = Arc::clone(&worker);
        thread::spawn(move || match test(address, &worker) {
            Ok(()) => handle.confirm(),
            Err(problem) => handle.unhealthy(&problem.to_string()),
        });
    }

    let draining = running.wait()?;
    worker.stop();
    draining.drain()?;
    Ok(())
}

fn greeting() -> String {
    std::env::var("GREETING").unwrap_or_else(|_| "hello".into())
}

/// Waits for the worker to work, and asks this service as a client would: on probation all that comes
/// is this process's to answer.
fn test(address: SocketAddr, worker: &Worker) -> Result<(), Box<dyn Error>> {
    if !worker.is_working() {
        return Err("the worker does not count".into());
    }
    let connection = TcpStream::connect_timeout(&address, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    match line.trim_end().split_once(' ') {
        Some((_, greeting)) if !greeting.is_empty() => Ok(()),
        _ => Err("the greeting is empty".into()),
    }
}

/// Counts, in a thread of its own.
#[derive(Default)]
struct Worker {
    count: Arc<Mutex<u64>>,
    counted: Arc<Condvar>,
    thread: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl Worker {
    /// Goes on from what another process has left, if it has left anything.
    fn start(&self, left: Option<State>) {
        let left = left.and_then(|left| std::str::from_utf8(&left).ok()?.parse().ok());
        if let Some(left) = left {
            *self.count() = left;
        }
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let (stop, stopped) = channel::<()>();
            let (count, counted) = (Arc::clone(&self.count), Arc::clone(&self.counted));
            let work = move || {
                let pause = Duration::from_millis(10);
                while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    let mut count = lock(&count);
                    *count += 1;
                    println!("{count} by {}", std::process::id());
                    counted.notify_all();
                }
            };
            *thread = Some((stop, thread::spawn(work)));
        }
    }

    /// Returns when nothing more is counted.
    fn stop(&self) {
        if let Some((stop, thread)) = lock(&self.thread).take() {
            drop(stop);
            let _ = thread.join();
        }
    }

    /// Waits for the next number; returns whether there was one in time.
    fn is_working(&self) -> bool {
        let (count, counted) = (self.count(), &self.counted);
        let before = *count;
        let waited = counted.wait_timeout_while(count, PATIENCE, |count| *count == before);
        waited.is_ok_and(|(_, result)| !result.timed_out())
    }

    fn count(&self) -> MutexGuard<'_, u64> {
        lock(&self.count)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
