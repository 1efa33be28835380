//! Accepts as many connections as it is told from the stream that ecdysis makes of a listener, answers each with one
//! byte, and exits: what `bench/src/bin/accept` holds against the library. The runtime has one thread, as that of the
//! other servers there.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use ecdysis::tokio_ecdysis::{SignalKind, StopOnShutdown, TokioEcdysisBuilder};
use futures::StreamExt as _;
use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::io::AsyncWriteExt as _;

const ANSWER: &[u8] = b"x";

const BACKLOG: i32 = 1024;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let left = arguments.next().ok_or("how many?")?.parse()?;
    let timed = arguments.next().is_none_or(|word| word != "--untimed");
    let mut meter = Meter { left, timed, first: None };
    let builder = TokioEcdysisBuilder::new(SignalKind::hangup())?;
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut address = None;
    let mut stream =
        builder.build_listen_tcp(StopOnShutdown::Yes, any_port, |socket, any_port| {
            socket.set_reuse_address(true)?;
            socket.bind(&any_port.into())?;
            socket.listen(BACKLOG)?;
            address = socket.local_addr()?.as_socket();
            Ok(socket.into())
        })?;
    let (_ecdysis, ended) = builder.ready()?;
    let waiting = tokio::spawn(ended);
    println!("listening {}", address.ok_or("no address")?);
    while !meter.is_done() {
        let mut connection = stream.next().await.ok_or("it has ended")??;
        meter.accepted();
        connection.write_all(ANSWER).await?;
    }
    waiting.abort();
    Ok(())
}

/// Counts connections, and tells how long they took.
struct Meter {
    left: u64,
    /// Whether it looks at any clock.
    timed: bool,
    first: Option<[Duration; 2]>,
}

impl Meter {
    /// To be called when one has been accepted, before anything else.
    fn accepted(&mut self) {
        self.left -= 1;
        if !self.timed {
            return;
        }
        match self.first {
            None => self.first = Some(times()),
            Some([time, processor]) if self.left == 0 => {
                let [last_time, last_processor] = times();
                let (time, processor) = (last_time - time, last_processor - processor);
                println!("took {} {}", time.as_nanos(), processor.as_nanos());
            }
            Some(_) => {}
        }
    }

    fn is_done(&self) -> bool {
        self.left == 0
    }
}

/// The time, and that of this process on a processor.
fn times() -> [Duration; 2] {
    [ClockId::Monotonic, ClockId::ProcessCPUTime].map(|clock| {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
        Duration::new(tv_sec.unsigned_abs(), u32::try_from(tv_nsec).unwrap_or_default())
    })
}
