//! Those who connect.

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream};

use handover_testkit::{Launch, Service};
use rustix::net::sockopt::set_socket_linger;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use std::time::Duration;

use crate::TIMEOUT;

/// Where the server runs, and where the clients do.
pub(crate) struct Processors(Option<[usize; 2]>);

impl Processors {
    /// The first two on which this process may run.
    pub(crate) fn choose() -> Self {
        let allowed = sched_getaffinity(None).unwrap_or_default();
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number));
        Self(allowed.next().zip(allowed.next()).map(<[usize; 2]>::from))
    }

    pub(crate) fn note(&self) -> Option<String> {
        let why = "There is only one processor: servers and clients have shared it.";
        self.0.is_none().then(|| why.to_owned())
    }

    /// Starts a server on its own one. This thread is on the other one from here on.
    pub(crate) fn start(&self, launch: Launch) -> io::Result<Service> {
        self.run_on(0)?;
        let service = launch.try_start();
        self.run_on(1)?;
        service
    }

    fn run_on(&self, which: usize) -> io::Result<()> {
        let Some(processors) = self.0 else { return Ok(()) };
        let mut set = CpuSet::new();
        set.set(processors[which]);
        // What is started from here inherits it (sched_setaffinity(2)).
        sched_setaffinity(None, &set)?;
        Ok(())
    }
}

/// Makes so many connections, so many at a time, each of which ends when a byte has come.
pub(crate) fn connect(address: SocketAddr, connections: u64, at_a_time: usize) -> io::Result<()> {
    let mut open = VecDeque::with_capacity(at_a_time);
    for _ in 0..connections {
        if open.len() == at_a_time {
            open.pop_front().map_or(Ok(()), end)?;
        }
        // The kernel completes the handshake, whatever the server does.
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        // A reset leaves nobody in TIME-WAIT: there are not enough ports for as many connections.
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        open.push_back(stream);
    }
    open.into_iter().try_for_each(end)
}

fn end(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0])
}
