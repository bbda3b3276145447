//! The journal of alerts: what follows from all their records. A pure function of them, whatever their order, and however often one is given.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::{AlertChange, AlertKey, AlertRecord, AlertState, AlertTry, EpochId};

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

    /// Objects from before `before` that say nothing any more. Nobody is told such a change later, even where it was never told.
    ///
    /// A change goes before what was tried of it, by a sweep of its own: without its tries it would be told once more.
    pub fn superseded(&self, before: Timestamp) -> Vec<String> {
        let is_old = |at: Timestamp| at < before;
        let mut objects = Vec::new();
        for (key, entries) in &self.alerts {
            let newest = self.newest(key);
            for entry in entries.values() {
                let Some(change) = &entry.change else {
                    let tries = entry.tries.values().filter(|tried| is_old(tried.at));
                    objects.extend(tries.map(|tried| AlertRecord::Try(tried.clone()).object()));
                    continue;
                };
                let is_followed = newest.is_some_and(|newest| change.number < newest.number);
                if is_old(change.at) && (is_followed || self.is_settled(entries, change)) {
                    objects.push(AlertRecord::Change(change.clone()).object());
                }
                // Of tries that failed the last one says it all.
                for receiver in entry.tries.values().map(|tried| &*tried.receiver).collect::<BTreeSet<_>>() {
                    let failed = entry.tries(receiver).rev().skip(1).filter(|tried| tried.error.is_some());
                    let old = failed.filter(|tried| is_old(tried.at));
                    objects.extend(old.map(|tried| AlertRecord::Try(tried.clone()).object()));
                }
            }
        }
        let newest = |key: &AlertKey| self.newest(key).map(|newest| newest.number);
        let strange = self
            .strange
            .iter()
            .filter(|(_, (key, number, at))| is_old(*at) && newest(key).is_none_or(|newest| *number < newest));
        objects.extend(strange.map(|(object, _)| object.clone()));
        objects
    }

    /// Is it over, known to everybody who is to know, and all that is left of its alert?
    fn is_settled(&self, entries: &BTreeMap<u64, Entry>, change: &AlertChange) -> bool {
        change.state == AlertState::Resolved
            && entries.values().filter(|entry| entry.change.is_some()).count() == 1
            && change.to.iter().all(|receiver| self.is_told(change, receiver))
    }

    /// The epochs whose keys its records need, but for these objects.
    pub(super) fn epochs(&self, without: &[String]) -> BTreeSet<EpochId> {
        let without: HashSet<&str> = without.iter().map(String::as_str).collect();
        let records = self.alerts.values().flat_map(BTreeMap::values).flat_map(|entry| {
            let change = entry.change.iter().cloned().map(AlertRecord::Change);
            change.chain(entry.tries.values().cloned().map(AlertRecord::Try))
        });
        records.filter(|record| !without.contains(&*record.object())).map(|record| record.epoch().clone()).collect()
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
    fn only_what_says_nothing_any_more_is_superseded() {
        use AlertState::{Firing, Resolved};
        let records = [
            change("a", 1, Firing),
            tried("a", 1, "webhook", 2, None),
            change("a", 2, Resolved),
            tried("a", 2, "webhook", 400, Some("late")),
            tried("a", 2, "webhook", 450, Some("late")),
            tried("a", 2, "webhook", 500, Some("late")),
            change("a", 3, Firing),
            change("b", 1, Firing),
            // Over, with nothing before it; one of them nobody was told.
            change("c", 2, Resolved),
            tried("c", 2, "webhook", 5, None),
            change("d", 2, Resolved),
        ];
        let of = |numbers: &[usize]| numbers.iter().map(|n| records[*n].object()).collect::<BTreeSet<_>>();
        let gone =
            |journal: &AlertJournal, before: i64| journal.superseded(time(before)).into_iter().collect::<BTreeSet<_>>();
        let all = journal(records.clone());
        assert_eq!(gone(&all, 0), of(&[]));
        assert_eq!(gone(&all, 400), of(&[0, 2, 8]), "however often it was tried");
        assert_eq!(gone(&all, 451), of(&[0, 2, 3, 4, 8]), "the last try stays");
        // Then what was tried of it.
        let left = |gone: &[usize]| {
            let kept = records.iter().enumerate().filter(|(n, _)| !gone.contains(n));
            journal(kept.map(|(_, record)| record.clone()))
        };
        assert_eq!(gone(&left(&[0, 2, 3, 4, 8]), 501), of(&[1, 5, 9]));
        assert_eq!(gone(&left(&[0, 1, 2, 3, 4, 5, 8, 9]), 1000), of(&[]));
        // A change that is over stays as long as one that it followed: without it that one would be firing again.
        let two = journal([change("a", 1, Firing), tried("a", 1, "webhook", 2, None), change("a", 2, Resolved)]);
        assert_eq!(gone(&two, 1000), of(&[0]));
        // What is not believed.
        let mut all = all;
        all.add_strange("forged".into(), key("a"), 2, time(9));
        all.add_strange("newer".into(), key("a"), 4, time(9));
        all.add_strange("all".into(), key("e"), 1, time(9));
        assert_eq!(gone(&all, 10), &of(&[0, 2, 8]) | &["forged".to_owned(), "all".to_owned()].into());
        assert_eq!(all.next_number(&key("a")), 5, "the number is taken all the same");
    }

    #[test]
    fn records_need_the_epochs_of_their_seals() {
        let all = journal([change("a", 1, AlertState::Firing), change("a", 2, AlertState::Resolved)]);
        let epoch: EpochId = "20261101T010000Z-7h2mxq".parse().unwrap();
        assert_eq!(all.epochs(&[]), [epoch.clone()].into());
        let objects = [1, 2].map(|number| change("a", number, AlertState::Firing).object());
        assert_eq!(all.epochs(&objects[..1]), [epoch].into());
        assert_eq!(all.epochs(&objects), BTreeSet::new());
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
