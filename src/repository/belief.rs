//! Which epochs are believed: a function of their records and of what the configuration says. Reads nothing.
//!
//! Whoever knows the recipients, which are public, can encrypt an epoch of his own to them. So the record of an encrypted epoch is
//! signed by whoever began it, and is believed if that is the current key of the machines that make backups, or if an epoch that
//! is believed vouches for it. A key that was replaced therefore proves what it began before, and nothing new; and whoever knows
//! the keys of an old epoch can forge backups in it, but none that is newer than its end.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::{EpochId, EpochRecord, Keyring, Locked, layout};
use crate::crypt::Recipient;

/// How much later than its epoch's end a backup may have been started: for two machines, one of which has not seen that the other
/// began a new epoch.
const LATENESS: SignedDuration = SignedDuration::from_mins(15);

/// A record whose seal holds.
#[derive(Clone, Debug)]
pub(crate) struct ReadRecord {
    pub(crate) record: EpochRecord,
    /// SHA-256 of the object, in hex.
    pub(crate) digest: String,
}

/// What to think of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Belief {
    /// One of ours began it. Backups in it were started before this time, where another epoch followed.
    Believed { until: Option<Timestamp> },
    /// Nothing that is configured says who makes backups; all that are here were made by the holder of this key.
    Unknown { begun_by: Recipient },
    /// Not to be believed.
    Refused(Locked),
}

/// Decides on every epoch.
pub(super) fn believe(records: &BTreeMap<EpochId, ReadRecord>, keyring: &Keyring) -> BTreeMap<EpochId, Belief> {
    let encrypted = || records.values().filter(|read| read.record.begun_by.is_some());
    let begun_by = |keys: &[Recipient]| -> BTreeSet<EpochId> {
        let by = |read: &&ReadRecord| read.record.begun_by.as_ref().is_some_and(|key| keys.contains(key));
        encrypted().filter(by).map(|read| read.record.epoch.clone()).collect()
    };
    let mut believed = begun_by(keyring.current_beginners());
    if believed.is_empty() {
        // The key was replaced, and no epoch begun since.
        believed = begun_by(keyring.earlier_beginners());
    }
    // What is vouched for vouches for others, in however many steps.
    let mut new: Vec<EpochId> = believed.iter().cloned().collect();
    while let Some(id) = new.pop() {
        for earlier in records.get(&id).into_iter().flat_map(|read| &read.record.earlier) {
            let is_it = records.get(&earlier.epoch).is_some_and(|read| read.digest == earlier.sha256);
            if is_it && believed.insert(earlier.epoch.clone()) {
                new.push(earlier.epoch.clone());
            }
        }
    }
    let strangers: BTreeSet<&Recipient> = encrypted()
        .filter(|read| !believed.contains(&read.record.epoch))
        .filter_map(|read| read.record.begun_by.as_ref())
        .collect();
    let nobody_is_named = believed.is_empty() && !keyring.names_catalog();
    let decide = |read: &ReadRecord| {
        let record = &read.record;
        let Some(key) = &record.begun_by else {
            return match keyring.encrypts() {
                true => Belief::Refused(Locked::InClear { object: layout::epoch_record(&record.epoch) }),
                false => Belief::Believed { until: None },
            };
        };
        if believed.contains(&record.epoch) {
            let follows = |other: &&EpochId| records[*other].record.began > record.began;
            let until = believed.iter().filter(follows).map(|other| records[other].record.began).min();
            return Belief::Believed { until };
        }
        if !nobody_is_named {
            let object = layout::epoch_record(&record.epoch);
            return Belief::Refused(Locked::Stranger { object, begun_by: key.clone() });
        }
        match strangers.len() {
            1 => Belief::Unknown { begun_by: key.clone() },
            _ => Belief::Refused(Locked::SeveralBeginners {
                beginners: strangers.iter().map(|key| (*key).clone()).collect(),
            }),
        }
    };
    records.iter().map(|(id, read)| (id.clone(), decide(read))).collect()
}

