//! What a restore would do to a target, and why it must not.

use serde_json::Value;

use super::{
    error::NatsError,
    inventory::{Detail, StreamDetail, path},
    restore::NatsRestore,
    server::{Server, Version},
};
use crate::{
    pipeline::{Fingerprint, PipelineError, SnapshotReader},
    report,
    source::{Refusal, RestorePlan, RestoreRequest, SourceError},
};

/// The mark that a stream bears in its metadata while it is being restored: whoever finds it later knows that it is not whole.
pub(super) const MARK: &str = "altlas-backup.restoring";
/// Streams that a step names.
const NAMED: usize = 20;
/// Servers know metadata of streams from here on.
pub(super) const KNOWS_METADATA: Version = Version::new(2, 10, 0);

/// A stream of the backup.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) detail: StreamDetail,
    /// The same as the manifest has it.
    pub(super) notes: Value,
    /// Bytes of its archive.
    pub(super) raw: u64,
    /// What was captured.
    pub(super) captured: Fingerprint,
}

/// What is in the target.
pub(super) struct Target {
    name: String,
    version: Version,
    max_payload: u64,
    /// Names, with what `STREAM.LIST` tells.
    streams: Vec<(String, Value)>,
    account: Value,
}

impl Target {
    async fn look(server: &Server) -> Result<Self, NatsError> {
        let connection = server.connect().await?;
        let account = connection.ask("looking at the account", "INFO", &Value::Null).await?;
        let streams = connection.streams().await?;
        if let Some(name) = streams.silent.first() {
            return Err(NatsError::Silent { server: connection.server.clone(), what: format!("stream `{name}`") });
        }
        let max_payload = connection.client.max_payload() as u64;
        Ok(Self {
            name: connection.name(),
            version: connection.version,
            max_payload,
            streams: streams.streams,
            account,
        })
    }

    fn stream(&self, name: &str) -> Option<&Value> {
        self.streams.iter().find(|(there, _)| there == name).map(|(_, info)| info)
    }
}

/// Does a stream bear the mark of a restore that was not completed?
pub(super) fn is_marked(config: &Value) -> bool {
    config["metadata"].get(MARK).is_some()
}

/// Is what is in a target the half of an interrupted restore, in which nothing was put since? Only then may it go unasked.
pub(super) fn is_leftover(stream: &Stored, info: &Value) -> bool {
    is_marked(&info["config"]) && stream.detail.holds_nothing_newer(&info["state"])
}

/// Is it the snapshot of a server without any stream, which `allow_empty` let pass?
pub(super) fn is_of_nothing(snapshot: &SnapshotReader) -> bool {
    snapshot.artifacts().is_empty() && snapshot.detail().is_null()
}

/// Reads the manifest's notes.
pub(super) fn stored(snapshot: &SnapshotReader) -> Result<(Detail, Vec<Stored>), SourceError> {
    if is_of_nothing(snapshot) {
        return Ok((Detail::default(), Vec::new()));
    }
    let detail: Detail = parse(snapshot.detail())?;
    let mut streams = Vec::new();
    for artifact in snapshot.artifacts() {
        let detail: StreamDetail = parse(&artifact.detail)?;
        if path(&detail.name) != artifact.path {
            return Err(NatsError::Detail { detail: format!("{} is not what it says", artifact.path) }.into());
        }
        let Some(captured) = artifact.fingerprint else {
            return Err(NatsError::Detail { detail: format!("{} has no fingerprint", artifact.path) }.into());
        };
        streams.push(Stored { detail, notes: artifact.detail.clone(), raw: artifact.raw, captured });
    }
    Ok((detail, streams))
}

fn parse<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, NatsError> {
    serde_json::from_value(value.clone()).map_err(|error| NatsError::Detail { detail: error.to_string() })
}

