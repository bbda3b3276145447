//! The strictest proof: a throwaway server replicates from the program, and a dump is taken back from it.

use std::time::Duration;

use altlas_backup::{
    repository::Reason,
    source::{Cause, Proof},
};

use super::{DISKLESS, MARGIN, NO_FILES, SOON, back_up, before, initialised, save_once};
use crate::support::{
    forge,
    mode::{Mode, in_both_modes},
    proof::{Given, words},
    proxy::{Step, Way},
    redis::{Redis, RedisVersion, ms_from_now},
    wait_for,
    workspace::Workspace,
};

in_both_modes! {
    a_replica_of_6_2,
    a_replica_of_7_0,
    a_replica_of_8_2,
}

fn a_replica_of_6_2(mode: Mode) {
    proven(mode, RedisVersion::V62, RedisVersion::V62);
    proven(mode, RedisVersion::V62, RedisVersion::V70);
}

fn a_replica_of_7_0(mode: Mode) {
    proven(mode, RedisVersion::V70, RedisVersion::V70);
    proven(mode, RedisVersion::V70, RedisVersion::V82);
}

fn a_replica_of_8_2(mode: Mode) {
    proven(mode, RedisVersion::V82, RedisVersion::V82);
}

/// Keys that are the same.
fn keys(proof: &Proof) -> u64 {
    proof.same.iter().filter(|same| same.name.starts_with("db ")).map(|same| same.rows).sum()
}

fn proven(mode: Mode, from: RedisVersion, to: RedisVersion) {
    let source = Redis::start(from);
    save_once(&source);
    source.fill("types", 2, 21);
    source.fill("altlas", 500, 22);
    let held = source.keys();
    let workspace = initialised(mode, &source);
    back_up(&workspace);
    // Beyond what dies by itself while this runs.
    let long = ms_from_now(Duration::from_secs(600));
    let before = source.digest_beyond(long, from);
    // Longer than the soonest keys live: they are in the dump, and must be in the replica.
    std::thread::sleep(Duration::from_secs(3));
    let scratch = Redis::start_with(to, NO_FILES);
    let given = Given::redis(&scratch);
    let proof = given.proved(&workspace);
    assert_eq!(keys(&proof), held, "every key, also those whose time is over");
    let not_compared = proof.notes.iter().any(|note| note.starts_with("not compared: "));
    assert_eq!(!not_compared, from != RedisVersion::V82, "{:?}", proof.notes);
    assert_eq!(scratch.info("role"), "master", "nobody's replica any more");
    let horizon = ms_from_now(MARGIN);
    source.digest_beyond(horizon, from).assert_same(&scratch.digest_beyond(horizon, from));
    // Nothing is left of it, also where the server is started again.
    given.release();
    let mut scratch = scratch;
    for again in [false, true] {
        if again {
            scratch.kill();
            scratch.resume();
        }
        assert_eq!(scratch.keys(), 0);
        assert_eq!(scratch.setting("masterauth"), "");
        if to >= RedisVersion::V70 {
            assert_eq!(scratch.command(&["FUNCTION", "LIST"]), "");
        }
    }
    // Nothing was done to the source.
    before.assert_same(&source.digest_beyond(long, from));
}

/// The proof can fail, and says how: whatever becomes of a key in the throwaway server between its loading and the comparison.
#[test]
fn whatever_becomes_different_is_found_and_named() {
    let source = Redis::start_with(RedisVersion::V82, DISKLESS);
    source.fill("altlas", 300, 23);
    for words in SET {
        source.command(words);
    }
    let library = "#!lua name=mylib\nredis.register_function('f', function() return 1 end)";
    source.command(&["FUNCTION", "LOAD", library]);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let scratch = Redis::start_with(RedisVersion::V82, NO_FILES);
    let proxy = before(&scratch);
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let given = Given::at("redis", &url, &scratch.password_file());
    let other = library.replace("return 1", "return 2");
    let cases: &[(&[&[&str]], &str)] = &[
        (&[&["SET", "session:42", "other", "KEEPTTL"]], "db 0: session:42 has another value (a string)"),
        (&[&["DEL", "session:42"]], "db 0: session:42 is not there (a string)"),
        (&[&["SET", "one:more", "x"]], "db 0: one:more is there and was not captured (a string)"),
        (&[&["PEXPIREAT", "session:42", "4102444800001"]], "db 0: session:42 expires 2100-01-01T00:00:00.001Z and not"),
        (&[&["PERSIST", "session:42"]], "db 0: session:42 never expires, and did 2100-01-01T00:00:00.000Z"),
        (&[&["MOVE", "session:42", "7"]], "db 0: session:42 is in db 7 instead"),
        (&[&["LMOVE", "order", "order", "LEFT", "RIGHT"]], "db 0: order has another value (a list)"),
        (&[&["DEL", "order"], &["SADD", "order", "a"]], "db 0: order is a set and was a list"),
        (&[&["FUNCTION", "LOAD", "REPLACE", &other]], "function library mylib is not as it was captured"),
        (&[&["FUNCTION", "DELETE", "mylib"]], "function library mylib is not there"),
        (
            &[&["FUNCTION", "LOAD", &other.replace("mylib", "more").replace("'f'", "'g'")]],
            "function library more is there",
        ),
    ];
    for (spoil, told) in cases {
        let proof = std::thread::scope(|scope| {
            let (ask, asked) = std::sync::mpsc::channel::<()>();
            let (answer, spoiled) = std::sync::mpsc::channel::<()>();
            let mut once = Some(());
            proxy.on_bytes(move |way, _, bytes| {
                let asks = way == Way::Up && memchr::memmem::find(&bytes, b"PSYNC").is_some();
                if asks && once.take().is_some() {
                    ask.send(()).unwrap();
                    spoiled.recv().unwrap();
                }
                vec![Step::Send(bytes)]
            });
            let scratch = &scratch;
            let spoiling = scope.spawn(move || {
                asked.recv().expect("the program takes a dump back");
                scratch.command(&["CONFIG", "SET", "replica-read-only", "no"]);
                spoil.iter().for_each(|words| drop(scratch.command(words)));
                answer.send(()).unwrap();
            });
            let proof = given.prove(&workspace);
            proxy.reset();
            spoiling.join().unwrap();
            proof.unwrap()
        });
        assert!(matches!(&words(&proof)[..], [one] if one.starts_with(told)), "`{told}` is not {:?}", words(&proof));
        assert_eq!(proof.same.iter().any(|same| same.name == "db 0"), !told.starts_with("db 0"), "{proof:?}");
        given.release();
        scratch.command(&["CONFIG", "SET", "replica-read-only", "yes"]);
    }
    given.proved(&workspace);
}

