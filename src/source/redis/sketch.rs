//! Names for differences: a small table that every key of a dump goes into, kept beside the sums.
//!
//! An invertible Bloom lookup table (Goodrich and Mitzenmacher, *Invertible Bloom Lookup Tables*, 2011). A key goes into one cell of each
//! of [`ROWS`] rows, chosen by its hash; a cell is no more than how many keys are in it, and the XOR of them. One table taken from another
//! leaves what is in one of them only, however much they have in common. A cell in which a single key is left gives it back whole, and
//! taking that key out of its other cells uncovers the next: some hundred keys are told exactly, whatever millions were counted.
//!
//! What is told is never wrong: a key is believed where its parts give the hash that stands beside them, and its hash leads to its cell.
//! What is more than the table can tell is left over, and [`Decoded::complete`] says so.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::rdb::{Class, Digest, KeyParts};

/// Cells that a key goes into.
const ROWS: usize = 4;
/// Cells of a row.
const ROW: usize = 40;
const CELLS: usize = ROWS * ROW;
/// Bytes of a key's name that are kept.
pub(super) const PREFIX: usize = 40;
/// What a key is in a cell, in numbers of 64 bits: database and length of the name, expiry and class, hash of the name (2) and of the content
/// (2), own hash, beginning of the name. A database above 2^32 and an expiry above 2^61, which no server has, do not fit: such a key is not
/// told.
const WORDS: usize = 7 + PREFIX / 8;
/// Bytes of a cell as it is stored: its count and its words.
const STORED: usize = 4 + WORDS * 8;
/// How this table is stored. One of another form is not read.
const FORM: u32 = 1;

/// A key as the table tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) parts: KeyParts,
    /// Bytes of its name.
    pub(super) length: u32,
    /// The first of them, with zeros behind.
    pub(super) prefix: [u8; PREFIX],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell {
    count: i32,
    words: [u64; WORDS],
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sketch(Box<[Cell; CELLS]>);

/// What is in one of two tables only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Only in the first.
    pub(super) lost: Vec<Entry>,
    /// Only in the second.
    pub(super) extra: Vec<Entry>,
    /// That is all of it.
    pub(super) complete: bool,
}

impl Entry {
    /// Its name as it can be shown, cut short with `…`.
    pub(super) fn name(&self) -> String {
        let length = self.length as usize;
        let (kept, more) = if length > PREFIX { (whole(&self.prefix), "…") } else { (&self.prefix[..length], "") };
        format!("{}{more}", String::from_utf8_lossy(kept).escape_debug())
    }

    /// The entry of these words, if they are those of one: then with its hash.
    fn of(words: &[u64; WORDS], seed: u64) -> Option<(Self, Digest)> {
        let [place, life, name, name_high, content, content_high, digest, ..] = *words;
        let wide = |low: u64, high: u64| u128::from(high) << 64 | u128::from(low);
        let expiry = (life >> 3 > 0).then_some(life >> 3);
        let class = Class::of_code(u128::from(life & 7))?;
        let (name, content) = (wide(name, name_high), wide(content, content_high));
        let parts = KeyParts { db: place >> 32, name, expiry, class, content };
        let whole = parts.digest(seed);
        let mut prefix = [0; PREFIX];
        for (bytes, word) in prefix.as_chunks_mut::<8>().0.iter_mut().zip(&words[7..]) {
            *bytes = word.to_le_bytes();
        }
        (whole as u64 == digest).then_some((Self { parts, length: place as u32, prefix }, whole))
    }
}

