//! Proxies that stand between the program under test and a server, and get in the way on order.
//!
//! [`TcpProxy`] knows connections, [`HttpProxy`] knows requests. Both run on threads of their own and end when dropped.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    client::conn::http1::SendRequest,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::runtime::Runtime;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// --- TCP ---------------------------------------------------------------------------------------------------------------

type Callback = Box<dyn FnOnce() + Send>;

/// What to do with bytes on their way from a client to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Forward them.
    Pass,
    /// Close the connection; the server never sees them.
    CutBefore,
    /// Forward them, then close the connection: whatever the server answers is lost.
    CutAfter,
}

type ChunkHook = Box<dyn FnMut(&[u8]) -> Chunk + Send>;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From a client to the server.
    Up,
    /// From the server to a client.
    Down,
}

/// What becomes of bytes on their way, one after the other.
#[derive(Clone, Debug)]
pub enum Step {
    /// Send these, as a packet of their own.
    Send(Vec<u8>),
    /// Wait.
    Wait(Duration),
    /// Wait until this is set, for a minute at most.
    Until(Arc<AtomicBool>),
    /// Close the connection on both sides.
    Cut,
}

type ByteHook = Box<dyn FnMut(Way, u64, Vec<u8>) -> Vec<Step> + Send>;

#[derive(Default)]
struct TcpState {
    callbacks: Mutex<BTreeMap<u64, Callback>>,
    on_upstream: Mutex<Option<ChunkHook>>,
    on_bytes: Mutex<Option<ByteHook>>,
    open: Mutex<BTreeMap<u64, [TcpStream; 2]>>,
    refuse: AtomicBool,
    ended: AtomicBool,
    connections: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

/// Forwards connections to one address.
pub struct TcpProxy {
    address: SocketAddr,
    state: Arc<TcpState>,
}

impl TcpProxy {
    /// Listens on a free port of 127.0.0.1.
    pub fn start(target: SocketAddr) -> Self {
        Self::start_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), target)
    }

    /// Listens where it is told to.
    pub fn start_on(listener: TcpListener, target: SocketAddr) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::new(TcpState::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                if shared.refuse.load(Ordering::SeqCst) {
                    continue;
                }
                let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
                let state = Arc::clone(&shared);
                std::thread::spawn(move || forward(&client, target, number, &state));
            }
        });
        Self { address, state }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far, without refused ones.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Bytes so far, from clients to the server and back.
    pub fn bytes(&self) -> (u64, u64) {
        (self.state.bytes_up.load(Ordering::SeqCst), self.state.bytes_down.load(Ordering::SeqCst))
    }

    /// Tells bytes so far, to the server or from it, from anywhere.
    pub fn counter(&self, up: bool) -> impl Fn() -> u64 + Send + Sync + 'static {
        let state = Arc::clone(&self.state);
        move || if up { &state.bytes_up } else { &state.bytes_down }.load(Ordering::SeqCst)
    }

    /// Holds the first byte of the `number`-th connection (from 1) back until `callback` has run.
    pub fn before_connection(&self, number: u64, callback: impl FnOnce() + Send + 'static) {
        lock(&self.state.callbacks).insert(number, Box::new(callback));
    }

    /// Is asked about whatever clients send, as it comes, before it is forwarded.
    pub fn on_upstream(&self, hook: impl FnMut(&[u8]) -> Chunk + Send + 'static) {
        *lock(&self.state.on_upstream) = Some(Box::new(hook));
    }

    /// Is given whatever passes, with its way and the number of its connection (from 1), and says what becomes of it.
    pub fn on_bytes(&self, hook: impl FnMut(Way, u64, Vec<u8>) -> Vec<Step> + Send + 'static) {
        *lock(&self.state.on_bytes) = Some(Box::new(hook));
    }

    /// Takes the hooks away and lets everybody in.
    pub fn reset(&self) {
        *lock(&self.state.on_upstream) = None;
        *lock(&self.state.on_bytes) = None;
        self.refuse(false);
    }

    /// Closes every open connection.
    pub fn cut_all(&self) {
        for stream in std::mem::take(&mut *lock(&self.state.open)).into_values().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Closes new connections at once, or stops doing so.
    pub fn refuse(&self, refuse: bool) {
        self.state.refuse.store(refuse, Ordering::SeqCst);
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.cut_all();
        // Wakes the listener, which then sees that it is over.
        let _ = TcpStream::connect(self.address);
    }
}

