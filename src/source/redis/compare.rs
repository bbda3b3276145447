//! How two dumps differ, key by key as far as names are known, and by database and class beyond that.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{
    rdb::Class,
    sketch::{Decoded, Entry},
    tally::{Contents, Sum},
};
use crate::{report, source::Difference};

/// Keys of one kind: database, class, and whether they expire, where that is told apart.
pub(super) type Place = (u64, Class, Option<bool>);

/// Everything in which two dumps differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    /// Databases in which something differs.
    pub(super) databases: BTreeSet<u64>,
    /// Each of them; keys that have a name first.
    pub(super) all: Vec<Difference>,
}

impl Differences {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Each as a sentence.
    pub(super) fn words(&self) -> Vec<String> {
        self.all.iter().map(|Difference { object, what }| format!("{object} {what}")).collect()
    }

    fn add(&mut self, db: u64, name: &str, what: String) {
        self.databases.insert(db);
        self.all.push(Difference { object: format!("db {db}: {name}"), what });
    }
}

impl Contents {
    /// How `found` differs from this. Both must be of hashes under `seed`.
    pub(super) fn differences(&self, found: &Self, seed: u64) -> Differences {
        let of = |contents: &Self| -> BTreeMap<Place, Sum> {
            let places = contents.keys.iter().flat_map(|counted| {
                let place = |expires| (counted.db, counted.class, Some(expires));
                [(place(false), counted.lasting), (place(true), counted.expiring)]
            });
            places.collect()
        };
        let names = self.names.as_ref().zip(found.names.as_ref()).map(|(ours, theirs)| ours.against(theirs, seed));
        let mut differences = of_keys(of(self), of(found), names, seed);
        differences.all.extend(self.differing_libraries(found));
        differences
    }

    /// Function libraries that are on one side only.
    fn differing_libraries(&self, found: &Self) -> Vec<Difference> {
        let mut differences = self.missing_libraries(found);
        for digest in found.functions.iter().filter(|digest| !self.functions.contains(digest)) {
            let name = found.library(digest);
            // Told already, as another than the captured one.
            if name.is_none() || !self.functions.iter().any(|ours| self.library(ours) == name) {
                let what = "is there and was not captured".to_owned();
                differences.push(Difference { object: library(name), what });
            }
        }
        differences
    }

    /// Function libraries that `found` lacks, or has with another text.
    pub(super) fn missing_libraries(&self, found: &Self) -> Vec<Difference> {
        let missing = self.functions.iter().filter(|digest| !found.functions.contains(digest));
        let differs = |digest: &String| {
            let name = self.library(digest);
            let other = name.is_some() && found.functions.iter().any(|theirs| found.library(theirs) == name);
            let what = if other { "is not as it was captured" } else { "is not there" };
            Difference { object: library(name), what: what.to_owned() }
        };
        missing.map(differs).collect()
    }

    /// The name of the library with this digest.
    fn library(&self, digest: &str) -> Option<&str> {
        self.libraries.get(digest).map(String::as_str)
    }
}

fn library(name: Option<&str>) -> String {
    match name {
        Some(name) => format!("function library {}", name.escape_debug()),
        None => "a function library".to_owned(),
    }
}

/// How keys differ whose sums by place are these; `names` are the keys that are on one side only, as far as they could be told.
pub(super) fn of_keys(
    mut captured: BTreeMap<Place, Sum>,
    mut found: BTreeMap<Place, Sum>,
    names: Option<Decoded>,
    seed: u64,
) -> Differences {
    let mut differences = Differences::default();
    let all = |captured: &BTreeMap<Place, Sum>, found: &BTreeMap<Place, Sum>| -> BTreeSet<Place> {
        let of = |sums: &BTreeMap<Place, Sum>, place| sums.get(place).copied().unwrap_or_default();
        let places = captured.keys().chain(found.keys());
        places.filter(|place| of(captured, place) != of(found, place)).copied().collect()
    };
    if all(&captured, &found).is_empty() {
        return differences;
    }
    let told_apart = captured.keys().chain(found.keys()).any(|(_, _, expires)| expires.is_some());
    let names = names.unwrap_or_default();
    for (sums, entries) in [(&mut captured, &names.lost), (&mut found, &names.extra)] {
        for Entry { parts, .. } in entries {
            let place = (parts.db, parts.class, told_apart.then_some(parts.expiry.is_some()));
            sums.entry(place).or_default().remove(parts.digest(seed));
        }
    }
    let named = !names.lost.is_empty() || !names.extra.is_empty();
    tell_names(names, &mut differences);
    for place in all(&captured, &found) {
        let of = |sums: &BTreeMap<Place, Sum>| sums.get(&place).copied().unwrap_or_default();
        let (db, class, expires) = place;
        differences.add(db, class.plural(), beyond(of(&captured), of(&found), expires, named));
    }
    differences
}

