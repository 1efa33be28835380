//! Where the requests go, and how an answer tells who gave it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, Request, Uri, header};
use http_body_util::Empty;
use tokio::net::{TcpSocket, TcpStream};

/// An address that can be asked over plain HTTP.
#[derive(Clone, Debug)]
pub(crate) struct HttpUrl {
    pub(crate) authority: Authority,
    pub(crate) path: PathAndQuery,
}

impl FromStr for HttpUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let parts = text.parse::<Uri>().map_err(UrlError::Unreadable)?.into_parts();
        match parts.scheme {
            Some(scheme) if scheme == Scheme::HTTP => {}
            Some(scheme) => return Err(UrlError::NotHttp(scheme)),
            None => return Err(UrlError::NoScheme),
        }
        let authority = parts.authority.ok_or(UrlError::NoScheme)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::Credentials);
        }
        if authority.port_u16().is_none() && authority.as_str() != authority.host() {
            return Err(UrlError::Port);
        }
        let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self { authority, path })
    }
}

impl HttpUrl {
    fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(80)
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// Why a text is no address that can be asked.
#[derive(Debug)]
pub(crate) enum UrlError {
    Unreadable(http::uri::InvalidUri),
    NoScheme,
    NotHttp(Scheme),
    Credentials,
    Port,
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(_) => write!(f, "not a URL; write http://HOST:PORT/PATH"),
            Self::NoScheme => write!(f, "not a full URL; write http://HOST:PORT/PATH"),
            Self::NotHttp(scheme) => write!(
                f,
                "{scheme} is not spoken here; give the service's plain address, http://HOST:PORT/PATH"
            ),
            Self::Credentials => write!(f, "a user name in the URL is not sent; leave it out"),
            Self::Port => {
                write!(f, "not a port; write http://HOST:PORT/PATH with a port from 1 to 65535")
            }
        }
    }
}

impl std::error::Error for UrlError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable(source) => Some(source),
            Self::NoScheme | Self::NotHttp(_) | Self::Credentials | Self::Port => None,
        }
    }
}

/// The service under test: one address, resolved once, so that a name with several addresses
/// cannot spread the load over several machines.
#[derive(Debug)]
pub(crate) struct Target {
    address: SocketAddr,
    authority: Authority,
    path: PathAndQuery,
    stream_path: PathAndQuery,
    pub(crate) identity: Identity,
    sources: LoopbackSources,
}

impl Target {
    /// Every address that the name stands for, in the resolver's order.
    pub(crate) async fn resolve(url: &HttpUrl) -> io::Result<Vec<SocketAddr>> {
        // An IPv6 address is written in brackets in a URL, and without for the resolver.
        let host = url.authority.host().trim_start_matches('[').trim_end_matches(']');
        Ok(tokio::net::lookup_host((host, url.port())).await?.collect())
    }

    pub(crate) fn new(
        address: SocketAddr,
        url: &HttpUrl,
        stream_url: Option<&HttpUrl>,
        identity: Identity,
    ) -> Self {
        Self {
            address,
            authority: url.authority.clone(),
            path: url.path.clone(),
            stream_path: stream_url.unwrap_or(url).path.clone(),
            identity,
            sources: LoopbackSources::default(),
        }
    }

