//! The file from its first byte to its checksum: opcodes, keys and what stands before them.

use std::io::Read;

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::{
    Class, Digest, RdbError, canonical,
    input::Input,
    text::{Text, length},
    value,
};

/// The oldest version that is read: the oldest of which there are files to test with (Redis 2.2's).
pub const OLDEST: u32 = 2;
/// The newest version that is read: Redis 7.4's to 8.2's.
pub const NEWEST: u32 = 12;
/// The first version with a checksum at the end.
const CHECKSUM_SINCE: u32 = 5;
/// The longest name of a key that is taken. Redis itself allows 512 MiB, and nobody has one of a MiB.
const MOST_KEY: u64 = 64 * 1024 * 1024;
/// The longest source text of a function library.
const MOST_SOURCE: u64 = 64 * 1024 * 1024;
/// What is kept of an auxiliary field.
const MOST_AUX: u64 = 64 * 1024;

// What the file is made of, beside the types of values (`rdb.h`).
const SLOT_INFO: u8 = 244;
const FUNCTION: u8 = 245;
const FUNCTION_OF_PRE_RELEASE: u8 = 246;
const MODULE_AUX: u8 = 247;
const IDLE: u8 = 248;
const FREQUENCY: u8 = 249;
const AUX: u8 = 250;
const SIZES: u8 = 251;
const EXPIRES_AT_MS: u8 = 252;
const EXPIRES_AT_SECOND: u8 = 253;
const SELECT_DB: u8 = 254;
const END: u8 = 255;

/// What is known of a key before its value is read.
#[derive(Debug)]
pub struct KeyHead<'a> {
    /// Its database.
    pub db: u64,
    /// Its name.
    pub key: &'a [u8],
    /// When it expires, in milliseconds since 1970, at least 1; absent: never.
    pub expiry: Option<u64>,
    /// The type byte of the file, which is the first byte of a `RESTORE` payload.
    pub kind: u8,
    /// Where its value begins, in bytes from the file's start: the byte after the key's name.
    pub offset: u64,
}

/// What the hash of a key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyParts {
    /// Its database.
    pub db: u64,
    /// The hash of its name.
    pub name: Digest,
    /// When it expires, in milliseconds since 1970, at least 1; absent: never.
    pub expiry: Option<u64>,
    /// What its value is, whatever its encoding.
    pub class: Class,
    /// The hash of its canonical content; of a module's value: of the module's name.
    pub content: Digest,
}

impl KeyParts {
    /// The hash of all of them under the seed of the walk.
    #[inline]
    pub fn digest(&self, seed: u64) -> Digest {
        // No expiry is 0, and one is at least 1.
        let expiry = u128::from(self.expiry.unwrap_or(0));
        canonical::of(seed, [u128::from(self.db), self.name, expiry, self.class.code(), self.content])
    }
}

/// What is known of a key after its value is read.
#[derive(Debug)]
pub struct KeyEnd<'a> {
    /// Its name.
    pub key: &'a [u8],
    /// What its hash is made of.
    pub parts: KeyParts,
    /// The hash of `parts`.
    pub digest: Digest,
    /// The hash of the content that is left when every field that expires is gone (Redis 7.4 has TTLs of fields), and that of the key with
    /// this content; absent where nothing is left. Without such fields it is all of it.
    pub lasting: Option<(Digest, Digest)>,
    /// The value's length as it stands in the file, in bytes.
    pub length: u64,
    /// For a module's value: the module type's name, as `MODULE`'s author gave it (9 characters).
    pub module: Option<&'a str>,
}

