//! The journal of alerts: what follows from all their records. A pure function of them, whatever their order, and however often one is given.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{AlertChange, AlertKey, AlertRecord, AlertState, AlertTry};

/// A change that nobody has tried to tell belongs to whoever wrote it for so long; then that one has died, and anybody tells it.
const CLAIM: SignedDuration = SignedDuration::from_mins(3);

/// What is known of one change.
#[derive(Clone, Debug, Default, PartialEq)]
struct Entry {
    change: Option<AlertChange>,
    /// By receiver, time and name.
    tries: BTreeMap<(String, Timestamp, String), AlertTry>,
}

impl Entry {
    fn tries<'a>(&'a self, receiver: &'a str) -> impl DoubleEndedIterator<Item = &'a AlertTry> {
        self.tries.values().filter(move |tried| tried.receiver == receiver)
    }

    fn is_told(&self, receiver: &str) -> bool {
        self.tries(receiver).any(|tried| tried.error.is_none())
    }
}

/// What was told of every alert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AlertJournal {
    alerts: BTreeMap<AlertKey, BTreeMap<u64, Entry>>,
    /// The last number that is taken, also by what is not believed.
    taken: BTreeMap<AlertKey, u64>,
    /// Objects that are not believed, with their numbers and when they were written.
    strange: BTreeMap<String, (AlertKey, u64, Timestamp)>,
}

/// A change that a receiver was not told yet.
#[derive(Clone, Copy, Debug)]
pub struct Undelivered<'a> {
    /// What it was not told.
    pub change: &'a AlertChange,
    /// Which receiver.
    pub receiver: &'static str,
    /// How often it was tried.
    pub tries: u32,
    /// Why the last try failed, and when.
    pub last: Option<(&'a str, Timestamp)>,
}

impl Undelivered<'_> {
    /// Is whoever found it out just telling it?
    pub fn is_on_its_way(&self, now: Timestamp) -> bool {
        self.last.is_none() && now.duration_since(self.change.at) < CLAIM
    }
}

impl AlertJournal {
    /// Adds one record.
    pub fn add(&mut self, record: AlertRecord) {
        let (key, number) = match &record {
            AlertRecord::Change(change) => (change.key.clone(), change.number),
            AlertRecord::Try(tried) => (tried.key.clone(), tried.number),
        };
        self.take(key.clone(), number);
        let entry = self.alerts.entry(key).or_default().entry(number).or_default();
        match record {
            AlertRecord::Change(change) => entry.change = Some(change),
            AlertRecord::Try(tried) => {
                drop(entry.tries.insert((tried.receiver.clone(), tried.at, tried.claim.clone()), tried));
            }
        }
    }

    /// Nobody is to use this number again.
    fn take(&mut self, key: AlertKey, number: u64) {
        let last = self.taken.entry(key).or_default();
        *last = number.max(*last);
    }

    /// Adds an object that is not believed.
    pub(super) fn add_strange(&mut self, object: String, key: AlertKey, number: u64, written: Timestamp) {
        self.take(key.clone(), number);
        self.strange.insert(object, (key, number, written));
    }

    /// The number of the next change of an alert.
    pub fn next_number(&self, key: &AlertKey) -> u64 {
        self.taken.get(key).copied().unwrap_or_default().saturating_add(1)
    }

    fn newest(&self, key: &AlertKey) -> Option<&AlertChange> {
        self.alerts.get(key)?.values().rev().find_map(|entry| entry.change.as_ref())
    }

    /// The alert's newest change, where it says that it is firing.
    pub fn firing(&self, key: &AlertKey) -> Option<&AlertChange> {
        self.newest(key).filter(|change| change.state == AlertState::Firing)
    }

    /// Every alert that is firing.
    pub fn all_firing(&self) -> impl Iterator<Item = &AlertChange> {
        self.alerts.keys().filter_map(|key| self.firing(key))
    }

    /// Was this receiver told of the change?
    pub fn is_told(&self, change: &AlertChange, receiver: &str) -> bool {
        let entry = self.alerts.get(&change.key).and_then(|entries| entries.get(&change.number));
        entry.is_some_and(|entry| entry.is_told(receiver))
    }

    /// When telling this receiver of the change was last tried.
    pub fn last_try(&self, change: &AlertChange, receiver: &str) -> Option<Timestamp> {
        let entry = self.alerts.get(&change.key).and_then(|entries| entries.get(&change.number))?;
        entry.tries(receiver).next_back().map(|tried| tried.at)
    }

