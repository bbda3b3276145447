//! Sources made up for the purpose, into a repository in a folder.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use async_trait::async_trait;
use tokio::sync::Barrier;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    config::Config,
    operation::{list, open_backup, show, verify},
    pipeline::{Cut, Format, Progress, SnapshotReader, SnapshotWriter},
    repository::{Level, Selector},
    source::{Finding, Identity, Proof, Restore, RestoreRequest, SourceError},
};

/// What a made-up source does.
#[derive(Clone)]
enum Does {
    /// Captures something; with this list of what failed.
    Captures(&'static [&'static str]),
    /// Captures nothing, and this failed.
    Nothing(&'static [&'static str]),
    /// The same, when so many sources are at it at once.
    Together(Arc<Barrier>),
    /// Ends with an error before its instant is fixed.
    Fails,
    /// Ends without having said that its instant is fixed.
    SaysNothing,
    Panics,
}

struct MadeUp {
    name: String,
    does: Does,
    journal: Arc<Mutex<Vec<String>>>,
}

impl MadeUp {
    fn note(&self, what: &str) {
        self.journal.lock().unwrap().push(format!("{} {what}", self.name));
    }
}

#[async_trait]
impl Source for MadeUp {
    async fn findings(&self, _: &mut Vec<Finding>) -> Result<(), SourceError> {
        Err(PipelineError::Stopped.into())
    }

    async fn capture(&self, into: &SnapshotWriter, fixed: Fixed) -> Result<Captured, SourceError> {
        self.note("begins");
        // Whoever could begin meanwhile has every occasion to.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let asked = into.time(std::time::Instant::now());
        self.note("is fixed");
        match &self.does {
            Does::Fails => return Err(PipelineError::Compressor("made up".into()).into()),
            Does::Panics => panic!("made up"),
            Does::SaysNothing => {}
            _ => fixed.now(),
        }
        let failed = match &self.does {
            Does::Captures(failed) | Does::Nothing(failed) => failed.iter().map(|what| (*what).to_owned()).collect(),
            _ => Vec::new(),
        };
        if let Does::Together(all) = &self.does {
            all.wait().await;
        }
        let empty = matches!(self.does, Does::Nothing(_));
        if !empty {
            let mut writer = into.artifact("some.sql", Format::Sql).await?;
            writer.write(self.name.as_bytes()).await?;
            writer.finish(serde_json::Value::Null).await?;
        }
        let cut = Cut::between(asked, asked + Duration::from_millis(20), serde_json::Value::Null);
        let (uncovered, notes, about) = (Vec::new(), Vec::new(), Vec::new());
        let detail = serde_json::Value::Null;
        let server = Vec::new();
        Ok(Captured { cut, detail, uncovered, failed, hint: None, notes, about, server, empty })
    }

    async fn identity(&self) -> Result<Identity, SourceError> {
        Err(PipelineError::Stopped.into())
    }

    async fn claim(&self, _: &[Identity]) -> Result<(), SourceError> {
        Err(PipelineError::Stopped.into())
    }

    async fn prove(&self, _: &SnapshotReader, _: &CancellationToken) -> Result<Proof, SourceError> {
        Err(PipelineError::Stopped.into())
    }

    async fn release(&self) -> Result<(), SourceError> {
        Err(PipelineError::Stopped.into())
    }

    async fn plan_restore(&self, _: SnapshotReader, _: &RestoreRequest) -> Result<Box<dyn Restore>, SourceError> {
        Err(PipelineError::Stopped.into())
    }
}

/// An initialised repository and a configuration with three sources.
struct Made {
    context: Context,
    journal: Arc<Mutex<Vec<String>>>,
    _folder: tempfile::TempDir,
}

