//! Bytes of the file: buffered, counted, summed up for the CRC64, and handed on as they are consumed.

use std::io::Read;

use super::{RdbError, Visitor};

/// What is read at once.
const BUFFER: usize = 128 * 1024;

/// Redis' CRC64: "Jones", reflected. The crate knows it by Redis' name.
static CRC: crc::Crc<u64, crc::Table<16>> = crc::Crc::<u64, crc::Table<16>>::new(&crc::CRC_64_REDIS);

pub(super) struct Input<R, V> {
    from: R,
    pub(super) visitor: V,
    buffer: Box<[u8]>,
    /// What is read and not consumed: `buffer[at..end]`.
    at: usize,
    end: usize,
    /// What is consumed and not summed yet: `buffer[mark..at]`.
    mark: usize,
    /// Bytes before `buffer[0]`.
    before: u64,
    crc: crc::Digest<'static, u64, crc::Table<16>>,
    /// Do the bytes that are consumed belong to a value that the visitor wants?
    handing: bool,
}

impl<R: Read, V: Visitor> Input<R, V> {
    pub(super) fn new(from: R, visitor: V) -> Self {
        Self {
            from,
            visitor,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            at: 0,
            end: 0,
            mark: 0,
            before: 0,
            crc: CRC.digest(),
            handing: false,
        }
    }

    /// Bytes consumed.
    pub(super) fn offset(&self) -> u64 {
        self.before + self.at as u64
    }

    pub(super) fn corrupt(&self, what: impl Into<String>) -> RdbError {
        RdbError::Corrupt { offset: self.offset(), what: what.into() }
    }

    /// From here on, what is consumed goes to the visitor, or no longer does.
    pub(super) fn hand(&mut self, handing: bool) -> Result<(), RdbError> {
        self.settle()?;
        self.handing = handing;
        Ok(())
    }

    /// Everything consumed so far is summed, and handed on where it is wanted.
    fn settle(&mut self) -> Result<(), RdbError> {
        let consumed = &self.buffer[self.mark..self.at];
        if !consumed.is_empty() {
            self.crc.update(consumed);
            if self.handing {
                self.visitor.value(consumed).map_err(RdbError::Stopped)?;
            }
        }
        self.mark = self.at;
        Ok(())
    }

    fn fill(&mut self) -> Result<(), RdbError> {
        self.settle()?;
        self.before += self.at as u64;
        (self.at, self.end, self.mark) = (0, 0, 0);
        loop {
            match self.from.read(&mut self.buffer) {
                Ok(0) => return Err(RdbError::Truncated { offset: self.offset() }),
                Ok(n) => {
                    self.end = n;
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(RdbError::Read { offset: self.offset(), source }),
            }
        }
    }

    /// Some of the next `most` bytes; at least one.
    pub(super) fn some(&mut self, most: u64) -> Result<&[u8], RdbError> {
        if self.at == self.end {
            self.fill()?;
        }
        let n = usize::try_from(most).unwrap_or(usize::MAX).min(self.end - self.at);
        self.at += n;
        Ok(&self.buffer[self.at - n..self.at])
    }

    pub(super) fn exact<const N: usize>(&mut self) -> Result<[u8; N], RdbError> {
        let mut bytes = [0; N];
        let mut have = 0;
        while have < N {
            let some = self.some((N - have) as u64)?;
            let n = some.len();
            bytes[have..have + n].copy_from_slice(some);
            have += n;
        }
        Ok(bytes)
    }

    pub(super) fn byte(&mut self) -> Result<u8, RdbError> {
        Ok(self.exact::<1>()?[0])
    }

    pub(super) fn skip(&mut self, mut bytes: u64) -> Result<(), RdbError> {
        while bytes > 0 {
            bytes -= self.some(bytes)?.len() as u64;
        }
        Ok(())
    }

    /// The CRC64 of all that is consumed.
    pub(super) fn checksum(&mut self) -> Result<u64, RdbError> {
        self.settle()?;
        Ok(self.crc.clone().finalize())
    }

    /// The visitor, and what was read and not consumed.
    pub(super) fn into_rest(self) -> (V, Vec<u8>) {
        (self.visitor, self.buffer[self.at..self.end].to_vec())
    }
}
