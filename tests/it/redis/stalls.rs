//! A store that takes nothing for a while, with a dump under way.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{DISKLESS, SOON, TARGET, assert_at_rest, back_up, recorded, restore, save_once};
use crate::support::{
    mode::Mode,
    proxy::{Action, HttpProxy},
    redis::{Redis, RedisVersion},
    s3::{BlockingS3, S3Kind},
    wait_for,
    workspace::Workspace,
};

/// A source whose dump is larger than everything on the way can hold, and a repository behind a proxy.
struct Stalling {
    source: Redis,
    s3: BlockingS3,
    proxy: HttpProxy,
    workspace: Workspace,
    /// Writes that were held back.
    held: Arc<AtomicU64>,
}

impl Stalling {
    fn start(lines: &[&str]) -> Self {
        let source = Redis::start_with(RedisVersion::V70, lines);
        // 260 MB.
        source.fill("big", 90, 1);
        let s3 = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
        let proxy = HttpProxy::start(s3.address());
        let mut workspace = Workspace::s3(&s3.place("backups", "stalls")).mode(Mode::Clear).redis(&source);
        workspace.set("repository.s3.endpoint", proxy.endpoint());
        workspace.set("limits.memory_mib", 96);
        workspace.run(&["init"]).ok();
        Self { source, s3, proxy, workspace, held: Arc::default() }
    }

    /// From the third part on, everything that is written waits until so much time is over.
    fn stall(&self, time: Duration) {
        let (until, parts) = (Mutex::new(None), AtomicU64::new(0));
        let held = Arc::clone(&self.held);
        self.proxy.before_write(move |write| {
            if !write.path.contains("/parts/") || parts.fetch_add(1, Ordering::SeqCst) < 2 {
                return Action::Pass;
            }
            let until: Instant = *until.lock().unwrap().get_or_insert_with(|| Instant::now() + time);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Action::Pass;
            }
            held.fetch_add(1, Ordering::SeqCst);
            Action::Delay(left)
        });
    }

    fn check(self) {
        assert!(self.held.load(Ordering::SeqCst) > 0, "nothing was held back");
        self.proxy.reset();
        assert_at_rest(&self.source);
        let target = Redis::start_with(RedisVersion::V70, TARGET);
        restore(&self.workspace, &target, &[]).ok();
        assert_eq!(self.source.digest(), target.digest());
        drop(self.s3);
    }
}

#[test]
fn ten_seconds_without_a_file() {
    let stalling = Stalling::start(DISKLESS);
    stalling.stall(Duration::from_secs(10));
    back_up(&stalling.workspace);
    stalling.check();
}

#[test]
fn ten_seconds_from_disk() {
    // Its limits are nothing to a dump from disk: the server's child has long ended.
    let stalling = Stalling::start(&["repl-timeout 6"]);
    save_once(&stalling.source);
    stalling.stall(Duration::from_secs(10));
    back_up(&stalling.workspace);
    stalling.check();
}

/// Longer than half of the server's `repl-timeout`: we end it, say why, and the server is rid of us. The store stalls for much longer
/// than the run may take: whatever waits for it must be given up.
#[test]
fn longer_than_the_server_would_wait() {
    let stalling = Stalling::start(&[DISKLESS, &["repl-timeout 10"]].concat());
    stalling.stall(SOON * 10);
    let running = stalling.workspace.run(&["backup"]).deadline(SOON * 2).spawn();
    let source = &stalling.source;
    wait_for("the dump", SOON, || (source.info("connected_slaves") == "1").then_some(()));
    wait_for("us to leave", SOON, || (source.info("connected_slaves") == "0").then_some(()));
    let output = running.wait().assert_error(1, &["source `cache`", "took no data for 5", "repl-timeout"]);
    assert!(output.stderr.contains("hint: "), "{}", output.text());
    assert_at_rest(&stalling.source);
    assert!(
        stalling.source.log().matches("timeout").count() == 0,
        "the server did not have to\n{}",
        stalling.source.log()
    );
    stalling.proxy.reset();
    assert_eq!(recorded(&stalling.workspace), 0);
    back_up(&stalling.workspace);
    stalling.check();
}
