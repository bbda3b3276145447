//! A server, a connection or we ourselves, ended at any moment: no lie, no half stream, and the next one works.
//!
//! Moments are random by bytes that have passed between us and the server; whatever passes stands still while it happens, so that it
//! happens there. With `ALTLAS_TORTURE` set there are 20 moments of each sort in place of [`MOMENTS`], 10 kills of our own in place of
//! [`KILLS`], and a target that stays away for longer than we wait for it.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rand::{Rng, rngs::StdRng};
use serde_json::Value;

use super::{SOON, back_up, before, initialised, restore, restore_at, through};
use crate::support::{
    binary::{Output, Running},
    free_port,
    library::Library,
    mode::Mode,
    nats::{Nats, NatsDigest, NatsVersion},
    proxy::{Step, TcpProxy},
    seeded, wait_for,
};

/// Moments at which a server is killed, and as many at which a connection is cut, for each version and way.
const MOMENTS: usize = 2;
/// Moments at which we are killed, for each version and way.
const KILLS: usize = 2;

fn moments() -> usize {
    if std::env::var_os("ALTLAS_TORTURE").is_some() { 20 } else { MOMENTS }
}

fn kills() -> usize {
    if std::env::var_os("ALTLAS_TORTURE").is_some() { 10 } else { KILLS }
}

/// Stops everything at the `n`-th byte.
#[derive(Clone, Default)]
struct Gate {
    passed: Arc<AtomicU64>,
    reached: Arc<AtomicBool>,
    open: Arc<AtomicBool>,
}

impl Gate {
    /// At this byte of all that pass through a proxy; [`u64::MAX`] for never.
    fn at(proxy: &TcpProxy, byte: u64) -> Self {
        let gate = Self::default();
        let hook = gate.clone();
        proxy.on_bytes(move |_, _, bytes| {
            let passed = hook.passed.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            let Some(left) = byte.checked_sub(passed).filter(|left| *left < bytes.len() as u64) else {
                return vec![Step::Send(bytes)];
            };
            hook.reached.store(true, Ordering::SeqCst);
            wait_for("what happens at the gate", SOON, || hook.open.load(Ordering::SeqCst).then_some(()));
            let left = usize::try_from(left).unwrap();
            vec![Step::Send(bytes[..left].to_vec()), Step::Cut]
        });
        gate
    }

    /// Waits until it is reached and lets `act` happen, unless the program ends before.
    fn act(&self, running: &mut Running, act: impl FnOnce()) -> bool {
        let reached = wait_for("the moment", SOON, || {
            let reached = self.reached.load(Ordering::SeqCst);
            (reached || !running.is_running()).then_some(reached)
        });
        if reached {
            act();
        }
        self.open.store(true, Ordering::SeqCst);
        reached
    }

    fn passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// The server is killed, and started again at once.
    Killed,
    /// It is killed, and started again when we have given up.
    Gone,
    /// Every connection ends.
    Cut,
}

fn happen(what: What, server: &mut Nats, proxy: &TcpProxy) {
    match what {
        What::Cut => proxy.cut_all(),
        What::Gone => server.kill(),
        What::Killed => {
            server.kill();
            start_again(server);
        }
    }
}

/// Without waiting for it.
fn start_again(server: &mut Nats) {
    let port = server.port();
    server.resume_without_waiting();
    assert_eq!(server.port(), port, "somebody else has taken the port");
}

/// Where in so many bytes: anywhere; every other time in the first tenth, where the smaller streams are.
fn moment(number: usize, all: u64, random: &mut StdRng) -> u64 {
    random.random_range(1..if number.is_multiple_of(2) { all } else { all / 10 })
}

/// Every stream as an independent client sees it, by its name.
fn by_stream(digest: &NatsDigest) -> BTreeMap<String, String> {
    let mut streams: BTreeMap<String, String> = BTreeMap::new();
    let mut name = String::new();
    for line in digest.text().lines().filter(|line| !line.is_empty()) {
        if let Some(next) = line.strip_prefix("stream ") {
            name = next.to_owned();
        }
        *streams.entry(name.clone()).or_default() += &format!("{line}\n");
    }
    streams
}

/// A server that holds a few streams, all of it on its disk.
fn filled(version: NatsVersion, lines: &[&str]) -> Nats {
    let mut server = Nats::start_with(version, lines);
    server.fill("altlas", 150, 1);
    server.fill("many", 6000, 1);
    // A server that is killed loses what it has not yet written, such as where consumers are.
    server.stop();
    server.resume();
    server
}

