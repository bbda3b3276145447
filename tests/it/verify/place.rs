//! What is wrong with the place of a verification is not the backup's fault, and is not a success either. Nothing is left behind.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{back_up, listed_verdict, verified, verify};
use crate::support::{
    postgres::{Major, Postgres},
    proxy::{Action, HttpProxy},
    redis::{Redis, RedisVersion},
    s3::{BlockingS3, S3Kind},
    seeded, wait_for,
    workspace::{S3Place, Workspace},
};

fn leftovers(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    entries.filter(|name| name.starts_with("altlas-backup-scratch-")).collect()
}

/// Processes whose command line names this folder.
fn processes_in(folder: &Path) -> Vec<String> {
    let needle = folder.display().to_string();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&needle) && !line.starts_with("altlas-backup"))
        .collect()
}

fn small() -> (Postgres, Workspace) {
    let server = Postgres::start(Major::V15);
    server.create_altlas("altlas", 200, 7);
    let mut workspace = Workspace::folder().postgres(&server, &["altlas"]);
    let scratch = workspace.path("scratch");
    fs::create_dir(&scratch).unwrap();
    workspace.set("scratch.folder", scratch.display().to_string());
    workspace.run(&["init"]).ok();
    (server, workspace)
}

#[test]
fn without_the_server_s_program_nobody_can_tell() {
    let (_server, mut workspace) = small();
    let backup = back_up(&workspace);
    workspace.set("scratch.postgres_bin", "/nonexistent");
    let (report, _) = verify(&workspace, &backup, 4);
    let source = &report["sources"][0];
    assert_eq!((&source["verdict"], &source["reason"]), (&"inconclusive".into(), &"no-server".into()), "{report}");
    assert!(source["inconclusive"][0].as_str().unwrap().contains("PostgreSQL 15"), "{report}");
    assert!(source["hint"].as_str().unwrap().contains("postgres_bin"), "{report}");
    assert_eq!(listed_verdict(&workspace, &backup), "inconclusive");
    // Another major version is no better.
    workspace.set(
        "scratch.postgres_bin",
        crate::support::tools::server_program(Major::V18, "postgres").parent().unwrap().display().to_string(),
    );
    verify(&workspace, &backup, 4);
    workspace.table["scratch"].as_table_mut().unwrap().remove("postgres_bin");
    verified(&workspace, &backup);
    assert_eq!(listed_verdict(&workspace, &backup), "verified");
    workspace.set("scratch.postgres_bin", "/nonexistent");
    verify(&workspace, &backup, 4);
    assert_eq!(listed_verdict(&workspace, &backup), "verified", "what is inconclusive changes nothing");
    assert_eq!(leftovers(&workspace.path("scratch")), [""; 0]);
}

#[test]
fn an_extension_that_is_missing_here_is_not_the_backup_s_fault() {
    // 18 as it is at hand has no `hstore` for servers but its own: the source is 15, which has it, and the throwaway one is not given it.
    let (server, mut workspace) = small();
    server.psql("altlas", "CREATE EXTENSION hstore");
    let backup = back_up(&workspace);
    verified(&workspace, &backup);
    let bin = without_extension(&workspace, "hstore");
    workspace.set("scratch.postgres_bin", bin);
    let (report, _) = verify(&workspace, &backup, 4);
    assert_eq!(report["sources"][0]["reason"], "missing", "{report}");
    assert!(report["sources"][0]["inconclusive"][0].as_str().unwrap().contains("hstore"), "{report}");
}

/// A copy of the server's programs and their files without that extension's: PostgreSQL finds its files beside its programs.
fn without_extension(workspace: &Workspace, extension: &str) -> String {
    let root = workspace.path("pg");
    for (from, to) in
        [("/usr/lib/postgresql/15", "usr/lib/postgresql/15"), ("/usr/share/postgresql/15", "usr/share/postgresql/15")]
    {
        let to = root.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let copied = std::process::Command::new("cp").args(["-a", from]).arg(&to).status().unwrap();
        assert!(copied.success());
    }
    let share = root.join("usr/share/postgresql/15/extension");
    for entry in fs::read_dir(share).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(extension) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    root.join("usr/lib/postgresql/15/bin").display().to_string()
}

