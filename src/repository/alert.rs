//! Records of alerts: what was told to whom, so that runs and daemons which know nothing of each other tell each change once.
//!
//! `alerts/<alert>.<subject>/<number>.json` is a change: from now on it is firing, or resolved. Changes of one alert are numbered, and a number
//! is taken by creating its object: of two that see the same change at once, one wins and tells it. (Where an S3 server ignores the
//! condition of the write, both may.) `<number>.<receiver>.<time>-<random>.json` beside it says how telling a receiver went.
//!
//! Both are clear text with a MAC under the newest epoch's key, and hold no more than what the receivers are told: configured source names,
//! ids, times and words for reasons. Nothing that is kept depends on them.

use std::{fmt, str::FromStr, sync::Arc};

use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    AlertJournal, BackupId, Epoch, EpochId, FORMAT_VERSION, Repository, RepositoryError, RepositoryId, Trust,
    error::must_exist,
    layout, open,
    seal::{self, Seal, Sealer},
    tool,
};
use crate::store::StoreErrorKind;

/// Records read at once.
const PARALLEL_READS: usize = 8;

/// What can be wrong. The names stand in repositories, and receivers' filters lean on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AlertKind {
    /// The newest attempt at backing a source up was no success.
    BackupFailed,
    /// The newest backup that is known to be good or bad is bad.
    VerificationFailed,
    /// Two verifications in a row could not find it out.
    VerificationInconclusive,
    /// A source was not backed up for too long.
    Late,
    /// No backup of a source was proved for too long.
    Unverified,
    /// A run ended with an error that no record in the repository tells.
    RunFailed,
}

impl AlertKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::BackupFailed,
        Self::VerificationFailed,
        Self::VerificationInconclusive,
        Self::Late,
        Self::Unverified,
        Self::RunFailed,
    ];

    /// How bad it is.
    pub fn severity(self) -> Severity {
        match self {
            Self::BackupFailed | Self::VerificationFailed | Self::Late | Self::RunFailed => Severity::Critical,
            Self::VerificationInconclusive | Self::Unverified => Severity::Warning,
        }
    }

    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BackupFailed => "backup-failed",
            Self::VerificationFailed => "verification-failed",
            Self::VerificationInconclusive => "verification-inconclusive",
            Self::Late => "late",
            Self::Unverified => "unverified",
            Self::RunFailed => "run-failed",
        }
    }
}

impl fmt::Display for AlertKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AlertKind {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(())
    }
}

/// One alert: what is wrong with whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AlertKey {
    /// What.
    pub alert: AlertKind,
    /// A source's name; of [`AlertKind::RunFailed`] the command.
    pub subject: String,
}

impl AlertKey {
    /// An alert.
    pub fn new(alert: AlertKind, subject: impl Into<String>) -> Self {
        Self { alert, subject: subject.into() }
    }

    /// The source, if it is about one.
    pub fn source(&self) -> Option<&str> {
        (self.alert != AlertKind::RunFailed).then_some(self.subject.as_str())
    }
}

impl fmt::Display for AlertKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source() {
            Some(source) => write!(f, "`{}` of source `{source}`", self.alert),
            None => write!(f, "`{}` of `altlas-backup {}`", self.alert, self.subject),
        }
    }
}

/// `backup-failed.database`: neither half has a dot.
impl FromStr for AlertKey {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (alert, subject) = text.split_once('.').ok_or(())?;
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_name = !subject.is_empty() && subject.bytes().all(letter);
        if is_name { Ok(Self::new(alert.parse()?, subject)) } else { Err(()) }
    }
}

/// Is it so, or no longer?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// Something is wrong.
    Firing,
    /// It is not wrong any more.
    Resolved,
}

impl AlertState {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Look at it when you are up.
    Warning,
    /// Somebody is to look at it now.
    Critical,
}

