//! The same for Redis: no key, no value, no password.

use super::{
    files,
    search::{Class, Evidence, Needle, OnPurpose, Search},
};
use crate::support::{
    binary::Run,
    mode::Mode,
    redis::{Redis, RedisVersion},
    workspace::Workspace,
};

const SOURCE_PASSWORD: &str = "pw-Axolotl-4711-Quincunx";
const TARGET_PASSWORD: &str = "pw-Bandersnatch-0815-Rumpus";
const WORDS: [&str; 8] = [
    "key-of-Xylophage",
    "value-of-Taradiddle",
    "field-of-Widdershins",
    "member-of-Oubliette",
    "group_of_Zymurgy",
    "consumer_of_Camembert",
    "snollygoster_library",
    "pending-of-Brachiosaur",
];

fn filled() -> Redis {
    let lines = ["save \"\"", "repl-diskless-sync-delay 0", "rdbcompression no"];
    let server = Redis::start_with(RedisVersion::V70, &lines);
    let [key, value, field, member, group, consumer, library, pending] = WORDS;
    server.command(&["SET", key, value]);
    server.command(&["HSET", "a-hash", field, value]);
    server.command(&["ZADD", "a-set", "1", member]);
    server.command(&["XADD", "a-stream", "*", "name", pending]);
    server.command(&["XGROUP", "CREATE", "a-stream", group, "0"]);
    server.command(&["XREADGROUP", "GROUP", group, consumer, "STREAMS", "a-stream", ">"]);
    let code = format!("#!lua name={library}\nredis.register_function('f', function() return 1 end)");
    server.command(&["FUNCTION", "LOAD", &code]);
    server.acl_user("backup", SOURCE_PASSWORD, "~* +@all");
    server
}

fn see(run: Run, what: &str, seen: &mut Vec<Evidence>) {
    let output = run.output();
    seen.push(Evidence { at: what.to_owned(), bytes: output.text().into_bytes(), on_purpose: OnPurpose::default() });
}

/// Everything that can be said of a backup and a restore, also of those that fail.
fn tour(workspace: &mut Workspace, source: &Redis, seen: &mut Vec<Evidence>) {
    let target = Redis::start_with(RedisVersion::V70, &["save \"\"", "repl-diskless-sync-delay 0"]);
    target.acl_user("restore", TARGET_PASSWORD, "~* +@all");
    target.acl_user("may_not", TARGET_PASSWORD, "~* +@all -restore");
    let old = Redis::start(RedisVersion::V62);
    let file = workspace.path("dump.rdb").display().to_string();
    for verbosity in [&["-v", "-v"][..], &["--json", "-v", "-v"]] {
        let into = |url: &str| format!("cache={url}");
        let (new, denied, older, nowhere) = (
            into(&target.url_as("restore")),
            into(&target.url_as("may_not")),
            into(&old.url()),
            into("redis://127.0.0.1:1"),
        );
        for arguments in [
            &["doctor"][..],
            &["backup"],
            &["list"],
            &["show", "latest"],
            &["verify", "latest", "--level", "content"],
            &["restore", "latest", "--dry-run", "--target", &new],
            &["restore", "latest", "--yes", "--target", &denied],
            &["restore", "latest", "--yes", "--target", &new],
            &["restore", "latest", "--yes", "--target", &new],
            &["restore", "latest", "--yes", "--overwrite", "--target", &new],
            &["restore", "latest", "--yes", "--target", &older],
            &["restore", "latest", "--yes", "--target", &nowhere],
            &["restore", "latest", "--yes", "--to-rdb", &file],
            &["restore", "latest", "--yes", "--to-rdb", &file],
        ] {
            let all = [arguments, verbosity].concat();
            let run = workspace.run(&all).env("ALTLAS_BACKUP_TARGET_CACHE_PASSWORD", TARGET_PASSWORD);
            see(run, &all.join(" "), seen);
        }
        target.command(&["FLUSHALL"]);
        target.command(&["FUNCTION", "FLUSH"]);
        std::fs::remove_file(&file).unwrap();
    }
    let rightly = workspace.table["source"][0]["password_file"].clone();
    let wrong = workspace.secret("wrong", "pw-wrong-Rigmarole-77");
    workspace.set("source.0.password_file", wrong.display().to_string());
    see(workspace.run(&["backup", "-v", "-v"]), "a wrong password", seen);
    see(workspace.run(&["doctor", "-v", "-v"]), "a wrong password", seen);
    workspace.set("source.0.password_file", rightly);
    source.command(&["ACL", "SETUSER", "backup", "-psync"]);
    see(workspace.run(&["backup", "-v", "-v"]), "without PSYNC", seen);
    source.command(&["ACL", "SETUSER", "backup", "+psync"]);
    // A server that does not know AUTH would repeat the password in its error.
    let mut nameless = Redis::prepare(RedisVersion::V70, &["rename-command AUTH \"\""]);
    nameless.resume_without_waiting();
    std::thread::sleep(std::time::Duration::from_secs(1));
    workspace.set("source.0.url", format!("redis://127.0.0.1:{}", nameless.port()));
    see(workspace.run(&["backup", "-v", "-v"]), "a server without AUTH", seen);
    workspace.set("source.0.url", source.url());
}

#[test]
fn nothing_tells_what_a_redis_holds() {
    let needles = || {
        let words = WORDS.map(|word| Needle::new(Class::Value, word, word));
        let passwords = [SOURCE_PASSWORD, TARGET_PASSWORD, "pw-wrong-Rigmarole-77"];
        words.into_iter().chain(passwords.map(|word| Needle::new(Class::Secret, word, word))).collect()
    };
    let search = Search::new(needles());
    let source = filled();
    for mode in [Mode::Encrypted, Mode::Clear] {
        let mut workspace = Workspace::folder().mode(mode);
        let password = workspace.secret("source-password", SOURCE_PASSWORD);
        workspace = workspace.redis_as("cache", &source.url(), &password);
        workspace.set("source.0.username", "backup");
        workspace.run(&["init"]).ok();
        let mut seen = Vec::new();
        tour(&mut workspace, &source, &mut seen);
        assert!(seen.len() > 30 && seen.iter().all(|evidence| !evidence.bytes.is_empty()));
        let objects: Vec<Evidence> = files(&workspace.repository_folder())
            .into_iter()
            .map(|(name, bytes)| Evidence {
                at: format!("object {name}"),
                bytes: [name.as_bytes(), &bytes].concat(),
                on_purpose: OnPurpose::default(),
            })
            .collect();
        let leaks = |from: &[Evidence]| from.iter().flat_map(|one| search.leaks(one)).collect::<Vec<String>>();
        assert_eq!(leaks(&seen), Vec::<String>::new(), "{mode:?}");
        let stored = leaks(&objects);
        match mode {
            Mode::Encrypted => assert_eq!(stored, Vec::<String>::new()),
            // In clear each is found, or the search would not have found a leak either.
            Mode::Clear => {
                for word in WORDS {
                    assert!(
                        stored.iter().any(|leak| leak.contains(word)),
                        "`{word}` is not found in clear: {stored:?}"
                    );
                }
            }
        }
    }
}
