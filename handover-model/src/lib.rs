//! The machines of `handover-proto`, as they ship, in everything that can happen to them.
//!
//! Two or three generations, the channels between them, and the glue that drives the machines are one
//! state; whatever can happen next leads to others. `explore` goes through all of them, breadth first,
//! and looks in each whether what `docs/protocol.md` promises holds. There is nothing but tests here:
//!
//! ```text
//!   tests     what is explored, and what is broken on purpose
//!     └─► explore    breadth first; then backwards, for what must hold in the end
//!           └─► world      all processes and channels, and what can happen next
//!                 ├─► check      the invariants
//!                 └─► process    one generation: glue around Predecessor, Successor and Line
//! ```
//!
//! What is abstracted, and what is not shown by it, is in `docs/reliability.md`.

#[cfg(test)]
mod check;
#[cfg(test)]
mod explore;
#[cfg(test)]
mod frames;
#[cfg(test)]
mod mutation;
#[cfg(test)]
mod process;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
