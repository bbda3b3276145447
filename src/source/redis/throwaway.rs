//! A throwaway server: who it is, whether it may be emptied, and what it makes of a snapshot.

use super::{
    error::RedisError,
    facts::Info,
    plan::detail,
    replica::{self, OUR_ID},
    server::{Server, Session},
};
use crate::{
    pipeline::SnapshotReader,
    source::{Difference, Identity, Proof, Refusal, Same, SourceError},
};

/// A replication id that there is none: `master_replid2` of a server that was never promoted.
const NO_ID: &str = "0000000000000000000000000000000000000000";

pub(super) async fn identity(server: &Server) -> Result<Identity, RedisError> {
    Ok(of(server, &Info::read(&server.session().await?).await?))
}

/// The mark of a history, which a server shares with its replicas.
pub(super) fn replication_id(id: &str) -> String {
    format!("replication id {id}")
}

/// A replica has another run id than its master, and the same replication id.
fn of(server: &Server, info: &Info) -> Identity {
    let ids = ["master_replid", "master_replid2"].into_iter().map(|field| info.get(field));
    let ids = ids.filter(|id| !id.is_empty() && *id != NO_ID && *id != OUR_ID).map(replication_id);
    let run = Some(info.get("run_id")).filter(|id| !id.is_empty()).map(|id| format!("run id {id}"));
    Identity { shown: server.name(), marks: run.into_iter().chain(ids).collect() }
}

fn refused(server: &Server, what: String) -> SourceError {
    let hint = "give the verification a server that is nobody's, and empty".to_owned();
    SourceError::Refused { refusals: vec![Refusal { what: format!("{} {what}", server.name()), hint }] }
}

pub(super) async fn claim(server: &Server, others: &[Identity]) -> Result<(), SourceError> {
    let session = server.session().await?;
    let info = Info::read(&session).await?;
    let ours = of(server, &info);
    if ours.marks.is_empty() {
        return Err(refused(server, "does not say who it is (`INFO`)".into()));
    }
    for other in others {
        if let Some(mark) = ours.shares(other) {
            return Err(refused(server, format!("is source {} or a replica of it ({mark})", other.shown)));
        }
    }
    // What a killed proof leaves: a replica of us, or one that was released and not emptied.
    let left = [info.get("master_replid"), info.get("master_replid2")].contains(&OUR_ID);
    if info.get("role") != "master" && !left {
        return Err(refused(
            server,
            format!("is a replica of {}:{}", info.get("master_host"), info.get("master_port")),
        ));
    }
    if !matches!(info.get("connected_slaves"), "" | "0") {
        return Err(refused(server, format!("has replicas ({})", info.get("connected_slaves"))));
    }
    if info.get("cluster_enabled") == "1" {
        return Err(refused(server, "is a node of a cluster".into()));
    }
    if !left && let Some(what) = holds(&session).await? {
        return Err(refused(server, format!("holds {what}: it is in use")));
    }
    if left {
        empty(&session).await?;
    }
    Ok(())
}

/// What the server holds, in words.
async fn holds(session: &Session) -> Result<Option<String>, RedisError> {
    let keyspace: String = session.ask(&["INFO", "keyspace"]).await?;
    if let Some(line) = keyspace.lines().find(|line| line.starts_with("db")) {
        return Ok(Some(format!("keys ({})", line.trim())));
    }
    match session.ask::<Vec<redis::Value>>(&["FUNCTION", "LIST"]).await {
        Ok(libraries) if !libraries.is_empty() => Ok(Some("function libraries".into())),
        // Before 7.0 there are none.
        _ => Ok(None),
    }
}

async fn empty(session: &Session) -> Result<(), RedisError> {
    session.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await?;
    session.ask::<()>(&["FLUSHALL"]).await?;
    match session.ask::<()>(&["FUNCTION", "FLUSH"]).await {
        Err(error @ RedisError::Broken { .. }) => Err(error),
        // Before 7.0 there are none.
        _ => Ok(()),
    }
}

pub(super) async fn release(server: &Server) -> Result<(), RedisError> {
    empty(&server.session().await?).await
}

pub(super) async fn prove(server: &Server, snapshot: &SnapshotReader) -> Result<Proof, SourceError> {
    let detail = detail(snapshot)?;
    let Some(captured) = &detail.contents else {
        let what = format!("the dump (RDB version {}) is newer than what this program reads", detail.rdb);
        return Ok(Proof { server: server.name(), not_comparable: vec![what], ..Proof::default() });
    };
    let found = replica::prove(server, snapshot).await?;
    let same = |(db, keys): (u64, u64)| Same { name: format!("db {db}"), rows: keys, bytes: 0 };
    let differs = |what: &str| {
        let (object, what) = what.split_once(": ").unwrap_or(("functions", what));
        Difference { object: object.to_owned(), what: what.to_owned() }
    };
    let differences: Vec<Difference> = found.differences.iter().map(|what| differs(what)).collect();
    let databases = captured.databases().into_iter();
    let as_was = |name: &str| !differences.iter().any(|difference| difference.object == name);
    Ok(Proof {
        server: found.server,
        same: databases.map(same).filter(|same| as_was(&same.name)).collect(),
        differences,
        not_comparable: Vec::new(),
        notes: found.not_compared.into_iter().map(|what| format!("not compared: {what}")).collect(),
        restored: found.loaded,
    })
}
