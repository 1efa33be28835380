//! Targets that are fed with anything, and what must hold whatever they are fed with.
//!
//! A target is a plain function of bytes that panics if something does not hold. The same function
//! runs in two places: under cargo-fuzz, by way of `fuzz_targets/`, for as long as one likes, and in the
//! ordinary tests, with the files of `corpus/` and a number of inputs that are made from them.
//!
//! What is private in `handover` has its targets there, in `handover/src/fuzz.rs`, which is compiled for
//! that crate's own tests and under cargo-fuzz, and not otherwise.
//!
//! | target | what is fed |
//! |---|---|
//! | [`frames`] | the decoder, with one frame a line, in both directions and of moving connections; the preamble |
//! | [`moving`] | the decoder of connections that change hands, with a frame and what comes after it |
//! | [`predecessor`], [`successor`] | the machines, with frames, time and calls: see [`script`] |
//! | [`line`](line()) | the same for a line |
//! | [`control`] | requests and answers of the control socket, one a line |

mod control;
mod frames;
mod line;
mod predecessor;
pub mod script;
mod successor;

pub use control::control;
pub use frames::{frames, moving};
pub use line::line;
pub use predecessor::predecessor;
pub use successor::successor;

/// The program for a target: of cargo-fuzz, or else one that feeds it with the files that are named.
#[macro_export]
macro_rules! fuzz {
    // There under cargo-fuzz only.
    (private $target:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $target(data));

        #[cfg(not(fuzzing))]
        fn main() {}
    };
    ($target:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $target(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            std::env::args_os().skip(1).try_for_each(|path| {
                $target(&std::fs::read(path)?);
                Ok(())
            })
        }
    };
}
