//! What the file `config` says.

use std::path::PathBuf;
use std::time::Duration;

use crate::{DRAIN_TIMEOUT, Fallible};

pub(crate) enum Runtime {
    Blocking,
    Tokio,
}

pub(crate) struct Config {
    pub(crate) folder: PathBuf,
    pub(crate) runtime: Runtime,
    pub(crate) sockets: Vec<Socket>,
    /// Kind, name and argument.
    pub(crate) descriptors: Vec<(String, String, String)>,
    pub(crate) later: Vec<String>,
    pub(crate) wait: Option<PathBuf>,
    pub(crate) drain_timeout: Duration,
}

#[derive(Clone)]
pub(crate) struct Socket {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) backlog: Option<u32>,
    pub(crate) reuse_port: bool,
    pub(crate) mode: Option<u32>,
    pub(crate) buffer_bytes: Option<usize>,
    pub(crate) hook_fails: bool,
    pub(crate) slow: Option<Duration>,
    pub(crate) idle: bool,
    pub(crate) cloned: bool,
    pub(crate) log: bool,
}

impl Config {
    pub(crate) fn read(folder: PathBuf) -> Fallible<Self> {
        let text = std::fs::read_to_string(folder.join("config"))?;
        let mut config = Self {
            folder,
            runtime: Runtime::Blocking,
            sockets: Vec::new(),
            descriptors: Vec::new(),
            later: Vec::new(),
            wait: None,
            drain_timeout: DRAIN_TIMEOUT,
        };
        for line in text.lines() {
            config.add(line).ok_or_else(|| format!("what is \"{line}\"?"))?;
        }
        Ok(config)
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            [] => {}
            ["runtime", "blocking"] => self.runtime = Runtime::Blocking,
            ["runtime", "tokio"] => self.runtime = Runtime::Tokio,
            ["later", name] => self.later.push(name.into()),
            ["wait", fifo] => self.wait = Some(fifo.into()),
            ["drain", seconds] => self.drain_timeout = Duration::from_secs(seconds.parse().ok()?),
            [kind @ ("file" | "pipe" | "pair" | "connect"), name, argument] => {
                self.descriptors.push((kind.into(), name.into(), argument.into()));
            }
            _ => self.sockets.push(Socket::parse(&words)?),
        }
        Some(())
    }
}

impl Socket {
    pub(crate) fn parse(words: &[&str]) -> Option<Self> {
        let [kind, name, address, options @ ..] = words else { return None };
        let mut socket = Self {
            kind: kind.to_string(),
            name: name.to_string(),
            address: address.to_string(),
            backlog: None,
            reuse_port: false,
            mode: None,
            buffer_bytes: None,
            hook_fails: false,
            slow: None,
            idle: false,
            cloned: false,
            log: false,
        };
        for option in options {
            match option.split_once('=').unwrap_or((option, "")) {
                ("backlog", number) => socket.backlog = Some(number.parse().ok()?),
                ("reuse_port", _) => socket.reuse_port = true,
                ("mode", octal) => socket.mode = Some(u32::from_str_radix(octal, 8).ok()?),
                ("buffer", bytes) => socket.buffer_bytes = Some(bytes.parse().ok()?),
                ("hook_fails", _) => socket.hook_fails = true,
                ("slow", millis) => socket.slow = Some(Duration::from_millis(millis.parse().ok()?)),
                ("idle", _) => socket.idle = true,
                ("cloned", _) => (socket.idle, socket.cloned) = (true, true),
                ("log", _) => socket.log = true,
                _ => return None,
            }
        }
        Some(socket)
    }
}

/// Words between blanks; `\x..` in a word stands for that byte, and `\e` for nothing at all.
fn words(line: &str) -> Vec<String> {
    let unescape =
        |word: &str| word.replace("\\e", "").replace("\\x20", " ").replace("\\x07", "\u{7}");
    line.split(' ').filter(|word| !word.is_empty()).map(unescape).collect()
}
