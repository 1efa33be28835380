//! The lines to older generations that still drain, held by whoever serves.
//!
//! When a handover is done its channel lives on as a line: the process that drains has one end, the
//! one that serves the other, and hands it over like everything else. So whoever serves knows all
//! that are left, also when those in between are gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use handover_proto::control::{GenerationReport, GenerationState};
use handover_proto::{Item, Line, LineEvent, MAX_FRAME_BYTES, Name, Received as In, Report};

use crate::registry::Held;
use crate::sys::channel::{Channel, FRAMES_PER_STEP, Received};
use crate::sys::poll::{self, Interest, Poller};

/// What the names of lines begin with, among what is handed over.
const PREFIX: &str = "handover:line:";

/// What has come through a line.
#[derive(Debug)]
pub(crate) enum Effect {
    /// An upgrade was asked of a process that drains.
    Upgrade,
    /// A stop was asked of one before its successor had confirmed.
    Stop(Option<Duration>),
    /// The service manager takes this process for the main one.
    Announced,
    /// One has ended.
    Gone { generation: u64 },
}

/// A line to one generation.
#[derive(Debug)]
pub(crate) struct Elder {
    generation: u64,
    machine: Line,
    channel: Arc<Channel>,
    unsent: Option<Vec<u8>>,
    /// What the poller tells of.
    interest: Interest,
    report: Report,
    reported: Instant,
    /// Not so between an inquiry and the answer.
    answered: bool,
}

/// All lines, the oldest generation first.
///
/// While a handover is under way both ends of it have them. What comes is for one of them to read:
/// the one who serves. The other only sees when an end is closed.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    elders: Vec<Elder>,
    /// Whether this process is the one who reads.
    is_reading: bool,
    buffer: Vec<u8>,
}

impl Lines {
    /// How many older generations are alive.
    pub(crate) fn len(&self) -> usize {
        self.elders.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.elders.is_empty()
    }

    /// Has the memory ready that the first line needs.
    pub(crate) fn reserve(&mut self) {
        self.buffer.resize(MAX_FRAME_BYTES + 1, 0);
    }

    /// Adds the line to a generation.
    pub(crate) fn add(&mut self, generation: u64, channel: Channel, poller: &Poller) {
        let interest = if self.is_reading { Interest::Read } else { Interest::HangUp };
        if let Err(error) = poller.add(&channel, interest) {
            tracing::warn!(generation, %error, "an older generation is not watched");
        }
        // The socket pair was made by the process at the other end.
        let pid = channel.maker().unwrap_or(0);
        let elder = Elder {
            generation,
            machine: Line::new(),
            channel: Arc::new(channel),
            unsent: None,
            interest,
            report: Report { generation, pid, ..Report::default() },
            reported: Instant::now(),
            answered: true,
        };
        let place = self.elders.partition_point(|other| other.generation < generation);
        self.elders.insert(place, elder);
    }

    /// What a successor gets.
    pub(crate) fn inventory(&self) -> impl Iterator<Item = (Item, Held)> {
        self.elders.iter().filter_map(|elder| {
            let name = Name::new(format!("{PREFIX}{}", elder.generation)).ok()?;
            Some((Item::new(name), Held::Channel(Arc::clone(&elder.channel))))
        })
    }

    /// Takes over what a predecessor handed over, if it is a line.
    pub(crate) fn inherit(&mut self, item: &Item, fd: OwnedFd, poller: &Poller) -> Option<OwnedFd> {
        let Some(generation) = generation_of(&item.name) else { return Some(fd) };
        self.add(generation, Channel::received(fd), poller);
        None
    }

    /// Says whether this process is to read what comes.
    pub(crate) fn set_reading(&mut self, reading: bool) {
        self.is_reading = reading;
    }

    /// Asks all how they are, if the answers come here.
    pub(crate) fn inquire(&mut self, poller: &Poller) {
        if !self.is_reading {
            return;
        }
        for elder in &mut self.elders {
            elder.answered = false;
            elder.machine.inquire();
            elder.flush(poller);
        }
    }

    /// Whether all have answered.
    pub(crate) fn have_answered(&self) -> bool {
        !self.is_reading || self.elders.iter().all(|elder| elder.answered)
    }

    /// Gives all that long to finish.
    pub(crate) fn stop(&mut self, drain: Duration, poller: &Poller) {
        for elder in &mut self.elders {
            elder.machine.stop(Some(drain));
            elder.flush(poller);
        }
    }

