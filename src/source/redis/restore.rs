//! A restore into a running server: `RESTORE` of every key, a save, and a dump that is taken back and compared.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{
    capture::{self, PATH},
    dump::Dump,
    error::RedisError,
    facts::{Facts, Info},
    form::{self, Form, NoForm},
    load,
    plan::{held, keys_of},
    rdb::{self, RdbError},
    server::{Server, Session},
    tally::{self, ByMinute, Contents, Tally},
    walk::walk_artifact,
    wire::Wire,
};
use crate::{
    pipeline::SnapshotReader,
    report,
    source::{Compared, Refusal, Restore, RestorePlan, Restored, RestoredItem, SourceError},
};

/// How long a save to disk may take.
const MOST_SAVING: Duration = Duration::from_secs(6 * 3600);
/// What lets a server hand over its data without a file.
pub(super) const DISKLESS_SETTING: &str = "repl-diskless-sync";
/// A key that is never written.
const PROBE: &str = "altlas-backup:probe";
/// How often a save is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long it may take to find out what a failed restore left.
const MOST_LOOKING: Duration = Duration::from_secs(10);

/// A planned restore into a running server.
pub(super) struct RedisRestore {
    pub(super) server: Server,
    pub(super) snapshot: SnapshotReader,
    /// The file's version; absent where it cannot be restored this way.
    pub(super) rdb: Option<u16>,
    pub(super) contents: Contents,
    /// What the target said when it was looked at.
    pub(super) facts: Facts,
    pub(super) overwrite: bool,
    pub(super) plan: RestorePlan,
    /// Did we flush or write anything?
    pub(super) begun: AtomicBool,
    /// Did we change [`DISKLESS_SETTING`]?
    pub(super) changed: AtomicBool,
}

#[async_trait]
impl Restore for RedisRestore {
    fn plan(&self) -> &RestorePlan {
        &self.plan
    }

    async fn execute(self: Box<Self>, cancel: &CancellationToken) -> Result<Restored, SourceError> {
        let taken = Arc::default();
        let done = tokio::select! {
            done = self.restore(&taken) => done,
            () = cancel.cancelled() => Err(SourceError::Interrupted { left: None }),
        };
        match done {
            Ok(restored) => Ok(restored),
            Err(error) if !self.begun.load(Ordering::Relaxed) => Err(error),
            Err(error) => {
                let left = self.left(taken.load(Ordering::Relaxed)).await;
                Err(match error {
                    SourceError::Interrupted { .. } => SourceError::Interrupted { left: Some(left) },
                    error => SourceError::HalfRestored { error: Box::new(error), left },
                })
            }
        }
    }
}

impl RedisRestore {
    async fn restore(&self, taken: &Arc<AtomicU64>) -> Result<Restored, SourceError> {
        let now = milliseconds(Timestamp::now());
        let (bytes, expected) = self.load(now, taken).await?;
        // One that had been idle all the while might have been closed.
        let saved = self.save(&self.server.session().await?).await;
        let mut restored = Restored { unit: "database", ..Restored::default() };
        let compared = match (self.compare(now, &expected, &mut restored.notes).await, saved) {
            (Ok(compared), Ok(())) => compared,
            (Ok(_), Err(not_saved)) => return Err(not_saved.into()),
            (Err(error), Ok(())) => return Err(error),
            (Err(error), Err(not_saved)) => {
                tracing::warn!("{not_saved}");
                return Err(error);
            }
        };
        let (mut gone, session) = (0, self.server.session().await?);
        for (db, keys) in self.contents.databases() {
            let bytes = bytes.get(&db).copied().unwrap_or(0);
            let there = keys_of(&session, db).await?;
            gone += keys.saturating_sub(there);
            restored.items.push(RestoredItem { name: format!("db {db}"), rows: there, bytes, compared });
        }
        restored.notes.extend(self.evicted(&session).await);
        if gone > 0 {
            let all = report::count(self.contents.databases().values().sum(), "key");
            let why = if compared == Compared::Same { ": their time was over" } else { "" };
            restored.notes.push(format!("{gone} of {all} are not there{why}"));
        }
        Ok(restored)
    }

