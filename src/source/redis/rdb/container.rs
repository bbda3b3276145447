//! Compact containers inside a string, read as streams: listpack, ziplist, intset, zipmap; and strings themselves.
//!
//! A container is checked against itself: elements end where it says they do. Sizes at its start are bounds, not allocations.

use std::io::Read;

use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

use super::{Digest, RdbError, Visitor, input::Input};

/// How far back LZF copies from (13 bits and one).
const WINDOW: usize = 8192;
/// Strings up to this length are collected before they are hashed; longer ones are hashed as they come.
const SHORT: usize = 4096;
/// The longest number or score that is written as text, in bytes.
const MOST_NUMBER: usize = 256;

/// A string of the file: its bytes, decoded as they are read.
pub(super) struct Text {
    form: Form,
    /// Decoded bytes still to come.
    left: u64,
}

enum Form {
    Plain,
    /// An integer as decimal text.
    Number { text: [u8; 20], len: u8, at: u8 },
    Lzf(Box<Lzf>),
}

struct Lzf {
    /// Compressed bytes still to come.
    left: u64,
    /// The last bytes that came out, as a ring.
    window: [u8; WINDOW],
    /// Bytes that came out.
    out: u64,
    /// What is being copied: from the input, or from so far back.
    run: Run,
}

#[derive(Clone, Copy)]
enum Run {
    Literal(u32),
    Back { distance: u32, len: u32 },
}

/// Text of a number.
fn number(value: i64) -> Form {
    use std::io::Write;
    let mut text = [0; 20];
    let mut rest = &mut text[..];
    // 20 bytes hold every i64.
    let _ = write!(rest, "{value}");
    let len = 20 - rest.len();
    Form::Number { text, len: len as u8, at: 0 }
}

/// A length, or the special form of a string.
pub(super) enum Length {
    Of(u64),
    Special(u8),
}

pub(super) fn length_or_special<R: Read, V: Visitor>(input: &mut Input<R, V>) -> Result<Length, RdbError> {
    let first = input.byte()?;
    Ok(match (first >> 6, first) {
        (0, _) => Length::Of(u64::from(first & 0x3f)),
        (1, _) => Length::Of(u64::from(first & 0x3f) << 8 | u64::from(input.byte()?)),
        (2, 0x80) => Length::Of(u64::from(u32::from_be_bytes(input.exact()?))),
        (2, 0x81) => Length::Of(u64::from_be_bytes(input.exact()?)),
        (3, _) => Length::Special(first & 0x3f),
        _ => return Err(input.corrupt(format!("no length begins with byte {first:#04x}"))),
    })
}

pub(super) fn length<R: Read, V: Visitor>(input: &mut Input<R, V>) -> Result<u64, RdbError> {
    match length_or_special(input)? {
        Length::Of(length) => Ok(length),
        Length::Special(_) => Err(input.corrupt("a string where a length belongs")),
    }
}

impl Text {
    pub(super) fn begin<R: Read, V: Visitor>(input: &mut Input<R, V>) -> Result<Self, RdbError> {
        let form = match length_or_special(input)? {
            Length::Of(left) => return Ok(Self { form: Form::Plain, left }),
            Length::Special(0) => number(i64::from(input.byte()? as i8)),
            Length::Special(1) => number(i64::from(i16::from_le_bytes(input.exact()?))),
            Length::Special(2) => number(i64::from(i32::from_le_bytes(input.exact()?))),
            Length::Special(3) => {
                let compressed = length(input)?;
                let left = length(input)?;
                let lzf = Lzf { left: compressed, window: [0; WINDOW], out: 0, run: Run::Literal(0) };
                return Ok(Self { form: Form::Lzf(Box::new(lzf)), left });
            }
            Length::Special(other) => return Err(input.corrupt(format!("no string has the form {other}"))),
        };
        let Form::Number { len, .. } = form else { return Err(input.corrupt("not a number")) };
        Ok(Self { form, left: u64::from(len) })
    }

    /// Decoded bytes still to come.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Fills `bytes` with what comes next.
    pub(super) fn fill<R: Read, V: Visitor>(
        &mut self,
        input: &mut Input<R, V>,
        mut bytes: &mut [u8],
    ) -> Result<(), RdbError> {
        if bytes.len() as u64 > self.left {
            return Err(input.corrupt("a string or container ends within one of its elements"));
        }
        self.left -= bytes.len() as u64;
        match &mut self.form {
            Form::Plain => {
                while !bytes.is_empty() {
                    let some = input.some(bytes.len() as u64)?;
                    let n = some.len();
                    bytes[..n].copy_from_slice(some);
                    bytes = &mut bytes[n..];
                }
            }
            Form::Number { text, at, .. } => {
                let from = usize::from(*at);
                bytes.copy_from_slice(&text[from..from + bytes.len()]);
                *at += bytes.len() as u8;
            }
            Form::Lzf(lzf) => {
                while !bytes.is_empty() {
                    let n = lzf.some(input, bytes)?;
                    bytes = &mut bytes[n..];
                }
            }
        }
        // All of the compressed form must have been needed.
        if let Form::Lzf(lzf) = &self.form
            && self.left == 0
            && (lzf.left > 0 || lzf.run.len() > 0)
        {
            return Err(input.corrupt("a compressed string is longer than it says"));
        }
        Ok(())
    }

