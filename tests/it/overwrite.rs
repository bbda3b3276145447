//! A restore over a database that is in use: whatever happens on the way, the old database is there, as it was, and lets
//! people in, or it was replaced as a whole and is kept.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::support::{
    binary::{Output, Run},
    mode::{Mode, in_both_modes},
    postgres::{Major, Postgres},
    proxy::{Chunk, TcpProxy},
    wait_for,
    workspace::Workspace,
};

// Most of what can happen to a target does not depend on how the repository is stored; these two read it to the end, and up
// to each moment.
in_both_modes! {
    clients_that_come_back_in_a_loop_do_not_stop_a_swap,
    a_restore_that_is_interrupted_drops_its_own_half,
}

const SOON: Duration = Duration::from_secs(60);
/// Every database but the templates, and whether it lets people in.
const DATABASES: &str = "SELECT string_agg(datname || CASE WHEN datallowconn THEN '' ELSE ' (closed)' END, ', ' ORDER BY datname) \
     FROM pg_database WHERE NOT datistemplate";

type Digests = BTreeMap<String, (u64, String)>;

/// A server whose database `altlas` was backed up and has changed since: what was captured and what is there now differ.
struct Changed {
    server: Postgres,
    workspace: Workspace,
    /// What was captured.
    captured: Digests,
    /// What is there now.
    now: Digests,
    /// The random tail of the backup's id.
    tail: String,
}

impl Changed {
    fn new(rows: u64, settings: &str) -> Self {
        Self::new_in(Mode::Clear, rows, settings)
    }

    fn new_in(mode: Mode, rows: u64, settings: &str) -> Self {
        let server = Postgres::start_with(Major::V15, settings);
        server.create_altlas("altlas", rows, 1);
        Self::of(mode, server)
    }

    fn of(mode: Mode, server: Postgres) -> Self {
        let workspace = Workspace::folder().mode(mode).postgres(&server, &["altlas"]);
        workspace.run(&["init"]).ok();
        let backup = workspace.run(&["backup", "--json"]).ok().json();
        let tail = backup["backup"].as_str().unwrap().rsplit('-').next().unwrap().to_owned();
        let captured = server.digests("altlas");
        server.psql(
            "altlas",
            "UPDATE public.tags SET name = name || ' changed'; CREATE TABLE public.newer AS SELECT 1 AS a",
        );
        let now = server.digests("altlas");
        assert_ne!(captured, now);
        Self { server, workspace, captured, now, tail }
    }

    /// `restore latest` with more arguments.
    fn restore(&self, more: &[&str]) -> Run {
        self.workspace.run(&[&["restore", "latest"], more].concat()).deadline(SOON * 3)
    }

    /// `restore latest --overwrite --yes`.
    fn overwrite(&self) -> Run {
        self.restore(&["--overwrite", "--yes"])
    }

    /// `restore latest --overwrite --yes` by way of a proxy.
    fn overwrite_through(&self, proxy: &TcpProxy) -> Run {
        let target = format!("database=postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
        self.overwrite().argument("--target").argument(target)
    }

    fn proxy(&self) -> TcpProxy {
        TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], self.server.port())))
    }

    fn databases(&self) -> String {
        self.server.psql("postgres", DATABASES)
    }

    /// The old database is the one there, with its content; beside it nothing but `others`.
    #[track_caller]
    fn assert_untouched(&self, others: &str) {
        assert_eq!(self.databases(), format!("altlas, {others}postgres"));
        assert_eq!(self.server.digests("altlas"), self.now);
    }

    /// The captured content is in place, and the old one is kept, closed, with what it held.
    #[track_caller]
    fn assert_replaced(&self) {
        let kept = format!("altlas_before_{}", self.tail);
        assert_eq!(self.databases(), format!("altlas, {kept} (closed), postgres"));
        assert_eq!(self.server.digests("altlas"), self.captured);
        assert!(self.server.try_psql(&kept, "SELECT 1").unwrap_err().contains("not currently accepting connections"));
        self.server.psql("postgres", &format!("ALTER DATABASE {kept} ALLOW_CONNECTIONS true"));
        assert_eq!(self.server.digests(&kept), self.now);
    }

    #[track_caller]
    fn assert_nobody_left(&self) {
        let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'altlas-backup'";
        wait_for("our sessions to end", SOON, || (self.server.psql("postgres", ours) == "0").then_some(()));
    }
}