#[test]
fn a_disk_that_is_full_is_not_the_backup_s_fault() {
    let (server, mut workspace) = small();
    server.psql("altlas", "CREATE TABLE big AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 60000) n");
    let backup = back_up(&workspace);
    // A file system of its own: too small at first sight, and then only when it is being filled.
    for (size, needle) in [("20m", "needs about"), ("130m", "")] {
        let disk = workspace.path(&format!("disk-{size}"));
        fs::create_dir(&disk).unwrap();
        let script = format!("mount -t tmpfs -o size={size} none {0} && exec \"$@\"", disk.display());
        workspace.set("scratch.folder", disk.display().to_string());
        let output = workspace
            .run(&["--json", "verify", &backup])
            .through(&["/usr/bin/unshare", "-m", "/bin/sh", "-c", &script, "sh"])
            .output()
            .assert_code(4);
        let report = output.json();
        assert_eq!(report["sources"][0]["reason"], "no-space", "{size}: {report}");
        let words = report["sources"][0]["inconclusive"][0].as_str().unwrap();
        assert!(words.contains(needle), "{words}");
    }
}

#[test]
fn time_that_runs_out_is_not_the_backup_s_fault() {
    let server = Redis::start(RedisVersion::V70);
    server.fill("altlas", 100, 3);
    let mut workspace = Workspace::folder().redis(&server);
    workspace.run(&["init"]).ok();
    let backup = back_up(&workspace);
    // A server that never gets ready: its program does nothing.
    let program = workspace.path("redis-server");
    fs::write(
        &program,
        "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'Redis server v=7.0.15'; exit; }\nexec sleep 600\n",
    )
    .unwrap();
    let made = std::process::Command::new("chmod").args(["755", program.to_str().unwrap()]).status().unwrap();
    assert!(made.success());
    workspace.set("scratch.redis_server", program.display().to_string());
    workspace.set("scratch.timeout", "2s");
    let (report, _) = verify(&workspace, &backup, 4);
    assert_eq!(report["sources"][0]["verdict"], "inconclusive", "{report}");
    assert_eq!(report["sources"][0]["reason"], "time-out", "{report}");
}

#[test]
fn a_verification_that_is_killed_leaves_nothing_for_long() {
    use rand::Rng as _;
    let (_server, workspace) = small();
    let backup = back_up(&workspace);
    let scratch = workspace.path("scratch");
    let mut random = seeded();
    let moments = if std::env::var_os("ALTLAS_TORTURE").is_some() { 20 } else { 5 };
    for _ in 0..moments {
        let running = workspace.run(&["verify", &backup]).spawn();
        std::thread::sleep(Duration::from_millis(random.random_range(100..2500)));
        running.kill9();
    }
    // Servers end with who started them, or are ended by the next one.
    verified(&workspace, &backup);
    assert_eq!(leftovers(&scratch), [""; 0]);
    wait_for("the throwaway servers' end", Duration::from_secs(20), || processes_in(&scratch).is_empty().then_some(()));
}

#[test]
fn a_damaged_part_is_named_whatever_the_place() {
    let (_server, mut workspace) = small();
    let backup = back_up(&workspace);
    verified(&workspace, &backup);
    let part = workspace.objects().into_keys().filter(|key| key.contains("/parts/")).max().unwrap();
    let path = workspace.repository_folder().join(&part);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let (report, output) = verify(&workspace, &backup, 3);
    assert_eq!(report["sources"][0]["reason"], "damaged", "{report}");
    assert!(output.text().contains(&part), "{}", output.text());
    assert_eq!(listed_verdict(&workspace, &backup), "failed");
    // There is nothing verified any more to restore by default.
    workspace.set("scratch.timeout", "1h");
    workspace.run(&["restore", "--dry-run"]).output().assert_code(6);
}

/// A signal ends a verification at any level, however slow the store is.
#[test]
fn a_signal_ends_it_at_any_level() {
    let server = Redis::start(RedisVersion::V70);
    server.fill("altlas", 100, 4);
    let seaweed = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let proxy = HttpProxy::start(seaweed.address());
    let place = S3Place { endpoint: proxy.endpoint(), ..seaweed.place("backups", "slow") };
    let workspace = Workspace::s3(&place).redis(&server);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();
    for (level, at) in [("presence", "tombstones"), ("content", "/parts/"), ("restore", "manifest")] {
        let (told, hears) = std::sync::mpsc::channel();
        let told = std::sync::Mutex::new(told);
        proxy.on_read(move |read| {
            if !read.path.contains(at) {
                return Action::Pass;
            }
            let _ = told.lock().unwrap().send(());
            Action::Block
        });
        let running = workspace.run(&["verify", "--level", level]).spawn();
        hears.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("{level}: {at} is not asked for"));
        let clock = Instant::now();
        running.signal(Signal::TERM);
        running.wait().assert_code(130);
        assert!(clock.elapsed() < Duration::from_secs(20), "{level}: {:?}", clock.elapsed());
        proxy.reset();
    }
}
