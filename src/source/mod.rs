//! Servers to protect. Every kind answers the same few questions ([`Source`]), and nothing outside this module knows how.
//!
//! A source never sees a repository: what it captures goes through the pipeline's writers, what it restores comes from its readers.

mod blocking;
mod error;
pub mod nats;
pub mod postgres;
pub mod redis;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use self::error::{Cause, SourceError};
use crate::{
    config::{ConfigError, NamePattern, SourceSettings},
    pipeline::{Cut, SnapshotReader, SnapshotWriter},
};

/// How a finding of [`Source::check`] is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with something to know.
    Warning,
    /// A backup would fail.
    Problem,
}

/// One line of `doctor`.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// How to take it.
    pub level: Level,
    /// What was found.
    pub text: String,
    /// The next step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Told once, when the last instant of a snapshot is fixed: what must be cut after it may then be. Dropping it says that it never
/// will be.
#[derive(Debug)]
pub struct Fixed(oneshot::Sender<()>);

impl Fixed {
    /// One, and what hears of it: an error there says that it was dropped.
    pub fn pair() -> (Self, oneshot::Receiver<()>) {
        let (told, hears) = oneshot::channel();
        (Self(told), hears)
    }

    /// Every instant of the snapshot is fixed.
    pub fn now(self) {
        // Where nobody waits for it any more, the run is over.
        let _ = self.0.send(());
    }
}

/// A server that can be backed up and restored into.
#[async_trait]
pub trait Source: Send + Sync {
    /// Looks at everything a backup needs and touches nothing: reachable? privileges? versions? what is not covered? Adds what it
    /// finds to `findings`.
    ///
    /// # Errors
    /// What keeps it from looking further: one more finding, and a problem.
    async fn findings(&self, findings: &mut Vec<Finding>) -> Result<(), SourceError>;

    /// All of [`Source::findings`], its error too.
    async fn check(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Err(error) = self.findings(&mut findings).await {
            findings.push(Finding { level: Level::Problem, text: error.to_string(), hint: error.hint() });
        }
        findings
    }

    /// Takes a snapshot: fixes its instant, says so by `fixed`, and sends everything into the pipeline.
    ///
    /// A server that sends its snapshot unasked from the cut on is not asked before there is a writer for it
    /// ([`SnapshotWriter::artifact`] waits for one). What waits for `fixed` waits with nothing held, so whoever waits for a writer
    /// before it has said so only waits for transfers that go on by themselves.
    ///
    /// # Errors
    /// Whatever kept it from being complete, by name. An artifact that was not finished is not part of the snapshot.
    async fn capture(&self, into: &SnapshotWriter, fixed: Fixed) -> Result<Captured, SourceError>;

    /// Who this server is: compared with every source's before anything is written into a throwaway one.
    ///
    /// # Errors
    /// A server that cannot be asked.
    async fn identity(&self) -> Result<Identity, SourceError>;

    /// Takes this server for a proof: only one that holds nothing, or what a killed proof left, which goes. Says so by
    /// [`SourceError::Refused`] where it is `others`' server or their replica, a replica of anything, or in use.
    ///
    /// # Errors
    /// The refusal; a server that cannot be looked at.
    async fn claim(&self, others: &[Identity]) -> Result<(), SourceError>;

    /// Fills this server, which was claimed, with the snapshot, from the repository alone, and compares what it then holds with what
    /// was captured. **Whatever it holds is gone.** Ends early when `cancel` is.
    ///
    /// # Errors
    /// Damaged parts, a server that does not take them, or the place of the proof: [`SourceError::cause`] tells these apart.
    async fn prove(&self, snapshot: &SnapshotReader, cancel: &CancellationToken) -> Result<Proof, SourceError>;

    /// Empties this server after a proof, so that it can be claimed again.
    ///
    /// # Errors
    /// A server that cannot be reached.
    async fn release(&self) -> Result<(), SourceError>;

    /// Looks at the target and says what a restore of `snapshot` would do. Touches nothing.
    ///
    /// # Errors
    /// A target that cannot be looked at, or a request that makes no sense.
    async fn plan_restore(
        &self,
        snapshot: SnapshotReader,
        request: &RestoreRequest,
    ) -> Result<Box<dyn Restore>, SourceError>;
}

/// What a source has to say of a snapshot it transferred.
#[derive(Debug)]
pub struct Captured {
    /// Its instant, or instants.
    pub cut: Cut,
    /// What it needs to know to restore it.
    pub detail: Value,
    /// What was left out, in words.
    pub uncovered: Vec<String>,
    /// What was asked for and could not be captured while the rest was, in words with the reason. With any the snapshot is partial.
    pub failed: Vec<String>,
    /// The next step after that.
    pub hint: Option<String>,
    /// What to know of it, in words.
    pub notes: Vec<String>,
    /// What it is and holds, in words, for whoever looks at it.
    pub about: Vec<String>,
    /// The marks of its server, as [`Identity`] has them: a proof is never made there.
    pub server: Vec<String>,
    /// It holds nothing: there was nothing to capture, or all of it is in `failed`.
    pub empty: bool,
}

