//! Dropping a database that we have made, whatever keeps a server from it.

use super::{
    connect::{Server, Session},
    error::{PostgresError, query},
    sql,
};

/// Drops a database, if it is there, with its sessions and subscriptions.
pub(super) async fn discard(server: &Server, session: &Session, database: &str) -> Result<(), PostgresError> {
    let failed = || query(format!("dropping database `{database}`"));
    let looked = session
        .query_opt(
            "SELECT datistemplate, EXISTS (SELECT FROM pg_catalog.pg_subscription s WHERE s.subdbid = d.oid) \
             FROM pg_catalog.pg_database d WHERE datname = $1",
            &[&database],
        )
        .await
        .map_err(failed())?;
    let Some(row) = looked else { return Ok(()) };
    let (is_template, has_subscriptions): (bool, bool) = (row.get(0), row.get(1));
    if has_subscriptions {
        drop_subscriptions(server, database).await?;
    }
    let name = sql::ident(database);
    if is_template {
        session.batch_execute(&format!("ALTER DATABASE {name} IS_TEMPLATE false")).await.map_err(failed())?;
    }
    session.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await.map_err(failed())
}

/// A database with subscriptions cannot be dropped. Theirs is another server's slot, which is nothing to us: without its name nobody is asked to
/// drop it.
async fn drop_subscriptions(server: &Server, database: &str) -> Result<(), PostgresError> {
    let inside = server.connect(database).await?;
    let failed = || query(format!("dropping the subscriptions of database `{database}`"));
    let rows = inside
        .query(
            "SELECT subname::text FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid \
             WHERE d.datname = pg_catalog.current_database()",
            &[],
        )
        .await
        .map_err(failed())?;
    for row in rows {
        let name = sql::ident(row.get(0));
        for statement in [
            format!("ALTER SUBSCRIPTION {name} DISABLE"),
            format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)"),
            format!("DROP SUBSCRIPTION {name}"),
        ] {
            inside.batch_execute(&statement).await.map_err(failed())?;
        }
    }
    Ok(())
}
