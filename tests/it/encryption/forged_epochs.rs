//! Line 4, whole: a forged epoch with keys, head, manifest and parts of its own, newer than all that is there, in which
//! everything fits together.

use std::{fs, net::SocketAddr};

use serde_json::json;

use super::{
    forger::{Forged, Forger, Origin, Seal, sealed},
    people::{
        Given, Key, Site, age_opens, backup, backup_report, databases, epoch_of, get, listed, machine, objects, put,
        record, restore, sound,
    },
};
use crate::support::{
    postgres::{Major, Postgres},
    proxy::TcpProxy,
    workspace::Workspace,
};

/// A site with one backup, and a forger with a server of his own, on which restores are tried too.
struct Bench {
    site: Site,
    newest: String,
    target: Postgres,
    forger: Forger,
}

impl Bench {
    /// The true backup is made by this machine of the site.
    fn start(maker: impl Fn(&Site) -> Workspace) -> Self {
        let site = Site::start(60);
        let maker = maker(&site);
        maker.run(&["init"]).ok();
        let newest = backup(&maker);
        let target = Postgres::start(Major::V15);
        target.create_altlas("altlas", 30, 99);
        let forger = Forger::new(&site.place, &target);
        Self { site, newest, target, forger }
    }

    fn forge(&self, place: &Workspace, origin: Origin<'_>) -> Forged {
        let site = &self.site;
        let recipients = [site.operator.recipient(), site.escrow.recipient()];
        self.forger.forge(place, &recipients, Some(site.catalog.recipient()), origin)
    }

    /// No machine takes the forged backup: `list` says what it is with these words, and the codes are those of `verify` and
    /// `restore` of it.
    #[track_caller]
    fn refused(&self, place: &Workspace, forged: &Forged, status: &str, words: &[&str], codes: (i32, i32)) {
        let (maker, reader) = (self.site.maker(place), self.site.reader(place));
        for machine in [&maker, &reader] {
            assert_eq!(listed(machine, &forged.backup).0, status);
            assert_eq!(listed(machine, &self.newest).0, "good");
        }
        let list = reader.run(&["list"]).ok();
        for word in words.iter().chain([&&forged.epoch[..]]) {
            assert!(list.stdout.contains(word), "{word}\n{}", list.text());
        }
        maker.run(&["doctor"]).output().assert_code(1);
        for (machine, selector, level) in [
            (&reader, &forged.backup[..], "content"),
            (&reader, "latest", "content"),
            (&reader, "latest", "presence"),
            (&maker, "latest", "presence"),
        ] {
            let output = machine.run(&["verify", selector, "--level", level]).output().assert_code(codes.0);
            assert!(words.iter().all(|word| output.text().contains(word)), "{words:?}\n{}", output.text());
        }
        sound(&reader, &self.newest, "content");
        let before = databases(&self.target);
        let output = restore(&reader, &forged.backup, &self.target, "copy").output();
        output.assert_error(codes.1, &[words, &["hint:"]].concat());
        assert_eq!(databases(&self.target), before);

        // The true one stands in for it, and this is said.
        let output = restore(&reader, "latest", &self.target, "copy").ok();
        assert!(output.stdout.contains(&self.newest) && output.stderr.contains(&forged.backup), "{}", output.text());
        assert_eq!(self.target.digests("copy"), self.site.source.digests("altlas"));
        self.target.psql("postgres", "DROP DATABASE copy");

        // And the next backup goes where it would have gone.
        let folder = format!("epochs/{}/", forged.epoch);
        let count = || objects(&place.repository_folder()).into_keys().filter(|key| key.starts_with(&folder)).count();
        let before = count();
        let report = backup_report(&maker);
        let id = report["backup"].as_str().unwrap();
        assert_eq!(count(), before, "something was written into the forged epoch");
        assert_eq!(epoch_of(place, id), epoch_of(place, &self.newest));
        assert_eq!(report["sources"][0]["new_parts"], 0, "{report}");
        sound(&reader, id, "content");
    }
}

#[test]
fn a_whole_epoch_of_a_stranger_is_refused() {
    let bench = Bench::start(|site| site.maker(&site.place));
    let stranger = bench.forger.key.public();
    let operator = bench.site.operator.recipient();
    for (origin, status, word, codes) in [
        (Origin::Forger, "locked", &stranger[..], (6, 6)),
        (Origin::Claims(bench.site.catalog.recipient()), "damaged", "does not match its own signature", (3, 1)),
        (Origin::Claims(operator), "damaged", "does not match its own signature", (3, 1)),
        (Origin::Absent, "damaged", "does not say who began the epoch", (3, 1)),
    ] {
        println!("{origin:?}");
        let place = bench.site.place.copy();
        let forged = bench.forge(&place, origin);
        bench.refused(&place, &forged, status, &[word], codes);
    }
}