    pub(super) fn exact<const N: usize, R: Read, V: Visitor>(
        &mut self,
        input: &mut Input<R, V>,
    ) -> Result<[u8; N], RdbError> {
        let mut bytes = [0; N];
        self.fill(input, &mut bytes)?;
        Ok(bytes)
    }

    /// Hashes the next `len` bytes.
    pub(super) fn digest<R: Read, V: Visitor>(
        &mut self,
        input: &mut Input<R, V>,
        seed: u64,
        len: u64,
    ) -> Result<Digest, RdbError> {
        let mut buffer = [0; SHORT];
        if len <= SHORT as u64 {
            let bytes = &mut buffer[..len as usize];
            self.fill(input, bytes)?;
            return Ok(xxh3_128_with_seed(bytes, seed));
        }
        let mut hasher = Xxh3::with_seed(seed);
        let mut left = len;
        while left > 0 {
            let n = left.min(SHORT as u64) as usize;
            self.fill(input, &mut buffer[..n])?;
            hasher.update(&buffer[..n]);
            left -= n as u64;
        }
        Ok(hasher.digest128())
    }

    /// Hashes all that is left.
    pub(super) fn digest_rest<R: Read, V: Visitor>(
        &mut self,
        input: &mut Input<R, V>,
        seed: u64,
    ) -> Result<Digest, RdbError> {
        let left = self.left;
        self.digest(input, seed, left)
    }

    /// The whole of a string that must not be longer than `most`.
    pub(super) fn collect<R: Read, V: Visitor>(
        &mut self,
        input: &mut Input<R, V>,
        most: u64,
    ) -> Result<Vec<u8>, RdbError> {
        if self.left > most {
            return Err(input.corrupt(format!("a string of {} bytes where at most {most} can be", self.left)));
        }
        let mut bytes = vec![0; self.left as usize];
        self.fill(input, &mut bytes)?;
        Ok(bytes)
    }
}

impl Run {
    fn len(self) -> u32 {
        match self {
            Run::Literal(len) | Run::Back { len, .. } => len,
        }
    }
}

impl Lzf {
    fn byte<R: Read, V: Visitor>(&mut self, input: &mut Input<R, V>) -> Result<u8, RdbError> {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return Err(input.corrupt("a compressed string is shorter than it says")),
        }
        input.byte()
    }

    fn put(&mut self, byte: u8) {
        self.window[(self.out % WINDOW as u64) as usize] = byte;
        self.out += 1;
    }

    /// Puts some bytes, at least one, into `bytes`; says how many.
    fn some<R: Read, V: Visitor>(&mut self, input: &mut Input<R, V>, bytes: &mut [u8]) -> Result<usize, RdbError> {
        if self.run.len() == 0 {
            let control = self.byte(input)?;
            self.run = match control >> 5 {
                0 => Run::Literal(u32::from(control) + 1),
                short => {
                    let long = if short == 7 { self.byte(input)? } else { 0 };
                    let distance = (u32::from(control & 0x1f) << 8 | u32::from(self.byte(input)?)) + 1;
                    if u64::from(distance) > self.out {
                        return Err(input.corrupt("a compressed string refers to before its start"));
                    }
                    Run::Back { distance, len: u32::from(short) + u32::from(long) + 2 }
                }
            };
        }
        let n = bytes.len().min(self.run.len() as usize);
        match &mut self.run {
            Run::Literal(len) => {
                *len -= n as u32;
                for slot in &mut bytes[..n] {
                    *slot = self.byte(input)?;
                    self.put(*slot);
                }
            }
            Run::Back { distance, len } => {
                *len -= n as u32;
                let distance = u64::from(*distance);
                for slot in &mut bytes[..n] {
                    *slot = self.window[((self.out - distance) % WINDOW as u64) as usize];
                    self.put(*slot);
                }
            }
        }
        Ok(n)
    }
}

/// An element of a container.
pub(super) enum Element {
    /// Bytes that come next, so many; to be consumed before the next element is asked for.
    Bytes(u64),
    /// An integer.
    Number(i64),
}

impl Element {
    pub(super) fn digest<R: Read, V: Visitor>(
        self,
        text: &mut Text,
        input: &mut Input<R, V>,
        seed: u64,
    ) -> Result<Digest, RdbError> {
        match self {
            Element::Bytes(len) => text.digest(input, seed, len),
            Element::Number(value) => Ok(digest_of_number(value, seed)),
        }
    }

