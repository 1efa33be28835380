//! A program under test: it claims what the file `config` of its folder says, read anew by each
//! generation, and answers with its pid.
//!
//! `subject_listeners FOLDER`. A line of the file is one of
//!
//! ```text
//! runtime blocking|tokio       which side of the library is used, blocking unless said
//! tcp|unix|seqpacket|udp|datagram NAME ADDRESS [OPTION...]
//! file|pipe|pair|connect NAME ARGUMENT
//! later NAME                   claims it after ready(), or never
//! wait FIFO                    initialises until the end of that file
//! drain SECONDS                the drain timeout
//! ```
//!
//! where the name `-` stands for the default one, and the options are `backlog=N`, `reuse_port`,
//! `mode=OCTAL` and `buffer=BYTES` (set before the bind), `hook_fails`, `slow=MILLISECONDS`
//! (between two accepts), `idle` (nobody accepts), `cloned` (only a clone might accept; TCP) and
//! `log` (datagrams go into `NAME.log`).
//!
//! A line that begins with `!` on a connection is a command, see `App::command`.

/// Prints a line in one write. `println!` writes the pieces of a line one by one while the process
/// exits, and a line of the next generation may come in between.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::write_line(format!($($text)*))
    };
}

#[path = "listeners/blocking.rs"]
mod blocking;
#[path = "listeners/config.rs"]
mod config;
#[path = "listeners/tasks.rs"]
mod tasks;

use std::any::Any;
use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write, pipe};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handover::{Bind, Claim, ClaimError, Descriptor, Handle, Handover};

use config::{Config, Runtime, Socket};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Begins to serve what was claimed.
type Serve = Box<dyn FnOnce(&Arc<App>) + Send>;

