//! Upgrades a service again and again, under load and faults, and accounts for every request.
//!
//!     cargo xtask soak --minutes 5
//!
//! One life of the service after the other, each with other listeners, another state, and connections that change
//! hands or do not. In each life upgrades follow one another, as a seed has it: most succeed, and of
//! the others the successor exits, aborts, panics or hangs, before it is ready or on probation, or the
//! operator rolls back, or one of the two processes is killed, or stopped for a while. What becomes of
//! each is compared with what has to: the verdict, and who answers afterwards.
//!
//! Meanwhile clients ask, on connections that they keep and on new ones. A request that is not answered, or is
//! answered wrongly, is lost. It is excused if a process was killed, or aborted, whose connection it was, since the
//! last request on it was begun that was answered: the service notes whose each is where a kill does not reach, when it
//! accepts one, when it is about to give it away, and when one has arrived. Connections that nobody had noted yet when a
//! process died, and those on their way then, are counted apart. Nothing else is excused, and at the end of each life the
//! service has to stop without having cut anything.
//!
//! The seed is printed. The same one makes the same lives and the same upgrades, but not the same moments.

#![allow(clippy::print_stdout, reason = "a program that prints a report")]

mod ledger;
mod life;
mod load;
mod oracle;
mod samples;
mod service;
mod upgrades;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use fastrand::Rng;

use oracle::Account;
use samples::Samples;

#[derive(Parser)]
#[command(
    about = "Upgrades a service again and again under load and faults, and accounts for every request"
)]
struct Arguments {
    /// How long, in minutes; the life that is under way then is lived to its end.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// What all is drawn from; drawn itself unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// The life to begin with, counted from 0: to see one again that failed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many upgrades there are in each life.
    #[arg(long, default_value_t = 150)]
    upgrades: u32,
    /// Leaves out the faults.
    #[arg(long)]
    calm: bool,
    /// Where to draw the memory, the open files and the processes of the service over time, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    volume: load::Volume,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is to the one that people start.
#[derive(Subcommand)]
enum Role {
    /// Is the service.
    #[command(hide = true)]
    Serve {
        folder: PathBuf,
        #[command(flatten)]
        life: service::Life,
    },
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    if let Some(Role::Serve { folder, life }) = arguments.role {
        service::serve(&folder, life)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.minutes.is_finite() || arguments.minutes <= 0.0 {
        return Err("--minutes has to be more than 0".into());
    }
    if arguments.volume.rate == 0 || arguments.volume.clients == 0 {
        return Err("--rate and --clients have to be more than 0".into());
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let end = Instant::now() + Duration::from_secs_f64(60.0 * arguments.minutes);
    let (mut account, mut samples) = (Account::default(), Samples::default());
    for number in arguments.from.. {
        let rng = Rng::with_seed(seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let settings = life::Settings {
            number,
            upgrades: arguments.upgrades,
            calm: arguments.calm,
            volume: arguments.volume,
        };
        let lived = life::live(settings, rng, &mut account, &mut samples);
        if let Err(problem) = lived {
            account.problems.push(problem.to_string());
        }
        if !account.problems.is_empty() {
            println!("again: --seed {seed} --from {number}");
            break;
        }
        if Instant::now() >= end {
            break;
        }
    }
    print!("{account}{samples}");
    if let Some(path) = &arguments.plot {
        samples.plot(path)?;
    }
    Ok(if account.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The byte at a position of whatever has to arrive as it was sent.
fn pattern(position: u64) -> u8 {
    (position.wrapping_mul(31) >> 3) as u8
}
