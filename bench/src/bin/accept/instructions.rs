//! Instructions of a server in user space, as Callgrind counts them.

use std::error::Error;
use std::process::Command;

use handover_bench::{Figure, Options};

use crate::clients::Processors;
use crate::{Group, figure, serve};

/// For how many connections they are counted: what a start and an end take is in both.
const CONNECTIONS: [u64; 2] = [200, 1200];

/// How many connections there are at a time. In a hurry, the last one only.
const AT_A_TIME: [usize; 2] = [1, 16];

/// The version of Valgrind, if there is one.
pub(crate) fn version() -> Option<String> {
    let printed = Command::new("valgrind").arg("--version").output().ok()?.stdout;
    Some(String::from_utf8_lossy(&printed).trim().to_owned()).filter(|version| !version.is_empty())
}

/// Counts for each group.
pub(crate) fn count(groups: &[Group], options: &Options) -> Result<Vec<Figure>, Box<dyn Error>> {
    groups.iter().map(|group| count_group(group, options)).collect()
}

fn count_group(group: &Group, options: &Options) -> Result<Figure, Box<dyn Error>> {
    let title = "Instructions in user space of a connection";
    let mut figure = figure(group, "accept-instructions", title, "instructions");
    for at_a_time in options.pick(&AT_A_TIME[1..], &AT_A_TIME[..]) {
        for (name, program) in &group.servers {
            let mut counts = [0; 2];
            for (count, connections) in counts.iter_mut().zip(CONNECTIONS) {
                *count = instructions(&program.command(connections)?, connections, *at_a_time)?;
            }
            let more = counts[1].saturating_sub(counts[0]) as f64;
            let each = more / (CONNECTIONS[1] - CONNECTIONS[0]) as f64;
            figure.add(name, *at_a_time as f64, each);
        }
    }
    Ok(figure)
}

fn instructions(
    command: &[String],
    connections: u64,
    at_a_time: usize,
) -> Result<u64, Box<dyn Error>> {
    let callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"];
    let callgrind = callgrind.map(str::to_owned);
    // rustix, by which the time would be told, asks the kernel for what Valgrind keeps from programs, and crashes.
    let untimed = ["--untimed".to_owned()];
    let command: Vec<_> = callgrind.iter().chain(command).chain(&untimed).cloned().collect();
    let finished = serve(&command, connections, at_a_time, &Processors::choose())?;
    let printed = finished.stderr();
    let count = printed.lines().find_map(|line| line.split_once("Collected :"));
    let (_, count) = count.ok_or_else(|| format!("Callgrind says no number: {printed}"))?;
    Ok(count.trim().parse()?)
}
