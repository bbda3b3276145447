//! `serve`: runs by itself, tells how it is, stops in good order, and knows nothing that the repository does not.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use altlas_backup::serve::{Operations, Options, Tick};
use rustix::process::Signal;

use crate::support::{
    binary::{Output, Running},
    free_port,
    postgres::{Major, Postgres},
    proxy::{Step, TcpProxy, Way},
    redis::{Redis, RedisVersion},
    wait_for,
    workspace::Workspace,
};

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(120);
const NIGHTLY: &str = "0 1 * * *";

/// Asks for a page: status, head and body; `None` while nobody listens.
fn get(address: SocketAddr, path: &str, accept: &str) -> Option<(u16, String, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, head.to_lowercase(), body.to_owned()))
}

fn page(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    get(address, path, "*/*").map(|(status, _, body)| (status, body))
}

/// The values of sources, which a restart must not change.
fn of_sources(metrics: &str) -> Vec<String> {
    let mut lines: Vec<String> = metrics.lines().filter(|line| line.contains("source=")).map(str::to_owned).collect();
    lines.sort();
    assert!(!lines.is_empty(), "{metrics}");
    lines
}

/// One value; absent where there is no such line.
fn value(metrics: &str, name: &str) -> Option<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

/// A workspace's daemon.
struct Serving {
    running: Running,
    address: SocketAddr,
}

impl Serving {
    fn start(workspace: &mut Workspace, more: &[&str]) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        workspace.set("server.listen", address.to_string());
        let running = workspace.run(&[&["--json", "serve"], more].concat()).spawn();
        Self { running, address }
    }

    fn page(&self, path: &str) -> String {
        page(self.address, path).expect("it answers").1
    }

    /// Waits until a page holds such a text; gives the page.
    #[track_caller]
    fn until(&mut self, path: &str, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let (running, address) = (&mut self.running, self.address);
        wait_for(what, SOON, || {
            assert!(running.is_running(), "the daemon has ended");
            page(address, path).map(|(_, body)| body).filter(|body| holds(body))
        })
    }

    /// Waits until all these sources are verified; gives the metrics.
    #[track_caller]
    fn until_verified(&mut self, sources: &[&str]) -> String {
        let name = |source| format!("altlas_backup_last_verified_timestamp_seconds{{source=\"{source}\"}}");
        let is_verified =
            |metrics: &str| sources.iter().all(|one| value(metrics, &name(one)).is_some_and(|at| at > 0.0));
        self.until("/metrics", "the verification", is_verified)
    }

    /// SIGTERM, and its end, which must be a good one.
    #[track_caller]
    fn stop(self) -> Output {
        self.running.signal(Signal::TERM);
        self.running.wait().assert_code(0)
    }
}

fn schedule(workspace: &mut Workspace, cron: &str, verify: &str) {
    let mut schedule = toml::Table::new();
    schedule.insert("name".into(), "nightly".into());
    schedule.insert("cron".into(), cron.into());
    schedule.insert("verify".into(), verify.into());
    workspace.set("schedule", vec![toml::Value::Table(schedule)]);
    workspace.set("retention.last", 3);
}

/// The ids of all backups, newest first, with their verdicts.
fn listed(workspace: &Workspace) -> Vec<(String, String)> {
    let listed = workspace.run(&["--json", "list"]).ok().json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let backups = listed["backups"].as_array().unwrap().iter();
    backups.map(|one| (text(&one["head"]["backup"]), text(&one["verdict"]))).collect()
}

fn redis() -> Redis {
    let server = Redis::start(RedisVersion::V70);
    server.fill("types", 1, 7);
    server
}

