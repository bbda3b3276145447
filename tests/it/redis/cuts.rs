//! Connections that are cut, at any byte of a capture and of a restore: an error, and nothing that looks like a backup.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rand::Rng;

use super::{
    DISKLESS, SOON, TARGET, back_up, before, in_dump, initialised, recorded, restore, restore_at, save_once, through,
};
use crate::support::{
    mode::{Mode, in_both_modes},
    proxy::{Step, TcpProxy, Way},
    redis::{Redis, RedisVersion},
    seeded,
};

in_both_modes! {
    in_a_capture_without_a_file,
    in_a_capture_from_disk,
    in_a_restore,
}

const CUTS: usize = 20;

/// Cuts every connection once so many bytes have gone that way, and lets nobody through after it.
fn cut_after(proxy: &TcpProxy, way: Way, bytes: u64) {
    let mut left = bytes;
    proxy.on_bytes(move |this, _, mut chunk| {
        if this != way {
            return if left == 0 { vec![Step::Cut] } else { vec![Step::Send(chunk)] };
        }
        if chunk.len() as u64 <= left {
            left -= chunk.len() as u64;
            return vec![Step::Send(chunk)];
        }
        chunk.truncate(usize::try_from(left).unwrap());
        left = 0;
        vec![Step::Send(chunk), Step::Cut]
    });
}

fn in_a_capture_without_a_file(mode: Mode) {
    in_a_capture(mode, DISKLESS);
}

fn in_a_capture_from_disk(mode: Mode) {
    in_a_capture(mode, &[]);
}

fn in_a_capture(mode: Mode, lines: &[&str]) {
    let server = Redis::start_with(RedisVersion::V70, lines);
    server.fill("many", 20_000, 1);
    if lines.is_empty() {
        save_once(&server);
    }
    let mut workspace = initialised(mode, &server);
    let proxy = before(&server);
    through(&mut workspace, &proxy);

    // What passes until the dump's last byte has.
    let end = Arc::new(AtomicU64::new(0));
    let (seen, passed) = (Arc::clone(&end), Arc::new(AtomicU64::new(0)));
    let all = Arc::clone(&passed);
    let mut dump = in_dump(move |_, bytes| {
        seen.store(all.load(Ordering::SeqCst), Ordering::SeqCst);
        vec![Step::Send(bytes)]
    });
    proxy.on_bytes(move |way, connection, bytes| {
        if way == Way::Down {
            passed.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        }
        dump(way, connection, bytes)
    });
    back_up(&workspace);
    // What a server says of itself differs by some bytes from time to time.
    let end = end.load(Ordering::SeqCst) - 200;
    println!("{end} bytes");
    assert!(end > 1_000_000);

    let mut random = seeded();
    for n in 0..CUTS {
        // Every fourth where the two are still talking.
        let at = random.random_range(0..if n % 4 == 0 { 10_000 } else { end });
        println!("cut after {at} bytes");
        proxy.reset();
        cut_after(&proxy, Way::Down, at);
        let output = workspace.run(&["backup"]).deadline(SOON).output().assert_error(1, &["source `cache`"]);
        assert!(output.stderr.contains("hint: "), "{}", output.text());
        assert_eq!(recorded(&workspace), 1);
    }
    proxy.reset();
    back_up(&workspace);
    super::assert_at_rest(&server);
    let target = Redis::start_with(RedisVersion::V70, TARGET);
    restore(&workspace, &target, &[]).ok();
    assert_eq!(server.digest(), target.digest());
}

/// Within the end mark and right before it.
#[test]
fn in_the_end_mark() {
    let server = Redis::start_with(RedisVersion::V70, DISKLESS);
    server.fill("altlas", 200, 2);
    let mark = super::end_mark(&server);
    super::assert_at_rest(&server);
    let mut workspace = initialised(Mode::Clear, &server);
    let proxy = before(&server);
    through(&mut workspace, &proxy);
    for kept in [0, 1, 39] {
        proxy.on_bytes(in_dump(move |_, mut bytes| match memchr::memmem::find(&bytes, &mark) {
            Some(found) => {
                bytes.truncate(found + kept);
                vec![Step::Send(bytes), Step::Cut]
            }
            None => vec![Step::Send(bytes)],
        }));
        workspace.run(&["backup"]).deadline(SOON).output().assert_error(1, &["source `cache`"]);
        assert_eq!(recorded(&workspace), 0, "{kept} bytes of it came");
    }
    proxy.reset();
    back_up(&workspace);
}

fn in_a_restore(mode: Mode) {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("many", 20_000, 3);
    let workspace = initialised(mode, &source);
    back_up(&workspace);
    let target = Redis::start_with(RedisVersion::V70, DISKLESS);
    let proxy = before(&target);
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    restore_at(&workspace, &url, target.password(), &[]).ok();
    let end = proxy.bytes().0;
    assert!(end > 1_000_000, "{end}");
    let whole = source.digest();
    assert_eq!(whole, target.digest());

    let (mut random, mut halves) = (seeded(), 0);
    for n in 0..CUTS {
        let at = random.random_range(0..if n % 5 == 0 { 1000 } else { end * 9 / 10 });
        println!("cut after {at} of {end} bytes");
        target.command(&["FLUSHALL"]);
        proxy.reset();
        cut_after(&proxy, Way::Up, at);
        let output = restore_at(&workspace, &url, target.password(), &[]).deadline(SOON).output();
        let output = output.assert_error(1, &["source `cache`"]);
        if target.keys() > 0 {
            halves += 1;
            assert!(output.stderr.contains("--overwrite"), "what is there, and how to go on\n{}", output.text());
        }
    }
    assert!(halves > 0, "none was cut in the middle");
    // It begins anew over what the last one left.
    proxy.reset();
    restore_at(&workspace, &url, target.password(), &["--overwrite"]).ok();
    assert_eq!(whole, target.digest());
}
