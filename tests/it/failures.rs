//! What goes wrong is said: one clear error that names the thing, a next step where an operator can take one, the right
//! exit code, nothing recorded, and nobody left behind on the server. Each case runs twice, for people and with `--json`.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    binary::{Output, Run},
    free_port,
    postgres::{Major, Postgres},
    process,
    proxy::{Action, Chunk, HttpProxy, TcpProxy},
    s3::{BlockingS3, S3Kind},
    temp_folder, tools, wait_for,
    workspace::{S3Place, Workspace},
};

/// How long something that is on its way may take.
const SOON: Duration = Duration::from_secs(60);

/// What a failure must look like: its exit code and kind, words of its message, and words of its hint. An empty hint asks
/// for none.
struct Failure<'a> {
    code: i32,
    kind: &'a str,
    words: &'a [&'a str],
    hint: &'a str,
}

impl Failure<'_> {
    /// Of a run for people: one `error:` line, a `hint:` line, and nothing on stdout.
    #[track_caller]
    fn check_text(&self, output: Output) {
        let output = output.assert_error(self.code, self.words);
        assert_eq!(output.stdout, "", "stdout\n{}", output.text());
        let hint = output.stderr.lines().find_map(|line| line.strip_prefix("hint: ")).unwrap_or_default();
        assert!(hint.contains(self.hint), "`{}` is not in the hint\n{}", self.hint, output.text());
    }

    /// Of a run with `--json`: one document and nothing else on stdout.
    #[track_caller]
    fn check_json(&self, output: Output) {
        let output = output.assert_error(self.code, self.words);
        let document = output.json();
        let keys: Vec<&String> = document.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["error"], "{}", output.text());
        let error = &document["error"];
        assert_eq!(error["kind"], self.kind, "{}", output.text());
        let message = error["message"].as_str().unwrap().to_lowercase();
        for word in self.words {
            let said = message.contains(&word.to_lowercase());
            assert!(said || self.hint.contains(word), "`{word}` is not in the message\n{}", output.text());
        }
        let hint = error["hint"].as_str().unwrap_or_default();
        assert!(hint.contains(self.hint), "`{}` is not in the hint\n{}", self.hint, output.text());
    }

    /// Runs it both ways, one after the other.
    #[track_caller]
    fn of(&self, mut run: impl FnMut() -> Run) {
        self.check_text(run().deadline(SOON).output());
        self.check_json(run().argument("--json").deadline(SOON).output());
    }

    /// Runs it both ways at once: for what takes its time to be given up.
    #[track_caller]
    fn of_both_at_once(&self, run: impl Fn() -> Run) {
        let (text, json) = (run().spawn(), run().argument("--json").spawn());
        self.check_text(text.wait());
        self.check_json(json.wait());
    }
}

/// The repository is readable and holds no backup, not even an unfinished one.
#[track_caller]
fn assert_nothing_recorded(workspace: &Workspace) {
    assert_eq!(listed(workspace), json!([]));
}

#[track_caller]
fn listed(workspace: &Workspace) -> Value {
    workspace.run(&["list", "--json"]).ok().json()["backups"].clone()
}

/// No session of ours is left on the server.
#[track_caller]
fn assert_nobody_left(server: &Postgres) {
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'altlas-backup'";
    wait_for("our sessions to end", SOON, || (server.psql("postgres", ours) == "0").then_some(()));
}

/// A database with one small table.
fn create_small(server: &Postgres, name: &str) {
    server.psql("postgres", &format!("CREATE DATABASE {name}"));
    server.psql(name, "CREATE TABLE small AS SELECT g AS a FROM generate_series(1, 100) g");
}

/// An initialised repository in a folder, with this source.
fn initialised(server: &Postgres, databases: &[&str]) -> Workspace {
    let workspace = Workspace::folder().postgres(server, databases);
    workspace.run(&["init"]).ok();
    workspace
}

fn before(server: &Postgres) -> TcpProxy {
    TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], server.port())))
}

/// Puts a proxy between the program and its first source.
fn through(workspace: &mut Workspace, proxy: &TcpProxy) {
    workspace.set("source.0.url", format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port()));
}

/// A `psql` that runs beside a test and is killed at the end of it.
struct Beside(Child);

