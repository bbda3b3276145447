//! One round: what changed is written down, then told, with what was not told before.
//!
//! The order is what makes it happen once: the change is in the repository before anybody hears of it, and only who has written it tells
//! it. What became of that is written down after it. A change that cannot be written down is told all the same.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};

use super::{
    Condition, Expected, NotifyError,
    message::Message,
    receiver::{Patience, Receiver},
};
use crate::{
    config::{Config, NotifierConfig},
    report,
    repository::{
        AlertChange, AlertJournal, AlertKey, AlertRecord, AlertState, AlertWriter, Repository, RepositoryError, Said,
    },
};

/// A journal that was read so long ago is read again, before anybody is told once more what it says.
const STALE: Duration = Duration::from_secs(1);

/// How often a round looks again after somebody else was faster.
const LOOKS: usize = 5;

/// What became of an alert, and what is to be said of it.
type Change = (AlertKey, AlertState, Said);

/// What receivers were told by this process that could not be written down.
pub(super) type Memory = HashMap<(AlertKey, &'static str), AlertState>;

/// What changed since it was last written down: a pure function of both. Where `config` is what is backed up, an alert of a source that is
/// not in it any more is over; of what no condition speaks, nothing changes.
fn changes(journal: &AlertJournal, conditions: &[Condition], config: Option<&Config>, now: Timestamp) -> Vec<Change> {
    let mut found = Vec::new();
    for Condition { key, firing, said } in conditions {
        match (firing, journal.firing(key)) {
            (true, None) => found.push((key.clone(), AlertState::Firing, said.clone())),
            (false, Some(_)) => found.push((key.clone(), AlertState::Resolved, said.clone())),
            _ => {}
        }
    }
    let Some(config) = config else { return found };
    for change in journal.all_firing() {
        let Some(name) = change.key.source() else { continue };
        if !config.sources.iter().any(|source| source.name.as_str() == name) {
            let said = Said {
                since: now,
                reason: None,
                backup: None,
                summary: format!("source `{name}` is not configured any more"),
                description: format!("Source `{name}` is not configured any more, so nothing is expected of it."),
                hint: None,
            };
            found.push((change.key.clone(), AlertState::Resolved, said));
        }
    }
    found
}

/// What a receiver is to be told in a round.
struct Queue<'a> {
    name: &'static str,
    config: &'a NotifierConfig,
    changes: Vec<AlertChange>,
}

/// What became of that: each change with the number of tries and the error.
struct Told {
    name: &'static str,
    changes: Vec<(AlertChange, u32, Option<Arc<NotifyError>>)>,
}

/// What a round works with.
pub(super) struct Round<'a> {
    pub(super) config: &'a Config,
    pub(super) expected: &'a Expected,
    pub(super) repository: &'a Repository,
    /// The store's time.
    pub(super) now: Timestamp,
    pub(super) patience: Patience,
    /// Receivers that are to be left alone for now.
    pub(super) resting: HashSet<&'static str>,
    /// A try that failed again is not written down where that was done within this time.
    pub(super) quiet: SignedDuration,
    /// Are receivers that forget reminded of what is firing still?
    pub(super) remind: bool,
    /// Does the configuration name all that is backed up? One of a machine that only verifies need not.
    pub(super) names_all: bool,
}

/// What a round leaves.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Changes that a receiver was not told yet.
    pub(super) undelivered: usize,
    /// Receivers that were tried, and whether they took what they were told.
    pub(super) receivers: HashMap<&'static str, bool>,
}

