//! Running cargo and its companions, in the open.

use std::{env, ffi::OsStr, process::Command, process::Stdio};

use anyhow::{Context, Result, bail};

/// Starts a cargo command line.
///
/// Its input is empty, so that nothing can wait for an answer.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).stdin(Stdio::null());
    // `cargo run` describes xtask in these. A build script that asks to be rerun when one of them
    // changes would otherwise run again for each switch between `cargo xtask` and `cargo`.
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Prints the command, runs it to its end, and fails if it did.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", shown(command));
    let status = command.status().with_context(|| format!("start {}", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs the command quietly and returns what it printed, or the error that it ended with.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {}", shown(command)))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("read from {}", shown(command)))
}

/// Makes sure that a tool is there, installing it if it is not.
pub(crate) fn require(tool: &Tool) -> Result<()> {
    if tool.is_present() {
        return Ok(());
    }
    eprintln!("`cargo {}` is missing and gets installed", tool.probe.join(" "));
    let (program, arguments) = tool.install;
    let mut install = if program == "cargo" { cargo(&[]) } else { Command::new(program) };
    run(install.args(arguments).stdin(Stdio::null()))
}

/// A companion of cargo.
pub(crate) struct Tool {
    /// Succeeds as an argument list of cargo if the tool is there.
    probe: &'static [&'static str],
    install: (&'static str, &'static [&'static str]),
}

pub(crate) const DENY: Tool = Tool {
    probe: &["deny", "--version"],
    install: ("cargo", &["install", "--locked", "cargo-deny"]),
};

pub(crate) const RUSTFMT: Tool =
    Tool { probe: &["fmt", "--version"], install: ("rustup", &["component", "add", "rustfmt"]) };

pub(crate) const CLIPPY: Tool =
    Tool { probe: &["clippy", "--version"], install: ("rustup", &["component", "add", "clippy"]) };

/// Used where it is present, and never installed: `cargo test` can do its work.
pub(crate) const NEXTEST: Tool = Tool {
    probe: &["nextest", "--version"],
    install: ("cargo", &["install", "--locked", "cargo-nextest"]),
};

impl Tool {
    pub(crate) fn is_present(&self) -> bool {
        cargo(self.probe).output().is_ok_and(|output| output.status.success())
    }
}

fn shown(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={:?} ", name.to_str()?, value?)));
    let arguments = command.get_args().map(OsStr::to_string_lossy);
    let program = command.get_program().to_string_lossy();
    let name = program.rsplit('/').next().unwrap_or(&program);
    variables.chain([name.to_owned()]).collect::<String>()
        + &arguments.map(|argument| format!(" {argument}")).collect::<String>()
}
