//! HTTPS through a handover: no request is lost, no connection ends without its farewell, and clients
//! that trusted the service go on doing so.

#![cfg(feature = "http")]
#![allow(clippy::unwrap_used)]

use std::error::Error as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use handover::control::{Answer, Client, Request, UpgradeRequest, VerdictOutcome};
use handover_testkit::process::{self, Pid, signal};
use handover_testkit::{Folder, Launch, Service, Signal, example, soon};
use http_body_util::BodyExt as _;
use hyper::client::conn::{http1, http2};
use hyper::{Version, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// As many as may drain beside the one that serves.
const UPGRADES: u64 = 3;
const CLIENTS: usize = 4;

const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_http1_connections_lose_nothing_through_upgrades() {
    loses_nothing(async |server, asking| {
        while asking.goes_on() {
            let mut connection = Http1::open(&server).await;
            while asking.goes_on() && connection.ask(&asking).await {}
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_http1_connections_lose_nothing_through_upgrades() {
    loses_nothing(async |server, asking| {
        while asking.goes_on() {
            Http1::open(&server).await.ask(&asking).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_connections_lose_nothing_through_upgrades() {
    loses_nothing(async |server, asking| {
        while asking.goes_on() {
            let mut connection = Http2::open(&server).await;
            while asking.goes_on() && connection.ask(&asking).await {}
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_is_what_a_client_gets_that_offers_both() {
    let server = Server::start(&[]).await;
    for (offers, chosen) in [
        (&[HTTP2, HTTP1][..], Some(HTTP2)),
        (&[HTTP1, HTTP2], Some(HTTP2)),
        (&[HTTP1], Some(HTTP1)),
        (&[], None),
    ] {
        let stream = server.connect(offers).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen);
    }
    let mut connection = Http2::open(&server).await;
    let asking = Asking::default();
    assert!(connection.ask(&asking).await);
    assert_eq!(asking.newest.borrow().1, server.service.pid());
    server.stop(server.service.pid()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_shaken_hands_yet_is_served_by_who_accepted_it() {
    let server = Server::start(&[]).await;
    let silent = TcpStream::connect(server.address).await.unwrap();
    // Accepted in turn: so is the one before it.
    let old = server.pid().await;
    let new = server.upgrade(old).await;
    let stream = server.shake_hands(silent, &[HTTP1]).await;
    let asking = Asking::default();
    assert!(!Http1::on(stream).await.ask(&asking).await, "and told to come back on another one");
    assert_eq!(asking.newest.borrow().1, old);
    assert!(process::exited(old, soon()));
    server.stop(new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_end_with_close_notify() {
    let server = Server::start(&[]).await;
    let mut unused = server.connect(&[HTTP1]).await;
    let mut asked = server.connect(&[HTTP1]).await;
    ask_by_hand(&mut asked).await;
    let mut http2 = server.connect(&[HTTP2]).await;
    let old = server.pid().await;
    let new = server.upgrade(old).await;
    // rustls tells an end without close_notify apart: it is an error.
    for stream in [&mut unused, &mut asked, &mut http2] {
        let mut rest = Vec::new();
        let reading = timeout_at(soon().into(), stream.read_to_end(&mut rest)).await;
        reading.expect("it ends in time").unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
    assert!(process::exited(old, soon()));
    server.stop(new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_was_renewed_is_shown_after_the_next_upgrade() {
    let folder = Folder::create();
    let (certificate, key) = (folder.join("certificate"), folder.join("key"));
    let issue = || {
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&certificate, issued.cert.pem()).unwrap();
        fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
        issued.cert.der().clone()
    };
    let (first, control) = (issue(), folder.join("control"));
    let [certificate_at, key_at, control_at] =
        [&certificate, &key, &control].map(|path| path.to_str().unwrap());
    let arguments = ["--certificate", certificate_at, "--key", key_at, "--control", control_at];
    let server = Server::start(&arguments).await;
    assert_eq!(server.certificate, first);

    // One that is no good calls the upgrade off, and nothing else.
    fs::write(&certificate, "to be renewed").unwrap();
    assert_eq!(upgrade(&control), VerdictOutcome::Failed);
    assert_eq!(server.pid().await, server.service.pid());

    let second = issue();
    assert_eq!(upgrade(&control), VerdictOutcome::Succeeded);
    assert_eq!(certificate_at_address(server.address).await, second);
    for pid in server.service.alive() {
        signal(pid, Signal::TERM);
    }
    server.service.wait_all_gone(soon()).unwrap();
}

/// Upgrades while clients ask.
async fn loses_nothing(client: impl AsyncFn(Arc<Server>, Asking)) {
    let server = Arc::new(Server::start(&[]).await);
    let asking = Asking::default();
    let ask = || client(Arc::clone(&server), asking.clone());
    let upgrade = async {
        let mut pid = asking.wait_generation(1).await;
        for generation in 2..=UPGRADES + 1 {
            signal(pid, Signal::HUP);
            pid = asking.wait_generation(generation).await;
        }
        asking.stop.send_replace(true);
        pid
    };
    let clients = [(); CLIENTS].map(|()| ask());
    let [a, b, c, d] = clients;
    let (pid, ..) = tokio::join!(upgrade, a, b, c, d);
    // What the clients have left behind has ended: whoever was replaced is gone.
    server.stop(pid).await;
}

/// Upgrades; returns what came of it.
fn upgrade(control: &Path) -> VerdictOutcome {
    let mut client = Client::connect(control).unwrap();
    client.send(&Request::Upgrade(UpgradeRequest::default())).unwrap();
    loop {
        match client.next_answer().unwrap() {
            Some(Answer::Event(_)) => {}
            Some(Answer::Verdict(verdict)) => return verdict.outcome,
            other => panic!("no verdict: {other:?}"),
        }
    }
}

/// The example, as it runs.
struct Server {
    service: Service,
    address: SocketAddr,
    /// What it has shown at first; clients trust that and nothing else.
    certificate: CertificateDer<'static>,
}

impl Server {
    async fn start(arguments: &[&str]) -> Self {
        let launch = Launch::of(example("https")).arg("127.0.0.1:0").args(arguments);
        let service = launch.start();
        let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
        let address = line["listening on ".len()..].parse().unwrap();
        let certificate = certificate_at_address(address).await;
        Self { service, address, certificate }
    }

    async fn connect(&self, offers: &[&[u8]]) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        self.shake_hands(stream, offers).await
    }

    async fn shake_hands(&self, stream: TcpStream, offers: &[&[u8]]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = offers.iter().map(|offer| offer.to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// Whoever serves a new connection.
    async fn pid(&self) -> Pid {
        let asking = Asking::default();
        Http1::open(self).await.ask(&asking).await;
        let (_, pid) = *asking.newest.borrow();
        pid
    }

    /// Upgrades, and returns the process that accepts then.
    async fn upgrade(&self, old: Pid) -> Pid {
        signal(old, Signal::HUP);
        loop {
            let pid = self.pid().await;
            if pid != old {
                return pid;
            }
        }
    }

    async fn stop(&self, pid: Pid) {
        signal(pid, Signal::TERM);
        self.service.wait_all_gone(soon()).unwrap();
    }
}

/// What clients are told, and tell.
#[derive(Clone, Default)]
struct Asking {
    /// The newest generation that has answered, and its process.
    newest: watch::Sender<(u64, Pid)>,
    stop: watch::Sender<bool>,
}

impl Asking {
    fn goes_on(&self) -> bool {
        !*self.stop.borrow()
    }

    fn answered(&self, body: &[u8]) {
        let body = std::str::from_utf8(body).unwrap();
        let (pid, generation) = body.trim().split_once(' ').expect("PID GENERATION");
        let answered_by = (generation.parse().unwrap(), pid.parse().unwrap());
        self.newest.send_if_modified(|newest| {
            let is_newer = answered_by > *newest;
            if is_newer {
                *newest = answered_by;
            }
            is_newer
        });
    }

    async fn wait_generation(&self, generation: u64) -> Pid {
        let mut newest = self.newest.subscribe();
        let waiting = newest.wait_for(|newest| newest.0 >= generation);
        timeout_at(soon().into(), waiting).await.expect("it serves in time").unwrap().1
    }
}

struct Http1(http1::SendRequest<Body>);

impl Http1 {
    async fn open(server: &Server) -> Self {
        Self::on(server.connect(&[HTTP1]).await).await
    }

    async fn on(stream: TlsStream<TcpStream>) -> Self {
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(requests)
    }

    /// Asks once; returns whether it may ask again. Anything but an answer is a loss.
    async fn ask(&mut self, asking: &Asking) -> bool {
        let request = hyper::Request::get("/").header(header::HOST, "localhost");
        self.0.ready().await.unwrap();
        let response = self.0.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
        let is_last = response.headers().get(header::CONNECTION).is_some_and(|it| it == "close");
        assert!(response.status().is_success(), "{response:?}");
        asking.answered(&response.into_body().collect().await.unwrap().to_bytes());
        !is_last
    }
}

struct Http2(http2::SendRequest<Body>);

impl Http2 {
    async fn open(server: &Server) -> Self {
        let stream = TokioIo::new(server.connect(&[HTTP2, HTTP1]).await);
        let (requests, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        Self(requests)
    }

    /// Asks once; returns whether it may ask again. The server does not begin what crosses with its
    /// farewell, and HTTP/2 has the client know that; anything else but an answer is a loss.
    async fn ask(&mut self, asking: &Asking) -> bool {
        let request = hyper::Request::get("https://localhost/").body(Body::empty()).unwrap();
        let response = match self.0.send_request(request).await {
            Ok(response) => response,
            Err(error) => {
                let cause = error.source().and_then(|source| source.downcast_ref());
                let is_refused = cause.is_some_and(|cause: &h2::Error| {
                    cause.is_remote()
                        && cause.is_go_away()
                        && cause.reason() == Some(h2::Reason::NO_ERROR)
                });
                assert!(error.is_canceled() || is_refused, "{error:?}");
                return false;
            }
        };
        assert_eq!(response.version(), Version::HTTP_2);
        assert!(response.status().is_success(), "{response:?}");
        asking.answered(&response.into_body().collect().await.unwrap().to_bytes());
        true
    }
}

/// Asks once and reads the answer, and not a byte more.
async fn ask_by_hand(stream: &mut TlsStream<TcpStream>) {
    use tokio::io::AsyncWriteExt as _;

    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with(" 1\n") {
        answer.push(stream.read_u8().await.unwrap().into());
    }
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

/// What the service shows.
async fn certificate_at_address(address: SocketAddr) -> CertificateDer<'static> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().dangerous();
    let config = builder.with_custom_certificate_verifier(Arc::new(Credulous));
    let connector = TlsConnector::from(Arc::new(config.with_no_client_auth()));
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await;
    stream.unwrap().get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// Believes what it is shown.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
