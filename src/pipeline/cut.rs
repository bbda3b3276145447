//! Where a stream is cut into parts, and what the fingerprint of rows is.
//!
//! Cuts follow the content: after a row whose hash is small enough, so that equal rows make equal parts even where rows before
//! them came or went, and after a rewrite of the table (research §1.3: 0 % new bytes after VACUUM FULL against 43 % for cuts at
//! fixed places). The chance of a row to be such a *mark* grows with its length, which keeps parts near the target whatever the width of rows.
//! There is a cut after a mark that has no other within [`MIN_PART`] before it. So whether there is one depends on those bytes alone,
//! and several that read ranges of one table at a time agree on it ([`RowCutter::until_border`]).
//!
//! A stream without rows is cut after any byte, by a rolling hash of the 64 before it. The writer's policy, not the format (rule R5).

use super::{
    buffers::Buffers,
    rows::{RowScanner, Rows, Scanned},
};
use crate::repository::{Fingerprint, MAX_PART};

/// No cut before this many bytes, unless the artifact ends.
pub(super) const MIN_PART: u64 = 2 * 1024 * 1024;
/// The mean length of parts of a long artifact, in bytes.
const TARGET_PART: u64 = 8 * 1024 * 1024;
/// A mark is met every so many bytes on the average. Of marks at random places with this mean distance m, the share exp(-MIN_PART / m) has
/// none within [`MIN_PART`] before it: parts are 7.9 MiB long on the average.
const MARK_EVERY: u64 = 11 * 512 * 1024;

/// The policy in words, for `epoch.json`.
pub const CUT_POLICY: &str = "rows; after a row whose XXH3-128 falls below its share of 5.5 MiB and none does in 2 MiB before it; other streams by a rolling hash of 64 bytes, at most 7 MiB; at least 2 MiB, at most 32 MiB";

/// Knows where marks are.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    /// Bytes since the last one, or since this began to look.
    since: u64,
}

impl Marks {
    /// Is there a cut after this row? `len` is the row's length with its framing.
    fn cut_after(&mut self, len: u64, hash: u128) -> bool {
        self.since += len;
        let low = hash & u128::from(u64::MAX);
        let is_mark = low * u128::from(MARK_EVERY) < u128::from(len) << 64;
        is_mark && std::mem::take(&mut self.since) >= MIN_PART
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

/// Cuts one artifact, or a range of its rows. Give it bytes; it hands back pieces as they become complete.
pub(super) enum Cutter {
    Rows(Box<RowCutter>),
    Slices(SliceCutter),
}

impl Cutter {
    /// For rows.
    pub(super) fn rows(rows: Rows, seed: u64) -> Self {
        Self::Rows(Box::new(RowCutter::new(rows, seed)))
    }

    /// For a stream that has none.
    pub(super) fn slices(seed: u64) -> Self {
        Self::Slices(SliceCutter::new(seed))
    }

    /// Bytes that wait for their cut.
    pub(super) fn held(&self) -> u64 {
        match self {
            Self::Rows(cutter) => cutter.piece.len() as u64,
            Self::Slices(cutter) => cutter.piece.len() as u64,
        }
    }

    /// Makes room for a piece that begins: a buffer that was used before.
    pub(super) fn be_given(&mut self, buffers: &Buffers) {
        let piece = match self {
            Self::Rows(cutter) => &mut cutter.piece,
            Self::Slices(cutter) => &mut cutter.piece,
        };
        if piece.capacity() < MIN_PART as usize {
            let begun = std::mem::replace(piece, buffers.take());
            piece.extend_from_slice(&begun);
        }
    }

    /// Takes some of `bytes`: up to the next cut, or up to what the piece may grow to, or all. Says how many, and the piece if one
    /// became complete.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, Option<Piece>) {
        match self {
            Self::Rows(cutter) => cutter.take(bytes),
            Self::Slices(cutter) => cutter.take(bytes),
        }
    }

    /// The last piece, if there is one, and the fingerprint; `None` for that where the last row has no end, and where there are no rows.
    pub(super) fn finish(self) -> (Option<Piece>, Option<Fingerprint>) {
        match self {
            Self::Rows(cutter) => cutter.finish(),
            Self::Slices(cutter) => {
                let last = Piece { bytes: cutter.piece, rows: 0, continues: false };
                ((!last.bytes.is_empty()).then_some(last), None)
            }
        }
    }
}

/// Which rows are kept.
#[derive(Clone, Copy, Debug)]
enum Keep {
    All,
    /// None before the first cut that does not depend on what was before: they are the one's whose range ends here.
    AfterBorder(Marks),
    /// None after that cut: they are the one's whose range begins here.
    UntilBorder(Marks),
    /// No more.
    None,
}

/// Cuts rows.
pub(super) struct RowCutter {
    scanner: RowScanner,
    marks: Marks,
    keep: Keep,
    fingerprint: Fingerprint,
    /// Of the rows that were left out because they belong to the range before.
    left_out: Fingerprint,
    /// Of the rows beyond the border.
    beyond: Fingerprint,
    piece: Vec<u8>,
    rows: u64,
    /// Where in `piece` the row begins that has not ended.
    row_start: usize,
    /// The row that has not ended began in an earlier piece.
    continued: bool,
}

impl RowCutter {
    fn new(rows: Rows, seed: u64) -> Self {
        Self {
            scanner: RowScanner::new(rows, seed),
            marks: Marks::default(),
            keep: Keep::All,
            fingerprint: Fingerprint::default(),
            left_out: Fingerprint::default(),
            beyond: Fingerprint::default(),
            piece: Vec::new(),
            rows: 0,
            row_start: 0,
            continued: false,
        }
    }