/// As `there` as it was, stream by stream; gives their names.
#[track_caller]
fn assert_whole(server: &Nats, expected: &BTreeMap<String, String>, about: &str) -> Vec<String> {
    let there = by_stream(&server.digest(&["--messages"]));
    for (name, seen) in &there {
        let was = expected.get(name).unwrap_or_else(|| panic!("a stream `{name}` that nobody captured; {about}"));
        if was != seen {
            println!("stream `{name}` is not what was captured; {about}");
            crate::support::assert_same_lines(was, seen);
        }
    }
    there.into_keys().collect()
}

fn clear(server: &Nats) {
    for name in server.streams() {
        server.delete_stream(&name);
    }
}

/// Runs lanes side by side: most of their time they wait for what a server does in some seconds.
fn in_lanes(whats: &[What], lane: impl Fn(NatsVersion, What, &mut StdRng) + Sync) {
    let lane = &lane;
    std::thread::scope(|scope| {
        for version in NatsVersion::ENDS {
            for &what in whats {
                let mut random = seeded();
                scope.spawn(move || lane(version, what, &mut random));
            }
        }
    });
}

// --- Of a capture ------------------------------------------------------------------------------------------------------

#[test]
fn a_capture_whose_server_goes_away() {
    in_lanes(&[What::Killed, What::Gone, What::Cut], interrupted_captures);
}

fn interrupted_captures(version: NatsVersion, what: What, random: &mut StdRng) {
    let mut server = filled(version, &[]);
    let expected = by_stream(&server.digest(&["--messages"]));
    let mut workspace = initialised(Mode::Clear, &server);
    let proxy = before(&server);
    through(&mut workspace, &server, &proxy);
    let gate = Gate::at(&proxy, u64::MAX);
    back_up(&workspace);
    let all = gate.passed();
    let target = Nats::start(version);
    let (mut complete, mut partial, mut failed) = (0, 0, 0);
    for number in 0..moments() {
        let at = moment(number, all, random);
        wait_for("the server", SOON, || server.try_connection().ok());
        let gate = Gate::at(&proxy, at);
        let mut running = workspace.run(&["--json", "backup"]).deadline(SOON * 3).spawn();
        let happened = gate.act(&mut running, || happen(what, &mut server, &proxy));
        let output = running.wait();
        if happened && what == What::Gone {
            start_again(&mut server);
        }
        let about = format!("{} {what:?} at byte {at} of {all}: {}", version.number(), output.text());
        assert!(happened || output.code == Some(0), "{about}");
        match output.code {
            Some(0) => complete += 1,
            Some(5) => {
                partial += 1;
                let source = &output.json()["sources"][0];
                assert!(!source["failed"].as_array().unwrap().is_empty() && source["hint"].is_string(), "{about}");
            }
            _ => {
                failed += 1;
                assert_clear(output, &format!("127.0.0.1:{}", proxy.port()));
                continue;
            }
        }
        let report = output.json();
        let address = format!("messages={}", target.url_with_user());
        let id = report["backup"].as_str().unwrap();
        let run = workspace.run(&["restore", id, "--yes", "--source", "messages", "--target", &address]);
        run.env("ALTLAS_BACKUP_TARGET_MESSAGES_PASSWORD", target.password()).ok();
        let restored = assert_whole(&target, &expected, &about);
        assert_eq!(output.code == Some(0), restored.len() == expected.len(), "{about}: {restored:?}");
        assert_eq!(report["sources"][0]["artifacts"], restored.len(), "{about}");
        clear(&target);
    }
    println!("{} {what:?} in a capture: {complete} complete, {partial} partial, {failed} failed", version.number());
    // The source is as it was.
    proxy.reset();
    wait_for("the server", SOON, || server.try_connection().ok());
    assert_eq!(assert_whole(&server, &expected, "the source").len(), expected.len());
    back_up(&workspace);
}

/// One line that names the server, and a next step.
#[track_caller]
fn assert_clear(output: Output, server: &str) {
    let output = output.assert_error(1, &["source `messages`"]);
    let error = &output.json()["error"];
    assert!(error["message"].as_str().unwrap().contains(server), "{}", output.text());
    assert!(error["hint"].is_string(), "{}", output.text());
}

