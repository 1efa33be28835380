//! Which program a successor runs: found at the start of this one, when it still can be.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::ErrorKind;
use crate::sys::file::{Identity, is_executable};

/// The variable by which a successor finds its channel: `NUMBER:TOKEN`.
pub(crate) const CHANNEL: &str = "HANDOVER_CHANNEL";

/// What a service manager tells one process, and no other: a successor gets its sockets from its
/// predecessor (sd_listen_fds(3)).
const FOR_THIS_PROCESS: [&str; 4] =
    ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID"];

/// What names the process that a service manager has started, and names its successor next
/// (sd_watchdog_enabled(3), systemd.exec(5)).
const NAMES_THIS_PROCESS: [&str; 2] = ["WATCHDOG_PID", "SYSTEMD_EXEC_PID"];

/// What is a service's to use, and not that of a process which only looks at its configuration.
const FOR_THE_SERVICE: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// What is wanted different in a successor: by the application in all of them, or by who asks for an
/// upgrade in that one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// A relative one is resolved against the directory that the service was started in.
    pub(crate) executable: Option<PathBuf>,
    /// Without the zeroth.
    pub(crate) arguments: Option<Vec<OsString>>,
    /// Set, or removed where `None`.
    pub(crate) environment: BTreeMap<OsString, Option<OsString>>,
    /// A relative one is resolved as the executable is.
    pub(crate) directory: Option<PathBuf>,
}

/// Something that no process can be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// It has a NUL byte in it.
    NulByte { what: String },
    /// No variable can be called so.
    VariableName { name: String },
}

impl From<Invalid> for ErrorKind {
    fn from(invalid: Invalid) -> Self {
        match invalid {
            Invalid::NulByte { what } => Self::NulByte { what },
            Invalid::VariableName { name } => Self::VariableName { name },
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ErrorKind::from(self.clone()).fmt(f)
    }
}

impl std::error::Error for Invalid {}

impl Overrides {
    /// Finds out what would fail every start.
    pub(crate) fn validate(&self) -> Result<(), Invalid> {
        validate_arguments(self.arguments.iter().flatten(), "an argument for successors")?;
        let paths = [
            (&self.executable, "the path of the executable for successors"),
            (&self.directory, "the working directory for successors"),
        ];
        for (path, what) in paths {
            validate_arguments(path.iter().map(|path| path.as_os_str()), what)?;
        }
        for (name, value) in &self.environment {
            let texts = [Some(name), value.as_ref()];
            validate_arguments(texts.into_iter().flatten(), "a variable for successors")?;
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(Invalid::VariableName { name: name.display().to_string() });
            }
        }
        Ok(())
    }
}

/// Fails if one of these texts has a NUL byte in it, which ends it for the kernel.
pub(crate) fn validate_arguments<T: AsRef<OsStr>>(
    texts: impl IntoIterator<Item = T>,
    what: &str,
) -> Result<(), Invalid> {
    if texts.into_iter().any(|text| text.as_ref().as_bytes().contains(&0)) {
        return Err(Invalid::NulByte { what: what.to_owned() });
    }
    Ok(())
}

/// Who has started this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A predecessor, by all appearances.
    Predecessor,
    /// Whoever.
    Unknown,
}

/// How this service was started, and so how its successor is.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    executable: PathBuf,
    /// With the zeroth.
    arguments: Vec<OsString>,
    directory: PathBuf,
    environment: BTreeMap<OsString, Option<OsString>>,
    /// What relative paths begin at.
    started_in: PathBuf,
}

/// What a process is started with, in the form that the kernel takes.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    /// What holds the process's own number.
    pub(crate) pid_variables: Vec<CString>,
    pub(crate) directory: CString,
}

impl Program {
    /// Remembers how this process was started. To be called before anything changes the working
    /// directory.
    pub(crate) fn of_this_process(origin: Origin, overrides: &Overrides) -> io::Result<Self> {
        let mut arguments: Vec<OsString> = std::env::args_os().collect();
        let started_in = working_directory()?;
        let executable = match &overrides.executable {
            Some(path) => started_in.join(path),
            None => executable(arguments.first().map(OsString::as_os_str), &started_in, origin)?,
        };
        if arguments.is_empty() {
            arguments.push(executable.clone().into());
        }
        let directory = started_in.clone();
        let program =
            Self { executable, arguments, directory, environment: BTreeMap::new(), started_in };
        Ok(program.with(overrides))
    }

    /// The same with something different; this one stays as it is.
    pub(crate) fn with(&self, overrides: &Overrides) -> Self {
        let mut varied = self.clone();
        if let Some(path) = &overrides.executable {
            varied.executable = self.started_in.join(path);
        }
        if let Some(path) = &overrides.directory {
            varied.directory = self.started_in.join(path);
        }
        if let Some(others) = &overrides.arguments {
            varied.arguments.truncate(1);
            varied.arguments.extend(others.iter().cloned());
        }
        // A successor finds its own path by the zeroth argument, so it has to lead there from where
        // the successor starts.
        if overrides.executable.is_some() || overrides.directory.is_some() {
            varied.arguments[0] = varied.executable.clone().into();
        }
        varied.environment.extend(overrides.environment.clone());
        varied
    }