impl Beside {
    fn start(server: &Postgres, database: &str, sql: &str) -> Self {
        let mut command = server.psql_command(database);
        // Commands from stdin, which stays open: what they begin is not ended.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), format!("{sql}\n").as_bytes()).unwrap();
        Self(child)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// --- Configuration -----------------------------------------------------------------------------------------------------

#[test]
fn mistakes_in_the_configuration() {
    let config = |code, words: &[&str], hint: &str, run: &dyn Fn() -> Run| {
        Failure { code, kind: "config", words, hint }.of(run);
    };
    let workspace = |path: &str, value: toml::Value| {
        let mut workspace = Workspace::folder().postgres_as(
            "database",
            "postgres://backup@127.0.0.1:1/postgres",
            Path::new("/nonexistent"),
            &["*"],
        );
        workspace.set(path, value);
        workspace
    };
    config(2, &["no configuration file", "./altlas-backup.toml"], "--config", &|| Run::new(&["backup"]));
    config(2, &["/nonexistent/c.toml", "No such file"], "", &|| Run::new(&["backup"]).config("/nonexistent/c.toml"));
    let env = || Run::new(&["backup"]).env("ALTLAS_BACKUP_CONFIG", "/nonexistent/d.toml");
    config(2, &["/nonexistent/d.toml"], "", &env);

    let unknown = workspace("repository.urll", "file:///tmp".into());
    config(2, &["altlas-backup.toml:", "`repository.urll`", "unknown key"], "did you mean `repository.url`?", &|| {
        unknown.run(&["backup"])
    });
    let unknown = workspace("source.0.pasword_file", "x".into());
    config(2, &["`source[0].pasword_file`"], "`source.password_file`", &|| unknown.run(&["backup"]));
    let bad = workspace("source.0.workers", 0.into());
    config(2, &["altlas-backup.toml:", "`source[0].workers`", "16"], "", &|| bad.run(&["backup"]));
    let bad = workspace("source.0.lock_timeout", "soon".into());
    config(2, &["`source[0].lock_timeout`"], "", &|| bad.run(&["backup"]));
    let bad = workspace("repository.url", "ftp://host/x".into());
    config(2, &["`repository.url`"], "s3://", &|| bad.run(&["list"]));
    let bad = workspace("source.0.name", 5.into());
    config(2, &["`source[0].name`", "expected", "integer"], "", &|| bad.run(&["backup"]));

    // Both are told, and told apart.
    let mut two = workspace("source.0.workers", 99.into());
    two.set("repository.grase", "72h");
    config(2, &["2 problems", "`source[0].workers`", "`repository.grase`"], "repository.grace", &|| {
        two.run(&["backup"])
    });

    // A secret that is not there.
    let missing = workspace("source.0.tls", "disable".into());
    missing.run(&["init"]).ok();
    config(2, &["/nonexistent", "`source[0].password_file`"], "", &|| missing.run(&["backup"]));
    assert_nothing_recorded(&missing);

    // No such source, wrong arguments.
    config(2, &["`other`"], "database", &|| missing.run(&["backup", "--source", "other"]));
    missing.run(&["backup", "--sauce", "x"]).output().assert_code(2);
    let usage = missing.run(&["--json", "backup", "--sauce", "x"]).output().assert_code(2);
    assert_eq!(usage.json()["error"]["kind"], "usage", "{}", usage.text());
}

#[test]
fn a_password_in_a_url_is_refused_and_not_repeated() {
    const SECRET: &str = "hunter2";
    let refused = Failure { code: 2, kind: "config", words: &["secret"], hint: "" };
    let check = |run: &dyn Fn() -> Run, words: &[&str]| {
        refused.of(run);
        let output = run().output().assert_error(2, words);
        assert!(!output.text().replace(&shown_command(&output), "").contains(SECRET), "{}", output.text());
    };
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let mut workspace = initialised(&server, &["one"]);
    workspace.run(&["backup"]).ok();
    let target = format!("database=postgres://postgres:{SECRET}@127.0.0.1:5432/postgres");
    check(&|| workspace.run(&["restore", "latest", "--target", &target]), &["--target"]);
    let repository = format!("s3://key:{SECRET}@bucket/prefix");
    check(&|| workspace.run(&["list", "--repository", &repository]), &["`--repository`"]);

    workspace.set("source.0.url", format!("postgres://postgres:{SECRET}@127.0.0.1:5432/postgres"));
    check(&|| workspace.run(&["backup"]), &["`source[0].url`", "password_file"]);
    workspace.set("source.0.url", format!("postgres://postgres@127.0.0.1/postgres?password={SECRET}"));
    check(&|| workspace.run(&["backup"]), &["`source[0].url`"]);
    workspace.set("source.0.url", server.url("postgres"));
    workspace.set("repository.url", format!("s3://key:{SECRET}@bucket/prefix"));
    check(&|| workspace.run(&["list"]), &["`repository.url`"]);
}

/// The first line of an output's text, which repeats the arguments.
fn shown_command(output: &Output) -> String {
    output.text().lines().next().unwrap_or_default().to_owned()
}

// --- The server and its programs ---------------------------------------------------------------------------------------

#[test]
fn servers_that_cannot_be_used() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let mut workspace = initialised(&server, &["one"]);
    let source = |code, words: &[&str], hint: &str, run: &dyn Fn() -> Run| {
        Failure { code, kind: "source", words, hint }.of(run);
    };
    let place = format!("127.0.0.1:{}", server.port());

    let wrong = workspace.secret("wrong", "not-the-password");
    let right = workspace.secret("right", server.password());
    workspace.set("source.0.password_file", wrong.display().to_string());
    let words = ["source `database`", &place, "role `postgres`", "password authentication failed"];
    source(1, &words, "`password_file`", &|| workspace.run(&["backup"]));
    assert_nothing_recorded(&workspace);

    // No password at all, and a role that is not there.
    workspace.table["source"][0].as_table_mut().unwrap().remove("password_file");
    source(1, &["source `database`", &place, "password"], "`password_file`", &|| workspace.run(&["backup"]));
    workspace.set("source.0.password_file", right.display().to_string());
    workspace.set("source.0.url", format!("postgres://nobody@{place}/postgres"));
    source(1, &["role `nobody`", "password authentication failed"], "url", &|| workspace.run(&["backup"]));

    let closed = format!("127.0.0.1:{}", free_port());
    workspace.set("source.0.url", format!("postgres://postgres@{closed}/postgres"));
    source(1, &["source `database`", "cannot connect", &closed, "refused"], "port", &|| workspace.run(&["backup"]));
    workspace.set("source.0.url", format!("postgres://postgres@nowhere.invalid:{}/postgres", server.port()));
    workspace.set("source.0.tls", "disable");
    source(1, &["cannot connect", "nowhere.invalid"], "host", &|| workspace.run(&["backup"]));

    // The server offers no TLS, and off loopback it would be asked for.
    workspace.set("source.0.url", server.url("postgres"));
    workspace.set("source.0.tls", "verify-full");
    source(1, &["TLS", &place], "`tls`", &|| workspace.run(&["backup"]));
    workspace.set("source.0.tls", "disable");

    let old = Postgres::start(Major::V13);
    create_small(&old, "one");
    let old_workspace = initialised(&old, &["one"]);
    let words = ["PostgreSQL 13.", "14 to 18"];
    source(1, &words, "version of altlas-backup", &|| old_workspace.run(&["backup"]));
    assert_nothing_recorded(&old_workspace);

    // As a target, too.
    workspace.run(&["backup"]).ok();
    let target = format!("database={}", old.url("postgres"));
    source(1, &words, "version of altlas-backup", &|| {
        let run = workspace.run(&["restore", "latest", "--yes", "--target", &target]);
        run.env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", old.password())
    });
    let databases = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database WHERE NOT datistemplate";
    assert_eq!(old.psql("postgres", databases), "one,postgres");
    assert_nobody_left(&server);
    assert_nobody_left(&old);
}

#[test]
fn programs_that_are_missing_or_of_another_major() {
    let (server, newer) = (Postgres::start(Major::V15), Postgres::start(Major::V18));
    create_small(&server, "one");
    create_small(&newer, "one");
    let empty = temp_folder();
    let source = |words: &[&str], hint: &str, run: &dyn Fn() -> Run| {
        Failure { code: 1, kind: "source", words, hint }.of(run);
    };

    let mut workspace = initialised(&server, &["one"]);
    let empty_name = empty.path().display().to_string();
    workspace.set("source.0.tools_dir", empty_name.clone());
    let words = ["`pg_dump` of PostgreSQL 15", "not found", empty_name.as_str()];
    source(&words, "postgresql-client-15", &|| workspace.run(&["backup"]));
    // One of the two programs alone is not enough.
    std::os::unix::fs::symlink(tools::client_program(Major::V15, "pg_dump"), empty.path().join("pg_dump")).unwrap();
    source(&["`pg_dumpall`", &empty_name], "`tools_dir`", &|| workspace.run(&["backup"]));

    let other = tools::client_folder(Major::V18).display().to_string();
    workspace.set("source.0.tools_dir", other.clone());
    let words = ["pg_dump", other.as_str(), "PostgreSQL 18", "of 15"];
    source(&words, "programs of PostgreSQL 15", &|| workspace.run(&["backup"]));
    assert_nothing_recorded(&workspace);

    // By PATH alone: Debian's folder of 18 is not there.
    assert!(!Path::new("/usr/lib/postgresql/18").exists(), "Debian's PostgreSQL 18 would be found beside PATH");
    let workspace = initialised(&newer, &["one"]);
    let nothing = temp_folder();
    let (nothing, fifteen) = (nothing.path(), tools::client_folder(Major::V15));
    source(&["`pg_dump` of PostgreSQL 18", &nothing.display().to_string()], "postgresql-client-18", &|| {
        workspace.run(&["backup"]).path(&[nothing])
    });
    source(&["pg_dump", "PostgreSQL 15", "of 18"], "programs of PostgreSQL 18", &|| {
        workspace.run(&["backup"]).path(&[&fifteen])
    });
    assert_nothing_recorded(&workspace);
    // Behind one of another major, the right one is still found.
    workspace.run(&["backup"]).path(&[&fifteen, &tools::client_folder(Major::V18)]).ok();
}

// --- What the server holds ---------------------------------------------------------------------------------------------

#[test]
fn a_role_that_may_not_read_everything() {
    let server = Postgres::start(Major::V15);
    server.psql("postgres", "CREATE ROLE reader LOGIN PASSWORD 'reader-password'");
    server.psql("postgres", "CREATE DATABASE one");
    server.psql(
        "one",
        "CREATE TABLE open AS SELECT 1 AS a; CREATE TABLE secret AS SELECT 2 AS a; CREATE TABLE guarded AS SELECT 3 AS a; \
         CREATE SEQUENCE counter; CREATE SCHEMA closed; CREATE TABLE closed.inside AS SELECT 4 AS a; \
         GRANT SELECT ON open, guarded, closed.inside, counter TO reader; \
         GRANT SELECT (a) ON secret TO reader; \
         ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON guarded USING (a < 3)",
    );
    let mut workspace = Workspace::folder();
    let password = workspace.secret("reader", "reader-password");
    let url = format!("postgres://reader@127.0.0.1:{}/postgres", server.port());
    workspace = workspace.postgres_as("database", &url, &password, &["one"]);
    workspace.run(&["init"]).ok();
    let unreadable = |words: &[&str]| {
        let words = [&["source `database`", "role `reader`", "database `one`"], words].concat();
        let hint = "GRANT pg_read_all_data TO \"reader\"";
        Failure { code: 1, kind: "source", words: &words, hint }.of(|| workspace.run(&["backup"]));
        assert_nothing_recorded(&workspace);
    };

    unreadable(&["3 relations", "closed.inside", "public.guarded", "public.secret"]);
    server.psql("one", "GRANT USAGE ON SCHEMA closed TO reader; DROP POLICY few ON guarded");
    unreadable(&["2 relations", "public.guarded", "public.secret"]);
    server.psql("one", "ALTER TABLE guarded DISABLE ROW LEVEL SECURITY");
    unreadable(&["1 relation ", "public.secret"]);
    server.psql("one", "GRANT SELECT ON secret TO reader; REVOKE SELECT ON counter FROM reader");
    unreadable(&["1 relation ", "public.counter"]);
    server.psql("one", "GRANT SELECT ON counter TO reader");
    let done = workspace.run(&["backup"]).ok();
    assert!(done.stdout.contains("not covered: `database`: passwords of roles"), "{}", done.text());
    assert_nobody_left(&server);
}

#[test]
fn databases_that_are_not_there() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    server.psql("postgres", "CREATE DATABASE nobody_in ALLOW_CONNECTIONS false");
    let mut workspace = initialised(&server, &["one"]);
    let place = format!("127.0.0.1:{}", server.port());
    let failure = |words: &[&str], hint: &str, workspace: &Workspace| {
        Failure { code: 1, kind: "source", words, hint }.of(|| workspace.run(&["backup"]));
        assert_nothing_recorded(workspace);
    };

