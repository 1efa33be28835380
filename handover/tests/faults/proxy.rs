//! A proxy on the channel between two generations, which does one thing wrong.
//!
//! It runs in the test. The successor is started through the example `subject_proxied`, which gives
//! the predecessor's end of the channel to the proxy and another one to the successor.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{IoSlice, IoSliceMut, PipeReader, PipeWriter, Write as _, pipe};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use handover_testkit::process::{self, Signal, State};
use handover_testkit::{Pid, recheck, soon};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_domain;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, getpeername, recvmsg, sendmsg,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use Direction::{ToPredecessor, ToSuccessor};

/// How long a moment is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Shorter than any timeout of the services under test.
    pub(crate) brief: Duration,
    /// Longer than any, and than twice the commit timeout.
    pub(crate) overdue: Duration,
}

/// One of the two processes of a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Predecessor,
    Successor,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    ToPredecessor,
    ToSuccessor,
}

impl Direction {
    pub(crate) fn sender(self) -> Side {
        match self {
            ToPredecessor => Side::Successor,
            ToSuccessor => Side::Predecessor,
        }
    }
}

/// A message of a handover.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Message {
    pub(crate) direction: Direction,
    /// The value of `type`; `preamble` for the first datagram, which has none.
    pub(crate) name: String,
    /// Which one of its name in its direction, from 1.
    pub(crate) number: usize,
    pub(crate) has_descriptors: bool,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = match self.direction {
            ToPredecessor => "<-",
            ToSuccessor => "->",
        };
        write!(f, "{arrow} {} {}", self.name, self.number)
    }
}

/// What happens to one message, or to one side at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Neither it nor anything after it in its direction arrives.
    Stalled,
    /// It does not arrive.
    Dropped,
    /// It, and all after it in its direction, arrives a little later.
    Delayed,
    /// The same beyond every timeout.
    Overdue,
    /// Its first half arrives, with the descriptors.
    Truncated,
    /// It arrives without its descriptors.
    Stripped,
    /// It arrives twice, each time with its descriptors.
    Repeated,
    /// Each of its bytes is another one.
    Garbled,
    /// The side that sends it is killed before it does.
    SenderKilled,
    /// The side that sends it is killed when it has left, and arrives.
    SenderKilledAfter,
    /// The side that it is for is killed when it has not read it.
    ReceiverKilled,
    /// The side is suspended as the message is in the channel, and goes on a little later.
    Frozen(Side),
    /// The same beyond every timeout.
    FrozenLong(Side),
}

impl Fault {
    /// Which process it ends, for a message in that direction.
    pub(crate) fn kills(self, direction: Direction) -> Option<Side> {
        match (self, direction.sender()) {
            (Self::SenderKilled | Self::SenderKilledAfter, sender) => Some(sender),
            (Self::ReceiverKilled, Side::Predecessor) => Some(Side::Successor),
            (Self::ReceiverKilled, Side::Successor) => Some(Side::Predecessor),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stalled => "stalled",
            Self::Dropped => "dropped",
            Self::Delayed => "delayed",
            Self::Overdue => "overdue",
            Self::Truncated => "cut",
            Self::Stripped => "no fds",
            Self::Repeated => "twice",
            Self::Garbled => "garbled",
            Self::SenderKilled => "sender-",
            Self::SenderKilledAfter => "sender+",
            Self::ReceiverKilled => "recv-",
            Self::Frozen(Side::Predecessor) => "P rests",
            Self::Frozen(Side::Successor) => "S rests",
            Self::FrozenLong(Side::Predecessor) => "P hangs",
            Self::FrozenLong(Side::Successor) => "S hangs",
        })
    }
}

/// What the fault has met.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Struck {
    pub(crate) successor: Pid,
    /// How many connections the process had accepted and not closed that was killed or suspended.
    pub(crate) accepted: usize,
}

/// A proxy for one handover.
pub(crate) struct Proxy {
    thread: JoinHandle<Vec<Message>>,
    struck: Receiver<Struck>,
    /// Dropped to end it.
    stop: PipeWriter,
}

