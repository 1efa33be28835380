//! The published packages build from the archives that would be uploaded.

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    cargo::{cargo, run},
    metadata::{Metadata, Package},
};

/// Packs the published packages, unpacks them elsewhere, and compiles them there.
///
/// There a file that an archive lacks is missing. The unpacked packages become a workspace that
/// patches them over the ones on the registry. Cargo's own verification is left out, because it
/// keeps what it has unpacked under the package's version: after a change without a new version it
/// would compile against the code before the change.
pub(crate) fn check(root: &Path, metadata: &Metadata) -> Result<()> {
    let published: Vec<&Package> = metadata.published().collect();
    ensure!(!published.is_empty(), "the workspace publishes no package");
    let mut pack = cargo(&["package", "--allow-dirty", "--no-verify"]);
    pack.args(published.iter().flat_map(|package| ["-p", &package.name]));
    run(&mut pack)?;

    let unpacked = unpack(&published, Path::new(&metadata.target_directory))?;
    let manifest = unpacked.join("Cargo.toml");
    fs::write(&manifest, workspace_manifest(&published)).context("write the manifest")?;
    // The same versions as in the workspace itself, so that what it compiled can be used again.
    fs::copy(root.join("Cargo.lock"), unpacked.join("Cargo.lock")).context("copy the lock file")?;
    let mut compile = cargo(&["check", "--workspace", "--manifest-path"]);
    run(compile.arg(&manifest).args(["--target-dir", &metadata.target_directory]))
}

/// Returns the directory with the content of the archives.
fn unpack(packages: &[&Package], target: &Path) -> Result<PathBuf> {
    let unpacked = target.join("xtask/packages");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).with_context(|| format!("clear {}", unpacked.display()))?;
    }
    fs::create_dir_all(&unpacked).with_context(|| format!("create {}", unpacked.display()))?;
    for package in packages {
        let archive = target.join("package").join(format!("{}.crate", directory(package)));
        // `-m` dates the files today. The dates in an archive never change, and so cargo would not
        // compile anew what did.
        run(Command::new("tar").arg("-xmzf").arg(archive).arg("-C").arg(&unpacked))?;
    }
    Ok(unpacked)
}

fn directory(package: &Package) -> String {
    format!("{}-{}", package.name, package.version)
}

fn workspace_manifest(packages: &[&Package]) -> String {
    let members: Vec<String> = packages.iter().map(|package| directory(package)).collect();
    let mut manifest = format!("[workspace]\nresolver = \"3\"\nmembers = {members:?}\n");
    let needed: BTreeSet<&str> = packages
        .iter()
        .flat_map(|package| &package.dependencies)
        .map(|dependency| &*dependency.name)
        .collect();
    manifest.push_str("\n[patch.crates-io]\n");
    for package in packages.iter().filter(|package| needed.contains(&*package.name)) {
        // Writing to a string cannot fail.
        let _ = writeln!(manifest, "{} = {{ path = {:?} }}", package.name, directory(package));
    }
    manifest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    #[test]
    fn packages_that_others_need_are_patched() {
        let (base, mut top) = (Package::named("base"), Package::named("top"));
        top.dependencies.push(Dependency { name: "base".to_owned(), kind: None });
        let manifest = workspace_manifest(&[&base, &top]);
        let expected = "[workspace]\nresolver = \"3\"\nmembers = [\"base-1.0.0\", \"top-1.0.0\"]\n\
            \n[patch.crates-io]\nbase = { path = \"base-1.0.0\" }\n";
        assert_eq!(manifest, expected);
    }
}
