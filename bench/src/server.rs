//! Servers that all answer the same, and how each is upgraded.
//!
//! Those in Rust are in `bench/peers/`, with a word on each; nginx and HAProxy are Debian's packages, set up as
//! their own documentation has it for reloads that are not to lose anything.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use handover_testkit::process::{Pid, children, exited, is_alive, signal};
use handover_testkit::{Folder, Launch, Service, Signal};

use crate::peer;

/// How long one thing may take before a server has failed.
const TIMEOUT: Duration = Duration::from_secs(30);

/// As in the servers in Rust.
const BACKLOG: u32 = 4096;

/// What a process may have open; more than 10 000 listeners, and less than what systems allow.
const OPEN_FILES: u64 = 20_000;

/// Stands in a template where the generation is told.
const GENERATION: &str = "GENERATION";

/// A server, and the way in which it is upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By this library.
    Handover,
    /// By as little as can be, without any care: the floor.
    Bare,
    /// By ecdysis.
    Ecdysis,
    /// By shellflip, each process with listeners of its own.
    Shellflip,
    /// nginx, with SIGHUP: new workers, and the same master.
    NginxReload,
    /// nginx, with SIGUSR2: a new master with new workers, and SIGQUIT for the old one when the new ones are there.
    NginxBinary,
    /// HAProxy, with SIGUSR2 to its master: a new worker.
    Haproxy,
}

/// What a server is to be.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// How many listeners it has.
    pub listeners: u32,
    /// How large the heap of the first process is, in MiB; not for nginx and HAProxy.
    pub heap_mib: u64,
}

/// One that runs. It ends with this value.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    address: SocketAddr,
    folder: Folder,
    service: Service,
    generation: u32,
}

/// Whose end is that of an upgrade.
#[derive(Debug)]
pub struct Old(Vec<Pid>);

impl Kind {
    /// All of them, ours first.
    pub const ALL: [Self; 7] = [
        Self::Handover,
        Self::Bare,
        Self::Ecdysis,
        Self::Shellflip,
        Self::NginxReload,
        Self::NginxBinary,
        Self::Haproxy,
    ];

    /// How it is called in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Handover => "handover",
            Self::Bare => "bare",
            Self::Ecdysis => "ecdysis",
            Self::Shellflip => "shellflip",
            Self::NginxReload => "nginx, reload",
            Self::NginxBinary => "nginx, USR2",
            Self::Haproxy => "HAProxy",
        }
    }

    /// Whether its first process can have a heap.
    #[must_use]
    pub fn has_heap(self) -> bool {
        matches!(self, Self::Handover | Self::Bare | Self::Ecdysis | Self::Shellflip)
    }

    /// Its executable, if it is there.
    fn executable(self) -> Option<PathBuf> {
        match self {
            Self::Handover => peer("serve-handover"),
            Self::Bare => peer("serve-bare"),
            Self::Ecdysis => peer("serve-ecdysis"),
            Self::Shellflip => peer("serve-shellflip"),
            Self::NginxReload | Self::NginxBinary => installed("nginx"),
            Self::Haproxy => installed("haproxy"),
        }
    }

    /// What is missing, if something is.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        self.executable().is_none().then(|| format!("{} is not here: skipped.", self.name()))
    }
}

