//! Damaged repositories: `verify` names what is damaged, `restore` does not begin or leaves the target as it was, and the next
//! backup does not build on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use altlas_backup::operation::exit;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use crate::support::{
    binary::{Output, Run},
    library::{Library, exit_code},
    mode::{Mode, in_both_modes},
    postgres::{Major, Postgres},
    proxy::{Action, HttpProxy},
    s3::{BlockingS3, S3Kind},
    seeded,
    workspace::Workspace,
};

/// Random changes of one byte, for each kind of object; more with `ALTLAS_TORTURE` set.
fn flips() -> usize {
    if std::env::var_os("ALTLAS_TORTURE").is_some() { 400 } else { 60 }
}

const VERDICT_FAILED: u8 = exit::VERDICT_FAILED;

in_both_modes! {
    verify_names_whatever_is_changed_cut_emptied_or_gone,
    verify_tells_people_which_object_backup_source_and_table,
    restore_does_not_begin_where_something_is_missing_or_of_another_size,
    restore_of_a_flipped_part_leaves_the_old_state_and_no_half,
    a_backup_does_not_reuse_a_part_of_another_size,
    a_backup_does_not_reuse_a_damaged_part_of_a_run_that_crashed,
    a_backup_begins_anew_where_the_epoch_is_damaged,
    a_backup_does_not_touch_a_repository_whose_mark_is_damaged,
    a_damaged_head_is_not_passed_over_in_silence,
    a_part_that_the_store_loses_meanwhile_fails_the_backup,
}

/// A source that was backed up twice into a folder.
struct Bench {
    mode: Mode,
    source: Postgres,
    workspace: Workspace,
    older: String,
    newest: String,
}

impl Bench {
    fn start(mode: Mode) -> Self {
        let source = Postgres::start(Major::V15);
        source.create_altlas("altlas", 60, 3);
        let workspace = Workspace::folder().mode(mode).postgres(&source, &["altlas"]);
        workspace.run(&["init"]).ok();
        let older = backup(&workspace);
        // Where heads cannot be read, only the whole seconds in their ids say which backup is the newest.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        source.psql("altlas", "UPDATE tags SET description = 'changed'; INSERT INTO tags (name) VALUES ('new')");
        let newest = backup(&workspace);
        mode.assert_objects(&workspace.objects());
        Self { mode, source, workspace, older, newest }
    }

    /// The objects of a kind that the newest backup stands on.
    fn objects(&self, kind: Kind) -> Vec<String> {
        let head: serde_json::Value = read_json(&self.workspace, &format!("backups/{}/head.json", self.newest));
        let epoch = format!("epochs/{}", head["epoch"].as_str().unwrap());
        let suffix = self.mode.suffix();
        match kind {
            Kind::InstallMark => vec!["altlas.json".into()],
            Kind::Epoch => vec![format!("{epoch}/epoch.json")],
            Kind::Keys => vec![format!("{epoch}/keys.json{suffix}")],
            Kind::Head => vec![format!("backups/{}/head.json", self.newest)],
            Kind::Manifest => vec![format!("backups/{}/database.manifest.json.zst{suffix}", self.newest)],
            Kind::Part => self.users_of_parts().into_keys().collect(),
        }
    }

    /// The parts of the newest backup, and the artifacts that each is of.
    fn users_of_parts(&self) -> BTreeMap<String, BTreeSet<String>> {
        let keys = self.workspace.objects().into_keys();
        let parts: Vec<String> = keys.filter(|key| key.contains("/parts/")).collect();
        let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for artifact in Library::new(self.workspace.context()).artifacts(&self.newest) {
            for part in &artifact.parts {
                let key = parts.iter().find(|key| key.contains(&part.name.to_string())).unwrap();
                users.entry(key.clone()).or_default().insert(artifact.path.clone());
            }
        }
        users
    }

    /// The part that holds a table's rows.
    fn part_of(&self, artifact: &str) -> String {
        let users = self.users_of_parts();
        users.into_iter().find(|(_, users)| users.contains(artifact)).expect("a part of that artifact").0
    }
}

const TAGS: &str = "databases/altlas/tables/public.tags";
const LAST_FILES: &str = "databases/altlas/tables/public.last_files";

fn backup(workspace: &Workspace) -> String {
    let report = workspace.run(&["--json", "backup"]).ok().json();
    report["backup"].as_str().unwrap().to_owned()
}