    /// Has the oldest one end at once; returns its number.
    pub(crate) fn cut_oldest(&mut self, poller: &Poller) -> Option<u64> {
        let elder = self.elders.first_mut()?;
        elder.machine.stop(Some(Duration::ZERO));
        elder.flush(poller);
        Some(elder.generation)
    }

    /// What is known of all, the newest first.
    pub(crate) fn reports(&self) -> impl Iterator<Item = GenerationReport> {
        self.elders.iter().rev().map(|elder| {
            let mut report = elder.report.clone();
            let since = u64::try_from(elder.reported.elapsed().as_millis()).unwrap_or(u64::MAX);
            report.age_ms = report.age_ms.saturating_add(since);
            report.drain_left_ms = report.drain_left_ms.map(|left| left.saturating_sub(since));
            GenerationReport {
                state: GenerationState::Draining,
                report,
                probation_left_ms: None,
                answers: elder.answered,
            }
        })
    }

    /// Does what can be done without waiting.
    pub(crate) fn step(&mut self, poller: &Poller, effects: &mut Vec<Effect>) {
        if self.elders.is_empty() {
            return;
        }
        self.reserve();
        let (buffer, is_reading) = (&mut self.buffer, self.is_reading);
        self.elders.retain_mut(|elder| {
            elder.flush(poller);
            elder.register(is_reading, poller);
            let alive = if is_reading { elder.receive(buffer) } else { !elder.is_hung_up() };
            elder.handle_events(effects);
            if !alive {
                poller.remove(&*elder.channel);
                effects.push(Effect::Gone { generation: elder.generation });
            }
            alive
        });
    }
}

impl Elder {
    fn is_hung_up(&self) -> bool {
        // It fails for want of memory: then it is seen later.
        poll::look(&[self.channel.as_fd()]).is_ok_and(|found| found[0].hung_up)
    }

    /// Returns whether the other end is there.
    fn receive(&mut self, buffer: &mut [u8]) -> bool {
        for _ in 0..FRAMES_PER_STEP {
            match self.channel.receive::<0>(buffer) {
                Ok(Received::Frame { bytes, descriptors, descriptors_truncated: truncated }) => {
                    let received = In { descriptors: descriptors.len(), truncated };
                    self.machine.handle_frame(&buffer[..bytes], received);
                }
                Ok(Received::Empty) => return true,
                Ok(Received::Closed) => return false,
                Err(error) => {
                    let generation = self.generation;
                    tracing::warn!(generation, %error, "the line to an older generation fails");
                    return false;
                }
            }
        }
        true
    }

    fn handle_events(&mut self, effects: &mut Vec<Effect>) {
        while let Some(event) = self.machine.poll_event() {
            match event {
                LineEvent::Upgrade => effects.push(Effect::Upgrade),
                LineEvent::Stop { drain } => effects.push(Effect::Stop(drain)),
                LineEvent::Announced => effects.push(Effect::Announced),
                LineEvent::Report(report) => {
                    self.generation = report.generation;
                    self.report = report;
                    self.reported = Instant::now();
                    self.answered = true;
                }
                LineEvent::Ignored(violation) => {
                    let generation = self.generation;
                    tracing::warn!(generation, %violation, "an older generation is not understood");
                }
            }
        }
    }

    fn flush(&mut self, poller: &Poller) {
        while let Some(frame) = self.unsent.take().or_else(|| self.machine.poll_transmit()) {
            match self.channel.send(&frame, &[]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.unsent = Some(frame);
                    break;
                }
                // If the other end is closed, that will be received.
                Ok(()) | Err(_) => {}
            }
        }
        self.register(self.interest != Interest::HangUp, poller);
    }

    fn register(&mut self, is_reading: bool, poller: &Poller) {
        let interest = match (is_reading, &self.unsent) {
            (false, _) => Interest::HangUp,
            (true, None) => Interest::Read,
            (true, Some(_)) => Interest::ReadWrite,
        };
        if interest == std::mem::replace(&mut self.interest, interest) {
            return;
        }
        if let Err(error) = poller.modify(&*self.channel, interest) {
            tracing::warn!(%error, "the line to an older generation is not watched any more");
        }
    }
}

/// The number of the generation at the other end of the line of that name.
fn generation_of(name: &Name) -> Option<u64> {
    name.as_str().strip_prefix(PREFIX)?.parse().ok()
}
