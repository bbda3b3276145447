//! One recovery point of PostgreSQL, Redis and NATS: whatever the first cuts mention is in the last, how far apart they are is told
//! as it was, and a backup that lacks one of them says so.

use std::{net::SocketAddr, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::support::{
    binary::{Output, Run},
    mode::{Mode, in_both_modes},
    nats::{Nats, NatsVersion},
    orders,
    postgres::{Major, Postgres},
    proxy::{Step, TcpProxy, Way},
    redis::{Redis, RedisVersion, ms_from_now},
    wait_for,
    workspace::Workspace,
};

in_both_modes! {
    one_that_is_down,
}

/// How long something that is on its way may take.
const SOON: Duration = Duration::from_secs(60);
/// What expires in less is left out of comparisons: no test takes as long.
const MARGIN: Duration = Duration::from_secs(200);
/// A Redis server that keeps no files and hands its data over without one.
const DISKLESS: &[&str] = &["save \"\"", "repl-diskless-sync yes", "repl-diskless-sync-delay 0"];
/// The stream that the writer mentions rows in.
const ORDERS: &str = "ORDERS";

/// A server of each kind.
struct Three {
    database: Postgres,
    cache: Redis,
    messages: Nats,
}

impl Three {
    fn start(version: NatsVersion) -> Self {
        Self {
            database: Postgres::start(Major::V15),
            cache: Redis::start_with(RedisVersion::V70, DISKLESS),
            messages: Nats::start(version),
        }
    }

    /// An initialised repository with the three as its sources `database`, `cache` and `messages`.
    fn workspace(&self, mode: Mode, database: &str) -> Workspace {
        let workspace = Workspace::folder().mode(mode);
        let workspace = workspace.postgres(&self.database, &[database]).redis(&self.cache).nats(&self.messages);
        workspace.run(&["init"]).ok();
        workspace
    }

    /// `restore BACKUP` of these sources into these servers.
    fn restore(&self, workspace: &Workspace, backup: &str, sources: &[&str], more: &[&str]) -> Run {
        let mut arguments = vec!["restore".to_owned(), backup.to_owned()];
        for source in sources {
            let url = match *source {
                "database" => self.database.url("postgres"),
                "cache" => self.cache.url(),
                _ => self.messages.url_with_user(),
            };
            arguments.extend(["--source".into(), (*source).into(), "--target".into(), format!("{source}={url}")]);
        }
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let run = workspace.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        run.env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", self.database.password())
            .env("ALTLAS_BACKUP_TARGET_CACHE_PASSWORD", self.cache.password())
            .env("ALTLAS_BACKUP_TARGET_MESSAGES_PASSWORD", self.messages.password())
    }

    /// Starts the writer, with some of what it writes in all three.
    fn write(&self) -> crate::support::nats::Writer {
        self.database.psql("postgres", "CREATE DATABASE orders");
        let writer = orders::write(&self.database, "orders", &self.cache, &self.messages);
        wait_for("the first orders", SOON, || (self.messages.messages(ORDERS) >= 300).then_some(()));
        writer
    }

    fn broken(&self) -> Value {
        orders::broken(&self.database, "orders", &self.cache, &self.messages)
    }
}

const ALL: &[&str] = &["database", "cache", "messages"];

/// Backs all three up; gives what `show` tells of the backup.
#[track_caller]
fn back_up(workspace: &Workspace) -> Value {
    let report = workspace.run(&["--json", "backup"]).ok().json();
    assert_eq!(report["state"], "complete", "{report}");
    let shown = workspace.run(&["--json", "show", report["backup"].as_str().unwrap()]).ok().json();
    assert_eq!(shown["head"]["skew"], report["skew"]);
    shown
}

fn id(shown: &Value) -> &str {
    shown["head"]["backup"].as_str().unwrap()
}

/// Where in time a cut may have been.
#[derive(Clone, Copy, Debug)]
struct When {
    at: Timestamp,
    error: SignedDuration,
}

impl When {
    fn of(at: &Value, error: &Value) -> Self {
        let error = SignedDuration::try_from_secs_f64(error.as_f64().unwrap()).unwrap();
        Self { at: at.as_str().unwrap().parse().unwrap(), error }
    }

    fn earliest(self) -> Timestamp {
        self.at - self.error
    }

    fn latest(self) -> Timestamp {
        self.at + self.error
    }
}

/// What the head says of a source's cut.
#[track_caller]
fn cut(shown: &Value, source: &str) -> When {
    let sources = shown["head"]["sources"].as_array().unwrap();
    let found = sources.iter().find(|found| found["name"] == source).unwrap();
    When::of(&found["cut_at"], &found["cut_error_seconds"])
}

/// What the manifest says of the cut of each stream, by name.
fn cuts_of_streams(shown: &Value) -> Vec<(String, When)> {
    let sources = shown["sources"].as_array().unwrap();
    let messages = sources.iter().find(|source| source["name"] == "messages").unwrap();
    let artifacts = messages["artifacts"].as_array().unwrap().iter().map(|artifact| &artifact["detail"]);
    artifacts
        .map(|stream| {
            (stream["name"].as_str().unwrap().to_owned(), When::of(&stream["cut_at"], &stream["cut_error_seconds"]))
        })
        .collect()
}

/// When the last instant of a source was over. The error of a source's cut is the largest of all of its streams', not the last one's.
fn latest(shown: &Value, source: &str) -> Timestamp {
    let streams = cuts_of_streams(shown).into_iter().map(|(_, when)| when.latest());
    if source == "messages" { streams.max().unwrap() } else { cut(shown, source).latest() }
}

/// The sources were cut one after the other, in this order, each when all instants of the one before were over; and how far apart the
/// first and the last are is told the same everywhere.
#[track_caller]
fn assert_cut_in_order(workspace: &Workspace, shown: &Value, order: [&str; 3]) {
    let cuts = order.map(|source| cut(shown, source));
    for pair in order.windows(2) {
        // A microsecond for numbers that were rounded.
        let after = cut(shown, pair[1]).earliest() + SignedDuration::from_micros(1);
        assert!(latest(shown, pair[0]) <= after, "{pair:?}: {cuts:?}");
    }
    let time = |field: &str| shown["head"][field].as_str().unwrap().parse::<Timestamp>().unwrap();
    // The store's clock counts whole seconds.
    let second = SignedDuration::from_secs(1);
    let (started, finished) = (time("started") - second, time("finished") + second);
    assert!(started <= cuts[0].at && cuts[2].at <= finished, "{started} {cuts:?} {finished}");
    let sources = shown["head"]["sources"].as_array().unwrap();
    let first = sources.iter().filter_map(|source| source["cut_first"].as_str()).map(|first| first.parse().unwrap());
    let first = first.chain([cuts[0].at]).min().unwrap();
    let skew = &shown["head"]["skew"];
    let seconds = skew["seconds"].as_f64().unwrap();
    assert!((seconds - cuts[2].at.duration_since(first).as_secs_f64()).abs() < 1e-6, "{shown}");
    let error = skew["error_seconds"].as_f64().unwrap();
    assert!(error > 0.0 && error <= cuts.iter().map(|cut| cut.error.as_secs_f64()).sum::<f64>() + 1e-6, "{shown}");
    let text = workspace.run(&["show", id(shown)]).ok().stdout;
    assert!(text.contains("\nskew ") && text.contains(": from the first cut to the last\n"), "{text}");
    assert_eq!(text.matches(", cut 20").count(), 3, "{text}");
}

/// The error bars hold what the servers' own clocks, which are this machine's, say of the first and last things in and after the cuts.
#[track_caller]
fn assert_the_bars_hold(shown: &Value, source: &Three, restored: &Three) {
    let newest: Timestamp = restored
        .database
        .psql(
            "orders",
            "SELECT to_char(max(placed_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM orders",
        )
        .trim()
        .parse()
        .unwrap();
    assert!(newest <= cut(shown, "database").latest(), "{newest} {:?}", cut(shown, "database"));
    let streams = cuts_of_streams(shown);
    let (_, when) = streams.iter().find(|(name, _)| name == ORDERS).unwrap();
    let last = restored.messages.info(ORDERS)["state"]["last_seq"].as_u64().unwrap();
    let next = source.messages.ask(&format!("STREAM.MSG.GET.{ORDERS}"), &json!({ "seq": last + 1 }));
    let next: Timestamp = next["message"]["time"].as_str().unwrap().parse().unwrap();
    assert!(next >= when.earliest(), "message {} is of {next}, and the cut of {when:?}", last + 1);
    let last: Timestamp = restored.messages.info(ORDERS)["state"]["last_ts"].as_str().unwrap().parse().unwrap();
    assert!(last <= when.latest(), "the last message is of {last}, and the cut of {when:?}");
}

/// Backs three servers up while they are written to, so many times, and restores each backup.
fn nothing_is_broken(version: NatsVersion, backups: usize) {
    let (source, target) = (Three::start(version), Three::start(version));
    let writer = source.write();
    let workspace = source.workspace(Mode::Clear, "orders");
    let shown: Vec<Value> = (0..backups).map(|_| back_up(&workspace)).collect();
    // Something has to follow the last of them.
    let last = source.messages.messages(ORDERS);
    wait_for("more orders", SOON, || (source.messages.messages(ORDERS) > last + 10).then_some(()));
    writer.finish();
    let mut before = 0;
    for shown in &shown {
        assert_cut_in_order(&workspace, shown, ["messages", "cache", "database"]);
        target.restore(&workspace, id(shown), ALL, &["--yes", "--overwrite"]).ok();
        let found = target.broken();
        assert_eq!((&found["redis_broken"], &found["stream_broken"]), (&json!(0), &json!(0)), "{found}\n{shown}");
        // It was written to all the time, or there was nothing to break.
        let mentioned = found["stream"].as_u64().unwrap();
        assert!(mentioned > before && found["redis"].as_u64().unwrap() >= mentioned, "{found}, {before} before");
        before = mentioned;
        assert_the_bars_hold(shown, &source, &target);
        // The one that was replaced is kept otherwise.
        for kept in
            target.database.psql("postgres", "SELECT datname FROM pg_database WHERE datname ~ '_before_'").lines()
        {
            target.database.psql("postgres", &format!("DROP DATABASE \"{kept}\""));
        }
    }
}

#[test]
fn twenty_backups_break_nothing() {
    nothing_is_broken(NatsVersion::V215, 20);
}

#[test]
fn backups_with_an_old_nats_break_nothing() {
    nothing_is_broken(NatsVersion::V29, 3);
}

/// An archive of files is read one after the other, and holds what comes meanwhile: what follows it waits until it was read.
#[test]
fn a_long_transfer_of_an_old_nats_breaks_nothing() {
    const MESSAGES: usize = 1500;
    let (source, target) = (Three::start(NatsVersion::V29), Three::start(NatsVersion::V29));
    let writer = source.write();
    let mut connection = source.messages.connection();
    // Of the first order, which there is.
    for _ in 0..MESSAGES {
        let noise: String = (0..1000).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        let message = format!("{{\"id\":1,\"note\":\"{noise}\"}}");
        connection.publish("orders.placed", None, message.as_bytes()).unwrap();
    }
    wait_for("the long messages", SOON, || (source.messages.messages(ORDERS) >= MESSAGES as u64).then_some(()));
    let mut workspace = source.workspace(Mode::Clear, "orders");
    let proxy = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], source.messages.port())));
    proxy.on_bytes(|way, _, bytes| match way {
        Way::Up => vec![Step::Send(bytes)],
        Way::Down => vec![Step::Wait(Duration::from_millis(3)), Step::Send(bytes)],
    });
    workspace.set("source.2.url", format!("nats://{}@127.0.0.1:{}", source.messages.user(), proxy.port()));
    let shown = back_up(&workspace);
    let last = source.messages.messages(ORDERS);
    wait_for("more orders", SOON, || (source.messages.messages(ORDERS) > last + 10).then_some(()));
    writer.finish();
    assert_cut_in_order(&workspace, &shown, ["messages", "cache", "database"]);
    target.restore(&workspace, id(&shown), ALL, &["--yes"]).ok();
    let found = target.broken();
    assert_eq!((&found["redis_broken"], &found["stream_broken"]), (&json!(0), &json!(0)), "{found}\n{shown}");
    assert_the_bars_hold(&shown, &source, &target);
}

