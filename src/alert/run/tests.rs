//! Which errors of a run are somebody's business.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::store::{StoreError, StoreErrorKind};

fn store() -> Error {
    StoreError::new(StoreErrorKind::Unreachable, "get", "s3://bucket/altlas.json", "connection refused").into()
}

#[test]
fn a_run_that_fails_without_a_record_is_told() {
    let now = Timestamp::UNIX_EPOCH;
    let typed = || Error::Usage { message: "two of them".into(), hint: None };
    for (error, recorded, wanted) in [
        (None, false, Some(false)),
        (Some(store()), false, Some(true)),
        // The source's own alert tells it.
        (Some(store()), true, Some(false)),
        (Some(Error::AllFailed(Vec::new())), true, Some(false)),
        // Nobody who is asleep is to hear of a mistake in a command, or of a run that was stopped.
        (Some(typed()), false, None),
        (Some(Error::Interrupted), false, None),
        (Some(Error::NotConfirmed), false, None),
    ] {
        let found = condition(Run::Backup, error.as_ref(), recorded, now);
        assert_eq!(found.as_ref().map(|one| one.firing), wanted, "{error:?}");
        assert!(found.is_none_or(|one| one.key.to_string() == "`run-failed` of `altlas-backup backup`"));
    }
}

#[test]
fn words_of_the_store_are_told_and_those_of_a_source_are_not() {
    let said = Run::Verify.failed(&store(), Timestamp::UNIX_EPOCH).said;
    assert_eq!(said.reason.as_deref(), Some("store"));
    assert!(said.description.contains("connection refused") && said.hint.unwrap().contains("endpoint"));
    let failed = vec!["table `ledger.secrets`: gone".to_owned()];
    let error = Error::NothingCaptured { name: "database".into(), failed, hint: Some("look at `ledger`".into()) };
    let said = Run::Backup.failed(&error, Timestamp::UNIX_EPOCH).said;
    assert_eq!(said.description, "`altlas-backup backup` ended with an error of the kind `source`.");
    assert!(!format!("{said:?}").contains("ledger"), "{said:?}");
}
