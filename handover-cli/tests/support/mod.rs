//! A service that misbehaves on demand, and `handover verify` run against it.

#![allow(dead_code, reason = "each test file uses a part")]

mod http2;
pub(crate) mod page;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use socket2::SockRef;

/// The "pid" of the first generation; each upgrade adds one.
pub(crate) const FIRST_PID: u32 = 1000;

/// How the service treats one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// As it should.
    Answer,
    /// As it should, with `Connection: close`, and then closes.
    AnswerAndAnnounceClose,
    /// As it should, with a body whose end is the end of the connection.
    AnswerUntilClose,
    /// As it should, and then closes without having said so.
    AnswerAndClose,
    /// As it should, but leaves closing to the client whatever the client asked.
    AnswerAndStayOpen,
    /// Status 503.
    Unavailable,
    /// 200 and a body that names no process.
    Anonymous,
    /// 200, and the process's name in the header `x-pid` only.
    NamedInHeader,
    /// 200, and another name with each request.
    Counter,
    /// Bytes that are not HTTP.
    Gibberish,
    /// Half the body, then an end of file.
    CutBody,
    /// Half the body, then a reset.
    ResetInBody,
    /// An end of file instead of an answer.
    CloseUnanswered,
    /// A reset instead of an answer.
    ResetUnanswered,
    /// What the client sees if the service closed just before the request came: end of file, reset.
    CloseThenReset,
    /// Nothing, with the connection open.
    Silence,
    /// Some chunks, then the proper end.
    Chunks,
    /// Some chunks, then an end of file without the last chunk.
    CutChunks,
    /// Chunks until the client leaves.
    EndlessChunks,
    /// HTTP/2: as it should, when so many requests of the connection wait for it.
    AnswerTogether(usize),
    /// HTTP/2: REFUSED_STREAM.
    RefuseStream,
    /// HTTP/2: the stream ends with an error before the answer.
    ResetStream,
    /// HTTP/2: a GOAWAY that says of this request that nothing was done about it.
    GoAwayBelow,
    /// HTTP/2: as it should, then GOAWAY, and at once a reset.
    GoAwayAndReset,
}

/// A request, as far as a reply may depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// The number of the request on its connection, from 0.
    pub(crate) nth: u32,
    /// The client keeps the connection.
    pub(crate) keeps: bool,
    /// The connection is one of HTTP/2.
    pub(crate) http2: bool,
    /// The path is `/stream`.
    pub(crate) streams: bool,
    /// How many upgrades the service has gone through.
    pub(crate) upgrades: u32,
    /// How many requests the service has had since the last upgrade, this one included.
    pub(crate) since_upgrade: u32,
}

/// What happens on an upgrade besides the change of the pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnUpgrade {
    Nothing,
    /// The listener is gone for this long.
    StopListening(Duration),
    /// No request is looked at for this long.
    Stall(Duration),
}

/// The service, on a port of its own, in threads of the test.
pub(crate) struct Service {
    shared: Arc<Shared>,
    folder: tempfile::TempDir,
}

struct Shared {
    address: SocketAddr,
    upgrades: AtomicU32,
    since_upgrade: AtomicU32,
    /// Given as names.
    answers: AtomicU32,
    outage: Mutex<Option<Duration>>,
    gate: Mutex<()>,
    reply: Box<dyn Fn(Asked) -> Reply + Send + Sync>,
}

/// What `verify` printed and how it exited.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) code: i32,
    pub(crate) report: Value,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Service {
    pub(crate) fn start(reply: impl Fn(Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(OnUpgrade::Nothing, reply)
    }

    pub(crate) fn start_with(
        on_upgrade: OnUpgrade,
        reply: impl Fn(Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared {
            address: listener.local_addr().unwrap(),
            upgrades: AtomicU32::new(0),
            since_upgrade: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            outage: Mutex::new(None),
            gate: Mutex::new(()),
            reply: Box::new(reply),
        });
        let service = Self { shared: Arc::clone(&shared), folder };
        let fifo = service.fifo();
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let upgraded = Arc::clone(&shared);
        thread::spawn(move || upgraded.upgrade_on_demand(&fifo, on_upgrade));
        thread::spawn(move || shared.serve(listener));
        service
    }

    /// The command that upgrades the service.
    pub(crate) fn upgrade(&self) -> String {
        format!("echo upgrade > '{}'", self.fifo().display())
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.shared.address)
    }

    /// Runs `verify` with two quick upgrades; later arguments override.
    pub(crate) fn verify(&self, args: &[&str]) -> Verified {
        self.verify_with(&self.upgrade(), args)
    }

    pub(crate) fn verify_with(&self, upgrade: &str, args: &[&str]) -> Verified {
        let url = self.url();
        let mut all = vec!["--json", "--url", &url, "--upgrade", upgrade];
        for (name, value) in
            [("--upgrades", "2"), ("--every", "200ms"), ("--rate", "100"), ("--keep-alive", "4")]
        {
            if !args.contains(&name) {
                all.extend([name, value]);
            }
        }
        all.extend(args);
        verify(&all)
    }

    fn fifo(&self) -> PathBuf {
        self.folder.path().join("upgrade")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Ends the thread that waits for upgrades; the others end with the test's process.
        let _ = fs::write(self.fifo(), "quit\n");
    }
}

