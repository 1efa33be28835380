//! State that outlives a generation: written into sealed memory, mapped by the successor.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};

use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use handover_proto::Name;

use crate::drain::InFlight;
use crate::sys::memfd::{self, Mapping, MappingMut, Memfd};
use crate::sys::poll::Wake;
use crate::sys::time::since_boot;

/// A state that the predecessor left.
///
/// It dereferences to its bytes, which are mapped and not copied, and cannot change.
pub struct State {
    name: Name,
    version: u32,
    bytes: Mapping,
    /// How many of the bytes are the application's.
    length: usize,
    /// When it was saved, on the clock that begins with the boot of the system.
    saved: Option<Duration>,
}

impl State {
    pub(crate) fn map(name: Name, version: u32, bytes: u64, fd: OwnedFd) -> io::Result<Self> {
        let bytes = memfd::map_sealed(fd.as_fd(), bytes)?;
        Ok(Self { name, version, length: bytes.len(), bytes, saved: None })
    }

    /// Maps one that was saved before a crash.
    pub(crate) fn recover(name: Name, fd: OwnedFd) -> io::Result<Self> {
        let bytes = memfd::map_sealed(fd.as_fd(), memfd::length(fd.as_fd())?)?;
        let (length, trailer) = Trailer::read(&bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the state has no end"))?;
        let Trailer { version, saved } = trailer;
        Ok(Self { name, version, bytes, length, saved: Some(saved) })
    }

    /// How long ago it was saved, if it comes from systemd's fd store and not from a predecessor:
    /// what has happened since is not in it.
    pub fn age(&self) -> Option<Duration> {
        self.saved.map(|saved| since_boot().saturating_sub(saved))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// When it was saved, if it was.
    pub(crate) fn saved(&self) -> Option<Duration> {
        self.saved
    }

    pub(crate) fn name_as(&self) -> &Name {
        &self.name
    }

    /// The version of its format, as the predecessor gave it.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Reads it as JSON.
    ///
    /// # Errors
    ///
    /// If it is not what `T` expects. The successor may then go without, or refuse.
    #[cfg(feature = "serde")]
    pub fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(self)
    }
}

impl Deref for State {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("name", &self.name.as_str())
            .field("version", &self.version)
            .field("bytes", &self.len())
            .finish()
    }
}

/// What goes wrong while a state is written; any error will do.
pub type StateError = Box<dyn std::error::Error + Send + Sync>;

/// Where an application writes a state.
///
/// It is written straight into the memory that the successor maps. Write to it as to a file, or
/// build the state in place with [`in_place`](Self::in_place).
#[derive(Debug)]
pub struct StateWriter {
    out: BufWriter<Sink>,
    in_flight: Arc<InFlight>,
}

impl StateWriter {
    /// Adds this many bytes, zero at first, to be written in place.
    ///
    /// # Errors
    ///
    /// If there is no memory, or the state grows beyond the limit of `Builder::max_state_bytes`.
    pub fn in_place(&mut self, bytes: u64) -> io::Result<InPlace> {
        self.out.flush()?;
        let sink = self.out.get_mut();
        let start = sink.position;
        sink.check_room(bytes)?;
        let end = start.checked_add(bytes).ok_or(io::ErrorKind::FileTooLarge)?;
        sink.memfd.resize(end)?;
        sink.position = end;
        let start = usize::try_from(start).map_err(|_| io::ErrorKind::OutOfMemory)?;
        Ok(InPlace { mapping: sink.memfd.map_mut()?, start })
    }

    /// Writes a value as JSON.
    ///
    /// # Errors
    ///
    /// If the value cannot be written.
    #[cfg(feature = "serde")]
    pub fn json<T: serde::Serialize + ?Sized>(&mut self, value: &T) -> Result<(), StateError> {
        Ok(serde_json::to_writer(&mut self.out, value)?)
    }

    /// How much is in flight in this process.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.active()
    }

    /// Waits until nothing is in flight; returns whether it came to that.
    ///
    /// For a late state that has to hold what the last requests did. Nobody accepts meanwhile: the
    /// kernel queues.
    pub fn wait_idle(&self, timeout: Duration) -> bool {
        self.in_flight.wait_idle(Instant::now().checked_add(timeout))
    }
}

impl Write for StateWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A part of a state that is built where the successor will map it.
///
/// To be dropped before the provider returns.
#[derive(Debug)]
pub struct InPlace {
    mapping: MappingMut,
    start: usize,
}

impl Deref for InPlace {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.mapping[self.start..]
    }
}

impl DerefMut for InPlace {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.mapping[self.start..]
    }
}

#[derive(Debug)]
struct Sink {
    memfd: Memfd,
    position: u64,
    max_bytes: u64,
}

