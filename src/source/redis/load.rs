//! Into a running server: every key of a file by `RESTORE`, in pipelines on several connections.
//!
//! The walk hands a key's bytes on as they stand in the file; with a type byte before and version and CRC64 behind they are what
//! `RESTORE` takes (`createDumpPayload` in Redis' `cluster.c`; research A2). A value longer than [`LARGE`] is never held: the manifest says
//! how long it is, so its command can be begun before its end is there.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    error::RedisError,
    rdb::{self, Digest, KeyEnd, KeyHead, Visitor},
    server::Server,
    tally::{LARGE, Large, Tally},
    wire::{ANSWER_TIMEOUT, Reading, Reply, Wire, Writing, command},
};

/// Connections that keys are restored on. Measured: four win a third over one, more win nothing (research A3).
pub(super) const CONNECTIONS: usize = 4;
/// Commands and bytes that are sent at once.
const MOST_COMMANDS: usize = 512;
const MOST_BYTES: usize = 64 * 1024;
/// Batches that wait for a connection.
const AHEAD: usize = 2;
/// Answers that are still to come on a connection; more than a batch has.
const UNANSWERED: usize = 4096;
/// What follows the value in a `RESTORE` payload: version and CRC64.
const FOOTER: u64 = 10;
/// A server may close connections that say nothing (`timeout`): a long value on one leaves the others idle.
const IDLE: Duration = Duration::from_secs(1);
/// How long an error of the server is waited for after a connection broke.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Of a key's name in messages, in bytes.
const SHOWN: usize = 200;

/// Bytes for a connection, and what the answers to them are about, in order.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    about: Vec<About>,
    /// It ends in the middle of a command.
    open: bool,
}

/// What a command was about.
enum About {
    Select(u64),
    /// Nothing: the connection was idle.
    Time,
    Function,
    Key {
        db: u64,
        name: Box<[u8]>,
    },
}

impl About {
    fn words(&self) -> String {
        match self {
            Self::Select(db) => format!("db {db}"),
            Self::Time => "the time".to_owned(),
            Self::Function => "a function library".to_owned(),
            Self::Key { db, name } => format!("key `{}` of db {db}", name.escape_ascii()),
        }
    }
}

/// The key whose value passes.
struct Current {
    db: u64,
    key: Vec<u8>,
    expiry: Option<u64>,
    /// The payload so far, where it is held; else what is left of a value that is not.
    payload: Payload,
}

enum Payload {
    Held(Vec<u8>),
    Passing { left: u64, crc: rdb::Crc64 },
}

/// Turns a walk into commands.
pub(super) struct Loader {
    pub(super) tally: Tally,
    version: u16,
    connections: Vec<mpsc::Sender<Batch>>,
    /// The database that each connection is in.
    selected: Vec<u64>,
    /// Whose turn it is.
    turn: usize,
    batch: Batch,
    batch_db: u64,
    current: Option<Current>,
    large: VecDeque<Large>,
    replace_functions: bool,
    /// Bytes of names and values by database.
    pub(super) bytes: BTreeMap<u64, u64>,
}

/// The connections' end of a [`Loader`].
pub(super) struct Connections {
    tasks: Vec<(Wire, mpsc::Receiver<Batch>)>,
    /// Keys that the server has taken.
    taken: Arc<AtomicU64>,
    server: String,
}

/// The connections, logged in.
pub(super) async fn connect(server: &Server) -> Result<Vec<Wire>, RedisError> {
    let mut wires = Vec::new();
    for _ in 0..CONNECTIONS {
        wires.push(Wire::connect(server).await?);
    }
    Ok(wires)
}

/// A loader on these connections, for a file of this RDB version with these long values. Keys that the server has taken are counted in
/// `taken`.
pub(super) fn open(
    wires: Vec<Wire>,
    server: &Server,
    version: u16,
    large: &[Large],
    replace_functions: bool,
    tally: Tally,
    taken: Arc<AtomicU64>,
) -> (Loader, Connections) {
    let (mut senders, mut tasks) = (Vec::new(), Vec::new());
    for wire in wires {
        let (sender, receiver) = mpsc::channel(AHEAD);
        senders.push(sender);
        tasks.push((wire, receiver));
    }
    let loader = Loader {
        tally,
        version,
        selected: vec![0; senders.len()],
        connections: senders,
        turn: 0,
        batch: Batch::default(),
        batch_db: 0,
        current: None,
        large: large.iter().copied().collect(),
        replace_functions,
        bytes: BTreeMap::new(),
    };
    (loader, Connections { tasks, taken, server: server.name() })
}

pub(super) fn stopped() -> String {
    "the restore has stopped".to_owned()
}

impl Loader {
    /// Sends what waits; the next batch goes to the next connection.
    pub(super) fn flush(&mut self) -> Result<(), String> {
        if self.batch.about.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.send(batch)?;
        self.turn = (self.turn + 1) % self.connections.len();
        Ok(())
    }

    fn send(&self, batch: Batch) -> Result<(), String> {
        self.connections[self.turn].blocking_send(batch).map_err(|_| stopped())
    }