const SET: &[&[&str]] = &[
    &["SET", "session:42", "value", "PXAT", "4102444800000"],
    &["RPUSH", "order", "a", "b", "c"],
    &["SET", "{session}", "x"],
];

/// What the manifest vouches for is the only truth, where everything else in the repository was made good again.
#[test]
fn a_dump_that_is_not_what_was_captured() {
    for version in RedisVersion::ALL {
        let source = Redis::start_with(version, DISKLESS);
        source.fill("altlas", 300, 24);
        SET.iter().take(2).for_each(|words| drop(source.command(&words[..words.len().min(3)])));
        let workspace = initialised(Mode::Clear, &source);
        let was = backup_id(&workspace);
        let was = forge::manifest(&workspace, &was, "cache");
        source.command(&["APPEND", "session:42", "!"]);
        let backup = backup_id(&workspace);
        let scratch = Redis::start_with(version, NO_FILES);
        let given = Given::redis(&scratch);
        given.proved(&workspace);
        given.release();
        forge::change_manifest(&workspace, &backup, "cache", |manifest| {
            manifest["detail"] = was["detail"].clone();
            manifest["artifacts"][0]["fingerprint"] = was["artifacts"][0]["fingerprint"].clone();
        });
        let proof = given.prove(&workspace).unwrap();
        assert_eq!(words(&proof), ["db 0: session:42 has another value (a string)"], "{version:?}");
        given.release();
        // An older version's manifest, which names no keys.
        forge::change_manifest(&workspace, &backup, "cache", |manifest| {
            for field in ["file", "contents.names"] {
                let (parents, last) = field.rsplit_once('.').unwrap_or(("", field));
                let detail = &mut manifest["detail"];
                let parent = if parents.is_empty() { detail } else { &mut detail[parents] };
                parent.as_object_mut().unwrap().remove(last).unwrap();
            }
        });
        let told = &words(&given.prove(&workspace).unwrap())[..];
        assert!(matches!(told, [one] if one.starts_with("db 0: strings differ: some of the ")), "{told:?}");
        given.release();
    }
}

fn backup_id(workspace: &Workspace) -> String {
    workspace.run(&["--json", "backup"]).ok().json()["backup"].as_str().unwrap().to_owned()
}

/// What belongs to modules is in no sum, and must be the bytes that were captured all the same.
#[test]
fn a_value_of_a_module_that_is_another() {
    let source = Redis::start_with(RedisVersion::V82, DISKLESS);
    source.command(&["VADD", "vectors", "VALUES", "3", "1", "2", "3", "one"]);
    let workspace = initialised(Mode::Clear, &source);
    let backup = backup_id(&workspace);
    let scratch = Redis::start_with(RedisVersion::V82, NO_FILES);
    let given = Given::redis(&scratch);
    given.proved(&workspace);
    forge::change_manifest(&workspace, &backup, "cache", |manifest| {
        manifest["detail"]["file"] = "00000000000000000000000000000000".into();
    });
    let told = words(&given.prove(&workspace).unwrap());
    assert_eq!(told, ["dump.rdb is not the file that was captured, though every key in it is as it was"]);
}