    workspace.set("source.0.databases", vec!["one", "altlas"]);
    failure(&["database `altlas` does not exist", &place], "`databases`", &workspace);
    workspace.set("source.0.databases", vec!["one", "app_*"]);
    failure(&["fits the pattern `app_*`", &place], "`databases`", &workspace);
    workspace.set("source.0.databases", vec!["nobody_in"]);
    failure(&["database `nobody_in`", "does not accept connections"], "ALLOW_CONNECTIONS", &workspace);
    workspace.set("source.0.url", server.url("gone"));
    failure(&["database `gone` does not exist"], "", &workspace);

    // Dropped between the listing, on the first connection, and the second one.
    workspace.set("source.0.databases", vec!["*"]);
    Failure { code: 1, kind: "source", words: &["database `a_short_life` does not exist"], hint: "`databases`" }.of(
        || {
            server.psql("postgres", "CREATE DATABASE a_short_life");
            let proxy = before(&server);
            through(&mut workspace, &proxy);
            let mut drop = server.psql_command("postgres");
            drop.args(["-c", "DROP DATABASE a_short_life"]);
            proxy.before_connection(2, move || assert!(drop.status().unwrap().success()));
            // It must outlive the run, which ends within the test.
            std::mem::forget(proxy);
            workspace.run(&["backup"])
        },
    );
    assert_nothing_recorded(&workspace);
    assert_nobody_left(&server);
}