impl Sink {
    fn check_room(&self, bytes: u64) -> io::Result<()> {
        if self.position.saturating_add(bytes) > self.max_bytes {
            let why = format!("the state grows beyond the limit of {} bytes", self.max_bytes);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        Ok(())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check_room(bytes.len() as u64)?;
        let written = self.memfd.write_at(bytes, self.position)?;
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) type WriteState = dyn FnMut(&mut StateWriter) -> Result<(), StateError> + Send;

/// Writes one state whenever a successor needs it.
pub(crate) struct Provider {
    pub(crate) name: Name,
    pub(crate) version: u32,
    /// Locked for as long as it runs, be it for ever: never by the waiter.
    pub(crate) write: Mutex<Box<WriteState>>,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The providers of one helping, shared with the thread that runs them. The list is never locked
/// while one of them runs.
pub(crate) type Providers = Arc<Mutex<Vec<Arc<Provider>>>>;

/// What follows the bytes of a state that is saved: in one memfd with them, so that the two cannot be
/// of different times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    /// The version of the format, as the application gives it.
    version: u32,
    /// When, on the clock that begins with the boot of the system.
    saved: Duration,
}

impl Trailer {
    const MAGIC: [u8; 8] = *b"handover";
    const BYTES: usize = 8 + 4 + 8;

    pub(crate) fn now(version: u32) -> Self {
        Self { version, saved: since_boot() }
    }

    fn encode(self) -> Vec<u8> {
        let saved = u64::try_from(self.saved.as_millis()).unwrap_or(u64::MAX);
        [&self.version.to_le_bytes()[..], &saved.to_le_bytes(), &Self::MAGIC].concat()
    }

    /// The trailer, and how many bytes there are before it.
    fn read(bytes: &[u8]) -> Option<(usize, Self)> {
        let length = bytes.len().checked_sub(Self::BYTES)?;
        let (version, rest) = bytes[length..].split_first_chunk()?;
        let (saved, magic) = rest.split_first_chunk()?;
        let saved = Duration::from_millis(u64::from_le_bytes(*saved));
        let version = u32::from_le_bytes(*version);
        (*magic == Self::MAGIC).then_some((length, Self { version, saved }))
    }
}

/// A state that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) name: Name,
    pub(crate) version: u32,
    pub(crate) bytes: u64,
    pub(crate) fd: OwnedFd,
}

/// What the thread that writes states reports.
#[derive(Debug)]
pub(crate) enum Written {
    State(Sealed),
    Failed {
        name: Name,
        error: StateError,
    },
    /// All providers have run.
    Complete,
}

/// States that are being written, for as long as somebody wants them.
#[derive(Debug)]
pub(crate) struct Writing {
    results: Receiver<Written>,
    /// Tells the thread that its results are wanted.
    _wanted: Arc<()>,
}

impl Writing {
    /// What is ready.
    pub(crate) fn next(&self) -> Result<Written, TryRecvError> {
        self.results.try_recv()
    }
}

/// Runs the providers in a thread of its own, so that the waiter keeps its eyes on everything else;
/// wakes it for each result.
///
/// If a provider of an upgrade that was called off is still at work, the thread waits for it, and
/// the upgrade for the thread, within its timeout.
pub(crate) fn write_all(
    providers: Vec<Arc<Provider>>,
    in_flight: Arc<InFlight>,
    max_bytes: u64,
    wake: Arc<Wake>,
) -> io::Result<Writing> {
    let (results, receiver) = mpsc::channel();
    let wanted = Arc::new(());
    let still_wanted = Arc::downgrade(&wanted);
    std::thread::Builder::new().name("handover-state".into()).spawn(move || {
        for provider in providers {
            if still_wanted.strong_count() == 0 {
                return;
            }
            let written = match write_one(&provider, &in_flight, max_bytes, None) {
                Ok(sealed) => Written::State(sealed),
                Err(error) => Written::Failed { name: provider.name.clone(), error },
            };
            if !report(&results, written, &wake) {
                return;
            }
        }
        report(&results, Written::Complete, &wake);
    })?;
    Ok(Writing { results: receiver, _wanted: wanted })
}

/// Returns whether anybody still wants results.
fn report(results: &Sender<Written>, written: Written, wake: &Wake) -> bool {
    let wanted = results.send(written).is_ok();
    wake.set();
    wanted
}

/// Runs one provider in this thread, and puts the trailer after what it has written.
pub(crate) fn write_one(
    provider: &Provider,
    in_flight: &Arc<InFlight>,
    max_bytes: u64,
    trailer: Option<Trailer>,
) -> Result<Sealed, StateError> {
    // Another thread has it still if an upgrade before this one was given up meanwhile.
    let mut write = provider.write.lock().unwrap_or_else(PoisonError::into_inner);
    let sink = Sink { memfd: Memfd::new(provider.name.as_str())?, position: 0, max_bytes };
    let out = BufWriter::with_capacity(64 * 1024, sink);
    let mut writer = StateWriter { out, in_flight: Arc::clone(in_flight) };
    // A panic of the application's code fails the upgrade and not the service.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| write(&mut writer)))
        .map_err(|_| "the application's code panicked")??;
    let mut sink = writer.out.into_inner().map_err(io::IntoInnerError::into_error)?;
    if let Some(trailer) = trailer {
        sink.max_bytes = u64::MAX;
        sink.write_all(&trailer.encode())?;
    }
    let bytes = sink.position;
    let fd = sink.memfd.seal().map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => {
            "a part that was built in place is held beyond its provider".into()
        }
        _ => StateError::from(error),
    })?;
    Ok(Sealed { name: provider.name.clone(), version: provider.version, bytes, fd })
}
