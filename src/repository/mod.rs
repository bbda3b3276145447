//! Everything that knows the repository format (version 1): names, keys, sealed records, manifests, heads, epochs.
//!
//! The rules R1 to R11 are in DESIGN.md §4; code cites them by number. What this module must not do: decide what is backed
//! up, or talk to a source. Three places delete: `commit` the head of a backup whose second look failed (R1), `tombstone` the head of a
//! backup that expires, `sweep` what nothing needs any more (R8, R9).

mod alert;
mod attempt;
mod belief;
mod catalog;
mod commit;
mod epoch;
mod error;
mod evidence;
mod head;
mod id;
mod journal;
mod keyring;
mod keys;
mod layout;
mod look;
mod manifest;
mod open;
mod part;
pub mod retention;
mod reuse;
mod seal;
pub mod sweep;
mod tombstone;

pub use self::{
    alert::{AlertChange, AlertKey, AlertKind, AlertRecord, AlertState, AlertTry, AlertWriter, Said, Severity},
    attempt::{Attempt, History, Records},
    catalog::{Catalog, CatalogEntry, Selector},
    commit::Commit,
    epoch::{EarlierEpoch, Epoch, EpochRecord, Protection},
    error::{Locked, RepositoryError, Trust},
    evidence::{
        ComparedObject, Differing, EVIDENCE_VERSION, Evidence, EvidenceDetail, Level, Reason, SourceDetail,
        SourceEvidence, Standing, Verdict, Verdicts,
    },
    head::{Anchors, BackupState, Head, HeadSource, ManifestDigest, Sizes, Skew, SnapshotState},
    id::{BackupId, EpochId, RepositoryId, RunTail},
    journal::{AlertJournal, Undelivered},
    keyring::Keyring,
    keys::Keys,
    layout::FORMAT_VERSION,
    manifest::{Artifact, Cut, Fingerprint, Format, Manifest, SourceIdentity},
    open::{EpochRecords, InstallMark, Repository, tool},
    part::{MAX_PART, PartName, PartRef},
    reuse::{ReusableParts, Reuse, StoredPart},
    tombstone::Expiry,
};

/// The key of a part of `epoch`.
pub fn part_key(epoch: &Epoch, name: &PartName) -> String {
    layout::part(epoch.id(), name, &epoch.protection)
}
