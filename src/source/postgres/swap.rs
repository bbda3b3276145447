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

/// One database to be put in place.
#[derive(Clone, Debug)]
pub(super) struct Swap {
    pub(super) temporary: String,
    pub(super) to: String,
    /// The new name of the database that is there now, if there is one.
    pub(super) keep_as: Option<String>,
}

/// Puts all of them in place, or none.
pub(super) async fn swap(server: &Server, maintenance: &str, swaps: &[Swap]) -> Result<(), PostgresError> {
    if swaps.is_empty() {
        return Ok(());
    }
    let renamer = server.connect(maintenance).await?;
    let ender = server.connect(maintenance).await?;
    let names: Vec<&str> = swaps.iter().flat_map(|swap| [swap.to.as_str(), swap.temporary.as_str()]).collect();
    let mut result = Ok(());
    for _ in 0..ATTEMPTS {
        let done = CancellationToken::new();
        let mut ending = std::pin::pin!(end_sessions(&ender, &names, &done));
        result = tokio::select! {
            renamed = rename(&renamer, swaps) => {
                // Its last round is waited for: one still under way would end the sessions of clients that come after us.
                done.cancel();
                if let Err(error) = ending.await {
                    tracing::debug!("after the renaming: {error}");
                }
                renamed
            }
            failed = &mut ending => failed,
        };
        match &result {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::info!("the renaming did not go through: {error}");
                // A COMMIT whose answer was lost is settled by looking, not by guessing.
                if went_through(server, maintenance, swaps).await? {
                    return Ok(());
                }
                if renamer.batch_execute("ROLLBACK").await.is_err() {
                    return result;
                }
            }
        }
    }
    result
}

/// Is none of the temporary names there any more? Only the renaming takes them away.
async fn went_through(server: &Server, maintenance: &str, swaps: &[Swap]) -> Result<bool, PostgresError> {
    let session = server.connect(maintenance).await?;
    let names: Vec<&str> = swaps.iter().map(|swap| swap.temporary.as_str()).collect();
    let row = session
        .query_one("SELECT count(*) FROM pg_catalog.pg_database WHERE datname = ANY($1::text[])", &[&names])
        .await
        .map_err(query("looking whether the renaming went through"))?;
    Ok(row.get::<_, i64>(0) == 0)
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

/// Ends every session on these databases, again and again, until `done`.
async fn end_sessions(session: &Session, databases: &[&str], done: &CancellationToken) -> Result<(), PostgresError> {
    loop {
        session
            .query(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
                 WHERE datname = ANY($1::text[]) AND pid <> pg_catalog.pg_backend_pid()",
                &[&databases],
            )
            .await
            .map_err(query("ending the sessions of other clients"))?;
        if tokio::time::timeout(ROUND, done.cancelled()).await.is_ok() {
            return Ok(());
        }
    }
}
