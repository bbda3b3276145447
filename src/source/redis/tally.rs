//! What a dump holds, in counts and sums: the fingerprint of a Redis snapshot.
//!
//! Keys are summed up by database, class and whether they expire, so that a difference can be told apart. Sums are modulo 2^128 over
//! the keys' digests, so their order says nothing.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::rdb::{Class, Digest, KeyEnd, KeyHead, Visitor};
use crate::{
    crypt::hex,
    pipeline::{Fingerprint, Progress},
};

/// Values that are longer than this, in bytes of the file, are listed with their length: `RESTORE` wants it first, and they are not held.
pub(super) const LARGE: u64 = 1024 * 1024;
/// Keys that expire are told apart by the minute for so long; whatever lives longer is taken for lasting.
const HORIZON: u64 = 48 * 60;
const MINUTE: u64 = 60_000;
/// Names of modules and function libraries that are kept.
const MOST_NAMES: usize = 10_000;
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

    /// How `found` differs from this, in words; nothing where they hold the same keys and libraries.
    pub(super) fn differences(&self, found: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let by_class = |contents: &Self| -> BTreeMap<(u64, Class), Counted> {
            contents.keys.iter().map(|counted| ((counted.db, counted.class), *counted)).collect()
        };
        let (ours, theirs) = (by_class(self), by_class(found));
        let mut places: Vec<_> = ours.keys().chain(theirs.keys()).copied().collect();
        places.sort_unstable();
        places.dedup();
        for place in places {
            let of = |from: &BTreeMap<(u64, Class), Counted>| {
                from.get(&place).map_or((Sum::default(), Sum::default()), |counted| (counted.lasting, counted.expiring))
            };
            let ((lasting, expiring), (found_lasting, found_expiring)) = (of(&ours), of(&theirs));
            differences.extend(difference(place, "", lasting, found_lasting));
            differences.extend(difference(place, "expiring ", expiring, found_expiring));
        }
        differences.extend(self.missing_functions(found));
        differences
    }

    /// Function libraries that `found` lacks, in words.
    pub(super) fn missing_functions(&self, found: &Self) -> Option<String> {
        let missing = self.functions.iter().filter(|digest| !found.functions.contains(digest)).count();
        (missing > 0)
            .then(|| format!("{missing} of {} function libraries are missing or changed", self.functions.len()))
    }
}

fn difference((db, class): (u64, Class), what: &str, captured: Sum, found: Sum) -> Option<String> {
    let plural = class.plural();
    match (captured.keys, found.keys) {
        _ if captured == found => None,
        (a, b) if a == b => Some(format!("db {db}: some of {a} {what}{plural} differ")),
        (a, b) => Some(format!("db {db}: {b} {what}{plural} instead of {a}")),
    }
}

impl Class {
    fn plural(self) -> &'static str {
        match self {
            Self::String => "strings",
            Self::List => "lists",
            Self::Set => "sets",
            Self::Zset => "sorted sets",
            Self::Hash => "hashes",
            Self::Stream => "streams",
            Self::Module => "module values",
        }
    }
}

/// How two servers' keys, and fields that expire by themselves, compare.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    /// How they differ, in words.
    pub(super) differences: Vec<String>,
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
    sums: BTreeMap<(u64, Class), BTreeMap<u64, Sum>>,
}

impl ByMinute {
    /// Tells minutes apart from `now` on, in milliseconds since 1970.
    pub(super) fn new(now: u64) -> Self {
        Self { first: now / MINUTE, sums: BTreeMap::new() }
    }

    fn add(&mut self, db: u64, class: Class, expiry: Option<u64>, digest: Digest) {
        let last = self.first + HORIZON;
        let minute = expiry.map_or(last, |expiry| (expiry / MINUTE).clamp(self.first.saturating_sub(1), last));
        self.sums.entry((db, class)).or_default().entry(minute).or_default().add(digest);
    }

    /// How `found` differs among the keys (and fields that expire by themselves) of `databases` that live on after `at`. `None` where `at` is too far off.
    pub(super) fn differences(&self, found: &Self, databases: &BTreeMap<u64, u64>, at: u64) -> Option<Comparison> {
        // A little more than the clocks' difference, so that what is about to go is on neither side.
        // A clock that is behind ours must not bring back what we took for gone.
        let after = ((at + 2000) / MINUTE + 1).max(self.first + 1);
        if after >= self.first + HORIZON || self.first != found.first {
            return None;
        }
        let living = |of: &Self, place: &(u64, Class)| {
            let mut sum = Sum::default();
            of.sums
                .get(place)
                .into_iter()
                .flat_map(|minutes| minutes.range(after..))
                .for_each(|(_, more)| sum.join(*more));
            sum
        };
        let mut places: Vec<_> = self.sums.keys().chain(found.sums.keys()).copied().collect();
        places.sort_unstable();
        places.dedup();
        let mut compared = Comparison::default();
        for place in places.into_iter().filter(|(db, _)| databases.contains_key(db)) {
            let ours = living(self, &place);
            let gone = self.sums.get(&place).into_iter().flat_map(|minutes| minutes.range(..after));
            compared.left_out += gone.map(|(_, sum)| sum.keys).sum::<u64>();
            compared.living += ours.keys;
            compared.differences.extend(difference(place, "", ours, living(found, &place)));
        }
        Some(compared)
    }
}

