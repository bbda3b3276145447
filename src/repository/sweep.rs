//! The sweep: what nothing needs any more goes (rules R8, R9).
//!
//! [`Survey::take`] looks, [`plan`] decides, [`SweepPlan::carry_out`] deletes. Looking is done in one order, and the proof leans on it: the
//! store's clock; the parts of all epochs; the heads; the tombstones; then what heads, young tombstones and young manifests without a head
//! name. A part goes only if it was listed, is older than the grace period, and none of these names it.
//!
//! Why nothing that goes can be in use (R7): a backup uses a part that it wrote, or one that was younger than a third of the grace period
//! when it began, and is committed within half a grace period, so that its head is seen before such a part is old; or one that a head
//! named when it began, which is seen as a head, or has a tombstone that is at most half a grace period old. What nothing needs at one
//! look is never needed again: so a sweep that was suspended for days between looking and deleting does no harm, nor do two at once.
//!
//! Deleting is ordered so that a crash leaves what the next sweep finds again: parts, then the manifests that named them, then tombstones,
//! then the records of epochs.

mod carry_out;
mod survey;

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

pub use self::survey::Survey;
use super::{BackupId, Epoch, EpochId, PartName, layout, retention::TooMany};
use crate::{report, store::ObjectInfo};

/// Records of runs without a backup that stay in any case.
const ATTEMPTS_KEPT: usize = 100;
/// How long the others stay.
const ATTEMPTS_KEPT_FOR: Duration = Duration::from_secs(90 * 24 * 3600);

/// The store's time when the survey began, and how old something must be to go.
#[derive(Clone, Copy, Debug)]
struct Ages {
    now: Timestamp,
    grace: Duration,
}

impl Ages {
    /// What is from the future has no age: it is as good as new.
    fn is_older(&self, at: Timestamp, than: Duration) -> bool {
        SignedDuration::try_from(than).is_ok_and(|than| self.now.duration_since(at) >= than)
    }

    fn is_old(&self, at: Timestamp) -> bool {
        self.is_older(at, self.grace)
    }

    /// What was written before is old.
    fn old_before(&self) -> Timestamp {
        self.now
            .checked_sub(SignedDuration::try_from(self.grace).unwrap_or(SignedDuration::MAX))
            .unwrap_or(Timestamp::MIN)
    }

    /// When what was written then will be old.
    fn old_at(&self, at: Timestamp) -> Timestamp {
        at.checked_add(SignedDuration::try_from(self.grace).unwrap_or(SignedDuration::MAX)).unwrap_or(Timestamp::MAX)
    }
}

/// A part of an epoch, as sixteen bytes of its key's hash: of hundreds of thousands each is held in memory. Two that collide only keep
/// each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PartMark(u128);

impl PartMark {
    fn new(epoch: &EpochId, name: &PartName) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(format!("{epoch}/{name}").as_bytes()))
    }
}

/// How alive a backup is; only the last of each kind may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// It has a head; a tombstone beside it means nothing.
    Head,
    /// It expired, a shorter time ago than the grace period.
    Buried,
    /// It expired longer ago.
    Gone,
    /// Without head or tombstone, written to within the grace period: under way, or crashed.
    Running,
    /// Without head or tombstone, and so old that it will never be committed.
    Abandoned,
}

impl Life {
    fn new(has_head: bool, expired: Option<Timestamp>, written: Timestamp, ages: &Ages) -> Self {
        match expired {
            _ if has_head => Self::Head,
            Some(at) if ages.is_old(at) => Self::Gone,
            Some(_) => Self::Buried,
            None if ages.is_old(written) => Self::Abandoned,
            None => Self::Running,
        }
    }

    /// Do the parts that it names stay?
    fn protects(self) -> bool {
        matches!(self, Self::Head | Self::Buried | Self::Running)
    }
}

/// A backup as the survey saw it.
#[derive(Debug)]
struct SeenBackup {
    id: BackupId,
    life: Life,
    /// The epoch that it needs; none where it is not known, since it goes anyway or is a brake.
    epoch: Option<EpochId>,
    /// When it expired, or was last written to.
    since: Timestamp,
    manifests: Vec<ObjectInfo>,
    evidence: Vec<ObjectInfo>,
    tombstones: Vec<ObjectInfo>,
}

/// A part that is old enough to go.
#[derive(Debug)]
struct OldPart {
    name: PartName,
    bytes: u64,
}

/// What is known of an epoch.
#[derive(Debug)]
enum EpochState {
    /// It was opened.
    Open(std::sync::Arc<Epoch>),
    /// It has no record, so it does not exist: a run crashed when it began it, or a sweep when it removed it.
    NoRecord,
    /// It cannot be opened or believed here, and is left alone.
    Closed(String),
}