// --- Of a restore ------------------------------------------------------------------------------------------------------

#[test]
fn a_restore_whose_server_goes_away() {
    in_lanes(&[What::Killed, What::Cut], interrupted_restores);
}

fn interrupted_restores(version: NatsVersion, what: What, random: &mut StdRng) {
    let source = filled(version, &[]);
    let expected = by_stream(&source.digest(&["--messages"]));
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    drop(source);
    let mut target = Nats::start(version);
    let proxy = before(&target);
    let url = format!("nats://{}@127.0.0.1:{}", target.user(), proxy.port());
    let gate = Gate::at(&proxy, u64::MAX);
    restore_at(&workspace, &url, &target, &[]).ok();
    let all = gate.passed();
    clear(&target);
    let (mut complete, mut failed, mut left) = (0, 0, 0);
    for number in 0..moments() {
        let at = moment(number, all, random);
        let gate = Gate::at(&proxy, at);
        let mut running = restore_at(&workspace, &url, &target, &["--json"]).deadline(SOON * 3).spawn();
        let happened = gate.act(&mut running, || happen(what, &mut target, &proxy));
        let output = running.wait();
        let about = format!("{} {what:?} at byte {at} of {all}: {}", version.number(), output.text());
        // Seen once, and not explained: a 2.15 that was killed in the middle of a restore refuses the next one of that stream, though it was deleted.
        let refused =
            version == NatsVersion::V215 && output.text().contains("expected sequence does not match store (10062)");
        assert!(happened || output.code == Some(0) || refused, "{about}");
        wait_for("the target", SOON, || target.try_connection().ok());
        let there = assert_whole(&target, &expected, &about);
        match output.code {
            Some(0) => {
                complete += 1;
                assert_eq!(there.len(), expected.len(), "{about}");
            }
            _ => {
                failed += 1;
                left += there.len();
                let said = output.json()["error"]["message"].as_str().unwrap().to_owned();
                for name in &there {
                    assert!(said.contains(name.as_str()), "`{name}` is left; {about}");
                }
                assert_clear(output, &format!("127.0.0.1:{}", proxy.port()));
            }
        }
        clear(&target);
    }
    println!(
        "{} {what:?} in a restore: {complete} complete, {failed} failed, {left} whole streams left",
        version.number()
    );
    proxy.reset();
    restore(&workspace, &target, &[]).ok();
    assert_eq!(assert_whole(&target, &expected, "at last").len(), expected.len());
}

/// A target that does not come back while we wait to clear up: what may be left is said, with the way to go on.
#[test]
fn a_target_that_stays_away() {
    if std::env::var_os("ALTLAS_TORTURE").is_none() {
        println!("this takes more than a minute; set ALTLAS_TORTURE");
        return;
    }
    let source = filled(NatsVersion::V215, &[]);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let mut target = Nats::start(NatsVersion::V215);
    let proxy = before(&target);
    let url = format!("nats://{}@127.0.0.1:{}", target.user(), proxy.port());
    // In the middle of the last stream.
    let gate = Gate::at(&proxy, 500_000);
    let mut running = restore_at(&workspace, &url, &target, &["--json"]).deadline(SOON * 3).spawn();
    assert!(gate.act(&mut running, || target.kill()));
    let output = running.wait().assert_error(1, &["`MANY`", "could not be removed", "`--overwrite`"]);
    start_again(&mut target);
    proxy.reset();
    wait_for("the target", SOON, || target.try_connection().ok());
    let mark = target.info("MANY")["config"]["metadata"]["altlas-backup.restoring"].clone();
    assert!(mark.is_string(), "{mark}: {}", output.text());
    target.streams().iter().filter(|name| *name != "MANY").for_each(|name| target.delete_stream(name));
    restore(&workspace, &target, &[]).ok();
    source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
}

// --- Of our own --------------------------------------------------------------------------------------------------------

/// What a server's monitoring tells.
fn monitoring(port: u16, path: &str) -> Value {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").expect("a head and a body").1).unwrap()
}

/// A source loses nothing and keeps nothing of us, and the next backup works at once.
#[test]
fn a_capture_that_is_killed() {
    std::thread::scope(|scope| {
        for version in NatsVersion::ENDS {
            let mut random = seeded();
            scope.spawn(move || killed_captures(version, &mut random));
        }
    });
}

