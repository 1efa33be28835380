//! The load: requests that are due at instants fixed in advance, whatever the service does.

mod http2;

use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::loss::{Kind, Loss};
use super::tally::{Close, Due, Kept, Lane, Tally};
use super::target::Target;
use super::wire::{Answer, Connection, Failure};

/// How often each connection that lasts asks, and how soon an ended stream is opened again.
const INTERVAL: Duration = Duration::from_millis(100);

/// How much load, and how long an answer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rate: u32,
    pub(crate) keep_alive: u32,
    pub(crate) http2: u32,
    /// How many requests each HTTP/2 connection sends at once.
    pub(crate) http2_streams: u32,
    pub(crate) streams: u32,
    pub(crate) timeout: Duration,
    pub(crate) max_in_flight: u32,
}

/// The load, from `start` to `finish`.
pub(crate) struct Load {
    scene: Arc<Scene>,
    /// Closing it ends the pacing.
    pacer_stop: std_mpsc::Sender<()>,
    pacer: thread::JoinHandle<()>,
    streams_stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// What every client needs.
struct Scene {
    target: Arc<Target>,
    tally: Arc<Tally>,
    plan: Plan,
    /// One permit for each request from the instant it is due to the end of its connection or turn.
    in_flight: Arc<Semaphore>,
}

/// A request with its place among those under way.
struct Ticket {
    due: Due,
    _permit: OwnedSemaphorePermit,
}

impl Load {
    /// Starts all clients.
    pub(crate) fn start(
        plan: Plan,
        target: Arc<Target>,
        tally: Arc<Tally>,
    ) -> anyhow::Result<Self> {
        let in_flight = Arc::new(Semaphore::new(plan.max_in_flight as usize));
        let scene = Arc::new(Scene { target, tally, plan, in_flight });
        let mut tasks = JoinSet::new();

        // As many tickets can wait in these queues as there are permits.
        let kept = (0..plan.keep_alive).map(|_| {
            let (tickets, queue) = mpsc::unbounded_channel();
            tasks.spawn(keep_alive(Arc::clone(&scene), queue));
            vec![tickets]
        });
        let kept = Round::new(Lane::KeepAlive, kept.collect());

        let http2 = (0..plan.http2).map(|_| {
            let client = Arc::new(http2::Client::new(Arc::clone(&scene)));
            let slots = (0..plan.http2_streams).map(|_| {
                let (tickets, queue) = mpsc::unbounded_channel();
                tasks.spawn(Arc::clone(&client).slot(queue));
                tickets
            });
            slots.collect()
        });
        let http2 = Round::new(Lane::Http2, http2.collect());

        let (streams_stop, stop) = watch::channel(false);
        for _ in 0..plan.streams {
            tasks.spawn(stream_again_and_again(Arc::clone(&scene), stop.clone()));
        }

        let (pacer_stop, stop) = std_mpsc::channel();
        let pacer = Pacer::new(Arc::clone(&scene), [kept, http2]);
        // A thread of its own, because the runtime's timers only tell milliseconds apart.
        let pacer = thread::Builder::new()
            .name("pacer".to_owned())
            .spawn(move || pacer.run(&stop))
            .context("cannot start the thread that paces the load")?;
        Ok(Self { scene, pacer_stop, pacer, streams_stop, tasks })
    }

    /// Asks for nothing more, and waits until the fate of every request is known.
    pub(crate) async fn finish(mut self) {
        drop(self.pacer_stop);
        self.streams_stop.send_replace(true);
        // A panic of the pacer shows as requests that are missing.
        let _ = tokio::task::spawn_blocking(move || self.pacer.join()).await;
        while self.tasks.join_next().await.is_some() {}
        let all = self.scene.plan.max_in_flight;
        let _all_returned = self.scene.in_flight.acquire_many(all).await;
    }
}

/// Makes requests due, on time.
struct Pacer {
    scene: Arc<Scene>,
    rounds: [Round; 2],
    runtime: tokio::runtime::Handle,
}

/// Clients of one kind that take turns, so that their requests are spread over the interval.
struct Round {
    lane: Lane,
    /// Of each client the queues into which a request is put when it is its turn.
    clients: Vec<Vec<mpsc::UnboundedSender<Ticket>>>,
    turn: u64,
}

impl Pacer {
    fn new(scene: Arc<Scene>, rounds: [Round; 2]) -> Self {
        Self { scene, rounds, runtime: tokio::runtime::Handle::current() }
    }

