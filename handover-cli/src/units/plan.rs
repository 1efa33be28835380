//! What is to be written, once it is clear that it can be meant.

use std::env;
use std::path::Path;

use super::listen::Listen;
use super::{Args, Reload, quote};

/// What is to be written.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) args: &'a Args,
    /// Of the unit, without the suffix.
    pub(super) name: String,
    /// The command line, quoted.
    pub(super) start: String,
    /// The command line, quoted; a reload by signal has none.
    pub(super) reload: Option<String>,
    pub(super) control: Option<Control>,
    pub(super) sockets: Vec<Socket<'a>>,
    /// Something that is executed is in a home directory.
    pub(super) needs_home: bool,
}

/// The control socket.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) path: String,
    pub(super) place: Place,
}

/// In what kind of directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `/run/` and this, which systemd makes.
    Runtime(String),
    /// The state directory of the service.
    State,
    /// A directory that somebody else makes.
    Other(String),
}

/// The sockets that share a name, and so a unit.
#[derive(Debug)]
pub(super) struct Socket<'a> {
    pub(super) unit: String,
    pub(super) name: &'a str,
    pub(super) addresses: Vec<&'a Listen>,
}

/// Of the name of a unit without its suffix: it is a file name, and others are made of it.
const MAX_NAME_BYTES: usize = 100;

/// `sun_path` of unix(7), without the zero at its end.
const MAX_SOCKET_BYTES: usize = 107;

/// Of the description, which is one line for people.
const MAX_DESCRIPTION_BYTES: usize = 500;

impl<'a> Plan<'a> {
    /// Decides what was left open.
    ///
    /// # Errors
    ///
    /// What cannot be meant.
    pub(super) fn of(args: &'a Args) -> Result<Self, String> {
        let program = quote::program("the program", &args.binary)?;
        check_visible("the program", &args.binary)?;
        let name = name(args)?;
        check_description(args)?;
        if let Some(user) = &args.user {
            check_user(user)?;
        }
        let control = control(args, &name)?;
        let reload = match (&control, args.reload) {
            (Some(control), Reload::Upgrade) => Some(upgrade_command(args, control)?),
            _ => None,
        };
        let words =
            std::iter::once(program).chain(args.arguments.iter().map(|a| quote::argument(a)));
        let start = words.collect::<Vec<_>>().join(" ");
        let sockets = sockets(args, &name)?;
        let is_at_home = |line: &str| is_below(line.trim_start_matches('"'), &HOMES);
        let needs_home = is_at_home(&args.binary) || reload.as_deref().is_some_and(is_at_home);
        Ok(Self { args, name, start, reload, control, sockets, needs_home })
    }

    /// The file name of the service.
    pub(super) fn service(&self) -> String {
        format!("{}.service", self.name)
    }
}

/// Where each user has something of their own.
const HOMES: [&str; 2] = ["/home", "/root"];

/// What a service with `PrivateTmp=` has for itself.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

fn is_below(path: &str, directories: &[&str]) -> bool {
    directories.iter().any(|directory| Path::new(path).starts_with(directory))
}

fn check_visible(what: &str, path: &str) -> Result<(), String> {
    if is_below(path, &TEMPORARY) || is_below(path, &["/run/user"]) {
        return Err(format!(
            "{what} {path} cannot be seen by the service, which has a directory of its own there; put it below /usr/local/bin, /opt or /srv"
        ));
    }
    Ok(())
}

fn name(args: &Args) -> Result<String, String> {
    let file = Path::new(&args.binary).file_name().and_then(|name| name.to_str());
    let given = args.name.as_deref().or(file).unwrap_or_default();
    let name = given.strip_suffix(".service").unwrap_or(given);
    let takes = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.contains('@') {
        return Err(format!(
            "`{name}` would be a template: write one unit, and make that one of it"
        ));
    }
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts || name.len() > MAX_NAME_BYTES || !name.chars().all(takes) {
        let hint = if args.name.is_none() { "; give it one with --name" } else { "" };
        return Err(format!(
            "`{name}` is no name for a unit, which has letters, digits, `-`, `_` and `.`{hint}"
        ));
    }
    Ok(name.to_owned())
}