/// What no name is known of, in words.
fn beyond(captured: Sum, found: Sum, expires: Option<bool>, named: bool) -> String {
    let more = if named { " beyond those" } else { "" };
    let which = match expires {
        None => "",
        Some(true) => " that expire",
        Some(false) => " that do not expire",
    };
    match (captured.keys, found.keys) {
        (a, b) if a == b => format!("differ{more}: some of the {a}{which} are others"),
        (a, b) => format!("differ{more}: {b}{which} are there instead of {a}"),
    }
}

/// A key is the same that has the same name in the same database; one that is as it was in another has moved.
fn tell_names(names: Decoded, differences: &mut Differences) {
    let Decoded { lost, mut extra, .. } = names;
    let mut gone = Vec::new();
    for was in lost {
        let is = extra.iter().position(|is| (is.parts.db, is.parts.name) == (was.parts.db, was.parts.name));
        match is.map(|at| extra.remove(at)) {
            Some(is) => differences.add(was.parts.db, &was.name(), changed(&was, &is)),
            None => gone.push(was),
        }
    }
    for was in gone {
        let elsewhere = |is: &Entry| {
            let (mut a, mut b) = (was.parts, is.parts);
            (a.db, b.db) = (0, 0);
            a == b
        };
        match extra.iter().position(elsewhere).map(|at| extra.remove(at)) {
            Some(is) => {
                differences.databases.insert(is.parts.db);
                differences.add(was.parts.db, &was.name(), format!("is in db {} instead", is.parts.db));
            }
            None => {
                differences.add(was.parts.db, &was.name(), format!("is not there ({})", was.parts.class.singular()))
            }
        }
    }
    for is in extra {
        let what = format!("is there and was not captured ({})", is.parts.class.singular());
        differences.add(is.parts.db, &is.name(), what);
    }
}

fn changed(was: &Entry, is: &Entry) -> String {
    let (was, is) = (was.parts, is.parts);
    let mut what = Vec::new();
    if was.class != is.class {
        what.push(format!("is {} and was {}", is.class.singular(), was.class.singular()));
    } else if was.content != is.content {
        what.push(format!("has another value ({})", was.class.singular()));
    }
    match (was.expiry, is.expiry) {
        (was, is) if was == is => {}
        (Some(was), Some(is)) => what.push(format!("expires {} and not {}", time(is), time(was))),
        (None, Some(is)) => what.push(format!("expires {}, and never did", time(is))),
        (Some(was), None) => what.push(format!("never expires, and did {}", time(was))),
        (None, None) => {}
    }
    what.join(" and ")
}

/// Milliseconds since 1970 as a person reads them.
fn time(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| format!("after {ms} ms"), report::instant)
}

impl Class {
    pub(super) fn plural(self) -> &'static str {
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

