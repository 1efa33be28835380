//! A service of another release: it speaks the protocol by itself, in other versions and with an accent.
//!
//! Not built on the library, but on the two machines of its protocol, of which it changes what they send.
//! It answers each GET with its pid and closes. Started with a channel it becomes the successor of who left
//! that there; else it is the first generation, and `GET /upgrade` has it hand over to its command.
//!
//! | argument | meaning |
//! |---|---|
//! | `--versions OLDEST NEWEST` | what it says to speak |
//! | `--fields` | every object that it sends has fields that version 1 does not know |
//! | `--message` | once it has been spoken to, it sends a message that version 1 does not know |
//! | `-- COMMAND...` | what to hand over to |

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitCode, id};
use std::time::{Duration, Instant};
use std::{env, iter};

use handover_proto::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg,
};
use serde_json::{Value, json};

const TOKEN: &str = "other-release";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("versions: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let speech = Speech::parse(env::args().skip(1))?;
    match env::var("HANDOVER_CHANNEL") {
        Ok(variable) => succeed(&speech, Channel::inherited(&variable)?),
        Err(_) => begin(&speech),
    }
}

/// Serves as the first generation, and hands over when asked to.
fn begin(speech: &Speech) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    println!("listening on {}", listener.local_addr()?);
    println!("serving {} generation 1", id());
    loop {
        wait(&[listener.as_fd()], None)?;
        if accept(&listener)? == Asked::Upgrade && hand_over(speech, &listener)? {
            println!("drained {}", id());
            return Ok(());
        }
    }
}

/// Returns whether the successor serves.
fn hand_over(speech: &Speech, listener: &TcpListener) -> Result<bool, Box<dyn Error>> {
    let started = Instant::now();
    let now = || Time::from_origin(started.elapsed());
    let (channel, mut child) = spawn(&speech.command)?;
    let end = rustix::process::pidfd_open(
        rustix::process::Pid::from_child(&child),
        rustix::process::PidfdFlags::empty(),
    )?;
    let config = PredecessorConfig {
        versions: speech.versions,
        pid: id(),
        own_generation: 1,
        generation: 2,
        ready_timeout: Duration::from_secs(30),
        commit_timeout: Duration::from_secs(10),
        probation: None,
        answer_timeout: Duration::from_secs(10),
    };
    let item = Item { address: Some("127.0.0.1:0".into()), ..Item::new(Name::new("http")?) };
    let inventory = Inventory { items: vec![item], states: 0, stderr: false };
    let mut machine = Predecessor::new(config, inventory, now());
    let (mut accepts, mut is_open, mut was_spoken_to) = (true, true, false);
    loop {
        while let Some(event) = machine.poll_event() {
            match event {
                PredecessorEvent::StopAccepting { .. } => {
                    accepts = false;
                    machine.accepting_stopped(now());
                    machine.late_states_complete(now());
                }
                PredecessorEvent::ResumeAccepting => accepts = true,
                PredecessorEvent::Kill => child.kill()?,
                PredecessorEvent::Finished(Outcome::Succeeded) => {
                    println!("verdict succeeded");
                    return Ok(true);
                }
                PredecessorEvent::Finished(
                    Outcome::Failed { cause, .. } | Outcome::RolledBack { cause },
                ) => {
                    child.wait()?;
                    println!("verdict failed: {cause}");
                    return Ok(false);
                }
                _ => {}
            }
        }
        while let Some(Transmit { frame, slots }) = machine.poll_transmit() {
            let descriptors: Vec<_> = slots.iter().map(|_| listener.as_fd()).collect();
            for frame in speech.say(frame, &mut was_spoken_to) {
                // If the other end is closed, that will be received.
                let _ = channel.send(&frame, &descriptors);
            }
        }
        let timeout = machine.poll_timeout().map(|deadline| deadline - now());
        let fds = [end.as_fd(), channel.0.as_fd(), listener.as_fd()];
        // What cannot be read any more stays readable, and so does who is not accepted.
        let watched = [true, is_open, accepts];
        let ready = wait_watched(&fds, &watched, timeout)?;
        if ready[1] {
            match channel.receive()? {
                Some((frame, descriptors)) => {
                    was_spoken_to = true;
                    let received = Received { descriptors: descriptors.len(), truncated: false };
                    machine.handle_frame(&frame, received, now());
                }
                None => {
                    is_open = false;
                    machine.handle_closed(now());
                }
            }
        } else if ready[0] {
            machine.handle_exited(now());
        }
        if ready[2] {
            accept(listener)?;
        }
        machine.handle_timeout(now());
    }
}

