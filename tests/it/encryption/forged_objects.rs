//! Line 4, single objects: put into the store with public keys alone, each is refused and named, and nothing is built on it.

use std::fs;

use altlas_backup::crypt::{self, Recipient};
use serde_json::{Value, json};

use super::{
    forger::{Forger, Seal, part_of_size, sealed, sealed_manifest},
    people::{
        Site, backup, backup_report, databases, epoch_of, get, listed, objects, parts_of, put, record, restore, sha256,
        sound,
    },
};
use crate::support::{
    postgres::{Major, Postgres},
    workspace::Workspace,
};

const TAGS: &str = "databases/altlas/tables/public.tags";
const LAST_FILES: &str = "databases/altlas/tables/public.last_files";

/// A repository with two backups, and a forger who has looked at it.
struct Bench {
    site: Site,
    older: String,
    newest: String,
    /// Where the forger backs up his `altlas`, and where restores go to.
    target: Postgres,
    forger: Forger,
}

impl Bench {
    fn start() -> Self {
        let site = Site::start(60);
        let maker = site.maker(&site.place);
        maker.run(&["init"]).ok();
        let older = backup(&maker);
        site.source.psql("altlas", "UPDATE tags SET description = 'changed'; INSERT INTO tags (name) VALUES ('new')");
        let newest = backup(&maker);
        let target = Postgres::start(Major::V15);
        target.create_altlas("altlas", 30, 99);
        let forger = Forger::new(&site.place, &target);
        Self { site, older, newest, target, forger }
    }

    /// A copy of the repository, to be forged in.
    fn copy(&self) -> Workspace {
        self.site.place.copy()
    }

    fn head_key(&self) -> String {
        format!("backups/{}/head.json", self.newest)
    }

    fn manifest_key(&self) -> String {
        format!("backups/{}/database.manifest.json.zst.age", self.newest)
    }

    fn epoch(&self) -> String {
        epoch_of(&self.site.place, &self.newest)
    }

    fn recipients(&self) -> Vec<Recipient> {
        vec![self.site.operator.recipient().clone(), self.site.escrow.recipient().clone()]
    }

    fn readers(&self) -> Vec<Recipient> {
        [self.recipients(), vec![self.site.catalog.recipient().clone()]].concat()
    }

    /// The newest backup is refused by every command, each of which names `object`.
    #[track_caller]
    fn refused(&self, place: &Workspace, object: &str) {
        let (maker, reader) = (self.site.maker(place), self.site.reader(place));
        for (machine, selector, level) in
            [(&reader, &self.newest[..], "content"), (&reader, "latest", "content"), (&maker, "latest", "presence")]
        {
            let output = machine.run(&["verify", selector, "--level", level]).output().assert_code(3);
            assert!(output.stdout.contains(object), "{object}\n{}", output.text());
        }
        let before = databases(&self.target);
        restore(&reader, &self.newest, &self.target, "copy").output().assert_error(1, &[object, "hint:"]);
        assert_eq!(databases(&self.target), before);
    }

    /// The next backup is sound and needs so many new parts of its own; the forger can open nothing of it.
    #[track_caller]
    fn next_is_sound(&self, place: &Workspace, new_parts: Option<u64>) {
        let before = objects(&place.repository_folder());
        let report = backup_report(&self.site.maker(place));
        let id = report["backup"].as_str().unwrap();
        sound(&self.site.reader(place), id, "content");
        if let Some(new_parts) = new_parts {
            assert_eq!(report["sources"][0]["new_parts"], new_parts, "{report}");
        }
        for (key, bytes) in objects(&place.repository_folder()) {
            if key.ends_with(".age") && !before.contains_key(&key) {
                assert!(crypt::decrypt(&self.forger.key.identities(), &bytes).is_err(), "the forger opens {key}");
            }
            if let Some(old) = before.get(&key) {
                assert!(*old == bytes, "{key} was overwritten");
            }
        }
    }
}

