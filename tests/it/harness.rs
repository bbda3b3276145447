//! The test support does what it promises: a proxy that silently let things pass would make every fault test green.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::support::{
    binary::Run,
    mode::{self, Identities, Mode},
    postgres::{Major, Postgres},
    proxy::{Action, Chunk, HttpProxy, Step, TcpProxy, Way},
    redis::{Redis, RedisVersion, ms_from_now},
    wait_for,
    workspace::{S3Place, Workspace},
};

#[test]
fn a_server_too_old_can_be_started_and_asks_for_its_password() {
    let mut server = Postgres::start_with(Major::V13, "log_statement = all");
    assert!(server.psql("postgres", "SHOW server_version").starts_with("13."));
    assert_eq!(server.psql("postgres", "SHOW max_prepared_transactions"), "5");
    assert!(server.log().contains("SHOW server_version"));
    let password = std::fs::read_to_string(server.password_file()).unwrap();
    assert_eq!(password.trim_end(), server.password());

    let mut wrong = server.psql_command("postgres");
    let output = wrong.env("PGPASSWORD", "template").args(["-c", "SELECT 1"]).output().unwrap();
    assert!(!output.status.success(), "a wrong password is let in");
    assert!(server.try_psql("postgres", "SELECT 1/0").unwrap_err().contains("division by zero"));

    server.psql("postgres", "CREATE TABLE kept AS SELECT 1 AS a");
    server.stop();
    assert!(server.try_psql("postgres", "SELECT 1").is_err());
    server.resume();
    assert_eq!(server.psql("postgres", "SELECT a FROM kept"), "1");
}

#[test]
fn a_server_and_its_folder_are_gone_when_dropped() {
    let server = Postgres::start(Major::V18);
    let (port, folder) = (server.port(), server.socket_folder());
    assert!(folder.exists());
    drop(server);
    assert!(!folder.exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn the_tcp_proxy_delays_cuts_and_refuses() {
    let server = Postgres::start(Major::V15);
    let proxy = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], server.port())));
    let through = |sql: &str| {
        let mut command = server.psql_command("postgres");
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &proxy.port().to_string(),
            "-d",
            "postgres",
            "-U",
            "postgres",
            "-c",
            sql,
        ]);
        let output = command.output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(through("SELECT 1").as_deref(), Some("1\n"));

    let called = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&called);
    proxy.before_connection(proxy.connections() + 1, move || {
        std::thread::sleep(Duration::from_millis(50));
        seen.store(true, Ordering::SeqCst);
    });
    assert_eq!(through("SELECT 2").as_deref(), Some("2\n"));
    assert!(called.load(Ordering::SeqCst), "the callback ran first");

    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| through("SELECT pg_sleep(60)"));
        let backends =
            || server.psql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep'");
        crate::support::wait_for("the query", Duration::from_secs(20), || (backends() == "1").then_some(()));
        proxy.cut_all();
        assert_eq!(waiting.join().unwrap(), None);
    });

    proxy.refuse(true);
    assert_eq!(through("SELECT 3"), None);
    proxy.refuse(false);
    assert_eq!(through("SELECT 4").as_deref(), Some("4\n"));
}

/// Answers each request with its own head and body as the body, one connection at a time.
fn echo() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&served);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, count) = (stream.unwrap(), Arc::clone(&count));
            std::thread::spawn(move || {
                while let Some(request) = read_message(&mut stream) {
                    count.fetch_add(1, Ordering::SeqCst);
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.len());
                    stream.write_all(&[head.as_bytes(), &request].concat()).unwrap();
                }
            });
        }
    });
    (address, served)
}

/// A head and as much body as its `Content-Length` says; `None` at the end or where it ends too early.
fn read_message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    let mut byte = [0];
    while !message.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        message.push(byte[0]);
    }
    let head = String::from_utf8(message.clone()).unwrap().to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    message.extend(body);
    Some(message)
}

