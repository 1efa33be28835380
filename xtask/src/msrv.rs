//! The minimum supported Rust version is stated once, and the dependencies keep to it.
//!
//! That our own code keeps to it is checked by the lint `clippy::incompatible_msrv`.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};

use crate::metadata::{Kind, Metadata, Node, Package};

pub(crate) fn check(root: &Path, metadata: &Metadata) -> Result<()> {
    let read =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let stated = stated_version(&read(&root.join("Cargo.toml"))?)
        .context("[workspace.package] of Cargo.toml states no rust-version")?;
    let mut complaints = Vec::new();
    for package in metadata.members() {
        if !inherits_version(&read(Path::new(&package.manifest_path))?) {
            complaints.push(format!("{} does not inherit rust-version", package.name));
        }
    }
    complaints.extend(newer_dependencies(metadata, stated)?);
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("rust-version {}.{}: {}", stated.0, stated.1, complaints.join(", "))
}

/// Major and minor number of a Rust release.
type Release = (u32, u32);

fn stated_version(manifest: &str) -> Option<Release> {
    let section = manifest.split_once("[workspace.package]")?.1;
    let section = section.split("\n[").next()?;
    let line = section.lines().find_map(|line| line.strip_prefix("rust-version"))?;
    release(line.trim_matches(|c: char| !c.is_ascii_digit()))
}

fn inherits_version(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(|line| line.replace(' ', ""));
    lines.any(|line| {
        line == "rust-version.workspace=true" || line == "rust-version={workspace=true}"
    })
}

fn release(version: &str) -> Option<Release> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next().unwrap_or(Some(0))?))
}

/// The packages that users of ours compile and that ask for a newer Rust.
fn newer_dependencies(metadata: &Metadata, stated: Release) -> Result<Vec<String>> {
    let packages: HashMap<&str, &Package> =
        metadata.packages.iter().map(|package| (&*package.id, package)).collect();
    let mut newer = Vec::new();
    for id in shipped(metadata) {
        let package = packages.get(id).with_context(|| format!("{id} is no known package"))?;
        let Some(version) = &package.rust_version else { continue };
        let needed = release(version)
            .with_context(|| format!("{} has rust-version {version}", package.name))?;
        if needed > stated {
            newer.push(format!("{} needs {version}", package.name));
        }
    }
    Ok(newer)
}

/// Identifies the published packages and all that they depend on, other than for their tests.
fn shipped(metadata: &Metadata) -> BTreeSet<&str> {
    let nodes: HashMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (&*node.id, node)).collect();
    let mut shipped = BTreeSet::new();
    let mut open: Vec<&str> = metadata.published().map(|package| &*package.id).collect();
    while let Some(id) = open.pop() {
        if !shipped.insert(id) {
            continue;
        }
        let edges = nodes.get(id).map_or(&[][..], |node| &node.deps);
        let edges = edges
            .iter()
            .filter(|edge| edge.dep_kinds.iter().any(|needed| needed.kind != Some(Kind::Dev)));
        open.extend(edges.map(|edge| &*edge.pkg));
    }
    shipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_manifests() {
        let manifest = "[workspace.package]\nrust-version = \"1.88\"\n\n[other]\n";
        assert_eq!(stated_version(manifest), Some((1, 88)));
        assert_eq!(stated_version("[workspace.package]\n[other]\nrust-version = \"1.88\""), None);
        assert_eq!(release("1.9.1"), Some((1, 9)));
        assert_eq!(release("2"), Some((2, 0)));
        assert_eq!(release("new"), None);
    }

    #[test]
    fn own_version_is_not_inherited() {
        assert!(inherits_version("[package]\nrust-version.workspace = true\n"));
        assert!(inherits_version("[package]\nrust-version = { workspace = true }\n"));
        assert!(!inherits_version("[package]\nrust-version = \"1.88\"\n"));
        assert!(!inherits_version("[package]\n"));
    }

    #[test]
    fn newer_dependency_of_a_dependency_is_found_but_not_that_of_a_test() {
        let metadata = metadata();
        assert_eq!(newer_dependencies(&metadata, (1, 88)).unwrap(), ["deep needs 1.90"]);
        assert!(newer_dependencies(&metadata, (1, 90)).unwrap().is_empty());
    }

    /// `ours` -> `middle` -> `deep`, and `ours` -> `tested` for its tests only.
    fn metadata() -> Metadata {
        let package = |name: &str, version: Option<&str>| {
            serde_json::json!({
                "id": name, "name": name, "version": "1.0.0", "rust_version": version,
                "publish": null, "dependencies": [], "features": {}, "manifest_path": "",
            })
        };
        let edge = |name: &str, kind: Option<&str>| {
            let kinds = serde_json::json!([{ "kind": kind }]);
            serde_json::json!({ "pkg": name, "dep_kinds": kinds })
        };
        let json = serde_json::json!({
            "packages": [
                package("ours", Some("1.88")),
                package("middle", None),
                package("deep", Some("1.90")),
                package("tested", Some("1.99")),
            ],
            "workspace_members": ["ours"],
            "resolve": { "nodes": [
                { "id": "ours", "deps": [edge("middle", None), edge("tested", Some("dev"))] },
                { "id": "middle", "deps": [edge("deep", Some("build"))] },
                { "id": "deep", "deps": [] },
                { "id": "tested", "deps": [] },
            ] },
            "target_directory": "",
        });
        serde_json::from_value(json).unwrap()
    }
}
