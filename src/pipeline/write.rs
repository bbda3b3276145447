//! From a source into the repository.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::{Semaphore, oneshot, watch},
    task::JoinSet,
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    Budget, Clock, Lease, PipelineError, Progress,
    budget::{BASE, MOST_WINDOW, Slot},
    buffers::Buffers,
    codec,
    cut::{Cutter, Piece},
    rows::Rows,
};
use crate::{
    repository::{
        Artifact, Epoch, Fingerprint, Format, PartName, PartRef, ReusableParts, Reuse, RunTail, StoredPart, part_key,
    },
    store::{Store, StoreErrorKind},
};

/// Where a content stands in this run.
#[derive(Clone)]
enum Known {
    /// In the store: reused, or uploaded by this run (`new`).
    Stored { part: StoredPart, new: bool },
    /// Another job of this run is at it; the receiver tells when it is done.
    Pending(watch::Receiver<Option<StoredPart>>),
}

/// What this run wrote and did not need to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Plaintext of all artifacts, in bytes.
    pub raw: u64,
    /// Rows of all artifacts.
    pub rows: u64,
    /// Parts in the store that the snapshot needs, each once.
    pub parts: u64,
    /// Their bytes as stored.
    pub stored: u64,
    /// Those that this run uploaded.
    pub new_parts: u64,
    /// Their bytes as stored.
    pub uploaded: u64,
}

/// Turns pieces into stored parts; one for a run, shared by all its sources.
pub struct Pipeline {
    store: Store,
    epoch: Arc<Epoch>,
    run: RunTail,
    level: i32,
    budget: Budget,
    cpu: Semaphore,
    uploads: Semaphore,
    buffers: Arc<Buffers>,
    known: Mutex<HashMap<[u8; 32], Known>>,
    reusable: ReusableParts,
    progress: Arc<Progress>,
    clock: Clock,
}

