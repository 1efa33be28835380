//! No upgrades at all: what the others are held against in size.

use std::error::Error;

use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use web::{BACKLOG, Settings, Site};

fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings::read()?;
    Runtime::new()?.block_on(serve(&settings))
}

async fn serve(settings: &Settings) -> Result<(), Box<dyn Error>> {
    let listen = |address| -> std::io::Result<TcpListener> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let listener = listen(settings.addresses[0])?;
    let site = Site::open(settings.work(true));
    let mut stop = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            accepted = listener.accept() => site.serve(accepted?.0),
            _ = stop.recv() => break,
        }
    }
    drop(listener);
    site.close().await;
    Ok(())
}
