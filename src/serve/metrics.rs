//! Metrics: a pure function of what the repository says, so that a restart changes nothing.
//!
//! Names are fixed (DESIGN.md §7). Times are those at which backups *began*, for that is how old their data is at least. What a clock
//! that ran ahead has dated into the future is left out: it would keep every alert silent until that time has come.

use std::{fmt::Write, sync::atomic::AtomicU64, time::Duration};

use jiff::{SignedDuration, Timestamp};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, prometheus_text, text},
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::state::Observed;
use crate::{
    alert,
    config::{Config, SourceName},
    repository::{Head, HeadSource, History, Sizes},
    schedule,
};

/// Clocks that are further apart than this are wrong.
const CLOCKS_APART: SignedDuration = SignedDuration::from_mins(5);
/// The words that a verdict may be.
const VERDICTS: [&str; 4] = ["verified", FAILED, "inconclusive", UNVERIFIED];
const FAILED: &str = "failed";
const UNVERIFIED: &str = "unverified";

/// What is known of one configured source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceFacts {
    /// The configured name.
    pub source: String,
    /// When the newest backup began that holds a complete snapshot of it, or an empty one where that is allowed.
    pub last_success: Option<Timestamp>,
    /// When the newest backup began whose snapshot of it is complete and verified.
    pub last_verified: Option<Timestamp>,
    /// When the newest run began that was asked for it, whatever became of it.
    pub last_attempt: Option<Timestamp>,
    /// The longest time between two runs of its schedules.
    pub expected_interval: Option<Duration>,
    /// The same of the schedules that verify by restore.
    pub expected_proof_interval: Option<Duration>,
    /// Of its newest snapshot that was verified at any level: `verified`, `failed` or `inconclusive`; `unverified` where nothing is proved.
    pub verdict: &'static str,
    /// How long the newest verification took that ended `verified`, in seconds.
    pub verify_seconds: Option<f64>,
    /// Bytes of its newest snapshot.
    pub sizes: Option<Sizes>,
    /// What its newest snapshot leaves out.
    pub uncovered: Option<u64>,
}

/// [`SourceFacts::expected_interval`] and [`SourceFacts::expected_proof_interval`] of all sources, worked out once a day.
#[derive(Debug, Default)]
pub struct Intervals {
    day: Option<i64>,
    of: Vec<[Option<Duration>; 2]>,
}

impl Intervals {
    fn at(&mut self, config: &Config, now: Timestamp) -> &[[Option<Duration>; 2]] {
        let day = now.as_second().div_euclid(24 * 3600);
        if self.day != Some(day) {
            let of = |name: &SourceName| {
                [schedule::expected_interval(config, name, now), schedule::expected_proof_interval(config, name, now)]
            };
            *self = Self { day: Some(day), of: config.sources.iter().map(|source| of(&source.name)).collect() };
        }
        &self.of
    }
}

/// What is known of every configured source, in the file's order.
pub fn facts(config: &Config, history: &History, now: Timestamp, intervals: &mut Intervals) -> Vec<SourceFacts> {
    let intervals = intervals.at(config, now);
    let sources = config.sources.iter().zip(intervals);
    sources.map(|(source, interval)| of_source(source.name.as_str(), *interval, history, now)).collect()
}

fn of_source(name: &str, intervals: [Option<Duration>; 2], history: &History, now: Timestamp) -> SourceFacts {
    let is_past = |at: Timestamp| at.duration_since(now) <= CLOCKS_APART;
    let heads = || history.catalog.heads().filter(|head| is_past(head.started));
    let snapshots = || heads().filter_map(|head| head.source(name).map(|source| (head, source)));
    let verdicts = &history.verdicts;
    let newest = |fits: &dyn Fn(&Head, &HeadSource) -> bool| {
        snapshots().find(|(head, source)| fits(head, source)).map(|(head, _)| head.started)
    };
    let attempts = history.attempts.iter().filter(|one| is_past(one.started) && one.sources.iter().any(|s| s == name));
    let there = snapshots().find(|(_, source)| source.state.is_there()).map(|(_, source)| source);
    let examined = snapshots().find(|(head, source)| is_examined(history, head, source));
    let [expected_interval, expected_proof_interval] = intervals;
    SourceFacts {
        source: name.to_owned(),
        last_success: newest(&|_, source| source.state.is_usable()),
        last_verified: newest(&|head, source| verdicts.proves(head, source)),
        last_attempt: newest(&|_, _| true).into_iter().chain(attempts.map(|one| one.started)).max(),
        expected_interval,
        expected_proof_interval,
        verdict: match examined.map_or(UNVERIFIED, |(head, source)| verdicts.of(&head.backup, &source.name).word()) {
            // As the alert has it: what fires here and there is the same.
            _ if alert::is_bad(history, name, now) => FAILED,
            FAILED => UNVERIFIED,
            verdict => verdict,
        },
        verify_seconds: snapshots().find_map(|(head, source)| verdicts.of(&head.backup, &source.name).verify_seconds),
        sizes: there.map(|source| source.sizes),
        uncovered: there.map(|source| source.uncovered),
    }
}

/// Is there evidence on this snapshot, of any level?
fn is_examined(history: &History, head: &Head, source: &HeadSource) -> bool {
    let Some(manifest) = &source.manifest else { return false };
    let evidence = history.verdicts.evidence(&head.backup).iter().flat_map(|evidence| &evidence.sources);
    evidence.into_iter().any(|one| one.name == source.name && one.manifest == manifest.sha256)
}

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Prometheus,
}

