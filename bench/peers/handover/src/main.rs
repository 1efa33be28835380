//! As the README of handover has it, for Tokio and HTTP.

use std::error::Error;
use std::future::IntoFuture as _;

use axum::Router;
use axum::routing::get;
use handover::tokio::{TcpListener, ready};
use handover::{Handover, http};
use tokio::runtime::Runtime;
use web::Settings;

fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings::read()?;
    let handover = Handover::builder().start()?;
    Runtime::new()?.block_on(serve(handover, &settings))
}

async fn serve(handover: Handover, settings: &Settings) -> Result<(), Box<dyn Error>> {
    let listen = |address: &std::net::SocketAddr| handover.listen(&address.to_string(), *address);
    let listeners: Vec<TcpListener> =
        settings.addresses.iter().map(listen).collect::<Result<_, _>>()?;
    let stalls = settings.work(handover.generation() == 1);
    let answer = web::body();
    let app: Router = Router::new().route("/", get(async move || answer));
    let running = ready(handover).await?;
    println!("serving {}", std::process::id());
    for listener in listeners {
        tokio::spawn(http::serve(listener, app.clone(), &running.handle()).into_future());
    }
    running.drain().await?;
    web::tell(stalls);
    Ok(())
}
