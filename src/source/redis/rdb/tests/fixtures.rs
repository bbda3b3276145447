//! Files of 6.2, 7.0 and 8.2 against what a client read from those servers: every content is hashed once more, from the client's
//! words and not from an encoding.

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::*;
use crate::source::redis::rdb::canonical::{self, Ordered, Unordered};

/// Bytes of a listing: characters of the same number, or a repetition.
fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect(),
        Value::Object(_) => {
            let unit = bytes(&value["of"]);
            unit.iter().copied().cycle().take(value["len"].as_u64().unwrap() as usize).collect()
        }
        other => panic!("{other} are no bytes"),
    }
}

fn hash(value: &Value) -> Digest {
    xxh3_128_with_seed(&bytes(value), SEED)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn ordered(digests: impl Iterator<Item = Digest>) -> Digest {
    let mut all = Ordered::new(SEED);
    digests.for_each(|digest| all.add(digest));
    all.finish()
}

fn unordered(digests: impl Iterator<Item = Digest>) -> Digest {
    let mut all = Unordered::new(SEED);
    digests.for_each(|digest| all.add(digest));
    all.finish()
}

fn number(value: &Value) -> u128 {
    u128::from(value.as_u64().unwrap())
}

fn id(value: &Value) -> u128 {
    let (ms, seq) = value.as_str().unwrap().split_once('-').unwrap();
    ms.parse::<u128>().unwrap() << 64 | seq.parse::<u128>().unwrap()
}

fn stream(content: &Value) -> Digest {
    let entries = ordered(array(&content["entries"]).iter().map(|entry| {
        let fields = array(&entry[1]);
        let names = ordered(fields.iter().step_by(2).map(hash));
        let values = ordered(fields.iter().skip(1).step_by(2).map(hash));
        canonical::of(SEED, [id(&entry[0]), names, values])
    }));
    let groups = unordered(array(&content["groups"]).iter().map(|group| {
        let pending = unordered(
            array(&group[2]).iter().map(|one| canonical::of(SEED, [id(&one[0]), number(&one[2]), number(&one[3])])),
        );
        let consumers = unordered(array(&group[3]).iter().map(|name| {
            let owned = array(&group[2]).iter().filter(|one| one[1] == *name);
            let owned = unordered(owned.map(|one| canonical::of(SEED, [id(&one[0])])));
            canonical::of(SEED, [hash(name), owned])
        }));
        canonical::of(SEED, [hash(&group[0]), id(&group[1]), pending, consumers])
    }));
    canonical::of(SEED, [entries, number(&content["length"]), id(&content["last"]), groups])
}

/// What a client read, as the walker must tell it.
fn told(key: &Value) -> ((u64, Vec<u8>), Seen) {
    let content = &key["content"];
    let (class, value, module) = match key["type"].as_str().unwrap() {
        "string" => (Class::String, hash(content), None),
        "list" => (Class::List, ordered(array(content).iter().map(hash)), None),
        "set" => (Class::Set, unordered(array(content).iter().map(hash)), None),
        "zset" => {
            let score = |member: &Value| member[1].as_str().unwrap().parse::<f64>().unwrap();
            let members = array(content)
                .iter()
                .map(|member| canonical::of(SEED, [hash(&member[0]), canonical::score(score(member))]));
            (Class::Zset, unordered(members), None)
        }
        "hash" => {
            let fields = array(content)
                .iter()
                .map(|field| canonical::of(SEED, [hash(&field[0]), hash(&field[1]), number(&field[2])]));
            (Class::Hash, unordered(fields), None)
        }
        "stream" => (Class::Stream, stream(content), None),
        "module" => (Class::Module, hash(content), Some(content.as_str().unwrap().to_owned())),
        other => panic!("{other}"),
    };
    let (db, name, expiry) = (key["db"].as_u64().unwrap(), bytes(&key["key"]), key["expiry"].as_u64());
    let digest = canonical::of(
        SEED,
        [u128::from(db), xxh3_128_with_seed(&name, SEED), u128::from(expiry.unwrap_or(0)), class.code(), value],
    );
    ((db, name), Seen { expiry, class: Some(class), digest, module, ..Seen::default() })
}

fn listing(name: &str) -> Value {
    serde_json::from_slice(&fixture(name)).unwrap()
}

/// Every key of the listing is in the file, as it should be, and no other; says which types the file is written with.
fn compare(file: &str, listing: &Value) -> Vec<u8> {
    let bytes = fixture(file);
    let walked = read(&bytes).unwrap();
    assert_eq!(walked.length, bytes.len() as u64);
    assert_eq!(walked.checksum, !file.starts_with("nosum"));
    assert!(walked.rest.is_empty());
    assert!(walked.visitor.aux.iter().any(|(name, _)| name == b"redis-ver"));
    let mut found = walked.visitor.keys;
    for key in array(&listing["keys"]) {
        let (name, told) = told(key);
        let label = String::from_utf8_lossy(&name.1).into_owned();
        let seen = found.remove(&name).unwrap_or_else(|| panic!("{file}: {label} is missing"));
        assert_eq!((seen.expiry, seen.class, &seen.module), (told.expiry, told.class, &told.module), "{file}: {label}");
        assert_eq!(seen.digest, told.digest, "{file}: {label} of type {}", seen.kind);
        if let Some(dump) = key["dump"].as_str() {
            let payload = [&[seen.kind], &seen.raw[..]].concat();
            let sum: String = Sha256::digest(payload).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(sum, dump, "{file}: the payload of {label}, of type {}", seen.kind);
        }
        let from = seen.offset as usize;
        assert_eq!(bytes[from..from + seen.raw.len()], seen.raw);
    }
    assert!(found.is_empty(), "{file}: {found:?}");
    let functions = listing["functions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let told: BTreeMap<_, _> = functions.iter().map(|source| (super::fixtures::bytes(source), hash(source))).collect();
    assert_eq!(walked.visitor.functions, told);
    kinds(&bytes)
}

fn kinds(bytes: &[u8]) -> Vec<u8> {
    let mut kinds: Vec<u8> = read(bytes).unwrap().visitor.keys.values().map(|seen| seen.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

#[test]
fn one_content_has_one_hash_whoever_wrote_it_and_however() {
    let listing = listing("common.json");
    let mut all = Vec::new();
    for (file, types) in [
        ("common-6.2-packed.rdb", &[0, 11, 2, 12, 13, 14, 15][..]),
        ("common-6.2-plain.rdb", &[0, 2, 4, 5, 14, 15]),
        ("common-7.0-packed.rdb", &[0, 2, 11, 16, 17, 18, 19]),
        ("common-7.0-plain.rdb", &[0, 2, 4, 5, 18, 19]),
        ("common-7.0-restored.rdb", &[0, 2, 11, 16, 17, 18, 19]),
        ("common-8.2-packed.rdb", &[0, 11, 16, 17, 18, 20, 21]),
        ("common-8.2-plain.rdb", &[0, 2, 4, 5, 18, 21]),
        ("common-8.2-restored.rdb", &[0, 11, 16, 17, 18, 20, 21]),
    ] {
        let mut types = types.to_vec();
        types.sort_unstable();
        assert_eq!(compare(file, &listing), types, "{file}");
        let digests: Vec<_> =
            read(&fixture(file)).unwrap().visitor.keys.into_values().map(|seen| seen.digest).collect();
        all.push(digests);
    }
    assert!(all.iter().all(|digests| *digests == all[0]));
}

#[test]
fn what_is_particular_to_a_version_is_read() {
    let mut types: Vec<u8> = Vec::new();
    for name in ["own-6.2", "own-7.0", "own-8.2", "cluster-8.2", "nosum-7.0", "functions-7.0"] {
        types.extend(compare(&format!("{name}.rdb"), &listing(&format!("{name}.json"))));
    }
    assert!([7, 24, 25].iter().all(|kind| types.contains(kind)), "{types:?}");
    let modules = read(&fixture("own-8.2.rdb")).unwrap().visitor.keys.into_values().filter_map(|seen| seen.module);
    assert_eq!(modules.collect::<Vec<_>>(), ["vectorset"]);
}

#[test]
fn the_hash_says_where_a_difference_is_possible() {
    let keys = read(&fixture("common-8.2-packed.rdb")).unwrap().visitor.keys;
    let mut digests: Vec<_> = keys.values().map(|seen| seen.digest).collect();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), keys.len());
    let seeded = Keep { seed: Some(SEED + 1), ..Keep::default() };
    let other = walk(&fixture("common-8.2-packed.rdb")[..], SEED + 1, seeded).unwrap().visitor.keys;
    assert!(keys.iter().all(|(name, seen)| other[name].digest != seen.digest));
}

#[test]
fn slices_do_not_matter_and_no_more_is_asked_for_than_there_is() {
    let mut chance = Chance(7);
    for (name, bytes) in files("rdb") {
        let whole = read(&bytes).unwrap();
        let most = [1, 2, 7, 100, 5000];
        for most in if bytes.len() > 5000 { &most[2..] } else { &most[..] } {
            let lens = || 1 + chance.below(*most);
            let walked = walk(Pieces { bytes: &bytes, lens, socket: true }, SEED, Keep::default()).unwrap();
            assert_eq!(walked.visitor, whole.visitor, "{name} in pieces of up to {most}");
        }
    }
}

#[test]
fn what_follows_the_file_is_handed_back() {
    let mut bytes = fixture("cluster-8.2.rdb");
    let length = bytes.len() as u64;
    bytes.extend_from_slice(b"and the end mark of the protocol");
    let walked = walk(Pieces { bytes: &bytes, lens: || usize::MAX, socket: true }, SEED, Keep::default()).unwrap();
    assert_eq!((walked.length, &walked.rest[..]), (length, &b"and the end mark of the protocol"[..]));
}

#[test]
fn versions_that_are_not_known_are_named_at_once() {
    let error = |bytes: &[u8]| walk(Pieces { bytes, lens: || 9, socket: true }, SEED, Keep::default()).unwrap_err();
    for (header, version) in [("REDIS0013", "13"), ("VALKEY080", "VALKEY080"), ("REDIS9999", "9999")] {
        assert!(matches!(error(header.as_bytes()), RdbError::TooNew { version: told } if told == version));
    }
    assert!(matches!(error(b"REDIS0001"), RdbError::TooOld { version: 1 }));
    assert!(matches!(error(b"REDIS+012"), RdbError::NotRdb));
    assert!(matches!(error(b"\x1f\x8b something"), RdbError::NotRdb));
    assert!(matches!(read(b"REDIS00"), Err(RdbError::Truncated { offset: 7 })));
}

#[test]
fn a_wrong_checksum_is_told() {
    let mut bytes = fixture("common-7.0-packed.rdb");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert!(matches!(read(&bytes), Err(RdbError::Checksum { told, found }) if told == found ^ 1 << 56));
}

#[test]
fn a_visitor_ends_the_walk() {
    #[derive(Debug)]
    struct Enough;
    impl Visitor for Enough {
        fn value(&mut self, _bytes: &[u8]) -> Result<(), String> {
            Err("enough".into())
        }
    }
    let error = walk(&fixture("nosum-7.0.rdb")[..], SEED, Enough).unwrap_err();
    assert!(matches!(error, RdbError::Stopped(why) if why == "enough"));
}