    /// That the target has thrown keys away since the plan, in words.
    async fn evicted(&self, session: &Session) -> Option<String> {
        let evicted = Facts::ask(&self.server, session).await.ok()?.evicted.checked_sub(self.facts.evicted)?;
        let keys = report::count(evicted, "key");
        (evicted > 0).then(|| format!("it has evicted {keys} meanwhile, since its `maxmemory` is too small"))
    }

    /// What is in the way. Where it will be flushed, the whole backup is read first: there is no way back.
    async fn look_again(&self, rdb: u16) -> Result<BTreeMap<u64, u64>, SourceError> {
        let there = self.in_the_way().await?;
        if !there.is_empty() && !self.overwrite {
            let what = format!("{} holds {} since it was looked at", self.server.name(), held(&there));
            let hint = "stop whatever else writes to it".to_owned();
            return Err(SourceError::Refused { refusals: vec![Refusal { what, hint }] });
        }
        let mut libraries = Vec::new();
        if !there.is_empty() {
            let progress = self.snapshot.progress();
            progress.set_phase("reading the backup");
            let artifact = self.snapshot.artifact(PATH)?;
            let tally = Tally::new(None).keeping_libraries();
            let mut walked = walk_artifact(&self.snapshot, artifact, tally, None).await?.visitor;
            libraries = walked.take_libraries();
            self.is_what_was_captured(&walked.finish().0)?;
            progress.raw.store(0, Ordering::Relaxed);
        }
        // Reading takes its time: what matters is how things are now.
        may_write(&self.server, rdb, !self.contents.functions.is_empty()).await?;
        self.replace_libraries(&libraries).await?;
        Ok(self.in_the_way().await?)
    }

    async fn in_the_way(&self) -> Result<BTreeMap<u64, u64>, RedisError> {
        let session = self.server.session().await?;
        let mut there = BTreeMap::new();
        for db in self.contents.databases().into_keys() {
            let keys = keys_of(&session, db).await?;
            if keys > 0 {
                there.insert(db, keys);
            }
        }
        Ok(there)
    }