fn read_json(workspace: &Workspace, key: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(workspace.repository_folder().join(key)).unwrap()).unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    InstallMark,
    Epoch,
    Keys,
    Head,
    Manifest,
    Part,
}

const KINDS: [Kind; 6] = [Kind::InstallMark, Kind::Epoch, Kind::Keys, Kind::Head, Kind::Manifest, Kind::Part];

impl Kind {
    /// Is an object of this kind stored as JSON that one can read?
    fn is_json(self, mode: Mode) -> bool {
        match self {
            Kind::InstallMark | Kind::Epoch | Kind::Head => true,
            Kind::Keys => mode == Mode::Clear,
            Kind::Manifest | Kind::Part => false,
        }
    }
}

/// What is done to an object.
#[derive(Clone, Debug)]
enum Damage {
    /// Another byte at that place.
    Byte(usize, u8),
    /// Another bit in the middle.
    Bit,
    /// Only so many bytes are left.
    Cut(usize),
    /// More at the end.
    Append(Vec<u8>),
    /// Gone.
    Delete,
}

impl Damage {
    /// One bit, another byte, or, in JSON, another digit in place of a digit.
    fn random_flip(random: &mut StdRng, json: bool, bytes: &[u8]) -> Self {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..4) {
            0 | 1 if json => {
                let digits: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()).collect();
                let at = *digits.choose(random).unwrap();
                Self::Byte(at, b'0' + (bytes[at] - b'0' + random.random_range(1..10)) % 10)
            }
            2 => Self::Byte(at, bytes[at].wrapping_add(random.random_range(1..=255))),
            _ => Self::Byte(at, bytes[at] ^ (1 << random.random_range(0..8))),
        }
    }

    /// Every other damage, with random lengths among fixed ones.
    fn others(random: &mut StdRng, bytes: &[u8]) -> Vec<Self> {
        let len = bytes.len();
        let mut all: Vec<Self> = [0, 1, 2, len / 2, len - 2, len - 1].map(Self::Cut).into();
        all.extend((0..6).map(|_| Self::Cut(random.random_range(1..len))));
        all.extend([b"\n".to_vec(), b"\0".to_vec(), vec![0; 4096], bytes.to_vec()].map(Self::Append));
        all.push(Self::Delete);
        all
    }

    fn apply(&self, file: &Path, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        match self {
            Self::Byte(at, byte) => bytes[*at] = *byte,
            Self::Bit => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            Self::Cut(len) => bytes.truncate(*len),
            Self::Append(more) => bytes.extend(more),
            Self::Delete => return fs::remove_file(file).unwrap(),
        }
        fs::write(file, bytes).unwrap();
    }
}

/// A repository with one damaged object, which is made whole again when dropped.
struct Damaged {
    file: PathBuf,
    bytes: Vec<u8>,
}

impl Damaged {
    fn new(workspace: &Workspace, key: &str, damage: &Damage) -> Self {
        let file = workspace.repository_folder().join(key);
        let bytes = fs::read(&file).unwrap();
        damage.apply(&file, &bytes);
        Self { file, bytes }
    }
}

impl Drop for Damaged {
    fn drop(&mut self) {
        fs::write(&self.file, &self.bytes).unwrap();
    }
}

// --- verify ------------------------------------------------------------------------------------------------------------

