//! Where each object is. The only place that builds or takes apart a key.

use jiff::Timestamp;

use super::{AlertKey, BackupId, EpochId, PartName, Protection};

/// The version of the repository format that this program reads and writes (rule R10).
pub const FORMAT_VERSION: u32 = 1;

/// The install mark.
pub(crate) const INSTALL_MARK: &str = "altlas.json";
/// The folder of epochs.
pub(crate) const EPOCHS: &str = "epochs/";
/// The folder of backups.
pub(crate) const BACKUPS: &str = "backups/";
/// The folder of evidence, with a folder for each backup.
pub(crate) const VERIFICATIONS: &str = "verifications/";
/// The folder of runs that ended without a backup.
pub(crate) const ATTEMPTS: &str = "attempts/";
/// The folder of backups that expired.
pub(crate) const TOMBSTONES: &str = "tombstones/";
/// The folder of what was told of alerts, with a folder for each.
pub(crate) const ALERTS: &str = "alerts/";
const DETAIL_MARK: &str = ".detail.json.zst";
/// What a head is called inside its backup's folder.
const HEAD: &str = "head.json";
const MANIFEST_MARK: &str = ".manifest.json.zst";

/// What the keys of encrypted objects end in.
pub(crate) const ENCRYPTED_SUFFIX: &str = ".age";

/// The folder of one epoch, with a slash at its end.
pub(crate) fn epoch(epoch: &EpochId) -> String {
    format!("{EPOCHS}{epoch}/")
}

pub(crate) fn epoch_record(epoch: &EpochId) -> String {
    format!("{EPOCHS}{epoch}/epoch.json")
}

pub(crate) fn keys(epoch: &EpochId, protection: &Protection) -> String {
    format!("{EPOCHS}{epoch}/keys.json{}", protection.suffix())
}

/// Is it the key of this epoch's record or of its keys?
pub(crate) fn is_epoch_record(key: &str, epoch: &EpochId) -> bool {
    let name = key.strip_prefix(&self::epoch(epoch));
    matches!(name, Some("epoch.json" | "keys.json" | "keys.json.age"))
}

/// The folder of an epoch's parts, with a slash at its end.
pub(crate) fn parts(epoch: &EpochId) -> String {
    format!("{EPOCHS}{epoch}/parts/")
}

pub(crate) fn part(epoch: &EpochId, name: &PartName, protection: &Protection) -> String {
    let name = name.to_string();
    format!("{}{}/{name}.zst{}", parts(epoch), &name[..2], protection.suffix())
}

/// The part's name in a key below [`parts`]; `None` for anything else that lies there.
pub(crate) fn part_name(key: &str, epoch: &EpochId, protection: &Protection) -> Option<PartName> {
    let rest = key.strip_prefix(&parts(epoch))?;
    let (folder, file) = rest.split_once('/')?;
    let name = file.strip_suffix(&format!(".zst{}", protection.suffix()))?;
    name.starts_with(folder).then(|| name.parse().ok()).flatten()
}

/// The folder of one backup, with a slash at its end.
pub(crate) fn backup(id: &BackupId) -> String {
    format!("{BACKUPS}{id}/")
}

pub(crate) fn head(id: &BackupId) -> String {
    format!("{}{HEAD}", backup(id))
}

pub(crate) fn manifest(id: &BackupId, source: &str, protection: &Protection) -> String {
    format!("{}{source}{MANIFEST_MARK}{}", backup(id), protection.suffix())
}

/// The record of a run that ended without a backup.
pub(crate) fn attempt(id: &BackupId) -> String {
    format!("{ATTEMPTS}{id}.json")
}

/// The run of a key below [`ATTEMPTS`].
pub(crate) fn attempt_of(key: &str) -> Option<BackupId> {
    key.strip_prefix(ATTEMPTS)?.strip_suffix(".json")?.parse().ok()
}

/// A backup's tombstone. One that expires again, after its expiry was undone, gets another: a key that was used and may be about to be
/// deleted by somebody is never used again.
pub(crate) fn tombstone(id: &BackupId, nth: u32) -> String {
    match nth {
        0 | 1 => format!("{TOMBSTONES}{id}.json"),
        nth => format!("{TOMBSTONES}{id}.{nth}.json"),
    }
}

/// The backup of a key below [`TOMBSTONES`].
pub(crate) fn tombstone_of(key: &str) -> Option<BackupId> {
    let name = key.strip_prefix(TOMBSTONES)?.strip_suffix(".json")?;
    match name.split_once('.') {
        None => name.parse().ok(),
        Some((id, nth)) => nth.parse::<u32>().ok().and_then(|_| id.parse().ok()),
    }
}

/// The folder of the evidence on one backup, with a slash at its end.
pub(crate) fn verifications(id: &BackupId) -> String {
    format!("{VERIFICATIONS}{id}/")
}

/// To the millisecond: `20261123T013000.512Z`.
fn instant(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%S%.3fZ").to_string()
}

pub(crate) fn evidence(id: &BackupId, at: Timestamp) -> String {
    format!("{}{}.json", verifications(id), instant(at))
}

pub(crate) fn evidence_detail(id: &BackupId, at: Timestamp, protection: &Protection) -> String {
    format!("{}{}{DETAIL_MARK}{}", verifications(id), instant(at), protection.suffix())
}

/// The backup of a key below [`VERIFICATIONS`] that is evidence, not its details.
pub(crate) fn evidence_of(key: &str) -> Option<BackupId> {
    let (id, file) = key.strip_prefix(VERIFICATIONS)?.split_once('/')?;
    let is_evidence = file.ends_with(".json") && !file.contains('/');
    is_evidence.then(|| id.parse().ok()).flatten()
}

