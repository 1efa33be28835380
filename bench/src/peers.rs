//! Where the servers are that the library is held against.

use std::path::{Path, PathBuf};

/// Names the folder that has the executables, if that is not where cargo puts them.
const FOLDER_VARIABLE: &str = "HANDOVER_BENCH_PEERS";

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/target/release");

/// The executable of this name, of those that `cargo build --release --manifest-path bench/peers/Cargo.toml` makes:
/// `None` if it has not been built.
pub fn peer(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(FOLDER_VARIABLE).unwrap_or_else(|| FOLDER.into());
    Some(Path::new(&folder).join(name)).filter(|path| path.is_file())
}
