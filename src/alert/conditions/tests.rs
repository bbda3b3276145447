//! Tables of what fires, for histories written as a few words.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::repository::{
    Anchors, BackupState, Catalog, EVIDENCE_VERSION, Evidence, ManifestDigest, RepositoryId, SourceIdentity, Trust,
    Verdicts,
};

/// Something that happened to the source `database`, at an hour after the repository was created.
#[derive(Clone, Copy, Debug)]
enum Did {
    /// A backup with a snapshot of it in this state.
    Backup(i64, SnapshotState),
    /// A backup that was asked for the other source only.
    Other(i64),
    /// A backup whose head cannot be trusted.
    Damaged(i64),
    /// A run without a backup.
    InVain(i64),
    /// A run that failed and left the head of the backup of this hour.
    HeadRemained(i64),
    /// A verification at this hour, of the backup of that hour.
    Verified(i64, i64, Level, Verdict),
}

const INTERVAL: Duration = Duration::from_secs(24 * 3600);

fn hour(hour: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + hour * 3600).unwrap()
}

fn id(at: i64) -> BackupId {
    format!("{}-aaaaaa", hour(at).strftime("%Y%m%dT%H%M%SZ")).parse().unwrap()
}

fn head(at: i64, source: &str, state: SnapshotState) -> Head {
    let mut in_head = HeadSource::failed(&SourceIdentity { name: source.into(), kind: "postgres".into() });
    in_head.state = state;
    in_head.manifest = state.is_there().then(|| ManifestDigest { bytes: 1, sha256: format!("manifest {at}") });
    Head {
        format: 1,
        repository: RepositoryId::random(),
        backup: id(at),
        epoch: "20261101T010000Z-7h2mxq".parse().unwrap(),
        tool: String::new(),
        started: hour(at),
        finished: hour(at),
        state: if state.is_usable() { BackupState::Complete } else { BackupState::Partial },
        skew: None,
        anchors: Anchors { install_mark: String::new(), epoch: String::new(), keys: String::new() },
        sources: vec![in_head],
    }
}

fn attempt(at: i64) -> Attempt {
    Attempt {
        format: 1,
        repository: RepositoryId::random(),
        backup: id(at),
        epoch: "20261101T010000Z-7h2mxq".parse().unwrap(),
        tool: String::new(),
        started: hour(at),
        finished: hour(at),
        sources: vec!["database".into()],
        error: "source".into(),
    }
}

fn evidence(at: i64, of: i64, level: Level, verdict: Verdict) -> Evidence {
    let reason = match verdict {
        Verdict::Failed => Some(Reason::Differs),
        Verdict::Inconclusive => Some(Reason::NoServer),
        _ => None,
    };
    let source = SourceEvidence {
        name: "database".into(),
        kind: "postgres".into(),
        manifest: format!("manifest {of}"),
        verdict,
        reason,
        objects: 0,
        rows: 0,
        bytes: 0,
        differences: 0,
        restore_seconds: None,
        seconds: 1.0,
    };
    Evidence {
        format: EVIDENCE_VERSION,
        repository: RepositoryId::random(),
        backup: id(of),
        epoch: "20261101T010000Z-7h2mxq".parse().unwrap(),
        tool: String::new(),
        level,
        started: hour(at),
        finished: hour(at),
        verdict,
        sources: vec![source],
        detail: ManifestDigest { bytes: 0, sha256: String::new() },
    }
}

fn history(did: &[Did], now: i64) -> History {
    let (mut entries, mut all, mut attempts) = (Vec::new(), Vec::new(), Vec::new());
    for one in did {
        match *one {
            Did::Backup(at, state) => entries.push((at, CatalogEntry::Good(Box::new(head(at, "database", state))))),
            Did::Other(at) => {
                entries.push((at, CatalogEntry::Good(Box::new(head(at, "cache", SnapshotState::Complete)))));
            }
            Did::Damaged(at) => {
                entries.push((at, CatalogEntry::Damaged { id: id(at), trust: Trust::damaged("head.json", "is torn") }));
            }
            Did::InVain(at) | Did::HeadRemained(at) => attempts.push(attempt(at)),
            Did::Verified(at, of, level, verdict) => all.push(evidence(at, of, level, verdict)),
        }
    }
    entries.sort_by_key(|(at, _)| -at);
    let catalog =
        Catalog { entries: entries.into_iter().map(|(_, entry)| entry).collect(), unknown: None, ..Catalog::default() };
    let verdicts = Verdicts::new(&catalog, all);
    attempts.sort_by_key(|attempt| attempt.started);
    History { now: hour(now), created: hour(0), catalog, verdicts, attempts }
}

fn config() -> Config {
    let mut text = "[repository]\nurl = \"file:///srv/backup\"\n".to_owned();
    for name in ["database", "cache"] {
        text += &format!("[[source]]\nname = \"{name}\"\nkind = \"redis\"\nurl = \"redis://localhost\"\n");
    }
    Config::from_text(&text, std::path::Path::new("/etc/t.toml"), None).unwrap()
}

