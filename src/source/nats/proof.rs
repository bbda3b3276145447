//! A throwaway server gets every stream of a snapshot, and gives it back: the strictest proof of a backup.
//!
//! There the streams have no limits, so that nothing is removed which was captured, and copy from nowhere. Their configurations are
//! compared apart from that: what the server made of the one that it was given, the archive's own copy where it has one, and what the manifest
//! tells with the fingerprint of what it told when the stream was captured.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    archive::{ArchiveError, ArchivedConsumer},
    compare::{self, Archived, Found},
    error::NatsError,
    plan::{Stored, config_differences, number, stored},
    restore::load,
    server::{Connection, Server, Version},
    throwaway::{self, THROWAWAY},
};
use crate::{pipeline::SnapshotReader, report, source::SourceError};

/// What a throwaway server made of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamProof {
    /// The stream.
    pub(super) stream: String,
    /// Messages that it held.
    pub(super) messages: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Names of the consumers that were compared.
    pub(super) consumers: Vec<String>,
    /// How what it held differs from what was captured, in words; nothing where it is the same.
    pub(super) differences: Vec<String>,
    /// What to know of the comparison, in words.
    pub(super) notes: Vec<String>,
}

/// What a throwaway server made of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proof {
    /// The server and its version.
    pub(super) server: String,
    /// Every stream.
    pub(super) streams: Vec<StreamProof>,
    /// How long the restores took, without the comparisons.
    pub(super) loaded: Duration,
}

/// A server that was sent half an archive may show a stream for as long after: it waits five seconds for more.
const MAY_APPEAR: Duration = Duration::from_secs(8);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often a stream is taken back at most.
const TRIES: u32 = 3;

/// Fills the throwaway server with the snapshot, stream by stream, takes each back and compares. The server must be claimed.
///
/// # Errors
/// A server that cannot be reached, is older than the source, or does not take a stream; damaged parts.
pub(super) async fn prove(server: &Server, snapshot: &SnapshotReader) -> Result<Proof, SourceError> {
    let (detail, streams) = stored(snapshot)?;
    let connection = server.connect().await?;
    if let Some(source) = Version::parse(&detail.server)
        && (connection.version.major, connection.version.minor) < (source.major, source.minor)
    {
        let what = format!("is NATS {}, and the backup is of NATS {source}", connection.version);
        return Err(NatsError::NotSupported { server: connection.server, what }.into());
    }
    let mut proof = Proof { server: connection.name(), streams: Vec::new(), loaded: Duration::ZERO };
    let missing = detail.names.iter().filter(|name| !streams.iter().any(|stream| stream.detail.name == **name));
    for name in missing {
        let differences = vec!["was captured, and the manifest does not tell of it".to_owned()];
        proof.streams.push(StreamProof { stream: name.clone(), differences, ..StreamProof::default() });
    }
    for stream in &streams {
        // Another one may listen on the same subjects, and room is for one at a time.
        throwaway::clear(server, &connection).await?;
        let proved = one(server, &connection, snapshot, stream, &mut proof.loaded).await?;
        proof.streams.push(proved);
    }
    throwaway::clear(server, &connection).await?;
    Ok(proof)
}

/// One stream.
async fn one(
    server: &Server,
    connection: &Connection,
    snapshot: &SnapshotReader,
    stream: &Stored,
    loaded: &mut Duration,
) -> Result<StreamProof, SourceError> {
    let told = stream.detail.told.as_ref();
    let mut differences =
        told.map_or_else(Vec::new, |told| told.differences(&stream.notes, snapshot.fingerprint_seed()));
    let began = Instant::now();
    let archived = fill(server, connection, snapshot, stream).await;
    *loaded += began.elapsed();
    let error = match archived {
        Ok(archived) => {
            let mut proof = look(connection, snapshot, stream, &archived).await?;
            differences.append(&mut proof.differences);
            return Ok(StreamProof { differences, ..proof });
        }
        Err(error) => error,
    };
    // Why a server does not take a stream: an archive that is not what was captured, or a configuration that is not, is the backup's fault.
    // Of one that is, it is known only then.
    let reread = match &error {
        SourceError::Nats(NatsError::NotCaptured { .. }) => None,
        SourceError::Nats(_) if differences.is_empty() => compare::read(snapshot, stream).await.err(),
        _ => None,
    };
    match reread.unwrap_or(error) {
        SourceError::Nats(NatsError::NotCaptured { detail, .. }) => {
            differences.push(format!("its stored archive is not what was captured: {detail}"));
        }
        SourceError::Nats(error) if !differences.is_empty() => differences.push(format!("is not taken: {error}")),
        error => return Err(error),
    }
    Ok(StreamProof { stream: stream.detail.name.clone(), differences, ..StreamProof::default() })
}

/// Gives the server a stream; gives what is in its archive. What a killed proof had begun may appear meanwhile, and be in the way.
async fn fill(
    server: &Server,
    connection: &Connection,
    snapshot: &SnapshotReader,
    stream: &Stored,
) -> Result<Archived, SourceError> {
    let began = Instant::now();
    loop {
        match load(connection, snapshot, stream, &unlimited(&stream.detail.config), || {}).await {
            Err(SourceError::Nats(error))
                if (error.is_of_what_is_there() || error.is_of_a_folder_that_goes())
                    && began.elapsed() < MAY_APPEAR =>
            {
                tracing::debug!("{error}; trying again");
                tokio::time::sleep(LOOK).await;
                throwaway::clear(server, connection).await?;
            }
            loaded => return loaded,
        }
    }
}