fn ask(endpoint: &str, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(endpoint.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    read_message(&mut stream).map(|message| String::from_utf8(message).unwrap())
}

const PUT: &str =
    "PUT /bucket/key?x=1 HTTP/1.1\r\nHost: signed.example:1\r\nX-Odd-Case: Kept\r\nContent-Length: 4\r\n\r\nbody";
const GET: &str = "GET /bucket/key HTTP/1.1\r\nHost: signed.example:1\r\n\r\n";

#[test]
fn the_http_proxy_forwards_unchanged_and_counts() {
    let (server, _) = echo();
    let proxy = HttpProxy::start(server);
    let answer = ask(&proxy.endpoint(), PUT).unwrap();
    for kept in
        ["PUT /bucket/key?x=1 HTTP/1.1\r\n", "Host: signed.example:1\r\n", "X-Odd-Case: Kept\r\n", "\r\n\r\nbody"]
    {
        assert!(answer.contains(kept), "{kept:?} is not in {answer}");
    }
    ask(&proxy.endpoint(), GET).unwrap();
    ask(&proxy.endpoint(), PUT).unwrap();
    assert_eq!(proxy.counts(), [("GET".to_owned(), 1), ("PUT".to_owned(), 2)].into());
    assert_eq!(proxy.writes(), 2);
    let last = proxy.requests().pop().unwrap();
    assert_eq!((last.number, last.path.as_str(), last.bytes), (2, "/bucket/key?x=1", 4));
}

#[test]
fn the_http_proxy_gets_in_the_way_of_writes() {
    let (server, served) = echo();
    let proxy = HttpProxy::start(server);
    let served = || served.load(Ordering::SeqCst);

    proxy.before_write(|write| match write.number {
        1 => Action::Answer(503),
        2 => Action::Drop,
        3 => Action::Delay(Duration::from_millis(20)),
        4 => Action::Block,
        _ => Action::Pass,
    });
    assert!(ask(&proxy.endpoint(), PUT).unwrap().starts_with("HTTP/1.1 503"));
    assert_eq!(ask(&proxy.endpoint(), PUT), None);
    assert_eq!(served(), 0, "the server saw neither");
    assert!(ask(&proxy.endpoint(), PUT).unwrap().starts_with("HTTP/1.1 200"));
    let mut blocked = TcpStream::connect(proxy.endpoint().strip_prefix("http://").unwrap()).unwrap();
    blocked.write_all(PUT.as_bytes()).unwrap();
    blocked.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(blocked.read(&mut [0]).is_err(), "no answer, and no end either");
    assert_eq!(served(), 1);

    proxy.reset();
    proxy.after_write(|_| Action::Drop);
    assert_eq!(ask(&proxy.endpoint(), PUT), None);
    assert_eq!(served(), 2, "the write was done, its answer is lost");
    assert!(ask(&proxy.endpoint(), GET).is_some(), "reads pass");
}

#[test]
fn the_http_proxy_cuts_bodies() {
    let (server, _) = echo();
    let proxy = HttpProxy::start(server);
    proxy.on_read(|read| if read.number == 1 { Action::CutBody(10) } else { Action::Pass });
    let mut stream = TcpStream::connect(proxy.endpoint().strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(GET.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nGET /bucke"), "{answer}");
    assert!(ask(&proxy.endpoint(), GET).unwrap().ends_with("\r\n\r\n"), "the second one is whole");
}

#[test]
fn a_workspace_writes_its_configuration() {
    let server = Postgres::start(Major::V15);
    let place = S3Place {
        endpoint: "http://127.0.0.1:1".into(),
        bucket: "bucket".into(),
        prefix: "a/b".into(),
        access_key_id: "id".into(),
        secret_access_key: "secret".into(),
    };
    let mut workspace = Workspace::s3(&place).postgres(&server, &["altlas"]);
    workspace.set("source.0.databases", vec!["changed"]);
    let written: toml::Table = std::fs::read_to_string(workspace.config()).unwrap().parse().unwrap();
    assert_eq!(written["repository"]["url"].as_str(), Some("s3://bucket/a/b"));
    assert_eq!(written["source"][0]["databases"][0].as_str(), Some("changed"));
    assert_eq!(written["source"][0]["name"].as_str(), Some("database"));
    assert!(!workspace.config().starts_with(workspace.repository_folder()));
}

#[test]
fn an_encrypted_workspace_and_its_copy_have_identity_files_of_their_own() {
    let workspace = Workspace::folder().mode(Mode::Encrypted);
    std::fs::create_dir(workspace.repository_folder()).unwrap();
    let copy = workspace.copy();
    assert_ne!(copy.identity_file(), workspace.identity_file());
    for workspace in [workspace, copy] {
        let written: toml::Table = std::fs::read_to_string(workspace.config()).unwrap().parse().unwrap();
        let encryption = &written["repository"]["encryption"];
        let Identities { data, catalog } = Identities::shared();
        assert_eq!(workspace.recipients(), [data.to_public().to_string()]);
        assert_eq!(encryption["recipients"][0].as_str(), Some(&workspace.recipients()[0][..]));
        for (key, path, identity) in [
            ("identity_file", workspace.identity_file(), data),
            ("catalog_identity_file", workspace.catalog_identity_file(), catalog),
        ] {
            assert_eq!(encryption[key].as_str(), path.to_str());
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            let written = std::fs::read_to_string(&path).unwrap();
            assert_eq!(written.trim_end(), mode::identity_file(identity));
        }
    }
    assert_eq!(Workspace::folder().mode(Mode::Clear).recipients(), [""; 0]);
}

#[test]
fn the_mode_of_objects_is_seen_by_name_and_bytes() {
    let Identities { data, catalog } = Identities::shared();
    let (to_data, to_catalog) = (data.to_public(), catalog.to_public());
    let encrypted = |to: &[&dyn age::Recipient]| {
        let mut stored = Vec::new();
        let encryptor = age::Encryptor::with_recipients(to.iter().copied()).unwrap();
        let mut writer = encryptor.wrap_output(&mut stored).unwrap();
        writer.write_all(b"plain").unwrap();
        writer.finish().unwrap();
        stored
    };
    let (to_one, to_both) = (encrypted(&[&to_data]), encrypted(&[&to_data, &to_catalog]));
    assert_eq!(mode::opened(data, &to_both).as_deref(), Some(&b"plain"[..]));

    let (head, keys, part) = ("backups/b/head.json", "epochs/e/keys.json", "epochs/e/parts/0a/x.zst");
    let seen = |mode: Mode, objects: &[(&str, &Vec<u8>)]| {
        let objects = objects.iter().map(|(key, bytes)| (key.to_string(), bytes.to_vec())).collect();
        std::panic::catch_unwind(|| mode.assert_objects(&objects)).is_ok()
    };
    let json = b"{}".to_vec();
    let (keys_age, part_age) = (format!("{keys}.age"), format!("{part}.age"));
    assert!(seen(Mode::Clear, &[(head, &json), (keys, &json), (part, &json)]));
    assert!(seen(Mode::Encrypted, &[(head, &json), (&keys_age, &to_both), (&part_age, &to_one)]));
    for (mode, key, bytes) in [
        (Mode::Clear, &keys_age[..], &json),
        (Mode::Clear, part, &to_one),
        (Mode::Encrypted, keys, &to_both),
        (Mode::Encrypted, &keys_age, &json),
        // Of which the catalogue identity opens too little, or too much.
        (Mode::Encrypted, &keys_age, &to_one),
        (Mode::Encrypted, &part_age, &to_both),
        (Mode::Encrypted, &format!("{head}.age"), &to_both),
    ] {
        assert!(!seen(mode, &[(key, bytes)]), "{mode:?}: {key}");
    }
}

#[test]
fn a_run_is_whole_and_has_a_deadline() {
    let output = Run::new(&["--version"]).output();
    assert!(output.code.is_some(), "{}", output.text());
    let running = Run::new(&["--version"]).spawn();
    let _ = running.kill9();
}

#[test]
fn the_proxy_passes_what_it_is_not_told_to_cut() {
    let server = Postgres::start(Major::V15);
    let proxy = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], server.port())));
    let ask = |sql: &str| {
        let mut command = server.psql_command("postgres");
        command.args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-d",
            "postgres",
            "-p",
            &proxy.port().to_string(),
            "-c",
            sql,
        ]);
        command.output().unwrap().status.success()
    };
    let on = |needle: &'static str, answer: Chunk| {
        proxy.on_upstream(move |chunk| {
            let found = chunk.windows(needle.len()).any(|window| window == needle.as_bytes());
            if found { answer } else { Chunk::Pass }
        });
    };
    on("CREATE TABLE before", Chunk::CutBefore);
    assert!(ask("SELECT 1"));
    assert!(!ask("CREATE TABLE before ()"));
    on("CREATE TABLE after", Chunk::CutAfter);
    assert!(!ask("CREATE TABLE after ()"));
    wait_for("the statement", Duration::from_secs(60), || server.try_psql("postgres", "SELECT FROM after").ok());
    assert!(server.try_psql("postgres", "SELECT FROM before").is_err());
}

