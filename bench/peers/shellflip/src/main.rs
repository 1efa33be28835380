//! As the example of shellflip has it: a signal restarts, and when the successor is ready the old process stops
//! accepting and waits for its clients. shellflip hands no listeners over; its documentation has both processes
//! bind theirs, here with SO_REUSEPORT, since the address is to stay the same.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use shellflip::RestartConfig;
use shellflip::lifecycle::receive_from_old_process;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use web::{BACKLOG, Settings, Site};

fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings::read()?;
    Runtime::new()?.block_on(serve(&settings))
}

async fn serve(settings: &Settings) -> Result<(), Box<dyn Error>> {
    let restart = RestartConfig { restart_signal: SignalKind::hangup(), ..Default::default() };
    let is_first = receive_from_old_process().is_none();
    let restarted = restart.try_into_restart_task()?;
    let mut stop = signal(SignalKind::terminate())?;
    let listeners = settings.addresses.iter().map(|address| listen(*address));
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    let stalls = settings.work(is_first);
    let site = Arc::new(Site::open(stalls));
    let accepting = listeners.into_iter().map(|listener| {
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    site.serve(stream);
                }
            }
        })
    });
    let accepting: Vec<_> = accepting.collect();
    // To be polled first says that this process is ready.
    tokio::select! {
        restarted = restarted => { restarted?; }
        _ = stop.recv() => {}
    }
    for task in accepting {
        task.abort();
        let _ = task.await;
    }
    if let Some(site) = Arc::into_inner(site) {
        site.close().await;
    }
    Ok(())
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG.cast_signed())?;
    TcpListener::from_std(socket.into())
}
