//! Where a stream is cut into parts, and what the fingerprint of rows is.
//!
//! Cuts follow the content: after a row whose hash is small enough, so that equal rows make equal parts even where rows before
//! them came or went, and after a rewrite of the table (research §1.3: 0 % new bytes after VACUUM FULL against 43 % for cuts at
//! fixed places). The chance of a cut after a row grows with the row's length, which keeps parts near the target whatever the
//! width of rows. A stream without rows is cut the same way after any byte, by a rolling hash of the 64 before it. The writer's policy,
//! not the format (rule R5).

use crate::repository::{Fingerprint, MAX_PART};

/// No cut before this many bytes, unless the artifact ends.
pub(super) const MIN_PART: u64 = 2 * 1024 * 1024;
/// The mean length of parts of a long artifact, in bytes.
const TARGET_PART: u64 = 8 * 1024 * 1024;

/// The policy in words, for `epoch.json`.
pub const CUT_POLICY: &str = "rows; after a row whose XXH3-128 falls below its share of 6 MiB; other streams by a rolling hash of 64 bytes, at most 7 MiB; at least 2 MiB, at most 32 MiB";

/// Is there a cut after this row? `len` is the row's length with its line end, `part` the part's with the row.
fn cut_after(part: u64, len: u64, hash: u128) -> bool {
    if part < MIN_PART {
        return false;
    }
    // P(cut) = len / (target - min): on the average a part goes on for target - min bytes after its minimum.
    let low = hash & u128::from(u64::MAX);
    low * u128::from(TARGET_PART - MIN_PART) < u128::from(len) << 64
}

/// Hashes rows of text and sums them up. A row is a line; its hash leaves out the line end.
pub struct RowHasher {
    seed: u64,
    /// The row that began in an earlier piece.
    open: Option<(Box<xxhash_rust::xxh3::Xxh3>, u64)>,
    fingerprint: Fingerprint,
}

impl RowHasher {
    /// Rows hashed under the epoch's seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, open: None, fingerprint: Fingerprint::default() }
    }

    /// Takes bytes up to and with the next line end, or all of them; says how many, and whether a row ended, with its hash and its
    /// length including the line end.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, Option<(u128, u64)>) {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            let (hasher, len) =
                self.open.get_or_insert_with(|| (Box::new(xxhash_rust::xxh3::Xxh3::with_seed(self.seed)), 0));
            hasher.update(bytes);
            *len += bytes.len() as u64;
            return (bytes.len(), None);
        };
        let (hash, len) = match self.open.take() {
            None => (xxhash_rust::xxh3::xxh3_128_with_seed(&bytes[..end], self.seed), end as u64),
            Some((mut hasher, len)) => {
                hasher.update(&bytes[..end]);
                (hasher.digest128(), len + end as u64)
            }
        };
        self.fingerprint.add(len, hash);
        (end + 1, Some((hash, len + 1)))
    }

    /// Takes any bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (taken, _) = self.take(bytes);
            bytes = &bytes[taken..];
        }
    }

    /// The sum; `None` where the last row has no line end.
    pub fn finish(self) -> Option<Fingerprint> {
        self.open.is_none().then_some(self.fingerprint)
    }
}

/// A complete piece of an artifact.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) bytes: Vec<u8>,
    /// Rows that end in it.
    pub(super) rows: u64,
    /// Its last row goes on in the next piece.
    pub(super) continues: bool,
}

/// The longest piece of a stream without rows. With what is offered at once it needs no more room than a writer begins with: one that
/// waits for room while others grow would keep its source waiting, which may not wait.
const MAX_SLICE: usize = 7 * 1024 * 1024;

/// Finds cuts in a stream without rows: a gear hash, whose 64 bits remember as many bytes. Its table is of the epoch, so that the
/// lengths of parts tell nothing to those who know what is stored.
struct Slicer {
    gear: Box<[u64; 256]>,
    hash: u64,
}

impl Slicer {
    fn new(seed: u64) -> Self {
        let gear = std::array::from_fn(|byte| xxhash_rust::xxh3::xxh3_64_with_seed(&[byte as u8], seed));
        Self { gear: Box::new(gear), hash: 0 }
    }

    /// Where to cut in `bytes`, which follow `before` bytes of the same piece: after so many of them.
    fn cut(&mut self, before: usize, bytes: &[u8]) -> Option<usize> {
        /// A cut after one byte in so many.
        const BELOW: u64 = u64::MAX / (TARGET_PART - MIN_PART);
        // What is before the first possible cut by more than the hash remembers does not matter.
        let skip = (MIN_PART as usize - 64).saturating_sub(before).min(bytes.len());
        for (at, byte) in bytes.iter().enumerate().skip(skip) {
            self.hash = (self.hash << 1).wrapping_add(self.gear[usize::from(*byte)]);
            if self.hash < BELOW && before + at + 1 >= MIN_PART as usize {
                self.hash = 0;
                return Some(at + 1);
            }
        }
        None
    }
}

enum Policy {
    Rows(RowHasher),
    Slices(Slicer),
}