impl Proxy {
    /// Waits at that socket for the next successor of that process.
    pub(crate) fn start(
        listener: UnixListener,
        predecessor: Pid,
        strike: Option<(Message, Fault)>,
        times: Times,
    ) -> Self {
        let (stopped, stop) = pipe().unwrap();
        let (tell, struck) = channel();
        let thread = thread::spawn(move || {
            let Some((stream, ends, successor)) = accept(&listener, &stopped) else {
                return Vec::new();
            };
            Running {
                ends,
                stopped,
                lanes: [Lane::default(), Lane::default()],
                seen: Vec::new(),
                count: BTreeMap::new(),
                waits_for_preamble: Some(stream),
                thaw: None,
                pids: [predecessor, successor],
                strike,
                times,
                tell: Some(tell),
            }
            .run()
        });
        Self { thread, struck, stop }
    }

    /// Waits until the message has come; `None` if it has not, or came from or for a process that
    /// is gone: the handover has failed for another reason before.
    pub(crate) fn struck(&self) -> Option<Struck> {
        let left = soon().saturating_duration_since(Instant::now());
        self.struck.recv_timeout(left).ok()
    }

    /// Ends it, and returns what has passed.
    pub(crate) fn end(self) -> Vec<Message> {
        drop(self.stop);
        self.thread.join().expect("the proxy does not panic")
    }
}

