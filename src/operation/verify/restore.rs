//! Level `restore`: every snapshot into a throwaway server, and compared.
//!
//! Three things may come of it, and only the first is green: it is what was captured; it is not, and the backup is bad; nobody can tell, since
//! the place was not fit for it. An error of a server is taken for the backup's fault only where nothing else can be.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{VerifiedSource, VerifyReport, part_reader};
use crate::{
    config::{GivenServers, ScratchMode, SourceSettings},
    operation::{Context, Error},
    pipeline::SnapshotReader,
    report,
    repository::{ComparedObject, Differing, Epoch, Head, HeadSource, Manifest, Reason, Repository, Verdict},
    scratch::{self, Scratch},
    source::{self, Cause, Identity, Proof, Source, SourceError, nats, postgres, redis},
};

/// How long a source may take to say who it is.
const ANSWERS: Duration = Duration::from_secs(20);

/// Proves every snapshot that has a manifest; what is damaged already is not restored.
pub(super) async fn prove_all(
    context: &Context,
    repository: &Repository,
    head: &Head,
    epoch: &Arc<Epoch>,
    manifests: Vec<Manifest>,
    report: &mut VerifyReport,
) -> Result<(), Error> {
    let parts = part_reader(context, repository, epoch)?;
    let total: u64 = manifests.iter().flat_map(|manifest| &manifest.artifacts).map(|artifact| artifact.raw).sum();
    context.progress.total_raw.store(total, std::sync::atomic::Ordering::Relaxed);
    let mut known = Vec::new();
    for manifest in manifests {
        let Some(found) = report.sources.iter_mut().find(|found| found.name == manifest.source.name) else { continue };
        if found.verdict == Verdict::Failed {
            continue;
        }
        let Some(in_head) = head.source(&manifest.source.name) else { continue };
        context.progress.set_phase(format!("restoring `{}`", manifest.source.name));
        let clock = Instant::now();
        let snapshot = SnapshotReader::new(manifest, parts.clone());
        let outcome = prove(context, in_head, &snapshot).await;
        let judged = judge(found, outcome);
        found.seconds = clock.elapsed().as_secs_f64();
        let Err(error) = judged else {
            known.push(found.name.clone());
            continue;
        };
        // Of it, and of those that come after it, nothing is known. That another one is bad must not be lost with it.
        report.sources.retain(|one| one.verdict == Verdict::Failed || known.contains(&one.name));
        if report.sources.iter().all(|one| one.verdict != Verdict::Failed) {
            return Err(error);
        }
        tracing::error!("not everything was verified: {error}");
        return Ok(());
    }
    Ok(())
}

/// What became of one proof.
enum Outcome {
    /// It ran to its end.
    Proof(Proof),
    /// The place was not fit, for this reason, in words and with the next step.
    Place(Reason, String, Option<String>),
}

type Proved = Result<Outcome, SourceError>;

/// One snapshot into one throwaway server.
async fn prove(context: &Context, source: &HeadSource, snapshot: &SnapshotReader) -> Result<Proved, Error> {
    match &context.config.scratch.mode {
        ScratchMode::Local => local(context, source, snapshot).await,
        ScratchMode::Given(servers) => given(context, source, snapshot, servers).await,
    }
}

