//! `doctor`: everything a backup needs, looked at without touching anything.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Error, alerts};
use crate::{
    config::ConfigError,
    crypt::{Identities, Recipient, listed},
    report,
    repository::{Catalog, CatalogEntry, Locked, Repository, RepositoryError},
    source::{Finding, Level},
};

/// A clock that differs by more than this makes times in reports misleading; ages of parts are judged by the store's alone.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Findings on one thing.
#[derive(Debug, Serialize)]
pub struct Section {
    /// What they are on.
    pub subject: String,
    /// The findings.
    pub findings: Vec<Finding>,
}

/// What `doctor` found.
#[derive(Debug, Serialize)]
pub struct DoctorReport {
    /// Is there no problem? Warnings are none.
    pub healthy: bool,
    /// By subject.
    pub sections: Vec<Section>,
}

fn finding(level: Level, text: String) -> Finding {
    Finding { level, text, hint: None }
}

fn problem(error: &Error) -> Finding {
    Finding { level: Level::Problem, text: error.to_string(), hint: error.hint() }
}

/// Looks at configuration, repository and sources.
pub async fn doctor(context: &Context) -> DoctorReport {
    let mut sections = vec![Section {
        subject: "configuration".to_owned(),
        findings: vec![finding(
            Level::Ok,
            format!(
                "{}: {}",
                context.config.origin.display(),
                report::count(context.config.sources.len() as u64, "source")
            ),
        )],
    }];
    sections.push(Section { subject: "encryption".to_owned(), findings: encryption(context) });
    let mut findings = Vec::new();
    if let Err(error) = repository(context, &mut findings).await {
        findings.push(problem(&error));
    }
    sections.push(Section { subject: format!("repository {}", context.config.repository.url), findings });
    for config in &context.config.sources {
        let findings = match context.source(config) {
            Ok(source) => source.check().await,
            Err(error) => vec![problem(&error)],
        };
        sections.push(Section { subject: format!("source `{}`", config.name), findings });
    }
    sections.push(Section { subject: "alerts".to_owned(), findings: alerts::findings(context).await });
    let all = sections.iter().flat_map(|section| &section.findings);
    let healthy = all.into_iter().all(|finding| finding.level != Level::Problem);
    DoctorReport { healthy, sections }
}

/// Was it made by somebody else than we, by all that is known?
fn is_forgery(locked: &Locked) -> bool {
    matches!(locked, Locked::AfterEnd { .. } | Locked::Stranger { .. } | Locked::SeveralBeginners { .. })
}

/// Looks at recipients and identities: what the configuration says and what this machine holds.
fn encryption(context: &Context) -> Vec<Finding> {
    let Some(config) = &context.config.repository.encryption else {
        return vec![Finding {
            level: Level::Warning,
            text: "encryption is off: whoever reads the store reads the data, whoever writes to it can forge backups"
                .into(),
            hint: Some("`altlas-backup keygen` makes a key for `[repository.encryption]`".into()),
        }];
    };
    let mut findings = vec![finding(
        Level::Ok,
        format!(
            "encrypted to {}: {}",
            report::count(config.recipients.len() as u64, "recipient"),
            listed(&config.recipients)
        ),
    )];
    let mut warn = |text: String, hint: &str| {
        findings.push(Finding { level: Level::Warning, text, hint: Some(hint.to_owned()) });
    };
    if config.recipients.len() == 1 {
        warn(
            "there is a single recipient: whoever loses its identity loses every backup".into(),
            "add an escrow: a second key, whose identity is kept offline and elsewhere",
        );
    }
    for (key, path) in
        [("catalog_identity_file", &config.catalog_identity_file), ("identity_file", &config.identity_file)]
    {
        let Some(path) = path else { continue };
        // One that cannot be looked at cannot be read either, which is told below.
        let Ok(mode) = std::fs::metadata(path).map(|file| file.permissions().mode() & 0o777) else { continue };
        if mode & 0o077 != 0 {
            warn(
                format!("{} (`{key}`) can be read by others: its mode is {mode:04o}", path.display()),
                "chmod 0600; for a Kubernetes secret: defaultMode 0400",
            );
        }
    }
    let held = match config.identities(&*context.environment) {
        Ok(held) => held,
        Err(error) => {
            findings.push(problem(&error.into()));
            return findings;
        }
    };
    if held.catalog.is_empty() && held.data.is_empty() {
        findings.push(problem(&ConfigError::NoIdentity { file: context.config.origin.clone() }.into()));
        return findings;
    }
    let mut warn = |text: String, hint: &str| {
        findings.push(Finding { level: Level::Warning, text, hint: Some(hint.to_owned()) });
    };
    for catalog in held.catalog.recipients().chain(&config.catalog_recipients) {
        if config.recipients.contains(catalog) || held.data.recipients().any(|data| data == catalog) {
            warn(
                format!(
                    "the catalogue identity of {catalog} is a data identity too: what makes backups can read them all"
                ),
                "make a key of its own for the catalogue with `altlas-backup keygen`",
            );
        }
    }
    for data in held.data.recipients().filter(|data| !config.recipients.contains(data)) {
        warn(
            format!(
                "`identity_file` holds the identity of {data}, who is no recipient: it opens older backups at most"
            ),
            "add it to `repository.encryption.recipients`, or remove it once no backup needs it",
        );
    }
    if held.catalog.is_empty() && config.catalog_recipients.is_empty() {
        warn(
            "there is no catalogue identity: backups of machines that have one are believed without proof".into(),
            "set `catalog_identity_file`, or where this machine only restores: `catalog_recipients`",
        );
    }
    let all: Identities = held.catalog.iter().chain(held.data.iter()).cloned().collect();
    let readers = config.recipients.iter().chain(held.catalog.recipients().take(1)).chain(&config.catalog_recipients);
    if all.of_any(readers).is_none() {
        findings.push(Finding {
            level: Level::Problem,
            text: "this machine reads nothing: its identities are of no recipient and of no catalogue".into(),
            hint: Some("set `identity_file` to the identity of a recipient, or `catalog_identity_file`".into()),
        });
        return findings;
    }
    findings.push(finding(
        Level::Ok,
        match all.of_any(config.recipients.iter()) {
            Some(identity) => format!("this machine reads everything, with the identity of {}", identity.recipient()),
            None => "this machine reads keys and manifests, no data: `verify --level content` and `restore` need `identity_file`".into(),
        },
    ));
    findings
}

