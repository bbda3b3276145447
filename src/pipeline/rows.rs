//! Rows in a stream of COPY's: where each ends, and its hash.
//!
//! In text format a row is a line; its hash leaves out the line end. In binary format a row is a tuple, and the stream one COPY file after the
//! other, each a header, tuples and a trailer, which belong to no row (PostgreSQL documentation, COPY, "File Formats").

use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

use crate::repository::Fingerprint;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One a line.
    Text,
    /// COPY's binary format.
    Binary,
}

/// Signature, flags (none) and the length of an extension (none).
pub const BINARY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// In the place of a tuple's number of fields.
pub const BINARY_TAIL: &[u8] = b"\xff\xff";

/// A row that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) hash: u128,
    /// Bytes that the fingerprint counts.
    pub(super) len: u64,
    /// Bytes with the line end.
    pub(super) with_framing: u64,
}

/// What [`RowScanner::take`] made of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// So many were taken.
    pub(super) taken: usize,
    /// They are of a row.
    pub(super) is_row: bool,
    /// A row ended with them.
    pub(super) ended: Option<Row>,
}

/// Where in a binary stream the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In a header, of which so many bytes have passed; between two files with 0.
    Head(usize),
    /// Before a tuple, or a trailer.
    Tuple,
    /// In a trailer, of which one byte has passed.
    Tail,
    /// In a tuple that began in earlier bytes.
    Within(Within),
    /// Not a binary COPY.
    Lost,
}

/// In a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    /// In its number of fields, of which one byte has passed.
    Count(u8),
    /// In the length of a field, so many bytes of which have passed, with the value of these; so many fields follow.
    Length { passed: u8, value: u32, left: u16 },
    /// In a field, so many bytes of which are to come; so many fields follow.
    Field { bytes: u32, left: u16 },
}

/// Finds rows.
pub(super) struct RowScanner {
    rows: Rows,
    seed: u64,
    /// The row that began in earlier bytes.
    open: Option<(Box<Xxh3>, u64)>,
    at: At,
}

/// The hash of a row that is there in one piece. `scripts/bench postgres-fingerprints` builds a program with another one.
fn hash_of(row: &[u8], seed: u64) -> u128 {
    xxh3_128_with_seed(row, seed)
}

/// The length of the tuple that begins in `bytes`, if all of it is there; an error where there cannot be one.
fn tuple_len(bytes: &[u8]) -> Result<Option<usize>, ()> {
    let Some((count, _)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
    let count = i16::from_be_bytes(*count);
    if count < 0 {
        return Err(());
    }
    let mut at = 2;
    for _ in 0..count {
        let Some(length) = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>) else { return Ok(None) };
        at += 4 + field_len(i32::from_be_bytes(*length))? as usize;
    }
    Ok((at <= bytes.len()).then_some(at))
}

/// Bytes of a field by what its length says: -1 is NULL.
fn field_len(length: i32) -> Result<u32, ()> {
    if length == -1 { Ok(0) } else { u32::try_from(length).map_err(|_| ()) }
}

impl RowScanner {
    pub(super) fn new(rows: Rows, seed: u64) -> Self {
        Self { rows, seed, open: None, at: At::Head(0) }
    }

    /// What stands before and after the rows of a file.
    pub(super) fn frame(&self) -> (&'static [u8], &'static [u8]) {
        match self.rows {
            Rows::Text => (&[], &[]),
            Rows::Binary => (BINARY_HEAD, BINARY_TAIL),
        }
    }

    /// Has the last row ended, and the last file?
    pub(super) fn is_at_end(&self) -> bool {
        self.open.is_none() && (self.rows == Rows::Text || self.at == At::Head(0))
    }

