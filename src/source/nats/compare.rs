//! Is a restored stream what was captured? It is taken back as a snapshot, and compared message by message.
//!
//! An archive of records (format 2) holds exactly what the stream must hold. One of files (format 1) holds deleted messages too: what
//! must be there is what was not deleted right after the snapshot, and whatever is there must be in the archive as it is.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::StreamExt;
use serde_json::Value;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    archive::{self, ArchiveError, ArchivedConsumer, ConsumerState, Delivered, Message, Visitor, Walked},
    error::NatsError,
    inventory::Deleted,
    plan::{Stored, artifact, number},
    ranges::Ranges,
    server::Connection,
    snapshot::Snapshot,
    tally::{Counted, Difference, Tally},
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

/// Everything that an archive holds.
#[derive(Debug)]
pub(super) struct Content {
    tally: Tally,
    /// Consumers by name.
    pub(super) consumers: BTreeMap<String, ArchivedConsumer>,
    /// The stream's configuration, which only archives of format 1 hold.
    pub(super) config: Option<Value>,
    /// What the stream has no more, though the archive may.
    deleted: Option<Deleted>,
    /// Its messages without those.
    live: Option<Tally>,
}

impl Content {
    /// Nothing yet.
    pub(super) fn new(tally: Tally) -> Self {
        Self { tally, consumers: BTreeMap::new(), config: None, deleted: None, live: None }
    }

    /// Counts the messages that are not deleted apart from all, with `tally`.
    fn with_live(mut self, deleted: Deleted, tally: Tally) -> Self {
        (self.deleted, self.live) = (Some(deleted), Some(tally));
        self
    }

    /// What was counted: of all messages, and of those that are not deleted, where these were counted apart.
    pub(super) fn counted(self) -> (Counted, Option<Counted>) {
        (self.tally.finish(), self.live.map(Tally::finish))
    }
}

impl Visitor for Content {
    fn message(&mut self, message: &Message<'_>) -> Result<(), String> {
        self.tally.message(message)?;
        match (&mut self.live, &self.deleted) {
            (Some(live), Some(deleted)) if !deleted.holds(message.seq) => live.message(message),
            _ => Ok(()),
        }
    }

    fn config(&mut self, json: &[u8]) -> Result<(), String> {
        self.config = serde_json::from_slice(json).ok();
        Ok(())
    }

    fn consumer(&mut self, consumer: &ArchivedConsumer) -> Result<(), String> {
        self.consumers.insert(consumer.name.clone(), consumer.clone());
        Ok(())
    }
}

/// What an archive says.
pub(super) struct Archived {
    /// Of all messages.
    pub(super) all: Counted,
    /// Of those that the stream must hold, where the archive has others too.
    live: Option<Counted>,
    /// Consumers by name.
    pub(super) consumers: BTreeMap<String, ArchivedConsumer>,
    /// The stream's configuration, where the archive has it.
    pub(super) config: Option<Value>,
}

impl Archived {
    fn of(mut content: Content) -> Self {
        let (consumers, config) = (std::mem::take(&mut content.consumers), content.config.take());
        let (all, live) = content.counted();
        Self { all, live, consumers, config }
    }

    /// What the stream must hold.
    fn expected(&self) -> &Counted {
        self.live.as_ref().unwrap_or(&self.all)
    }

    /// The first message's sequence that the stream must hold, if it must hold any.
    pub(super) fn first(&self) -> Option<u64> {
        self.expected().counts.first.map(|first| first.seq)
    }

    /// The last message's sequence; 0 where there is none.
    pub(super) fn last(&self) -> u64 {
        self.all.counts.last.map_or(0, |last| last.seq)
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
    /// Some of it could not be compared, as the notes say.
    pub(super) inconclusive: bool,
    /// What to know, in words.
    pub(super) notes: Vec<String>,
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
    reading: Reading<Bytes, Content>,
    stream: String,
    captured: Fingerprint,
}

impl Checking {
    pub(super) fn begin(snapshot: &SnapshotReader, stream: &Stored) -> Self {
        let name = &stream.detail.name;
        let tally = || Tally::new(snapshot.fingerprint_seed()).keeping_sequences();
        let content = Content::new(tally());
        let content = match stream.detail.deleted.clone() {
            Some(deleted) => content.with_live(deleted, tally()),
            None => content,
        };
        let reading = Reading::begin(name, content);
        Self { reading, stream: name.clone(), captured: stream.captured }
    }