impl Pipeline {
    /// A pipeline into `epoch`, whose new parts are marked with `run`.
    #[expect(clippy::too_many_arguments, reason = "each is one of a run's few fixed values")]
    pub fn new(
        store: Store,
        epoch: Arc<Epoch>,
        run: RunTail,
        level: i32,
        budget: Budget,
        uploads: usize,
        reusable: ReusableParts,
        progress: Arc<Progress>,
    ) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Arc::new(Self {
            store,
            epoch,
            run,
            level,
            budget,
            cpu: Semaphore::new(cores),
            uploads: Semaphore::new(uploads),
            buffers: Arc::default(),
            known: Mutex::default(),
            reusable,
            progress,
            clock: Clock::start(),
        })
    }

    /// A writer for the snapshot of one source.
    pub fn snapshot(self: &Arc<Self>) -> SnapshotWriter {
        SnapshotWriter {
            pipeline: self.clone(),
            artifacts: Mutex::default(),
            tasks: Mutex::new(JoinSet::new()),
            failure: Failure(Arc::new(watch::channel(None).0)),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One piece, from plaintext to a part that is in the store. Two jobs with the same content upload it once.
    async fn store_piece(&self, piece: Piece, mut lease: Lease) -> Result<PartRef, PipelineError> {
        let raw = piece.bytes.len() as u64;
        let keys = self.epoch.keys.clone();
        let (plain, content) = {
            let _cpu = self.cpu.acquire().await?;
            blocking(move || {
                let content = codec::content_hash(&keys, &piece.bytes);
                (piece.bytes, content)
            })
            .await?
        };
        let reference = |part: StoredPart| PartRef {
            name: part.name,
            raw,
            stored: part.stored,
            rows: piece.rows,
            continues: piece.continues,
        };
        // Where someone else has this content in hand, their channel; else ours, which tells others that we have.
        let claim = {
            let mut known = self.known();
            match known.get(&content) {
                Some(Known::Stored { part, .. }) => {
                    self.buffers.give(plain);
                    return Ok(reference(part.clone()));
                }
                Some(Known::Pending(done)) => Err(done.clone()),
                None => match self.reusable.get(&content) {
                    Some((part, Reuse::Known)) => {
                        known.insert(content, Known::Stored { part: part.clone(), new: false });
                        self.buffers.give(plain);
                        return Ok(reference(part.clone()));
                    }
                    found => {
                        let (done, waiting) = watch::channel(None);
                        known.insert(content, Known::Pending(waiting));
                        Ok((done, found.map(|(part, _)| part.clone())))
                    }
                },
            }
        };
        let (done, unproven) = match claim {
            Ok(ours) => ours,
            Err(mut pending) => {
                // This copy of the plaintext is not needed.
                self.buffers.give(plain);
                lease.shrink(0);
                return match pending.wait_for(Option::is_some).await.map(|part| part.clone()) {
                    Ok(Some(part)) => Ok(reference(part)),
                    // The other job failed, and its snapshot with it.
                    _ => Err(PipelineError::Stopped),
                };
            }
        };
        let finished = |part: StoredPart, new: bool| {
            self.known().insert(content, Known::Stored { part: part.clone(), new });
            let _ = done.send(Some(part.clone()));
            reference(part)
        };
        if let Some(part) = unproven
            && self.is_whole(&part, plain.len()).await?
        {
            return Ok(finished(part, false));
        }
        let (buffers, protection, level) = (self.buffers.clone(), self.epoch.protection.clone(), self.level);
        let (stored, digest) = {
            let _cpu = self.cpu.acquire().await?;
            blocking(move || codec::encode(&buffers, &protection, level, plain)).await??
        };
        let size = stored.len() as u64;
        lease.shrink(size);
        let name = PartName::new(&self.epoch.keys, content, digest, self.run.clone());
        {
            let _upload = self.uploads.acquire().await?;
            self.store.put(&part_key(&self.epoch, &name), stored.into()).await?;
        }
        Progress::add(&self.progress.moved, size);
        Ok(finished(StoredPart { name, stored: size }, true))
    }

    /// Reads a part that a run left behind which crashed: is it all there, and as it was sent? No manifest has told its size,
    /// so one that was cut short would be taken for whole.
    async fn is_whole(&self, part: &StoredPart, plain: usize) -> Result<bool, PipelineError> {
        let key = part_key(&self.epoch, &part.name);
        // Whatever is longer is damaged, and the lease has no room for it.
        let whole = part.stored <= codec::longest(&self.epoch.protection, plain) as u64 && {
            let _upload = self.uploads.acquire().await?;
            match self.store.get_at_most(&key, part.stored).await {
                Ok(stored) if stored.len() as u64 == part.stored => {
                    let digest = part.name.stored;
                    blocking(move || codec::is_stored_as(&stored, &digest)).await?
                }
                Ok(_) => false,
                Err(error) if matches!(error.kind, StoreErrorKind::NotFound | StoreErrorKind::TooLarge) => false,
                Err(error) => return Err(error.into()),
            }
        };
        if !whole {
            tracing::warn!("{key} of an unfinished backup is damaged; it will not be reused");
        }
        Ok(whole)
    }

    fn is_new(&self, content: &[u8; 32]) -> bool {
        matches!(self.known().get(content), Some(Known::Stored { new: true, .. }))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PipelineError> {
    // A join error is a panic in the work or a runtime that shuts down; either way the run is over.
    tokio::task::spawn_blocking(work).await.map_err(|_| PipelineError::Stopped)
}

/// The first failure of a snapshot; makes its writers stop early.
#[derive(Clone)]
struct Failure(Arc<watch::Sender<Option<PipelineError>>>);

impl Failure {
    fn set(&self, error: PipelineError) {
        self.0.send_if_modified(|first| {
            // `Stopped` only echoes another failure.
            let takes = matches!(first, None | Some(PipelineError::Stopped));
            if takes {
                *first = Some(error);
            }
            takes
        });
    }

    fn get(&self) -> Option<PipelineError> {
        self.0.borrow().clone()
    }

    fn check(&self) -> Result<(), PipelineError> {
        self.get().map_or(Ok(()), Err)
    }
}

/// An artifact whose parts are on their way.
struct OpenArtifact {
    path: String,
    format: Format,
    raw: u64,
    fingerprint: Option<Fingerprint>,
    digest: Option<String>,
    detail: Value,
    parts: Vec<oneshot::Receiver<PartRef>>,
}

/// Collects the artifacts of one snapshot. Dropping it stops what is on its way.
pub struct SnapshotWriter {
    pipeline: Arc<Pipeline>,
    artifacts: Mutex<Vec<OpenArtifact>>,
    /// The parts that are on their way; dropping this stops them.
    tasks: Mutex<JoinSet<()>>,
    failure: Failure,
}

impl SnapshotWriter {
    /// Opens an artifact. Waits while too many writers are open; a task must not hold one writer and wait for another.
    ///
    /// # Errors
    /// What made an earlier part of this snapshot fail.
    pub async fn artifact(&self, path: impl Into<String>, format: Format) -> Result<ArtifactWriter<'_>, PipelineError> {
        self.artifact_with_window(path, format, 0).await
    }

    /// The same with `window` bytes of the memory budget, at most [`MOST_WINDOW`], for what the source sends before it is taken: they are
    /// the caller's from the moment the writer is there until it is finished or dropped, beside what the writer takes for its parts.
    ///
    /// # Errors
    /// As [`SnapshotWriter::artifact`]; `WindowTooLarge`.
    pub async fn artifact_with_window(
        &self,
        path: impl Into<String>,
        format: Format,
        window: u64,
    ) -> Result<ArtifactWriter<'_>, PipelineError> {
        self.failure.check()?;
        if window > MOST_WINDOW {
            return Err(PipelineError::WindowTooLarge { window, most: MOST_WINDOW });
        }
        let parts = self.open(format, window).await?;
        let digest = match format {
            Format::Sql | Format::Text => Some(Box::new(TextDigest::new(self.fingerprint_seed()))),
            Format::CopyText | Format::CopyBinary | Format::Rdb | Format::JetStream => None,
        };
        Ok(ArtifactWriter { path: path.into(), digest, parts })
    }

    /// Opens a writer for a range of an artifact's rows, of which several may be written at a time. Waits as
    /// [`SnapshotWriter::artifact`] does. With `after_border` the range does not begin where the artifact does: the one before it goes on into
    /// it ([`RangeWriter::until_border`]), and whatever rows that takes are left out here.
    ///
    /// # Errors
    /// What made an earlier part of this snapshot fail.
    pub async fn range(&self, format: Format, after_border: bool) -> Result<RangeWriter<'_>, PipelineError> {
        self.failure.check()?;
        let mut parts = self.open(format, 0).await?;
        if after_border && let Cutter::Rows(cutter) = &mut parts.cutter {
            cutter.after_border();
        }
        Ok(RangeWriter { parts })
    }

    async fn open(&self, format: Format, window: u64) -> Result<Parts<'_>, PipelineError> {
        let slot = self.pipeline.budget.writer(window).await?;
        let seed = self.fingerprint_seed();
        let cutter = match format {
            Format::Sql | Format::Text | Format::CopyText => Cutter::rows(Rows::Text, seed),
            Format::CopyBinary => Cutter::rows(Rows::Binary, seed),
            Format::Rdb | Format::JetStream => Cutter::slices(seed),
        };
        Ok(Parts { snapshot: self, format, cutter, lease: None, raw: 0, parts: Vec::new(), _slot: slot })
    }

    /// An artifact of ranges that were written, in their order. Returns its bytes and its fingerprint: none where a range ends within a row, or
    /// the ranges do not meet: what each left out for the one before must be what that one took.
    ///
    /// # Errors
    /// What made a part of this snapshot fail.
    pub fn join(
        &self,
        path: impl Into<String>,
        format: Format,
        ranges: Vec<Range>,
        detail: Value,
    ) -> Result<(u64, Option<Fingerprint>), PipelineError> {
        let mut whole = Range { fingerprint: Some(Fingerprint::default()), ..Range::default() };
        for range in ranges {
            whole.raw += range.raw;
            whole.fingerprint = whole.fingerprint.zip(range.fingerprint).map(|(sum, one)| sum.with(&one));
            let ((left_out, beyond), (one, other)) = (whole.at_borders, range.at_borders);
            whole.at_borders = (left_out.with(&one), beyond.with(&other));
            whole.parts.extend(range.parts);
        }
        if whole.at_borders.0 != whole.at_borders.1 {
            whole.fingerprint = None;
        }
        let (raw, fingerprint) = (whole.raw, whole.fingerprint);
        self.add(OpenArtifact {
            path: path.into(),
            format,
            raw,
            fingerprint,
            digest: None,
            detail,
            parts: whole.parts,
        });
        self.failure.check()?;
        Ok((raw, fingerprint))
    }

    fn add(&self, artifact: OpenArtifact) {
        self.artifacts.lock().unwrap_or_else(PoisonError::into_inner).push(artifact);
    }

    /// Forgets every artifact so far, as if none had been written: their parts are known and will be used again. To be said with no writer open.
    pub fn start_over(&self) {
        self.artifacts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// When `at` was, by the clock that all cuts of this run are told on.
    pub fn time(&self, at: Instant) -> Timestamp {
        self.pipeline.clock.time(at)
    }

    /// The seed of row hashes of this run.
    pub fn fingerprint_seed(&self) -> u64 {
        self.pipeline.epoch.keys.fingerprint_seed()
    }

    /// The key for `pg_dump --restrict-key`.
    pub fn restrict_key(&self) -> String {
        self.pipeline.epoch.keys.restrict_key()
    }

    /// Counters for whoever shows them.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.pipeline.progress
    }

    /// Why the snapshot failed, if it has: a writer's own error may only be an echo of it.
    pub fn failure(&self) -> Option<PipelineError> {
        self.failure.get()
    }

    /// Waits for every part to be in the store; the artifacts come sorted by path.
    ///
    /// # Errors
    /// The first failure of any part.
    pub async fn finish(self) -> Result<(Vec<Artifact>, Written), PipelineError> {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(ended) = tasks.join_next().await {
            if ended.is_err() {
                self.failure.set(PipelineError::Stopped);
            }
        }
        self.failure.check()?;
        let mut written = Written::default();
        let mut counted = HashSet::new();
        let mut artifacts = Vec::new();
        let opened = std::mem::take(&mut *self.artifacts.lock().unwrap_or_else(PoisonError::into_inner));
        for open in opened {
            let mut parts = Vec::with_capacity(open.parts.len());
            for part in open.parts {
                parts.push(part.await.map_err(|_| PipelineError::Stopped)?);
            }
            for part in &parts {
                if counted.insert(part.name.content) {
                    written.parts += 1;
                    written.stored += part.stored;
                    if self.pipeline.is_new(&part.name.content) {
                        written.new_parts += 1;
                        written.uploaded += part.stored;
                    }
                }
            }
            written.raw += open.raw;
            written.rows += open.fingerprint.map_or(0, |fingerprint| fingerprint.rows);
            artifacts.push(Artifact {
                path: open.path,
                format: open.format,
                raw: open.raw,
                fingerprint: open.fingerprint,
                digest: open.digest,
                detail: open.detail,
                parts,
            });
        }
        artifacts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((artifacts, written))
    }
}

