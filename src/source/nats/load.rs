//! The exchange that restores one stream: chunks with answers (research B1).
//!
//! The server forgets a restore, without a word, when it gets nothing for five seconds. So the last chunk is always held back, and
//! while the next one does not come, it goes byte by byte. A chunk is one frame of the compressed form, which a server reads in whatever
//! pieces it comes.

use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    archive::Encoder,
    error::NatsError,
    server::{Connection, answered},
};
use crate::source::SourceError;

/// Plaintext of one chunk, in bytes, where the server takes messages of that length.
const PLAIN: usize = 64 * 1024;
/// What a chunk may have beside it: the stream's identifier, and of a block its kind, length and checksum.
const FRAME: usize = 10 + 1 + 3 + 4;
/// Chunks that wait for their answer. More than 16 win nothing (research B2).
const IN_FLIGHT: usize = 32;
/// A server that has something to read is kept waiting for no longer than this.
const TRICKLE: Duration = Duration::from_secs(2);
/// How long a chunk may wait for its answer.
const ANSWERS: Duration = Duration::from_secs(60);
/// How long the last answer may take: some servers store everything only then.
const FINISHES: Duration = Duration::from_secs(6 * 3600);

/// Would the server take this stream if none of its name were there? Asked while one is there, it begins nothing, and says what else is
/// in the way: that we may not, or what is wrong with the configuration.
pub(super) async fn would_take(
    connection: &Connection,
    stream: &str,
    config: &Value,
    state: &Value,
) -> Result<(), NatsError> {
    let what = format!("restoring stream `{stream}`");
    connection.may_publish(&what, format!("$JS.SNAPSHOT.RESTORE.{stream}.probe")).await?;
    match ask(connection, stream, config, state).await {
        Err(error @ NatsError::Refused { .. }) if !error.is_of_what_is_there() => Err(error),
        // Where it is gone meanwhile, the server forgets a restore that nothing comes for.
        Ok(_) | Err(NatsError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn ask(connection: &Connection, stream: &str, config: &Value, state: &Value) -> Result<Value, NatsError> {
    let body = json!({"config": config, "state": state});
    match connection.ask(&format!("restoring stream `{stream}`"), &format!("STREAM.RESTORE.{stream}"), &body).await {
        Err(NatsError::Said { server, code, text, .. }) => {
            Err(NatsError::Refused { server, stream: stream.to_owned(), code, text })
        }
        answer => answer,
    }
}

/// A restore that the server has begun.
pub(super) struct Load<'a> {
    connection: &'a Connection,
    stream: &'a str,
    /// Where chunks go.
    subject: String,
    inbox: String,
    answers: Subscriber,
    in_flight: usize,
    what: String,
    /// What goes next; held back until there is more.
    held: Bytes,
    sent: Instant,
}

impl<'a> Load<'a> {
    /// Asks the server to take a stream with this configuration.
    pub(super) async fn begin(
        connection: &'a Connection,
        stream: &'a str,
        config: &Value,
        state: &Value,
    ) -> Result<Self, NatsError> {
        let what = format!("restoring stream `{stream}`");
        let lost = |_| NatsError::Lost { server: connection.server.clone(), what: what.clone() };
        let inbox = connection.client.new_inbox();
        let answers = connection.client.subscribe(inbox.clone()).await.map_err(lost)?;
        let answer = ask(connection, stream, config, state).await?;
        let Some(subject) = answer["deliver_subject"].as_str().filter(|subject| !subject.is_empty()) else {
            let text = answer.to_string().chars().take(200).collect();
            return Err(NatsError::Strange { server: connection.server.clone(), what, text });
        };
        let subject = subject.to_owned();
        let (held, sent) = (Bytes::new(), Instant::now());
        Ok(Self { connection, stream, subject, inbox, answers, in_flight: 0, what, held, sent })
    }

    /// Sends an archive, piece by piece as it comes, and waits until the stream is there.
    pub(super) async fn send<P: AsRef<[u8]>>(
        mut self,
        pieces: impl Stream<Item = Result<P, SourceError>>,
    ) -> Result<Value, SourceError> {
        let mut pieces = std::pin::pin!(pieces);
        let mut encoder = Encoder::new();
        // A longer message than its `max_payload` ends the connection.
        let length = self.connection.client.max_payload().saturating_sub(FRAME).clamp(1, PLAIN);
        loop {
            let piece = tokio::select! {
                biased;
                answer = self.answers.next() => {
                    self.heard(answer).await?;
                    continue;
                }
                trouble = self.connection.trouble(&self.what) => return Err(trouble.into()),
                piece = pieces.next() => piece,
                () = tokio::time::sleep_until(self.sent + TRICKLE), if self.held.len() > 1 => {
                    let byte = self.held.split_to(1);
                    self.publish(byte).await?;
                    continue;
                }
            };
            let Some(piece) = piece else { break };
            for plain in piece?.as_ref().chunks(length) {
                let chunk = Bytes::from(encoder.encode(plain));
                let before = std::mem::replace(&mut self.held, chunk);
                self.publish(before).await?;
            }
        }
        let last = std::mem::take(&mut self.held);
        self.publish(last).await?;
        Ok(self.finish().await?)
    }

    /// Sends one chunk, as soon as few enough wait for their answers.
    async fn publish(&mut self, chunk: Bytes) -> Result<(), NatsError> {
        if chunk.is_empty() {
            // An empty one would be the end.
            return Ok(());
        }
        while self.in_flight >= IN_FLIGHT {
            self.hear(ANSWERS).await?;
        }
        self.in_flight += 1;
        self.put(chunk).await
    }

    async fn put(&mut self, chunk: Bytes) -> Result<(), NatsError> {
        self.sent = Instant::now();
        let lost = |_| NatsError::Lost { server: self.connection.server.clone(), what: self.what.clone() };
        self.connection.client.publish_with_reply(self.subject.clone(), self.inbox.clone(), chunk).await.map_err(lost)
    }

    /// Waits for an answer.
    async fn hear(&mut self, most: Duration) -> Result<Option<Value>, NatsError> {
        let answer = tokio::select! {
            biased;
            answer = self.answers.next() => answer,
            trouble = self.connection.trouble(&self.what) => return Err(trouble),
            () = tokio::time::sleep(most) => {
                return Err(NatsError::NoAnswer { server: self.connection.server.clone(), what: self.what.clone() });
            }
        };
        self.heard(answer).await
    }

    /// An answer is empty for a chunk, and says what there is at the end; or it is an error.
    async fn heard(&mut self, answer: Option<Message>) -> Result<Option<Value>, NatsError> {
        let Some(answer) = answer else { return Err(self.connection.trouble(&self.what).await) };
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            let text =
                "it has forgotten the restore, as it does with one that sends nothing for five seconds".to_owned();
            return Err(self.refused(0, text));
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        if answer.payload.is_empty() {
            return Ok(None);
        }
        match answered(&self.connection.server, &self.what, &answer.payload) {
            Ok(said) => Ok(Some(said)),
            Err(NatsError::Said { code, text, .. }) => Err(self.refused(code, text)),
            Err(error) => Err(error),
        }
    }

    fn refused(&self, code: u64, text: String) -> NatsError {
        NatsError::Refused { server: self.connection.server.clone(), stream: self.stream.to_owned(), code, text }
    }

    /// Says that this was all, and waits for the stream.
    async fn finish(mut self) -> Result<Value, NatsError> {
        while self.in_flight > 0 {
            self.hear(ANSWERS).await?;
        }
        self.put(Bytes::new()).await?;
        loop {
            if let Some(said) = self.hear(FINISHES).await? {
                return Ok(said);
            }
        }
    }
}