    fn singular(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::List => "a list",
            Self::Set => "a set",
            Self::Zset => "a sorted set",
            Self::Hash => "a hash",
            Self::Stream => "a stream",
            Self::Module => "a module's value",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use xxhash_rust::xxh3::xxh3_128_with_seed;

    use super::{
        super::{
            rdb::{Digest, KeyEnd, KeyHead, KeyParts, Visitor},
            tally::Tally,
        },
        *,
    };

    const SEED: u64 = 9;
    const AT: u64 = 1_800_000_000_000;

    /// A key: database, name, expiry, class and content.
    type Key = (u64, &'static str, Option<u64>, Class, Digest);

    fn contents(keys: &[Key], libraries: &[&str]) -> Contents {
        let mut tally = Tally::new(None);
        for (db, name, expiry, class, content) in keys {
            let (key, expiry) = (name.as_bytes(), *expiry);
            tally.key(&KeyHead { db: *db, key, expiry, kind: 0, offset: 7 }).unwrap();
            let name = xxh3_128_with_seed(key, SEED);
            let parts = KeyParts { db: *db, name, expiry, class: *class, content: *content };
            let digest = parts.digest(SEED);
            let lasting = Some((*content, digest));
            tally.end(&KeyEnd { key, parts, digest, lasting, length: 1, module: None }).unwrap();
        }
        for source in libraries {
            tally.function(source.as_bytes(), xxh3_128_with_seed(source.as_bytes(), SEED)).unwrap();
        }
        tally.finish().0
    }

    const KEYS: &[Key] = &[
        (0, "session:1", Some(AT), Class::Hash, 1),
        (0, "session:2", None, Class::Hash, 2),
        (0, "queue", None, Class::List, 3),
        (3, "queue", None, Class::List, 4),
        (3, "other", None, Class::String, 5),
    ];

    #[track_caller]
    fn words(change: impl FnOnce(&mut Vec<Key>)) -> Vec<String> {
        let mut keys = KEYS.to_vec();
        change(&mut keys);
        contents(KEYS, &[]).differences(&contents(&keys, &[]), SEED).words()
    }

    #[test]
    fn a_key_that_differs_is_named_with_what_became_of_it() {
        assert_eq!(words(|_| {}), Vec::<String>::new());
        assert_eq!(words(|keys| keys.truncate(4)), ["db 3: other is not there (a string)"]);
        assert_eq!(words(|keys| keys[1].4 = 9), ["db 0: session:2 has another value (a hash)"]);
        assert_eq!(words(|keys| keys[3].3 = Class::Set), ["db 3: queue is a set and was a list"]);
        assert_eq!(
            words(|keys| keys[0].2 = Some(AT + 1500)),
            ["db 0: session:1 expires 2027-01-15T08:00:01.500Z and not 2027-01-15T08:00:00.000Z"]
        );
        assert_eq!(
            words(|keys| keys[0] = (0, "session:1", None, Class::Hash, 7)),
            ["db 0: session:1 has another value (a hash) and never expires, and did 2027-01-15T08:00:00.000Z"]
        );
        assert_eq!(
            words(|keys| keys[4].2 = Some(u64::MAX >> 4)),
            ["db 3: other expires after 1152921504606846975 ms, and never did"]
        );
        assert_eq!(words(|keys| keys[1].0 = 5), ["db 0: session:2 is in db 5 instead"]);
        // Two keys that have changed places.
        assert_eq!(
            words(|keys| (keys[2].0, keys[3].0) = (3, 0)),
            ["db 0: queue has another value (a list)", "db 3: queue has another value (a list)"]
        );
        assert_eq!(
            words(|keys| keys[1].1 = "\x1b[2J"),
            ["db 0: session:2 is not there (a hash)", "db 0: \\u{1b}[2J is there and was not captured (a hash)"]
        );
    }

    #[test]
    fn databases_are_told_that_differ() {
        let mut keys = KEYS.to_vec();
        keys[1].0 = 5;
        let differences = contents(KEYS, &[]).differences(&contents(&keys, &[]), SEED);
        assert_eq!(differences.databases, BTreeSet::from([0, 5]));
        assert_eq!(differences.all[0].object, "db 0: session:2");
    }

    #[test]
    fn without_names_it_is_told_by_database_and_class() {
        let mut keys = KEYS.to_vec();
        (keys[0].2, keys[2].4) = (Some(7), 8);
        keys.remove(3);
        let mut captured = contents(KEYS, &[]);
        captured.names = None;
        let told = [
            "db 0: lists differ: some of the 1 that do not expire are others",
            "db 0: hashes differ: some of the 1 that expire are others",
            "db 3: lists differ: 0 that do not expire are there instead of 1",
        ];
        assert_eq!(captured.differences(&contents(&keys, &[]), SEED).words(), told);
        // So an older version's manifest reads.
        let json = serde_json::to_value(contents(KEYS, &[])).unwrap();
        let mut old = json.clone();
        old.as_object_mut().unwrap().remove("names").unwrap();
        assert_eq!(old.get("libraries"), None, "none is not written");
        assert_eq!(serde_json::from_value::<Contents>(old).unwrap(), captured);
        assert_eq!(serde_json::from_value::<Contents>(json).unwrap(), contents(KEYS, &[]));
    }

    #[test]
    fn what_is_beyond_the_names_is_told_by_the_sums() {
        let names: Vec<String> = (0..3000).map(|n| format!("key:{n}")).collect();
        let keys: Vec<Key> =
            names.iter().map(|name| (1, &*name.clone().leak(), None, Class::String, name.len() as u128)).collect();
        let differences = contents(&keys, &[]).differences(&contents(&keys[2000..], &[]), SEED);
        let last = differences.words().pop().unwrap();
        assert!(last.starts_with("db 1: strings differ: 1000 that do not expire are there instead of 3000"), "{last}");
    }

    #[test]
    fn function_libraries_have_names() {
        let (one, two) = ("#!lua name=mylib\nredis.register_function('f', f)", "#!lua name=other \n…");
        let with = |libraries: &[&str]| contents(KEYS, libraries);
        let words = |was: &[&str], is: &[&str]| with(was).differences(&with(is), SEED).words();
        assert_eq!(words(&[one, two], &[two, one]), Vec::<String>::new());
        assert_eq!(words(&[one, two], &[two]), ["function library mylib is not there"]);
        assert_eq!(words(&[two], &[one, two]), ["function library mylib is there and was not captured"]);
        let other = "#!lua name=mylib\nredis.register_function('f', g)";
        assert_eq!(words(&[one], &[other]), ["function library mylib is not as it was captured"]);
        let nameless = "no library at all";
        assert_eq!(words(&[nameless], &[]), ["a function library is not there"]);
    }
}