/// Could the next backup be written, and for whom?
async fn epochs(repository: &Repository, now: Timestamp, findings: &mut Vec<Finding>) -> Result<(), Error> {
    let (keyring, records) = (repository.keyring(), repository.epoch_records().await?);
    for (id, what) in records.faults() {
        findings.push(finding(Level::Warning, format!("epoch {id} is not used: {what}")));
    }
    let locked = |level, locked: &Locked| Finding { level, text: locked.to_string(), hint: Some(locked.hint()) };
    if let Some(unknown) = records.unknown() {
        findings.push(locked(Level::Warning, &unknown));
    }
    if !keyring.encrypts() {
        if let Some(epoch) = repository.encrypted_epoch().await? {
            findings.push(problem(&RepositoryError::WouldBeClear { epoch }.into()));
        }
        return Ok(());
    }
    if let Err(error) = keyring.beginner() {
        findings.push(locked(Level::Warning, &error));
    }
    let Some(newest) = records.newest(now).filter(|newest| !keyring.agrees_with(newest)) else { return Ok(()) };
    let before: Vec<&Recipient> = newest.readers().collect();
    let after: Vec<&Recipient> = keyring.recipients().iter().chain(keyring.catalog_recipient()).collect();
    let only = |these: &[&Recipient], those: &[&Recipient]| {
        listed(these.iter().copied().filter(|recipient| !those.contains(recipient)))
    };
    findings.push(Finding {
        level: Level::Warning,
        text: format!(
            "the newest epoch {} has other recipients than the configuration: added since {}, removed {}",
            newest.epoch,
            only(&after, &before),
            only(&before, &after)
        ),
        hint: Some(
            "the next backup begins a new epoch, with a full copy; whoever was removed still reads the old ones".into(),
        ),
    });
    Ok(())
}

async fn repository(context: &Context, findings: &mut Vec<Finding>) -> Result<(), Error> {
    let repository = context.repository().await?;
    let mark = repository.mark();
    findings.push(finding(
        Level::Ok,
        format!("format {}, id {}, created {}", mark.format, mark.repository, report::time(mark.created)),
    ));
    let (theirs, ours) = (repository.store().now().await?, Timestamp::now());
    let apart = theirs.duration_since(ours).unsigned_abs();
    if apart > CLOCK_TOLERANCE {
        let text = format!("the store's clock and this machine's are {} apart", report::duration(apart));
        let hint = Some("set both by NTP; S3 servers refuse requests at 15 minutes".to_owned());
        findings.push(Finding { level: Level::Warning, text, hint });
    }
    epochs(&repository, theirs, findings).await?;
    let catalog = Catalog::read(&repository).await?;
    match catalog.heads().next() {
        Some(head) => findings.push(finding(
            Level::Ok,
            format!(
                "{}, the newest {} ({})",
                report::count(catalog.heads().count() as u64, "backup"),
                head.backup,
                report::ago(head.started, theirs)
            ),
        )),
        None if catalog.entries.is_empty() => {
            findings.push(finding(Level::Warning, "there is no backup yet".to_owned()));
        }
        None => findings.push(finding(Level::Warning, "there is no backup that can be read here".to_owned())),
    }
    // A backup in clear that is newer than an encrypted one was not made before encryption was switched on.
    let oldest_good = catalog.entries.iter().rposition(|entry| matches!(entry, CatalogEntry::Good(_)));
    for (place, entry) in catalog.entries.iter().enumerate() {
        match entry {
            CatalogEntry::Good(_) | CatalogEntry::Expired { .. } => {}
            CatalogEntry::Damaged { id, trust } => {
                findings.push(finding(Level::Problem, format!("backup {id} cannot be trusted: {trust}")));
            }
            CatalogEntry::Locked { id, locked } => findings.push(Finding {
                level: match locked {
                    Locked::InClear { .. } if oldest_good.is_none_or(|oldest| place > oldest) => Level::Warning,
                    Locked::InClear { .. } => Level::Problem,
                    _ if is_forgery(locked) => Level::Problem,
                    _ => Level::Warning,
                },
                text: format!("backup {id} is locked: {locked}"),
                hint: Some(locked.hint()),
            }),
            CatalogEntry::Unfinished { id, manifests, written } => findings.push(finding(
                Level::Warning,
                format!(
                    "backup {id} is unfinished: {} without a head, written {}",
                    report::count(*manifests as u64, "manifest"),
                    report::ago(*written, theirs)
                ),
            )),
        }
    }
    Ok(())
}