    pub(crate) fn executable(&self) -> &Path {
        &self.executable
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What a successor would be started with now, with the present environment.
    pub(crate) fn image(&self, channel: &str) -> Result<Image, Invalid> {
        let mut environment = self.environment();
        let own = std::process::id().to_string();
        let names_this = |name: &&str| {
            let value = environment.get(OsStr::new(name));
            value.is_some_and(|value| value == own.as_str())
        };
        let names: Vec<&str> = NAMES_THIS_PROCESS.into_iter().filter(names_this).collect();
        for name in &names {
            environment.remove(OsStr::new(name));
        }
        environment.insert(CHANNEL.into(), channel.into());
        let mut image = self.image_of(&self.arguments, environment)?;
        let c_names = names.into_iter().map(|name| c_string(name.into(), name));
        image.pid_variables = c_names.collect::<Result<_, _>>()?;
        Ok(image)
    }

    /// The same for a check, which has other arguments and no channel.
    pub(crate) fn check_image(&self, arguments: &[OsString]) -> Result<Image, Invalid> {
        let mut environment = self.environment();
        for name in FOR_THE_SERVICE.into_iter().chain([CHANNEL]) {
            environment.remove(OsStr::new(name));
        }
        let arguments: Vec<OsString> =
            self.arguments.iter().take(1).chain(arguments).cloned().collect();
        self.image_of(&arguments, environment)
    }

    fn environment(&self) -> BTreeMap<OsString, OsString> {
        let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        for name in FOR_THIS_PROCESS {
            environment.remove(OsStr::new(name));
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => environment.insert(name.clone(), value.clone()),
                None => environment.remove(name),
            };
        }
        environment
    }

    fn image_of(
        &self,
        arguments: &[OsString],
        environment: BTreeMap<OsString, OsString>,
    ) -> Result<Image, Invalid> {
        let environment = environment
            .into_iter()
            .map(|(mut entry, value)| {
                let what = format!("the variable {}", entry.display());
                entry.push("=");
                entry.push(value);
                c_string(entry, &what)
            })
            .collect::<Result<_, _>>()?;
        let arguments = arguments
            .iter()
            .map(|argument| c_string(argument.clone(), "an argument"))
            .collect::<Result<_, _>>()?;
        let directory = c_string(self.directory.clone().into(), "the working directory")?;
        Ok(Image { arguments, environment, pid_variables: Vec::new(), directory })
    }

    /// Gives this process the name that it would have if it had been started by its path (comm in
    /// proc(5)), which people look for.
    ///
    /// What is executed by a descriptor is called after the file that a link leads to, and by kernels
    /// before 6.14 after the number of the descriptor.
    pub(crate) fn name_this_process(&self) {
        const COMM: &str = "/proc/self/comm";
        /// What fits (`TASK_COMM_LEN`, less the end).
        const MAX_BYTES: usize = 15;
        let (Ok(name), Ok(running)) = (std::fs::read(COMM), std::env::current_exe()) else {
            return;
        };
        let name = name.trim_ascii_end();
        let named_after = |path: &Path| {
            path.file_name().map(|name| name.as_bytes()[..name.len().min(MAX_BYTES)].to_owned())
        };
        let is_number = !name.is_empty() && name.iter().all(u8::is_ascii_digit);
        if (is_number || named_after(&running).as_deref() == Some(name))
            && let Some(right) = named_after(&self.executable)
        {
            // A name is no reason to fail.
            let _ = std::fs::write(COMM, right);
        }
    }
}