/// The digest of a text as it is captured: [`Artifact::digest`].
#[derive(Clone)]
pub struct TextDigest(Xxh3);

impl TextDigest {
    /// Of nothing yet. `seed` is the epoch's fingerprint seed.
    pub fn new(seed: u64) -> Self {
        Self(Xxh3::with_seed(seed))
    }

    /// Adds some bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// As the manifest holds it.
    pub fn finish(&self) -> String {
        format!("{:032x}", self.0.digest128())
    }
}

/// Takes the bytes of one artifact in any slices.
pub struct ArtifactWriter<'a> {
    path: String,
    digest: Option<Box<TextDigest>>,
    parts: Parts<'a>,
}

impl ArtifactWriter<'_> {
    /// Takes some bytes. Waits while the memory budget is full, which is what slows a source down to the store's pace.
    ///
    /// # Errors
    /// What made a part of this snapshot fail.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), PipelineError> {
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
        self.parts.write(bytes).await
    }

    /// The artifact is complete; its last parts may still be on their way.
    ///
    /// Returns bytes and, for rows, the fingerprint: none where the last row has no end.
    ///
    /// # Errors
    /// What made a part of this snapshot fail.
    pub async fn finish(self, detail: Value) -> Result<(u64, Option<Fingerprint>), PipelineError> {
        self.end(None, detail)
    }

    /// The same, of an artifact whose fingerprint only its source can tell.
    ///
    /// # Errors
    /// What made a part of this snapshot fail.
    pub async fn finish_with(self, fingerprint: Option<Fingerprint>, detail: Value) -> Result<u64, PipelineError> {
        Ok(self.end(fingerprint, detail)?.0)
    }

    fn end(self, told: Option<Fingerprint>, detail: Value) -> Result<(u64, Option<Fingerprint>), PipelineError> {
        let Self { path, digest, parts } = self;
        let (snapshot, format) = (parts.snapshot, parts.format);
        let Range { raw, fingerprint: counted, parts, .. } = parts.finish()?;
        let fingerprint = match format {
            Format::Sql | Format::Text => None,
            Format::CopyText | Format::CopyBinary => counted,
            Format::Rdb | Format::JetStream => told,
        };
        let digest = digest.map(|digest| digest.finish());
        snapshot.add(OpenArtifact { path, format, raw, fingerprint, digest, detail, parts });
        snapshot.failure.check()?;
        Ok((raw, fingerprint))
    }
}