/// The backup of a key below [`VERIFICATIONS`], evidence or its details.
pub(crate) fn verified_backup(key: &str) -> Option<BackupId> {
    let (id, file) = key.strip_prefix(VERIFICATIONS)?.split_once('/')?;
    (!file.contains('/')).then(|| id.parse().ok()).flatten()
}

/// A change of an alert.
pub(crate) fn alert_change(alert: &AlertKey, number: u64) -> String {
    format!("{ALERTS}{}.{}/{number:08}.json", alert.alert, alert.subject)
}

/// A try at telling it.
pub(crate) fn alert_try(alert: &AlertKey, number: u64, receiver: &str, at: Timestamp, tail: &str) -> String {
    format!("{ALERTS}{}.{}/{number:08}.{receiver}.{}-{tail}.json", alert.alert, alert.subject, instant_word(at))
}

/// To the millisecond, as one segment without a dot: `20261123T013000512Z`.
fn instant_word(at: Timestamp) -> String {
    instant(at).replace('.', "")
}

/// Takes a key below [`ALERTS`] apart: the alert, the number of its change, and whether it is a try at telling it. `None` for what this
/// version does not know.
pub(crate) fn alert_object(key: &str) -> Option<(AlertKey, u64, bool)> {
    let (folder, file) = key.strip_prefix(ALERTS)?.split_once('/')?;
    let name = file.strip_suffix(".json")?;
    let (number, rest) = name.split_once('.').map_or((name, None), |(number, rest)| (number, Some(rest)));
    let is_try = match rest.map(|rest| rest.split_once('.')) {
        None => false,
        Some(Some((receiver, time))) if !receiver.is_empty() && !time.contains('.') => true,
        Some(_) => return None,
    };
    Some((folder.parse().ok()?, number.parse().ok()?, is_try))
}

/// What a key below [`BACKUPS`] is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BackupObject<'a> {
    /// The head.
    Head,
    /// The manifest of the named source.
    Manifest(&'a str),
    /// Something this version does not know.
    Other,
}

/// Takes a key below [`BACKUPS`] apart; `None` where its folder is no backup's id.
pub(crate) fn backup_object(key: &str) -> Option<(BackupId, BackupObject<'_>)> {
    let (id, file) = key.strip_prefix(BACKUPS)?.split_once('/')?;
    let object = match (file, file.split_once(MANIFEST_MARK)) {
        (HEAD, _) => BackupObject::Head,
        (_, Some((source, "" | ".age"))) => BackupObject::Manifest(source),
        _ => BackupObject::Other,
    };
    Some((id.parse().ok()?, object))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back() {
        let epoch: EpochId = "20261101T010000Z-7h2mxq".parse().unwrap();
        let id: BackupId = "20261123T010000Z-k3f9qa".parse().unwrap();
        let name = PartName::new(&crate::repository::Keys::random(), [0xab; 32], [0x01; 32], id.tail());
        let key = part(&epoch, &name, &Protection::Clear);
        assert!(key.starts_with("epochs/20261101T010000Z-7h2mxq/parts/ab/abab"), "{key}");
        assert_eq!(part_name(&key, &epoch, &Protection::Clear), Some(name));
        assert_eq!(part_name(&key.replace("/ab/", "/ac/"), &epoch, &Protection::Clear), None);
        assert_eq!(backup_object(&head(&id)), Some((id.clone(), BackupObject::Head)));
        let key = manifest(&id, "database", &Protection::Clear);
        assert_eq!(backup_object(&key), Some((id, BackupObject::Manifest("database"))));
        assert_eq!(backup_object("backups/nonsense/head.json"), None);
        let id: BackupId = "20261123T010000Z-k3f9qa".parse().unwrap();
        let at: Timestamp = "2026-11-23T01:30:00.5129Z".parse().unwrap();
        let key = evidence(&id, at);
        assert_eq!(key, "verifications/20261123T010000Z-k3f9qa/20261123T013000.512Z.json");
        assert_eq!(evidence_of(&key), Some(id.clone()));
        assert_eq!(evidence_of(&evidence_detail(&id, at, &Protection::Clear)), None);
        assert_eq!(verified_backup(&evidence_detail(&id, at, &Protection::Clear)), Some(id.clone()));
        assert_eq!(tombstone(&id, 1), "tombstones/20261123T010000Z-k3f9qa.json");
        assert_eq!(tombstone(&id, 2), "tombstones/20261123T010000Z-k3f9qa.2.json");
        for key in [tombstone(&id, 1), tombstone(&id, 2)] {
            assert_eq!(tombstone_of(&key), Some(id.clone()));
        }
        assert_eq!(tombstone_of("tombstones/20261123T010000Z-k3f9qa.x.json"), None);
        assert_eq!(attempt_of(&attempt(&id)), Some(id.clone()));
        let alert: AlertKey = "backup-failed.database".parse().unwrap();
        let key = alert_change(&alert, 12);
        assert_eq!(key, "alerts/backup-failed.database/00000012.json");
        assert_eq!(alert_object(&key), Some((alert.clone(), 12, false)));
        let key = alert_try(&alert, 12, "webhook", at, "k3f9qa");
        assert_eq!(key, "alerts/backup-failed.database/00000012.webhook.20261123T013000512Z-k3f9qa.json");
        assert_eq!(alert_object(&key), Some((alert, 12, true)));
        for other in
            ["alerts/x.database/1.json", "alerts/late.database/x.json", "alerts/late/1.json", "alerts/late.a/1.b.json"]
        {
            assert_eq!(alert_object(other), None, "{other}");
        }
    }
}