#[test]
fn it_backs_up_proves_and_tells_and_a_restart_changes_nothing() {
    let (postgres, redis) = (Postgres::start(Major::V15), redis());
    postgres.create_altlas("altlas", 200, 7);
    let mut workspace = Workspace::folder().postgres(&postgres, &["altlas"]).redis(&redis);
    schedule(&mut workspace, NIGHTLY, "restore");
    let mut serving = Serving::start(&mut workspace, &[]);
    // It is alive, whatever the repository is.
    serving.until("/readyz", "the first look", |body| {
        body.contains("was not read yet") && body.contains("does not exist")
    });
    assert_eq!(page(serving.address, "/readyz").unwrap().0, 503);
    assert_eq!(page(serving.address, "/healthz").unwrap(), (200, "ticking\n".to_owned()));
    assert_eq!(value(&serving.page("/metrics"), "altlas_backup_repository_readable"), Some(0.0));
    assert_eq!(page(serving.address, "/elsewhere").unwrap().0, 404);
    let first = serving.stop();
    assert!(first.stderr.contains("the repository cannot be read"), "{}", first.text());

    workspace.run(&["init"]).ok();
    let mut serving = Serving::start(&mut workspace, &[]);
    let metrics = serving.until_verified(&["database", "cache"]);
    assert_eq!(page(serving.address, "/readyz").unwrap().0, 200);
    for source in ["database", "cache"] {
        let of = |name: &str| value(&metrics, &format!("altlas_backup_{name}{{source=\"{source}\"}}"));
        let last = of("last_success_timestamp_seconds");
        assert!(last > Some(1.7e9), "{metrics}");
        assert_eq!(of("last_verified_timestamp_seconds"), last);
        assert_eq!(of("last_attempt_timestamp_seconds"), last);
        assert_eq!(of("expected_interval_seconds"), Some(86400.0));
        assert!(of("verify_duration_seconds") > Some(0.0));
        let verdict = |word| {
            let name = format!("altlas_backup_verification_verdict{{source=\"{source}\",verdict=\"{word}\"}}");
            value(&metrics, &name)
        };
        assert_eq!(["verified", "failed", "inconclusive", "unverified"].map(verdict), [1.0, 0.0, 0.0, 0.0].map(Some));
        let raw = format!("altlas_backup_snapshot_bytes{{source=\"{source}\",what=\"raw\"}}");
        assert!(value(&metrics, &raw) > Some(0.0), "{metrics}");
    }
    // Retention comes after it.
    serving.until("/", "the end of the run", |page| !page.contains("now, for"));
    let bytes =
        serving.until("/metrics", "the size", |metrics| value(metrics, "altlas_backup_repository_bytes").is_some());
    let stored: usize = workspace.objects().values().map(Vec::len).sum();
    let bytes = value(&bytes, "altlas_backup_repository_bytes").unwrap();
    assert!(bytes > 0.0 && bytes <= stored as f64, "{bytes} of {stored}");
    let shown = serving.page("/");
    assert!(shown.contains("schedule `nightly`: last run ") && shown.contains(": done; next run "), "{shown}");
    // For those who ask for it: OpenMetrics.
    let (_, head, body) =
        get(serving.address, "/metrics", "application/openmetrics-text;version=1.0.0,*/*;q=0.1").unwrap();
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let (_, head, _) = get(serving.address, "/metrics", "*/*").unwrap();
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    let done = serving.stop();
    let report = done.json();
    assert_eq!((&report["backups"], &report["verifications"], &report["failures"]), (&1.into(), &1.into(), &0.into()));
    let backups = listed(&workspace);
    assert_eq!(backups.iter().map(|(_, verdict)| verdict.as_str()).collect::<Vec<_>>(), ["verified"]);

    // Again, and on a machine that has nothing but the configuration; neither has anything to do.
    let metrics = of_sources(&metrics);
    let mut elsewhere = Workspace::folder();
    let url = workspace.table["repository"]["url"].clone();
    elsewhere.table = workspace.table.clone();
    elsewhere.set("repository.url", url);
    for (workspace, more) in [(&mut workspace, &[][..]), (&mut elsewhere, &["--observe-only"])] {
        let mut serving = Serving::start(workspace, more);
        let now = serving
            .until("/metrics", "a look", |metrics| value(metrics, "altlas_backup_repository_readable") == Some(1.0));
        assert_eq!(of_sources(&now), metrics);
        let shown = serving.page("/");
        assert_eq!(shown.contains("schedule `nightly`"), more.is_empty(), "{shown}");
        let report = serving.stop().json();
        assert_eq!(
            (&report["backups"], &report["verifications"], &report["failures"]),
            (&0.into(), &0.into(), &0.into())
        );
    }
    assert_eq!(listed(&workspace), backups);
}

