//! The examples that speak HTTP/2: every request is answered, every stream arrives whole, and clients
//! leave an old generation without having been cut.
//!
//! A request that crosses with the farewell to its connection is begun by no server, and HTTP/2 has
//! the client know that. Then it is repeated here, as gRPC has clients do.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the other half is for servers")]
#[path = "../examples/pb/mod.rs"]
mod pb;

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use handover_testkit::process::{Pid, signal};
use handover_testkit::{Launch, Service, Signal, example, recheck, soon};
use http_body_util::BodyExt as _;
use hyper::http::uri::PathAndQuery;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use pb::{Chunk, Limit, Process};
use tokio::sync::watch;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

/// As many as may drain beside the one that serves.
const UPGRADES: u64 = 3;

/// The newest process that has answered.
type Newest = watch::Sender<Process>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_answers_every_http2_request_through_upgrades() {
    answers_through_upgrades("hyper", async |address, asking| {
        let client: Client<_, Body> =
            Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        while asking.goes_on() {
            let url: hyper::Uri = format!("http://{address}/").parse().unwrap();
            let response = begun(async || client.get(url.clone()).await).await;
            assert_eq!(response.version(), hyper::Version::HTTP_2);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let answer = String::from_utf8(body.to_vec()).unwrap();
            let (pid, generation) = answer.trim().split_once(' ').expect("PID GENERATION");
            let (pid, generation) = (pid.parse().unwrap(), generation.parse().unwrap());
            asking.answered_by(Process { pid, generation });
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_answers_every_call_on_kept_channels_through_upgrades() {
    answers_through_upgrades("grpc", async |address, asking| {
        let channel = endpoint(address).connect().await.unwrap();
        while asking.goes_on() {
            asking.answered_by(who(&channel).await);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_answers_every_call_on_new_channels_through_upgrades() {
    answers_through_upgrades("grpc", async |address, asking| {
        while asking.goes_on() {
            asking.answered_by(who(&endpoint(address).connect().await.unwrap()).await);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_stream_that_is_open_across_an_upgrade_arrives_whole() {
    // Much more than fits between a server and a client that does not read.
    const CHUNKS: u64 = 512;
    const WINDOW: u32 = 64 * 1024;
    let service = Launch::of(example("grpc")).arg("127.0.0.1:0").start();
    let address = address(&service);
    let endpoint = endpoint(address).initial_stream_window_size(WINDOW);
    let mut chunks = count(&endpoint.connect().await.unwrap(), CHUNKS).await;
    let mut numbers = vec![chunks.message().await.unwrap().unwrap().number];

    let old = service.pid();
    signal(old, Signal::HUP);
    let successor = async {
        loop {
            let answered_by = who(&endpoint.connect().await.unwrap()).await;
            if answered_by.pid != old {
                return answered_by.pid;
            }
        }
    };
    let new = tokio::time::timeout_at(soon().into(), successor).await.expect("it serves in time");
    assert!(service.alive().contains(&old), "the stream keeps it");

    while let Some(chunk) = chunks.message().await.unwrap() {
        numbers.push(chunk.number);
    }
    assert_eq!(numbers, (1..=CHUNKS).collect::<Vec<_>>());
    wait_alone(&service, new);
    signal(new, Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
}

/// Upgrades while clients ask, and has no old generation left that a client still clings to.
async fn answers_through_upgrades(name: &str, client: impl AsyncFn(SocketAddr, Asking)) {
    let service = Arc::new(Launch::of(example(name)).arg("127.0.0.1:0").start());
    let address = address(&service);
    let (newest, stop) = (Newest::default(), watch::Sender::new(false));
    let ask = || client(address, Asking { newest: newest.clone(), stop: stop.subscribe() });
    let upgrade = async {
        let mut pid = wait_generation(&newest, 1).await;
        for generation in 2..=UPGRADES + 1 {
            signal(pid, Signal::HUP);
            pid = wait_generation(&newest, generation).await;
        }
        let service = Arc::clone(&service);
        tokio::task::spawn_blocking(move || wait_alone(&service, pid)).await.unwrap();
        stop.send_replace(true);
        pid
    };
    let (pid, ..) = tokio::join!(upgrade, ask(), ask(), ask(), ask());
    signal(pid, Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
}

/// What a client is told, and tells.
struct Asking {
    newest: Newest,
    stop: watch::Receiver<bool>,
}

impl Asking {
    fn goes_on(&self) -> bool {
        !*self.stop.borrow()
    }

    fn answered_by(&self, process: Process) {
        self.newest.send_if_modified(|newest| {
            let is_newer = process.generation > newest.generation;
            if is_newer {
                *newest = process;
            }
            is_newer
        });
    }
}

async fn wait_generation(newest: &Newest, generation: u64) -> Pid {
    let mut newest = newest.subscribe();
    let waiting = newest.wait_for(|newest| newest.generation >= generation);
    tokio::time::timeout_at(soon().into(), waiting).await.expect("it serves in time").unwrap().pid
}

fn wait_alone(service: &Service, pid: Pid) {
    let alone = recheck(soon(), || (service.alive() == [pid]).then_some(()));
    assert!(alone.is_some(), "{:?} are alive, and not {pid} only", service.alive());
}

fn address(service: &Service) -> SocketAddr {
    let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
    line["listening on ".len()..].parse().unwrap()
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}")).unwrap()
}

async fn who(channel: &Channel) -> Process {
    let path = PathAndQuery::from_static(pb::WHO);
    let call = async || {
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        grpc.unary(Request::new(()), path.clone(), ProstCodec::default()).await
    };
    begun(call).await.into_inner()
}

async fn count(channel: &Channel, chunks: u64) -> Streaming<Chunk> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static(pb::COUNT);
    let limit = Request::new(Limit { chunks });
    grpc.server_streaming(limit, path, ProstCodec::default()).await.unwrap().into_inner()
}

/// Repeats what no server has begun; any other failure is one.
async fn begun<T, E: Error + 'static>(request: impl AsyncFn() -> Result<T, E>) -> T {
    loop {
        match request().await {
            Ok(response) => return response,
            Err(error) => assert!(was_not_begun(&error), "{error:?}"),
        }
    }
}

fn was_not_begun(error: &(dyn Error + 'static)) -> bool {
    // It has not left the client, or the server has said that it comes after the last it looks at.
    let is_unsent = error.downcast_ref().is_some_and(hyper::Error::is_canceled);
    let is_refused = error.downcast_ref().is_some_and(|error: &h2::Error| {
        error.is_remote() && error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)
    });
    is_unsent || is_refused || error.source().is_some_and(was_not_begun)
}
