//! The life of a backup: it is kept, it expires, it is brought back, it goes.

use std::{collections::BTreeSet, fs, sync::Arc, thread::sleep, time::Duration};

use altlas_backup::{config::RetentionConfig, operation::PruneArguments};
use jiff::tz::TimeZone;
use serde_json::json;

use super::{Bench, DISKLESS, LONG, age, change, fates, parts, parts_of};
use crate::support::{
    library::Library,
    mode::{Mode, in_both_modes},
    redis::{Redis, RedisVersion},
    s3::{BlockingS3, S3Kind},
    workspace::Workspace,
};

in_both_modes! {
    it_expires_and_goes_after_the_grace_period,
    an_expiry_is_undone_and_done_again,
    what_runs_left_behind_goes,
    on_an_s3_server_with_epochs,
}

fn it_expires_and_goes_after_the_grace_period(mode: Mode) {
    let mut bench = Bench::start(mode, 4);
    // The oldest is the only verified one: it stays whatever the rules say.
    bench.workspace.run(&["verify", &bench.backups[0]]).ok();
    let (kept, expired) =
        ([bench.backups[0].clone(), bench.backups[2].clone(), bench.backups[3].clone()], [bench.backups[1].clone()]);
    // Without `[retention]` nothing expires.
    let before = bench.workspace.objects();
    let report = bench.workspace.run(&["--json", "prune"]).ok().json();
    assert!(report.get("retention").is_none(), "{report}");
    assert_eq!(bench.workspace.objects(), before);

    bench.keep(2);
    bench.without_data_identity();
    let planned = bench.workspace.run(&["--json", "prune", "--dry-run"]).ok().json();
    for (ids, fate) in [(&kept[..], "kept"), (&expired, "expires")] {
        assert!(ids.iter().all(|id| fates(&planned)[id] == fate), "{planned}");
    }
    let why = &planned["retention"]["backups"][3]["reasons"];
    assert_eq!(*why, json!(["the last verified snapshot of `cache`"]));
    assert_eq!(bench.workspace.objects(), before, "a dry run touches nothing");
    let text = bench.workspace.run(&["prune", "--dry-run"]).ok().stdout;
    for words in [
        "retention: last 2, daily 0, weekly 0, monthly 0 in UTC",
        "the last verified snapshot of `cache`",
        "EXPIRES",
        "1 of 4 backups expires; for 3 d `altlas-backup prune --undo BACKUP` brings one back",
        "nothing was touched: this was a dry run",
    ] {
        assert!(text.contains(words), "`{words}` is not in\n{text}");
    }

    let done = bench.workspace.run(&["--json", "prune"]).ok().json();
    assert_eq!(done["retention"], planned["retention"], "what is done is what was shown");
    let mut after = bench.workspace.objects();
    assert_eq!(bench.heads(), kept);
    let tombstone = after.remove(&format!("tombstones/{}.json", expired[0])).expect("a tombstone");
    assert!(String::from_utf8(tombstone).unwrap().contains("\"mac\""));
    let mut rest = before.clone();
    rest.remove(&format!("backups/{}/head.json", expired[0]));
    assert_eq!(after, rest, "all else is there: for backups under way, and to bring it back");
    let listed = bench.workspace.run(&["list"]).ok().stdout;
    assert!(listed.contains(&expired[0]) && listed.contains("expired"), "{listed}");
    bench.workspace.run(&["show", &expired[0]]).output().assert_error(1, &["expired", "prune --undo"]);

    // Nothing more happens until it is old.
    let before = bench.workspace.objects();
    age(&bench.workspace.repository_folder(), "", LONG - Duration::from_secs(7200));
    bench.workspace.run(&["prune"]).ok();
    assert_eq!(bench.workspace.objects(), before);
    age(&bench.workspace.repository_folder(), "", Duration::from_secs(7200));
    let needed = parts_of(&bench.library(), &before, &kept);
    let report = bench.workspace.run(&["--json", "prune"]).ok().json();
    let after = bench.workspace.objects();
    assert_eq!(parts(after.keys()), needed, "of the parts those stay that are needed, and no other");
    assert_eq!(report["sweep"]["unused"]["objects"], parts(before.keys()).len() - needed.len());
    assert_eq!(report["sweep"]["unused"], report["sweep"]["explained"]);
    assert!(!after.keys().any(|key| key.contains(&expired[0])), "{:?}", after.keys());
    bench.assert_sound(&kept);
    let target = Redis::start_with(RedisVersion::V70, DISKLESS);
    let address = format!("cache={}", target.url());
    if mode == Mode::Encrypted {
        let identity = bench.workspace.identity_file().display().to_string();
        bench.workspace.set("repository.encryption.identity_file", identity);
    }
    let restore = bench.workspace.run(&["restore", "latest", "--yes", "--target", &address]);
    restore.env("ALTLAS_BACKUP_TARGET_CACHE_PASSWORD", target.password()).ok();
    assert_eq!(target.digest(), bench.source.digest());

    bench.workspace.run(&["prune"]).ok();
    let once_more = super::without_evidence(bench.workspace.objects());
    assert_eq!(once_more, super::without_evidence(after), "once more changes nothing");
}

