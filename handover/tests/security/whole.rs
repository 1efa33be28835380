//! The subject that does all that the library does.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use handover::control::{Answer, Request};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Folder, Launch, Pid, Service, example, soon};

use crate::common::ask;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A running subject.
pub(crate) struct Whole {
    pub(crate) service: Service,
    pub(crate) folder: Folder,
    pub(crate) address: SocketAddr,
}

impl Whole {
    pub(crate) fn start(options: &[&str]) -> Self {
        let folder = Folder::create();
        Self::with(folder, |folder| {
            Launch::of(example("subject_whole")).arg(folder.path()).args(options)
        })
    }

    /// Starts it in another way.
    pub(crate) fn with(folder: Folder, launch: impl FnOnce(&Folder) -> Launch) -> Self {
        let service = launch(&folder).start();
        let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
        let address = line["listening on ".len()..].parse().unwrap();
        let whole = Self { service, folder, address };
        whole.wait_generation(1);
        whole
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.folder.join("control")
    }

    /// Waits until a generation serves; returns its process.
    #[track_caller]
    pub(crate) fn wait_generation(&self, generation: u64) -> Pid {
        let end = format!(" generation {generation}");
        let matches = |line: &str| line.starts_with("serving ") && line.ends_with(&end);
        let line = self.service.wait_line(matches, soon()).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Asks whoever serves.
    #[track_caller]
    pub(crate) fn ask(&self, request: &Request) -> Answer {
        ask(&self.control(), request)
    }

    /// Stops it, and waits for the end of all.
    #[track_caller]
    pub(crate) fn stop(&self, server: Pid) {
        process::signal(server, Signal::TERM);
        self.service.wait_all_gone(soon()).unwrap();
    }

    /// What was printed that begins like this.
    pub(crate) fn printed(&self, start: &str) -> Vec<String> {
        let lines = self.service.lines().into_iter().map(|line| line.text);
        lines.filter(|line| line.starts_with(start)).collect()
    }
}

/// A client that stays.
pub(crate) struct Caller(BufReader<TcpStream>);

impl Caller {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// Reads a line, which begins with who has answered.
    #[track_caller]
    pub(crate) fn hear(&mut self) -> (Pid, String) {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let (pid, text) = line.trim_end().split_once(' ').expect("an answer");
        (pid.parse().unwrap(), text.to_owned())
    }

    #[track_caller]
    pub(crate) fn call(&mut self, text: &str) -> Pid {
        self.send(&format!("{text}\n"));
        let (pid, heard) = self.hear();
        assert_eq!(heard, text);
        pid
    }
}
