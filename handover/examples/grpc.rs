//! gRPC with tonic: `grpc [ADDRESS] [--control PATH]
//! [--probation SECONDS] [--fd-store]`, by default at 127.0.0.1:50051.
//!
//! `Who` answers with the process and the generation that served it, `Count` with a stream of numbers.
//! SIGHUP upgrades, SIGTERM stops. An upgrade cuts no call: what was begun, such as a long stream, goes
//! on to its end. A call that crosses with the farewell to its connection is not begun by anybody, and
//! the client knows so. gRPC has clients repeat those; tonic's own leaves it to the application, which
//! sees `Cancelled` or `Internal`.

mod connected;
mod options;
mod pb;

use std::error::Error;
use std::future::pending;

use connected::Accepted;
use handover::Handover;
use handover::tokio::{TcpListener, ready};
use pb::{Chunk, Example, ExampleServer, Limit, Process};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::codegen::tokio_stream::{Stream, StreamExt, iter};
use tonic::transport::Server;

fn main() -> Result<(), Box<dyn Error>> {
    let (address, builder) = options::read("127.0.0.1:50051");
    let handover = builder.start()?;
    Runtime::new()?.block_on(serve(handover, &address))
}

async fn serve(handover: Handover, address: &str) -> Result<(), Box<dyn Error>> {
    let grpc: TcpListener = handover.listen("grpc", address)?;
    println!("listening on {}", grpc.local_addr()?);

    let process = Process { pid: std::process::id(), generation: handover.generation() };

    // From here on this generation serves, until a successor does or it is stopped.
    let running = ready(handover).await?;
    let connections = grpc.incoming().map(|accepted| accepted.and_then(Accepted::new));
    let router = Server::builder().add_service(ExampleServer::new(process));
    // The end of the connections is the signal to say farewell to those that there are.
    tokio::spawn(router.serve_with_incoming_shutdown(connections, pending()));

    // What was accepted is answered.
    running.drain().await?;
    Ok(())
}

impl Example for Process {
    fn who(&self) -> Result<Process, Status> {
        Ok(self.clone())
    }

    fn count(
        &self,
        limit: Limit,
    ) -> Result<impl Stream<Item = Result<Chunk, Status>> + Send + use<>, Status> {
        let padding = vec![0; 16 * 1024];
        Ok(iter(
            (1..=limit.chunks).map(move |number| Ok(Chunk { number, padding: padding.clone() })),
        ))
    }
}
