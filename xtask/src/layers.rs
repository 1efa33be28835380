//! Which layer may import what.
//!
//! The rules are the tables [`SOURCE_RULES`], [`DEPENDENCY_RULES`] and [`CLOSURE_RULES`].

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    cargo::{self, cargo},
    metadata::{Kind, Metadata, Package},
    paths::{self, Mention},
};

/// What the source files of a layer must not mention.
struct SourceRule {
    /// Modules or source directories, as paths without `.rs`: `a/b` means `a/b.rs` and `a/b/**`.
    within: &'static [&'static str],
    outside: &'static [&'static str],
    /// Names or paths; one that ends in `::` needs something to follow.
    forbidden: &'static [&'static str],
    /// Paths that begin like this are fine even so.
    except: &'static [&'static str],
    why: &'static str,
}

const SOURCE_RULES: &[SourceRule] = &[
    SourceRule {
        within: &["handover-proto/src"],
        outside: &[],
        forbidden: &[
            "unsafe",
            "std::env",
            "std::fs",
            "std::io",
            "std::net",
            "std::os",
            "std::process",
            "std::thread",
            "Instant",
            "SystemTime",
        ],
        except: &[],
        why: "the protocol is pure: no I/O, no clock, no threads, no unsafe",
    },
    SourceRule {
        within: &["handover/src"],
        outside: &["handover/src/sys"],
        forbidden: &["unsafe", "libc::", "rustix::", "signal_hook_registry::"],
        except: &[],
        why: "only handover/src/sys makes system calls",
    },
    SourceRule {
        within: &["handover/src/sys"],
        outside: &[],
        forbidden: &["handover_proto", "crate::"],
        except: &["crate::sys"],
        why: "sys knows neither the protocol nor the modules that use it",
    },
    SourceRule {
        within: &["handover/src"],
        outside: &["handover/src/tokio", "handover/src/http"],
        forbidden: &["tokio::", "axum::", "futures_core::"],
        except: &[],
        why: "the core is blocking: only handover/src/tokio and handover/src/http are async",
    },
    SourceRule {
        within: &["handover/src"],
        outside: &["handover/src/http"],
        forbidden: &["hyper::", "hyper_util::", "http_body::", "tower_service::"],
        except: &[],
        why: "only handover/src/http speaks HTTP",
    },
    SourceRule {
        within: &["handover-cli/src"],
        outside: &[],
        forbidden: &["unsafe", "handover_proto"],
        except: &[],
        why: "the command is built on the public API of handover",
    },
];

/// What a package may name in its manifest, apart from its dev-dependencies.
struct DependencyRule {
    package: &'static str,
    allowed: Allowed,
    why: &'static str,
}

enum Allowed {
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

const DEPENDENCY_RULES: &[DependencyRule] = &[
    DependencyRule {
        package: "handover-proto",
        allowed: Allowed::Only(&["serde", "serde_json"]),
        why: "the protocol is pure, and only needs to write and read its messages",
    },
    DependencyRule {
        package: "handover-cli",
        allowed: Allowed::AllBut(&["handover-proto"]),
        why: "the command is built on the public API of handover",
    },
];

/// What a package without its features must not even depend on through others.
struct ClosureRule {
    package: &'static str,
    forbidden: &'static [&'static str],
    why: &'static str,
}

const CLOSURE_RULES: &[ClosureRule] = &[ClosureRule {
    package: "handover",
    forbidden: &[
        "tokio",
        "axum",
        "hyper",
        "hyper-util",
        "http-body",
        "futures-core",
        "async-trait",
    ],
    why: "a blocking program gets no async runtime",
}];

/// Fails with a list of all violations.
///
/// Returns the places that a rule is about and that have no source file, where nothing was checked.
pub(crate) fn check(root: &Path, metadata: &Metadata) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    let mut idle = Vec::new();
    for rule in SOURCE_RULES {
        for place in rule.within {
            let files = source_files(root, place)?;
            if files.is_empty() {
                idle.push((*place).to_owned());
            }
            for file in files {
                let source = fs::read_to_string(root.join(&file))
                    .with_context(|| format!("read {}", file.display()))?;
                violations.extend(rule.violations(&file, &source));
            }
        }
    }
    for rule in DEPENDENCY_RULES {
        violations.extend(rule.violations(metadata.member(rule.package)?));
    }
    for rule in CLOSURE_RULES {
        violations.extend(rule.violations(&rule.dependencies()?));
    }
    if violations.is_empty() {
        return Ok(idle);
    }
    let list: String = violations.iter().map(|violation| format!("\n{violation}")).collect();
    bail!("{} violations of the layers{list}", violations.len())
}