#[test]
fn parts() {
    let bench = Bench::start();
    let reader = bench.site.reader(&bench.site.place);
    let part = parts_of(&reader, &bench.newest, TAGS).remove(0);
    let other = parts_of(&reader, &bench.newest, LAST_FILES).remove(0);
    let swapped = get(&bench.site.place, &other);
    let true_bytes = get(&bench.site.place, &part);
    let rows = b"1\tevil\t\\N\n";
    let shorter = crypt::encrypt(&bench.recipients(), &zstd::encode_all(&rows[..], 3).unwrap()).unwrap();

    // Under the key of a part: of another size, and a part of another table.
    for bytes in [&shorter, &swapped] {
        let place = bench.copy();
        put(&place, &part, bytes);
        bench.refused(&place, &part);
        bench.next_is_sound(&place, Some(1));
    }

    // Of the very size: a listing cannot tell, whoever reads it does, and a restore leaves nothing of it.
    let place = bench.copy();
    let large = parts_of(&reader, &bench.newest, LAST_FILES).remove(0);
    let size = get(&place, &large).len();
    put(&place, &large, &part_of_size(&bench.recipients(), rows, size));
    let reader = bench.site.reader(&place);
    sound(&reader, &bench.newest, "presence");
    for selector in [&bench.newest[..], "latest"] {
        let output = reader.run(&["verify", selector, "--level", "content"]).output().assert_code(3);
        for word in [&large[..], LAST_FILES, "SHA-256"] {
            assert!(output.stdout.contains(word), "{word}\n{}", output.text());
        }
    }
    let before = databases(&bench.target);
    restore(&reader, &bench.newest, &bench.target, "copy").output().assert_error(1, &[&large]);
    assert_eq!(databases(&bench.target), before);
    // In place of what a plan needs, it is noticed before anything is created.
    let place = bench.copy();
    let globals = parts_of(&bench.site.reader(&place), &bench.newest, "globals.sql").remove(0);
    put(&place, &globals, &swapped[..]);
    bench.refused(&place, &globals);

    // Beside the true parts: of the same content hash as the listing shows it, under a name that fits the bytes. With the
    // true ones there, without them, and where the backups that name them are gone.
    for (gone, forged) in
        [(None, &shorter), (Some("parts"), &shorter), (Some("parts"), &true_bytes), (Some("heads"), &shorter)]
    {
        let place = bench.copy();
        let parts: Vec<String> =
            objects(&place.repository_folder()).into_keys().filter(|key| key.contains("/parts/")).collect();
        for key in &parts {
            let name = key.rsplit('/').next().unwrap();
            let pieces: Vec<&str> = name.split('.').collect();
            let new = format!("{}.{}.f0rged.{}.zst.age", pieces[0], sha256(forged), pieces[3]);
            put(&place, &format!("epochs/{}/parts/{}/{new}", bench.epoch(), &new[..2]), forged);
            if gone == Some("parts") {
                fs::remove_file(place.repository_folder().join(key)).unwrap();
            }
        }
        if gone == Some("heads") {
            for backup in [&bench.older, &bench.newest] {
                fs::remove_file(place.repository_folder().join(format!("backups/{backup}/head.json"))).unwrap();
            }
        }
        if gone.is_none() {
            sound(&bench.site.reader(&place), &bench.newest, "content");
        }
        // What a manifest names is there already; nothing else is believed by its name.
        bench.next_is_sound(&place, gone.is_none().then_some(0));
        assert!(parts.len() > 5);
    }
}