#[test]
fn a_server_without_user_tables() {
    let server = Postgres::start(Major::V15);
    let mut workspace = initialised(&server, &["*"]);
    let failure =
        Failure { code: 1, kind: "empty", words: &["source `database`", "no user table"], hint: "allow_empty" };
    failure.of(|| workspace.run(&["backup"]));
    // Neither do functions and empty schemas make a backup of it.
    server
        .psql("postgres", "CREATE SCHEMA hollow; CREATE FUNCTION hollow.one() RETURNS int LANGUAGE sql AS 'SELECT 1'");
    failure.of(|| workspace.run(&["backup"]));
    assert_nothing_recorded(&workspace);

    workspace.set("source.0.allow_empty", true);
    let report = workspace.run(&["backup", "--json"]).ok().json();
    assert_eq!(report["sources"][0]["state"], "empty");
    assert_eq!(listed(&workspace)[0]["head"]["sources"][0]["state"], "empty");
}

/// Step 6 learns these; until then they are refused rather than left out.
#[test]
fn what_this_version_cannot_back_up() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let workspace = initialised(&server, &["one"]);
    let failure = |words: &[&str]| {
        let words = [&["database `one`", "does not back up"], words].concat();
        Failure { code: 1, kind: "source", words: &words, hint: "`databases`" }.of(|| workspace.run(&["backup"]));
        assert_nothing_recorded(&workspace);
    };
    server.psql("one", "SELECT lo_create(4711), lo_create(4712)");
    failure(&["2 large objects"]);
    server.psql("one", "SELECT lo_unlink(4711), lo_unlink(4712)");

    server.psql("one", "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw");
    server.psql("one", "CREATE FOREIGN TABLE far_away (line text) SERVER files OPTIONS (filename '/etc/hostname')");
    failure(&["foreign table public.far_away"]);
    server.psql("one", "DROP EXTENSION file_fdw CASCADE");

    // What pg_extension_config_dump notes, which only an extension's own script may call.
    server.psql(
        "one",
        "CREATE EXTENSION hstore; CREATE TABLE settings (name text); ALTER EXTENSION hstore ADD TABLE settings; \
         UPDATE pg_extension SET extconfig = ARRAY['settings'::regclass::oid], extcondition = ARRAY[''] WHERE extname = 'hstore'",
    );
    failure(&["configuration tables of extension `hstore`"]);
    server.psql("one", "DROP EXTENSION hstore");
    workspace.run(&["backup"]).ok();
}

