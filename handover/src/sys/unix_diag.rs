//! What the kernel knows of a Unix listener and no socket option tells (sock_diag(7)).

use std::io;
use std::os::fd::BorrowedFd;

use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::socket::Queue;

/// The queue of a listening Unix socket; `None` if the kernel does not tell, which it may be
/// configured or told not to.
///
/// Does not block: the kernel answers before the request's send(2) has returned.
pub(super) fn queue(listener: BorrowedFd<'_>) -> Option<Queue> {
    let inode = u32::try_from(rustix::fs::fstat(listener).ok()?.st_ino).ok()?;
    let mut answer = [0; 256];
    let bytes = ask(&request(inode), &mut answer).ok()?;
    read_answer(answer.get(..bytes)?, inode)
}

fn ask(request: &[u8], answer: &mut [u8]) -> io::Result<usize> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = AddressFamily::NETLINK;
    let socket = rustix::net::socket_with(family, SocketType::RAW, flags, Some(SOCK_DIAG))?;
    // What is sent to no address is sent to the kernel (netlink(7)).
    rustix::net::send(&socket, request, SendFlags::NOSIGNAL)?;
    let (_, bytes) = rustix::net::recv(&socket, answer, RecvFlags::TRUNC)?;
    Ok(bytes)
}

/// `nlmsghdr`: length, type, flags, sequence number, sender.
const HEADER_BYTES: usize = 16;

/// `unix_diag_req`: family, protocol, padding, states, inode, what to show, cookie.
const REQUEST_BYTES: usize = 24;

/// `unix_diag_msg`: family, type, state, padding, inode, cookie. Attributes follow.
const MESSAGE_BYTES: usize = 16;

/// `nlattr`: length, type. The value follows, and fills up to a multiple of four.
const ATTRIBUTE_HEADER_BYTES: usize = 4;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_UNIX: u8 = libc::AF_UNIX as u8;
const TCP_LISTEN: u8 = 10;

/// `UNIX_DIAG_RQLEN`: for a listener, the length of its queue and the backlog.
const QUEUE_LENGTHS: u16 = 4;

/// One socket, by its inode (linux/unix_diag.h).
fn request(inode: u32) -> Vec<u8> {
    const ANY_STATE: u32 = u32::MAX;
    const SHOW_QUEUE_LENGTHS: u32 = 0x10;
    const ANY_COOKIE: u32 = u32::MAX;
    let length = (HEADER_BYTES + REQUEST_BYTES) as u32;
    let mut request = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    request.extend(length.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // The sequence number and the sender: there is one request on the socket, and the kernel knows.
    request.extend([0; 8]);
    request.extend([AF_UNIX, 0, 0, 0]);
    for field in [ANY_STATE, inode, SHOW_QUEUE_LENGTHS, ANY_COOKIE, ANY_COOKIE] {
        request.extend(field.to_ne_bytes());
    }
    request
}

/// Reads the answer, if it is one of this listener and not an error.
fn read_answer(answer: &[u8], inode: u32) -> Option<Queue> {
    let length = u32_at(answer, 0)? as usize;
    let message = answer.get(HEADER_BYTES..length)?;
    let is_of_listener = u16_at(answer, 4)? == SOCK_DIAG_BY_FAMILY
        && message.first() == Some(&AF_UNIX)
        && message.get(2) == Some(&TCP_LISTEN)
        && u32_at(message, 4)? == inode;
    let mut attributes = is_of_listener.then(|| message.get(MESSAGE_BYTES..))??;
    while let Some(length) = u16_at(attributes, 0) {
        let attribute = attributes.get(ATTRIBUTE_HEADER_BYTES..length.into())?;
        if u16_at(attributes, 2)? == QUEUE_LENGTHS {
            let (queued, backlog) = (u32_at(attribute, 0)?, u32_at(attribute, 4)?);
            return Some(Queue { queued: queued.into(), backlog: Some(backlog.into()) });
        }
        attributes = attributes.get(usize::from(length).next_multiple_of(4)..)?;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(state: u8, inode: u32, attributes: &[u8]) -> Vec<u8> {
        let length = (HEADER_BYTES + MESSAGE_BYTES + attributes.len()) as u32;
        let mut answer = length.to_ne_bytes().to_vec();
        answer.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer.extend([0; 10]);
        answer.extend([AF_UNIX, 1, state, 0]);
        answer.extend(inode.to_ne_bytes());
        answer.extend([0; 8]);
        answer.extend(attributes);
        answer
    }

    fn attribute(number: u16, value: &[u8]) -> Vec<u8> {
        let length = (ATTRIBUTE_HEADER_BYTES + value.len()) as u16;
        let mut attribute = length.to_ne_bytes().to_vec();
        attribute.extend(number.to_ne_bytes());
        attribute.extend(value);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        attribute
    }

    fn lengths() -> Vec<u8> {
        attribute(QUEUE_LENGTHS, &[3u32.to_ne_bytes(), 7u32.to_ne_bytes()].concat())
    }

    #[test]
    fn the_lengths_are_found_behind_other_attributes() {
        let attributes = [attribute(6, &[0]), lengths()].concat();
        let queue = read_answer(&answer(TCP_LISTEN, 9, &attributes), 9);
        assert_eq!(queue, Some(Queue { queued: 3, backlog: Some(7) }));
    }

    #[test]
    fn what_is_no_whole_answer_of_the_listener_is_nothing() {
        let whole = answer(TCP_LISTEN, 9, &lengths());
        for length in 0..whole.len() {
            assert_eq!(read_answer(&whole[..length], 9), None, "{length} bytes");
        }
        assert_eq!(read_answer(&whole, 8), None, "another inode");
        assert_eq!(read_answer(&answer(1, 9, &lengths()), 9), None, "connected");
        assert_eq!(read_answer(&answer(TCP_LISTEN, 9, &[]), 9), None, "no lengths");
        let endless = [0; ATTRIBUTE_HEADER_BYTES];
        assert_eq!(read_answer(&answer(TCP_LISTEN, 9, &endless), 9), None, "an empty attribute");
    }
}
