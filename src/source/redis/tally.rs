//! What a dump holds, in counts and sums: the fingerprint of a Redis snapshot.
//!
//! Keys are summed up by database, class and whether they expire, so that a difference can be told apart. Sums are modulo 2^128 over
//! the keys' digests, so their order says nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    compare::{self, Differences, Place},
    rdb::{Class, Digest, KeyEnd, KeyHead, KeyParts, Visitor},
    sketch::{self, Sketch},
};
use crate::{
    crypt::hex,
    pipeline::{Fingerprint, Progress},
};

/// Values that are longer than this, in bytes of the file, are listed with their length: `RESTORE` wants it first, and they are not held.
pub(super) const LARGE: u64 = 1024 * 1024;
/// Keys that expire are told apart by the minute for so long; whatever lives longer is taken for lasting.
const HORIZON: u64 = 48 * 60;
const MINUTE: u64 = 60_000;
/// Minutes that a key must live on for to be named where it differs: no more than a few names can be told, and keys that a server has
/// expired meanwhile would take them all.
const NAMED: u64 = 60;
/// Names of modules and function libraries that are kept.
const MOST_NAMES: usize = 10_000;
/// Of a function library's name, so many characters.
const MOST_NAME: usize = 100;
/// Bytes of function libraries that are kept; whatever more there is, is only counted.
const MOST_LIBRARIES: usize = 16 * 1024 * 1024;

/// Keys, and the sum of their digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sum {
    pub(super) keys: u64,
    #[serde(with = "hex_sum")]
    pub(super) sum: u128,
}

impl Sum {
    pub(super) fn add(&mut self, digest: Digest) {
        self.keys += 1;
        self.sum = self.sum.wrapping_add(digest);
    }

    /// Takes a key out.
    pub(super) fn remove(&mut self, digest: Digest) {
        self.keys = self.keys.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(digest);
    }

    fn join(&mut self, other: Self) {
        self.keys += other.keys;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// 32 hex digits.
pub(super) mod hex_sum {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::hex;

    pub(in super::super) fn serialize<S: Serializer>(sum: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{sum:032x}"))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        let text = String::deserialize(from)?;
        hex::decode(&text).map(u128::from_be_bytes).ok_or_else(|| D::Error::custom("not 32 hex digits"))
    }
}

/// The keys of one class in one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) db: u64,
    pub(super) class: Class,
    /// Keys that never expire.
    pub(super) lasting: Sum,
    /// Keys that expire, also those whose time was over at the cut.
    pub(super) expiring: Sum,
}

/// Where a long value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Large {
    /// Its first byte, from the start of the file.
    pub(super) offset: u64,
    /// Its bytes.
    pub(super) length: u64,
}

/// Everything that is counted of one dump.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contents {
    /// By database and class.
    pub(super) keys: Vec<Counted>,
    /// Keys whose time was over when the dump was taken; they are in it all the same.
    pub(super) expired: u64,
    /// Digests of the function libraries, in hex, sorted.
    pub(super) functions: Vec<String>,
    /// Keys whose value belongs to a module, by the module type's name: their content is not in the sums.
    pub(super) module_keys: BTreeMap<String, u64>,
    /// Modules with data that belongs to no key: only a restore by file brings it back.
    pub(super) module_data: Vec<String>,
    /// Values too long to be held.
    pub(super) large: Vec<Large>,
    /// Names of the function libraries, by their digests.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) libraries: BTreeMap<String, String>,
    /// What names keys that differ; older versions did not keep it.
    #[serde(default, deserialize_with = "sketch::known", skip_serializing_if = "Option::is_none")]
    pub(super) names: Option<Sketch>,
}

impl Contents {
    /// Keys of every database that has some.
    pub(super) fn databases(&self) -> BTreeMap<u64, u64> {
        let mut databases = BTreeMap::new();
        for counted in &self.keys {
            *databases.entry(counted.db).or_default() += counted.lasting.keys + counted.expiring.keys;
        }
        databases
    }

    /// What there is, in words: a line for each database, and one for functions.
    pub(super) fn about(&self) -> Vec<String> {
        let mut lines: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for counted in &self.keys {
            let all = counted.lasting.keys + counted.expiring.keys;
            let expiring = match counted.expiring.keys {
                0 => String::new(),
                n => format!(" ({n} of them with a time to live)"),
            };
            lines.entry(counted.db).or_default().push(format!("{all} {}{expiring}", counted.class.plural()));
        }
        let mut about: Vec<String> =
            lines.iter().map(|(db, classes)| format!("db {db}: {}", classes.join(", "))).collect();
        if !self.functions.is_empty() {
            about.push(format!("function libraries: {}", self.functions.len()));
        }
        if self.expired > 0 {
            about.push(format!("past their time and not removed yet: {}", crate::report::count(self.expired, "key")));
        }
        about
    }