/// The same with the database first: or the count above could not fail.
#[test]
fn the_other_way_round_something_is_broken() {
    let (source, target) = (Three::start(NatsVersion::V215), Three::start(NatsVersion::V215));
    let writer = source.write();
    let mut workspace = source.workspace(Mode::Clear, "orders");
    workspace.set("backup.cut_order", vec!["database", "messages", "cache"]);
    let shown: Vec<Value> = (0..5).map(|_| back_up(&workspace)).collect();
    writer.finish();
    let mut broken = [0, 0];
    for shown in &shown {
        assert_cut_in_order(&workspace, shown, ["database", "messages", "cache"]);
        target.restore(&workspace, id(shown), ALL, &["--yes", "--overwrite"]).ok();
        let found = target.broken();
        for (sum, field) in broken.iter_mut().zip(["stream_broken", "redis_broken"]) {
            *sum += found[field].as_u64().unwrap();
        }
        if broken.iter().all(|sum| *sum > 0) {
            return;
        }
    }
    panic!("neither Redis nor the stream mentions what the database lacks: {broken:?}");
}

/// More streams than are open at once are cut in groups, and what follows them waits for the last.
#[test]
fn many_streams_in_groups() {
    const STREAMS: u64 = 40;
    /// After each stream's cut. At most eight are open at once, so that there are six groups.
    const WAIT: Duration = Duration::from_millis(250);
    let (source, target) = (Three::start(NatsVersion::V215), Three::start(NatsVersion::V215));
    source.messages.fill("streams", STREAMS, 1);
    let writer = source.write();
    let mut workspace = source.workspace(Mode::Clear, "orders");
    let proxy = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], source.messages.port())));
    proxy.on_bytes(|way, _, bytes| {
        // This is asked right after the answer that says when the cut was.
        let waits = way == Way::Up && memchr::memmem::find(&bytes, b"CONSUMER.LIST.").is_some();
        if waits { vec![Step::Wait(WAIT), Step::Send(bytes)] } else { vec![Step::Send(bytes)] }
    });
    workspace.set("source.2.url", format!("nats://{}@127.0.0.1:{}", source.messages.user(), proxy.port()));
    let shown = back_up(&workspace);
    writer.finish();
    let streams = cuts_of_streams(&shown);
    assert_eq!(streams.len() as u64, STREAMS + 1);
    let (first, last) = (
        streams.iter().map(|(_, when)| when.at).min().unwrap(),
        streams.iter().map(|(_, when)| when.at).max().unwrap(),
    );
    let groups = last.duration_since(first);
    assert!(groups.as_secs_f64() >= WAIT.as_secs_f64() * 5.0, "{groups:?}");
    let of_all = shown["sources"].as_array().unwrap().iter().find(|found| found["name"] == "messages").unwrap();
    let told = |field: &str| of_all["cut"][field].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert_eq!((told("first"), told("at")), (first, last));
    assert_cut_in_order(&workspace, &shown, ["messages", "cache", "database"]);
    target.restore(&workspace, id(&shown), ALL, &["--yes"]).ok();
    let found = target.broken();
    assert_eq!((&found["redis_broken"], &found["stream_broken"]), (&json!(0), &json!(0)), "{found}\n{shown}");
}