    pub(super) async fn feed(&self, part: Bytes) {
        self.reading.feed(part).await;
    }

    pub(super) async fn finish(self) -> Result<Archived, NatsError> {
        let not_captured = |detail: String| NatsError::NotCaptured { stream: self.stream.clone(), detail };
        let content = self.reading.finish().await.map_err(|error| not_captured(error.to_string()))?;
        let archived = Archived::of(content);
        let found = archived.all.counts.all;
        if self.captured != found {
            let (was, is) = (report::count(self.captured.rows, "message"), report::count(found.rows, "message"));
            return Err(not_captured(format!("{was} were captured, and it holds {is} with another fingerprint")));
        }
        Ok(archived)
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
async fn only(snapshot: &SnapshotReader, stream: &Stored, sequences: Ranges) -> Result<Counted, SourceError> {
    let name = &stream.detail.name;
    let reading = Reading::begin(name, Tally::new(snapshot.fingerprint_seed()).only(Arc::new(sequences)));
    let mut parts = std::pin::pin!(snapshot.open(artifact(snapshot, name)?));
    while let Some(part) = parts.next().await {
        reading.feed(part?).await;
    }
    let error = |error: ArchiveError| NatsError::NotCaptured { stream: name.clone(), detail: error.to_string() };
    Ok(reading.finish().await.map_err(error)?.finish())
}

/// What a server gave back.
pub(super) struct Found {
    pub(super) counted: Counted,
    pub(super) consumers: BTreeMap<String, ArchivedConsumer>,
}

/// Takes a snapshot of a stream and counts what is in it, without what is deleted and what is beyond `last`.
pub(super) async fn take_back(
    connection: &Connection,
    name: &str,
    seed: u64,
    last: u64,
    consumers: bool,
) -> Result<Found, SourceError> {
    let tally = || Tally::new(seed).keeping_sequences().only(Arc::new(Ranges::all_to(last)));
    let content = match connection.version.sends_records() {
        true => Content::new(tally()),
        false => {
            // A stream that is there no more says so when its snapshot is asked for.
            match connection.now(name).await? {
                Some(now) => Content::new(Tally::new(seed)).with_live(now.deleted(), tally()),
                None => Content::new(tally()),
            }
        }
    };
    let snapshot = Snapshot::begin(connection, name, consumers).await?;
    let ((to, chunks), stream) = (mpsc::channel(BETWEEN), name.to_owned());
    let walking =
        tokio::task::spawn_blocking(move || archive::walk(archive::decoder(Received::new(chunks)), &stream, content));
    snapshot.pass(connection, to).await?;
    let walked = walking.await.map_err(|_| PipelineError::Stopped)?;
    let mut content = walked.map_err(|error| NatsError::Archive { stream: name.to_owned(), error })?.visitor;
    let consumers = std::mem::take(&mut content.consumers);
    let (all, live) = content.counted();
    Ok(Found { counted: live.unwrap_or(all), consumers })
}

/// Compares what a server has with what was captured. In a `live` one, messages may be gone again for reasons of their own.
pub(super) async fn stream(
    connection: &Connection,
    snapshot: &SnapshotReader,
    stream: &Stored,
    archived: &Archived,
    found: &Counted,
    live: bool,
) -> Result<Verdict, SourceError> {
    let name = &stream.detail.name;
    let expected = archived.expected();
    let is = found.counts.all;
    let mut verdict = Verdict { messages: is.rows, bytes: is.bytes, ..Verdict::default() };
    let info = connection.stream(name, &Value::Null).await?.unwrap_or_default();
    let last = number(&info["state"], "last_seq");
    let captured_last = expected.counts.last.map_or(0, |last| last.seq).max(number(&stream.detail.state, "last_seq"));
    if last < captured_last {
        verdict.differences.push(format!("its last sequence is {last} and was {captured_last}"));
    }
    let Some(difference) = expected.difference(found, NAMED) else { return Ok(verdict) };
    let (Some(there), Some(were)) = (&found.seen, &expected.seen) else {
        verdict.differences.extend(words(&difference));
        return Ok(verdict);
    };
    // Is what is there as it was? In an archive with deleted messages some may be there that were deleted meanwhile.
    if let Some(changed) = only(snapshot, stream, there.clone()).await?.difference(found, NAMED) {
        verdict.differences.extend(words(&changed));
    } else if let Some(extra) = Some(there.without(were)).filter(|extra| !extra.is_empty()) {
        let messages = report::count(extra.len(), "message");
        verdict.notes.push(format!("{messages} that were deleted while its snapshot was taken are there"));
    }
    let missing = were.without(there);
    // A throwaway server gets streams without an age; what has a time of its own a server drops whatever it is told.
    let max_age = if live { number(&stream.detail.config, "max_age") } else { 0 };
    let over = match missing.is_empty() {
        true => Ranges::new(),
        false => over(snapshot, stream, missing.clone(), max_age).await?,
    };
    if !over.is_empty() {
        let messages = report::count(over.len(), "message");
        verdict.notes.push(format!("{messages} not there any more: their time is over"));
    }
    let missing = missing.without(&over);
    if missing.is_empty() {
        return Ok(verdict);
    }
    let first: Vec<String> = missing.first(NAMED).iter().map(u64::to_string).collect();
    let more = if missing.len() > NAMED as u64 { ", …" } else { "" };
    let lost = format!("{} ({}{more})", report::count(missing.len(), "message"), first.join(", "));
    let gone = if live { gone(connection, stream, &info["state"], captured_last, &missing).await? } else { None };
    match gone {
        Some(Gone::Consumed) => {
            verdict.notes.push(format!(
                "{lost} not there any more: its consumers have had them, and acknowledged what is not kept then"
            ));
        }
        Some(Gone::Displaced) => {
            verdict.inconclusive = true;
            verdict.notes.push(format!("{lost} not there any more: newer ones may have taken their place"));
        }
        None => {
            verdict.differences.push(format!("it lacks {lost}"));
            verdict.differences.extend(words(&difference));
        }
    }
    Ok(verdict)
}

/// Has a server forgotten where a consumer was, and lets it begin at the `first` message of the stream?
///
/// 2.15 does where the acknowledgement floor is before that, as in a work queue with several consumers: it makes the consumer first,
/// which puts it there, and takes the archive's state for an older one (`RestoreStreamV2`, `consumerFileStore.Update` of 2.15.1). No message
/// is passed over by it.
pub(super) fn begins_again(was: &ConsumerState, is: &ConsumerState, first: Option<u64>) -> bool {
    let floor = is.ack_floor.stream;
    let anew =
        is.delivered == Delivered { consumer: 0, stream: floor } && is.ack_floor.consumer == 0 && is.pending == 0;
    anew && was.ack_floor.stream < floor && first.is_none_or(|first| floor < first)
}

/// The same in words; none where nothing was delivered to it yet.
pub(super) fn began_again(consumer: &str, was: &ConsumerState) -> Option<String> {
    (was.delivered.consumer > 0).then(|| {
        format!(
            "consumer `{consumer}` begins again at the first message: the server forgets where one was when messages right behind its \
             acknowledgement floor are gone, and what it was given from there on is delivered again"
        )
    })
}

/// A difference in words, subject by subject.
fn words(difference: &Difference) -> Vec<String> {
    let more = (difference.more > 0).then(|| format!("{} more", report::count(difference.more, "subject")));
    difference.subjects.iter().cloned().chain(more).collect()
}

/// Why a server in use may have removed messages again.
enum Gone {
    /// A work queue's, or an interest stream's.
    Consumed,
    /// Limits were reached, since there are newer ones.
    Displaced,
}

async fn gone(
    connection: &Connection,
    stream: &Stored,
    state: &Value,
    captured_last: u64,
    missing: &Ranges,
) -> Result<Option<Gone>, NatsError> {
    let config = &stream.detail.config;
    if config["retention"].as_str().is_some_and(|retention| retention != "limits") {
        let consumers = connection.consumers(&stream.detail.name).await?;
        let delivered = consumers.iter().map(|(_, info)| number(&info["delivered"], "stream_seq")).max();
        let last = missing.iter().last().map(|(_, last)| last);
        return Ok((last <= delivered && delivered.is_some()).then_some(Gone::Consumed));
    }
    let limited =
        ["max_msgs", "max_bytes", "max_msgs_per_subject"].iter().any(|limit| config[*limit].as_i64() > Some(0));
    let newer = number(state, "last_seq") > captured_last;
    Ok((limited && newer).then_some(Gone::Displaced))
}

/// Which of these messages a server has dropped of itself, since they are older than `max_age` (nanoseconds; 0: none is) or than the time
/// that they bring along.
async fn over(
    snapshot: &SnapshotReader,
    stream: &Stored,
    missing: Ranges,
    max_age: u64,
) -> Result<Ranges, SourceError> {
    let name = &stream.detail.name;
    let now = jiff::Timestamp::now().as_nanosecond();
    let reading = Reading::begin(name, Over { missing, max_age, now, over: Ranges::new() });
    let mut parts = std::pin::pin!(snapshot.open(artifact(snapshot, name)?));
    while let Some(part) = parts.next().await {
        reading.feed(part?).await;
    }
    let error = |error: ArchiveError| NatsError::NotCaptured { stream: name.clone(), detail: error.to_string() };
    Ok(reading.finish().await.map_err(error)?.over)
}

struct Over {
    missing: Ranges,
    max_age: u64,
    /// Nanoseconds since 1970.
    now: i128,
    over: Ranges,
}

impl Visitor for Over {
    fn message(&mut self, message: &Message<'_>) -> Result<(), String> {
        if self.missing.contains(message.seq) {
            let lives = [(self.max_age > 0).then_some(self.max_age), time_to_live(message.headers)];
            let ends = lives.into_iter().flatten().min().map(|life| i128::from(message.time) + i128::from(life));
            if ends.is_some_and(|end| end <= self.now) {
                self.over.insert(message.seq);
            }
        }
        Ok(())
    }
}

/// The header `Nats-TTL` in nanoseconds: seconds, or as Go writes a duration; none where there is none, and for `never`. Source:
/// nats-server `parseMessageTTL`.
fn time_to_live(headers: &[u8]) -> Option<u64> {
    let line = headers.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Nats-TTL:"))?;
    let text = std::str::from_utf8(line).ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return seconds.checked_mul(1_000_000_000);
    }
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let (value, behind) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let unit = behind.split_at(behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len()));
        let nanoseconds = match unit.0 {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        sum += value.parse::<f64>().ok()? * nanoseconds;
        rest = unit.1;
    }
    (sum > 0.0).then_some(sum as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live_are_read_as_the_server_reads_them() {
        for (headers, want) in [
            ("NATS/1.0\r\nNats-TTL: 5\r\n\r\n", Some(5_000_000_000)),
            ("NATS/1.0\r\nA: b\r\nNats-TTL: 1h30m\r\n\r\n", Some(5_400_000_000_000)),
            ("NATS/1.0\r\nNats-TTL: 1.5s\r\n\r\n", Some(1_500_000_000)),
            ("NATS/1.0\r\nNats-TTL: never\r\n\r\n", None),
            ("NATS/1.0\r\nOther: 5\r\n\r\n", None),
            ("", None),
        ] {
            assert_eq!(time_to_live(headers.as_bytes()), want, "{headers}");
        }
    }
}
