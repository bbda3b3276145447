//! Bytes of the archive: buffered, counted, and given in one piece where a piece is asked for.
//!
//! The buffer grows only as bytes arrive, to twice of what is there at most: a length that lies costs nothing. It is as
//! large as the largest piece, and [`BUFFER`] at least; while it grows, the old one, half as large, is there as well.

use std::io::{ErrorKind, Read};

use super::ArchiveError;

/// The buffer when nothing larger is asked for.
const BUFFER: usize = 256 * 1024;
/// A buffer that has grown larger than this is given back; a smaller one is kept for the next such piece.
const KEPT: usize = 4 * 1024 * 1024;

pub(super) struct Input<R> {
    from: R,
    buffer: Vec<u8>,
    /// What is read and not consumed: `buffer[at..end]`.
    at: usize,
    end: usize,
    /// Bytes before `buffer[0]`.
    before: u64,
    /// What is being read, for errors; the bytes of a name.
    place: Vec<u8>,
}

impl<R: Read> Input<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, buffer: vec![0; BUFFER], at: 0, end: 0, before: 0, place: Vec::new() }
    }

    /// Bytes consumed.
    pub(super) fn offset(&self) -> u64 {
        self.before + self.at as u64
    }

    /// What is read now is of the entry or record of this name.
    pub(super) fn enter(&mut self, name: &[u8]) {
        self.place.clear();
        self.place.extend_from_slice(name);
    }

    #[cold]
    pub(super) fn corrupt(&self, what: impl Into<String>) -> ArchiveError {
        self.corrupt_at(self.offset(), what)
    }

    #[cold]
    pub(super) fn corrupt_at(&self, offset: u64, what: impl Into<String>) -> ArchiveError {
        ArchiveError::Corrupt { offset, place: super::place(&self.place), what: what.into() }
    }

    #[cold]
    fn truncated(&self) -> ArchiveError {
        ArchiveError::Truncated { offset: self.before + self.end as u64, place: super::place(&self.place) }
    }

    /// Reads once; `false` at the end.
    fn more(&mut self) -> Result<bool, ArchiveError> {
        loop {
            match self.from.read(&mut self.buffer[self.end..]) {
                Ok(n) => {
                    self.end += n.min(self.buffer.len() - self.end);
                    return Ok(n > 0);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    let offset = self.before + self.end as u64;
                    return Err(ArchiveError::Read { offset, place: super::place(&self.place), source });
                }
            }
        }
    }

    /// Makes room for a piece of `length` bytes, or for more of it.
    fn make_room(&mut self, length: usize) {
        if self.at > 0 {
            self.buffer.copy_within(self.at..self.end, 0);
            (self.before, self.end, self.at) = (self.before + self.at as u64, self.end - self.at, 0);
        }
        if self.end == self.buffer.len() {
            // As many more as are there, and what the piece is long at most.
            let grown = (2 * self.end).min(length.max(BUFFER));
            self.buffer.reserve_exact(grown - self.end);
            self.buffer.resize(grown, 0);
        } else if self.buffer.len() > KEPT && length <= BUFFER && self.end <= BUFFER {
            self.buffer.truncate(BUFFER);
            self.buffer.shrink_to_fit();
        }
    }

    /// As many bytes as there are, up to `length`; fewer only at the end of the archive. They are not consumed.
    pub(super) fn peek(&mut self, length: usize) -> Result<&[u8], ArchiveError> {
        while self.end - self.at < length {
            if self.end == self.buffer.len() || self.at == self.end || self.buffer.len() - self.at < length {
                self.make_room(length);
            }
            if !self.more()? {
                break;
            }
        }
        Ok(&self.buffer[self.at..self.end.min(self.at.saturating_add(length))])
    }

    /// The next `length` bytes, not consumed. The caller has bounded `length`.
    pub(super) fn ahead(&mut self, length: usize) -> Result<&[u8], ArchiveError> {
        if self.peek(length)?.len() < length {
            return Err(self.truncated());
        }
        Ok(&self.buffer[self.at..self.at + length])
    }

    /// The next `length` bytes in one piece. The caller has bounded `length`.
    #[inline]
    pub(super) fn take(&mut self, length: usize) -> Result<&[u8], ArchiveError> {
        if self.end - self.at < length {
            self.ahead(length)?;
        }
        let from = self.at;
        self.at += length;
        Ok(&self.buffer[from..from + length])
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ArchiveError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    /// Passes over `length` bytes.
    pub(super) fn skip(&mut self, mut length: u64) -> Result<(), ArchiveError> {
        while length > 0 {
            let some = usize::try_from(length).unwrap_or(BUFFER).min(BUFFER);
            self.take(some)?;
            length -= some as u64;
        }
        Ok(())
    }

    /// A number as Go's `binary.Uvarint` reads it: seven bits a byte, the lowest first, ten bytes at most.
    pub(super) fn uvarint(&mut self, what: &str) -> Result<u64, ArchiveError> {
        let offset = self.offset();
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array::<1>()?;
            if shift == 63 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(self.corrupt_at(offset, format!("its {what} is longer than 64 bits")))
    }

    /// A signed number as Go's `binary.Varint` reads it: the sign is in the lowest bit.
    pub(super) fn varint(&mut self, what: &str) -> Result<i64, ArchiveError> {
        let number = self.uvarint(what)?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn no_more_is_held_than_twice_of_what_came() {
        for there in [0, 1, 100, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER, 5 * MIB] {
            let bytes = vec![7; there];
            let mut input = Input::new(&bytes[..]);
            let error = input.take(usize::MAX / 4).unwrap_err();
            assert!(matches!(error, ArchiveError::Truncated { offset, .. } if offset == there as u64));
            assert!(input.buffer.capacity() <= BUFFER.max(2 * there), "{} for {there}", input.buffer.capacity());
        }
    }

    #[test]
    fn a_large_piece_is_held_as_it_is_and_given_back_afterwards() {
        let bytes = vec![7; 21 * MIB];
        let mut input = Input::new(&bytes[..]);
        for _ in 0..3 {
            assert_eq!(input.take(10).unwrap().len(), 10);
            assert_eq!(input.take(6 * MIB).unwrap().len(), 6 * MIB);
            assert!(input.buffer.capacity() <= 6 * MIB + BUFFER, "{}", input.buffer.capacity());
            while !input.offset().is_multiple_of(7 * MIB as u64) {
                input.take(2).unwrap();
            }
            assert_eq!(input.buffer.capacity(), BUFFER);
        }
        assert!(input.peek(1).unwrap().is_empty());
    }
}