    /// To be said before any row: what comes first belongs to another's range.
    pub(super) fn after_border(&mut self) {
        self.keep = Keep::AfterBorder(Marks::default());
    }

    /// Between two rows: the range ends here, where another's begins. The rows up to the first cut that the other finds by itself
    /// are still ours, so that borders leave no trace in parts.
    pub(super) fn until_border(&mut self) {
        // Who has found no cut before it comes to the next border has nothing of its own: all of it is the one's before.
        self.keep = match self.keep {
            Keep::AfterBorder(_) | Keep::None => Keep::None,
            Keep::All | Keep::UntilBorder(_) => Keep::UntilBorder(Marks::default()),
        };
    }

    /// The rows that were left out at its beginning, and those that were taken beyond its end. Over all ranges of a table they are the same.
    pub(super) fn at_borders(&self) -> (Fingerprint, Fingerprint) {
        (self.left_out, self.beyond)
    }

    /// Is it past the border?
    pub(super) fn is_past_border(&self) -> bool {
        matches!(self.keep, Keep::None)
    }

    fn take(&mut self, bytes: &[u8]) -> (usize, Option<Piece>) {
        let (head, tail) = self.scanner.frame();
        let mut taken = 0;
        while taken < bytes.len() {
            if self.piece.is_empty() && !self.continued {
                self.begin(head);
            }
            let room = (MAX_PART as usize).saturating_sub(self.piece.len() + tail.len());
            if room == 0 {
                return (taken, Some(self.full()));
            }
            let offered = &bytes[taken..bytes.len().min(taken + room)];
            let Scanned { taken: n, is_row, ended } = self.scanner.take(offered);
            taken += n;
            let is_kept = !matches!(self.keep, Keep::AfterBorder(_) | Keep::None);
            if is_row && is_kept {
                self.piece.extend_from_slice(&offered[..n]);
            }
            let Some(row) = ended else { continue };
            if let Keep::AfterBorder(marks) = &mut self.keep {
                self.left_out.add(row.len, row.hash);
                if marks.cut_after(row.with_framing, row.hash) {
                    self.keep = Keep::All;
                }
                continue;
            }
            if !is_kept {
                continue;
            }
            self.fingerprint.add(row.len, row.hash);
            self.rows += 1;
            (self.row_start, self.continued) = (self.piece.len(), false);
            let cut = self.marks.cut_after(row.with_framing, row.hash) && self.piece.len() as u64 >= MIN_PART;
            if let Keep::UntilBorder(marks) = &mut self.keep {
                self.beyond.add(row.len, row.hash);
                if marks.cut_after(row.with_framing, row.hash) {
                    self.keep = Keep::None;
                }
            }
            if cut || self.is_past_border() {
                return (taken, Some(self.cut(self.piece.len(), false)));
            }
        }
        (taken, None)
    }

    fn begin(&mut self, head: &[u8]) {
        self.piece.extend_from_slice(head);
        self.row_start = self.piece.len();
    }

    /// The piece is as long as a part may be: cut before the row that does not fit, or inside it if it is alone.
    fn full(&mut self) -> Piece {
        match self.rows {
            0 => self.cut(self.piece.len(), true),
            _ => self.cut(self.row_start, false),
        }
    }

    fn cut(&mut self, at: usize, continues: bool) -> Piece {
        let (head, tail) = self.scanner.frame();
        let rest = self.piece.split_off(at);
        let mut bytes = std::mem::take(&mut self.piece);
        self.row_start = 0;
        if continues {
            self.continued = true;
        } else {
            bytes.extend_from_slice(tail);
            if !rest.is_empty() {
                self.begin(head);
            }
        }
        self.piece.extend_from_slice(&rest);
        Piece { bytes, rows: std::mem::take(&mut self.rows), continues }
    }