#[test]
fn a_whole_epoch_in_clear_is_refused() {
    let bench = Bench::start(|site| site.maker(&site.place));
    let own = Workspace::folder().postgres(&bench.target, &["altlas"]);
    put(&own, "altlas.json", &get(&bench.site.place, "altlas.json"));
    let id = backup(&own);
    let place = bench.site.place.copy();
    for (key, bytes) in objects(&own.repository_folder()) {
        put(&place, &key, &bytes);
    }
    let forged = Forged { epoch: epoch_of(&own, &id), backup: id };
    bench.refused(&place, &forged, "locked", &["in clear"], (6, 6));

    // With no key at all in hand nothing of it is believed either.
    let none = machine(&place, Given { recipients: &[&bench.site.operator], ..Given::default() });
    none.run(&["list"]).output().assert_error(2, &["identity"]);
    // And the true epoch, said to be one in clear.
    let place = bench.site.place.copy();
    let epoch = epoch_of(&place, &bench.newest);
    let clear = objects(&own.repository_folder());
    for name in ["epoch.json", "keys.json"] {
        put(&place, &format!("epochs/{epoch}/{name}"), &clear[&format!("epochs/{}/{name}", forged.epoch)]);
    }
    let reader = bench.site.reader(&place);
    let output = reader.run(&["verify", "latest", "--level", "content"]).output();
    assert_eq!(output.code, Some(3), "{}", output.text());
    let report = backup_report(&bench.site.maker(&place));
    assert_ne!(epoch_of(&place, report["backup"].as_str().unwrap()), epoch);
    sound(&reader, report["backup"].as_str().unwrap(), "content");
}

/// Encrypted to some of the readers only, so that others cannot look into it: they do not take it either.
#[test]
fn a_whole_epoch_for_some_of_us_is_refused() {
    let bench = Bench::start(|site| site.maker(&site.place));
    let site = &bench.site;
    let (operator, f) = (site.operator.recipient(), bench.forger.key.recipient());
    for (recipients, catalog) in
        [(&[operator][..], None), (&[f], Some(site.catalog.recipient())), (&[operator, f], Some(f)), (&[f], None)]
    {
        let place = site.place.copy();
        let forged = bench.forger.forge(&place, recipients, catalog, Origin::Forger);
        let (maker, reader) = (site.maker(&place), site.reader(&place));
        for machine in [&maker, &reader] {
            assert_eq!(listed(machine, &forged.backup).0, "locked");
            let output = machine.run(&["verify", "latest", "--level", "presence"]).output();
            assert!(matches!(output.code, Some(2 | 6)), "{}", output.text());
            assert!(output.stderr.contains(&forged.epoch), "{}", output.text());
        }
        let output = restore(&reader, "latest", &bench.target, "copy").ok();
        assert!(output.stdout.contains(&bench.newest) && output.stderr.contains(&forged.backup), "{}", output.text());
        bench.target.psql("postgres", "DROP DATABASE copy");
        let report = backup_report(&maker);
        assert_eq!(epoch_of(&place, report["backup"].as_str().unwrap()), epoch_of(&place, &bench.newest));
    }
}

