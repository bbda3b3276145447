//! A throwaway server: who it is, whether it may be emptied, and what it makes of a snapshot.
//!
//! One that was claimed bears a mark until it is released: a `masterauth` that begins with [`MARK`]. It is not data, so no dump that is
//! loaded takes it away, and it is what the server proves itself with when it replicates from us. What a killed proof leaves is a
//! marked server that is a replica, or was one of ours; a marked server that holds something else is somebody's.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::{
    error::RedisError,
    facts::Info,
    plan::detail,
    replica,
    server::{Server, Session},
};
use crate::{
    crypt::hex,
    pipeline::SnapshotReader,
    source::{Identity, Proof, Refusal, Same, SourceError},
};

/// The replication id that we give ourselves as a master: a server that has it holds what a proof left.
pub(super) const OUR_ID: &str = "0000000000000000000000000000000000000001";
/// A replication id that there is none: `master_replid2` of a server that was never promoted.
const NO_ID: &str = "0000000000000000000000000000000000000000";
/// How the mark begins.
const MARK: &str = "altlas-backup-throwaway-";
/// The setting that holds it.
const MARKED: &str = "masterauth";
/// Whoever is connected for so long uses the server: a look at its health is shorter.
const LINGERS: Duration = Duration::from_secs(2);
/// What a killed proof left may have to be loaded before it can go.
const LOADS: Duration = Duration::from_secs(1800);
const LOOK: Duration = Duration::from_millis(250);
/// A replica may notice that its master is gone only after a while.
const ENDS: Duration = Duration::from_secs(10);

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

/// What is found on a server that is to be a throwaway one.
#[derive(Clone, Debug, Default)]
struct Found {
    identity: Identity,
    /// `redis_mode`: `standalone`, `cluster`, `sentinel`.
    mode: String,
    /// Its master, where it is a replica, and whether they are connected.
    master: Option<(String, bool)>,
    replicas: u64,
    loading: bool,
    /// Is or was it a replica of ours?
    ours: bool,
    /// A master that was a replica: was nothing written since?
    untouched: bool,
    marked: bool,
    /// A `masterauth` that is not ours.
    foreign: bool,
    /// Others that are connected and stay.
    others: Vec<String>,
    /// Keys and libraries, in words.
    holds: Option<String>,
}

/// What may be done with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// It holds nothing.
    Empty,
    /// It holds what a killed proof left, which may still be loading.
    Leftover,
}

/// May this server be emptied? If not, why: words that follow its name.
fn decide(found: &Found, others: &[Identity]) -> Result<Claim, String> {
    if found.identity.marks.is_empty() {
        return Err("does not say who it is (`INFO`)".into());
    }
    for other in others {
        if let Some(mark) = found.identity.shares(other) {
            return Err(format!("is source {} or a replica of it ({mark})", other.shown));
        }
    }
    match found.mode.as_str() {
        "sentinel" => return Err("is a Sentinel".into()),
        "cluster" => return Err("is a node of a cluster".into()),
        _ => {}
    }
    if found.replicas > 0 {
        return Err(format!("has replicas ({})", found.replicas));
    }
    match &found.master {
        Some((master, _)) if !found.marked => return Err(format!("is a replica of {master}")),
        Some((_, true)) => return Err("is being filled by another verification".into()),
        _ => {}
    }
    if !found.others.is_empty() {
        let others = crate::report::list(&found.others, 3);
        return Err(format!("is in use: {} of others ({others})", connections(found.others.len())));
    }
    if found.marked && (found.master.is_some() || found.ours && found.untouched) {
        return Ok(Claim::Leftover);
    }
    if found.loading {
        return Err("reads its data: it is in use, or was just started".into());
    }
    if let Some(holds) = &found.holds {
        return Err(format!("holds {holds}: it is in use"));
    }
    if found.foreign {
        return Err(format!("has a `{MARKED}`: it is part of something replicated"));
    }
    Ok(Claim::Empty)
}

fn connections(count: usize) -> String {
    crate::report::count(count as u64, "connection")
}

fn refused(server: &Server, what: String) -> SourceError {
    let hint = "give the verification a server that is nobody's, and empty".to_owned();
    SourceError::Refused { refusals: vec![Refusal { what: format!("{} {what}", server.name()), hint }] }
}

