//! A WebSocket chat: `chat [ADDRESS] [--drain-timeout SECONDS] [--control PATH]
//! [--probation SECONDS]`, by default at 127.0.0.1:9001.
//!
//! Who connects to `ws://ADDRESS/ROOM/NAME` hears what is said in the room, by others and by itself.
//! SIGHUP upgrades, SIGTERM stops. An upgrade is nothing that anybody notices: every connection goes on
//! in the successor, and a room is one room also while its members are in different processes.

mod chronicle;
mod options;
mod paced;

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use chronicle::{Chronicle, Ear};
use futures_util::{SinkExt as _, StreamExt as _};
use handover::live::{Arrival, Baggage, Departure, Departures};
use handover::tokio::{TcpListener, ready};
use handover::{Connection, Ending, Handle, Handover};
use paced::{MAX_FRAME, Paced};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt as _, copy, sink};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, coding::CloseCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

/// How long a room or a name may be, and a message.
const MAX_NAME: usize = 64;
const MAX_MESSAGE: usize = 16 * 1024;

/// How long the handshake of a client may take, and its answer to a close.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long before the end of the drain those are told to come back that could not leave.
const LAST_CALL: Duration = Duration::from_secs(2);

/// The version of `Member`, to be raised when its meaning changes.
const VERSION: u32 = 1;

type Error = Box<dyn StdError + Send + Sync>;
type Socket = WebSocketStream<Paced<Connection<TcpStream>>>;

/// Somebody in a room: what goes to the successor beside the connection.
#[derive(Serialize, Deserialize)]
struct Member {
    room: String,
    name: String,
    /// How far in the chronicle it has heard everything.
    position: u64,
}

struct Chat {
    chronicle: Arc<Chronicle>,
    departures: Departures,
    handle: Handle,
    last_call: watch::Sender<bool>,
}

/// How somebody is not here any more.
enum Gone {
    Moved,
    Left,
}

fn main() -> Result<(), Box<dyn StdError>> {
    let (address, builder) = options::read("127.0.0.1:9001");
    let drain = options::value("--drain-timeout").map_or(Ok(60.0), |given| given.parse())?;
    let handover = builder.drain_timeout(Duration::try_from_secs_f64(drain)?).start()?;
    Runtime::new()?.block_on(serve(handover, &address))
}

async fn serve(handover: Handover, address: &str) -> Result<(), Box<dyn StdError>> {
    let listener: TcpListener = handover.listen("chat", address)?;
    let chronicle = Chronicle::claim(&handover)?;
    println!("listening on {}", listener.local_addr()?);

    let running = ready(handover).await?;
    let handle = running.handle();
    let mut arrivals = handle.arrivals("chat", VERSION..=VERSION)?;
    let chat = Arc::new(Chat {
        chronicle,
        departures: handle.departures("chat", VERSION)?,
        handle,
        last_call: watch::Sender::new(false),
    });
    tokio::spawn(Arc::clone(&chat.chronicle).follow());
    tokio::spawn(Arc::clone(&chat).call_last());
    let taking = Arc::clone(&chat);
    tokio::spawn(async move {
        while let Some(arrival) = arrivals.next().await {
            tokio::spawn(Arc::clone(&taking).go_on(arrival));
        }
    });
    while let Some((connection, _)) = listener.accept().await? {
        tokio::spawn(Arc::clone(&chat).welcome(connection));
    }
    drop(listener);

    let drained = running.drain().await?;
    eprintln!("{drained}");
    Ok(())
}

impl Chat {
    /// Takes in a new client.
    async fn welcome(self: Arc<Self>, connection: Connection<TcpStream>) -> Result<(), Error> {
        connection.set_nodelay(true)?;
        let mut asked = None;
        #[allow(clippy::result_large_err, reason = "it is what tungstenite asks for")]
        let read = |request: &Request, response: Response| {
            asked = Member::read(request.uri().path());
            if asked.is_some() { Ok(response) } else { Err(not_found()) }
        };
        let shaking = accept_hdr_async_with_config(connection, read, Some(config()));
        let shaken = timeout(PATIENCE, shaking).await??;
        let Some(member) = asked else { return Ok(()) };
        // Before it is told that it may, the client sends nothing that could be read ahead here: tungstenite
        // refuses the handshake otherwise.
        let socket = socket(shaken.into_inner(), Vec::new()).await;
        let ear = self.chronicle.listen(&member.room, None)?;
        self.chronicle.say(&member.room, format!("* {} has joined", member.name))?;
        self.host(socket, member, ear).await
    }

    /// Goes on with a client of the predecessor's.
    async fn go_on(self: Arc<Self>, arrival: Arrival) -> Result<(), Error> {
        let (connection, baggage) = arrival.into_connection()?;
        let member: Member = serde_json::from_slice(&baggage.state)?;
        let ear = self.chronicle.listen(&member.room, Some(member.position))?;
        self.host(socket(connection, baggage.unread).await, member, ear).await
    }

