//! HTTP/1 and HTTP/2 with axum: `http [ADDRESS] [--control PATH]
//! [--probation SECONDS] [--fd-store] [--live]`, by default at 127.0.0.1:8080.
//!
//! `GET /` answers with the process and the generation that served it. SIGHUP upgrades, SIGTERM
//! stops. With `--live` idle HTTP/1 connections go on in the successor. The exit status is 3 if the drain
//! took too long and requests were cut.

mod options;

use std::error::Error;
use std::future::IntoFuture;
use std::process::ExitCode;

use axum::Router;
use axum::routing::get;
use handover::tokio::{TcpListener, ready};
use handover::{Handover, http};
use tokio::runtime::Runtime;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    // First thing in main, before the runtime has threads. In a successor, the predecessor serves
    // until `ready` below.
    let (address, builder) = options::read("127.0.0.1:8080");
    let handover = builder.start()?;
    Runtime::new()?.block_on(serve(handover, &address))
}

async fn serve(handover: Handover, address: &str) -> Result<ExitCode, Box<dyn Error>> {
    let listener: TcpListener = handover.listen("http", address)?;
    println!("listening on {}", listener.local_addr()?);

    let answer = format!("{} {}\n", std::process::id(), handover.generation());
    let app: Router = Router::new().route("/", get(async move || answer));

    // From here on this generation serves, until a successor does or it is stopped.
    let running = ready(handover).await?;
    let serving = http::serve(listener, app, &running.handle()).live(options::is_live());
    tokio::spawn(serving.into_future());

    // What was accepted is answered. Clients that keep their connection are told to come back on
    // another one, which will be the successor's.
    let drained = running.drain().await?;
    Ok(if drained.cut == 0 { ExitCode::SUCCESS } else { ExitCode::from(3) })
}
