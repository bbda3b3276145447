//! The search: words that must not be found, in the spellings in which a leak could hide them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Read,
};

use base64::{Engine, engine::general_purpose::STANDARD};

/// What a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// A name in a database, other than a column's: of a table, schema, index, function, type, constraint, …
    Name,
    /// A column's name.
    Column,
    /// A role's name.
    Role,
    /// Something out of a row, a definition's body, a default, a comment or an enum.
    Value,
    /// A password or its hash, an access key, an identity, a key of an epoch.
    Secret,
}

/// Something that must not be found.
pub(super) struct Needle {
    pub(super) class: Class,
    /// For messages; of a secret only what it is.
    pub(super) shown: String,
    pub(super) bytes: Vec<u8>,
}

impl Needle {
    pub(super) fn new(class: Class, shown: impl Into<String>, bytes: impl AsRef<[u8]>) -> Self {
        Self { class, shown: shown.into(), bytes: bytes.as_ref().to_vec() }
    }
}

/// Everything that was seen of one thing, and what it shows on purpose.
pub(super) struct Evidence {
    pub(super) at: String,
    pub(super) bytes: Vec<u8>,
    pub(super) on_purpose: OnPurpose,
}

/// What may be seen somewhere, because to show it is what that is for.
#[derive(Clone, Debug, Default)]
pub(super) struct OnPurpose {
    pub(super) classes: &'static [Class],
    /// Words as they are in [`Needle::shown`].
    pub(super) words: Vec<String>,
}

impl OnPurpose {
    pub(super) fn of(classes: &'static [Class]) -> Self {
        Self { classes, words: Vec::new() }
    }
}

/// Where a needle was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) needle: usize,
    pub(super) spelling: &'static str,
    pub(super) around: String,
}

/// All needles in all spellings, ready to be looked for.
pub(super) struct Search {
    pub(super) needles: Vec<Needle>,
    /// Spellings to be looked for as they are, and those to be looked for in lower case.
    exact: Spellings,
    folded: Spellings,
}

/// By their first four bytes.
#[derive(Default)]
struct Spellings {
    all: Vec<(Vec<u8>, usize, &'static str)>,
    by_start: HashMap<u32, Vec<usize>>,
    /// Which starts there may be: most places are passed by one look.
    maybe: Vec<bool>,
}

impl Spellings {
    fn add(&mut self, bytes: Vec<u8>, needle: usize, spelling: &'static str) {
        let start = u32::from_be_bytes(bytes[..4].try_into().unwrap());
        self.maybe.resize(1 << 20, false);
        self.maybe[bucket(start)] = true;
        self.by_start.entry(start).or_default().push(self.all.len());
        self.all.push((bytes, needle, spelling));
    }

    fn find(&self, haystack: &[u8], found: &mut BTreeMap<(usize, &'static str), Found>) {
        let mut start = 0;
        for (at, byte) in haystack.iter().enumerate() {
            start = start << 8 | u32::from(*byte);
            if at < 3 || !self.maybe[bucket(start)] {
                continue;
            }
            for index in self.by_start.get(&start).into_iter().flatten() {
                let (bytes, needle, spelling) = &self.all[*index];
                let from = at - 3;
                if haystack[from..].starts_with(bytes) {
                    let (left, right) = (from.saturating_sub(60), (from + bytes.len() + 40).min(haystack.len()));
                    let around = String::from_utf8_lossy(&haystack[left..right]).escape_debug().to_string();
                    let one = Found { needle: *needle, spelling, around };
                    found.entry((*needle, spelling)).or_insert(one);
                }
            }
        }
    }
}

fn bucket(start: u32) -> usize {
    (start.wrapping_mul(2_654_435_761) >> 12) as usize
}

impl Search {
    pub(super) fn new(needles: Vec<Needle>) -> Self {
        let mut search = Self { needles: Vec::new(), exact: Spellings::default(), folded: Spellings::default() };
        let mut known = BTreeSet::new();
        for needle in needles {
            // Shorter ones are found in anything that is random.
            assert!(needle.bytes.len() >= 6, "{:?} `{}` is too short to be looked for", needle.class, needle.shown);
            if known.insert(needle.bytes.clone()) {
                search.add(needle);
            }
        }
        search
    }