pub(super) async fn plan(
    server: &Server,
    snapshot: SnapshotReader,
    request: &RestoreRequest,
) -> Result<NatsRestore, SourceError> {
    if is_of_nothing(&snapshot) {
        let plan = RestorePlan { target: server.config.endpoint.to_string(), ..RestorePlan::default() };
        return Ok(NatsRestore { server: server.clone(), snapshot, streams: Vec::new(), overwrite: false, plan });
    }
    let (detail, streams) = stored(&snapshot)?;
    let target = Target::look(server).await?;
    let source = Version::parse(&detail.server)
        .ok_or_else(|| NatsError::Detail { detail: format!("`{}` is no version", detail.server) })?;
    let raw = streams.iter().map(|stream| stream.raw).sum();
    let plan = RestorePlan {
        target: server.config.endpoint.to_string(),
        steps: steps(&streams, &target),
        notes: notes(&streams, &target),
        refusals: refusals(source, &streams, &target, request),
        raw,
    };
    Ok(NatsRestore { server: server.clone(), snapshot, streams, overwrite: request.overwrite, plan })
}

fn refusals(source: Version, streams: &[Stored], target: &Target, request: &RestoreRequest) -> Vec<Refusal> {
    let name = &target.name;
    let mut refusals = Vec::new();
    let mut refuse = |what: String, hint: &str| refusals.push(Refusal { what, hint: hint.to_owned() });
    if !request.tables.is_empty() {
        refuse(
            "`--table` chooses tables of PostgreSQL, and this is NATS".into(),
            "name the sources to restore with `--source`, or leave `--table` out",
        );
    }
    if !request.databases.is_empty() {
        refuse(
            "`--database` chooses databases of PostgreSQL, and this is NATS".into(),
            "name the sources to restore with `--source`, or leave `--database` out",
        );
    }
    if (target.version.major, target.version.minor) < (source.major, source.minor) {
        refuse(
            format!("the backup is of NATS {source}, and {name} is older"),
            "restore into a server that is not older than the source",
        );
        // What else an older server lacks does not matter.
        return refusals;
    }
    let there: Vec<String> = streams
        .iter()
        .filter_map(|stream| Some((stream, target.stream(&stream.detail.name)?)))
        .filter(|(stream, info)| !is_leftover(stream, info))
        .map(|(stream, info)| {
            let messages = report::count(number(&info["state"], "messages"), "message");
            format!("`{}` ({messages})", stream.detail.name)
        })
        .collect();
    if !there.is_empty() && !request.overwrite {
        refuse(
            format!("{name} holds {}: {}", report::count(there.len() as u64, "stream"), report::list(&there, 5)),
            "`--overwrite` deletes exactly the streams that are restored; `--target` names another server",
        );
    }
    for (other, info) in &target.streams {
        // One that is replaced is in the way of what is restored before.
        let until = streams.iter().position(|stream| stream.detail.name == *other).unwrap_or(streams.len());
        for stream in &streams[..until] {
            if let Some((mine, theirs)) = overlap(&stream.detail.config, &info["config"]) {
                refuse(
                    format!(
                        "stream `{}` listens on `{mine}`, and stream `{other}` of {name} on `{theirs}`",
                        stream.detail.name
                    ),
                    "delete the other stream, or restore into another server",
                );
            }
        }
    }
    for stream in streams.iter().filter(|stream| stream.detail.largest > target.max_payload) {
        let largest = report::bytes(stream.detail.largest);
        refuse(
            format!(
                "stream `{}` holds a message of {largest}, and {name} takes {} at most (`max_payload`)",
                stream.detail.name,
                report::bytes(target.max_payload)
            ),
            "raise `max_payload` in the target's configuration",
        );
    }
    for stream in streams.iter().filter(|stream| number(&stream.detail.config, "num_replicas") > 1) {
        refuse(
            format!("stream `{}` has several replicas, and {name} is one server", stream.detail.name),
            "this version restores into single servers only, and does not change the number of replicas",
        );
    }
    refusals.extend(too_small(streams, target));
    refusals
}

