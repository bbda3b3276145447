//! Operations called in this process, for tests that need hundreds of them.

use altlas_backup::{
    operation::{self, BackupReport, Context, Error, ListedBackup, PruneArguments, PruneReport, VerifyReport, exit},
    repository::{Artifact, Head, Level, Selector, Verdict},
};
use tokio::runtime::Runtime;

/// The library on a runtime of its own.
pub struct Library {
    context: Context,
    runtime: Runtime,
}

impl Library {
    /// With what [`Workspace::context`](super::workspace::Workspace::context) gives.
    pub fn new(context: Context) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { context, runtime }
    }

    /// `backup`.
    pub fn backup(&self) -> Result<BackupReport, Error> {
        self.runtime.block_on(operation::backup(&self.context, &[]))
    }

    /// `prune`.
    pub fn prune(&self, arguments: &PruneArguments) -> Result<PruneReport, Error> {
        self.runtime.block_on(operation::prune(&self.context, arguments))
    }

    /// `verify BACKUP --level content`.
    pub fn verify(&self, backup: &str) -> Result<VerifyReport, Error> {
        let selector: Selector = backup.parse().unwrap();
        self.runtime.block_on(operation::verify(&self.context, &selector, Level::Content))
    }

    /// Verifies a backup, which must be sound.
    #[track_caller]
    pub fn sound(&self, backup: &str) -> VerifyReport {
        let report = self.verify(backup).unwrap();
        assert!(report.problems.is_empty(), "{backup}: {:#?}", report.problems);
        assert_eq!(report.verdict, Verdict::Sound);
        report
    }

    /// The heads, newest first. None may be damaged.
    #[track_caller]
    pub fn heads(&self) -> Vec<Head> {
        let listed = self.runtime.block_on(operation::list(&self.context)).unwrap();
        let head = |listed| match listed {
            ListedBackup::Good { head, .. } => Some(*head),
            ListedBackup::Unfinished { .. } | ListedBackup::Expired { .. } => None,
            ListedBackup::Damaged { backup, problem } | ListedBackup::Locked { backup, problem, .. } => {
                panic!("{backup}: {problem}")
            }
        };
        listed.backups.into_iter().filter_map(head).collect()
    }

    /// Every artifact of a backup.
    #[track_caller]
    pub fn artifacts(&self, backup: &str) -> Vec<Artifact> {
        let selector: Selector = backup.parse().unwrap();
        let shown = self.runtime.block_on(operation::show(&self.context, &selector)).unwrap();
        shown.sources.into_iter().flat_map(|source| source.artifacts).collect()
    }
}

/// The exit code with which the program ends.
pub fn exit_code(verified: &Result<VerifyReport, Error>) -> u8 {
    match verified {
        Ok(report) if report.problems.is_empty() => exit::DONE,
        Ok(_) => exit::VERDICT_FAILED,
        Err(error) => error.exit_code(),
    }
}