fn an_expiry_is_undone_and_done_again(mode: Mode) {
    let mut bench = Bench::start(mode, 3);
    bench.keep(1);
    bench.without_data_identity();
    let root = bench.workspace.repository_folder();
    let (id, other) = (bench.backups[0].clone(), bench.backups[1].clone());
    let (head, tombstone) = (format!("backups/{id}/head.json"), format!("tombstones/{id}.json"));
    let before = bench.workspace.objects();
    bench.workspace.run(&["prune", "--undo", &id]).output().assert_error(1, &["no backup", "that expired"]);
    bench.workspace.run(&["prune"]).ok();
    assert_eq!(bench.heads(), bench.backups[2..]);

    // An hour before it is too late.
    age(&root, "", LONG - Duration::from_secs(7200));
    let report = bench.workspace.run(&["--json", "prune", "--undo", &id]).ok().json();
    assert_eq!(report, json!({"backup": id, "restored": true}));
    assert_eq!(bench.workspace.objects()[&head], before[&head], "byte for byte");
    bench.assert_sound(std::slice::from_ref(&id));
    // Where both are, the head wins, and there is nothing to undo; whatever the age of the tombstone.
    age(&root, "tombstones", LONG);
    age(&root, "epochs", LONG);
    let report = bench.workspace.run(&["--json", "prune", "--undo", &id]).ok().json();
    assert_eq!(report["restored"], false);
    assert!(bench.workspace.objects().contains_key(&tombstone));

    // It expires again. The old tombstone says that for long nothing of it has been in use; a new one is written.
    bench.workspace.run(&["prune"]).ok();
    let after = bench.workspace.objects();
    let again = format!("tombstones/{id}.2.json");
    assert!(after.contains_key(&tombstone) && after.contains_key(&again) && !after.contains_key(&head));
    assert!(!after.keys().any(|key| key.contains(&other)), "the other one is gone");
    bench.workspace.run(&["prune", "--undo", &other]).output().assert_error(1, &["no backup", "that expired"]);
    bench.workspace.run(&["prune", "--undo", &id]).ok();
    bench.assert_sound(std::slice::from_ref(&id));
    // As after a crash between tombstone and head: a run soon after it goes on with the tombstone that is there.
    bench.workspace.run(&["prune"]).ok();
    let tombstones: Vec<String> =
        bench.workspace.objects().into_keys().filter(|key| key.starts_with("tombstones/")).collect();
    assert_eq!(tombstones, [again.clone(), tombstone.clone()]);

    // What is not whole is not brought back.
    let needed = parts_of(&bench.library(), &bench.workspace.objects(), &bench.backups[2..]);
    let lost = parts(bench.workspace.objects().keys()).into_iter().find(|key| !needed.contains(key)).unwrap();
    let bytes = fs::read(root.join(&lost)).unwrap();
    fs::remove_file(root.join(&lost)).unwrap();
    bench.workspace.run(&["prune", "--undo", &id]).output().assert_error(1, &["cannot be brought back", &lost]);
    assert!(!bench.workspace.objects().contains_key(&head));
    fs::write(root.join(&lost), bytes).unwrap();
    // Nor is what a sweep may be taking.
    age(&root, "tombstones", LONG);
    bench.workspace.run(&["prune", "--undo", &id]).output().assert_error(1, &["expired", "for 2 d 23 h only"]);
    assert!(!bench.workspace.objects().contains_key(&head));
    age(&root, "", LONG);
    bench.workspace.run(&["prune"]).ok();
    assert!(!bench.workspace.objects().keys().any(|key| key.contains(&id)), "both tombstones go with it");
    bench.assert_sound(&bench.backups[2..]);
}