#[test]
fn each_redis_starts_is_filled_told_and_gone() {
    for version in RedisVersion::ALL {
        let mut server = Redis::start(version);
        assert!(server.info("redis_version").starts_with(version.number()), "{version:?}");
        server.fill("types", 1, 7);
        // Long enough for two looks; what is about to expire is in neither.
        let horizon = ms_from_now(Duration::from_secs(300));
        let first = server.digest_beyond(horizon, version);
        first.assert_same(&server.digest_beyond(horizon, version));
        assert!(first.keys() > 250, "{first:?}");
        assert!((0..16).all(|db| first.keys_in(db) > 2), "16 databases");
        assert_eq!(std::fs::metadata(server.password_file()).unwrap().mode() & 0o777, 0o600);

        // A difference is seen, and where.
        server.command(&["SET", "string:1", "another"]);
        let other = server.digest_beyond(horizon, version);
        assert_ne!(first, other);
        assert_eq!(first.keys(), other.keys());
        server.command(&["SET", "string:1", "a"]);

        // What it saves on its way out is there again.
        server.stop();
        assert!(server.files().contains(&"dump.rdb".to_owned()));
        assert!(server.try_command(&["PING"]).is_err());
        server.resume();
        first.assert_same(&server.digest_beyond(horizon, version));

        let (pid, folder) = (server.pid(), server.folder());
        assert!(std::fs::exists(format!("/proc/{pid}")).unwrap());
        drop(server);
        assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
        assert!(!folder.exists());
    }
}

