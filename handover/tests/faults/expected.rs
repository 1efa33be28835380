//! What docs/protocol.md promises for a fault at a message.

use crate::cell::{Course, Serves};
use crate::proxy::{Direction, Fault, Message, Side};

/// What is to come of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) serves: Serves,
    /// Nobody holds the listener for a moment: its only holder dies, or nobody is left.
    pub(crate) loses_listener: bool,
    /// A successor that was rolled back and has not learnt that its predecessor has taken over is
    /// there as long as that one is, and serves again after it.
    pub(crate) leaves_successor: bool,
}

/// What is to come of this fault at the message of that index in a handover that went well.
pub(crate) fn expected(course: Course, clean: &[Message], at: usize, fault: Fault) -> Expected {
    let moment = Moment { course, clean, at, fault };
    let serves = match fault.kills(moment.message().direction) {
        Some(Side::Successor) => moment.without_successor(),
        Some(Side::Predecessor) => moment.without_predecessor(),
        None => moment.with_both(),
    };
    let loses_listener = serves == Serves::Nobody
        || (fault.kills(moment.message().direction) == Some(Side::Predecessor)
            && !moment.has_arrived("descriptors"));
    Expected { serves, loses_listener, leaves_successor: moment.resumed_is_lost() }
}

struct Moment<'a> {
    course: Course,
    clean: &'a [Message],
    at: usize,
    fault: Fault,
}

impl Moment<'_> {
    fn message(&self) -> &Message {
        &self.clean[self.at]
    }

    fn is(&self, name: &str) -> bool {
        self.message().name == name
    }

    /// Whether this message comes before the first one of that name.
    fn is_before(&self, name: &str) -> bool {
        self.clean[..=self.at].iter().all(|message| message.name != name)
    }

    /// Whether a message has arrived before the end of who is killed.
    fn has_arrived(&self, name: &str) -> bool {
        let arrives = self.fault == Fault::SenderKilledAfter;
        let until = self.at + usize::from(arrives);
        self.clean[..until].iter().any(|message| message.name == name)
    }

    fn is_last_pong(&self) -> bool {
        self.is("pong") && self.clean[self.at + 1..].iter().all(|message| message.name != "pong")
    }

    /// "Who serves after a crash", the successor dies.
    fn without_successor(&self) -> Serves {
        let is_confirmed = match self.course {
            Course::Plain => self.has_arrived("serving"),
            // Its predecessor has said so; it has not heard it.
            Course::Probation => self.is("confirmed"),
            Course::RolledBack => false,
        };
        if is_confirmed { Serves::Nobody } else { Serves::Predecessor }
    }

    /// "Who serves after a crash", the predecessor dies.
    fn without_predecessor(&self) -> Serves {
        if self.has_arrived("resumed") { Serves::Nobody } else { Serves::Successor }
    }

    fn with_both(&self) -> Serves {
        match self.fault {
            // It starts as a first generation, and cannot have the address.
            Fault::Delayed if self.is("preamble") => Serves::Predecessor,
            Fault::Delayed | Fault::Frozen(_) => self.course.serves(),
            Fault::Repeated => self.repeated(),
            Fault::FrozenLong(Side::Predecessor) if self.is_before("commit") => Serves::Predecessor,
            Fault::FrozenLong(Side::Predecessor) => self.course.serves(),
            Fault::FrozenLong(Side::Successor) => self.successor_hangs(),
            Fault::Stalled
            | Fault::Dropped
            | Fault::Overdue
            | Fault::Truncated
            | Fault::Stripped
            | Fault::Garbled => self.does_not_arrive(),
            Fault::SenderKilled | Fault::SenderKilledAfter | Fault::ReceiverKilled => {
                unreachable!("somebody is killed")
            }
        }
    }

    /// "Where each message is taken": a second one is out of order before the commit.
    fn repeated(&self) -> Serves {
        match self.course {
            // More claims than there are items are a violation; the same one again is none, as long
            // as there are other items.
            Course::Plain | Course::Probation if self.is("claim") => self.course.serves(),
            Course::Plain | Course::Probation if self.is_before("commit") => Serves::Predecessor,
            Course::Probation if self.is("serving") => Serves::Predecessor,
            Course::Plain | Course::Probation | Course::RolledBack => self.course.serves(),
        }
    }

    /// "Who serves while one hangs", the successor.
    fn successor_hangs(&self) -> Serves {
        match self.course {
            Course::Plain if self.is("serving") || self.is("confirmed") => Serves::Successor,
            // Nobody asks it any more.
            Course::Probation if self.is_last_pong() || self.is("confirmed") => Serves::Successor,
            Course::Plain | Course::Probation | Course::RolledBack => Serves::Predecessor,
        }
    }

    fn does_not_arrive(&self) -> Serves {
        match self.course {
            // Nothing tells the predecessor that there was one: it takes the listener out of service,
            // which it believes not to be wanted, and the successor believes to have it. The kernel
            // does not lose a message out of the middle.
            Course::Plain | Course::Probation
                if self.is("claim") && self.fault == Fault::Dropped =>
            {
                Serves::Nobody
            }
            // The predecessor exits, which says the same.
            Course::Plain | Course::Probation if self.is("confirmed") => Serves::Successor,
            // Probation passes. Without the answers to `ping` it does not.
            Course::RolledBack if self.is("unhealthy") && self.fault == Fault::Dropped => {
                Serves::Successor
            }
            Course::Plain | Course::Probation | Course::RolledBack => Serves::Predecessor,
        }
    }

    /// Whether both live and the successor never hears that its predecessor has taken over. Its
    /// channel does not lose messages; the proxy does.
    fn resumed_is_lost(&self) -> bool {
        let is_to_successor = self.message().direction == Direction::ToSuccessor;
        let is_stopped = self.course == Course::RolledBack && !self.is_before("stopped");
        match self.fault {
            Fault::Stalled => is_stopped && is_to_successor,
            Fault::Dropped | Fault::Truncated | Fault::Garbled => self.is("resumed"),
            _ => false,
        }
    }
}
