//! Looking at what there is: `list` and `show`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Error, alerts};
use crate::repository::{
    Artifact, Catalog, CatalogEntry, Cut, Evidence, EvidenceDetail, Head, History, Locked, RepositoryError, Selector,
    Standing, Verdicts,
};

/// One line of `list`.
#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum ListedBackup {
    /// A backup.
    Good {
        /// Its head.
        head: Box<Head>,
        /// What is known of it: `verified`, `failed`, `inconclusive`, `partly verified` or `unverified`.
        verdict: &'static str,
        /// What is known of each source's snapshot, by name.
        verdicts: BTreeMap<String, &'static str>,
    },
    /// A head that cannot be trusted.
    Damaged {
        /// Its id.
        backup: String,
        /// What is wrong.
        problem: String,
    },
    /// A head that cannot be believed with what this machine holds.
    Locked {
        /// Its id.
        backup: String,
        /// Why.
        problem: String,
        /// The next step.
        hint: String,
    },
    /// Manifests without a head.
    Unfinished {
        /// Its id.
        backup: String,
        /// How many.
        manifests: usize,
        /// When the last was written, by the store's clock.
        written: Timestamp,
    },
    /// A backup that expired; its expiry can be undone while its parts are there.
    Expired {
        /// Its id.
        backup: String,
        /// When, by the store's clock.
        expired: Timestamp,
    },
}

/// What `list` tells.
#[derive(Debug, Serialize)]
pub struct ListReport {
    /// The repository's address.
    pub url: String,
    /// The store's time.
    pub now: Timestamp,
    /// Newest first.
    pub backups: Vec<ListedBackup>,
}

/// Every backup, with what is damaged or unfinished beside them.
///
/// # Errors
/// What keeps the repository from being read.
pub async fn list(context: &Context) -> Result<ListReport, Error> {
    let repository = context.repository().await?;
    let History { now, catalog, verdicts, .. } = History::read(&repository).await?;
    // Without any key there is nothing to tell but whose would do.
    if repository.keyring().is_empty()
        && let Some(CatalogEntry::Locked { locked: locked @ Locked::NoIdentity { .. }, .. }) = catalog.entries.first()
        && catalog.heads().next().is_none()
    {
        return Err(RepositoryError::from(locked.clone()).into());
    }
    alerts::warn_of_undelivered(context, &repository, now).await;
    let backups = catalog
        .entries
        .into_iter()
        .map(|entry| match entry {
            CatalogEntry::Good(head) => {
                let word = |name: &String| verdicts.of(&head.backup, name).word();
                let each = head.sources.iter().map(|source| (source.name.clone(), word(&source.name))).collect();
                ListedBackup::Good { verdict: verdicts.word(&head), verdicts: each, head }
            }
            CatalogEntry::Damaged { id, trust } => {
                ListedBackup::Damaged { backup: id.to_string(), problem: trust.to_string() }
            }
            CatalogEntry::Locked { id, locked } => {
                ListedBackup::Locked { backup: id.to_string(), problem: locked.to_string(), hint: locked.hint() }
            }
            CatalogEntry::Unfinished { id, manifests, written } => {
                ListedBackup::Unfinished { backup: id.to_string(), manifests, written }
            }
            CatalogEntry::Expired { id, at } => ListedBackup::Expired { backup: id.to_string(), expired: at },
        })
        .collect();
    Ok(ListReport { url: repository.store().url().to_owned(), now, backups })
}

/// One source of a shown backup.
#[derive(Debug, Serialize)]
pub struct ShownSource {
    /// The configured name.
    pub name: String,
    /// The instant of its snapshot.
    pub cut: Cut,
    /// What was left out.
    pub uncovered: Vec<String>,
    /// What could not be captured, with the reason.
    pub failed: Vec<String>,
    /// What to know of it, in words.
    pub notes: Vec<String>,
    /// What it is and holds, in words.
    pub about: Vec<String>,
    /// What all evidence says of it.
    pub verdict: &'static str,
    /// Since when it is `verified` or `failed`, by the store's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict_since: Option<Timestamp>,
    /// Everything there is, with its parts.
    pub artifacts: Vec<Artifact>,
}

/// One verification of a shown backup.
#[derive(Debug, Serialize)]
pub struct ShownEvidence {
    /// The stored report.
    #[serde(flatten)]
    pub evidence: Evidence,
    /// What its counts stand for; absent where they cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<EvidenceDetail>,
}

/// What `show` tells.
#[derive(Debug, Serialize)]
pub struct ShownBackup {
    /// The repository's address.
    pub url: String,
    /// The store's time.
    pub now: Timestamp,
    /// The head.
    pub head: Head,
    /// What is known of it from all evidence.
    pub verdict: &'static str,
    /// What its manifests say.
    pub sources: Vec<ShownSource>,
    /// Its verifications, the oldest first.
    pub verifications: Vec<ShownEvidence>,
}

/// One backup.
///
/// # Errors
/// No such backup, or one that cannot be trusted.
pub async fn show(context: &Context, selector: &Selector) -> Result<ShownBackup, Error> {
    let repository = context.repository().await?;
    let History { now, catalog, verdicts, .. } = History::read(&repository).await?;
    let head = select(&catalog, &verdicts, selector, &[], repository.store().url())?.clone();
    let epoch = repository.epoch(&head.epoch).await?;
    let mut sources = Vec::new();
    for source in head.sources.iter().filter(|source| source.manifest.is_some()) {
        let manifest = repository.manifest(&head, &epoch, source).await?;
        let standing: &Standing = verdicts.of(&head.backup, &source.name);
        sources.push(ShownSource {
            name: source.name.clone(),
            cut: manifest.cut,
            uncovered: manifest.uncovered,
            failed: manifest.failed,
            notes: manifest.notes,
            about: manifest.about,
            verdict: standing.word(),
            verdict_since: standing.since,
            artifacts: manifest.artifacts,
        });
    }
    let mut verifications = Vec::new();
    for evidence in verdicts.evidence(&head.backup) {
        let details = match repository.evidence_detail(evidence).await {
            Ok(details) => Some(details),
            Err(error) => {
                tracing::warn!("details of a verification cannot be shown: {error}");
                None
            }
        };
        verifications.push(ShownEvidence { evidence: evidence.clone(), details });
    }
    let url = repository.store().url().to_owned();
    Ok(ShownBackup { url, now, verdict: verdicts.word(&head), head, sources, verifications })
}

/// The backup that is meant; nothing verified is a refusal of its own.
pub(super) fn select<'a>(
    catalog: &'a Catalog,
    verdicts: &Verdicts,
    selector: &Selector,
    sources: &[String],
    url: &str,
) -> Result<&'a Head, Error> {
    match catalog.select(verdicts, selector, sources, url) {
        Ok(head) => {
            passed_over(catalog, verdicts, selector, head, sources).iter().for_each(|note| tracing::warn!("{note}"));
            Ok(head)
        }
        Err(_) if *selector == Selector::LatestVerified => Err(Error::NothingVerified { url: url.to_owned() }),
        Err(error) => Err(error.into()),
    }
}

/// What was passed over for this choice, in words.
pub(super) fn passed_over(
    catalog: &Catalog,
    verdicts: &Verdicts,
    selector: &Selector,
    head: &Head,
    sources: &[String],
) -> Vec<String> {
    match selector {
        Selector::Latest => catalog.passed_over(head, sources),
        Selector::LatestVerified => catalog.passed_over_unverified(verdicts, head, sources),
        Selector::Prefix(_) => Vec::new(),
    }
}
