//! Line 5: keys that come and go.

use std::collections::BTreeSet;

use serde_json::Value;

use super::people::{
    Given, Key, Site, age_opens, backup, backup_report, epoch_of, listed, machine, next_second, objects, record,
    restore, sound,
};
use crate::support::{
    postgres::{Major, Postgres},
    workspace::Workspace,
};

/// The content hashes of an epoch's parts.
fn contents(place: &Workspace, epoch: &str) -> BTreeSet<String> {
    let parts = objects(&place.repository_folder()).into_keys();
    let names = parts.filter_map(|key| key.strip_prefix(&format!("epochs/{epoch}/parts/")).map(str::to_owned));
    names.map(|name| name[3..].split('.').next().unwrap().to_owned()).collect()
}

fn id_of(report: &Value) -> String {
    report["backup"].as_str().unwrap().to_owned()
}

#[test]
fn recipients_come_and_go() {
    let site = Site::start(100);
    let (a, b, c) = (Key::new(), Key::new(), Key::new());
    let place = &site.place;
    let catalog = [&site.catalog];
    let maker = |recipients: &[&Key]| machine(place, Given { recipients, catalog: &catalog, ..Given::default() });
    maker(&[&a, &b]).run(&["init"]).ok();

    let first = backup_report(&maker(&[&a, &b]));
    let second = backup_report(&maker(&[&a, &b, &c]));
    let third = backup_report(&maker(&[&a, &c]));
    let ids = [id_of(&first), id_of(&second), id_of(&third)];
    let epochs = ids.each_ref().map(|id| epoch_of(place, id));
    assert_eq!(epochs.iter().collect::<BTreeSet<_>>().len(), 3, "{epochs:?}");
    for report in [&first, &second, &third] {
        assert_eq!(report["sources"][0]["reused_parts"], 0, "all is uploaded again: {report}");
    }
    let hashes = epochs.each_ref().map(|epoch| contents(place, epoch));
    assert_eq!(hashes[0].len(), hashes[1].len());
    assert!(
        hashes[0].is_disjoint(&hashes[1]) && hashes[1].is_disjoint(&hashes[2]) && hashes[0].is_disjoint(&hashes[2])
    );

    // A reads all of them still, under the newest configuration.
    let reader =
        |data: &[&Key]| machine(place, Given { recipients: &[&a, &c], data, known: &catalog, ..Given::default() });
    let target = Postgres::start(Major::V15);
    let with_a = reader(&[&a]);
    for (id, name) in ids.iter().zip(["one", "two", "three"]) {
        restore(&with_a, id, &target, name).ok();
        assert_eq!(target.digests(name), site.source.digests("altlas"));
    }

    // Who opens what, as Debian's age sees it: every part, every manifest and the keys.
    let root = place.repository_folder();
    for (n, (id, epoch)) in ids.iter().zip(&epochs).enumerate() {
        let of_this = |key: &String| {
            let ours = [format!("epochs/{epoch}/"), format!("backups/{id}/")];
            key.ends_with(".age") && ours.iter().any(|folder| key.starts_with(folder))
        };
        let keys: Vec<String> = objects(&root).into_keys().filter(of_this).collect();
        assert!(keys.len() > 5);
        for key in keys {
            let object = root.join(&key);
            assert!(age_opens(&a, &object).is_ok(), "{key}");
            assert_eq!(age_opens(&b, &object).is_ok(), n < 2, "{key}");
            assert_eq!(age_opens(&c, &object).is_ok(), n > 0, "{key}");
        }
    }
    // And as this program does.
    let (with_b, with_c) = (reader(&[&b]), reader(&[&c]));
    for (machine, opens) in [(&with_b, [true, true, false]), (&with_c, [false, true, true])] {
        for (n, id) in ids.iter().enumerate() {
            let output = machine.run(&["verify", id, "--level", "content"]).output();
            if opens[n] {
                output.assert_code(0);
                continue;
            }
            assert_eq!(listed(machine, id).0, "locked");
            let recipients = record(place, &format!("epochs/{}/epoch.json", epochs[n]))["recipients"].clone();
            let recipients: Vec<&str> =
                recipients.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
            let words = [&recipients[..], &["hint:", "identity_file"]].concat();
            output.assert_error(2, &words);
            restore(machine, id, &target, "no").output().assert_error(2, &words);
        }
    }
    // Removed and back again: an epoch that ended is not gone on with.
    let fourth = backup_report(&maker(&[&b, &a]));
    assert!(!epochs.contains(&epoch_of(place, &id_of(&fourth))));
    assert_eq!(fourth["sources"][0]["reused_parts"], 0, "{fourth}");
    assert!(listed(&with_c, &ids[0]).1["problem"].as_str().unwrap().contains(&b.public()));
}

