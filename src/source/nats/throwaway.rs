//! A throwaway server: who it is, whether it may be emptied, and what it makes of a snapshot.
//!
//! Streams of a proof bear a description ([`THROWAWAY`]): only those are ever deleted.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use super::{
    error::NatsError,
    proof,
    server::{Connection, Server},
};
use crate::{
    pipeline::SnapshotReader,
    source::{Difference, Identity, Proof, Refusal, Same, SourceError},
};

/// The description of a stream in a throwaway server: what a killed proof leaves has it.
pub(super) const THROWAWAY: &str = "altlas-backup: throwaway";

/// Whoever is connected for so long uses the server: a look at its health is shorter.
const LINGERS: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(250);

pub(super) async fn identity(server: &Server) -> Result<Identity, NatsError> {
    let connection = server.connect().await?;
    Ok(Identity { shown: server.name(), marks: marks(&connection) })
}

/// A server's id is a new one at each of its starts.
pub(super) fn marks(connection: &Connection) -> Vec<String> {
    vec![format!("server id {}", connection.client.server_info().server_id)]
}

fn refused(server: &Server, what: String) -> SourceError {
    let hint = "give the verification a server that is nobody's, and empty".to_owned();
    SourceError::Refused { refusals: vec![Refusal { what: format!("{} {what}", server.name()), hint }] }
}

/// What is found on a server that is to be a throwaway one.
#[derive(Clone, Debug, Default)]
struct Found {
    identity: Identity,
    /// Has it JetStream itself? One that has not may pass on what is asked.
    jetstream: bool,
    /// Others that are connected and stay, in words.
    others: Vec<String>,
    /// Streams, and whether a proof left them.
    streams: Vec<(String, bool)>,
    /// Streams of which it cannot tell.
    silent: Vec<String>,
}

/// May this server be emptied? If not, why: words that follow its name.
fn decide(found: &Found, others: &[Identity]) -> Result<(), String> {
    for other in others {
        if let Some(mark) = found.identity.shares(other) {
            return Err(format!("is source {} ({mark})", other.shown));
        }
    }
    if !found.jetstream {
        return Err("has no JetStream of its own, and passes on what is asked to another server's".into());
    }
    if !found.others.is_empty() {
        return Err(format!("is in use: others are connected ({})", crate::report::list(&found.others, 3)));
    }
    if let Some(silent) = found.silent.first() {
        return Err(format!("has a stream `{silent}` of which it cannot tell: it is in use"));
    }
    match found.streams.iter().find(|(_, left)| !left) {
        Some((name, _)) => Err(format!("has a stream `{name}`: it is in use")),
        None => Ok(()),
    }
}

pub(super) async fn claim(server: &Server, others: &[Identity]) -> Result<(), SourceError> {
    let connection = match server.connect().await {
        Ok(connection) => connection,
        // A server of a cluster is somebody's.
        Err(NatsError::NotSupported { what, .. }) if what.contains("cluster") => return Err(refused(server, what)),
        Err(error) => return Err(error.into()),
    };
    let found = look(&connection, server).await?;
    decide(&found, others).map_err(|what| refused(server, what))?;
    clear(server, &connection).await
}

async fn look(connection: &Connection, server: &Server) -> Result<Found, SourceError> {
    let there = connection.streams().await?;
    let info = connection.client.server_info();
    Ok(Found {
        identity: Identity { shown: server.name(), marks: marks(connection) },
        jetstream: info.jetstream,
        others: lingering(connection).await?,
        streams: there.streams.iter().map(|(name, info)| (name.clone(), is_left(info))).collect(),
        silent: there.silent,
    })
}

/// Is it a stream of a proof?
fn is_left(info: &Value) -> bool {
    info["config"]["description"] == THROWAWAY
}

/// Connections of others to the account, and of other servers, that are there for [`LINGERS`].
async fn lingering(connection: &Connection) -> Result<Vec<String>, NatsError> {
    let began = Instant::now();
    let mut stays: Option<BTreeSet<(u64, String)>> = None;
    loop {
        let Some(connections) = connection.connections().await? else { return Ok(Vec::new()) };
        let info = connection.client.server_info();
        if connections["server"]["id"] != info.server_id.as_str() {
            return Ok(vec![format!("server `{}`", connections["server"]["name"].as_str().unwrap_or("?"))]);
        }
        let mut there = clients(&connections["data"]);
        there.retain(|(id, _)| *id != info.client_id);
        let left: BTreeSet<_> = match stays {
            Some(before) => before.intersection(&there).cloned().collect(),
            None => there,
        };
        if left.is_empty() || began.elapsed() >= LINGERS {
            return Ok(left.into_iter().map(|(_, who)| who).collect());
        }
        stays = Some(left);
        tokio::time::sleep(LOOK).await;
    }
}