// --- Locks, cuts, signals ----------------------------------------------------------------------------------------------

#[test]
fn a_table_that_is_locked() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    server.psql("one", "CREATE TABLE taken (); CREATE TABLE other ()");
    let mut workspace = initialised(&server, &["one"]);
    workspace.set("source.0.lock_timeout", "1s");
    let _holder = Beside::start(&server, "one", "BEGIN; LOCK TABLE taken IN ACCESS EXCLUSIVE MODE;");
    let held = "SELECT count(*) FROM pg_locks WHERE relation = 'taken'::regclass AND granted";
    wait_for("the lock", SOON, || (server.psql("one", held) == "1").then_some(()));

    let words = ["source `database`", "public.taken", "database `one`", "lock timeout"];
    Failure { code: 1, kind: "source", words: &words, hint: "`lock_timeout`" }.of(|| workspace.run(&["backup"]));
    let told = workspace.run(&["backup"]).output().assert_code(1);
    assert!(!told.stderr.contains("public.other"), "only the table that is locked is named\n{}", told.text());
    assert_nothing_recorded(&workspace);
    assert_nobody_left(&server);
}

/// Someone who waits for an exclusive lock makes everyone after him wait; the capture's own connections must not.
#[test]
fn someone_who_waits_for_an_exclusive_lock_does_not_stop_a_capture() {
    let server = Postgres::start(Major::V15);
    server.create_altlas("altlas", 300, 1);
    create_small(&server, "one");
    let mut workspace = initialised(&server, &["altlas", "one"]);
    workspace.set("source.0.workers", 1);
    workspace.set("source.0.lock_timeout", "2s");
    let proxy = before(&server);
    through(&mut workspace, &proxy);
    workspace.run(&["backup"]).ok();

    // The last connection but one reads the first database's rows; both databases are locked by then.
    let reader = proxy.connections() * 2 - 1;
    let waiting = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&waiting);
    let psql = |database: &str| {
        let mut command = server.psql_command(database);
        command.args(["-c", "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"]);
        command
    };
    let (started, waiters) = mpsc::channel();
    let mut count = psql("postgres");
    let mut exclusive = [("altlas", "public.last_files"), ("one", "public.small")].map(|(database, table)| {
        let mut command = server.psql_command(database);
        command.args(["-c", &format!("ALTER TABLE {table} ADD COLUMN added int")]).stdin(Stdio::null());
        command
    });
    proxy.before_connection(reader, move || {
        for command in &mut exclusive {
            started.send(command.spawn().unwrap()).unwrap();
        }
        wait_for("both to wait", SOON, || (count.output().unwrap().stdout == b"2\n").then_some(()));
        seen.store(true, Ordering::SeqCst);
    });
    let report = workspace.run(&["backup", "--json"]).deadline(SOON).ok().json();
    assert!(waiting.load(Ordering::SeqCst), "the proxy held the right connection back");
    assert_eq!(report["state"], "complete");
    assert_eq!(report["sources"][0]["reused_parts"], report["sources"][0]["parts"], "the same rows as before");
    workspace.run(&["verify", "--level", "content"]).ok();
    // They got what they waited for.
    for mut waiter in waiters {
        assert!(waiter.wait().unwrap().success());
    }
}

