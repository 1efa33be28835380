//! The HTTP/2 of the service, frame by frame, because no library misbehaves on demand.

use std::io::{Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockRef;

use super::{Asked, FIRST_PID, Reply, Shared};

/// What a client that knows of HTTP/2 says first (RFC 9113, 3.4).
pub(super) const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// RFC 9113, 6 and 7.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;

// RFC 7541, appendix A: `:status: 200` and `:status: 500` as they are in the static table.
const OK: u8 = 0x80 | 8;
const INTERNAL_SERVER_ERROR: u8 = 0x80 | 14;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Shared {
    /// Serves one connection of HTTP/2. An error means that the client has left.
    pub(super) fn converse_in_http2(&self, mut stream: &TcpStream) -> Result<()> {
        stream.read_exact(&mut [0; PREFACE.len()])?;
        write(stream, SETTINGS, 0, 0, &[])?;
        let (mut nth, mut together) = (0, Vec::new());
        loop {
            let frame = read(stream)?;
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => write(stream, SETTINGS, ACK, 0, &[])?,
                PING if frame.flags & ACK == 0 => write(stream, PING, ACK, 0, &frame.payload)?,
                HEADERS => {
                    drop(self.gate.lock().unwrap());
                    let reply = (self.reply)(Asked {
                        nth,
                        keeps: true,
                        http2: true,
                        streams: false,
                        upgrades: self.upgrades.load(Ordering::Relaxed),
                        since_upgrade: self.since_upgrade.fetch_add(1, Ordering::Relaxed) + 1,
                    });
                    nth += 1;
                    if !self.reply_in_http2(stream, frame.stream, reply, &mut together)? {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
    }

    /// Does as `reply` says; false ends the connection.
    fn reply_in_http2(
        &self,
        mut stream: &TcpStream,
        id: u32,
        reply: Reply,
        together: &mut Vec<u32>,
    ) -> Result<bool> {
        let pid = (FIRST_PID + self.upgrades.load(Ordering::Relaxed)).to_string();
        let answer = |id, flags| {
            write(stream, HEADERS, END_HEADERS, id, &[OK])?;
            write(stream, DATA, flags, id, pid.as_bytes())
        };
        let reset = |reason: u32| write(stream, RST_STREAM, 0, id, &reason.to_be_bytes());
        let go_away = |last: u32| {
            write(stream, GOAWAY, 0, 0, &[last.to_be_bytes(), NO_ERROR.to_be_bytes()].concat())
        };
        match reply {
            Reply::Answer => answer(id, END_STREAM)?,
            Reply::AnswerTogether(count) => {
                together.push(id);
                if together.len() == count {
                    together.drain(..).try_for_each(|id| answer(id, END_STREAM))?;
                }
            }
            Reply::Unavailable => {
                let flags = END_HEADERS | END_STREAM;
                write(stream, HEADERS, flags, id, &[INTERNAL_SERVER_ERROR])?;
            }
            Reply::Silence => {}
            Reply::RefuseStream => reset(REFUSED_STREAM)?,
            Reply::ResetStream => reset(INTERNAL_ERROR)?,
            Reply::AnswerAndAnnounceClose => {
                answer(id, END_STREAM)?;
                go_away(id)?;
                return close(stream);
            }
            Reply::GoAwayBelow => {
                go_away(id.saturating_sub(2))?;
                return close(stream);
            }
            Reply::GoAwayAndReset => {
                answer(id, END_STREAM)?;
                go_away(id)?;
                SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
                return Ok(false);
            }
            Reply::AnswerAndClose => {
                answer(id, END_STREAM)?;
                return close(stream);
            }
            Reply::CutBody => {
                answer(id, 0)?;
                return close(stream);
            }
            Reply::CloseUnanswered => return close(stream),
            Reply::ResetUnanswered => {
                SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
                return Ok(false);
            }
            Reply::Gibberish => {
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?;
                return close(stream);
            }
            _ => unreachable!("{reply:?} is for HTTP/1"),
        }
        Ok(true)
    }
}

/// Ends the connection without a reset, which unread data would cause.
fn close(mut stream: &TcpStream) -> Result<bool> {
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(false)
}

fn read(mut stream: &TcpStream) -> Result<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [a, b, c, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload)?;
    Ok(Frame { kind, flags, stream: u32::from_be_bytes(id), payload })
}

fn write(mut stream: &TcpStream, kind: u8, flags: u8, id: u32, payload: &[u8]) -> Result<()> {
    let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
    let frame = [&length, [kind, flags].as_slice(), &id.to_be_bytes(), payload].concat();
    stream.write_all(&frame)
}