/// Damages objects of one kind again and again; each time, `verify` must name the object and what it hurts.
fn verify_notices(bench: &Bench, kind: Kind, mut random: StdRng) -> usize {
    let workspace = bench.workspace.copy();
    let library = Library::new(workspace.context());
    let users = bench.users_of_parts();
    let keys = bench.objects(kind);
    let files: Vec<(&String, Vec<u8>)> =
        keys.iter().map(|key| (key, fs::read(workspace.repository_folder().join(key)).unwrap())).collect();

    // The backup may be named in two ways.
    let names = [&bench.newest[..], "latest"];
    let mut damages: Vec<(&String, Damage, &str)> = Vec::new();
    for flip in 0..flips() {
        let (key, bytes) = files.choose(&mut random).unwrap();
        damages.push((key, Damage::random_flip(&mut random, kind.is_json(bench.mode), bytes), names[flip % 2]));
    }
    for (key, bytes) in &files {
        for damage in Damage::others(&mut random, bytes) {
            // The newest head is known to be there only while it is.
            let lost = kind == Kind::Head && matches!(damage, Damage::Delete);
            let names = if lost { &names[..1] } else { &names };
            damages.extend(names.iter().map(|name| (*key, damage.clone(), *name)));
        }
    }
    for (key, damage, selector) in &damages {
        let _damaged = Damaged::new(&workspace, key, damage);
        let context = || format!("{key} {damage:?}, verify {selector}");
        let verified = library.verify(selector);
        assert_eq!(exit_code(&verified), VERDICT_FAILED, "{}: {verified:?}", context());
        let report = verified.unwrap();
        assert_eq!(report.verdict.as_str(), "failed");
        let backup = (kind != Kind::InstallMark).then_some(&bench.newest);
        assert_eq!(report.backup.as_ref(), backup, "{}", context());
        let source = matches!(kind, Kind::Manifest | Kind::Part).then_some("database");
        let hurt: BTreeSet<String> = report.problems.iter().flat_map(|problem| problem.artifacts.clone()).collect();
        assert_eq!(hurt, users.get(*key).cloned().unwrap_or_default(), "{}", context());
        for problem in &report.problems {
            assert_eq!(&problem.object, *key, "{}: {problem:?}", context());
            assert!(problem.what.contains(*key), "{}: {problem:?}", context());
            assert_eq!(problem.source.as_deref(), source, "{}", context());
        }
    }
    // What the newest backup alone stands on does not hurt the older one.
    if matches!(kind, Kind::Head | Kind::Manifest) {
        let _damaged = Damaged::new(&workspace, &keys[0], &Damage::Delete);
        library.sound(&bench.older);
    }
    library.sound("latest");
    damages.len()
}

fn verify_names_whatever_is_changed_cut_emptied_or_gone(mode: Mode) {
    let bench = Bench::start(mode);
    let mut random = seeded();
    std::thread::scope(|scope| {
        let threads = KINDS.map(|kind| {
            let random = rand::SeedableRng::from_rng(&mut random);
            let bench = &bench;
            (kind, scope.spawn(move || verify_notices(bench, kind, random)))
        });
        for (kind, thread) in threads {
            println!("{kind:?}: {} damages, all named", thread.join().unwrap());
        }
    });
}

fn verify_tells_people_which_object_backup_source_and_table(mode: Mode) {
    let bench = Bench::start(mode);
    let workspace = &bench.workspace;
    let verify = |backup: &str| workspace.run(&["verify", backup, "--level", "content"]).output();
    for kind in KINDS {
        let key = match kind {
            Kind::Part => bench.part_of(TAGS),
            _ => bench.objects(kind).remove(0),
        };
        let len = fs::read(workspace.repository_folder().join(&key)).unwrap().len();
        for damage in [Damage::Bit, Damage::Cut(len - 1), Damage::Cut(0), Damage::Delete] {
            let _damaged = Damaged::new(workspace, &key, &damage);
            let output = verify(&bench.newest).assert_code(3);
            let mut words = vec![&key[..]];
            if kind != Kind::InstallMark {
                words.push(&bench.newest);
            }
            match (kind, &damage) {
                (Kind::Manifest, _) => words.push("source `database`"),
                (Kind::Part, _) => words.extend(["source `database`", TAGS]),
                (Kind::Head, Damage::Delete) => words.push("1 manifest without a head"),
                _ => {}
            }
            for word in words {
                assert!(output.stdout.contains(word), "{damage:?}: `{word}`\n{}", output.text());
            }
        }
    }
    verify(&bench.newest).assert_code(0);
    verify(&bench.older).assert_code(0);
}

// --- restore -----------------------------------------------------------------------------------------------------------

/// Restores the newest backup over what the target has.
fn restore(bench: &Bench, target: &Postgres) -> Output {
    let address = format!("database={}", target.url("postgres"));
    let arguments = ["restore", &bench.newest, "--yes", "--overwrite", "--target", &address];
    let run: Run = bench.workspace.run(&arguments);
    run.env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", target.password()).output()
}

fn databases(server: &Postgres) -> String {
    server.psql("postgres", "SELECT datname, datallowconn, oid FROM pg_database ORDER BY 1")
}

/// A target with another database of the same name, which writes down what is done to it.
fn target() -> Postgres {
    let target = Postgres::start_with(Major::V15, "log_statement = ddl");
    target.create_altlas("altlas", 25, 99);
    target
}

