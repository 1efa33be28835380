//! Writes what the other programs have measured into a document, and draws it.
//!
//!     cargo run --release -p handover-bench --bin figures -- DOCUMENT FIGURES OUT
//!
//! DOCUMENT has, for each program, a line `<!-- figures: NAME -->` and a line `<!-- end -->`: what is between the two is
//! replaced by the tables of FIGURES/NAME.json, if there is such a file. `<!-- machine -->` stands before a line that
//! is replaced by what the machine is. The result is OUT; pictures go beside it, as NAME.svg, where DOCUMENT shows them.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use clap::Parser;
use handover_bench::{Answer, plot};

#[derive(Parser)]
#[command(about = "Writes what the other programs have measured into a document, and draws it")]
struct Arguments {
    document: PathBuf,
    figures: PathBuf,
    out: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { document, figures, out } = Arguments::parse();
    let text = fs::read_to_string(&document)?;
    let (mut written, mut skips) = (String::new(), false);
    for line in text.lines() {
        if line == "<!-- end -->" {
            skips = false;
        }
        if !skips {
            writeln!(written, "{line}")?;
        }
        if line == "<!-- machine -->" {
            writeln!(written, "{}", machine()?)?;
            skips = true;
        }
        let name = line.strip_prefix("<!-- figures: ").and_then(|rest| rest.strip_suffix(" -->"));
        if let Some(name) = name
            && let Ok(json) = fs::read(figures.join(name).with_extension("json"))
        {
            let answer: Answer = serde_json::from_slice(&json)?;
            writeln!(written, "\n{answer}")?;
            skips = true;
            for figure in &answer.figures {
                let picture = format!("{}.svg", figure.name);
                if text.contains(&format!("({picture})")) {
                    plot(figure, &out.with_file_name(picture))?;
                }
            }
        }
    }
    fs::write(&out, written)?;
    Ok(())
}

/// What the machine is, as far as figures depend on it.
fn machine() -> Result<String, Box<dyn Error>> {
    let read = |path| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let cores = std::thread::available_parallelism()?;
    let release = read("/proc/sys/kernel/osrelease")?;
    // What follows is the name of a build.
    let kernel = release.split('-').next().unwrap_or_default();
    let memory = read("/proc/meminfo")?;
    let kibibytes = memory.split_whitespace().nth(1).and_then(|number| number.parse::<f64>().ok());
    let gibibytes = kibibytes.unwrap_or_default() / f64::from(1 << 20);
    let rustc = String::from_utf8(Command::new("rustc").arg("--version").output()?.stdout)?;
    let rustc = rustc.split(" (").next().unwrap_or_default().trim().to_owned();
    Ok(format!("{cores} cores, {gibibytes:.0} GiB of memory, Linux {kernel}, {rustc}."))
}
