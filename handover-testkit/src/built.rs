//! Finding what Cargo has built beside the running test.

use std::env;
use std::path::PathBuf;

/// Returns the path of the example `name` of the workspace.
///
/// # Panics
///
/// If it is not built. Cargo builds the examples of a package for the package's own tests; those of
/// another package have to be built first, in the same profile.
#[track_caller]
pub fn example(name: &str) -> PathBuf {
    built(&format!("examples/{name}"), "cargo build --workspace --examples --all-features")
}

/// Returns the path of the command `name` of the workspace.
///
/// # Panics
///
/// If it is not built. Within its own package, `env!("CARGO_BIN_EXE_...")` is better: it cannot be
/// missing or stale.
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    built(name, "cargo build --workspace --bins")
}

#[track_caller]
fn built(name: &str, build: &str) -> PathBuf {
    let mut directory = env::current_exe().expect("the running executable has a path");
    directory.pop();
    // Tests and benches are in target/PROFILE/deps, programs in target/PROFILE.
    if directory.ends_with("deps") {
        directory.pop();
    }
    let path = directory.join(name);
    assert!(
        path.is_file(),
        "{} is not built; run `{build}`, with --release or --profile if the running test is",
        path.display(),
    );
    path
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_command_that_builds_it() {
        let panic = catch_unwind(|| example("no-such-example")).unwrap_err();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains("examples/no-such-example is not built"), "{message}");
        assert!(message.contains("cargo build"), "{message}");
    }
}