    /// All keys as one fingerprint; `bytes` are the file's.
    pub(super) fn fingerprint(&self, bytes: u64) -> Fingerprint {
        let mut all = Sum::default();
        for counted in &self.keys {
            all.join(counted.lasting);
            all.join(counted.expiring);
        }
        Fingerprint { rows: all.keys, bytes, sum: all.sum }
    }
}

/// How two servers' keys, and fields that expire by themselves, compare.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    /// How they differ.
    pub(super) differences: Differences,
    /// How many were compared.
    pub(super) living: u64,
    /// How many do not live on, and were not.
    pub(super) left_out: u64,
}

/// Sums by the minute in which keys expire: for a comparison with a server that goes on to expire them.
#[derive(Debug)]
pub(super) struct ByMinute {
    /// The first minute that is told apart, since 1970.
    first: u64,
    /// Only what is in these databases is counted.
    databases: BTreeSet<u64>,
    sums: BTreeMap<(u64, Class), BTreeMap<u64, Sum>>,
    /// What names keys that differ, of those that live on for [`NAMED`] minutes.
    names: Sketch,
}

impl ByMinute {
    /// Tells minutes apart from `now` on, in milliseconds since 1970.
    pub(super) fn new(now: u64, databases: impl IntoIterator<Item = u64>) -> Self {
        let databases = databases.into_iter().collect();
        Self { first: now / MINUTE, databases, sums: BTreeMap::new(), names: Sketch::new() }
    }

    fn add(&mut self, db: u64, class: Class, expiry: Option<u64>, digest: Digest) {
        if self.databases.contains(&db) {
            let last = self.first + HORIZON;
            let minute = expiry.map_or(last, |expiry| (expiry / MINUTE).clamp(self.first.saturating_sub(1), last));
            self.sums.entry((db, class)).or_default().entry(minute).or_default().add(digest);
        }
    }

    fn add_key(&mut self, key: &[u8], parts: KeyParts, digest: Digest) {
        self.add(parts.db, parts.class, parts.expiry, digest);
        let lives = parts.expiry.is_none_or(|expiry| expiry / MINUTE >= self.first + NAMED);
        if lives && self.databases.contains(&parts.db) {
            self.names.add(key, &parts, digest);
        }
    }

    /// How `found` differs among the keys (and fields that expire by themselves) that live on after `at`. `None` where `at` is too far
    /// off. Both must be of hashes under `seed`.
    pub(super) fn differences(&self, found: &Self, at: u64, seed: u64) -> Option<Comparison> {
        // A little more than the clocks' difference, so that what is about to go is on neither side.
        // A clock that is behind ours must not bring back what we took for gone.
        let after = ((at + 2000) / MINUTE + 1).max(self.first + 1);
        if after >= self.first + HORIZON || self.first != found.first {
            return None;
        }
        let living = |of: &Self| -> BTreeMap<Place, Sum> {
            let sums = of.sums.iter().map(|((db, class), minutes)| {
                let mut sum = Sum::default();
                minutes.range(after..).for_each(|(_, more)| sum.join(*more));
                ((*db, *class, None), sum)
            });
            sums.collect()
        };
        let (ours, theirs) = (living(self), living(found));
        let gone = self.sums.values().flat_map(|minutes| minutes.range(..after));
        let left_out = gone.map(|(_, sum)| sum.keys).sum();
        let living = ours.values().map(|sum| sum.keys).sum();
        let names = (after <= self.first + NAMED).then(|| self.names.against(&found.names, seed));
        Some(Comparison { differences: compare::of_keys(ours, theirs, names, seed), living, left_out })
    }
}

/// Keys of a database that never expire, and that do, by class.
type Classes = [(Sum, Sum); Class::ALL.len()];

/// Counts a dump as it passes.
pub(super) struct Tally {
    contents: BTreeMap<u64, Classes>,
    /// Those of the database that keys are being read of.
    open: (u64, Classes),
    rest: Contents,
    names: Sketch,
    by_minute: Option<ByMinute>,
    /// Sources of the function libraries, where they are wanted.
    libraries: Option<Vec<Vec<u8>>>,
    /// When the dump was taken, in milliseconds since 1970.
    taken: u64,
    /// `redis-ver` or `valkey-ver` of the file.
    pub(super) version: String,
    current: (u64, Option<u64>, u64),
    progress: Option<Arc<Progress>>,
}

impl Tally {
    /// Counts, telling `progress`.
    pub(super) fn new(progress: Option<Arc<Progress>>) -> Self {
        Self {
            contents: BTreeMap::new(),
            open: (0, Classes::default()),
            rest: Contents::default(),
            names: Sketch::new(),
            by_minute: None,
            libraries: None,
            taken: 0,
            version: String::new(),
            current: (0, None, 0),
            progress,
        }
    }