    fn run(mut self, stop: &std_mpsc::Receiver<()>) {
        let start = Instant::now();
        let mut new_turn = 0;
        loop {
            let new_at = start + nth(new_turn, Duration::from_secs(1), self.scene.plan.rate);
            let round = self.rounds.iter_mut().filter_map(|round| Some((round.due()?, round)));
            let next = round.map(|(after, round)| (start + after, round)).min_by_key(|next| next.0);
            let at = next.as_ref().map_or(new_at, |(at, _)| new_at.min(*at));

            let pause = at.saturating_duration_since(Instant::now());
            if stop.recv_timeout(pause) != Err(std_mpsc::RecvTimeoutError::Timeout) {
                return;
            }
            match next {
                Some((_, round)) if at != new_at => round.ask(&self.scene, at),
                Some(_) | None => {
                    new_turn += 1;
                    self.ask_anew(at);
                }
            }
        }
    }

    fn ask_anew(&self, at: Instant) {
        if let Some(ticket) = self.scene.ticket(Due { at, lane: Lane::NewConnection }) {
            self.runtime.spawn(ask_once(Arc::clone(&self.scene), ticket));
        }
    }
}

impl Round {
    fn new(lane: Lane, clients: Vec<Vec<mpsc::UnboundedSender<Ticket>>>) -> Self {
        Self { lane, clients, turn: 0 }
    }

    /// When the next client has its turn, if there are any.
    fn due(&self) -> Option<Duration> {
        let count = u32::try_from(self.clients.len()).ok().filter(|count| *count > 0)?;
        Some(nth(self.turn, INTERVAL, count))
    }

    fn ask(&mut self, scene: &Scene, at: Instant) {
        let client = &self.clients[(self.turn % self.clients.len() as u64) as usize];
        self.turn += 1;
        for queue in client {
            let ticket = scene.ticket(Due { at, lane: self.lane });
            // A client's tasks end after this thread only, so that the queue is open.
            let _ = ticket.map(|ticket| queue.send(ticket));
        }
    }
}

/// The instant of the n-th of `count` equal parts of each period.
fn nth(turn: u64, period: Duration, count: u32) -> Duration {
    let (whole, part) = (turn / u64::from(count), turn % u64::from(count));
    let nanos = period.as_nanos() as u64;
    Duration::from_nanos(whole * nanos + part * nanos / u64::from(count))
}

impl Scene {
    /// Counts a request as due; without a ticket it is lost already.
    fn ticket(&self, due: Due) -> Option<Ticket> {
        self.tally.due(due.lane);
        match Arc::clone(&self.in_flight).try_acquire_owned() {
            Ok(permit) => Some(Ticket { due, _permit: permit }),
            Err(_) => {
                let limit = self.plan.max_in_flight;
                let why = format!("not sent: {limit} requests were under way already");
                self.tally.lost(due, Loss::new(Kind::Other, why));
                None
            }
        }
    }

    fn deadline(&self, due: Due) -> tokio::time::Instant {
        (due.at + self.plan.timeout).into()
    }

    async fn connect(&self) -> Result<Connection, Loss> {
        let stream = self.target.connect().await.map_err(|error| Loss::connecting(&error))?;
        Connection::open(stream).await
    }

