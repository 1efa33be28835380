//! `handover completions` and `handover man`: what packagers install beside the command.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap_complete::Shell;

/// Print the completions for a shell.
///
/// For example: handover completions bash > /etc/bash_completion.d/handover
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Print the manual page, or write those of all commands into a directory.
///
/// For example: handover man /usr/local/share/man/man1
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// The directory for handover.1, handover-upgrade.1 and so on; it is made if it is missing
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    directory: Option<PathBuf>,
}

/// Prints the completions of the command for a shell.
///
/// # Errors
///
/// If they cannot be written.
pub(crate) fn completions(
    args: &CompletionsArgs,
    mut cli: clap::Command,
) -> anyhow::Result<ExitCode> {
    // Written in one piece: the generator panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli, "handover", &mut script);
    io::stdout().write_all(&script).context("cannot write the completions")?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the manual pages of the command.
///
/// # Errors
///
/// If they cannot be written.
pub(crate) fn man(args: &ManArgs, cli: clap::Command) -> anyhow::Result<ExitCode> {
    // It has no page of its own.
    let cli = cli.disable_help_subcommand(true);
    match &args.directory {
        Some(directory) => {
            let cannot = || format!("cannot write the manual pages to {}", directory.display());
            fs::create_dir_all(directory).with_context(cannot)?;
            clap_mangen::generate_to(cli, directory).with_context(cannot)?;
        }
        None => {
            clap_mangen::Man::new(cli)
                .render(&mut io::stdout())
                .context("cannot write the manual page")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
