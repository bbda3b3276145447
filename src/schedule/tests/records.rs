//! Histories made up for the purpose.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    config::Config,
    repository::{
        Anchors, Attempt, BackupId, BackupState, Catalog, CatalogEntry, EVIDENCE_VERSION, EpochId, Evidence, Head,
        HeadSource, History, Level, ManifestDigest, Reason, RepositoryId, Sizes, SnapshotState, SourceEvidence,
        SourceIdentity, Verdict, Verdicts,
    },
};

pub(crate) fn time(text: &str) -> Timestamp {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A configuration with these sources and these lines.
pub(crate) fn config(sources: &[&str], lines: &str) -> Config {
    let mut text = "[repository]\nurl = \"file:///srv/backup\"\n".to_owned();
    for name in sources {
        text.push_str(&format!("[[source]]\nname = \"{name}\"\nkind = \"redis\"\nurl = \"redis://r.example\"\n"));
    }
    text.push_str(lines);
    Config::from_text(&text, "t.toml".as_ref(), None).unwrap()
}

/// A repository's records.
#[derive(Clone)]
pub(crate) struct Records {
    pub(crate) repository: RepositoryId,
    pub(crate) heads: Vec<Head>,
    pub(crate) evidence: Vec<Evidence>,
    pub(crate) attempts: Vec<Attempt>,
}

impl Records {
    pub(crate) fn new() -> Self {
        let repository = "0123456789abcdefghjkmnpqrs".parse().unwrap();
        Self { repository, heads: Vec::new(), evidence: Vec::new(), attempts: Vec::new() }
    }

    fn epoch() -> EpochId {
        "20261101T010000Z-7h2mxq".parse().unwrap()
    }

    /// A backup with these snapshots.
    pub(crate) fn head(
        &mut self,
        started: Timestamp,
        finished: Timestamp,
        sources: &[(&str, SnapshotState)],
    ) -> BackupId {
        let backup = BackupId::new(started);
        let source = |(name, state): &(&str, SnapshotState)| {
            let failed = HeadSource::failed(&SourceIdentity { name: (*name).to_owned(), kind: "redis".into() });
            let digest = ManifestDigest { bytes: 1, sha256: format!("{backup} {name}") };
            let sizes = Sizes { raw: 300, stored: 200, uploaded: 100 };
            match state {
                SnapshotState::Failed => failed,
                _ => HeadSource { state: *state, manifest: Some(digest), sizes, uncovered: 2, ..failed },
            }
        };
        let sources: Vec<HeadSource> = sources.iter().map(source).collect();
        let complete = sources.iter().all(|source| source.state.is_usable());
        self.heads.push(Head {
            format: 1,
            repository: self.repository.clone(),
            backup: backup.clone(),
            epoch: Self::epoch(),
            tool: String::new(),
            started,
            finished,
            state: if complete { BackupState::Complete } else { BackupState::Partial },
            skew: None,
            anchors: Anchors { install_mark: String::new(), epoch: String::new(), keys: String::new() },
            sources,
        });
        backup
    }

    /// A complete backup of these sources.
    pub(crate) fn complete(&mut self, started: Timestamp, finished: Timestamp, sources: &[&str]) -> BackupId {
        let sources: Vec<_> = sources.iter().map(|name| (*name, SnapshotState::Complete)).collect();
        self.head(started, finished, &sources)
    }

    /// What a verification said of every snapshot of a backup.
    pub(crate) fn evidence(&mut self, backup: &BackupId, level: Level, verdict: Verdict, finished: Timestamp) {
        let head = self.heads.iter().find(|head| head.backup == *backup).unwrap();
        let of = |source: &HeadSource| {
            Some(SourceEvidence {
                name: source.name.clone(),
                kind: source.kind.clone(),
                manifest: source.manifest.as_ref()?.sha256.clone(),
                verdict,
                reason: (verdict == Verdict::Failed).then_some(Reason::Differs),
                objects: 1,
                rows: 1,
                bytes: 1,
                differences: 0,
                restore_seconds: Some(40.0),
                seconds: 60.0,
            })
        };
        self.evidence.push(Evidence {
            format: EVIDENCE_VERSION,
            repository: self.repository.clone(),
            backup: backup.clone(),
            epoch: Self::epoch(),
            tool: String::new(),
            level,
            started: finished,
            finished,
            verdict,
            sources: head.sources.iter().filter_map(of).collect(),
            detail: ManifestDigest { bytes: 0, sha256: String::new() },
        });
    }

    /// A run that ended without a backup.
    pub(crate) fn attempt(&mut self, started: Timestamp, finished: Timestamp, sources: &[&str], error: &str) {
        self.attempts.push(Attempt {
            format: 1,
            repository: self.repository.clone(),
            backup: BackupId::new(started),
            epoch: Self::epoch(),
            tool: String::new(),
            started,
            finished,
            sources: sources.iter().map(|name| (*name).to_owned()).collect(),
            error: error.to_owned(),
        });
    }

    /// As a reader finds them.
    pub(crate) fn history(&self, now: Timestamp) -> History {
        let newest_first: BTreeMap<_, _> = self.heads.iter().map(|head| ((head.started, &head.backup), head)).collect();
        let entries = newest_first.into_values().rev().map(|head| CatalogEntry::Good(Box::new(head.clone()))).collect();
        let catalog = Catalog { entries, unknown: None, ..Catalog::default() };
        let verdicts = Verdicts::new(&catalog, self.evidence.clone());
        let mut attempts = self.attempts.clone();
        attempts.sort_by_key(|attempt| attempt.started);
        History { now, created: Timestamp::default(), catalog, verdicts, attempts }
    }
}