/// Runs `handover verify` to its end.
pub(crate) fn verify(args: &[&str]) -> Verified {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_handover")).arg("verify").args(args).output().unwrap();
    let stdout = String::from_utf8(stdout).unwrap();
    Verified {
        code: status.code().expect("verify exits by itself"),
        report: serde_json::from_str(&stdout).unwrap_or_default(),
        stdout,
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

impl Verified {
    /// A number of the report, by its path such as `lost_by_kind/cut`.
    pub(crate) fn count(&self, path: &str) -> u64 {
        let value = self.report.pointer(&format!("/{path}")).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no number {path} in {self:#?}"))
    }

    /// Passes if something was lost, all of it as this kind, and the sums agree.
    pub(crate) fn assert_all_lost_as(&self, kind: &str) {
        let lost = self.count("lost");
        assert!(lost > 0, "nothing was lost: {self:#?}");
        assert_eq!(self.count(&format!("lost_by_kind/{kind}")), lost, "{self:#?}");
        assert_eq!(self.code, 1);
        self.assert_sums();
    }

    /// Passes if nothing was lost, both upgrades happened, and the sums agree.
    pub(crate) fn assert_nothing_lost(&self) {
        assert_eq!(self.count("lost"), 0, "{self:#?}");
        assert_eq!(self.count("upgrades_done"), self.count("upgrades_wanted"), "{self:#?}");
        assert_eq!(self.code, 0, "{self:#?}");
        self.assert_sums();
    }

    /// Passes if the test failed, for this reason among others.
    pub(crate) fn assert_failed_for(&self, reason: &str) {
        let failures = self.report["failures"].as_array().unwrap();
        let mut failures = failures.iter().map(|failure| failure.as_str().unwrap());
        assert!(failures.any(|failure| failure.contains(reason)), "{reason}: {self:#?}");
        assert_eq!(self.report["passed"], false);
        assert_eq!(self.code, 1);
    }

    pub(crate) fn assert_sums(&self) {
        let by_kind = self.report["lost_by_kind"].as_object().unwrap();
        let lost = by_kind.values().map(|count| count.as_u64().unwrap()).sum::<u64>();
        assert_eq!(lost, self.count("lost"), "{self:#?}");
        assert_eq!(self.count("requests"), self.count("answered") + lost, "{self:#?}");
    }
}

impl Shared {
    fn upgrade_on_demand(&self, fifo: &std::path::Path, on_upgrade: OnUpgrade) {
        while let Ok(order) = fs::read_to_string(fifo) {
            if order.trim() != "upgrade" {
                return;
            }
            match on_upgrade {
                OnUpgrade::Nothing => {}
                OnUpgrade::StopListening(outage) => *self.outage.lock().unwrap() = Some(outage),
                OnUpgrade::Stall(stall) => {
                    let _closed = self.gate.lock().unwrap();
                    thread::sleep(stall);
                }
            }
            self.since_upgrade.store(0, Ordering::Relaxed);
            self.upgrades.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn serve(self: Arc<Self>, mut listener: TcpListener) {
        loop {
            let stream = listener.accept().unwrap().0;
            let shared = Arc::clone(&self);
            thread::spawn(move || shared.converse(stream));
            let outage = self.outage.lock().unwrap().take();
            if let Some(outage) = outage {
                drop(listener);
                thread::sleep(outage);
                listener = TcpListener::bind(self.address).unwrap();
            }
        }
    }

    /// Serves one connection. An error means that the client has left.
    fn converse(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut requests = BufReader::new(stream.try_clone()?);
        for nth in 0.. {
            // Data that was looked at but not read makes the kernel reset the connection on close.
            if stream.peek(&mut [0])? == 0 {
                return Ok(());
            }
            drop(self.gate.lock().unwrap());
            let next = |keeps, streams| {
                (self.reply)(Asked {
                    nth,
                    keeps,
                    http2: false,
                    streams,
                    upgrades: self.upgrades.load(Ordering::Relaxed),
                    since_upgrade: self.since_upgrade.fetch_add(1, Ordering::Relaxed) + 1,
                })
            };
            let head = peek_head(&stream)?;
            if head.starts_with(http2::PREFACE) {
                return self.converse_in_http2(&stream);
            }
            let keeps = !head.to_ascii_lowercase().contains("connection: close");
            let reply = next(keeps, head.starts_with("GET /stream "));
            if reply == Reply::CloseThenReset {
                stream.shutdown(std::net::Shutdown::Write)?;
                return Ok(());
            }
            read_head(&mut requests)?;
            if !self.reply_to(&stream, reply, keeps)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Does as `reply` says; false ends the connection.
    fn reply_to(&self, mut stream: &TcpStream, reply: Reply, keeps: bool) -> std::io::Result<bool> {
        let pid = FIRST_PID + self.upgrades.load(Ordering::Relaxed);
        let close = if keeps { "" } else { "Connection: close\r\n" };
        let answer = |status: &str, header: &str, body: &str| {
            let length = body.len();
            format!("HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\n\r\n{body}")
        };
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        let half = format!("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{pid}");
        match reply {
            Reply::Answer => {
                stream.write_all(answer("200 OK", close, &pid.to_string()).as_bytes())?;
                return Ok(keeps);
            }
            Reply::AnswerAndAnnounceClose => {
                let header = "Connection: close\r\n";
                stream.write_all(answer("200 OK", header, &pid.to_string()).as_bytes())?;
            }
            Reply::AnswerUntilClose => {
                stream.write_all(format!("HTTP/1.1 200 OK\r\n\r\n{pid}").as_bytes())?;
            }
            Reply::AnswerAndClose => {
                stream.write_all(answer("200 OK", "", &pid.to_string()).as_bytes())?;
            }
            Reply::AnswerAndStayOpen => {
                stream.write_all(answer("200 OK", "", &pid.to_string()).as_bytes())?;
                return Ok(true);
            }
            Reply::Unavailable => {
                stream.write_all(answer("503 Overloaded", close, &pid.to_string()).as_bytes())?;
                return Ok(keeps);
            }
            Reply::Anonymous => {
                stream.write_all(answer("200 OK", close, "hello").as_bytes())?;
                return Ok(keeps);
            }
            Reply::NamedInHeader => {
                let header = format!("{close}X-Pid: {pid}\r\n");
                stream.write_all(answer("200 OK", &header, "hello").as_bytes())?;
                return Ok(keeps);
            }
            Reply::Counter => {
                let count = self.answers.fetch_add(1, Ordering::Relaxed).to_string();
                stream.write_all(answer("200 OK", close, &count).as_bytes())?;
                return Ok(keeps);
            }
            Reply::Gibberish => stream.write_all(b"220 mail.example ESMTP\r\n\r\n")?,
            Reply::CutBody => stream.write_all(half.as_bytes())?,
            Reply::ResetInBody => {
                stream.write_all(half.as_bytes())?;
                SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
            }
            Reply::ResetUnanswered => SockRef::from(stream).set_linger(Some(Duration::ZERO))?,
            Reply::CloseUnanswered | Reply::CloseThenReset => {}
            Reply::Silence => drop(stream.read_to_end(&mut Vec::new())?),
            Reply::Chunks => stream.write_all(format!("{chunked}0\r\n\r\n").as_bytes())?,
            Reply::CutChunks => stream.write_all(chunked.as_bytes())?,
            Reply::EndlessChunks => {
                stream.write_all(chunked.as_bytes())?;
                loop {
                    thread::sleep(Duration::from_millis(20));
                    stream.write_all(b"5\r\nhello\r\n")?;
                }
            }
            Reply::AnswerTogether(_)
            | Reply::RefuseStream
            | Reply::ResetStream
            | Reply::GoAwayBelow
            | Reply::GoAwayAndReset => unreachable!("{reply:?} is for HTTP/2"),
        }
        Ok(false)
    }
}

fn peek_head(stream: &TcpStream) -> std::io::Result<String> {
    // The client writes a request in one piece, far smaller than this.
    let mut bytes = [0; 1024];
    let count = stream.peek(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}

fn read_head(requests: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    let mut line = String::new();
    while requests.read_line(&mut line)? > 0 && line != "\r\n" {
        line.clear();
    }
    Ok(())
}
