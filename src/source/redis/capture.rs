//! From a server into the pipeline: the file as it comes, and what is in it, counted as it passes.
//!
//! Three things run side by side. One reads the socket; one, on a thread of its own, walks through the file and lets its bytes pass
//! no further than its end; one writes into the pipeline. The end of the file is where the walk ends, not where a mark is found: a mark's
//! bytes may be in a value, or split over two reads.

use std::{
    io::{self, Read},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::Xxh3;

use super::{
    dump::{Announced, Dump, MARK, MOST_WAIT},
    error::RedisError,
    facts::{Facts, Info},
    form::{self, Form},
    rdb::{self, RdbError},
    server::{Server, Session},
    tally::{Contents, Tally},
    throwaway,
};
use crate::{
    pipeline::{ArtifactWriter, Cut, Fingerprint, Format, PipelineError, SnapshotWriter},
    source::{Captured, Fixed, SourceError},
};

/// The artifact.
pub(super) const PATH: &str = "dump.rdb";
/// Chunks between the three, of 128 KiB at most.
const CHUNKS: usize = 8;

/// How often a save of somebody else is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What a manifest says of a Redis snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Detail {
    /// Product and version of the source.
    pub(super) server: String,
    /// The file's version, as it is written: `10`, `VALKEY080`.
    pub(super) rdb: String,
    /// How it was taken.
    pub(super) form: String,
    /// Does the file end with a checksum? Where it does, it held.
    pub(super) checksum: bool,
    /// What is in it; absent where the file is newer than this program knows.
    pub(super) contents: Option<Contents>,
    /// XXH3-128 of the whole file under the epoch's seed, in hex: of what no sum covers, such as the values of modules. Older versions did
    /// not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
}

/// How long it may take to look at a server after a failed dump.
const AFTERMATH: Duration = Duration::from_secs(10);

/// A failed save may have made the server refuse writes: that is said.
async fn aftermath(server: &Server, form: Form, error: RedisError) -> RedisError {
    if form != Form::Disk {
        return error;
    }
    let looking = async { Facts::ask(server, &server.session().await?).await };
    let Ok(Ok(facts)) = tokio::time::timeout(AFTERMATH, looking).await else { return error };
    let failed = facts.saving.as_ref().is_some_and(|saving| !saving.last_ok);
    let stops = facts.settings.as_ref().is_none_or(|settings| settings.stop_writes_on_save_error);
    match (failed, stops) {
        (true, true) => RedisError::Aftermath { error: Box::new(error) },
        _ => error,
    }
}

/// Takes a snapshot. The dump is asked for only when there is a writer for it: a server does not wait with one.
pub(super) async fn capture(server: &Server, into: &SnapshotWriter, fixed: Fixed) -> Result<Captured, SourceError> {
    let mut writer = into.artifact(PATH, Format::Rdb).await?;
    let session = server.session().await?;
    let facts = Facts::ask(server, &session).await?;
    let (form, why) = form::choose(&facts, server.config.allow_server_dump)
        .map_err(|reason| RedisError::NoForm { server: server.name(), reason })?;
    tracing::debug!("{}: dump by {}: {why}", server.name(), form.name());
    let dump = match request(server, &session, form).await {
        Ok(dump) => dump,
        Err(error) => return Err(aftermath(server, form, error).await.into()),
    };
    let cut = cut(&dump, into);
    let marks = vec![throwaway::replication_id(&dump.replication_id)];
    fixed.now();
    into.progress().set_phase(format!("reading the dump of {}", server.name()));
    let taken = transfer(server, dump, into, &mut writer).await?;
    let described = describe(&facts, form, taken);
    writer.finish_with(described.fingerprint, serde_json::Value::Null).await?;
    let about = described.detail.about();
    let detail =
        serde_json::to_value(described.detail).map_err(|error| RedisError::Detail { detail: error.to_string() })?;
    Ok(Captured {
        cut,
        detail,
        uncovered: Vec::new(),
        failed: Vec::new(),
        hint: None,
        notes: described.notes,
        about,
        server: marks,
        empty: described.empty,
    })
}