/// A machine that knows no catalogue's key cannot tell the two apart: it takes neither.
#[test]
fn who_cannot_tell_makers_apart_is_refused() {
    let bench = Bench::start(|site| site.maker(&site.place));
    let site = &bench.site;
    let place = site.place.copy();
    let forged = bench.forge(&place, Origin::Forger);
    let naive = site.naive(&place);
    let (stranger, catalog) = (bench.forger.key.public(), site.catalog.public());
    neither(&bench, &naive, &forged, &[&stranger, &catalog]);

    // Where the true ones were begun with a data identity, as without a catalogue they are, it can: the operator's is known. Its own
    // are read and no stranger's, whether it is told that nobody else makes backups or not.
    let bench = Bench::start(|site| site.naive(&site.place));
    let recipients = [&bench.site.operator, &bench.site.escrow];
    let operator = [&bench.site.operator];
    let told = Given { recipients: &recipients, data: &operator, known: &operator, ..Given::default() };
    for known in [false, true] {
        let place = bench.site.place.copy();
        let forged = bench.forge(&place, Origin::Forger);
        let machine = if known { machine(&place, told) } else { bench.site.naive(&place) };
        assert_eq!(listed(&machine, &forged.backup).0, "locked");
        sound(&machine, &bench.newest, "content");
        let report = backup_report(&machine);
        assert_eq!(epoch_of(&place, report["backup"].as_str().unwrap()), epoch_of(&place, &bench.newest));
    }

    // What is claimed and not proven never gets so far.
    let place = bench.site.place.copy();
    let forged = bench.forge(&place, Origin::Claims(bench.site.operator.recipient()));
    let naive = bench.site.naive(&place);
    assert_eq!(listed(&naive, &forged.backup).0, "damaged");
    let report = backup_report(&naive);
    assert_eq!(report["sources"][0]["new_parts"], 0, "{report}");

    // An epoch of a stranger without any backup is nothing to write into.
    let place = bench.site.place.copy();
    let recipients = [bench.site.operator.recipient(), bench.site.escrow.recipient()];
    let forged = bench.forger.forge(&place, &recipients, None, Origin::Forger);
    fs::remove_dir_all(place.repository_folder().join(format!("backups/{}", forged.backup))).unwrap();
    let naive = bench.site.naive(&place);
    let report = backup_report(&naive);
    assert_eq!(epoch_of(&place, report["backup"].as_str().unwrap()), epoch_of(&place, &bench.newest));
}

#[track_caller]
fn neither(bench: &Bench, naive: &Workspace, forged: &Forged, beginners: &[&str]) {
    let words = [beginners, &["hint:", "catalog_recipients"]].concat();
    let before = databases(&bench.target);
    naive.run(&["show", &forged.backup]).output().assert_error(6, &words);
    for (selector, level) in [(&forged.backup[..], "presence"), (&bench.newest, "content"), ("latest", "content")] {
        naive.run(&["verify", selector, "--level", level]).output().assert_error(6, &words);
        restore(naive, selector, &bench.target, "copy").output().assert_error(6, &words);
    }
    let list = naive.run(&["list"]).ok();
    assert!(
        words.iter().all(|word| list.stdout.contains(word)) && !list.stdout.contains("complete"),
        "{}",
        list.text()
    );
    naive.run(&["backup"]).output().assert_error(6, &words);
    assert_eq!(databases(&bench.target), before);
    let doctor = naive.run(&["doctor"]).output().assert_code(1);
    assert!(doctor.stdout.contains(beginners[0]), "{}", doctor.text());
}

/// Who reads an epoch is in clear and can be changed at any moment: after the heads were read and with them the epoch, and
/// before one is chosen to write into. Whoever was removed reads nothing new by that.
#[test]
fn an_epoch_that_is_relabelled_while_a_backup_runs_is_not_written_into() {
    let site = Site::start(10);
    let (a, b, c) = (&site.operator, &site.escrow, Key::new());
    let maker =
        |recipients: &[&Key]| machine(&site.place, Given { recipients, catalog: &[&site.catalog], ..Given::default() });
    maker(&[a, b]).run(&["init"]).ok();
    let old = epoch_of(&site.place, &backup(&maker(&[a, b])));

    let key = format!("epochs/{old}/epoch.json");
    let mut relabelled = record(&site.place, &key);
    let mut recipients = [a.public(), c.public()];
    recipients.sort();
    relabelled["recipients"] = json!(recipients);
    relabelled["began"] = json!("2030-01-01T00:00:00Z");
    let (path, relabelled) = (site.place.repository_folder().join(&key), sealed(relabelled, Seal::Digest));
    let kept = fs::read(&path).unwrap();

    // The source is asked for its snapshot between the two.
    let proxy = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], site.source.port())));
    let there = path.clone();
    proxy.before_connection(1, move || fs::write(there, relabelled).unwrap());
    let mut maker = maker(&[a, &c]);
    maker.set("source.0.url", format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port()));
    let id = backup(&maker);
    assert!(fs::read(&path).unwrap() != kept, "it was relabelled");
    fs::write(&path, kept).unwrap();

    assert_ne!(epoch_of(&site.place, &id), old);
    let manifest = format!("backups/{id}/database.manifest.json.zst.age");
    let refused = age_opens(b, &site.place.repository_folder().join(manifest)).unwrap_err();
    assert!(refused.contains("no identity matched"), "{refused}");
    sound(&site.reader(&site.place), &id, "content");
}
