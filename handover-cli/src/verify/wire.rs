//! One connection, and what became of a request on it, judged by what the wire showed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::loss::{Kind, Loss};
use super::socket::{End, Wire, WireIo};
use super::target::Identity;

/// A connection to the service, on which requests are sent one after the other.
///
/// `open`, then `exchange` (or `send` and `read_body`) any number of times, with `closed` in between
/// to learn that the service closed it while idle. HTTP is hyper's; what a failure *means* is read off
/// the socket, because an error of the HTTP library cannot tell a reset from an end of file, nor
/// whether the service ever had the request.
pub(crate) struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
    driver: Driver,
    wire: Arc<Wire>,
    is_reused: bool,
}

/// How much of a body is kept: enough for any identity, and little of a body that is read through.
pub(super) const KEPT_BYTES: usize = 64;

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) verdict: Result<String, Loss>,
    /// The service said that it closes the connection after this answer.
    pub(crate) announces_close: bool,
}

/// Why there is no complete answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The service had closed the idle connection before a byte was sent. Any client can safely send
    /// the request on another connection, so nothing is lost yet.
    Unsent,
    Lost(Loss),
}

impl Connection {
    /// Speaks HTTP on a connected socket.
    pub(crate) async fn open(stream: TcpStream) -> Result<Self, Loss> {
        let wire = Arc::new(Wire::new(stream));
        let io = TokioIo::new(WireIo(Arc::clone(&wire)));
        let (sender, driver) = http1::handshake(io)
            .await
            .map_err(|error| Loss::new(Kind::Other, format!("cannot speak HTTP: {error}")))?;
        let driver = Driver(Some(Box::pin(driver)));
        Ok(Self { sender, driver, wire, is_reused: false })
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<Empty<Bytes>>,
        identity: &Identity,
    ) -> Result<Answer, Failure> {
        let mut response = self.send(request).await?;
        let body_start = self.read_body(response.body_mut()).await?;
        self.is_reused = true;
        Ok(Answer {
            verdict: judge(&response, &body_start, identity),
            announces_close: announces_close(&response),
        })
    }

    /// Sends a request and reads the head of the answer.
    pub(crate) async fn send(
        &mut self,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        self.wire.begin();
        let sender = &mut self.sender;
        let outcome = self
            .driver
            .run_beside(async {
                sender.ready().await?;
                sender.try_send_request(request).await.map_err(|error| error.into_error())
            })
            .await;
        match outcome {
            Ok(response) => Ok(response),
            Err(error) => Err(self.failure(&error).await),
        }
    }

    /// Reads a body to its end, and returns its beginning.
    pub(crate) async fn read_body(&mut self, body: &mut Incoming) -> Result<Vec<u8>, Failure> {
        let mut start = Vec::new();
        let outcome = self
            .driver
            .run_beside(async {
                while let Some(frame) = body.frame().await {
                    if let Some(data) = frame?.data_ref() {
                        let wanted = KEPT_BYTES.saturating_sub(start.len()).min(data.len());
                        start.extend_from_slice(&data[..wanted]);
                    }
                }
                Ok::<(), hyper::Error>(())
            })
            .await;
        match outcome {
            Ok(()) => Ok(start),
            Err(error) => Err(self.failure(&error).await),
        }
    }

    /// Says whether the service has ended the connection.
    pub(crate) fn was_closed(&self) -> bool {
        self.wire.end().is_some_and(|end| end != End::Failed)
    }

    /// Waits until the service closes the idle connection.
    pub(crate) async fn closed(&mut self) {
        self.driver.finish().await;
    }

    /// Waits, after the last answer, until the service has closed; false if it does not in `patience`.
    pub(crate) async fn closed_by_service(&self, patience: Duration) -> bool {
        timeout(patience, self.wire.ended()).await.is_ok()
    }

