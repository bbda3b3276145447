//! Keys, the machines that hold them, and what these machines are asked.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use altlas_backup::crypt::{Identities, Identity, Recipient};
use secrecy::ExposeSecret;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::{
    binary::Run,
    postgres::{Major, Postgres},
    workspace::Workspace,
};

/// An age key: both halves.
pub(super) struct Key(Identity);

impl Key {
    pub(super) fn new() -> Self {
        Self(Identity::generate())
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.0
    }

    pub(super) fn identities(&self) -> Identities {
        self.0.clone().into()
    }

    pub(super) fn recipient(&self) -> &Recipient {
        self.0.recipient()
    }

    /// `age1…`
    pub(super) fn public(&self) -> String {
        self.recipient().to_string()
    }

    /// A file of it, as `age-keygen` writes one.
    pub(super) fn text(&self) -> String {
        let created = "2026-11-23T01:00:00Z".parse().unwrap();
        self.0.to_file(created).expose_secret().to_owned()
    }

    /// The one line of its file that must never be shown.
    pub(super) fn secret(&self) -> String {
        self.text().lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap().to_owned()
    }
}

/// Waits for the next second: of heads that cannot be read, only the whole seconds in their ids are known.
pub(super) fn next_second() {
    std::thread::sleep(std::time::Duration::from_millis(1100));
}

/// What a machine is given in `[repository.encryption]`. Nothing at all: no such section.
#[derive(Clone, Copy, Default)]
pub(super) struct Given<'a> {
    pub(super) recipients: &'a [&'a Key],
    /// `catalog_identity_file`, the current one first.
    pub(super) catalog: &'a [&'a Key],
    /// `identity_file`.
    pub(super) data: &'a [&'a Key],
    /// `catalog_recipients`.
    pub(super) known: &'a [&'a Key],
}

/// Another machine: the same repository and sources, and these keys.
pub(super) fn machine(at: &Workspace, given: Given<'_>) -> Workspace {
    let mut machine = Workspace::folder();
    machine.table = at.table.clone();
    machine.table["repository"].as_table_mut().unwrap().remove("encryption");
    let public = |keys: &[&Key]| keys.iter().map(|key| key.public()).collect::<Vec<_>>();
    for (name, keys) in [("recipients", given.recipients), ("catalog_recipients", given.known)] {
        if !keys.is_empty() {
            machine.set(&format!("repository.encryption.{name}"), public(keys));
        }
    }
    for (name, keys) in [("catalog_identity_file", given.catalog), ("identity_file", given.data)] {
        if !keys.is_empty() {
            let text: String = keys.iter().map(|key| key.text()).collect();
            let file = machine.secret(name, &text);
            machine.set(&format!("repository.encryption.{name}"), file.display().to_string());
        }
    }
    machine
}

/// A server, a place for a repository of it, and the keys of the people and machines around it.
pub(super) struct Site {
    pub(super) source: Postgres,
    /// The repository's address and the source, without any encryption.
    pub(super) place: Workspace,
    /// The operator's key.
    pub(super) operator: Key,
    /// The escrow's.
    pub(super) escrow: Key,
    /// The key of the machine that makes backups.
    pub(super) catalog: Key,
}

impl Site {
    /// A database `altlas` of so many rows, and a folder where nothing is yet.
    pub(super) fn start(rows: u64) -> Self {
        let source = Postgres::start(Major::V15);
        source.create_altlas("altlas", rows, 3);
        let place = Workspace::folder().postgres(&source, &["altlas"]);
        Self { source, place, operator: Key::new(), escrow: Key::new(), catalog: Key::new() }
    }

    /// The machine that makes backups: it holds the catalogue identity and no other.
    pub(super) fn maker(&self, place: &Workspace) -> Workspace {
        let (recipients, catalog) = ([&self.operator, &self.escrow], [&self.catalog]);
        machine(place, Given { recipients: &recipients, catalog: &catalog, ..Given::default() })
    }

    /// The operator's machine, which knows who makes backups.
    pub(super) fn reader(&self, place: &Workspace) -> Workspace {
        let (recipients, data, known) = ([&self.operator, &self.escrow], [&self.operator], [&self.catalog]);
        machine(place, Given { recipients: &recipients, data: &data, known: &known, ..Given::default() })
    }

