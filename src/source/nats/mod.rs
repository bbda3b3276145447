//! NATS JetStream 2.9 to 2.15: one server, and the streams of one account with their consumers.
//!
//! Way of the bytes: `inventory` (which streams) → `snapshot` (the exchange with the server) → `archive` (decompressed, walked, counted by
//! `tally`) → `capture` (into the pipeline). Back: `plan`, `load` (the exchange) and `restore`; `compare` takes a stream back and says
//! whether it is what was captured; `proof` does all of that with a throwaway server, and asks whether the manifest still tells what it told
//! (`told`).

pub mod archive;
mod capture;
mod compare;
mod error;
mod inventory;
mod load;
mod plan;
mod proof;
pub mod ranges;
mod restore;
mod server;
mod snapshot;
pub mod tally;
mod throwaway;
mod told;

use async_trait::async_trait;
use secrecy::SecretString;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use self::{
    inventory::Inventory,
    server::{Server, Version},
    tally::Tally,
};
use super::{Captured, Finding, Fixed, Identity, Level, Proof, Restore, RestoreRequest, Source, SourceError, Wanted};
use crate::{
    config::NatsConfig,
    pipeline::{Fingerprint, Plain, SnapshotReader, SnapshotWriter},
    report,
};

pub use self::error::NatsError;

/// The kind's name in configurations and manifests.
pub const KIND: &str = "nats";

/// A stream that nobody has.
const NOWHERE: &str = "altlas-backup-probe-of-permissions";

/// A NATS server.
pub struct NatsSource {
    server: Server,
}

impl NatsSource {
    /// The server that `config` describes; the secret is its user's password or a token.
    pub fn new(config: NatsConfig, secret: Option<SecretString>) -> Self {
        Self { server: Server::new(config, secret) }
    }

    async fn look(&self, findings: &mut Vec<Finding>) -> Result<(), NatsError> {
        let server = &self.server;
        let mut add = |level, text: String| findings.push(Finding { level, text, hint: None });
        let connection = server.connect().await?;
        add(Level::Ok, format!("{} is NATS {}, reached {}", server.name(), connection.version, server.login()));
        // Large streams need it, small ones do not: better to hear of it now.
        let what = "acknowledging chunks of a snapshot ($JS.SNAPSHOT.ACK.>)";
        connection.may_publish(what, "$JS.SNAPSHOT.ACK.probe.probe.0.0".into()).await?;
        let inventory = Inventory::take(&connection, &server.config.streams).await?;
        // Of a stream that is nowhere: whoever may ask hears that it is not there.
        for (what, subject) in [
            ("asking for a snapshot", "STREAM.SNAPSHOT"),
            ("looking at a stream", "STREAM.INFO"),
            ("listing consumers", "CONSUMER.LIST"),
        ] {
            let body = serde_json::json!({"deliver_subject": connection.client.new_inbox()});
            let body = if subject == "STREAM.SNAPSHOT" { body } else { Value::Null };
            match connection.ask(what, &format!("{subject}.{NOWHERE}"), &body).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        add(Level::Ok, "the user may list streams, take snapshots and acknowledge them".into());
        for warning in inventory::warnings(connection.version) {
            add(Level::Warning, warning);
        }
        for left_out in inventory.uncovered {
            add(Level::Warning, format!("not covered: {left_out}"));
        }
        let sum = |of: fn(&inventory::Found) -> u64| inventory.chosen.iter().map(of).sum::<u64>();
        let streams = report::count(inventory.chosen.len() as u64, "stream");
        let (messages, consumers) =
            (report::count(sum(|s| s.messages), "message"), report::count(sum(|s| s.consumers), "consumer"));
        let level = if inventory.chosen.is_empty() { Level::Problem } else { Level::Ok };
        add(level, format!("{streams}, {messages} in {}, {consumers}", report::bytes(sum(|s| s.bytes))));
        let problem = |inventory::Unavailable { what, hint }| Finding { level: Level::Problem, text: what, hint };
        findings.extend(inventory.failed.into_iter().map(problem));
        Ok(())
    }
}

/// Counts a stored archive again, for a verification of content.
pub struct Recount {
    reading: compare::Reading<Plain, Tally>,
}

impl Recount {
    /// Counts the archive at this path among a snapshot's artifacts, under the seed of its epoch.
    pub fn new(seed: u64, path: &str) -> Self {
        let stream = path.strip_prefix(inventory::FOLDER).unwrap_or(path);
        Self { reading: compare::Reading::begin(stream, Tally::new(seed)) }
    }

    /// Takes the next part. Where it cannot be counted, [`Recount::finish`] says so.
    pub async fn update(&self, part: Plain) {
        self.reading.feed(part).await;
    }

    /// The fingerprint of its messages.
    ///
    /// # Errors
    /// Why it is no whole archive, in words that follow its name.
    pub async fn finish(self) -> Result<Fingerprint, String> {
        Ok(self.reading.finish().await.map_err(|error| error.to_string())?.finish().counts.all)
    }
}

/// The throwaway server that a snapshot needs: no older than its own.
pub(super) fn wanted(snapshot: &SnapshotReader) -> Result<Wanted, SourceError> {
    let (detail, _) = plan::stored(snapshot)?;
    let version =
        Version::parse(&detail.server).map_or((0, 0, 0), |version| (version.major, version.minor, version.patch));
    Ok(Wanted { version, shown: format!("NATS {}", detail.server), ..Wanted::default() })
}

#[async_trait]
impl Source for NatsSource {
    async fn findings(&self, findings: &mut Vec<Finding>) -> Result<(), SourceError> {
        Ok(self.look(findings).await?)
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
        Ok(throwaway::release(&self.server).await?)
    }

    async fn plan_restore(
        &self,
        snapshot: SnapshotReader,
        request: &RestoreRequest,
    ) -> Result<Box<dyn Restore>, SourceError> {
        Ok(Box::new(plan::plan(&self.server, snapshot, request).await?))
    }
}