impl Severity {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What is said of an alert. It leaves the house: no word of it names anything inside of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Since when it is so, by the store's clock.
    pub since: Timestamp,
    /// A word for why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The backup that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// One line.
    pub summary: String,
    /// What is known, in sentences.
    pub description: String,
    /// The next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A change of an alert's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertChange {
    /// Repository format version.
    pub format: u32,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// The epoch whose key the MAC is under.
    pub epoch: EpochId,
    /// Program and version.
    pub tool: String,
    /// Which alert.
    #[serde(flatten)]
    pub key: AlertKey,
    /// Its place among the changes of this alert, from 1 on.
    pub number: u64,
    /// Random: who wrote this knows it again.
    pub claim: String,
    /// When it was written, by the store's clock.
    pub at: Timestamp,
    /// What it became.
    pub state: AlertState,
    /// The receivers that were configured then.
    pub to: Vec<String>,
    /// What is said of it.
    pub said: Said,
}

/// How telling a change to one receiver went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertTry {
    /// Repository format version.
    pub format: u32,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// The epoch whose key the MAC is under.
    pub epoch: EpochId,
    /// Program and version.
    pub tool: String,
    /// Which alert.
    #[serde(flatten)]
    pub key: AlertKey,
    /// Which change of it.
    pub number: u64,
    /// Random, part of its object's name.
    pub claim: String,
    /// The receiver.
    pub receiver: String,
    /// When, by the store's clock.
    pub at: Timestamp,
    /// How often it was tried since the last record.
    pub tries: u32,
    /// Why it was not told, in words without addresses and secrets; absent: it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlertRecord {
    /// A change.
    Change(AlertChange),
    /// A try at telling one.
    Try(AlertTry),
}

impl AlertRecord {
    /// The key of its object.
    pub(crate) fn object(&self) -> String {
        match self {
            Self::Change(change) => layout::alert_change(&change.key, change.number),
            Self::Try(tried) => layout::alert_try(&tried.key, tried.number, &tried.receiver, tried.at, &tried.claim),
        }
    }

    /// The epoch whose key its seal needs.
    pub(super) fn epoch(&self) -> &EpochId {
        match self {
            Self::Change(change) => &change.epoch,
            Self::Try(tried) => &tried.epoch,
        }
    }

    fn repository(&self) -> &RepositoryId {
        match self {
            Self::Change(change) => &change.repository,
            Self::Try(tried) => &tried.repository,
        }
    }
}

/// Only what says which key the seal needs.
#[derive(Deserialize)]
struct EpochOnly {
    epoch: EpochId,
}

/// What is written into records: which repository, under which key, when.
pub struct AlertWriter<'a> {
    repository: &'a Repository,
    epoch: Arc<Epoch>,
}

impl Repository {
    /// Everything that was told of alerts. What is not believed is only said in the log, and its number not used again.
    ///
    /// # Errors
    /// What the store says.
    pub async fn alerts(&self) -> Result<AlertJournal, RepositoryError> {
        let mut listed = Vec::new();
        self.store().list(layout::ALERTS, &mut |info| listed.push(info)).await?;
        let known = listed.into_iter().filter_map(|info| layout::alert_object(&info.key).map(|parts| (info, parts)));
        let reads: Vec<_> = known
            .map(|(info, parts)| async move {
                match self.read_alert(&info.key, parts.2).await {
                    Ok(record) => Ok(Ok(record)),
                    // A sweep may have removed it meanwhile, too.
                    Err(error @ (RepositoryError::Trust(_) | RepositoryError::Locked(_))) => {
                        tracing::warn!("the record of an alert is not believed: {error}");
                        Ok(Err((info, parts)))
                    }
                    Err(error) => Err(error),
                }
            })
            .collect();
        let read: Vec<_> = stream::iter(reads).buffer_unordered(PARALLEL_READS).try_collect().await?;
        let mut journal = AlertJournal::default();
        for one in read {
            match one {
                Ok(record) => journal.add(record),
                Err((info, (key, number, _))) => journal.add_strange(info.key, key, number, info.last_modified),
            }
        }
        Ok(journal)
    }

