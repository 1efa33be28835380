//! What is said in all rooms, in one order, whichever generation it is said to: a file in memory that all
//! generations append to and read from, and a bell that tells them to look.
//!
//! A message is either not read from its sender or in here. Whoever listens has a position in here. So it does
//! not matter in which process who is, and none of them has to know of another.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use handover::{Descriptor, Handover};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{
    FallocateFlags, MemfdFlags, OFlags, fallocate, fcntl_getfl, fcntl_setfl, fstat, memfd_create,
};
use rustix::io::{pread, write};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// How much of the past is kept, and in steps of which size it is forgotten.
const KEPT: u64 = 16 * 1024 * 1024;
const STEP: u64 = KEPT / 4;

/// How many lines of a room are at hand, without the file.
const ROOM_LINES: usize = 64;

/// Longer than any line.
const CHUNK: usize = 256 * 1024;

pub(crate) struct Chronicle {
    file: Descriptor,
    bell: Descriptor,
    ringing: AsyncFd<OwnedFd>,
    recent: Mutex<Recent>,
}

/// What was read of the file in this process.
struct Recent {
    rooms: HashMap<String, Room>,
    /// All lines between these are in the rooms, apart from those that a room has dropped.
    from: u64,
    to: u64,
}

struct Room {
    lines: VecDeque<(u64, Arc<str>)>,
    /// Where the last one ends that was dropped.
    from: u64,
    growth: watch::Sender<()>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    room: String,
    text: String,
}

impl Chronicle {
    /// The one of the predecessor, or the first one.
    pub(crate) fn claim(handover: &Handover) -> Result<Arc<Self>, Box<dyn Error>> {
        let file = handover.descriptor("chronicle", || {
            let file = memfd_create("chronicle", MemfdFlags::CLOEXEC)?;
            // Each write finds the end by itself, also if two processes write.
            fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::APPEND)?;
            Ok(file)
        })?;
        let bell = handover.descriptor("bell", || {
            Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
        })?;
        // Its successor asks for a newer Tokio and for unsafe; an `OwnedFd` is what both want.
        #[allow(deprecated)]
        let ringing =
            AsyncFd::with_interest(bell.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        let end = end(&file)?;
        let recent = Mutex::new(Recent { rooms: HashMap::new(), from: end, to: end });
        Ok(Arc::new(Self { file, bell, ringing, recent }))
    }