/// What a run left behind that crashed is used again, also by a machine that cannot read it; what somebody put there is not.
#[test]
fn parts_of_a_crashed_run_and_parts_put_beside_them() {
    let bench = Bench::start();
    let site = &bench.site;
    let forged = crypt::encrypt(&bench.recipients(), &zstd::encode_all(&b"1\tevil\n"[..], 3).unwrap()).unwrap();
    for planted in [false, true] {
        let place = bench.copy();
        fs::remove_dir_all(place.repository_folder().join("backups")).unwrap();
        let keys = objects(&place.repository_folder()).into_keys();
        for key in keys.filter(|key| planted && key.contains("/parts/")) {
            let (folder, name) = key.rsplit_once('/').unwrap();
            let pieces: Vec<&str> = name.split('.').collect();
            let new = format!("{folder}/{}.{}.{}.{}.zst.age", pieces[0], sha256(&forged), pieces[2], pieces[3]);
            put(&place, &new, &forged);
            fs::remove_file(place.repository_folder().join(key)).unwrap();
        }
        let report = backup_report(&site.maker(&place));
        let count = |name: &str| report["sources"][0][name].as_u64().unwrap();
        assert_eq!(count("new_parts"), if planted { count("parts") } else { 0 }, "{report}");
        sound(&site.reader(&place), report["backup"].as_str().unwrap(), "content");
    }
}

#[test]
fn manifests_and_heads() {
    let bench = Bench::start();
    let manifest = |backup: &str| format!("backups/{backup}/database.manifest.json.zst.age");
    let head = |backup: &str| format!("backups/{backup}/head.json");

    // The forger's manifest, made to say what the head says, encrypted to everyone.
    let mut forged = bench.forger.manifest();
    for (name, value) in [("backup", &bench.newest), ("epoch", &bench.epoch())] {
        forged[name] = json!(value);
    }
    let place = bench.copy();
    put(&place, &bench.manifest_key(), &sealed_manifest(&forged, &bench.readers()));
    bench.refused(&place, &bench.manifest_key());
    bench.next_is_sound(&place, None);

    // Last week's manifest under today's id, and one whose head is made to fit.
    let place = bench.copy();
    put(&place, &bench.manifest_key(), &get(&place, &manifest(&bench.older)));
    bench.refused(&place, &bench.manifest_key());
    bench.next_is_sound(&place, None);

    // Heads: other numbers under the old MAC; any change under a guessed key.
    let plain_digest = *blake3::hash(b"altlas-backup").as_bytes();
    let changes: [&dyn Fn(&mut Value); 5] = [
        &|_| {},
        &|head| head["sources"][0]["sizes"]["raw"] = json!(1),
        &|head| head["state"] = json!("partial"),
        &|head| head["started"] = json!("2030-01-01T00:00:00Z"),
        &|head| {
            let old = get(&bench.site.place, &manifest(&bench.older));
            head["sources"][0]["manifest"] = json!({"bytes": old.len(), "sha256": sha256(&old)});
        },
    ];
    for (n, change) in changes.iter().enumerate() {
        let mut changed = record(&bench.site.place, &bench.head_key());
        let mac = changed["mac"].as_str().unwrap().to_owned();
        change(&mut changed);
        let guesses = [sealed(changed.clone(), Seal::Mac([0; 32])), sealed(changed.clone(), Seal::Mac(plain_digest))];
        let digest = sealed(changed.clone(), Seal::Digest);
        let old_mac = String::from_utf8(guesses[0].clone()).unwrap();
        let guessed = serde_json::from_str::<Value>(&old_mac).unwrap()["mac"].as_str().unwrap().to_owned();
        let old_mac = old_mac.replace(&guessed, &mac).into_bytes();
        // Even the true head, unchanged, is not believed in another form than the one its MAC covers.
        let place = bench.copy();
        for bytes in [&guesses[0], &guesses[1], &digest].into_iter().filter(|_| n < 2) {
            put(&place, &bench.head_key(), bytes);
            let output = bench.site.reader(&place).run(&["verify", "latest", "--level", "content"]).output();
            let output = output.assert_code(3);
            assert!(output.stdout.contains(&bench.head_key()), "change {n}\n{}", output.text());
        }
        put(&place, &bench.head_key(), &old_mac);
        if n == 4 {
            put(&place, &bench.manifest_key(), &get(&place, &manifest(&bench.older)));
        }
        bench.refused(&place, &bench.head_key());
        if n == 4 {
            bench.next_is_sound(&place, None);
        }
    }

    // Last week's head under today's id, alone and with its manifest; and today's under an id of tomorrow.
    for with_manifest in [false, true] {
        let place = bench.copy();
        put(&place, &bench.head_key(), &get(&place, &head(&bench.older)));
        if with_manifest {
            put(&place, &bench.manifest_key(), &get(&place, &manifest(&bench.older)));
        }
        bench.refused(&place, &bench.head_key());
        bench.next_is_sound(&place, None);
    }
    let place = bench.copy();
    let tomorrow = "20301123T010000Z-f0rged";
    put(&place, &head(tomorrow), &get(&place, &bench.head_key()));
    put(&place, &manifest(tomorrow), &get(&place, &bench.manifest_key()));
    let reader = bench.site.reader(&place);
    let output = reader.run(&["verify", "latest", "--level", "content"]).output().assert_code(3);
    assert!(output.stdout.contains(&head(tomorrow)), "{}", output.text());
    assert_eq!(listed(&reader, tomorrow).0, "damaged");
    let output = restore(&reader, "latest", &bench.target, "true").ok();
    assert!(output.stderr.contains(tomorrow) && output.stdout.contains(&bench.newest), "{}", output.text());
    assert_eq!(bench.target.digests("true"), bench.site.source.digests("altlas"));
    bench.next_is_sound(&place, Some(0));
}