fn restore_does_not_begin_where_something_is_missing_or_of_another_size(mode: Mode) {
    let bench = Bench::start(mode);
    let target = target();
    let (before, digests) = (databases(&target), target.digests("altlas"));
    let (part, manifest) = (bench.part_of(TAGS), bench.objects(Kind::Manifest).remove(0));
    let globals = bench.part_of("globals.sql");
    for (key, damage) in [
        (&part, Damage::Delete),
        (&part, Damage::Cut(10)),
        (&part, Damage::Cut(0)),
        (&part, Damage::Append(b"!".to_vec())),
        (&manifest, Damage::Delete),
        (&manifest, Damage::Cut(10)),
        (&manifest, Damage::Cut(0)),
        (&manifest, Damage::Bit),
        // Needed for the plan, so it is read before anything is written.
        (&globals, Damage::Bit),
    ] {
        let _damaged = Damaged::new(&bench.workspace, key, &damage);
        let begun = target.log().len();
        let output = restore(&bench, &target).assert_error(1, &[key, "hint:"]);
        assert!(!output.stderr.contains("plan:"), "it did not come to a plan\n{}", output.text());
        assert_eq!(databases(&target), before, "{key} {damage:?}");
        let log = target.log()[begun..].to_owned();
        for write in ["CREATE ", "ALTER ", "DROP "] {
            assert!(!log.contains(write), "{key} {damage:?}: the target was touched:\n{log}");
        }
    }
    assert_eq!(target.digests("altlas"), digests);
    // And the same restore does begin, and shows in the log, once all is there.
    restore(&bench, &target).assert_code(0);
    assert!(target.log().contains("CREATE DATABASE"));
    assert_eq!(target.digests("altlas"), bench.source.digests("altlas"));
}

fn restore_of_a_flipped_part_leaves_the_old_state_and_no_half(mode: Mode) {
    let bench = Bench::start(mode);
    let target = target();
    let (before, digests) = (databases(&target), target.digests("altlas"));
    let mut random = seeded();
    // The inventory is read by verifications alone.
    let is_read = |path: &String| path != "globals.sql" && !path.ends_with("/inventory.txt");
    for artifact in bench.users_of_parts().into_values().flatten().filter(is_read) {
        let key = bench.part_of(&artifact);
        let bytes = fs::read(bench.workspace.repository_folder().join(&key)).unwrap();
        let flip = Damage::random_flip(&mut random, false, &bytes);
        let _damaged = Damaged::new(&bench.workspace, &key, &flip);
        let begun = target.log().len();
        restore(&bench, &target).assert_error(1, &[&key, "as they were", "dropped"]);
        // What comes before the rows is read before the database is created.
        if artifact.contains("/tables/") {
            assert!(target.log()[begun..].contains("CREATE DATABASE"), "{artifact}: it had begun");
        }
        assert_eq!(databases(&target), before, "{artifact}");
        assert_eq!(target.digests("altlas"), digests, "{artifact}");
    }
}

// --- backup ------------------------------------------------------------------------------------------------------------

/// What the next backup uploaded and needs, in parts; it must be sound.
fn next_backup(workspace: &Workspace) -> (u64, u64) {
    let report = workspace.run(&["--json", "backup"]).ok().json();
    let source = &report["sources"][0];
    Library::new(workspace.context()).sound(report["backup"].as_str().unwrap());
    (source["new_parts"].as_u64().unwrap(), source["parts"].as_u64().unwrap())
}

fn a_backup_does_not_reuse_a_part_of_another_size(mode: Mode) {
    let bench = Bench::start(mode);
    let part = bench.part_of(LAST_FILES);
    for damage in [Damage::Cut(0), Damage::Cut(10), Damage::Append(b"!".to_vec()), Damage::Delete] {
        let workspace = bench.workspace.copy();
        damage.apply(&workspace.repository_folder().join(&part), &workspace.objects()[&part]);
        assert_eq!(next_backup(&workspace).0, 1, "{damage:?}");
        let old = Library::new(workspace.context()).verify(&bench.newest);
        assert_eq!(exit_code(&old), VERDICT_FAILED, "the new part does not hide what happened to the old one");
    }
}

fn a_backup_does_not_reuse_a_damaged_part_of_a_run_that_crashed(mode: Mode) {
    let bench = Bench::start(mode);
    let part = bench.part_of(LAST_FILES);
    for damage in [Damage::Cut(10), Damage::Bit, Damage::Append(b"!".to_vec())] {
        let workspace = bench.workspace.copy();
        let root = workspace.repository_folder();
        for backup in [&bench.older, &bench.newest] {
            fs::remove_file(root.join(format!("backups/{backup}/head.json"))).unwrap();
        }
        damage.apply(&root.join(&part), &workspace.objects()[&part]);
        assert_eq!(next_backup(&workspace).0, 1, "{damage:?}");
    }
}