    /// Has it said in a room.
    pub(crate) fn say(&self, room: &str, text: String) -> io::Result<()> {
        let line = serde_json::to_vec(&Line { room: room.to_owned(), text })?;
        // The first line feed ends what a process that was killed may have left half written.
        let bytes = [b"\n", &*line, b"\n"].concat();
        if write(&self.file, &bytes)? < bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        write(&self.bell, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Listens to a room, from a position on, or else from now on.
    pub(crate) fn listen(self: &Arc<Self>, room: &str, position: Option<u64>) -> io::Result<Ear> {
        let position = position.map_or_else(|| end(&self.file), Ok)?;
        let growth = self.recent().room(room).growth.subscribe();
        Ok(Ear { chronicle: Arc::clone(self), room: room.to_owned(), position, growth })
    }

    /// Reads what is appended, for those who listen.
    pub(crate) async fn follow(self: Arc<Self>) -> io::Result<()> {
        let mut forgotten = 0;
        let mut position = self.recent().to;
        loop {
            // Nobody takes back what the bell counts, as others look at it as well: epoll is told of each
            // write to it, and so is this for being edge-triggered (eventfd(2), epoll(7)).
            self.ringing.readable().await?.clear_ready();
            loop {
                let lines = self.read(&mut position)?;
                if lines.is_empty() {
                    break;
                }
                let mut recent = self.recent();
                for (end, Line { room, text }) in lines {
                    recent.room(&room).push(end, text.into());
                }
                recent.to = position;
            }
            let past = position.saturating_sub(KEPT);
            if past >= forgotten + STEP {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&self.file, mode, forgotten, past - forgotten)?;
                forgotten = past;
                self.recent().forget(past);
            }
        }
    }

    /// Some of the lines that follow, each with where it ends; none if there is none.
    fn read(&self, position: &mut u64) -> io::Result<Vec<(u64, Line)>> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let bytes = pread(&self.file, &mut chunk[..], *position)?;
            let Some(last) = chunk[..bytes].iter().rposition(|byte| *byte == b'\n') else {
                // Half of one, which is being written.
                return Ok(Vec::new());
            };
            let mut lines = Vec::new();
            for bytes in chunk[..=last].split_inclusive(|byte| *byte == b'\n') {
                *position += bytes.len() as u64;
                // Others are empty, or were left half written.
                if let Ok(line) = serde_json::from_slice(bytes) {
                    lines.push((*position, line));
                }
            }
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn room(&mut self, name: &str) -> &mut Room {
        if !self.rooms.contains_key(name) {
            let growth = watch::Sender::new(());
            let room = Room { lines: VecDeque::new(), from: self.from, growth };
            self.rooms.insert(name.to_owned(), room);
        }
        self.rooms.get_mut(name).expect("there is one")
    }

    /// Forgets rooms to which nobody listens, and in which nothing was said since then.
    fn forget(&mut self, past: u64) {
        self.rooms.retain(|_, room| {
            let is_new = room.lines.back().is_some_and(|(end, _)| *end > past);
            is_new || room.growth.receiver_count() > 0
        });
        self.from = self.from.max(past);
    }
}

impl Room {
    fn push(&mut self, end: u64, text: Arc<str>) {
        if self.lines.len() == ROOM_LINES
            && let Some((end, _)) = self.lines.pop_front()
        {
            self.from = end;
        }
        self.lines.push_back((end, text));
        self.growth.send_replace(());
    }
}

/// Somebody who listens to a room.
pub(crate) struct Ear {
    chronicle: Arc<Chronicle>,
    room: String,
    position: u64,
    growth: watch::Receiver<()>,
}

impl Ear {
    /// How far it has heard everything.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Comes when something may be said that was not heard.
    pub(crate) async fn listen(&mut self) {
        // The sender is there as long as somebody listens.
        let _: Result<(), _> = self.growth.changed().await;
    }

    /// Whether there is something to be heard. If not, that is as far as it has heard everything.
    pub(crate) fn has_more(&mut self) -> bool {
        let mut recent = self.chronicle.recent();
        let to = recent.to;
        let room = recent.room(&self.room);
        let newest = room.lines.back().map_or(room.from, |(end, _)| *end);
        if newest <= self.position {
            self.position = self.position.max(to);
        }
        newest > self.position
    }

    /// What was said and was not heard: all of it if it is at hand, and else some of it.
    ///
    /// # Errors
    ///
    /// Also if part of it is forgotten.
    pub(crate) fn hear(&mut self) -> io::Result<Vec<Arc<str>>> {
        loop {
            let mut recent = self.chronicle.recent();
            let to = recent.to;
            let room = recent.room(&self.room);
            if self.position >= room.from {
                let heard = room.lines.partition_point(|(end, _)| *end <= self.position);
                let lines = room.lines.range(heard..).map(|(_, text)| Arc::clone(text)).collect();
                self.position = self.position.max(to);
                return Ok(lines);
            }
            drop(recent);
            // Half of it is for what is forgotten while this reads.
            if end(&self.chronicle.file)?.saturating_sub(self.position) > KEPT / 2 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut lines = self.chronicle.read(&mut self.position)?;
            lines.retain(|(_, line)| line.room == self.room);
            if !lines.is_empty() {
                return Ok(lines.into_iter().map(|(_, line)| line.text.into()).collect());
            }
        }
    }
}

fn end(file: &Descriptor) -> io::Result<u64> {
    Ok(u64::try_from(fstat(file)?.st_size).unwrap_or(0))
}
