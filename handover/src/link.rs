//! The tie to the predecessor, from the successor's side.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use handover_proto::{
    CommittedBy, Failure, Item, MAX_FDS_PER_FRAME, MAX_FRAME_BYTES, Name, Preamble, Received as In,
    Slot, Successor, SuccessorConfig, SuccessorEvent, Transmit, Versions,
};

use crate::clock::Clock;
use crate::control::Takeover;
use crate::state::{Sealed, State};
use crate::stderr::Substitute;
use crate::sys::channel::{self, Channel, FRAMES_PER_STEP, Received};
use crate::sys::poll::{Interest, Poller};

/// What the engine has to do or to know.
#[derive(Debug)]
pub(crate) enum Effect {
    Inherited(Item, OwnedFd),
    State {
        state: State,
        late: bool,
    },
    Adopted,
    Committed(CommittedBy),
    Confirmed,
    /// The service manager takes this process for the main one.
    Announced,
    Upgrade,
    Stop(Option<Duration>),
    StopServing(String),
    Replaced,
    PredecessorGone,
    Failed(Failure),
}

/// The end of the channel that this process was started with.
#[derive(Debug)]
pub(crate) struct Link {
    machine: Successor,
    /// The number of this generation; from the preamble, until the predecessor says it.
    generation: u64,
    /// The number of the predecessor's generation, once it has said it.
    predecessor: u64,
    /// The predecessor's process, as it sees itself.
    predecessor_pid: u32,
    channel: Option<Channel>,
    /// For the frames that come.
    buffer: Vec<u8>,
    unsent: Option<Transmit>,
    /// States that go back to the predecessor.
    returned: Vec<Sealed>,
    substitute: Option<Substitute>,
    clock: Clock,
}

impl Link {
    /// Takes the channel over that the variable names, if it was left for this process.
    pub(crate) fn adopt(
        variable: &OsStr,
        poller: &Poller,
        clock: Clock,
    ) -> io::Result<Option<Self>> {
        let Some((number, token)) = variable.to_str().and_then(|text| text.split_once(':')) else {
            return Ok(None);
        };
        let Some(number) = channel::number(OsStr::new(number)) else { return Ok(None) };
        let expected =
            |bytes: &[u8]| Preamble::decode(bytes).filter(|preamble| preamble.token == token);
        let Some((channel, preamble)) = Channel::adopt(number, expected) else { return Ok(None) };
        Self::new(channel, preamble, poller, clock).map(Some)
    }

    /// Takes the channel over that a running service has given to this process.
    pub(crate) fn take_over(takeover: Takeover, poller: &Poller, clock: Clock) -> io::Result<Self> {
        let Takeover { channel, preamble } = takeover;
        Self::new(channel, preamble, poller, clock)
    }

