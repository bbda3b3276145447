//! What receivers are told of one change. Its JSON is the body of a webhook's request: a field keeps its name and meaning as long as `version` is
//! the same, and others may join it.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::conditions::Expected;
use crate::{
    config::Config,
    repository::{AlertKey, AlertKind, AlertState, BackupId, Said, Severity},
};

/// The version of [`Message`]'s JSON.
const VERSION: u32 = 1;
/// How long an alert stays up at an Alertmanager that hears nothing more: until the run after the next nightly one has had two hours.
const LASTS: Duration = Duration::from_secs(50 * 3600);

/// What receivers are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// 1.
    pub version: u32,
    /// What it became.
    pub event: AlertState,
    /// What it is.
    pub alert: AlertKind,
    /// The source that it is about; null where it is about a run.
    pub source: Option<String>,
    /// The command that failed; null where it is about a source.
    pub run: Option<String>,
    /// `alerts.deployment`, if there is one.
    pub deployment: Option<String>,
    /// How bad it is.
    pub severity: Severity,
    /// One line.
    pub summary: String,
    /// What is known, in sentences.
    pub description: String,
    /// The next step.
    pub hint: Option<String>,
    /// A word for why.
    pub reason: Option<String>,
    /// The backup that it is about.
    pub backup: Option<BackupId>,
    /// The repository's address, without secrets.
    pub repository: String,
    /// Since when it is so, by the store's clock.
    pub since: Timestamp,
    /// The same for every message on this alert, firing or resolved: a receiver tells by it what belongs together.
    pub id: String,
    /// How long it is to be believed.
    #[serde(skip)]
    pub(super) lasts: Duration,
}

impl Message {
    /// Of one change.
    pub(super) fn new(config: &Config, expected: &Expected, key: &AlertKey, state: AlertState, said: &Said) -> Self {
        let interval = key.source().and_then(|source| expected.backup.get(source).copied()).unwrap_or_default();
        let repository = config.repository.url.to_string();
        let source = key.source().map(str::to_owned);
        Self {
            version: VERSION,
            event: state,
            alert: key.alert,
            run: source.is_none().then(|| key.subject.clone()),
            source,
            deployment: config.alerts.deployment.clone(),
            severity: key.alert.severity(),
            summary: said.summary.clone(),
            description: said.description.clone(),
            hint: said.hint.clone(),
            reason: said.reason.clone(),
            backup: said.backup.clone(),
            id: format!("{}/{}@{repository}", key.alert, key.subject),
            repository,
            since: said.since,
            lasts: LASTS.max(interval.saturating_mul(2).saturating_add(Duration::from_secs(2 * 3600))),
        }
    }
}