/// Something that a layer must not do, and does.
#[derive(Debug)]
struct Violation {
    place: String,
    what: String,
    why: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.place, self.what, self.why)
    }
}

impl SourceRule {
    fn violations(&self, file: &Path, source: &str) -> Vec<Violation> {
        if !self.covers(file) {
            return Vec::new();
        }
        let mut mentions = paths::mentions(source, &module_of(file));
        mentions.retain(|mention| self.forbids(mention));
        let violation = |mention: Mention| Violation {
            place: format!("{}:{}", file.display(), mention.line),
            what: format!("mentions `{}`", mention.path.join("::")),
            why: self.why,
        };
        mentions.into_iter().map(violation).collect()
    }

    fn covers(&self, file: &Path) -> bool {
        let below = |place: &&str| file.starts_with(place) || file.with_extension("") == **place;
        self.within.iter().any(below) && !self.outside.iter().any(below)
    }

    fn forbids(&self, mention: &Mention) -> bool {
        self.forbidden.iter().any(|pattern| contains(&mention.path, pattern))
            && !self.except.iter().any(|prefix| mention.path.starts_with(&segments(prefix)))
    }
}

/// Whether the path has the segments of the pattern in a row.
fn contains(path: &[String], pattern: &str) -> bool {
    let (pattern, following) = match pattern.strip_suffix("::") {
        Some(pattern) => (segments(pattern), 1),
        None => (segments(pattern), 0),
    };
    path.windows(pattern.len() + following).any(|window| window.starts_with(&pattern))
}

fn segments(path: &str) -> Vec<String> {
    path.split("::").map(str::to_owned).collect()
}

/// The module that a source file holds: `a/src/b/c.rs` holds `crate::b::c`.
fn module_of(file: &Path) -> Vec<String> {
    let file = file.with_extension("");
    let names = file.iter().map(|name| name.to_string_lossy().into_owned());
    let mut module: Vec<String> = names.skip_while(|name| name != "src").skip(1).collect();
    if module.last().is_some_and(|last| last == "mod") || module == ["lib"] || module == ["main"] {
        module.pop();
    }
    module.insert(0, "crate".to_owned());
    module
}

/// The source files of a module or directory, relative to the root, in a stable order.
fn source_files(root: &Path, place: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let file = PathBuf::from(format!("{place}.rs"));
    if root.join(&file).is_file() {
        files.push(file);
    }
    let mut directories = vec![PathBuf::from(place)];
    while let Some(directory) = directories.pop() {
        let path = root.join(&directory);
        if !path.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
            let entry = directory.join(entry?.file_name());
            if root.join(&entry).is_dir() {
                directories.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                files.push(entry);
            }
        }
    }
    files.sort();
    Ok(files)
}

impl DependencyRule {
    fn violations(&self, package: &Package) -> Vec<Violation> {
        let shipped = package.dependencies.iter().filter(|dep| dep.kind != Some(Kind::Dev));
        let forbidden = shipped.filter(|dependency| match self.allowed {
            Allowed::Only(names) => !names.contains(&&*dependency.name),
            Allowed::AllBut(names) => names.contains(&&*dependency.name),
        });
        let violation = |name: &str| Violation {
            place: package.name.clone(),
            what: format!("depends on `{name}`"),
            why: self.why,
        };
        forbidden.map(|dependency| violation(&dependency.name)).collect()
    }
}