/// In a server that is started for it.
async fn local(context: &Context, source: &HeadSource, snapshot: &SnapshotReader) -> Result<Proved, Error> {
    let mut wanted = match source::wanted(&source.kind, snapshot) {
        Ok(wanted) => wanted,
        Err(error) => return Ok(Err(error)),
    };
    // Where a source's client programs are, those for its throwaway server are.
    let configured = context.config.sources.iter().find(|config| config.name.as_str() == source.name);
    if let Some(SourceSettings::Postgres(config)) = configured.map(|config| &config.settings) {
        wanted.tools_dir.clone_from(&config.tools_dir);
    }
    let deadline = Deadline::after(context.config.scratch.timeout);
    let started = tokio::select! {
        started = deadline.limit(scratch::start(&source.kind, &wanted, &context.config.scratch)) => started,
        () = context.cancel.cancelled() => return Err(Error::Interrupted),
    };
    let scratch: Scratch = match started {
        Err(late) => return Ok(Ok(late)),
        Ok(Ok(scratch)) => scratch,
        Ok(Err(error)) => {
            return match error.reason() {
                Some(reason) => Ok(Ok(Outcome::Place(reason, error.to_string(), error.hint()))),
                None => Err(Error::Scratch(error)),
            };
        }
    };
    let server = source::open(&scratch.settings, &*context.environment)?;
    let captured = Identity { shown: format!("`{}`", source.name), marks: snapshot.server().to_vec() };
    let proved = claim_and_prove(context, &*server, snapshot, &[captured], deadline).await;
    // The server is ended, which takes a moment, and its folder removed.
    drop(tokio::task::spawn_blocking(move || drop(scratch)).await);
    proved
}

/// In a server that is given for it: never a source, or a replica of one.
async fn given(
    context: &Context,
    source: &HeadSource,
    snapshot: &SnapshotReader,
    servers: &GivenServers,
) -> Result<Proved, Error> {
    let settings = match source.kind.as_str() {
        postgres::KIND => servers.postgres.clone().map(SourceSettings::Postgres),
        redis::KIND => servers.redis.clone().map(SourceSettings::Redis),
        nats::KIND => servers.nats.clone().map(SourceSettings::Nats),
        _ => None,
    };
    let Some(settings) = settings else {
        let what = format!("no throwaway server of kind `{}` is given", source.kind);
        let hint = Some(format!("set `scratch.{}_url`", source.kind));
        return Ok(Ok(Outcome::Place(Reason::NoServer, what, hint)));
    };
    let server = source::open(&settings, &*context.environment)?;
    let others = tokio::select! {
        others = identities(context, source, snapshot) => others?,
        () = context.cancel.cancelled() => return Err(Error::Interrupted),
    };
    let deadline = Deadline::after(context.config.scratch.timeout);
    let proved = claim_and_prove(context, &*server, snapshot, &others, deadline).await;
    if matches!(&proved, Ok(Err(SourceError::Refused { .. }))) {
        return proved;
    }
    let proved = proved.map(|proved| proved.or_else(|error| of_a_given_server(&source.kind, error)));
    // What cannot be emptied now is found by the next one.
    match tokio::time::timeout(context.config.scratch.timeout, server.release()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("the throwaway server could not be emptied: {error}"),
        Err(_) => tracing::warn!("the throwaway server could not be emptied: it took too long"),
    }
    proved
}

/// Who the sources of that kind are, as far as they can be asked; of the one that was captured, also who it was then.
async fn identities(context: &Context, source: &HeadSource, snapshot: &SnapshotReader) -> Result<Vec<Identity>, Error> {
    let mut known = vec![Identity { shown: format!("`{}`", source.name), marks: snapshot.server().to_vec() }];
    for config in context.config.sources.iter().filter(|config| config.settings.kind() == source.kind) {
        let asked =
            async { context.source(config)?.identity().await.map_err(|error| named(&config.name.to_string(), error)) };
        match tokio::time::timeout(ANSWERS, asked).await {
            Ok(Ok(identity)) => {
                known.push(Identity { shown: format!("`{}` ({})", config.name, identity.shown), ..identity });
            }
            Ok(Err(error)) => tracing::warn!("who source `{}` is could not be asked: {error}", config.name),
            Err(_) => tracing::warn!("who source `{}` is could not be asked: it does not answer", config.name),
        }
    }
    Ok(known)
}

fn named(name: &str, error: SourceError) -> Error {
    Error::Source { name: name.to_owned(), error }
}

/// When a proof must be done.
#[derive(Clone, Copy)]
struct Deadline {
    limit: Duration,
    at: tokio::time::Instant,
}

