//! Probation: whether the successor answers, and when it may be let go.

use std::time::Duration;

use crate::limits::PINGS_PER_TIMEOUT;
use crate::{Cause, Outcome, Phase, Time, ToSuccessor};

use super::{Event, Predecessor};

/// Whether a successor on probation answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Heartbeat {
    /// It has answered, and is to be asked again then.
    AskAt(Time),
    /// It was asked.
    AnswerBy {
        /// It has until then.
        by: Time,
        /// Whether this is its second chance, as this process was away during the first.
        again: bool,
    },
}

impl Heartbeat {
    /// When there is something to be done on a probation that ends then.
    pub(super) fn deadline(self, end: Time) -> Time {
        match self {
            Self::AskAt(at) => at.min(end),
            Self::AnswerBy { by, .. } => by,
        }
    }
}

impl Predecessor {
    pub(super) fn begin_probation(&mut self, probation: Duration, now: Time) {
        self.deadline = now + probation;
        self.enter(Phase::Probation);
        self.ask(now);
    }

    /// Takes the word that the successor is there. One that nobody asked for says the same.
    pub(super) fn answered(&mut self, now: Time) {
        self.heartbeat = Heartbeat::AskAt(now + self.pause());
    }

    /// Asks again, or gives the successor up, or lets it go. It is let go when probation is over
    /// and it has answered: one that hangs does not pass.
    pub(super) fn watch(&mut self, now: Time) {
        match self.heartbeat {
            Heartbeat::AskAt(_) if now >= self.deadline => self.succeed(now),
            Heartbeat::AskAt(at) if now >= at => self.ask(now),
            // Who comes so late was suspended, perhaps together with the successor, and perhaps
            // before the question had left: that is no silence.
            Heartbeat::AnswerBy { by, again: false } if now - by > self.pause() => {
                let by = now + self.config.answer_timeout;
                self.heartbeat = Heartbeat::AnswerBy { by, again: true };
            }
            Heartbeat::AnswerBy { by, .. } if now >= by => self.fail(Cause::Unresponsive, now),
            Heartbeat::AskAt(_) | Heartbeat::AnswerBy { .. } => {}
        }
    }

    /// Ends probation, if there was one: the successor serves for good, and is told so.
    pub(super) fn succeed(&mut self, now: Time) {
        self.enter(Phase::Served);
        self.send(&ToSuccessor::Confirmed {}, vec![], now);
        self.events.push_back(Event::Finished(Outcome::Succeeded));
    }

    fn ask(&mut self, now: Time) {
        let by = now + self.config.answer_timeout;
        self.heartbeat = Heartbeat::AnswerBy { by, again: false };
        self.send_latest(&ToSuccessor::Ping {}, now);
    }

    /// Between an answer and the next question.
    fn pause(&self) -> Duration {
        self.config.answer_timeout / PINGS_PER_TIMEOUT
    }
}
