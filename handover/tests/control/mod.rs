//! The state subject as its tests see it.

// Each test program uses its part.
#![allow(dead_code)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use handover_testkit::process::Pid;
use handover_testkit::{Folder, Launch, Service, Signal, example, soon};

/// How long an answer may take; beyond all that a test waits for otherwise.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A running subject.
pub(crate) struct Subject {
    pub(crate) service: Service,
    pub(crate) address: SocketAddr,
    pub(crate) folder: Folder,
}

impl Subject {
    /// Starts it with these settings.
    pub(crate) fn start<'a>(settings: impl IntoIterator<Item = &'a str>) -> Self {
        let folder = Folder::create();
        let launch = Launch::of(example("subject_state")).arg(folder.path());
        let service = launch.args(settings).start();
        let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
        let address = line["listening on ".len()..].parse().expect("an address");
        let subject = Self { service, address, folder };
        subject.wait("serving 1");
        subject
    }

    /// Waits for a line that is exactly this.
    #[track_caller]
    pub(crate) fn wait(&self, line: &str) {
        self.service.wait_line(|printed| printed == line, soon()).unwrap();
    }

    /// Waits for a line that begins with this, after so many lines.
    #[track_caller]
    pub(crate) fn wait_after(&self, skip: usize, beginning: &str) -> String {
        let line = |printed: &str| printed.starts_with(beginning);
        self.service.wait_line_after(skip, line, soon()).unwrap()
    }

    /// Whether this line was printed.
    pub(crate) fn printed(&self, line: &str) -> bool {
        self.service.lines().iter().any(|printed| printed.text == line)
    }

    /// Connects to the commands of whoever serves.
    pub(crate) fn control(&self) -> Control {
        let stream = TcpStream::connect(self.address).expect("somebody listens");
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a socket");
        let mut control = Control { stream: BufReader::new(stream), pid: 0 };
        control.pid = control.ask("control").parse().expect("a pid");
        control
    }

    /// Upgrades and expects success; returns the commands of the new generation.
    #[track_caller]
    pub(crate) fn upgrade(&self) -> Control {
        let mut old = self.control();
        let verdict = old.ask("upgrade");
        assert!(verdict.ends_with(" serves"), "{verdict}");
        let new = self.control();
        assert_ne!(new.pid, old.pid, "the predecessor has accepted after the handover");
        new
    }

    /// Stops it, and waits until every process is gone.
    #[track_caller]
    pub(crate) fn stop(self) {
        let pid = self.control().pid;
        handover_testkit::process::signal(pid, Signal::TERM);
        self.service.wait_all_gone(soon()).unwrap();
    }
}

/// A connection for commands to one process of the subject.
pub(crate) struct Control {
    stream: BufReader<TcpStream>,
    pub(crate) pid: Pid,
}

impl Control {
    /// Sends a command.
    pub(crate) fn send(&mut self, command: &str) {
        self.stream.get_mut().write_all(format!("{command}\n").as_bytes()).expect("it listens");
    }

    /// Waits for the answer to a command.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("an answer in time");
        line.trim_end().to_owned()
    }

    /// Sends a command and waits for its answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.answer()
    }
}