fn main() -> ExitCode {
    let folder = std::env::args_os().nth(1).expect("the folder is the first argument");
    let result = Config::read(folder.into()).and_then(|config| match config.runtime {
        Runtime::Blocking => blocking::run(config),
        Runtime::Tokio => tasks::run(config),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("error {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn start(config: &Config) -> Fallible<Handover> {
    let builder = Handover::builder()
        .max_generations(100)
        .drain_timeout(config.drain_timeout)
        .on_verdict(|verdict| say!("verdict {verdict}"));
    Ok(builder.start()?)
}

/// Claims everything that the configuration names, and initialises.
fn claim_all(
    handover: &Handover,
    config: &Config,
    claim: impl Fn(From<'_>, &Socket) -> Result<Serve, ClaimError>,
) -> Fallible<(Vec<Serve>, HashMap<String, Descriptor>)> {
    let from = From::Handover(handover);
    let mut serves = Vec::new();
    for socket in &config.sockets {
        serves.push(claim(from, socket)?);
    }
    let mut descriptors = HashMap::new();
    for (kind, name, argument) in &config.descriptors {
        descriptors.extend(claim_descriptors(from, kind, name, argument)?);
    }
    for name in &config.later {
        say!("later {name} {}", handover.claim_later(name));
    }
    if let Some(fifo) = &config.wait {
        say!("initialising {}", std::process::id());
        File::open(fifo)?.read_to_end(&mut Vec::new())?;
    }
    Ok((serves, descriptors))
}

/// Claims one descriptor, or the two ends of something.
fn claim_descriptors(
    from: From<'_>,
    kind: &str,
    name: &str,
    argument: &str,
) -> Result<Vec<(String, Descriptor)>, ClaimError> {
    let one = |make: &dyn Fn() -> io::Result<OwnedFd>| {
        say!("descriptor {name}");
        Ok(vec![(name.to_owned(), from.descriptor(name, make)?)])
    };
    let two = |make: &dyn Fn() -> io::Result<(OwnedFd, OwnedFd)>| {
        // Made by the first claim, taken by the second one.
        let mut other = None;
        let first = from.descriptor(&format!("{name}.0"), || {
            let (first, second) = make()?;
            other = Some(second);
            Ok(first)
        })?;
        let second = from.descriptor(&format!("{name}.1"), || {
            other.take().ok_or_else(|| io::Error::other("only one end was inherited"))
        })?;
        Ok(vec![(format!("{name}.0"), first), (format!("{name}.1"), second)])
    };
    match kind {
        "file" => one(&|| {
            let options = File::options().read(true).write(true).create(true).clone();
            Ok(options.open(argument)?.into())
        }),
        "connect" => one(&|| Ok(TcpStream::connect(argument)?.into())),
        "pipe" => two(&|| pipe().map(|(reader, writer)| (reader.into(), writer.into()))),
        _ => two(&|| UnixStream::pair().map(|(a, b)| (a.into(), b.into()))),
    }
}

/// Who is asked for a socket.
#[derive(Clone, Copy)]
enum From<'a> {
    Handover(&'a Handover),
    Handle(&'a Handle),
}

impl From<'_> {
    fn listen<S: Claim>(self, socket: &Socket) -> Result<S, ClaimError> {
        let bind = bind(socket);
        match (self, socket.name.as_str()) {
            (Self::Handover(handover), "-") => handover.listen_on(bind),
            (Self::Handover(handover), name) => handover.listen(name, bind),
            (Self::Handle(handle), name) => handle.listen(name, bind),
        }
    }

    fn descriptor(
        self,
        name: &str,
        make: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<Descriptor, ClaimError> {
        match self {
            Self::Handover(handover) => handover.descriptor(name, make),
            Self::Handle(handle) => handle.descriptor(name, make),
        }
    }
}

fn bind(socket: &Socket) -> Bind {
    let mut bind = Bind::to(&socket.address);
    if let Some(backlog) = socket.backlog {
        bind = bind.backlog(backlog);
    }
    if socket.reuse_port {
        bind = bind.reuse_port();
    }
    let (name, mode, buffer, fails) =
        (socket.name.clone(), socket.mode, socket.buffer_bytes, socket.hook_fails);
    bind.before_bind(move |socket| {
        say!("before_bind {name}");
        if fails {
            return Err(io::Error::other("the hook fails"));
        }
        if let Some(mode) = mode {
            rustix::fs::fchmod(socket, mode.into())?;
        }
        if let Some(bytes) = buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        Ok(())
    })
}

/// What serves, and what commands act upon.
struct App {
    config: Config,
    handle: Handle,
    claim: fn(From<'_>, &Socket) -> Result<Serve, ClaimError>,
    /// What is dropped by the command `!drop`.
    held: Mutex<HashMap<String, Box<dyn Any + Send>>>,
    descriptors: Mutex<HashMap<String, Descriptor>>,
}

impl App {
    /// Serves what was claimed, and says so.
    fn begin(self: &Arc<Self>, serves: Vec<Serve>) {
        say!("serving {} generation {}", std::process::id(), self.handle.generation());
        for serve in serves {
            serve(self);
        }
    }

    fn hold(&self, name: &str, listener: impl Any + Send) {
        self.held().insert(name.to_owned(), Box::new(listener));
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Box<dyn Any + Send>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a listener accepts nothing more.
    fn ended(&self, name: &str, result: io::Result<()>) {
        match result {
            Ok(()) => say!("ended {name}"),
            Err(error) => say!("ended {name} with {error}"),
        }
    }

    /// Answers a line of a connection.
    fn answer(self: &Arc<Self>, line: &str) -> String {
        match line.strip_prefix('!') {
            None => format!("{} {line}\n", std::process::id()),
            Some(command) => match self.command(command) {
                Ok(text) => format!("{text}\n"),
                Err(error) => format!("error {}\n", chain(&*error)),
            },
        }
    }

    fn command(self: &Arc<Self>, command: &str) -> Fallible<String> {
        let words: Vec<&str> = command.split_ascii_whitespace().collect();
        match words[..] {
            // As a line of the configuration.
            ["listen", ..] => {
                let socket = Socket::parse(&words[1..]).ok_or("no socket")?;
                (self.claim)(From::Handle(&self.handle), &socket)?(self);
                Ok("ok".into())
            }
            ["drop", name] => {
                let listener = self.held().remove(name).ok_or("no such listener")?;
                drop(listener);
                Ok("ok".into())
            }
            ["descriptor", kind, name, argument] => {
                let new = claim_descriptors(From::Handle(&self.handle), kind, name, argument)?;
                self.descriptors().extend(new);
                Ok("ok".into())
            }
            ["forget", name] => {
                self.descriptors().remove(name).ok_or("no such descriptor")?;
                Ok("ok".into())
            }
            // To a descriptor; it stays open.
            ["write", name, text] => {
                File::from(self.clone_of(name)?).write_all(text.as_bytes())?;
                Ok("ok".into())
            }
            ["read", name, bytes] => {
                let mut text = vec![0; bytes.parse()?];
                File::from(self.clone_of(name)?).read_exact(&mut text)?;
                Ok(String::from_utf8_lossy(&text).into_owned())
            }
            ["child"] => {
                #[allow(clippy::zombie_processes)]
                let child = Command::new("sleep").arg("1000").spawn()?;
                Ok(child.id().to_string())
            }
            ["chdir", directory] => {
                std::env::set_current_dir(directory)?;
                Ok("ok".into())
            }
            ["upgrade"] => Ok(self.handle.upgrade().wait().to_string()),
            ["stop"] => {
                self.handle.stop();
                Ok("ok".into())
            }
            _ => Err("no such command".into()),
        }
    }

    fn descriptors(&self) -> MutexGuard<'_, HashMap<String, Descriptor>> {
        self.descriptors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clone_of(&self, name: &str) -> Fallible<OwnedFd> {
        let descriptors = self.descriptors();
        let descriptor = descriptors.get(name).ok_or("no such descriptor")?;
        Ok(descriptor.as_fd().try_clone_to_owned()?)
    }

    /// Notes a datagram, and returns the answer to it.
    fn datagram(&self, socket: &Socket, datagram: &[u8]) -> Vec<u8> {
        let mut answer = format!("{} ", std::process::id()).into_bytes();
        answer.extend_from_slice(datagram);
        if socket.log {
            let path = self.config.folder.join(format!("{}.log", socket.name));
            let line = [&answer[..], b"\n"].concat();
            let written = File::options().append(true).create(true).open(path).and_then(|mut f| {
                // In one write, so that generations do not mix their lines.
                f.write_all(&line)
            });
            if let Err(error) = written {
                say!("error {error}");
            }
        }
        if let Some(slow) = socket.slow {
            std::thread::sleep(slow);
        }
        answer
    }
}

/// An error and all its causes.
fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

fn write_line(line: String) {
    // Without a reader there is nobody to tell.
    let _ = io::stdout().write_all((line + "\n").as_bytes());
}

fn announce(name: &str, address: &dyn std::fmt::Display) {
    say!("{name} listening on {address}");
}

const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