/// What was written of a range of an artifact's rows; its last parts may still be on their way.
#[derive(Default)]
pub struct Range {
    raw: u64,
    /// None where the last row has no end.
    fingerprint: Option<Fingerprint>,
    /// The rows that were left out for the range before, and those that were taken of the one behind.
    at_borders: (Fingerprint, Fingerprint),
    parts: Vec<oneshot::Receiver<PartRef>>,
}

/// Takes a range of an artifact's rows.
pub struct RangeWriter<'a> {
    parts: Parts<'a>,
}

impl RangeWriter<'_> {
    /// As [`ArtifactWriter::write`]. What comes past the border is left out.
    ///
    /// # Errors
    /// What made a part of this snapshot fail.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), PipelineError> {
        self.parts.write(bytes).await
    }

    /// The range ends here, and another writer's begins, or comes to where one began. Go on with its rows until [`RangeWriter::is_past_border`]: so
    /// parts are cut where they would be if nobody had begun there. To be said between rows.
    pub fn until_border(&mut self) {
        if let Cutter::Rows(cutter) = &mut self.parts.cutter {
            cutter.until_border();
        }
    }

    /// Has it taken all that it is to take beyond its range?
    pub fn is_past_border(&self) -> bool {
        matches!(&self.parts.cutter, Cutter::Rows(cutter) if cutter.is_past_border())
    }

    /// All of the range has been written.
    ///
    /// # Errors
    /// What made a part of this snapshot fail.
    pub fn finish(self) -> Result<Range, PipelineError> {
        self.parts.finish()
    }
}