/// Counts a dump as it passes.
pub(super) struct Tally {
    contents: BTreeMap<(u64, Class), (Sum, Sum)>,
    rest: Contents,
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
            rest: Contents::default(),
            by_minute: None,
            libraries: None,
            taken: 0,
            version: String::new(),
            current: (0, None, 0),
            progress,
        }
    }

    /// Also by the minute, from `now` on.
    pub(super) fn by_minute(mut self, now: u64) -> Self {
        self.by_minute = Some(ByMinute::new(now));
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
    pub(super) fn finish(self) -> (Contents, Option<ByMinute>) {
        let mut contents = self.rest;
        contents.functions.sort_unstable();
        contents.keys = self
            .contents
            .into_iter()
            .map(|((db, class), (lasting, expiring))| Counted { db, class, lasting, expiring })
            .collect();
        (contents, self.by_minute)
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
        self.rest.functions.push(format!("{digest:032x}"));
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
        let (lasting, expiring) = self.contents.entry((db, end.class)).or_default();
        match expiry {
            None => lasting.add(end.digest),
            Some(expiry) => {
                expiring.add(end.digest);
                self.rest.expired += u64::from(expiry <= self.taken);
            }
        }
        if let (Some(by_minute), Some(lasting)) = (&mut self.by_minute, end.lasting) {
            by_minute.add(db, end.class, expiry, lasting);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tally(keys: &[(u64, Class, Option<u64>, u128)]) -> (Contents, ByMinute) {
        let mut tally = Tally::new(None).by_minute(10 * MINUTE);
        tally.aux(b"ctime", b"600").unwrap();
        for (db, class, expiry, digest) in keys {
            tally.key(&KeyHead { db: *db, key: b"k", expiry: *expiry, kind: 0, offset: 7 }).unwrap();
            tally
                .end(&KeyEnd { class: *class, digest: *digest, lasting: Some(*digest), length: 1, module: None })
                .unwrap();
        }
        let (contents, by_minute) = tally.finish();
        (contents, by_minute.unwrap())
    }

    #[test]
    fn differences_are_told_by_database_and_class() {
        let all = [(0, Class::String, None, 1), (0, Class::String, Some(1), 2), (3, Class::Hash, None, 3)];
        let (ours, _) = tally(&all);
        assert_eq!(ours.differences(&tally(&all).0), Vec::<String>::new());
        assert_eq!(ours.expired, 1);
        assert_eq!(ours.databases(), BTreeMap::from([(0, 2), (3, 1)]));
        assert_eq!(ours.fingerprint(9), Fingerprint { rows: 3, bytes: 9, sum: 6 });
        let changed = [(0, Class::String, None, 9), (3, Class::Hash, None, 3), (3, Class::List, None, 3)];
        assert_eq!(
            ours.differences(&tally(&changed).0),
            ["db 0: some of 1 strings differ", "db 0: 0 expiring strings instead of 1", "db 3: 1 lists instead of 0"]
        );
        let json = serde_json::to_string(&ours).unwrap();
        assert_eq!(serde_json::from_str::<Contents>(&json).unwrap(), ours);
    }

    #[test]
    fn keys_that_are_about_to_go_are_not_compared() {
        let (_, ours) = tally(&[
            (0, Class::String, None, 1),
            (0, Class::String, Some(5), 2),
            (0, Class::String, Some(12 * MINUTE), 4),
            (0, Class::String, Some(20 * MINUTE), 8),
            (0, Class::String, Some(u64::MAX), 16),
            (7, Class::String, None, 32),
        ]);
        let (_, theirs) = tally(&[
            (0, Class::String, None, 1),
            (0, Class::String, Some(20 * MINUTE), 8),
            (0, Class::String, Some(u64::MAX), 16),
            (9, Class::String, None, 64),
        ]);
        let databases = BTreeMap::from([(0, 5)]);
        let same = ours.differences(&theirs, &databases, 12 * MINUTE + 10).unwrap();
        assert_eq!(same, Comparison { differences: vec![], living: 3, left_out: 2 });
        let Comparison { differences, .. } = ours.differences(&theirs, &databases, 11 * MINUTE).unwrap();
        assert_eq!(differences, ["db 0: 3 strings instead of 4"]);
        assert!(ours.differences(&theirs, &databases, 60 * 60 * 60 * 1000).is_none());
    }
}