/// Each in turn: the others are backed up, and can be restored from there; for the one that is missing `latest` is the backup before.
fn one_that_is_down(mode: Mode) {
    let (mut source, target) = (Three::start(NatsVersion::V215), Three::start(NatsVersion::V215));
    source.database.create_altlas("altlas", 300, 1);
    source.cache.fill("altlas", 300, 1);
    source.messages.fill("altlas", 300, 1);
    let workspace = source.workspace(mode, "altlas");
    for down in ALL {
        let whole = back_up(&workspace);
        match *down {
            "database" => source.database.stop(),
            "cache" => source.cache.stop(),
            _ => source.messages.stop(),
        }
        let partial = back_up_without(&workspace, down);
        assert_latest_is_before(&target, &workspace, down, (id(&whole), &partial));

        let others: Vec<&str> = ALL.iter().copied().filter(|source| source != down).collect();
        let verified = workspace.run(&["verify", &partial, "--level", "content"]).output().assert_code(5);
        assert!(verified.stdout.contains("sound at level content"), "{}", verified.text());
        assert!(verified.stdout.contains(&format!("holds nothing of source `{down}`")), "{}", verified.text());
        target.restore(&workspace, &partial, &others, &["--yes", "--overwrite"]).ok();
        for other in others {
            match other {
                "database" => assert_eq!(source.database.digests("altlas"), target.database.digests("altlas")),
                "cache" => {
                    let digest = |of: &Three| of.cache.digest_beyond(ms_from_now(MARGIN), RedisVersion::V70);
                    digest(&source).assert_same(&digest(&target));
                }
                _ => source.messages.digest(&["--messages"]).assert_same(&target.messages.digest(&["--messages"])),
            }
        }
        // What is missing is missing there, too.
        let output = target.restore(&workspace, &partial, &[down], &["--yes", "--overwrite"]).output();
        output.assert_error(1, &[&partial, down, "failed"]);
        match *down {
            "database" => source.database.resume(),
            // A restart empties what keeps no files.
            "cache" => {
                source.cache.resume();
                source.cache.fill("altlas", 300, 1);
            }
            _ => source.messages.resume(),
        }
    }
}

