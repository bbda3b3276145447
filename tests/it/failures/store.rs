//! Repositories and stores that cannot be used, or no longer can.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json};

use super::{Failure, SOON, assert_nobody_left, assert_nothing_recorded, create_small, listed, with_a_large_table};
use crate::support::{
    binary::Run,
    free_port,
    mode::{Mode, in_both_modes},
    postgres::{Major, Postgres},
    process,
    proxy::{Action, HttpProxy},
    s3::{BlockingS3, S3Kind},
    tools, wait_for,
    workspace::{S3Place, Workspace},
};

in_both_modes! {
    repositories_that_cannot_be_used,
    an_s3_server_that_goes_away_in_the_middle,
    a_folder_store_on_a_full_disk,
}

fn repositories_that_cannot_be_used(mode: Mode) {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let workspace = Workspace::folder().mode(mode).postgres(&server, &["one"]);
    let place = format!("file://{}", workspace.repository_folder().display());
    let failure = |code, kind: &str, words: &[&str], hint: &str, arguments: &[&str]| {
        Failure { code, kind, words, hint }.of(|| workspace.run(arguments));
    };
    let commands: [&[&str]; 4] = [&["backup"], &["list"], &["verify", "--level", "presence"], &["restore", "latest"]];

    // No folder at all, then an empty one.
    for command in commands {
        failure(1, "store", &[&place], "create the bucket (a folder is created by `altlas-backup init`)", command);
    }
    fs::create_dir(workspace.repository_folder()).unwrap();
    for command in commands {
        failure(1, "not-initialised", &["no repository at", &place], "`altlas-backup init`", command);
    }
    assert_eq!(fs::read_dir(workspace.repository_folder()).unwrap().count(), 0, "nothing creates one but init");

    workspace.run(&["init"]).ok();
    failure(1, "already-initialised", &["already", &place], "--if-missing", &["init"]);
    workspace.run(&["init", "--if-missing"]).ok();
    workspace.run(&["backup"]).ok();
    failure(6, "refused", &["no backup in", &place, "verified"], "`latest`", &["restore"]);
    failure(6, "refused", &["no backup in", &place, "verified"], "`latest`", &["restore", "latest-verified", "--yes"]);
    failure(1, "repository", &["no backup", "29991231"], "altlas-backup list", &["show", "29991231"]);

    // A newer version's: nothing reads it as something else, nothing writes to it.
    let mark = workspace.repository_folder().join("altlas.json");
    let written = fs::read(&mark).unwrap();
    fs::write(&mark, of_format(&written, 2)).unwrap();
    let objects = || walk(&workspace.repository_folder());
    let held = objects();
    for command in commands.iter().chain(&[&["init"][..], &["init", "--if-missing"]]) {
        let words = ["altlas.json", "format 2", "up to 1"];
        failure(6, "newer-format", &words, "or a newer one", command);
    }
    assert_eq!(objects(), held);
    // The seal that the test makes is the program's own.
    fs::write(&mark, of_format(&written, 1)).unwrap();
    assert_eq!(fs::read(&mark).unwrap(), written);
    workspace.run(&["verify", "--level", "content"]).ok();
}

/// A sealed record with another format version, sealed again.
fn of_format(record: &[u8], format: u32) -> Vec<u8> {
    let text = std::str::from_utf8(record).unwrap().replace("\"format\": 1,", &format!("\"format\": {format},"));
    let covered = &text[..text.find("\"blake3\": \"").unwrap() + "\"blake3\": \"".len()];
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"altlas-backup sealed record 1\0").update(covered.as_bytes());
    format!("{covered}{}\"\n}}\n", hasher.finalize().to_hex()).into_bytes()
}

