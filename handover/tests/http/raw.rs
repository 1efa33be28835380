//! A client that writes bytes when it wants.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// As long as anything in these tests takes, and more.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A connection.
pub(crate) struct Raw(BufReader<TcpStream>);

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Raw {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        self.answer()
    }

    pub(crate) fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).unwrap() > 0, "it ended after: {head:?}");
        }
        head.to_ascii_lowercase()
    }

    /// Reads one answer, with a length or in chunks.
    pub(crate) fn answer(&mut self) -> Answer {
        let head = self.head();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length.parse().unwrap(), 0);
                self.0.read_exact(&mut body).unwrap();
            }
            None if head.contains("transfer-encoding: chunked") => loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                body.extend(chunk);
            },
            None => {}
        }
        Answer { head, body: String::from_utf8_lossy(&body).into_owned() }
    }

    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let length = self.line();
        let mut chunk = vec![0; usize::from_str_radix(length.trim(), 16).unwrap() + 2];
        self.0.read_exact(&mut chunk).unwrap();
        assert!(chunk.ends_with(b"\r\n"));
        chunk.truncate(chunk.len() - 2);
        chunk
    }

    /// Reads a frame of HTTP/2; returns its type (RFC 9113, 4.1).
    pub(crate) fn frame(&mut self) -> u8 {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut payload).unwrap();
        head[3]
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    /// Waits for the end; nothing may come before.
    pub(crate) fn assert_ended(&mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }

    /// Whether it has ended, or anything has come, by now.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.0.get_mut().set_nonblocking(true).unwrap();
        let read = self.0.fill_buf().map(<[u8]>::len);
        self.0.get_mut().set_nonblocking(false).unwrap();
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Waits for the end, however it comes.
    pub(crate) fn wait_cut(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
}

impl Answer {
    pub(crate) fn says_close(&self) -> bool {
        self.head.contains("connection: close\r\n")
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.head.starts_with("http/1.1 200 ")
    }

    /// The process that has answered.
    pub(crate) fn pid(&self) -> u32 {
        assert!(self.is_ok(), "{self:?}");
        self.body.split_whitespace().next().unwrap().parse().unwrap()
    }
}
