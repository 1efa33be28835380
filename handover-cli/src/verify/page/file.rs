//! The file that the page goes to.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use tempfile::NamedTempFile;

/// The place of a page, which appears there all at once.
#[derive(Debug)]
pub(crate) struct PageFile {
    path: PathBuf,
    folder: PathBuf,
}

impl PageFile {
    /// Makes sure that a page can be written there.
    ///
    /// # Errors
    ///
    /// If it cannot, with advice: better before a long test than after it.
    pub(crate) fn claim(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        // What a link stands for is replaced, not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if path.is_dir() || path.file_name().is_none() {
            bail!("cannot write the report {shown}: it is a folder; name a file in it");
        }
        if path.exists() && !path.is_file() {
            bail!("cannot write the report {shown}: it is no regular file; name one, or a new one");
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        let page = Self { path, folder };
        // Not kept: a test that is killed must leave nothing.
        page.temporary().map_err(|error| {
            let advice = advice(&error, &page.folder);
            anyhow!(error).context(format!("cannot write the report {shown}: {advice}"))
        })?;
        Ok(page)
    }

    /// Shows the page; a page that stood there before is there until that instant.
    pub(crate) fn publish(self, page: &str) -> anyhow::Result<()> {
        let write = || {
            let mut temporary = self.temporary()?;
            temporary.write_all(page.as_bytes())?;
            temporary.as_file().sync_all()?;
            temporary.persist(&self.path)?;
            io::Result::Ok(())
        };
        write().with_context(|| format!("cannot write the report {}", self.path.display()))
    }

    fn temporary(&self) -> io::Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        // As any new file has; the user's umask takes away what the user wants taken away.
        builder.prefix(".handover-report-").permissions(Permissions::from_mode(0o666));
        builder.tempfile_in(&self.folder)
    }
}

fn advice(error: &io::Error, folder: &Path) -> String {
    let folder = folder.display();
    match error.kind() {
        ErrorKind::NotFound => format!("there is no folder {folder}; make it first"),
        ErrorKind::NotADirectory => format!("{folder} is no folder"),
        _ => format!("no file can be made in {folder}; choose a folder that you may write to"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_appears_only_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.html");
        fs::write(&path, "old").unwrap();
        let page = PageFile::claim(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        page.publish("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_claim_leaves_nothing_should_the_test_be_killed() {
        let folder = tempfile::tempdir().unwrap();
        std::mem::forget(PageFile::claim(&folder.path().join("page.html")).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_link_points_to_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        PageFile::claim(&link).unwrap().publish("new").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn what_cannot_be_a_page_is_refused_with_advice() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = |path: &Path| format!("{:#}", PageFile::claim(path).unwrap_err());
        assert!(refusal(folder.path()).contains("name a file in it"));
        assert!(refusal(&folder.path().join("missing/page.html")).contains("make it first"));
        assert!(refusal(Path::new("/dev/null")).contains("no regular file"));
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(refusal(&folder.path().join("file/page.html")).contains("is no folder"));
    }
}