/// An epoch as the survey saw it.
#[derive(Debug)]
struct SeenEpoch {
    id: EpochId,
    state: EpochState,
    /// Its record and keys.
    records: Vec<ObjectInfo>,
    /// All of its parts.
    parts: Tally,
    /// Those that are older than the grace period.
    old: Vec<OldPart>,
    /// Objects that are none of ours.
    strangers: u64,
}

/// A number of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }

    fn of<'a>(objects: impl IntoIterator<Item = &'a ObjectInfo>) -> Self {
        let mut tally = Self::default();
        objects.into_iter().for_each(|info| tally.add(info.size));
        tally
    }

    /// Several as one.
    pub fn sum(tallies: impl IntoIterator<Item = Self>) -> Self {
        tallies
            .into_iter()
            .fold(Self::default(), |sum, one| Self { objects: sum.objects + one.objects, bytes: sum.bytes + one.bytes })
    }
}

/// Why nothing is removed (R9).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Brake {
    /// Not one backup.
    #[error("there is no backup, so that nothing says what is in use")]
    NoHeads,
    /// What may name parts cannot be read.
    #[error("{what}, so that what it uses is not known")]
    Unreadable {
        /// What is wrong, with the object's key.
        what: String,
        /// The next step, where there is a better one than the general.
        hint: Option<String>,
    },
    /// Too many parts would go without a known reason.
    #[error(
        "{} of {} would go that no expired backup explains, more than {percent} %",
        report::count(*parts, "part"), of
    )]
    Unexplained {
        /// So many.
        parts: u64,
        /// Of so many.
        of: u64,
        /// The most that may, in percent.
        percent: u32,
    },
    /// Too many of a source's snapshots would expire at once.
    #[error("{0}")]
    TooMany(TooMany),
}

impl Brake {
    /// The next step.
    pub fn hint(&self) -> String {
        match self {
            Self::NoHeads => "check `repository.url`; after the first backup there is something to go by".into(),
            Self::Unreadable { hint: Some(hint), .. } => hint.clone(),
            Self::Unreadable { hint: None, .. } => {
                "`altlas-backup list` and `doctor` tell more; bring the object back from \
                a copy of the store, or remove the folder of that backup by hand if it is given up"
                    .into()
            }
            Self::Unexplained { .. } => {
                "runs that were killed leave such parts; if that explains them: `altlas-backup prune \
                --sweep-at-most 100`, once"
                    .into()
            }
            Self::TooMany(_) => {
                "if the rules are as they are meant (`altlas-backup prune --dry-run` shows what they keep): \
                `altlas-backup prune --expire-at-most 100`, once"
                    .into()
            }
        }
    }
}

/// A backup that expired.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpiredBackup {
    /// Its id.
    pub backup: BackupId,
    /// When, by the store's clock.
    pub expired: Timestamp,
    /// Does it go now, with what only it names?
    pub goes: bool,
    /// When it may; until then its expiry can be undone.
    pub goes_from: Timestamp,
    /// Manifests, evidence and tombstones.
    pub records: Tally,
}

/// Manifests or evidence without a head.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnfinishedBackup {
    /// The id.
    pub backup: BackupId,
    /// When the last of it was written, by the store's clock.
    pub written: Timestamp,
    /// Does it go now, with what only it names?
    pub goes: bool,
    /// Manifests and evidence.
    pub records: Tally,
}

/// What the sweep removes, and what it keeps for now.
#[derive(Debug, Serialize)]
pub struct SweepPlan {
    /// Backups that have a head.
    pub backups: u64,
    /// Every part there is.
    pub parts: Tally,
    /// Parts that are not in use and too young to go.
    pub young: Tally,
    /// Parts that go.
    pub unused: Tally,
    /// Those of them that belonged to backups which expired.
    pub explained: Tally,
    /// Backups that expired, newest first.
    pub expired: Vec<ExpiredBackup>,
    /// Runs that never wrote a head, newest first.
    pub unfinished: Vec<UnfinishedBackup>,
    /// Records of runs without a backup that go.
    pub attempts: Tally,
    /// Records of alerts that go: a later change of the same alert followed long ago.
    pub alerts: u64,
    /// Epochs that go.
    pub epochs: Vec<EpochId>,
    /// What to know, in words.
    pub notes: Vec<String>,
    /// Why nothing of it is to be carried out.
    #[serde(skip)]
    pub brakes: Vec<Brake>,
    #[serde(skip)]
    work: Work,
}

/// What is deleted, in its order.
#[derive(Debug, Default)]
struct Work {
    /// Parts, by epoch.
    parts: Vec<(std::sync::Arc<Epoch>, Vec<PartName>)>,
    /// Keys; each list only once all before it are gone.
    then: Vec<Vec<String>>,
}

