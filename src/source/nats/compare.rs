//! Is a restored stream what was captured? It is taken back as a snapshot, and compared message by message.
//!
//! An archive of records (format 2) holds exactly what the stream must hold. One of files (format 1) holds deleted messages too: what
//! must be there is what was not deleted right after the snapshot, and whatever is there must be in the archive as it is.

use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    archive::{self, ArchiveError, ArchivedConsumer, Message, Visitor, Walked},
    error::NatsError,
    inventory::Deleted,
    plan::{Stored, artifact, number},
    ranges::Ranges,
    server::Connection,
    snapshot::Snapshot,
    tally::Tally,
};
use crate::{
    pipeline::{Fingerprint, PipelineError, SnapshotReader},
    report,
    source::{SourceError, blocking::Received},
};

/// Parts or chunks that wait for a thread.
const BETWEEN: usize = 2;
/// Subjects that are named where they differ.
const NAMED: usize = 5;

/// What an archive says.
pub(super) struct Archived {
    /// Every message in it.
    pub(super) all: Tally,
    /// Those that the stream must hold.
    pub(super) live: Option<Tally>,
}

impl Archived {
    /// What the stream must hold.
    fn expected(&self) -> &Tally {
        self.live.as_ref().unwrap_or(&self.all)
    }
}

/// What a comparison found.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Messages that are there, of those that were captured.
    pub(super) messages: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// How it is not what was captured, in words; nothing where it is.
    pub(super) differences: Vec<String>,
    /// What to know, in words.
    pub(super) notes: Vec<String>,
}

/// Counts all messages, and apart from that those that are not deleted.
struct Both {
    all: Tally,
    live: Option<(Tally, Deleted)>,
}

impl Visitor for Both {
    fn message(&mut self, message: &Message<'_>) -> Result<(), String> {
        self.all.message(message)?;
        match &mut self.live {
            Some((live, deleted)) if !deleted.holds(message.seq) => live.message(message),
            _ => Ok(()),
        }
    }

    fn config(&mut self, json: &[u8]) -> Result<(), String> {
        self.all.config(json)
    }

    fn consumer(&mut self, consumer: &ArchivedConsumer) -> Result<(), String> {
        self.all.consumer(consumer)
    }
}

/// A stored archive that is walked through on a thread of its own.
pub(super) struct Reading<T, V> {
    parts: mpsc::Sender<T>,
    task: JoinHandle<Result<Walked<V>, ArchiveError>>,
}

impl<T: AsRef<[u8]> + Send + 'static, V: Visitor + Send + 'static> Reading<T, V> {
    pub(super) fn begin(stream: &str, visitor: V) -> Self {
        let ((parts, from), stream) = (mpsc::channel(BETWEEN), stream.to_owned());
        let task = tokio::task::spawn_blocking(move || archive::walk(Received::new(from), &stream, visitor));
        Self { parts, task }
    }

    /// Gives the next part. Where the archive is no good, [`Reading::finish`] says so.
    pub(super) async fn feed(&self, part: T) {
        let _ = self.parts.send(part).await;
    }

    /// There are no more parts.
    pub(super) async fn finish(self) -> Result<V, ArchiveError> {
        drop(self.parts);
        match self.task.await {
            Ok(walked) => walked.map(|walked| walked.visitor),
            Err(error) => Err(ArchiveError::Stopped(error.to_string())),
        }
    }
}

/// A stored archive on its way, which must be the one that was captured.
pub(super) struct Checking {
    reading: Reading<Bytes, Both>,
    stream: String,
    captured: Fingerprint,
}

impl Checking {
    pub(super) fn begin(snapshot: &SnapshotReader, stream: &Stored) -> Self {
        let name = &stream.detail.name;
        let all = Tally::new(snapshot.fingerprint_seed()).with_sequences();
        let live = stream.detail.deleted.clone().map(|deleted| (all.clone(), deleted));
        let reading = Reading::begin(name, Both { all, live });
        Self { reading, stream: name.clone(), captured: stream.captured }
    }

    pub(super) async fn feed(&self, part: Bytes) {
        self.reading.feed(part).await;
    }

    pub(super) async fn finish(self) -> Result<Archived, NatsError> {
        let not_captured = |detail: String| NatsError::NotCaptured { stream: self.stream.clone(), detail };
        let Both { all, live } = self.reading.finish().await.map_err(|error| not_captured(error.to_string()))?;
        let found = all.fingerprint();
        if self.captured != found {
            let (was, is) = (report::count(self.captured.rows, "message"), report::count(found.rows, "message"));
            return Err(not_captured(format!("{was} were captured, and it holds {is} with another fingerprint")));
        }
        Ok(Archived { all, live: live.map(|(tally, _)| tally) })
    }
}

/// Reads a whole archive.
pub(super) async fn read(snapshot: &SnapshotReader, stream: &Stored) -> Result<Archived, SourceError> {
    let checking = Checking::begin(snapshot, stream);
    let mut parts = std::pin::pin!(snapshot.open(artifact(snapshot, &stream.detail.name)?));
    while let Some(part) = parts.next().await {
        checking.feed((*part?).clone()).await;
    }
    Ok(checking.finish().await?)
}

