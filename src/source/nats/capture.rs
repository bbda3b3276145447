//! From a server into the pipeline: every stream's archive, decompressed and read as it passes.
//!
//! For each stream three things run side by side: chunks are taken and acknowledged (`snapshot`); a thread decompresses them, walks
//! through the archive and counts what is in it (`archive`, `tally`); and what it has read goes into the pipeline. That an archive
//! is whole it proves itself; that it holds every message which the stream had before and still has afterwards is looked at too.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::try_join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    archive::{self, Walked},
    compare::Content,
    error::NatsError,
    inventory::{self, Deleted, Detail, Found, Inventory, StreamDetail},
    ranges::Ranges,
    server::{Connection, Server},
    snapshot::{self, Snapshot},
    tally::Tally,
    throwaway,
    told::Told,
};
use crate::{
    config::NamePattern,
    pipeline::{ArtifactWriter, Cut, Format, PipelineError, SnapshotWriter},
    report,
    source::{
        Captured, Fixed, SourceError,
        blocking::{Passing, Received},
    },
};

/// Chunks, and pieces of plaintext, between the three.
const BETWEEN: usize = 4;
/// Streams that are open at once where memory allows; what it allows is less, as a rule.
const LANES: usize = 8;
/// How long to wait before a stream that failed is tried again. A server needs five seconds to see that nobody listens any more, and
/// up to then some refuse a second snapshot.
const RETRIES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(7)];

/// Takes a snapshot of everything that is configured.
pub(super) async fn capture(server: &Server, into: &SnapshotWriter, fixed: Fixed) -> Result<Captured, SourceError> {
    let began = into.time(Instant::now());
    let inventory = async {
        let connection = server.connect().await?;
        let inventory = Inventory::take(&connection, &server.config.streams).await?;
        Ok::<_, NatsError>((connection, inventory))
    };
    let (connection, inventory) = match inventory.await {
        Ok(found) => found,
        // A server without JetStream has no stream; that it should have some is for whoever configured it to say, or has said.
        Err(error @ NatsError::NoJetStream { .. }) if !server.config.streams.iter().any(NamePattern::is_literal) => {
            fixed.now();
            return Ok(nothing(began, error.to_string()));
        }
        Err(error) => return Err(error.into()),
    };
    let version = connection.version;
    let marks = throwaway::marks(&connection);
    let Inventory { chosen, uncovered, failed: unavailable } = inventory;
    let progress = into.progress();
    let count = report::count(chosen.len() as u64, "stream");
    progress.set_phase(format!("reading {count} of {}", server.name()));
    let run = Run::new(server, into, chosen, fixed);
    let lanes = if version.waits_for_acknowledgements() { LANES } else { 1 };
    try_join_all((0..lanes).map(async |_| run.lane().await)).await?;
    let Run { done, .. } = run;
    let Done { mut streams, failures, mut notes, .. } = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    streams.sort_by(|a, b| a.detail.name.cmp(&b.detail.name));
    let hints = unavailable.iter().map(|one| one.hint.clone()).chain(failures.iter().map(|(_, error)| error.hint()));
    let hint = next_steps(hints.flatten());
    let mut failed: Vec<String> = unavailable.into_iter().map(|one| one.what).collect();
    failed.extend(failures.iter().map(|(name, error)| format!("stream `{name}`: {error}")));
    if !streams.is_empty() {
        notes.extend(inventory::warnings(version));
    }
    let names: Vec<String> = streams.iter().map(|stream| stream.detail.name.clone()).collect();
    let detail = Detail { server: version.to_string(), streams: names.len() as u64, names };
    let mut about = vec![format!("NATS {version}, {}", report::count(detail.streams, "stream"))];
    about.extend(streams.iter().map(|stream| stream.detail.about(stream.records)));
    Ok(Captured {
        empty: streams.is_empty(),
        cut: cut(&streams, began),
        detail: json(&detail)?,
        uncovered,
        failed,
        hint,
        notes,
        about,
        server: marks,
    })
}

