//! Values larger than anybody's memory, made as they are read.

use xxhash_rust::xxh3::Xxh3;

use super::*;
use crate::source::redis::rdb::canonical::{self, Ordered};

/// Parts of a file, each repeated so many times.
struct Made {
    parts: Vec<(Vec<u8>, u64)>,
    part: usize,
    times: u64,
    at: usize,
}

impl Made {
    fn new(parts: Vec<(Vec<u8>, u64)>) -> Self {
        Self { parts, part: 0, times: 0, at: 0 }
    }
}

impl Read for Made {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let Some((bytes, most)) = self.parts.get(self.part) else { return Ok(0) };
        let n = into.len().min(bytes.len() - self.at);
        into[..n].copy_from_slice(&bytes[self.at..self.at + n]);
        self.at += n;
        if self.at == bytes.len() {
            (self.at, self.times) = (0, self.times + 1);
        }
        if self.times == *most {
            (self.part, self.times) = (self.part + 1, 0);
        }
        Ok(n)
    }
}

/// Keeps lengths and hashes, and the largest slice that came.
#[derive(Debug, Default)]
struct Measure {
    largest: usize,
    ends: Vec<(u64, Digest)>,
}

impl Visitor for Measure {
    fn value(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.largest = self.largest.max(bytes.len());
        Ok(())
    }
    fn end(&mut self, end: &KeyEnd<'_>) -> Result<(), String> {
        self.ends.push((end.length, end.digest));
        Ok(())
    }
}

fn long(length: u64) -> Vec<u8> {
    [&[0x81], &length.to_be_bytes()[..]].concat()
}

fn hash(unit: &[u8], times: u64) -> Digest {
    let mut hasher = Xxh3::with_seed(SEED);
    (0..times).for_each(|_| hasher.update(unit));
    hasher.digest128()
}

fn key(class: Class, value: Digest) -> Digest {
    canonical::of(SEED, [0, xxhash_rust::xxh3::xxh3_128_with_seed(b"k", SEED), 0, class.code(), value])
}

/// Walks one key of this type and value. Files that are made as they are read have no checksum.
fn walk_one(kind: u8, mut parts: Vec<(Vec<u8>, u64)>) -> (u64, Digest) {
    parts.insert(0, ([&b"REDIS0012"[..], &[kind, 1, b'k']].concat(), 1));
    parts.push((vec![255, 0, 0, 0, 0, 0, 0, 0, 0], 1));
    let walked = walk(Made::new(parts), SEED, Measure::default()).unwrap();
    assert!(walked.visitor.largest <= 128 * 1024);
    assert!(!walked.checksum);
    walked.visitor.ends[0]
}

const MIB: u64 = 1 << 20;

#[test]
fn a_string_of_two_gib() {
    let unit: Vec<u8> = (0..MIB).map(|i| (i % 251) as u8).collect();
    let (length, digest) = walk_one(0, vec![(long(2048 * MIB), 1), (unit.clone(), 2048)]);
    assert_eq!(length, 9 + 2048 * MIB);
    assert_eq!(digest, key(Class::String, hash(&unit, 2048)));
}

#[test]
fn a_list_of_huge_compressed_elements() {
    // One byte as it is, then copies of 264 bytes from one byte back, three bytes each.
    let copies = 64 * MIB / 264;
    let plain = 1 + 264 * copies;
    let head = [&[0xc3][..], &long(2 + 3 * copies), &long(plain), &[0, b'a']].concat();
    let unit: Vec<u8> = [0xe0, 0xff, 0].iter().copied().cycle().take(3 * 4096).collect();
    let mut parts = vec![(vec![4], 1)];
    for _ in 0..4 {
        parts.extend([(head.clone(), 1), (unit.clone(), copies / 4096), (vec![0xe0, 0xff, 0], copies % 4096)]);
    }
    let (_, digest) = walk_one(1, parts);
    let mut elements = Ordered::new(SEED);
    let one = {
        let mut hasher = Xxh3::with_seed(SEED);
        hasher.update(b"a");
        (0..copies).for_each(|_| hasher.update(&[b'a'; 264]));
        hasher.digest128()
    };
    (0..4).for_each(|_| elements.add(one));
    assert_eq!(digest, key(Class::List, elements.finish()));
}

#[test]
fn a_listpack_with_a_huge_element() {
    let len = 512 * MIB;
    let unit = vec![b'x'; MIB as usize];
    let total = 6 + 5 + len + 5 + 2 + 1;
    let (length, digest) = walk_one(
        18,
        vec![
            (
                [&[1, 2][..], &long(total), &(total as u32).to_le_bytes(), &[2, 0, 0xf0], &(len as u32).to_le_bytes()]
                    .concat(),
                1,
            ),
            (unit.clone(), 512),
            // The length behind it, the number 7 with its own, and the end.
            (vec![1, 0x80, 0x80, 0x80, 0x85, 7, 1, 255], 1),
        ],
    );
    assert_eq!(length, 2 + 9 + total);
    let mut elements = Ordered::new(SEED);
    elements.add(hash(&unit, 512));
    elements.add(hash(b"7", 1));
    assert_eq!(digest, key(Class::List, elements.finish()));
}

#[test]
fn a_million_elements_in_a_compressed_listpack() {
    // The number 7 and the length behind it, two bytes, copied again and again.
    let copies = 2 * MIB / 264;
    let count = 1 + 132 * copies;
    let total = 6 + 2 * count + 1;
    let head = [&[7], &(total as u32).to_le_bytes()[..], &[255, 255, 7, 1]].concat();
    let compressed = head.len() as u64 + 3 * copies + 2;
    let (_, digest) = walk_one(
        18,
        vec![
            ([&[1, 2, 0xc3][..], &long(compressed), &long(total), &head].concat(), 1),
            (vec![0xe0, 255, 1], copies),
            (vec![0, 255], 1),
        ],
    );
    let mut elements = Ordered::new(SEED);
    (0..count).for_each(|_| elements.add(hash(b"7", 1)));
    assert_eq!(digest, key(Class::List, elements.finish()));
}