    fn new(
        channel: Channel,
        preamble: Preamble,
        poller: &Poller,
        clock: Clock,
    ) -> io::Result<Self> {
        poller.add(&channel, Interest::Read)?;
        let config = SuccessorConfig {
            versions: Versions::OURS,
            pid: std::process::id(),
            software: concat!("handover ", env!("CARGO_PKG_VERSION")).into(),
        };
        Ok(Self {
            machine: Successor::new(config, clock.time(Instant::now())),
            generation: preamble.generation,
            predecessor: preamble.generation.saturating_sub(1),
            predecessor_pid: 0,
            channel: Some(channel),
            buffer: vec![0; MAX_FRAME_BYTES + 1],
            unsent: None,
            returned: Vec::new(),
            substitute: None,
            clock,
        })
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The number of the predecessor's generation.
    pub(crate) fn predecessor(&self) -> u64 {
        self.predecessor
    }

    pub(crate) fn predecessor_pid(&self) -> u32 {
        self.predecessor_pid
    }

    /// Whether the predecessor is there.
    pub(crate) fn is_connected(&self) -> bool {
        self.channel.is_some()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.machine.poll_timeout().map(|time| self.clock.instant(time))
    }

    pub(crate) fn progress(&mut self, text: String, more: Option<Duration>, poller: &Poller) {
        self.machine.progress(text, more);
        self.flush(poller);
    }

    pub(crate) fn ready(&mut self, claimed: Vec<Name>) {
        self.machine.ready(claimed, self.clock.time(Instant::now()));
    }

    pub(crate) fn refuse(&mut self, reason: &str, poller: &Poller) {
        self.machine.refuse(reason);
        self.flush(poller);
    }

    /// Whether everything was said that there is to say.
    pub(crate) fn is_flushed(&self) -> bool {
        self.unsent.is_none()
    }

    /// Whether the predecessor knows that this process serves, or is gone.
    pub(crate) fn is_known(&self) -> bool {
        !self.is_connected() || self.machine.is_known()
    }

    /// Whether the predecessor can take back over.
    pub(crate) fn is_on_probation(&self) -> bool {
        self.is_connected() && self.machine.is_on_probation()
    }

    /// On probation: says that all is well.
    pub(crate) fn healthy(&mut self, poller: &Poller) {
        self.machine.healthy();
        self.flush(poller);
    }

    /// On probation: asks the predecessor to take back over, by this process's own judgement or
    /// because somebody asked for it.
    pub(crate) fn unhealthy(&mut self, reason: &str, requested: bool, poller: &Poller) {
        if requested {
            self.machine.request_rollback(reason);
        } else {
            self.machine.unhealthy(reason);
        }
        self.flush(poller);
    }

    /// Says that the service stops.
    pub(crate) fn stop(&mut self, drain: Option<Duration>, poller: &Poller) {
        self.machine.stop(drain);
        self.flush(poller);
    }

    /// Says that nothing is accepted any more, after [`Effect::StopServing`], and how many states
    /// go back at most.
    pub(crate) fn stopped(&mut self, states: usize, poller: &Poller) {
        self.machine.stopped(u32::try_from(states).unwrap_or(u32::MAX));
        self.flush(poller);
    }

    /// Sends a state back.
    pub(crate) fn return_state(&mut self, sealed: Sealed, poller: &Poller) {
        self.machine.returned_state(sealed.name.clone(), sealed.version, sealed.bytes);
        self.returned.push(sealed);
        self.flush(poller);
    }

    /// Says that no more states go back.
    pub(crate) fn states_complete(&mut self, poller: &Poller) {
        self.machine.states_complete();
        self.flush(poller);
    }

    /// The channel, which outlives the handover as a line; for one that is done.
    pub(crate) fn into_line(self, poller: &Poller) -> Option<Channel> {
        self.channel.inspect(|channel| poller.remove(channel))
    }

    /// Puts the real stderr in place: this process is on its own.
    pub(crate) fn restore_stderr(&mut self) {
        if let Some(substitute) = self.substitute.take()
            && let Err(error) = substitute.end()
        {
            tracing::warn!(%error, "stderr still goes through the predecessor");
        }
    }

    /// Does what can be done without waiting, but for sending: the effects come first, and then
    /// [`flush`](Self::flush) says that they have been carried out.
    pub(crate) fn step(&mut self, poller: &Poller, effects: &mut Vec<Effect>) {
        for _ in 0..FRAMES_PER_STEP {
            self.handle_events(Vec::new(), effects);
            let Some(channel) = &self.channel else { break };
            match channel.receive::<MAX_FDS_PER_FRAME>(&mut self.buffer) {
                Ok(Received::Frame { bytes, descriptors, descriptors_truncated: truncated }) => {
                    let received = In { descriptors: descriptors.len(), truncated };
                    let now = self.clock.time(Instant::now());
                    self.machine.handle_frame(&self.buffer[..bytes], received, now);
                    self.handle_events(descriptors, effects);
                }
                Ok(Received::Empty) => break,
                Ok(Received::Closed) => self.disconnect(poller),
                Err(error) => {
                    tracing::warn!(%error, "the channel to the predecessor fails");
                    self.disconnect(poller);
                }
            }
        }
        self.machine.handle_timeout(self.clock.time(Instant::now()));
        self.handle_events(Vec::new(), effects);
    }

    fn disconnect(&mut self, poller: &Poller) {
        if let Some(channel) = self.channel.take() {
            poller.remove(&channel);
        }
        self.machine.handle_closed();
    }

    /// Carries out what a frame asked for, with the descriptors that came with it. They are as many
    /// as the events want: the machine has seen to that.
    fn handle_events(&mut self, descriptors: Vec<OwnedFd>, effects: &mut Vec<Effect>) {
        let mut descriptors = descriptors.into_iter();
        while let Some(event) = self.machine.poll_event() {
            match event {
                SuccessorEvent::Welcomed { generation, predecessor, pid } => {
                    self.generation = generation;
                    self.predecessor = predecessor;
                    self.predecessor_pid = pid;
                    tracing::info!(generation, predecessor, "started by a predecessor");
                }
                SuccessorEvent::TakeStderr => {
                    if let Err(error) = self.substitute_stderr(descriptors.next()) {
                        tracing::warn!(%error, "stderr ends with the predecessor");
                    }
                }
                SuccessorEvent::TakeDescriptors { items } => {
                    effects.extend(
                        items
                            .into_iter()
                            .zip(&mut descriptors)
                            .map(|(i, fd)| Effect::Inherited(i, fd)),
                    );
                }
                SuccessorEvent::TakeState { name, version, bytes, late } => {
                    let Some(fd) = descriptors.next() else { continue };
                    match State::map(name.clone(), version, bytes, fd) {
                        Ok(state) => effects.push(Effect::State { state, late }),
                        Err(e) => self.machine.refuse(format!("the state \"{name}\": {e}")),
                    }
                }
                SuccessorEvent::Adopted => effects.push(Effect::Adopted),
                SuccessorEvent::Committed(by) => effects.push(Effect::Committed(by)),
                SuccessorEvent::Confirmed => effects.push(Effect::Confirmed),
                SuccessorEvent::Announced => effects.push(Effect::Announced),
                SuccessorEvent::Upgrade => effects.push(Effect::Upgrade),
                SuccessorEvent::Stop { drain } => effects.push(Effect::Stop(drain)),
                SuccessorEvent::Replaced => effects.push(Effect::Replaced),
                SuccessorEvent::RollBack { reason } => effects.push(Effect::StopServing(reason)),
                SuccessorEvent::Ignored(violation) => {
                    tracing::warn!(%violation, "the predecessor broke the protocol");
                }
                SuccessorEvent::PredecessorGone => effects.push(Effect::PredecessorGone),
                SuccessorEvent::Failed(failure) => effects.push(Effect::Failed(failure)),
            }
        }
    }

    fn substitute_stderr(&mut self, real: Option<OwnedFd>) -> io::Result<()> {
        let (Some(real), Some(channel)) = (real, &self.channel) else { return Ok(()) };
        let channel = channel.as_fd().try_clone_to_owned()?;
        self.substitute = Some(Substitute::new(real, channel)?);
        Ok(())
    }

    /// Sends what there is to say, as far as the channel takes it now.
    pub(crate) fn flush(&mut self, poller: &Poller) {
        let was_blocked = self.unsent.is_some();
        while let Some(transmit) = self.unsent.take().or_else(|| self.machine.poll_transmit()) {
            let Some(channel) = &self.channel else { continue };
            let state = |slot: &Slot| match slot {
                Slot::State(index) => self.returned.get(*index).map(|sealed| sealed.fd.as_fd()),
                Slot::Stderr | Slot::Item(_) => None,
            };
            let descriptors: Vec<_> = transmit.slots.iter().filter_map(state).collect();
            match channel.send(&transmit.frame, &descriptors) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.unsent = Some(transmit);
                    break;
                }
                // If the other end is closed, that will be received.
                Ok(()) | Err(_) => {}
            }
        }
        let blocked = self.unsent.is_some();
        if blocked != was_blocked
            && let Some(channel) = &self.channel
        {
            let interest = if blocked { Interest::ReadWrite } else { Interest::Read };
            if let Err(error) = poller.modify(channel, interest) {
                tracing::warn!(%error, "the channel to the predecessor is not watched any more");
            }
        }
    }
}
