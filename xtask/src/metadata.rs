//! What `cargo metadata` knows of the workspace.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cargo;

#[derive(Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) workspace_members: Vec<String>,
    pub(crate) resolve: Resolve,
    pub(crate) target_directory: String,
}

#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) rust_version: Option<String>,
    /// The registries that the package may go to: `None` means any, an empty list none.
    pub(crate) publish: Option<Vec<String>>,
    /// As declared in the manifest.
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) features: BTreeMap<String, Vec<String>>,
    pub(crate) manifest_path: String,
}

#[derive(Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) kind: Option<Kind>,
}

/// What a dependency is for. A normal one has no kind.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Build,
    Dev,
}

#[derive(Deserialize)]
pub(crate) struct Resolve {
    pub(crate) nodes: Vec<Node>,
}

/// A package with what it was resolved to depend on.
#[derive(Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) deps: Vec<Edge>,
}

#[derive(Deserialize)]
pub(crate) struct Edge {
    pub(crate) pkg: String,
    pub(crate) dep_kinds: Vec<EdgeKind>,
}

#[derive(Deserialize)]
pub(crate) struct EdgeKind {
    pub(crate) kind: Option<Kind>,
}

impl Metadata {
    /// Asks cargo, with all features on and for all platforms.
    pub(crate) fn load() -> Result<Self> {
        let mut command = cargo::cargo(&["metadata", "--format-version=1", "--all-features"]);
        let json = cargo::read(&mut command).context("cargo metadata")?;
        serde_json::from_str(&json).context("parse what cargo metadata printed")
    }

    /// The packages of the workspace.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// The packages of the workspace that users get.
    pub(crate) fn published(&self) -> impl Iterator<Item = &Package> {
        self.members().filter(|package| package.publish.as_ref().is_none_or(|to| !to.is_empty()))
    }

    pub(crate) fn member(&self, name: &str) -> Result<&Package> {
        self.members()
            .find(|package| package.name == name)
            .with_context(|| format!("the workspace has no package {name}"))
    }
}

#[cfg(test)]
impl Package {
    /// A package for tests, which has and needs nothing.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            id: name.to_owned(),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            rust_version: None,
            publish: None,
            dependencies: Vec::new(),
            features: BTreeMap::new(),
            manifest_path: String::new(),
        }
    }
}
