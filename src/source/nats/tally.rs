//! What an archive holds, in counts and sums: the fingerprint of a stream.
//!
//! Sums are modulo 2^128 over the messages' hashes, so their order says nothing; a message's hash is of its sequence,
//! time, subject, headers and payload, each with its length. Beside the sum of all there is one for each subject, so
//! that a difference has a name. Of more subjects than [`MOST_SUBJECTS`], or longer ones than [`MOST_NAMES`] together,
//! sums are kept by the subject's hash.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed, xxh3_128_with_seed};

use super::{
    archive::{ArchivedConsumer, Message, Visitor},
    ranges::Ranges,
};
use crate::pipeline::{Fingerprint, Progress};

/// Subjects that are counted one by one.
pub const MOST_SUBJECTS: usize = 10_000;
/// Bytes of all their names.
pub const MOST_NAMES: usize = 4 * 1024 * 1024;
/// Sums by the subject's hash, beyond that.
pub const BUCKETS: usize = 4096;
/// Ranges of sequences that are kept: some 20 MiB. A stream with more holes than that is compared by its sums alone.
pub const MOST_RANGES: usize = 500_000;
/// Messages up to this length are hashed in one piece, which is faster for them.
const SHORT: usize = 4096;

/// A message's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its sequence.
    pub seq: u64,
    /// When it was stored, in nanoseconds since 1970.
    pub time: i64,
}

/// What was counted of all messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages, bytes of their subjects, headers and payloads, and the sum of their hashes.
    pub all: Fingerprint,
    /// The message with the lowest sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Mark>,
    /// The message with the highest sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Mark>,
    /// The longest message: headers and payload, in bytes.
    pub largest: u64,
    /// Format 1: marks of deleted messages.
    pub deleted: u64,
    /// Messages whose sequence is not above those before. Where there are none, no sequence is there twice. Format 2
    /// has none.
    pub disordered: u64,
    /// Consumers.
    pub consumers: u64,
}

/// Messages by their subjects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subjects {
    /// One by one.
    Exact(HashMap<Box<[u8]>, Fingerprint>),
    /// By their hash: [`BUCKETS`] of them.
    Buckets(Vec<Fingerprint>),
}

/// Counts an archive as it passes.
#[derive(Debug)]
pub struct Tally {
    seed: u64,
    counts: Counts,
    subjects: Subjects,
    /// Bytes of all names in `subjects`.
    names: usize,
    seen: Option<Ranges>,
    only: Option<Arc<Ranges>>,
    progress: Option<Arc<Progress>>,
    /// Where short messages are put together.
    scratch: Vec<u8>,
}

/// Everything that was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The seed of its hashes. Only what has the same seed can be compared.
    pub seed: u64,
    /// Of all messages.
    pub counts: Counts,
    /// By subject.
    pub subjects: Subjects,
    /// The sequences, where they were to be kept.
    pub seen: Option<Ranges>,
}

impl Tally {
    /// Counts with hashes under `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            counts: Counts::default(),
            subjects: Subjects::Exact(HashMap::new()),
            names: 0,
            seen: None,
            only: None,
            progress: None,
            scratch: Vec::with_capacity(SHORT),
        }
    }

    /// Also keeps the set of sequences, unless it has more than [`MOST_RANGES`] ranges.
    pub fn keeping_sequences(mut self) -> Self {
        self.seen = Some(Ranges::new());
        self
    }

    /// Counts only messages whose sequence is in `these`.
    pub fn only(mut self, these: Arc<Ranges>) -> Self {
        self.only = Some(these);
        self
    }

    /// Tells `progress` of every message that is counted.
    pub fn telling(mut self, progress: Arc<Progress>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// What was counted.
    pub fn finish(self) -> Counted {
        Counted { seed: self.seed, counts: self.counts, subjects: self.subjects, seen: self.seen }
    }

    /// The hash of a message: of its numbers and lengths, in 8 bytes each, the lowest first, and then its bytes.
    fn hash(&mut self, message: &Message<'_>) -> u128 {
        let Message { seq, time, subject, headers, payload } = *message;
        let parts = [subject, headers, payload];
        let lengths = parts.map(|part| part.len() as u64);
        let numbers = [seq, time.cast_unsigned()].into_iter().chain(lengths).flat_map(u64::to_le_bytes);
        self.scratch.clear();
        self.scratch.extend(numbers);
        if lengths.iter().sum::<u64>() <= SHORT as u64 {
            parts.iter().for_each(|part| self.scratch.extend_from_slice(part));
            return xxh3_128_with_seed(&self.scratch, self.seed);
        }
        let mut hasher = Xxh3::with_seed(self.seed);
        hasher.update(&self.scratch);
        parts.iter().for_each(|part| hasher.update(part));
        hasher.digest128()
    }

    fn count_by_subject(&mut self, subject: &[u8], bytes: u64, hash: u128) {
        if let Subjects::Exact(exact) = &mut self.subjects {
            if let Some(counted) = exact.get_mut(subject) {
                return counted.add(bytes, hash);
            }
            if exact.len() < MOST_SUBJECTS && self.names + subject.len() <= MOST_NAMES {
                self.names += subject.len();
                return exact.entry(subject.into()).or_default().add(bytes, hash);
            }
            self.subjects = Subjects::Buckets(mem::take(&mut self.subjects).buckets(self.seed));
        }
        if let Subjects::Buckets(buckets) = &mut self.subjects {
            buckets[bucket(subject, self.seed)].add(bytes, hash);
        }
    }
}