impl Round<'_> {
    /// Carries it out.
    ///
    /// # Errors
    /// What keeps the journal from being read. What is firing was told all the same, unless this process remembers that it was.
    pub(super) async fn carry_out(
        &self,
        conditions: &[Condition],
        memory: &mut Memory,
    ) -> Result<Left, (RepositoryError, usize)> {
        match self.by_journal(conditions, memory).await {
            Ok(left) => Ok(left),
            Err(error) => {
                let firing = conditions.iter().filter(|one| one.firing).cloned();
                let firing = firing.map(|Condition { key, said, .. }| (key, AlertState::Firing, said)).collect();
                Err((error, self.tell_unwritten(firing, memory).await))
            }
        }
    }

    async fn by_journal(&self, conditions: &[Condition], memory: &mut Memory) -> Result<Left, RepositoryError> {
        let mut journal = self.repository.alerts().await?;
        let writer = match self.repository.alert_writer(self.now).await {
            Ok(writer) => writer,
            Err(error) => {
                tracing::warn!("alerts cannot be written down: {error}");
                None
            }
        };
        let (own, unwritten) = self.write_down(&mut journal, writer.as_ref(), conditions).await?;
        let (mut left, mut now) = (Left::default(), HashSet::new());
        let began = Instant::now();
        let told = join_all(self.queues(&journal, &own).into_iter().map(|queue| self.tell(queue))).await;
        for Told { name, changes } in told {
            let well = changes.iter().all(|(_, _, error)| error.is_none());
            left.receivers.insert(name, well);
            for (change, tries, error) in changes {
                now.insert((name, change.key.clone(), change.number));
                self.remember(&mut journal, writer.as_ref(), name, &change, tries, error.as_deref()).await;
            }
        }
        left.undelivered += self.tell_unwritten(unwritten, memory).await;
        if self.remind {
            // What is over meanwhile must not be told to be firing.
            let fresh = match began.elapsed() >= STALE {
                true => self.repository.alerts().await.map(|read| journal = read),
                false => Ok(()),
            };
            match fresh {
                Ok(()) => self.remind(&journal, &now, conditions, &mut left).await,
                // All was told that is to be told once.
                Err(error) => tracing::warn!("nobody was told again what is firing still: {error}"),
            }
        }
        let waiting = journal.undelivered(&self.config.alerts.receiver_names());
        left.undelivered += waiting.iter().filter(|one| !one.is_on_its_way(self.now)).count();
        Ok(left)
    }

    /// Writes down what changed. Gives the changes that are ours to tell, and those that could not be written.
    async fn write_down(
        &self,
        journal: &mut AlertJournal,
        writer: Option<&AlertWriter<'_>>,
        conditions: &[Condition],
    ) -> Result<(HashSet<(AlertKey, u64)>, Vec<Change>), RepositoryError> {
        let (mut own, mut unwritten) = (HashSet::new(), Vec::new());
        let to: Vec<String> = self.config.alerts.receiver_names().into_iter().map(str::to_owned).collect();
        for _ in 0..LOOKS {
            let mut lost = false;
            unwritten.clear();
            let config = self.names_all.then_some(self.config);
            for (key, state, said) in changes(journal, conditions, config, self.now) {
                let Some(writer) = writer else {
                    unwritten.push((key, state, said));
                    continue;
                };
                let number = journal.next_number(&key);
                match writer.change(key.clone(), number, state, to.clone(), said.clone()).await {
                    Ok(Some(change)) => {
                        own.insert((key, number));
                        journal.add(AlertRecord::Change(change));
                    }
                    Ok(None) => lost = true,
                    Err(error) => {
                        tracing::warn!("alert {key} cannot be written down: {error}");
                        unwritten.push((key, state, said));
                    }
                }
            }
            if !lost {
                break;
            }
            // Somebody else saw the same, and tells it.
            *journal = self.repository.alerts().await?;
        }
        Ok((own, unwritten))
    }

    /// What each receiver is to be told now.
    fn queues(&self, journal: &AlertJournal, own: &HashSet<(AlertKey, u64)>) -> Vec<Queue<'_>> {
        let mut queues = Vec::new();
        for (name, config) in self.config.alerts.receivers() {
            if self.resting.contains(name) {
                continue;
            }
            let ours = |change: &AlertChange| own.contains(&(change.key.clone(), change.number));
            let missing = journal.undelivered(&[name]).into_iter();
            let changes = missing.filter(|one| ours(one.change) || !one.is_on_its_way(self.now));
            let changes: Vec<AlertChange> = changes.map(|one| one.change.clone()).collect();
            if !changes.is_empty() {
                queues.push(Queue { name, config, changes });
            }
        }
        queues
    }

    /// Tells one receiver. After a failure that trying again could mend it is told no more: what it took long to refuse once takes long again.
    async fn tell(&self, Queue { name, config, changes }: Queue<'_>) -> Told {
        let receiver = match Receiver::open(name, config) {
            Ok(receiver) => receiver,
            Err(error) => {
                let error = Arc::new(error);
                return Told { name, changes: changes.into_iter().map(|one| (one, 1, Some(error.clone()))).collect() };
            }
        };
        let mut told = Vec::new();
        for change in &changes {
            let (tries, result) = receiver.tell(&self.message(change), &self.patience).await;
            let is_down = matches!(&result, Err(error) if error.is_transient());
            told.push((change.clone(), tries, result.err().map(Arc::new)));
            if is_down {
                break;
            }
        }
        if told.len() < changes.len() {
            let more = report::count((changes.len() - told.len()) as u64, "more change");
            tracing::error!("{name} was not told of {more} either");
            // Written down, too: what nobody tried is taken to be on its way for a while, and what is told then would be half of it.
            let error = told.last().and_then(|(_, _, error)| error.clone());
            told.extend(
                changes[told.len()..].iter().map(|change| (change.clone(), 0, error.clone())).collect::<Vec<_>>(),
            );
        }
        Told { name, changes: told }
    }

    fn message(&self, change: &AlertChange) -> Message {
        Message::new(self.config, self.expected, &change.key, change.state, &change.said)
    }

    /// Says and writes down how telling a change went.
    async fn remember(
        &self,
        journal: &mut AlertJournal,
        writer: Option<&AlertWriter<'_>>,
        name: &str,
        change: &AlertChange,
        tries: u32,
        error: Option<&NotifyError>,
    ) {
        say(&change.key, change.state, name, error);
        let last = journal.last_try(change, name);
        if error.is_some() && last.is_some_and(|at| self.now.duration_since(at) < self.quiet) {
            return;
        }
        let Some(writer) = writer else { return };
        match writer.tried(change, name, tries, error.map(ToString::to_string)).await {
            Ok(tried) => journal.add(AlertRecord::Try(tried)),
            Err(error) => tracing::warn!("what became of alert {} cannot be written down: {error}", change.key),
        }
    }

    /// Tells what could not be written down. Gives how much of it a receiver was not told.
    async fn tell_unwritten(&self, unwritten: Vec<Change>, memory: &mut Memory) -> usize {
        let mut left = 0;
        for (key, state, said) in unwritten {
            let message = Message::new(self.config, self.expected, &key, state, &said);
            left += tell_directly(self.config, &key, &message, &self.patience, &self.resting, memory).await;
        }
        left
    }

    /// Tells receivers that forget what is firing still, of what they were told before `now`. And of a run that ended well, that it did: the
    /// one that failed may have told so without a record, since the repository could not be read. They take the end of what they never heard
    /// of in silence.
    async fn remind(
        &self,
        journal: &AlertJournal,
        now: &HashSet<(&str, AlertKey, u64)>,
        conditions: &[Condition],
        left: &mut Left,
    ) {
        for (name, config) in self.config.alerts.receivers() {
            if self.resting.contains(name) || left.receivers.get(name) == Some(&false) {
                continue;
            }
            let is_old = |change: &&AlertChange| !now.contains(&(name, change.key.clone(), change.number));
            let known = journal.all_firing().filter(is_old).filter(|change| journal.is_told(change, name));
            let is_over =
                |one: &&Condition| !one.firing && one.key.source().is_none() && journal.firing(&one.key).is_none();
            let over = conditions.iter().filter(is_over);
            let over =
                over.map(|one| Message::new(self.config, self.expected, &one.key, AlertState::Resolved, &one.said));
            let messages: Vec<Message> = known.map(|change| self.message(change)).chain(over).collect();
            let reminded = match Receiver::open(name, config) {
                Ok(receiver) => receiver.remind(&messages).await,
                Err(error) => Err(error),
            };
            if let Err(error) = reminded {
                tracing::warn!("{name} could not be told what is firing still: {error}");
                left.receivers.insert(name, false);
            }
        }
    }
}

