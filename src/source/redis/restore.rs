//! A restore into a running server: plan, `RESTORE` of every key, a save, and a dump that is taken back and compared.

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
    capture::{self, Detail, PATH},
    dump::Dump,
    error::RedisError,
    facts::{Facts, Info},
    form::{self, Form, NoForm},
    load::{self, CONNECTIONS},
    server::{Server, Session},
    tally::{ByMinute, Contents, Tally},
    walk::walk_artifact,
};
use crate::{
    pipeline::SnapshotReader,
    report,
    source::{Compared, Refusal, Restore, RestorePlan, RestoreRequest, Restored, RestoredItem, SourceError},
};

/// The longest string that a server takes in a command where it does not say (`proto-max-bulk-len`).
const MOST_BULK: u64 = 512 * 1024 * 1024;
/// How long a save to disk may take.
const MOST_SAVING: Duration = Duration::from_secs(6 * 3600);
/// What lets a server hand over its data without a file.
const DISKLESS_SETTING: &str = "repl-diskless-sync";
/// How often a save is looked at.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn detail(snapshot: &SnapshotReader) -> Result<Detail, RedisError> {
    serde_json::from_value(snapshot.detail().clone()).map_err(|error| RedisError::Detail { detail: error.to_string() })
}

/// A planned restore into a running server.
pub(super) struct RedisRestore {
    server: Server,
    snapshot: SnapshotReader,
    rdb: u16,
    contents: Contents,
    facts: Facts,
    /// Keys that are in the databases that will be restored.
    in_the_way: BTreeMap<u64, u64>,
    overwrite: bool,
    /// Did we change [`DISKLESS_SETTING`]?
    changed: AtomicBool,
    plan: RestorePlan,
}

pub(super) async fn plan(
    server: &Server,
    snapshot: SnapshotReader,
    request: &RestoreRequest,
) -> Result<RedisRestore, SourceError> {
    let detail = detail(&snapshot)?;
    let artifact = snapshot.artifact(PATH)?;
    let mut plan =
        RestorePlan { target: server.config.endpoint.to_string(), raw: artifact.raw, ..RestorePlan::default() };
    let mut refuse = |what: String, hint: &str| plan.refusals.push(Refusal { what, hint: hint.to_owned() });
    if !request.databases.is_empty() {
        refuse(
            "`--database` chooses databases of PostgreSQL, and this is Redis".into(),
            "name the sources to restore with `--source`, or leave `--database` out",
        );
    }
    let session = server.session().await?;
    let facts = Facts::ask(server, &session).await?;
    if facts.role == "slave" {
        refuse(
            format!("{} is a replica of {}", server.name(), facts.master),
            "restore into its master, or run REPLICAOF NO ONE on it first",
        );
    }
    let parsed: Option<u16> = detail.rdb.parse().ok().filter(|_| detail.contents.is_some());
    let newest = facts.version.map(|version| version.rdb());
    match (parsed, newest) {
        (None, _) => refuse(
            format!("the dump is of RDB version {}, which this program can only write to a file", detail.rdb),
            "`--to-rdb FILE` writes it for a server that knows it",
        ),
        (Some(rdb), Some(newest)) if u32::from(rdb) > newest => refuse(
            format!(
                "the backup is of {} (RDB version {rdb}), and {} is {}, which reads RDB versions up to {newest}",
                detail.server,
                server.name(),
                facts.name()
            ),
            "restore into a server that is at least as new as the source",
        ),
        _ => {}
    }
    let contents = detail.contents.unwrap_or_default();
    let databases = contents.databases();
    let mut in_the_way = BTreeMap::new();
    for db in databases.keys() {
        match keys_of(&session, *db).await {
            Ok(0) => {}
            Ok(keys) => {
                in_the_way.insert(*db, keys);
            }
            Err(RedisError::Said { text, .. }) if text.contains("out of range") => refuse(
                format!("{} has no db {db} to restore into: {text}", server.name()),
                "raise `databases` in the target's configuration",
            ),
            Err(error) => return Err(error.into()),
        }
    }
    let held = |keys: &BTreeMap<u64, u64>| {
        let each: Vec<String> =
            keys.iter().map(|(db, keys)| format!("{} in db {db}", report::count(*keys, "key"))).collect();
        report::list(&each, 16)
    };
    if !in_the_way.is_empty() && !request.overwrite {
        refuse(
            format!("{} holds {}", server.name(), held(&in_the_way)),
            "`--overwrite` flushes exactly the databases that are restored; `--target` names another server",
        );
    }
    let libraries = if contents.functions.is_empty() { 0 } else { libraries(&session).await? };
    if libraries > 0 && !request.overwrite {
        refuse(
            format!("{} holds {libraries} function libraries", server.name()),
            "`--overwrite` replaces those of the same names",
        );
    }
    let most = most_bulk(&session).await?;
    if let Some(longest) = contents.large.iter().map(|large| large.length + 11).max().filter(|length| *length > most) {
        refuse(
            format!(
                "a value of {} is longer than {} takes in one command (`proto-max-bulk-len` {})",
                report::bytes(longest),
                server.name(),
                report::bytes(most)
            ),
            "raise `proto-max-bulk-len` of the target, or restore by `--to-rdb FILE`",
        );
    }
    if !in_the_way.is_empty() && request.overwrite {
        plan.steps.push(format!("flush {}: {}", which(&in_the_way), held(&in_the_way)));
    }
    if !contents.functions.is_empty() {
        let n = contents.functions.len() as u64;
        plan.steps.push(format!(
            "load {}",
            if n == 1 { "1 function library".into() } else { format!("{n} function libraries") }
        ));
    }
    plan.steps.push(format!("restore {} on {CONNECTIONS} connections", held(&databases)));
    match facts.keeps() {
        (false, false) => {
            plan.notes.push("the target keeps nothing on disk: its restart loses what is restored".into())
        }
        (rdb, aof) => plan.steps.push(format!("save to disk ({}), and wait for it", saves(rdb, aof).join(", "))),
    }
    match form::choose(&after_save(&facts), server.config.allow_server_dump) {
        Ok((form, _)) => {
            plan.steps.push(format!("take a dump back ({}) and compare the fingerprints of every key", form.name()));
        }
        Err(NoForm::KeepsNone) => plan.steps.push(format!(
            "take a dump back ({DISKLESS_SETTING} yes for that time) and compare the fingerprints of every key"
        )),
        Err(reason) => plan.notes.push(format!("the result cannot be compared: {reason}")),
    }
    plan.notes.extend(notes(&contents, &facts, &databases, artifact.raw));
    let rdb = parsed.unwrap_or_default();
    Ok(RedisRestore {
        server: server.clone(),
        snapshot,
        rdb,
        contents,
        facts,
        in_the_way,
        overwrite: request.overwrite,
        changed: AtomicBool::new(false),
        plan,
    })
}