    /// Also by the minute, from `now` on, of what is in these databases.
    pub(super) fn by_minute(mut self, now: u64, databases: impl IntoIterator<Item = u64>) -> Self {
        self.by_minute = Some(ByMinute::new(now, databases));
        self
    }

    /// Also keeps the sources of function libraries.
    pub(super) fn keeping_libraries(mut self) -> Self {
        self.libraries = Some(Vec::new());
        self
    }

    /// The function libraries that were kept, in the order of the file.
    pub(super) fn take_libraries(&mut self) -> Vec<Vec<u8>> {
        self.libraries.take().unwrap_or_default()
    }

    /// What was counted.
    pub(super) fn finish(mut self) -> (Contents, Option<ByMinute>) {
        self.close();
        let mut contents = self.rest;
        contents.functions.sort_unstable();
        contents.names = Some(self.names);
        for (db, classes) in self.contents {
            let of_classes = Class::ALL.into_iter().zip(classes).filter(|(_, sums)| *sums != Default::default());
            let counted = of_classes.map(|(class, (lasting, expiring))| Counted { db, class, lasting, expiring });
            contents.keys.extend(counted);
        }
        (contents, self.by_minute)
    }

    /// The database that was read is added up. A file has each only once, as servers write them.
    fn close(&mut self) {
        let (db, classes) = (self.open.0, std::mem::take(&mut self.open.1));
        for (all, (lasting, expiring)) in self.contents.entry(db).or_default().iter_mut().zip(classes) {
            all.0.join(lasting);
            all.1.join(expiring);
        }
    }
}

impl Visitor for Tally {
    fn aux(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(value);
        match name {
            b"ctime" => self.taken = text.parse::<u64>().unwrap_or(0).saturating_mul(1000),
            b"redis-ver" | b"valkey-ver" => self.version = text.chars().take(64).collect(),
            _ => {}
        }
        Ok(())
    }

    fn function(&mut self, source: &[u8], digest: Digest) -> Result<(), String> {
        if self.rest.functions.len() == MOST_NAMES {
            return Err(format!("holds more than {MOST_NAMES} function libraries"));
        }
        if let Some(libraries) = &mut self.libraries
            && libraries.iter().map(Vec::len).sum::<usize>() + source.len() <= MOST_LIBRARIES
        {
            libraries.push(source.to_vec());
        }
        let digest = format!("{digest:032x}");
        if let Some(name) = library_name(source) {
            self.rest.libraries.insert(digest.clone(), name);
        }
        self.rest.functions.push(digest);
        Ok(())
    }

    fn module_aux(&mut self, module: &str) -> Result<(), String> {
        if !self.rest.module_data.iter().any(|name| name == module) && self.rest.module_data.len() < MOST_NAMES {
            self.rest.module_data.push(module.to_owned());
        }
        Ok(())
    }

    fn key(&mut self, head: &KeyHead<'_>) -> Result<(), String> {
        self.current = (head.db, head.expiry, head.offset);
        Ok(())
    }

    fn field(&mut self, expiry: u64, digest: Digest) -> Result<(), String> {
        let (db, of_key, _) = self.current;
        if let Some(by_minute) = &mut self.by_minute {
            // Only hashes have such fields. Each counts for itself: it goes when its time comes, and its key stays.
            by_minute.add(db, Class::Hash, Some(of_key.map_or(expiry, |of_key| of_key.min(expiry))), digest);
        }
        Ok(())
    }

    fn end(&mut self, end: &KeyEnd<'_>) -> Result<(), String> {
        let (db, expiry, offset) = self.current;
        if db != self.open.0 {
            self.close();
            self.open.0 = db;
        }
        let (lasting, expiring) = &mut self.open.1[end.parts.class as usize];
        match expiry {
            None => lasting.add(end.digest),
            Some(expiry) => {
                expiring.add(end.digest);
                self.rest.expired += u64::from(expiry <= self.taken);
            }
        }
        self.names.add(end.key, &end.parts, end.digest);
        if let (Some(by_minute), Some((content, lasting))) = (&mut self.by_minute, end.lasting) {
            by_minute.add_key(end.key, KeyParts { content, ..end.parts }, lasting);
        }
        if let Some(module) = end.module
            && (self.rest.module_keys.len() < MOST_NAMES || self.rest.module_keys.contains_key(module))
        {
            *self.rest.module_keys.entry(module.to_owned()).or_default() += 1;
        }
        if end.length > LARGE {
            self.rest.large.push(Large { offset, length: end.length });
        }
        if let Some(progress) = &self.progress {
            Progress::add(&progress.rows, 1);
        }
        Ok(())
    }
}

