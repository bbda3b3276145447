//! What is due: pure functions of the configuration, of what the repository says was done, and of now.
//!
//! A schedule's *run* is an instant of its pattern, plus a delay below `jitter` that is the same each time. Only the last run that
//! is not after now can be due: a run that was missed is caught up once, and those before it are told as missed. A run is done when a
//! backup that began since then, by whomever, was asked for the schedule's sources and holds all of them, so that two daemons, a
//! person's backup and a restart never do one twice. What failed, in part or as a whole, is tried again after 15, 30 and 60 minutes,
//! each counted from the end of the try before, and then given up until the next run.
//!
//! Nothing in the repository says that a run has begun, and a backup takes its time. A process that sees another make its runs
//! therefore leaves the next ones to it for a while, and takes over where that does nothing ([`State::Left`]).
//!
//! All times are the store's (rule R6). A backup that began in the future, by a clock that was wrong and was set back since, counts for
//! the run of its own time only: else nothing would be due until that time has come.
//!
//! This module must not do anything, nor read a clock.

mod plan;
#[cfg(test)]
pub(crate) mod tests;
mod times;

pub use self::plan::{Due, MOST_MISSED, Outcome, Own, Plan, RETRY_AFTER, Scheduled, State, Task, TaskKey, Tried, plan};

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    config::{Config, ScheduleConfig, SourceName},
    repository::{Level, RepositoryId},
};
use times::Times;
pub(crate) use times::occurs;

/// How far ahead the longest time between two runs is looked for, in days: a year with both changes of a clock, and some more.
const INTERVAL_DAYS: i64 = 400;

/// How much later than its pattern says a schedule's runs begin: below its `jitter`, in whole seconds, and always the same in one
/// repository.
pub fn delay(repository: &RepositoryId, schedule: &ScheduleConfig) -> Duration {
    let mut hasher = blake3::Hasher::new_derive_key("altlas-backup 2026 delay of a schedule");
    hasher.update(repository.as_str().as_bytes()).update(b"/").update(schedule.name.as_str().as_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    let below = (u128::from(u64::from_le_bytes(bytes)) * u128::from(schedule.jitter.as_secs())) >> 64;
    Duration::from_secs(u64::try_from(below).unwrap_or_default())
}

/// The longest time between two runs that follow each other, of all schedules of this source, over the next year or so: how old its
/// last backup may be where nothing is wrong, but for the time that a backup takes. `None` where no schedule is for it, or it never runs.
pub fn expected_interval(config: &Config, source: &SourceName, now: Timestamp) -> Option<Duration> {
    longest_of(config, source, now, |_| true)
}

/// The same of its proofs: of the schedules that verify by restore.
pub fn expected_proof_interval(config: &Config, source: &SourceName, now: Timestamp) -> Option<Duration> {
    longest_of(config, source, now, |schedule| schedule.verify == Some(Level::Restore))
}

fn longest_of(
    config: &Config,
    source: &SourceName,
    now: Timestamp,
    counts: impl Fn(&ScheduleConfig) -> bool,
) -> Option<Duration> {
    let is_for = |schedule: &&ScheduleConfig| counts(schedule) && !schedule.chooses([source]).is_empty();
    let schedules: Vec<&ScheduleConfig> = config.schedules.iter().filter(is_for).collect();
    let times: Vec<Times<'_>> = schedules.iter().map(|schedule| Times::of(schedule, Duration::ZERO)).collect();
    let gap = times::longest_gap(&times, now, INTERVAL_DAYS)?;
    // The delay of one schedule is between each two of its runs alike; those of several are not.
    let apart = match schedules.len() {
        1 => Duration::ZERO,
        _ => schedules.iter().map(|schedule| schedule.jitter).max().unwrap_or_default(),
    };
    Some(gap + apart)
}
