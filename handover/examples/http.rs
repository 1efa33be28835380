//! HTTP with axum: `http [ADDRESS] [--control PATH]
//! [--probation SECONDS] [--fd-store]`, by default at 127.0.0.1:8080.
//!
//! `GET /` answers with the process and the generation that served it. SIGHUP upgrades, SIGTERM
//! stops.

mod options;

use std::error::Error;
use std::future::IntoFuture;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::middleware::map_response_with_state;
use axum::response::Response;
use axum::routing::get;
use handover::tokio::{TcpListener, ready};
use handover::{Handover, Until};
use tokio::runtime::Runtime;

fn main() -> Result<(), Box<dyn Error>> {
    // First thing in main, before the runtime has threads. In a successor, the predecessor serves
    // until `ready` below.
    let (address, builder) = options::read("127.0.0.1:8080");
    let handover = builder.start()?;
    Runtime::new()?.block_on(serve(handover, &address))
}

async fn serve(handover: Handover, address: &str) -> Result<(), Box<dyn Error>> {
    let http: TcpListener = handover.listen("http", address)?;
    println!("listening on {}", http.local_addr()?);

    let answer = format!("{} {}\n", std::process::id(), handover.generation());
    let app = Router::new().route("/", get(async move || answer));

    // From here on this generation serves, until a successor does or it is stopped.
    let running = ready(handover).await?;
    let app = app.layer(map_response_with_state(running.draining(), announce));
    tokio::spawn(axum::serve(http, app).into_future());

    // What was accepted is answered. A connection that stays idle is closed in the end.
    running.drain().await?;
    Ok(())
}

/// Tells clients that keep their connection to come back on another one, which will be the
/// successor's.
async fn announce(State(draining): State<Until>, mut response: Response) -> Response {
    if draining.has_come() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
