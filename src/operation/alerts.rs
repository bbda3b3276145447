//! What is known of alerts, for people: who is told, what fires, and what nobody could be told.

use jiff::Timestamp;

use super::{Context, Error};
use crate::{
    config::AlertsConfig,
    report,
    repository::{AlertJournal, Repository},
    source::{Finding, Level},
};

/// Changes that a receiver was not told yet, a sentence each.
pub(super) fn undelivered(journal: &AlertJournal, config: &AlertsConfig, now: Timestamp) -> Vec<String> {
    let waiting = journal.undelivered(&config.receiver_names());
    let late = waiting.iter().filter(|one| !one.is_on_its_way(now));
    late.map(|one| {
        let (change, state) = (one.change, one.change.state.as_str());
        let why = match one.last {
            Some((error, at)) => {
                let tries = report::count(u64::from(one.tries), "try");
                format!("{tries}, the last {}: {error}", report::ago(at, now))
            }
            None => "it was not tried".to_owned(),
        };
        format!(
            "{} was not told that alert {} is {state}, {}: {why}",
            one.receiver,
            change.key,
            report::ago(change.at, now)
        )
    })
    .collect()
}

/// Warns in the log of what nobody could be told, where somebody is to be told at all.
pub(super) async fn warn_of_undelivered(context: &Context, repository: &Repository, now: Timestamp) {
    let config = &context.config.alerts;
    if config.receivers().is_empty() {
        return;
    }
    match repository.alerts().await {
        Ok(journal) => undelivered(&journal, config, now).iter().for_each(|what| tracing::warn!("{what}")),
        Err(error) => tracing::warn!("it cannot be found out whether alerts were told: {error}"),
    }
}

/// What `doctor` says of them.
pub(super) async fn findings(context: &Context) -> Vec<Finding> {
    let config = &context.config.alerts;
    let receivers = config.receivers();
    if receivers.is_empty() {
        return vec![Finding {
            level: Level::Warning,
            text: "nobody is told when a backup fails".to_owned(),
            hint: Some("configure `[alerts.webhook]` or `[alerts.alertmanager]`".to_owned()),
        }];
    }
    let mut found: Vec<Finding> = receivers
        .into_iter()
        .map(|(name, receiver)| match receiver.secrets() {
            Ok(_) => Finding { level: Level::Ok, text: format!("{name} is told what changes"), hint: None },
            Err(error) => Finding { level: Level::Problem, text: error.to_string(), hint: error.hint() },
        })
        .collect();
    // That the repository cannot be read is a finding of its own.
    if let Ok((journal, now)) = journal(context).await {
        for change in journal.all_firing() {
            let since = report::ago(change.said.since, now);
            let text = format!("alert {} is firing, since {since}: {}", change.key, change.said.summary);
            found.push(Finding { level: Level::Warning, text, hint: change.said.hint.clone() });
        }
        let waiting = undelivered(&journal, config, now).into_iter();
        let hint = || Some("the next run and the daemon try again; see whether the receiver is well".to_owned());
        found.extend(waiting.map(|text| Finding { level: Level::Problem, text, hint: hint() }));
    }
    found
}

async fn journal(context: &Context) -> Result<(AlertJournal, Timestamp), Error> {
    let repository = context.repository().await?;
    let now = repository.store().now().await?;
    Ok((repository.alerts().await?, now))
}