/// Every file below a folder with its size.
fn walk(folder: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.metadata().unwrap() {
                metadata if metadata.is_dir() => folders.push(entry.path()),
                metadata => found.push((entry.path().display().to_string(), metadata.len())),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn an_s3_server_that_cannot_be_used() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let seaweed = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let place = seaweed.place("backups", "alt-las");
    let workspace = |place: &S3Place| Workspace::s3(place).postgres(&server, &["one"]);
    let failure = |words: &[&str], hint: &str, place: &S3Place| {
        let workspace = workspace(place);
        let config = workspace.config();
        for command in [&["init"][..], &["backup"], &["list"]] {
            Failure { code: 1, kind: "store", words, hint }.of_both_at_once(|| Run::new(command).config(&config));
        }
    };

    let other = S3Place { bucket: "not-there".into(), ..place.clone() };
    failure(&["s3://not-there/alt-las", "NoSuchBucket"], "create the bucket", &other);
    let other = S3Place { secret_access_key: "wrong".into(), ..place.clone() };
    failure(&["s3://backups/alt-las", "SignatureDoesNotMatch"], "secret", &other);
    let other = S3Place { access_key_id: "nobody".into(), ..place.clone() };
    failure(&["s3://backups/alt-las", "InvalidAccessKeyId"], "access key id", &other);
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let down = S3Place { endpoint: endpoint.clone(), ..place.clone() };
    let words = ["s3://backups/alt-las", &endpoint["http://".len()..], "refused", "6 attempts"];
    let (words, behind) = (&words[..], workspace(&down));
    let config = behind.config();
    let failure = Failure { code: 1, kind: "store", words, hint: "endpoint" };
    failure.of_both_at_once(|| Run::new(&["backup"]).config(&config));
    workspace(&place).run(&["init"]).ok();
    assert_nothing_recorded(&workspace(&place));
}

/// At a part, at the manifest, at the head, and from then on.
fn an_s3_server_that_goes_away_in_the_middle(mode: Mode) {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let seaweed = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let cases = [("part", "/epochs/", false), ("manifest", "/backups/", true), ("head", "/head.json", false)];
    let cases = cases.map(|(name, at, json)| {
        let proxy = HttpProxy::start(seaweed.address());
        let place = S3Place { endpoint: proxy.endpoint(), ..seaweed.place("backups", name) };
        let behind = Workspace::s3(&place).mode(mode).postgres(&server, &["one"]);
        behind.run(&["init"]).ok();
        behind.run(&["backup"]).ok();
        (name, at, json, proxy, behind)
    });
    server.psql("one", "UPDATE small SET a = a + 1000; ALTER TABLE small RENAME a TO b");
    // All at once, for each tries again and again before it gives up.
    std::thread::scope(|scope| {
        for (name, at, json, proxy, behind) in &cases {
            scope.spawn(move || gone_at(name, at, *json, proxy, behind));
        }
    });
    assert_nobody_left(&server);
}

/// The store goes away at the first write whose path has `at` in it, and is there again for the next backup.
fn gone_at(name: &str, at: &'static str, json: bool, proxy: &HttpProxy, behind: &Workspace) {
    let gone = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&gone);
    proxy.before_write(move |write| {
        seen.fetch_or(write.path.contains(at), Ordering::SeqCst);
        if seen.load(Ordering::SeqCst) { Action::Drop } else { Action::Pass }
    });
    let seen = Arc::clone(&gone);
    proxy.on_read(move |_| if seen.load(Ordering::SeqCst) { Action::Drop } else { Action::Pass });
    let place = format!("put s3://backups/{name}/");
    let words = [&place, at, &proxy.endpoint(), "after 6 attempts"];
    // It came by way of a source, or of the commit: it is the store that failed.
    let failure = Failure { code: 1, kind: "store", words: &words, hint: "endpoint" };
    if json {
        failure.check_json(behind.run(&["backup", "--json"]).output());
    } else {
        failure.check_text(behind.run(&["backup"]).output());
    }
    assert!(gone.load(Ordering::SeqCst), "{at}");
    proxy.reset();
    // The good one from before; where the manifest was written, the rest of one that says it is unfinished.
    let statuses: Vec<Value> = listed(behind).as_array().unwrap().iter().map(|one| one["status"].clone()).collect();
    let expected = if at == "/head.json" { json!(["unfinished", "good"]) } else { json!(["good"]) };
    assert_eq!(Value::from(statuses), expected, "{at}");
    behind.run(&["backup"]).ok();
    behind.run(&["verify", "--level", "content"]).ok();
}

fn a_folder_store_on_a_full_disk(mode: Mode) {
    if !tools::is_root() {
        println!("a full disk is not tested: only root can mount a small one");
        return;
    }
    let server = with_a_large_table();
    let workspace = Workspace::folder().mode(mode).postgres(&server, &["one"]);
    // A mount of its own that nobody else sees and that is gone with the process that holds it.
    let folder = workspace.repository_folder();
    fs::create_dir(&folder).unwrap();
    let mut holder = process::bound_command(Path::new("unshare"), false);
    holder.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs -o size=4m none \"$1\" && touch \"$1/.mounted\" && exec sleep 600",
    ]);
    holder.arg("sh").arg(&folder);
    let mut holder = process::spawn(holder).unwrap();
    let pid = holder.id().to_string();
    let inside = |arguments: &[&str]| workspace.run(arguments).through(&["nsenter", "--mount", "--target", &pid, "--"]);
    let mounted = Path::new("/proc").join(&pid).join("root").join(folder.strip_prefix("/").unwrap());
    wait_for("the mount", SOON, || mounted.join(".mounted").exists().then_some(()));
    fs::remove_file(mounted.join(".mounted")).unwrap();
    inside(&["init"]).ok();

    let words = ["put file://", "epochs/", "No space left"];
    Failure { code: 1, kind: "store", words: &words, hint: "free space" }.of(|| inside(&["backup"]));
    let listed = inside(&["list", "--json"]).ok().json();
    assert_eq!(listed["backups"], json!([]));
    let whole = [".json", ".json.age", ".zst", ".zst.age"];
    let torn: Vec<_> =
        walk(&mounted).into_iter().filter(|(name, _)| !whole.iter().any(|end| name.ends_with(end))).collect();
    assert_eq!(torn, [], "half an object");
    // What it had stored is good, and serves the next run when there is room again.
    let mut room = Command::new("nsenter");
    room.args(["--mount", "--target", &pid, "--", "mount", "-o", "remount,size=256m"]).arg(&folder);
    assert!(room.status().unwrap().success());
    let report = inside(&["backup", "--json"]).ok().json();
    assert!(report["sources"][0]["reused_parts"].as_u64().unwrap() > 0, "{report}");
    inside(&["verify", "--level", "content"]).ok();
    let _ = holder.kill();
    let _ = holder.wait();
    assert_nobody_left(&server);
}