fn c_string(text: OsString, what: &str) -> Result<CString, Invalid> {
    CString::new(text.into_vec()).map_err(|_| Invalid::NulByte { what: what.to_owned() })
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
fn executable(argument: Option<&OsStr>, directory: &Path, origin: Origin) -> io::Result<PathBuf> {
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
    // unless that has been replaced since. A predecessor writes the path there that it goes by, and
    // executes what that led to a moment before: a link may lead to the next release by now.
    let image = Identity::of_path(Path::new("/proc/self/exe"));
    let is_ours = origin == Origin::Predecessor
        && argument.is_some_and(|argument| argument.as_bytes().contains(&b'/'));
    let right = |path: &PathBuf| {
        Identity::of_path(path) == image
            || !running.exists()
            || (is_ours && path.is_file() && is_executable(path))
    };
    Ok(found.filter(right).unwrap_or(running))
}

fn search(name: &OsStr, directory: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| directory.join(folder).join(name))
        .find(|candidate| candidate.is_file() && is_executable(candidate))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program {
            executable: "/srv/current/service".into(),
            arguments: vec!["current/service".into(), "--port".into(), "80".into()],
            directory: "/srv".into(),
            environment: BTreeMap::from([("A".into(), Some("1".into())), ("B".into(), None)]),
            started_in: "/srv".into(),
        }
    }

    fn texts(strings: &[CString]) -> Vec<&str> {
        strings.iter().map(|string| string.to_str().unwrap()).collect()
    }

    #[test]
    fn a_variation_is_private_to_itself() {
        let overrides = Overrides {
            executable: Some("next/service".into()),
            arguments: Some(vec!["--debug".into()]),
            environment: BTreeMap::from([("A".into(), None), ("C".into(), Some("3".into()))]),
            directory: None,
        };
        let base = program();
        let varied = base.with(&overrides);
        assert_eq!(varied.executable(), Path::new("/srv/next/service"));
        assert_eq!(varied.directory(), Path::new("/srv"));
        let image = varied.image("3:token").unwrap();
        assert_eq!(texts(&image.arguments), ["/srv/next/service", "--debug"]);
        let environment = texts(&image.environment);
        assert!(environment.contains(&"C=3"), "{environment:?}");
        assert!(environment.contains(&"HANDOVER_CHANNEL=3:token"), "{environment:?}");
        assert!(!environment.iter().any(|variable| variable.starts_with("A=")));

        let image = base.image("3:token").unwrap();
        assert_eq!(texts(&image.arguments), ["current/service", "--port", "80"]);
        assert!(texts(&image.environment).contains(&"A=1"));
        assert!(!texts(&image.environment).contains(&"C=3"));
    }

    #[test]
    fn another_directory_does_not_change_where_paths_begin() {
        let overrides = Overrides { directory: Some("data".into()), ..Overrides::default() };
        let moved = program().with(&overrides);
        assert_eq!(moved.directory(), Path::new("/srv/data"));
        // The zeroth argument leads to the executable from there.
        let image = moved.image("").unwrap();
        assert_eq!(texts(&image.arguments), ["/srv/current/service", "--port", "80"]);
        let overrides = Overrides { executable: Some("next".into()), ..Overrides::default() };
        assert_eq!(moved.with(&overrides).executable(), Path::new("/srv/next"));
    }

    #[test]
    fn a_check_has_its_own_arguments_and_no_channel() {
        let overrides = Overrides {
            environment: [CHANNEL, "NOTIFY_SOCKET", "WATCHDOG_USEC"]
                .map(|name| (name.into(), Some("3:token".into())))
                .into(),
            ..Overrides::default()
        };
        let image = program().with(&overrides).check_image(&["--check".into()]).unwrap();
        assert_eq!(texts(&image.arguments), ["current/service", "--check"]);
        let environment = texts(&image.environment);
        assert!(environment.contains(&"A=1"));
        assert!(!environment.iter().any(|variable| variable.ends_with("3:token")));
    }

    #[test]
    fn what_no_process_can_be_given_is_named() {
        let nul = |what: &str| Err(Invalid::NulByte { what: what.to_owned() });
        let arguments = Some(vec!["a\0b".into()]);
        let invalid = Overrides { arguments, ..Overrides::default() };
        assert_eq!(invalid.validate(), nul("an argument for successors"));
        let invalid = Overrides { executable: Some("a\0b".into()), ..Overrides::default() };
        assert_eq!(invalid.validate(), nul("the path of the executable for successors"));
        let invalid = Overrides { directory: Some("a\0b".into()), ..Overrides::default() };
        assert_eq!(invalid.validate(), nul("the working directory for successors"));
        let variable = |name: &str, value: Option<&str>| {
            let environment = BTreeMap::from([(name.into(), value.map(Into::into))]);
            Overrides { environment, ..Overrides::default() }.validate()
        };
        assert_eq!(variable("A", Some("a\0b")), nul("a variable for successors"));
        assert_eq!(variable("A\0", None), nul("a variable for successors"));
        for name in ["", "A=B", "="] {
            assert_eq!(variable(name, None), Err(Invalid::VariableName { name: name.to_owned() }));
        }
        assert_eq!(variable("A", Some("=")), Ok(()));
        assert_eq!(Overrides::default().validate(), Ok(()));
    }

    #[test]
    fn a_name_that_is_a_number_is_replaced_and_one_that_was_chosen_is_kept() {
        const COMM: &str = "/proc/self/comm";
        let program = Program { executable: "/srv/a-name-of-some-length".into(), ..program() };
        let renamed = |name: &str| {
            std::fs::write(COMM, name).unwrap();
            program.name_this_process();
            std::fs::read_to_string(COMM).unwrap()
        };
        assert_eq!(renamed("17"), "a-name-of-some-\n");
        assert_eq!(renamed("chosen"), "chosen\n");
    }
}