/// Was a backup that says it was started then made while its epoch was in use?
pub(super) fn in_time(started: Timestamp, until: Option<Timestamp>) -> bool {
    until.is_none_or(|until| started <= until.saturating_add(LATENESS).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        crypt::{Identities, Identity},
        repository::{EarlierEpoch, RepositoryId},
    };

    /// Epochs of a month each, by name (six digits), with who began them and whom they vouch for.
    fn records(epochs: &[(&str, Option<&Identity>, &[&str])]) -> BTreeMap<EpochId, ReadRecord> {
        let id = |name: &str| -> EpochId { format!("20260101T010000Z-{name}").parse().unwrap() };
        let repository = RepositoryId::random();
        let read = |(month, (name, by, earlier)): (usize, &(&str, Option<&Identity>, &[&str]))| {
            let record = EpochRecord {
                format: 1,
                repository: repository.clone(),
                epoch: id(name),
                began: format!("2026-{:02}-01T01:00:00Z", month + 1).parse().unwrap(),
                recipients: Vec::new(),
                catalog_recipient: None,
                cut: String::new(),
                keys: String::new(),
                begun_by: by.map(|by| by.recipient().clone()),
                earlier: earlier
                    .iter()
                    .map(|name| EarlierEpoch { epoch: id(name), sha256: (*name).to_owned() })
                    .collect(),
            };
            (id(name), ReadRecord { record, digest: (*name).to_owned() })
        };
        epochs.iter().enumerate().map(read).collect()
    }

    /// Each epoch's belief in a word: `yes`, `unknown`, `no`.
    fn words(records: &BTreeMap<EpochId, ReadRecord>, keyring: &Keyring) -> String {
        let beliefs = believe(records, keyring);
        let word = |belief: &Belief| match belief {
            Belief::Believed { .. } => "yes",
            Belief::Unknown { .. } => "unknown",
            Belief::Refused(_) => "no",
        };
        beliefs.values().map(word).collect::<Vec<_>>().join(" ")
    }

    fn keyring(recipients: &[&Identity], known: &[&Identity], held: &[&Identity]) -> Keyring {
        let public = |keys: &[&Identity]| keys.iter().map(|key| key.recipient().clone()).collect::<Vec<_>>();
        let held = held.iter().map(|key| (*key).clone()).collect();
        Keyring::new(public(recipients), public(known), Identities::default(), held)
    }

    #[test]
    fn who_is_believed() {
        let (ours, removed, new, old, thief) = (
            Identity::generate(),
            Identity::generate(),
            Identity::generate(),
            Identity::generate(),
            Identity::generate(),
        );
        let restorer = |known: &[&Identity]| keyring(&[&ours], known, &[&ours, &removed]);
        let no: &[&str] = &[];
        for (epochs, keys, wanted) in [
            // The current catalogue key, and whoever is not.
            (vec![("000001", Some(&new), no), ("000002", Some(&thief), no)], restorer(&[&new]), "yes no"),
            // A recipient, retired or not, is no beginner where there is a catalogue.
            (vec![("000001", Some(&new), no), ("000002", Some(&removed), no)], restorer(&[&new]), "yes no"),
            (vec![("000001", Some(&new), no), ("000002", Some(&ours), no)], restorer(&[&new]), "yes no"),
            // A key that was replaced: what the new one vouches for, in however many steps, and nothing that came later.
            (
                vec![
                    ("000001", Some(&old), no),
                    ("000002", Some(&old), &["000001"]),
                    ("000003", Some(&new), &["000002"]),
                ],
                restorer(&[&new]),
                "yes yes yes",
            ),
            (
                vec![("000001", Some(&old), no), ("000003", Some(&new), &["000001"]), ("000004", Some(&old), no)],
                restorer(&[&new, &old]),
                "yes yes no",
            ),
            // Vouched for is a record, not a name.
            (vec![("000001", Some(&old), no), ("000003", Some(&new), &["000007"])], restorer(&[&new]), "no yes"),
            // Replaced, and no epoch begun since.
            (vec![("000001", Some(&old), no), ("000002", Some(&thief), no)], restorer(&[&new, &old]), "yes no"),
            // Vouching for oneself is worth nothing.
            (vec![("000001", Some(&new), no), ("000002", Some(&thief), &["000002"])], restorer(&[&new]), "yes no"),
            // No catalogue at all: the recipients.
            (vec![("000001", Some(&ours), no), ("000002", Some(&thief), no)], restorer(&[]), "yes no"),
            // Nobody that is named: one is taken with a notice, of several none.
            (vec![("000001", Some(&new), no), ("000002", Some(&new), no)], restorer(&[]), "unknown unknown"),
            (vec![("000001", Some(&new), no), ("000002", Some(&thief), no)], restorer(&[]), "no no"),
            // What anyone can write is not believed where one encrypts.
            (vec![("000001", None, no), ("000002", Some(&new), no)], restorer(&[&new]), "no yes"),
            (vec![("000001", None, no)], Keyring::default(), "yes"),
        ] {
            let records = records(&epochs.iter().map(|(name, by, earlier)| (*name, *by, *earlier)).collect::<Vec<_>>());
            assert_eq!(words(&records, &keys), wanted, "{epochs:?}");
        }
    }

    #[test]
    fn an_epoch_ends_when_the_next_believed_one_begins() {
        let (ours, thief) = (Identity::generate(), Identity::generate());
        let records =
            records(&[("000001", Some(&ours), &[]), ("000002", Some(&thief), &[]), ("000003", Some(&ours), &[])]);
        let beliefs: Vec<_> = believe(&records, &keyring(&[], &[&ours], &[])).into_values().collect();
        let march: Timestamp = "2026-03-01T01:00:00Z".parse().unwrap();
        assert_eq!(beliefs[0], Belief::Believed { until: Some(march) });
        assert_eq!(beliefs[2], Belief::Believed { until: None });
        assert!(in_time("2026-02-28T01:00:00Z".parse().unwrap(), Some(march)));
        assert!(in_time("2026-03-01T01:10:00Z".parse().unwrap(), Some(march)));
        assert!(!in_time("2026-03-01T01:20:00Z".parse().unwrap(), Some(march)));
        assert!(in_time("2036-03-01T01:20:00Z".parse().unwrap(), None));
    }
}