    async fn read_alert(&self, key: &str, is_try: bool) -> Result<AlertRecord, RepositoryError> {
        let bytes = self.store().get(key).await.map_err(must_exist(key))?;
        let told: EpochOnly = seal::peek(&bytes).map_err(|error| Trust::damaged(key, error))?;
        let epoch = self.epoch(&told.epoch).await?;
        let how = Seal::Mac(epoch.keys.mac_key());
        let record = match is_try {
            false => AlertRecord::Change(open::decode(key, &bytes, how)?),
            true => AlertRecord::Try(open::decode(key, &bytes, how)?),
        };
        if *record.repository() != self.mark().repository || record.object() != key {
            return Err(Trust::damaged(key, format!("is the record {}", record.object())).into());
        }
        Ok(record)
    }

    /// Opens the newest epoch, to write records of alerts; nothing where there is none yet.
    ///
    /// # Errors
    /// What the store says, what is wrong with the epoch, or why it cannot be opened here.
    pub async fn alert_writer(&self, now: Timestamp) -> Result<Option<AlertWriter<'_>>, RepositoryError> {
        let records = self.epoch_records().await?;
        let Some(newest) = records.newest(now) else { return Ok(None) };
        Ok(Some(AlertWriter { repository: self, epoch: self.epoch(&newest.epoch).await? }))
    }
}

impl AlertWriter<'_> {
    /// Stores that an alert changed, as its change of that number; nothing where somebody else was faster.
    ///
    /// # Errors
    /// What the store says.
    pub async fn change(
        &self,
        key: AlertKey,
        number: u64,
        state: AlertState,
        to: Vec<String>,
        said: Said,
    ) -> Result<Option<AlertChange>, RepositoryError> {
        let change = AlertChange {
            format: FORMAT_VERSION,
            repository: self.repository.mark().repository.clone(),
            epoch: self.epoch.id().clone(),
            tool: tool(),
            key,
            number,
            claim: super::id::random_tail(),
            at: self.repository.store().now().await?,
            state,
            to,
            said,
        };
        let object = layout::alert_change(&change.key, number);
        match self.put(&object, &change).await {
            Ok(()) => Ok(Some(change)),
            Err(RepositoryError::Store(error)) if error.kind == StoreErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores how telling a change to a receiver went, after so many tries since the last record.
    ///
    /// # Errors
    /// What the store says.
    pub async fn tried(
        &self,
        change: &AlertChange,
        receiver: &str,
        tries: u32,
        error: Option<String>,
    ) -> Result<AlertTry, RepositoryError> {
        let tried = AlertTry {
            format: FORMAT_VERSION,
            repository: self.repository.mark().repository.clone(),
            epoch: self.epoch.id().clone(),
            tool: tool(),
            key: change.key.clone(),
            number: change.number,
            claim: super::id::random_tail(),
            receiver: receiver.to_owned(),
            at: self.repository.store().now().await?,
            tries,
            error,
        };
        let object = layout::alert_try(&tried.key, tried.number, receiver, tried.at, &tried.claim);
        self.put(&object, &tried).await?;
        Ok(tried)
    }

    async fn put<T: Serialize>(&self, object: &str, record: &T) -> Result<(), RepositoryError> {
        let bytes = open::encode(object, record, Sealer::Mac(self.epoch.keys.mac_key()))?;
        Ok(self.repository.store().put_new(object, bytes).await?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Names that stand in repositories and in receivers' filters.
    #[test]
    fn words_keep_their_names() {
        for kind in AlertKind::ALL {
            assert_eq!(serde_json::json!(kind), kind.as_str());
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert_eq!(
            serde_json::json!([AlertState::Firing, AlertState::Resolved]),
            serde_json::json!(["firing", "resolved"])
        );
        assert_eq!(
            serde_json::json!([Severity::Warning, Severity::Critical]),
            serde_json::json!(["warning", "critical"])
        );
    }
}