/// A server that throws keys away says nothing of the backup.
#[test]
fn a_server_that_evicts_is_found_out() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("many", 50_000, 23);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let evicts = ["maxmemory 4mb", "maxmemory-policy allkeys-random", "replica-ignore-maxmemory no"];
    let scratch = Redis::start_with(RedisVersion::V70, &[NO_FILES, &evicts].concat());
    let error = Given::redis(&scratch).prove(&workspace).unwrap_err();
    assert!(scratch.keys() < 50_000, "{error}");
    for word in ["evicted", "`maxmemory` is too small"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    assert_eq!(error.cause(), Cause::Place(Reason::NoSpace));
}

#[test]
fn a_server_that_is_too_old_is_refused() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("altlas", 10, 24);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let scratch = Redis::start(RedisVersion::V62);
    let error = Given::redis(&scratch).prove(&workspace).unwrap_err();
    assert_eq!(error.cause(), Cause::Place(Reason::NoServer));
    let error = error.to_string();
    for word in ["6.2.14", "7.0.15", "RDB version 10"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(scratch.info("role"), "master");
}

/// A server that loads slowly, so that something can happen meanwhile.
const SLOW: &[&str] = &["save \"\"", "key-load-delay 50", "loading-process-events-interval-bytes 1024"];

/// A server that ends in the middle is an error, and no proof.
#[test]
fn a_server_that_ends_is_an_error() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("many", 100_000, 25);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let mut scratch = Redis::start_with(RedisVersion::V70, SLOW);
    let pid = scratch.pid();
    let given = Given::redis(&scratch);
    let error = std::thread::scope(|scope| {
        let proving = scope.spawn(|| given.prove(&workspace));
        wait_for("the server to load", SOON, || scratch.log().contains("MASTER <-> REPLICA sync").then_some(()));
        std::thread::sleep(Duration::from_millis(300));
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid as i32).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        proving.join().unwrap().unwrap_err()
    });
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
    assert_eq!(error.cause(), Cause::Place(Reason::ServerLost));
    scratch.kill();
}

/// A folder that cannot be written, memory that does not suffice: the server does not load the dump, and that is its own affair.
#[test]
fn a_place_that_is_not_fit_is_no_verdict() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("many", 20_000, 26);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let scratch = Redis::start_without_rights(RedisVersion::V70, NO_FILES);
    let folder = scratch.folder();
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    let error = Given::redis(&scratch).prove(&workspace).unwrap_err();
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(error.cause(), Cause::Place(_)), "{error}");
    assert!(scratch.log().contains("Permission denied"), "{}", scratch.log());
}

/// Encodings are the throwaway server's own business: what is in a hash, a set, a sorted set or a list is the same.
#[test]
fn other_encodings_are_no_difference() {
    for (from, to) in [(RedisVersion::V70, RedisVersion::V70), (RedisVersion::V70, RedisVersion::V82)] {
        let source = Redis::start_with(from, DISKLESS);
        source.fill("types", 2, 27);
        source.command(&["HSET", "hash", "a", "1", "b", "2"]);
        assert_eq!(source.command(&["OBJECT", "ENCODING", "hash"]), "listpack");
        let workspace = initialised(Mode::Clear, &source);
        back_up(&workspace);
        let other = ["hash-max-listpack-entries 0", "zset-max-listpack-entries 0", "set-max-intset-entries 0"];
        let scratch = Redis::start_with(to, &[NO_FILES, &other, &["list-max-listpack-size 1"]].concat());
        let given = Given::redis(&scratch);
        let proof = given.proved(&workspace);
        assert_eq!(keys(&proof), source.keys());
        assert_eq!(scratch.command(&["OBJECT", "ENCODING", "hash"]), "hashtable", "another encoding than the source's");
    }
}

/// Keys whose time comes after the backup, and those whose time was over before and that nobody has removed: all are in the dump, and all are
/// in the proof.
#[test]
fn keys_that_expire_meanwhile_are_no_difference() {
    for (from, to) in [(RedisVersion::V62, RedisVersion::V70), (RedisVersion::V82, RedisVersion::V82)] {
        let source = Redis::start_with(from, DISKLESS);
        source.command(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
        for n in 0..200 {
            source.command(&["SET", &format!("over:{n}"), "value", "PX", "1"]);
            source.command(&["SET", &format!("soon:{n}"), "value", "PX", "2500"]);
        }
        source.command(&["SET", "stays", "value"]);
        if from == RedisVersion::V82 {
            source.command(&["HSET", "fields", "a", "1", "b", "2"]);
            source.command(&["HPEXPIRE", "fields", "2500", "FIELDS", "1", "a"]);
        }
        let workspace = initialised(Mode::Clear, &source);
        let held = source.keys();
        assert_eq!(back_up(&workspace)["rows"], held);
        source.command(&["DEBUG", "SET-ACTIVE-EXPIRE", "1"]);
        wait_for("them to be over", SOON, || (source.keys() < 10).then_some(()));
        let scratch = Redis::start_with(to, NO_FILES);
        let proof = Given::redis(&scratch).proved(&workspace);
        assert_eq!(keys(&proof), held);
    }
}