#[test]
fn the_clock_ticks_every_minute() {
    let redis = redis();
    let mut workspace = Workspace::folder().redis(&redis);
    schedule(&mut workspace, "* * * * *", "content");
    workspace.run(&["init"]).ok();
    let mut serving = Serving::start(&mut workspace, &[]);
    let name = "altlas_backup_last_success_timestamp_seconds{source=\"cache\"}";
    let success = |metrics: &str| value(metrics, name).unwrap_or_default();
    let first = success(&serving.until("/metrics", "a backup", |metrics| success(metrics) > 0.0));
    // At the first second of the next minute, and up to five seconds later.
    let second = success(&serving.until("/metrics", "another", |metrics| success(metrics) > first));
    assert!(second - first <= 70.0, "{first} {second}");
    assert!(second % 60.0 < 20.0, "{second}");
    // A backup that is due goes before the verification of the one before it.
    let verified = |key: &String| key.starts_with("verifications/");
    wait_for("a verification", SOON, || workspace.objects().keys().any(verified).then_some(()));
    let output = serving.stop();
    assert!(output.json()["backups"].as_u64() >= Some(2), "{}", output.text());
    assert!(output.stderr.contains("is sound at level content"), "{}", output.text());
    assert!(
        listed(&workspace).iter().all(|(_, verdict)| verdict == "unverified"),
        "less than a restore proves nothing"
    );
}

/// A Redis behind a proxy that stops the bytes of the first dump that is asked for, and says so.
fn stalling(redis: &Redis) -> (TcpProxy, Arc<AtomicBool>) {
    let proxy = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], redis.port())));
    let stalls = Arc::new(AtomicBool::new(false));
    let told = stalls.clone();
    proxy.on_bytes(move |way, _, bytes| {
        let asks = way == Way::Up && bytes.windows(5).any(|word| word.eq_ignore_ascii_case(b"PSYNC"));
        if asks && !told.swap(true, Ordering::SeqCst) {
            return vec![Step::Wait(Duration::from_secs(600)), Step::Send(bytes)];
        }
        vec![Step::Send(bytes)]
    });
    (proxy, stalls)
}

#[test]
fn ended_in_a_run_it_leaves_nothing_and_the_next_one_does_it() {
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let redis = redis();
        let (proxy, stalls) = stalling(&redis);
        let url = format!("redis://127.0.0.1:{}", proxy.port());
        let mut workspace = Workspace::folder().redis_as("cache", &url, &redis.password_file());
        schedule(&mut workspace, NIGHTLY, "restore");
        workspace.run(&["init"]).ok();
        let serving = Serving::start(&mut workspace, &[]);
        wait_for("a dump that stalls", SOON, || stalls.load(Ordering::SeqCst).then_some(()));
        assert!(serving.page("/").contains("now, for"), "{}", serving.page("/"));
        let clock = Instant::now();
        if signal == Signal::KILL {
            serving.running.kill9();
        } else {
            serving.running.signal(signal);
            let ended = serving.running.wait().assert_code(0);
            assert!(clock.elapsed() < Duration::from_secs(30), "within the time that Kubernetes gives");
            let report = ended.json();
            assert_eq!((&report["backups"], &report["failures"]), (&0.into(), &0.into()), "{}", ended.text());
            assert!(ended.stderr.contains("was stopped before it was done"), "{}", ended.text());
        }
        assert_eq!(listed(&workspace), []);

        let mut serving = Serving::start(&mut workspace, &[]);
        serving.until_verified(&["cache"]);
        serving.stop();
        let backups = listed(&workspace);
        assert_eq!(backups.iter().map(|(_, verdict)| verdict.as_str()).collect::<Vec<_>>(), ["verified"], "{signal:?}");
    }
}

