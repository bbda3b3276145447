//! The exchange that takes a snapshot of one stream: chunks with acknowledgements (research B1).
//!
//! The server sends chunks as long as fewer than 8 MiB of them are unacknowledged (versions before 2.12.5 let nearly 16 MiB go where many
//! are acknowledged at once), and gives a snapshot up when none was acknowledged for five seconds (two, in those versions). So a chunk is acknowledged when it goes on to the decoder, and while nothing goes on, one
//! a second is (two small ones where the server waits for two seconds only): that keeps the snapshot alive while a store stalls, and lets as
//! much in. [`window`] has room for both. Servers before 2.10.12 wait for no one: they send a chunk every 10 ms, so theirs are small.

use std::{collections::VecDeque, time::Duration};

use async_nats::{StatusCode, Subscriber, subject::Subject};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    error::NatsError,
    server::{Connection, Version},
};
use crate::pipeline::MOST_WINDOW;

/// What a server may send unacknowledged: 8 MiB in all versions, unless it is asked for another number, which those before 2.12.5 do
/// not know and some refuse.
const UNACKNOWLEDGED: u64 = 8 * 1024 * 1024;
/// Those before 2.12.5 keep to it only where few are acknowledged at a time: 15.84 MiB were seen of 2.10.26 and 2.11.11. They do not go on,
/// and end the snapshot, until it is below [`UNACKNOWLEDGED`] again.
const UNACKNOWLEDGED_IN_BURSTS: u64 = 2 * UNACKNOWLEDGED;
/// What comes in a minute for the acknowledgements that keep a stalled snapshot alive.
const TRICKLES: u64 = 4 * 1024 * 1024;
/// Of a server that waits for five seconds: bytes of a chunk, of which larger ones are not faster; and the time in which one
/// acknowledgement keeps a stalled snapshot alive.
const PATIENT: (u64, Duration) = (64 * 1024, Duration::from_secs(1));
/// Of one that waits for two seconds, of which a busy machine may take one.
const IMPATIENT: (u64, Duration) = (32 * 1024, Duration::from_millis(500));
/// A chunk, of one that sends a hundred a second whatever we do.
const SMALL_CHUNK: u64 = 4 * 1024;
/// A server that sends nothing for so long sends nothing any more: one that is killed, or whose stream is deleted, says nothing.
const QUIET: Duration = Duration::from_secs(15);

/// Bytes of a chunk, and how often one is acknowledged while nothing goes on.
fn pace(version: Version) -> (u64, Duration) {
    match (version.waits_for_acknowledgements(), version.waits_for_five_seconds()) {
        (true, true) => PATIENT,
        (true, false) => IMPATIENT,
        (false, _) => (SMALL_CHUNK, PATIENT.1),
    }
}

/// Memory for chunks that a server may send at any time, in bytes.
pub(super) fn window(version: Version) -> u64 {
    match (version.waits_for_acknowledgements(), version.waits_for_five_seconds()) {
        (true, true) => UNACKNOWLEDGED + TRICKLES,
        (true, false) => UNACKNOWLEDGED_IN_BURSTS + TRICKLES,
        // The first 8 MiB come at once, and a hundred chunks a second for half a minute; more cannot be had of the smallest budget.
        (false, _) => MOST_WINDOW,
    }
}

/// A snapshot that has begun.
pub(super) struct Snapshot {
    /// The answer: `config` and `state`.
    pub(super) answer: Value,
    /// When it was asked for, and when the answer came.
    pub(super) asked: std::time::Instant,
    pub(super) answered: std::time::Instant,
    chunks: Subscriber,
    stream: String,
}

struct Chunk {
    bytes: Bytes,
    /// Where to acknowledge it; none once that was done, and of the last one of a snapshot.
    reply: Option<Subject>,
}

impl Snapshot {
    /// Begins the snapshot of a stream, with its consumers or without.
    pub(super) async fn begin(connection: &Connection, stream: &str, consumers: bool) -> Result<Self, NatsError> {
        let what = format!("asking for a snapshot of stream `{stream}`");
        let inbox = connection.client.new_inbox();
        let lost = |_| NatsError::Lost { server: connection.server.clone(), what: what.clone() };
        let chunks = connection.client.subscribe(inbox.clone()).await.map_err(lost)?;
        // Nobody sends to whom nobody listens; what is sent on one connection is read in order, so the server knows when it is asked.
        let (chunk, _) = pace(connection.version);
        let body = json!({"deliver_subject": inbox, "no_consumers": !consumers, "chunk_size": chunk});
        let asked = std::time::Instant::now();
        let answer = connection.ask(&what, &format!("STREAM.SNAPSHOT.{stream}"), &body).await?;
        Ok(Self { answer, asked, answered: std::time::Instant::now(), chunks, stream: stream.to_owned() })
    }

