//! HTTP/1 and HTTP/2 with hyper: `hyper [ADDRESS] [--control PATH]
//! [--probation SECONDS] [--fd-store]`, by default at 127.0.0.1:8080.
//!
//! `GET /` answers with the process and the generation that served it. SIGHUP upgrades, SIGTERM
//! stops. An upgrade loses no request.

mod options;

use std::convert::Infallible;
use std::error::Error;
use std::future::ready as now;
use std::pin::pin;
use std::sync::Arc;

use handover::tokio::{TcpListener, ready};
use handover::{Connection, Handover, Until};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

fn main() -> Result<(), Box<dyn Error>> {
    let (address, builder) = options::read("127.0.0.1:8080");
    let handover = builder.start()?;
    Runtime::new()?.block_on(serve(handover, &address))
}

async fn serve(handover: Handover, address: &str) -> Result<(), Box<dyn Error>> {
    let http: TcpListener = handover.listen("http", address)?;
    println!("listening on {}", http.local_addr()?);

    let answer = Bytes::from(format!("{} {}\n", std::process::id(), handover.generation()));

    // From here on this generation serves, until a successor does or it is stopped.
    let running = ready(handover).await?;
    while let Some((connection, _)) = http.accept().await? {
        tokio::spawn(serve_connection(connection, answer.clone(), running.draining()));
    }
    drop(http);

    // What was accepted is answered. A connection that stays idle is closed in the end.
    running.drain().await?;
    Ok(())
}

async fn serve_connection(
    connection: Connection<TcpStream>,
    answer: Bytes,
    draining: Until,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    connection.set_nodelay(true)?;
    let is_http2 = Arc::new(Notify::new());
    let (seen_http2, announced) = (Arc::clone(&is_http2), draining.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let mut response = Response::new(Full::new(answer.clone()));
        if request.uri().path() != "/" {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        if request.version() == Version::HTTP_2 {
            seen_http2.notify_one();
        } else if announced.has_come() {
            // The client comes back on another connection, which will be the successor's.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        now(Ok::<_, Infallible>(response))
    });

    let server = Builder::new(TokioExecutor::new());
    let mut served = pin!(server.serve_connection(TokioIo::new(connection), service));
    // HTTP/2 has a farewell of its own, which loses nothing. HTTP/1 has none: hyper's graceful
    // shutdown would close idle connections unannounced. So would it those of which hyper does not
    // know yet what they speak, hence this waits for the first request.
    let farewell = async {
        is_http2.notified().await;
        draining.await;
    };
    tokio::select! {
        ended = &mut served => return ended,
        () = farewell => served.as_mut().graceful_shutdown(),
    }
    served.await
}
