//! Targets that are fed with anything, where what they call is private to this crate.
//!
//! Compiled for this crate's own tests and under cargo-fuzz, and not otherwise: nothing of it is in what
//! users get. The other targets, and the programs, are in the folder `fuzz` of the repository.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use handover_proto::Preamble;

use crate::clock::Clock;
use crate::link::Link;
use crate::sys::channel::{Channel, Received};
use crate::sys::inherited;
use crate::sys::poll::Poller;

pub use crate::control::fuzz::requests;
pub use crate::systemd::fuzz::{listen_fds, stored_names};

/// Gives a process a channel to adopt: the first line is the variable, the rest is the datagram that
/// waits in it. `FD` in the variable stands for the number of the channel.
///
/// It is adopted if and only if both belong together, and then it is closed for children, the datagram is
/// gone, and the process says `hello`. Otherwise the descriptor is left as it is, with what is in it.
pub fn channel(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (template, datagram) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    // A datagram of more does not fit the socket, and is none that a predecessor would leave.
    if datagram.is_empty() || datagram.len() > 1000 {
        return;
    }
    let (ours, theirs) = Channel::pair().expect("a pair of sockets");
    ours.send(datagram, &[]).expect("there is room");
    let number = theirs.leave_to_another_process().expect("the kernel lets it");
    let variable = match template.strip_prefix(b"FD") {
        Some(rest) => [number.to_string().as_bytes(), rest].concat(),
        None => template.to_vec(),
    };
    let poller = Poller::new().expect("the kernel lets it");

    let adopted = Link::adopt(OsStr::from_bytes(&variable), &poller, Clock::start());

    let adopted = adopted.expect("the kernel lets it");
    assert_eq!(adopted.is_some(), belong_together(&variable, datagram, number), "{variable:?}");
    let mut buffer = [0; 1024];
    let Some(mut link) = adopted else {
        let left = inherited::adopt(number).expect("it is left open, and to other processes");
        let left = Channel::received(left).receive::<0>(&mut buffer).expect("it can be read");
        assert!(matches!(left, Received::Frame { bytes, .. } if buffer[..bytes] == *datagram));
        return;
    };
    assert!(inherited::adopt(number).is_none(), "it is closed for children, and taken");
    link.flush(&poller);
    let said = ours.receive::<0>(&mut buffer).expect("it can be read");
    assert!(
        matches!(said, Received::Frame { bytes, .. } if buffer[..bytes].starts_with(b"{\"type\":\"hello\""))
    );
}

/// What the protocol asks for, said in another way.
fn belong_together(variable: &[u8], datagram: &[u8], number: i32) -> bool {
    let Ok(variable) = std::str::from_utf8(variable) else { return false };
    let Some(preamble) = Preamble::decode(datagram) else { return false };
    let zeros = variable.bytes().take_while(|byte| *byte == b'0').count();
    variable[zeros..] == format!("{number}:{}", preamble.token)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use handover_testkit::{feed, while_nothing_spawns};

    /// How many inputs are made for each target: a second of work without optimisation.
    const MADE: usize = 1_000;

    #[test]
    fn channel_is_adopted_if_and_only_if_variable_and_preamble_belong_together() {
        while_nothing_spawns(|| feed(&corpus("channel"), MADE, super::channel));
    }

    #[test]
    fn passed_descriptors_have_as_many_names_whatever_the_variables_say() {
        feed(&corpus("listen_fds"), MADE, super::listen_fds);
    }

    #[test]
    fn stored_names_are_read_only_as_they_are_written() {
        feed(&corpus("stored_names"), MADE, super::stored_names);
    }

    #[test]
    fn requests_are_read_the_same_however_they_come_or_refused_in_one_line() {
        feed(&corpus("requests"), MADE, super::requests);
    }

    fn corpus(target: &str) -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "../fuzz/corpus", target].iter().collect()
    }
}