fn what_runs_left_behind_goes(mode: Mode) {
    let mut bench = Bench::start(mode, 5);
    let root = bench.workspace.repository_folder();
    // One run that never wrote its head, a file of a killed writer, records of runs that failed, evidence on nothing.
    let dead = bench.backups.remove(1);
    fs::remove_file(root.join(format!("backups/{dead}/head.json"))).unwrap();
    let manifest = format!("backups/{dead}/cache.manifest.json.zst{}", bench.mode.suffix());
    let temporary = root.join("backups/.tmp-0123456789abcdef");
    fs::write(&temporary, "half").unwrap();
    fs::create_dir(root.join("attempts")).unwrap();
    for n in 0..120 {
        fs::write(root.join(format!("attempts/20260101T010000Z-{n:06}.json")), "nobody wrote this").unwrap();
    }
    let evidence = "verifications/20260101T010000Z-000000/20260101T013000.512Z.json";
    fs::create_dir_all(root.join(evidence).parent().unwrap()).unwrap();
    fs::write(root.join(evidence), "nor this").unwrap();
    let before = bench.workspace.objects();
    bench.without_data_identity();

    // A run without a head may be under way, as long as it is young.
    age(&root, "epochs", LONG);
    let report = bench.workspace.run(&["--json", "prune"]).ok().json();
    assert_eq!(report["sweep"]["unfinished"][0]["goes"], false, "{report}");
    assert_eq!(bench.workspace.objects(), before);
    assert!(temporary.exists());

    age(&root, "", LONG);
    age(&root, "attempts", Duration::from_secs(90 * 24 * 3600));
    let needed = parts_of(&bench.library(), &before, &bench.backups);
    let report = bench.workspace.run(&["--json", "prune", "--dry-run"]).ok().json();
    assert_eq!((&report["sweep"]["attempts"]["objects"], &report["temporaries"]["objects"]), (&json!(20), &json!(1)));
    assert_eq!(bench.workspace.objects(), before);
    bench.workspace.run(&["prune"]).ok();
    let after = bench.workspace.objects();
    assert!(!temporary.exists() && !after.contains_key(&manifest) && !after.contains_key(evidence));
    assert_eq!(after.keys().filter(|key| key.starts_with("attempts/")).count(), 100);
    assert_eq!(parts(after.keys()), needed);
    bench.assert_sound(&bench.backups);
}

/// With a grace period of seconds, which no configuration may say.
fn on_an_s3_server_with_epochs(mode: Mode) {
    const GRACE: Duration = Duration::from_secs(2);
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    let s3 = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let workspace = Workspace::s3(&s3.place("backups", "alt-las/prod")).mode(mode).redis(&source);
    workspace.run(&["init"]).ok();
    let mut context = workspace.context();
    // Each backup begins an epoch.
    Arc::make_mut(&mut context.config).repository.epoch_days = 0;
    let library = Library::new(context.clone());
    let mut ids = Vec::new();
    for _ in 0..4 {
        change(&source);
        ids.push(library.backup().unwrap().backup.to_string());
        // S3 servers tell the time in whole seconds.
        sleep(Duration::from_millis(1100));
    }
    let config = Arc::make_mut(&mut context.config);
    config.repository.grace = GRACE;
    config.retention = Some(RetentionConfig {
        last: 2,
        daily: 0,
        weekly: 0,
        monthly: 0,
        timezone: TimeZone::UTC,
        expire_at_most_percent: 50,
    });
    let pruner = Library::new(context);
    let list = || s3.list("backups", "alt-las/prod");
    let before = list();
    let report = pruner.prune(&PruneArguments::default()).unwrap();
    assert_eq!((report.sweep.epochs.len(), report.sweep.unused.objects), (0, 0));
    let expired: Vec<String> = report.retention.unwrap().expired().map(|backup| backup.backup.to_string()).collect();
    assert_eq!(expired, ids[..2]);
    let after = list();
    assert_eq!(parts(before.keys()), parts(after.keys()));
    sleep(GRACE + Duration::from_secs(2));
    let report = pruner.prune(&PruneArguments::default()).unwrap();
    let after = list();
    assert_eq!(report.sweep.epochs.len(), 2, "{:#?}", report.sweep);
    let epochs: BTreeSet<&str> = after.keys().filter_map(|key| key.strip_prefix("epochs/")?.get(..23)).collect();
    assert_eq!(epochs.len(), 2, "{:?}", after.keys());
    assert!(!after.keys().any(|key| expired.iter().any(|id| key.contains(id))), "{:?}", after.keys());
    mode.assert_names(after.keys());
    for id in &ids[2..] {
        library.sound(id);
    }
    assert!(pruner.prune(&PruneArguments::default()).unwrap().sweep.is_empty());
    assert_eq!(super::without_evidence(list()), after);
    workspace.run(&["verify", "latest"]).ok();
}
