//! The example that counts: no answer is missing, and none is counted twice.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use axum::body::Body;
use handover_testkit::process::{Pid, signal};
use handover_testkit::{Folder, Launch, Service, Signal, example, executables, recheck, soon};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::watch;

const UPGRADES: u64 = 5;
const CLIENTS: usize = 4;

type Http = Client<HttpConnector, Body>;

/// The newest generation that has answered, and its process.
type Newest = watch::Sender<(u64, Pid)>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_counted_once_through_upgrades() {
    let folder = Folder::create();
    let service = Launch::of(folder.link("current", example("metrics"))).arg("127.0.0.1:0").start();
    let address = address(&service);
    let newest = Newest::new((0, 0));
    let stop = watch::Sender::new(false);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(ask_on(address, newest.clone(), stop.subscribe())))
        .collect();

    let mut pid = wait_generation(&newest, 1).await;
    for generation in 2..=UPGRADES + 1 {
        let before = scrape(address).await;
        signal(pid, Signal::HUP);
        pid = wait_generation(&newest, generation).await;
        let after = scrape(address).await;
        assert!(after.value("requests_total") >= before.value("requests_total"), "{after:?}");
        assert_eq!(after.value("handover_generation"), generation);
        if generation == UPGRADES / 2 {
            fail_an_upgrade(&folder, address, pid).await;
        }
    }
    stop.send_replace(true);
    let mut answered = 0;
    for client in clients {
        answered += client.await.unwrap();
    }

    let alone = recheck(soon(), || (service.alive() == [pid]).then_some(()));
    assert!(alone.is_some(), "the older generations end when their clients have gone");
    let scraped = scrape(address).await;
    assert_eq!(scraped.value("requests_total"), answered);
    assert_eq!((scraped.upgrades("succeeded"), scraped.upgrades("failed")), (UPGRADES, 1));
    assert!(scraped.value("handover_in_flight") >= 1, "the one that was asked on");
    signal(pid, Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
}

fn address(service: &Service) -> SocketAddr {
    let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
    line["listening on ".len()..].parse().unwrap()
}

/// Asks one question after the other, on a connection that is kept while the service keeps it;
/// returns how many were answered.
async fn ask_on(address: SocketAddr, newest: Newest, stop: watch::Receiver<bool>) -> u64 {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut answered = 0;
    while !*stop.borrow() {
        let answer = get(&client, address, "/").await;
        answered += 1;
        let (pid, generation) = answer.trim().split_once(' ').expect("PID GENERATION");
        let answered_by = (generation.parse().unwrap(), pid.parse().unwrap());
        newest.send_if_modified(|newest| {
            let is_newer = answered_by > *newest;
            *newest = answered_by.max(*newest);
            is_newer
        });
    }
    answered
}

async fn wait_generation(newest: &Newest, generation: u64) -> Pid {
    let mut newest = newest.subscribe();
    let waiting = newest.wait_for(|newest| newest.0 >= generation);
    tokio::time::timeout_at(soon().into(), waiting).await.expect("it serves in time").unwrap().1
}

/// Has the process try an upgrade to nothing.
async fn fail_an_upgrade(folder: &Folder, address: SocketAddr, pid: Pid) {
    folder.link("current", executables::missing(folder));
    signal(pid, Signal::HUP);
    let failed = async { while scrape(address).await.upgrades("failed") == 0 {} };
    tokio::time::timeout_at(soon().into(), failed).await.expect("it fails in time");
    folder.link("current", example("metrics"));
}

#[derive(Debug)]
struct Scraped(String);

impl Scraped {
    fn value(&self, metric: &str) -> u64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{metric} in {}", self.0)).parse().unwrap()
    }

    fn upgrades(&self, outcome: &str) -> u64 {
        self.value(&format!("handover_upgrades_total{{outcome=\"{outcome}\"}}"))
    }
}

/// Asks on a new connection, which only the process that serves accepts.
async fn scrape(address: SocketAddr) -> Scraped {
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    Scraped(get(&client, address, "/metrics").await)
}

async fn get(client: &Http, address: SocketAddr, path: &str) -> String {
    let response = client.get(format!("http://{address}{path}").parse().unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}
