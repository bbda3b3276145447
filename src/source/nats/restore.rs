//! A restore into a running server: every stream through the server's own restore, then taken back and compared.
//!
//! While it is not whole, a stream bears a mark in its metadata ([`MARK`]), where the server knows metadata: a newer server shows a stream
//! from its first message on, so whoever finds one that a killed restore left can tell.

use std::{sync::atomic::Ordering, time::Duration};

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    compare::{self, Archived},
    error::NatsError,
    load::{self, Load},
    plan::{KNOWS_METADATA, MARK, Stored, artifact, config_differences, is_leftover, number},
    server::{Connection, Server},
};
use crate::{
    pipeline::{Progress, SnapshotReader},
    report,
    source::{Compared, Refusal, Restore, RestorePlan, Restored, RestoredItem, SourceError},
};

/// A server that was sent half an archive may show a stream for as long after: it waits five seconds for more.
const MAY_APPEAR: Duration = Duration::from_secs(7);
/// How long to try to remove what a failed restore left. A server that was killed may be back by then.
const REMOVING: Duration = Duration::from_secs(60);
/// How often.
const LOOK: Duration = Duration::from_millis(500);

/// A planned restore into a running server.
pub(super) struct NatsRestore {
    pub(super) server: Server,
    pub(super) snapshot: SnapshotReader,
    pub(super) streams: Vec<Stored>,
    pub(super) overwrite: bool,
    pub(super) plan: RestorePlan,
}

/// What was done so far, for whoever has to say what is left.
#[derive(Default)]
struct Done {
    /// Streams that were restored and compared.
    whole: Vec<String>,
    /// Was anything in the target touched?
    begun: bool,
    /// How far the present one is.
    stage: Stage,
}

/// How far the restore of a stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Whatever was there is there.
    #[default]
    Untouched,
    /// The old stream was deleted.
    Deleted,
    /// The server was asked to take ours, and agreed.
    Loading {
        /// Was an old one deleted before?
        deleted: bool,
    },
}

/// What became of the half of a stream.
enum Removal {
    /// There is none.
    Gone,
    /// It is there, for this reason.
    Stays(String),
}

#[async_trait]
impl Restore for NatsRestore {
    fn plan(&self) -> &RestorePlan {
        &self.plan
    }

    async fn execute(self: Box<Self>, cancel: &CancellationToken) -> Result<Restored, SourceError> {
        let mut done = Done::default();
        let result = self.restore(&mut done, cancel).await;
        result.map_err(|error| match done.left() {
            None => error,
            Some(left) => match error {
                SourceError::Interrupted { left: Some(half) } => {
                    SourceError::Interrupted { left: Some(format!("{half}; {left}")) }
                }
                SourceError::Interrupted { left: None } => SourceError::Interrupted { left: Some(left) },
                SourceError::HalfRestored { error, left: half } => {
                    SourceError::HalfRestored { error, left: format!("{half}; {left}") }
                }
                error => SourceError::HalfRestored { error: Box::new(error), left },
            },
        })
    }
}

impl Done {
    /// What is in the target, apart from the present stream.
    fn left(&self) -> Option<String> {
        if !self.begun {
            return None;
        }
        Some(match self.whole.len() {
            0 => "no stream was restored".to_owned(),
            n => {
                format!("{} restored and compared: {}", report::count(n as u64, "stream"), report::list(&self.whole, 5))
            }
        })
    }
}

impl NatsRestore {
    async fn restore(&self, done: &mut Done, cancel: &CancellationToken) -> Result<Restored, SourceError> {
        let mut restored = Restored { unit: "stream", ..Restored::default() };
        let looking = self.look_again();
        let there = tokio::select! {
            there = looking => there?,
            () = cancel.cancelled() => return Err(SourceError::Interrupted { left: None }),
        };
        let mut connection = self.server.connect().await?;
        for stream in &self.streams {
            let replaces = there.contains(&stream.detail.name);
            let one = One { restore: self, stream, connection: &connection };
            done.stage = Stage::Untouched;
            let item = tokio::select! {
                biased;
                item = one.restore(replaces, done, &mut restored.notes) => item,
                () = cancel.cancelled() => Err(SourceError::Interrupted { left: None }),
            };
            match item {
                Ok(item) => restored.items.push(item),
                Err(error) => return Err(self.clear(stream, &mut connection, done, error).await),
            }
        }
        Ok(restored)
    }

