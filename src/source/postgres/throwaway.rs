//! A throwaway server: who it is, and whether it may be emptied.
//!
//! One that was claimed has a database of a name that nobody else gives ([`MARKER`]); its comment tells the roles that a proof made. Only what
//! a proof made is ever dropped: databases by their names, and these roles. A server that has anything else is somebody's.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::{
    catalog,
    connect::{Server, Session},
    discard,
    error::{PostgresError, query},
    sql,
};
use crate::{
    report,
    source::{Identity, Refusal, SourceError},
};

/// A database of a throwaway server that was empty when it was claimed.
const MARKER: &str = "altlas_backup_throwaway";
/// How the names of a proof's databases begin; a number follows.
const BUILT: &str = "altlas_throwaway_";
/// A proof holds this advisory lock in the maintenance database as long as it lasts.
const LOCK: i64 = 0x616c_746c_6173;
/// Whoever is connected for so long uses the server: a look at its health is shorter.
const LINGERS: Duration = Duration::from_secs(2);
/// A server looks every ten seconds whether the other end of a session is there: until then those of a killed proof may last.
const ENDS: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(250);

/// The name of a proof's database.
pub(super) fn built(number: usize) -> String {
    format!("{BUILT}{number}")
}

fn is_built(database: &str) -> bool {
    database.strip_prefix(BUILT).is_some_and(|number| number.parse::<u32>().is_ok())
}

/// The marks of the server behind a session.
pub(super) async fn marks(session: &Session) -> Result<Vec<String>, PostgresError> {
    Ok(vec![format!("system identifier {}", catalog::system_identifier(session).await?)])
}

pub(super) async fn identity(server: &Server) -> Result<Identity, PostgresError> {
    let session = server.connect(server.maintenance()).await?;
    Ok(Identity { shown: server.name(), marks: marks(&session).await? })
}

fn refused(server: &Server, what: String) -> SourceError {
    let hint = "give the verification a server that is nobody's, and empty".to_owned();
    SourceError::Refused { refusals: vec![Refusal { what: format!("{} {what}", server.name()), hint }] }
}

/// What is found on a server that is to be a throwaway one.
#[derive(Clone, Debug, Default)]
struct Found {
    identity: Identity,
    /// It replays what another one wrote.
    replica: bool,
    /// The role that we are there, where it is no superuser.
    limited: Option<String>,
    /// A proof has claimed it.
    marked: bool,
    /// A proof goes on.
    locked: bool,
    /// Sessions of others, in words.
    sessions: Vec<String>,
    /// What a server that was never used does not have, but for what a proof made, in words.
    holds: Vec<String>,
}

/// May this server be emptied of what a proof made? If not, why: words that follow its name.
fn decide(found: &Found, others: &[Identity]) -> Result<(), String> {
    for other in others {
        if let Some(mark) = found.identity.shares(other) {
            return Err(format!("is source {} or a replica of it ({mark})", other.shown));
        }
    }
    if found.replica {
        return Err("is a replica".into());
    }
    if let Some(role) = &found.limited {
        return Err(format!("does not let `{role}` do all: it is no superuser"));
    }
    if found.locked {
        return Err("is being filled by another verification".into());
    }
    if !found.sessions.is_empty() {
        let sessions = report::count(found.sessions.len() as u64, "session");
        return Err(format!("is in use: others have {sessions} on it ({})", report::list(&found.sessions, 3)));
    }
    match found.holds.first() {
        Some(_) => Err(format!("holds {}: it is in use", report::list(&found.holds, 3))),
        None => Ok(()),
    }
}

pub(super) async fn claim(server: &Server, others: &[Identity]) -> Result<(), SourceError> {
    let session = server.connect(server.maintenance()).await?;
    let found = look(server, &session).await?;
    decide(&found, others).map_err(|what| refused(server, what))?;
    if found.marked {
        return Ok(empty(server, &session).await?);
    }
    let mark = format!("CREATE DATABASE {MARKER} TEMPLATE template0");
    session.batch_execute(&mark).await.map_err(query("marking the throwaway server"))?;
    Ok(())
}

async fn look(server: &Server, session: &Session) -> Result<Found, PostgresError> {
    let row = session
        .query_one(
            "SELECT pg_catalog.pg_is_in_recovery(), \
             (SELECT CASE WHEN NOT rolsuper THEN rolname::text END FROM pg_catalog.pg_roles WHERE rolname = current_user), \
             EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1)",
            &[&MARKER],
        )
        .await
        .map_err(query("looking at the throwaway server"))?;
    let (replica, limited, marked): (bool, Option<String>, bool) = (row.get(0), row.get(1), row.get(2));
    let identity = Identity { shown: server.name(), marks: marks(session).await? };
    let mut found = Found { identity, replica, limited, marked, ..Found::default() };
    // Of what else it has, such a server need not tell us, nor is it ours to ask.
    if !found.replica && found.limited.is_none() {
        found.locked = is_locked(session, marked).await?;
        if !found.locked {
            found.sessions = lingering(session, marked).await?;
            found.holds = holds(server, session, marked).await?;
        }
    }
    Ok(found)
}