/// COPY goes by the names of now: tables that changed places after the snapshot must not be read for each other.
#[test]
fn schemas_that_change_names_under_a_capture_fail_it() {
    let server = Postgres::start(Major::V15);
    server.psql("postgres", "CREATE DATABASE one");
    server.psql("one", "CREATE SCHEMA live; CREATE SCHEMA staging; CREATE TABLE live.t AS SELECT 'live'; CREATE TABLE staging.t AS SELECT 'staging'");
    let mut workspace = initialised(&server, &["one"]);
    workspace.set("source.0.workers", 1);
    let proxy = before(&server);
    through(&mut workspace, &proxy);
    workspace.run(&["backup"]).ok();

    // The last connection reads the rows; everything is locked by then.
    let mut swap = server.psql_command("one");
    swap.args([
        "-c",
        "ALTER SCHEMA live RENAME TO x; ALTER SCHEMA staging RENAME TO live; ALTER SCHEMA x RENAME TO staging",
    ]);
    proxy.before_connection(proxy.connections() * 2, move || assert!(swap.status().unwrap().success()));
    workspace.run(&["backup"]).output().assert_error(1, &["`one`", ".t", "renamed"]);
    assert_eq!(workspace.run(&["--json", "list"]).ok().json()["backups"].as_array().unwrap().len(), 1);
}

