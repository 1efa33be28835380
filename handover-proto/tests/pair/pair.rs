//! A predecessor and a successor, their programs, their processes and the channel between them.
//!
//! [`Pair::step`] performs one of the things that can happen next and then checks what must hold
//! after each step; [`Pair::settle`] goes on until nothing can happen any more, and checks what
//! must hold in the end.

use std::time::Duration;

use handover_proto::*;

use crate::channel::Channel;
use crate::process::{Life, New, Old, OldTask, Script};
use crate::rng::Rng;

/// No handover here takes more steps.
const MAX_STEPS: usize = 5_000;

/// One thing that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    OldSends,
    OldReceives,
    OldDoes,
    OldSeesClosed,
    OldSeesExit,
    OldTimesOut,
    NewSends,
    NewReceives,
    NewDoes,
    NewSeesClosed,
    NewTimesOut,
}

#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) now: Time,
    pub(crate) old: Old,
    pub(crate) new: New,
    pub(crate) to_old: Channel,
    pub(crate) to_new: Channel,
    /// What was sent, whether or not it has arrived.
    pub(crate) said: Vec<Said>,
    /// What has happened, in words.
    pub(crate) steps: Vec<String>,
    pub(crate) script: Script,
}

/// A frame that was sent.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) by_old: bool,
    pub(crate) frame: String,
    pub(crate) descriptors: usize,
}

impl Pair {
    pub(crate) fn new(script: Script) -> Self {
        let (old, new) = (Old::started(&script), New::started(&script));
        let (to_old, to_new) = (Channel::default(), Channel::default());
        Self {
            now: Time::ZERO,
            old,
            new,
            to_old,
            to_new,
            said: Vec::new(),
            steps: Vec::new(),
            script,
        }
    }

    /// Performs the next thing, or lets time pass; false if nothing can happen any more.
    pub(crate) fn step(&mut self) -> bool {
        match self.possible().first() {
            Some(action) => self.perform(*action),
            None => return self.wait(),
        }
        true
    }

    /// Like [`step`](Self::step), with any of the things that can happen, now or a bit later.
    pub(crate) fn step_any(&mut self, rng: &mut Rng) -> bool {
        let possible = self.possible();
        if possible.is_empty() {
            return self.wait();
        }
        if rng.once_in(10) {
            self.now = self.now + Duration::from_millis(rng.next() % 4000);
            self.note("time passes".into());
        } else {
            self.perform(rng.pick(&possible));
        }
        true
    }

    /// Goes on in order until nothing can happen, and checks the end.
    pub(crate) fn settle(&mut self) {
        while self.step() {}
        self.check_end();
    }

    /// The predecessor's process is gone.
    pub(crate) fn crash_old(&mut self) {
        self.old.life = Life::Dead;
        self.to_old.lose();
        self.note("predecessor dies".into());
    }

    /// The successor's process is gone.
    pub(crate) fn crash_new(&mut self) {
        self.new.life = Life::Dead;
        self.to_new.lose();
        self.note("successor dies".into());
    }

    /// The successor closes its end of the channel and does not notice.
    pub(crate) fn close_new(&mut self) {
        self.new.closed = true;
        self.to_new.lose();
        self.note("successor closes the channel".into());
    }

    /// What no driver may do.
    pub(crate) fn old_closes_although_it_lives(&mut self) {
        self.new.machine.handle_closed();
        self.new.accepts |=
            self.new.machine.poll_event() == Some(SuccessorEvent::Committed(CommittedBy::Orphaned));
        self.note("predecessor closes the channel".into());
    }

    pub(crate) fn new_is_gone(&self) -> bool {
        self.new.life == Life::Dead || self.new.closed
    }

    /// Lets the program of the predecessor call its machine.
    pub(crate) fn ask_old(&mut self, what: &str, call: impl FnOnce(&mut Predecessor, Time)) {
        if self.old.life == Life::Alive {
            call(&mut self.old.machine, self.now);
            self.carry_out_old();
            self.note(format!("predecessor is asked: {what}"));
        }
    }