fn forward(client: &TcpStream, target: SocketAddr, number: u64, state: &Arc<TcpState>) {
    let callback = lock(&state.callbacks).remove(&number);
    if let Some(callback) = callback {
        callback();
    }
    let Ok(server) = TcpStream::connect(target) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (Ok(client_2), Ok(server_2)) = (client.try_clone(), server.try_clone()) else { return };
    {
        let mut open = lock(&state.open);
        if state.ended.load(Ordering::SeqCst) {
            return;
        }
        let (Ok(client), Ok(server)) = (client.try_clone(), server.try_clone()) else { return };
        open.insert(number, [client, server]);
    }
    let shared = Arc::clone(state);
    let down = std::thread::spawn(move || {
        let steps = |bytes| shared.steps(Way::Down, number, bytes);
        copy(&server_2, &client_2, &shared.bytes_down, |_| Chunk::Pass, steps);
    });
    let ask = |chunk: &[u8]| match lock(&state.on_upstream).as_mut() {
        Some(hook) => hook(chunk),
        None => Chunk::Pass,
    };
    copy(client, &server, &state.bytes_up, ask, |bytes| state.steps(Way::Up, number, bytes));
    let _ = down.join();
    // With the last handles the connections are closed: who writes to one that has ended is told so.
    lock(&state.open).remove(&number);
}

impl TcpState {
    fn steps(&self, way: Way, connection: u64, bytes: Vec<u8>) -> Vec<Step> {
        match lock(&self.on_bytes).as_mut() {
            Some(hook) => hook(way, connection, bytes),
            None => vec![Step::Send(bytes)],
        }
    }
}

/// Copies until either side ends, then passes the end on.
fn copy(
    mut from: &TcpStream,
    mut to: &TcpStream,
    count: &AtomicU64,
    ask: impl Fn(&[u8]) -> Chunk,
    steps: impl Fn(Vec<u8>) -> Vec<Step>,
) {
    let mut buffer = vec![0; 64 * 1024];
    'reading: while let Ok(read @ 1..) = from.read(&mut buffer) {
        let answer = ask(&buffer[..read]);
        if answer != Chunk::Pass {
            // The client first: nothing that the server says from now on may reach it.
            let _ = from.shutdown(Shutdown::Both);
            if answer == Chunk::CutAfter {
                let _ = to.write_all(&buffer[..read]);
            }
            break;
        }
        for step in steps(buffer[..read].to_vec()) {
            match step {
                Step::Send(bytes) => {
                    if to.write_all(&bytes).is_err() {
                        break 'reading;
                    }
                    count.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                }
                Step::Wait(time) => std::thread::sleep(time),
                Step::Until(set) => {
                    let began = Instant::now();
                    while !set.load(Ordering::SeqCst) && began.elapsed() < Duration::from_secs(60) {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
                Step::Cut => {
                    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                    return;
                }
            }
        }
    }
    let _ = (from.shutdown(Shutdown::Read), to.shutdown(Shutdown::Write));
}

// --- HTTP --------------------------------------------------------------------------------------------------------------

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Forward it, or its answer.
    Pass,
    /// Wait, then forward.
    Delay(Duration),
    /// Answer with this status and an S3 error document. Before a write, the server never sees it; after, it was done.
    Answer(u16),
    /// Close the connection without an answer.
    Drop,
    /// Never answer.
    Block,
    /// Forward the answer's head and this many bytes of its body, then close the connection. For reads only.
    CutBody(u64),
}