    fn finish(mut self) -> (Option<Piece>, Option<Fingerprint>) {
        let is_whole = self.scanner.is_at_end();
        let is_empty = self.rows == 0 && self.piece.len() == self.row_start;
        let last = (!is_empty).then(|| self.cut(self.piece.len(), false));
        (last, is_whole.then_some(self.fingerprint))
    }
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

/// Cuts a stream without rows.
pub(super) struct SliceCutter {
    slicer: Slicer,
    piece: Vec<u8>,
}

impl SliceCutter {
    fn new(seed: u64) -> Self {
        Self { slicer: Slicer::new(seed), piece: Vec::new() }
    }

    fn take(&mut self, bytes: &[u8]) -> (usize, Option<Piece>) {
        let offered = &bytes[..bytes.len().min(MAX_SLICE - self.piece.len())];
        let cut = self.slicer.cut(self.piece.len(), offered);
        let taken = cut.unwrap_or(offered.len());
        self.piece.extend_from_slice(&offered[..taken]);
        if cut.is_none() && self.piece.len() < MAX_SLICE {
            return (taken, None);
        }
        (taken, Some(Piece { bytes: std::mem::take(&mut self.piece), rows: 0, continues: false }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::rows::{BINARY_HEAD, BINARY_TAIL, RowHasher},
        *,
    };

    fn cut_all(bytes: &[u8], step: usize) -> (Vec<Piece>, Option<Fingerprint>) {
        cut_by(Cutter::rows(Rows::Text, 7), bytes, step)
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
        let (last, fingerprint) = cutter.finish();
        pieces.extend(last);
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

    /// Tuples with the same content as lines of [`rows`], of one field or of many.
    fn tuples(n: u64, width: usize) -> Vec<Vec<u8>> {
        let lines = rows(n, width);
        let tuple = |line: &[u8]| {
            let fields: Vec<&[u8]> = line.chunks(40).collect();
            let mut tuple = (fields.len() as i16 + 1).to_be_bytes().to_vec();
            tuple.extend((-1i32).to_be_bytes());
            for field in fields {
                tuple.extend((field.len() as i32).to_be_bytes());
                tuple.extend(field);
            }
            tuple
        };
        lines.split_inclusive(|byte| *byte == b'\n').map(|line| tuple(&line[..line.len() - 1])).collect()
    }

    fn file(tuples: &[Vec<u8>]) -> Vec<u8> {
        [BINARY_HEAD, &tuples.concat(), BINARY_TAIL].concat()
    }

    #[test]
    fn each_binary_part_is_a_file_and_all_of_them_hold_the_tuples() {
        let all = tuples(100_000, 300);
        let plain = all.concat();
        for step in [1 << 20, 7919] {
            let (pieces, fingerprint) = cut_by(Cutter::rows(Rows::Binary, 7), &file(&all), step);
            assert!(pieces.len() > 2);
            let mut joined = Vec::new();
            for piece in &pieces {
                let inner = piece.bytes.strip_prefix(BINARY_HEAD).unwrap().strip_suffix(BINARY_TAIL).unwrap();
                joined.extend_from_slice(inner);
                assert!(!piece.continues);
            }
            assert!(joined == plain && pieces.iter().map(|piece| piece.rows).sum::<u64>() == all.len() as u64);
            // What is read back is a file after the other.
            let mut hasher = RowHasher::new(Rows::Binary, 7);
            pieces.iter().flat_map(|piece| piece.bytes.chunks(step + 1)).for_each(|bytes| hasher.update(bytes));
            assert!(fingerprint.is_some());
            assert_eq!((fingerprint.unwrap().rows, fingerprint.unwrap().bytes), (all.len() as u64, plain.len() as u64));
            assert_eq!(hasher.finish(), fingerprint);
        }
        assert_eq!(cut_by(Cutter::rows(Rows::Binary, 7), &file(&[]), 5), (Vec::new(), Some(Fingerprint::default())));
    }

    #[test]
    fn a_tuple_longer_than_a_part_has_one_header_and_one_trailer() {
        let long = MAX_PART as usize * 2 + 1000;
        let mut big = 1i16.to_be_bytes().to_vec();
        big.extend((long as i32).to_be_bytes());
        big.extend(std::iter::repeat_n(7, long));
        let mut all = tuples(5, 100);
        all.push(big);
        all.extend(tuples(5, 100));
        let (pieces, fingerprint) = cut_by(Cutter::rows(Rows::Binary, 7), &file(&all), 1 << 20);
        let shapes: Vec<_> = pieces.iter().map(|piece| (piece.continues, piece.rows)).collect();
        assert_eq!(shapes, [(false, 5), (true, 0), (true, 0), (false, 6)]);
        assert!(pieces.iter().all(|piece| piece.bytes.len() as u64 <= MAX_PART));
        let joined: Vec<u8> = pieces[1..4].iter().flat_map(|piece| piece.bytes.clone()).collect();
        assert!(joined == file(&all[5..]));
        assert_eq!(fingerprint.unwrap().rows, 11);
    }

    #[test]
    fn torn_or_strange_binary_streams_have_no_fingerprint() {
        let whole = file(&tuples(3, 100));
        let of = |bytes: &[u8], step| cut_by(Cutter::rows(Rows::Binary, 7), bytes, step).1;
        assert_eq!(of(&whole, 3).unwrap().rows, 3);
        assert_eq!(of(&[&whole[..], &whole].concat(), 3).unwrap().rows, 6);
        for step in [1, 1000] {
            for end in 1..whole.len() {
                assert_eq!(of(&whole[..end], step), None, "{end}");
            }
            for (at, byte) in [(0, b'Q'), (12, 1), (19, 0x80), (20, 0xf0), (21, 0x80), (whole.len() - 1, 0)] {
                let mut wrong = whole.clone();
                wrong[at] = byte;
                assert_eq!(of(&wrong, step), None, "{at}");
            }
        }
    }

    /// Reads rows as workers do who begin at `starts`, each a range, and each with `unit` rows a statement.
    fn cut_in_ranges(rows: Rows, all: &[Vec<u8>], starts: &[usize], unit: usize) -> (Vec<Piece>, Fingerprint) {
        let statement = |all: &[Vec<u8>]| match rows {
            Rows::Text => all.concat(),
            Rows::Binary => file(all),
        };
        let (mut pieces, mut sum) = (Vec::new(), Fingerprint::default());
        let (mut left_out, mut beyond) = (sum, sum);
        for (n, start) in starts.iter().enumerate() {
            let mut cutter = Cutter::rows(rows, 7);
            let Cutter::Rows(inner) = &mut cutter else { unreachable!() };
            if n > 0 {
                inner.after_border();
            }
            let mut at = *start;
            let mut told = None;
            while at < all.len() {
                let border = starts[n + 1..].iter().find(|border| **border >= at);
                let Cutter::Rows(inner) = &mut cutter else { unreachable!() };
                if inner.is_past_border() {
                    break;
                }
                if border == Some(&at) && told.replace(at) != Some(at) {
                    inner.until_border();
                    continue;
                }
                let next = starts[n + 1..]
                    .iter()
                    .find(|border| **border > at)
                    .filter(|border| **border > at)
                    .copied()
                    .unwrap_or(all.len());
                let end = (at + unit).min(next).min(all.len());
                let bytes = statement(&all[at..end]);
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (taken, piece) = cutter.take(rest);
                    pieces.extend(piece);
                    rest = &rest[taken..];
                }
                at = end;
            }
            let Cutter::Rows(inner) = &cutter else { unreachable!() };
            let (one, other) = inner.at_borders();
            (left_out, beyond) = (left_out.with(&one), beyond.with(&other));
            let (last, fingerprint) = cutter.finish();
            pieces.extend(last);
            sum = sum.with(&fingerprint.unwrap());
        }
        assert_eq!(left_out, beyond);
        (pieces, sum)
    }

    #[test]
    fn borders_leave_no_trace() {
        for rows in [Rows::Text, Rows::Binary] {
            let all: Vec<Vec<u8>> = match rows {
                Rows::Binary => tuples(200_000, 300),
                Rows::Text => super::tests::rows(200_000, 300)
                    .split_inclusive(|byte| *byte == b'\n')
                    .map(<[u8]>::to_vec)
                    .collect(),
            };
            let n = all.len();
            let whole = cut_in_ranges(rows, &all, &[0], n);
            assert!(whole.0.len() > 5);
            for (starts, unit) in [
                (&[0, n / 2][..], 5000),
                (&[0, n / 3, n / 2, n - 10], 7001),
                // Ranges shorter than the shortest part, which hold nothing of their own.
                (&[0, n / 2, n / 2 + 10, n / 2 + 5000, n / 2 + 9000], 999),
                (&[0, 1, 2, 3, 100, n - 1], 20_000),
            ] {
                assert!(cut_in_ranges(rows, &all, starts, unit) == whole, "{rows:?} {starts:?}");
            }
        }
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
