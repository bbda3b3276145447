//! A store that takes or gives nothing for a while, with a stream on its way.
//!
//! With `ALTLAS_TORTURE` set there are two more: a store that never comes back, in a capture and in a restore.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::RngCore;
use serde_json::json;

use super::{SOON, before, restore};
use crate::{
    failures::assert_nothing_recorded,
    support::{
        binary::Output,
        mode::Mode,
        nats::{Nats, NatsVersion},
        proxy::{Action, HttpProxy, Seen, Step, TcpProxy, Way},
        s3::{BlockingS3, S3Kind},
        workspace::Workspace,
    },
};

/// Longer than any server waits: two seconds in some versions, five in the others.
const STALL: Duration = Duration::from_secs(15);
/// Messages of the stream, and bytes of each, which do not compress: more than everything on the way can hold.
const MESSAGES: usize = 8400;
const MESSAGE: usize = 16_000;
/// The memory budget for data under way, in MiB.
const BUDGET: i64 = 96;
/// What a run may take, in bytes: the budget, and half of the default one for everything else: the program, compressors, what the system
/// has read from connections. The aim of 192 MiB for the default budget of 128 is the same sum.
const BOUND: u64 = (96 + 64) * 1024 * 1024;

/// A source whose stream is larger than everything on the way can hold, and a repository behind a proxy.
struct Stalling {
    source: Nats,
    before: TcpProxy,
    s3: BlockingS3,
    proxy: HttpProxy,
    workspace: Workspace,
}

/// What was seen of a stall.
#[derive(Clone, Default)]
struct Stall {
    /// Requests that were held back.
    held: Arc<AtomicU64>,
    /// Bytes that had passed between us and the NATS server when it was over.
    passed: Arc<AtomicU64>,
}

impl Stalling {
    fn start(version: NatsVersion) -> Self {
        let source = Nats::start(version);
        source.ask("STREAM.CREATE.LARGE", &json!({ "name": "LARGE", "subjects": ["large"] }));
        let (mut connection, mut payload) = (source.connection(), vec![0; MESSAGE]);
        for _ in 0..MESSAGES {
            rand::rng().fill_bytes(&mut payload);
            assert_eq!(connection.request("large", &payload).unwrap().status, None);
        }
        let s3 = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
        let proxy = HttpProxy::start(s3.address());
        let before = before(&source);
        let url = format!("nats://{}@127.0.0.1:{}", source.user(), before.port());
        let mut workspace = Workspace::s3(&s3.place("backups", "stalls")).mode(Mode::Clear);
        workspace = workspace.nats_as("messages", &url, &source.password_file());
        workspace.set("repository.s3.endpoint", proxy.endpoint());
        workspace.set("limits.memory_mib", BUDGET);
        workspace.run(&["init"]).ok();
        Self { source, before, s3, proxy, workspace }
    }

    /// From the third part on, everything that is written or read waits until so much time is over.
    fn hook(
        &self,
        time: Duration,
        nats: &TcpProxy,
        up: bool,
    ) -> (Stall, impl Fn(&Seen) -> Action + Send + Sync + 'static) {
        let (until, parts, stall) = (Mutex::new(None), AtomicU64::new(0), Stall::default());
        let (seen, passing) = (stall.clone(), nats.counter(up));
        let hook = move |request: &Seen| {
            let of_part = request.path.contains("/parts/") && !request.path.contains("list-type");
            if !of_part || parts.fetch_add(1, Ordering::SeqCst) < 2 {
                return Action::Pass;
            }
            let until: Instant = *until.lock().unwrap().get_or_insert_with(|| Instant::now() + time);
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                seen.held.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(left);
                seen.passed.fetch_max(passing(), Ordering::SeqCst);
            }
            Action::Pass
        };
        (stall, hook)
    }

    fn total() -> u64 {
        (MESSAGES * MESSAGE) as u64
    }

    /// The stall was in the middle: something had come, and some was still to come.
    #[track_caller]
    fn assert_in_the_middle(stall: &Stall, about: &str) {
        let (held, passed) = (stall.held.load(Ordering::SeqCst), stall.passed.load(Ordering::SeqCst));
        println!(
            "{about}: {held} requests held back; {} of {} MB had passed",
            passed / 1_000_000,
            Self::total() / 1_000_000
        );
        assert!(held > 0, "{about}: nothing was held back");
        assert!((1_000_000..Self::total() * 19 / 20).contains(&passed), "{about}: {passed} bytes had passed");
    }
}

#[track_caller]
fn assert_bounded(output: &Output, about: &str) {
    println!("{about}: {} MiB at most", output.peak_memory >> 20);
    assert!((1..BOUND).contains(&output.peak_memory), "{about}: {} bytes", output.peak_memory);
}

/// The newest version survives both; of the others whatever is called complete is.
#[test]
fn fifteen_seconds() {
    std::thread::scope(|scope| {
        for version in [NatsVersion::V29, NatsVersion::V210, NatsVersion::V215] {
            scope.spawn(move || stalled(version));
        }
    });
}