    /// Lets the program of the successor call its machine.
    pub(crate) fn ask_new(&mut self, what: &str, call: impl FnOnce(&mut Successor)) {
        if self.new.life == Life::Alive {
            call(&mut self.new.machine);
            self.carry_out_new();
            self.note(format!("successor is asked: {what}"));
        }
    }

    /// Somebody asks the successor to stop the service.
    pub(crate) fn stop_new(&mut self) {
        let Self { new, script, .. } = self;
        if new.life == Life::Alive && new.got_commit {
            new.stopping = true;
            new.machine.stop(None);
            if new.accepts {
                new.go(script);
            }
            self.note("successor is asked: stop".into());
        }
    }

    /// Somebody asks the predecessor to stop the service, too late to call the handover off.
    pub(crate) fn stop_old(&mut self) {
        let old = &mut self.old;
        let phase = old.machine.phase();
        if old.life == Life::Alive && matches!(phase, Phase::Confirm | Phase::Probation) {
            old.stopping = true;
            old.machine.forward_stop(None, self.now);
            self.carry_out_old();
            self.note("predecessor is asked: stop".into());
        }
    }

    fn possible(&mut self) -> Vec<Action> {
        let now = self.now;
        self.wake();
        let is_due = |deadline: Option<Time>| deadline.is_some_and(|deadline| deadline <= now);
        let mut possible = Vec::new();
        let mut offer = |is_possible: bool, action: Action| {
            if is_possible {
                possible.push(action);
            }
        };
        let orderly = self.script.orderly;
        if self.new.life == Life::Alive {
            let new = &mut self.new;
            let arrived = !new.closed && self.to_new.has_arrived(now);
            let gone = self.old.life == Life::Dead && !new.closed && !new.knows_closed;
            let mut ahead = new.machine.clone();
            offer(self.to_old.has_room() && ahead.poll_transmit().is_some(), Action::NewSends);
            offer(new.has_to_do(), Action::NewDoes);
            offer(arrived, Action::NewReceives);
            offer(gone && self.to_new.is_empty(), Action::NewSeesClosed);
            let time = is_due(new.machine.poll_timeout()) && !(orderly && arrived);
            offer(time, Action::NewTimesOut);
        }
        if self.old.life == Life::Alive {
            let gone = self.new.life == Life::Dead || self.new.closed;
            let old = &mut self.old;
            let arrived = self.to_old.has_arrived(now);
            let empty = self.to_old.is_empty();
            let mut ahead = old.machine.clone();
            let speaks = ahead.poll_transmit().is_some();
            offer(self.to_new.has_room() && speaks, Action::OldSends);
            // What is to be said leaves before an exit, if there is who listens.
            let silent = !speaks || gone;
            let exits = old.tasks.front() == Some(&OldTask::Exit);
            offer(!old.tasks.is_empty() && (silent || !exits), Action::OldDoes);
            offer(arrived, Action::OldReceives);
            offer(gone && empty && !old.knows_closed, Action::OldSeesClosed);
            let dead = self.new.life == Life::Dead && !old.knows_exited;
            offer(dead && (empty || !orderly), Action::OldSeesExit);
            let time = is_due(old.machine.poll_timeout()) && !(orderly && arrived);
            offer(time, Action::OldTimesOut);
        }
        possible
    }

