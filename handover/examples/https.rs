//! HTTPS with axum and rustls: `https [ADDRESS] [--certificate PEM --key PEM] [--control PATH]
//! [--probation SECONDS] [--fd-store]`, by default at 127.0.0.1:8443.
//!
//! HTTP/2 or HTTP/1, as the client chooses by ALPN. `GET /` answers with the process and the
//! generation that served it. Without files the first generation certifies itself as `localhost`, and
//! its successors go on with that. SIGHUP upgrades, SIGTERM stops. The exit status is 3 if the drain
//! took too long and requests were cut.

mod options;

use std::error::Error;
use std::future::IntoFuture;
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use handover::tokio::{TcpListener, ready};
use handover::{Connection, Handover, http};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// The version of the states "certificate" and "key": DER.
const VERSION: u32 = 1;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let (address, builder) = options::read("127.0.0.1:8443");
    let handover = builder.start()?;
    Runtime::new()?.block_on(serve(handover, &address))
}

async fn serve(handover: Handover, address: &str) -> Result<ExitCode, Box<dyn Error>> {
    let listener: TcpListener = handover.listen("https", address)?;
    println!("listening on {}", listener.local_addr()?);

    let answer = format!("{} {}\n", std::process::id(), handover.generation());
    let app: Router = Router::new().route("/", get(async move || answer));

    // Before `ready`: with a certificate that is no good the upgrade fails, and nobody notices.
    let (certificates, key) = identity(&handover)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(config));

    let running = ready(handover).await?;
    let serving = http::serve(listener, app, &running.handle())
        .acceptor(move |connection: Connection<TcpStream>| tls.accept(connection));
    tokio::spawn(serving.into_future());

    // Also those are answered that have not even shaken hands yet. The keys of a connection are in this
    // process only: none goes to the successor, clients come back on another one.
    let drained = running.drain().await?;
    Ok(if drained.cut == 0 { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// Who this is: as the files say, or the predecessor, or nobody yet.
fn identity(
    handover: &Handover,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Box<dyn Error>> {
    if let (Some(certificate), Some(key)) =
        (options::value("--certificate"), options::value("--key"))
    {
        // Each generation reads them anew: an upgrade is what makes a renewed certificate known.
        let certificates = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
        return Ok((certificates, PrivateKeyDer::from_pem_file(key)?));
    }
    let (certificate, key) = match (handover.state("certificate"), handover.state("key")) {
        (Some(certificate), Some(key))
            if (certificate.version(), key.version()) == (VERSION, VERSION) =>
        {
            (certificate.to_vec(), key.to_vec())
        }
        _ => {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
            (made.cert.der().to_vec(), made.signing_key.serialize_der())
        }
    };
    for (name, der) in [("certificate", certificate.clone()), ("key", key.clone())] {
        handover
            .provide_state(name, VERSION, move |out| Ok(std::io::Write::write_all(out, &der)?))?;
    }
    Ok((vec![certificate.into()], PrivatePkcs8KeyDer::from(key).into()))
}
