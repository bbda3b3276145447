//! Looking at what there is: `list` and `show`.

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Error};
use crate::repository::{Artifact, Catalog, CatalogEntry, Cut, Head, Locked, RepositoryError, Selector};

/// One line of `list`.
#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum ListedBackup {
    /// A backup.
    Good {
        /// Its head.
        head: Box<Head>,
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
    let catalog = Catalog::read(&repository).await?;
    // Without any key there is nothing to tell but whose would do.
    if repository.keyring().is_empty()
        && let Some(CatalogEntry::Locked { locked: locked @ Locked::NoIdentity { .. }, .. }) = catalog.entries.first()
        && catalog.heads().next().is_none()
    {
        return Err(RepositoryError::from(locked.clone()).into());
    }
    let backups = catalog
        .entries
        .into_iter()
        .map(|entry| match entry {
            CatalogEntry::Good(head) => ListedBackup::Good { head },
            CatalogEntry::Damaged { id, trust } => {
                ListedBackup::Damaged { backup: id.to_string(), problem: trust.to_string() }
            }
            CatalogEntry::Locked { id, locked } => {
                ListedBackup::Locked { backup: id.to_string(), problem: locked.to_string(), hint: locked.hint() }
            }
            CatalogEntry::Unfinished { id, manifests, written } => {
                ListedBackup::Unfinished { backup: id.to_string(), manifests, written }
            }
        })
        .collect();
    Ok(ListReport { url: repository.store().url().to_owned(), now: repository.store().now().await?, backups })
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
    /// Everything there is, with its parts.
    pub artifacts: Vec<Artifact>,
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
    /// What its manifests say.
    pub sources: Vec<ShownSource>,
}

/// One backup.
///
/// # Errors
/// No such backup, or one that cannot be trusted.
pub async fn show(context: &Context, selector: &Selector) -> Result<ShownBackup, Error> {
    let repository = context.repository().await?;
    let catalog = Catalog::read(&repository).await?;
    let head = select(&catalog, selector, &[], repository.store().url())?.clone();
    let epoch = repository.epoch(&head.epoch).await?;
    let mut sources = Vec::new();
    for source in head.sources.iter().filter(|source| source.manifest.is_some()) {
        let manifest = repository.manifest(&head, &epoch, source).await?;
        sources.push(ShownSource {
            name: source.name.clone(),
            cut: manifest.cut,
            uncovered: manifest.uncovered,
            failed: manifest.failed,
            notes: manifest.notes,
            about: manifest.about,
            artifacts: manifest.artifacts,
        });
    }
    Ok(ShownBackup { url: repository.store().url().to_owned(), now: repository.store().now().await?, head, sources })
}

/// The backup that is meant; nothing verified is a refusal of its own.
pub(super) fn select<'a>(
    catalog: &'a Catalog,
    selector: &Selector,
    sources: &[String],
    url: &str,
) -> Result<&'a Head, Error> {
    match catalog.select(selector, sources, url) {
        Ok(head) => {
            if *selector == Selector::Latest {
                catalog.passed_over(head, sources).iter().for_each(|note| tracing::warn!("{note}"));
            }
            Ok(head)
        }
        Err(_) if *selector == Selector::LatestVerified => Err(Error::NothingVerified { url: url.to_owned() }),
        Err(error) => Err(error.into()),
    }
}