/// Connections by id, with who they are in words.
fn clients(data: &Value) -> BTreeSet<(u64, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |one: &Value| {
        let who = match (text(&one["name"]), text(&one["kind"])) {
            (name, kind) if name.is_empty() => format!("{kind} {}:{}", text(&one["ip"]), one["port"]),
            (name, kind) => format!("{kind} `{}`", name.escape_debug()),
        };
        Some((one["cid"].as_u64()?, who))
    };
    data["connections"].as_array().into_iter().flatten().filter_map(of).collect()
}

/// Deletes what proofs have made.
///
/// # Errors
/// A refusal where the server has a stream that is none of those: it is in use by now.
pub(super) async fn clear(server: &Server, connection: &Connection) -> Result<(), SourceError> {
    for (name, info) in connection.streams().await?.streams {
        match is_left(&info) {
            true => drop(connection.delete(&name).await?),
            false => return Err(refused(server, format!("has a stream `{name}`: it is in use"))),
        }
    }
    Ok(())
}

pub(super) async fn release(server: &Server) -> Result<(), NatsError> {
    let connection = server.connect().await?;
    for (name, _) in connection.streams().await?.streams.iter().filter(|(_, info)| is_left(info)) {
        connection.delete(name).await?;
    }
    Ok(())
}

pub(super) async fn prove(server: &Server, snapshot: &SnapshotReader) -> Result<Proof, SourceError> {
    let found = proof::prove(server, snapshot).await?;
    let mut proof = Proof { server: found.server, restored: found.loaded, ..Proof::default() };
    for stream in found.streams {
        let notes = stream.notes.iter().map(|note| format!("stream `{}`: {note}", stream.stream));
        proof.notes.extend(notes);
        if stream.differences.is_empty() {
            let named = |consumer: &String| format!("consumer `{consumer}` of stream `{}`", stream.stream);
            proof.same.extend(stream.consumers.iter().map(|one| Same { name: named(one), rows: 0, bytes: 0 }));
            proof.same.push(Same { name: stream.stream, rows: stream.messages, bytes: stream.bytes });
            continue;
        }
        let differs = |what| Difference { object: format!("stream `{}`", stream.stream), what };
        proof.differences.extend(stream.differences.into_iter().map(differs));
    }
    Ok(proof)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_server_that_is_nobodys_is_emptied() {
        let identity = Identity { shown: "scratch:4222".into(), marks: vec!["server id a".into()] };
        let streams = vec![("LEFT".to_owned(), true)];
        let found = Found { identity, jetstream: true, streams, ..Found::default() };
        let others = [Identity { shown: "messages:4222".into(), marks: vec!["server id source's".into()] }];
        assert_eq!(decide(&found, &others), Ok(()));
        type Change = fn(&mut Found);
        let refused: &[(Change, &str)] = &[
            (|found| found.identity.marks = vec!["server id source's".into()], "is source messages:4222"),
            (|found| found.jetstream = false, "no JetStream of its own"),
            (|found| found.others = vec!["Client `app`".into()], "others are connected (Client `app`)"),
            (|found| found.silent = vec!["S".into()], "`S` of which it cannot tell"),
            (|found| found.streams.push(("ORDERS".into(), false)), "has a stream `ORDERS`: it is in use"),
        ];
        for (change, words) in refused {
            let mut found = found.clone();
            change(&mut found);
            let what = decide(&found, &others).unwrap_err();
            assert!(what.contains(words), "{what}");
        }
    }

    #[test]
    fn connections_are_told_by_id_and_name() {
        let data = json!({"connections": [
            {"cid": 4, "kind": "Client", "ip": "10.0.0.7", "port": 33514},
            {"cid": 5, "kind": "Leafnode", "name": "edge\u{1b}"},
        ]});
        let expected = [(4, "Client 10.0.0.7:33514"), (5, "Leafnode `edge\\u{1b}`")];
        assert_eq!(clients(&data), BTreeSet::from(expected.map(|(id, who)| (id, who.to_owned()))));
        assert_eq!(clients(&Value::Null), BTreeSet::new());
    }
}
