//! Compact containers inside a string, read as streams: listpack, ziplist, intset, zipmap.
//!
//! A container is checked against itself: elements end where it says they do. Sizes at its start are bounds, not allocations.

use super::{
    Digest, RdbError,
    input::Input,
    text::{Text, digest_of_number},
};

/// The longest number or score that is written as text, in bytes: `%.17g` and integers take up to 24.
const MOST_NUMBER: usize = 64;

/// How a container is laid out.
#[derive(Clone, Copy)]
pub(super) enum Layout {
    Listpack,
    Ziplist,
    Intset,
    Zipmap,
}

/// An element of a container.
pub(super) enum Element {
    /// Bytes that come next, so many; to be consumed before the next element is asked for.
    Bytes(u64),
    /// An integer.
    Number(i64),
}

/// A container in a string. Ask for elements until there are none; each must be consumed before the next is asked for.
pub(super) struct Container {
    text: Text,
    form: Form,
    /// Bytes behind the last element that are not its content.
    behind: u64,
}

enum Form {
    Listpack,
    Ziplist,
    /// Bytes of each integer, and how many integers are left.
    Intset {
        width: u32,
        left: u32,
    },
    /// Is a value next?
    Zipmap {
        value: bool,
    },
}

impl Container {
    pub(super) fn begin(input: &mut Input<'_>, layout: Layout) -> Result<Self, RdbError> {
        let mut text = Text::begin(input)?;
        let form = match layout {
            Layout::Listpack => {
                let total = u64::from(u32::from_le_bytes(text.exact(input)?));
                let _count: [u8; 2] = text.exact(input)?;
                // Its own size is that of the string that holds it.
                if total != text.left() + 6 {
                    return Err(input.corrupt("a listpack has another size than it says"));
                }
                Form::Listpack
            }
            Layout::Ziplist => {
                let total = u64::from(u32::from_le_bytes(text.exact(input)?));
                let _tail_and_count: [u8; 6] = text.exact(input)?;
                if total != text.left() + 10 {
                    return Err(input.corrupt("a ziplist has another size than it says"));
                }
                Form::Ziplist
            }
            Layout::Intset => {
                let width = u32::from_le_bytes(text.exact(input)?);
                let left = u32::from_le_bytes(text.exact(input)?);
                if !matches!(width, 2 | 4 | 8) || u64::from(width) * u64::from(left) != text.left() {
                    return Err(input.corrupt("an intset has another size than it says"));
                }
                Form::Intset { width, left }
            }
            Layout::Zipmap => {
                let _count: [u8; 1] = text.exact(input)?;
                Form::Zipmap { value: false }
            }
        };
        Ok(Self { text, form, behind: 0 })
    }

    #[inline]
    pub(super) fn next(&mut self, input: &mut Input<'_>) -> Result<Option<Element>, RdbError> {
        if self.behind > 0 {
            self.text.skip(input, self.behind)?;
            self.behind = 0;
        }
        let element = match &mut self.form {
            Form::Listpack => self.listpack_element(input)?,
            Form::Ziplist => self.ziplist_element(input)?,
            Form::Zipmap { .. } => self.zipmap_element(input)?,
            Form::Intset { left: 0, .. } => None,
            Form::Intset { width, left } => {
                *left -= 1;
                Some(Element::Number(match width {
                    2 => i64::from(i16::from_le_bytes(self.text.exact(input)?)),
                    4 => i64::from(i32::from_le_bytes(self.text.exact(input)?)),
                    _ => i64::from_le_bytes(self.text.exact(input)?),
                }))
            }
        };
        if element.is_none() && self.text.left() > 0 {
            return Err(input.corrupt("something follows the end of a container"));
        }
        Ok(element)
    }

    /// The element after the last, which a pair or a record needs.
    pub(super) fn another(&mut self, input: &mut Input<'_>) -> Result<Element, RdbError> {
        let element = self.next(input)?;
        element.ok_or_else(|| input.corrupt("a container ends within a pair or a record"))
    }

    pub(super) fn digest(&mut self, input: &mut Input<'_>, seed: u64, element: Element) -> Result<Digest, RdbError> {
        match element {
            Element::Bytes(len) => self.text.digest(input, seed, len),
            Element::Number(value) => Ok(digest_of_number(value, seed)),
        }
    }

    pub(super) fn another_digest(&mut self, input: &mut Input<'_>, seed: u64) -> Result<Digest, RdbError> {
        let element = self.another(input)?;
        self.digest(input, seed, element)
    }

    /// The next element as a score.
    pub(super) fn another_score(&mut self, input: &mut Input<'_>) -> Result<f64, RdbError> {
        match self.another(input)? {
            // As C's `strtod` rounds the integer's text: to the nearest.
            Element::Number(value) => Ok(value as f64),
            Element::Bytes(len) => {
                let score = self.short(input, len, parse_score)?;
                score.ok_or_else(|| input.corrupt("a score is not a number"))
            }
        }
    }

    pub(super) fn another_integer(&mut self, input: &mut Input<'_>) -> Result<i64, RdbError> {
        let element = self.another(input)?;
        self.integer(input, element)
    }

    pub(super) fn integer(&mut self, input: &mut Input<'_>, element: Element) -> Result<i64, RdbError> {
        match element {
            Element::Number(value) => Ok(value),
            Element::Bytes(len) => {
                let number = self.short(input, len, |text| std::str::from_utf8(text).ok()?.parse().ok())?;
                number.ok_or_else(|| input.corrupt("not an integer"))
            }
        }
    }