/// Sessions of others that are there for a while; not those in databases of a proof, which go with them.
async fn lingering(session: &Session, marked: bool) -> Result<Vec<String>, PostgresError> {
    let began = Instant::now();
    let patience = if marked { ENDS } else { LINGERS };
    let mut stays: Option<BTreeSet<(i32, String)>> = None;
    loop {
        let rows = session
            .query(
                "SELECT pid, pg_catalog.concat_ws(' ', nullif(application_name, ''), usename::text, host(client_addr)) \
                 FROM pg_catalog.pg_stat_activity WHERE pid <> pg_catalog.pg_backend_pid() \
                 AND backend_type IN ('client backend', 'walsender') AND NOT ($1 AND coalesce(datname ~ $2, false))",
                &[&marked, &format!("^{BUILT}[0-9]+$")],
            )
            .await
            .map_err(query("looking who uses the throwaway server"))?;
        let there: BTreeSet<(i32, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let left: BTreeSet<_> = match stays {
            Some(before) => before.intersection(&there).cloned().collect(),
            None => there,
        };
        if left.is_empty() || began.elapsed() >= patience {
            return Ok(left.into_iter().map(|(_, who)| who).collect());
        }
        stays = Some(left);
        tokio::time::sleep(LOOK).await;
    }
}

/// Does a proof go on? One that was killed has its session for a little longer.
async fn is_locked(session: &Session, marked: bool) -> Result<bool, PostgresError> {
    let began = Instant::now();
    while marked && !lock(session).await? {
        if began.elapsed() >= ENDS {
            return Ok(true);
        }
        tokio::time::sleep(LOOK).await;
    }
    unlock(session).await?;
    Ok(false)
}

async fn lock(session: &Session) -> Result<bool, PostgresError> {
    let row = session.query_one("SELECT pg_catalog.pg_try_advisory_lock($1)", &[&LOCK]).await;
    row.map(|row| row.get(0)).map_err(query("asking whether a proof goes on"))
}

async fn unlock(session: &Session) -> Result<(), PostgresError> {
    session
        .batch_execute("SELECT pg_catalog.pg_advisory_unlock_all()")
        .await
        .map_err(query("asking whether a proof goes on"))
}

/// Takes a claimed server for the proof that this session is of; it lasts as long as the session. Remembers which roles that will make.
///
/// # Errors
/// A refusal where it was not claimed, or another proof goes on.
pub(super) async fn begin(server: &Server, session: &Session, makes: &[String]) -> Result<(), SourceError> {
    if !lock(session).await? {
        return Err(refused(server, "is being filled by another verification".into()));
    }
    let Some(mut roles) = remembered(session).await? else {
        return Err(refused(
            server,
            "was not claimed for a proof, or another verification has used it meanwhile".into(),
        ));
    };
    roles.extend(makes.iter().cloned());
    let roles = serde_json::Value::from(roles.into_iter().collect::<Vec<String>>()).to_string();
    let comment = format!("COMMENT ON DATABASE {MARKER} IS {}", sql::literal(&roles));
    Ok(session.batch_execute(&comment).await.map_err(query("marking the throwaway server"))?)
}

/// Roles that proofs have made, or were about to; none where the server is not claimed.
async fn remembered(session: &Session) -> Result<Option<BTreeSet<String>>, PostgresError> {
    let row = session
        .query_opt(
            "SELECT pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database WHERE datname = $1",
            &[&MARKER],
        )
        .await
        .map_err(query("reading the throwaway server's mark"))?;
    Ok(row.map(|row| {
        let comment: Option<String> = row.get(0);
        comment.and_then(|comment| serde_json::from_str(&comment).ok()).unwrap_or_default()
    }))
}

/// What a server that was never used does not have, in words; not what proofs have made of a marked one.
async fn holds(server: &Server, session: &Session, marked: bool) -> Result<Vec<String>, PostgresError> {
    let mut holds = Vec::new();
    let databases = databases(session).await?;
    holds.extend(databases.iter().filter(|name| !(marked && is_built(name))).map(|name| format!("database `{name}`")));
    let ours = remembered(session).await?.unwrap_or_default();
    let roles = roles(session).await?;
    holds.extend(roles.iter().filter(|name| !ours.contains(*name)).map(|name| format!("role `{name}`")));
    let rows = session
        .query(
            "SELECT pg_catalog.format('tablespace `%s`', spcname) FROM pg_catalog.pg_tablespace \
               WHERE spcname NOT IN ('pg_default', 'pg_global') \
             UNION ALL SELECT pg_catalog.format('replication slot `%s`', slot_name) FROM pg_catalog.pg_replication_slots \
             UNION ALL SELECT pg_catalog.format('subscription `%s`', subname) FROM pg_catalog.pg_subscription s \
               WHERE NOT ($1 AND EXISTS (SELECT FROM pg_catalog.pg_database d WHERE d.oid = s.subdbid AND d.datname ~ $2)) \
             UNION ALL SELECT pg_catalog.format('prepared transaction `%s`', gid) FROM pg_catalog.pg_prepared_xacts \
             ORDER BY 1",
            &[&marked, &format!("^{BUILT}[0-9]+$")],
        )
        .await
        .map_err(query("listing what the throwaway server has"))?;
    holds.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    for database in ["postgres", "template1"] {
        let inside = match server.connect(database).await {
            Ok(inside) => inside,
            Err(PostgresError::NoSuchDatabase { .. }) => continue,
            Err(error) => return Err(error),
        };
        let objects = catalog::properties(&inside).await?.objects;
        if objects > 0 {
            holds.push(format!("{} in database `{database}`", report::count(objects, "object")));
        }
    }
    Ok(holds)
}

/// Databases that a new server does not have, but for the mark.
async fn databases(session: &Session) -> Result<Vec<String>, PostgresError> {
    let rows = session
        .query(
            "SELECT datname::text FROM pg_catalog.pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1', $1) ORDER BY 1",
            &[&MARKER],
        )
        .await
        .map_err(query("listing the throwaway server's databases"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Roles that a new server does not have, but for ours.
async fn roles(session: &Session) -> Result<Vec<String>, PostgresError> {
    let rows = session
        .query(
            "SELECT rolname::text FROM pg_catalog.pg_roles \
             WHERE rolname !~ '^pg_' AND oid <> 10 AND rolname <> current_user ORDER BY 1",
            &[],
        )
        .await
        .map_err(query("listing the throwaway server's roles"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Drops what proofs have made of a marked server, and nothing else. The mark stays.
async fn empty(server: &Server, session: &Session) -> Result<(), PostgresError> {
    let Some(ours) = remembered(session).await? else { return Ok(()) };
    for database in databases(session).await?.iter().filter(|name| is_built(name)) {
        discard::discard(server, session, database).await?;
    }
    for role in roles(session).await?.iter().filter(|name| ours.contains(*name)) {
        // What was granted to it in the databases that stay.
        let name = sql::ident(role);
        let statement = format!("DROP OWNED BY {name}; DROP ROLE {name}");
        session.batch_execute(&statement).await.map_err(query(format!("dropping role `{role}`")))?;
    }
    let forget = format!("COMMENT ON DATABASE {MARKER} IS NULL");
    session.batch_execute(&forget).await.map_err(query("marking the throwaway server"))
}

pub(super) async fn release(server: &Server) -> Result<(), PostgresError> {
    let session = server.connect(server.maintenance()).await?;
    empty(server, &session).await?;
    let unmark = format!("DROP DATABASE IF EXISTS {MARKER}");
    session.batch_execute(&unmark).await.map_err(query("giving the throwaway server back"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_is_nobodys_is_emptied() {
        let identity = Identity { shown: "scratch:5432".into(), marks: vec!["system identifier 1".into()] };
        let found = Found { identity, ..Found::default() };
        let others = [Identity { shown: "database:5432".into(), marks: vec!["system identifier 2".into()] }];
        assert_eq!(decide(&found, &others), Ok(()));
        assert_eq!(decide(&Found { marked: true, ..found.clone() }, &others), Ok(()));
        type Change = fn(&mut Found);
        let refused: &[(Change, &str)] = &[
            (|found| found.identity.marks = vec!["system identifier 2".into()], "is source database:5432 or a replica"),
            (|found| found.replica = true, "is a replica"),
            (|found| found.limited = Some("app".into()), "does not let `app` do all"),
            (|found| found.locked = true, "another verification"),
            (|found| found.sessions = vec!["app".into()], "others have 1 session on it (app)"),
            (|found| found.holds = vec!["database `shop`".into()], "holds database `shop`: it is in use"),
            (|found| (found.marked, found.holds) = (true, vec!["role `app`".into()]), "holds role `app`"),
        ];
        for (change, words) in refused {
            let mut found = found.clone();
            change(&mut found);
            let what = decide(&found, &others).unwrap_err();
            assert!(what.contains(words), "{what}");
        }
    }

    #[test]
    fn databases_of_proofs_have_names_of_their_own() {
        assert!(is_built(&built(0)) && is_built(&built(17)));
        for name in ["altlas", MARKER, "altlas_throwaway_", "altlas_throwaway_x", "altlas_throwaway_1_before_x"] {
            assert!(!is_built(name), "{name}");
        }
    }
}
