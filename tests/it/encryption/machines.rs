//! Line 2: what each machine can do with the keys it holds, and what it is told about those it lacks.

use std::fs;

use super::people::{
    Given, Key, Site, age_opens, backup, databases, listed, machine, next_second, objects, parts_of, restore, sha256,
    sound,
};
use crate::support::{
    postgres::{Major, Postgres},
    workspace::Workspace,
};

const LAST_FILES: &str = "databases/altlas/tables/public.last_files";
const WITHOUT_PROOF: &str = "nothing in the configuration says that this is one of your machines";

#[test]
fn a_catalogue_identity_backs_up_lists_and_looks_and_reads_no_part() {
    let site = Site::start(200);
    let (mut maker, operator) = (site.maker(&site.place), site.operator.public());
    // To count the rows that age gives out.
    maker.set("source.0.copy_format", "text");
    maker.run(&["init"]).ok();
    let id = backup(&maker);
    assert_eq!(listed(&maker, &id).0, "good");
    let shown = maker.run(&["show", &id]).ok();
    assert!(shown.stdout.contains(LAST_FILES), "{}", shown.text());
    sound(&maker, &id, "presence");
    sound(&maker, "latest", "presence");

    // Debian's age agrees on who opens what.
    let root = site.place.repository_folder();
    let parts: Vec<String> = objects(&root).into_keys().filter(|key| key.contains("/parts/")).collect();
    assert!(parts.len() > 5, "{parts:?}");
    for key in &parts {
        let refused = age_opens(&site.catalog, &root.join(key)).unwrap_err();
        assert!(refused.contains("no identity matched"), "{key}: {refused}");
    }
    let rows = age_opens(&site.operator, &root.join(&parts_of(&maker, &id, LAST_FILES)[0])).unwrap();
    let rows = String::from_utf8(zstd::decode_all(&rows[..]).unwrap()).unwrap();
    assert_eq!(rows.lines().count(), 200);
    assert_eq!(age_opens(&site.escrow, &root.join(&parts[0])), age_opens(&site.operator, &root.join(&parts[0])));
    let manifest = root.join(format!("backups/{id}/database.manifest.json.zst.age"));
    for key in [&site.catalog, &site.operator, &site.escrow] {
        let frame = age_opens(key, &manifest).unwrap();
        assert!(String::from_utf8(zstd::decode_all(&frame[..]).unwrap()).unwrap().contains(LAST_FILES));
    }
    // What lies there in clear holds no name of a table, and a content hash is not the plain one.
    for (key, bytes) in objects(&root).iter().filter(|(key, _)| !key.ends_with(".age")) {
        assert!(!String::from_utf8_lossy(bytes).contains("last_files"), "{key}");
    }
    assert!(!parts.iter().any(|key| key.contains(&blake3::hash(rows.as_bytes()).to_hex().to_string())));
    assert!(!parts.iter().any(|key| key.contains(&sha256(rows.as_bytes()))));

    // It cannot look into a part, and says who could, before anything of a target is touched.
    let target = Postgres::start_with(Major::V15, "log_statement = all");
    let (before, begun) = (databases(&target), target.log().len());
    for selector in [&id[..], "latest"] {
        let words = [&operator[..], &site.escrow.public(), "hint:", "identity_file"];
        maker.run(&["verify", selector, "--level", "content"]).output().assert_error(2, &words);
        restore(&maker, selector, &target, "altlas").output().assert_error(2, &words);
    }
    assert!(!target.log()[begun..].contains("altlas"), "the target was spoken to");
    assert_eq!(databases(&target), before);
    let refused = maker.run(&["--json", "verify", &id, "--level", "content"]).output().assert_code(2).json();
    assert_eq!(refused["error"]["kind"], "locked");

    // A machine with a data identity alone reads and restores; it is told where it believes without proof.
    for (name, reader, told) in [("known", site.reader(&site.place), false), ("naive", site.naive(&site.place), true)] {
        sound(&reader, &id, "content");
        let output = restore(&reader, "latest", &target, name).ok();
        assert_eq!(output.stderr.contains(WITHOUT_PROOF), told, "{}", output.text());
        assert_eq!(output.stderr.contains(&site.catalog.public()), told, "{}", output.text());
        assert_eq!(target.digests(name), site.source.digests("altlas"));
    }
    // The escrow's identity does as well as the operator's.
    let keys = Given { recipients: &[&site.operator, &site.escrow], known: &[&site.catalog], ..Given::default() };
    let escrow = machine(&site.place, Given { data: &[&site.escrow], ..keys });
    sound(&escrow, &id, "content");
    // So does an identity from the environment.
    let without = machine(&site.place, keys);
    let run = without.run(&["verify", &id, "--level", "content"]);
    run.env("ALTLAS_BACKUP_IDENTITY", site.escrow.text()).ok();
}