fn killed_captures(version: NatsVersion, random: &mut StdRng) {
    let port = free_port();
    let server = filled(version, &[&format!("http: \"127.0.0.1:{port}\"")]);
    let expected = by_stream(&server.digest(&["--messages"]));
    let mut workspace = initialised(Mode::Clear, &server);
    let proxy = before(&server);
    through(&mut workspace, &server, &proxy);
    let gate = Gate::at(&proxy, u64::MAX);
    back_up(&workspace);
    let all = gate.passed();
    let subscriptions = || monitoring(port, "/subsz")["num_subscriptions"].as_u64().unwrap();
    let nobody = || {
        wait_for("our connections to end", SOON, || (monitoring(port, "/connz")["num_connections"] == 0).then_some(()));
    };
    nobody();
    let own = subscriptions();
    let mut killed = 0;
    for number in 0..kills() {
        let at = moment(number, all, random);
        let gate = Gate::at(&proxy, at);
        let mut running = workspace.run(&["backup"]).deadline(SOON * 2).spawn();
        let pid = rustix::process::Pid::from_raw(i32::try_from(running.id()).unwrap()).unwrap();
        let happened = gate.act(&mut running, || {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        });
        let output = running.wait();
        println!("{} killed at byte {at} of {all}: {happened}", version.number());
        assert_eq!(output.signal, happened.then_some(9), "{}", output.text());
        killed += usize::from(happened);
        proxy.reset();
        // At once; an old server may need its seconds, which the program waits for.
        let complete = back_up(&workspace);
        assert_eq!(complete["artifacts"], expected.len(), "{complete}");
        nobody();
        wait_for("our subscriptions to end", SOON, || (subscriptions() == own).then_some(()));
    }
    assert!(killed > 0, "none was killed in the middle");
    assert_eq!(assert_whole(&server, &expected, "the source").len(), expected.len());
    let library = Library::new(workspace.context());
    for head in library.heads() {
        library.sound(&head.backup.to_string());
    }
}

/// A stream that we left half says so, and the next restore takes its place without being told to overwrite anything.
#[test]
fn a_restore_that_is_killed() {
    std::thread::scope(|scope| {
        for version in NatsVersion::ENDS {
            let mut random = seeded();
            scope.spawn(move || killed_restores(version, &mut random));
        }
    });
}

fn killed_restores(version: NatsVersion, random: &mut StdRng) {
    let mut source = Nats::start(version);
    source.fill("many", 10_000, 3);
    source.stop();
    source.resume();
    let expected = by_stream(&source.digest(&["--messages"]));
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    drop(source);
    let target = Nats::start(version);
    let proxy = before(&target);
    let url = format!("nats://{}@127.0.0.1:{}", target.user(), proxy.port());
    let gate = Gate::at(&proxy, u64::MAX);
    restore_at(&workspace, &url, &target, &[]).ok();
    let all = gate.passed();
    clear(&target);
    let (mut marked, mut none) = (0, 0);
    for number in 0..kills() {
        let at = moment(number, all, random);
        let gate = Gate::at(&proxy, at);
        let mut running = restore_at(&workspace, &url, &target, &[]).deadline(SOON * 2).spawn();
        let pid = rustix::process::Pid::from_raw(i32::try_from(running.id()).unwrap()).unwrap();
        let happened = gate.act(&mut running, || {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        });
        let about = format!("{} killed at byte {at} of {all}: {happened}", version.number());
        assert_eq!(running.wait().signal, happened.then_some(9), "{about}");
        proxy.reset();
        // Where a stream is there and bears no mark, it is whole.
        let there = target.streams();
        let is_marked = there.iter().any(|name| {
            target.info(name)["config"]["metadata"].get("altlas-backup.restoring").is_some_and(Value::is_string)
        });
        if there.is_empty() || is_marked {
            if is_marked {
                marked += 1
            } else {
                none += 1
            }
            let output = restore(&workspace, &target, &[]).deadline(SOON * 2).ok();
            assert!(!is_marked || output.text().contains("interrupted restores left"), "{about}: {}", output.text());
        }
        println!("{about}: {there:?}, marked {is_marked}");
        assert_eq!(assert_whole(&target, &expected, &about), ["MANY"]);
        let mark = &target.info("MANY")["config"]["metadata"]["altlas-backup.restoring"];
        assert!(mark.is_null(), "{about}: {mark}");
        clear(&target);
    }
    println!("{}: {marked} left a marked stream, {none} left none", version.number());
}