/// Takes the two ends: that to the predecessor and that to the successor.
fn accept(
    listener: &UnixListener,
    stopped: &PipeReader,
) -> Option<(UnixStream, [OwnedFd; 2], Pid)> {
    let mut polled = [PollFd::new(listener, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
    poll(&mut polled, None).unwrap();
    if !polled[1].revents().is_empty() {
        return None;
    }
    let (stream, _) = listener.accept().unwrap();
    let mut pid = [0; 4];
    let (bytes, descriptors) = receive(stream.as_fd(), &mut pid).unwrap();
    assert_eq!(bytes, pid.len());
    Some((stream, descriptors.try_into().unwrap(), Pid::from_ne_bytes(pid)))
}

/// A frame on its way.
struct Frame {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// One direction.
#[derive(Default)]
struct Lane {
    held: VecDeque<Frame>,
    gate: Gate,
    /// Its sender has closed its end.
    ended: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Gate {
    #[default]
    Open,
    ShutUntil(Instant),
    Shut,
}

struct Running {
    /// To the predecessor, to the successor.
    ends: [OwnedFd; 2],
    stopped: PipeReader,
    /// To the predecessor, to the successor.
    lanes: [Lane; 2],
    seen: Vec<Message>,
    count: BTreeMap<(Direction, String), usize>,
    waits_for_preamble: Option<UnixStream>,
    /// Whom to let go on, and when.
    thaw: Option<(Pid, Instant)>,
    /// Of the predecessor, of the successor.
    pids: [Pid; 2],
    strike: Option<(Message, Fault)>,
    times: Times,
    /// Dropped when it is known that the message does not come.
    tell: Option<Sender<Struck>>,
}

impl Running {
    fn run(mut self) -> Vec<Message> {
        while self.step() {}
        let Self { ends, stopped, thaw, seen, tell, .. } = self;
        drop(tell);
        // Each side learns that the other one is gone.
        drop(ends);
        if let Some((pid, due)) = thaw {
            wait(&[stopped.as_fd()], Some(due));
            go_on(pid);
        }
        seen
    }

    /// Returns whether there is more to come.
    fn step(&mut self) -> bool {
        let now = Instant::now();
        for direction in [ToPredecessor, ToSuccessor] {
            let lane = &mut self.lanes[direction as usize];
            if matches!(lane.gate, Gate::ShutUntil(due) if due <= now) {
                lane.gate = Gate::Open;
            }
            if lane.gate == Gate::Open {
                for frame in std::mem::take(&mut lane.held) {
                    self.forward(direction, &frame);
                }
            }
        }
        if let Some((pid, _)) = self.thaw.take_if(|(_, due)| *due <= now) {
            go_on(pid);
        }
        // What was sent before the end arrives; what is never to arrive does not hold it up.
        if self.lanes.iter().any(|lane| lane.ended && !matches!(lane.gate, Gate::ShutUntil(_))) {
            return false;
        }

        let due = self.lanes.iter().filter_map(|lane| match lane.gate {
            Gate::ShutUntil(due) => Some(due),
            Gate::Open | Gate::Shut => None,
        });
        let due = due.chain(self.thaw.map(|(_, due)| due)).min();
        let open = [ToPredecessor, ToSuccessor]
            .into_iter()
            .filter(|direction| !self.lanes[*direction as usize].ended);
        let open: Vec<Direction> = open.collect();
        let mut fds = vec![self.stopped.as_fd()];
        fds.extend(open.iter().map(|direction| self.source(*direction)));
        let ready = wait(&fds, due);
        if ready[0] {
            return false;
        }
        let ready = open.into_iter().zip(&ready[1..]).filter(|(_, ready)| **ready);
        let ready: Vec<Direction> = ready.map(|(direction, _)| direction).collect();
        ready.into_iter().all(|direction| self.take(direction))
    }

    /// Takes the next frame of that direction; returns whether there is more to come.
    fn take(&mut self, direction: Direction) -> bool {
        let mut buffer = vec![0; 1 << 17];
        match receive(self.source(direction), &mut buffer) {
            Ok((bytes, descriptors)) if bytes > 0 || !descriptors.is_empty() => {
                buffer.truncate(bytes);
                let frame = Frame { bytes: buffer, descriptors };
                self.pass(direction, frame)
            }
            Ok(_) => {
                self.lanes[direction as usize].ended = true;
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(error) => panic!("the channel fails: {error}"),
        }
    }

    fn pass(&mut self, direction: Direction, frame: Frame) -> bool {
        let message = self.name(direction, &frame);
        self.seen.push(message.clone());
        let strike = self.strike.take_if(|(met, _)| *met == message);
        let goes_on = match strike {
            Some((_, fault)) => self.strike(direction, frame, fault),
            None => {
                self.lanes[direction as usize].held.push_back(frame);
                true
            }
        };
        if self.lanes[direction as usize].gate == Gate::Open {
            for frame in std::mem::take(&mut self.lanes[direction as usize].held) {
                self.forward(direction, &frame);
            }
        }
        if let Some(mut stream) = self.waits_for_preamble.take() {
            // It may have been killed.
            let _ = stream.write_all(b".");
        }
        goes_on
    }

    /// Does what is wrong; returns whether the channel lives on.
    fn strike(&mut self, direction: Direction, mut frame: Frame, fault: Fault) -> bool {
        let mut accepted = 0;
        let lane = &mut self.lanes[direction as usize];
        let mut goes_on = true;
        match fault {
            Fault::Stalled => lane.gate = Gate::Shut,
            Fault::Dropped => {}
            Fault::Delayed | Fault::Overdue => {
                let Times { brief, overdue } = self.times;
                let time = if fault == Fault::Delayed { brief } else { overdue };
                lane.gate = Gate::ShutUntil(Instant::now() + time);
                lane.held.push_back(frame);
            }
            Fault::Truncated => {
                frame.bytes.truncate(frame.bytes.len() / 2);
                lane.held.push_back(frame);
            }
            Fault::Stripped => {
                frame.descriptors.clear();
                lane.held.push_back(frame);
            }
            Fault::Repeated => {
                self.forward(direction, &frame);
                self.forward(direction, &frame);
            }
            Fault::Garbled => {
                frame.bytes.iter_mut().for_each(|byte| *byte = !*byte);
                lane.held.push_back(frame);
            }
            Fault::SenderKilled | Fault::SenderKilledAfter | Fault::ReceiverKilled => {
                if fault == Fault::SenderKilledAfter {
                    self.forward(direction, &frame);
                }
                let side = fault.kills(direction).expect("it kills");
                let Some(count) = self.suspend(side) else { return false };
                accepted = count;
                let pid = self.pids[side as usize];
                process::signal(pid, Signal::KILL);
                assert!(process::exited(pid, soon()));
                goes_on = false;
            }
            Fault::Frozen(side) | Fault::FrozenLong(side) => {
                let Some(count) = self.suspend(side) else { return false };
                accepted = count;
                self.forward(direction, &frame);
                let Times { brief, overdue } = self.times;
                let time = if fault == Fault::Frozen(side) { brief } else { overdue };
                self.thaw = Some((self.pids[side as usize], Instant::now() + time));
            }
        }
        let struck = Struck { successor: self.pids[Side::Successor as usize], accepted };
        if let Some(tell) = self.tell.take() {
            // The test may have failed meanwhile.
            let _ = tell.send(struck);
        }
        goes_on
    }

    /// Suspends a side, and returns how many connections it has accepted and not closed; `None` if
    /// it is gone.
    fn suspend(&self, side: Side) -> Option<usize> {
        let pid = self.pids[side as usize];
        process::try_signal(pid, Signal::STOP).ok()?;
        let stopped = || match process::state(pid) {
            Some(State::Stopped) => Some(true),
            Some(State::Zombie) | None => Some(false),
            Some(State::Running | State::Sleeping | State::Blocked) => None,
        };
        recheck(soon(), stopped)?.then(|| accepted(pid))
    }

    fn name(&mut self, direction: Direction, frame: &Frame) -> Message {
        let object: serde_json::Value = serde_json::from_slice(&frame.bytes).unwrap();
        let name = object["type"].as_str().unwrap_or("preamble").to_owned();
        let count = self.count.entry((direction, name.clone())).or_default();
        *count += 1;
        let has_descriptors = !frame.descriptors.is_empty();
        Message { direction, name, number: *count, has_descriptors }
    }

    fn source(&self, direction: Direction) -> BorrowedFd<'_> {
        self.ends[direction.sender() as usize].as_fd()
    }

    fn forward(&self, direction: Direction, frame: &Frame) {
        let target = match direction {
            ToPredecessor => &self.ends[Side::Predecessor as usize],
            ToSuccessor => &self.ends[Side::Successor as usize],
        };
        let descriptors: Vec<_> = frame.descriptors.iter().map(AsFd::as_fd).collect();
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        match sendmsg(target, &[IoSlice::new(&frame.bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => {}
            // The other side is gone, which will be received.
            Err(Errno::PIPE | Errno::CONNRESET) => {}
            Err(error) => panic!("a frame cannot be passed on: {error}"),
        }
    }
}

/// As many as there can be in a frame, and some.
const DESCRIPTORS_MAX: usize = 70;

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut receive =
        || recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    // That the other end is closed with something unread in it is said before what it sent.
    let message = match receive() {
        Err(Errno::CONNRESET) => receive(),
        received => received,
    };
    let bytes = match message {
        Ok(message) => message.bytes,
        Err(Errno::CONNRESET) => return Ok((0, Vec::new())),
        Err(error) => return Err(error),
    };
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((bytes, descriptors.flatten().collect()))
}

/// Waits until one can be read, or until then; returns which can.
fn wait(fds: &[BorrowedFd<'_>], due: Option<Instant>) -> Vec<bool> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let left = due.map(|due| due.saturating_duration_since(Instant::now()));
    let left: Option<Timespec> = left.map(|left| left.try_into().unwrap());
    match poll(&mut polled, left.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => panic!("poll: {error}"),
    }
    polled.iter().map(|fd| !fd.revents().is_empty()).collect()
}

fn go_on(pid: Pid) {
    // It may be gone by now.
    let _ = process::try_signal(pid, Signal::CONT);
}

/// How many TCP connections the process has: accepted, and not closed.
fn accepted(pid: Pid) -> usize {
    let raw = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).unwrap();
    let is_connection = |number: &i32| {
        let copy = pidfd_getfd(&pidfd, *number, PidfdGetfdFlags::empty());
        copy.is_ok_and(|fd| {
            socket_domain(&fd) == Ok(AddressFamily::INET) && getpeername(&fd).is_ok()
        })
    };
    process::fds(pid).keys().filter(|number| is_connection(number)).count()
}