/// A server with one table that takes a while to be read.
fn with_a_large_table() -> Postgres {
    let server = Postgres::start(Major::V15);
    server.psql("postgres", "CREATE DATABASE one");
    server.psql(
        "one",
        "CREATE TABLE large AS SELECT g, md5(g::text) || md5((g + 1)::text) AS a, md5((-g)::text) AS b \
         FROM generate_series(1, 800000) g; CREATE TABLE next_to_it AS SELECT 1 AS a",
    );
    server
}

/// The rows of `large` are on their way.
fn wait_for_rows(server: &Postgres) {
    let reading =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'altlas-backup' AND query ~ '^COPY .*large'";
    wait_for("the rows", SOON, || (server.psql("postgres", reading) != "0").then_some(()));
}

#[test]
fn a_connection_that_breaks_in_the_middle_of_rows() {
    let mut server = with_a_large_table();
    let mut workspace = initialised(&server, &["one"]);
    // One reader, so that it is this table's connection that breaks.
    workspace.set("source.0.workers", 1);
    let proxy = before(&server);
    through(&mut workspace, &proxy);
    let words = ["source `database`", "reading public.large of database `one`", "closed"];
    let failure = Failure { code: 1, kind: "source", words: &words, hint: "server's log" };
    let cut = |run: Run| {
        let (_, at) = proxy.bytes();
        let running = run.spawn();
        wait_for("a part of the rows", SOON, || (proxy.bytes().1 > at + 8_000_000).then_some(()));
        proxy.cut_all();
        running.wait()
    };
    failure.check_text(cut(workspace.run(&["backup"])));
    assert_nobody_left(&server);
    failure.check_json(cut(workspace.run(&["backup", "--json"])));
    assert_nothing_recorded(&workspace);
    assert_nobody_left(&server);

    // The server itself stops.
    let (_, at) = proxy.bytes();
    let running = workspace.run(&["backup"]).spawn();
    wait_for("a part of the rows", SOON, || (proxy.bytes().1 > at + 8_000_000).then_some(()));
    server.stop();
    running.wait().assert_error(1, &["source `database`", "reading public.large of database `one`"]);
    assert_nothing_recorded(&workspace);

    // A session that an administrator ends.
    server.resume();
    through(&mut workspace, &before(&server));
    workspace.set("source.0.url", server.url("postgres"));
    let running = workspace.run(&["backup"]).spawn();
    wait_for_rows(&server);
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'altlas-backup' AND query ~ '^COPY'";
    server.psql("postgres", end);
    running.wait().assert_error(1, &["reading public.large"]);
    assert_nothing_recorded(&workspace);
    assert_nobody_left(&server);
    workspace.run(&["backup"]).ok();
}

#[test]
fn a_backup_that_is_interrupted() {
    let server = with_a_large_table();
    let workspace = initialised(&server, &["one"]);
    for (signal, json) in [(Signal::TERM, true), (Signal::INT, false)] {
        let run = if json { workspace.run(&["backup", "--json"]) } else { workspace.run(&["backup"]) };
        let running = run.spawn();
        wait_for_rows(&server);
        running.signal(signal);
        let failure = Failure { code: 130, kind: "interrupted", words: &["interrupted"], hint: "" };
        if json {
            failure.check_json(running.wait())
        } else {
            failure.check_text(running.wait())
        }
        assert_nothing_recorded(&workspace);
        assert_nobody_left(&server);
    }
}

// --- The store ---------------------------------------------------------------------------------------------------------