#[test]
fn ended_in_a_verification_it_leaves_no_server_and_the_next_one_does_it() {
    let postgres = Postgres::start(Major::V15);
    postgres.create_altlas("altlas", 200, 7);
    for signal in [Signal::TERM, Signal::KILL] {
        let mut workspace = Workspace::folder().postgres(&postgres, &["altlas"]);
        schedule(&mut workspace, NIGHTLY, "restore");
        let scratch = workspace.path("scratch");
        fs::create_dir(&scratch).unwrap();
        workspace.set("scratch.folder", scratch.display().to_string());
        workspace.run(&["init"]).ok();
        let mut serving = Serving::start(&mut workspace, &[]);
        serving.until("/", "a verification", |page| page.contains("now, for") && page.contains("restoring `database`"));
        wait_for("a throwaway server", SOON, || (fs::read_dir(&scratch).unwrap().count() > 0).then_some(()));
        if signal == Signal::KILL {
            serving.running.kill9();
        } else {
            let ended = serving.stop();
            assert_eq!(ended.json()["verifications"], 0, "{}", ended.text());
            assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "its folder is gone");
        }
        let one = |backups: Vec<(String, String)>| {
            assert_eq!(backups.len(), 1, "{backups:?}");
            backups[0].clone()
        };
        let (backup, verdict) = one(listed(&workspace));
        assert_eq!(verdict, "unverified", "{signal:?}");

        let mut serving = Serving::start(&mut workspace, &[]);
        serving.until_verified(&["database"]);
        let ended = serving.stop();
        assert_eq!(ended.json()["backups"], 0, "the backup is there: {}", ended.text());
        assert_eq!(one(listed(&workspace)), (backup, "verified".to_owned()));
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "what was left is found");
    }
}

/// The daemon in this process, looking often.
struct Quick {
    runtime: tokio::runtime::Runtime,
    cancel: tokio_util::sync::CancellationToken,
    address: SocketAddr,
    daemon: tokio::task::JoinHandle<altlas_backup::serve::ServeReport>,
}

impl Quick {
    fn start(workspace: &Workspace) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let context = workspace.context();
        let (config, cancel) = (context.config.clone(), context.cancel.clone());
        let daemon = runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let runner = Arc::new(Operations::new(&context));
            let options =
                Options { observe_only: false, tick: Tick::Every(Duration::from_millis(200)), spread: Duration::ZERO };
            altlas_backup::serve::run(config, runner, context.cancel.clone(), listener, options).await
        });
        Self { runtime, cancel, address, daemon }
    }

    fn page(&self, path: &str) -> String {
        page(self.address, path).expect("it answers").1
    }

    #[track_caller]
    fn until(&self, path: &str, what: &str, holds: impl Fn(&str) -> bool) -> String {
        wait_for(what, SOON, || page(self.address, path).map(|(_, body)| body).filter(|body| holds(body)))
    }

    fn stop(self) -> altlas_backup::serve::ServeReport {
        self.cancel.cancel();
        self.runtime.block_on(self.daemon).unwrap()
    }
}

