//! An Alertmanager, by its API v2 (`POST /api/v2/alerts`, <https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml>).
//!
//! It tells alerts apart by their labels alone, so those never change while one is up, and forgets one that is over by its `endsAt`.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use url::Url;

use super::message::Message;
use crate::repository::{AlertKind, AlertState};

const PATH: &str = "/api/v2/alerts";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PostableAlert {
    labels: BTreeMap<&'static str, String>,
    annotations: BTreeMap<&'static str, String>,
    starts_at: Timestamp,
    ends_at: Timestamp,
}

/// Where alerts are posted to, for an Alertmanager at this address, which may have a prefix.
pub(super) fn endpoint(address: &Url) -> Url {
    let mut url = address.clone();
    let path = address.path().trim_end_matches('/');
    if !path.ends_with(PATH) {
        url.set_path(&format!("{path}{PATH}"));
    }
    url
}

fn name(kind: AlertKind) -> &'static str {
    match kind {
        AlertKind::BackupFailed => "AltlasBackupFailed",
        AlertKind::VerificationFailed => "AltlasBackupBad",
        AlertKind::VerificationInconclusive => "AltlasBackupInconclusive",
        AlertKind::Late => "AltlasBackupLate",
        AlertKind::Unverified => "AltlasBackupUnverified",
        AlertKind::RunFailed => "AltlasBackupRunFailed",
    }
}

/// A message as an Alertmanager wants it, at `now` by this machine's clock: what fires is believed for a while, what is resolved ends now.
pub(super) fn alert(message: &Message, now: Timestamp) -> PostableAlert {
    let labels = [
        ("alertname", Some(name(message.alert).to_owned())),
        ("severity", Some(message.severity.as_str().to_owned())),
        ("source", message.source.clone()),
        ("run", message.run.clone()),
        ("deployment", message.deployment.clone()),
        ("repository", Some(message.repository.clone())),
    ];
    let annotations = [
        ("summary", Some(message.summary.clone())),
        ("description", Some(message.description.clone())),
        ("hint", message.hint.clone()),
        ("reason", message.reason.clone()),
        ("backup", message.backup.as_ref().map(ToString::to_string)),
        ("id", Some(message.id.clone())),
    ];
    let some = |pairs: [(&'static str, Option<String>); 6]| {
        pairs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    };
    let ends_at = match message.event {
        AlertState::Firing => now.saturating_add(lasts(message)).unwrap_or(Timestamp::MAX),
        AlertState::Resolved => now,
    };
    // One that ends before it begins is refused; the store's clock may be ahead of ours.
    PostableAlert {
        labels: some(labels),
        annotations: some(annotations),
        starts_at: message.since.min(ends_at),
        ends_at,
    }
}

fn lasts(message: &Message) -> SignedDuration {
    SignedDuration::try_from(message.lasts).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_added_once() {
        for (address, wanted) in [
            ("http://alertmanager:9093", "http://alertmanager:9093/api/v2/alerts"),
            ("http://alertmanager:9093/", "http://alertmanager:9093/api/v2/alerts"),
            ("https://host/am/?tenant=1", "https://host/am/api/v2/alerts?tenant=1"),
            ("https://host/am/api/v2/alerts", "https://host/am/api/v2/alerts"),
        ] {
            assert_eq!(endpoint(&address.parse().unwrap()).as_str(), wanted);
        }
    }
}
