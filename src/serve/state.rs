//! What the daemon knows right now, for whoever asks by HTTP.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::metrics::SourceFacts;
use crate::{config::Config, pipeline::Progress, schedule::Plan};

/// Without a tick for so long the daemon hangs.
const MOST_SILENCE: Duration = Duration::from_secs(3 * 60);
/// What was read so long ago is not known any more.
const MOST_AGE: Duration = Duration::from_secs(5 * 60);

/// What was read of the repository.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// When, by our own clock.
    pub(super) at: Instant,
    /// When, by the store's clock.
    pub(super) now: Timestamp,
    pub(super) facts: Vec<SourceFacts>,
    /// Absent where nothing is run.
    pub(super) plan: Option<Plan>,
}

/// What is being done.
#[derive(Clone, Debug)]
pub(super) struct Doing {
    pub(super) what: String,
    pub(super) since: Instant,
    pub(super) progress: Arc<Progress>,
}

/// Everything that is known right now.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub(super) url: String,
    ticked: Instant,
    pub(super) known: Option<Known>,
    /// Why the last look failed, if it did.
    pub(super) problem: Option<String>,
    /// Bytes of all objects.
    pub(super) bytes: Option<u64>,
    /// Changes that a receiver of alerts could not be told of yet.
    pub(super) undelivered: usize,
    pub(super) doing: Option<Doing>,
}

impl Observed {
    /// Does the daemon hang? Then since when, in words.
    pub(super) fn hangs(&self) -> Option<String> {
        let silence = self.ticked.elapsed();
        (silence > MOST_SILENCE).then(|| format!("the last tick was {} s ago", silence.as_secs()))
    }

    /// Why the daemon does not know the repository, if it does not.
    pub(super) fn unready(&self) -> Option<String> {
        let why = || self.problem.clone().unwrap_or_else(|| "the first look is not over yet".to_owned());
        match &self.known {
            None => Some(format!("the repository was not read yet: {}", why())),
            Some(known) if known.at.elapsed() > MOST_AGE => {
                let age = known.at.elapsed().as_secs();
                Some(format!("the repository was last read {age} s ago: {}", why()))
            }
            Some(_) => None,
        }
    }
}

/// [`Observed`], between the daemon and the requests.
pub(super) struct Shared(RwLock<Observed>);

impl Shared {
    pub(super) fn new(config: &Config) -> Self {
        Self(RwLock::new(Observed {
            url: config.repository.url.to_string(),
            ticked: Instant::now(),
            known: None,
            problem: None,
            bytes: None,
            undelivered: 0,
            doing: None,
        }))
    }

    /// As it is now.
    pub(super) fn get(&self) -> Observed {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Observed)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn ticked(&self) {
        self.change(|observed| observed.ticked = Instant::now());
    }
}