/// Which bucket a subject belongs to.
fn bucket(subject: &[u8], seed: u64) -> usize {
    (xxh3_64_with_seed(subject, seed) % BUCKETS as u64) as usize
}

fn join(sum: &mut Fingerprint, more: Fingerprint) {
    sum.rows += more.rows;
    sum.bytes += more.bytes;
    sum.sum = sum.sum.wrapping_add(more.sum);
}

impl Default for Subjects {
    fn default() -> Self {
        Self::Exact(HashMap::new())
    }
}

impl Subjects {
    /// The same by hash.
    fn buckets(self, seed: u64) -> Vec<Fingerprint> {
        match self {
            Self::Buckets(buckets) => buckets,
            Self::Exact(exact) => {
                let mut buckets = vec![Fingerprint::default(); BUCKETS];
                for (subject, counted) in exact {
                    join(&mut buckets[bucket(&subject, seed)], counted);
                }
                buckets
            }
        }
    }
}

impl Visitor for Tally {
    fn message(&mut self, message: &Message<'_>) -> Result<(), String> {
        let Message { seq, time, subject, headers, payload } = *message;
        if self.only.as_ref().is_some_and(|only| !only.contains(seq)) {
            return Ok(());
        }
        let length = (headers.len() + payload.len()) as u64;
        let bytes = subject.len() as u64 + length;
        let hash = self.hash(message);
        let counts = &mut self.counts;
        counts.all.add(bytes, hash);
        counts.largest = counts.largest.max(length);
        match counts.last {
            Some(last) if seq <= last.seq => {
                counts.disordered += 1;
                if counts.first.is_none_or(|first| seq < first.seq) {
                    counts.first = Some(Mark { seq, time });
                }
            }
            _ => {
                counts.last = Some(Mark { seq, time });
                counts.first.get_or_insert(Mark { seq, time });
            }
        }
        if let Some(seen) = &mut self.seen {
            seen.insert(seq);
            if seen.parts() > MOST_RANGES {
                self.seen = None;
            }
        }
        self.count_by_subject(subject, bytes, hash);
        if let Some(progress) = &self.progress {
            Progress::add(&progress.rows, 1);
        }
        Ok(())
    }

    fn deleted(&mut self, _seq: u64) -> Result<(), String> {
        self.counts.deleted += 1;
        Ok(())
    }

    fn consumer(&mut self, _consumer: &ArchivedConsumer) -> Result<(), String> {
        self.counts.consumers += 1;
        Ok(())
    }
}

/// How what was found differs from what should be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Messages that are missing. Where sequences were not kept on both sides: at least so many, for one that came may
    /// hide one that went within a subject.
    pub lost: u64,
    /// Messages that are there and should not be; likewise.
    pub extra: u64,
    /// Subjects, or groups of subjects, that have as many messages as they should, with other content.
    pub changed: u64,
    /// Each subject, or group of them, that differs, in words, control characters escaped: the first by name.
    pub subjects: Vec<String>,
    /// How many more differ.
    pub more: u64,
    /// The first sequences that are missing, where sequences were kept on both sides.
    pub missing: Vec<u64>,
}

