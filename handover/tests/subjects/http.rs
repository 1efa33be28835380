//! A program under test: everything that HTTP can be in the middle of.
//!
//! `subject_http FOLDER [--live] [--idle-grace MS] [--header-timeout MS] [--drain-timeout MS]
//! [--max-connections N] [--probation MS] [--first-live] [--shake] [--log-all]`. It listens with TCP, and in the folder on
//! `http`, and its control socket is there. Its exit status is 3 if anything was cut.
//!
//! With `--first-live` the first generation is live and others are not, with `--shake` a client of the TCP listener
//! has to send a `!` first; with `--log-all` everything is logged.
//!
//! | ask | get |
//! |---|---|
//! | `/` | the number of the process |
//! | `/until-drain` | that, once the process does not accept any more |
//! | `/never` | nothing |
//! | `/events` | an event at once, and the last one when the process does not accept any more |
//! | POST `/echo` | the body, as it comes |
//! | POST `/sum` | length and checksum of the body |
//! | `/download/N` | N bytes, by `byte_at` |
//! | `/upgrade` | 101, then lines are echoed; `bye` when the process does not accept any more |
//! | `/peer` | who asks |

#![allow(clippy::print_stdout)]

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, Extension, Path, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use handover::http::{self, Serve, Session};
use handover::tokio::{TcpListener, UnixListener, ready};
use handover::{Connection, Handle, Handover, Until};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tracing_subscriber::filter::LevelFilter;

/// The byte at a position of what is sent and received.
fn byte_at(position: u64) -> u8 {
    (position.wrapping_mul(31) >> 3) as u8
}

#[derive(Debug)]
struct Options {
    folder: PathBuf,
    given: Vec<String>,
}

impl Options {
    fn value(&self, name: &str) -> Option<u64> {
        let place = self.given.iter().position(|given| given == name)?;
        Some(self.given[place + 1].parse().expect("a number"))
    }

    fn has(&self, name: &str) -> bool {
        self.given.iter().any(|given| given == name)
    }

    fn time(&self, name: &str) -> Option<Duration> {
        self.value(name).map(Duration::from_millis)
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("FOLDER"));
    let options = Options { folder, given: arguments.collect() };
    let level = if options.has("--log-all") { LevelFilter::TRACE } else { LevelFilter::INFO };
    let log = tracing_subscriber::fmt().with_max_level(level).with_ansi(false);
    log.with_writer(io::stderr).init();
    let mut builder = Handover::builder().control(options.folder.join("control"));
    builder = builder.max_generations(100);
    if let Some(timeout) = options.time("--drain-timeout") {
        builder = builder.drain_timeout(timeout);
    }
    if let Some(probation) = options.time("--probation") {
        builder = builder.probation(probation);
    }
    let handover = builder.start()?;
    Runtime::new()?.block_on(serve(handover, &options))
}

async fn serve(handover: Handover, options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    let tcp: TcpListener = handover.listen("tcp", "127.0.0.1:0")?;
    let unix: UnixListener = handover.listen("unix", options.folder.join("http").as_path())?;
    println!("listening on {}", tcp.local_addr()?);
    let running = ready(handover).await?;
    let handle = running.handle();
    let tcp = start(tcp, &handle, options);
    if options.has("--shake") {
        tokio::spawn(tcp.acceptor(shake).into_future());
    } else {
        tokio::spawn(tcp.into_future());
    }
    tokio::spawn(start(unix, &handle, options).into_future());
    println!("serving {}", std::process::id());
    let ending = running.wait().await;
    println!("draining {} {ending}", std::process::id());
    let drained = running.drain().await?;
    println!("drained {} {drained}", std::process::id());
    Ok(if drained.cut == 0 { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

async fn shake(mut connection: Connection<TcpStream>) -> io::Result<Connection<TcpStream>> {
    let first = connection.read_u8().await?;
    if first == b'!' { Ok(connection) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn start<L: http::Listener>(listener: L, handle: &Handle, options: &Options) -> Serve<L, Router> {
    let mut serve = http::serve(listener, router(), handle);
    let is_first = options.has("--first-live") && handle.generation() == 1;
    serve = serve.live(is_first || options.has("--live"));
    if let Some(grace) = options.time("--idle-grace") {
        serve = serve.idle_grace(grace);
    }
    if let Some(timeout) = options.time("--header-timeout") {
        serve = serve.header_timeout(timeout);
    }
    if let Some(connections) = options.value("--max-connections") {
        serve = serve.max_connections(usize::try_from(connections).expect("a number"));
    }
    serve
}

fn router() -> Router {
    Router::new()
        .route("/", get(pid))
        .route("/until-drain", get(until_drain))
        .route("/never", get(std::future::pending::<()>))
        .route("/events", get(events))
        .route("/echo", post(async |body: Body| body))
        .route("/sum", post(sum))
        .route("/download/{bytes}", get(download))
        .route("/upgrade", get(upgrade))
        .route("/peer", get(peer))
}

async fn pid() -> String {
    format!("{}\n", std::process::id())
}

async fn until_drain(Extension(session): Extension<Session>) -> String {
    session.draining().await;
    pid().await
}

async fn peer(
    Extension(session): Extension<Session>,
    info: Option<Extension<ConnectInfo<std::net::SocketAddr>>>,
) -> String {
    let info = info.map(|Extension(ConnectInfo(address))| address.to_string());
    format!("{} {}\n", session.peer, info.unwrap_or_default())
}

async fn events(Extension(session): Extension<Session>) -> Response {
    let body = Body::new(Events { begun: false, draining: Some(session.draining()) });
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// The first event at once, the last one when told.
struct Events {
    begun: bool,
    draining: Option<Until>,
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let event = |text: String| Poll::Ready(Some(Ok(Frame::data(text.into()))));
        if !std::mem::replace(&mut self.begun, true) {
            return event(format!("data: first {}\n\n", std::process::id()));
        }
        let Some(draining) = &mut self.draining else { return Poll::Ready(None) };
        std::task::ready!(Pin::new(draining).poll(cx));
        self.draining = None;
        event(format!("data: last {}\n\n", std::process::id()))
    }
}

async fn sum(body: Body) -> Result<String, StatusCode> {
    let (mut body, mut bytes, mut wrong) = (body, 0_u64, 0_u64);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        for byte in frame.into_data().unwrap_or_default() {
            wrong += u64::from(byte != byte_at(bytes));
            bytes += 1;
        }
    }
    Ok(format!("{} {bytes} {wrong}\n", std::process::id()))
}

async fn download(Path(bytes): Path<u64>) -> Body {
    Body::new(Download { at: 0, end: bytes })
}

struct Download {
    at: u64,
    end: u64,
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.end.min(self.at + 16 * 1024);
        let piece: Vec<u8> = (self.at..next).map(byte_at).collect();
        self.at = next;
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece.into()))))
    }
}

async fn upgrade(Extension(session): Extension<Session>, request: Request) -> Response {
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let (reader, mut writer) = tokio::io::split(hyper_util::rt::TokioIo::new(upgraded));
        let mut lines = BufReader::new(reader).lines();
        let mut draining = session.draining();
        loop {
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => writer.write_all(format!("{line}\n").as_bytes()).await.unwrap(),
                    _ => return,
                },
                () = &mut draining => {
                    writer.write_all(b"bye\n").await.unwrap();
                    writer.shutdown().await.unwrap();
                    return;
                }
            }
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "lines")];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}
