//! Tests that the documents name exist.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// The documents that name tests for what they claim.
const DOCUMENTS: [&str; 2] = ["docs/security.md", "docs/reliability.md"];

/// Where no sources of ours are.
const FOREIGN: [&str; 2] = ["target", ".git"];

/// How many words a name has at least that is taken for that of a test: others are settings.
const MIN_WORDS: usize = 4;

pub(crate) fn check(root: &Path) -> Result<()> {
    let mut functions = BTreeSet::new();
    for source in sources(root)? {
        functions.extend(defined(&read(&source)?));
    }
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        let text = read(&root.join(document))?;
        let names = cited(&text).filter(|(_, name)| !functions.contains(*name));
        missing.extend(names.map(|(line, name)| format!("\n{document}:{line}: {name}")));
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("{} tests that are named do not exist{}", missing.len(), missing.concat())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The Rust files below a folder.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if !FOREIGN.iter().any(|name| path.file_name() == Some(OsStr::new(name))) {
                sources.extend(self::sources(&path)?);
            }
        } else if path.extension() == Some(OsStr::new("rs")) {
            sources.push(path);
        }
    }
    Ok(sources)
}

/// The names of functions in a source.
fn defined(source: &str) -> BTreeSet<String> {
    let names = source.split("fn ").skip(1);
    names.filter_map(|rest| rest.split(['(', '<']).next()).map(str::to_owned).collect()
}

/// What looks like the name of a test in the code spans of a document, with its line.
fn cited(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let spans = text.lines().zip(1..).flat_map(|(line, number)| {
        line.split('`').skip(1).step_by(2).map(move |span| (number, span))
    });
    spans.filter(|(_, span)| is_test_name(span))
}

fn is_test_name(span: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    span.split('_').count() >= MIN_WORDS && span.split('_').all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tests_are_told_from_settings() {
        let text = "| `max_state_bytes` | `it_is_so_here`, `ready()` |\nand `so_it_is_there_2`";
        let found: Vec<_> = cited(text).collect();
        assert_eq!(found, [(1, "it_is_so_here"), (2, "so_it_is_there_2")]);
    }

    #[test]
    fn functions_are_found_whatever_stands_before_them() {
        let found = defined("#[test] fn one_is_it() {}\npub(crate) async fn two<T>(t: T) {}");
        assert_eq!(found, BTreeSet::from(["one_is_it".to_owned(), "two".to_owned()]));
    }
}
