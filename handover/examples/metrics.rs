//! Metrics that outlive generations: `metrics [ADDRESS] [--control PATH]
//! [--probation SECONDS]`, by default at 127.0.0.1:8080.
//!
//! `GET /` answers with the process and the generation that served it, `GET /metrics` with what
//! Prometheus scrapes: counters that go on through upgrades. SIGHUP upgrades, SIGTERM stops.

mod options;

use std::error::Error;
use std::future::IntoFuture;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state, map_response_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use handover::tokio::{TcpListener, ready};
use handover::{Descriptor, Handle, Handover, Until};
use prometheus_client::encoding::prometheus_text::{CONTENT_TYPE, encode};
use prometheus_client::metrics::{counter::ConstCounter, counter::Counter, family::Family};
use prometheus_client::{metrics::gauge::ConstGauge, registry::Registry};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

/// The version of `Counts` as a state.
const VERSION: u32 = 1;

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
struct Counts {
    requests: u64,
    upgrades_succeeded: u64,
    upgrades_failed: u64,
}

/// What is counted, and how much of it a process that serves after this one knows already.
#[derive(Default)]
struct Ledger {
    total: Counts,
    told: Counts,
}

fn main() -> Result<(), Box<dyn Error>> {
    let (address, builder) = options::read("127.0.0.1:8080");
    let ledger = Arc::<Mutex<Ledger>>::default();
    let verdicts = Arc::clone(&ledger);
    let builder = builder.on_verdict(move |verdict| {
        // A success is for the successor to count: what it was handed is written by now.
        if !verdict.is_success() {
            lock(&verdicts).total.upgrades_failed += 1;
        }
    });
    let handover = builder.start()?;
    Runtime::new()?.block_on(serve(handover, &address, ledger))
}

async fn serve(
    handover: Handover,
    address: &str,
    ledger: Arc<Mutex<Ledger>>,
) -> Result<(), Box<dyn Error>> {
    let http: TcpListener = handover.listen("http", address)?;
    println!("listening on {}", http.local_addr()?);

    let metrics = Arc::new(Metrics { ledger, rests: Rests::claim(&handover)? });
    let left = Arc::clone(&metrics);
    handover.provide_late_state("counts", VERSION, move |out| {
        let mut ledger = left.collected();
        ledger.told = ledger.total;
        out.json(&ledger.told)
    })?;

    let running = ready(handover).await?;
    let handle = running.handle();
    if handle.is_successor() {
        // Counters that begin again are better than no service.
        let state = handle.late_state("counts").filter(|state| state.version() == VERSION);
        let told: Counts = state.and_then(|state| state.json().ok()).unwrap_or_default();
        let total = Counts { upgrades_succeeded: told.upgrades_succeeded + 1, ..told };
        *lock(&metrics.ledger) = Ledger { total, told };
    }

    let answer = format!("{} {}\n", std::process::id(), handle.generation());
    let app = Router::new()
        .route("/", get(async move || answer))
        .layer(from_fn_with_state(Arc::clone(&metrics), count))
        .route("/metrics", get(scrape).with_state((Arc::clone(&metrics), handle)))
        .layer(map_response_with_state(running.draining(), announce));
    tokio::spawn(axum::serve(http, app).into_future());

    running.wait().await;
    metrics.settle();
    running.drain().await?;
    metrics.settle();
    Ok(())
}

struct Metrics {
    ledger: Arc<Mutex<Ledger>>,
    rests: Rests,
}

impl Metrics {
    /// The ledger, with what older generations have counted meanwhile.
    fn collected(&self) -> MutexGuard<'_, Ledger> {
        let mut ledger = lock(&self.ledger);
        while let Some(rest) = self.rests.receive() {
            ledger.total = ledger.total.and(rest);
        }
        ledger
    }

    /// Tells the generation that serves what it does not know. Called when this one has stopped
    /// accepting, and when nothing is in flight any more.
    fn settle(&self) {
        let mut ledger = lock(&self.ledger);
        if let Err(error) = self.rests.send(ledger.total.less(ledger.told)) {
            eprintln!("counts are lost: {error}");
        }
        ledger.told = ledger.total;
    }
}

/// Counts a request before it is served, so that all that were answered are counted when nothing is
/// in flight.
async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    lock(&metrics.ledger).total.requests += 1;
    next.run(request).await
}

async fn scrape(State((metrics, handle)): State<(Arc<Metrics>, Handle)>) -> Response {
    // A counter must never go back: one that drains shows no more than who serves can know.
    let counts = match handle.draining().has_come() {
        true => lock(&metrics.ledger).told,
        false => metrics.collected().total,
    };
    match exposition(counts, handle.generation(), handle.in_flight()) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn exposition(counts: Counts, generation: u64, in_flight: u64) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    let requests = ConstCounter::new(counts.requests);
    registry.register("requests", "Requests begun, in all generations", requests);

    let handover = registry.sub_registry_with_prefix("handover");
    let upgrades = Family::<[(&str, &str); 1], Counter>::default();
    upgrades.get_or_create(&[("outcome", "succeeded")]).inc_by(counts.upgrades_succeeded);
    upgrades.get_or_create(&[("outcome", "failed")]).inc_by(counts.upgrades_failed);
    handover.register("upgrades", "Upgrades that came to an end", upgrades);
    handover.register("generation", "The generation that answers", ConstGauge::new(generation));
    let in_flight = ConstGauge::new(in_flight);
    handover.register("in_flight", "Connections open in the process that answers", in_flight);

    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

impl Counts {
    fn and(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }

    fn less(self, part: Self) -> Self {
        self.each(part, |a, b| a - b)
    }

    fn each(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            requests: f(self.requests, other.requests),
            upgrades_succeeded: f(self.upgrades_succeeded, other.upgrades_succeeded),
            upgrades_failed: f(self.upgrades_failed, other.upgrades_failed),
        }
    }
}

/// A pair of sockets that all generations share: who drains sends what is to be added, and who
/// serves receives it. What is sent is kept by the kernel until somebody does.
struct Rests {
    sender: UnixDatagram,
    receiver: UnixDatagram,
    /// Handed over for as long as they live.
    _descriptors: [Descriptor; 2],
}

impl Rests {
    fn claim(handover: &Handover) -> Result<Self, Box<dyn Error>> {
        // A successor inherits both, and does without these.
        let (sender, receiver) = UnixDatagram::pair()?;
        sender.set_nonblocking(true)?;
        receiver.set_nonblocking(true)?;
        let sender = handover.descriptor("rests-sender", || Ok(sender.into()))?;
        let receiver = handover.descriptor("rests-receiver", || Ok(receiver.into()))?;
        Ok(Self {
            sender: sender.as_fd().try_clone_to_owned()?.into(),
            receiver: receiver.as_fd().try_clone_to_owned()?.into(),
            _descriptors: [sender, receiver],
        })
    }

    fn send(&self, rest: Counts) -> Result<(), Box<dyn Error>> {
        self.sender.send(&serde_json::to_vec(&rest)?)?;
        Ok(())
    }

    fn receive(&self) -> Option<Counts> {
        let mut buffer = [0; 512];
        let bytes = self.receiver.recv(&mut buffer).ok()?;
        serde_json::from_slice(&buffer[..bytes]).ok()
    }
}

/// Tells clients, and Prometheus, to come back on another connection, which will be the
/// successor's.
async fn announce(State(draining): State<Until>, mut response: Response) -> Response {
    if draining.has_come() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}