    /// Libraries before anything is flushed: one that the target does not take (another library has a function of that name) would
    /// end the restore after it.
    async fn replace_libraries(&self, libraries: &[Vec<u8>]) -> Result<(), RedisError> {
        if libraries.is_empty() {
            return Ok(());
        }
        let mut wire = Wire::connect(&self.server).await?;
        for source in libraries {
            let arguments = [b"FUNCTION".as_slice(), b"LOAD", b"REPLACE", source];
            wire.ask("loading a function library", &arguments).await?;
            self.begun.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn flush(&self, databases: &BTreeMap<u64, u64>) -> Result<(), RedisError> {
        if databases.is_empty() {
            return Ok(());
        }
        let session = self.server.session().await?;
        self.begun.store(true, Ordering::Relaxed);
        for db in databases.keys() {
            self.snapshot.progress().set_phase(format!("flushing db {db}"));
            session.ask::<()>(&["SELECT", &db.to_string()]).await?;
            session.ask::<()>(&["FLUSHDB"]).await?;
        }
        Ok(())
    }

    fn is_what_was_captured(&self, contents: &Contents) -> Result<(), RedisError> {
        match self.contents.differences(contents, self.snapshot.fingerprint_seed()) {
            differences if differences.is_empty() => Ok(()),
            differences => Err(RedisError::NotCaptured { detail: report::list(&differences.words(), 5) }),
        }
    }

    /// Every key and library into the target. Gives bytes by database, and the sums of what was sent.
    async fn load(&self, now: u64, taken: &Arc<AtomicU64>) -> Result<(BTreeMap<u64, u64>, ByMinute), SourceError> {
        let progress = self.snapshot.progress().clone();
        let tally = Tally::new(Some(progress)).by_minute(now, self.contents.databases().into_keys());
        let Some(rdb) = self.rdb else {
            return Err(RedisError::Detail { detail: "the dump cannot be read key by key".into() }.into());
        };
        let in_the_way = self.look_again(rdb).await?;
        // A server that takes no connections from us is not flushed.
        let wires = load::connect(&self.server).await?;
        self.flush(&in_the_way).await?;
        let (loader, connections) =
            load::open(wires, &self.server, rdb, &self.contents.large, self.overwrite, tally, taken.clone());
        self.begun.store(true, Ordering::Relaxed);
        self.snapshot.progress().set_phase("restoring keys");
        let artifact = self.snapshot.artifact(PATH)?;
        let walking = async {
            let mut loader = walk_artifact(&self.snapshot, artifact, loader, None).await?.visitor;
            // The last batch; on a thread, since it may have to wait.
            let flushed = tokio::task::spawn_blocking(move || loader.flush().map(|()| loader)).await;
            let Some(loader) = flushed.ok().and_then(Result::ok) else {
                let error = RdbError::Stopped(load::stopped());
                return Err(RedisError::Rdb { server: "the backup".into(), error }.into());
            };
            Ok::<_, SourceError>((loader.bytes, loader.tally.finish()))
        };
        // The target's refusal comes first: that the walk stopped is an echo of it.
        let (sent, walked) = tokio::join!(connections.run(), walking);
        match (sent, walked) {
            (Err(refused @ RedisError::Refused { .. }), _) => Err(refused.into()),
            (Err(broken), Ok(_)) => Err(broken.into()),
            (Err(broken), Err(SourceError::Redis(RedisError::Rdb { error: RdbError::Stopped(what), .. })))
                if what == load::stopped() =>
            {
                Err(broken.into())
            }
            (_, Err(error)) => Err(error),
            (Ok(()), Ok((bytes, (contents, by_minute)))) => {
                self.is_what_was_captured(&contents)?;
                let by_minute = by_minute.ok_or(RedisError::NotCaptured { detail: "nothing was counted".into() })?;
                Ok((bytes, by_minute))
            }
        }
    }

    /// What was restored is on the target's disk, where it keeps anything there.
    async fn save(&self, session: &Session) -> Result<(), RedisError> {
        // Of a server that does not say, nothing is forced: it might keep none.
        let (rdb, aof) = self.facts.keeps().unwrap_or((false, false));
        if rdb {
            self.snapshot.progress().set_phase("saving to disk");
            self.save_one(session, "BGSAVE", "rdb_bgsave_in_progress", "rdb_last_bgsave_status").await?;
        }
        if aof {
            self.snapshot.progress().set_phase("rewriting the append-only file");
            self.save_one(session, "BGREWRITEAOF", "aof_rewrite_in_progress", "aof_last_bgrewrite_status").await?;
        }
        Ok(())
    }

    /// One kind of save, from its start to its end: one that began before the last key does not count.
    async fn save_one(&self, session: &Session, command: &str, running: &str, status: &str) -> Result<(), RedisError> {
        let failed = |detail: String| RedisError::NotSaved { server: self.server.name(), detail };
        let waiting = async {
            loop {
                wait_until_idle(session).await?;
                match session.ask::<redis::Value>(&[command]).await {
                    Ok(_) => break,
                    // Another one began in between.
                    Err(RedisError::Said { text, .. }) if text.contains("in progress") => {}
                    Err(error) => return Err(failed(error.to_string())),
                }
            }
            loop {
                tokio::time::sleep(LOOK).await;
                let info = Info::read(session).await?;
                let scheduled = info.get("aof_rewrite_scheduled") == "1" && command == "BGREWRITEAOF";
                if info.get(running) == "0" && !scheduled {
                    return match info.get(status) {
                        "ok" => Ok(()),
                        other => Err(failed(format!("{command} ended with {other}; the server's log says why"))),
                    };
                }
            }
        };
        match tokio::time::timeout(MOST_SAVING, waiting).await {
            Ok(saved) => saved,
            Err(_) => Err(failed(format!("{command} did not end within {}", report::duration(MOST_SAVING)))),
        }
    }

    /// Takes a dump back, and compares what lives on.
    async fn compare(&self, now: u64, expected: &ByMinute, notes: &mut Vec<String>) -> Result<Compared, SourceError> {
        self.snapshot.progress().set_phase("comparing");
        let session = &self.server.session().await?;
        let dump = match self.dump_back(session).await {
            Ok(dump) => dump,
            Err(error @ RedisError::NoForm { .. }) => {
                let hint = error.hint().unwrap_or_default();
                notes.push(format!("the target took every key, but was not compared: {error}; {hint}"));
                return Ok(Compared::Inconclusive);
            }
            Err(error) if error.is_denied() => {
                notes.push(format!("the target took every key, but was not compared: {error}"));
                return Ok(Compared::Inconclusive);
            }
            Err(error) => return Err(error.into()),
        };
        // Its clock decides what has expired.
        let at = match self.server.session().await?.ask::<(u64, u64)>(&["TIME"]).await {
            Ok((seconds, microseconds)) => seconds * 1000 + microseconds / 1000,
            Err(RedisError::Said { .. }) => milliseconds(Timestamp::now()),
            Err(error) => return Err(error.into()),
        };
        let seed = self.snapshot.fingerprint_seed();
        let tally = Tally::new(None).by_minute(now, self.contents.databases().into_keys());
        let taken = capture::count(dump, seed, tally).await?;
        let Some((contents, Some(found))) = taken.tally.map(Tally::finish) else {
            notes
                .push(format!("the target's dump is of RDB version {}, which this program cannot read", taken.version));
            return Ok(Compared::Inconclusive);
        };
        let Some(tally::Comparison { mut differences, living, left_out }) = expected.differences(&found, at, seed)
        else {
            notes.push("the restore took so long that keys that expire could not be told apart any more".into());
            return Ok(Compared::Inconclusive);
        };
        // What else the target has is its own.
        differences.all.extend(self.contents.missing_libraries(&contents));
        if !differences.is_empty() {
            let mut differences = differences.words();
            if let Some(evicted) = self.evicted(&self.server.session().await?).await {
                differences.insert(0, evicted);
            }
            return Err(RedisError::Differs { server: self.server.name(), differences }.into());
        }
        if left_out > 0 {
            notes.push(format!(
                "{} had expired, or were about to within two minutes: not compared",
                match left_out {
                    1 => "1 key, or field of a hash,".to_owned(),
                    n => format!("{n} keys, or fields of hashes,"),
                }
            ));
        }
        let all: u64 = self.contents.databases().values().sum();
        if living == 0 && all > 0 {
            notes.push("nothing was left to compare".into());
            return Ok(Compared::Inconclusive);
        }
        Ok(Compared::Same)
    }

    /// Begins a dump of the target. One that keeps no files and offers no other way is set to offer it, until the dump has begun.
    async fn dump_back(&self, session: &Session) -> Result<Dump, RedisError> {
        let facts = Facts::ask(&self.server, session).await?;
        let reason = match form::choose(&facts, self.server.config.allow_server_dump) {
            Ok((form, _)) => return capture::request(&self.server, session, form).await,
            Err(reason) => reason,
        };
        let (NoForm::KeepsNone, Some(settings)) = (reason, facts.settings) else {
            return Err(RedisError::NoForm { server: self.server.name(), reason });
        };
        self.changed.store(true, Ordering::Relaxed);
        if let Err(error) = session.ask::<()>(&["CONFIG", "SET", DISKLESS_SETTING, "yes"]).await {
            // Only where it said no is it known not to be set.
            self.changed.store(!matches!(error, RedisError::Said { .. }), Ordering::Relaxed);
            return Err(error);
        }
        let dump = Dump::request(&self.server, Form::Diskless { repl_timeout: settings.repl_timeout }).await;
        self.change_back().await?;
        dump
    }

    /// The target's setting is as it was. On a connection of its own: waiting for a dump may have let the others be closed.
    async fn change_back(&self) -> Result<(), RedisError> {
        if self.changed.load(Ordering::Relaxed) {
            self.server.session().await?.ask::<()>(&["CONFIG", "SET", DISKLESS_SETTING, "no"]).await?;
            self.changed.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What is in the target after a failure, in words.
    async fn left(&self, taken: u64) -> String {
        let of: u64 = self.contents.databases().values().sum();
        let mut left = vec![format!("the target took at least {taken} of {}", report::count(of, "key"))];
        let looking = async {
            let session = self.server.session().await?;
            self.change_back().await?;
            let mut held = BTreeMap::new();
            for db in self.contents.databases().into_keys() {
                held.insert(db, keys_of(&session, db).await?);
            }
            Ok::<_, RedisError>(held)
        };
        let again = "where it holds keys, a new restore needs `--overwrite`";
        match tokio::time::timeout(MOST_LOOKING, looking).await {
            Ok(Ok(there)) => {
                left.push(format!("it now holds {}", held(&there)));
                if there.values().any(|keys| *keys > 0) {
                    left.push("to try again, use `--overwrite`".into());
                }
            }
            Ok(Err(error)) => left.push(format!("what it holds now is not known ({error}); {again}")),
            Err(_) => left.push(format!("what it holds now is not known, for it does not answer; {again}")),
        }
        match (self.contents.functions.is_empty(), self.overwrite) {
            (true, _) => {}
            (false, true) => left.push("its function libraries may have been replaced by those of the backup".into()),
            (false, false) => left.push("function libraries may have been loaded, which `--overwrite` replaces".into()),
        }
        if self.changed.load(Ordering::Relaxed) {
            left.push(format!("its `{DISKLESS_SETTING}` was set to yes, and is to be set back to no"));
        }
        left.join("; ")
    }
}

/// Would the server take a key and a library from this user, now? Commands that cannot succeed tell: the server looks at rights,
/// memory, disk, version and checksum before the value, and only a value that it cannot read is wrong with this one.
async fn may_write(server: &Server, rdb: u16, functions: bool) -> Result<(), RedisError> {
    // Our own connection: a server that does not know the command repeats the payload, which is no text, in its error.
    let mut wire = Wire::connect(server).await?;
    let what = "trying whether it takes keys";
    // A value of no type there is, otherwise whole (research A2).
    let mut payload = vec![u8::MAX];
    payload.extend_from_slice(&rdb.to_le_bytes());
    let mut crc = rdb::crc64();
    crc.update(&payload);
    payload.extend_from_slice(&crc.finalize().to_le_bytes());
    match wire.ask(what, &[b"RESTORE", PROBE.as_bytes(), b"0", &payload]).await {
        Err(RedisError::Said { text, .. }) if text.contains("Bad data format") || text.starts_with("BUSYKEY") => {}
        other => drop(other?),
    }
    if functions {
        match wire.ask("trying whether it takes functions", &[b"FUNCTION", b"LOAD", b""]).await {
            Err(RedisError::Said { text, .. }) if text.contains("library metadata") => {}
            other => drop(other?),
        }
    }
    Ok(())
}

/// No save of any kind goes on.
async fn wait_until_idle(session: &Session) -> Result<(), RedisError> {
    loop {
        let info = Info::read(session).await?;
        if !info.saving().in_progress && info.get("aof_rewrite_in_progress") != "1" {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Since 1970.
fn milliseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}
