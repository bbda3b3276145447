//! Bytes of the file: buffered, counted, summed up for the CRC64, and handed on as they are consumed.
//!
//! The reader is asked for more only when not one byte is left and one is needed: it may be a socket that has no more to give.

use std::io::Read;

use super::{Digest, RdbError, Visitor, canonical, lzf};

/// What is read at once.
const BUFFER: usize = 128 * 1024;

/// Redis' CRC64: "Jones", reflected. The crate knows it by Redis' name.
pub(super) static CRC: crc::Crc<u64, crc::Table<16>> = crc::Crc::<u64, crc::Table<16>>::new(&crc::CRC_64_REDIS);

pub(super) struct Input<'a> {
    from: &'a mut dyn Read,
    visitor: &'a mut dyn Visitor,
    buffer: Box<[u8]>,
    /// What is read and not consumed: `buffer[at..end]`.
    at: usize,
    end: usize,
    /// What is consumed and not summed yet: `buffer[summed..at]`.
    summed: usize,
    /// While `handing`: what is consumed and not handed on yet: `buffer[handed..at]`.
    handed: usize,
    /// Bytes before `buffer[0]`.
    before: u64,
    crc: crc::Digest<'static, u64, crc::Table<16>>,
    /// Do the bytes that are consumed belong to a value, which the visitor wants?
    handing: bool,
    /// The hash of the key whose value is read, without its content.
    key: Digest,
    /// Where a string is decoded: one for the whole walk, since there is one string at a time.
    scratch: Box<[u8]>,
}

impl<'a> Input<'a> {
    pub(super) fn new(from: &'a mut dyn Read, visitor: &'a mut dyn Visitor) -> Self {
        Self {
            from,
            visitor,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            at: 0,
            end: 0,
            summed: 0,
            handed: 0,
            before: 0,
            crc: CRC.digest(),
            handing: false,
            key: 0,
            scratch: vec![0; lzf::SCRATCH].into_boxed_slice(),
        }
    }

    /// Bytes consumed.
    pub(super) fn offset(&self) -> u64 {
        self.before + self.at as u64
    }

    #[cold]
    pub(super) fn corrupt(&self, what: impl Into<String>) -> RdbError {
        RdbError::Corrupt { offset: self.offset(), what: what.into() }
    }

    /// Tells the visitor something.
    pub(super) fn tell(&mut self, what: impl FnOnce(&mut dyn Visitor) -> Result<(), String>) -> Result<(), RdbError> {
        what(self.visitor).map_err(RdbError::Stopped)
    }

    /// Tells of a field that expires by itself; its own hash does not know of its key.
    pub(super) fn tell_field(&mut self, seed: u64, expiry: u64, field: Digest) -> Result<(), RdbError> {
        let digest = canonical::of(seed, [self.key, field]);
        self.tell(|visitor| visitor.field(expiry, digest))
    }

    /// A value begins, of the key with this hash.
    pub(super) fn begin_value(&mut self, key: Digest) -> Result<(), RdbError> {
        self.key = key;
        self.hand(true)
    }

    /// From here on, what is consumed goes to the visitor, or no longer does.
    pub(super) fn hand(&mut self, handing: bool) -> Result<(), RdbError> {
        self.hand_on()?;
        self.handed = self.at;
        self.handing = handing;
        Ok(())
    }

    fn hand_on(&mut self) -> Result<(), RdbError> {
        if self.handing && self.handed < self.at {
            self.visitor.value(&self.buffer[self.handed..self.at]).map_err(RdbError::Stopped)?;
        }
        self.handed = self.at;
        Ok(())
    }

    fn sum(&mut self) {
        self.crc.update(&self.buffer[self.summed..self.at]);
        self.summed = self.at;
    }

    #[cold]
    fn fill(&mut self) -> Result<(), RdbError> {
        self.hand_on()?;
        self.sum();
        self.before += self.at as u64;
        (self.at, self.end, self.summed, self.handed) = (0, 0, 0, 0);
        loop {
            match self.from.read(&mut self.buffer) {
                Ok(0) => return Err(RdbError::Truncated { offset: self.offset() }),
                Ok(n) => {
                    self.end = n.min(BUFFER);
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(RdbError::Read { offset: self.offset(), source }),
            }
        }
    }

    /// What is buffered and not consumed, at least one byte of it; and the scratch.
    pub(super) fn ahead(&mut self) -> Result<(&[u8], &mut [u8]), RdbError> {
        if self.at == self.end {
            self.fill()?;
        }
        Ok((&self.buffer[self.at..self.end], &mut self.scratch))
    }

    /// Consumes what [`ahead`](Self::ahead) showed.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.at = self.end.min(self.at + bytes);
    }

    pub(super) fn scratch(&mut self) -> &mut [u8] {
        &mut self.scratch
    }

    /// Some of the next `most` bytes; at least one, where `most` is.
    #[inline]
    pub(super) fn some(&mut self, most: u64) -> Result<&[u8], RdbError> {
        if self.at == self.end {
            self.fill()?;
        }
        let from = self.at;
        self.at += usize::try_from(most).unwrap_or(usize::MAX).min(self.end - from);
        Ok(&self.buffer[from..self.at])
    }

    #[inline]
    pub(super) fn exact<const N: usize>(&mut self) -> Result<[u8; N], RdbError> {
        if let Some(bytes) = self.buffer[self.at..self.end].first_chunk() {
            self.at += N;
            return Ok(*bytes);
        }
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

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, RdbError> {
        self.exact::<1>().map(|[byte]| byte)
    }

    /// The CRC64 of all that is consumed.
    pub(super) fn checksum(&mut self) -> u64 {
        self.sum();
        self.crc.clone().finalize()
    }

    /// What was read and not consumed.
    pub(super) fn rest(&self) -> Vec<u8> {
        self.buffer[self.at..self.end].to_vec()
    }
}