/// Asks for a dump of now. A server that saves a file for somebody else lets whoever asks meanwhile have the same one (`syncCommand` in
/// Redis' `replication.c`), which is of the instant when that was begun: such a dump is let go, and asked for again when the save is over.
pub(super) async fn request(server: &Server, session: &Session, form: Form) -> Result<Dump, RedisError> {
    let began = Instant::now();
    loop {
        let now = Info::allowed(session).await?.replication_offset();
        let dump = Dump::request(server, form).await?;
        if dump.offset >= now {
            return Ok(dump);
        }
        tracing::debug!("{}: a save that began before is waited for", server.name());
        drop(dump);
        while Info::allowed(session).await?.get("rdb_bgsave_in_progress") == "1" {
            if began.elapsed() > MOST_WAIT {
                let detail = format!("the saves of others did not end within {} min", MOST_WAIT.as_secs() / 60);
                return Err(RedisError::Broken { server: server.name(), what: "asking for a dump".into(), detail });
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The server forks and answers in one go, so the cut is no longer before the answer than that was on its way.
fn cut(dump: &Dump, into: &SnapshotWriter) -> Cut {
    let anchor = json!({"replication_id": dump.replication_id, "offset": dump.offset});
    let earliest = dump.at.checked_sub(dump.round_trip).unwrap_or(dump.at);
    Cut::between(into.time(earliest), into.time(dump.at), anchor)
}

/// From the socket into the pipeline.
async fn transfer(
    server: &Server,
    dump: Dump,
    into: &SnapshotWriter,
    writer: &mut ArtifactWriter<'_>,
) -> Result<Taken, SourceError> {
    let form = dump.form;
    let (taken, mut pass) = take(dump, into.fingerprint_seed(), Tally::new(Some(into.progress().clone())));
    let writing = async move {
        while let Some(chunk) = pass.recv().await {
            writer.write(&chunk).await?;
        }
        // With the channel everything before it stops, if this ended early.
        drop(pass);
        Ok::<_, PipelineError>(())
    };
    // Whichever fails first is the cause, and the other is dropped: it may wait for a store that stalls.
    let taken = {
        let (mut writing, mut taken) = (std::pin::pin!(writing), std::pin::pin!(taken));
        tokio::select! {
            biased;
            written = &mut writing => {
                written?;
                taken.await
            }
            taken = &mut taken => {
                if taken.is_ok() {
                    writing.await?;
                }
                taken
            }
        }
    };
    match taken {
        Ok(taken) => Ok(taken),
        Err(error) => Err(aftermath(server, form, error).await.into()),
    }
}

/// A dump in words and numbers.
struct Described {
    detail: Detail,
    fingerprint: Option<Fingerprint>,
    notes: Vec<String>,
    empty: bool,
}

fn describe(facts: &Facts, form: Form, taken: Taken) -> Described {
    let mut detail = Detail {
        server: facts.name(),
        rdb: taken.version,
        form: form.name().into(),
        checksum: taken.checksum,
        contents: None,
        file: Some(hex(taken.digest)),
    };
    let Some(tally) = taken.tally else {
        let note = format!(
            "the dump is of RDB version {}, which this program does not know: it is stored as it is, with no counts and no \
             fingerprint, and can be restored by file only",
            detail.rdb
        );
        let empty = facts.saving.is_some() && facts.keys.is_empty();
        return Described { detail, fingerprint: None, notes: vec![note], empty };
    };
    if facts.version.is_none() {
        detail.server = format!("Redis {}", tally.version);
    }
    let (contents, _) = tally.finish();
    let fingerprint = contents.fingerprint(taken.length);
    let notes = said_of(&contents);
    detail.contents = Some(contents);
    Described { detail, fingerprint: Some(fingerprint), notes, empty: fingerprint.rows == 0 }
}

impl Detail {
    /// What the dump is and holds, in words.
    fn about(&self) -> Vec<String> {
        let read = match (&self.contents, self.checksum) {
            (None, _) => "not read",
            (_, true) => "its checksum holds",
            (_, false) => "without a checksum",
        };
        let first = format!("{}, RDB version {}, taken in the {} form, {read}", self.server, self.rdb, self.form);
        std::iter::once(first).chain(self.contents.iter().flat_map(Contents::about)).collect()
    }
}

/// What to know of the contents.
fn said_of(contents: &Contents) -> Vec<String> {
    let mut notes: Vec<String> = contents
        .module_keys
        .iter()
        .map(|(module, keys)| {
            let keys = crate::report::count(*keys, "key");
            format!("{keys} of module type `{module}`: stored, but their content is not in the fingerprint")
        })
        .collect();
    notes.extend(contents.module_data.iter().map(|module| {
        format!("module `{module}` has data that belongs to no key: stored; only a restore by file brings it back")
    }));
    notes
}

/// The hash of a file, as it is written down.
pub(super) fn hex(digest: u128) -> String {
    format!("{digest:032x}")
}

/// A file that was read to its end.
pub(super) struct Taken {
    /// Its version.
    pub(super) version: String,
    /// Its bytes.
    pub(super) length: u64,
    /// The hash of them.
    pub(super) digest: u128,
    /// Has it a checksum?
    pub(super) checksum: bool,
    /// What was counted; absent where the file is newer than this program knows.
    pub(super) tally: Option<Tally>,
}

/// Reads a dump to its end: a future that does it, and the bytes of the file as they pass. The future ends early when the receiver
/// is dropped.
pub(super) fn take(
    mut dump: Dump,
    seed: u64,
    tally: Tally,
) -> (impl Future<Output = Result<Taken, RedisError>>, mpsc::Receiver<Bytes>) {
    let (pass, passed) = mpsc::channel(CHUNKS);
    let taking = async move {
        let server = dump.server().to_owned();
        let announced = dump.announced().await?;
        let (chunks, read) = mpsc::channel(CHUNKS);
        let name = server.clone();
        let walking = tokio::task::spawn_blocking(move || follow(read, pass, announced, seed, tally, &name));
        // What the socket said is the cause, and the walk is not waited for: it may stand before a store that stalls, until whoever has
        // the other end of its channel is told of the error and drops that.
        let received = read_dump(dump, announced, chunks).await?;
        match walking.await {
            Ok(Err(RedisError::Rdb { error: RdbError::Truncated { .. }, .. }))
                if announced == Announced::Length(received) =>
            {
                let detail = format!("{received} bytes were announced, and its end is not among them");
                Err(RedisError::End { server, detail })
            }
            Ok(Err(RedisError::Rdb { error: RdbError::Truncated { .. }, .. })) => {
                let of = match announced {
                    Announced::Length(length) => Some(length),
                    Announced::Mark(_) => None,
                };
                Err(RedisError::CutShort { server, received, of })
            }
            Ok(walked) => walked,
            // A panic in the walk, or a runtime that shuts down.
            Err(error) => Err(RedisError::End { server, detail: error.to_string() }),
        }
    };
    (taking, passed)
}

/// From the socket to the walk, until one of them has had enough. Gives the bytes that came.
async fn read_dump(mut dump: Dump, announced: Announced, chunks: mpsc::Sender<Bytes>) -> Result<u64, RedisError> {
    let patience = match dump.form {
        // The server's own limit, with room for what is on its way.
        Form::Diskless { repl_timeout } => Some((repl_timeout / 2, repl_timeout)),
        Form::Disk => None,
    };
    let mut received = 0;
    loop {
        let mut chunk = tokio::select! {
            chunk = dump.chunk() => chunk?,
            // The walk is at its end: the server need not close by itself.
            () = chunks.closed() => return Ok(received),
        };
        if chunk.is_empty() {
            return Ok(received);
        }
        if let Announced::Length(length) = announced {
            chunk.truncate(usize::try_from(length - received).unwrap_or(usize::MAX));
        }
        received += chunk.len() as u64;
        let passed = match patience {
            None => chunks.send(chunk).await,
            Some((bound, repl_timeout)) => match tokio::time::timeout(bound, chunks.send(chunk)).await {
                Ok(passed) => passed,
                Err(_) => {
                    let server = dump.server().to_owned();
                    return Err(RedisError::TooSlow { server, waited: bound, repl_timeout });
                }
            },
        };
        if passed.is_err() || matches!(announced, Announced::Length(length) if length == received) {
            return Ok(received);
        }
    }
}

/// What comes from the socket, and goes on once more is asked for: then all of it belongs to the file.
struct Passing {
    read: mpsc::Receiver<Bytes>,
    pass: mpsc::Sender<Bytes>,
    current: Bytes,
    at: usize,
    /// Bytes that went on.
    passed: u64,
    /// The first of them, for a checksum that is only wanted where the walk cannot tell.
    head: Vec<u8>,
    /// The hash of all of them.
    hash: Xxh3,
}

/// Bytes that a walk reads before it can tell that a file is too new.
const HEADER: usize = 9;

/// The other end of a channel is gone, which says that the cause is there.
fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "stopped")
}

impl Passing {
    fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        self.passed += bytes.len() as u64;
        if self.head.len() < HEADER {
            self.head.extend_from_slice(&bytes[..bytes.len().min(HEADER)]);
        }
        self.hash.update(&bytes);
        if bytes.is_empty() { Ok(()) } else { self.pass.blocking_send(bytes).map_err(|_| gone()) }
    }

    /// Everything that is consumed goes on but the last `rest` bytes; those are given back, with what is left of the chunk.
    fn end(&mut self, rest: usize) -> io::Result<Bytes> {
        let current = std::mem::take(&mut self.current);
        let end = self.at.saturating_sub(rest);
        self.send(current.slice(..end))?;
        Ok(current.slice(end..))
    }
}

impl Read for Passing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            let done = std::mem::take(&mut self.current);
            self.send(done)?;
            self.at = 0;
            match self.read.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.current.len() - self.at);
        buffer[..n].copy_from_slice(&self.current[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Walks through the file and lets exactly its bytes pass.
fn follow(
    read: mpsc::Receiver<Bytes>,
    pass: mpsc::Sender<Bytes>,
    announced: Announced,
    seed: u64,
    tally: Tally,
    server: &str,
) -> Result<Taken, RedisError> {
    let hash = Xxh3::with_seed(seed);
    let mut passing = Passing { read, pass, current: Bytes::new(), at: 0, passed: 0, head: Vec::new(), hash };
    let walked = match rdb::walk(&mut passing, seed, tally) {
        Ok(walked) => walked,
        Err(RdbError::TooNew { version }) => return unread(passing, announced, version, server),
        Err(error) => return Err(RedisError::Rdb { server: server.to_owned(), error }),
    };
    let failed = |error: io::Error| RedisError::End { server: server.to_owned(), detail: error.to_string() };
    let end = |detail: String| RedisError::End { server: server.to_owned(), detail };
    let mut behind = passing.end(walked.rest.len()).map_err(failed)?;
    match announced {
        Announced::Length(length) if length != walked.length => {
            return Err(end(format!("{length} bytes were announced, and its end is after {}", walked.length)));
        }
        Announced::Length(_) => {}
        Announced::Mark(mark) => {
            let mut found = Vec::with_capacity(MARK);
            while found.len() < MARK {
                let n = behind.len().min(MARK - found.len());
                found.extend_from_slice(&behind[..n]);
                if found.len() == MARK {
                    break;
                }
                behind = passing.read.blocking_recv().ok_or_else(|| end("its end mark is missing".into()))?;
            }
            if found != mark {
                return Err(end("another mark than the announced one follows it".into()));
            }
        }
    }
    Ok(Taken {
        version: walked.version.to_string(),
        length: walked.length,
        digest: passing.hash.digest128(),
        checksum: walked.checksum,
        tally: Some(walked.visitor),
    })
}

/// A file that this program does not know passes whole: up to its announced length, or to the mark at the connection's end.
fn unread(mut passing: Passing, announced: Announced, version: String, server: &str) -> Result<Taken, RedisError> {
    let failed = |error: io::Error| RedisError::End { server: server.to_owned(), detail: error.to_string() };
    let hold = match announced {
        Announced::Length(_) => 0,
        Announced::Mark(_) => MARK,
    };
    let mut tail = Vec::new();
    let mut checked = Checked::begin(&passing.head);
    let mut next = Some(std::mem::take(&mut passing.current));
    while let Some(chunk) = next {
        tail.extend_from_slice(&chunk);
        let ready = tail.len().saturating_sub(hold);
        let bytes: Bytes = tail.drain(..ready).collect::<Vec<u8>>().into();
        checked.update(&bytes);
        passing.send(bytes).map_err(failed)?;
        next = passing.read.blocking_recv();
    }
    let length = passing.passed;
    match announced {
        Announced::Length(of) if of == length => {}
        Announced::Mark(mark) if tail == mark => {}
        Announced::Length(of) => {
            return Err(RedisError::CutShort { server: server.to_owned(), received: length, of: Some(of) });
        }
        Announced::Mark(_) => {
            let received = length + tail.len() as u64;
            return Err(RedisError::CutShort { server: server.to_owned(), received, of: None });
        }
    }
    // A version number that was damaged on the way must not pass for a newer one.
    let checksum = checked.finish().map_err(|error| RedisError::Rdb { server: server.to_owned(), error })?;
    Ok(Taken { version, length, digest: passing.hash.digest128(), checksum, tally: None })
}

/// The checksum at the end of a file that is not walked through: its last 8 bytes are that of all before.
struct Checked {
    crc: rdb::Crc64,
    last: Vec<u8>,
}

impl Checked {
    fn begin(head: &[u8]) -> Self {
        let mut checked = Self { crc: rdb::crc64(), last: Vec::new() };
        checked.update(head);
        checked
    }

    fn update(&mut self, bytes: &[u8]) {
        self.last.extend_from_slice(bytes);
        let sure = self.last.len().saturating_sub(8);
        self.crc.update(&self.last[..sure]);
        self.last.drain(..sure);
    }

    /// Is there one? Where there is, it holds.
    fn finish(self) -> Result<bool, RdbError> {
        let last = self.last.try_into().map_err(|_| RdbError::NotRdb)?;
        match (u64::from_le_bytes(last), self.crc.finalize()) {
            (0, _) => Ok(false),
            (told, found) if told == found => Ok(true),
            (told, found) => Err(RdbError::Checksum { told, found }),
        }
    }
}

/// For whoever counts without storing.
pub(super) async fn count(dump: Dump, seed: u64, tally: Tally) -> Result<Taken, RedisError> {
    let (taking, mut pass) = take(dump, seed, tally);
    let dropping = async { while pass.recv().await.is_some() {} };
    let (taken, ()) = tokio::join!(taking, dropping);
    taken
}