/// The name in a library's first line, `#!lua name=mylib` (`functionsLibCreate` in Redis' `functions.c`).
fn library_name(source: &[u8]) -> Option<String> {
    let line = source.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let name = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("name="))?;
    Some(name.chars().take(MOST_NAME).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SEED: u64 = 3;
    /// The digest of a key that is a string without an expiry.
    const PARTS: KeyParts = KeyParts { db: 0, name: 0, expiry: None, class: Class::String, content: 0 };

    /// Keys by database, class, expiry and content; databases 0 to 8 are counted by the minute.
    fn tally(keys: &[(u64, Class, Option<u64>, u128)]) -> (Contents, ByMinute) {
        let mut tally = Tally::new(None).by_minute(10 * MINUTE, 0..=8);
        tally.aux(b"ctime", b"600").unwrap();
        for (db, class, expiry, content) in keys {
            let (db, class, expiry, content) = (*db, *class, *expiry, *content);
            tally.key(&KeyHead { db, key: b"k", expiry, kind: 0, offset: 7 }).unwrap();
            let parts = KeyParts { db, class, expiry, content, name: content };
            let digest = parts.digest(SEED);
            let lasting = Some((content, digest));
            tally.end(&KeyEnd { key: b"k", parts, digest, lasting, length: 1, module: None }).unwrap();
        }
        let (contents, by_minute) = tally.finish();
        (contents, by_minute.unwrap())
    }

    #[test]
    fn keys_are_counted_by_database_and_class() {
        let (ours, _) =
            tally(&[(0, Class::String, None, 1), (0, Class::String, Some(1), 2), (3, Class::Hash, None, 3)]);
        assert_eq!(ours.expired, 1);
        assert_eq!(ours.databases(), BTreeMap::from([(0, 2), (3, 1)]));
        let parts = [(0, Class::String, None, 1), (0, Class::String, Some(1), 2), (3, Class::Hash, None, 3)];
        let digests = parts
            .map(|(db, class, expiry, content)| KeyParts { db, class, expiry, content, name: content }.digest(SEED));
        let sum = digests.into_iter().fold(0, u128::wrapping_add);
        assert_eq!(ours.fingerprint(9), Fingerprint { rows: 3, bytes: 9, sum });
        let json = serde_json::to_string(&ours).unwrap();
        assert_eq!(serde_json::from_str::<Contents>(&json).unwrap(), ours);
        assert_eq!(Sum { keys: 1, sum: PARTS.digest(SEED) }, {
            let mut sum = Sum::default();
            [PARTS, PARTS].iter().for_each(|parts| sum.add(parts.digest(SEED)));
            sum.remove(PARTS.digest(SEED));
            sum
        });
    }

    #[test]
    fn libraries_are_named_in_their_first_line() {
        for (source, name) in [
            ("#!lua name=mylib\nredis.register_function('f', f)", Some("mylib")),
            ("#!lua  engine=x name=my_lib \r\n", Some("my_lib")),
            ("#!js name=other", Some("other")),
            ("#!lua\nname=none", None),
            ("redis.call('x')", None),
            ("", None),
        ] {
            assert_eq!(library_name(source.as_bytes()).as_deref(), name, "{source}");
        }
    }

    #[test]
    fn keys_that_are_about_to_go_are_not_compared() {
        let far = Some(1 << 60);
        let (_, ours) = tally(&[
            (0, Class::String, None, 1),
            (0, Class::String, Some(5), 2),
            (0, Class::String, Some(12 * MINUTE), 4),
            (0, Class::String, Some(20 * MINUTE), 8),
            (0, Class::String, far, 16),
            (9, Class::String, None, 32),
        ]);
        let (_, theirs) = tally(&[
            (0, Class::String, None, 1),
            (0, Class::String, Some(20 * MINUTE), 8),
            (0, Class::String, far, 16),
            (9, Class::String, None, 64),
        ]);
        let same = ours.differences(&theirs, 12 * MINUTE + 10, SEED).unwrap();
        assert_eq!(same, Comparison { differences: Differences::default(), living: 3, left_out: 2 });
        let Comparison { differences, .. } = ours.differences(&theirs, 11 * MINUTE, SEED).unwrap();
        assert_eq!(differences.words(), ["db 0: strings differ: 3 are there instead of 4"]);
        assert!(ours.differences(&theirs, 60 * 60 * 60 * 1000, SEED).is_none());
        // What lives on for long enough is named, as long as it does.
        let (_, theirs) = tally(&[(0, Class::String, None, 1), (0, Class::String, Some(20 * MINUTE), 8)]);
        for (at, words) in [
            (12 * MINUTE, "db 0: k is not there (a string)"),
            (80 * MINUTE, "db 0: strings differ: 1 are there instead of 2"),
        ] {
            assert_eq!(ours.differences(&theirs, at, SEED).unwrap().differences.words(), [words]);
        }
    }
}