impl SweepPlan {
    /// Is there nothing to do?
    pub fn is_empty(&self) -> bool {
        self.work.parts.iter().all(|(_, parts)| parts.is_empty()) && self.work.then.iter().all(Vec::is_empty)
    }
}

/// Decides what goes. At most `percent` of the parts may go that no expired backup explains (R9).
pub fn plan(survey: Survey, percent: u32) -> SweepPlan {
    let Survey {
        ages,
        epochs,
        mut backups,
        mut attempts,
        alerts,
        epochs_of_alerts,
        named,
        explained,
        unreadable,
        mut notes,
    } = survey;
    backups.sort_by(|a, b| b.id.cmp(&a.id));
    let heads = backups.iter().filter(|backup| backup.life == Life::Head).count() as u64;
    let parts = Tally::sum(epochs.iter().map(|epoch| epoch.parts));
    let (old_attempts, attempt_epochs) = old_attempts(&mut attempts, &ages);
    let in_use = backups.iter().filter(|backup| backup.life.protects()).filter_map(|backup| backup.epoch.clone());
    let in_use: BTreeSet<EpochId> = in_use.chain(attempt_epochs).chain(epochs_of_alerts).collect();
    let gone_epochs = gone_epochs(&epochs, &named, &in_use, &ages);
    let mut work = Work::default();
    records_of(&backups, &mut work);
    let told = alerts.len() as u64;
    work.then.push(old_attempts.iter().map(|info| info.key.clone()).chain(alerts).collect());
    for epoch in epochs.iter().filter(|epoch| gone_epochs.contains(&epoch.id)) {
        // Without its record it does not exist; keys alone are found by the next sweep.
        let (record, keys) = epoch.records.iter().partition(|info| info.key == layout::epoch_record(&epoch.id));
        work.then.extend([record, keys].map(|list: Vec<&ObjectInfo>| list.iter().map(|i| i.key.clone()).collect()));
    }
    let (mut unused, mut of_expired, mut in_use) = (Tally::default(), Tally::default(), Tally::default());
    let mut without_reason = 0;
    for epoch in epochs {
        if epoch.strangers > 0 {
            let objects = report::count(epoch.strangers, "object");
            notes.push(format!("{objects} in epoch {} are none of this program and are left alone", epoch.id));
        }
        let open = match epoch.state {
            EpochState::Open(open) => open,
            EpochState::NoRecord if gone_epochs.contains(&epoch.id) => continue,
            EpochState::NoRecord => {
                notes.push(format!("epoch {} has no record and is left alone", epoch.id));
                continue;
            }
            EpochState::Closed(why) => {
                notes.push(format!("epoch {} is left alone: {why}", epoch.id));
                continue;
            }
        };
        let mut going = Vec::new();
        for OldPart { name, bytes } in epoch.old {
            let mark = PartMark::new(&epoch.id, &name);
            if named.contains(&mark) {
                in_use.add(bytes);
                continue;
            }
            unused.add(bytes);
            match explained.contains(&mark) {
                true => of_expired.add(bytes),
                false => without_reason += 1,
            }
            going.push(name);
        }
        work.parts.push((open, going));
    }
    let expired = backups.iter().filter(|backup| matches!(backup.life, Life::Buried | Life::Gone));
    let unfinished = backups.iter().filter(|backup| matches!(backup.life, Life::Running | Life::Abandoned));
    let old = Tally::sum([unused, in_use]);
    SweepPlan {
        backups: heads,
        parts,
        young: Tally { objects: parts.objects - old.objects, bytes: parts.bytes - old.bytes },
        unused,
        explained: of_expired,
        expired: expired.map(|backup| told_expired(backup, &ages)).collect(),
        unfinished: unfinished.map(told_unfinished).collect(),
        attempts: Tally::of(&old_attempts),
        alerts: told,
        epochs: gone_epochs,
        notes,
        brakes: brakes(heads, unreadable, without_reason, parts.objects, percent),
        work,
    }
}

/// R9.
fn brakes(heads: u64, unreadable: Vec<Brake>, without_reason: u64, parts: u64, percent: u32) -> Vec<Brake> {
    let mut brakes = unreadable;
    // Where there are heads that cannot be read, that is the answer.
    if heads == 0 && brakes.is_empty() {
        brakes.push(Brake::NoHeads);
    }
    if without_reason * 100 > parts * u64::from(percent) {
        brakes.push(Brake::Unexplained { parts: without_reason, of: parts, percent });
    }
    brakes
}

