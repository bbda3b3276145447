//! What is restored is what was captured, by our own fingerprints and, message by message and consumer by consumer, by an
//! independent client (nats-py).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{NatsVersion, back_up, initialised, restore};
use crate::support::{
    assert_same_lines,
    mode::{Mode, in_both_modes},
    nats::Nats,
    s3::{BlockingS3, S3Kind},
    workspace::Workspace,
};

use NatsVersion::{V29, V210, V211, V212, V214, V215};

/// Streams of the kind `types` that copy from others. Restored into another server, where their origins are new to them, 2.15 copies
/// all of it once more some seconds later, behind what it restored.
const COPYING: [&str; 2] = ["SOURCED", "SOURCED_PART"];

in_both_modes! {
    from_2_9_to_2_9,
    from_2_9_to_2_15,
    from_2_15_to_2_15,
}

fn from_2_9_to_2_9(mode: Mode) {
    in_both_stores(mode, V29, V29);
}

fn from_2_9_to_2_15(mode: Mode) {
    in_both_stores(mode, V29, V215);
}

fn from_2_15_to_2_15(mode: Mode) {
    in_both_stores(mode, V215, V215);
}

/// Streams of every sort, through a folder and through SeaweedFS.
fn in_both_stores(mode: Mode, from: NatsVersion, to: NatsVersion) {
    let source = Nats::start(from);
    source.fill("altlas", 2000, 1);
    source.fill("types", 3_000_000, 2);
    let seen = Seen::of(&source);
    let folder = Workspace::folder().mode(mode).nats(&source);
    seen.round_trip(&folder, to);
    mode.assert_objects(&folder.objects());

    let seaweed = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let on_s3 = Workspace::s3(&seaweed.place("backups", "alt-las/prod")).mode(mode).nats(&source);
    seen.round_trip(&on_s3, to);
    mode.assert_names(seaweed.list("backups", "alt-las/prod").keys());
}

/// 200,000 messages in one stream, 200 streams, and an object of 50 MB.
#[test]
fn much_of_2_9() {
    let seen_by = with_much(V29);
    let seen = Seen::of(&seen_by);
    seen.round_trip(&Workspace::folder().nats(&seen_by), V29);
    let seaweed = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    seen.round_trip(&Workspace::s3(&seaweed.place("backups", "much")).mode(Mode::Encrypted).nats(&seen_by), V215);
}

#[test]
fn much_of_2_15() {
    let source = with_much(V215);
    let seaweed = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let place = seaweed.place("backups", "much");
    Seen::of(&source).round_trip(&Workspace::s3(&place).mode(Mode::Encrypted).nats(&source), V215);
}

fn with_much(version: NatsVersion) -> Nats {
    let source = Nats::start(version);
    source.fill("many", 200_000, 3);
    source.fill("streams", 200, 4);
    source.fill("types", 50_000_000, 5);
    source
}

/// The versions between the oldest and the newest: into themselves, and into the newest.
#[test]
fn from_versions_between() {
    for from in [V210, V211, V212, V214] {
        let source = Nats::start(from);
        source.fill("altlas", 200, 6);
        source.fill("types", 300_000, 7);
        let seen = Seen::of(&source);
        let workspace = initialised(Mode::Clear, &source);
        back_up(&workspace);
        for to in [from, V215] {
            seen.restore_and_compare(&workspace, to);
        }
    }
}

/// What has not changed is not stored again: of each stream only its first part, because a server writes the time of the snapshot at
/// the head of the archive. Up to 2.14 it writes that before each file of a stream, so what is the same there is a matter of chance.
#[test]
fn a_second_backup_of_an_unchanged_server() {
    let source = Nats::start(V215);
    source.fill("many", 60_000, 8);
    source.fill("altlas", 50, 9);
    let workspace = initialised(Mode::Encrypted, &source);
    let first = back_up(&workspace);
    let second = back_up(&workspace);
    let number = |report: &Value, field: &str| report[field].as_u64().unwrap();
    assert_eq!(number(&first, "new_parts"), number(&first, "parts"), "{first}");
    assert!(number(&first, "parts") > number(&first, "artifacts"), "one stream is of several parts: {first}");
    for field in ["artifacts", "parts", "raw", "rows"] {
        assert_eq!(first[field], second[field], "{first} {second}");
    }
    assert_eq!(number(&second, "new_parts"), number(&second, "artifacts"), "{second}");
}

/// A server, and what an independent client sees in it.
struct Seen<'a> {
    source: &'a Nats,
    /// Of all streams but [`COPYING`].
    steady: String,
    copied: BTreeSet<String>,
}

impl<'a> Seen<'a> {
    fn of(source: &'a Nats) -> Self {
        let (steady, copied) = (steady(source), copied(source));
        assert!(steady.contains("\n  consumer ") && steady.contains("\n  message "));
        Self { source, steady, copied }
    }

    /// Backs up into a new repository, looks at it, and restores.
    #[track_caller]
    fn round_trip(&self, workspace: &Workspace, to: NatsVersion) {
        workspace.run(&["init"]).ok();
        back_up(workspace);
        for level in ["presence", "content"] {
            let verified = workspace.run(&["--json", "verify", "latest", "--level", level]).ok().json();
            assert_eq!(verified["verdict"], "sound", "{verified}");
        }
        self.restore_and_compare(workspace, to);
    }

    #[track_caller]
    fn restore_and_compare(&self, workspace: &Workspace, to: NatsVersion) {
        let target = Nats::start(to);
        let restored = restore(workspace, &target, &["--json"]).ok().json();
        let items = restored["sources"][0][1]["items"].as_array().unwrap();
        assert!(items.iter().all(|item| item["compared"] == "same"), "{items:?}");
        let names: BTreeSet<&str> = items.iter().map(|item| item["name"].as_str().unwrap()).collect();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), self.source.streams());
        for item in items {
            let name = item["name"].as_str().unwrap();
            assert_eq!(item["rows"], self.source.messages(name), "{item}");
        }
        let copied = copied(&target);
        assert_eq!(self.copied.difference(&copied).collect::<Vec<_>>(), Vec::<&String>::new());
        assert_same_lines(&self.steady, &steady(&target));
    }
}

/// Configuration, messages and consumers of every stream that does not copy from others.
fn steady(server: &Nats) -> String {
    let names = server.streams();
    let options =
        names.iter().filter(|name| !COPYING.contains(&name.as_str())).flat_map(|name| ["--stream", name.as_str()]);
    server.digest(&[&["--messages"], &options.collect::<Vec<_>>()[..]].concat()).text().to_owned()
}

/// Messages of those that do, a line each, and their configurations.
fn copied(server: &Nats) -> BTreeSet<String> {
    let options: Vec<&str> = COPYING.iter().flat_map(|name| ["--stream", name]).collect();
    let digest = server.digest_at_rest(&[&["--messages"], &options[..]].concat());
    let kept =
        |line: &&str| line.starts_with("stream ") || line.starts_with("  config ") || line.starts_with("  message ");
    digest.text().lines().filter(kept).map(str::to_owned).collect()
}