    fn account(&self, due: Due, fate: Result<String, Loss>) {
        match fate {
            Ok(identity) => self.tally.answered(due, identity),
            Err(loss) => self.tally.lost(due, loss),
        }
    }
}

/// One request on a connection of its own.
async fn ask_once(scene: Arc<Scene>, ticket: Ticket) {
    // The service was asked to close, and closes right after the answer if it ever does.
    const CLOSING_PATIENCE: Duration = Duration::from_secs(1);

    let due = ticket.due;
    let attempt = async {
        let mut connection = scene.connect().await?;
        let request = scene.target.single_request();
        let answer = connection.exchange(request, &scene.target.identity).await?;
        Ok::<_, Loss>((answer, connection))
    };
    match timeout_at(scene.deadline(due), attempt).await.unwrap_or_else(|_| Err(Loss::timed_out()))
    {
        Ok((answer, connection)) => {
            scene.account(due, answer.verdict);
            if !scene.target.leaves_closing_to_us()
                && !connection.closed_by_service(CLOSING_PATIENCE).await
            {
                scene.target.note_that_closing_is_left_to_us();
            }
        }
        Err(loss) => scene.tally.lost(due, loss),
    }
}

/// One connection that asks whenever a request is due, and is opened again after it ended.
async fn keep_alive(scene: Arc<Scene>, mut queue: mpsc::UnboundedReceiver<Ticket>) {
    let mut connection = None;
    while let Some(ticket) = idle(&scene, &mut connection, &mut queue).await {
        let due = ticket.due;
        let attempt = ask_on(&scene, &mut connection);
        let outcome = timeout_at(scene.deadline(due), attempt).await;
        match outcome.unwrap_or_else(|_| Err(Loss::timed_out())) {
            Ok(answer) => {
                scene.account(due, answer.verdict);
                if answer.announces_close {
                    scene.tally.closed(Kept::KeepAlive, Close::Announced);
                    connection = None;
                }
            }
            Err(loss) => {
                scene.tally.lost(due, loss);
                if connection.take().is_some_and(|connection| connection.was_closed()) {
                    scene.tally.closed(Kept::KeepAlive, Close::Unannounced);
                }
            }
        }
    }
}

/// Waits for the next request, and takes note if the service closes the connection meanwhile.
async fn idle(
    scene: &Scene,
    connection: &mut Option<Connection>,
    queue: &mut mpsc::UnboundedReceiver<Ticket>,
) -> Option<Ticket> {
    if let Some(open) = connection {
        tokio::select! {
            biased;
            () = open.closed() => {
                scene.tally.idle_closed();
                *connection = None;
            }
            ticket = queue.recv() => return ticket,
        }
    }
    queue.recv().await
}

/// Sends a request on the open connection, or else on a new one.
async fn ask_on(scene: &Scene, connection: &mut Option<Connection>) -> Result<Answer, Loss> {
    loop {
        let open = match connection {
            Some(open) => open,
            None => connection.insert(scene.connect().await?),
        };
        let request = scene.target.kept_alive_request();
        match open.exchange(request, &scene.target.identity).await {
            Ok(answer) => return Ok(answer),
            Err(Failure::Lost(loss)) => return Err(loss),
            // Found closed before a byte was sent, which cannot happen to a new connection.
            Err(Failure::Unsent) => {
                scene.tally.idle_closed();
                *connection = None;
            }
        }
    }
}

/// Reads one stream after the other.
async fn stream_again_and_again(scene: Arc<Scene>, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let due = Due { at: Instant::now(), lane: Lane::Stream };
        scene.tally.due(due.lane);
        match stream_once(&scene, due, &mut stop).await {
            Ok(open_at_end) => scene.tally.streamed(open_at_end),
            Err(loss) => scene.tally.lost(due, loss),
        }
        let next = (due.at + INTERVAL).into();
        let _ = timeout_at(next, stop.wait_for(|stop| *stop)).await;
    }
}

/// Reads one stream to its end, or to ours, which is told by true.
async fn stream_once(
    scene: &Scene,
    due: Due,
    stop: &mut watch::Receiver<bool>,
) -> Result<bool, Loss> {
    let opening = async {
        let mut connection = scene.connect().await?;
        let response = connection.send(scene.target.stream_request()).await?;
        Ok::<_, Loss>((connection, response))
    };
    let (mut connection, mut response) = timeout_at(scene.deadline(due), opening)
        .await
        .unwrap_or_else(|_| Err(Loss::timed_out()))?;
    if !response.status().is_success() {
        return Err(Loss::new(Kind::Wrong, format!("status {} of a stream", response.status())));
    }
    tokio::select! {
        biased;
        read = connection.read_body(response.body_mut()) => {
            read?;
            Ok(false)
        }
        _ = stop.wait_for(|stop| *stop) => Ok(true),
    }
}

impl From<Failure> for Loss {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(loss) => loss,
            // Only a reused connection can fail so, and this one is new.
            Failure::Unsent => Self::new(Kind::Cut, "the connection was closed without an answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spread_evenly_and_never_drift() {
        assert_eq!(nth(0, Duration::from_secs(1), 3), Duration::ZERO);
        assert_eq!(nth(1, Duration::from_secs(1), 1000), Duration::from_millis(1));
        assert_eq!(nth(3 * 3600, Duration::from_secs(1), 3), Duration::from_secs(3600));
        assert_eq!(nth(25, INTERVAL, 10), Duration::from_millis(250));
    }
}
