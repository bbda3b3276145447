//! What a restore into a running server would do, and what stands in its way. Touches nothing.

use std::{collections::BTreeMap, sync::atomic::AtomicBool};

use super::{
    capture::{Detail, PATH},
    error::RedisError,
    facts::Facts,
    form::{self, NoForm},
    load::CONNECTIONS,
    restore::{DISKLESS_SETTING, RedisRestore},
    server::{Server, Session},
    tally::Contents,
};
use crate::{
    pipeline::SnapshotReader,
    report,
    source::{Refusal, RestorePlan, RestoreRequest, SourceError},
};

/// The longest string that a server takes in a command where it does not say (`proto-max-bulk-len`).
const MOST_BULK: u64 = 512 * 1024 * 1024;
/// What `RESTORE` adds to a value: type, version and CRC64.
const PAYLOAD: u64 = 11;

pub(super) fn detail(snapshot: &SnapshotReader) -> Result<Detail, RedisError> {
    serde_json::from_value(snapshot.detail().clone()).map_err(|error| RedisError::Detail { detail: error.to_string() })
}

/// What was found in the target.
struct Target {
    name: String,
    facts: Facts,
    /// Keys in databases that would be restored, of those that have any.
    keys: BTreeMap<u64, u64>,
    /// Databases that it does not have, with its words.
    without: BTreeMap<u64, String>,
    libraries: usize,
    most_bulk: u64,
}

impl Target {
    async fn look(server: &Server, contents: &Contents) -> Result<Self, RedisError> {
        let session = server.session().await?;
        let facts = Facts::ask(server, &session).await?;
        let mut target = Self {
            name: server.name(),
            facts,
            keys: BTreeMap::new(),
            without: BTreeMap::new(),
            libraries: 0,
            most_bulk: most_bulk(&session).await?,
        };
        for db in contents.databases().into_keys() {
            match keys_of(&session, db).await {
                Ok(0) => {}
                Ok(keys) => drop(target.keys.insert(db, keys)),
                Err(RedisError::Said { text, .. }) if text.contains("out of range") => {
                    target.without.insert(db, text);
                }
                Err(error) => return Err(error),
            }
        }
        if !contents.functions.is_empty() {
            target.libraries = libraries(&session).await?;
        }
        Ok(target)
    }
}

pub(super) async fn keys_of(session: &Session, db: u64) -> Result<u64, RedisError> {
    session.ask::<()>(&["SELECT", &db.to_string()]).await?;
    session.ask(&["DBSIZE"]).await
}

