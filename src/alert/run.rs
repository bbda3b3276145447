//! After a one-shot run: whoever is to know of what it found, or of how it ended, is told before the process ends.

use std::{collections::HashSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Condition, Expected,
    conditions::{conditions, of_others},
    message::Message,
    receiver::Patience,
    round::{Memory, Round, tell_directly},
};
use crate::{
    config::ConfigError,
    operation::{Context, Error},
    repository::{AlertKey, AlertKind, AlertState, History, Repository, RepositoryError, Said},
};

/// How long receivers are tried that do not answer: longer than one that is started anew takes.
const PATIENCE: Duration = Duration::from_secs(90);
/// The same after a signal: less than Kubernetes' 30 s between SIGTERM and SIGKILL leave.
const PATIENCE_AFTER_SIGNAL: Duration = Duration::from_secs(8);
/// How long the repository may take to be read after a signal.
const READ_AFTER_SIGNAL: Duration = Duration::from_secs(10);

/// A store's clock may tell whole seconds only.
const SLACK: Duration = Duration::from_secs(2);

/// What was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Run {
    /// `backup`.
    Backup,
    /// `verify`.
    Verify,
    /// `prune`.
    Prune,
    /// The daemon's watch over the repository.
    Serve,
}

impl Run {
    /// The command's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Verify => "verify",
            Self::Prune => "prune",
            Self::Serve => "serve",
        }
    }

    fn key(self) -> AlertKey {
        AlertKey::new(AlertKind::RunFailed, self.as_str())
    }

    /// What is said of this run having failed.
    pub(super) fn failed(self, error: &Error, now: Timestamp) -> Condition {
        let name = self.as_str();
        let (what, hint) = match error {
            // Words of the store and of the repository name objects by ids, and those of the configuration keys and files.
            Error::Config(_) | Error::Store(_) | Error::Repository(_) => (format!(": {error}"), error.hint()),
            _ => (String::new(), Some(format!("the log of `altlas-backup {name}` says what failed and what to do"))),
        };
        let kind = error.kind();
        let said = Said {
            since: now,
            reason: Some(kind.to_owned()),
            backup: None,
            summary: format!("`altlas-backup {name}` failed"),
            description: format!("`altlas-backup {name}` ended with an error of the kind `{kind}`{what}."),
            hint,
        };
        Condition { key: self.key(), firing: true, said }
    }

    /// What is said of this run having ended well.
    pub(super) fn ended(self, now: Timestamp) -> Condition {
        let name = self.as_str();
        let said = Said {
            since: now,
            reason: None,
            backup: None,
            summary: format!("`altlas-backup {name}` runs again"),
            description: format!("`altlas-backup {name}` ended without an error."),
            hint: None,
        };
        Condition { key: self.key(), firing: false, said }
    }
}

/// Is it an error of which somebody who is not there is to hear? A mistake on the command line and a run that was stopped are not.
pub(super) fn is_alarming(error: &Error) -> bool {
    // An id that somebody typed is in quotes; that there is none at all is news.
    let is_typed = |wanted: &str| wanted.starts_with('`');
    let is_mistaken =
        matches!(error, Error::Repository(RepositoryError::NoSuchBackup { wanted, .. }) if is_typed(wanted));
    !is_mistaken
        && !matches!(
            error,
            Error::Usage { .. }
                | Error::Config(ConfigError::UnknownSource { .. })
                | Error::Repository(RepositoryError::Ambiguous { .. })
                | Error::NothingVerified { .. }
                | Error::KeyFile { .. }
                | Error::NotConfirmed
        )
        && error.exit_code() != crate::operation::exit::INTERRUPTED
}

/// What is to be said of how a run ended, if anything; `recorded`: its failure is known from the repository already.
pub(super) fn condition(run: Run, error: Option<&Error>, recorded: bool, now: Timestamp) -> Option<Condition> {
    match error {
        Some(error) if !recorded && is_alarming(error) => Some(run.failed(error, now)),
        Some(_) if !recorded => None,
        _ => Some(run.ended(now)),
    }
}

/// Is there a record of a run that began at `began`?
pub(super) fn is_recorded(history: &History, began: Instant) -> bool {
    let ago = SignedDuration::try_from(began.elapsed().saturating_add(SLACK)).unwrap_or(SignedDuration::MAX);
    let began = history.now.saturating_sub(ago).unwrap_or(Timestamp::MIN);
    // One that a clock which ran ahead has dated into the future is none of this run's.
    let until = history.now.saturating_add(SLACK).unwrap_or(Timestamp::MAX);
    history.attempts.iter().any(|attempt| began <= attempt.started && attempt.started <= until)
}

/// Tells whoever is configured what changed by a run that began at `began` and ended with this error, or without one. Whatever comes of it is
/// only said in the log.
pub async fn after(context: &Context, run: Run, began: Instant, error: Option<&Error>) {
    if context.config.alerts.receivers().is_empty() {
        return;
    }
    let stopped = context.cancel.is_cancelled();
    let patience = match stopped {
        true => Patience::new(PATIENCE_AFTER_SIGNAL, CancellationToken::new()),
        false => Patience::new(PATIENCE, context.cancel.clone()),
    };
    let read = async {
        let repository = context.repository().await?;
        let history = History::read(&repository).await?;
        Ok::<_, Error>((repository, history))
    };
    let read = match stopped {
        true => tokio::time::timeout(READ_AFTER_SIGNAL, read).await.unwrap_or(Err(Error::Interrupted)),
        false => read.await,
    };
    match read {
        Ok((repository, history)) => {
            let recorded = run == Run::Backup && is_recorded(&history, began);
            let ended = condition(run, error, recorded, history.now);
            one_round(context, run, &repository, &history, ended, patience).await;
        }
        Err(unreadable) => {
            let error = error.unwrap_or(&unreadable);
            if is_alarming(error) {
                without_repository(context, run, error, &patience).await;
            }
        }
    }
}

async fn one_round(
    context: &Context,
    run: Run,
    repository: &Repository,
    history: &History,
    ended: Option<Condition>,
    patience: Patience,
) {
    let config = &context.config;
    let expected = Expected::of(config, history.now);
    let mut all = conditions(history, config, &expected, history.now);
    if run == Run::Verify {
        all.extend(of_others(history, config, history.now));
    }
    all.extend(ended);
    let round = Round {
        config,
        expected: &expected,
        repository,
        now: history.now,
        patience,
        resting: HashSet::new(),
        quiet: SignedDuration::ZERO,
        remind: true,
        names_all: run == Run::Backup,
    };
    if let Err((error, _)) = round.carry_out(&all, &mut Memory::new()).await {
        tracing::error!(
            "what was told of alerts before cannot be found out, so what is firing was told again: {error}"
        );
    }
}

/// Where the repository cannot be read, nobody knows what was told before: each run that fails for it tells so.
async fn without_repository(context: &Context, run: Run, error: &Error, patience: &Patience) {
    let Condition { key, said, .. } = run.failed(error, Timestamp::now());
    let expected = Expected::of(&context.config, Timestamp::now());
    let message = Message::new(&context.config, &expected, &key, AlertState::Firing, &said);
    let (nobody, mut memory) = (HashSet::new(), Memory::new());
    tell_directly(&context.config, &key, &message, patience, &nobody, &mut memory).await;
}

#[cfg(test)]
mod tests;