pub(super) async fn claim(server: &Server, others: &[Identity]) -> Result<(), SourceError> {
    let session = server.session().await?;
    let began = Instant::now();
    loop {
        let found = look(server, &session).await?;
        match decide(&found, others).map_err(|what| refused(server, what))? {
            Claim::Leftover if found.loading && began.elapsed() < LOADS => tokio::time::sleep(LOOK).await,
            Claim::Leftover => {
                tracing::info!("{} holds what an earlier proof left, which is removed", server.name());
                empty(&session).await?;
                break;
            }
            Claim::Empty => break,
        }
    }
    mark(server, &session).await?;
    Ok(())
}

async fn look(server: &Server, session: &Session) -> Result<Found, SourceError> {
    let info = Info::read(session).await?;
    let masterauth = match session.ask::<Vec<String>>(&["CONFIG", "GET", MARKED]).await {
        Ok(pair) => pair.into_iter().nth(1),
        Err(error @ RedisError::Said { .. }) => return Err(not_ours_to_set_up(server, &error)),
        Err(error) => return Err(error.into()),
    };
    let masterauth = masterauth.unwrap_or_default();
    let loading = info.get("loading") == "1" || info.get("async_loading") == "1";
    let mut found = Found {
        identity: of(server, &info),
        mode: info.get("redis_mode").to_owned(),
        master: None,
        replicas: info.number("connected_slaves"),
        loading,
        ours: [info.get("master_replid"), info.get("master_replid2")].contains(&OUR_ID),
        // Its second id is its former master's, up to that offset (replicationid, in Redis' documentation on replication).
        untouched: info.number("master_repl_offset") < info.number("second_repl_offset"),
        marked: masterauth.starts_with(MARK),
        foreign: !masterauth.is_empty() && !masterauth.starts_with(MARK),
        others: lingering(session).await?,
        holds: None,
    };
    if info.get("role") != "master" {
        let master = format!("{}:{}", info.get("master_host"), info.get("master_port"));
        found.master = Some((master, info.get("master_link_status") == "up"));
    }
    if !loading {
        found.holds = holds(server, session).await?;
    }
    Ok(found)
}

fn not_ours_to_set_up(server: &Server, error: &RedisError) -> SourceError {
    refused(server, format!("cannot be set up as a throwaway server: {error}"))
}

/// Connections of others that are there for [`LINGERS`].
async fn lingering(session: &Session) -> Result<Vec<String>, RedisError> {
    let own: u64 = session.ask(&["CLIENT", "ID"]).await?;
    let began = Instant::now();
    let mut stays: Option<BTreeSet<(u64, String)>> = None;
    loop {
        let list: String = session.ask(&["CLIENT", "LIST"]).await?;
        let mut there = clients(&list);
        there.retain(|(id, _)| *id != own);
        let left: BTreeSet<_> = match stays {
            Some(before) => before.intersection(&there).cloned().collect(),
            None => there,
        };
        if left.is_empty() || began.elapsed() >= LINGERS {
            return Ok(left.into_iter().map(|(_, address)| address).collect());
        }
        stays = Some(left);
        tokio::time::sleep(LOOK).await;
    }
}