    /// What these receivers were not told yet, the changes of each alert in their order. A change is meant for those that were configured
    /// when it was written; what is firing, for every one.
    pub fn undelivered(&self, receivers: &[&'static str]) -> Vec<Undelivered<'_>> {
        let mut found = Vec::new();
        for (key, entries) in &self.alerts {
            let firing = self.firing(key).map(|change| change.number);
            for (number, entry) in entries {
                let Some(change) = &entry.change else { continue };
                let meant = |receiver: &&&str| firing == Some(*number) || change.to.iter().any(|to| to == **receiver);
                let missing = receivers.iter().filter(meant).filter(|receiver| !entry.is_told(receiver));
                found.extend(missing.map(|receiver| Undelivered {
                    change,
                    receiver,
                    tries: entry.tries(receiver).map(|tried| tried.tries).fold(0, u32::saturating_add),
                    last: entry.tries(receiver).next_back().and_then(|tried| Some((tried.error.as_deref()?, tried.at))),
                }));
            }
        }
        found
    }

    /// Objects that say nothing any more: changes from before `before` that a later one of the same alert followed, with what was
    /// tried of them, believed or not. Nobody is told such a change later, even where it was never told.
    pub fn superseded(&self, before: Timestamp) -> Vec<String> {
        let mut objects = Vec::new();
        for (key, entries) in &self.alerts {
            let Some(newest) = self.newest(key) else { continue };
            for entry in entries.range(..newest.number).map(|(_, entry)| entry) {
                let at = entry.change.as_ref().map(|change| change.at);
                if at.into_iter().chain(entry.tries.values().map(|tried| tried.at)).any(|at| at >= before) {
                    continue;
                }
                objects.extend(entry.change.iter().map(|change| AlertRecord::Change(change.clone()).object()));
                objects.extend(entry.tries.values().map(|tried| AlertRecord::Try(tried.clone()).object()));
            }
        }
        let followed = |key: &AlertKey, number: u64| self.newest(key).is_some_and(|newest| number < newest.number);
        let strange = self.strange.iter().filter(|(_, (key, number, at))| *at < before && followed(key, *number));
        objects.extend(strange.map(|(object, _)| object.clone()));
        objects
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::repository::{AlertKind, Said};

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn key(subject: &str) -> AlertKey {
        AlertKey::new(AlertKind::BackupFailed, subject)
    }

    fn change(subject: &str, number: u64, state: AlertState) -> AlertRecord {
        AlertRecord::Change(AlertChange {
            format: 1,
            repository: "0123456789abcdefghjkmnpqrs".to_owned().try_into().unwrap(),
            epoch: "20261101T010000Z-7h2mxq".parse().unwrap(),
            tool: String::new(),
            key: key(subject),
            number,
            claim: "aaaaaa".into(),
            at: time(number as i64),
            state,
            to: vec!["webhook".into()],
            said: Said {
                since: time(0),
                reason: None,
                backup: None,
                summary: String::new(),
                description: String::new(),
                hint: None,
            },
        })
    }

    fn tried(subject: &str, number: u64, receiver: &str, at: i64, error: Option<&str>) -> AlertRecord {
        let AlertRecord::Change(of) = change(subject, number, AlertState::Firing) else { unreachable!() };
        AlertRecord::Try(AlertTry {
            format: 1,
            repository: of.repository,
            epoch: of.epoch,
            tool: String::new(),
            key: of.key,
            number,
            claim: format!("{at:06}"),
            receiver: receiver.into(),
            at: time(at),
            tries: 2,
            error: error.map(str::to_owned),
        })
    }

    fn journal(records: impl IntoIterator<Item = AlertRecord>) -> AlertJournal {
        let mut journal = AlertJournal::default();
        records.into_iter().for_each(|record| journal.add(record));
        journal
    }

    /// What is not told yet, in short: number and receiver.
    fn left(journal: &AlertJournal, receivers: &[&'static str]) -> Vec<(u64, &'static str)> {
        journal.undelivered(receivers).iter().map(|one| (one.change.number, one.receiver)).collect()
    }

    #[test]
    fn what_is_told_follows_from_the_records() {
        use AlertState::{Firing, Resolved};
        let (hook, manager) = (&["webhook"][..], &["webhook", "alertmanager"][..]);
        let mut all = journal([change("a", 1, Firing)]);
        assert!(all.firing(&key("a")).is_some() && all.firing(&key("b")).is_none());
        assert_eq!((all.next_number(&key("a")), all.next_number(&key("b"))), (2, 1));
        // What is firing is meant for those too that were configured later.
        assert_eq!(left(&all, manager), [(1, "webhook"), (1, "alertmanager")]);
        assert!(all.undelivered(hook)[0].is_on_its_way(time(100)), "its writer is at it");
        assert!(!all.undelivered(hook)[0].is_on_its_way(time(200)), "its writer has died");

        all.add(tried("a", 1, "webhook", 20, Some("refused")));
        all.add(tried("a", 1, "webhook", 10, Some("an older word")));
        let one = all.undelivered(hook)[0];
        assert_eq!((one.tries, one.last, one.is_on_its_way(time(21))), (4, Some(("refused", time(20))), false));
        all.add(change("a", 2, Resolved));
        assert!(all.firing(&key("a")).is_none());
        assert_eq!(left(&all, manager), [(1, "webhook"), (2, "webhook")], "in order, and nobody else any more");
        all.add(tried("a", 1, "webhook", 30, None));
        all.add(tried("a", 1, "webhook", 40, Some("told twice, the second time in vain")));
        assert_eq!(left(&all, manager), [(2, "webhook")]);
        assert_eq!(left(&all, &[]), []);
        // Of what is not believed the number is taken all the same.
        all.add_strange("x".into(), key("a"), 7, time(0));
        assert_eq!((all.next_number(&key("a")), all.firing(&key("a")).is_none()), (8, true));
    }

    #[test]
    fn only_what_a_later_change_followed_is_superseded() {
        use AlertState::{Firing, Resolved};
        let records = [
            change("a", 1, Firing),
            tried("a", 1, "webhook", 2, None),
            change("a", 2, Resolved),
            tried("a", 2, "webhook", 500, Some("late")),
            change("a", 3, Firing),
            change("b", 1, Firing),
        ];
        let all = journal(records.clone());
        assert_eq!(all.superseded(time(0)), Vec::<String>::new());
        let of = |numbers: &[usize]| numbers.iter().map(|n| records[*n].object()).collect::<Vec<_>>();
        assert_eq!(all.superseded(time(400)), of(&[0, 1]), "with all that is known of it old enough");
        assert_eq!(all.superseded(time(1000)), of(&[0, 1, 2, 3]));
        let mut all = all;
        all.add_strange("forged".into(), key("a"), 2, time(9));
        all.add_strange("newer".into(), key("a"), 4, time(9));
        assert_eq!(all.superseded(time(10)), [&of(&[0, 1])[..], &["forged".into()]].concat());
        let mut swept = all.clone();
        swept.alerts.get_mut(&key("a")).unwrap().retain(|number, _| *number == 3);
        assert_eq!((swept.firing(&key("a")), swept.next_number(&key("a"))), (all.firing(&key("a")), 4));
    }

    fn records() -> impl Strategy<Value = Vec<AlertRecord>> {
        let state = prop_oneof![Just(AlertState::Firing), Just(AlertState::Resolved)];
        let subject = || prop_oneof![Just("a"), Just("b")];
        let receiver = prop_oneof![Just("webhook"), Just("alertmanager")];
        let error = prop_oneof![Just(None), Just(Some("x")), Just(Some("y"))];
        // There is one object of each change, whatever it says.
        let changes = proptest::collection::btree_map((subject(), 1_u64..6), state, 0..8);
        let changes = changes.prop_map(|all| all.into_iter().map(|((of, n), state)| change(of, n, state)).collect());
        let tries = proptest::collection::btree_map((subject(), 1_u64..6, receiver, 0_i64..50), error, 0..12);
        let tries =
            tries.prop_map(|all| all.into_iter().map(|((of, n, to, at), error)| tried(of, n, to, at, error)).collect());
        (changes, tries).prop_map(|(changes, tries): (Vec<_>, Vec<_>)| [changes, tries].concat())
    }

    proptest! {
        #[test]
        fn neither_order_nor_repetition_matters(
            (records, shuffled, again) in records().prop_flat_map(|all| {
                (Just(all.clone()), Just(all.clone()).prop_shuffle(), proptest::sample::subsequence(all.clone(), 0..=all.len()))
            })
        ) {
            let straight = journal(records.clone());
            prop_assert_eq!(&straight, &journal(shuffled.clone()));
            prop_assert_eq!(&straight, &journal([shuffled, again].concat()));
            // Whoever sees a part first, and the rest later, knows the same in the end.
            let half = records.len() / 2;
            prop_assert_eq!(&straight, &journal([&records[half..], &records[..half]].concat()));
            // What was told once stays told.
            let mut more = straight.clone();
            for one in straight.undelivered(&["webhook"]) {
                let subject = one.change.key.subject.clone();
                more.add(tried(&subject, one.change.number, "webhook", 99, None));
            }
            prop_assert!(more.undelivered(&["webhook"]).is_empty());
        }
    }
}