    /// Says what a failed request means.
    ///
    /// | the wire showed                                     | meaning            |
    /// |-----------------------------------------------------|--------------------|
    /// | an end before the request was written, reused       | unsent             |
    /// | an end after the first byte of an answer            | cut                |
    /// | no answer; a reset instead of an end of file        | reset              |
    /// | no answer; an end of file, then a reset; reused     | idle race          |
    /// | no answer; an end of file                           | cut                |
    /// | no end: the service said what HTTP does not allow   | wrong              |
    ///
    /// A reset after the end of file is the kernel's reply to a request that reached a closed socket:
    /// the service was done with the connection before the request came.
    async fn failure(&self, error: &hyper::Error) -> Failure {
        let wire = &self.wire;
        let end = wire.end();
        if self.is_reused && !wire.was_written() && end.is_some() {
            return Failure::Unsent;
        }
        let Some(end) = end else {
            return Failure::Lost(Loss::new(Kind::Wrong, format!("not HTTP: {error}")));
        };
        let loss = match end {
            End::Failed => Loss::new(Kind::Other, format!("cannot use the connection: {error}")),
            End::Eof | End::EofThenReset | End::Reset if wire.has_answer() => {
                Loss::new(Kind::Cut, "the connection ended in the middle of the answer")
            }
            End::Reset => Loss::new(Kind::Reset, "the connection was reset before the answer"),
            End::Eof | End::EofThenReset if self.is_reused && wire.reset_follows().await => {
                let why = "the request crossed with the unannounced close of an idle connection";
                Loss::new(Kind::IdleRace, why)
            }
            End::Eof | End::EofThenReset => {
                Loss::new(Kind::Cut, "the connection was closed without an answer")
            }
        };
        Failure::Lost(loss)
    }
}

/// Says who answered, or why the answer does not count as one.
pub(super) fn judge<B>(
    response: &Response<B>,
    body_start: &[u8],
    identity: &Identity,
) -> Result<String, Loss> {
    if !response.status().is_success() {
        return Err(Loss::new(Kind::Wrong, format!("status {}", response.status())));
    }
    identity
        .find(response.headers(), body_start)
        .ok_or_else(|| Loss::new(Kind::Wrong, format!("the answer lacks {identity}")))
}

/// RFC 9112, 9.3: HTTP/1.1 persists unless told otherwise, HTTP/1.0 the other way round.
/// And 6.3: a body of no given length lasts until the connection is closed.
fn announces_close(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let says = |word: &str| {
        headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case(word))
    };
    let ends_with_body = response.status() != StatusCode::NO_CONTENT
        && !headers.contains_key(header::CONTENT_LENGTH)
        && !headers.contains_key(header::TRANSFER_ENCODING);
    let is_old = response.version() == Version::HTTP_10;
    says("close") || ends_with_body || (is_old && !says("keep-alive"))
}

/// The half of hyper's client that moves the bytes, until it ends.
///
/// It is dropped as soon as it ends, because only then does hyper give up a request that was handed
/// over while the end of file was already waiting to be read.
struct Driver(Option<Pin<Box<HttpConnection>>>);

type HttpConnection = http1::Connection<TokioIo<WireIo>, Empty<Bytes>>;

impl Driver {
    async fn run_beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                outcome = &mut work => return outcome,
                () = self.finish(), if self.0.is_some() => {}
            }
        }
    }

    async fn finish(&mut self) {
        if let Some(connection) = &mut self.0 {
            // How it ended is read off the wire, and by whoever waits for an answer.
            let _ = connection.as_mut().await;
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[tokio::test]
    async fn a_request_on_a_connection_that_was_closed_meanwhile_is_unsent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let service = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1").unwrap();
        });
        let request = || Request::get("/").body(Empty::new()).unwrap();
        let mut connection =
            Connection::open(TcpStream::connect(address).await.unwrap()).await.unwrap();
        let answer = connection.exchange(request(), &Identity::LeadingNumber).await.unwrap();
        assert_eq!(answer.verdict.unwrap(), "1");

        // The end of file is there, but nobody has looked.
        service.join().unwrap();
        assert_eq!(connection.wire.stream.peek(&mut [0]).await.unwrap(), 0);
        let failure = connection.exchange(request(), &Identity::LeadingNumber);
        let failure = timeout(Duration::from_secs(10), failure).await.expect("it is noticed");
        assert!(matches!(failure, Err(Failure::Unsent)), "{failure:?}");
    }
}
