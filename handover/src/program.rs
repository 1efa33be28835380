//! Which program a successor runs: found at the start of this one, when it still can be.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::sys::file::{Identity, is_executable};

/// The variable by which a successor finds its channel: `NUMBER:TOKEN`.
pub(crate) const CHANNEL: &str = "HANDOVER_CHANNEL";

/// What the application wants different in its successor.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) executable: Option<PathBuf>,
    pub(crate) arguments: Option<Vec<OsString>>,
    /// Set, or removed where `None`.
    pub(crate) environment: BTreeMap<OsString, Option<OsString>>,
    pub(crate) directory: Option<PathBuf>,
}

/// How this service was started, and so how its successor is.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    executable: PathBuf,
    arguments: Vec<OsString>,
    directory: PathBuf,
    environment: BTreeMap<OsString, Option<OsString>>,
}

/// A program in the form that the kernel takes.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) executable: CString,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) directory: CString,
}

impl Program {
    /// Remembers how this process was started. To be called before anything changes the working
    /// directory.
    pub(crate) fn of_this_process(overrides: Overrides) -> io::Result<Self> {
        let mut arguments: Vec<OsString> = std::env::args_os().collect();
        let started_in = working_directory()?;
        let elsewhere = overrides.executable.is_some() || overrides.directory.is_some();
        let executable = match overrides.executable {
            Some(path) => started_in.join(path),
            None => executable(arguments.first().map(OsString::as_os_str), &started_in)?,
        };
        if let Some(others) = overrides.arguments {
            arguments.truncate(1);
            arguments.extend(others);
        }
        // A successor finds its own path by the zeroth argument, so it has to lead there from where
        // the successor starts.
        if arguments.is_empty() {
            arguments.push(executable.clone().into());
        } else if elsewhere {
            arguments[0] = executable.clone().into();
        }
        let directory =
            overrides.directory.map_or(started_in.clone(), |path| started_in.join(path));
        Ok(Self { executable, arguments, directory, environment: overrides.environment })
    }

    pub(crate) fn executable(&self) -> &Path {
        &self.executable
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What would be started now, with the present environment.
    ///
    /// # Errors
    ///
    /// What it is that has a NUL byte in it.
    pub(crate) fn image(&self, channel: &str) -> Result<Image, String> {
        let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        for (name, value) in &self.environment {
            match value {
                Some(value) => environment.insert(name.clone(), value.clone()),
                None => environment.remove(name),
            };
        }
        environment.insert(CHANNEL.into(), channel.into());
        let environment = environment
            .into_iter()
            .map(|(mut entry, value)| {
                let what = format!("the variable {}", entry.display());
                entry.push("=");
                entry.push(value);
                c_string(entry, &what)
            })
            .collect::<Result<_, _>>()?;
        let arguments = self
            .arguments
            .iter()
            .map(|argument| c_string(argument.clone(), "an argument"))
            .collect::<Result<_, _>>()?;
        Ok(Image {
            executable: c_string(self.executable.clone().into(), "the path of the executable")?,
            arguments,
            environment,
            directory: c_string(self.directory.clone().into(), "the working directory")?,
        })
    }
}

fn c_string(text: OsString, what: &str) -> Result<CString, String> {
    CString::new(text.into_vec()).map_err(|_| what.to_owned())
}

/// The working directory by the name that it was entered by, if that still leads to it: after a
/// deploy, the link in `/srv/app/current` leads to the new release.
fn working_directory() -> io::Result<PathBuf> {
    let physical = std::env::current_dir()?;
    let logical = std::env::var_os("PWD").map(PathBuf::from).filter(|path| path.is_absolute());
    Ok(logical
        .filter(|path| Identity::of_path(path) == Identity::of_path(&physical))
        .unwrap_or(physical))
}

/// The path that this process was started by, symbolic links and all. What it leads to is looked
/// up anew at each upgrade.
fn executable(argument: Option<&OsStr>, directory: &Path) -> io::Result<PathBuf> {
    let found = argument.and_then(|argument| {
        if argument.as_bytes().contains(&b'/') {
            Some(directory.join(argument))
        } else {
            search(argument, directory)
        }
    });
    let running = match std::env::current_exe() {
        Ok(running) => running,
        // There is no /proc here to compare with.
        Err(error) => return found.filter(|path| is_executable(path)).ok_or(error),
    };
    // The zeroth argument is whatever the starter wrote there: it has to lead to the file that runs,
    // unless that has been replaced since.
    let image = Identity::of_path(Path::new("/proc/self/exe"));
    let right = |path: &PathBuf| Identity::of_path(path) == image || !running.exists();
    Ok(found.filter(right).unwrap_or(running))
}

fn search(name: &OsStr, directory: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| directory.join(folder).join(name))
        .find(|candidate| candidate.is_file() && is_executable(candidate))
}