    /// The operator's machine, told nothing of who makes backups.
    pub(super) fn naive(&self, place: &Workspace) -> Workspace {
        let (recipients, data) = ([&self.operator, &self.escrow], [&self.operator]);
        machine(place, Given { recipients: &recipients, data: &data, ..Given::default() })
    }
}

/// `backup`, which must be complete; its id.
#[track_caller]
pub(super) fn backup(machine: &Workspace) -> String {
    let report = backup_report(machine);
    report["backup"].as_str().unwrap().to_owned()
}

#[track_caller]
pub(super) fn backup_report(machine: &Workspace) -> Value {
    let report = machine.run(&["--json", "backup"]).ok().json();
    assert_eq!(report["state"], "complete", "{report}");
    report
}

/// `verify BACKUP`, which must be sound.
#[track_caller]
pub(super) fn sound(machine: &Workspace, backup: &str, level: &str) {
    machine.run(&["verify", backup, "--level", level]).ok();
}

/// `restore BACKUP` of the database `altlas` to another name on a server.
pub(super) fn restore(machine: &Workspace, backup: &str, target: &Postgres, name: &str) -> Run {
    let (address, database) = (format!("database={}", target.url("postgres")), format!("altlas={name}"));
    machine
        .run(&["restore", backup, "--yes", "--target", &address, "--database", &database])
        .env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", target.password())
}

/// The databases of a server, by name and number.
pub(super) fn databases(server: &Postgres) -> String {
    server.psql("postgres", "SELECT datname, oid FROM pg_database ORDER BY 1")
}

/// How `list` shows a backup: its status, and all that is said of it.
#[track_caller]
pub(super) fn listed(machine: &Workspace, backup: &str) -> (String, Value) {
    let list = machine.run(&["--json", "list"]).ok().json();
    let entry = list["backups"].as_array().unwrap().iter().find(|entry| {
        let id = if entry["status"] == "good" { &entry["head"]["backup"] } else { &entry["backup"] };
        id == backup
    });
    let entry = entry.unwrap_or_else(|| panic!("{backup} is not listed: {list}"));
    (entry["status"].as_str().unwrap().to_owned(), entry.clone())
}

/// The parts of an artifact, as keys below the repository.
#[track_caller]
pub(super) fn parts_of(machine: &Workspace, backup: &str, artifact: &str) -> Vec<String> {
    let shown = machine.run(&["--json", "show", backup]).ok().json();
    let epoch = shown["head"]["epoch"].as_str().unwrap();
    let artifacts = shown["sources"][0]["artifacts"].as_array().unwrap();
    let artifact = artifacts.iter().find(|found| found["path"] == artifact).unwrap_or_else(|| panic!("{artifact}"));
    let names = artifact["parts"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap());
    names.map(|name| format!("epochs/{epoch}/parts/{}/{name}.zst.age", &name[..2])).collect()
}

/// A record in clear.
#[track_caller]
pub(super) fn record(place: &Workspace, key: &str) -> Value {
    serde_json::from_slice(&fs::read(place.repository_folder().join(key)).unwrap()).unwrap()
}

/// The epoch of a backup.
#[track_caller]
pub(super) fn epoch_of(place: &Workspace, backup: &str) -> String {
    record(place, &format!("backups/{backup}/head.json"))["epoch"].as_str().unwrap().to_owned()
}

/// Every object below a folder, with its bytes.
pub(super) fn objects(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                let key = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(key, fs::read(path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

/// Stores an object, over whatever is there.
pub(super) fn put(place: &Workspace, key: &str, bytes: &[u8]) {
    let path = place.repository_folder().join(key);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// An object's bytes.
#[track_caller]
pub(super) fn get(place: &Workspace, key: &str) -> Vec<u8> {
    fs::read(place.repository_folder().join(key)).unwrap_or_else(|error| panic!("{key}: {error}"))
}

/// What Debian's `age` makes of an object with this key: its content, or what it says.
pub(super) fn age_opens(key: &Key, object: &Path) -> Result<Vec<u8>, String> {
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("identity");
    fs::write(&file, key.text()).unwrap();
    let output = Command::new("age").arg("-d").arg("-i").arg(file).arg(object).output().expect("age can be started");
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
