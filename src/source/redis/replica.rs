//! A throwaway server replicates from us: the strictest proof of a dump.
//!
//! We act as its master: it sends `PING`, `AUTH`, `REPLCONF …` and `PSYNC`, gets `+FULLRESYNC`, the file, and a PING now and then; when
//! it says that its link is up, a dump is taken back from it. A replica expires nothing by itself, so every key must be there, also those
//! whose time was over at the cut (research A3, A4). Whoever else connects to us does not know the password, and gets nothing.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use futures::StreamExt;
use tokio::net::{TcpListener, TcpStream};
use xxhash_rust::xxh3::Xxh3;

use super::{
    capture::{self, Detail, PATH},
    compare::Differences,
    dump::Dump,
    error::RedisError,
    facts::{Facts, Info},
    form,
    rdb::RdbError,
    server::{Server, Session},
    tally::{Contents, Tally},
    throwaway::{self, OUR_ID},
    walk::Walk,
    wire::{Wire, command},
};
use crate::{
    pipeline::{Progress, Reason, SnapshotReader},
    report,
    source::{Difference, SourceError},
};

/// How long the server may take to connect to us.
const CONNECTS: Duration = Duration::from_secs(60);
/// How long whoever connects may take to say that it is the server.
const GREETS: Duration = Duration::from_secs(10);
/// How long it may take to load what it got.
const LOADS: Duration = Duration::from_secs(3600);
/// A replica that hears nothing for its `repl-timeout` leaves.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A master is silent for no longer than this, nor is a replica: it acknowledges every second.
const SILENCE: Duration = Duration::from_secs(60);
/// How long it may take to look at a server that did not load a dump.
const AFTERMATH: Duration = Duration::from_secs(10);
const ACTING: &str = "acting as its master";

/// What a throwaway server made of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replicated {
    /// The server and its version.
    pub(super) server: String,
    /// How what it held differs from what was captured.
    pub(super) differences: Differences,
    /// What the comparison does not cover, in words.
    pub(super) not_compared: Vec<String>,
    /// How long it took until the data was live.
    pub(super) loaded: Duration,
}

/// Fills the throwaway server with the snapshot by replication, takes a dump back and compares. **Whatever the server holds is gone**: it
/// must be claimed.
///
/// # Errors
/// A server that cannot be reached, is too old for the file, or does not load it; damaged parts.
pub(super) async fn prove(
    server: &Server,
    snapshot: &SnapshotReader,
    detail: &Detail,
    captured: &Contents,
) -> Result<Replicated, SourceError> {
    let session = server.session().await?;
    let before = Facts::ask(server, &session).await?;
    let (rdb, newest) = (detail.rdb.parse::<u32>().ok(), before.version.map(|version| version.rdb()));
    if rdb.zip(newest).is_some_and(|(rdb, newest)| rdb > newest) {
        // It would ask for the file again and again.
        let what =
            format!("is {}, too old for a dump of {} (RDB version {})", before.name(), detail.server, detail.rdb);
        return Err(RedisError::NotSupported { server: server.name(), what }.into());
    }
    let password = throwaway::password(server, &session).await?;
    let master = Master::listen(server, password).await?;
    let proving = async {
        let loaded = master.is_followed(&session).await?;
        Ok::<_, SourceError>((loaded, dump_back(server, snapshot, &before).await?))
    };
    let proved = tokio::select! {
        // The master never ends by itself but by a failure, which explains why the other does not get on.
        biased;
        failure = master.serve(snapshot) => Err(failure),
        proved = proving => proved,
    };
    // A server that outlives this must not look for a master that is gone.
    let released = async { server.session().await?.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await }.await;
    let (loaded, (after, found)) = match proved {
        Ok(proved) => proved,
        Err(SourceError::Redis(error)) if master.began.load(Ordering::Relaxed) && error.is_of_the_connection() => {
            return Err(why(server, snapshot, detail, captured, &before, error).await);
        }
        Err(error) => return Err(error),
    };
    released?;
    let mut differences = captured.differences(&found, snapshot.fingerprint_seed());
    if differences.is_empty() && detail.file.as_ref().is_some_and(|file| Some(file) != master.sent().as_ref()) {
        let what = "is not the file that was captured, though every key in it is as it was".to_owned();
        differences.all.push(Difference { object: PATH.to_owned(), what });
    }
    Ok(Replicated { server: after.name(), differences, not_compared: not_compared(captured), loaded })
}