#[test]
fn nothing_changes_and_nothing_is_uploaded() {
    let site = Site::start(50);
    let maker = site.maker(&site.place);
    maker.run(&["init"]).ok();
    let first = backup_report(&maker);
    let stored = contents(&site.place, &epoch_of(&site.place, &id_of(&first)));
    let second = backup_report(&maker);
    assert_eq!(epoch_of(&site.place, &id_of(&first)), epoch_of(&site.place, &id_of(&second)));
    assert_eq!(second["sources"][0]["uploaded"], 0, "{second}");
    assert_eq!(second["sources"][0]["new_parts"], 0, "{second}");
    assert_eq!(contents(&site.place, &epoch_of(&site.place, &id_of(&second))), stored);
    sound(&site.reader(&site.place), "latest", "content");
}

#[test]
fn the_catalogue_s_identity_changes() {
    let site = Site::start(50);
    let place = &site.place;
    let (old, new) = (&site.catalog, Key::new());
    let recipients = [&site.operator, &site.escrow];
    let catalog = |catalog: &[&Key]| machine(place, Given { recipients: &recipients, catalog, ..Given::default() });
    catalog(&[old]).run(&["init"]).ok();
    let first = backup(&catalog(&[old]));

    next_second();
    let both = catalog(&[&new, old]);
    let second = backup_report(&both);
    assert_eq!(second["sources"][0]["reused_parts"], 0, "{second}");
    let second = id_of(&second);
    assert_ne!(epoch_of(place, &first), epoch_of(place, &second));
    for id in [&first, &second] {
        assert_eq!(listed(&both, id).0, "good");
        sound(&both, id, "presence");
    }
    // With the new one alone the old backup is locked, not damaged; and goes on being said so.
    let alone = catalog(&[&new]);
    assert_eq!(listed(&alone, &second).0, "good");
    let (status, entry) = listed(&alone, &first);
    assert_eq!(status, "locked");
    assert!(entry["problem"].as_str().unwrap().contains(&old.public()), "{entry}");
    let list = alone.run(&["list"]).ok();
    assert!(list.stdout.contains("LOCKED") && !list.stdout.contains("DAMAGED"), "{}", list.text());
    alone.run(&["verify", &first, "--level", "presence"]).output().assert_error(2, &[&old.public(), "hint:"]);
    sound(&alone, "latest", "presence");
    assert_eq!(backup_report(&alone)["sources"][0]["new_parts"], 0);

    // Machines that restore: with both known all is read.
    let target = Postgres::start(Major::V15);
    let reader = |known: &[&Key]| {
        machine(place, Given { recipients: &recipients, data: &[&site.operator], known, ..Given::default() })
    };
    let knows_both = reader(&[&new, old]);
    for (id, name) in [(&first, "one"), (&second, "two")] {
        let output = restore(&knows_both, id, &target, name).ok();
        assert!(!output.stderr.contains("made by the holder"), "{}", output.text());
        assert_eq!(target.digests(name), site.source.digests("altlas"));
    }
    // What the old key made before is vouched for by the new one.
    let knows_new = reader(&[&new]);
    restore(&knows_new, &first, &target, "three").ok();
    sound(&knows_new, &second, "content");
    let knows_old = reader(&[old]);
    assert_eq!((listed(&knows_old, &first).0, listed(&knows_old, &second).0), ("good".to_owned(), "locked".to_owned()));
    // One that knows neither cannot tell which of the two is ours.
    let output = reader(&[]).run(&["show", "latest"]).output();
    output.assert_error(6, &[&old.public(), &new.public(), "hint:", "catalog_recipients"]);
}
