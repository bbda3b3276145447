//! What passes between a client and a NATS server, message by message: hooks for a [`TcpProxy`](crate::support::proxy::TcpProxy) that know which
//! stream's snapshot a chunk is of.

use std::collections::HashMap;

use serde_json::Value;

use crate::support::proxy::{Step, Way};

/// Asks for a snapshot; a stream's name follows.
const ASK: &str = "$JS.API.STREAM.SNAPSHOT.";
/// Where the chunks of a restore go; the stream's name follows, and a random one.
const RESTORE: &str = "$JS.SNAPSHOT.RESTORE.";

/// A chunk of an archive on its way; an empty one is the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// From a source, or to a target.
    pub(super) way: Way,
    /// The stream.
    pub(super) stream: String,
    /// Snapshots of the stream that were asked for so far, this one too. 0 for restores.
    pub(super) attempt: u32,
    /// What came of the archive before it, in bytes.
    pub(super) offset: u64,
    /// The bytes.
    pub(super) payload: Vec<u8>,
}

/// What becomes of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Pass,
    /// These go on in its place, each as a chunk. An empty one would be the end.
    Instead(Vec<Vec<u8>>),
    /// These go on as chunks, and it behind them.
    Before(Vec<Vec<u8>>),
    /// The connection is closed.
    Cut,
}

/// A hook for a proxy before a NATS server: `decide` says what becomes of each chunk. Everything else passes.
pub(super) fn chunks(
    mut decide: impl FnMut(&Chunk) -> Fate + Send,
) -> impl FnMut(Way, u64, Vec<u8>) -> Vec<Step> + Send {
    let mut wire = Wire::default();
    move |way, connection, bytes| {
        let mut out = Vec::new();
        for message in wire.messages(way, connection, bytes) {
            let Some(chunk) = wire.chunk(way, &message) else {
                out.extend(message.bytes);
                continue;
            };
            match decide(&chunk) {
                Fate::Pass => out.extend(message.bytes),
                Fate::Instead(payloads) => payloads.iter().for_each(|payload| out.extend(message.with(payload))),
                Fate::Before(payloads) => {
                    payloads.iter().for_each(|payload| out.extend(message.with(payload)));
                    out.extend(message.bytes);
                }
                Fate::Cut => return vec![Step::Send(out), Step::Cut],
            }
        }
        vec![Step::Send(out)]
    }
}

/// What is known of the connections through a proxy.
#[derive(Default)]
struct Wire {
    /// What came of a message that is not all there, by way and connection.
    begun: HashMap<(bool, u64), Vec<u8>>,
    /// Snapshots by the subject that their chunks are sent to: the stream, which attempt it is, and bytes so far.
    snapshots: HashMap<String, (String, u32, u64)>,
    /// Attempts by stream.
    attempts: HashMap<String, u32>,
    /// Bytes so far of restores, by the subject that their chunks are sent to.
    restores: HashMap<String, u64>,
}

/// A protocol line and its payload.
struct Message {
    /// `MSG`, `HMSG`, `PUB` or `HPUB` with what follows, all but sizes.
    words: Vec<String>,
    /// Bytes of headers before the payload.
    headers: usize,
    payload: Vec<u8>,
    /// All of it as it came.
    bytes: Vec<u8>,
}

impl Message {
    /// The same with another payload, and without headers.
    fn with(&self, payload: &[u8]) -> Vec<u8> {
        let words = self.words.join(" ");
        let head = format!("{} {}\r\n", words.strip_prefix('H').unwrap_or(&words), payload.len());
        [head.as_bytes(), payload, b"\r\n"].concat()
    }
}

impl Wire {
    /// The messages that are whole with these bytes.
    fn messages(&mut self, way: Way, connection: u64, bytes: Vec<u8>) -> Vec<Message> {
        let begun = self.begun.entry((way == Way::Up, connection)).or_default();
        begun.extend(bytes);
        let (mut messages, mut at) = (Vec::new(), 0);
        while let Some((message, length)) = parse(&begun[at..]) {
            at += length;
            messages.push(message);
        }
        begun.drain(..at);
        messages
    }

    fn chunk(&mut self, way: Way, message: &Message) -> Option<Chunk> {
        let subject = message.words.get(1)?;
        let payload = message.payload[message.headers..].to_vec();
        let chunk = |stream: &str, attempt, offset: &mut u64| {
            let chunk = Chunk { way, stream: stream.to_owned(), attempt, offset: *offset, payload: payload.clone() };
            *offset += payload.len() as u64;
            Some(chunk)
        };
        match message.words[0].as_str() {
            "PUB" if subject.starts_with(ASK) => {
                let asked: Value = serde_json::from_slice(&payload).expect("a request is JSON");
                let stream = subject[ASK.len()..].to_owned();
                let attempt = self.attempts.entry(stream.clone()).or_default();
                *attempt += 1;
                let to = asked["deliver_subject"].as_str().expect("a request says where chunks go").to_owned();
                self.snapshots.insert(to, (stream, *attempt, 0));
                None
            }
            "PUB" if subject.starts_with(RESTORE) => {
                let stream = subject[RESTORE.len()..].rsplit_once('.').expect("a stream and a name").0;
                chunk(stream, 0, self.restores.entry(subject.clone()).or_default())
            }
            "MSG" | "HMSG" => {
                let (stream, attempt, offset) = self.snapshots.get_mut(subject)?;
                chunk(stream, *attempt, offset)
            }
            _ => None,
        }
    }
}

/// The first message, and its length, if all of it is there.
fn parse(bytes: &[u8]) -> Option<(Message, usize)> {
    let end = memchr::memmem::find(bytes, b"\r\n")?;
    let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let mut size = || words.pop().and_then(|size| size.parse::<usize>().ok()).expect("a size");
    let (headers, size) = match line.split(' ').next()? {
        "MSG" | "PUB" => (0, Some(size())),
        "HMSG" | "HPUB" => {
            let all = size();
            (size(), Some(all))
        }
        _ => (0, None),
    };
    let begin = end + 2;
    let length = size.map_or(begin, |size| begin + size + 2);
    let whole = bytes.get(..length)?;
    let payload = size.map_or_else(Vec::new, |size| whole[begin..begin + size].to_vec());
    Some((Message { words, headers, payload, bytes: whole.to_vec() }, length))
}
