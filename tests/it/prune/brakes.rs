//! Brakes (R9): where something is not as it must be, nothing at all is removed, and the reason is said with the next step.

use std::fs;

use altlas_backup::operation::exit;

use super::{Bench, LONG, age};
use crate::support::{
    mode::{Identities, Mode, in_both_modes},
    workspace::Workspace,
};

in_both_modes! {
    what_is_not_known_is_not_removed,
    too_much_at_once_is_not_removed_unless_told,
}

const REFUSED: i32 = exit::REFUSED as i32;

/// Runs `prune`, which must refuse with these words and touch nothing; so must the dry run, and say the same.
#[track_caller]
fn refuses(workspace: &Workspace, words: &[&str]) {
    let before = workspace.objects();
    let words = [&["nothing was removed", "hint:"], words].concat();
    workspace.run(&["prune"]).output().assert_error(REFUSED, &words);
    assert_eq!(workspace.objects(), before);
    let error = workspace.run(&["--json", "prune"]).output().assert_code(REFUSED).json();
    assert_eq!(error["error"]["kind"], "refused", "{error}");
    let planned = workspace.run(&["--json", "prune", "--dry-run"]).output().assert_code(REFUSED).json();
    let message = planned["refused"][0]["message"].as_str().unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains(message), "{planned}\n{error}");
    assert!(planned["sweep"]["parts"]["objects"].as_u64().is_some(), "{planned}");
    assert_eq!(workspace.objects(), before);
}

fn what_is_not_known_is_not_removed(mode: Mode) {
    let mut bench = Bench::start(mode, 3);
    bench.keep(2);
    bench.workspace.run(&["prune"]).ok();
    // From here on nothing more expires, and everything is old; but for the tombstone.
    let [expired, older, newest] = &bench.backups[..] else { panic!() };
    let suffix = mode.suffix();
    let manifest = |id: &str| format!("backups/{id}/cache.manifest.json.zst{suffix}");
    let spoil = |workspace: &Workspace, key: &str| {
        let path = workspace.repository_folder().join(key);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    let case = |sabotage: &dyn Fn(&mut Workspace), words: &[&str]| {
        let mut workspace = bench.workspace.copy();
        for folder in ["epochs", "backups"] {
            age(&workspace.repository_folder(), folder, LONG);
        }
        sabotage(&mut workspace);
        println!("{words:?}");
        refuses(&workspace, words);
    };
    let head = format!("backups/{older}/head.json");
    case(&|it| spoil(it, &head), &[&head]);
    case(&|it| fs::write(it.repository_folder().join(&head), "").unwrap(), &[&head, "is empty"]);
    case(
        &|it| fs::write(it.repository_folder().join(&head), "{\"format\": 9, \"new\": true}").unwrap(),
        &[&head, "of repository format 9", "newer one"],
    );
    for id in [older, newest, expired] {
        case(&|it| spoil(it, &manifest(id)), &[&manifest(id), "so that what it uses is not known"]);
        case(&|it| fs::remove_file(it.repository_folder().join(manifest(id))).unwrap(), &[&manifest(id), "is missing"]);
    }
    let tombstone = format!("tombstones/{expired}.json");
    case(&|it| spoil(it, &tombstone), &[&tombstone]);
    // Heads that are all gone, by whatever accident. Their manifests are old, and so is everything.
    case(
        &|it| {
            for id in [older, newest] {
                fs::remove_file(it.repository_folder().join(format!("backups/{id}/head.json"))).unwrap();
            }
        },
        &["there is no backup"],
    );
    case(&|it| fs::remove_dir_all(it.repository_folder().join("backups")).unwrap(), &["manifest", "is missing"]);
    // A run under way whose manifest cannot be read.
    let running = manifest("20261123T010000Z-k3f9qa");
    case(
        &|it| {
            let path = it.repository_folder().join(&running);
            fs::create_dir(path.parent().unwrap()).unwrap();
            fs::write(path, "garbage").unwrap();
        },
        &[&running],
    );
    // The record of the epoch that everything stands on.
    let objects = bench.workspace.objects();
    let epoch = objects.keys().find(|key| key.ends_with("/epoch.json")).unwrap();
    case(&|it| spoil(it, epoch), &[epoch]);
    if mode == Mode::Encrypted {
        // Somebody else's key: what they made is not known here.
        let others = Identities::generate();
        case(
            &|it| {
                let other = Workspace::folder().encrypted(&others);
                let folder = it.repository_folder();
                it.table = other.table.clone();
                it.set("repository.url", format!("file://{}", folder.display()));
                for file in ["catalog-identity", "identity"] {
                    fs::copy(other.path(file), it.path(&format!("other-{file}"))).unwrap();
                    let key = format!("repository.encryption.{}_file", file.replace('-', "_"));
                    it.set(&key, it.path(&format!("other-{file}")).display().to_string());
                }
            },
            &["was made by the holder of"],
        );
        // Nobody says whose the backups are: as for a backup, that is no ground to do anything.
        for taken in ["catalog_identity_file", "encryption"] {
            let mut workspace = bench.workspace.copy();
            let repository = workspace.table["repository"].as_table_mut().unwrap();
            match taken {
                "encryption" => drop(repository.remove(taken).unwrap()),
                _ => drop(repository["encryption"].as_table_mut().unwrap().remove(taken).unwrap()),
            }
            let before = workspace.objects();
            workspace.run(&["prune"]).output().assert_error(REFUSED, &["nothing in the configuration says"]);
            assert_eq!(workspace.objects(), before);
        }
    }
    // And where nothing is wrong, it does its work.
    let workspace = bench.workspace.copy();
    age(&workspace.repository_folder(), "", LONG);
    workspace.run(&["prune"]).ok();
    assert!(!workspace.objects().keys().any(|key| key.contains(expired)));
}

fn too_much_at_once_is_not_removed_unless_told(mode: Mode) {
    let mut bench = Bench::start(mode, 4);
    // Three of four snapshots would expire, and half may.
    bench.workspace.set("retention.last", 1);
    refuses(&bench.workspace, &["3 of the 4 snapshots of `cache`", "more than 50 %", "--expire-at-most 100"]);
    bench.workspace.run(&["prune", "--expire-at-most", "74"]).output().assert_error(REFUSED, &["more than 74 %"]);
    for wrong in ["0", "101", "half"] {
        bench.workspace.run(&["prune", "--expire-at-most", wrong]).output().assert_code(2);
    }
    bench.workspace.run(&["prune", "--expire-at-most", "75"]).ok();
    assert_eq!(bench.heads(), bench.backups[3..]);

    // Parts of which nothing says whose they were.
    bench.workspace.set("retention.last", 100);
    let root = bench.workspace.repository_folder();
    for _ in 0..3 {
        bench.back_up();
        let id = bench.backups.pop().unwrap();
        fs::remove_dir_all(root.join(format!("backups/{id}"))).unwrap();
    }
    age(&root, "", LONG);
    let parts = super::parts(bench.workspace.objects().keys()).len();
    println!("{parts} parts");
    refuses(&bench.workspace, &["that no expired backup explains, more than 30 %", "--sweep-at-most 100"]);
    bench.workspace.run(&["prune", "--sweep-at-most", "60"]).ok();
    assert!(super::parts(bench.workspace.objects().keys()).len() < parts / 2);
    bench.assert_sound(&bench.backups[3..]);
}