impl Deadline {
    fn after(limit: Duration) -> Self {
        Self { limit, at: tokio::time::Instant::now() + limit }
    }

    /// Waits for `work` until then.
    async fn limit<T>(self, work: impl Future<Output = T>) -> Result<T, Outcome> {
        tokio::time::timeout_at(self.at, work).await.map_err(|_| {
            let what = format!("it took longer than {}", report::duration(self.limit));
            Outcome::Place(Reason::TimeOut, what, Some("raise `scratch.timeout`".to_owned()))
        })
    }
}

/// Claims the server and proves the snapshot in it.
async fn claim_and_prove(
    context: &Context,
    server: &dyn Source,
    snapshot: &SnapshotReader,
    others: &[Identity],
    deadline: Deadline,
) -> Result<Proved, Error> {
    let work = async {
        server.claim(others).await?;
        server.prove(snapshot, &context.cancel).await
    };
    let proved = tokio::select! {
        proved = deadline.limit(work) => proved,
        () = context.cancel.cancelled() => return Err(Error::Interrupted),
    };
    Ok(match proved {
        Ok(proved) => proved.map(Outcome::Proof),
        Err(late) => Ok(late),
    })
}

/// What a given server is not fit for, with the next step where its settings are, and not the source's.
fn of_a_given_server(kind: &str, error: SourceError) -> Result<Outcome, SourceError> {
    let Cause::Place(reason) = error.cause() else { return Err(error) };
    let hint = error.hint().map(|hint| {
        let hint = hint.replace("the source's", "the throwaway server's");
        format!("{hint} (`scratch.{kind}_url`, `scratch.{kind}_password_file`)")
    });
    Ok(Outcome::Place(reason, format!("the throwaway server: {error}"), hint))
}

/// Turns what happened into a verdict. Not into one: what the store says, a refusal, a signal.
fn judge(found: &mut VerifiedSource, outcome: Result<Proved, Error>) -> Result<(), Error> {
    match outcome? {
        Ok(Outcome::Proof(proof)) => conclude(found, proof),
        Ok(Outcome::Place(reason, what, hint)) => {
            (found.verdict, found.reason, found.hint) = (Verdict::Inconclusive, Some(reason), hint);
            found.inconclusive.push(what);
        }
        Err(error) => match error.cause() {
            Cause::Snapshot(reason) => {
                let what = error.to_string();
                found.hint = error.hint();
                found.fail(reason, [Differing { object: object_of(&error, &found.name), what }]);
            }
            Cause::Place(reason) => {
                (found.verdict, found.reason, found.hint) = (Verdict::Inconclusive, Some(reason), error.hint());
                found.inconclusive.push(error.to_string());
            }
            Cause::Neither => return Err(named(&found.name, error)),
        },
    }
    Ok(())
}

/// What an error is about: an object of the repository, where it says so.
fn object_of(error: &SourceError, source: &str) -> String {
    match error {
        SourceError::Pipeline(crate::pipeline::PipelineError::Trust(trust)) => trust.object().to_owned(),
        _ => format!("the snapshot of `{source}`"),
    }
}

fn conclude(found: &mut VerifiedSource, proof: Proof) {
    found.server = Some(proof.server);
    found.restore_seconds = Some(proof.restored.as_secs_f64());
    found.notes = proof.notes;
    let same = proof.same.into_iter();
    found.same = same.map(|one| ComparedObject { name: one.name, rows: one.rows, bytes: one.bytes }).collect();
    found.inconclusive = proof.not_comparable;
    if !proof.differences.is_empty() {
        let differing = |one: source::Difference| Differing { object: one.object, what: one.what };
        found.fail(Reason::Differs, proof.differences.into_iter().map(differing));
    } else if !found.inconclusive.is_empty() {
        (found.verdict, found.reason) = (Verdict::Inconclusive, Some(Reason::NotComparable));
    }
}
