//! PostgreSQL 14 to 18, logically: roles, definitions by `pg_dump`, rows by COPY with fingerprints.
//!
//! Way of the bytes: `capture` (snapshot, locks, definitions) with `rows` (rows out), and `restore` (plan) → `build` (a database under a temporary name,
//! compared with what was captured) → `swap` (renames in one transaction).

mod build;
mod capture;
mod catalog;
mod connect;
mod copy;
mod discard;
mod error;
mod inventory;
mod large_objects;
mod load;
mod pooler;
mod post_data;
mod proof;
mod restore;
mod roles;
mod rows;
mod selection;
mod sql;
mod swap;
mod throwaway;
mod tools;
mod words;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use self::{capture::SnapshotDetail, catalog::RelationKind, connect::Server, tools::Tools};
use super::{Captured, Finding, Fixed, Identity, Level, Proof, Restore, RestoreRequest, Source, SourceError, Wanted};
use crate::{
    config::PostgresConfig,
    pipeline::{SnapshotReader, SnapshotWriter},
    report,
};

pub use self::error::PostgresError;

/// The kind's name in configurations and manifests.
pub const KIND: &str = "postgres";

/// A PostgreSQL server.
pub struct PostgresSource {
    server: Server,
}

impl PostgresSource {
    /// The server that `config` describes.
    pub fn new(config: PostgresConfig, password: Option<SecretString>) -> Self {
        Self { server: Server::new(config, password) }
    }
}

/// The throwaway server that a snapshot needs: of its own major version.
pub(super) fn wanted(snapshot: &SnapshotReader) -> Result<Wanted, PostgresError> {
    let detail: SnapshotDetail = serde_json::from_value(snapshot.detail().clone())
        .map_err(|error| PostgresError::Detail { detail: error.to_string() })?;
    Ok(Wanted {
        version: (detail.major, 0, 0),
        shown: format!("PostgreSQL {}", detail.server_version),
        superuser: Some(detail.bootstrap),
        ..Wanted::default()
    })
}

#[async_trait]
impl Source for PostgresSource {
    async fn findings(&self, findings: &mut Vec<Finding>) -> Result<(), SourceError> {
        let mut add = |level, text: String| findings.push(Finding { level, text, hint: None });
        let server = &self.server;
        let session = server.connect(server.maintenance()).await?;
        let version = catalog::version(server, &session).await?;
        let role = catalog::role(&session).await?;
        add(Level::Ok, format!("{} is PostgreSQL {}, reached as role `{}`", server.name(), version.text, role.name));
        let tools = Tools::find(server.config.tools_dir.as_deref(), "pg_dump", version.major).await?;
        Tools::find(server.config.tools_dir.as_deref(), "pg_dumpall", version.major).await?;
        add(Level::Ok, format!("`pg_dump` {} fits the server", tools.version));
        if !role.reads_passwords {
            add(Level::Warning, format!("role `{}` cannot read passwords of roles: they are not backed up", role.name));
        }
        let listed = catalog::databases(&session).await?;
        let catalog::Chosen { names, closed, excluded } =
            catalog::choose(&listed, &server.config.databases, &server.config.exclude_databases, &server.name())?;
        for name in closed {
            add(Level::Warning, format!("database `{name}` accepts no connections and is not backed up"));
        }
        for name in excluded {
            add(Level::Warning, format!("database `{name}` is left out by `exclude_databases` and is not backed up"));
        }
        let is_standby = catalog::is_standby(&session).await?;
        let (mut holds, mut seen) = (0, Vec::new());
        for name in &names {
            let session = server.connect(name).await?;
            let mut relations = catalog::relations(&session).await?;
            selection::leave_out(&server.config, is_standby, &mut relations);
            if let Some((table, by)) = catalog::needed_of_left_out(&session, &relations).await? {
                return Err(PostgresError::LeftOut { database: name.clone(), table, by }.into());
            }
            for what in selection::uncovered(name, &relations) {
                add(Level::Warning, format!("{what}: not backed up"));
            }
            let unreadable: Vec<String> = relations
                .iter()
                .filter(|relation| relation.must_be_readable() && !relation.readable)
                .map(catalog::Relation::shown)
                .chain(large_objects::unreadable(&session).await?)
                .collect();
            if !unreadable.is_empty() {
                let total = unreadable.len();
                let names = unreadable.into_iter().take(5).collect();
                return Err(PostgresError::Unreadable { role: role.name, database: name.clone(), names, total }.into());
            }
            let timeout = format!("SET lock_timeout = '{}ms'", server.config.lock_timeout.as_millis());
            session.batch_execute(&timeout).await.map_err(error::query("setting the lock timeout"))?;
            catalog::measure(&session, &mut relations).await?;
            let of_kind = |kind| relations.iter().filter(|relation| relation.kind == kind).count() as u64;
            let large_objects = large_objects::count(&session).await?;
            holds += of_kind(RelationKind::Table) + large_objects;
            let size = relations.iter().map(|relation| relation.size).sum();
            let text = format!(
                "database `{name}`: {}, {}, {}, {} on disk",
                report::count(of_kind(RelationKind::Table), "table"),
                report::count(of_kind(RelationKind::Sequence), "sequence"),
                report::count(large_objects, "large object"),
                report::bytes(size)
            );
            add(Level::Ok, text);
            seen.push(relations);
        }
        selection::all_fit(&server.config, seen.iter().map(Vec::as_slice))?;
        match holds {
            0 => Err(PostgresError::Empty { server: server.name(), databases: names }.into()),
            _ => Ok(()),
        }
    }

    async fn capture(&self, into: &SnapshotWriter, fixed: Fixed) -> Result<Captured, SourceError> {
        capture::capture(&self.server, into, fixed).await
    }

    async fn identity(&self) -> Result<Identity, SourceError> {
        Ok(throwaway::identity(&self.server).await?)
    }

    async fn claim(&self, others: &[Identity]) -> Result<(), SourceError> {
        throwaway::claim(&self.server, others).await
    }

    async fn prove(&self, snapshot: &SnapshotReader, cancel: &CancellationToken) -> Result<Proof, SourceError> {
        proof::prove(&self.server, snapshot, cancel).await
    }

    async fn release(&self) -> Result<(), SourceError> {
        Ok(throwaway::release(&self.server).await?)
    }

    async fn plan_restore(
        &self,
        snapshot: SnapshotReader,
        request: &RestoreRequest,
    ) -> Result<Box<dyn Restore>, SourceError> {
        Ok(Box::new(restore::plan(&self.server, snapshot, request).await?))
    }
}
