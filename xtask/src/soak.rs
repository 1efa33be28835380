//! `cargo xtask soak`: the service of `soak/` under load and faults.

use anyhow::Result;

use crate::cargo::{cargo, run};

/// How long the continuous integration does it.
const MINUTES_IN_TEST: &str = "5";

/// As much as two cores do without optimisation, beside the faults.
const RATE_IN_TEST: &str = "500";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What the program takes: --minutes M, --seed S; --help says all.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// Runs it as it is asked to, optimised.
pub(crate) fn soak(arguments: &Arguments) -> Result<()> {
    let mut command = cargo(&["run", "--release", "--package", "handover-soak", "--"]);
    run(command.args(&arguments.arguments))
}

/// Runs it as a step of the tests.
pub(crate) fn test() -> Result<()> {
    let command = ["run", "--package", "handover-soak", "--", "--minutes", MINUTES_IN_TEST];
    run(cargo(&command).args(["--rate", RATE_IN_TEST]))
}
