//! Relative links in the documents lead somewhere.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

pub(crate) fn check(root: &Path) -> Result<()> {
    let mut broken = Vec::new();
    for document in documents(root)? {
        let text = read(&document)?;
        for (line, target) in links(&text) {
            if let Some(complaint) = complaint(&document, &target)? {
                let document = document.strip_prefix(root).unwrap_or(&document);
                broken.push(format!("\n{}:{line}: {target} {complaint}", document.display()));
            }
        }
    }
    if broken.is_empty() {
        return Ok(());
    }
    bail!("{} broken links{}", broken.len(), broken.concat())
}

/// The Markdown files at the root and below `docs`.
fn documents(root: &Path) -> Result<Vec<PathBuf>> {
    let mut documents = Vec::new();
    for directory in [root.to_path_buf(), root.join("docs")].iter().filter(|path| path.is_dir()) {
        for entry in
            fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?
        {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    documents.sort();
    Ok(documents)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// What is wrong with a link in a document, if anything is.
fn complaint(document: &Path, target: &str) -> Result<Option<&'static str>> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(None);
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = match document.parent() {
        Some(directory) if !path.is_empty() => directory.join(path),
        _ => document.to_path_buf(),
    };
    if !file.exists() {
        return Ok(Some("does not exist"));
    }
    let is_document = file.extension().is_some_and(|extension| extension == "md");
    if !anchor.is_empty() && is_document && !anchors(&read(&file)?).contains(&anchor.to_owned()) {
        return Ok(Some("names no heading"));
    }
    Ok(None)
}

/// The targets of the links in a Markdown text, with their lines.
///
/// Knows `[text](target)`, `[name]: target`, `href="target"` and `src="target"`.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (line, prose) in prose(text) {
        let inline = ["](", "href=\"", "src=\""].into_iter().flat_map(|mark| {
            prose.split(mark).skip(1).filter_map(|rest| rest.split([')', ' ', '"']).next())
        });
        // A name that begins with `^` is that of a footnote.
        let defined = prose.strip_prefix('[').filter(|rest| !rest.starts_with('^'));
        let defined = defined.and_then(|rest| rest.split_once("]: "));
        let defined = defined.and_then(|(_, rest)| rest.split_whitespace().next());
        let targets = inline.chain(defined).map(|target| target.trim_matches(['<', '>']));
        links.extend(targets.filter(|target| !target.is_empty()).map(|t| (line, t.to_owned())));
    }
    links
}

/// The anchors of a Markdown text: its headings in the spelling of GitHub.
fn anchors(text: &str) -> Vec<String> {
    let lines = text.lines().zip(fenced(text)).filter(|(_, fenced)| !fenced);
    let headings = lines.filter_map(|(line, _)| {
        line.starts_with('#').then(|| line.trim_start_matches('#')).filter(|l| l.starts_with(' '))
    });
    let mut seen: HashMap<String, usize> = HashMap::new();
    let anchor = |heading: &str| {
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let before = seen.entry(anchor.clone()).or_default();
        *before += 1;
        if *before == 1 { anchor } else { format!("{anchor}-{}", *before - 1) }
    };
    headings.map(anchor).collect()
}

/// The lines outside of code blocks, numbered from 1 and without their code spans.
fn prose(text: &str) -> impl Iterator<Item = (usize, String)> {
    let lines = text.lines().zip(fenced(text)).zip(1..);
    lines.filter(|((_, fenced), _)| !fenced).map(|((line, _), number)| {
        (number, line.split('`').step_by(2).collect::<Vec<_>>().join("`"))
    })
}

/// For each line, whether it belongs to a fenced code block.
fn fenced(text: &str) -> Vec<bool> {
    let mut inside = false;
    let mut mark = |line: &str| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        inside || fence
    };
    text.lines().map(&mut mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_in_prose_only() {
        let text =
            "# A\n[a](b.md), `[c](d)` and ![e](<f>)\n```\n[g](h)\n```\n[i]: j#k\n<img src=\"l\">";
        let found = links(text);
        let expected = [(2, "b.md"), (2, "f"), (6, "j#k"), (7, "l")];
        assert_eq!(found, expected.map(|(line, target)| (line, target.to_owned())));
    }

    #[test]
    fn headings_become_anchors() {
        let text = "# Who serves?\n## `ready()` & commit\n# Who serves?\n```\n# code\n```\n#no";
        assert_eq!(anchors(text), ["who-serves", "ready--commit", "who-serves-1"]);
    }

    #[test]
    fn links_to_nowhere_are_told() {
        let this = Path::new(env!("CARGO_MANIFEST_DIR")).join("../CONTRIBUTING.md");
        let complaint = |target| complaint(&this, target).unwrap();
        assert_eq!(complaint("no-such-file.md"), Some("does not exist"));
        assert_eq!(complaint("#no-such-heading"), Some("names no heading"));
        assert_eq!(complaint("xtask/src/main.rs#L1"), None);
        assert_eq!(complaint("https://example.org/nowhere"), None);
    }
}