impl Counted {
    /// How `found` differs from this; `None` where it does not. Names up to `most` subjects and sequences. Consumers,
    /// and marks of deleted messages, are not compared. Under different seeds everything differs.
    pub fn difference(&self, found: &Self, most: usize) -> Option<Difference> {
        let lines = by_subject(self, found);
        if lines.is_empty() && self.counts.all == found.counts.all && self.seen_agree(found) {
            return None;
        }
        let mut difference = Difference::default();
        for (told, found) in lines.values() {
            difference.lost += told.rows.saturating_sub(found.rows);
            difference.extra += found.rows.saturating_sub(told.rows);
            difference.changed += u64::from(told.rows == found.rows);
        }
        difference.more = (lines.len() - lines.len().min(most)) as u64;
        difference.subjects =
            lines.into_iter().take(most).map(|(name, (told, found))| line(&name, told, found)).collect();
        if let (Some(told), Some(seen)) = (&self.seen, &found.seen) {
            let missing = told.without(seen);
            // Messages that are there twice have no sequence of their own: what the counts say is more then.
            difference.lost = difference.lost.max(missing.len());
            difference.extra = difference.extra.max(seen.without(told).len());
            difference.missing = missing.first(most);
        }
        Some(difference)
    }

    fn seen_agree(&self, found: &Self) -> bool {
        match (&self.seen, &found.seen) {
            (Some(told), Some(found)) => told == found,
            _ => true,
        }
    }
}

/// A subject, or the number of a group of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Subject(Box<[u8]>),
    Group(usize),
}

/// Every subject, or group of them, that differs.
fn by_subject(told: &Counted, found: &Counted) -> BTreeMap<Name, (Fingerprint, Fingerprint)> {
    match (&told.subjects, &found.subjects) {
        (Subjects::Exact(ours), Subjects::Exact(theirs)) => {
            let names = ours.keys().chain(theirs.keys().filter(|name| !ours.contains_key(*name)));
            let of = |exact: &HashMap<_, _>, name| exact.get(name).copied().unwrap_or_default();
            names
                .map(|name| (name, (of(ours, name), of(theirs, name))))
                .filter(|(_, (told, found))| told != found)
                .map(|(name, both)| (Name::Subject(name.clone()), both))
                .collect()
        }
        (ours, theirs) => {
            let (ours, theirs) = (ours.clone().buckets(told.seed), theirs.clone().buckets(found.seed));
            let both = ours.into_iter().zip(theirs).enumerate();
            both.filter(|(_, (told, found))| told != found).map(|(group, both)| (Name::Group(group), both)).collect()
        }
    }
}

