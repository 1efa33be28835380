//! A line echo with Tokio: `echo [ADDRESS] [--control PATH]
//! [--probation SECONDS] [--live]`, by default at 127.0.0.1:7000.
//!
//! Each line comes back with the number of the process before it. Connections are long-lived: they
//! end when the client ends them, or when the drain of the generation that accepted them is over. With
//! `--live` they do not end: the successor goes on with them. SIGHUP upgrades, SIGTERM stops.

mod options;

use std::error::Error;
use std::future::pending;
use std::time::Duration;

use handover::live::{Baggage, Departure, Departures, NoDeparture};
use handover::tokio::{TcpListener, ready};
use handover::{Connection, Handover};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

fn main() -> Result<(), Box<dyn Error>> {
    let (address, builder) = options::read("127.0.0.1:7000");
    let handover = builder.drain_timeout(Duration::from_secs(60)).start()?;
    Runtime::new()?.block_on(serve(handover, &address, options::is_live()))
}

async fn serve(handover: Handover, address: &str, live: bool) -> Result<(), Box<dyn Error>> {
    let listener: TcpListener = handover.listen("echo", address)?;
    println!("listening on {}", listener.local_addr()?);

    let running = ready(handover).await?;
    let departures = running.handle().departures("echo", 1)?;
    let departures = live.then_some(departures);
    if live {
        let mut arrivals = running.handle().arrivals("echo", 1..=1)?;
        let departures = departures.clone();
        tokio::spawn(async move {
            while let Some(arrival) = arrivals.next().await {
                if let Ok((connection, Baggage { unread, .. })) = arrival.into_connection() {
                    tokio::spawn(echo(connection, unread, departures.clone()));
                }
            }
        });
    }
    while let Some((connection, _)) = listener.accept().await? {
        tokio::spawn(echo(connection, Vec::new(), departures.clone()));
    }
    drop(listener);

    // The connections of this generation go on while the successor accepts new ones.
    let drained = running.drain().await?;
    eprintln!("{drained}");
    Ok(())
}

/// A connection counts as in flight for as long as it lives.
async fn echo(
    mut connection: Connection<TcpStream>,
    mut unread: Vec<u8>,
    mut departures: Option<Departures>,
) -> std::io::Result<()> {
    let pid = std::process::id();
    loop {
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            connection.write_all(&[format!("{pid} ").as_bytes(), &line].concat()).await?;
        }
        // All that was asked is answered: between two reads is the time to go.
        tokio::select! {
            read = connection.read_buf(&mut unread) => if read? == 0 {
                return Ok(());
            },
            slot = slot(departures.as_ref()) => match slot {
                Ok(departure) => {
                    let baggage = Baggage { unread, state: Vec::new() };
                    let Err(back) = departure.send(connection, baggage).await else {
                        return Ok(());
                    };
                    (connection, unread, departures) = (back.connection?, back.baggage.unread, None);
                }
                Err(_) => departures = None,
            },
        }
    }
}

async fn slot(departures: Option<&Departures>) -> Result<Departure, NoDeparture> {
    match departures {
        Some(departures) => departures.slot().await,
        None => pending().await,
    }
}