/// Limits of the account that the streams do not fit in.
fn too_small(streams: &[Stored], target: &Target) -> Vec<Refusal> {
    let limits = &target.account["limits"];
    let mut refusals = Vec::new();
    let mut refuse = |what: String, key: &str| {
        let hint = format!("raise `{key}` of the target's account, or delete what it does not need");
        refusals.push(Refusal { what: format!("{}: {what}", target.name), hint });
    };
    // What is replaced makes room first.
    let replaced: Vec<&Value> = streams.iter().filter_map(|stream| target.stream(&stream.detail.name)).collect();
    for (storage, used, limit) in [("file", "storage", "max_storage"), ("memory", "memory", "max_memory")] {
        let Some(most) = limits[limit].as_i64().and_then(|most| u64::try_from(most).ok()) else { continue };
        let of = |config: &Value| config["storage"].as_str() == Some(storage);
        let need: u64 = streams.iter().filter(|stream| of(&stream.detail.config)).map(need).sum();
        let freed: u64 =
            replaced.iter().filter(|info| of(&info["config"])).map(|info| number(&info["state"], "bytes")).sum();
        let used = number(&target.account, used).saturating_sub(freed);
        if need > 0 && used + need > most {
            let (need, used, most) = (report::bytes(need), report::bytes(used), report::bytes(most));
            refuse(format!("{need} of {storage} storage are needed, {used} of {most} are in use"), limit);
        }
    }
    if let Some(most) = limits["max_streams"].as_i64().and_then(|most| usize::try_from(most).ok()) {
        let after = target.streams.len() - replaced.len() + streams.len();
        if after > most {
            refuse(format!("it would have {after} streams, and may have {most}"), "max_streams");
        }
    }
    refusals
}

/// The least room a stream takes, as the source counted it.
fn need(stream: &Stored) -> u64 {
    number(&stream.detail.state, "bytes")
}

pub(super) fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_default()
}

/// Subjects of two streams that overlap, if any do.
fn overlap<'a>(one: &'a Value, other: &'a Value) -> Option<(&'a str, &'a str)> {
    let subjects = |config: &'a Value| config["subjects"].as_array().into_iter().flatten().filter_map(Value::as_str);
    subjects(one).find_map(|mine| Some((mine, subjects(other).find(|theirs| subjects_overlap(mine, theirs))?)))
}

/// Can one message be on both? `*` stands for one token, `>` at the end for one or more.
fn subjects_overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (None, _) | (_, None) => return false,
            (Some(">"), _) | (_, Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

fn steps(streams: &[Stored], target: &Target) -> Vec<String> {
    let mut steps = Vec::new();
    let (mut replaced, mut unfinished) = (Vec::new(), Vec::new());
    for (stream, info) in streams.iter().filter_map(|stream| Some((stream, target.stream(&stream.detail.name)?))) {
        let messages = report::count(number(&info["state"], "messages"), "message");
        let list = if is_leftover(stream, info) { &mut unfinished } else { &mut replaced };
        list.push(format!("`{}` ({messages})", stream.detail.name));
    }
    if !replaced.is_empty() {
        steps.push("read the whole archive of every stream, and check it, before anything is deleted".to_owned());
    } else if !unfinished.is_empty() {
        steps.push("read the whole archive of every stream that is replaced, and check it".to_owned());
    }
    if !unfinished.is_empty() {
        steps.push(format!("delete what interrupted restores left: {}", report::list(&unfinished, NAMED)));
    }
    if !replaced.is_empty() {
        let streams = report::count(replaced.len() as u64, "stream");
        steps.push(format!("delete {streams} with their consumers: {}", report::list(&replaced, NAMED)));
    }
    let (mut raw, mut records) = (0, 0);
    for stream in streams {
        raw += stream.raw;
        records += stream.captured.rows;
    }
    steps.push(format!(
        "restore {} with {} in {}",
        report::count(streams.len() as u64, "stream"),
        report::count(records, "message"),
        report::bytes(raw)
    ));
    for stream in streams {
        for consumer in &stream.detail.absent {
            steps.push(format!(
                "make consumer `{consumer}` of stream `{}` again, from its acknowledgement floor: its archive lacks it",
                stream.detail.name
            ));
        }
    }
    steps.push("take every stream back and compare it, message by message".into());
    steps
}

fn notes(streams: &[Stored], target: &Target) -> Vec<String> {
    let mut notes = Vec::new();
    for stream in streams {
        let (name, config) = (&stream.detail.name, &stream.detail.config);
        let pushing: Vec<&str> = stream
            .detail
            .consumers
            .iter()
            .filter(|consumer| consumer["config"]["deliver_subject"].is_string())
            .filter_map(|consumer| consumer["name"].as_str())
            .collect();
        if !pushing.is_empty() {
            notes.push(format!(
                "stream `{name}` has push consumers ({}): they deliver as soon as they are there",
                report::list(&pushing, 5)
            ));
        }
        if config["mirror"].is_object() || config["sources"].as_array().is_some_and(|sources| !sources.is_empty()) {
            notes.push(format!(
                "stream `{name}` copies from other streams: it goes on doing so where it finds them, and on another server than the \
                 source it may copy once more what it had copied"
            ));
        }
        if config["storage"] == "memory" {
            notes.push(format!("stream `{name}` is in memory: a restart of the target loses it"));
        }
        if number(config, "max_age") > 0 {
            let age = report::duration(std::time::Duration::from_nanos(number(config, "max_age")));
            notes.push(format!("stream `{name}` keeps messages for {age}: older ones are not brought back"));
        }
    }
    if streams.iter().any(|stream| !stream.detail.consumers.is_empty()) {
        notes.push(
            "what was acknowledged shortly before the backup may be delivered again: consumers must bear that".into(),
        );
    }
    if target.version < KNOWS_METADATA {
        notes.push(format!(
            "NATS {} cannot mark a stream as unfinished; it only shows one that is whole",
            target.version
        ));
    }
    notes
}

/// The stream's archive among the artifacts.
pub(super) fn artifact<'a>(
    snapshot: &'a SnapshotReader,
    stream: &str,
) -> Result<&'a crate::pipeline::Artifact, PipelineError> {
    snapshot.artifact(&path(stream))
}