/// Becomes the successor, and serves.
fn succeed(speech: &Speech, channel: Channel) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let now = || Time::from_origin(started.elapsed());
    let versions = speech.versions;
    let config = SuccessorConfig { versions, pid: id(), software: "another release".into() };
    let mut machine = Successor::new(config, now());
    let (mut kept, mut names) = (Vec::new(), Vec::new());
    let (mut listener, mut arrived): (Option<TcpListener>, Vec<OwnedFd>) = (None, Vec::new());
    let (mut generation, mut accepts, mut is_open, mut was_spoken_to) = (0, false, true, false);
    loop {
        let mut descriptors = std::mem::take(&mut arrived).into_iter();
        while let Some(event) = machine.poll_event() {
            match event {
                SuccessorEvent::Welcomed { generation: number, .. } => generation = number,
                SuccessorEvent::TakeDescriptors { items } => {
                    for (item, fd) in items.into_iter().zip(&mut descriptors) {
                        if item.name.as_str() == "http" {
                            listener = Some(TcpListener::from(fd.try_clone()?));
                            names.push(item.name);
                        }
                        kept.push(fd);
                    }
                }
                SuccessorEvent::TakeStderr | SuccessorEvent::TakeState { .. } => {
                    kept.extend(descriptors.next());
                }
                SuccessorEvent::Adopted => machine.ready(std::mem::take(&mut names), now()),
                SuccessorEvent::Committed(_) => {
                    accepts = true;
                    println!("serving {} generation {generation}", id());
                }
                SuccessorEvent::Failed(failure) => {
                    flush(&mut machine, speech, &channel, &mut was_spoken_to);
                    return Err(failure.to_string().into());
                }
                SuccessorEvent::RollBack { .. } => {
                    accepts = false;
                    machine.stopped(0);
                }
                SuccessorEvent::Replaced | SuccessorEvent::Stop { .. } => return Ok(()),
                _ => {}
            }
        }
        flush(&mut machine, speech, &channel, &mut was_spoken_to);
        let timeout = machine.poll_timeout().map(|deadline| deadline - now());
        let fds = [channel.0.as_fd(), listener.as_ref().map_or(channel.0.as_fd(), AsFd::as_fd)];
        let ready = wait_watched(&fds, &[is_open, accepts && listener.is_some()], timeout)?;
        if ready[0] {
            match channel.receive()? {
                Some((frame, descriptors)) => {
                    was_spoken_to = true;
                    let received = Received { descriptors: descriptors.len(), truncated: false };
                    machine.handle_frame(&frame, received, now());
                    arrived = descriptors;
                }
                None => {
                    is_open = false;
                    machine.handle_closed();
                }
            }
        }
        if ready[1]
            && let Some(listener) = &listener
        {
            accept(listener)?;
        }
        machine.handle_timeout(now());
    }
}

/// Says what there is to say; that the other end is gone will be received.
fn flush(machine: &mut Successor, speech: &Speech, channel: &Channel, was_spoken_to: &mut bool) {
    while let Some(transmit) = machine.poll_transmit() {
        for frame in speech.say(transmit.frame, was_spoken_to) {
            let _ = channel.send(&frame, &[]);
        }
    }
}

/// What it says, and how.
struct Speech {
    versions: Versions,
    fields: bool,
    message: bool,
    command: Vec<String>,
}