/// Clients by id and address, of what `CLIENT LIST` says; not masters and replicas, which are looked at by themselves.
fn clients(list: &str) -> BTreeSet<(u64, String)> {
    let field = |line: &str, name: &str| {
        line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    let of_line = |line: &str| {
        let flags = field(line, "flags").unwrap_or_default();
        let id = field(line, "id")?.parse().ok()?;
        (!flags.contains(['M', 'S'])).then(|| (id, field(line, "addr").unwrap_or_default()))
    };
    list.lines().filter_map(of_line).collect()
}

/// What the server holds, in words.
async fn holds(server: &Server, session: &Session) -> Result<Option<String>, SourceError> {
    let keyspace: String = session.ask(&["INFO", "keyspace"]).await?;
    if let Some(line) = keyspace.lines().find(|line| line.starts_with("db")) {
        return Ok(Some(format!("keys ({})", line.trim())));
    }
    match session.ask::<Vec<redis::Value>>(&["FUNCTION", "LIST"]).await {
        Ok(libraries) if libraries.is_empty() => Ok(None),
        Ok(libraries) => Ok(Some(format!("function libraries ({})", libraries.len()))),
        Err(error) if has_no_functions(&error) => Ok(None),
        Err(error @ RedisError::Said { .. }) => Err(not_ours_to_set_up(server, &error)),
        Err(error) => Err(error.into()),
    }
}

/// Before 7.0 there are none.
fn has_no_functions(error: &RedisError) -> bool {
    matches!(error, RedisError::Said { text, .. } if text.contains("unknown command"))
}

/// Marks the server as claimed; gives what it proves itself with.
async fn mark(server: &Server, session: &Session) -> Result<String, SourceError> {
    let password = format!("{MARK}{}", hex::encode(&rand::random::<[u8; 16]>()));
    match session.ask::<()>(&["CONFIG", "SET", MARKED, &password]).await {
        Ok(()) => Ok(password),
        Err(error @ RedisError::Said { .. }) => Err(not_ours_to_set_up(server, &error)),
        Err(error) => Err(error.into()),
    }
}

/// The password that a claimed server proves itself with when it replicates from us: a new one each time.
///
/// # Errors
/// A refusal where it was not claimed.
pub(super) async fn password(server: &Server, session: &Session) -> Result<String, SourceError> {
    let pair: Vec<String> = session.ask(&["CONFIG", "GET", MARKED]).await?;
    match pair.get(1).is_some_and(|value| value.starts_with(MARK)) {
        true => mark(server, session).await,
        false => {
            Err(refused(server, "was not claimed for a proof, or another verification has used it meanwhile".into()))
        }
    }
}

/// Whatever it holds is gone, on its disk too: what replication brought is a file there, which a restart would load.
async fn empty(session: &Session) -> Result<(), RedisError> {
    session.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await?;
    session.ask::<()>(&["FLUSHALL"]).await?;
    match session.ask::<()>(&["FUNCTION", "FLUSH"]).await {
        Ok(()) => {}
        Err(error) if has_no_functions(&error) => {}
        Err(error) => return Err(error),
    }
    let began = Instant::now();
    loop {
        match session.ask::<()>(&["SAVE"]).await {
            // The dump that we took back may be on its way still.
            Err(RedisError::Said { text, .. }) if text.contains("in progress") && began.elapsed() < LOADS => {
                tokio::time::sleep(LOOK).await;
            }
            // One that can write no file has none.
            Ok(()) | Err(RedisError::Said { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// A server that is not marked was never claimed, and one that somebody has taken into use is not touched.
pub(super) async fn release(server: &Server) -> Result<(), SourceError> {
    let session = server.session().await?;
    let began = Instant::now();
    loop {
        let found = look(server, &session).await?;
        if !found.marked {
            return Ok(());
        }
        // It was proved just now, by us: what was written since are its own deletions of keys whose time is over.
        let found = Found { untouched: true, ..found };
        // A link to us that has just ended is up a little longer.
        let ended = found.master.as_ref().is_some_and(|(_, up)| *up) && began.elapsed() < ENDS;
        match decide(&found, &[]) {
            Ok(Claim::Leftover) if found.loading && began.elapsed() < LOADS => {}
            Ok(Claim::Leftover | Claim::Empty) => break,
            Err(_) if ended => {}
            Err(what) => return Err(refused(server, what)),
        }
        tokio::time::sleep(LOOK).await;
    }
    empty(&session).await?;
    Ok(session.ask::<()>(&["CONFIG", "SET", MARKED, ""]).await?)
}

pub(super) async fn prove(server: &Server, snapshot: &SnapshotReader) -> Result<Proof, SourceError> {
    let detail = detail(snapshot)?;
    let Some(captured) = &detail.contents else {
        let what = format!("the dump (RDB version {}) is newer than what this program reads", detail.rdb);
        return Ok(Proof { server: server.name(), not_comparable: vec![what], ..Proof::default() });
    };
    let found = replica::prove(server, snapshot, &detail, captured).await?;
    let as_was = |(db, _): &(u64, u64)| !found.differences.databases.contains(db);
    let databases = captured.databases().into_iter().filter(as_was);
    let mut same: Vec<Same> =
        databases.map(|(db, keys)| Same { name: format!("db {db}"), rows: keys, bytes: 0 }).collect();
    let libraries = captured.functions.len() as u64;
    if libraries > 0 && !found.differences.all.iter().any(|difference| difference.object.contains("function library")) {
        same.push(Same { name: "function libraries".into(), rows: libraries, bytes: 0 });
    }
    Ok(Proof {
        server: found.server,
        same,
        differences: found.differences.all,
        not_comparable: Vec::new(),
        notes: found.not_compared.into_iter().map(|what| format!("not compared: {what}")).collect(),
        restored: found.loaded,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn found() -> Found {
        let marks = vec!["run id a".to_owned(), replication_id("b")];
        let identity = Identity { shown: "scratch:6379".into(), marks };
        Found { identity, mode: "standalone".into(), ..Found::default() }
    }

    #[test]
    fn only_a_server_that_is_nobodys_is_emptied() {
        type Change = fn(&mut Found);
        let refused: &[(Change, &str)] = &[
            (|found| found.identity.marks.clear(), "who it is"),
            (|found| found.identity.marks.push(replication_id("source's")), "is source cache:6379 or a replica"),
            (|found| found.mode = "cluster".into(), "a node of a cluster"),
            (|found| found.mode = "sentinel".into(), "a Sentinel"),
            (|found| found.replicas = 1, "has replicas (1)"),
            (|found| found.master = Some(("db:6379".into(), true)), "is a replica of db:6379"),
            (|found| found.master = Some(("db:6379".into(), false)), "is a replica of db:6379"),
            (|found| (found.marked, found.master) = (true, Some(("us:1".into(), true))), "another verification"),
            (|found| found.others = vec!["10.0.0.7:51234".into()], "1 connection of others (10.0.0.7:51234)"),
            (|found| (found.marked, found.ours, found.others) = (true, true, vec!["x".into()]), "connection"),
            (|found| found.loading = true, "reads its data"),
            (|found| found.holds = Some("keys (db0)".into()), "holds keys (db0): it is in use"),
            // Somebody took a marked server into use.
            (|found| (found.marked, found.holds) = (true, Some("keys".into())), "holds keys: it is in use"),
            // Or one that was a proof's until it was started again.
            (|found| (found.ours, found.holds) = (true, Some("keys".into())), "holds keys: it is in use"),
            (
                |found| (found.marked, found.ours, found.holds) = (true, true, Some("keys".into())),
                "holds keys: it is in use",
            ),
            (|found| found.foreign = true, "part of something replicated"),
        ];
        let others = [Identity { shown: "cache:6379".into(), marks: vec![replication_id("source's")] }];
        for (change, words) in refused {
            let mut found = found();
            change(&mut found);
            let what = decide(&found, &others).unwrap_err();
            assert!(what.contains(words), "{what}");
        }
        let taken: &[(Change, Claim)] = &[
            (|_| {}, Claim::Empty),
            (|found| found.marked = true, Claim::Empty),
            (|found| (found.marked, found.master) = (true, Some(("us:1".into(), false))), Claim::Leftover),
            (
                |found| {
                    (found.marked, found.ours, found.untouched, found.holds) = (true, true, true, Some("keys".into()))
                },
                Claim::Leftover,
            ),
            (
                |found| (found.marked, found.loading, found.master) = (true, true, Some(("us:1".into(), false))),
                Claim::Leftover,
            ),
        ];
        for (change, claim) in taken {
            let mut found = found();
            change(&mut found);
            assert_eq!(decide(&found, &others), Ok(*claim), "{found:?}");
        }
    }

    #[test]
    fn clients_are_told_by_id_and_address() {
        let list = "id=3 addr=127.0.0.1:5 laddr=127.0.0.1:6379 fd=8 name= flags=N db=0 cmd=client|list user=default\n\
                    id=4 addr=10.0.0.1:7 laddr=x fd=9 name=app flags=P db=0 cmd=subscribe user=default\n\
                    id=5 addr=10.0.0.2:6379 flags=M cmd=ping\nid=6 addr=10.0.0.3:1 flags=S cmd=replconf\n\n";
        let expected = [(3, "127.0.0.1:5"), (4, "10.0.0.1:7")].map(|(id, address)| (id, address.to_owned()));
        assert_eq!(clients(list), BTreeSet::from(expected));
    }
}