/// Makes parts of bytes.
struct Parts<'a> {
    snapshot: &'a SnapshotWriter,
    format: Format,
    cutter: Cutter,
    lease: Option<Lease>,
    /// Bytes of the pieces so far.
    raw: u64,
    parts: Vec<oneshot::Receiver<PartRef>>,
    _slot: Slot,
}

impl Parts<'_> {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), PipelineError> {
        // Small slices, so that the lease covers what the piece grows to before it does.
        for slice in bytes.chunks(1024 * 1024) {
            let mut rest = slice;
            while !rest.is_empty() {
                let need = 2 * (self.cutter.held() + rest.len() as u64);
                match &mut self.lease {
                    Some(lease) => lease.cover(need).await?,
                    None => self.lease = Some(self.snapshot.pipeline.budget.lease(BASE).await?),
                }
                self.cutter.be_given(&self.snapshot.pipeline.buffers);
                let (taken, piece) = self.cutter.take(rest);
                rest = &rest[taken..];
                if let Some(piece) = piece {
                    self.submit(piece)?;
                    // What is left of a row that did not fit stays behind and needs its own lease.
                    let held = self.cutter.held();
                    if held > 0 {
                        let mut lease = self.snapshot.pipeline.budget.lease(BASE).await?;
                        lease.cover(2 * held).await?;
                        self.lease = Some(lease);
                    }
                }
            }
        }
        Progress::add(&self.snapshot.pipeline.progress.raw, bytes.len() as u64);
        self.snapshot.failure.check()
    }

    /// Hands a complete piece over to a job of its own.
    fn submit(&mut self, mut piece: Piece) -> Result<(), PipelineError> {
        if piece.bytes.len() < piece.bytes.capacity() / 8 {
            // Thousands of small tables would each keep a large buffer busy.
            let small = piece.bytes.as_slice().to_vec();
            self.snapshot.pipeline.buffers.give(std::mem::replace(&mut piece.bytes, small));
        }
        let mut lease = self.lease.take().ok_or(PipelineError::Stopped)?;
        lease.settle();
        lease.shrink(2 * piece.bytes.len() as u64);
        self.raw += piece.bytes.len() as u64;
        let (done, part) = oneshot::channel();
        self.parts.push(part);
        let (pipeline, failure) = (self.snapshot.pipeline.clone(), self.snapshot.failure.clone());
        Progress::add(&pipeline.progress.rows, piece.rows);
        let task = async move {
            match pipeline.store_piece(piece, lease).await {
                Ok(part) => {
                    Progress::add(&pipeline.progress.parts, 1);
                    let _ = done.send(part);
                }
                Err(error) => failure.set(error),
            }
        };
        let mut tasks = self.snapshot.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(task);
        // Finished tasks would pile up, one for each part of the run.
        while tasks.try_join_next().is_some() {}
        Ok(())
    }

    fn finish(mut self) -> Result<Range, PipelineError> {
        let cutter = std::mem::replace(&mut self.cutter, Cutter::rows(Rows::Text, 0));
        let at_borders = match &cutter {
            Cutter::Rows(cutter) => cutter.at_borders(),
            Cutter::Slices(_) => Default::default(),
        };
        let (last, fingerprint) = cutter.finish();
        if let Some(piece) = last {
            self.submit(piece)?;
        }
        Ok(Range { raw: self.raw, fingerprint, at_borders, parts: self.parts })
    }
}
