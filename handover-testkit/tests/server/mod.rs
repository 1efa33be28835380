//! A server in threads, with the behaviour that a test gives it.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

/// A listener whose every connection is served by a thread of its own, until the test process ends.
pub(crate) struct Server {
    address: Option<SocketAddr>,
}

impl Server {
    /// Listens on a port of its own; a connection is closed when `serve` returns.
    pub(crate) fn tcp(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
        let address = listener.local_addr().expect("it is bound");
        accept(move || listener.accept().map(|(stream, _)| stream), serve);
        Self { address: Some(address) }
    }

    /// Listens on a path.
    pub(crate) fn unix(path: &Path, serve: impl Fn(UnixStream) + Clone + Send + 'static) -> Self {
        let listener = UnixListener::bind(path).expect("the path is free");
        accept(move || listener.accept().map(|(stream, _)| stream), serve);
        Self { address: None }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address.expect("a server on a port")
    }
}

/// Reads the head of a request, byte by byte, so that nothing is read beyond it.
pub(crate) fn read_head(stream: &TcpStream) {
    read_until(stream, b"\r\n\r\n");
}

/// Reads a line with its end; empty if there is none.
pub(crate) fn read_line(stream: &mut impl Read) -> String {
    read_until(stream, b"\n")
}

fn read_until(mut stream: impl Read, end: &[u8]) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(end) && stream.read(&mut byte).unwrap_or(0) > 0 {
        text.extend_from_slice(&byte);
    }
    String::from_utf8(text).expect("clients send text")
}

fn accept<S: Send + 'static>(
    mut next: impl FnMut() -> std::io::Result<S> + Send + 'static,
    serve: impl Fn(S) + Clone + Send + 'static,
) {
    thread::spawn(move || {
        while let Ok(stream) = next() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
}