async fn libraries(session: &Session) -> Result<usize, RedisError> {
    match session.ask::<Vec<redis::Value>>(&["FUNCTION", "LIST"]).await {
        Ok(libraries) => Ok(libraries.len()),
        // Not allowed, or a server without functions: loading them says so.
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

pub(super) async fn plan(
    server: &Server,
    snapshot: SnapshotReader,
    request: &RestoreRequest,
) -> Result<RedisRestore, SourceError> {
    let detail = detail(&snapshot)?;
    let raw = snapshot.artifact(PATH)?.raw;
    let contents = detail.contents.clone().unwrap_or_default();
    let target = Target::look(server, &contents).await?;
    let refusals = refusals(&detail, &target, request, raw);
    let steps = steps(&contents, &target, request.overwrite, server.config.allow_server_dump);
    let plan = RestorePlan {
        target: server.config.endpoint.to_string(),
        steps,
        notes: notes(&contents, &target, raw, server.config.allow_server_dump),
        refusals,
        raw,
    };
    Ok(RedisRestore {
        server: server.clone(),
        snapshot,
        rdb: rdb(&detail),
        contents,
        facts: target.facts,
        overwrite: request.overwrite,
        plan,
        begun: AtomicBool::new(false),
        changed: AtomicBool::new(false),
    })
}

/// The file's version, where its content is known.
fn rdb(detail: &Detail) -> Option<u16> {
    detail.rdb.parse().ok().filter(|_| detail.contents.is_some())
}

fn refusals(detail: &Detail, target: &Target, request: &RestoreRequest, raw: u64) -> Vec<Refusal> {
    let Target { name, facts, .. } = target;
    let contents = detail.contents.as_ref();
    let mut refusals = Vec::new();
    let mut refuse = |what: String, hint: &str| refusals.push(Refusal { what, hint: hint.to_owned() });
    if !request.tables.is_empty() {
        refuse(
            "`--table` chooses tables of PostgreSQL, and this is Redis".into(),
            "name the sources to restore with `--source`, or leave `--table` out",
        );
    }
    if !request.databases.is_empty() {
        refuse(
            "`--database` chooses databases of PostgreSQL, and this is Redis".into(),
            "name the sources to restore with `--source`, or leave `--database` out",
        );
    }
    if facts.role == "slave" {
        refuse(
            format!("{name} is a replica of {}", facts.master),
            "restore into its master, or run REPLICAOF NO ONE on it first",
        );
    }
    match (rdb(detail), facts.version.map(|version| version.rdb())) {
        (None, _) => refuse(
            format!("the dump is of RDB version {}, which this program can only write to a file", detail.rdb),
            "`--to-rdb FILE` writes it for a server that knows it",
        ),
        (Some(rdb), Some(newest)) if u32::from(rdb) > newest => refuse(
            format!(
                "the backup is of {} (RDB version {rdb}), and {name} is {}, which reads RDB versions up to {newest}",
                detail.server,
                facts.name()
            ),
            "restore into a server that is at least as new as the source",
        ),
        _ => {}
    }
    for (db, text) in &target.without {
        let what = format!("{name} has no db {db} to restore into: {text}");
        refuse(what, "raise `databases` in the target's configuration");
    }
    if !target.keys.is_empty() && !request.overwrite {
        refuse(
            format!("{name} holds {}", held(&target.keys)),
            "`--overwrite` flushes exactly the databases that are restored; `--target` names another server",
        );
    }
    if target.libraries > 0 && !request.overwrite {
        refuse(
            format!("{name} holds function libraries ({})", target.libraries),
            "`--overwrite` replaces those of the same names",
        );
    }
    let longest = contents.iter().flat_map(|contents| &contents.large).map(|large| large.length + PAYLOAD).max();
    if let Some(longest) = longest.filter(|length| *length > target.most_bulk) {
        refuse(
            format!(
                "a value of {} is longer than {name} takes in one command (`proto-max-bulk-len` {})",
                report::bytes(longest),
                report::bytes(target.most_bulk)
            ),
            "raise `proto-max-bulk-len` of the target, or restore by `--to-rdb FILE`",
        );
    }
    if facts.max_memory > 0 && facts.max_memory < raw {
        refuse(
            format!(
                "{name} takes {} of data at most (`maxmemory`), and the dump is {}",
                report::bytes(facts.max_memory),
                report::bytes(raw)
            ),
            "raise `maxmemory` of the target",
        );
    }
    refusals
}

fn steps(contents: &Contents, target: &Target, overwrite: bool, allow_server_dump: bool) -> Vec<String> {
    let facts = &target.facts;
    let mut steps = Vec::new();
    if !target.keys.is_empty() && overwrite {
        steps.push("read the whole backup and check it".to_owned());
        steps.push(format!("flush {}: {}", which(&target.keys), held(&target.keys)));
    }
    match contents.functions.len() {
        0 => {}
        1 => steps.push("load 1 function library".into()),
        n => steps.push(format!("load {n} function libraries")),
    }
    steps.push(format!("restore {} on {CONNECTIONS} connections", held(&contents.databases())));
    if let Some((rdb, aof)) = facts.keeps().filter(|keeps| *keeps != (false, false)) {
        let saves: Vec<&str> = [(rdb, "BGSAVE"), (aof, "BGREWRITEAOF")]
            .into_iter()
            .filter(|(does, _)| *does)
            .map(|(_, name)| name)
            .collect();
        steps.push(format!("save to disk ({}), and wait for it", saves.join(", ")));
    }
    match form::choose(&after_save(facts), allow_server_dump) {
        Ok((form, _)) => {
            steps.push(format!("take a dump back ({}) and compare the fingerprints of every key", form.name()));
        }
        Err(NoForm::KeepsNone) => steps.push(format!(
            "take a dump back (with `{DISKLESS_SETTING} yes` until it has begun) and compare the fingerprints of every key"
        )),
        Err(_) => {}
    }
    steps
}

/// A server that saves RDB files will have saved one when it is asked for a dump.
fn after_save(facts: &Facts) -> Facts {
    let mut facts = facts.clone();
    let saves = facts.settings.as_ref().is_some_and(|settings| !settings.save.is_empty());
    if let Some(saving) = facts.saving.as_mut().filter(|_| saves) {
        (saving.last_ok, saving.saved_since_start) = (true, true);
    }
    facts
}

fn notes(contents: &Contents, target: &Target, raw: u64, allow_server_dump: bool) -> Vec<String> {
    let facts = &target.facts;
    let databases = contents.databases();
    let mut notes = Vec::new();
    let others: BTreeMap<u64, u64> =
        facts.keys.iter().filter(|(db, _)| !databases.contains_key(db)).map(|(db, keys)| (*db, *keys)).collect();
    if !others.is_empty() {
        notes.push(format!("the backup has nothing of {}: what the target holds there stays", which(&others)));
    }
    let expiring: u64 = contents.keys.iter().map(|counted| counted.expiring.keys).sum();
    if expiring > 0 {
        notes.push(format!(
            "{} have a time to live; those whose time is over are not brought back ({} at the time of the dump)",
            report::count(expiring, "key"),
            contents.expired
        ));
    }
    match facts.keeps() {
        Some((false, false)) => notes.push("the target keeps nothing on disk: its restart loses what is restored".into()),
        Some(_) => {}
        None => notes.push(
            "whether the target keeps its data on disk is not known (CONFIG GET may not be read), so no save is forced: run BGSAVE or \
             BGREWRITEAOF afterwards, or a restart may lose what is restored"
                .into(),
        ),
    }
    if let Err(reason) = form::choose(&after_save(facts), allow_server_dump)
        && reason != NoForm::KeepsNone
    {
        notes.push(format!("the result cannot be compared: {reason}"));
    }
    if facts.max_memory > 0 {
        notes.push(format!(
            "the target's `maxmemory` is {} (policy {}); the dump is {}, and takes more in memory",
            report::bytes(facts.max_memory),
            facts.eviction,
            report::bytes(raw)
        ));
    }
    if facts.replicas > 0 {
        notes.push(format!("the target has {}, which will follow", report::count(facts.replicas, "replica")));
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

/// `12 keys in db 0, 3 keys in db 4`.
pub(super) fn held(keys: &BTreeMap<u64, u64>) -> String {
    let each: Vec<String> =
        keys.iter().map(|(db, keys)| format!("{} in db {db}", report::count(*keys, "key"))).collect();
    report::list(&each, 16)
}

/// `db 0, db 3`.
fn which(databases: &BTreeMap<u64, u64>) -> String {
    report::list(&databases.keys().map(|db| format!("db {db}")).collect::<Vec<_>>(), 16)
}
