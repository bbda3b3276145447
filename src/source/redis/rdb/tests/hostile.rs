//! Bytes that no server wrote: cut off, changed at random with and without a right checksum, and lengths that are lies.

use super::*;

/// Keeps nothing but what could grow without bound, and checks that slices stay small.
#[derive(Default)]
struct Watch {
    given: u64,
    keys: u64,
}

impl Visitor for Watch {
    fn function(&mut self, source: &[u8], _digest: Digest) -> Result<(), String> {
        self.given += source.len() as u64;
        Ok(())
    }
    fn key(&mut self, head: &KeyHead<'_>) -> Result<(), String> {
        self.given += head.key.len() as u64;
        Ok(())
    }
    fn value(&mut self, bytes: &[u8]) -> Result<(), String> {
        assert!(!bytes.is_empty() && bytes.len() <= 128 * 1024);
        Ok(())
    }
    fn end(&mut self, _end: &KeyEnd<'_>) -> Result<(), String> {
        self.keys += 1;
        Ok(())
    }
}

/// Files small enough to be tried in many ways.
fn small() -> Vec<(String, Vec<u8>)> {
    let mut all = files("rdb");
    all.extend(files("rdb-crate"));
    all.retain(|(_, bytes)| bytes.len() < 8000 && read(bytes).is_ok());
    assert!(all.len() > 30);
    all
}

#[test]
fn a_file_that_is_cut_off_is_never_taken_for_whole() {
    for (name, bytes) in small() {
        for cut in 0..bytes.len() {
            match walk(&bytes[..cut], SEED, Watch::default()) {
                Err(RdbError::Truncated { offset }) => assert_eq!(offset, cut as u64, "{name} at {cut}"),
                Err(error) => panic!("{name} cut at {cut}: {error}"),
                Ok(_) => panic!("{name} cut at {cut} is taken for whole"),
            }
        }
    }
}

/// Some bytes changed, added or taken away behind the header.
fn mutate(bytes: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + chance.below(8) {
        let at = 9 + chance.below(bytes.len() - 9);
        // Values that begin or end something are likelier to lead somewhere.
        let byte = match chance.below(4) {
            0 => [0x80, 0x81, 0xc3, 0xff, 0xfe, 0xf0, 0, 0x7f][chance.below(8)],
            1 => bytes.get(at).map_or(0, |byte| byte ^ 1 << chance.below(8)),
            2 => chance.below(26) as u8,
            _ => chance.next() as u8,
        };
        match chance.below(6) {
            0 => bytes.insert(at.min(bytes.len()), byte),
            1 if bytes.len() > 20 => drop(bytes.remove(at.min(bytes.len() - 1))),
            _ => {
                if let Some(slot) = bytes.get_mut(at) {
                    *slot = byte;
                }
            }
        }
    }
    bytes
}

/// The checksum at the end made right, so that it saves nobody.
fn seal(bytes: &mut [u8]) {
    if let Some(body) = bytes.len().checked_sub(8) {
        let sum = crc(&bytes[..body]).to_le_bytes();
        bytes[body..].copy_from_slice(&sum);
    }
}

#[test]
fn changed_bytes_end_in_an_error_or_in_a_whole_file() {
    let mut chance = Chance(0xa17a5);
    let small = small();
    let (mut whole, mut clear) = (0, 0);
    for round in 0..100_000 {
        let (_, bytes) = &small[round % small.len()];
        let mut bytes = mutate(bytes, &mut chance);
        if round % 2 == 0 {
            seal(&mut bytes);
        }
        let most = [3, 50, 1000, usize::MAX][chance.below(4)];
        let mut lens = Chance(round as u64 + 1);
        let from = Pieces { bytes: &bytes, lens: || lens.below(most), socket: false };
        match walk(from, SEED, Watch::default()) {
            Ok(walked) => {
                whole += 1;
                assert!(walked.length + walked.rest.len() as u64 <= bytes.len() as u64);
            }
            Err(RdbError::Read { .. } | RdbError::Stopped(_)) => panic!("nobody stopped it"),
            Err(error) => {
                clear += 1;
                assert!(error.to_string().len() < 200);
            }
        }
    }
    // Both must happen, or the checksums were not made right.
    assert!(whole > 1000 && clear > 50_000, "{whole} {clear}");
}

/// An error without its offset, which may be a few bytes behind.
fn what(error: RdbError) -> String {
    let text = error.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, what)| what.to_owned())
}