/// A key as it goes into a cell.
#[inline]
fn words(key: &[u8], parts: &KeyParts, digest: Digest) -> [u64; WORDS] {
    let KeyParts { db, name, expiry, class, content } = *parts;
    let mut prefix = [0; PREFIX];
    let kept = key.len().min(PREFIX);
    prefix[..kept].copy_from_slice(&key[..kept]);
    let mut words = [0; WORDS];
    words[..7].copy_from_slice(&[
        db << 32 | key.len() as u64,
        expiry.unwrap_or(0) << 3 | class.code() as u64,
        name as u64,
        (name >> 64) as u64,
        content as u64,
        (content >> 64) as u64,
        digest as u64,
    ]);
    for (word, bytes) in words[7..].iter_mut().zip(prefix.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// Without the beginning of a character at the end, where it was cut.
fn whole(cut: &[u8]) -> &[u8] {
    match std::str::from_utf8(cut) {
        Err(error) if error.error_len().is_none() => &cut[..error.valid_up_to()],
        _ => cut,
    }
}

/// The cells of a key: one in each row.
#[inline]
fn cells(digest: Digest) -> [usize; ROWS] {
    std::array::from_fn(|row| {
        let part = (digest >> (32 * row)) as u32;
        row * ROW + ((u64::from(part) * ROW as u64) >> 32) as usize
    })
}

impl Sketch {
    /// Of nothing.
    pub(super) fn new() -> Self {
        Self(Box::new([Cell::default(); CELLS]))
    }

    /// Puts a key in, whose hash is `digest`.
    #[inline]
    pub(super) fn add(&mut self, key: &[u8], parts: &KeyParts, digest: Digest) {
        self.put(&words(key, parts, digest), digest, 1);
    }

    #[inline]
    fn put(&mut self, words: &[u64; WORDS], digest: Digest, times: i32) {
        for cell in cells(digest) {
            let cell = &mut self.0[cell];
            cell.count = cell.count.wrapping_add(times);
            for (all, word) in cell.words.iter_mut().zip(words) {
                *all ^= word;
            }
        }
    }

    /// What is in this table or in `other` and not in both, as far as that can be told. Both must be of hashes under `seed`.
    pub(super) fn against(&self, other: &Self, seed: u64) -> Decoded {
        let mut left = self.clone();
        for (cell, theirs) in left.0.iter_mut().zip(other.0.iter()) {
            cell.count = cell.count.wrapping_sub(theirs.count);
            cell.words.iter_mut().zip(&theirs.words).for_each(|(word, theirs)| *word ^= theirs);
        }
        let mut decoded = Decoded::default();
        // Each one that is taken out leaves an empty cell behind: in a table that is none, that could go on for ever.
        for _ in 0..CELLS {
            let mut singles = left.0.iter().enumerate().filter(|(_, cell)| matches!(cell.count, 1 | -1));
            let single = singles.find_map(|(at, cell)| {
                let (entry, digest) = Entry::of(&cell.words, seed)?;
                cells(digest).contains(&at).then_some((entry, digest, *cell))
            });
            let Some((entry, digest, Cell { count, words })) = single else { break };
            left.put(&words, digest, -count);
            if count == 1 { &mut decoded.lost } else { &mut decoded.extra }.push(entry);
        }
        decoded.lost.sort_unstable();
        decoded.extra.sort_unstable();
        decoded.complete = left.0.iter().all(|cell| *cell == Cell::default());
        decoded
    }

    fn bytes(&self) -> Vec<u8> {
        let cell = |cell: &Cell| -> Vec<u8> {
            let words = cell.words.iter().flat_map(|word| word.to_le_bytes());
            cell.count.to_le_bytes().into_iter().chain(words).collect()
        };
        self.0.iter().flat_map(cell).collect()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (stored, rest) = bytes.as_chunks::<STORED>();
        if stored.len() != CELLS || !rest.is_empty() {
            return None;
        }
        let mut sketch = Self::new();
        for (cell, bytes) in sketch.0.iter_mut().zip(stored) {
            let (count, words) = bytes.split_first_chunk::<4>()?;
            cell.count = i32::from_le_bytes(*count);
            for (word, bytes) in cell.words.iter_mut().zip(words.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
        }
        Some(sketch)
    }
}

/// As it stands in a manifest.
#[derive(Serialize, Deserialize)]
struct Stored {
    form: u32,
    cells: String,
}

impl Serialize for Sketch {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Stored { form: FORM, cells: BASE64_STANDARD.encode(self.bytes()) }.serialize(to)
    }
}

/// Reads a table; none where it is of a form that is not known, as a newer version may write it: then differences have no names.
pub(super) fn known<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Sketch>, D::Error> {
    let stored = Option::<serde_json::Value>::deserialize(from)?;
    let stored = stored.and_then(|stored| serde_json::from_value::<Stored>(stored).ok());
    let cells =
        stored.filter(|stored| stored.form == FORM).and_then(|stored| BASE64_STANDARD.decode(stored.cells).ok());
    Ok(cells.and_then(|cells| Sketch::read(&cells)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_128_with_seed;

    use super::*;

    /// Databases and names of keys, with their expiries and contents.
    type Keys = BTreeMap<(u64, Vec<u8>), (Option<u64>, u64)>;

    const SEED: u64 = 0x5eed;

    fn entry(db: u64, name: &[u8], expiry: Option<u64>, content: u64) -> Entry {
        let classes = [Class::String, Class::List, Class::Stream, Class::Module];
        let (name_hash, content_hash) =
            (xxh3_128_with_seed(name, SEED), xxh3_128_with_seed(&content.to_le_bytes(), SEED));
        let class = classes[content as usize % classes.len()];
        let parts = KeyParts { db, name: name_hash, expiry, class, content: content_hash };
        let words = words(name, &parts, parts.digest(SEED));
        let (entry, digest) = Entry::of(&words, SEED).unwrap();
        assert_eq!((entry.parts, digest), (parts, parts.digest(SEED)));
        entry
    }

    fn sketch<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Sketch {
        let mut sketch = Sketch::new();
        for Entry { parts, length, prefix } in entries {
            let key = [&prefix[..], &[b'y'; 100]].concat();
            sketch.add(&key[..*length as usize], parts, parts.digest(SEED));
        }
        sketch
    }

    /// So many entries of a kind, no two alike.
    fn many(prefix: &str, count: usize) -> Vec<Entry> {
        (0..count as u64).map(|n| entry(n % 3, format!("{prefix}:{n}").as_bytes(), None, n * 7)).collect()
    }

    #[test]
    fn what_is_on_one_side_only_is_told_among_a_million() {
        let common = many("common", 1_000_000);
        let (lost, extra) = (many("lost", 21), many("extra", 17));
        let ours = sketch(common.iter().chain(&lost));
        let theirs = sketch(common.iter().rev().chain(&extra));
        let sorted = |mut entries: Vec<Entry>| {
            entries.sort_unstable();
            entries
        };
        let told = ours.against(&theirs, SEED);
        assert_eq!(told, Decoded { lost: sorted(lost), extra: sorted(extra), complete: true });
        assert_eq!(ours.against(&ours, SEED), Decoded { complete: true, ..Decoded::default() });
        // Under another seed nothing is believed.
        let told = ours.against(&theirs, SEED + 1);
        assert!(told.lost.is_empty() && told.extra.is_empty() && !told.complete);
    }

    /// No server has such.
    #[test]
    fn what_does_not_fit_is_not_told() {
        let parts = |db, expiry| KeyParts { db, name: 1, expiry, class: Class::Set, content: 2 };
        for (parts, fits) in [
            (parts(7, Some(1)), true),
            (parts(u64::from(u32::MAX), Some(u64::MAX >> 3)), true),
            (parts(1 << 32, None), false),
            (parts(7, Some(1 << 61)), false),
        ] {
            let mut sketch = Sketch::new();
            sketch.add(b"key", &parts, parts.digest(SEED));
            let told = sketch.against(&Sketch::new(), SEED);
            assert_eq!((told.lost.len(), told.complete), (usize::from(fits), fits), "{parts:?}");
            assert!(told.lost.iter().all(|entry| entry.parts == parts));
        }
    }

    /// Two entries in all of whose cells there is another cannot be told: seldom, and never of more than a few.
    #[test]
    fn some_dozens_are_told_nearly_always() {
        for (count, of) in [(24, 1000), (60, 1000), (90, 1000)] {
            let whole = (0..of).filter(|n| {
                let lost = many(&format!("{count}-{n}"), count);
                sketch(&lost).against(&Sketch::new(), SEED).complete
            });
            assert!(whole.count() >= of * 98 / 100, "{count}");
        }
    }

    #[test]
    fn what_is_too_much_is_said_and_nothing_is_made_up() {
        for count in [150, 400, 5000] {
            let lost = many("lost", count);
            let told = sketch(&lost).against(&sketch(&many("extra", count)), SEED);
            assert!(!told.complete, "{count}");
            assert!(told.lost.iter().all(|entry| lost.contains(entry)), "{count}");
        }
    }

    #[test]
    fn names_are_cut_and_can_be_shown() {
        let named = |name: &[u8]| entry(0, name, None, 0).name();
        assert_eq!(named(b"session:42"), "session:42");
        assert_eq!(named(b""), "");
        assert_eq!(named(b"a\x1b[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(named(&[b'x'; 40]), "x".repeat(40));
        assert_eq!(named(&[b'x'; 41]), "x".repeat(40) + "…");
        // A character of two bytes over the border.
        assert_eq!(named(format!("{}ü", "x".repeat(39)).as_bytes()), "x".repeat(39) + "…");
        assert_eq!(named(&[0xff, 0xfe]), "\u{fffd}\u{fffd}");
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Manifest {
        #[serde(default, deserialize_with = "known", skip_serializing_if = "Option::is_none")]
        names: Option<Sketch>,
    }

    #[test]
    fn it_is_kept_and_another_form_is_not_read() {
        let manifest = Manifest { names: Some(sketch(&many("key", 3000))) };
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
        let stored = zstd::encode_all(json.as_bytes(), 3).unwrap();
        assert!(stored.len() < 20 * 1024, "{}", stored.len());
        let few = serde_json::to_string(&Manifest { names: Some(sketch(&many("key", 5))) }).unwrap();
        assert!(zstd::encode_all(few.as_bytes(), 3).unwrap().len() < 4096);
        let short = json.replace("\"cells\":\"", "\"cells\":\"AAAA");
        for other in ["{}", "{\"names\":null}", "{\"names\":7}", &json.replace("\"form\":1", "\"form\":2"), &short] {
            assert_eq!(serde_json::from_str::<Manifest>(other).unwrap(), Manifest { names: None });
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Keys that are put in, removed and changed on the way from one side to the other.
        #[test]
        fn what_is_told_is_exactly_the_difference(
            keys in prop::collection::btree_map((0..3u64, prop::collection::vec(any::<u8>(), 0..60)), (prop::option::of(1..1u64 << 61), any::<u64>()), 1..300),
            turns in prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<u64>()), 0..120),
        ) {
            let mut theirs: BTreeMap<_, _> = keys.clone();
            let names: Vec<_> = keys.keys().cloned().collect();
            for (at, turn, number) in turns {
                let key = names[at.index(names.len())].clone();
                match turn {
                    0 => drop(theirs.remove(&key)),
                    1 => drop(theirs.insert(key, (None, number))),
                    2 => drop(theirs.insert(key, (Some(number >> 3 | 1), keys[&names[at.index(names.len())]].1))),
                    _ => drop(theirs.insert((number % 5, number.to_le_bytes().to_vec()), (None, number))),
                }
            }
            let entries = |keys: &Keys| -> BTreeSet<Entry> {
                keys.iter().map(|((db, name), (expiry, content))| entry(*db, name, *expiry, *content)).collect()
            };
            let (ours, theirs) = (entries(&keys), entries(&theirs));
            let told = sketch(&ours).against(&sketch(&theirs), SEED);
            let lost: Vec<Entry> = ours.difference(&theirs).copied().collect();
            let extra: Vec<Entry> = theirs.difference(&ours).copied().collect();
            if told.complete {
                prop_assert_eq!((&told.lost, &told.extra), (&lost, &extra));
            } else {
                // Seldom below what it holds, and then of a few.
                prop_assert!(told.lost.iter().all(|entry| lost.contains(entry)));
                prop_assert!(told.extra.iter().all(|entry| extra.contains(entry)));
                prop_assert!(told.lost.len() + told.extra.len() < lost.len() + extra.len());
            }
        }
    }
}