impl Made {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut text = format!("[repository]\nurl = \"file://{}\"\n", folder.path().join("repository").display());
        for name in ["a", "b", "c"] {
            text += &format!("[[source]]\nname = \"{name}\"\nkind = \"redis\"\nurl = \"redis://localhost\"\n");
        }
        let config = Config::from_text(&text, &folder.path().join("config"), None).unwrap();
        let context = Context {
            config: Arc::new(config),
            environment: Arc::new(|_| None),
            cancel: CancellationToken::new(),
            progress: Arc::new(Progress::default()),
        };
        crate::operation::init(&context, false).await.unwrap();
        Self { context, journal: Arc::default(), _folder: folder }
    }

    /// A backup, up to its commit.
    async fn captured(&self, does: [Does; 3], order: &[usize]) -> (Prepared<'_>, Vec<SnapshotState>) {
        let repository = self.context.repository().await.unwrap();
        let started = repository.store().now().await.unwrap();
        let (id, epoch) = (BackupId::new(started), epoch(&repository, started, 30).await.unwrap());
        let pipeline = Pipeline::new(
            repository.store().clone(),
            epoch.clone(),
            id.tail(),
            1,
            self.context.budget(),
            2,
            ReusableParts::default(),
            self.context.progress.clone(),
        );
        let made_up = |(config, does): (&'_ SourceConfig, Does)| -> Arc<dyn Source> {
            Arc::new(MadeUp { name: config.name.to_string(), does, journal: self.journal.clone() })
        };
        let asked = self.context.config.sources.iter().zip(does);
        let asked = asked.map(|(config, does)| (config, Ok(made_up((config, does))))).collect();
        let capturing = capture(asked, order, &pipeline);
        let outcomes = tokio::time::timeout(Duration::from_secs(60), capturing).await.unwrap();
        let state = |outcome: &Result<Transferred, Error>| match outcome {
            Ok(done) if done.captured.failed.is_empty() => SnapshotState::Complete,
            Ok(_) => SnapshotState::Partial,
            Err(_) => SnapshotState::Failed,
        };
        let states = outcomes.iter().map(|(_, outcome)| state(outcome)).collect();
        (Prepared { repository, epoch, id, started, outcomes }, states)
    }

    /// A whole backup.
    async fn backed_up(&self, does: [Does; 3]) -> (Head, Vec<SourceOutcome>) {
        let (Prepared { repository, epoch, id, started, outcomes }, _) = self.captured(does, &[0, 1, 2]).await;
        commit(&repository, &epoch, self.context.config.repository.grace, id, started, outcomes).await.unwrap()
    }
}

/// A backup whose parts are all in the store.
struct Prepared<'a> {
    repository: Repository,
    epoch: Arc<Epoch>,
    id: BackupId,
    started: Timestamp,
    outcomes: Vec<Outcome<'a>>,
}

#[tokio::test]
async fn each_begins_when_the_one_before_is_fixed_and_all_transfer_at_once() {
    let made = Made::new().await;
    let all = Arc::new(Barrier::new(3));
    let does = || Does::Together(all.clone());
    let (_, states) = made.captured([does(), does(), does()], &[2, 0, 1]).await;
    assert_eq!(states, [SnapshotState::Complete; 3]);
    let journal = made.journal.lock().unwrap();
    assert_eq!(*journal, ["c begins", "c is fixed", "a begins", "a is fixed", "b begins", "b is fixed"]);
}

