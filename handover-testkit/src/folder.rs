//! A directory of one's own.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::mem::MaybeUninit;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs, io};

use rustix::fs::inotify;

use crate::deadline::wait_readable;
use crate::spawn::while_nothing_spawns;

/// A private directory, removed with all it holds when dropped.
///
/// Its path is short, so that the path of a Unix socket in it fits into the 108 bytes of
/// `sun_path`. It is open to its owner alone until [`open_to_all`](Self::open_to_all).
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes an empty directory in the directory for temporary files.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn create() -> Self {
        Self::create_in(&env::temp_dir())
    }

    /// Makes an empty directory in `parent`.
    pub(crate) fn create_in(parent: &Path) -> Self {
        loop {
            let name = format!("hk-{:012x}", random() >> 16);
            let path = parent.join(name);
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Self { path },
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("{} cannot be made: {error}", path.display()),
            }
        }
    }

    /// Returns where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of `name` in the directory, whether or not there is such a file.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Lets every user list, enter and write the directory, for services that run as another one.
    pub fn open_to_all(self) -> Self {
        set_mode(&self.path, 0o777);
        self
    }

    /// Writes a file and returns its path.
    ///
    /// The file is replaced, not overwritten, if there is one of that name: a running executable
    /// can be replaced, and whoever has the old file open keeps it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        self.put(name, content.as_ref(), 0o644)
    }

    /// Writes an executable file, such as a script, and returns its path; replaces as
    /// [`write`](Self::write) does.
    pub fn write_executable(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        self.put(name, content.as_ref(), 0o755)
    }

    /// Copies an executable to `name`, as a deployment does, and returns its path; replaces as
    /// [`write`](Self::write) does.
    pub fn install(&self, executable: impl AsRef<Path>, name: &str) -> PathBuf {
        let executable = executable.as_ref();
        match fs::read(executable) {
            Ok(content) => self.put(name, &content, 0o755),
            Err(error) => panic!("{} cannot be read: {error}", executable.display()),
        }
    }

    /// Points the symbolic link `name` at `target`, as the `current` link of a deployment, in one
    /// step if it exists already. Returns the path of the link.
    pub fn link(&self, name: &str, target: impl AsRef<Path>) -> PathBuf {
        let place = self.join(name);
        let aside = beside(&place);
        std::os::unix::fs::symlink(target, &aside).expect("a new name in our own directory");
        move_into_place(&aside, &place);
        place
    }

    /// Reads a file as text; `None` if there is none of that name.
    pub fn read(&self, name: &str) -> Option<String> {
        match fs::read(self.join(name)) {
            Ok(content) => Some(String::from_utf8_lossy(&content).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => panic!("{name} cannot be read: {error}"),
        }
    }

    /// Waits until there is something called `name` directly in this directory; false if there is
    /// nothing by `deadline`.
    ///
    /// Something, not all of it: a file may exist before it is written.
    #[must_use]
    pub fn wait_for(&self, name: &str, deadline: Instant) -> bool {
        use inotify::{CreateFlags, WatchFlags};

        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).expect("inotify");
        inotify::add_watch(&watch, &self.path, WatchFlags::CREATE | WatchFlags::MOVED_TO)
            .expect("our own directory can be watched");
        // The watch stands before the first look, so that nothing is missed in between.
        loop {
            if fs::symlink_metadata(self.join(name)).is_ok() {
                return true;
            }
            if !wait_readable(&[&watch], deadline) {
                return false;
            }
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(&watch, &mut buffer);
            // What happened does not matter, only that the next wait is for something newer.
            while events.next().is_ok() {}
        }
    }

    fn put(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let place = self.join(name);
        replace(&place, content, mode);
        place
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind, for instance by a service that writes still, harms no test.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Puts a file of this content and mode at `place`, in one step if there is one already.
///
/// # Panics
///
/// If it cannot be written, for instance because its directory is missing.
pub(crate) fn replace(place: &Path, content: &[u8], mode: u32) {
    let aside = beside(place);
    // A process that is forked while the file is open for writing holds it open until it
    // execs, and starting the file fails with ETXTBSY as long.
    while_nothing_spawns(|| {
        let written = fs::write(&aside, content);
        written.unwrap_or_else(|error| panic!("{}: {error}", place.display()));
    });
    set_mode(&aside, mode);
    move_into_place(&aside, place);
}

fn beside(place: &Path) -> PathBuf {
    place.with_file_name(format!(".aside-{:016x}", random()))
}

fn move_into_place(aside: &Path, place: &Path) {
    fs::rename(aside, place).unwrap_or_else(|error| panic!("{}: {error}", place.display()));
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// The seed of every `RandomState` differs, within a process and between processes.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::soon;

    #[test]
    fn is_private_and_gone_after_drop() {
        let folder = Folder::create();
        let path = folder.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        folder.write("file", "text");
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_link_is_repointed_in_one_step() {
        let folder = Folder::create();
        folder.write("one", "1");
        folder.write("two", "2");
        folder.link("current", "one");
        assert_eq!(folder.read("current").as_deref(), Some("1"));
        folder.link("current", "two");
        assert_eq!(folder.read("current").as_deref(), Some("2"));
        assert_eq!(folder.read("none"), None);
    }

    #[test]
    fn waits_for_a_file_that_comes_later() {
        let folder = Folder::create();
        assert!(!folder.wait_for("late", Instant::now() + Duration::from_millis(5)));
        thread::scope(|scope| {
            scope.spawn(|| folder.write("late", ""));
            assert!(folder.wait_for("late", soon()));
        });
    }
}