    fn add(&mut self, needle: Needle) {
        let index = self.needles.len();
        let bytes = &needle.bytes;
        let lower = bytes.to_ascii_lowercase();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.folded.add(hex.into_bytes(), index, "hex");
        if let Ok(text) = std::str::from_utf8(&lower) {
            let units: Vec<u16> = text.encode_utf16().collect();
            self.folded.add(units.iter().flat_map(|unit| unit.to_le_bytes()).collect(), index, "UTF-16");
            self.folded.add(units.iter().flat_map(|unit| unit.to_be_bytes()).collect(), index, "UTF-16 (big-endian)");
        }
        self.folded.add(lower, index, "as it is");
        for shift in 0..3 {
            // What stands before and after it changes the characters at its borders; those between are its own.
            let text = STANDARD.encode([&vec![0; shift][..], bytes].concat());
            let own = &text[(shift * 8).div_ceil(6)..(shift + bytes.len()) * 8 / 6];
            if own.len() >= 7 {
                self.exact.add(own.as_bytes().to_vec(), index, "base64");
            }
        }
        self.needles.push(needle);
    }

    /// Every needle in every spelling, also inside of zstd frames.
    pub(super) fn find(&self, haystack: &[u8]) -> Vec<Found> {
        let mut found = BTreeMap::new();
        self.find_in(haystack, 2, &mut found);
        found.into_values().collect()
    }

    fn find_in(&self, haystack: &[u8], depth: usize, found: &mut BTreeMap<(usize, &'static str), Found>) {
        self.exact.find(haystack, found);
        self.folded.find(&haystack.to_ascii_lowercase(), found);
        if depth > 0 {
            for at in memchr::memmem::find_iter(haystack, &0xFD2F_B528_u32.to_le_bytes()) {
                self.find_in(&unpacked(&haystack[at..]), depth - 1, found);
            }
        }
    }

    /// What the evidence shows and has no business to show.
    pub(super) fn leaks(&self, evidence: &Evidence) -> Vec<String> {
        let purpose = &evidence.on_purpose;
        let found = self.find(&evidence.bytes).into_iter().map(|found| (&self.needles[found.needle], found));
        let leaks = found
            .filter(|(needle, _)| !purpose.classes.contains(&needle.class) && !purpose.words.contains(&needle.shown));
        leaks
            .map(|(needle, found)| {
                let Needle { class, shown, .. } = needle;
                format!("{}: {class:?} `{shown}` ({}): …{}…", evidence.at, found.spelling, found.around)
            })
            .collect()
    }
}

/// As much of a zstd frame as can be read, at most 64 MiB.
fn unpacked(frame: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    if let Ok(decoder) = zstd::stream::read::Decoder::with_buffer(frame) {
        // What comes before the damage of a damaged one counts too.
        let _ = decoder.single_frame().take(64 << 20).read_to_end(&mut plain);
    }
    plain
}

/// Whatever the spelling, in the middle of anything: or a search that finds nothing says nothing.
#[test]
fn a_planted_word_is_found_in_every_spelling() {
    let search = Search::new(vec![
        Needle::new(Class::Name, "other", "something_else"),
        Needle::new(Class::Secret, "password", "Plumage-of-77"),
    ]);
    let word = "Plumage-of-77";
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>().into_bytes();
    let utf_16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let mut spellings = vec![
        ("as it is", word.to_owned().into_bytes()),
        ("as it is", word.to_uppercase().into_bytes()),
        ("UTF-16", utf_16(word)),
        ("UTF-16 (big-endian)", word.encode_utf16().flat_map(u16::to_be_bytes).collect()),
        ("hex", hex(word.as_bytes())),
    ];
    spellings.extend((0..3).map(|n| ("base64", STANDARD.encode(format!("{}{word}?", "x".repeat(n))).into_bytes())));
    for (spelling, bytes) in spellings {
        let packed = zstd::encode_all(&bytes[..], 3).unwrap();
        for planted in [bytes, packed] {
            let haystack = [&[0x28, 0xb5, 0x2f, 0xfd, 7][..], &planted, &[0xff; 9]].concat();
            let found = search.find(&haystack);
            assert!(found.iter().any(|found| found.needle == 1 && found.spelling == spelling), "{spelling}: {found:?}");
            assert!(found.iter().all(|found| found.needle == 1), "{found:?}");
        }
    }
    assert_eq!(search.find(b"plumage of 77, UGx1bWFnZ"), []);
}