#[test]
fn the_pieces_that_changed_bytes_come_in_do_not_matter() {
    let mut chance = Chance(99);
    for (name, bytes) in small() {
        for _ in 0..20 {
            let mut bytes = mutate(&bytes, &mut chance);
            seal(&mut bytes);
            let whole = read(&bytes).map(|walked| walked.visitor).map_err(what);
            let most = 1 + chance.below(40);
            let from = Pieces { bytes: &bytes, lens: || chance.below(most), socket: false };
            let pieces = walk(from, SEED, Keep::default());
            assert_eq!(pieces.map(|walked| walked.visitor).map_err(what), whole, "{name}");
        }
    }
}

/// A length of 64 bits.
fn long(length: u64) -> Vec<u8> {
    [&[0x81], &length.to_be_bytes()[..]].concat()
}

#[test]
fn lengths_are_not_believed() {
    let lie = long(1 << 62);
    let most = long(u64::MAX);
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("a key", vec![vec![0], lie.clone()]),
        ("a key of what is just allowed", vec![vec![0], long(64 << 20), b"abc".to_vec()]),
        ("a compressed key", vec![vec![0, 0xc3], long(10), long(64 << 20), vec![0, b'a', 0xe0, 255, 0]]),
        ("an auxiliary field", vec![vec![250], most.clone(), b"abc".to_vec()]),
        ("a function", vec![vec![245], lie.clone(), b"abc".to_vec()]),
        ("a string", vec![vec![0, 1, b'k'], most.clone(), b"abc".to_vec()]),
        ("a compressed string", vec![vec![0, 1, b'k', 0xc3], most.clone(), most.clone(), vec![0, b'a', 0xe0, 255, 0]]),
        ("a list", vec![vec![1, 1, b'k'], most.clone(), vec![0, 0, 0]]),
        ("a set", vec![vec![2, 1, b'k'], most.clone(), vec![0, 0, 0]]),
        ("a hash", vec![vec![4, 1, b'k'], most.clone(), vec![0, 0, 0]]),
        ("a sorted set", vec![vec![5, 1, b'k'], most.clone(), vec![0, 0, 0]]),
        ("a quicklist", vec![vec![18, 1, b'k'], most.clone(), vec![1, 0, 1, 0]]),
        ("a listpack", vec![vec![16, 1, b'k', 7, 0xff, 0xff, 0xff, 0xff, 0, 0, 255]]),
        ("an element of a listpack", vec![vec![20, 1, b'k', 12, 12, 0, 0, 0, 1, 0, 0xf0, 0xff, 0xff, 0xff, 0xff, 255]]),
        (
            "an element of a ziplist",
            vec![vec![10, 1, b'k', 16, 16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x80, 0xff, 0xff, 0xff, 0xff]],
        ),
        ("an intset", vec![vec![11, 1, b'k', 10, 8, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 1]]),
        ("an element of a zipmap", vec![vec![9, 1, b'k', 8, 1, 254, 0xff, 0xff, 0xff, 0xff, 1, 1]]),
        ("a stream's nodes", vec![vec![21, 1, b'k'], most.clone(), vec![1, 0]]),
        ("a stream's groups", vec![vec![15, 1, b'k', 0, 0, 0, 0], most.clone(), vec![0, 0, 0]]),
        ("a module's string", vec![vec![7, 1, b'k', 1, 5], most.clone(), vec![0]]),
    ];
    for (name, parts) in cases {
        let error = read(&[b"REDIS0012".to_vec(), parts.concat()].concat()).unwrap_err();
        assert!(matches!(error, RdbError::Corrupt { .. } | RdbError::Truncated { .. }), "{name}: {error}");
        // Followed by plenty that means nothing, it must not run on for long either.
        let more = [b"REDIS0012".to_vec(), parts.concat(), vec![0; 100_000], vec![255; 100_000]].concat();
        assert!(read(&more).is_err(), "{name}");
    }
}

#[test]
fn a_compressed_string_is_as_long_as_it_says() {
    let string = |compressed: u8, plain: u8, bytes: &[u8]| {
        read(&file(12, &[&[0, 1, b'k', 0xc3, compressed, plain], bytes].concat())).map(|walked| walked.length)
    };
    // Three times `a`: one as it is, and a copy into itself is at least three long.
    assert!(string(4, 4, &[0, b'a', 0x20, 0]).is_ok());
    for (compressed, plain, bytes) in [
        (4, 5, &[0, b'a', 0x20, 0][..]),
        (4, 3, &[0, b'a', 0x20, 0]),
        (3, 4, &[0, b'a', 0x20, 0]),
        (5, 4, &[0, b'a', 0x20, 0, 0]),
        (4, 4, &[0, b'a', 0x20, 1]),
        (0, 1, &[]),
        (2, 0, &[0, b'a']),
        (1, 1, &[31]),
        (1, 9, &[0xe0]),
    ] {
        let error = string(compressed, plain, bytes).unwrap_err();
        assert!(matches!(error, RdbError::Corrupt { .. }), "{compressed} {plain} {bytes:?}: {error}");
    }
}