/// Who a server is: two with a mark in common are the same, or hold the same data, as a replica does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The server, as a person writes it.
    pub shown: String,
    /// Such as `system identifier 7428…`, `run id …`, `server id …`: words that name what they are.
    pub marks: Vec<String>,
}

impl Identity {
    /// What both have in common, if they are the same.
    pub fn shares<'a>(&'a self, other: &Self) -> Option<&'a str> {
        self.marks.iter().find(|mark| other.marks.contains(mark)).map(String::as_str)
    }
}

/// The throwaway server that a snapshot needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The version of the server that was captured.
    pub version: (u32, u32, u32),
    /// Product and version, for messages.
    pub shown: String,
    /// About how much room it needs on a disk, in bytes.
    pub bytes: u64,
    /// PostgreSQL: the name of the first superuser.
    pub superuser: Option<String>,
    /// PostgreSQL: where the client's programs are; absent: the usual places.
    pub tools_dir: Option<PathBuf>,
    /// Redis: how many databases it must have.
    pub databases: u64,
}

/// What a snapshot of that kind needs to be proved.
///
/// # Errors
/// A snapshot that says nothing usable of its server.
pub fn wanted(kind: &str, snapshot: &SnapshotReader) -> Result<Wanted, SourceError> {
    let mut wanted = match kind {
        postgres::KIND => postgres::wanted(snapshot)?,
        redis::KIND => redis::wanted(snapshot)?,
        _ => nats::wanted(snapshot)?,
    };
    wanted.bytes = snapshot.artifacts().iter().map(|artifact| artifact.raw).sum();
    Ok(wanted)
}

/// One thing that was compared and is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Same {
    /// Its name: a table, a database of Redis, a stream.
    pub name: String,
    /// Its rows, keys or messages.
    pub rows: u64,
    /// Their bytes, where they are counted.
    pub bytes: u64,
}

/// One thing that is not as it was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name: a table, a constraint, a key, a stream.
    pub object: String,
    /// How it differs, in words that may follow its name.
    pub what: String,
}

/// What a throwaway server made of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// The server, such as `PostgreSQL 15.18`.
    pub server: String,
    /// Everything that is the same.
    pub same: Vec<Same>,
    /// Everything that is not; nothing where the snapshot is what was captured.
    pub differences: Vec<Difference>,
    /// What nobody can compare, in words: with any, and no difference, nothing is proved.
    pub not_comparable: Vec<String>,
    /// What to know, in words.
    pub notes: Vec<String>,
    /// How long the restore took, without the comparison.
    pub restored: Duration,
}

/// What a person asked of a restore.
#[derive(Clone, Debug, Default)]
pub struct RestoreRequest {
    /// Databases to restore, each under a name of its own; all under their own names where this is empty.
    pub databases: Vec<(String, String)>,
    /// Of which tables to restore the rows, as patterns of `schema.table`; all where this is empty.
    pub tables: Vec<NamePattern>,
    /// Replace what is there.
    pub overwrite: bool,
}

/// Why a restore must not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// What stands in the way.
    pub what: String,
    /// The next step.
    pub hint: String,
}

/// What a restore would do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RestorePlan {
    /// The target, as a person writes it.
    pub target: String,
    /// What will be done, in order.
    pub steps: Vec<String>,
    /// What to know beforehand.
    pub notes: Vec<String>,
    /// Why it must not run; a plan with any is not carried out.
    pub refusals: Vec<Refusal>,
    /// Bytes that will be restored.
    pub raw: u64,
}

/// How a restored thing compares to what was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compared {
    /// The fingerprints are equal.
    Same,
    /// It could not be found out. Notes say why.
    Inconclusive,
}

/// One restored thing with its proof.
#[derive(Clone, Debug, Serialize)]
pub struct RestoredItem {
    /// Its name in the target.
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The comparison of fingerprints.
    pub compared: Compared,
}

/// What a restore did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Restored {
    /// What the items are: `table`, `database`.
    pub unit: &'static str,
    /// Everything that was restored and compared.
    pub items: Vec<RestoredItem>,
    /// What to know afterwards, such as the command that drops what was kept.
    pub notes: Vec<String>,
}

/// A planned restore.
#[async_trait]
pub trait Restore: Send {
    /// What it would do.
    fn plan(&self) -> &RestorePlan;

    /// Does it. Ends early, with its own half removed, when `cancel` is.
    ///
    /// # Errors
    /// Whatever went wrong, with what is in the target now.
    async fn execute(self: Box<Self>, cancel: &CancellationToken) -> Result<Restored, SourceError>;
}

/// Reads environment variables.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The source that `config` describes, with its secrets read.
///
/// # Errors
/// A secret that cannot be read.
pub fn open(settings: &SourceSettings, env: Env<'_>) -> Result<Arc<dyn Source>, ConfigError> {
    let password = settings.password().read(env)?;
    Ok(match settings {
        SourceSettings::Postgres(settings) => Arc::new(postgres::PostgresSource::new(settings.clone(), password)),
        SourceSettings::Redis(settings) => Arc::new(redis::RedisSource::new(settings.clone(), password)),
        SourceSettings::Nats(settings) => Arc::new(nats::NatsSource::new(settings.clone(), password)),
    })
}