fn line(name: &Name, told: Fingerprint, found: Fingerprint) -> String {
    let name = match name {
        Name::Subject(subject) => {
            let cut = &subject[..subject.len().min(120)];
            let more = if cut.len() < subject.len() { "…" } else { "" };
            format!("subject `{}{more}`", String::from_utf8_lossy(cut).escape_debug())
        }
        Name::Group(group) => format!("group {} of {BUCKETS} of subjects", group + 1),
    };
    match (told.rows, found.rows) {
        (told, found) if told == found => format!("{name}: some of {told} messages differ"),
        (told, found) => format!("{name}: {found} messages instead of {told}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;

    fn message<'a>(seq: u64, subject: &'a [u8], payload: &'a [u8]) -> Message<'a> {
        Message { seq, time: seq.cast_signed() * 10, subject, headers: b"", payload }
    }

    fn count(tally: Tally, messages: &[Message<'_>]) -> Counted {
        let mut tally = tally;
        messages.iter().for_each(|one| tally.message(one).unwrap());
        tally.finish()
    }

    fn tally() -> Tally {
        Tally::new(5)
    }

    #[test]
    fn everything_in_a_message_counts_and_no_border_moves() {
        let whole = Message { seq: 3, time: 4, subject: b"ab", headers: b"cd", payload: b"ef" };
        let others = [
            Message { seq: 4, ..whole },
            Message { time: 5, ..whole },
            Message { seq: 4, time: 3, ..whole },
            Message { subject: b"abc", headers: b"d", ..whole },
            Message { headers: b"cde", payload: b"f", ..whole },
            Message { headers: b"", payload: b"cdef", ..whole },
            Message { payload: b"eg", ..whole },
        ];
        let told = count(tally(), &[whole]);
        assert_eq!(told.counts.all.rows, 1);
        assert_eq!(told.counts.all.bytes, 6);
        for other in others {
            assert!(told.difference(&count(tally(), &[other]), 9).is_some(), "{other:?}");
        }
        assert_ne!(told.counts.all, count(Tally::new(6), &[whole]).counts.all);
        assert_eq!(told.difference(&count(tally(), &[whole]), 9), None);
    }

    /// The canonical form, written down once more.
    #[test]
    fn the_hash_is_of_numbers_lengths_and_bytes_whatever_their_length() {
        for length in [0, 1, 100, SHORT - 6, SHORT - 5, SHORT - 4, SHORT + 1, 100_000] {
            let payload: Vec<u8> = (0..length).map(|n| (n * 31) as u8).collect();
            let one = Message { seq: 9, time: -2, subject: b"abc", headers: b"de", payload: &payload };
            let numbers = [9, u64::MAX - 1, 3, 2, length as u64].map(u64::to_le_bytes).concat();
            let whole = [&numbers[..], b"abcde", &payload].concat();
            let counted = count(tally(), &[one]);
            assert_eq!(counted.counts.all.sum, xxh3_128_with_seed(&whole, 5), "{length}");
            assert_eq!(counted.counts.largest, 2 + length as u64);
        }
    }

    #[test]
    fn differences_have_names() {
        let all = [message(1, b"a", b"1"), message(2, b"b", b"2"), message(3, b"c\x1b", b"3"), message(5, b"a", b"4")];
        let told = count(tally().keeping_sequences(), &all);
        let found = [message(1, b"a", b"1"), message(2, b"b", b"X"), message(5, b"a", b"4"), message(6, b"d", b"6")];
        let kept = count(tally().keeping_sequences(), &found);
        let subjects = [
            "subject `b`: some of 1 messages differ",
            "subject `c\\u{1b}`: 0 messages instead of 1",
            "subject `d`: 1 messages instead of 0",
        ];
        let difference = told.difference(&kept, 9).unwrap();
        assert_eq!(difference.subjects, subjects);
        let Difference { lost, extra, changed, more, missing, .. } = difference;
        assert_eq!((lost, extra, changed, more, &missing[..]), (1, 1, 1, 0, &[3][..]));
        let fewer = told.difference(&count(tally(), &found), 1).unwrap();
        assert_eq!((fewer.subjects, fewer.more, fewer.missing), (vec![subjects[0].to_owned()], 2, vec![]));
        // Within one subject, one that came hides one that went; sequences tell.
        let moved =
            [message(1, b"a", b"1"), message(2, b"b", b"2"), message(3, b"c\x1b", b"3"), message(7, b"a", b"4")];
        let moved = told.difference(&count(tally().keeping_sequences(), &moved), 9).unwrap();
        assert_eq!((moved.lost, moved.extra, moved.changed, &moved.missing[..]), (1, 1, 1, &[5][..]));
    }

    #[test]
    fn first_last_largest_and_order() {
        let all = [message(5, b"a", b"1"), message(9, b"a", b"333"), message(9, b"a", b"333"), message(4, b"a", b"")];
        let mut tally = tally().keeping_sequences();
        all.iter().for_each(|one| tally.message(one).unwrap());
        tally.deleted(3).unwrap();
        let Counted { counts, seen, .. } = tally.finish();
        assert_eq!((counts.first, counts.last), (Some(Mark { seq: 4, time: 40 }), Some(Mark { seq: 9, time: 90 })));
        assert_eq!((counts.largest, counts.disordered, counts.deleted, counts.all.rows), (3, 2, 1, 4));
        assert_eq!(seen.unwrap().iter().collect::<Vec<_>>(), [(4, 5), (9, 9)]);
        let json = serde_json::to_string(&counts).unwrap();
        assert_eq!(serde_json::from_str::<Counts>(&json).unwrap(), counts);
        let nothing = Tally::new(1).finish().counts;
        assert_eq!(serde_json::from_str::<Counts>(&serde_json::to_string(&nothing).unwrap()).unwrap(), nothing);
    }

    #[test]
    fn many_subjects_are_counted_by_hash_and_nothing_is_lost() {
        let names: Vec<String> = (0..MOST_SUBJECTS + 500).map(|n| format!("subject.{n}")).collect();
        let all: Vec<_> = names.iter().zip(1..).map(|(name, seq)| message(seq, name.as_bytes(), b"payload")).collect();
        let exact = count(tally(), &all[..MOST_SUBJECTS]);
        assert!(matches!(exact.subjects, Subjects::Exact(_)));
        let progress = Arc::new(Progress::default());
        let told = count(tally().telling(Arc::clone(&progress)), &all);
        assert_eq!(progress.rows.load(Ordering::Relaxed), all.len() as u64);
        let Subjects::Buckets(buckets) = &told.subjects else { panic!("not by hash") };
        let mut sum = Fingerprint::default();
        buckets.iter().for_each(|bucket| join(&mut sum, *bucket));
        assert_eq!(sum, told.counts.all);
        // Whatever was counted one by one is in the same groups.
        let reversed: Vec<_> = all.iter().rev().copied().collect();
        assert_eq!(told.subjects, count(tally(), &reversed).subjects);
        let mut other = all.clone();
        other[77].payload = b"Payload";
        let difference = told.difference(&count(tally(), &other), 3).unwrap();
        assert_eq!((difference.lost, difference.extra, difference.changed, difference.subjects.len()), (0, 0, 1, 1));
        assert!(difference.subjects[0].contains("of 4096 of subjects: some of "), "{difference:?}");
        // One side counted by subject, the other by hash.
        let difference = told.difference(&exact, 3).unwrap();
        assert_eq!((difference.lost, difference.extra, difference.changed), (500, 0, 0));
        assert_eq!(exact.difference(&told, 3).unwrap().extra, 500);
    }

    #[test]
    fn more_holes_than_can_be_kept_are_not_kept() {
        let mut tally = tally().keeping_sequences();
        for n in 0..=MOST_RANGES as u64 {
            assert!(tally.seen.is_some());
            tally.message(&message(n * 2 + 1, b"a", b"")).unwrap();
        }
        let counted = tally.finish();
        assert!(counted.seen.is_none());
        assert_eq!(counted.counts.all.rows, MOST_RANGES as u64 + 1);
    }

    #[test]
    fn long_subjects_are_counted_by_hash() {
        let names: Vec<Vec<u8>> = (0..70u8).map(|n| vec![n; 65_000]).collect();
        let all: Vec<_> = names.iter().zip(1..).map(|(name, seq)| message(seq, name, b"")).collect();
        let mut tally = tally();
        all.iter().for_each(|one| tally.message(one).unwrap());
        assert!(tally.names <= MOST_NAMES);
        let told = tally.finish();
        assert!(matches!(told.subjects, Subjects::Buckets(_)));
        assert_eq!(told.counts.all.rows, 70);
        assert!(
            told.difference(&count(self::tally(), &all[1..]), 1).unwrap().subjects[0].contains("of 4096 of subjects: ")
        );
        let few = count(self::tally(), &all[..2]);
        let difference = few.difference(&count(self::tally(), &all[1..2]), 1).unwrap();
        assert!(difference.subjects[0].contains("…`: 0 messages instead of 1"), "{difference:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn sums_do_not_depend_on_order_and_see_every_change(
            all in prop::collection::btree_map(1..90u64, (0..6u8, prop::collection::vec(any::<u8>(), 0..9)), 1..40),
            turn in any::<prop::sample::Index>(),
            other in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let made = all.iter().map(|(seq, (subject, payload))| (*seq, [*subject], payload.clone()));
            let made: Vec<_> = made.collect();
            let messages: Vec<_> = made.iter().map(|(seq, subject, payload)| message(*seq, subject, payload)).collect();
            let told = count(tally().keeping_sequences(), &messages);
            let at = turn.index(messages.len());
            let turned = [&messages[at..], &messages[..at]].concat();
            prop_assert_eq!(told.difference(&count(tally().keeping_sequences(), &turned), 9), None);
            // A message changed, or lost.
            let mut changed = messages.clone();
            changed[at].payload = &other;
            let difference = told.difference(&count(tally(), &changed), 9);
            prop_assert_eq!(difference.is_some(), messages[at].payload != other);
            let lost = [&messages[..at], &messages[at + 1..]].concat();
            let lost = count(tally().keeping_sequences(), &lost);
            let difference = told.difference(&lost, 9).unwrap();
            prop_assert_eq!((difference.lost, difference.extra), (1, 0));
            prop_assert_eq!(difference.missing, [messages[at].seq]);
            // Counting only those gives what was counted of those.
            let only = count(tally().only(Arc::new(lost.seen.clone().unwrap())), &messages);
            prop_assert_eq!(only.counts, lost.counts);
            prop_assert_eq!(only.subjects, lost.subjects);
        }
    }
}
