//! Dumps that are split, end in what looks like an end, or are damaged on the way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use memchr::memmem;
use rand::Rng;

use super::{
    DISKLESS, SOON, TARGET, back_up, before, end_mark, in_dump, initialised, recorded, restore, save_once, through,
};
use crate::support::{
    mode::Mode,
    proxy::{Step, Way},
    redis::{Redis, RedisVersion},
    seeded,
};

/// The end mark in two reads, wherever it is split; and the line that announces it.
#[test]
fn the_end_mark_in_two_reads() {
    let server = Redis::start_with(RedisVersion::V70, DISKLESS);
    server.fill("many", 2000, 1);
    let mark = end_mark(&server);
    super::assert_at_rest(&server);
    let mut workspace = initialised(Mode::Clear, &server);
    let proxy = before(&server);
    through(&mut workspace, &proxy);
    for place in [1, 2, 20, 38, 39] {
        let splits = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&splits);
        proxy.on_bytes(move |way, _, mut bytes| match memmem::rfind(&bytes, &mark) {
            Some(found) if way == Way::Down => {
                counted.fetch_add(1, Ordering::SeqCst);
                let rest = bytes.split_off(found + place);
                vec![Step::Send(bytes), Step::Wait(Duration::from_millis(80)), Step::Send(rest)]
            }
            _ => vec![Step::Send(bytes)],
        });
        assert_eq!(back_up(&workspace)["rows"], 2000);
        assert!(splits.load(Ordering::SeqCst) > 0, "the mark was there to be split");
    }
    let target = Redis::start_with(RedisVersion::V70, TARGET);
    restore(&workspace, &target, &[]).ok();
    assert_eq!(server.digest(), target.digest());
}

/// The whole exchange and the end of the file byte by byte.
#[test]
fn a_dump_byte_by_byte() {
    for lines in [DISKLESS, &[]] {
        let server = Redis::start_with(RedisVersion::V82, lines);
        server.fill("types", 1, 2);
        if lines.is_empty() {
            save_once(&server);
        }
        let mut workspace = initialised(Mode::Clear, &server);
        let proxy = before(&server);
        through(&mut workspace, &proxy);
        proxy.on_bytes(|way, _, bytes| {
            // Large packets in two, of which one is a single byte; small ones in bytes.
            let size = if way == Way::Up || bytes.len() > 2000 { bytes.len() - 1 } else { 1 };
            bytes.chunks(size.max(1)).map(|piece| Step::Send(piece.to_vec())).collect()
        });
        let held = server.keys();
        assert_eq!(back_up(&workspace)["rows"], held);
        workspace.run(&["verify", "latest", "--level", "content"]).ok();
    }
}

/// The mark is data too: in a value, as a key, as the last bytes of the file, and with what looks like the end before it.
#[test]
fn the_end_mark_inside_values() {
    for version in [RedisVersion::V62, RedisVersion::V70] {
        let server = Redis::start_with(version, DISKLESS);
        let mark = end_mark(&server);
        super::assert_at_rest(&server);
        assert_eq!(mark, end_mark(&server), "a server has one mark; without that this test shows nothing");
        super::assert_at_rest(&server);
        let mut connection = server.connection();
        let mut set = |key: &[u8], value: &[u8]| redis::cmd("SET").arg(key).arg(value).exec(&mut connection).unwrap();
        let end = [&[0xff; 1][..], &[0; 8], &mark].concat();
        set(b"a", &mark);
        set(&mark, b"value");
        set(b"b", &[&[b'x'; 100_000][..], &mark, &[b'y'; 100_000]].concat());
        set(b"like an end", &end);
        let incompressible: Vec<u8> = (0..200_000).map(|_| rand::random()).collect();
        for n in 0..50 {
            set(format!("c{n}").as_bytes(), &[&incompressible[..n * 1000 + 1], &end, &mark, &mark].concat());
        }
        let mut workspace = initialised(Mode::Clear, &server);
        let held = server.keys();
        assert_eq!(back_up(&workspace)["rows"], held);

        // Also where a read ends right behind each of them.
        let proxy = before(&server);
        let seen = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&seen);
        proxy.on_bytes(in_dump(move |_, bytes| {
            let mut steps = Vec::new();
            let mut start = 0;
            for found in memmem::find_iter(&bytes, &mark) {
                count.fetch_add(1, Ordering::SeqCst);
                steps.push(Step::Send(bytes[start..found + mark.len()].to_vec()));
                steps.push(Step::Wait(Duration::from_millis(5)));
                start = found + mark.len();
            }
            steps.push(Step::Send(bytes[start..].to_vec()));
            steps
        }));
        through(&mut workspace, &proxy);
        assert_eq!(back_up(&workspace)["rows"], held);
        assert!(seen.load(Ordering::SeqCst) > 50, "the values were sent as they are");
        let target = Redis::start_with(version, TARGET);
        restore(&workspace, &target, &[]).ok();
        assert_eq!(server.digest(), target.digest());
    }
}

/// One bit that changed on the way, anywhere in the file or its mark: no backup.
#[test]
fn a_corrupt_byte() {
    for lines in [DISKLESS, &[]] {
        let server = Redis::start_with(RedisVersion::V70, lines);
        server.fill("types", 1, 3);
        if lines.is_empty() {
            save_once(&server);
        }
        let mut workspace = initialised(Mode::Clear, &server);
        let proxy = before(&server);
        through(&mut workspace, &proxy);
        let length = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&length);
        proxy.on_bytes(in_dump(move |offset, bytes| {
            seen.store(offset + bytes.len() as u64, Ordering::SeqCst);
            vec![Step::Send(bytes)]
        }));
        back_up(&workspace);
        let length = length.load(Ordering::SeqCst);
        assert!(length > 100_000);

        let mut random = seeded();
        // The last bytes are the checksum and, without a file, the mark. The first nine name the version.
        let last = [0, 8, 30, 39, 41, 47].map(|back| length - 1 - back);
        let offsets: Vec<u64> =
            (0..20).map(|_| random.random_range(9..length - 100)).chain(last).chain([0, 3, 4]).collect();
        for at in offsets {
            let bit = 1_u8 << random.random_range(0..8);
            println!("byte {at} of {length}, bit {bit:#x}");
            proxy.on_bytes(in_dump(move |offset, mut bytes| {
                if let Some(place) = at.checked_sub(offset).and_then(|place| usize::try_from(place).ok())
                    && let Some(byte) = bytes.get_mut(place)
                {
                    *byte ^= bit;
                }
                vec![Step::Send(bytes)]
            }));
            workspace.run(&["backup"]).deadline(SOON).output().assert_error(1, &["source `cache`", "dump"]);
            assert_eq!(recorded(&workspace), 1);
        }
        proxy.reset();
        back_up(&workspace);
    }
}

/// One bit of the version's digits: it may look like a version that nobody knows, and is a damaged file all the same.
#[test]
fn a_corrupt_version() {
    let server = Redis::start_with(RedisVersion::V70, DISKLESS);
    server.fill("altlas", 100, 4);
    let mut workspace = initialised(Mode::Clear, &server);
    let proxy = before(&server);
    through(&mut workspace, &proxy);
    for at in 5..9 {
        proxy.on_bytes(in_dump(move |offset, mut bytes| {
            if offset <= at && at < offset + bytes.len() as u64 {
                bytes[usize::try_from(at - offset).unwrap()] ^= 1;
            }
            vec![Step::Send(bytes)]
        }));
        workspace.run(&["backup"]).deadline(SOON).output().assert_error(1, &["source `cache`", "dump"]);
        assert_eq!(recorded(&workspace), 0, "digit {at}");
    }
}