/// Counts the messages with these sequences in a stored archive.
async fn only(snapshot: &SnapshotReader, stream: &Stored, sequences: Ranges) -> Result<Tally, SourceError> {
    let name = &stream.detail.name;
    let reading = Reading::begin(name, Tally::new(snapshot.fingerprint_seed()).only(sequences));
    let mut parts = std::pin::pin!(snapshot.open(artifact(snapshot, name)?));
    while let Some(part) = parts.next().await {
        reading.feed(part?).await;
    }
    let error = |error: ArchiveError| NatsError::NotCaptured { stream: name.clone(), detail: error.to_string() };
    Ok(reading.finish().await.map_err(error)?)
}

/// Takes a snapshot of a stream and counts what is in it, without what is deleted and what is beyond `last`.
pub(super) async fn take_back(
    connection: &Connection,
    name: &str,
    seed: u64,
    last: u64,
    consumers: bool,
) -> Result<Tally, SourceError> {
    let deleted = match connection.version.sends_records() {
        true => None,
        false => {
            let info = connection.stream(name, &json!({"deleted_details": true})).await?;
            Some(Deleted::of(&info.unwrap_or_default()["state"]))
        }
    };
    let snapshot = Snapshot::begin(connection, name, consumers).await?;
    let ((to, chunks), stream) = (mpsc::channel(BETWEEN), name.to_owned());
    let tally = Tally::new(seed).with_sequences().only(Ranges::from(0..=last));
    let visitor = Live { tally, deleted };
    let walking = tokio::task::spawn_blocking(move || {
        archive::walk(archive::decoder(Received::new(chunks)), &stream, visitor)
    });
    snapshot.pass(connection, to).await?;
    let walked = walking.await.map_err(|_| PipelineError::Stopped)?;
    let walked = walked.map_err(|error| NatsError::Archive { stream: name.to_owned(), error })?;
    Ok(walked.visitor.tally)
}

/// Counts what is not deleted.
struct Live {
    tally: Tally,
    deleted: Option<Deleted>,
}

impl Visitor for Live {
    fn message(&mut self, message: &Message<'_>) -> Result<(), String> {
        match &self.deleted {
            Some(deleted) if deleted.holds(message.seq) => Ok(()),
            _ => self.tally.message(message),
        }
    }

    fn consumer(&mut self, consumer: &ArchivedConsumer) -> Result<(), String> {
        self.tally.consumer(consumer)
    }
}

/// Compares what a server has with what was captured. In a `live` one, messages may be gone again for reasons of their own.
pub(super) async fn stream(
    connection: &Connection,
    snapshot: &SnapshotReader,
    stream: &Stored,
    archived: &Archived,
    found: &Tally,
    live: bool,
) -> Result<Verdict, SourceError> {
    let name = &stream.detail.name;
    let expected = archived.expected();
    let (was, is) = (expected.fingerprint(), found.fingerprint());
    let mut verdict = Verdict { messages: is.rows, bytes: is.bytes, ..Verdict::default() };
    let info = connection.stream(name, &Value::Null).await?.unwrap_or_default();
    let last = number(&info["state"], "last_seq");
    let captured_last = number(&stream.detail.state, "last_seq").min(expected.last().unwrap_or(u64::MAX));
    if last < captured_last {
        verdict.differences.push(format!("its last sequence is {last} and was {captured_last}"));
    }
    if was == is {
        return Ok(verdict);
    }
    // Which of what is there is not as it was?
    let (Some(there), Some(were)) = (found.sequences(), expected.sequences()) else {
        verdict.differences.extend(expected.differences(found, NAMED));
        return Ok(verdict);
    };
    let same = only(snapshot, stream, there.clone()).await?;
    verdict.differences.extend(same.differences(found, NAMED));
    let extra = there.without(were);
    if verdict.differences.is_empty() && !extra.is_empty() {
        let messages = report::count(extra.count(), "message");
        verdict.notes.push(format!("{messages} that were deleted while its snapshot was taken are there"));
    }
    let missing = were.without(there);
    if !missing.is_empty() {
        let lost = format!("{} ({missing})", report::count(missing.count(), "message"));
        match explained(&stream.detail.config, &info["state"], &missing, captured_last).filter(|_| live) {
            Some(why) => verdict.notes.push(format!("{lost} not there any more: {why}")),
            None => {
                verdict.differences.push(format!("it lacks {lost}"));
                verdict.differences.extend(expected.differences(found, NAMED));
            }
        }
    }
    Ok(verdict)
}

/// Why a server in use may have removed messages again.
fn explained(config: &Value, state: &Value, missing: &Ranges, captured_last: u64) -> Option<&'static str> {
    if config["retention"].as_str().is_some_and(|retention| retention != "limits") {
        return Some("its consumers have acknowledged them");
    }
    if number(config, "max_age") > 0 {
        return Some("they are older than it keeps messages");
    }
    if config["allow_msg_ttl"] == true {
        return Some("their time to live is over");
    }
    let limited = ["max_msgs", "max_bytes", "max_msgs_per_subject"].iter().any(|limit| config[*limit].as_i64() > Some(0));
    let newer = number(state, "last_seq") > captured_last;
    (limited && newer && !missing.is_empty()).then_some("newer ones have taken their place")
}
