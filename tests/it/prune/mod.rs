//! Retention and the sweep on repositories in folders and on SeaweedFS (rules R8, R9): what expires, what goes, what never does, and
//! that neither a crash nor a backup under way makes a difference to it.
//!
//! In a folder the store's times are those of the files, so a test makes them older; on an S3 server it waits, for a grace period that
//! only the library lets be so short.

mod brakes;
mod crash;
mod life;
mod races;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use altlas_backup::operation::Context;
use serde_json::Value;

use crate::support::{
    library::Library,
    mode::Mode,
    redis::{Redis, RedisVersion},
    workspace::Workspace,
};

/// A server that keeps no files.
const DISKLESS: &[&str] = &["save \"\"", "repl-diskless-sync yes", "repl-diskless-sync-delay 0"];
/// Longer than the configured grace period.
const LONG: Duration = Duration::from_secs(73 * 3600);

type Objects = BTreeMap<String, Vec<u8>>;

/// A Redis server, and a repository in a folder with some backups of it, each of other data.
struct Bench {
    mode: Mode,
    source: Redis,
    workspace: Workspace,
    /// The ids, the oldest first.
    backups: Vec<String>,
}

impl Bench {
    fn start(mode: Mode, backups: usize) -> Self {
        let source = Redis::start_with(RedisVersion::V70, DISKLESS);
        let workspace = Workspace::folder().mode(mode).redis(&source);
        workspace.run(&["init"]).ok();
        let mut bench = Self { mode, source, workspace, backups: Vec::new() };
        (0..backups).for_each(|_| bench.back_up());
        bench
    }

    /// One more backup, of data that no other has.
    fn back_up(&mut self) {
        change(&self.source);
        let report = self.workspace.run(&["--json", "backup"]).ok().json();
        self.backups.push(report["backup"].as_str().unwrap().to_owned());
    }

    /// `[retention]` that keeps the last `last`, however many expire at once.
    fn keep(&mut self, last: i64) {
        self.workspace.set("retention.last", last);
        self.workspace.set("retention.expire_at_most_percent", 100);
    }

    /// Who prunes needs no data: without the identity that opens it.
    fn without_data_identity(&mut self) {
        if self.mode == Mode::Encrypted {
            let encryption = self.workspace.table["repository"]["encryption"].as_table_mut().unwrap();
            encryption.remove("identity_file").unwrap();
        }
    }

    fn library(&self) -> Library {
        Library::new(self.workspace.context())
    }

    /// Those of the backups that have a head.
    fn heads(&self) -> Vec<String> {
        let objects = self.workspace.objects();
        self.backups.iter().filter(|id| objects.contains_key(&format!("backups/{id}/head.json"))).cloned().collect()
    }

    /// What of a backup must be there while it can be brought back, or restored.
    #[track_caller]
    fn assert_sound(&self, ids: &[String]) {
        let library = Library::new(with_data_identity(&self.workspace, self.mode));
        for id in ids {
            library.sound(id);
        }
    }
}

/// The objects of a repository, but for the evidence that each verification by a test adds.
fn without_evidence<V>(mut objects: BTreeMap<String, V>) -> BTreeMap<String, V> {
    objects.retain(|key, _| !key.starts_with("verifications/"));
    objects
}

/// The configuration with the identity that opens data, whatever was taken out of it.
fn with_data_identity(workspace: &Workspace, mode: Mode) -> Context {
    let mut context = workspace.context();
    if mode == Mode::Encrypted {
        let config = Arc::make_mut(&mut context.config);
        config.repository.encryption.as_mut().unwrap().identity_file = Some(workspace.identity_file());
    }
    context
}

/// Changes what the server holds: nothing that a backup has of it stays the same.
fn change(source: &Redis) {
    let text: String = (0..2000).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
    source.command(&["SET", "text", &text]);
}

/// Makes every object below `prefix` older by so much.
fn age(root: &Path, prefix: &str, by: Duration) {
    fn walk(path: &Path, by: Duration) {
        for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => walk(&entry.path(), by),
                false => age_file(&entry.path(), by),
            }
        }
    }
    let path = root.join(prefix);
    if path.is_file() { age_file(&path, by) } else { walk(&path, by) }
}

fn age_file(path: &Path, by: Duration) {
    let file = fs::File::options().append(true).open(path).unwrap();
    let modified: SystemTime = file.metadata().unwrap().modified().unwrap();
    file.set_modified(modified - by).unwrap();
}

/// The keys of the parts among some.
fn parts<'a>(keys: impl IntoIterator<Item = &'a String>) -> BTreeSet<String> {
    keys.into_iter().filter(|key| key.contains("/parts/")).cloned().collect()
}

/// The parts that these backups need, by their manifests.
fn parts_of(library: &Library, objects: &Objects, ids: &[String]) -> BTreeSet<String> {
    let all = parts(objects.keys());
    let names = ids.iter().flat_map(|id| library.artifacts(id)).flat_map(|artifact| artifact.parts);
    names.map(|part| all.iter().find(|key| key.contains(&part.name.to_string())).expect("a part").clone()).collect()
}

/// What the plan says of each backup, by its id.
fn fates(report: &Value) -> BTreeMap<String, String> {
    let backups = report["retention"]["backups"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    backups.iter().map(|backup| (text(&backup["backup"]), text(&backup["fate"]))).collect()
}