fn check_description(args: &Args) -> Result<(), String> {
    let Some(description) = &args.description else { return Ok(()) };
    let is_line = !description.chars().any(char::is_control) && !description.ends_with('\\');
    if description.trim().is_empty() || description.len() > MAX_DESCRIPTION_BYTES || !is_line {
        return Err("a description is one line of text".to_owned());
    }
    Ok(())
}

fn check_user(user: &str) -> Result<(), String> {
    let takes = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let starts = user.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if !starts || !user.chars().all(takes) {
        return Err(format!("`{user}` is no name of a user"));
    }
    Ok(())
}

fn control(args: &Args, name: &str) -> Result<Option<Control>, String> {
    let path = match (&args.control, args.reload) {
        (Some(path), _) => path.clone(),
        (None, Reload::Upgrade) => format!("/run/{name}/control"),
        (None, Reload::Signal) => return Ok(None),
    };
    let takes = |c: char| c.is_ascii_alphanumeric() || "/-_.@+:".contains(c);
    let is_plain = path.split('/').skip(1).all(|part| !["", ".", ".."].contains(&part));
    if !path.starts_with('/') || !is_plain || !path.chars().all(takes) {
        return Err(format!(
            "the control socket `{path}` must be an absolute path of letters, digits and `-_.@+:`"
        ));
    }
    if path.len() > MAX_SOCKET_BYTES {
        return Err(format!("the path of a socket has at most {MAX_SOCKET_BYTES} bytes: {path}"));
    }
    if is_below(&path, &TEMPORARY) || is_below(&path, &HOMES) || is_below(&path, &["/run/user"]) {
        return Err(format!(
            "the control socket {path} would be where nobody else sees it; put it at /run/{name}/control"
        ));
    }
    let place = place(args, name, &path)?;
    Ok(Some(Control { path, place }))
}

fn place(args: &Args, name: &str, path: &str) -> Result<Place, String> {
    let directory = Path::new(path).parent().and_then(Path::to_str).unwrap_or("/");
    if ["/", "/run", "/var/run", "/var/lib"].contains(&directory) {
        return Err(format!(
            "the control socket {path} needs a directory that is the service's own, such as /run/{name}/control"
        ));
    }
    if let Some(below) = directory.strip_prefix("/run/") {
        return Ok(Place::Runtime(below.to_owned()));
    }
    if args.state_directory && Path::new(directory) == Path::new("/var/lib").join(name) {
        return Ok(Place::State);
    }
    if args.user.is_none() {
        return Err(format!(
            "{directory} can belong to no user that exists only while the service runs; put the control socket at /run/{name}/control, or give --user"
        ));
    }
    Ok(Place::Other(directory.to_owned()))
}

fn upgrade_command(args: &Args, control: &Control) -> Result<String, String> {
    let own = || env::current_exe().ok()?.to_str().map(str::to_owned);
    let path = args.handover.clone().or_else(own);
    let path = path.ok_or("where is this command? Give --handover PATH")?;
    let hint = |wrong: String| format!("{wrong}; --handover says where this command is");
    let command = quote::program("this command", &path).map_err(hint)?;
    check_visible("this command", &path).map_err(hint)?;
    Ok(format!("{command} upgrade --socket {}", quote::argument(&control.path)))
}

fn sockets<'a>(args: &'a Args, service: &str) -> Result<Vec<Socket<'a>>, String> {
    let mut sockets: Vec<Socket<'a>> = Vec::new();
    for listen in &args.listen {
        match sockets.iter_mut().find(|socket| socket.name == listen.name) {
            Some(socket) if socket.addresses.contains(&listen) => {
                return Err(format!("{}={} is there twice", listen.name, listen.address));
            }
            Some(socket) => socket.addresses.push(listen),
            None => sockets.push(Socket {
                unit: format!("{service}-{}.socket", listen.name),
                name: &listen.name,
                addresses: vec![listen],
            }),
        }
    }
    Ok(sockets)
}
