//! Redis 6.2 to 8.2: a server of its own, or a replica of one.
//!
//! Way of the bytes: `form` (which dump harms nobody) → `dump` (the exchange, as a replica does it) → `capture` (into the pipeline, with
//! `rdb` walking along, `tally` counting and `sketch` keeping names for differences, which `compare` tells). Back: `load` and `restore` (by `RESTORE` into a running server), `file` (the RDB file
//! itself), `replica` (a throwaway server replicates from us).

mod capture;
mod compare;
mod dump;
mod error;
mod facts;
mod file;
mod form;
mod load;
mod plan;
pub mod rdb;
mod replica;
mod restore;
mod server;
mod sketch;
mod tally;
mod throwaway;
mod walk;
mod wire;

use std::path::Path;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use self::{dump::Dump, facts::Facts, server::Server, tally::Tally, walk::Walk};
use super::{Captured, Finding, Fixed, Identity, Level, Proof, Restore, RestoreRequest, Source, SourceError, Wanted};
use crate::{
    config::RedisConfig,
    pipeline::{Fingerprint, Plain, SnapshotReader, SnapshotWriter},
    report,
};

pub use self::{error::RedisError, form::NoForm};

/// The kind's name in configurations and manifests.
pub const KIND: &str = "redis";

/// A Redis server.
pub struct RedisSource {
    server: Server,
}

impl RedisSource {
    /// The server that `config` describes.
    pub fn new(config: RedisConfig, password: Option<SecretString>) -> Self {
        Self { server: Server::new(config, password) }
    }
}

/// The throwaway server that a snapshot needs: no older than its own.
pub(super) fn wanted(snapshot: &SnapshotReader) -> Result<Wanted, SourceError> {
    let detail = plan::detail(snapshot)?;
    let version = detail.server.split_whitespace().find_map(facts::Version::parse);
    let databases = detail.contents.as_ref().and_then(|contents| contents.databases().into_keys().max());
    Ok(Wanted {
        version: version.map_or((0, 0, 0), |version| (version.0, version.1, version.2)),
        shown: detail.server,
        databases: databases.map_or(0, |last| last + 1),
        ..Wanted::default()
    })
}

#[async_trait]
impl Source for RedisSource {
    async fn findings(&self, findings: &mut Vec<Finding>) -> Result<(), SourceError> {
        let server = &self.server;
        let session = server.session().await?;
        let facts = Facts::ask(server, &session).await?;
        let user = server.config.endpoint.user.as_deref().unwrap_or("default");
        let mut add = |level, text: String| findings.push(Finding { level, text, hint: None });
        add(Level::Ok, format!("{} is {}, reached as user `{user}`", server.name(), facts.name()));
        if facts.role == "slave" {
            let link = if facts.master_link { "connected to it" } else { "which it has lost" };
            let level = if facts.master_link { Level::Ok } else { Level::Problem };
            add(level, format!("it is a replica of {}, {link}", facts.master));
        }
        let reason = |reason| RedisError::NoForm { server: server.name(), reason };
        let (form, why) = form::choose(&facts, server.config.allow_server_dump).map_err(reason)?;
        add(Level::Ok, format!("dumps come in the {} form: {why}", form.name()));
        Dump::probe(server).await?;
        add(Level::Ok, "the user may take dumps (PSYNC, REPLCONF)".into());
        if facts.saving.is_some() {
            let keys = report::count(facts.keys.values().sum(), "key");
            let databases = report::count(facts.keys.len() as u64, "database");
            let level = if facts.keys.is_empty() { Level::Problem } else { Level::Ok };
            add(level, format!("{keys} in {databases}"));
        }
        Ok(())
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
        tokio::select! {
            proof = throwaway::prove(&self.server, snapshot) => proof,
            () = cancel.cancelled() => Err(SourceError::Interrupted { left: None }),
        }
    }

    async fn release(&self) -> Result<(), SourceError> {
        throwaway::release(&self.server).await
    }

    async fn plan_restore(
        &self,
        snapshot: SnapshotReader,
        request: &RestoreRequest,
    ) -> Result<Box<dyn Restore>, SourceError> {
        Ok(Box::new(plan::plan(&self.server, snapshot, request).await?))
    }
}

/// Plans to write a snapshot's RDB file to `path`, for a server to load when it starts. Touches nothing.
///
/// # Errors
/// A snapshot that is none of Redis.
pub fn plan_file(snapshot: SnapshotReader, path: &Path, overwrite: bool) -> Result<Box<dyn Restore>, SourceError> {
    Ok(Box::new(file::plan(snapshot, path, overwrite)?))
}

/// Counts a stored RDB file again, for a verification of content.
pub struct Recount {
    walk: Walk<Tally>,
}

impl Recount {
    /// Counts under the seed of the file's epoch.
    pub fn new(seed: u64) -> Self {
        Self { walk: Walk::begin(seed, Tally::new(None)) }
    }

    /// Takes the next part. Where it cannot be counted, [`Recount::finish`] says so.
    pub async fn update(&self, part: Plain) {
        self.walk.feed(part).await;
    }

    /// The fingerprint of the file.
    ///
    /// # Errors
    /// Why it is no whole RDB file, in words that follow its name.
    pub async fn finish(self) -> Result<Fingerprint, String> {
        let walked = self.walk.finish().await.map_err(|error| error.to_string())?;
        let length = walked.length;
        Ok(walked.visitor.finish().0.fingerprint(length))
    }
}