fn installed(name: &str) -> Option<PathBuf> {
    // Debian has both where only root looks.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

impl Server {
    /// Starts one, and waits until it answers.
    ///
    /// # Errors
    ///
    /// If it is missing, or does not answer.
    pub fn start(kind: Kind, setup: Setup) -> Result<Self, Box<dyn Error>> {
        let executable = kind.executable().ok_or("it is not here")?;
        let folder = Folder::create();
        let address = free_address()?;
        let mut launch = Launch::of(executable).limit_open_fds(OPEN_FILES, OPEN_FILES);
        match kind {
            Kind::NginxReload | Kind::NginxBinary => {
                folder.write("template", nginx(&folder, address, setup)?);
                configure(&folder, 1)?;
                launch = launch.arg("-c").arg(folder.join("conf"));
            }
            Kind::Haproxy => {
                folder.write("template", haproxy(&folder, address, setup)?);
                configure(&folder, 1)?;
                launch = launch.args(["-W", "-f"]).arg(folder.join("conf"));
            }
            _ => {
                let port = address.port().to_string();
                let [listeners, heap] =
                    [u64::from(setup.listeners), setup.heap_mib].map(|number| number.to_string());
                launch = launch.args([&port, &listeners, &heap, "small"]);
            }
        }
        let service = launch.try_start()?;
        let server = Self { kind, address, folder, service, generation: 1 };
        let deadline = Instant::now() + TIMEOUT;
        while server.ask().is_err() {
            if Instant::now() > deadline {
                let said = server.service.lines().pop().map(|line| line.text);
                return Err(said.unwrap_or_else(|| "it does not answer".to_owned()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Where it listens first.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it answers: a number that another generation does not answer.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn ask(&self) -> io::Result<u32> {
        crate::ask(self.address)
    }

    /// Gets everything ready, so that nothing is left but to tell the server, and tells whose end will be that of the
    /// upgrade.
    ///
    /// # Errors
    ///
    /// If it cannot be asked or its files not be written.
    pub fn prepare(&mut self) -> Result<Old, Box<dyn Error>> {
        self.generation += 1;
        match self.kind {
            Kind::NginxReload | Kind::NginxBinary => {
                configure(&self.folder, self.generation)?;
                let master = self.master()?;
                Ok(Old(match self.kind {
                    Kind::NginxReload => children(master),
                    _ => vec![master],
                }))
            }
            Kind::Haproxy => {
                configure(&self.folder, self.generation)?;
                Ok(Old(children(self.master()?)))
            }
            _ => Ok(Old(vec![self.ask()?])),
        }
    }

    /// Upgrades it; to be called after [`prepare`](Self::prepare). Returns at once, or where there is more than one step,
    /// after the last one.
    ///
    /// # Errors
    ///
    /// If a step cannot be taken.
    pub fn upgrade(&self, old: &Old) -> Result<(), Box<dyn Error>> {
        match self.kind {
            Kind::NginxReload => signal(self.master()?, Signal::HUP),
            Kind::Haproxy => signal(self.master()?, Signal::USR2),
            Kind::NginxBinary => {
                let master = old.0[0];
                signal(master, Signal::USR2);
                // Its pid file has another name then, until it is gone.
                let deadline = Instant::now() + TIMEOUT;
                loop {
                    match self.master() {
                        Ok(new) if new != master && !children(new).is_empty() => break,
                        _ if Instant::now() > deadline => return Err("no new master".into()),
                        _ => std::thread::sleep(Duration::from_millis(1)),
                    }
                }
                signal(master, Signal::QUIT);
            }
            _ => signal(old.0[0], Signal::HUP),
        }
        Ok(())
    }

    /// The same as a command for a shell, as `handover verify` calls it; it prepares as well.
    #[must_use]
    pub fn upgrade_command(&self) -> String {
        let folder = self.folder.path().display();
        let configure = format!(
            "sed s/{GENERATION}/$((HANDOVER_VERIFY_PID + 1))/ {folder}/template > {folder}/conf"
        );
        match self.kind {
            Kind::NginxReload => format!("{configure} && kill -HUP $(cat {folder}/pid)"),
            Kind::Haproxy => format!("{configure} && kill -USR2 {}", self.service.pid()),
            Kind::NginxBinary => format!(
                "{configure}; old=$(cat {folder}/pid); kill -USR2 $old; n=0; \
                 until [ -e {folder}/pid ] && [ -e {folder}/pid.oldbin ] && \
                 [ \"$(cat {folder}/pid)\" != $old ] && \
                 [ -n \"$(cat /proc/$(cat {folder}/pid)/task/*/children)\" ] || [ $n -gt 3000 ]; \
                 do n=$((n+1)); sleep 0.001; done; kill -QUIT $old"
            ),
            _ => "kill -HUP \"$HANDOVER_VERIFY_PID\"".to_owned(),
        }
    }

    /// The process that is told what to do.
    fn master(&self) -> Result<Pid, Box<dyn Error>> {
        match self.kind {
            Kind::NginxReload | Kind::NginxBinary => {
                Ok(fs::read_to_string(self.folder.join("pid"))?.trim().parse()?)
            }
            _ => Ok(self.service.pid()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A daemon leaves the session of the service; of all others the service takes care.
        if let (Kind::NginxReload | Kind::NginxBinary, Ok(master)) = (self.kind, self.master())
            && is_alive(master)
        {
            signal(master, Signal::TERM);
            let _ = exited(master, Instant::now() + TIMEOUT);
        }
    }
}

impl Old {
    /// Waits until all of it is gone; false if it is not in time.
    #[must_use]
    pub fn is_gone(&self, deadline: Instant) -> bool {
        self.0.iter().all(|pid| exited(*pid, deadline))
    }
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// All of the listeners' addresses: as many of the loopback network, with one port.
fn addresses(first: SocketAddr, count: u32) -> impl Iterator<Item = SocketAddr> {
    let address = |number| Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + number);
    (0..count).map(move |number| (address(number), first.port()).into())
}

/// Has a server answer the number of its next generation, once it reads its configuration again.
fn configure(folder: &Folder, generation: u32) -> io::Result<()> {
    let template = fs::read_to_string(folder.join("template"))?;
    fs::write(folder.join("conf"), template.replace(GENERATION, &generation.to_string()))
}

/// As Debian has it, with as many workers as there are cores, and a limit to how long old workers may take.
fn nginx(folder: &Folder, first: SocketAddr, setup: Setup) -> Result<String, std::fmt::Error> {
    let path = folder.path().display();
    let mut text = format!(
        "pid {path}/pid;\nerror_log {path}/error.log;\nworker_processes auto;\n\
         worker_rlimit_nofile {OPEN_FILES};\nworker_shutdown_timeout 10s;\n\
         events {{ worker_connections 16000; }}\n\
         http {{\naccess_log off;\ndefault_type text/plain;\nkeepalive_requests 1000000;\n"
    );
    for temporary in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(text, "{temporary}_temp_path {path}/{temporary};")?;
    }
    text += "server {\n";
    for address in addresses(first, setup.listeners) {
        writeln!(text, "listen {address} backlog={BACKLOG};")?;
    }
    writeln!(text, "location / {{\nreturn 200 \"{GENERATION}\\n\";\n}}\n}}\n}}")?;
    Ok(text)
}

/// Master and worker, and listeners that the next worker gets from the present one, as the management guide has it for
/// reloads that lose nothing.
fn haproxy(folder: &Folder, first: SocketAddr, setup: Setup) -> Result<String, std::fmt::Error> {
    let path = folder.path().display();
    let mut text = format!(
        "global\nstats socket {path}/stats level admin expose-fd listeners\n\
         hard-stop-after 10s\nmaxconn 4000\n\
         defaults\nmode http\ntimeout client 60s\ntimeout server 60s\ntimeout connect 5s\n\
         frontend service\n"
    );
    for address in addresses(first, setup.listeners) {
        writeln!(text, "bind {address} backlog {BACKLOG}")?;
    }
    writeln!(
        text,
        "http-request return status 200 content-type text/plain string \"{GENERATION}\\n\""
    )?;
    Ok(text)
}

/// How the versions of those that are not in Rust are told.
#[must_use]
pub fn versions() -> Vec<String> {
    let of = |name: &str, argument| {
        let output = Command::new(installed(name)?).arg(argument).stdin(Stdio::null()).output();
        let output = output.ok()?;
        let text = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&text).lines().next()?.to_owned())
    };
    [of("nginx", "-v"), of("haproxy", "-v")].into_iter().flatten().collect()
}