    /// What the text of a number says.
    fn short<T>(
        &mut self,
        input: &mut Input<'_>,
        len: u64,
        parse: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, RdbError> {
        let mut buffer = [0; MOST_NUMBER];
        let Some(bytes) = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len)) else {
            return Err(input.corrupt("a number's text is too long"));
        };
        self.text.fill(input, bytes)?;
        Ok(parse(bytes))
    }

    #[inline]
    fn byte(&mut self, input: &mut Input<'_>) -> Result<u8, RdbError> {
        self.text.exact::<1>(input).map(|[byte]| byte)
    }

    #[inline]
    fn listpack_element(&mut self, input: &mut Input<'_>) -> Result<Option<Element>, RdbError> {
        let first = self.byte(input)?;
        let signed = |value: u64, bits: u32| ((value << (64 - bits)) as i64) >> (64 - bits);
        // What the element takes with its head, which is what the length behind it says.
        let (element, entry) = match first {
            0xff => return Ok(None),
            0x00..=0x7f => (Element::Number(i64::from(first)), 1),
            0x80..=0xbf => (Element::Bytes(u64::from(first & 0x3f)), 1 + u64::from(first & 0x3f)),
            0xc0..=0xdf => {
                let low = self.byte(input)?;
                (Element::Number(signed(u64::from(first & 0x1f) << 8 | u64::from(low), 13)), 2)
            }
            0xe0..=0xef => {
                let len = u64::from(first & 0x0f) << 8 | u64::from(self.byte(input)?);
                (Element::Bytes(len), 2 + len)
            }
            0xf0 => {
                let len = u64::from(u32::from_le_bytes(self.text.exact(input)?));
                (Element::Bytes(len), 5 + len)
            }
            0xf1 => (Element::Number(i64::from(i16::from_le_bytes(self.text.exact(input)?))), 3),
            0xf2 => {
                let [a, b, c] = self.text.exact(input)?;
                (Element::Number(signed(u64::from(u32::from_le_bytes([a, b, c, 0])), 24)), 4)
            }
            0xf3 => (Element::Number(i64::from(i32::from_le_bytes(self.text.exact(input)?))), 5),
            0xf4 => (Element::Number(i64::from_le_bytes(self.text.exact(input)?)), 9),
            _ => return Err(input.corrupt(format!("no element of a listpack begins with {first:#04x}"))),
        };
        self.behind = back_length(entry);
        Ok(Some(element))
    }

    fn ziplist_element(&mut self, input: &mut Input<'_>) -> Result<Option<Element>, RdbError> {
        // How long the element before it is, which only matters on the way back.
        match self.byte(input)? {
            0xff => return Ok(None),
            0xfe => self.text.skip(input, 4)?,
            _ => {}
        }
        let first = self.byte(input)?;
        Ok(Some(match first {
            0x00..=0x3f => Element::Bytes(u64::from(first)),
            0x40..=0x7f => Element::Bytes(u64::from(first & 0x3f) << 8 | u64::from(self.byte(input)?)),
            0x80..=0xbf => Element::Bytes(u64::from(u32::from_be_bytes(self.text.exact(input)?))),
            0xc0 => Element::Number(i64::from(i16::from_le_bytes(self.text.exact(input)?))),
            0xd0 => Element::Number(i64::from(i32::from_le_bytes(self.text.exact(input)?))),
            0xe0 => Element::Number(i64::from_le_bytes(self.text.exact(input)?)),
            0xf0 => {
                let [a, b, c] = self.text.exact(input)?;
                Element::Number(i64::from(i32::from_le_bytes([0, a, b, c]) >> 8))
            }
            0xfe => Element::Number(i64::from(self.byte(input)? as i8)),
            0xf1..=0xfd => Element::Number(i64::from(first & 0x0f) - 1),
            _ => return Err(input.corrupt(format!("no element of a ziplist has the form {first:#04x}"))),
        }))
    }

    fn zipmap_element(&mut self, input: &mut Input<'_>) -> Result<Option<Element>, RdbError> {
        let len = match self.byte(input)? {
            255 => return Ok(None),
            254 => u64::from(u32::from_le_bytes(self.text.exact(input)?)),
            short => u64::from(short),
        };
        if let Form::Zipmap { value } = &mut self.form {
            *value = !*value;
            // A value has room behind it, where a longer one once was.
            if !*value {
                self.behind = u64::from(self.byte(input)?);
            }
        }
        Ok(Some(Element::Bytes(len)))
    }
}

/// How long the length behind an element is: 7 bits a byte. The last value of each width already takes a byte more
/// (`lpEncodeBacklen` in `listpack.c` compares with `<` where the format's description has `<=`).
fn back_length(entry: u64) -> u64 {
    match entry {
        0..=127 => 1,
        128..=16_382 => 2,
        16_383..=2_097_150 => 3,
        2_097_151..=268_435_454 => 4,
        _ => 5,
    }
}

/// A score as C's `strtod` reads what `%.17g` wrote.
pub(super) fn parse_score(bytes: &[u8]) -> Option<f64> {
    std::str::from_utf8(bytes).ok()?.trim().parse().ok().filter(|score: &f64| !score.is_nan())
}