impl Exposition {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSource {
    source: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVerdict {
    source: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBytes {
    source: String,
    what: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBuild {
    version: &'static str,
}

type Value = Gauge<f64, AtomicU64>;

/// Registers metrics and sets them.
struct Metrics(Registry);

impl Metrics {
    fn one(&mut self, name: &str, help: &str, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into() {
            let gauge = Value::default();
            gauge.set(value);
            self.0.register(name, help, gauge);
        }
    }

    fn each<L: EncodeLabelSet + Clone + std::fmt::Debug + Eq + std::hash::Hash + Send + Sync + 'static>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, f64)>,
    ) {
        let family = Family::<L, Value>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        if !family.is_empty() {
            self.0.register(name, help, family);
        }
    }

    fn of_sources(
        &mut self,
        name: &str,
        help: &str,
        facts: &[SourceFacts],
        value: impl Fn(&SourceFacts) -> Option<f64>,
    ) {
        let values = facts.iter().filter_map(|facts| Some((OfSource { source: facts.source.clone() }, value(facts)?)));
        self.each(name, help, values);
    }
}

/// Everything that is exposed.
pub(super) fn text(observed: &Observed, exposition: Exposition) -> String {
    let mut metrics = Metrics(Registry::default());
    metrics.each(
        "altlas_backup_build_info",
        "The program that answers",
        [(OfBuild { version: env!("CARGO_PKG_VERSION") }, 1.0)],
    );
    metrics.one(
        "altlas_backup_repository_readable",
        "Could the last look read the repository? Where not, everything below is what the last one saw that could",
        f64::from(u8::from(observed.known.is_some() && observed.problem.is_none())),
    );
    metrics.one(
        "altlas_backup_repository_last_read_timestamp_seconds",
        "When the repository was last read, by the store's clock",
        observed.known.as_ref().map(|known| seconds(known.now)),
    );
    metrics.one(
        "altlas_backup_repository_bytes",
        "Bytes of all objects of the repository; counted once an hour, and after a backup or a prune of this process",
        observed.bytes.map(|bytes| bytes as f64),
    );
    metrics.one(
        "altlas_backup_alerts_undelivered",
        "Changes that a receiver of alerts could not be told of yet",
        observed.undelivered as f64,
    );
    of_all_sources(&mut metrics, observed.known.as_ref().map_or(&[], |known| known.facts.as_slice()));
    let mut text = String::new();
    let written = match exposition {
        Exposition::OpenMetrics => text::encode(&mut text, &metrics.0),
        Exposition::Prometheus => prometheus_text::encode(&mut text, &metrics.0),
    };
    // A string takes everything.
    if written.is_err() {
        let _ = writeln!(text, "# incomplete");
    }
    text
}

fn of_all_sources(metrics: &mut Metrics, facts: &[SourceFacts]) {
    let time = |at: Option<Timestamp>| Some(at.map_or(0.0, seconds));
    metrics.of_sources(
        "altlas_backup_last_success_timestamp_seconds",
        "When the newest backup began that holds a complete snapshot of the source; 0: there is none",
        facts,
        |facts| time(facts.last_success),
    );
    metrics.of_sources(
        "altlas_backup_last_verified_timestamp_seconds",
        "When the newest backup began whose snapshot of the source is proved by a restore; 0: there is none",
        facts,
        |facts| time(facts.last_verified),
    );
    metrics.of_sources(
        "altlas_backup_last_attempt_timestamp_seconds",
        "When the newest run began that was asked for the source, whatever became of it; 0: there is none",
        facts,
        |facts| time(facts.last_attempt),
    );
    metrics.of_sources(
        "altlas_backup_expected_interval_seconds",
        "The longest time between two runs of the source's schedules within a year; absent without a schedule",
        facts,
        |facts| facts.expected_interval.map(|interval| interval.as_secs_f64()),
    );
    metrics.of_sources(
        "altlas_backup_expected_proof_interval_seconds",
        "The same of the schedules that verify each backup by a restore; absent without one",
        facts,
        |facts| facts.expected_proof_interval.map(|interval| interval.as_secs_f64()),
    );
    let verdicts = facts.iter().flat_map(|facts| {
        let is = |verdict| f64::from(u8::from(facts.verdict == verdict));
        VERDICTS.map(|verdict| (OfVerdict { source: facts.source.clone(), verdict }, is(verdict)))
    });
    metrics.each(
        "altlas_backup_verification_verdict",
        "1 for what is known of the source's newest snapshot that a verification has looked at, 0 for the rest",
        verdicts,
    );
    metrics.of_sources(
        "altlas_backup_verify_duration_seconds",
        "How long the newest verification took that proved a snapshot of the source: restore and comparison",
        facts,
        |facts| facts.verify_seconds,
    );
    let bytes = facts.iter().filter_map(|facts| facts.sizes.map(|sizes| (facts, sizes))).flat_map(|(facts, sizes)| {
        let of = |what, bytes: u64| (OfBytes { source: facts.source.clone(), what }, bytes as f64);
        [of("raw", sizes.raw), of("stored", sizes.stored), of("uploaded", sizes.uploaded)]
    });
    metrics.each(
        "altlas_backup_snapshot_bytes",
        "The source's newest snapshot: its plaintext, the objects it needs, and those that its backup wrote",
        bytes,
    );
    metrics.of_sources(
        "altlas_backup_uncovered_objects",
        "What the source's newest snapshot leaves out, by a filter, a version or a missing privilege",
        facts,
        |facts| facts.uncovered.map(|n| n as f64),
    );
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}