#[tokio::test]
async fn one_that_is_never_fixed_holds_up_nobody() {
    use SnapshotState::{Complete, Failed};
    let made = Made::new().await;
    for (does, state) in [(Does::Fails, Failed), (Does::Panics, Failed), (Does::SaysNothing, Complete)] {
        let (prepared, states) = made.captured([Does::Captures(&[]), does, Does::Captures(&[])], &[1, 0, 2]).await;
        assert_eq!(states, [Complete, state, Complete]);
        let names: Vec<&str> = prepared.outcomes.iter().map(|(config, _)| config.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"], "in the order of the configuration");
    }
}

/// What failed of a snapshot is told wherever the backup is, and `latest` passes it over.
#[tokio::test]
async fn a_partial_snapshot_is_told_everywhere_and_can_be_restored_by_name() {
    const FAILED: &str = "stream `orders`: it keeps ending";
    let made = Made::new().await;
    let (whole, _) = made.backed_up([Does::Captures(&[]), Does::Captures(&[]), Does::Captures(&[])]).await;
    assert_eq!(whole.state, BackupState::Complete);
    let (head, told) = made.backed_up([Does::Captures(&[]), Does::Captures(&[FAILED]), Does::Fails]).await;
    assert_eq!(head.state, BackupState::Partial);
    assert_eq!((told[1].state, &told[1].failed[..]), (SnapshotState::Partial, &[FAILED.to_owned()][..]));
    let context = &made.context;
    let listed = list(context).await.unwrap();
    let Some(crate::operation::ListedBackup::Good { head: listed, .. }) = listed.backups.first() else { panic!() };
    let states: Vec<_> = listed.sources.iter().map(|source| (source.state, source.failed)).collect();
    let [complete, partial, failed] = [SnapshotState::Complete, SnapshotState::Partial, SnapshotState::Failed];
    assert_eq!(states, [(complete, 0), (partial, 1), (failed, 0)]);
    let by_name = Selector::Prefix(head.backup.to_string());
    let shown = show(context, &by_name).await.unwrap();
    assert_eq!(shown.sources.iter().map(|source| source.failed.len()).collect::<Vec<_>>(), [0, 1]);
    let verified = verify(context, &by_name, Level::Content).await.unwrap();
    assert!(verified.problems.is_empty(), "{:?}", verified.problems);
    assert_eq!(
        (verified.incomplete[0].source.as_str(), &verified.incomplete[0].failed[..]),
        ("b", &told[1].failed[..])
    );
    assert_eq!(verified.not_captured, ["c"]);

    let of = async |selector: &Selector, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        open_backup(context, selector, &names, |_, _| Ok(())).await.unwrap()
    };
    for (names, backup) in [(&["a"][..], &head), (&["b"], &whole), (&["a", "b"], &whole), (&[], &whole)] {
        assert_eq!(of(&Selector::Latest, names).await.backup, backup.backup, "{names:?}");
    }
    let opened = of(&by_name, &[]).await;
    assert_eq!(opened.snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let notes = opened.notes.join("\n");
    assert!(
        notes.contains("`c`, which failed") && notes.contains("`b` is partial") && notes.contains(FAILED),
        "{notes}"
    );
    let opened = of(&by_name, &["a"]).await;
    let unproved = ["the snapshot of `a` is unverified: no restore of it has proved that it is whole"];
    assert_eq!(opened.notes, unproved, "what nobody asked for is not missed");
}

/// Where nothing at all could be captured, the source has failed, also one that may be empty.
#[tokio::test]
async fn nothing_captured_of_what_was_there_is_a_failure() {
    let made = Made::new().await;
    let does =
        [Does::Captures(&[]), Does::Nothing(&["stream `orders`: gone", "stream `files`: gone"]), Does::Nothing(&[])];
    let (prepared, states) = made.captured(does, &[0, 1, 2]).await;
    assert_eq!(states, [SnapshotState::Complete, SnapshotState::Failed, SnapshotState::Failed]);
    let errors: Vec<String> =
        prepared.outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().err()).map(ToString::to_string).collect();
    assert!(errors[0].contains("`b`") && errors[0].contains("`orders`") && errors[0].contains("`files`"), "{errors:?}");
    assert!(errors[1].contains("holds nothing"), "{errors:?}");
}

/// The head knows how far apart the instants are, and how sure that is.
#[tokio::test]
async fn skew_is_in_the_head() {
    let made = Made::new().await;
    let (head, _) = made.backed_up([Does::Captures(&[]), Does::Captures(&[]), Does::Fails]).await;
    let (first, last) = (head.sources[0].cut_at.unwrap(), head.sources[1].cut_at.unwrap());
    let skew = head.skew.unwrap();
    assert!((skew.seconds - last.duration_since(first).as_secs_f64()).abs() < 1e-9 && skew.seconds > 0.0, "{skew:?}");
    assert!((skew.error_seconds - 0.02).abs() < 1e-9, "{skew:?}");
    assert_eq!(head.sources[0].cut_error_seconds, Some(0.01));
    assert_eq!(head.sources[2].cut_error_seconds, None);
}