    /// As a number, which it must be or be the text of.
    pub(super) fn score<R: Read, V: Visitor>(self, text: &mut Text, input: &mut Input<R, V>) -> Result<f64, RdbError> {
        match self {
            Element::Number(value) => Ok(value as f64),
            Element::Bytes(len) => {
                let mut buffer = [0; MOST_NUMBER];
                let Some(bytes) = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len)) else {
                    return Err(input.corrupt("a score is too long for a number"));
                };
                text.fill(input, bytes)?;
                parse_score(bytes).ok_or_else(|| input.corrupt("a score is not a number"))
            }
        }
    }

    pub(super) fn integer<R: Read, V: Visitor>(self, text: &mut Text, input: &mut Input<R, V>) -> Result<i64, RdbError> {
        match self {
            Element::Number(value) => Ok(value),
            Element::Bytes(len) => {
                let mut buffer = [0; 20];
                let Some(bytes) = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len)) else {
                    return Err(input.corrupt("an integer is too long"));
                };
                text.fill(input, bytes)?;
                let number = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
                number.ok_or_else(|| input.corrupt("not an integer"))
            }
        }
    }
}

pub(super) fn digest_of_number(value: i64, seed: u64) -> Digest {
    let Form::Number { text, len, .. } = number(value) else { return 0 };
    xxh3_128_with_seed(&text[..usize::from(len)], seed)
}

/// A score as C's `strtod` reads what `%.17g` wrote.
pub(super) fn parse_score(bytes: &[u8]) -> Option<f64> {
    std::str::from_utf8(bytes).ok()?.trim().parse().ok().filter(|score: &f64| !score.is_nan())
}

/// A container in a string. Ask for elements until there are none.
pub(super) enum Container {
    Listpack,
    Ziplist,
    /// Bytes of each integer.
    Intset { width: u32, left: u32 },
    /// Zipmap: is a value next?
    Zipmap { value: bool },
}

impl Container {
    pub(super) fn listpack<R: Read, V: Visitor>(text: &mut Text, input: &mut Input<R, V>) -> Result<Self, RdbError> {
        let total = u64::from(u32::from_le_bytes(text.exact(input)?));
        let _count: [u8; 2] = text.exact(input)?;
        // Its own size is that of the string that holds it.
        if total != text.left() + 6 {
            return Err(input.corrupt("a listpack has another size than it says"));
        }
        Ok(Self::Listpack)
    }

    pub(super) fn ziplist<R: Read, V: Visitor>(text: &mut Text, input: &mut Input<R, V>) -> Result<Self, RdbError> {
        let total = u64::from(u32::from_le_bytes(text.exact(input)?));
        let _tail_and_count: [u8; 6] = text.exact(input)?;
        if total != text.left() + 10 {
            return Err(input.corrupt("a ziplist has another size than it says"));
        }
        Ok(Self::Ziplist)
    }

    pub(super) fn intset<R: Read, V: Visitor>(text: &mut Text, input: &mut Input<R, V>) -> Result<Self, RdbError> {
        let width = u32::from_le_bytes(text.exact(input)?);
        let left = u32::from_le_bytes(text.exact(input)?);
        if !matches!(width, 2 | 4 | 8) || u64::from(width) * u64::from(left) != text.left() {
            return Err(input.corrupt("an intset has another size than it says"));
        }
        Ok(Self::Intset { width, left })
    }

    pub(super) fn zipmap<R: Read, V: Visitor>(text: &mut Text, input: &mut Input<R, V>) -> Result<Self, RdbError> {
        let _count: [u8; 1] = text.exact(input)?;
        Ok(Self::Zipmap { value: false })
    }

    pub(super) fn next<R: Read, V: Visitor>(
        &mut self,
        text: &mut Text,
        input: &mut Input<R, V>,
        trailer: &mut Trailer,
    ) -> Result<Option<Element>, RdbError> {
        trailer.skip(text, input)?;
        let element = match self {
            Self::Listpack => listpack_element(text, input, trailer)?,
            Self::Ziplist => ziplist_element(text, input)?,
            Self::Intset { width, left } => match left.checked_sub(1) {
                None => None,
                Some(rest) => {
                    *left = rest;
                    Some(Element::Number(match width {
                        2 => i64::from(i16::from_le_bytes(text.exact(input)?)),
                        4 => i64::from(i32::from_le_bytes(text.exact(input)?)),
                        _ => i64::from_le_bytes(text.exact(input)?),
                    }))
                }
            },
            Self::Zipmap { value } => {
                let [first]: [u8; 1] = text.exact(input)?;
                let len = match first {
                    255 => None,
                    254 => Some(u64::from(u32::from_le_bytes(text.exact(input)?))),
                    short => Some(u64::from(short)),
                };
                if let Some(_len) = len {
                    if *value {
                        let [free]: [u8; 1] = text.exact(input)?;
                        trailer.0 = u64::from(free);
                    }
                    *value = !*value;
                }
                len.map(Element::Bytes)
            }
        };
        if element.is_none() && text.left() > 0 {
            return Err(input.corrupt("something follows the end of a container"));
        }
        Ok(element)
    }
}