    /// Has a member in this process until it is gone.
    async fn host(&self, socket: Socket, mut member: Member, ear: Ear) -> Result<(), Error> {
        let gone = self.converse(socket, &mut member, ear).await;
        if !matches!(gone, Ok(Gone::Moved)) {
            self.chronicle.say(&member.room, format!("* {} has left", member.name))?;
        }
        gone.map(drop)
    }

    async fn converse(
        &self,
        mut socket: Socket,
        member: &mut Member,
        mut ear: Ear,
    ) -> Result<Gone, Error> {
        let mut last_call = self.last_call.subscribe();
        let code = loop {
            let Ok(lines) = ear.hear() else { break CloseCode::Again };
            for line in lines {
                socket.feed(Message::text(&*line)).await?;
            }
            socket.flush().await?;
            // All that was written has left, also what tungstenite answers to pings. What was read is in the
            // chronicle. What may be left is a part of a message.
            let may_leave = socket.get_ref().is_quiet();
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Text(text))) => member.say(&self.chronicle, &text)?,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Close(_))) => {
                        let answering = async { while socket.next().await.is_some() {} };
                        timeout(PATIENCE, answering).await?;
                        return Ok(Gone::Left);
                    }
                    Some(Ok(_)) => break CloseCode::Unsupported,
                    Some(Err(WsError::Capacity(_))) => break CloseCode::Size,
                    Some(Err(error)) => return Err(error.into()),
                    None => return Ok(Gone::Left),
                },
                () = ear.listen() => {}
                departure = self.departures.slot(), if may_leave => match departure {
                    // A part of a message has come at that moment, or a line to be heard. Another time, then.
                    Ok(_) if !socket.get_ref().is_quiet() || ear.has_more() => {}
                    Ok(departure) => {
                        member.position = ear.position();
                        match depart(socket, member, departure).await? {
                            None => return Ok(Gone::Moved),
                            Some(back) => {
                                socket = back;
                                break self.farewell().await;
                            }
                        }
                    }
                    Err(_) => break self.farewell().await,
                },
                () = called(&mut last_call) => break self.farewell().await,
            }
        };
        let parting = part(socket, code, |text| member.say(&self.chronicle, text));
        timeout(PATIENCE, parting).await??;
        Ok(Gone::Left)
    }

    /// Tells those who are still here, shortly before the drain is over.
    async fn call_last(self: Arc<Self>) {
        self.handle.draining().await;
        sleep(self.handle.drain_left().unwrap_or_default().saturating_sub(LAST_CALL)).await;
        self.last_call.send_replace(true);
    }

    /// What clients are told that do not go on in a successor.
    async fn farewell(&self) -> CloseCode {
        // A moment after there are no departures any more it is known why.
        self.handle.draining().await;
        match self.handle.ending() {
            Some(Ending::Stopped) => CloseCode::Away,
            _ => CloseCode::Restart,
        }
    }
}

impl Member {
    /// `/ROOM/NAME`
    fn read(path: &str) -> Option<Self> {
        let (room, name) = path.strip_prefix('/')?.split_once('/')?;
        let is_good =
            |word: &str| !word.is_empty() && word.len() <= MAX_NAME && !word.contains('/');
        let member = || Self { room: room.to_owned(), name: name.to_owned(), position: 0 };
        (is_good(room) && is_good(name)).then(member)
    }

    fn say(&self, chronicle: &Chronicle, text: &str) -> std::io::Result<()> {
        chronicle.say(&self.room, format!("{}: {text}", self.name))
    }
}

/// Sends a connection to the successor; returns it if that does not take it.
async fn depart(
    here: Socket,
    member: &Member,
    departure: Departure,
) -> Result<Option<Socket>, Error> {
    let state = serde_json::to_vec(member)?;
    let (connection, unread) = here.into_inner().into_parts();
    match departure.send(connection, Baggage { unread, state }).await {
        Ok(()) => Ok(None),
        Err(back) => Ok(Some(socket(back.connection?, back.baggage.unread).await)),
    }
}

/// Ends a connection. What its client says before it knows is said.
async fn part(
    mut socket: Socket,
    code: CloseCode,
    say: impl Fn(&str) -> std::io::Result<()>,
) -> Result<(), Error> {
    socket.close(Some(CloseFrame { code, reason: Utf8Bytes::default() })).await?;
    while let Some(message) = socket.next().await {
        if let Ok(Message::Text(text)) = message {
            say(&text)?;
        }
    }
    // Closed with something unread, the connection would be reset, and the farewell with it perhaps.
    let mut stream = socket.into_inner();
    stream.shutdown().await?;
    copy(&mut stream, &mut sink()).await?;
    Ok(())
}

async fn called(last_call: &mut watch::Receiver<bool>) {
    // It cannot fail: the sender lives as long as the chat.
    drop(last_call.wait_for(|is_called| *is_called).await);
}

async fn socket(connection: Connection<TcpStream>, unread: Vec<u8>) -> Socket {
    let paced = Paced::new(connection, unread);
    WebSocketStream::from_raw_socket(paced, Role::Server, Some(config())).await
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE.min(MAX_FRAME)))
}

fn not_found() -> ErrorResponse {
    let mut response = ErrorResponse::new(Some("ws://ADDRESS/ROOM/NAME\n".to_owned()));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}