    fn perform(&mut self, action: Action) {
        let now = self.now;
        let words = match action {
            Action::OldSends => self.old_sends(),
            Action::NewSends => self.new_sends(),
            Action::OldReceives => self.old_receives(),
            Action::NewReceives => self.new_receives(),
            Action::OldDoes => self.old_does(),
            Action::NewDoes => self.new_does(),
            Action::OldSeesClosed => {
                self.old.knows_closed = true;
                self.old.machine.handle_closed(now);
                "predecessor sees the end of the channel".into()
            }
            Action::NewSeesClosed => {
                self.new.knows_closed = true;
                self.new.machine.handle_closed();
                "successor sees the end of the channel".into()
            }
            Action::OldSeesExit => {
                self.old.knows_exited = true;
                self.old.machine.handle_exited(now);
                "predecessor sees the end of the process".into()
            }
            Action::OldTimesOut => {
                self.old.machine.handle_timeout(now);
                match self.old.machine.phase() {
                    Phase::Served => "predecessor lets go".into(),
                    _ => "predecessor has waited long enough".into(),
                }
            }
            Action::NewTimesOut => {
                self.new.machine.handle_timeout(now);
                "successor has waited long enough".into()
            }
        };
        self.carry_out_old();
        self.carry_out_new();
        self.note(words);
    }

    fn wake(&mut self) {
        for life in [&mut self.old.life, &mut self.new.life] {
            if let Life::Hung(Some(until)) = *life
                && until <= self.now
            {
                *life = Life::Alive;
            }
        }
    }

    /// Lets time pass until something can happen; false if nothing ever will.
    fn wait(&mut self) -> bool {
        let mut next: Vec<Option<Time>> = Vec::new();
        let lives = [self.old.life, self.new.life];
        let deadlines = [self.old.machine.poll_timeout(), self.new.machine.poll_timeout()];
        let arrivals = [self.to_old.next_due(), self.to_new.next_due()];
        for ((life, deadline), arrival) in lives.into_iter().zip(deadlines).zip(arrivals) {
            match life {
                Life::Alive => next.extend([deadline, arrival]),
                Life::Hung(until) => next.push(until),
                Life::Dead => {}
            }
        }
        let Some(next) = next.into_iter().flatten().filter(|next| *next > self.now).min() else {
            return false;
        };
        self.now = next;
        self.note("time passes".into());
        true
    }

    /// Notes the step and checks what must hold after it.
    fn note(&mut self, words: String) {
        self.steps.push(words);
        assert!(self.steps.len() < MAX_STEPS, "it does not end: {:#?}", self.steps);
        let both = self.old_serves() && self.new_serves();
        assert!(!both, "two serve: {:#?}", self.steps);
    }

    pub(crate) fn old_serves(&self) -> bool {
        self.old.accepts && self.old.life != Life::Dead
    }

    pub(crate) fn new_serves(&self) -> bool {
        self.new.accepts && self.new.life != Life::Dead
    }

    /// When nothing can happen any more, whoever is alive and may serve, serves.
    fn check_end(&self) {
        let steps = &self.steps;
        if self.old.life == Life::Alive {
            match &self.old.outcome {
                Some(Outcome::Succeeded) => {
                    let stopped = self.new.stopping;
                    let serves = self.new.accepts || self.new.life == Life::Dead || stopped;
                    assert!(serves, "{steps:#?}");
                }
                Some(Outcome::Failed { .. } | Outcome::RolledBack { .. }) => {
                    assert!(self.old.accepts || self.old.stopping, "{steps:#?}");
                    // One whose states are not acked waits for ever if `resumed` is dropped.
                    let waits = self.script.drains || self.to_new.unruly.is_some();
                    let goes = self.new.life == Life::Dead || waits;
                    assert!(goes || self.new.life == Life::Hung(None), "{steps:#?}");
                }
                None => panic!("the predecessor never knew: {steps:#?}"),
            }
        } else if self.old.life == Life::Dead && self.new.life == Life::Alive {
            // A predecessor that served again and died is not replaced by who it has replaced.
            let replaced = self.old.events.contains(&PredecessorEvent::ResumeAccepting);
            let excused = self.new.closed || self.new.stopping || replaced;
            assert!(self.new.accepts || excused, "nobody serves: {steps:#?}");
        }
        let paused =
            self.old.events.iter().any(|e| matches!(e, PredecessorEvent::StopAccepting { .. }));
        let resumed = self.old.events.contains(&PredecessorEvent::ResumeAccepting);
        assert!(paused || !resumed, "resumed what was never stopped: {steps:#?}");
    }
}