/// What is in the server, by a dump of it.
async fn dump_back(
    server: &Server,
    snapshot: &SnapshotReader,
    before: &Facts,
) -> Result<(Facts, Contents), SourceError> {
    let session = server.session().await?;
    // Nobody's server: whatever its settings, a dump of it harms nobody.
    let form = form::choose(&Facts::ask(server, &session).await?, true);
    let form = form.map_err(|reason| RedisError::NoForm { server: server.name(), reason })?.0;
    let dump = Dump::request(server, form).await?;
    let taken = capture::count(dump, snapshot.fingerprint_seed(), Tally::new(None)).await?;
    let Some((found, _)) = taken.tally.map(Tally::finish) else {
        let what = format!("gives dumps of RDB version {}", taken.version);
        return Err(RedisError::NotSupported { server: server.name(), what }.into());
    };
    // As it was when the dump was taken, or later: what is not there may have been thrown away.
    let after = Facts::ask(server, &session).await?;
    match after.evicted.saturating_sub(before.evicted) {
        0 => Ok((after, found)),
        keys => Err(RedisError::Evicted { server: server.name(), keys }.into()),
    }
}

fn not_compared(captured: &Contents) -> Vec<String> {
    let values = captured.module_keys.iter().map(|(module, keys)| {
        let keys = report::count(*keys, "key");
        format!("{keys} of module type `{module}`: that they are there, and came as the bytes that were captured")
    });
    let data = captured.module_data.iter().map(|module| {
        format!("data of module `{module}` that belongs to no key: only that it came as the bytes that were captured")
    });
    values.chain(data).collect()
}

/// Why a server did not take a file that it was sent: a file that is not what was captured is the backup's fault, and a server that does not
/// load one that is has its own reasons, as far as anyone can tell from here.
async fn why(
    server: &Server,
    snapshot: &SnapshotReader,
    detail: &Detail,
    captured: &Contents,
    before: &Facts,
    error: RedisError,
) -> SourceError {
    snapshot.progress().set_phase("reading the dump that was not loaded");
    if let Err(error) = is_as_captured(snapshot, detail, captured).await {
        return error;
    }
    let not_loaded = |detail: String, reason| RedisError::NotLoaded { server: server.name(), detail, reason }.into();
    let looking = async {
        let session = server.session().await?;
        let folder = session.ask::<Vec<String>>(&["CONFIG", "GET", "dir"]).await?;
        Ok::<_, RedisError>((Facts::ask(server, &session).await?, folder.into_iter().nth(1)))
    };
    let Ok(Ok((after, folder))) = tokio::time::timeout(AFTERMATH, looking).await else { return error.into() };
    let bytes = snapshot.artifact(PATH).map_or(0, |artifact| artifact.raw);
    let room = folder.and_then(|folder| rustix::fs::statvfs(folder).ok());
    let room = room.map(|room| room.f_bavail.saturating_mul(room.f_frsize)).filter(|room| *room < bytes);
    if after.run_id != before.run_id {
        not_loaded("it ended, and was started again".into(), Reason::ServerLost)
    } else if after.max_memory > 0 && after.max_memory < bytes {
        let most = report::bytes(after.max_memory);
        not_loaded(format!("it is of {}, and `maxmemory` is {most}", report::bytes(bytes)), Reason::NoSpace)
    } else if let Some(room) = room {
        // Its folder, or one of that name here.
        let room = report::bytes(room);
        not_loaded(format!("it is of {}, and its folder has room for {room}", report::bytes(bytes)), Reason::NoSpace)
    } else if !captured.module_keys.is_empty() || !captured.module_data.is_empty() {
        not_loaded("it may lack a module that the data belongs to; its log says why".into(), Reason::Missing)
    } else {
        error.into()
    }
}

/// Reads the whole file and compares it with what was captured.
async fn is_as_captured(snapshot: &SnapshotReader, detail: &Detail, captured: &Contents) -> Result<(), SourceError> {
    let seed = snapshot.fingerprint_seed();
    let walk = Walk::begin(seed, Tally::new(None));
    let mut hash = Xxh3::with_seed(seed);
    let mut parts = std::pin::pin!(snapshot.open(snapshot.artifact(PATH)?));
    while let Some(part) = parts.next().await {
        let part = part?;
        hash.update(&part);
        // Where the walk has ended before, it says why.
        walk.feed(part).await;
    }
    let not_captured = |detail: String| Err(RedisError::NotCaptured { detail }.into());
    match walk.finish().await {
        Ok(walked) => {
            let found = walked.visitor.finish().0;
            let differences = captured.differences(&found, seed);
            if !differences.is_empty() {
                return not_captured(report::list(&differences.words(), 5));
            }
        }
        // Nothing that is known of the file.
        Err(RdbError::Read { .. } | RdbError::Stopped(_)) => return Ok(()),
        Err(error) => return not_captured(format!("it {error}")),
    }
    match &detail.file {
        Some(file) if *file != capture::hex(hash.digest128()) => not_captured("its bytes are others".into()),
        _ => Ok(()),
    }
}

/// Our side of the replication protocol.
struct Master<'a> {
    server: &'a Server,
    listener: TcpListener,
    /// Where it listens.
    address: SocketAddr,
    /// What the server must know.
    password: String,
    /// Did the server begin to get the file?
    began: AtomicBool,
    /// The hash of the file, once all of it was sent.
    sent: std::sync::Mutex<Option<u128>>,
}