/// Tells every receiver without a journal, unless this process has done so before; that something is over is told to those only who heard
/// of it. Gives how many were not told.
pub(super) async fn tell_directly(
    config: &Config,
    key: &AlertKey,
    message: &Message,
    patience: &Patience,
    resting: &HashSet<&'static str>,
    memory: &mut Memory,
) -> usize {
    let known = |name: &'static str| memory.get(&(key.clone(), name)).copied();
    let wanted = |(name, _): &(&'static str, &NotifierConfig)| match message.event {
        AlertState::Firing => known(name) != Some(AlertState::Firing),
        AlertState::Resolved => known(name) == Some(AlertState::Firing),
    };
    let tell = async |(name, config): (&'static str, &NotifierConfig)| {
        if resting.contains(name) {
            return (name, false);
        }
        let result = match Receiver::open(name, config) {
            Ok(receiver) => receiver.tell(message, patience).await.1,
            Err(error) => Err(error),
        };
        say(key, message.event, name, result.as_ref().err());
        (name, result.is_ok())
    };
    let told = join_all(config.alerts.receivers().into_iter().filter(wanted).map(tell)).await;
    let missing = told.iter().filter(|(_, told)| !told).count();
    let heard = told.into_iter().filter(|(_, told)| *told);
    memory.extend(heard.map(|(name, _)| ((key.clone(), name), message.event)));
    missing
}

fn say(key: &AlertKey, state: AlertState, receiver: &str, error: Option<&NotifyError>) {
    match error {
        None => tracing::info!("{receiver} was told that alert {key} is {}", state.as_str()),
        Some(error) => {
            let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            tracing::error!("{receiver} could not be told that alert {key} is {}: {error}{hint}", state.as_str());
        }
    }
}

#[cfg(test)]
mod tests;