/// `db 0, db 3`.
fn which(databases: &BTreeMap<u64, u64>) -> String {
    report::list(&databases.keys().map(|db| format!("db {db}")).collect::<Vec<_>>(), 16)
}

fn saves(rdb: bool, aof: bool) -> Vec<&'static str> {
    [(rdb, "BGSAVE"), (aof, "BGREWRITEAOF")].into_iter().filter(|(does, _)| *does).map(|(_, name)| name).collect()
}

/// A server that saves RDB files will have saved one when it is asked for a dump.
fn after_save(facts: &Facts) -> Facts {
    let mut facts = facts.clone();
    if let Some(saving) = facts.saving.as_mut().filter(|_| facts.settings.as_ref().is_some_and(|s| !s.save.is_empty()))
    {
        (saving.last_ok, saving.saved_since_start) = (true, true);
    }
    facts
}

fn notes(contents: &Contents, facts: &Facts, databases: &BTreeMap<u64, u64>, raw: u64) -> Vec<String> {
    let mut notes = Vec::new();
    let others: BTreeMap<u64, u64> =
        facts.keys.iter().filter(|(db, _)| !databases.contains_key(db)).map(|(db, keys)| (*db, *keys)).collect();
    if !others.is_empty() {
        notes.push(format!("the backup has nothing of {}: what the target holds there stays", which(&others)));
    }
    let expiring: u64 = contents.keys.iter().map(|counted| counted.expiring.keys).sum();
    if expiring > 0 {
        notes.push(format!(
            "{} expire; those whose time is over are not brought back ({} at the time of the dump)",
            report::count(expiring, "key"),
            contents.expired
        ));
    }
    if facts.max_memory > 0 {
        notes.push(format!(
            "the target's `maxmemory` is {} (policy {}); the dump is {}, and takes more in memory",
            report::bytes(facts.max_memory),
            facts.eviction,
            report::bytes(raw)
        ));
    }
    for (module, keys) in &contents.module_keys {
        let keys = report::count(*keys, "key");
        notes.push(format!(
            "{keys} of module type `{module}`: the target needs that module; their content is not compared"
        ));
    }
    for module in &contents.module_data {
        notes.push(format!(
            "data of module `{module}` that belongs to no key is not restored; `--to-rdb FILE` brings it back"
        ));
    }
    if facts.version.is_none() {
        notes.push("INFO of the target may not be read: whether it is new enough is not known".into());
    }
    notes
}

