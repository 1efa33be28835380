//! The service that is upgraded.

use std::error::Error;
use std::future::{Future, ready};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract;
use axum::routing::post;
use handover::http::{self, Acceptor};
use handover::tokio::TcpListener;
use handover::{Connection, Handle, Handover};
use tokio::net::TcpStream;

use crate::ledger::{Ledger, Owner};
use crate::pattern;

/// What a successor is to do, in its environment: see [`Plan`].
pub(crate) const PLAN: &str = "SOAK_PLAN";

/// How long the service waits for what hangs.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// How a life of the service is.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Life {
    /// Connections change hands.
    #[arg(long)]
    pub(crate) live: bool,
    /// Listeners besides the one that is asked.
    #[arg(long, default_value_t = 0)]
    pub(crate) listeners: usize,
    /// The bytes of a state that goes from process to process.
    #[arg(long, default_value_t = 0)]
    pub(crate) state: usize,
}

impl Life {
    pub(crate) fn arguments(self) -> Vec<String> {
        let mut arguments =
            vec![format!("--listeners={}", self.listeners), format!("--state={}", self.state)];
        arguments.extend(self.live.then(|| "--live".to_owned()));
        arguments
    }
}

/// What a successor does, after so many milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// It serves.
    Serve(u64),
    /// It exits before it is ready.
    Exit(u64),
    /// It aborts before it is ready.
    Abort(u64),
    /// It panics before it is ready.
    Panic(u64),
    /// It is never ready.
    Hang,
    /// It serves, and aborts so long afterwards.
    AbortServing(u64),
}

impl Plan {
    pub(crate) fn text(self) -> String {
        match self {
            Self::Serve(after) => format!("serve {after}"),
            Self::Exit(after) => format!("exit {after}"),
            Self::Abort(after) => format!("abort {after}"),
            Self::Panic(after) => format!("panic {after}"),
            Self::Hang => "hang 0".to_owned(),
            Self::AbortServing(after) => format!("abort-serving {after}"),
        }
    }

    fn read() -> Self {
        let text = std::env::var(PLAN).unwrap_or_default();
        let (what, after) = text.split_once(' ').unwrap_or(("serve", "0"));
        let after = after.parse().unwrap_or(0);
        match what {
            "exit" => Self::Exit(after),
            "abort" => Self::Abort(after),
            "panic" => Self::Panic(after),
            "hang" => Self::Hang,
            "abort-serving" => Self::AbortServing(after),
            _ => Self::Serve(after),
        }
    }
}

pub(crate) fn serve(folder: &Path, life: Life) -> Result<(), Box<dyn Error>> {
    let handover = Handover::builder()
        .control(folder.join("control"))
        .pid_file(folder.join("pid"))
        .answer_timeout(PATIENCE)
        .max_generations(1000)
        .start()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(run(handover, folder, life))
}

async fn run(handover: Handover, folder: &Path, life: Life) -> Result<(), Box<dyn Error>> {
    let pid = std::process::id();
    let listener: TcpListener = handover.listen("http", "127.0.0.1:0")?;
    println!("listening on {}", listener.local_addr()?);
    let others = (0..life.listeners).map(|number| -> Result<TcpListener, _> {
        handover.listen(&format!("other {number}"), "127.0.0.1:0")
    });
    let others = others.collect::<Result<Vec<_>, _>>()?;
    let state = match handover.state("bytes") {
        Some(state) => state.to_vec(),
        None => (0..life.state).map(|at| pattern(at as u64)).collect(),
    };
    let is_whole = state.iter().enumerate().all(|(at, byte)| *byte == pattern(at as u64));
    if state.len() != life.state || !is_whole {
        return Err("the state is not what it was".into());
    }
    handover.provide_state("bytes", 1, move |out| Ok(io::Write::write_all(out, &state)?))?;
    let ledger = Ledger::open(folder)?;
    println!("initialising {pid}");
    let plan = Plan::read();
    match plan {
        Plan::Serve(after) => tokio::time::sleep(Duration::from_millis(after)).await,
        Plan::Exit(after) => {
            tokio::time::sleep(Duration::from_millis(after)).await;
            return Err("as planned".into());
        }
        Plan::Abort(after) => {
            tokio::time::sleep(Duration::from_millis(after)).await;
            std::process::abort();
        }
        Plan::Panic(after) => {
            tokio::time::sleep(Duration::from_millis(after)).await;
            panic!("as planned");
        }
        Plan::Hang => std::future::pending().await,
        Plan::AbortServing(_) => {}
    }
    let running = handover::tokio::ready(handover).await?;
    println!("serving {pid}");
    if let Plan::AbortServing(after) = plan {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            std::process::abort();
        });
    }
    let handle = running.handle();
    let ledger = LEDGER.get_or_init(|| ledger).clone();
    tokio::spawn(start(listener, &handle, ledger, life.live));
    let ending = running.wait().await;
    drop(others);
    let drained = running.drain().await?;
    println!("drained {pid} {ending}: {drained}");
    if drained.cut > 0 { Err("something was cut".into()) } else { Ok(()) }
}

fn start(
    listener: TcpListener,
    handle: &Handle,
    ledger: Ledger,
    live: bool,
) -> impl Future<Output = io::Result<()>> + use<> {
    let app: Router = Router::new().route("/{bytes}", post(answer));
    http::serve(listener, app, handle).live(live).acceptor(Noted(ledger)).into_future()
}

/// For connections that change hands, of which an acceptor is not asked but its type.
static LEDGER: OnceLock<Ledger> = OnceLock::new();

/// Notes who has a connection, as soon as that can be known.
#[derive(Clone, Debug)]
struct Noted(Ledger);

impl Noted {
    fn note(&self, connection: &Connection<TcpStream>, owner: fn(u32) -> Owner) {
        if let Ok(SocketAddr::V4(client)) = connection.peer_addr() {
            self.0.note(client.port(), Some(owner(std::process::id())));
        }
    }
}

impl Acceptor<TcpStream> for Noted {
    type Stream = Connection<TcpStream>;

    fn accept(
        &self,
        connection: Connection<TcpStream>,
    ) -> impl Future<Output = io::Result<Connection<TcpStream>>> + Send {
        self.note(&connection, Owner::Has);
        ready(Ok(connection))
    }

    fn is_plain(_: &Connection<TcpStream>) -> bool {
        true
    }

    fn into_plain(
        stream: Connection<TcpStream>,
    ) -> Result<Connection<TcpStream>, Connection<TcpStream>> {
        if let Some(ledger) = LEDGER.get() {
            Self(ledger.clone()).note(&stream, Owner::Gives);
        }
        Ok(stream)
    }

    fn from_plain(connection: Connection<TcpStream>) -> Option<Connection<TcpStream>> {
        if let Some(ledger) = LEDGER.get() {
            Self(ledger.clone()).note(&connection, Owner::Has);
        }
        Some(connection)
    }
}

/// Answers with the number of the process, the sum of what was sent, and as many bytes as were asked for.
async fn answer(extract::Path(bytes): extract::Path<usize>, body: axum::body::Bytes) -> Body {
    let sum =
        body.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    let mut answer = format!("{:>10} {sum:>20} ", std::process::id()).into_bytes();
    answer.extend((0..bytes).map(|at| pattern(at as u64)));
    Body::from(answer)
}