#[test]
fn epochs_keys_and_marks_that_are_there() {
    let bench = Bench::start();
    let epoch = bench.epoch();
    let (record_key, keys_key) = (format!("epochs/{epoch}/epoch.json"), format!("epochs/{epoch}/keys.json.age"));
    let epoch_record = |place: &Workspace| record(place, &record_key);

    // The forger makes himself one more recipient, or the only one, and waits for the next backup.
    let f = bench.forger.key.recipient();
    let mut more = bench.recipients();
    more.push(f.clone());
    more.sort();
    for (recipients, catalog) in [(more, bench.site.catalog.recipient()), (bench.recipients(), f)] {
        let place = bench.copy();
        let mut changed = epoch_record(&place);
        changed["recipients"] = json!(recipients);
        changed["catalog_recipient"] = json!(catalog);
        put(&place, &record_key, &sealed(changed, Seal::Digest));
        // Where the catalogue's is replaced, its machine cannot even look; the operator's can, and says that it is damage.
        let reader = bench.site.reader(&place);
        let output = reader.run(&["verify", "latest", "--level", "content"]).output().assert_code(3);
        assert!(output.stdout.contains(&record_key), "{}", output.text());
        restore(&reader, &bench.newest, &bench.target, "copy").output().assert_error(1, &[&record_key]);
        bench.next_is_sound(&place, None);
    }

    // The same recipients, as a backup wants them, and a later time.
    let place = bench.copy();
    let mut changed = epoch_record(&place);
    changed["began"] = json!("2030-01-01T00:00:00Z");
    put(&place, &record_key, &sealed(changed, Seal::Digest));
    bench.refused(&place, &record_key);
    bench.next_is_sound(&place, None);

    // Keys of the forger's in place of the epoch's, for the true record, with a head under these keys.
    let place = bench.copy();
    let keys = json!({
        "format": 1,
        "repository": epoch_record(&place)["repository"],
        "epoch": epoch,
        "naming": "11".repeat(32),
        "mac": "22".repeat(32),
        "fingerprint": "3".repeat(16),
    });
    let text = serde_json::to_string_pretty(&keys).unwrap();
    let covered = format!("{},\n  \"blake3\": \"", text.strip_suffix("\n}").unwrap());
    let digest = blake3::hash(&[b"altlas-backup sealed record 1\0", covered.as_bytes()].concat());
    let keys = format!("{covered}{digest}\"\n}}\n");
    put(&place, &keys_key, &crypt::encrypt(&bench.readers(), keys.as_bytes()).unwrap());
    put(&place, &bench.head_key(), &sealed(record(&place, &bench.head_key()), Seal::Mac([0x22; 32])));
    bench.refused(&place, &keys_key);
    bench.next_is_sound(&place, None);

    // The true epoch again under another id, which a backup would take for the newest.
    let place = bench.copy();
    let clone = "20301123T010000Z-f0rged";
    let mut changed = epoch_record(&place);
    changed["epoch"] = json!(clone);
    changed["began"] = json!("2030-01-01T00:00:00Z");
    put(&place, &format!("epochs/{clone}/epoch.json"), &sealed(changed, Seal::Digest));
    put(&place, &format!("epochs/{clone}/keys.json.age"), &get(&place, &keys_key));
    bench.next_is_sound(&place, Some(0));
    let files = objects(&place.repository_folder()).into_keys().filter(|key| key.contains(clone)).count();
    assert_eq!(files, 2, "nothing was written into it");

    // The install mark of another repository.
    let place = bench.copy();
    let mut mark = record(&place, "altlas.json");
    mark["repository"] = json!("0".repeat(26));
    put(&place, "altlas.json", &sealed(mark, Seal::Digest));
    let reader = bench.site.reader(&place);
    let output = reader.run(&["verify", "latest", "--level", "content"]).output().assert_code(3);
    assert!(output.stdout.contains("belongs to repository"), "{}", output.text());
    restore(&reader, &bench.newest, &bench.target, "copy").output().assert_error(1, &["belongs to repository"]);
}

