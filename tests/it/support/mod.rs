//! What the tests stand on: servers, the program under test, its configuration, and proxies that get in the way.
//!
//! Everything here is for threads, not for async code: a test reads from top to bottom. Whatever is started is stopped
//! and removed when its value is dropped, and dies with the test process if that is killed.

#![allow(dead_code, reason = "helpers are kept together, also those that only some of the tests need")]
#![allow(unreachable_pub, reason = "nothing outside this test binary can reach anything in it")]

pub mod binary;
pub mod forge;
pub mod library;
pub mod mode;
pub mod monitoring;
pub mod nats;
pub mod orders;
pub mod postgres;
pub mod process;
pub mod proof;
pub mod proxy;
pub mod receiver;
pub mod redis;
pub mod s3;
pub mod tools;
pub mod workspace;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Random numbers that can be had again: the seed is printed, and taken from `ALTLAS_SEED` where that is set.
pub fn seeded() -> rand::rngs::StdRng {
    let seed = std::env::var("ALTLAS_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("ALTLAS_SEED"));
    println!("ALTLAS_SEED={seed}");
    rand::SeedableRng::seed_from_u64(seed)
}

/// A new folder right below `/tmp` that other users may enter, removed with the value. The path is short, because a
/// unix socket's has room for 107 bytes only.
pub fn temp_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix("altlas-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in("/tmp")
        .expect("a folder below /tmp")
}

/// A port of 127.0.0.1 that nobody listened on a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A file below `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// Asks every 10 ms until `found` gives something, and panics with `what` after `deadline`.
pub fn wait_for<T>(what: &str, deadline: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Panics with what differs between two texts that are compared by their lines, at most ten lines a side.
#[track_caller]
pub fn assert_same_lines(left: &str, right: &str) {
    if left == right {
        return;
    }
    let only = |a: &str, b: &str| {
        let b: std::collections::HashSet<&str> = b.lines().collect();
        a.lines().filter(|line| !b.contains(line)).take(10).map(str::to_owned).collect::<Vec<_>>()
    };
    panic!("the contents differ; left: {:#?}\nright: {:#?}", only(left, right), only(right, left));
}
