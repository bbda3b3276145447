//! A throwaway server replicates from us: the strictest proof of a dump.
//!
//! We act as its master: it sends `PING`, `REPLCONF …` and `PSYNC`, gets `+FULLRESYNC`, the file, and a PING now and then; when it says
//! that its link is up, a dump is taken back from it. A replica expires nothing by itself, so every key must be there, also those
//! whose time was over at the cut (research A3, A4).

use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::net::TcpListener;

use super::{
    capture::{self, PATH},
    dump::Dump,
    error::RedisError,
    facts::{Facts, Info},
    form,
    plan::detail,
    server::Server,
    tally::Tally,
    wire::{Wire, command},
};
use crate::{
    pipeline::{Progress, SnapshotReader},
    source::SourceError,
};

/// How long the server may take to connect to us.
const CONNECTS: Duration = Duration::from_secs(30);
/// How long it may take to load what it got.
const LOADS: Duration = Duration::from_secs(3600);
/// A replica that hears nothing for its `repl-timeout` leaves.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A master is silent for no longer than this, nor is a replica: it acknowledges every second.
const SILENCE: Duration = Duration::from_secs(60);

/// The replication id that we give ourselves as a master: a server that has it holds what a proof left.
pub(super) const OUR_ID: &str = "0000000000000000000000000000000000000001";

/// What a throwaway server made of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replicated {
    /// The server and its version.
    pub(super) server: String,
    /// How what it held differs from what was captured, in words; nothing where it is the same.
    pub(super) differences: Vec<String>,
    /// What the comparison does not cover, in words.
    pub(super) not_compared: Vec<String>,
    /// How long it took from the first byte until the data was live.
    pub(super) loaded: Duration,
}

/// Fills the throwaway server with the snapshot by replication, takes a dump back and compares. **Whatever the server holds is gone**: it
/// must be claimed.
///
/// # Errors
/// A server that cannot be reached, is too old for the file, or does not load it; damaged parts.
pub(super) async fn prove(server: &Server, snapshot: &SnapshotReader) -> Result<Replicated, SourceError> {
    let detail = detail(snapshot)?;
    let session = server.session().await?;
    let facts = Facts::ask(server, &session).await?;
    let rdb: Option<u32> = detail.rdb.parse().ok();
    let newest = facts.version.map(|version| version.rdb());
    let Some(captured) = detail.contents.filter(|_| rdb.zip(newest).is_none_or(|(rdb, newest)| rdb <= newest)) else {
        // It would ask for the file again and again.
        return Err(RedisError::NotSupported {
            server: server.name(),
            what: format!("is {}, too old for a dump of {} (RDB version {})", facts.name(), detail.server, detail.rdb),
        }
        .into());
    };
    let master = Master::listen(server).await?;
    let port = master.listener.local_addr().map_err(|error| broken(server, &error.to_string()))?.port().to_string();
    let began = Instant::now();
    session.ask::<()>(&["REPLICAOF", "127.0.0.1", &port]).await?;
    let proving = async {
        let loaded = wait_for_link(server, &began).await?;
        let session = server.session().await?;
        let facts = Facts::ask(server, &session).await?;
        // Nobody's server: whatever its settings, a dump of it harms nobody.
        let form = form::choose(&facts, true).map_err(|reason| RedisError::NoForm { server: server.name(), reason })?.0;
        let dump = Dump::request(server, form).await?;
        let taken = capture::count(dump, snapshot.fingerprint_seed(), Tally::new(None)).await?;
        let Some((found, _)) = taken.tally.map(Tally::finish) else {
            return Err(RedisError::NotSupported {
                server: server.name(),
                what: format!("gives dumps of RDB version {}", taken.version),
            }
            .into());
        };
        let mut not_compared = Vec::new();
        for (module, keys) in &captured.module_keys {
            let keys = crate::report::count(*keys, "key");
            not_compared.push(format!("{keys} of module type `{module}`: only that they are there"));
        }
        Ok(Replicated { server: facts.name(), differences: captured.differences(&found), not_compared, loaded })
    };
    let proof = tokio::select! {
        // The master never ends by itself but by a failure, which explains why the other does not get on.
        biased;
        failure = master.serve(snapshot) => Err(failure),
        proof = proving => proof,
    };
    // A server that outlives this must not look for a master that is gone.
    let released = async { server.session().await?.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await }.await;
    let proof = proof?;
    released?;
    Ok(proof)
}

fn broken(server: &Server, detail: &str) -> RedisError {
    RedisError::Broken { server: server.name(), what: "acting as its master".into(), detail: detail.to_owned() }
}

/// The server says that it has loaded what it got and is connected.
async fn wait_for_link(server: &Server, began: &Instant) -> Result<Duration, RedisError> {
    let session = server.session().await?;
    while began.elapsed() < LOADS {
        match Info::read(&session).await {
            Ok(info) if info.get("master_link_status") == "up" && info.get("loading") == "0" => {
                return Ok(began.elapsed());
            }
            Ok(_) => {}
            Err(RedisError::Said { text, .. }) if text.starts_with("LOADING") => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(broken(server, "it did not load the dump in time"))
}

/// Our side of the replication protocol.
struct Master<'a> {
    server: &'a Server,
    listener: TcpListener,
}

impl<'a> Master<'a> {
    async fn listen(server: &'a Server) -> Result<Self, RedisError> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(|error| broken(server, &error.to_string()))?;
        Ok(Self { server, listener })
    }

    /// Serves the one replica until it fails.
    async fn serve(&self, snapshot: &SnapshotReader) -> SourceError {
        match self.serve_once(snapshot).await {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    async fn serve_once(&self, snapshot: &SnapshotReader) -> Result<std::convert::Infallible, SourceError> {
        let accepted = match tokio::time::timeout(CONNECTS, self.listener.accept()).await {
            Ok(accepted) => accepted.map_err(|error| broken(self.server, &error.to_string()))?,
            Err(_) => return Err(broken(self.server, "it does not connect to us").into()),
        };
        let Wire { mut reading, mut writing } = Wire::over(accepted.0, self.server.name())?;
        let what = "acting as its master";
        loop {
            let arguments = reading.command(SILENCE).await?;
            let name = arguments.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
            match name.as_slice() {
                b"PING" => writing.send(what, b"+PONG\r\n").await?,
                b"REPLCONF" => writing.send(what, b"+OK\r\n").await?,
                b"PSYNC" => break,
                _ => return Err(broken(self.server, "it does not speak as a replica does").into()),
            }
        }
        let artifact = snapshot.artifact(PATH)?;
        writing.send(what, format!("+FULLRESYNC {OUR_ID} 0\r\n${}\r\n", artifact.raw).as_bytes()).await?;
        let progress = snapshot.progress();
        let mut parts = std::pin::pin!(snapshot.open(artifact));
        while let Some(part) = parts.next().await {
            let part = part?;
            writing.send(what, &part).await?;
            Progress::add(&progress.raw, part.len() as u64);
        }
        let ping = command(&[b"PING"]);
        let mut acknowledged = tokio::time::interval(KEEP_ALIVE);
        loop {
            tokio::select! {
                _ = acknowledged.tick() => writing.send(what, &ping).await?,
                // Its acknowledgements; while it loads there are none.
                came = reading.chunk(what, LOADS) => {
                    if came?.is_empty() {
                        return Err(broken(self.server, "it closed the connection: it could not load the dump; its log says why").into());
                    }
                }
            }
        }
    }
}