fn nightly() -> Expected {
    let every_day = || [("database".to_owned(), INTERVAL)].into();
    Expected { backup: every_day(), proof: every_day() }
}

fn all(did: &[Did], expected: &Expected, now: i64) -> Vec<Condition> {
    conditions(&history(did, now), &config(), expected, hour(now))
}

fn of_database(did: &[Did], alert: AlertKind, now: i64) -> Condition {
    all(did, &nightly(), now).into_iter().find(|one| one.key == AlertKey::new(alert, "database")).unwrap()
}

/// What fires for `database`, as words, where no schedule expects anything.
fn fires(did: &[Did]) -> String {
    let found = all(did, &Expected::default(), 1000);
    assert_eq!(found.len(), 10, "every source has every condition");
    assert!(found.iter().all(|one| one.key.subject == "database" || !one.firing), "the other source is fine");
    found.iter().filter(|one| one.firing).map(|one| one.key.alert.as_str()).collect::<Vec<_>>().join(" ")
}

use Did::*;
use Level::{Content, Presence, Restore};
use SnapshotState::{Complete, Empty, Failed, Partial};

#[test]
fn the_newest_attempt_decides_whether_the_backup_failed() {
    for (did, wanted) in [
        (&[][..], ""),
        (&[Backup(1, Complete)], ""),
        (&[Backup(1, Empty)], ""),
        (&[Backup(1, Failed)], "backup-failed"),
        (&[Backup(1, Partial)], "backup-failed"),
        (&[InVain(1)], "backup-failed"),
        (&[Backup(1, Complete), InVain(2)], "backup-failed"),
        (&[InVain(1), Backup(2, Complete)], ""),
        (&[Backup(1, Failed), Backup(2, Complete)], ""),
        (&[Backup(1, Complete), Backup(2, Partial)], "backup-failed"),
        // What was not asked for it says nothing.
        (&[Backup(1, Failed), Other(2)], "backup-failed"),
        (&[Backup(1, Complete), Other(2)], ""),
        // A head that a failed run could not remove is no success.
        (&[Backup(2, Complete), HeadRemained(2)], "backup-failed"),
        // A clock that ran ahead hides nothing.
        (&[Backup(5000, Complete), InVain(2)], "backup-failed"),
    ] {
        assert_eq!(fires(did), wanted, "{did:?}");
    }
}

#[test]
fn a_bad_backup_stays_bad_until_a_newer_one_is_known_to_be_good() {
    use Verdict::{Failed, Inconclusive, Sound, Verified as Proved};
    let nights = [Backup(1, Complete), Backup(25, Complete)];
    let with = |more: &[Did]| [&nights[..], more].concat();
    for (more, wanted) in [
        (&[][..], ""),
        (&[Verified(26, 25, Restore, Proved)], ""),
        (&[Verified(26, 25, Restore, Failed)], "verification-failed"),
        (&[Verified(26, 25, Presence, Failed)], "verification-failed"),
        // A later proof of the same one, and a later failure of what was proved.
        (&[Verified(26, 25, Restore, Failed), Verified(27, 25, Restore, Proved)], ""),
        (&[Verified(26, 25, Restore, Proved), Verified(27, 25, Content, Failed)], "verification-failed"),
        // The older one is bad, and the newer one is not known to be good, or less is known of it.
        (&[Verified(2, 1, Restore, Failed)], "verification-failed"),
        (&[Verified(2, 1, Restore, Failed), Verified(26, 25, Content, Sound)], "verification-failed"),
        (&[Verified(2, 1, Content, Failed), Verified(26, 25, Presence, Sound)], "verification-failed"),
        (&[Verified(2, 1, Restore, Failed), Verified(26, 25, Restore, Inconclusive)], "verification-failed"),
        // Found good, as deep as the older one was found bad.
        (&[Verified(2, 1, Restore, Failed), Verified(26, 25, Restore, Proved)], ""),
        (&[Verified(2, 1, Content, Failed), Verified(26, 25, Content, Sound)], ""),
        (&[Verified(2, 1, Content, Failed), Verified(26, 25, Restore, Proved)], ""),
        // That a shallow look finds it again takes nothing away from what a deep one found.
        (&[Verified(2, 1, Restore, Failed), Verified(3, 1, Presence, Failed)], "verification-failed"),
        // Every part of a new backup was seen to be there when it was made.
        (&[Verified(2, 1, Presence, Failed)], ""),
        // An old one that turns out bad after a newer one was proved.
        (&[Verified(26, 25, Restore, Proved), Verified(27, 1, Restore, Failed)], ""),
    ] {
        assert_eq!(fires(&with(more)), wanted, "{more:?}");
    }
    // A head that cannot be trusted may be of any source.
    for (did, wanted) in [
        (&[Backup(1, Complete), Damaged(25)][..], [true, true]),
        (&[Backup(1, Complete), Damaged(25), Backup(26, Complete)], [false, true]),
        (&[Damaged(25), Backup(26, Complete), Other(27)], [false, false]),
        (&[Damaged(25), Backup(26, SnapshotState::Failed)], [true, true]),
    ] {
        let found = all(did, &Expected::default(), 1000);
        let bad = found.iter().filter(|one| one.key.alert == AlertKind::VerificationFailed).map(|one| one.firing);
        assert_eq!(bad.collect::<Vec<_>>(), wanted, "{did:?}");
    }
}

