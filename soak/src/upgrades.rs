//! The kinds of upgrades, and what has to become of each.

use fastrand::Rng;

use crate::service::Plan;

/// What goes wrong, and when: in milliseconds after the successor has begun to initialise, or to serve.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    None,
    /// The successor does, of its own.
    Planned,
    /// The successor is killed while it initialises.
    KillSuccessor(u64),
    /// The predecessor is, while the successor initialises.
    KillPredecessor(u64),
    /// The successor is stopped for so long, while it initialises.
    PauseSuccessor(u64),
    /// The predecessor is.
    PausePredecessor(u64),
}

/// What happens while the successor is on probation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Probation {
    /// There is none.
    None,
    /// It is confirmed.
    Confirm(u64),
    RollBack(u64),
    /// The successor aborts, of its own.
    Planned,
    KillSuccessor(u64),
    KillPredecessor(u64),
    /// The successor is stopped, and does not go on by itself.
    Freeze(u64),
}

/// An upgrade.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upgrade {
    pub(crate) name: &'static str,
    pub(crate) plan: Plan,
    pub(crate) fault: Fault,
    pub(crate) probation: Probation,
}

/// What has to become of an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded,
    Failed,
    RolledBack,
    /// The successor serves, and nobody is there to say so.
    Inherited,
}

impl Upgrade {
    pub(crate) fn draw(rng: &mut Rng, calm: bool) -> Self {
        let soon = rng.u64(..15);
        let serve = Plan::Serve(rng.u64(..10));
        let plain = |name, plan, fault| Self { name, plan, fault, probation: Probation::None };
        let probation = |name, probation| Self { name, plan: serve, fault: Fault::None, probation };
        let sort = if calm { rng.u8(..9) } else { rng.u8(..24) };
        // Those that hang take as long as all the others: seconds, until they are killed.
        let sort = if matches!(sort, 12 | 23) && rng.u8(..3) > 0 { 0 } else { sort };
        match sort {
            0..6 => plain("succeeds", serve, Fault::None),
            6..9 => probation("is confirmed", Probation::Confirm(soon)),
            9 => plain("exits before it is ready", Plan::Exit(soon), Fault::Planned),
            10 => plain("aborts before it is ready", Plan::Abort(soon), Fault::Planned),
            11 => plain("panics before it is ready", Plan::Panic(soon), Fault::Planned),
            12 => plain("is never ready", Plan::Hang, Fault::Planned),
            13 | 14 => {
                plain("is killed before it is ready", Plan::Hang, Fault::KillSuccessor(soon))
            }
            15 => plain("goes on alone", serve, Fault::KillPredecessor(soon)),
            16 => plain("is stopped for a while", serve, Fault::PauseSuccessor(soon)),
            17 => plain("has a predecessor that is", serve, Fault::PausePredecessor(soon)),
            18 => probation("is rolled back by its operator", Probation::RollBack(soon)),
            19 | 20 => Self {
                plan: Plan::AbortServing(soon),
                ..probation("aborts on probation", Probation::Planned)
            },
            21 => probation("is killed on probation", Probation::KillSuccessor(soon)),
            22 => probation("goes on alone on probation", Probation::KillPredecessor(soon)),
            _ => probation("hangs on probation", Probation::Freeze(soon)),
        }
    }

    pub(crate) fn outcome(self) -> Outcome {
        match (self.fault, self.probation) {
            (Fault::Planned | Fault::KillSuccessor(_), _) => Outcome::Failed,
            (Fault::KillPredecessor(_), _) | (_, Probation::KillPredecessor(_)) => {
                Outcome::Inherited
            }
            (_, Probation::None | Probation::Confirm(_)) => Outcome::Succeeded,
            (
                _,
                Probation::RollBack(_)
                | Probation::Planned
                | Probation::KillSuccessor(_)
                | Probation::Freeze(_),
            ) => Outcome::RolledBack,
        }
    }
}
