//! Lengths and strings of the file: plain, compressed, or integers that stand for their decimal text.
//!
//! A string is read in pieces as long as they happen to be there. Its length is a claim and never an allocation.

use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

use super::{Digest, RdbError, input::Input, lzf::Lzf};

/// A length, or the special form of a string.
enum Length {
    Of(u64),
    Special(u8),
}

#[inline]
fn length_or_special(input: &mut Input<'_>) -> Result<Length, RdbError> {
    let first = input.byte()?;
    Ok(match (first >> 6, first) {
        (0, _) => Length::Of(u64::from(first)),
        (1, _) => Length::Of(u64::from(first & 0x3f) << 8 | u64::from(input.byte()?)),
        (2, 0x80) => Length::Of(u64::from(u32::from_be_bytes(input.exact()?))),
        (2, 0x81) => Length::Of(u64::from_be_bytes(input.exact()?)),
        (3, _) => Length::Special(first & 0x3f),
        _ => return Err(input.corrupt(format!("no length begins with byte {first:#04x}"))),
    })
}

#[inline]
pub(super) fn length(input: &mut Input<'_>) -> Result<u64, RdbError> {
    match length_or_special(input)? {
        Length::Of(length) => Ok(length),
        Length::Special(_) => Err(input.corrupt("a string where a length belongs")),
    }
}

/// A string of the file, decoded as it is read. It must be read to its end before anything else is.
pub(super) struct Text {
    form: Form,
    /// Decoded bytes still to come.
    left: u64,
}

enum Form {
    Plain,
    /// Compressed, or an integer's text, which stands decoded from the start.
    Decoded(Lzf),
}

/// The decimal text of an integer: the bytes, and where it begins in them. By hand, since files are full of integers and the
/// machinery of formatting took a tenth of a walk's time.
fn decimal(value: i64) -> ([u8; 20], usize) {
    let mut text = [0; 20];
    let mut at = text.len();
    let mut rest = value.unsigned_abs();
    // 19 digits and a sign at most.
    loop {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        text[at] = b'-';
    }
    (text, at)
}

/// The hash of an integer is that of its decimal text, since servers write the same value now as this and now as that.
pub(super) fn digest_of_number(value: i64, seed: u64) -> Digest {
    let (text, from) = decimal(value);
    xxh3_128_with_seed(&text[from..], seed)
}

impl Text {
    pub(super) fn begin(input: &mut Input<'_>) -> Result<Self, RdbError> {
        let value = match length_or_special(input)? {
            Length::Of(left) => return Ok(Self { form: Form::Plain, left }),
            Length::Special(0) => i64::from(input.byte()? as i8),
            Length::Special(1) => i64::from(i16::from_le_bytes(input.exact()?)),
            Length::Special(2) => i64::from(i32::from_le_bytes(input.exact()?)),
            Length::Special(3) => return Self::compressed(input),
            Length::Special(other) => return Err(input.corrupt(format!("no string has the form {other}"))),
        };
        let (text, from) = decimal(value);
        let len = text.len() - from;
        input.scratch()[..len].copy_from_slice(&text[from..]);
        Ok(Self { form: Form::Decoded(Lzf { compressed: 0, at: 0, end: len }), left: len as u64 })
    }

    fn compressed(input: &mut Input<'_>) -> Result<Self, RdbError> {
        let compressed = length(input)?;
        let left = length(input)?;
        if left == 0 || compressed == 0 {
            return Err(input.corrupt("a compressed string of nothing"));
        }
        Ok(Self { form: Form::Decoded(Lzf { compressed, at: 0, end: 0 }), left })
    }

    /// Decoded bytes still to come.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Some of the next `most` bytes; at least one, where `most` is.
    #[inline]
    pub(super) fn some<'i>(&mut self, input: &'i mut Input<'_>, most: u64) -> Result<&'i [u8], RdbError> {
        if most > self.left {
            return Err(input.corrupt("a string or container ends within one of its elements"));
        }
        let bytes = match &mut self.form {
            Form::Plain => input.some(most)?,
            Form::Decoded(lzf) => {
                if lzf.at == lzf.end && most > 0 {
                    lzf.refill(input, self.left)?;
                }
                let from = lzf.at;
                lzf.at += usize::try_from(most).unwrap_or(usize::MAX).min(lzf.end - from);
                &input.scratch()[from..lzf.at]
            }
        };
        self.left -= bytes.len() as u64;
        Ok(bytes)
    }

    /// Fills `bytes` with what comes next.
    pub(super) fn fill(&mut self, input: &mut Input<'_>, mut bytes: &mut [u8]) -> Result<(), RdbError> {
        while !bytes.is_empty() {
            let some = self.some(input, bytes.len() as u64)?;
            let (now, later) = bytes.split_at_mut(some.len());
            now.copy_from_slice(some);
            bytes = later;
        }
        Ok(())
    }

    #[inline]
    pub(super) fn exact<const N: usize>(&mut self, input: &mut Input<'_>) -> Result<[u8; N], RdbError> {
        if let (Form::Plain, Some(left)) = (&self.form, self.left.checked_sub(N as u64)) {
            self.left = left;
            return input.exact();
        }
        let mut bytes = [0; N];
        self.fill(input, &mut bytes)?;
        Ok(bytes)
    }

    #[inline]
    pub(super) fn skip(&mut self, input: &mut Input<'_>, mut bytes: u64) -> Result<(), RdbError> {
        while bytes > 0 {
            bytes -= self.some(input, bytes)?.len() as u64;
        }
        Ok(())
    }

    /// Hashes the next `len` bytes.
    #[inline]
    pub(super) fn digest(&mut self, input: &mut Input<'_>, seed: u64, len: u64) -> Result<Digest, RdbError> {
        if len == 0 {
            return Ok(xxh3_128_with_seed(&[], seed));
        }
        let first = self.some(input, len)?;
        let left = len - first.len() as u64;
        if left == 0 {
            return Ok(xxh3_128_with_seed(first, seed));
        }
        let mut hasher = Xxh3::with_seed(seed);
        hasher.update(first);
        self.digest_on(input, hasher, left)
    }

    /// The same, of bytes that are not in one piece.
    #[inline(never)]
    fn digest_on(&mut self, input: &mut Input<'_>, mut hasher: Xxh3, mut left: u64) -> Result<Digest, RdbError> {
        while left > 0 {
            let some = self.some(input, left)?;
            hasher.update(some);
            left -= some.len() as u64;
        }
        Ok(hasher.digest128())
    }

    /// Hashes all that is left.
    pub(super) fn digest_rest(&mut self, input: &mut Input<'_>, seed: u64) -> Result<Digest, RdbError> {
        self.digest(input, seed, self.left)
    }

    /// The whole of a string that must not be longer than `most`, added to `bytes`, which grows as they come.
    pub(super) fn collect(&mut self, input: &mut Input<'_>, most: u64, bytes: &mut Vec<u8>) -> Result<(), RdbError> {
        if self.left > most {
            return Err(input.corrupt(format!("a string of {} bytes where at most {most} can be", self.left)));
        }
        while self.left > 0 {
            bytes.extend_from_slice(self.some(input, self.left)?);
        }
        Ok(())
    }
}