/// Clients that connect, ask and connect again without a pause, until dropped; every other one stays while it may.
struct Clients {
    ended: Arc<AtomicBool>,
    connected: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(server: &Postgres, database: &str, count: usize) -> Self {
        let (ended, connected) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(server.port()).user("postgres").password(server.password()).dbname(database);
        let client = |stays: bool| {
            let (config, ended, connected) = (config.clone(), Arc::clone(&ended), Arc::clone(&connected));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                while !ended.load(Ordering::SeqCst) {
                    runtime.block_on(async {
                        let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await else { return };
                        let driver = tokio::spawn(connection);
                        while client.batch_execute("SELECT FROM public.tags; SELECT pg_sleep(0.02)").await.is_ok() {
                            connected.fetch_add(1, Ordering::SeqCst);
                            if !stays || ended.load(Ordering::SeqCst) {
                                break;
                            }
                        }
                        driver.abort();
                    });
                }
            })
        };
        Self { threads: (0..count).map(|n| client(n % 2 == 0)).collect(), ended, connected }
    }

    /// They get through to the database that has the name now.
    fn wait_until_served(&self) {
        let before = self.connected.load(Ordering::SeqCst);
        wait_for("the clients", SOON, || (self.connected.load(Ordering::SeqCst) > before + 5).then_some(()));
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A run that is refused: exit code 6, these words, and nothing on the server is touched, both ways.
#[track_caller]
fn refused(changed: &Changed, more: &[&str], kind: &str, words: &[&str]) {
    let text = changed.restore(more).output().assert_error(6, words);
    assert!(text.stderr.lines().any(|line| line.starts_with("hint: ")), "{}", text.text());
    let json = changed.restore(more).argument("--json").output().assert_error(6, words).json();
    assert_eq!(json["error"]["kind"], kind, "{json}");
    changed.assert_untouched("");
}

// --- It works ----------------------------------------------------------------------------------------------------------

fn clients_that_come_back_in_a_loop_do_not_stop_a_swap(mode: Mode) {
    let changed = Changed::new_in(mode, 300, "");
    let clients = Clients::start(&changed.server, "altlas", 4);
    clients.wait_until_served();
    let report = changed.overwrite().argument("--json").ok().json();
    let notes = report["sources"][0][1]["notes"].to_string();
    assert!(notes.contains(&format!("DROP DATABASE \\\"altlas_before_{}\\\";", changed.tail)), "{report}");
    clients.wait_until_served();
    changed.assert_replaced();
    drop(clients);
    changed.assert_nobody_left();
}

#[test]
fn twice_and_under_another_name() {
    let changed = Changed::new(300, "");
    // Beside the old one, which is not touched, once; then there is something there.
    changed.restore(&["--yes", "--database", "altlas=altlas_copy"]).ok();
    changed.assert_untouched("altlas_copy, ");
    assert_eq!(changed.server.digests("altlas_copy"), changed.captured);
    changed
        .restore(&["--yes", "--database", "altlas=altlas_copy"])
        .output()
        .assert_error(6, &["`altlas_copy`", "holds"]);
    changed.server.psql("postgres", "DROP DATABASE altlas_copy");

    // An empty database of the name is no obstacle, and it is kept all the same.
    changed.server.psql("postgres", "CREATE DATABASE prepared_place");
    changed.restore(&["--yes", "--database", "altlas=prepared_place"]).ok();
    assert_eq!(changed.server.digests("prepared_place"), changed.captured);
    let kept = format!("prepared_place_before_{}", changed.tail);
    assert_eq!(changed.databases(), format!("altlas, postgres, prepared_place, {kept} (closed)"));
}

#[test]
fn twice_over_the_same_database() {
    let changed = Changed::new(300, "");
    changed.overwrite().ok();
    changed.overwrite().ok();
    let kept = format!("altlas_before_{}", changed.tail);
    assert_eq!(changed.databases(), format!("altlas, {kept} (closed), {kept}_2 (closed), postgres"));
    assert_eq!(changed.server.digests("altlas"), changed.captured);
    for (name, content) in [(kept.clone(), &changed.now), (format!("{kept}_2"), &changed.captured)] {
        changed.server.psql("postgres", &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
        assert_eq!(&changed.server.digests(&name), content);
    }
}

// --- It is refused -----------------------------------------------------------------------------------------------------

#[test]
fn plans_that_are_refused_or_not_confirmed_touch_nothing() {
    let changed = Changed::new(100, "");
    refused(&changed, &["--yes"], "refused", &["database `altlas`", "holds 8 tables", "--overwrite"]);
    refused(&changed, &["--overwrite"], "not-confirmed", &["not confirmed", "nothing was touched", "--yes"]);
    refused(&changed, &["--dry-run"], "refused", &["database `altlas`", "holds 8 tables"]);

    // A plan that could be carried out, only shown.
    let plan = changed.restore(&["--overwrite", "--dry-run"]).ok();
    let kept = format!("altlas_before_{}", changed.tail);
    assert!(plan.stdout.contains(&kept) && plan.stdout.contains("room for both"), "{}", plan.text());
    let plan = changed.restore(&["--overwrite", "--dry-run", "--json"]).ok().json();
    assert!(plan["plan"]["database"]["steps"].to_string().contains(&kept), "{plan}");
    changed.assert_untouched("");

    // What a rename cannot take along.
    changed.server.psql("altlas", "BEGIN; CREATE TABLE pending (); PREPARE TRANSACTION 'pending'");
    refused(&changed, &["--overwrite", "--yes"], "refused", &["`altlas`", "prepared transactions", "swapped"]);
    changed.server.psql("altlas", "ROLLBACK PREPARED 'pending'");
    changed.server.psql("altlas", "SELECT pg_create_logical_replication_slot('tap', 'pgoutput')");
    refused(&changed, &["--overwrite", "--yes"], "refused", &["`altlas`", "logical replication slots"]);
    changed.server.psql("altlas", "SELECT pg_drop_replication_slot('tap')");
    let subscription = "CREATE SUBSCRIPTION sub CONNECTION 'dbname=nowhere' PUBLICATION none WITH (connect = false)";
    changed.server.psql("altlas", subscription);
    refused(&changed, &["--overwrite", "--yes"], "refused", &["`altlas`", "subscriptions"]);
    changed.server.psql("altlas", "ALTER SUBSCRIPTION sub SET (slot_name = NONE)");
    changed.server.psql("altlas", "DROP SUBSCRIPTION sub");

    // Names that cannot be.
    let long = format!("altlas={}", "n".repeat(64));
    changed.restore(&["--yes", "--database", &long]).output().assert_error(1, &["too long", "63 bytes"]);
    let twice = ["--yes", "--database", "altlas=same", "--database", "altlas=same"];
    changed.restore(&twice).output().assert_error(1, &["two databases", "`same`"]);
    changed.restore(&["--yes", "--database", "other=x"]).output().assert_error(1, &["holds no database `other`"]);
    changed.assert_untouched("");
    changed.assert_nobody_left();
}

#[test]
fn a_swap_that_the_server_refuses_leaves_the_old_database_open() {
    let changed = Changed::new(100, "");
    let proxy = changed.proxy();
    // How many connections a plan makes: the next one carries it out.
    let target = format!("database=postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
    changed.restore(&["--overwrite", "--dry-run", "--target", &target]).ok();
    let mut prepare = changed.server.psql_command("altlas");
    prepare.args(["-c", "BEGIN; INSERT INTO newer VALUES (2); PREPARE TRANSACTION 'late'"]);
    proxy.before_connection(proxy.connections() * 2 + 1, move || assert!(prepare.status().unwrap().success()));

    let clients = Clients::start(&changed.server, "altlas", 1);
    let words = ["putting database `altlas` in place", "1 prepared transaction", "as they were", "dropped"];
    changed.overwrite_through(&proxy).output().assert_error(1, &words);
    clients.wait_until_served();
    changed.server.psql("altlas", "ROLLBACK PREPARED 'late'");
    changed.assert_untouched("");
    changed.assert_nobody_left();
}

#[test]
fn a_restore_that_fails_in_post_data_leaves_the_old_database_as_it_was() {
    let server = Postgres::start(Major::V15);
    server.create_altlas("altlas", 100, 1);
    // An index whose expression only works where the database has its own name.
    server.psql(
        "altlas",
        "CREATE FUNCTION public.only_here(a int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN \
         IF current_database() <> 'altlas' THEN RAISE 'not in %', current_database(); END IF; RETURN a; END $$; \
         CREATE TABLE public.picky AS SELECT 1 AS a; CREATE INDEX picky_a ON public.picky (public.only_here(a))",
    );
    let changed = Changed::of(Mode::Clear, server);
    let words = [
        "CREATE INDEX picky_a ON public.picky",
        "`altlas`",
        "function public.only_here(integer) line 1",
        "as they were",
        "dropped",
    ];
    for json in [false, true] {
        let run = if json { changed.overwrite().argument("--json") } else { changed.overwrite() };
        let output = run.output().assert_error(1, &words);
        if json {
            assert_eq!(output.json()["error"]["kind"], "source", "{}", output.text());
        }
        changed.assert_untouched("");
        changed.assert_nobody_left();
    }
}

// --- It is cut off -----------------------------------------------------------------------------------------------------

/// A trigger for `run` at some moment of a restore, by what clients send.
fn at(proxy: &TcpProxy, needle: &'static str, answer: Chunk, mut then: impl FnMut() + Send + 'static) {
    let mut done = false;
    proxy.on_upstream(move |chunk| {
        if done || !chunk.windows(needle.len()).any(|window| window == needle.as_bytes()) {
            return Chunk::Pass;
        }
        done = true;
        then();
        answer
    });
}

/// Moments of a restore, in order, by the statement that begins each.
const MOMENTS: [&str; 7] =
    ["CREATE DATABASE", "CREATE TABLE public.", "FROM STDIN", "CREATE INDEX", "ANALYZE", "TO STDOUT", "RENAME TO"];

#[test]
fn a_restore_that_is_killed_leaves_the_old_database_and_a_half_with_a_clear_name() {
    let changed = Changed::new(1000, "");
    for moment in MOMENTS {
        let proxy = changed.proxy();
        let reached = Arc::new(AtomicBool::new(false));
        let (seen, killed) = (Arc::clone(&reached), Arc::new(AtomicBool::new(false)));
        let wait = Arc::clone(&killed);
        // The statement waits on its way until the program is gone, then reaches the server all the same.
        at(&proxy, moment, Chunk::CutAfter, move || {
            seen.store(true, Ordering::SeqCst);
            wait_for("the kill", SOON, || wait.load(Ordering::SeqCst).then_some(()));
        });
        let running = changed.overwrite_through(&proxy).spawn();
        wait_for(moment, SOON, || reached.load(Ordering::SeqCst).then_some(()));
        let killed_run = running.kill9();
        assert_eq!(killed_run.signal, Some(9), "{}", killed_run.text());
        killed.store(true, Ordering::SeqCst);
        changed.assert_nobody_left();
        drop(proxy);

        assert_eq!(changed.server.digests("altlas"), changed.now, "{moment}");
        let start = format!("altlas_restoring_{}_", changed.tail);
        let half = changed.databases().split(", ").find(|name| name.starts_with(&start)).unwrap_or_default().to_owned();
        if changed.databases() == "altlas, postgres" {
            assert_eq!(moment, "CREATE DATABASE", "nothing was left");
            continue;
        }
        changed.assert_untouched(&format!("{half}, "));
        let plan = changed.restore(&["--overwrite", "--dry-run"]).ok();
        assert!(plan.stdout.contains(&format!("DROP DATABASE \"{half}\" WITH (FORCE);")), "{}", plan.text());
        assert!(plan.stdout.contains(&format!("under the name `{start}")), "{}", plan.text());
        assert!(!plan.stdout.contains(&format!("under the name `{half}`")), "{}", plan.text());
        changed.server.psql("postgres", &format!("DROP DATABASE {half} WITH (FORCE)"));
    }
    changed.overwrite().ok();
    changed.assert_replaced();
}

/// Says that it was reached, and returns when the program makes another connection: it has seen the signal by then.
fn until_it_cleans_up(proxy: &Arc<TcpProxy>, reached: &Arc<AtomicBool>) -> impl FnMut() + Send + 'static {
    let (proxy, reached) = (Arc::downgrade(proxy), Arc::clone(reached));
    move || {
        let connections = || proxy.upgrade().map_or(u64::MAX, |proxy| proxy.connections());
        let before = connections();
        reached.store(true, Ordering::SeqCst);
        wait_for("the signal", SOON, || (connections() > before).then_some(()));
    }
}

fn a_restore_that_is_interrupted_drops_its_own_half(mode: Mode) {
    let changed = Changed::new_in(mode, 1000, "");
    for (moment, json) in MOMENTS.into_iter().zip([true, false].into_iter().cycle()) {
        let proxy = Arc::new(changed.proxy());
        let reached = Arc::new(AtomicBool::new(false));
        at(&proxy, moment, Chunk::Pass, until_it_cleans_up(&proxy, &reached));
        let run = changed.overwrite_through(&proxy);
        let running = if json { run.argument("--json").spawn() } else { run.spawn() };
        wait_for(moment, SOON, || reached.load(Ordering::SeqCst).then_some(()));
        running.interrupt();
        let words = ["interrupted", "as they were", "dropped"];
        let output = running.wait().assert_error(130, &words);
        if json {
            assert_eq!(output.json()["error"]["kind"], "interrupted", "{}", output.text());
        }
        changed.assert_untouched("");
        changed.assert_nobody_left();
    }
}

/// Cuts the connection at the swap's COMMIT, and does `then` before.
fn cut_at_commit(proxy: &TcpProxy, answer: Chunk, mut then: impl FnMut() + Send + 'static) {
    let mut renamed = false;
    proxy.on_upstream(move |chunk| {
        let holds = |needle: &str| chunk.windows(needle.len()).any(|window| window == needle.as_bytes());
        renamed = renamed || holds("RENAME TO");
        if !renamed || !holds("COMMIT") {
            return Chunk::Pass;
        }
        renamed = false;
        then();
        answer
    });
}

#[test]
fn a_connection_cut_at_the_commit_of_the_swap_is_settled_by_looking() {
    // The server never saw the COMMIT.
    let changed = Changed::new(100, "");
    let proxy = changed.proxy();
    cut_at_commit(&proxy, Chunk::CutBefore, || {});
    changed.overwrite_through(&proxy).output().assert_error(1, &["renaming", "as they were", "dropped"]);
    changed.assert_untouched("");

    // It did, and its answer was lost.
    cut_at_commit(&proxy, Chunk::CutAfter, || {});
    changed.overwrite_through(&proxy).ok();
    changed.assert_replaced();
    changed.assert_nobody_left();
}

#[test]
fn a_swap_that_nobody_can_look_at_is_called_unknown() {
    let changed = Changed::new(100, "");
    let proxy = Arc::new(changed.proxy());
    let other = Arc::downgrade(&proxy);
    cut_at_commit(&proxy, Chunk::CutAfter, move || other.upgrade().unwrap().refuse(true));
    let output: Output = changed.overwrite_through(&proxy).output();
    let half = format!("altlas_restoring_{}_", changed.tail);
    let output = output.assert_error(1, &["committing the renaming", "unknown", &half]);
    assert!(!output.stderr.contains("as they were"), "{}", output.text());
    changed.assert_replaced();
}

/// The signal comes when the COMMIT is on its way: what is said must be what is there.
#[test]
fn a_signal_at_the_commit_of_the_swap_tells_what_is_there() {
    let changed = Changed::new(100, "");
    let proxy = Arc::new(changed.proxy());
    let reached = Arc::new(AtomicBool::new(false));
    cut_at_commit(&proxy, Chunk::Pass, until_it_cleans_up(&proxy, &reached));
    let running = changed.overwrite_through(&proxy).spawn();
    wait_for("the COMMIT", SOON, || reached.load(Ordering::SeqCst).then_some(()));
    running.interrupt();
    let output = running.wait();
    match output.code {
        Some(0) => changed.assert_replaced(),
        _ => {
            output.assert_error(130, &["interrupted", "as they were", "dropped"]);
            changed.assert_untouched("");
        }
    }
    changed.assert_nobody_left();
}