fn stalled(version: NatsVersion) {
    let stalling = Stalling::start(version);
    let workspace = &stalling.workspace;
    let (stall, hook) = stalling.hook(STALL, &stalling.before, false);
    stalling.proxy.before_write(hook);
    let output = workspace.run(&["--json", "backup"]).deadline(SOON * 3).output();
    stalling.proxy.reset();
    let about = format!("{} while captured", version.number());
    println!("{about}: {}", output.stderr);
    Stalling::assert_in_the_middle(&stall, &about);
    assert_bounded(&output, &about);
    if version == NatsVersion::V29 && output.code != Some(0) {
        // It waits for nobody.
        println!("{about}: {}", output.text());
        let output = output.assert_error(1, &["source `messages`", "`LARGE`", "too slowly"]);
        assert!(output.json()["error"]["hint"].is_string(), "{}", output.text());
        assert_nothing_recorded(workspace);
        workspace.run(&["backup"]).ok();
    } else {
        let attempts = output.stderr.matches("trying again").count();
        println!("{about}: tried again {attempts} times");
        let report = output.assert_code(0).json();
        assert_eq!(
            (&report["state"], &report["sources"][0]["rows"]),
            (&json!("complete"), &json!(MESSAGES)),
            "{report}"
        );
        // 2.10 gives a snapshot up all the same now and then: another try makes it whole.
        assert!(version != NatsVersion::V215 || attempts == 0, "it has to be survived");
    }

    let target = Nats::start(version);
    let nats = before(&target);
    let url = format!("nats://{}@127.0.0.1:{}", target.user(), nats.port());
    let (stall, hook) = stalling.hook(STALL, &nats, true);
    stalling.proxy.on_read(hook);
    let output = super::restore_at(workspace, &url, &target, &[]).deadline(SOON * 3).ok();
    let about = format!("{} while restored", version.number());
    Stalling::assert_in_the_middle(&stall, &about);
    assert_bounded(&output, &about);
    stalling.source.digest(&[]).assert_same(&target.digest(&[]));
    drop(stalling.s3);
}

/// Is set once nothing has come for a while: whoever sends waits for an answer.
fn when_still(come: Arc<impl Fn() -> u64 + Send + Sync + 'static>) -> Arc<AtomicBool> {
    let still = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&still);
    std::thread::spawn(move || {
        let (mut before, mut since) = (come(), Instant::now());
        while since.elapsed() < Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(10));
            let now = come();
            if now != before {
                (before, since) = (now, Instant::now());
            }
        }
        set.store(true, Ordering::SeqCst);
    });
    still
}

/// Acknowledgements that arrive many at once: these versions then let nearly twice as much go as they do otherwise.
#[test]
fn acknowledgements_in_bursts() {
    std::thread::scope(|scope| {
        for version in [NatsVersion::V210, NatsVersion::V211] {
            scope.spawn(move || {
                // On a busy machine a server pauses where it has more to send, and then there was no burst.
                let seen = (0..4).map(|_| burst(version)).find(|most| *most > 12);
                assert!(seen.is_some(), "{}: never enough at once for a burst", version.number());
            });
        }
    });
}

/// Backs up with acknowledgements held back until the server waits for them. Returns how many MiB came between two packets to it, at most.
fn burst(version: NatsVersion) -> u64 {
    let stalling = Stalling::start(version);
    let (most, down) = (Arc::new(AtomicU64::new(0)), Arc::new(stalling.before.counter(false)));
    let (seen, mut before) = (most.clone(), 0);
    stalling.before.on_bytes(move |way, _, bytes| match way {
        Way::Up => {
            let now = down();
            seen.fetch_max(now - before, Ordering::SeqCst);
            before = now;
            vec![Step::Until(when_still(down.clone())), Step::Send(bytes)]
        }
        Way::Down => vec![Step::Send(bytes)],
    });
    let output = stalling.workspace.run(&["--json", "backup"]).deadline(SOON * 3).output();
    println!("{}: {}", version.number(), output.stderr);
    assert_bounded(&output, version.number());
    let report = output.assert_code(0).json();
    assert_eq!(report["sources"][0]["rows"], MESSAGES, "{report}");
    let most = most.load(Ordering::SeqCst) >> 20;
    println!("{}: {most} MiB at once", version.number());
    most
}

/// A store that does not come back: the server is rid of us, and we say why.
#[test]
fn for_ever_in_a_capture() {
    if std::env::var_os("ALTLAS_TORTURE").is_none() {
        println!("this takes some minutes; set ALTLAS_TORTURE");
        return;
    }
    std::thread::scope(|scope| {
        for version in NatsVersion::ENDS {
            scope.spawn(move || {
                let stalling = Stalling::start(version);
                let (stall, hook) = stalling.hook(SOON * 60, &stalling.before, false);
                stalling.proxy.before_write(hook);
                let began = Instant::now();
                // Six attempts at a write, of five minutes each, are the most that anything waits for.
                let output = stalling.workspace.run(&["backup"]).deadline(SOON * 35).output();
                println!("{}: {:?}\n{}", version.number(), began.elapsed(), output.text());
                let output = output.assert_error(1, &["source `messages`"]);
                assert!(output.stderr.contains("\nhint: "), "{}", output.text());
                assert!(stall.held.load(Ordering::SeqCst) > 0);
                stalling.proxy.reset();
                assert_nothing_recorded(&stalling.workspace);
                stalling.workspace.run(&["backup"]).ok();
                let target = Nats::start(version);
                restore(&stalling.workspace, &target, &[]).ok();
                stalling.source.digest(&[]).assert_same(&target.digest(&[]));
            });
        }
    });
}