/// Each once.
fn next_steps(hints: impl Iterator<Item = String>) -> Option<String> {
    let different: BTreeSet<String> = hints.collect();
    (!different.is_empty()).then(|| different.into_iter().collect::<Vec<_>>().join("; "))
}

/// Of a server that has no stream.
fn nothing(at: Timestamp, why: String) -> Captured {
    Captured {
        cut: Cut { at, first: None, error_seconds: 0.0, anchor: Value::Null },
        detail: Value::Null,
        uncovered: Vec::new(),
        failed: Vec::new(),
        hint: None,
        notes: vec![why],
        about: Vec::new(),
        server: Vec::new(),
        empty: true,
    }
}

/// All instants as one, with each stream's last sequence.
fn cut(streams: &[Taken], began: Timestamp) -> Cut {
    let sequences: serde_json::Map<String, Value> =
        streams.iter().map(|stream| (stream.detail.name.clone(), stream.detail.state["last_seq"].clone())).collect();
    let cuts = streams.iter().map(|stream| {
        let (at, error_seconds) = (stream.detail.cut_at, stream.detail.cut_error_seconds);
        Cut { at, first: None, error_seconds, anchor: Value::Null }
    });
    let cut = Cut::of_all(cuts).unwrap_or(Cut { at: began, first: None, error_seconds: 0.0, anchor: Value::Null });
    Cut { anchor: json!({"last_sequences": sequences}), ..cut }
}

fn json(value: &impl serde::Serialize) -> Result<Value, NatsError> {
    serde_json::to_value(value).map_err(|error| NatsError::Detail { detail: error.to_string() })
}

/// A captured stream.
struct Taken {
    detail: StreamDetail,
    /// Messages in its archive, deleted ones too.
    records: u64,
}

/// What the lanes share.
struct Run<'a> {
    server: &'a Server,
    into: &'a SnapshotWriter,
    /// What is left to do; the next is the last.
    queue: Mutex<Vec<Found>>,
    done: Mutex<Done>,
}

/// What the lanes have done.
struct Done {
    streams: Vec<Taken>,
    failures: Vec<(String, NatsError)>,
    notes: Vec<String>,
    /// Why the server is gone, once it is: then nothing more is tried.
    gone: Option<String>,
    /// Streams whose instant is not fixed, and who is told when there is none.
    open: usize,
    fixed: Option<Fixed>,
}

impl<'a> Run<'a> {
    fn new(server: &'a Server, into: &'a SnapshotWriter, mut streams: Vec<Found>, fixed: Fixed) -> Self {
        let open = streams.len();
        let done = Done {
            streams: Vec::new(),
            failures: Vec::new(),
            notes: Vec::new(),
            gone: None,
            open: open.max(1),
            fixed: Some(fixed),
        };
        streams.reverse();
        let run = Self { server, into, queue: Mutex::new(streams), done: Mutex::new(done) };
        if open == 0 {
            run.one_is_fixed();
        }
        run
    }

    fn done(&self) -> std::sync::MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Found> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Another stream's instant is fixed, or never will be.
    fn one_is_fixed(&self) {
        let mut done = self.done();
        done.open = done.open.saturating_sub(1);
        if done.open == 0
            && let Some(fixed) = done.fixed.take()
        {
            fixed.now();
        }
    }

