//! The swap: renames in one transaction, so that a process killed at any instant leaves either the old state or the new one.
//!
//! RENAME wants nobody connected. It first takes an exclusive lock on the database, behind which new connections wait, and then
//! gives those that are there five seconds to leave (PostgreSQL source, `RenameDatabase` and `CountOtherDBBackends`). A second
//! connection ends them in that time, also those of a client that reconnects in a loop. `ALLOW_CONNECTIONS false` is set inside
//! the same transaction: set before it, a crash would leave the old database there and closed.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{
    connect::{Server, Session},
    error::{PostgresError, query},
    sql,
};

/// Transactions that are tried: one fails where a backend does not end within the server's five seconds.
const ATTEMPTS: u32 = 3;
/// Pause between two rounds of ending sessions.
const ROUND: Duration = Duration::from_millis(25);
/// How long the last round may take once the renaming is done.
const LAST_ROUND: Duration = Duration::from_secs(5);

/// One database to be put in place.
#[derive(Clone, Debug)]
pub(super) struct Swap {
    pub(super) temporary: String,
    pub(super) to: String,
    /// The new name of the database that is there now, if there is one.
    pub(super) keep_as: Option<String>,
}

/// Puts all of them in place, or none. After an error [`settle`] says which it was.
pub(super) async fn swap(server: &Server, renamer: &Session, swaps: &[Swap]) -> Result<(), PostgresError> {
    if swaps.is_empty() {
        return Ok(());
    }
    let ender = server.connect(&renamer.database).await?;
    let names: Vec<&str> = swaps.iter().flat_map(|swap| [swap.to.as_str(), swap.temporary.as_str()]).collect();
    let mut result = Ok(());
    for _ in 0..ATTEMPTS {
        let done = CancellationToken::new();
        let mut ending = std::pin::pin!(end_sessions(&ender, &names, &done));
        result = tokio::select! {
            renamed = rename(renamer, swaps) => {
                // Its last round is waited for: one still under way would end the sessions of clients that come after us.
                done.cancel();
                if !matches!(tokio::time::timeout(LAST_ROUND, ending).await, Ok(Ok(()))) {
                    tracing::debug!("the last round of ending sessions did not end well");
                }
                renamed
            }
            failed = &mut ending => failed,
        };
        let Err(error) = &result else { break };
        tracing::info!("the renaming did not go through: {error}");
        if renamer.batch_execute("ROLLBACK").await.is_err() {
            break;
        }
    }
    result
}

/// Did the renaming go through? Only it takes the temporary names away.
///
/// A COMMIT whose answer was lost may still be under way: the look comes after the end of the session that sent it.
pub(super) async fn settle(
    server: &Server,
    maintenance: &str,
    renamer: &Backend,
    swaps: &[Swap],
) -> Result<bool, PostgresError> {
    let session = server.connect(maintenance).await?;
    renamer.end(&session).await?;
    let names: Vec<&str> = swaps.iter().map(|swap| swap.temporary.as_str()).collect();
    let row = session
        .query_one("SELECT count(*) FROM pg_catalog.pg_database WHERE datname = ANY($1::text[])", &[&names])
        .await
        .map_err(query("looking whether the renaming went through"))?;
    Ok(!names.is_empty() && row.get::<_, i64>(0) == 0)
}

/// A session as the server knows it: what it was told last may still be under way when its connection is gone.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    pid: i32,
    /// A pid may come back; with the time of its start it does not.
    started: String,
}

impl Backend {
    pub(super) async fn of(session: &Session) -> Result<Self, PostgresError> {
        let row = session
            .query_one(
                "SELECT pid, extract(epoch FROM backend_start)::text FROM pg_catalog.pg_stat_activity \
                 WHERE pid = pg_catalog.pg_backend_pid()",
                &[],
            )
            .await
            .map_err(query("looking at our own session"))?;
        Ok(Self { pid: row.get(0), started: row.get(1) })
    }

    /// Ends it and waits for that. Afterwards nothing it was told changes anything any more.
    pub(super) async fn end(&self, session: &Session) -> Result<(), PostgresError> {
        loop {
            let gone = session
                .query(
                    "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
                     WHERE pid = $1 AND extract(epoch FROM backend_start)::text = $2",
                    &[&self.pid, &self.started],
                )
                .await
                .map_err(query("ending our own session"))?
                .is_empty();
            if gone {
                return Ok(());
            }
            tokio::time::sleep(ROUND).await;
        }
    }
}

async fn rename(session: &Session, swaps: &[Swap]) -> Result<(), PostgresError> {
    let mut statements = Vec::new();
    for swap in swaps {
        let (temporary, to) = (sql::ident(&swap.temporary), sql::ident(&swap.to));
        if let Some(kept) = &swap.keep_as {
            let kept = sql::ident(kept);
            statements.push((format!("ALTER DATABASE {to} RENAME TO {kept}"), &swap.to));
            statements.push((format!("ALTER DATABASE {kept} WITH ALLOW_CONNECTIONS false"), &swap.to));
        }
        statements.push((format!("ALTER DATABASE {temporary} RENAME TO {to}"), &swap.to));
    }
    session.batch_execute("BEGIN").await.map_err(query("beginning the renaming"))?;
    for (statement, database) in statements {
        session
            .batch_execute(&statement)
            .await
            .map_err(query(format!("putting database `{database}` in place ({statement})")))?;
    }
    session.batch_execute("COMMIT").await.map_err(query("committing the renaming"))
}

/// Ends every session on these databases, again and again, until `done`. An autovacuum worker, which is nobody's and only a
/// superuser may end, is ended by RENAME itself.
async fn end_sessions(session: &Session, databases: &[&str], done: &CancellationToken) -> Result<(), PostgresError> {
    loop {
        session
            .query(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
                 WHERE datname = ANY($1::text[]) AND usesysid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()",
                &[&databases],
            )
            .await
            .map_err(query("ending the sessions of other clients"))?;
        if tokio::time::timeout(ROUND, done.cancelled()).await.is_ok() {
            return Ok(());
        }
    }
}
