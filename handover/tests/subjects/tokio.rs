//! A program under test: everything in Tokio.
//!
//! `subject_tokio FOLDER RUNTIME HOW`. The runtime is `current` or `multi`; how it accepts is
//! `loop`, `stream`, `tasks` (many at once), `cancelled` (each attempt given up after a moment),
//! `axum` or `axum-graceful`. It listens with TCP, and in the folder on `stream`, `seqpacket` and
//! `datagram`, and with UDP. Every answer begins with the number of the process.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use handover::tokio::{
    TcpListener, UdpSocket, UnixDatagram, UnixListener, UnixSeqpacketListener, ready,
};
use handover::{Bind, Connection, Guard, Handover};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().expect("FOLDER RUNTIME HOW");
    let (folder, runtime, how) = (PathBuf::from(next()), next(), next());
    let handover = Handover::builder().max_generations(100).start()?;
    if how == "no-runtime" {
        return outside(handover);
    }
    runtime_of(&runtime)?.block_on(serve(handover, &folder, &how))
}

fn runtime_of(kind: &str) -> io::Result<Runtime> {
    match kind {
        "current" => Builder::new_current_thread().enable_all().build(),
        _ => Builder::new_multi_thread().worker_threads(4).enable_all().build(),
    }
}

/// Calls what needs a runtime without one.
fn outside(handover: Handover) -> Result<(), Box<dyn Error>> {
    let listener = handover.listen::<TcpListener>("tcp", "127.0.0.1:0").expect_err("no runtime");
    println!("listen: {listener}: {}", listener.source().expect("a cause"));
    let mut ready = std::pin::pin!(ready(handover));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(Err(error)) = Pin::new(&mut ready).poll(&mut cx) else {
        return Err("it is not ready at once".into());
    };
    println!("ready: {error}: {}", error.source().expect("a cause"));
    Ok(())
}

async fn serve(handover: Handover, folder: &Path, how: &str) -> Result<(), Box<dyn Error>> {
    let tcp: TcpListener = handover.listen("tcp", "127.0.0.1:0")?;
    let udp: UdpSocket = handover.listen("udp", "127.0.0.1:0")?;
    let path = |name: &str| Bind::from(folder.join(name).as_path());
    let stream: UnixListener = handover.listen("stream", path("stream"))?;
    let seqpacket: UnixSeqpacketListener = handover.listen("seqpacket", path("seqpacket"))?;
    let datagram: UnixDatagram = handover.listen("datagram", path("datagram"))?;
    println!("listening on {} {}", tcp.local_addr()?, udp.local_addr()?);

    // A state that takes its time, in a thread that is the library's: the runtime goes on.
    let fifo = folder.join("fifo");
    handover.provide_state("slow", 1, move |_| {
        if fifo.exists() {
            println!("writing slow");
            std::fs::read(&fifo)?;
        }
        Ok(())
    })?;

    let ticks = Arc::new(AtomicU64::new(0));
    let running = ready(handover).await?;
    let generation = running.generation();
    println!("serving {generation}");
    tokio::spawn(tick(Arc::clone(&ticks)));
    tokio::spawn(take_datagrams(udp));
    tokio::spawn(take_unix_datagrams(datagram));
    let packets = tokio::spawn(take_packets(seqpacket));
    // The one listener is accepted from in the way asked for, the other as simply as can be.
    let accepted = match how {
        "stream" => tokio::spawn(accept_stream(tcp)),
        "tasks" => tokio::spawn(accept_in_tasks(tcp)),
        "cancelled" => tokio::spawn(accept_cancelled(tcp)),
        "axum" | "axum-graceful" => {
            return serve_http(running, tcp, stream, how == "axum-graceful").await;
        }
        _ => tokio::spawn(accept_loop(tcp)),
    };
    let unix = tokio::spawn(async move {
        while let Some(connection) = stream.accept().await? {
            tokio::spawn(echo(connection));
        }
        io::Result::Ok(())
    });

    tokio::spawn(upgrade_on_signal(running.handle()));
    let gone = running.predecessor_gone();
    tokio::spawn(async move {
        gone.await;
        println!("predecessor of {generation} gone");
    });
    println!("ending {generation} {:?}", running.wait().await);
    accepted.await??;
    unix.await??;
    packets.await??;
    let drained = running.drain().await?;
    println!("drained {generation} {drained}, {} ticks", ticks.load(Ordering::SeqCst));
    Ok(())
}

/// Asks for two upgrades at once at each SIGUSR1, and shows both verdicts. A third is given up at
/// once, which harms nobody.
async fn upgrade_on_signal(handle: handover::Handle) -> io::Result<()> {
    let mut signals = signal(SignalKind::user_defined1())?;
    println!("generation {} takes SIGUSR1", handle.generation());
    while signals.recv().await.is_some() {
        // The answer is to be printed before the process goes.
        let _guard = handle.guard();
        let (first, second) = (handle.upgrade(), handle.upgrade());
        let given_up = timeout(Duration::ZERO, handle.draining()).await.is_err();
        drop(handle.upgrade());
        let (first, second) = tokio::join!(first, second);
        println!("first {first}; second {second}; not draining {given_up}");
    }
    Ok(())
}