async fn keys_of(session: &Session, db: u64) -> Result<u64, RedisError> {
    session.ask::<()>(&["SELECT", &db.to_string()]).await?;
    session.ask(&["DBSIZE"]).await
}

async fn libraries(session: &Session) -> Result<usize, RedisError> {
    match session.ask::<Vec<redis::Value>>(&["FUNCTION", "LIST"]).await {
        Ok(libraries) => Ok(libraries.len()),
        // Not allowed, or a server without functions: loading them then says so.
        Err(RedisError::Said { .. }) => Ok(0),
        Err(error) => Err(error),
    }
}

async fn most_bulk(session: &Session) -> Result<u64, RedisError> {
    match session.ask::<Vec<String>>(&["CONFIG", "GET", "proto-max-bulk-len"]).await {
        Ok(pair) => Ok(pair.get(1).and_then(|value| value.parse().ok()).unwrap_or(MOST_BULK)),
        Err(RedisError::Said { .. }) => Ok(MOST_BULK),
        Err(error) => Err(error),
    }
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
        let progress = self.snapshot.progress();
        if self.overwrite && !self.in_the_way.is_empty() {
            let session = self.server.session().await?;
            for db in self.in_the_way.keys() {
                progress.set_phase(format!("flushing db {db}"));
                session.ask::<()>(&["SELECT", &db.to_string()]).await?;
                session.ask::<()>(&["FLUSHDB"]).await?;
            }
        }
        progress.set_phase("restoring keys");
        let now = milliseconds(Timestamp::now());
        let (bytes, expected) = self.load(now, taken).await?;
        // One that had been idle all the while might have been closed.
        let session = self.server.session().await?;
        self.save(&session).await?;
        let mut restored = Restored { unit: "database", ..Restored::default() };
        let compared = self.compare(&session, now, &expected, &mut restored.notes).await?;
        for (db, keys) in self.contents.databases() {
            let bytes = bytes.get(&db).copied().unwrap_or(0);
            restored.items.push(RestoredItem { name: format!("db {db}"), rows: keys, bytes, compared });
        }
        Ok(restored)
    }

    /// Every key and library into the target. Gives bytes by database, and the sums of what was sent.
    async fn load(&self, now: u64, taken: &Arc<AtomicU64>) -> Result<(BTreeMap<u64, u64>, ByMinute), SourceError> {
        let progress = self.snapshot.progress().clone();
        let tally = Tally::new(Some(progress)).by_minute(now);
        let (loader, mut connections) =
            load::open(&self.server, self.rdb, &self.contents.large, self.overwrite, tally).await?;
        connections.taken = taken.clone();
        let artifact = self.snapshot.artifact(PATH)?;
        let walking = async {
            let mut loader = walk_artifact(&self.snapshot, artifact, loader, None).await?.visitor;
            // The last batch; on a thread, since it may have to wait.
            let flushed = tokio::task::spawn_blocking(move || loader.flush().map(|()| loader)).await;
            let loader = flushed.ok().and_then(Result::ok).ok_or_else(|| RedisError::Broken {
                server: self.server.name(),
                what: "restoring".into(),
                detail: "stopped".into(),
            })?;
            Ok::<_, SourceError>((loader.bytes, loader.tally.finish()))
        };
        // The target's refusal comes first: that the walk stopped is an echo of it.
        let (sent, walked) = tokio::join!(connections.run(), walking);
        match (sent, walked) {
            (Err(refused @ RedisError::Refused { .. }), _) => Err(refused.into()),
            (Err(broken), Ok(_)) => Err(broken.into()),
            (Err(broken), Err(SourceError::Redis(_))) => Err(broken.into()),
            (_, Err(error)) => Err(error),
            (Ok(()), Ok((bytes, (contents, by_minute)))) => {
                let differences = self.contents.differences(&contents);
                if !differences.is_empty() {
                    return Err(RedisError::NotCaptured { detail: report::list(&differences, 5) }.into());
                }
                let by_minute = by_minute.ok_or(RedisError::NotCaptured { detail: "nothing was counted".into() })?;
                Ok((bytes, by_minute))
            }
        }
    }

    /// What was restored is on the target's disk, where it keeps anything there.
    async fn save(&self, session: &Session) -> Result<(), RedisError> {
        let (rdb, aof) = self.facts.keeps();
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
    async fn compare(
        &self,
        session: &Session,
        now: u64,
        expected: &ByMinute,
        notes: &mut Vec<String>,
    ) -> Result<Compared, SourceError> {
        self.snapshot.progress().set_phase("comparing");
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
        let at = match session.ask::<(u64, u64)>(&["TIME"]).await {
            Ok((seconds, microseconds)) => seconds * 1000 + microseconds / 1000,
            Err(RedisError::Said { .. }) => milliseconds(Timestamp::now()),
            Err(error) => return Err(error.into()),
        };
        let taken = capture::count(dump, self.snapshot.fingerprint_seed(), Tally::new(None).by_minute(now)).await?;
        let Some((contents, Some(found))) = taken.tally.map(Tally::finish) else {
            notes
                .push(format!("the target's dump is of RDB version {}, which this program cannot read", taken.version));
            return Ok(Compared::Inconclusive);
        };
        let Some((mut differences, left_out)) = expected.differences(&found, &self.contents.databases(), at) else {
            notes.push("the restore took so long that keys that expire could not be told apart any more".into());
            return Ok(Compared::Inconclusive);
        };
        differences.extend(self.contents.missing_functions(&contents));
        if !differences.is_empty() {
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
        Ok(Compared::Same)
    }

    /// Begins a dump of the target. One that keeps no files and offers no other way is set to offer it, until the dump has begun.
    async fn dump_back(&self, session: &Session) -> Result<Dump, RedisError> {
        let facts = Facts::ask(&self.server, session).await?;
        let reason = match form::choose(&facts, self.server.config.allow_server_dump) {
            Ok((form, _)) => return Dump::request(&self.server, form).await,
            Err(reason) => reason,
        };
        let (NoForm::KeepsNone, Some(settings)) = (reason, facts.settings) else {
            return Err(RedisError::NoForm { server: self.server.name(), reason });
        };
        session.ask::<()>(&["CONFIG", "SET", DISKLESS_SETTING, "yes"]).await?;
        self.changed.store(true, Ordering::Relaxed);
        let dump = Dump::request(&self.server, Form::Diskless { repl_timeout: settings.repl_timeout }).await;
        self.change_back(session).await?;
        dump
    }

    /// The target's setting is as it was.
    async fn change_back(&self, session: &Session) -> Result<(), RedisError> {
        if self.changed.swap(false, Ordering::Relaxed) {
            session.ask::<()>(&["CONFIG", "SET", DISKLESS_SETTING, "no"]).await?;
        }
        Ok(())
    }

    /// What is in the target after a failure, in words.
    async fn left(&self, taken: u64) -> String {
        let mut left = Vec::new();
        if self.overwrite && !self.in_the_way.is_empty() {
            left.push(format!("{} had been flushed or were about to be", which(&self.in_the_way)));
        }
        let of: u64 = self.contents.databases().values().sum();
        left.push(format!("the target took {taken} of {}", report::count(of, "key")));
        let looking = async {
            let session = self.server.session().await?;
            self.change_back(&session).await?;
            let mut held = BTreeMap::new();
            for db in self.contents.databases().into_keys() {
                held.insert(db, keys_of(&session, db).await?);
            }
            Ok::<_, RedisError>(held)
        };
        match looking.await {
            Ok(held) => {
                let held: Vec<String> =
                    held.iter().map(|(db, keys)| format!("{} in db {db}", report::count(*keys, "key"))).collect();
                left.push(format!("it now holds {}", report::list(&held, 16)));
            }
            Err(error) => left.push(format!("what it holds now is not known ({error})")),
        }
        left.push("`--overwrite` starts over".into());
        left.join("; ")
    }
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