/// A configuration under which a server keeps whatever it gets.
fn unlimited(config: &Value) -> Value {
    let mut config = config.clone();
    let Some(fields) = config.as_object_mut() else { return config };
    for field in
        ["mirror", "sources", "republish", "placement", "subject_transform", "first_seq", "subject_delete_marker_ttl"]
    {
        fields.remove(field);
    }
    // The server would publish what is due.
    fields.remove("allow_msg_schedules");
    fields.insert("description".into(), THROWAWAY.into());
    let free = json!({
        "retention": "limits", "discard": "old", "discard_new_per_subject": false, "sealed": false, "num_replicas": 1,
        "max_age": 0, "max_msgs": -1, "max_bytes": -1, "max_msgs_per_subject": -1, "max_msg_size": -1, "max_consumers": -1,
    });
    for (field, value) in free.as_object().into_iter().flatten() {
        // A field that the source does not have may be one that the server does not know.
        if fields.contains_key(field) {
            fields.insert(field.clone(), value.clone());
        }
    }
    config
}

/// Takes a stream back and compares all of it.
async fn look(
    connection: &Connection,
    snapshot: &SnapshotReader,
    stream: &Stored,
    archived: &Archived,
) -> Result<StreamProof, SourceError> {
    let name = &stream.detail.name;
    let mut tries = 1..TRIES;
    let found = loop {
        match compare::take_back(connection, name, snapshot.fingerprint_seed(), u64::MAX, true).await {
            // The server itself says that it could not send all of it: of a consumer that went meanwhile, for one.
            Err(SourceError::Nats(
                error @ (NatsError::Archive { error: ArchiveError::Reported { .. }, .. } | NatsError::Ended { .. }),
            )) if tries.next().is_some() => {
                tracing::debug!("{error}; trying again");
                tokio::time::sleep(LOOK).await;
            }
            found => break found?,
        }
    };
    let verdict = compare::stream(connection, snapshot, stream, archived, &found.counted, false).await?;
    let mut proof = StreamProof {
        stream: name.clone(),
        messages: verdict.messages,
        bytes: verdict.bytes,
        consumers: Vec::new(),
        differences: verdict.differences,
        notes: verdict.notes,
    };
    let info = connection.stream(name, &Value::Null).await?.unwrap_or_default();
    let differences = config_differences(&unlimited(&stream.detail.config), &info["config"]);
    proof.differences.extend(differences.iter().map(|what| format!("its configuration: {what}")));
    if let Some(config) = &archived.config {
        proof.differences.extend(
            config_differences(&stream.detail.config, config)
                .iter()
                .map(|what| format!("its archive's configuration: {what}")),
        );
    }
    let there: BTreeMap<String, Value> = connection.consumers(name).await?.into_iter().collect();
    consumers(stream, archived, &found, &there, &mut proof);
    Ok(proof)
}

/// Every consumer that was listed is there, with its configuration and where it was in the stream.
fn consumers(
    stream: &Stored,
    archived: &Archived,
    found: &Found,
    there: &BTreeMap<String, Value>,
    proof: &mut StreamProof,
) {
    for consumer in &stream.detail.consumers {
        let Some(name) = consumer["name"].as_str() else { continue };
        if stream.detail.absent.iter().any(|absent| absent == name) {
            proof.notes.push(format!("consumer `{name}` is not in the archive; a restore makes it again"));
            continue;
        }
        proof.consumers.push(name.to_owned());
        let Some(restored) = there.get(name) else {
            match goes_by_itself(&consumer["config"]) && archived.consumers.contains_key(name) {
                true => proof.notes.push(format!(
                    "consumer `{name}` is in the archive, and a server removes it when nobody uses it: not compared"
                )),
                false => proof.differences.push(format!("consumer `{name}` is not there")),
            }
            continue;
        };
        let differences = config_differences(&consumer["config"], &restored["config"]);
        if !differences.is_empty() {
            proof.differences.push(format!("consumer `{name}`: {}", report::list(&differences, 5)));
        }
        let state =
            |consumers: &BTreeMap<String, ArchivedConsumer>| consumers.get(name).and_then(|consumer| consumer.state);
        match (state(&archived.consumers), state(&found.consumers)) {
            (was, is) if was == is => {}
            // One that never delivered may have no state in an archive.
            (None, Some(_)) if consumer["delivered"]["consumer_seq"].as_u64().unwrap_or_default() == 0 => {}
            (Some(was), Some(is)) if compare::begins_again(&was, &is, archived.first()) => {
                proof.notes.extend(compare::began_again(name, &was));
            }
            (was, is) => {
                let at =
                    |state: Option<_>| state.map_or("at no known place".to_owned(), |state| format!("at {state:?}"));
                proof.differences.push(format!("consumer `{name}` was {} and is {}", at(was), at(is)));
            }
        }
    }
    let listed = |name: &str| stream.detail.consumers.iter().any(|consumer| consumer["name"] == name);
    let unlisted = |name: &String| stream.detail.unlisted.contains(name);
    // Older versions' manifests do not tell what was in the archive and not listed.
    for name in there.keys().filter(|name| stream.detail.told.is_some() && !listed(name) && !unlisted(name)) {
        proof.differences.push(format!("consumer `{name}` is there and was not captured"));
    }
}

/// Does a server remove a consumer of this configuration when nobody uses it for a while?
fn goes_by_itself(config: &Value) -> bool {
    let durable = config["durable_name"].as_str().is_some_and(|name| !name.is_empty());
    !durable || number(config, "inactive_threshold") > 0
}
