//! The service that is upgraded, and that starts processes from its heap.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use handover::{Handle, Handover, TcpListener, Verdict};
use rustix::time::{ClockId, clock_gettime};

use crate::memory;

/// How many processes are started in each way in a round.
const STARTS: usize = 3;

/// The time on the clock that all processes share.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    time.try_into().expect("the machine has been up for a positive time")
}

pub(crate) fn serve(heap_bytes: u64) -> Result<(), Box<dyn std::error::Error>> {
    let handover = Handover::builder().on_verdict(tell).start()?;
    let listener: TcpListener = handover.listen("service", "127.0.0.1:0")?;
    let running = handover.ready()?;
    let handle = running.handle();
    thread::spawn(move || work(&handle, heap_bytes));
    thread::spawn(move || listener.incoming().flatten().for_each(drop));
    running.wait()?.drain()?;
    Ok(())
}

fn tell(verdict: &Verdict) {
    match verdict {
        Verdict::Succeeded(success) => {
            let timings = success.timings;
            let to_word = timings.spawn + timings.hello;
            print("upgrade", [timings.spawn, to_word, timings.total]);
        }
        failed => panic!("{failed}"),
    }
}

fn work(handle: &Handle, heap_bytes: u64) {
    handle.predecessor_gone().wait();
    memory::fill(heap_bytes);
    for _ in 0..STARTS {
        print("posix_spawn", start(|command| command));
        print("fork", start(memory::by_fork));
    }
    println!("measured {}", std::process::id());
}

/// Starts this program to say when it began: the time in the call, and until then.
fn start(way: impl FnOnce(&mut Command) -> &mut Command) -> [Duration; 2] {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    let command = way(command.arg("first").stdin(Stdio::null()).stdout(Stdio::piped()));
    let before = now();
    let mut child = command.spawn().expect("it starts");
    let in_call = now() - before;
    let mut text = String::new();
    let mut stdout = child.stdout.take().expect("it is a pipe");
    stdout.read_to_string(&mut text).expect("a pipe can be read");
    child.wait().expect("it is our child");
    let first = Duration::from_nanos(text.trim().parse().expect("a number"));
    [in_call, first - before]
}

fn print<const N: usize>(what: &str, times: [Duration; N]) {
    let times: Vec<_> = times.iter().map(|time| time.as_nanos().to_string()).collect();
    println!("sample {what} {}", times.join(" "));
}
