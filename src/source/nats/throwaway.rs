//! A throwaway server: who it is, whether it may be emptied, and what it makes of a snapshot.

use serde_json::Value;

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

pub(super) async fn claim(server: &Server, others: &[Identity]) -> Result<(), SourceError> {
    let connection = match server.connect().await {
        Ok(connection) => connection,
        // A server of a cluster is somebody's.
        Err(NatsError::NotSupported { what, .. }) if what.contains("cluster") => return Err(refused(server, what)),
        Err(error) => return Err(error.into()),
    };
    let ours = Identity { shown: server.name(), marks: marks(&connection) };
    for other in others {
        if let Some(mark) = ours.shares(other) {
            return Err(refused(server, format!("is source {} ({mark})", other.shown)));
        }
    }
    let there = connection.streams().await?;
    if let Some(silent) = there.silent.first() {
        return Err(refused(server, format!("has a stream `{silent}` of which it cannot tell: it is in use")));
    }
    let is_left = |info: &Value| info["config"]["description"] == THROWAWAY;
    if let Some((name, _)) = there.streams.iter().find(|(_, info)| !is_left(info)) {
        return Err(refused(server, format!("has a stream `{name}`: it is in use")));
    }
    for (name, _) in &there.streams {
        connection.delete(name).await?;
    }
    Ok(())
}

pub(super) async fn release(server: &Server) -> Result<(), NatsError> {
    let connection = server.connect().await?;
    for (name, info) in connection.streams().await?.streams {
        if info["config"]["description"] == THROWAWAY {
            connection.delete(&name).await?;
        }
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