    /// Passes every chunk on, to the end that the server says. That it was the end only the archive itself can tell.
    ///
    /// Ends early, and well, when nobody takes chunks any more.
    pub(super) async fn pass(self, connection: &Connection, to: mpsc::Sender<Bytes>) -> Result<(), NatsError> {
        let (room, (_, trickle)) = (window(connection.version), pace(connection.version));
        let what = format!("taking a snapshot of stream `{}`", self.stream);
        let acknowledge = async |reply: Subject| {
            let lost = |_| NatsError::Lost { server: connection.server.clone(), what: what.clone() };
            connection.client.publish(reply, Bytes::new()).await.map_err(lost)
        };
        let mut waiting = Waiting::default();
        let (mut chunks, stream, server) = (self.chunks, self.stream, connection.server.clone());
        let (mut heard, mut kept_alive, mut ended) = (Instant::now(), Instant::now(), false);
        while !(ended && waiting.chunks.is_empty()) {
            let stalled = waiting.unacknowledged > 0;
            tokio::select! {
                biased;
                room = to.reserve(), if !waiting.chunks.is_empty() => {
                    let Ok(room) = room else { return Ok(()) };
                    let Some(chunk) = waiting.take() else { continue };
                    if let Some(reply) = chunk.reply {
                        acknowledge(reply).await?;
                        if waiting.lets_it_go_on() {
                            kept_alive = Instant::now();
                        }
                    }
                    room.send(chunk.bytes);
                }
                chunk = chunks.next(), if !ended => {
                    heard = Instant::now();
                    let Some(chunk) = chunk else { return Err(connection.trouble(&what).await) };
                    if chunk.payload.is_empty() {
                        ended = true;
                        end(chunk.status, chunk.description, &server, &stream)?;
                        continue;
                    }
                    waiting.push(Chunk { bytes: chunk.payload, reply: chunk.reply });
                    if waiting.bytes > room {
                        return Err(NatsError::TooSlow { server, stream, waiting: waiting.bytes });
                    }
                }
                () = tokio::time::sleep_until(kept_alive + trickle), if stalled => {
                    for reply in waiting.keep_alive() {
                        acknowledge(reply).await?;
                    }
                    kept_alive = Instant::now();
                }
                () = tokio::time::sleep_until(heard + QUIET), if !ended => {
                    return Err(NatsError::Quiet { server, stream, waited: QUIET });
                }
                trouble = connection.trouble(&what), if !ended => return Err(trouble),
            }
        }
        Ok(())
    }
}

/// Chunks on their way.
#[derive(Default)]
struct Waiting {
    chunks: VecDeque<Chunk>,
    /// Of all of them.
    bytes: u64,
    /// Of those that are to be acknowledged.
    unacknowledged: u64,
}

impl Waiting {
    fn push(&mut self, chunk: Chunk) {
        let bytes = chunk.bytes.len() as u64;
        self.bytes += bytes;
        if chunk.reply.is_some() {
            self.unacknowledged += bytes;
        }
        self.chunks.push_back(chunk);
    }

    /// The next chunk, to be acknowledged if it was not yet.
    fn take(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop_front()?;
        let bytes = chunk.bytes.len() as u64;
        self.bytes -= bytes;
        if chunk.reply.is_some() {
            self.unacknowledged -= bytes;
        }
        Some(chunk)
    }

    /// Does the server go on after an acknowledgement? Not while there is more to acknowledge than it lets go at once.
    fn lets_it_go_on(&self) -> bool {
        self.unacknowledged < UNACKNOWLEDGED
    }

    /// What to acknowledge of that which has to wait: one chunk, or as many as keep the server from going on.
    fn keep_alive(&mut self) -> Vec<Subject> {
        let mut replies = Vec::new();
        for chunk in &mut self.chunks {
            if !replies.is_empty() && self.unacknowledged < UNACKNOWLEDGED {
                break;
            }
            if let Some(reply) = chunk.reply.take() {
                self.unacknowledged -= chunk.bytes.len() as u64;
                replies.push(reply);
            }
        }
        replies
    }
}

/// What the end says: 204 or nothing is well, provisionally.
fn end(status: Option<StatusCode>, text: Option<String>, server: &str, stream: &str) -> Result<(), NatsError> {
    match status.map(|status| status.as_u16()) {
        None | Some(204) => Ok(()),
        Some(code) => {
            let text = text.map_or_else(|| code.to_string(), |text| format!("{text} ({code})"));
            Err(NatsError::Ended { server: server.to_owned(), stream: stream.to_owned(), text })
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const CHUNK: u64 = IMPATIENT.0;

    fn waiting(bytes: u64) -> Waiting {
        let mut waiting = Waiting::default();
        for n in 0..bytes / CHUNK {
            waiting.push(Chunk { bytes: vec![0; CHUNK as usize].into(), reply: Some(n.to_string().into()) });
        }
        // The last one asks for nothing.
        waiting.push(Chunk { bytes: Bytes::from_static(b"end"), reply: None });
        waiting
    }

    #[test]
    fn what_waits_is_acknowledged_until_the_server_goes_on() {
        let mut after_a_burst = waiting(UNACKNOWLEDGED_IN_BURSTS);
        assert!(!after_a_burst.lets_it_go_on());
        assert_eq!(after_a_burst.keep_alive().len() as u64, UNACKNOWLEDGED / CHUNK + 1);
        assert!(after_a_burst.lets_it_go_on());
        assert_eq!(after_a_burst.keep_alive().len(), 1, "and then one by one");
        assert_eq!(after_a_burst.bytes, UNACKNOWLEDGED_IN_BURSTS + 3, "all of it still waits");
        // What was acknowledged is not again.
        let first = after_a_burst.take().unwrap();
        assert!(first.reply.is_none());
    }

    #[test]
    fn everything_is_acknowledged_once() {
        let mut some = waiting(4 * CHUNK);
        let mut replies: Vec<String> = some.keep_alive().iter().map(ToString::to_string).collect();
        while let Some(chunk) = some.take() {
            replies.extend(chunk.reply.map(|reply| reply.to_string()));
        }
        assert_eq!(replies, ["0", "1", "2", "3"]);
        assert_eq!((some.bytes, some.unacknowledged, some.keep_alive().len()), (0, 0, 0));
    }
}
