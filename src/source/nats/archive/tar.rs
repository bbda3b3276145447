//! The tar of format 1, as Go's `archive/tar` writes it: headers of POSIX (ustar), with pax records for times and long
//! names.
//!
//! Nothing but files is expected. The end is two blocks of zeros, and at most more zeros behind them. Facts: POSIX
//! `pax`, "ustar Interchange Format" and "pax Extended Header"; `FormatPAX` of Go's `archive/tar`.

use std::io::Read;

use super::{ArchiveError, input::Input, place};

/// What everything in a tar is a multiple of, in bytes.
pub(super) const BLOCK: usize = 512;
/// The longest pax record, in bytes. They hold times and a name.
const MAX_PAX: u64 = 64 * 1024;
/// The longest name.
const MAX_NAME: usize = 4096;

/// A file's header.
pub(super) struct Entry {
    /// Its path, with `/` between its parts.
    pub(super) name: Vec<u8>,
    /// Bytes of its content.
    pub(super) size: u64,
}

/// What pax records say of the file that follows.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

/// Does a tar begin here? Nothing is consumed.
pub(super) fn begins<R: Read>(input: &mut Input<R>) -> Result<bool, ArchiveError> {
    let block = input.peek(BLOCK)?;
    Ok(<&[u8; BLOCK]>::try_from(block).is_ok_and(checksum_holds))
}

/// The next file; `None` at the end, which is proved to be one.
pub(super) fn next<R: Read>(input: &mut Input<R>) -> Result<Option<Entry>, ArchiveError> {
    let mut pax: Option<Pax> = None;
    loop {
        input.enter(b"a header of the tar");
        let offset = input.offset();
        let header: [u8; BLOCK] = input.array()?;
        if header == [0; BLOCK] {
            return match pax {
                None => end(input).map(|()| None),
                Some(_) => Err(input.corrupt_at(offset, "pax records at the end of the tar belong to no file")),
            };
        }
        if !checksum_holds(&header) {
            return Err(input.corrupt_at(offset, "its checksum does not hold"));
        }
        let size = octal(&header[124..136]).ok_or_else(|| input.corrupt_at(offset, "its size is no number"))?;
        match header[156] {
            b'0' | 0 => {
                let Pax { path, size: larger } = pax.unwrap_or_default();
                let entry = Entry { name: path.unwrap_or_else(|| name(&header)), size: larger.unwrap_or(size) };
                return match unsafe_name(&entry.name) {
                    None => Ok(Some(entry)),
                    Some(why) => Err(input.corrupt_at(offset, format!("{} {why}", place(&entry.name)))),
                };
            }
            b'x' if pax.is_none() => pax = Some(records(input, offset, size)?),
            kind => {
                let what = format!("{} is of kind `{}`, no file", place(&name(&header)), kind.escape_ascii());
                return Err(input.corrupt_at(offset, what));
            }
        }
    }
}

/// Passes over what fills a file of `size` bytes up to a whole block.
pub(super) fn pad<R: Read>(input: &mut Input<R>, size: u64) -> Result<(), ArchiveError> {
    input.skip(size.wrapping_neg() % BLOCK as u64)
}

/// Behind the first block of zeros.
fn end<R: Read>(input: &mut Input<R>) -> Result<(), ArchiveError> {
    input.enter(b"the end of the tar");
    if input.array::<BLOCK>()? != [0; BLOCK] {
        return Err(input.corrupt("there is one block of zeros and not two"));
    }
    loop {
        let more = input.peek(BLOCK)?;
        let length = more.len();
        if length == 0 {
            return Ok(());
        }
        if more.iter().any(|byte| *byte != 0) {
            return Err(input.corrupt("something follows the end"));
        }
        input.skip(length as u64)?;
    }
}

/// The sum of all bytes, with the checksum itself as spaces.
fn checksum_holds(header: &[u8; BLOCK]) -> bool {
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = header[148..156].iter().map(|byte| u64::from(*byte)).sum();
    octal(&header[148..156]) == Some(sum - own + 8 * u64::from(b' '))
}

/// Octal digits between spaces, up to the end of the field or a zero. No field has more than 12, so it fits.
fn octal(field: &[u8]) -> Option<u64> {
    let field = field.split(|byte| *byte == 0).next()?.trim_ascii();
    let digits = !field.is_empty() && field.iter().all(|byte| matches!(byte, b'0'..=b'7'));
    digits.then(|| field.iter().fold(0, |number, digit| number << 3 | u64::from(digit - b'0')))
}

/// The name in the header itself.
fn name(header: &[u8; BLOCK]) -> Vec<u8> {
    let text = |field: &[u8]| field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
    let name = text(&header[..100]);
    let prefix = if header[257..263] == *b"ustar\0" { text(&header[345..500]) } else { Vec::new() };
    if prefix.is_empty() { name } else { [prefix, name].join(&b'/') }
}

/// Why a server that extracts the file might write it anywhere.
fn unsafe_name(name: &[u8]) -> Option<&'static str> {
    let mut parts = name.split(|byte| matches!(byte, b'/' | b'\\'));
    match name {
        _ if name.len() > MAX_NAME => Some("is too long a name"),
        _ if name.contains(&0) => Some("has a zero in its name"),
        _ if parts.any(|part| part.is_empty() || part == b"." || part == b"..") => {
            Some("is a path that leads elsewhere")
        }
        _ => None,
    }
}

/// The content of a pax header: `LENGTH KEY=VALUE\n`, again and again. Values may hold anything.
fn records<R: Read>(input: &mut Input<R>, offset: u64, size: u64) -> Result<Pax, ArchiveError> {
    input.enter(b"pax records");
    if size > MAX_PAX {
        return Err(input.corrupt_at(offset, format!("{size} bytes of pax records; {MAX_PAX} are the most")));
    }
    // At most MAX_PAX.
    let parsed = parse(input.take(size as usize)?);
    let pax = parsed.map_err(|what| input.corrupt_at(offset, what))?;
    pad(input, size)?;
    Ok(pax)
}

fn parse(mut records: &[u8]) -> Result<Pax, String> {
    let mut pax = Pax::default();
    while !records.is_empty() {
        let digits = records.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let length = std::str::from_utf8(&records[..digits]).ok().and_then(|digits| digits.parse().ok());
        let record = length.and_then(|length: usize| records.split_at_checked(length));
        let Some((record, rest)) = record else { return Err("a pax record that ends elsewhere than it says".into()) };
        let pair = record.get(digits..).and_then(|pair| pair.strip_prefix(b" ")?.strip_suffix(b"\n"));
        let Some(pair) = pair else { return Err("a pax record that is none".into()) };
        let Some(at) = pair.iter().position(|byte| *byte == b'=') else {
            return Err("a pax record without a value".into());
        };
        let (key, value) = (&pair[..at], &pair[at + 1..]);
        match key {
            b"path" => pax.path = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                pax.size = Some(size.ok_or("a pax record with a size that is no number")?);
            }
            _ if key.starts_with(b"GNU.sparse") => return Err("a sparse file".into()),
            _ => {}
        }
        records = rest;
    }
    Ok(pax)
}