impl<'a> Master<'a> {
    /// Listens where the server can reach us: at our end of a connection to it.
    async fn listen(server: &'a Server, password: String) -> Result<Self, RedisError> {
        let here = Wire::connect(server).await?.local_address().unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let failed = |error: std::io::Error| broken(server, &format!("listening on {here}: {error}"));
        let listener = TcpListener::bind((here, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (began, sent) = (AtomicBool::new(false), std::sync::Mutex::default());
        Ok(Self { server, listener, address, password, began, sent })
    }

    /// The server is told to follow us, has loaded what it got and is connected: how long that took.
    async fn is_followed(&self, session: &Session) -> Result<Duration, RedisError> {
        let began = Instant::now();
        session.ask::<()>(&["REPLICAOF", &self.address.ip().to_string(), &self.address.port().to_string()]).await?;
        while began.elapsed() < LOADS {
            match Info::read(session).await {
                Ok(info) if info.get("master_link_status") == "up" && info.get("loading") == "0" => {
                    return Ok(began.elapsed());
                }
                Ok(_) => {}
                Err(RedisError::Said { text, .. }) if text.starts_with("LOADING") => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(broken(self.server, "it did not load the dump in time"))
    }

    /// The hash of the file, in hex, if all of it was sent.
    fn sent(&self) -> Option<String> {
        self.sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).map(capture::hex)
    }

    /// Serves the one replica until it fails.
    async fn serve(&self, snapshot: &SnapshotReader) -> SourceError {
        match self.serve_once(snapshot).await {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    async fn serve_once(&self, snapshot: &SnapshotReader) -> Result<std::convert::Infallible, SourceError> {
        let Ok(greeted) = tokio::time::timeout(CONNECTS, self.greet()).await else {
            let detail = format!("it does not connect to us, at {}", self.address);
            return Err(broken(self.server, &detail).into());
        };
        let Wire { mut reading, mut writing } = greeted?;
        self.began.store(true, Ordering::Relaxed);
        let artifact = snapshot.artifact(PATH)?;
        writing.send(ACTING, format!("+FULLRESYNC {OUR_ID} 0\r\n${}\r\n", artifact.raw).as_bytes()).await?;
        let progress = snapshot.progress();
        let mut hash = Xxh3::with_seed(snapshot.fingerprint_seed());
        let mut parts = std::pin::pin!(snapshot.open(artifact));
        while let Some(part) = parts.next().await {
            let part = part?;
            writing.send(ACTING, &part).await?;
            hash.update(&part);
            Progress::add(&progress.raw, part.len() as u64);
        }
        *self.sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(hash.digest128());
        let ping = command(&[b"PING"]);
        let mut acknowledged = tokio::time::interval(KEEP_ALIVE);
        loop {
            tokio::select! {
                _ = acknowledged.tick() => writing.send(ACTING, &ping).await?,
                // Its acknowledgements; while it loads there are none.
                came = reading.chunk(ACTING, LOADS) => {
                    if came?.is_empty() {
                        let detail = "it closed the connection: it could not load the dump; its log says why";
                        return Err(broken(self.server, detail).into());
                    }
                }
            }
        }
    }

    /// The server's connection, up to its `PSYNC`. Whoever else connects is let go.
    async fn greet(&self) -> Result<Wire, RedisError> {
        loop {
            let (stream, from) =
                self.listener.accept().await.map_err(|error| broken(self.server, &error.to_string()))?;
            match tokio::time::timeout(GREETS, self.handshake(stream)).await {
                Ok(Ok(Some(wire))) => return Ok(wire),
                Ok(Ok(None)) => tracing::warn!("{from} does not know the password, and got nothing"),
                Ok(Err(error)) => tracing::debug!("{from}: {error}"),
                Err(_) => tracing::debug!("{from} says nothing"),
            }
        }
    }

    /// None where the other end does not know the password.
    async fn handshake(&self, stream: TcpStream) -> Result<Option<Wire>, RedisError> {
        let mut wire = Wire::over(stream, self.server.name())?;
        let mut known = false;
        loop {
            let arguments = wire.reading.command(SILENCE).await?;
            let name = arguments.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
            let answer: &[u8] = match name.as_slice() {
                b"PING" => b"+PONG\r\n",
                b"AUTH" if arguments.last().is_some_and(|last| last == self.password.as_bytes()) => {
                    known = true;
                    b"+OK\r\n"
                }
                b"AUTH" => return Ok(None),
                b"REPLCONF" => b"+OK\r\n",
                b"PSYNC" => return Ok(known.then_some(wire)),
                _ => return Err(broken(self.server, "it does not speak as a replica does")),
            };
            wire.writing.send(ACTING, answer).await?;
        }
    }
}

fn broken(server: &Server, detail: &str) -> RedisError {
    RedisError::Broken { server: server.name(), what: ACTING.into(), detail: detail.to_owned() }
}
