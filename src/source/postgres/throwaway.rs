//! A throwaway server: who it is, and whether it may be emptied.

use super::{
    catalog,
    connect::{Server, Session},
    error::{PostgresError, query},
    sql,
};
use crate::source::{Identity, Refusal, SourceError};

/// A database of a throwaway server that was empty when it was claimed: whatever else is there is ours.
const MARKER: &str = "altlas_backup_throwaway";

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

pub(super) async fn claim(server: &Server, others: &[Identity]) -> Result<(), SourceError> {
    let session = server.connect(server.maintenance()).await?;
    let ours = Identity { shown: server.name(), marks: marks(&session).await? };
    for other in others {
        if let Some(mark) = ours.shares(other) {
            return Err(refused(server, format!("is source {} or a replica of it ({mark})", other.shown)));
        }
    }
    let row = session
        .query_one(
            "SELECT pg_catalog.pg_is_in_recovery(), \
             (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user), \
             (SELECT count(*) FROM pg_catalog.pg_database WHERE datname = $1), \
             (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE pid <> pg_catalog.pg_backend_pid() \
              AND backend_type = 'client backend')",
            &[&MARKER],
        )
        .await
        .map_err(query("looking at the throwaway server"))?;
    let (replica, superuser): (bool, bool) = (row.get(0), row.get(1));
    let (marked, sessions): (i64, i64) = (row.get(2), row.get(3));
    if replica {
        return Err(refused(server, "is a replica".into()));
    }
    if !superuser {
        return Err(refused(
            server,
            format!("does not let `{}` do all: it is no superuser", server.config.endpoint.user),
        ));
    }
    if sessions > 0 {
        return Err(refused(server, format!("is in use: others have {sessions} sessions on it")));
    }
    if marked > 0 {
        return Ok(empty(&session).await?);
    }
    if let Some(what) = holds(server, &session).await? {
        return Err(refused(server, format!("holds {what}: it is in use")));
    }
    let mark = format!("CREATE DATABASE {MARKER} TEMPLATE template0");
    session.batch_execute(&mark).await.map_err(query("marking the throwaway server"))?;
    Ok(())
}

/// What a server that was never used does not have, in words.
async fn holds(server: &Server, session: &Session) -> Result<Option<String>, PostgresError> {
    if let Some(database) = databases(session).await?.first() {
        return Ok(Some(format!("a database `{database}`")));
    }
    if let Some(role) = roles(session).await?.first() {
        return Ok(Some(format!("a role `{role}`")));
    }
    for database in ["postgres", "template1"] {
        let inside = server.connect(database).await?;
        let objects = catalog::properties(&inside).await?.objects;
        if objects > 0 {
            return Ok(Some(format!("{} in database `{database}`", crate::report::count(objects, "object"))));
        }
    }
    Ok(None)
}

/// Databases that a new server does not have.
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

/// Drops what a proof has made. The mark stays.
async fn empty(session: &Session) -> Result<(), PostgresError> {
    for database in databases(session).await? {
        let name = sql::ident(&database);
        for statement in
            [format!("ALTER DATABASE {name} IS_TEMPLATE false"), format!("DROP DATABASE {name} WITH (FORCE)")]
        {
            session.batch_execute(&statement).await.map_err(query(format!("dropping database `{database}`")))?;
        }
    }
    for role in roles(session).await? {
        // What was granted to it in the databases that stay.
        let name = sql::ident(&role);
        let statement = format!("DROP OWNED BY {name}; DROP ROLE {name}");
        session.batch_execute(&statement).await.map_err(query(format!("dropping role `{role}`")))?;
    }
    Ok(())
}

pub(super) async fn release(server: &Server) -> Result<(), PostgresError> {
    let session = server.connect(server.maintenance()).await?;
    empty(&session).await?;
    let unmark = format!("DROP DATABASE IF EXISTS {MARKER}");
    session.batch_execute(&unmark).await.map_err(query("giving the throwaway server back"))
}
