//! A line echo with Tokio: `echo [ADDRESS] [--control PATH]
//! [--probation SECONDS]`, by default at 127.0.0.1:7000.
//!
//! Each line comes back with the number of the process before it. Connections are long-lived: they
//! end when the client ends them, or when the drain of the generation that accepted them is over.
//! SIGHUP upgrades, SIGTERM stops.

mod options;

use std::error::Error;
use std::time::Duration;

use handover::tokio::{TcpListener, ready};
use handover::{Connection, Handover};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

fn main() -> Result<(), Box<dyn Error>> {
    let (address, builder) = options::read("127.0.0.1:7000");
    let handover = builder.drain_timeout(Duration::from_secs(60)).start()?;
    Runtime::new()?.block_on(serve(handover, &address))
}

async fn serve(handover: Handover, address: &str) -> Result<(), Box<dyn Error>> {
    let listener: TcpListener = handover.listen("echo", address)?;
    println!("listening on {}", listener.local_addr()?);

    let running = ready(handover).await?;
    while let Some((connection, _)) = listener.accept().await? {
        tokio::spawn(echo(connection));
    }
    drop(listener);

    // The connections of this generation go on while the successor accepts new ones.
    let drained = running.drain().await?;
    eprintln!("{drained}");
    Ok(())
}

/// A connection counts as in flight for as long as it lives.
async fn echo(connection: Connection<TcpStream>) -> std::io::Result<()> {
    let pid = std::process::id();
    let mut connection = BufReader::new(connection);
    let mut line = String::new();
    while connection.read_line(&mut line).await? > 0 {
        connection.write_all(format!("{pid} {line}").as_bytes()).await?;
        line.clear();
    }
    Ok(())
}