    /// The connection whose turn it is goes into this database with the next batch.
    fn enter(&mut self, db: u64) -> Result<(), String> {
        if self.batch_db != db {
            self.flush()?;
            self.batch_db = db;
        }
        if self.batch.about.is_empty() && self.selected[self.turn] != db {
            self.batch.bytes.extend(command(&[b"SELECT", db.to_string().as_bytes()]));
            self.batch.about.push(About::Select(db));
            self.selected[self.turn] = db;
        }
        Ok(())
    }

    fn about(current: &Current) -> About {
        About::Key { db: current.db, name: current.key[..current.key.len().min(SHOWN)].into() }
    }

    /// The command up to the payload of so many bytes.
    fn head(current: &Current, length: u64, into: &mut Vec<u8>) {
        let ttl = current.expiry.unwrap_or(0).to_string();
        let arguments = if current.expiry.is_some() { 5 } else { 4 };
        into.extend_from_slice(format!("*{arguments}\r\n$7\r\nRESTORE\r\n${}\r\n", current.key.len()).as_bytes());
        into.extend_from_slice(&current.key);
        into.extend_from_slice(format!("\r\n${}\r\n{ttl}\r\n${length}\r\n", ttl.len()).as_bytes());
    }

    /// The command from the end of the value.
    fn tail(&self, current: &Current, mut crc: rdb::Crc64, into: &mut Vec<u8>) {
        let version = self.version.to_le_bytes();
        crc.update(&version);
        into.extend_from_slice(&version);
        into.extend_from_slice(&crc.finalize().to_le_bytes());
        into.extend_from_slice(b"\r\n");
        if current.expiry.is_some() {
            into.extend_from_slice(b"$6\r\nABSTTL\r\n");
        }
    }
}

impl Visitor for Loader {
    fn aux(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        self.tally.aux(name, value)
    }

    fn module_aux(&mut self, module: &str) -> Result<(), String> {
        self.tally.module_aux(module)
    }

    fn function(&mut self, source: &[u8], digest: Digest) -> Result<(), String> {
        self.tally.function(source, digest)?;
        let mut arguments = vec![b"FUNCTION".as_slice(), b"LOAD"];
        if self.replace_functions {
            arguments.push(b"REPLACE");
        }
        arguments.push(source);
        self.batch.bytes.extend(command(&arguments));
        self.batch.about.push(About::Function);
        self.flush()
    }

    fn key(&mut self, head: &KeyHead<'_>) -> Result<(), String> {
        self.tally.key(head)?;
        self.enter(head.db)?;
        let mut current = Current {
            db: head.db,
            key: head.key.to_vec(),
            expiry: head.expiry,
            payload: Payload::Held(vec![head.kind]),
        };
        if let Some(large) = self.large.pop_front_if(|large| large.offset == head.offset) {
            // After what waits, and on the same connection to its end.
            Self::head(&current, 1 + large.length + FOOTER, &mut self.batch.bytes);
            self.batch.bytes.push(head.kind);
            self.batch.about.push(Self::about(&current));
            let mut batch = std::mem::take(&mut self.batch);
            batch.open = true;
            self.send(batch)?;
            let mut crc = rdb::crc64();
            crc.update(&[head.kind]);
            current.payload = Payload::Passing { left: large.length, crc };
        }
        self.current = Some(current);
        Ok(())
    }

    fn value(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some(current) = &mut self.current else { return Err("has a value without a key".into()) };
        match &mut current.payload {
            Payload::Held(payload) if (payload.len() + bytes.len()) as u64 > 1 + LARGE => {
                Err("has a long value that its manifest does not list".into())
            }
            Payload::Held(payload) => {
                payload.extend_from_slice(bytes);
                Ok(())
            }
            Payload::Passing { left, crc } => {
                *left = left.checked_sub(bytes.len() as u64).ok_or("has a longer value than its manifest says")?;
                crc.update(bytes);
                self.send(Batch { bytes: bytes.to_vec(), about: Vec::new(), open: true })
            }
        }
    }

    fn field(&mut self, expiry: u64, digest: Digest) -> Result<(), String> {
        self.tally.field(expiry, digest)
    }

    fn end(&mut self, end: &KeyEnd<'_>) -> Result<(), String> {
        self.tally.end(end)?;
        let Some(mut current) = self.current.take() else { return Err("has a value without a key".into()) };
        *self.bytes.entry(current.db).or_default() += current.key.len() as u64 + end.length;
        match std::mem::replace(&mut current.payload, Payload::Held(Vec::new())) {
            Payload::Held(payload) => {
                let mut crc = rdb::crc64();
                crc.update(&payload);
                let mut bytes = std::mem::take(&mut self.batch.bytes);
                Self::head(&current, payload.len() as u64 + FOOTER, &mut bytes);
                bytes.extend_from_slice(&payload);
                self.tail(&current, crc, &mut bytes);
                self.batch.bytes = bytes;
                self.batch.about.push(Self::about(&current));
                if self.batch.bytes.len() >= MOST_BYTES || self.batch.about.len() >= MOST_COMMANDS {
                    self.flush()?;
                }
                Ok(())
            }
            Payload::Passing { left: 0, crc } => {
                let mut bytes = Vec::new();
                self.tail(&current, crc, &mut bytes);
                self.send(Batch { bytes, about: Vec::new(), open: false })?;
                self.turn = (self.turn + 1) % self.connections.len();
                Ok(())
            }
            Payload::Passing { .. } => Err("has a shorter value than its manifest says".into()),
        }
    }
}

