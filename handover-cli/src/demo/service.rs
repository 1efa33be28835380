//! The service that `demo` upgrades: it answers with its pid and generation, and replaces itself on
//! SIGHUP.

use std::convert::Infallible;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use handover::tokio::{TcpListener, ready};
use handover::{Connection, Handle, Handover, Until, Verdict};
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;

/// The bundled service.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The address to listen on
    #[arg(long)]
    listen: SocketAddr,
    /// Where to write the pid of the process that serves
    #[arg(long)]
    pid_file: PathBuf,
    /// Print a line of JSON for each upgrade
    #[arg(long)]
    verdicts: bool,
}

/// Serves until a successor does or a stop was asked for, then drains.
///
/// # Errors
///
/// If this process cannot serve; a predecessor, if there is one, then goes on.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut builder = Handover::builder().pid_file(&args.pid_file);
    if args.verdicts {
        builder = builder.on_verdict(|verdict| println!("{}", line(verdict)));
    }
    let handover = builder.start()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(serve(handover, args.listen))?;
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn serve(handover: Handover, address: SocketAddr) -> anyhow::Result<()> {
    let listener: TcpListener = handover.listen("http", address)?;
    println!("listening on {}", listener.local_addr()?);
    let answer = Bytes::from(format!("{} {}\n", std::process::id(), handover.generation()));

    let running = ready(handover).await?;
    stop_with_stdin(running.handle());
    while let Some((connection, _)) = listener.accept().await? {
        tokio::spawn(converse(connection, answer.clone(), running.draining()));
    }
    drop(listener);
    running.drain().await?;
    Ok(())
}

/// Serves one connection. During the drain every answer says that it is the last one, so that no
/// client meets an end that was not announced, and no request that is on its way is lost.
async fn converse(connection: Connection<TcpStream>, answer: Bytes, draining: Until) {
    let respond = service_fn(|_| {
        let mut response = Response::new(Full::new(answer.clone()));
        if draining.has_come() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        async { Ok::<_, Infallible>(response) }
    });
    // Without it the kernel may hold an answer back for a while; it is as right as before.
    let _ = connection.set_nodelay(true);
    // A client that breaks off is the client's business.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), respond).await;
}

/// The demo holds the other end of stdin: however it ends, the service ends as well.
fn stop_with_stdin(handle: Handle) {
    std::thread::spawn(move || {
        // An error is an end, too.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        handle.stop();
    });
}

fn line(verdict: &Verdict) -> serde_json::Value {
    match verdict {
        Verdict::Succeeded(success) => json!({
            "verdict": "succeeded",
            "generation": success.generation,
            "pid": success.pid,
            "commit_us": u64::try_from(success.timings.commit.as_micros()).unwrap_or(u64::MAX),
            "confirm_us": u64::try_from(success.timings.confirm.as_micros()).unwrap_or(u64::MAX),
            "total_us": u64::try_from(success.timings.total.as_micros()).unwrap_or(u64::MAX),
        }),
        failed => json!({ "verdict": "failed", "reason": failed.to_string() }),
    }
}