/// Manifests and evidence of what is gone for good, then tombstones.
fn records_of(backups: &[SeenBackup], work: &mut Work) {
    let gone = || backups.iter().filter(|backup| !backup.life.protects());
    let keys = |list: &[ObjectInfo]| list.iter().map(|info| info.key.clone()).collect::<Vec<_>>();
    work.then.push(gone().flat_map(|backup| keys(&backup.manifests)).collect());
    work.then.push(gone().flat_map(|backup| keys(&backup.evidence)).collect());
    work.then.push(gone().flat_map(|backup| keys(&backup.tombstones)).collect());
}

/// A record of a run without a backup, and the epoch whose key proves it.
type SeenAttempt = (ObjectInfo, Option<EpochId>);

/// The records of attempts that go, and the epochs that the others need.
fn old_attempts(attempts: &mut [SeenAttempt], ages: &Ages) -> (Vec<ObjectInfo>, Vec<EpochId>) {
    attempts.sort_by(|(a, _), (b, _)| (b.last_modified, &b.key).cmp(&(a.last_modified, &a.key)));
    let stays = |place: usize, at: Timestamp| place < ATTEMPTS_KEPT || !ages.is_older(at, ATTEMPTS_KEPT_FOR);
    let (mut go, mut needed) = (Vec::new(), Vec::new());
    for (place, (info, epoch)) in attempts.iter().enumerate() {
        match stays(place, info.last_modified) {
            true => needed.extend(epoch.clone()),
            false => go.push(info.clone()),
        }
    }
    (go, needed)
}

/// Epochs that go, the oldest first. An epoch goes only with all older ones, for its record says when the one before it ended: without it,
/// whoever holds the keys of that one could date forged backups later. And only once there is a newer one into which backups have gone for
/// longer than the grace period: then none is under way in it. That one's record must have been seen for so long, not only begun: whoever
/// begins an epoch may be suspended before it writes the record, and until then others go on with the epoch before. For the same reason keys
/// without a record wait for a newer epoch too: their record may be about to be written, and is used by nobody once there is a newer one.
fn gone_epochs(
    epochs: &[SeenEpoch],
    named: &HashSet<PartMark>,
    in_use: &BTreeSet<EpochId>,
    ages: &Ages,
) -> Vec<EpochId> {
    let unused = |epoch: &SeenEpoch| {
        let parts_go = epoch.parts.objects == epoch.old.len() as u64
            && epoch.old.iter().all(|part| !named.contains(&PartMark::new(&epoch.id, &part.name)));
        let records_old = epoch.records.iter().all(|info| ages.is_old(info.last_modified));
        epoch.strangers == 0 && parts_go && records_old && !in_use.contains(&epoch.id)
    };
    let (mut open, mut closed): (Vec<(Timestamp, &SeenEpoch)>, bool) = (Vec::new(), false);
    for epoch in epochs {
        match &epoch.state {
            EpochState::Open(opened) => open.push((opened.record.began, epoch)),
            EpochState::NoRecord => {}
            EpochState::Closed(_) => closed = true,
        }
    }
    open.sort_by_key(|(began, epoch)| (*began, epoch.id.clone()));
    let is_used_for_long = |(began, epoch): &(Timestamp, &SeenEpoch)| {
        let key = layout::epoch_record(&epoch.id);
        ages.is_old(*began) && epoch.records.iter().any(|info| info.key == key && ages.is_old(info.last_modified))
    };
    let no_record = |epoch: &&SeenEpoch| matches!(epoch.state, EpochState::NoRecord) && unused(epoch);
    let newest = open.iter().rev().find(|one| is_used_for_long(one)).map(|(began, _)| *began);
    let is_over = |epoch: &&SeenEpoch| newest.is_some_and(|began| epoch.id.is_from_before(began));
    let mut gone: Vec<EpochId> =
        epochs.iter().filter(no_record).filter(is_over).map(|epoch| epoch.id.clone()).collect();
    // One that is closed may be older than any.
    for pair in open.windows(2).filter(|_| !closed) {
        let [(_, epoch), next] = pair else { break };
        if !unused(epoch) || !is_used_for_long(next) {
            break;
        }
        gone.push(epoch.id.clone());
    }
    gone
}

fn told_expired(backup: &SeenBackup, ages: &Ages) -> ExpiredBackup {
    ExpiredBackup {
        backup: backup.id.clone(),
        expired: backup.since,
        goes: backup.life == Life::Gone,
        goes_from: ages.old_at(backup.since),
        records: Tally::of(backup.manifests.iter().chain(&backup.evidence).chain(&backup.tombstones)),
    }
}

fn told_unfinished(backup: &SeenBackup) -> UnfinishedBackup {
    UnfinishedBackup {
        backup: backup.id.clone(),
        written: backup.since,
        goes: backup.life == Life::Abandoned,
        records: Tally::of(backup.manifests.iter().chain(&backup.evidence)),
    }
}

#[cfg(test)]
mod tests;
