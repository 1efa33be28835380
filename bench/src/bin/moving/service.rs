//! The service of which the connections change hands.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use handover::live::{Baggage, Departure, Departures};
use handover::tokio::{TcpListener, ready};
use handover::{Connection, Handover};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use handover_bench::now;

/// What each connection has for a state: its number at first, filled up.
const STATE: usize = 64;

pub(crate) fn serve(connections: usize) -> Result<(), Box<dyn std::error::Error>> {
    let handover = Handover::builder().start()?;
    tokio::runtime::Runtime::new()?.block_on(run(handover, connections))
}

async fn run(handover: Handover, connections: usize) -> Result<(), Box<dyn std::error::Error>> {
    let listener: TcpListener = handover.listen("lines", "127.0.0.1:0")?;
    println!("listening on {}", listener.local_addr()?);
    let running = ready(handover).await?;
    let handle = running.handle();
    let departures = handle.departures("lines", 1)?;
    let mut arrivals = handle.arrivals("lines", 1..=1)?;
    println!("serving {}", std::process::id());
    let onward = departures.clone();
    tokio::spawn(async move {
        let (mut times, mut arrived) = (Vec::new(), 0);
        while let Some(arrival) = arrivals.next().await {
            let Ok((connection, Baggage { unread, state })) = arrival.into_connection() else {
                continue;
            };
            tokio::spawn(echo(connection, unread, state, onward.clone()));
            arrived += 1;
            if arrived == 1 || arrived == connections {
                times.push(now().as_nanos());
            }
            if arrived == connections {
                println!("first {}", times[0]);
                println!("last {}", times[times.len() - 1]);
            }
        }
    });
    let accepted = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok(Some((connection, _))) = listener.accept().await {
            let number = accepted.fetch_add(1, Ordering::Relaxed);
            let state = format!("{number:0>STATE$}").into_bytes();
            tokio::spawn(echo(connection, Vec::new(), state, departures.clone()));
        }
    });
    handle.draining().await;
    println!("leaving {}", now().as_nanos());
    running.drain().await?;
    println!("gone");
    Ok(())
}

/// Answers each line with the state and the line.
async fn echo(
    mut connection: Connection<TcpStream>,
    mut unread: Vec<u8>,
    state: Vec<u8>,
    departures: Departures,
) -> std::io::Result<()> {
    let mut departures = Some(departures);
    loop {
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            connection.write_all(&[&*state, b" ", &*line].concat()).await?;
        }
        tokio::select! {
            read = connection.read_buf(&mut unread) => if read? == 0 {
                return Ok(());
            },
            departure = slot(departures.as_ref()) => match departure {
                Some(departure) => {
                    let sent = departure.send(connection, Baggage { unread, state });
                    return sent.await.map_err(|back| std::io::Error::other(back.to_string()));
                }
                None => departures = None,
            },
        }
    }
}

async fn slot(departures: Option<&Departures>) -> Option<Departure> {
    match departures {
        Some(departures) => departures.slot().await.ok(),
        None => pending().await,
    }
}