/// Another repository of the same owner, of the same keys: what is copied from there is not taken for this one's.
#[test]
fn what_is_copied_from_another_repository() {
    let bench = Bench::start();
    let site = &bench.site;
    let other = Workspace::folder().postgres(&bench.target, &["altlas"]);
    site.maker(&other).run(&["init"]).ok();
    let foreign = backup(&site.maker(&other));
    let epoch = epoch_of(&other, &foreign);
    let head = format!("backups/{foreign}/head.json");
    for (with_epoch, named) in [(false, &head), (true, &format!("epochs/{epoch}/epoch.json"))] {
        for adapted in [false, true] {
            let place = bench.copy();
            for (key, bytes) in objects(&other.repository_folder()) {
                if key.starts_with("backups/") || (with_epoch && key.starts_with("epochs/")) {
                    put(&place, &key, &bytes);
                }
            }
            // The record in clear can be made to say that it is of this one.
            let mut named = named.clone();
            if adapted {
                let key = format!("epochs/{epoch}/epoch.json");
                let mut changed = record(&other, &key);
                changed["repository"] = record(&place, "altlas.json")["repository"].clone();
                put(&place, &key, &sealed(changed, Seal::Digest));
                named = key;
            }
            let (reader, maker) = (site.reader(&place), site.maker(&place));
            assert_eq!(listed(&maker, &foreign).0, "damaged");
            for (machine, selector) in [(&reader, &foreign[..]), (&reader, "latest"), (&maker, "latest")] {
                let output = machine.run(&["verify", selector, "--level", "presence"]).output().assert_code(3);
                assert!(output.stdout.contains(&named), "{named}\n{}", output.text());
            }
            let before = databases(&bench.target);
            restore(&site.reader(&place), &foreign, &bench.target, "copy").output().assert_error(1, &[&named]);
            assert_eq!(databases(&bench.target), before);
            bench.next_is_sound(&place, Some(0));
        }
    }
    // Its manifest in place of this one's.
    let place = bench.copy();
    let manifest = format!("backups/{foreign}/database.manifest.json.zst.age");
    put(&place, &bench.manifest_key(), &get(&other, &manifest));
    bench.refused(&place, &bench.manifest_key());
}