#[test]
fn repositories_that_cannot_be_used() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let workspace = Workspace::folder().postgres(&server, &["one"]);
    let place = format!("file://{}", workspace.repository_folder().display());
    let failure = |code, kind: &str, words: &[&str], hint: &str, arguments: &[&str]| {
        Failure { code, kind, words, hint }.of(|| workspace.run(arguments));
    };
    let commands: [&[&str]; 4] = [&["backup"], &["list"], &["verify", "--level", "presence"], &["restore", "latest"]];

    // No folder at all, then an empty one.
    for command in commands {
        failure(1, "store", &[&place], "create the bucket or folder", command);
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

    // Gone in the middle: at a part, at the manifest, at the head, and from then on.
    let proxy = HttpProxy::start(place.endpoint["http://".len()..].parse().unwrap());
    let behind = workspace(&S3Place { endpoint: proxy.endpoint(), ..place.clone() });
    behind.run(&["backup"]).ok();
    server.psql("one", "UPDATE small SET a = a + 1000; ALTER TABLE small RENAME a TO b");
    for (at, json) in [("/epochs/", false), ("/backups/", true), ("/head.json", false)] {
        proxy.reset();
        let gone = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&gone);
        proxy.before_write(move |write| {
            seen.fetch_or(write.path.contains(at), Ordering::SeqCst);
            if seen.load(Ordering::SeqCst) { Action::Drop } else { Action::Pass }
        });
        let seen = Arc::clone(&gone);
        proxy.on_read(move |_| if seen.load(Ordering::SeqCst) { Action::Drop } else { Action::Pass });
        let words = ["put s3://backups/alt-las/", at, &proxy.endpoint(), "after 6 attempts"];
        // It came by way of a source, or of the commit: it is the store that failed.
        let failure = Failure { code: 1, kind: "store", words: &words, hint: "endpoint" };
        let run = if json { behind.run(&["backup", "--json"]) } else { behind.run(&["backup"]) };
        if json {
            failure.check_json(run.output())
        } else {
            failure.check_text(run.output())
        }
        assert!(gone.load(Ordering::SeqCst), "{at}");
        proxy.reset();
        // The good one from before; where the manifest was written, the rest of one that says it is unfinished.
        let statuses: Vec<Value> =
            listed(&behind).as_array().unwrap().iter().map(|backup| backup["status"].clone()).collect();
        let expected = if at == "/head.json" { json!(["unfinished", "good"]) } else { json!(["good"]) };
        assert_eq!(Value::from(statuses), expected, "{at}");
    }
    assert_nobody_left(&server);
    behind.run(&["backup"]).ok();
    behind.run(&["verify", "--level", "content"]).ok();
}

#[test]
fn a_folder_store_on_a_full_disk() {
    if !tools::is_root() {
        println!("a full disk is not tested: only root can mount a small one");
        return;
    }
    let server = with_a_large_table();
    let workspace = Workspace::folder().postgres(&server, &["one"]);
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
    let torn: Vec<_> =
        walk(&mounted).into_iter().filter(|(name, _)| !name.ends_with(".json") && !name.ends_with(".zst")).collect();
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

#[test]
fn a_source_that_fails_beside_one_that_does_not_is_a_partial_backup() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let workspace = initialised(&server, &["one"]).postgres_as(
        "other",
        &server.url("postgres"),
        &server.password_file(),
        &["not_there"],
    );
    let report = workspace.run(&["backup", "--json"]).output().assert_code(5).json();
    assert_eq!(report["state"], "partial");
    assert!(report["sources"][1]["error"].as_str().unwrap().contains("`not_there`"), "{report}");
    assert!(report["sources"][1]["hint"].as_str().unwrap().contains("`databases`"), "{report}");
    assert_eq!(listed(&workspace)[0]["head"]["state"], "partial");
    let text = workspace.run(&["backup"]).output().assert_code(5);
    assert!(text.stdout.contains("PARTIAL") && text.stdout.contains("`not_there`"), "{}", text.text());

    // All of them: one error that names each.
    let words = ["no source could be backed up", "source `database`", "source `other`"];
    server.psql("postgres", "DROP DATABASE one");
    Failure { code: 1, kind: "source", words: &words, hint: "`databases`" }.of(|| workspace.run(&["backup"]));
}

#[test]
fn the_proxy_passes_what_it_is_not_told_to_cut() {
    let server = Postgres::start(Major::V15);
    let proxy = before(&server);
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
    wait_for("the statement", SOON, || server.try_psql("postgres", "SELECT FROM after").ok());
    assert!(server.try_psql("postgres", "SELECT FROM before").is_err());
}
