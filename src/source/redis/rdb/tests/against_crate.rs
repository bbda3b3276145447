//! The files that the crate `rdb` 0.4.0 is tested with, read by both. It decodes no streams, modules and TTLs of fields.

use rdb::{RdbDecoder, RdbValue, filter::Simple};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::*;
use crate::source::redis::rdb::canonical::{self, Ordered, Unordered};

type Keys = BTreeMap<(u64, Vec<u8>), (Class, Option<u64>, Digest)>;

/// What the crate reads: keys, and the hash of their values.
fn theirs(bytes: &[u8]) -> Option<Keys> {
    let mut keys = Keys::new();
    let mut db = 0;
    for item in RdbDecoder::new(bytes, Simple::new()).ok()? {
        let hash = |bytes: &[u8]| xxh3_128_with_seed(bytes, SEED);
        let (class, key, expiry, digest) = match item.ok()? {
            RdbValue::SelectDb(number) => {
                db = u64::from(number);
                continue;
            }
            RdbValue::String { key, value, expiry } => (Class::String, key, expiry, hash(&value)),
            RdbValue::List { key, values, expiry } => {
                let mut all = Ordered::new(SEED);
                values.iter().for_each(|value| all.add(hash(value)));
                (Class::List, key, expiry, all.finish())
            }
            RdbValue::Set { key, members, expiry } => {
                let mut all = Unordered::new(SEED);
                members.iter().for_each(|member| all.add(hash(member)));
                (Class::Set, key, expiry, all.finish())
            }
            RdbValue::SortedSet { key, values, expiry } => {
                let mut all = Unordered::new(SEED);
                values.iter().for_each(|(score, member)| {
                    all.add(canonical::of(SEED, [hash(member), canonical::score(*score)]));
                });
                (Class::Zset, key, expiry, all.finish())
            }
            RdbValue::Hash { key, values, expiry } => {
                let mut all = Unordered::new(SEED);
                values.iter().for_each(|(field, value)| all.add(canonical::of(SEED, [hash(field), hash(value), 0])));
                (Class::Hash, key, expiry, all.finish())
            }
            _ => continue,
        };
        let head = [u128::from(db), hash(&key), u128::from(expiry.unwrap_or(0)), class.code(), digest];
        keys.insert((db, key), (class, expiry, canonical::of(SEED, head)));
    }
    Some(keys)
}

fn compare(name: &str, bytes: &[u8]) {
    let walked = read(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let theirs = theirs(bytes).unwrap_or_else(|| panic!("{name}: the crate does not read it"));
    let with_ttls = |kind: u8| (22..=25).contains(&kind);
    let mut compared = 0;
    for (key, seen) in &walked.visitor.keys {
        let class = seen.class.unwrap();
        if matches!(class, Class::Stream | Class::Module) {
            assert!(!theirs.contains_key(key), "{name}");
            continue;
        }
        compared += 1;
        let (their_class, expiry, digest) = &theirs[key];
        assert_eq!((class, seen.expiry), (*their_class, *expiry), "{name}: {key:?}");
        assert!(with_ttls(seen.kind) || seen.digest == *digest, "{name}: {key:?} of type {}", seen.kind);
    }
    assert_eq!(compared, theirs.len(), "{name}");
}

#[test]
fn both_read_the_same_from_the_crates_files() {
    let mut read_by_both = 0;
    for (name, bytes) in files("rdb-crate") {
        if name == "redis_8_6_all_types.rdb" {
            assert!(matches!(read(&bytes), Err(RdbError::TooNew { version }) if version == "13"));
        } else {
            compare(&name, &bytes);
            read_by_both += 1;
        }
    }
    assert_eq!(read_by_both, 30);
}

#[test]
fn both_read_the_same_from_our_files() {
    for (name, bytes) in files("rdb") {
        compare(&name, &bytes);
    }
}
