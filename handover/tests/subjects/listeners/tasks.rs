//! The same program in Tokio: a task for each listener and each connection.

use std::future::Future;
use std::io;
use std::sync::Arc;

use handover::tokio::{
    SeqpacketStream, TcpListener, UdpSocket, UnixDatagram, UnixListener, UnixSeqpacketListener,
    ready,
};
use handover::{ClaimError, Connection};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::task::spawn_blocking;

use crate::config::{Config, Socket};
use crate::{App, Fallible, From, Serve, announce, chain, claim_all, start};

pub(crate) fn run(config: Config) -> Fallible<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    runtime.block_on(main(config))
}

async fn main(config: Config) -> Fallible<()> {
    let handover = start(&config)?;
    let (serves, descriptors) = match claim_all(&handover, &config, claim) {
        Ok(claimed) => claimed,
        Err(error) => {
            let _ = handover.refuse(chain(&*error));
            return Err(error);
        }
    };
    let running = ready(handover).await?;
    let app = Arc::new(App {
        config,
        handle: running.handle(),
        claim,
        held: Default::default(),
        descriptors: descriptors.into(),
    });
    app.begin(serves);
    say!("draining {} {:?}", std::process::id(), running.wait().await);
    say!("drained {} {}", std::process::id(), running.drain().await?);
    Ok(())
}

/// Claims a socket; it is served by what is returned.
pub(crate) fn claim(from: From<'_>, socket: &Socket) -> Result<Serve, ClaimError> {
    macro_rules! serve {
        ($type:ty, $serve:expr) => {{
            let listener: $type = from.listen(socket)?;
            match listener.local_addr() {
                Ok(address) => announce(&socket.name, &address),
                Err(error) => say!("error {error}"),
            }
            let socket = socket.clone();
            Ok(Box::new(move |app| {
                if socket.idle {
                    return app.hold(&socket.name, listener);
                }
                let app = Arc::clone(app);
                tokio::spawn(async move {
                    let result = $serve(&app, &socket, &listener).await;
                    drop(listener);
                    app.ended(&socket.name, result);
                });
            }))
        }};
    }
    match socket.kind.as_str() {
        "tcp" if socket.cloned => {
            let listener: TcpListener = from.listen(socket)?;
            let name = socket.name.clone();
            Ok(Box::new(move |app| match listener.try_clone_tokio() {
                Ok(clone) => app.hold(&name, (listener, clone)),
                Err(error) => say!("error {error}"),
            }))
        }
        "tcp" => serve!(TcpListener, tcp),
        "unix" => serve!(UnixListener, unix),
        "seqpacket" => serve!(UnixSeqpacketListener, seqpacket),
        "udp" => serve!(UdpSocket, udp),
        _ => serve!(UnixDatagram, datagrams),
    }
}

async fn tcp(app: &Arc<App>, socket: &Socket, listener: &TcpListener) -> io::Result<()> {
    while let Some((connection, _)) = listener.accept().await? {
        serve(socket, lines(app, connection)).await;
    }
    Ok(())
}

async fn unix(app: &Arc<App>, socket: &Socket, listener: &UnixListener) -> io::Result<()> {
    while let Some(connection) = listener.accept().await? {
        serve(socket, lines(app, connection)).await;
    }
    Ok(())
}

async fn seqpacket(
    app: &Arc<App>,
    socket: &Socket,
    listener: &UnixSeqpacketListener,
) -> io::Result<()> {
    while let Some(connection) = listener.accept().await? {
        serve(socket, messages(app, connection)).await;
    }
    Ok(())
}

/// Serves one connection in a task of its own, and takes the time until the next.
async fn serve(socket: &Socket, connection: impl Future<Output = io::Result<()>> + Send + 'static) {
    // A client that goes away is no news.
    tokio::spawn(connection);
    if let Some(slow) = socket.slow {
        tokio::time::sleep(slow).await;
    }
}

async fn udp(app: &Arc<App>, socket: &Socket, udp: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 2048];
    while let Some((bytes, from, _guard)) = udp.recv_from(&mut buffer).await? {
        udp.send_to(&app.datagram(socket, &buffer[..bytes]), from).await?;
    }
    Ok(())
}

async fn datagrams(app: &Arc<App>, socket: &Socket, datagrams: &UnixDatagram) -> io::Result<()> {
    let mut buffer = [0; 2048];
    while let Some((bytes, from, _guard)) = datagrams.recv_from(&mut buffer).await? {
        let answer = app.datagram(socket, &buffer[..bytes]);
        if !from.is_unnamed() {
            datagrams.send_to(&answer, &from).await?;
        }
    }
    Ok(())
}

fn lines<S>(
    app: &Arc<App>,
    connection: Connection<S>,
) -> impl Future<Output = io::Result<()>> + Send + use<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let app = Arc::clone(app);
    async move {
        let mut connection = BufReader::new(connection);
        let mut line = String::new();
        while connection.read_line(&mut line).await? > 0 {
            let answer = answer(&app, line.trim_end().to_owned()).await?;
            connection.write_all(answer.as_bytes()).await?;
            line.clear();
        }
        Ok(())
    }
}

fn messages(
    app: &Arc<App>,
    connection: Connection<SeqpacketStream>,
) -> impl Future<Output = io::Result<()>> + Send + use<> {
    let app = Arc::clone(app);
    async move {
        let mut buffer = [0; 2048];
        loop {
            let bytes = connection.recv(&mut buffer).await?;
            if bytes == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
            connection.send(answer(&app, text).await?.trim_end().as_bytes()).await?;
        }
    }
}

/// Commands may block.
async fn answer(app: &Arc<App>, line: String) -> io::Result<String> {
    if !line.starts_with('!') {
        return Ok(app.answer(&line));
    }
    let app = Arc::clone(app);
    Ok(spawn_blocking(move || app.answer(&line)).await?)
}