fn a_backup_begins_anew_where_the_epoch_is_damaged(mode: Mode) {
    let bench = Bench::start(mode);
    for kind in [Kind::Epoch, Kind::Keys] {
        let key = bench.objects(kind).remove(0);
        for damage in [Damage::Bit, Damage::Cut(0), Damage::Delete] {
            let workspace = bench.workspace.copy();
            let damaged = Damaged::new(&workspace, &key, &damage);
            let (new, parts) = next_backup(&workspace);
            assert_eq!(new, parts, "{damage:?}: nothing of the damaged epoch is reused");
            // The old ones are still listed, with what is wrong with them.
            let list = workspace.run(&["list"]).ok();
            for word in [&bench.older, &bench.newest, &key] {
                assert!(list.stdout.contains(word), "{damage:?}: `{word}`\n{}", list.text());
            }
            drop(damaged);
            for backup in [&bench.older[..], &bench.newest, "latest"] {
                Library::new(workspace.context()).sound(backup);
            }
        }
    }
}

fn a_backup_does_not_touch_a_repository_whose_mark_is_damaged(mode: Mode) {
    let bench = Bench::start(mode);
    let workspace = &bench.workspace;
    for damage in [Damage::Bit, Damage::Cut(0), Damage::Delete] {
        let _damaged = Damaged::new(workspace, "altlas.json", &damage);
        let before = workspace.objects();
        for command in [&["backup"][..], &["init"], &["init", "--if-missing"]] {
            workspace.run(command).output().assert_error(1, &["altlas.json"]);
        }
        assert_eq!(workspace.objects(), before, "{damage:?}");
    }
}

fn a_damaged_head_is_not_passed_over_in_silence(mode: Mode) {
    let bench = Bench::start(mode);
    let key = bench.objects(Kind::Head).remove(0);
    let damaged = Damaged::new(&bench.workspace, &key, &Damage::Bit);
    // An older backup may stand in for it in a restore, but the person is told.
    let target = target();
    let address = format!("database={}", target.url("postgres"));
    let run = bench.workspace.run(&["restore", "latest", "--dry-run", "--overwrite", "--target", &address]);
    let output = run.env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", target.password()).ok();
    assert!(output.stdout.contains(&bench.older), "{}", output.text());
    assert!(output.stderr.contains(&key), "{}", output.text());
    next_backup(&bench.workspace);
    drop(damaged);
    Library::new(bench.workspace.context()).sound(&bench.newest);
}

/// R1: what the store loses before the head is missed by the first look, what it loses after by the second. Either way
/// there is no backup, and nobody is told of one.
fn a_part_that_the_store_loses_meanwhile_fails_the_backup(mode: Mode) {
    let source = Postgres::start(Major::V15);
    source.create_altlas("altlas", 10, 3);
    let s3 = Arc::new(BlockingS3::start(S3Kind::SeaweedFs).unwrap());
    let manifest = format!(".manifest.json.zst{}", mode.suffix());
    for (look, trigger) in [("first", manifest), ("second", "/head.json".to_owned())] {
        let mut workspace = Workspace::s3(&s3.place("bucket", look)).mode(mode).postgres(&source, &["altlas"]);
        workspace.run(&["init"]).ok();
        let proxy = HttpProxy::start(s3.address());
        workspace.set("repository.s3.endpoint", proxy.endpoint());
        let store = s3.clone();
        proxy.before_write(move |write| {
            // Only once: the deletion of the head has the same path.
            if write.method == "PUT" && write.path.split('?').next().unwrap().ends_with(&trigger) {
                let there = store.list("bucket", look);
                store.delete("bucket", look, there.keys().find(|key| key.contains("/parts/")).unwrap());
            }
            Action::Pass
        });
        workspace.run(&["backup"]).output().assert_error(1, &[&format!("the {look} look"), "/parts/"]);
        let left: Vec<String> = s3.list("bucket", look).into_keys().filter(|key| key.ends_with("head.json")).collect();
        assert_eq!(left, [""; 0], "no head is left");
        proxy.reset();
        workspace.run(&["backup"]).ok();
        Library::new(workspace.context()).sound("latest");
    }
}