    /// What is in the way. Where something is replaced, every archive is read first, all of it: there is no way back.
    async fn look_again(&self) -> Result<Vec<String>, SourceError> {
        let connection = self.server.connect().await?;
        let (mut there, mut replaces) = (Vec::new(), false);
        for stream in &self.streams {
            let name = &stream.detail.name;
            let Some(info) = connection.stream(name, &Value::Null).await? else { continue };
            let whole = !is_leftover(stream, &info);
            if whole && !self.overwrite {
                let what = format!("{} holds a stream `{name}` since it was looked at", connection.server);
                let hint = "stop whatever makes it".to_owned();
                return Err(SourceError::Refused { refusals: vec![Refusal { what, hint }] });
            }
            there.push(name.clone());
            replaces |= whole;
        }
        for stream in self.streams.iter().filter(|stream| replaces || there.contains(&stream.detail.name)) {
            self.snapshot.progress().set_phase(format!("reading the archive of stream `{}`", stream.detail.name));
            compare::read(&self.snapshot, stream).await?;
        }
        self.snapshot.progress().raw.store(0, Ordering::Relaxed);
        Ok(there)
    }

    /// Removes what a failed restore left of its stream, and says what is there.
    async fn clear(
        &self,
        stream: &Stored,
        connection: &mut Connection,
        done: &Done,
        error: SourceError,
    ) -> SourceError {
        let name = &stream.detail.name;
        let left = match (done.stage, &error) {
            (Stage::Untouched, _) if !done.begun => return error,
            (Stage::Untouched, _) => format!("stream `{name}` was not touched"),
            (Stage::Deleted, _) => format!("the old stream `{name}` was deleted, and nothing is in its place"),
            (Stage::Loading { .. }, SourceError::Nats(NatsError::Differs { .. })) => {
                format!(
                    "stream `{name}` is left as it is, with the mark `{MARK}` in its metadata where the server knows any"
                )
            }
            (Stage::Loading { deleted }, _) => {
                // Of an archive that is another than the manifest's nobody can say what came after it.
                let other = matches!(error, SourceError::Nats(NatsError::NotCaptured { .. }));
                let half = match self.remove(stream, connection, other).await {
                    Removal::Gone => format!("nothing is left of stream `{name}`"),
                    Removal::Stays(why) => format!(
                        "what is there of stream `{name}` could not be removed ({why}): look at it, and delete it or restore again with `--overwrite`"
                    ),
                };
                match deleted {
                    true => format!("{half}; the old one was deleted"),
                    false => half,
                }
            }
        };
        match error {
            SourceError::Interrupted { .. } => SourceError::Interrupted { left: Some(left) },
            error => SourceError::HalfRestored { error: Box::new(error), left },
        }
    }