impl ClosureRule {
    /// The names of all packages that this one needs without its features.
    fn dependencies(&self) -> Result<Vec<String>> {
        let mut tree = cargo(&["tree", "-p", self.package, "--no-default-features"]);
        tree.args(["--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
        let listed = cargo::read(&mut tree).context("cargo tree")?;
        Ok(listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    fn violations(&self, dependencies: &[String]) -> Vec<Violation> {
        let forbidden =
            self.forbidden.iter().filter(|name| dependencies.iter().any(|d| d == *name));
        let violation = |name: &&str| Violation {
            place: format!("{} without features", self.package),
            what: format!("drags in `{name}`"),
            why: self.why,
        };
        forbidden.map(violation).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    #[test]
    fn every_source_rule_catches_every_name_that_it_forbids() {
        for rule in SOURCE_RULES {
            for (place, pattern) in pairs(rule.within, rule.forbidden) {
                let source = format!("fn f() {{}}\nfn g() {{ {} }}", spelled_out(pattern));
                for file in [format!("{place}/x.rs"), format!("{place}/x/y/mod.rs")] {
                    let found = rule.violations(Path::new(&file), &source);
                    assert_eq!(found.len(), 1, "{pattern} in {file}");
                    assert_eq!(found[0].place, format!("{file}:2"));
                }
            }
        }
    }

    #[test]
    fn every_source_rule_lets_its_exceptions_pass() {
        for rule in SOURCE_RULES {
            for (place, pattern) in pairs(rule.outside, rule.forbidden) {
                for file in [format!("{place}.rs"), format!("{place}/x.rs")] {
                    let found = rule.violations(Path::new(&file), &spelled_out(pattern));
                    assert!(found.is_empty(), "{found:?}");
                }
            }
            for (place, path) in pairs(rule.within, rule.except) {
                let file = format!("{place}/x.rs");
                let found = rule.violations(Path::new(&file), &format!("use {path}::a;"));
                assert!(found.is_empty(), "{found:?}");
            }
        }
    }

    #[test]
    fn comments_strings_and_longer_names_break_no_rule() {
        let source = r#"
            //! unsafe libc::x std::net
            /// crate::drain handover_proto tokio::x
            #![deny(unsafe_code)]
            #[cfg(feature = "tokio")]
            mod tokio;
            fn f() { /* unsafe */ "libc::x"; mylibc::x; InstantLike; let libc = 1; libc.y }
        "#;
        for rule in SOURCE_RULES {
            for place in rule.within {
                let found = rule.violations(&Path::new(place).join("x.rs"), source);
                assert!(found.is_empty(), "{found:?}");
            }
        }
    }

    #[test]
    fn sys_cannot_reach_out_through_super() {
        let breaks = |file: &str, source: &str| {
            SOURCE_RULES.iter().any(|rule| !rule.violations(Path::new(file), source).is_empty())
        };
        assert!(breaks("handover/src/sys/mod.rs", "use super::drain;"));
        assert!(breaks("handover/src/sys/fd.rs", "use super::super::drain;"));
        assert!(!breaks("handover/src/sys/fd.rs", "use super::spawn;"));
        assert!(!breaks("handover/src/sys/mod.rs", "mod tests { use super::*; }"));
    }

    #[test]
    fn use_trees_hide_nothing() {
        let file = Path::new("handover-proto/src/wire.rs");
        let caught = |source| SOURCE_RULES[0].violations(file, source).len();
        assert_eq!(caught("use std::{fmt, net::{IpAddr, SocketAddr}, time::Instant};"), 3);
        assert_eq!(caught("use std::{fmt, time::Duration};"), 0);
    }

    #[test]
    fn every_dependency_rule_can_fail() {
        for rule in DEPENDENCY_RULES {
            let (good, bad) = match rule.allowed {
                Allowed::Only(names) => (names[0], "libc"),
                Allowed::AllBut(names) => ("libc", names[0]),
            };
            let package = package(rule.package, &[(good, None), (bad, None)]);
            assert_eq!(rule.violations(&package).len(), 1, "{}", rule.package);
        }
    }

    #[test]
    fn dependency_rules_leave_tests_alone_but_not_build_scripts() {
        let rule = &DEPENDENCY_RULES[0];
        let package =
            package("handover-proto", &[("a", Some(Kind::Dev)), ("b", Some(Kind::Build))]);
        let found = rule.violations(&package);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].what, "depends on `b`");
    }

    #[test]
    fn every_closure_rule_can_fail() {
        for rule in CLOSURE_RULES {
            for name in rule.forbidden {
                let found = rule.violations(&["libc".to_owned(), (*name).to_owned()]);
                assert_eq!(found.len(), 1, "{name}");
            }
            assert!(rule.violations(&["libc".to_owned()]).is_empty());
        }
    }

    #[test]
    fn modules_are_named_after_their_files() {
        let module = |file| module_of(Path::new(file)).join("::");
        assert_eq!(module("handover/src/lib.rs"), "crate");
        assert_eq!(module("handover/src/sys/mod.rs"), "crate::sys");
        assert_eq!(module("handover/src/sys/fd.rs"), "crate::sys::fd");
    }

    fn pairs<'a>(
        left: &'a [&'a str],
        right: &'a [&'a str],
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        left.iter().flat_map(|l| right.iter().map(|r| (*l, *r)))
    }

    /// Code that mentions what the pattern is about.
    fn spelled_out(pattern: &str) -> String {
        if pattern.ends_with("::") { format!("{pattern}thing") } else { pattern.to_owned() }
    }

    fn package(name: &str, dependencies: &[(&str, Option<Kind>)]) -> Package {
        let dependencies =
            dependencies.iter().map(|&(name, kind)| Dependency { name: name.to_owned(), kind });
        Package { dependencies: dependencies.collect(), ..Package::named(name) }
    }
}