    /// Takes some of `bytes`, at least one: up to the end of a row, or of what is none, or all of them.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Scanned {
        match self.rows {
            Rows::Text => self.line(bytes),
            Rows::Binary => self.binary(bytes),
        }
    }

    fn line(&mut self, bytes: &[u8]) -> Scanned {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            self.goes_on(bytes);
            return Scanned { taken: bytes.len(), is_row: true, ended: None };
        };
        let (hash, len) = self.ends(&bytes[..end]);
        Scanned { taken: end + 1, is_row: true, ended: Some(Row { hash, len, with_framing: len + 1 }) }
    }

    fn binary(&mut self, bytes: &[u8]) -> Scanned {
        let skip = |taken| Scanned { taken, is_row: false, ended: None };
        match self.at {
            At::Lost => skip(bytes.len()),
            At::Head(passed) => {
                let n = (BINARY_HEAD.len() - passed).min(bytes.len());
                self.at = match bytes[..n] == BINARY_HEAD[passed..passed + n] {
                    false => At::Lost,
                    true if passed + n == BINARY_HEAD.len() => At::Tuple,
                    true => At::Head(passed + n),
                };
                skip(n)
            }
            At::Tail => {
                self.at = if bytes[0] == 0xff { At::Head(0) } else { At::Lost };
                skip(1)
            }
            At::Tuple if bytes[0] == 0xff => {
                self.at = At::Tail;
                skip(1)
            }
            At::Tuple => match tuple_len(bytes) {
                Ok(Some(len)) => {
                    let hash = hash_of(&bytes[..len], self.seed);
                    let row = Row { hash, len: len as u64, with_framing: len as u64 };
                    Scanned { taken: len, is_row: true, ended: Some(row) }
                }
                Ok(None) => {
                    self.at = At::Within(Within::Count(bytes[0]));
                    self.goes_on(&bytes[..1]);
                    if bytes.len() == 1 {
                        return Scanned { taken: 1, is_row: true, ended: None };
                    }
                    let rest = self.within(Within::Count(bytes[0]), &bytes[1..]);
                    Scanned { taken: rest.taken + 1, ..rest }
                }
                Err(()) => {
                    self.at = At::Lost;
                    skip(bytes.len())
                }
            },
            At::Within(within) => self.within(within, bytes),
        }
    }

    /// A tuple of which not all bytes come at once, one step after the other.
    fn within(&mut self, mut within: Within, bytes: &[u8]) -> Scanned {
        let mut at = 0;
        while at < bytes.len() {
            let next = match within {
                Within::Count(high) => {
                    let count = u16::from_be_bytes([high, bytes[at]]);
                    at += 1;
                    Ok((0, count))
                }
                Within::Length { passed, value, left } => {
                    let value = value << 8 | u32::from(bytes[at]);
                    at += 1;
                    if passed < 3 {
                        within = Within::Length { passed: passed + 1, value, left };
                        continue;
                    }
                    field_len(value.cast_signed()).map(|bytes| (bytes, left))
                }
                Within::Field { bytes: to_come, left } => {
                    let n = (to_come as usize).min(bytes.len() - at);
                    at += n;
                    Ok((to_come - n as u32, left))
                }
            };
            within = match next {
                Err(()) => {
                    self.at = At::Lost;
                    return Scanned { taken: bytes.len(), is_row: false, ended: None };
                }
                Ok((0, 0)) => {
                    self.at = At::Tuple;
                    let (hash, len) = self.ends(&bytes[..at]);
                    return Scanned { taken: at, is_row: true, ended: Some(Row { hash, len, with_framing: len }) };
                }
                Ok((0, left)) => Within::Length { passed: 0, value: 0, left: left - 1 },
                Ok((bytes, left)) => Within::Field { bytes, left },
            };
        }
        self.at = At::Within(within);
        self.goes_on(bytes);
        Scanned { taken: bytes.len(), is_row: true, ended: None }
    }

    fn goes_on(&mut self, bytes: &[u8]) {
        let (hasher, len) = self.open.get_or_insert_with(|| (Box::new(Xxh3::with_seed(self.seed)), 0));
        hasher.update(bytes);
        *len += bytes.len() as u64;
    }

    fn ends(&mut self, bytes: &[u8]) -> (u128, u64) {
        match self.open.take() {
            None => (hash_of(bytes, self.seed), bytes.len() as u64),
            Some((mut hasher, len)) => {
                hasher.update(bytes);
                (hasher.digest128(), len + bytes.len() as u64)
            }
        }
    }
}

/// Hashes rows and sums them up.
pub struct RowHasher {
    scanner: RowScanner,
    fingerprint: Fingerprint,
}

impl RowHasher {
    /// Rows hashed under the epoch's seed.
    pub fn new(rows: Rows, seed: u64) -> Self {
        Self { scanner: RowScanner::new(rows, seed), fingerprint: Fingerprint::default() }
    }

    /// Takes any bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let scanned = self.scanner.take(bytes);
            if let Some(row) = scanned.ended {
                self.fingerprint.add(row.len, row.hash);
            }
            bytes = &bytes[scanned.taken..];
        }
    }

    /// The sum; `None` where the last row, or the last binary file, has no end.
    pub fn finish(self) -> Option<Fingerprint> {
        self.scanner.is_at_end().then_some(self.fingerprint)
    }
}