impl Connections {
    /// Sends what comes until the loader is gone, and waits for every answer.
    pub(super) async fn run(self) -> Result<(), RedisError> {
        let mut running = tokio::task::JoinSet::new();
        for (wire, batches) in self.tasks {
            let (taken, server) = (self.taken.clone(), self.server.clone());
            running.spawn(async move {
                let Wire { reading, writing } = wire;
                let (about, answers) = mpsc::channel(UNANSWERED);
                let sent = Sent::default();
                let mut written = std::pin::pin!(write(writing, batches, about, &sent, &server));
                let mut answered = std::pin::pin!(read(reading, answers, &taken, &server, &sent));
                tokio::select! {
                    biased;
                    // Without an error it ends after the other.
                    read = &mut answered => match read {
                        Ok(()) => written.await,
                        error => error,
                    },
                    wrote = &mut written => match wrote {
                        Ok(()) => answered.await,
                        // What the server said, if it comes, explains why it closed the connection.
                        Err(error) => match tokio::time::timeout(LAST_WORDS, answered).await {
                            Ok(Err(refused @ RedisError::Refused { .. })) => Err(refused),
                            _ => Err(error),
                        },
                    },
                }
            });
        }
        let mut first = Ok(());
        while let Some(ended) = running.join_next().await {
            let ended = ended.unwrap_or_else(|error| {
                let detail = error.to_string();
                Err(RedisError::Broken { server: self.server.clone(), what: "restoring".into(), detail })
            });
            if let (Ok(()), Err(error)) = (&first, ended) {
                first = Err(error);
                running.abort_all();
            }
        }
        first
    }
}

async fn write(
    mut writing: Writing,
    mut batches: mpsc::Receiver<Batch>,
    about: mpsc::Sender<About>,
    sent: &Sent,
    server: &str,
) -> Result<(), RedisError> {
    let mut open = false;
    loop {
        let batch = match tokio::time::timeout(IDLE, batches.recv()).await {
            Ok(None) if open => {
                // Who should have sent the rest has failed, and says why.
                return Err(RedisError::Broken {
                    server: server.to_owned(),
                    what: "restoring".into(),
                    detail: stopped(),
                });
            }
            Ok(None) => return Ok(()),
            Ok(Some(batch)) => batch,
            Err(_) if open => continue,
            Err(_) => {
                // Answers that are waited for are waited for since the last command that was no such.
                if about.send(About::Time).await.is_err() {
                    return Ok(());
                }
                writing.send("restoring", &command(&[b"TIME"])).await?;
                continue;
            }
        };
        open = batch.open;
        for about_one in batch.about {
            if about.send(about_one).await.is_err() {
                // The reader has failed, and says why.
                return Ok(());
            }
        }
        sent.set(None);
        writing.send("restoring", &batch.bytes).await?;
        sent.set((!open).then(Instant::now));
    }
}

/// Since when everything that is to be answered is sent, or the last answer came; nothing while a command is on its way, which may
/// take its time.
#[derive(Default)]
struct Sent(Mutex<Option<Instant>>);

impl Sent {
    fn set(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn answered(&self) {
        if let Some(since) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *since = Instant::now();
        }
    }

    fn for_too_long(&self) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() > ANSWER_TIMEOUT)
    }
}

async fn read(
    mut reading: Reading,
    mut answers: mpsc::Receiver<About>,
    taken: &AtomicU64,
    server: &str,
    sent: &Sent,
) -> Result<(), RedisError> {
    while let Some(about) = answers.recv().await {
        loop {
            match tokio::time::timeout(IDLE, reading.ready("restoring")).await {
                Ok(ready) => break ready?,
                Err(_) if !sent.for_too_long() => {}
                Err(_) => {
                    let detail = format!("it did not answer for {} s", ANSWER_TIMEOUT.as_secs());
                    return Err(RedisError::Broken { server: server.to_owned(), what: about.words(), detail });
                }
            }
        }
        let reply = reading.reply("restoring").await?;
        sent.answered();
        match reply {
            // Only asked so that the connection is not closed.
            Reply::Error(_) if matches!(about, About::Time) => {}
            Reply::Error(text) => {
                return Err(RedisError::Refused { server: server.to_owned(), what: about.words(), text });
            }
            Reply::Text(_) => {
                taken.fetch_add(u64::from(matches!(about, About::Key { .. })), Ordering::Relaxed);
            }
        }
    }
    Ok(())
}
