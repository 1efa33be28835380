//! The program without a runtime: a thread for each listener and each connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use handover::{
    ClaimError, Connection, SeqpacketStream, TcpListener, UdpSocket, UnixDatagram, UnixListener,
    UnixSeqpacketListener,
};

use crate::config::{Config, Socket};
use crate::{App, Fallible, From, Serve, announce, chain, claim_all, start};

pub(crate) fn run(config: Config) -> Fallible<()> {
    let handover = start(&config)?;
    let (serves, descriptors) = match claim_all(&handover, &config, claim) {
        Ok(claimed) => claimed,
        Err(error) => {
            let _ = handover.refuse(chain(&*error));
            return Err(error);
        }
    };
    let running = handover.ready()?;
    let app = Arc::new(App {
        config,
        handle: running.handle(),
        claim,
        held: Default::default(),
        descriptors: descriptors.into(),
    });
    app.begin(serves);
    let draining = running.wait()?;
    say!("draining {} {:?}", std::process::id(), draining.ending());
    say!("drained {} {}", std::process::id(), draining.drain()?);
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
                thread::spawn(move || {
                    let serve: fn(&Arc<App>, &Socket, &$type) -> io::Result<()> = $serve;
                    let result = serve(&app, &socket, &listener);
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
            Ok(Box::new(move |app| match listener.try_clone_std() {
                Ok(clone) => app.hold(&name, (listener, clone)),
                Err(error) => say!("error {error}"),
            }))
        }
        "tcp" => serve!(TcpListener, |app, socket, listener| {
            accept(app, socket, || listener.accept(), lines)
        }),
        "unix" => serve!(UnixListener, |app, socket, listener| {
            accept(app, socket, || listener.accept(), lines)
        }),
        "seqpacket" => serve!(UnixSeqpacketListener, |app, socket, listener| {
            accept(app, socket, || listener.accept(), messages)
        }),
        "udp" => serve!(UdpSocket, |app, socket, udp| {
            let mut buffer = [0; 2048];
            while let Some((bytes, from, _guard)) = udp.recv_from(&mut buffer)? {
                udp.send_to(&app.datagram(socket, &buffer[..bytes]), from)?;
            }
            Ok(())
        }),
        _ => serve!(UnixDatagram, |app, socket, datagrams| {
            let mut buffer = [0; 2048];
            while let Some((bytes, from, _guard)) = datagrams.recv_from(&mut buffer)? {
                let answer = app.datagram(socket, &buffer[..bytes]);
                if !from.is_unnamed() {
                    datagrams.send_to(&answer, &from)?;
                }
            }
            Ok(())
        }),
    }
}

fn accept<S: Send + 'static>(
    app: &Arc<App>,
    socket: &Socket,
    accept: impl Fn() -> io::Result<Option<Connection<S>>>,
    serve: fn(&Arc<App>, Connection<S>) -> io::Result<()>,
) -> io::Result<()> {
    while let Some(connection) = accept()? {
        let app = Arc::clone(app);
        // A client that goes away is no news.
        let spawned = thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || serve(&app, connection).unwrap_or_default());
        if let Err(error) = spawned {
            say!("error no thread: {error}");
        }
        if let Some(slow) = socket.slow {
            thread::sleep(slow);
        }
    }
    Ok(())
}

fn lines<S: AsFd + Read + Write>(app: &Arc<App>, connection: Connection<S>) -> io::Result<()> {
    let mut connection = BufReader::new(connection);
    let mut line = String::new();
    while connection.read_line(&mut line)? > 0 {
        let answer = app.answer(line.trim_end());
        connection.get_mut().write_all(answer.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn messages(app: &Arc<App>, connection: Connection<SeqpacketStream>) -> io::Result<()> {
    let mut buffer = [0; 2048];
    loop {
        let bytes = connection.recv(&mut buffer)?;
        if bytes == 0 {
            return Ok(());
        }
        let answer = app.answer(&String::from_utf8_lossy(&buffer[..bytes]));
        connection.send(answer.trim_end().as_bytes())?;
    }
}