#[test]
fn a_redis_user_may_what_its_rules_say() {
    let server = Redis::start(RedisVersion::V70);
    server.acl_user("little", "its-password", "resetkeys -@all +ping");
    let client = redis::Client::open(format!("redis://little:its-password@127.0.0.1:{}/", server.port())).unwrap();
    let mut connection = client.get_connection().unwrap();
    redis::cmd("PING").exec(&mut connection).unwrap();
    let refused = redis::cmd("INFO").exec(&mut connection).unwrap_err();
    assert_eq!(refused.code(), Some("NOPERM"));
    assert_eq!(server.setting("repl-timeout"), "60");
}

#[test]
fn a_redis_without_rights_cannot_write_what_is_not_its_own() {
    let server = Redis::start_without_rights(RedisVersion::V70, &[]);
    server.command(&["SAVE"]);
    assert_eq!(server.files(), ["dump.rdb"]);
    std::fs::set_permissions(server.folder(), std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    assert!(server.try_command(&["SAVE"]).is_err());
}

#[test]
fn what_redis_forked_ends_with_it() {
    let mut server = Redis::start_with(RedisVersion::V70, &["rdb-key-save-delay 1000000"]);
    server.command(&["SET", "a", "1"]);
    server.command(&["BGSAVE"]);
    assert_eq!(server.children(), 1);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.pid())).unwrap();
    server.kill();
    wait_for("the child to end", Duration::from_secs(20), || {
        (!std::fs::exists(format!("/proc/{}", children.trim())).unwrap()).then_some(())
    });
}

#[test]
fn the_tcp_proxy_changes_splits_and_cuts_bytes() {
    let (server, _) = echo();
    let proxy = TcpProxy::start(server);
    let through = || ask(&format!("http://127.0.0.1:{}", proxy.port()), GET);
    assert!(through().unwrap().contains("/bucket/key"));

    proxy.on_bytes(|way, _, mut bytes| {
        if way == Way::Up {
            let place = bytes.windows(3).position(|word| word == b"key").unwrap();
            bytes[place] = b'K';
        }
        let rest = bytes.split_off(5);
        vec![Step::Send(bytes), Step::Wait(Duration::from_millis(20)), Step::Send(rest)]
    });
    assert!(through().unwrap().contains("/bucket/Key"));

    proxy.on_bytes(|way, _, mut bytes| {
        bytes.truncate(12);
        if way == Way::Up { vec![Step::Send(bytes), Step::Cut] } else { vec![] }
    });
    assert_eq!(through(), None);
    let (up, down) = proxy.bytes();
    assert_eq!(up, 2 * GET.len() as u64 + 12);
    assert!(down > 0);

    proxy.reset();
    assert!(through().unwrap().contains("/bucket/key"));
}