/// Tells how long the runtime was kept from running this, at worst.
async fn tick(ticks: Arc<AtomicU64>) {
    let (mut last, mut worst) = (Instant::now(), Duration::ZERO);
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        worst = worst.max(last.elapsed());
        last = Instant::now();
        if ticks.fetch_add(1, Ordering::SeqCst) % 100 == 99 {
            println!("100 ticks, {} ms at worst", worst.as_millis());
            worst = Duration::ZERO;
        }
    }
}

async fn accept_loop(listener: TcpListener) -> io::Result<()> {
    while let Some((connection, _)) = listener.accept().await? {
        tokio::spawn(echo(connection));
    }
    Ok(())
}

async fn accept_stream(listener: TcpListener) -> io::Result<()> {
    let mut incoming = std::pin::pin!(listener.incoming());
    loop {
        let next =
            std::future::poll_fn(|cx| futures_core::Stream::poll_next(incoming.as_mut(), cx));
        match next.await {
            Some(accepted) => drop(tokio::spawn(echo(accepted?.0))),
            None => return Ok(()),
        }
    }
}

async fn accept_in_tasks(listener: TcpListener) -> io::Result<()> {
    let listener = Arc::new(listener);
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let listener = Arc::clone(&listener);
            tokio::spawn(async move {
                while let Some((connection, _)) = listener.accept().await? {
                    tokio::spawn(echo(connection));
                }
                io::Result::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic")?;
    }
    Ok(())
}

async fn accept_cancelled(listener: TcpListener) -> io::Result<()> {
    loop {
        tokio::select! {
            biased;
            () = tokio::task::yield_now() => {}
            accepted = listener.accept() => match accepted? {
                Some((connection, _)) => drop(tokio::spawn(echo(connection))),
                None => return Ok(()),
            },
        }
        let soon = timeout(Duration::from_micros(200), listener.accept());
        match soon.await {
            Ok(Ok(Some((connection, _)))) => drop(tokio::spawn(echo(connection))),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
    }
}

async fn serve_http(
    running: handover::tokio::Running,
    tcp: TcpListener,
    unix: UnixListener,
    graceful: bool,
) -> Result<(), Box<dyn Error>> {
    let generation = running.generation();
    let answer = format!("{} {generation}\n", std::process::id());
    let app = Router::new().route("/", get(async move || answer));
    let (tcp_ended, unix_ended) = (tcp.ended(), unix.ended());
    if graceful {
        let tcp = axum::serve(tcp, app.clone()).with_graceful_shutdown(tcp_ended);
        let unix = axum::serve(unix, app).with_graceful_shutdown(unix_ended);
        let (tcp, unix) = tokio::join!(tcp, unix);
        tcp.and(unix)?;
    } else {
        let tcp = axum::serve(tcp, app.clone());
        tokio::spawn(async move { tcp.await });
        let unix = axum::serve(unix, app);
        tokio::spawn(async move { unix.await });
        tokio::join!(tcp_ended, unix_ended);
    }
    println!("ended {generation}");
    println!("drained {generation} {}", running.drain().await?);
    Ok(())
}

async fn take_packets(listener: UnixSeqpacketListener) -> io::Result<()> {
    while let Some(connection) = listener.accept().await? {
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            loop {
                let bytes = connection.recv(&mut buffer).await?;
                if bytes == 0 {
                    return io::Result::Ok(());
                }
                connection.send(&answer(&buffer[..bytes])).await?;
            }
        });
    }
    Ok(())
}

async fn take_datagrams(socket: UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 1024];
    while let Some((bytes, from, _guard)) = socket.recv_from(&mut buffer).await? {
        socket.send_to(&answer(&buffer[..bytes]), from).await?;
    }
    Ok(())
}

async fn take_unix_datagrams(socket: UnixDatagram) -> io::Result<()> {
    let mut buffer = [0; 1024];
    while let Some((bytes, from, _guard)) = socket.recv_from(&mut buffer).await? {
        socket.send_to(&answer(&buffer[..bytes]), &from).await?;
    }
    Ok(())
}

fn answer(question: &[u8]) -> Vec<u8> {
    [format!("{} ", std::process::id()).as_bytes(), question].concat()
}

/// Echoes lines. The stream is wrapped, and taken apart, on the way.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(connection: Connection<S>) -> io::Result<()> {
    let (mut stream, guard): (BufReader<S>, Guard) = connection.map(BufReader::new).into_parts();
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        stream.write_all(&answer(line.as_bytes())).await?;
        line.clear();
    }
    drop(guard);
    Ok(())
}