#[test]
fn two_verifications_without_an_answer_in_a_row() {
    use Verdict::{Failed, Inconclusive, Sound, Verified as Proved};
    let nights = [Backup(1, Complete), Backup(25, Complete), Backup(49, Complete)];
    for (more, wanted) in [
        (&[Verified(2, 1, Restore, Inconclusive)][..], ""),
        (&[Verified(2, 1, Restore, Inconclusive), Verified(3, 1, Restore, Inconclusive)], "verification-inconclusive"),
        (
            &[Verified(2, 1, Restore, Inconclusive), Verified(26, 25, Restore, Inconclusive)],
            "verification-inconclusive",
        ),
        (
            &[
                Verified(2, 1, Restore, Inconclusive),
                Verified(3, 1, Restore, Proved),
                Verified(4, 1, Restore, Inconclusive),
            ],
            "",
        ),
        (
            &[
                Verified(2, 1, Restore, Inconclusive),
                Verified(26, 25, Content, Sound),
                Verified(27, 25, Restore, Inconclusive),
            ],
            "verification-inconclusive",
        ),
        (
            &[
                Verified(2, 1, Restore, Inconclusive),
                Verified(26, 25, Restore, Inconclusive),
                Verified(50, 49, Restore, Proved),
            ],
            "",
        ),
        (
            &[
                Verified(2, 1, Restore, Inconclusive),
                Verified(3, 1, Restore, Inconclusive),
                Verified(4, 1, Content, Failed),
            ],
            "verification-failed",
        ),
    ] {
        assert_eq!(fires(&[&nights[..], more].concat()), wanted, "{more:?}");
    }
}

#[test]
fn what_is_expected_and_does_not_come_is_late() {
    use Verdict::Verified as Proved;
    let proved = [Backup(24, Complete), Verified(25, 24, Restore, Proved)];
    for (did, now, late, unverified) in [
        // 36 hours after the repository was created, or after the last one began.
        (&[][..], 36, false, false),
        (&[], 37, true, true),
        (&proved, 60, false, false),
        (&proved, 61, true, true),
        (&[proved[0]], 37, false, true),
        // A partial one is no success, a failed one neither.
        (&[proved[0], proved[1], Backup(48, Partial), InVain(58)], 61, true, true),
        // The verification of an old one does not make up for a new one.
        (&[proved[0], Backup(70, Complete), Verified(71, 24, Restore, Proved)], 72, false, true),
        (&[proved[0], proved[1], Backup(5000, Complete)], 61, true, true),
    ] {
        for (alert, wanted) in [(AlertKind::Late, late), (AlertKind::Unverified, unverified)] {
            assert_eq!(of_database(did, alert, now).firing, wanted, "{alert} at {now}: {did:?}");
        }
    }
    // Where nothing is expected nothing is late.
    assert!(all(&[], &Expected::default(), 100_000).iter().all(|one| !one.firing));
}

#[test]
fn words_name_the_source_the_backup_the_reason_and_the_next_step() {
    use Verdict::Failed;
    let did = [Backup(1, Complete), InVain(25), InVain(49)];
    let said = of_database(&did, AlertKind::BackupFailed, 50).said;
    assert_eq!((said.since, said.reason.as_deref(), said.backup), (hour(25), Some("source"), Some(id(49))));
    assert_eq!(
        said.description,
        "Run 20270117T090000Z-aaaaaa ended at 2027-01-17T09:00:00Z without a backup of source `database`: `source`. It is the last of \
         2 failures in a row. The last whole backup of it is 20270115T090000Z-aaaaaa, of 2027-01-15T09:00:00Z."
    );
    assert!(said.hint.unwrap().contains("doctor"));

    let did = [Backup(1, Complete), Verified(2, 1, Restore, Failed)];
    let said = of_database(&did, AlertKind::VerificationFailed, 3).said;
    assert_eq!((said.since, said.reason.as_deref(), said.backup), (hour(2), Some("differs"), Some(id(1))));
    assert_eq!(
        said.description,
        "Backup 20270115T090000Z-aaaaaa of source `database` is not to be relied on: its verification at level restore found that what \
         was restored is not what was captured. No backup of it is proved."
    );
    let late = of_database(&did, AlertKind::Late, 100).said;
    assert_eq!(late.since, hour(37));
    assert_eq!(late.summary, "source `database` was not backed up for 4 d 3 h");
    // Everything that fires says what to do next, and nothing is said without naming the source.
    for one in all(&[InVain(1), Damaged(2)], &nightly(), 100) {
        assert_eq!(one.firing, one.said.hint.is_some(), "{one:?}");
        assert!(
            one.said.summary.contains(&one.key.subject) && one.said.description.contains(&one.key.subject),
            "{one:?}"
        );
    }
}