    /// Deletes what is there of a stream that we began, until nothing appears any more. Where the archive is an `other` one than the
    /// manifest's, whatever bears our mark is ours.
    async fn remove(&self, stream: &Stored, connection: &mut Connection, other: bool) -> Removal {
        let mark = self.snapshot.tail();
        let began = Instant::now();
        let mut why = String::new();
        // What was said on the old one is no answer to what is asked now.
        if let Ok(new) = self.server.connect().await {
            *connection = new;
        }
        while began.elapsed() < REMOVING {
            match remove_ours(connection, stream, Some(mark.as_str()).filter(|_| other)).await {
                Ok(Left::Nothing) if began.elapsed() >= MAY_APPEAR => return Removal::Gone,
                Ok(Left::Nothing | Left::Deleted) => {}
                Ok(Left::Anothers) => return Removal::Stays("it holds what came after the backup".into()),
                Err(error @ (NatsError::Denied { .. } | NatsError::Login { .. })) => {
                    return Removal::Stays(error.to_string());
                }
                Err(error) => {
                    why = error.to_string();
                    if let Ok(new) = self.server.connect().await {
                        *connection = new;
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        Removal::Stays(why)
    }
}

/// What was found where a restore had begun.
enum Left {
    Nothing,
    /// It was ours, and is deleted.
    Deleted,
    /// Something else made a stream of that name, or put something into ours.
    Anothers,
}

/// Looks for a stream and deletes it if it is what a restore of `stream` left: nothing in it is newer, or it bears this mark.
async fn remove_ours(connection: &Connection, stream: &Stored, mark: Option<&str>) -> Result<Left, NatsError> {
    let name = &stream.detail.name;
    let Some(info) = connection.stream(name, &Value::Null).await? else { return Ok(Left::Nothing) };
    let marked = mark.is_some_and(|mark| info["config"]["metadata"][MARK] == mark);
    if !marked && !stream.detail.holds_nothing_newer(&info["state"]) {
        return Ok(Left::Anothers);
    }
    connection.delete(name).await.map(|_| Left::Deleted)
}

/// One stream's restore.
struct One<'a> {
    restore: &'a NatsRestore,
    stream: &'a Stored,
    connection: &'a Connection,
}

impl One<'_> {
    async fn restore(
        &self,
        replaces: bool,
        done: &mut Done,
        notes: &mut Vec<String>,
    ) -> Result<RestoredItem, SourceError> {
        let (name, snapshot) = (&self.stream.detail.name, &self.restore.snapshot);
        let marks = self.connection.version >= KNOWS_METADATA;
        let mut config = self.stream.detail.config.clone();
        if marks {
            config["metadata"][MARK] = snapshot.tail().into();
            // A sealed stream cannot be changed any more, and it will be.
            config["sealed"] = false.into();
        }
        if replaces {
            snapshot.progress().set_phase(format!("deleting stream `{name}`"));
            load::would_take(self.connection, name, &config, &self.stream.detail.state).await?;
            self.connection.delete(name).await?;
            (done.begun, done.stage) = (true, Stage::Deleted);
        }
        snapshot.progress().set_phase(format!("restoring stream `{name}`"));
        let begun = || (done.begun, done.stage) = (true, Stage::Loading { deleted: replaces });
        let archived = load(self.connection, snapshot, self.stream, &config, begun).await?;
        let consumers_are_same = self.consumers(&archived, notes).await?;
        snapshot.progress().set_phase(format!("comparing stream `{name}`"));
        // What was published since then is not ours to compare.
        let last = archived.last();
        let found = compare::take_back(self.connection, name, snapshot.fingerprint_seed(), last, false).await?;
        let verdict = compare::stream(self.connection, snapshot, self.stream, &archived, &found.counted, true).await?;
        notes.extend(verdict.notes.into_iter().map(|note| format!("stream `{name}`: {note}")));
        if !verdict.differences.is_empty() {
            let (server, differences) = (self.connection.server.clone(), verdict.differences);
            return Err(NatsError::Differs { server, stream: name.clone(), differences }.into());
        }
        if marks {
            let what = format!("completing stream `{name}`");
            self.connection.ask(&what, &format!("STREAM.UPDATE.{name}"), &self.stream.detail.config).await?;
        }
        let compared = match verdict.inconclusive || !consumers_are_same {
            true => Compared::Inconclusive,
            false => self.configuration(notes).await?,
        };
        let item = RestoredItem { name: name.clone(), rows: verdict.messages, bytes: verdict.bytes, compared };
        done.whole.push(name.clone());
        Ok(item)
    }

    /// Is the stream's configuration the one that was captured?
    async fn configuration(&self, notes: &mut Vec<String>) -> Result<Compared, NatsError> {
        let name = &self.stream.detail.name;
        let info = self.connection.stream(name, &Value::Null).await?.unwrap_or_default();
        let differences = config_differences(&self.stream.detail.config, &info["config"]);
        if differences.is_empty() {
            return Ok(Compared::Same);
        }
        notes.push(format!("stream `{name}`: its configuration is another: {}", report::list(&differences, 5)));
        Ok(Compared::Inconclusive)
    }

    /// Makes consumers that were listed and did not come with the archive, and says which the server lets begin again. Are those that came
    /// configured as they were?
    async fn consumers(&self, archived: &Archived, notes: &mut Vec<String>) -> Result<bool, NatsError> {
        let detail = &self.stream.detail;
        let there = self.connection.consumers(&detail.name).await?;
        for (name, info) in there.iter().filter(|(_, info)| number(&info["delivered"], "consumer_seq") == 0) {
            let was = archived.consumers.get(name).and_then(|consumer| consumer.state);
            let floor = number(&info["ack_floor"], "stream_seq");
            let again = was.filter(|was| was.ack_floor.stream < floor).and_then(|was| compare::began_again(name, &was));
            notes.extend(again.map(|again| format!("stream `{}`: {again}", detail.name)));
        }
        let mut same = true;
        for consumer in &detail.consumers {
            let Some(name) = consumer["name"].as_str() else { continue };
            if let Some((_, info)) = there.iter().find(|(there, _)| there == name) {
                let differences = config_differences(&consumer["config"], &info["config"]);
                if !differences.is_empty() {
                    same = false;
                    let what = report::list(&differences, 5);
                    notes.push(format!("consumer `{name}` of stream `{}` is another: {what}", detail.name));
                }
                continue;
            }
            let Some(durable) = consumer["config"]["durable_name"].as_str() else {
                notes.push(format!("consumer `{name}` of stream `{}` is ephemeral, and not brought back", detail.name));
                continue;
            };
            let floor = number(&consumer["ack_floor"], "stream_seq");
            let mut config = consumer["config"].clone();
            // What `new`, `last` and their like chose was chosen when it was made, and would be another choice now.
            let stays = floor == 0 && matches!(config["deliver_policy"].as_str(), Some("all" | "by_start_sequence"));
            if let Some(fields) = config.as_object_mut().filter(|_| !stays) {
                fields.remove("opt_start_time");
                fields.insert("deliver_policy".into(), "by_start_sequence".into());
                fields.insert("opt_start_seq".into(), (floor + 1).into());
            }
            let from = config["opt_start_seq"].as_u64().unwrap_or(1);
            let what = format!("making consumer `{name}` of stream `{}`", detail.name);
            let body = json!({"stream_name": detail.name, "config": config});
            self.connection.ask(&what, &format!("CONSUMER.DURABLE.CREATE.{}.{durable}", detail.name), &body).await?;
            notes.push(format!("consumer `{name}` of stream `{}` was made again, from message {}", detail.name, from));
        }
        Ok(same)
    }
}

/// Sends a stream's archive to a server, and gives what is in it.
pub(super) async fn load(
    connection: &Connection,
    snapshot: &SnapshotReader,
    stream: &Stored,
    config: &Value,
    begun: impl FnOnce(),
) -> Result<Archived, SourceError> {
    let detail = &stream.detail;
    let artifact = artifact(snapshot, &detail.name)?;
    let mut parts = Box::pin(snapshot.open(artifact));
    // The server waits for five seconds only: there must be something to send.
    let first = parts.next().await;
    let checking = compare::Checking::begin(snapshot, stream);
    let loading = Load::begin(connection, &detail.name, config, &detail.state).await?;
    begun();
    let progress = snapshot.progress();
    let pieces = futures::stream::iter(first).chain(parts).then(async |part| {
        let part = part?;
        Progress::add(&progress.raw, part.len() as u64);
        checking.feed((*part).clone()).await;
        Ok(part)
    });
    loading.send(pieces).await?;
    Ok(checking.finish().await?)
}
