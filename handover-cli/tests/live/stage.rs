//! A real service with a control socket, under load, and the command run against it.

use std::path::PathBuf;
use std::time::Duration;

use handover_testkit::process;
use handover_testkit::{Finished, Folder, Launch, Load, Outcome, Pid, Service, example, soon};
use serde_json::Value;

/// The `subject` of the library's tests, with what it does wrong in a script.
pub(crate) struct Stage {
    pub(crate) service: Service,
    pub(crate) load: Load,
    pub(crate) folder: Folder,
}

impl Stage {
    /// Starts it with these arguments on top of its usual ones.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        Self::with(Folder::create(), arguments, |launch| launch)
    }

    /// Starts it in another way.
    pub(crate) fn with(
        folder: Folder,
        arguments: &[&str],
        change: impl FnOnce(Launch) -> Launch,
    ) -> Self {
        let current = folder.link("current", example("subject"));
        let launch = Launch::of(current)
            .args(["--listen", "127.0.0.1:0", "--control"])
            .arg(folder.join("control"))
            .arg("--script")
            .arg(folder.join("script"))
            .arg("--early-gate")
            .arg(folder.join("early"))
            .arg("--late-gate")
            .arg(folder.join("late"))
            .args(arguments);
        let service = change(launch).start();
        let start = "listening on ";
        let line = service.wait_line(|line| line.starts_with(start), soon()).unwrap();
        let address: std::net::SocketAddr = line[start.len()..].parse().unwrap();
        service.wait_line(|line| line.starts_with("serving "), soon()).unwrap();
        let load = Load::http(address).start();
        load.wait_answers(1, soon()).unwrap();
        Self { service, load, folder }
    }

    /// What the generations to come do, as `Script` of the subject has it.
    pub(crate) fn script(&self, text: &str) {
        self.folder.write("script", text);
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("control")
    }

    /// Begins `handover COMMAND --socket ... ARGUMENTS`.
    pub(crate) fn begin(&self, command: &str, arguments: &[&str]) -> Running {
        let launch = handover().arg(command).arg("--socket").arg(self.socket());
        Running(launch.args(arguments).start())
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(&self, command: &str, arguments: &[&str]) -> Ended {
        self.begin(command, arguments).finish()
    }

    /// Upgrades, with this, and expects success.
    #[track_caller]
    pub(crate) fn upgrade(&self, arguments: &[&str]) -> Ended {
        let ended = self.run("upgrade", arguments);
        assert_eq!(ended.code, 0, "{ended:?}");
        ended
    }

    /// What runs.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let ended = self.run("status", &["--json"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// The number and the process of the generation that serves.
    #[track_caller]
    pub(crate) fn serving(&self) -> (u64, Pid) {
        let status = self.status();
        let generations = status["generations"].as_array().unwrap().iter();
        let mut serving = generations.filter(|generation| {
            ["serving", "on-probation"].contains(&generation["state"].as_str().unwrap())
        });
        let found = serving.next().unwrap_or_else(|| panic!("nobody serves: {status}"));
        assert!(serving.next().is_none(), "two serve: {status}");
        let pid = found["pid"].as_u64().unwrap();
        (found["generation"].as_u64().unwrap(), pid.try_into().unwrap())
    }

    /// Asserts that the process which served before still does, as the next answer and the status
    /// tell; that a following upgrade succeeds; and that no request was lost.
    #[track_caller]
    pub(crate) fn assert_unharmed(self, before: (u64, Pid)) {
        assert_eq!(self.serving(), before);
        self.load.wait_answered_by(|pid| pid == before.1, soon()).unwrap();
        self.script("");
        let _ = std::fs::remove_file(self.folder.join("late"));
        self.upgrade(&[]);
        self.assert_served_by_another(before);
    }

    /// Asserts that another generation serves, and that no request was lost.
    #[track_caller]
    pub(crate) fn assert_served_by_another(self, before: (u64, Pid)) -> Outcome {
        let now = self.serving();
        assert!(now.0 > before.0 && now.1 != before.1, "{before:?} has served, {now:?} does");
        self.load.wait_answered_by(|pid| pid == now.1, soon()).unwrap();
        let outcome = self.load.stop();
        outcome.assert_nothing_lost();
        outcome
    }

    /// Waits for a line that begins like this, printed after so many.
    #[track_caller]
    pub(crate) fn line_after(&self, count: usize, start: &str) -> String {
        self.service.wait_line_after(count, |line| line.starts_with(start), soon()).unwrap()
    }

    /// Makes a FIFO that stops whoever comes to it.
    pub(crate) fn gate(&self, name: &str) -> Gate {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let path = self.folder.join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        Gate { path }
    }

    /// A connection that the process which serves has answered, and holds until this is dropped.
    pub(crate) fn hold(&self) -> std::net::TcpStream {
        use std::io::{Read as _, Write as _};
        let lines = self.service.lines();
        let address = lines.iter().find_map(|line| line.text.strip_prefix("listening on "));
        let mut stream = std::net::TcpStream::connect(address.unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET /hold HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        stream
    }
}

/// The command, with nothing in the environment that it looks at.
pub(crate) fn handover() -> Launch {
    let command = Launch::of(env!("CARGO_BIN_EXE_handover"));
    ["HANDOVER_SOCKET", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS"]
        .iter()
        .fold(command, |command, variable| command.env_remove(variable))
}

/// The command while it runs.
pub(crate) struct Running(Service);

impl Running {
    /// Waits for a line that begins like this.
    #[track_caller]
    pub(crate) fn line(&self, start: &str) -> String {
        self.0.wait_line(|line| line.starts_with(start), soon()).unwrap()
    }

    /// Waits for a line that has this in it.
    #[track_caller]
    pub(crate) fn line_with(&self, part: &str) -> String {
        self.0.wait_line(|line| line.contains(part), soon()).unwrap()
    }

    /// What it has printed so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lines().into_iter().map(|line| line.text).collect()
    }

    pub(crate) fn pid(&self) -> Pid {
        self.0.pid()
    }

    #[track_caller]
    pub(crate) fn finish(self) -> Ended {
        Ended::of(&self.0.finish(soon()).unwrap())
    }
}

/// What the command printed and how it exited.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn of(finished: &Finished) -> Self {
        let code = finished.status.code().expect("it was not killed");
        Self { code, stdout: finished.stdout(), stderr: finished.stderr() }
    }

    /// The last line, of a command that was run with `--json`.
    #[track_caller]
    pub(crate) fn last(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_else(|| panic!("no answer: {self:?}"));
        serde_json::from_str(last).unwrap()
    }

    #[track_caller]
    pub(crate) fn assert_says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.stdout.contains(part), "{part:?} is missing in: {self:#?}");
        }
    }
}

/// A FIFO at which a process waits until it is let through.
pub(crate) struct Gate {
    path: PathBuf,
}

impl Gate {
    pub(crate) fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Lets through who waits, who is on the way, and those who come later.
    pub(crate) fn open(self) {
        use std::io::Write as _;
        // Opened for both, a FIFO waits for nobody; see fifo(7).
        let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        file.write_all(&[b'.'; 64]).unwrap();
        std::fs::remove_file(&self.path).unwrap();
        // Who has found the FIFO before its name was gone takes a byte, be it later.
        std::mem::forget(file);
    }
}

/// Waits until the process has exited.
#[track_caller]
pub(crate) fn wait_exited(pid: Pid) {
    assert!(process::exited(pid, soon()), "process {pid} lives");
}