impl Speech {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let (versions, command) = (Versions::OURS, Vec::new());
        let mut speech = Self { versions, fields: false, message: false, command };
        while let Some(argument) = arguments.next() {
            let mut version = || arguments.next().unwrap_or_default().parse().map(Version);
            match &*argument {
                "--versions" => {
                    speech.versions = Versions { oldest: version()?, newest: version()? };
                }
                "--fields" => speech.fields = true,
                "--message" => speech.message = true,
                "--" => speech.command = arguments.by_ref().collect(),
                other => return Err(format!("unknown argument {other}").into()),
            }
        }
        Ok(speech)
    }

    /// The frames that are sent in the place of one.
    fn say(&self, frame: Vec<u8>, was_spoken_to: &mut bool) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        if self.message && std::mem::take(was_spoken_to) {
            frames.push(json!({ "type": "moonrise", "phase": "full" }).to_string().into_bytes());
        }
        match serde_json::from_slice(&frame) {
            Ok(mut value) if self.fields => {
                add_fields(&mut value);
                frames.push(value.to_string().into_bytes());
            }
            Ok(_) | Err(_) => frames.push(frame),
        }
        frames
    }
}

fn add_fields(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.values_mut().for_each(add_fields);
            object.insert("moon".into(), json!({ "phase": ["full", 1.5, null] }));
        }
        Value::Array(values) => values.iter_mut().for_each(add_fields),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

struct Channel(OwnedFd);

impl Channel {
    #[allow(unsafe_code)]
    fn inherited(variable: &str) -> Result<Self, Box<dyn Error>> {
        use std::os::fd::FromRawFd as _;
        let (number, token) = variable.split_once(':').ok_or("no token")?;
        // SAFETY: this program was started with it, and opens nothing before.
        let channel = Self(unsafe { OwnedFd::from_raw_fd(number.parse()?) });
        rustix::io::fcntl_setfd(&channel.0, rustix::io::FdFlags::CLOEXEC)?;
        let (preamble, _) = channel.receive()?.ok_or("no preamble")?;
        let preamble = Preamble::decode(&preamble).filter(|preamble| preamble.token == token);
        preamble.map(|_| channel).ok_or_else(|| "another preamble".into())
    }

    fn send(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        sendmsg(&self.0, &[IoSlice::new(frame)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next frame; `None` at the end.
    fn receive(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(65))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = vec![0; MAX_FRAME_BYTES + 1];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let bytes =
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, flags) {
                Ok(received) => received.bytes,
                Err(rustix::io::Errno::CONNRESET) => 0,
                Err(error) => return Err(error.into()),
            };
        let fds = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds: Vec<_> = fds.flatten().collect();
        buffer.truncate(bytes);
        Ok((bytes > 0).then_some((buffer, fds)))
    }
}

/// Starts the successor, with one end of a channel.
fn spawn(command: &[String]) -> Result<(Channel, Child), Box<dyn Error>> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let ours = Channel(ours);
    ours.send(&Preamble { token: TOKEN.into(), generation: 2 }.encode(), &[])?;
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let variable = format!("{}:{TOKEN}", theirs.as_raw_fd());
    let child = Command::new(program).args(arguments).env("HANDOVER_CHANNEL", variable).spawn()?;
    Ok((ours, child))
}

fn wait(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    poll(&mut fds, timeout.as_ref())?;
    Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect())
}

fn wait_watched(
    fds: &[BorrowedFd<'_>],
    watched: &[bool],
    timeout: Option<Duration>,
) -> io::Result<Vec<bool>> {
    let chosen: Vec<_> =
        iter::zip(fds, watched).filter(|(_, on)| **on).map(|(fd, _)| *fd).collect();
    let mut ready = wait(&chosen, timeout)?.into_iter();
    Ok(watched.iter().map(|on| *on && ready.next().unwrap_or(false)).collect())
}

#[derive(PartialEq, Eq)]
enum Asked {
    Nothing,
    Upgrade,
}

fn accept(listener: &TcpListener) -> io::Result<Asked> {
    match listener.accept() {
        // A client that breaks off is no reason to end.
        Ok((stream, _)) => Ok(answer(stream).unwrap_or(Asked::Nothing)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Asked::Nothing),
        Err(error) => Err(error),
    }
}

fn answer(mut stream: TcpStream) -> io::Result<Asked> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        request.extend(byte);
    }
    let body = id().to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    Ok(if request.starts_with(b"GET /upgrade ") { Asked::Upgrade } else { Asked::Nothing })
}