    /// One stream after the other, on one connection as long as it holds.
    async fn lane(&self) -> Result<(), SourceError> {
        let mut connection = None;
        while let Some(found) = self.next() {
            let mut is_fixed = false;
            let outcome = self.stream(&found, &mut connection, &mut is_fixed).await;
            if !is_fixed {
                self.one_is_fixed();
            }
            match outcome {
                Ok(Some(taken)) => self.done().streams.push(taken),
                Ok(None) if found.named => {
                    let deleted = NatsError::Deleted { server: self.server.name(), stream: found.name.clone() };
                    self.done().failures.push((found.name, deleted));
                }
                Ok(None) => {
                    let note =
                        format!("stream `{}` was deleted while the backup was made, and is not in it", found.name);
                    self.done().notes.push(note);
                }
                Err(SourceError::Nats(error)) => self.done().failures.push((found.name, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One stream, tried again where it fails; none where it is there no more.
    async fn stream(
        &self,
        found: &Found,
        connection: &mut Option<Connection>,
        is_fixed: &mut bool,
    ) -> Result<Option<Taken>, SourceError> {
        let mut delays = RETRIES.iter();
        loop {
            if let Some(detail) = self.done().gone.clone() {
                return Err(NatsError::Unreachable { server: self.server.name(), detail }.into());
            }
            let late = *is_fixed;
            match self.attempt(&found.name, connection, is_fixed).await {
                Ok(taken) => {
                    if late && taken.is_some() {
                        self.done().notes.push(format!(
                            "stream `{}` was captured at another try, and later than what should follow it: it may mention \
                             what the other sources have not",
                            found.name
                        ));
                    }
                    return Ok(taken);
                }
                Err(SourceError::Nats(error)) => {
                    *connection = None;
                    let Some(delay) = delays.next().filter(|_| !error.is_permanent()) else {
                        if let NatsError::Unreachable { detail, .. } = &error {
                            self.done().gone.get_or_insert_with(|| detail.clone());
                        }
                        return Err(error.into());
                    };
                    tracing::warn!("{error}; trying again");
                    // A server that has sent all of it is done with it.
                    if !matches!(error, NatsError::Archive { .. } | NatsError::Lacks { .. }) {
                        tokio::time::sleep(*delay).await;
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn attempt(
        &self,
        name: &str,
        connection: &mut Option<Connection>,
        is_fixed: &mut bool,
    ) -> Result<Option<Taken>, SourceError> {
        let connection = match connection {
            Some(connection) => connection,
            none => none.insert(self.server.connect().await?),
        };
        let Some(before) = connection.stream(name, &Value::Null).await? else { return Ok(None) };
        let window = snapshot::window(connection.version);
        // A server sends at once: there must be somebody to take it.
        let writer = self.into.artifact_with_window(inventory::path(name), Format::JetStream, window).await?;
        let snapshot = match Snapshot::begin(connection, name, true).await {
            Ok(snapshot) => snapshot,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // What follows waits for an archive of files to its end: it holds messages that come while the server reads it.
        if connection.version.sends_records() && !std::mem::replace(is_fixed, true) {
            self.one_is_fixed();
        }
        let created = before["created"].clone();
        let attempt = Attempt { connection, name, created, snapshot, into: self.into };
        match attempt.transfer(writer).await {
            Ok(taken) => Ok(taken),
            // A server says nothing to whom it sends a stream that is deleted.
            Err(SourceError::Nats(error)) => match connection.stream(name, &Value::Null).await {
                Ok(None) => Ok(None),
                _ => Err(error.into()),
            },
            Err(error) => Err(error),
        }
    }
}

/// One snapshot of one stream, which has begun.
struct Attempt<'a> {
    connection: &'a Connection,
    name: &'a str,
    /// When the stream was made, as the server tells it.
    created: Value,
    snapshot: Snapshot,
    into: &'a SnapshotWriter,
}

impl Attempt<'_> {
    /// All of it; none where the stream is there no more, and what was deleted in it cannot be known.
    async fn transfer(self, mut writer: ArtifactWriter<'_>) -> Result<Option<Taken>, SourceError> {
        let Self { connection, name, created, snapshot, into } = self;
        let (asked, answered) = (snapshot.asked, snapshot.answered);
        let (mut config, state) = (snapshot.answer["config"].clone(), snapshot.answer["state"].clone());
        config["name"] = name.into();
        let ((to, chunks), (pass, mut passed)) = (mpsc::channel(BETWEEN), mpsc::channel(BETWEEN));
        let tally = Tally::new(into.fingerprint_seed()).keeping_sequences().telling(into.progress().clone());
        let content = Content::new(tally);
        let stream = name.to_owned();
        let walking = tokio::task::spawn_blocking(move || follow(chunks, pass, &stream, content));
        let writing = async {
            while let Some(piece) = passed.recv().await {
                writer.write(&piece).await?;
            }
            // With the channel everything before it stops, if this ended early.
            drop(passed);
            Ok::<_, SourceError>(())
        };
        let passing = async {
            snapshot.pass(connection, to).await?;
            Ok(Instant::now())
        };
        let listing = async { Ok(connection.consumers(name).await?) };
        // Whichever fails first is the cause, and the others are dropped: they may wait for a store that stalls.
        let ((), received, consumers) = tokio::try_join!(writing, passing, listing)?;
        let archive = |error| NatsError::Archive { stream: name.to_owned(), error };
        let walked = walking.await.map_err(|_| PipelineError::Stopped)?.map_err(archive)?;
        let until = match walked.format {
            archive::Format::Blocks => received,
            archive::Format::Records => answered,
        };
        let cut = Cut::between(into.time(asked), into.time(until), Value::Null);
        let mut content = walked.visitor;
        let archived = std::mem::take(&mut content.consumers);
        let (counted, _) = content.counted();
        let deleted = self::deleted(connection, name, &created, &state, counted.seen.as_ref()).await?;
        if deleted.is_none() && walked.format == archive::Format::Blocks {
            return Ok(None);
        }
        let mut absent = Vec::new();
        for (consumer, _) in consumers.iter().filter(|(consumer, _)| !archived.contains_key(consumer)) {
            if is_there(connection, name, consumer).await? {
                absent.push(consumer.clone());
            }
        }
        let unlisted = archived.keys().filter(|name| !consumers.iter().any(|(listed, _)| listed == *name)).cloned();
        let mut detail = StreamDetail {
            name: name.to_owned(),
            archive: walked.format,
            config,
            state,
            unlisted: unlisted.collect(),
            consumers: consumers.into_iter().map(|(_, info)| info).collect(),
            absent,
            cut_at: cut.at,
            cut_error_seconds: cut.error_seconds,
            largest: counted.counts.largest,
            last: counted.counts.last,
            deleted: deleted.filter(|_| walked.format == archive::Format::Blocks),
            told: None,
        };
        detail.told = Some(Told::of(&json(&detail)?, into.fingerprint_seed()));
        let fingerprint = counted.counts.all;
        writer.finish_with(Some(fingerprint), json(&detail)?).await?;
        Ok(Some(Taken { detail, records: fingerprint.rows }))
    }
}

/// On a thread of its own: decompresses, walks, counts, and passes the plaintext on.
fn follow(
    chunks: mpsc::Receiver<Bytes>,
    pass: mpsc::Sender<Bytes>,
    stream: &str,
    content: Content,
) -> Result<Walked<Content>, archive::ArchiveError> {
    let plain = archive::decoder(Received::new(chunks));
    archive::walk(Passing::new(plain, pass), stream, content)
}

async fn is_there(connection: &Connection, stream: &str, consumer: &str) -> Result<bool, NatsError> {
    let what = format!("looking at consumer `{consumer}` of stream `{stream}`");
    match connection.ask(&what, &format!("CONSUMER.INFO.{stream}.{consumer}"), &Value::Null).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the stream has no more. Whatever it had when the snapshot began and has still must be in the archive.
async fn deleted(
    connection: &Connection,
    name: &str,
    created: &Value,
    state: &Value,
    seen: Option<&Ranges>,
) -> Result<Option<Deleted>, NatsError> {
    let Some(now) = connection.now(name).await? else { return Ok(None) };
    let last = state["last_seq"].as_u64().unwrap_or_default();
    if now.created != *created || now.last() < last {
        let (server, text) = (connection.server.clone(), "the stream was deleted and made again meanwhile".to_owned());
        return Err(NatsError::Ended { server, stream: name.to_owned(), text });
    }
    let deleted = now.deleted();
    let from = deleted.before.max(state["first_seq"].as_u64().unwrap_or_default()).max(1);
    match seen.and_then(|seen| seen.first_gap(from, last, &deleted.within)) {
        Some(sequence) => Err(NatsError::Lacks { stream: name.to_owned(), sequence }),
        None => Ok(Some(deleted)),
    }
}
