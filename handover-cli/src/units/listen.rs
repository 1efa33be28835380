//! `--listen NAME=ADDRESS`.

use std::net::SocketAddr;

/// A socket that systemd opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listen {
    /// By what name the program asks for it.
    pub(super) name: String,
    pub(super) kind: Kind,
    /// As the unit has it, specifiers not yet escaped.
    pub(super) address: String,
}

/// What it is opened as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Stream,
    Datagram,
    SequentialPacket,
    Fifo,
}

/// Of a name: with the name of the service before it, it has to be the name of a file.
const MAX_NAME_BYTES: usize = 100;

/// `sun_path` of unix(7), without the zero at its end.
const MAX_PATH_BYTES: usize = 107;

impl Kind {
    /// The setting of the unit.
    pub(super) fn setting(self) -> &'static str {
        match self {
            Self::Stream => "ListenStream",
            Self::Datagram => "ListenDatagram",
            Self::SequentialPacket => "ListenSequentialPacket",
            Self::Fifo => "ListenFIFO",
        }
    }

    fn of(address: &str) -> (Self, &str) {
        let kinds = [
            ("udp:", Self::Datagram),
            ("seqpacket:", Self::SequentialPacket),
            ("fifo:", Self::Fifo),
        ];
        let found = kinds
            .into_iter()
            .find_map(|(prefix, kind)| Some((kind, address.strip_prefix(prefix)?)));
        found.unwrap_or((Self::Stream, address))
    }
}

impl Listen {
    /// Reads what was given.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and what it could be.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let (name, address) =
            text.split_once('=').ok_or("must be NAME=ADDRESS, such as http=0.0.0.0:80")?;
        check_name(name)?;
        let (kind, address) = Kind::of(address);
        match kind {
            Kind::Fifo if !is_path(address) => {
                return Err(format!("a FIFO has an absolute path, and `{address}` is none"));
            }
            Kind::SequentialPacket if !is_path(address) && !is_abstract(address) => {
                return Err(format!(
                    "such a socket has a path or @NAME, and `{address}` is neither"
                ));
            }
            _ => check_address(address)?,
        }
        Ok(Self { name: name.to_owned(), kind, address: address.to_owned() })
    }

    /// Where that is, for whoever has to write the same address into the program.
    pub(super) fn in_the_program(&self) -> String {
        match self.address.parse::<u16>() {
            Ok(port) => format!("[::]:{port}, which takes IPv4 as well"),
            Err(_) => self.address.clone(),
        }
    }
}

/// The name is a part of a file name, and `FileDescriptorName=` takes no colon.
fn check_name(name: &str) -> Result<(), String> {
    let takes = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(takes) {
        return Err(format!("`{name}` is no name of letters, digits, `-`, `_` and `.`"));
    }
    Ok(())
}

fn check_address(address: &str) -> Result<(), String> {
    let is_port = address.parse::<u16>().is_ok_and(|port| port != 0);
    // A scope comes after the port: [fe80::1]:80%eth0.
    let (plain, scope) = address.split_once('%').unwrap_or((address, "eth0"));
    let has_scope = !scope.is_empty() && scope.chars().all(|c| c.is_ascii_graphic() && c != '%');
    let is_inet = has_scope && plain.parse::<SocketAddr>().is_ok_and(|at| at.port() != 0);
    let is_vsock = address.strip_prefix("vsock:").is_some_and(is_vsock);
    if is_port || is_inet || is_vsock || is_path(address) || is_abstract(address) {
        return Ok(());
    }
    Err(format!(
        "`{address}` is no address; write 8080, 127.0.0.1:8080, [::1]:8080, /run/app.sock or @app"
    ))
}

fn is_vsock(address: &str) -> bool {
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    address
        .split_once(':')
        .is_some_and(|(cid, port)| (cid.is_empty() || is_number(cid)) && is_number(port))
}

fn is_path(address: &str) -> bool {
    address.starts_with('/') && is_word(address) && !address.ends_with('/')
}

fn is_abstract(address: &str) -> bool {
    address.starts_with('@') && address.len() > 1 && is_word(address)
}

fn is_word(text: &str) -> bool {
    text.len() <= MAX_PATH_BYTES && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_socket_can_be_asked_for() {
        for (given, kind, address) in [
            ("a=8080", Kind::Stream, "8080"),
            ("a=0.0.0.0:80", Kind::Stream, "0.0.0.0:80"),
            ("a=[::1]:80", Kind::Stream, "[::1]:80"),
            ("a=[fe80::1]:80%eth0", Kind::Stream, "[fe80::1]:80%eth0"),
            ("a=/run/a.sock", Kind::Stream, "/run/a.sock"),
            ("a=@a", Kind::Stream, "@a"),
            ("a=vsock:2:99", Kind::Stream, "vsock:2:99"),
            ("a=udp:53", Kind::Datagram, "53"),
            ("a=seqpacket:/run/a", Kind::SequentialPacket, "/run/a"),
            ("a=fifo:/run/a", Kind::Fifo, "/run/a"),
        ] {
            let expected = Listen { name: "a".to_owned(), kind, address: address.to_owned() };
            assert_eq!(Listen::read(given), Ok(expected), "{given}");
        }
    }

    #[test]
    fn what_systemd_would_refuse_is_refused() {
        for refused in [
            "8080",
            "=80",
            "a b=80",
            "a:b=80",
            "a/b=80",
            "a=",
            "a=0",
            "a=70000",
            "a=localhost:80",
            "a=127.0.0.1",
            "a=run/a",
            "a=/run/a b",
            "a=@",
            "a=/run/",
            "a=vsock:x:1",
            "a=fifo:80",
            "a=seqpacket:80",
            "a=udp:",
            "a=127.0.0.1:0",
            "a=[::1]:80%",
            "a=1.2.3.4:80%a b",
        ] {
            Listen::read(refused).expect_err(refused);
        }
    }
}