/// Cuts one artifact. Give it bytes; it hands back pieces as they become complete.
pub(super) struct Cutter {
    policy: Policy,
    piece: Vec<u8>,
    rows: u64,
    /// Where in `piece` the row begins that has not ended.
    row_start: usize,
    /// Total bytes taken.
    raw: u64,
}

impl Cutter {
    /// For lines.
    pub(super) fn rows(seed: u64) -> Self {
        Self::new(Policy::Rows(RowHasher::new(seed)))
    }

    /// For a stream that has none.
    pub(super) fn slices(seed: u64) -> Self {
        Self::new(Policy::Slices(Slicer::new(seed)))
    }

    fn new(policy: Policy) -> Self {
        Self { policy, piece: Vec::new(), rows: 0, row_start: 0, raw: 0 }
    }

    /// Bytes that wait for their cut.
    pub(super) fn held(&self) -> u64 {
        self.piece.len() as u64
    }

    /// Takes some of `bytes`: up to the next cut, or up to what the piece may grow to, or all. Says how many, and the piece if one
    /// became complete.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, Option<Piece>) {
        let mut taken = 0;
        while taken < bytes.len() {
            let most = match self.policy {
                Policy::Rows(_) => MAX_PART as usize,
                Policy::Slices(_) => MAX_SLICE,
            };
            let room = most.saturating_sub(self.piece.len());
            if room == 0 {
                return (taken, Some(self.full()));
            }
            let offered = &bytes[taken..bytes.len().min(taken + room)];
            let before = self.piece.len();
            let (n, cut) = match &mut self.policy {
                Policy::Rows(hasher) => {
                    let (n, ended) = hasher.take(offered);
                    if ended.is_some() {
                        self.rows += 1;
                        self.row_start = before + n;
                    }
                    (n, ended.is_some_and(|(hash, len)| cut_after((before + n) as u64, len, hash)))
                }
                Policy::Slices(slicer) => match slicer.cut(before, offered) {
                    Some(n) => (n, true),
                    None => (offered.len(), false),
                },
            };
            self.piece.extend_from_slice(&offered[..n]);
            taken += n;
            self.raw += n as u64;
            if cut {
                return (taken, Some(self.cut(self.piece.len(), false)));
            }
        }
        (taken, None)
    }

    /// The piece is as long as a part may be: cut before the row that does not fit, or inside it if it is alone.
    fn full(&mut self) -> Piece {
        match (&self.policy, self.row_start) {
            (Policy::Slices(_), _) => self.cut(self.piece.len(), false),
            (Policy::Rows(_), 0) => self.cut(self.piece.len(), true),
            (Policy::Rows(_), start) => self.cut(start, false),
        }
    }

    fn cut(&mut self, at: usize, continues: bool) -> Piece {
        let rest = self.piece[at..].to_vec();
        let mut bytes = std::mem::replace(&mut self.piece, rest);
        bytes.truncate(at);
        self.row_start = 0;
        Piece { bytes, rows: std::mem::take(&mut self.rows), continues }
    }

    /// The last piece, if there is one, the length of all of them and the fingerprint; `None` for that where the last line does
    /// not end, and where there are no rows.
    pub(super) fn finish(self) -> (Option<Piece>, u64, Option<Fingerprint>) {
        let last = (!self.piece.is_empty()).then_some(Piece { bytes: self.piece, rows: self.rows, continues: false });
        let fingerprint = match self.policy {
            Policy::Rows(hasher) => hasher.finish(),
            Policy::Slices(_) => None,
        };
        (last, self.raw, fingerprint)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut_all(bytes: &[u8], step: usize) -> (Vec<Piece>, Option<Fingerprint>) {
        cut_by(Cutter::rows(7), bytes, step)
    }

    fn cut_by(mut cutter: Cutter, bytes: &[u8], step: usize) -> (Vec<Piece>, Option<Fingerprint>) {
        let mut pieces = Vec::new();
        for chunk in bytes.chunks(step.max(1)) {
            let mut chunk = chunk;
            while !chunk.is_empty() {
                let (taken, piece) = cutter.take(chunk);
                assert!(taken > 0 || piece.is_some(), "no progress");
                pieces.extend(piece);
                chunk = &chunk[taken..];
            }
        }
        let (last, raw, fingerprint) = cutter.finish();
        pieces.extend(last);
        assert_eq!(raw, bytes.len() as u64);
        (pieces, fingerprint)
    }

    fn rows(n: u64, width: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for i in 0..n {
            let word = format!("{}\t", blake3::hash(&i.to_be_bytes()));
            bytes.extend(word.bytes().cycle().take(width));
            bytes.push(b'\n');
        }
        bytes
    }

    #[test]
    fn parts_have_the_promised_lengths_whatever_the_width_of_rows() {
        for width in [20, 300, 20_000, 1_000_000] {
            let bytes = rows((200 << 20) / (width as u64 + 1), width);
            let (pieces, _) = cut_all(&bytes, 64 * 1024);
            let (last, whole) = pieces.split_last().unwrap();
            assert!(whole.iter().all(|p| p.bytes.len() as u64 >= MIN_PART && p.bytes.len() as u64 <= MAX_PART));
            assert!(last.bytes.len() as u64 <= MAX_PART);
            let mean = (bytes.len() / pieces.len()) as u64;
            assert!((TARGET_PART / 2..TARGET_PART * 2).contains(&mean), "width {width}: mean {mean}");
            assert!(pieces.iter().all(|p| p.bytes.ends_with(b"\n") && !p.continues));
        }
    }

    #[test]
    fn rows_that_come_first_leave_later_parts_as_they_were() {
        let bytes = rows(200_000, 300);
        let mut longer = rows(1, 123_456);
        longer.extend_from_slice(&bytes);
        let (before, _) = cut_all(&bytes, 8192);
        let (after, _) = cut_all(&longer, 8192);
        let same = after.iter().filter(|piece| before.contains(piece)).count();
        assert!(before.len() > 4 && same + 2 >= before.len(), "{same} of {} survived", before.len());
    }

    #[test]
    fn slices_follow_the_content_however_it_comes() {
        // No line ends, nor anything like them.
        let bytes: Vec<u8> = rows(300_000, 300).into_iter().filter(|byte| *byte != b'\n').collect();
        let (pieces, fingerprint) = cut_by(Cutter::slices(7), &bytes, 64 * 1024);
        assert!(fingerprint.is_none() && pieces.iter().all(|piece| piece.rows == 0 && !piece.continues));
        assert_eq!(pieces.iter().flat_map(|p| p.bytes.clone()).collect::<Vec<_>>(), bytes);
        let (last, whole) = pieces.split_last().unwrap();
        assert!(whole.iter().all(|p| p.bytes.len() as u64 >= MIN_PART && p.bytes.len() <= MAX_SLICE));
        assert!(last.bytes.len() <= MAX_SLICE);
        let mean = (bytes.len() / pieces.len()) as u64;
        assert!((TARGET_PART / 2..TARGET_PART).contains(&mean), "mean {mean}");
        assert_eq!(cut_by(Cutter::slices(7), &bytes, 999).0, pieces);
        assert_ne!(cut_by(Cutter::slices(8), &bytes, 999).0, pieces, "another epoch, other cuts");
        let (longer, _) = cut_by(Cutter::slices(7), &[b"something before".as_slice(), &bytes].concat(), 4096);
        let same = longer.iter().filter(|piece| pieces.contains(piece)).count();
        assert!(pieces.len() > 4 && same + 2 >= pieces.len(), "{same} of {} survived", pieces.len());
        // The same byte for ever has no cut: a part is as long as it may be.
        let (same, _) = cut_by(Cutter::slices(7), &vec![0; MAX_PART as usize + 10], 1 << 20);
        assert!(same.iter().all(|piece| piece.bytes.len() <= MAX_SLICE), "{}", same.len());
    }

    #[test]
    fn a_row_longer_than_a_part_goes_on_in_the_next() {
        let long = MAX_PART as usize * 2 + 1000;
        let mut bytes = rows(10, 100);
        bytes.extend(rows(1, long));
        bytes.extend(rows(10, 100));
        let (pieces, fingerprint) = cut_all(&bytes, 1 << 20);
        assert_eq!(pieces.iter().flat_map(|p| p.bytes.clone()).collect::<Vec<_>>(), bytes);
        assert_eq!(pieces.iter().map(|p| p.rows).sum::<u64>(), 21);
        assert_eq!(fingerprint.unwrap().rows, 21);
        assert_eq!(pieces.iter().map(|p| p.continues).collect::<Vec<_>>(), [false, true, true, false]);
        for pair in pieces.windows(2) {
            assert_eq!(pair[0].continues, !pair[0].bytes.ends_with(b"\n"));
        }
    }

    #[test]
    fn a_last_line_without_an_end_has_no_fingerprint() {
        assert_eq!(cut_all(b"a\nb", 1).1, None);
        assert_eq!(cut_all(b"a\nb\n", 1).1.unwrap().rows, 2);
        assert_eq!(cut_all(b"", 1).1, Some(Fingerprint::default()));
    }

    proptest! {
        #[test]
        fn pieces_are_the_bytes_and_slices_do_not_matter(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..2000), step in 1usize..200) {
            let (pieces, fingerprint) = cut_all(&bytes, step);
            let (_, whole) = cut_all(&bytes, usize::MAX);
            prop_assert_eq!(pieces.into_iter().flat_map(|p| p.bytes).collect::<Vec<_>>(), bytes.clone());
            prop_assert_eq!(fingerprint, whole);
            if let Some(fingerprint) = fingerprint {
                let mut sum = Fingerprint::default();
                for line in bytes.split_inclusive(|b| *b == b'\n') {
                    let line = &line[..line.len() - 1];
                    sum.add(line.len() as u64, xxhash_rust::xxh3::xxh3_128_with_seed(line, 7));
                }
                prop_assert_eq!(fingerprint, sum);
            }
        }
    }
}