#[test]
fn what_is_wrong_with_an_identity_is_named_and_not_repeated() {
    let site = Site::start(10);
    let maker = site.maker(&site.place);
    maker.run(&["init"]).ok();
    let id = backup(&maker);
    let target = Postgres::start(Major::V15);
    let before = databases(&target);

    // Neither identity.
    let none = machine(&site.place, Given { recipients: &[&site.operator], ..Given::default() });
    let stored = objects(&site.place.repository_folder());
    for command in [&["list"][..], &["show", &id], &["backup"], &["verify", &id, "--level", "presence"]] {
        none.run(command).output().assert_error(2, &["identity", "hint:", "catalog_identity_file", "identity_file"]);
    }
    restore(&none, &id, &target, "altlas").output().assert_error(2, &["identity", "hint:", "identity_file"]);

    // A file that is not there, or holds something else.
    let other = Key::new();
    let secret = other.secret();
    let cut = &secret[..secret.len() - 1];
    for (name, key) in [("identity_file", "identity_file"), ("catalog_identity_file", "catalog_identity_file")] {
        let mut wrong = site.reader(&site.place);
        let path = wrong.path("wrong");
        wrong.set(&format!("repository.encryption.{name}"), path.display().to_string());
        let shown = path.display().to_string();
        let check = |wrong: &Workspace, words: &[&str]| {
            for command in [&["list"][..], &["backup"], &["verify", &id, "--level", "content"]] {
                let output = wrong.run(command).output().assert_error(2, &[words, &[&shown[..], key]].concat());
                for hidden in [&cut[20..40], &other.public()[20..40], "hunter2"] {
                    assert!(!output.text().contains(hidden), "{}", output.text());
                }
            }
        };
        check(&wrong, &["no such file"]);
        for (text, words) in [
            (other.public(), &["line 1", "public half"][..]),
            (format!("# a comment\n\n{cut}\n"), &["line 3", "checksum"]),
            (format!("{secret}\nhunter2\n"), &["line 2", "not an age identity"]),
            ("# nothing\n".to_owned(), &["no age identity"]),
        ] {
            fs::write(&path, text).unwrap();
            check(&wrong, words);
        }
    }

    // A key that opens nothing here: nothing is damaged, and those who could open it are named.
    let stranger = machine(
        &site.place,
        Given { recipients: &[&site.operator], data: &[&other], known: &[&site.catalog], ..Given::default() },
    );
    let (operator, catalog) = (site.operator.public(), site.catalog.public());
    assert_eq!(listed(&stranger, &id).0, "locked");
    let words = [&operator[..], &catalog, "hint:", "identity_file"];
    for selector in [&id[..], "latest"] {
        stranger.run(&["verify", selector, "--level", "content"]).output().assert_error(2, &words);
        stranger.run(&["verify", selector, "--level", "presence"]).output().assert_error(2, &words);
        restore(&stranger, selector, &target, "altlas").output().assert_error(2, &words);
        stranger.run(&["show", selector]).output().assert_error(2, &words);
    }
    // Nor can it begin an epoch that anyone would believe.
    stranger.run(&["backup"]).output().assert_error(2, &[&catalog, "hint:", "catalog_identity_file"]);

    assert_eq!(databases(&target), before);
    assert_eq!(objects(&site.place.repository_folder()), stored, "nothing was written");
}

