//! What all examples understand: `[ADDRESS] [--control PATH] [--probation SECONDS] [--fd-store] [--live]`.

use std::time::Duration;

use handover::{Builder, Handover};

/// Connections are to change hands. Not all examples do anything about it.
const LIVE: &str = "--live";

/// Options with a value that are for one example.
const OWN: [&str; 3] = ["--certificate", "--drain-timeout", "--key"];

/// Whether connections are to change hands.
#[allow(dead_code, reason = "not for all examples")]
pub(crate) fn is_live() -> bool {
    std::env::args().any(|argument| argument == LIVE)
}

/// What is given to an option that is the example's own.
#[allow(dead_code, reason = "not for all examples")]
pub(crate) fn value(option: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != option).nth(1)
}

/// Reads the command line: the address to listen at, and how to be upgraded.
pub(crate) fn read(default_address: &str) -> (String, Builder) {
    read_from(std::env::args().skip(1), default_address).unwrap_or_else(|problem| {
        eprintln!(
            "{problem}\nusage: [ADDRESS] [--control PATH] [--probation SECONDS] [--fd-store] [--live]"
        );
        std::process::exit(2);
    })
}

fn read_from(
    mut arguments: impl Iterator<Item = String>,
    default_address: &str,
) -> Result<(String, Builder), String> {
    let (mut address, mut builder) = (default_address.to_owned(), Handover::builder());
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--control" => builder = builder.control(value()?),
            "--probation" => {
                let seconds = value()?.parse::<f64>().ok();
                let probation = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
                builder = builder.probation(probation.ok_or("--probation wants seconds")?);
            }
            // Under systemd, with FileDescriptorStoreMax= in the unit: the listeners outlive a crash.
            #[cfg(feature = "systemd")]
            "--fd-store" => builder = builder.fd_store(),
            // What they mean is the example's to say.
            LIVE => {}
            option if OWN.contains(&option) => drop(value()?),
            option if option.starts_with('-') => return Err(format!("there is no {option}")),
            _ => address = argument,
        }
    }
    Ok((address, builder))
}