/// A request on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Counts writes and reads apart, from 1, in the order of arrival.
    pub number: u64,
    /// `PUT`, `GET`, ….
    pub method: String,
    /// The path with its query, as sent.
    pub path: String,
    /// Bytes of the request's body.
    pub bytes: u64,
}

impl Seen {
    /// PUT, POST and DELETE are writes; all others are reads.
    pub fn is_write(&self) -> bool {
        matches!(self.method.as_str(), "PUT" | "POST" | "DELETE")
    }
}

type Hook = Arc<dyn Fn(&Seen) -> Action + Send + Sync>;

#[derive(Default)]
struct HttpState {
    before_write: Mutex<Option<Hook>>,
    after_write: Mutex<Option<Hook>>,
    on_read: Mutex<Option<Hook>>,
    seen: Mutex<Vec<Seen>>,
    in_flight: AtomicU64,
}

/// Forwards HTTP requests to an S3 server: body and headers unchanged, `Host` among them, because requests are signed
/// for the address that the client used, which is the proxy's.
pub struct HttpProxy {
    address: SocketAddr,
    state: Arc<HttpState>,
    runtime: Option<Runtime>,
}

impl HttpProxy {
    /// Listens on a free port of 127.0.0.1.
    pub fn start(target: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = Arc::new(HttpState::default());
        let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                tokio::spawn(serve(client, target, Arc::clone(&shared)));
            }
        });
        Self { address, state, runtime: Some(runtime) }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Is asked before each write is forwarded. The hook may block, and may kill the client.
    pub fn before_write(&self, hook: impl Fn(&Seen) -> Action + Send + Sync + 'static) {
        *lock(&self.state.before_write) = Some(Arc::new(hook));
    }

    /// Is asked when the server has done a write, before its answer goes back: `Drop` loses the answer.
    pub fn after_write(&self, hook: impl Fn(&Seen) -> Action + Send + Sync + 'static) {
        *lock(&self.state.after_write) = Some(Arc::new(hook));
    }

    /// Is asked before each read (GET and HEAD; listings are GETs) is forwarded.
    pub fn on_read(&self, hook: impl Fn(&Seen) -> Action + Send + Sync + 'static) {
        *lock(&self.state.on_read) = Some(Arc::new(hook));
    }

    /// Takes the hooks away and forgets what was counted.
    pub fn reset(&self) {
        for hook in [&self.state.before_write, &self.state.after_write, &self.state.on_read] {
            *lock(hook) = None;
        }
        lock(&self.state.seen).clear();
    }

    /// Waits until every request that arrived has been dealt with, those of clients that are gone too: a server finishes
    /// what it was sent whole. Not for requests under [`Action::Block`].
    #[track_caller]
    pub fn settle(&self) {
        super::wait_for("the requests in flight", Duration::from_secs(60), || {
            (self.state.in_flight.load(Ordering::SeqCst) == 0).then_some(())
        });
    }

    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    /// Requests so far, by method.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for seen in lock(&self.state.seen).iter() {
            *counts.entry(seen.method.clone()).or_default() += 1;
        }
        counts
    }

    /// Writes (PUT, POST, DELETE) so far.
    pub fn writes(&self) -> u64 {
        lock(&self.state.seen).iter().filter(|seen| seen.is_write()).count() as u64
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

type Body = BoxBody<Bytes, io::Error>;
type Upstream = tokio::sync::Mutex<Option<SendRequest<Full<Bytes>>>>;

async fn serve(client: tokio::net::TcpStream, target: SocketAddr, state: Arc<HttpState>) {
    let _ = client.set_nodelay(true);
    // Requests of one connection come one after the other, so one connection to the server serves them.
    let upstream = Arc::new(Upstream::default());
    // A task of its own, so that a client that goes away does not take its request with it.
    let service = service_fn(move |request| {
        let answering = tokio::spawn(answer(request, target, Arc::clone(&upstream), Arc::clone(&state)));
        async move { answering.await.map_err(io::Error::other)? }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(client), service)
        .await;
}

/// An error closes the client's connection without an answer.
async fn answer(
    request: Request<Incoming>,
    target: SocketAddr,
    upstream: Arc<Upstream>,
    state: Arc<HttpState>,
) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let _in_flight = InFlight::new(&state);
    let seen = {
        let mut all = lock(&state.seen);
        let mut seen = Seen {
            number: 0,
            method: head.method.to_string(),
            path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            bytes: body.len() as u64,
        };
        seen.number = 1 + all.iter().filter(|other| other.is_write() == seen.is_write()).count() as u64;
        all.push(seen.clone());
        seen
    };

    let before = if seen.is_write() { &state.before_write } else { &state.on_read };
    let action = ask(before, &seen).await;
    if let Some(early) = obey(action).await? {
        return Ok(early);
    }
    let response = send(Request::from_parts(head, Full::new(body)), target, &upstream).await?;
    if seen.is_write()
        && let Some(instead) = obey(ask(&state.after_write, &seen).await).await?
    {
        return Ok(instead);
    }
    let (head, body) = response.into_parts();
    let body = match action {
        Action::CutBody(bytes) => cut(body, bytes),
        _ => body.map_err(io::Error::other).boxed(),
    };
    Ok(Response::from_parts(head, body))
}

/// Counts one request for [`HttpProxy::settle`] while it lives.
struct InFlight(Arc<HttpState>);

impl InFlight {
    fn new(state: &Arc<HttpState>) -> Self {
        state.in_flight.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(state))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn ask(hook: &Mutex<Option<Hook>>, seen: &Seen) -> Action {
    let Some(hook) = lock(hook).clone() else { return Action::Pass };
    let seen = seen.clone();
    tokio::task::spawn_blocking(move || hook(&seen)).await.unwrap_or(Action::Drop)
}

/// Does what an action says; an answer of our own when it asks for one.
async fn obey(action: Action) -> io::Result<Option<Response<Body>>> {
    match action {
        Action::Pass | Action::CutBody(_) => Ok(None),
        Action::Delay(time) => {
            tokio::time::sleep(time).await;
            Ok(None)
        }
        Action::Answer(status) => {
            let code = if status == 503 { "SlowDown" } else { "InternalError" };
            let text = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>The proxy says so</Message></Error>"
            );
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
            let response = Response::builder()
                .status(StatusCode::from_u16(status).map_err(io::Error::other)?)
                .header("content-type", "application/xml")
                .body(body)
                .map_err(io::Error::other)?;
            Ok(Some(response))
        }
        Action::Drop => Err(io::Error::other("dropped on order")),
        Action::Block => std::future::pending().await,
    }
}

async fn send(
    request: Request<Full<Bytes>>,
    target: SocketAddr,
    upstream: &Upstream,
) -> io::Result<Response<Incoming>> {
    let mut sender = upstream.lock().await;
    let usable = match sender.as_mut() {
        Some(sender) => sender.ready().await.is_ok(),
        None => false,
    };
    if !usable {
        let server = tokio::net::TcpStream::connect(target).await?;
        let _ = server.set_nodelay(true);
        let (new, connection) = hyper::client::conn::http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(server))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        *sender = Some(new);
    }
    let Some(sender) = sender.as_mut() else { return Err(io::Error::other("no connection")) };
    sender.send_request(request).await.map_err(io::Error::other)
}

/// The first bytes of a body, then the end of the connection.
fn cut(body: Incoming, bytes: u64) -> Body {
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    let start =
        body.into_data_stream().filter_map(move |chunk| {
            let chunk = chunk.ok().map(|mut chunk| {
                chunk.truncate(left);
                left -= chunk.len();
                Ok(Frame::data(chunk))
            });
            std::future::ready(chunk.filter(|chunk| {
                chunk.as_ref().is_ok_and(|frame| frame.data_ref().is_some_and(|data| !data.is_empty()))
            }))
        });
    let end = futures::stream::once(async {
        // Time for what came before to be sent: an error takes what is still in hyper's buffer with it.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Err(io::Error::other("cut on order"))
    });
    BodyExt::boxed(StreamBody::new(start.chain(end)))
}