/// Bytes behind an element that are not its content.
#[derive(Default)]
pub(super) struct Trailer(u64);

impl Trailer {
    fn skip<R: Read, V: Visitor>(&mut self, text: &mut Text, input: &mut Input<R, V>) -> Result<(), RdbError> {
        let mut bytes = [0; 16];
        while self.0 > 0 {
            let n = self.0.min(16) as usize;
            text.fill(input, &mut bytes[..n])?;
            self.0 -= n as u64;
        }
        Ok(())
    }
}

/// An element's length is behind it, 7 bits a byte.
fn back_length(entry: u64) -> u64 {
    match entry {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        2_097_152..=268_435_455 => 4,
        _ => 5,
    }
}

fn listpack_element<R: Read, V: Visitor>(
    text: &mut Text,
    input: &mut Input<R, V>,
    trailer: &mut Trailer,
) -> Result<Option<Element>, RdbError> {
    let [first]: [u8; 1] = text.exact(input)?;
    let signed = |value: u64, bits: u32| ((value << (64 - bits)) as i64) >> (64 - bits);
    // What the element takes with its head, which is what the length behind it says.
    let (element, entry) = match first {
        0xff => return Ok(None),
        0x00..=0x7f => (Element::Number(i64::from(first)), 1),
        0x80..=0xbf => (Element::Bytes(u64::from(first & 0x3f)), 1 + u64::from(first & 0x3f)),
        0xc0..=0xdf => {
            let [low]: [u8; 1] = text.exact(input)?;
            (Element::Number(signed(u64::from(first & 0x1f) << 8 | u64::from(low), 13)), 2)
        }
        0xe0..=0xef => {
            let [low]: [u8; 1] = text.exact(input)?;
            let len = u64::from(first & 0x0f) << 8 | u64::from(low);
            (Element::Bytes(len), 2 + len)
        }
        0xf0 => {
            let len = u64::from(u32::from_le_bytes(text.exact(input)?));
            (Element::Bytes(len), 5 + len)
        }
        0xf1 => (Element::Number(i64::from(i16::from_le_bytes(text.exact(input)?))), 3),
        0xf2 => {
            let [a, b, c]: [u8; 3] = text.exact(input)?;
            (Element::Number(signed(u64::from(u32::from_le_bytes([a, b, c, 0])), 24)), 4)
        }
        0xf3 => (Element::Number(i64::from(i32::from_le_bytes(text.exact(input)?))), 5),
        0xf4 => (Element::Number(i64::from_le_bytes(text.exact(input)?)), 9),
        _ => return Err(input.corrupt(format!("no element of a listpack begins with {first:#04x}"))),
    };
    trailer.0 = back_length(entry);
    Ok(Some(element))
}

fn ziplist_element<R: Read, V: Visitor>(
    text: &mut Text,
    input: &mut Input<R, V>,
) -> Result<Option<Element>, RdbError> {
    let [previous]: [u8; 1] = text.exact(input)?;
    match previous {
        0xff => return Ok(None),
        0xfe => {
            let _long: [u8; 4] = text.exact(input)?;
        }
        _ => {}
    }
    let [first]: [u8; 1] = text.exact(input)?;
    Ok(Some(match first {
        0x00..=0x3f => Element::Bytes(u64::from(first)),
        0x40..=0x7f => {
            let [low]: [u8; 1] = text.exact(input)?;
            Element::Bytes(u64::from(first & 0x3f) << 8 | u64::from(low))
        }
        0x80..=0xbf => Element::Bytes(u64::from(u32::from_be_bytes(text.exact(input)?))),
        0xc0 => Element::Number(i64::from(i16::from_le_bytes(text.exact(input)?))),
        0xd0 => Element::Number(i64::from(i32::from_le_bytes(text.exact(input)?))),
        0xe0 => Element::Number(i64::from_le_bytes(text.exact(input)?)),
        0xf0 => {
            let [a, b, c]: [u8; 3] = text.exact(input)?;
            Element::Number(i64::from(i32::from_le_bytes([0, a, b, c]) >> 8))
        }
        0xfe => {
            let [low]: [u8; 1] = text.exact(input)?;
            Element::Number(i64::from(low as i8))
        }
        0xf1..=0xfd => Element::Number(i64::from(first & 0x0f) - 1),
        _ => return Err(input.corrupt(format!("no element of a ziplist has the form {first:#04x}"))),
    }))
}