#[test]
fn a_secret_in_place_of_a_recipient_is_refused_by_its_place() {
    let site = Site::start(10);
    let mut wrong = site.maker(&site.place);
    for name in ["recipients", "catalog_recipients"] {
        let was = wrong.table["repository"]["encryption"].as_table().unwrap().get(name).cloned();
        wrong.set(&format!("repository.encryption.{name}"), vec![site.operator.public(), site.escrow.secret()]);
        let output = wrong.run(&["list"]).output().assert_error(2, &[name, "[1]", "secret half"]);
        assert!(!output.text().contains(&site.escrow.secret()[20..40]), "{}", output.text());
        match was {
            Some(was) => wrong.set(&format!("repository.encryption.{name}"), was),
            None => drop(wrong.table["repository"]["encryption"].as_table_mut().unwrap().remove(name)),
        }
    }
}

/// The commands of a configuration that forgot about encryption.
#[test]
fn nothing_is_written_in_clear_beside_what_is_encrypted() {
    let site = Site::start(10);
    let maker = site.maker(&site.place);
    maker.run(&["init"]).ok();
    let id = backup(&maker);
    let before = objects(&site.place.repository_folder());
    let words = ["is encrypted", "hint:", "[repository.encryption]"];
    site.place.run(&["backup"]).output().assert_error(6, &words);
    for command in [&["list"][..], &["show", &id], &["verify", &id, "--level", "presence"]] {
        site.place.run(command).output().assert_error(2, &[&site.operator.public(), "hint:"]);
    }
    assert_eq!(objects(&site.place.repository_folder()), before);
    // Neither where the backups are gone and the epoch is all that is left.
    fs::remove_dir_all(site.place.repository_folder().join("backups")).unwrap();
    let before = objects(&site.place.repository_folder());
    site.place.run(&["backup"]).output().assert_error(6, &words);
    assert_eq!(objects(&site.place.repository_folder()), before);
}

/// What was made in clear is locked to a configuration that encrypts, and read with one that does not, as the hint says;
/// which then still tells nobody that it is the newest.
#[test]
fn encryption_that_is_switched_on_later() {
    let site = Site::start(20);
    site.place.run(&["init"]).ok();
    let clear = backup(&site.place);
    let was = site.source.digests("altlas");
    let (maker, reader) = (site.maker(&site.place), site.reader(&site.place));
    assert_eq!(listed(&maker, &clear).0, "locked");
    site.source.psql("altlas", "DELETE FROM tags");
    next_second();
    let encrypted = backup(&maker);
    assert_eq!((listed(&maker, &clear).0, listed(&maker, &encrypted).0), ("locked".to_owned(), "good".to_owned()));
    sound(&reader, "latest", "content");
    let target = Postgres::start(Major::V15);
    restore(&reader, &clear, &target, "no")
        .output()
        .assert_error(6, &["in clear", "without `[repository.encryption]`"]);

    sound(&site.place, &clear, "content");
    restore(&site.place, &clear, &target, "clear").ok();
    assert_eq!(target.digests("clear"), was);
    let words = [&site.operator.public()[..], "hint:"];
    assert_eq!(listed(&site.place, &encrypted).0, "locked");
    for command in [&["show", "latest"][..], &["verify", "latest", "--level", "content"], &["show", &encrypted]] {
        site.place.run(command).output().assert_error(2, &words);
    }
    restore(&site.place, "latest", &target, "no").output().assert_error(2, &words);
    site.place.run(&["backup"]).output().assert_error(6, &["is encrypted", "hint:"]);
    assert!(site.place.run(&["doctor"]).output().assert_code(1).stdout.contains(&site.operator.public()));
}
