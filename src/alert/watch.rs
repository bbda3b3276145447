//! The daemon's side: a tick looks at what the repository says now, tells what changed, and what could not be told before.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{
    Condition, Expected, Run, conditions,
    message::Message,
    receiver::Patience,
    round::{Left, Memory, Round, tell_directly},
    run,
};
use crate::{
    config::Config,
    operation::{Context, Error},
    repository::{AlertState, History, Repository},
};

/// How often an Alertmanager is told again what is firing still.
const REMIND_EVERY: Duration = Duration::from_secs(300);
/// How long a receiver is left alone after a failure; doubled after each further one.
const FIRST_REST: Duration = Duration::from_secs(30);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(3600);
/// A receiver's failure is written down this often.
const QUIET: SignedDuration = SignedDuration::from_hours(1);
/// How long the repository may be out of reach until somebody is told: a gateway that is started anew is no reason to wake anybody.
const OUTAGE: Duration = Duration::from_secs(300);

/// A receiver that did not take what it was told.
struct Rest {
    failures: u32,
    until: Instant,
}

impl Rest {
    fn after(failures: u32, now: Instant) -> Self {
        let doubled = FIRST_REST.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        Self { failures, until: now + doubled.min(LONGEST_REST) }
    }
}

/// How a run ended.
struct Ended {
    began: Instant,
    at: Instant,
    /// Absent: well. With nothing in it: with an error that is nobody's business.
    failed: Option<Option<Condition>>,
}

impl Ended {
    /// What is to be said of it, with what the repository knows.
    fn condition(&self, run: Run, history: &History) -> Option<Condition> {
        let recorded = run == Run::Backup && run::is_recorded(history, self.began);
        match &self.failed {
            Some(failed) if !recorded => failed.clone(),
            _ => Some(run.ended(history.now)),
        }
    }
}

/// The watch that a daemon keeps.
#[derive(Default)]
pub struct Watch {
    rests: HashMap<&'static str, Rest>,
    reminded: Option<Instant>,
    /// Since when the repository cannot be read.
    outage: Option<Instant>,
    memory: Memory,
    /// What schedules promise, as it was on this day since 1970.
    expected: Option<(i64, Arc<Expected>)>,
    /// How runs ended that no tick has seen yet.
    ended: HashMap<Run, Ended>,
    undelivered: usize,
}

impl Watch {
    /// A watch that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes that a receiver was not told at the end of the last tick.
    pub fn undelivered(&self) -> usize {
        self.undelivered
    }

    /// Takes note of how a run that began at `began` has just ended, for the next tick that can know what it left.
    pub fn ended(&mut self, run: Run, began: Instant, error: Option<&Error>) {
        let failed = error.map(|error| run::is_alarming(error).then(|| run.failed(error, Timestamp::now())));
        self.ended.insert(run, Ended { began, at: Instant::now(), failed });
    }

    /// Looks at the repository as `history` has it, whose reading began at `read`, and tells what changed. Whatever comes of it is only said
    /// in the log, and counted.
    pub async fn tick(&mut self, context: &Context, repository: &Repository, history: &History, read: Instant) {
        let config = &context.config;
        if config.alerts.receivers().is_empty() {
            return;
        }
        let expected = self.expected(config, history.now);
        let mut all = conditions(history, config, &expected, history.now);
        let seen = self.ended.iter().filter(|(_, ended)| ended.at <= read);
        all.extend(seen.filter_map(|(run, ended)| ended.condition(*run, history)));
        let now = Instant::now();
        let remind = self.reminded.is_none_or(|at| now.duration_since(at) >= REMIND_EVERY);
        let round = Round {
            config,
            expected: &expected,
            repository,
            now: history.now,
            patience: Patience::none(),
            resting: self.resting(now),
            quiet: QUIET,
            remind,
            names_all: true,
        };
        // Only this process knows of an outage, and that it is over.
        self.outage = None;
        self.tell(context, &Run::Serve.ended(history.now), AlertState::Resolved).await;
        match round.carry_out(&all, &mut self.memory).await {
            Ok(left) => {
                self.ended.retain(|_, ended| ended.at > read);
                if remind {
                    self.reminded = Some(now);
                }
                self.note(left, Instant::now());
            }
            Err((error, undelivered)) => {
                tracing::warn!("what was told of alerts before cannot be found out: {error}");
                self.undelivered = undelivered;
            }
        }
    }

    /// Worked out once a day: a year of runs may be many.
    fn expected(&mut self, config: &Config, now: Timestamp) -> Arc<Expected> {
        let today = now.as_second().div_euclid(24 * 3600);
        match &self.expected {
            Some((day, expected)) if *day == today => expected.clone(),
            _ => self.expected.insert((today, Arc::new(Expected::of(config, now)))).1.clone(),
        }
    }

    fn resting(&self, now: Instant) -> HashSet<&'static str> {
        self.rests.iter().filter(|(_, rest)| rest.until > now).map(|(name, _)| *name).collect()
    }

    fn note(&mut self, left: Left, now: Instant) {
        self.undelivered = left.undelivered;
        for (name, well) in left.receivers {
            match well {
                true => drop(self.rests.remove(name)),
                false => {
                    let failures = self.rests.get(name).map_or(0, |rest| rest.failures).saturating_add(1);
                    self.rests.insert(name, Rest::after(failures, now));
                }
            }
        }
    }

    /// Takes note that the repository cannot be read, and tells so when that has lasted: once, as far as this process knows.
    pub async fn unreadable(&mut self, context: &Context, error: &Error) {
        let now = Instant::now();
        let since = *self.outage.get_or_insert(now);
        if now.duration_since(since) >= OUTAGE {
            self.tell(context, &Run::Serve.failed(error, Timestamp::now()), AlertState::Firing).await;
        }
    }

    /// Tells every receiver that is to know and does not yet.
    async fn tell(&mut self, context: &Context, condition: &Condition, state: AlertState) {
        let config = &context.config;
        let expected = self.expected(config, Timestamp::now());
        let message = Message::new(config, &expected, &condition.key, state, &condition.said);
        let (patience, resting) = (Patience::none(), self.resting(Instant::now()));
        self.undelivered = tell_directly(config, &condition.key, &message, &patience, &resting, &mut self.memory).await;
    }
}

#[cfg(test)]
mod tests;