/// A backup while this source is down; gives its id.
#[track_caller]
fn back_up_without(workspace: &Workspace, down: &str) -> String {
    let output = workspace.run(&["--json", "backup"]).output().assert_code(5);
    let report = output.json();
    assert_eq!(report["state"], "partial", "{report}");
    for source in report["sources"].as_array().unwrap() {
        let failed = source["name"] == *down;
        assert_eq!(source["state"], if failed { "failed" } else { "complete" }, "{source}");
        assert_eq!(source["error"].as_str().is_some_and(|error| error.contains("127.0.0.1")), failed, "{source}");
    }
    report["backup"].as_str().unwrap().to_owned()
}

/// `latest` is the newer backup for the others and the older one for the missing source, and for all of them; and all that tells of
/// it says so.
#[track_caller]
fn assert_latest_is_before(target: &Three, workspace: &Workspace, down: &str, (whole, partial): (&str, &str)) {
    let planned = |sources: &[&str]| -> (String, Output) {
        let output = target.restore(workspace, "latest", sources, &["--dry-run", "--overwrite"]).ok();
        let first = output.stdout.lines().next().unwrap().to_owned();
        (first, output)
    };
    let passed_over = format!("backup {partial} is newer, and passed over: it lacks `{down}` (failed)");
    for sources in [&[down][..], ALL] {
        let (plan, output) = planned(sources);
        assert!(plan.contains(whole), "{}", output.text());
        assert!(output.stdout.contains(&passed_over), "{}", output.text());
    }
    let others: Vec<&str> = ALL.iter().copied().filter(|source| *source != down).collect();
    let (plan, output) = planned(&others);
    assert!(plan.contains(partial) && !output.stdout.contains("passed over"), "{}", output.text());

    let shown = workspace.run(&["show", "latest"]).ok();
    assert!(shown.stdout.contains(&format!("backup {whole}: complete")), "{}", shown.text());
    assert!(shown.stderr.contains(&passed_over), "{}", shown.text());
    let shown = workspace.run(&["show", partial]).ok().stdout;
    assert!(shown.contains(&format!("backup {partial}: partial")), "{shown}");
    assert!(
        shown.lines().any(|line| line.starts_with(&format!("source `{down}` (")) && line.ends_with(": failed")),
        "{shown}"
    );
    let listed = workspace.run(&["list"]).ok().stdout;
    let line = listed.lines().find(|line| line.starts_with(partial)).unwrap();
    assert!(line.contains("partial") && line.contains(&format!("{down} (failed)")), "{listed}");
}