#[test]
fn a_store_that_goes_away_and_comes_back() {
    let redis = redis();
    let mut workspace = Workspace::folder().redis(&redis);
    schedule(&mut workspace, NIGHTLY, "content");
    workspace.run(&["init"]).ok();
    let serving = Quick::start(&workspace);
    let name = "altlas_backup_last_success_timestamp_seconds{source=\"cache\"}";
    let has_backup = |metrics: &str| value(metrics, name).is_some_and(|at| at > 0.0);
    let before = of_sources(&serving.until("/metrics", "a backup", has_backup));
    serving.until("/", "its end", |page| !page.contains("now, for"));
    let (here, away) = (workspace.repository_folder(), workspace.path("away"));
    fs::rename(&here, &away).unwrap();
    let readable = |metrics: &str, wanted| value(metrics, "altlas_backup_repository_readable") == Some(wanted);
    let metrics = serving.until("/metrics", "the failure", |metrics| readable(metrics, 0.0));
    assert_eq!(of_sources(&metrics), before, "facts stay facts");
    let shown = serving.page("/");
    assert!(shown.contains("the repository cannot be read") && shown.contains("source `cache`"), "{shown}");
    assert_eq!(page(serving.address, "/healthz").unwrap().0, 200);
    fs::rename(&away, &here).unwrap();
    let metrics = serving.until("/metrics", "the store", |metrics| readable(metrics, 1.0));
    assert_eq!(of_sources(&metrics), before);
    // A backup by somebody else is seen by the next look.
    workspace.run(&["backup"]).ok();
    serving.until("/metrics", "another backup", |metrics| of_sources(metrics) != before);
    assert_eq!(serving.stop().backups, 1);
}

#[test]
fn a_source_that_is_away_is_tried_again_later() {
    let mut redis = redis();
    let mut workspace = Workspace::folder().redis(&redis);
    schedule(&mut workspace, NIGHTLY, "content");
    workspace.run(&["init"]).ok();
    redis.stop();
    let serving = Quick::start(&workspace);
    let shown = serving.until("/", "the failure", |page| page.contains("failed, tried again at"));
    assert!(shown.contains("(in 14 min)") || shown.contains("(in 15 min)"), "{shown}");
    // Not every 200 ms.
    std::thread::sleep(Duration::from_secs(1));
    let metrics = serving.page("/metrics");
    assert_eq!(value(&metrics, "altlas_backup_last_success_timestamp_seconds{source=\"cache\"}"), Some(0.0));
    assert_eq!(serving.stop().failures, 1);
    // Nor by the next process: what failed has left a record.
    redis.resume();
    let serving = Quick::start(&workspace);
    let shown = serving.until("/", "a look", |page| page.contains("schedule `nightly`"));
    assert!(shown.contains("failed, tried again at"), "{shown}");
    let metrics = serving.page("/metrics");
    assert!(
        value(&metrics, "altlas_backup_last_attempt_timestamp_seconds{source=\"cache\"}") > Some(1.7e9),
        "{metrics}"
    );
    // A person does not wait.
    workspace.run(&["backup"]).ok();
    serving.until("/", "the backup", |page| page.contains(": done; next run"));
    assert_eq!(serving.stop().failures, 0);
}

#[test]
fn what_cannot_be_served_is_said() {
    let redis = redis();
    let mut workspace = Workspace::folder().redis(&redis);
    workspace.run(&["init"]).ok();
    let none = workspace.run(&["serve"]).output();
    none.assert_error(2, &["no schedule in", "[[schedule]]", "--observe-only"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    workspace.set("server.listen", taken.local_addr().unwrap().to_string());
    let refused = workspace.run(&["serve", "--observe-only"]).output();
    refused.assert_error(1, &["cannot listen on 127.0.0.1:", "in use", "server.listen"]);
    // The port that was found is told.
    workspace.set("server.listen", "127.0.0.1:0");
    let running = workspace.run(&["serve", "--observe-only"]).spawn();
    std::thread::sleep(Duration::from_secs(2));
    running.signal(Signal::TERM);
    let ended = running.wait().assert_code(0);
    let port = ended.stderr.split("listening on http://127.0.0.1:").nth(1).expect("it says where it listens");
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    assert!(port.parse::<u16>().unwrap() > 0);
    assert!(
        ended.stdout.contains("stopped after 0 backups, 0 verifications, 0 runs of retention, 0 failures"),
        "{}",
        ended.text()
    );
}
