//! What changed, told apart from what was told before.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::repository::AlertKind;

fn said() -> Said {
    let (summary, description) = ("summary".to_owned(), "description".to_owned());
    Said { since: Timestamp::UNIX_EPOCH, reason: None, backup: None, summary, description, hint: None }
}

fn condition(alert: AlertKind, subject: &str, firing: bool) -> Condition {
    Condition { key: AlertKey::new(alert, subject), firing, said: said() }
}

/// A journal in which these were told in turn.
fn journal(told: &[(AlertKind, &str, AlertState)]) -> AlertJournal {
    let mut journal = AlertJournal::default();
    for (alert, subject, state) in told {
        let key = AlertKey::new(*alert, *subject);
        journal.add(AlertRecord::Change(AlertChange {
            format: 1,
            repository: "0123456789abcdefghjkmnpqrs".to_owned().try_into().unwrap(),
            epoch: "20261101T010000Z-7h2mxq".parse().unwrap(),
            tool: String::new(),
            number: journal.next_number(&key),
            key,
            claim: "aaaaaa".into(),
            at: Timestamp::UNIX_EPOCH,
            state: *state,
            to: Vec::new(),
            said: said(),
        }));
    }
    journal
}

#[test]
fn only_what_changed_is_told() {
    use AlertKind::{BackupFailed, Late, RunFailed};
    use AlertState::{Firing, Resolved};
    let text = "[repository]\nurl = \"file:///srv/backup\"\n[[source]]\nname = \"a\"\nkind = \"redis\"\nurl = \"redis://localhost\"\n";
    let config = Config::from_text(text, std::path::Path::new("/etc/t.toml"), None).unwrap();
    for (told, conditions, wanted) in [
        (&[][..], &[][..], &[][..]),
        (&[], &[condition(BackupFailed, "a", false)], &[]),
        (&[], &[condition(BackupFailed, "a", true)], &[(BackupFailed, "a", Firing)]),
        (&[(BackupFailed, "a", Firing)], &[condition(BackupFailed, "a", true)], &[]),
        (&[(BackupFailed, "a", Firing)], &[condition(BackupFailed, "a", false)], &[(BackupFailed, "a", Resolved)]),
        (&[(BackupFailed, "a", Firing), (BackupFailed, "a", Resolved)], &[condition(BackupFailed, "a", false)], &[]),
        (
            &[(BackupFailed, "a", Firing), (BackupFailed, "a", Resolved)],
            &[condition(BackupFailed, "a", true), condition(Late, "a", true)],
            &[(BackupFailed, "a", Firing), (Late, "a", Firing)],
        ),
        // Of a run only runs of its own tell.
        (&[(RunFailed, "backup", Firing)], &[condition(BackupFailed, "a", false)], &[]),
        (&[(RunFailed, "backup", Firing)], &[condition(RunFailed, "verify", false)], &[]),
        (
            &[(RunFailed, "backup", Firing)],
            &[condition(RunFailed, "backup", false)],
            &[(RunFailed, "backup", Resolved)],
        ),
        // A source that nobody watches any more.
        (&[(Late, "gone", Firing)], &[condition(Late, "a", false)], &[(Late, "gone", Resolved)]),
        (&[(Late, "gone", Firing), (Late, "gone", Resolved)], &[], &[]),
    ] {
        let found = changes(&journal(told), conditions, Some(&config), Timestamp::UNIX_EPOCH);
        let found: Vec<_> = found.iter().map(|(key, state, _)| (key.alert, key.subject.as_str(), *state)).collect();
        assert_eq!(found, wanted, "{told:?} {conditions:?}");
        // A machine that only verifies knows nothing of what it has not configured.
        let found = changes(&journal(told), conditions, None, Timestamp::UNIX_EPOCH);
        let found: Vec<_> = found.iter().map(|(key, state, _)| (key.alert, key.subject.as_str(), *state)).collect();
        let wanted: Vec<_> = wanted.iter().copied().filter(|(_, subject, _)| *subject != "gone").collect();
        assert_eq!(found, wanted, "{told:?} {conditions:?}");
    }
}