    /// Opens a connection that sends every write at once.
    pub(crate) async fn connect(&self) -> io::Result<TcpStream> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(source) = self.sources.next(self.address.ip()) {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Says whether the service was found to wait for the client to close, though asked to close.
    pub(crate) fn leaves_closing_to_us(&self) -> bool {
        self.sources.needed.load(Ordering::Relaxed)
    }

    pub(crate) fn note_that_closing_is_left_to_us(&self) {
        self.sources.needed.store(true, Ordering::Relaxed);
    }

    /// The request on a connection of its own.
    ///
    /// It asks the service to close, so that the closed connection lingers in TIME_WAIT (RFC 9293,
    /// 3.3.2) on the service's side, where it blocks no port that a client could use next.
    pub(crate) fn single_request(&self) -> Request<Empty<Bytes>> {
        let mut request = self.request(&self.path);
        request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        request
    }

    /// The request on a connection that is kept.
    pub(crate) fn kept_alive_request(&self) -> Request<Empty<Bytes>> {
        self.request(&self.path)
    }

    /// The request on a connection of HTTP/2, whose `:scheme` and `:authority` come from the URI.
    pub(crate) fn http2_request(&self) -> Request<()> {
        let uri = Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(self.authority.clone())
            .path_and_query(self.path.clone())
            .build()
            .expect("path and authority were parsed as such");
        let mut request = Request::new(());
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_2;
        request
    }

    /// The request whose answer is read for as long as it lasts.
    pub(crate) fn stream_request(&self) -> Request<Empty<Bytes>> {
        self.request(&self.stream_path)
    }

    fn request(&self, path: &PathAndQuery) -> Request<Empty<Bytes>> {
        Request::get(path.as_str())
            .header(header::HOST, self.authority.as_str())
            .body(Empty::new())
            .expect("path and authority were parsed as such")
    }
}

/// Where in an answer the answering process names itself.
#[derive(Clone, Debug)]
pub(crate) enum Identity {
    /// The number at the start of the body.
    LeadingNumber,
    /// The value of this response header.
    Header(HeaderName),
}

impl Identity {
    /// Finds the name in an answer, of whose body the beginning suffices.
    pub(crate) fn find(&self, headers: &HeaderMap, body_start: &[u8]) -> Option<String> {
        let name = match self {
            Self::LeadingNumber => {
                let digits = body_start.trim_ascii_start();
                let end =
                    digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
                std::str::from_utf8(&digits[..end]).ok()?
            }
            Self::Header(header) => headers.get(header)?.to_str().ok()?.trim(),
        };
        (!name.is_empty()).then(|| name.to_owned())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeadingNumber => write!(f, "a number at the start of the body"),
            Self::Header(name) => write!(f, "the response header {name}"),
        }
    }
}

/// Client addresses on the loopback, used in turn when the service leaves closing to the client.
///
/// A client that closes first keeps the port in TIME_WAIT for a minute (Linux: TCP_TIMEWAIT_LEN), so
/// that some 28 000 ephemeral ports would be used up in half a minute at 1000 connections per second.
/// On Linux all of 127.0.0.0/8 is local, and each address has ports of its own.
#[derive(Debug, Default)]
struct LoopbackSources {
    needed: AtomicBool,
    turn: AtomicU32,
}

impl LoopbackSources {
    const COUNT: u32 = 240;

    fn next(&self, target: IpAddr) -> Option<IpAddr> {
        let is_plain_loopback = matches!(target, IpAddr::V4(address) if address.is_loopback());
        if !cfg!(target_os = "linux") || !is_plain_loopback || !self.needed.load(Ordering::Relaxed)
        {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % Self::COUNT;
        Some(IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 0, 2).to_bits() + turn)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_path_asks_for_the_root() {
        let url = "http://localhost:80".parse::<HttpUrl>().unwrap();
        assert_eq!(url.to_string(), "http://localhost:80/");
    }

    #[test]
    fn what_is_not_plain_http_is_refused_with_advice() {
        for text in [
            "https://localhost/",
            "localhost:80",
            "http://",
            "ftp://x/",
            "http://a b/",
            "http://a:99999/",
            "",
        ] {
            let error = text.parse::<HttpUrl>().unwrap_err().to_string();
            assert!(error.contains("http://HOST:PORT/PATH"), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_leading_number_is_the_identity() {
        let find = |body: &str| Identity::LeadingNumber.find(&HeaderMap::new(), body.as_bytes());
        assert_eq!(find("4711\n"), Some("4711".to_owned()));
        assert_eq!(find(" 12 v3"), Some("12".to_owned()));
        assert_eq!(find("pid 12"), None);
        assert_eq!(find(""), None);
    }
}