/// A configuration without what a server adds by itself: `_nats.*` in its metadata.
pub(super) fn plain(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| !key.starts_with("_nats.") && key != MARK);
    }
    if config["metadata"].as_object().is_some_and(serde_json::Map::is_empty)
        && let Some(config) = config.as_object_mut()
    {
        config.remove("metadata");
    }
    config
}

/// How the configuration of what is there differs from the one that was captured, field by field. What only a newer server has is
/// none.
pub(super) fn config_differences(captured: &Value, there: &Value) -> Vec<String> {
    let (captured, there) = (plain(captured), plain(there));
    let fields = captured.as_object().into_iter().flatten();
    fields
        .filter(|(field, value)| {
            there.get(field).unwrap_or(&Value::Null) != *value && !is_nothing(value, there.get(field))
        })
        .map(|(field, value)| format!("`{field}` was {value} and is {}", there.get(field).unwrap_or(&Value::Null)))
        .collect()
}

/// An empty value and none are the same to a server.
fn is_nothing(captured: &Value, there: Option<&Value>) -> bool {
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    };
    empty(captured) && there.is_none_or(empty)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn subjects_that_one_message_can_be_on() {
        for (one, other, want) in [
            ("a", "a", true),
            ("a", "b", false),
            ("a.b", "a", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "x.y", true),
            ("*.b", "a.*", true),
            ("*.b", "a.c", false),
            ("a.*.c", "*.b.>", true),
            ("last.files", "last.files.>", false),
        ] {
            assert_eq!(subjects_overlap(one, other), want, "{one} {other}");
            assert_eq!(subjects_overlap(other, one), want, "{other} {one}");
        }
    }

    #[test]
    fn configurations_differ_where_something_that_was_set_is_not() {
        let was = json!({"name": "S", "max_age": 5, "sealed": false, "metadata": {"a": "b", "_nats.ver": "2.10"}});
        let same = json!({"name": "S", "max_age": 5, "compression": "none", "metadata": {"a": "b", "_nats.ver": "2.15", MARK: "x"}});
        assert!(config_differences(&was, &same).is_empty());
        let other = json!({"name": "S", "max_age": 6, "metadata": {"a": "c"}});
        assert_eq!(config_differences(&was, &other).len(), 2);
        assert_eq!(config_differences(&was, &json!({})).len(), 3);
    }
}