/// Takes what a walk finds. An `Err` ends the walk with [`RdbError::Stopped`].
pub trait Visitor {
    /// An auxiliary field (`redis-ver`, `ctime`, `repl-id`, …). Longer ones than 64 KiB are cut short.
    fn aux(&mut self, _name: &[u8], _value: &[u8]) -> Result<(), String> {
        Ok(())
    }
    /// A function library: its source text, and its hash.
    fn function(&mut self, _source: &[u8], _digest: Digest) -> Result<(), String> {
        Ok(())
    }
    /// A module's data that belongs to no key.
    fn module_aux(&mut self, _module: &str) -> Result<(), String> {
        Ok(())
    }
    /// A key begins; the bytes of its value follow.
    fn key(&mut self, _head: &KeyHead<'_>) -> Result<(), String> {
        Ok(())
    }
    /// Bytes of the value, as they stand in the file, in slices of any length.
    fn value(&mut self, _bytes: &[u8]) -> Result<(), String> {
        Ok(())
    }
    /// A field of the current key that expires by itself, in milliseconds since 1970, and the hash of key, field and value.
    fn field(&mut self, _expiry: u64, _digest: Digest) -> Result<(), String> {
        Ok(())
    }
    /// The key's value is complete.
    fn end(&mut self, _end: &KeyEnd<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// A file that was read to its end.
#[derive(Debug)]
pub struct Walked<V> {
    /// Its version.
    pub version: u32,
    /// Its length with its checksum, in bytes.
    pub length: u64,
    /// Does it have a checksum? (`rdbchecksum no` writes none.) Where it has one, it holds.
    pub checksum: bool,
    /// What was read from the reader and is behind the file.
    pub rest: Vec<u8>,
    /// The visitor.
    pub visitor: V,
}

/// Reads one file from `from`, never asking for more once its checksum is there, and hashes what is in it under `seed`.
///
/// # Errors
/// As [`RdbError`] says.
pub fn walk<R: Read, V: Visitor>(mut from: R, seed: u64, mut visitor: V) -> Result<Walked<V>, RdbError> {
    let mut input = Input::new(&mut from, &mut visitor);
    let version = header(&mut input)?;
    body(&mut input, seed)?;
    let checksum = version >= CHECKSUM_SINCE && checksum(&mut input)?;
    let (length, rest) = (input.offset(), input.rest());
    Ok(Walked { version, length, checksum, rest, visitor })
}

/// The file's first 9 bytes: `REDIS` and four digits; `VALKEY` and three from Valkey 9 on.
fn header(input: &mut Input<'_>) -> Result<u32, RdbError> {
    let header: [u8; 9] = input.exact()?;
    let text = std::str::from_utf8(&header).map_err(|_| RdbError::NotRdb)?;
    let number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?;
    match (text.strip_prefix("REDIS"), text.strip_prefix("VALKEY")) {
        (Some(digits), _) => match number(digits) {
            Some(version @ OLDEST..=NEWEST) => Ok(version),
            Some(version @ 0..OLDEST) => Err(RdbError::TooOld { version }),
            Some(version) => Err(RdbError::TooNew { version: version.to_string() }),
            None => Err(RdbError::NotRdb),
        },
        (None, Some(digits)) if number(digits).is_some() => Err(RdbError::TooNew { version: text.into() }),
        _ => Err(RdbError::NotRdb),
    }
}

/// Everything from the header to the end mark.
fn body(input: &mut Input<'_>, seed: u64) -> Result<(), RdbError> {
    let mut db = 0;
    let mut expiry = None;
    let mut key = Vec::new();
    loop {
        match input.byte()? {
            END => return Ok(()),
            SELECT_DB => db = length(input)?,
            EXPIRES_AT_SECOND => {
                expiry = Some(since_1970(i64::from(i32::from_le_bytes(input.exact()?)).saturating_mul(1000)));
            }
            EXPIRES_AT_MS => expiry = Some(since_1970(i64::from_le_bytes(input.exact()?))),
            SIZES => skip_lengths(input, 2)?,
            IDLE => skip_lengths(input, 1)?,
            SLOT_INFO => skip_lengths(input, 3)?,
            FREQUENCY => {
                let _frequency = input.byte()?;
            }
            AUX => aux(input)?,
            FUNCTION => function(input, seed)?,
            FUNCTION_OF_PRE_RELEASE => {
                return Err(input.corrupt("a function of a pre-release of Redis 7.0 (opcode 246)"));
            }
            MODULE_AUX => {
                let module = value::module_name(length(input)?);
                value::skip_module(input)?;
                input.tell(|visitor| visitor.module_aux(&module))?;
            }
            kind => one_key(input, seed, Head { db, expiry: expiry.take(), kind }, &mut key)?,
        }
    }
}

/// A time of the file in milliseconds. One before 1970, which no server writes of its own will, is long ago whichever it is; and 0
/// means `never` to `RESTORE`.
fn since_1970(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0).max(1)
}

fn skip_lengths(input: &mut Input<'_>, count: u32) -> Result<(), RdbError> {
    for _ in 0..count {
        length(input)?;
    }
    Ok(())
}

fn aux(input: &mut Input<'_>) -> Result<(), RdbError> {
    let mut fields = [Vec::new(), Vec::new()];
    for field in &mut fields {
        let mut text = Text::begin(input)?;
        let mut keep = text.left().min(MOST_AUX);
        while keep > 0 {
            let some = text.some(input, keep)?;
            keep -= some.len() as u64;
            field.extend_from_slice(some);
        }
        let left = text.left();
        text.skip(input, left)?;
    }
    let [name, value] = fields;
    input.tell(|visitor| visitor.aux(&name, &value))
}

fn function(input: &mut Input<'_>, seed: u64) -> Result<(), RdbError> {
    let mut source = Vec::new();
    Text::begin(input)?.collect(input, MOST_SOURCE, &mut source)?;
    let digest = xxh3_128_with_seed(&source, seed);
    input.tell(|visitor| visitor.function(&source, digest))
}

/// What stands before a key's name.
struct Head {
    db: u64,
    expiry: Option<u64>,
    kind: u8,
}

/// A key with its value. `name` is a buffer that is used again.
fn one_key(input: &mut Input<'_>, seed: u64, head: Head, name: &mut Vec<u8>) -> Result<(), RdbError> {
    let Head { db, expiry, kind } = head;
    let Some(class) = value::class(kind) else { return Err(input.corrupt(value::unknown(kind))) };
    name.clear();
    Text::begin(input)?.collect(input, MOST_KEY, name)?;
    let offset = input.offset();
    input.tell(|visitor| visitor.key(&KeyHead { db, key: name, expiry, kind, offset }))?;
    let name_digest = xxh3_128_with_seed(name, seed);
    let with = |content| KeyParts { db, name: name_digest, expiry, class, content };
    input.begin_value(with(0).digest(seed))?;
    let value = value::value(input, seed, kind)?;
    input.hand(false)?;
    let parts = with(value.digest);
    let digest = parts.digest(seed);
    let lasting = value.lasting.map(|content| match content == value.digest {
        true => (content, digest),
        false => (content, with(content).digest(seed)),
    });
    let (length, module) = (input.offset() - offset, value.module.as_deref());
    input.tell(|visitor| visitor.end(&KeyEnd { key: name, parts, digest, lasting, length, module }))
}

/// The checksum at the end. Does the file have one?
fn checksum(input: &mut Input<'_>) -> Result<bool, RdbError> {
    let found = input.checksum();
    match u64::from_le_bytes(input.exact()?) {
        0 => Ok(false),
        told if told == found => Ok(true),
        told => Err(RdbError::Checksum { told, found }),
    }
}
