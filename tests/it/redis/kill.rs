//! Killed at any moment, we leave a good repository, a server that is at rest, and a target that a second restore fills.

use std::time::Duration;

use rand::Rng;

use super::{DISKLESS, SOON, TARGET, assert_at_rest, back_up, before, initialised, restore, restore_at, save_once};
use crate::support::{
    library::Library,
    mode::{Mode, in_both_modes},
    proxy::Step,
    redis::{Redis, RedisVersion},
    seeded, wait_for,
};

in_both_modes! {
    in_the_middle_of_a_capture,
}

const KILLS: u32 = 5;

fn in_the_middle_of_a_capture(mode: Mode) {
    for lines in [DISKLESS, &[]] {
        let server = Redis::start_with(RedisVersion::V70, lines);
        server.fill("many", 20_000, 1);
        if lines.is_empty() {
            save_once(&server);
        }
        let workspace = initialised(mode, &server);
        back_up(&workspace);
        // A dump takes two seconds.
        server.command(&["CONFIG", "SET", "rdb-key-save-delay", "100"]);
        let mut random = seeded();
        for _ in 0..KILLS {
            let after = Duration::from_millis(random.random_range(0..3000));
            println!("killed {after:?} after its start");
            let running = workspace.run(&["backup"]).spawn();
            std::thread::sleep(after);
            running.kill9();
            // Every head is good, whether this one got there or not.
            let library = Library::new(workspace.context());
            for head in library.heads() {
                library.sound(&head.backup.to_string());
            }
        }
        assert_at_rest(&server);
        server.command(&["CONFIG", "SET", "rdb-key-save-delay", "0"]);
        let written = server.command(&["SET", "written", "after"]);
        assert_eq!(written, "OK");
        back_up(&workspace);
        let target = Redis::start_with(RedisVersion::V70, TARGET);
        restore(&workspace, &target, &[]).ok();
        assert_eq!(server.digest(), target.digest());
    }
}

#[test]
fn in_the_middle_of_a_restore() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("many", 100_000, 2);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let target = Redis::start_with(RedisVersion::V70, TARGET);
    let proxy = before(&target);
    proxy.on_bytes(|_, _, bytes| vec![Step::Wait(Duration::from_millis(2)), Step::Send(bytes)]);
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    for _ in 0..3 {
        let running = restore_at(&workspace, &url, target.password(), &["--overwrite"]).deadline(SOON * 2).spawn();
        target.command(&["FLUSHALL"]);
        wait_for("the first keys", SOON, || (target.keys() > 500).then_some(()));
        running.kill9();
    }
    proxy.reset();
    restore(&workspace, &target, &["--overwrite"]).ok();
    assert_eq!(source.digest(), target.digest());
}
