//! Values of keys, by the type byte of the file: read to their end, and hashed by what they are and not by how they are written.

use super::{
    Class, Digest, RdbError,
    canonical::{self, Ordered, Unordered},
    container::{Container, Layout, parse_score},
    input::Input,
    stream,
    text::{Text, length},
};

/// A value that was read.
pub(super) struct Value {
    /// The hash of its content.
    pub(super) digest: Digest,
    /// The hash of what is left of it when every field that expires is gone; absent where nothing is.
    pub(super) lasting: Option<Digest>,
    /// The module's name, where it is a module's.
    pub(super) module: Option<String>,
}

/// What a value of this type byte is.
pub(super) fn class(kind: u8) -> Option<Class> {
    Some(match kind {
        0 => Class::String,
        1 | 10 | 14 | 18 => Class::List,
        2 | 11 | 20 => Class::Set,
        3 | 5 | 12 | 17 => Class::Zset,
        4 | 9 | 13 | 16 | 22..=25 => Class::Hash,
        7 => Class::Module,
        15 | 19 | 21 => Class::Stream,
        _ => return None,
    })
}

/// Why a type byte is none that is read, in words.
pub(super) fn unknown(kind: u8) -> String {
    match kind {
        6 => "a module's value of a pre-release (type 6), which only the module itself can read".into(),
        26 => "a value of type 26 (a stream of Redis 8.6), which no version up to 12 has".into(),
        _ => format!("no value has the type {kind}"),
    }
}

/// Reads the value of type `kind`.
pub(super) fn value(input: &mut Input<'_>, seed: u64, kind: u8) -> Result<Value, RdbError> {
    let expiring = |fields: Fields| Ok(Value { digest: fields.all.finish(), lasting: fields.lasting(), module: None });
    let digest = match kind {
        0 => string(input, seed)?,
        1 => list(input, seed)?,
        2 => set(input, seed)?,
        3 => sorted_set(input, seed, score_text)?,
        4 => hash(input, seed)?,
        5 => sorted_set(input, seed, score_double)?,
        7 => return module(input, seed),
        9 => packed_hash(input, seed, Layout::Zipmap)?,
        10 => packed_list(input, seed)?,
        11 => packed_set(input, seed, Layout::Intset)?,
        12 => packed_sorted_set(input, seed, Layout::Ziplist)?,
        13 => packed_hash(input, seed, Layout::Ziplist)?,
        14 => quicklist(input, seed)?,
        15 => stream::stream(input, seed, stream::Generation::First)?,
        16 => packed_hash(input, seed, Layout::Listpack)?,
        17 => packed_sorted_set(input, seed, Layout::Listpack)?,
        18 => quicklist_2(input, seed)?,
        19 => stream::stream(input, seed, stream::Generation::Second)?,
        20 => packed_set(input, seed, Layout::Listpack)?,
        21 => stream::stream(input, seed, stream::Generation::Third)?,
        22 => return expiring(hash_with_ttls(input, seed, false)?),
        23 => return expiring(packed_hash_with_ttls(input, seed, false)?),
        24 => return expiring(hash_with_ttls(input, seed, true)?),
        25 => return expiring(packed_hash_with_ttls(input, seed, true)?),
        _ => return Err(input.corrupt(unknown(kind))),
    };
    Ok(Value { digest, lasting: Some(digest), module: None })
}

pub(super) fn string(input: &mut Input<'_>, seed: u64) -> Result<Digest, RdbError> {
    Text::begin(input)?.digest_rest(input, seed)
}

fn list(input: &mut Input<'_>, seed: u64) -> Result<Digest, RdbError> {
    let mut elements = Ordered::new(seed);
    for _ in 0..length(input)? {
        elements.add(string(input, seed)?);
    }
    Ok(elements.finish())
}

fn set(input: &mut Input<'_>, seed: u64) -> Result<Digest, RdbError> {
    let mut members = Unordered::new(seed);
    for _ in 0..length(input)? {
        members.add(string(input, seed)?);
    }
    Ok(members.finish())
}

/// An element of a hash; `ttl` is 0 where the field never expires.
fn field(seed: u64, field: Digest, value: Digest, ttl: u64) -> Digest {
    canonical::of(seed, [field, value, u128::from(ttl)])
}

fn hash(input: &mut Input<'_>, seed: u64) -> Result<Digest, RdbError> {
    let mut fields = Unordered::new(seed);
    for _ in 0..length(input)? {
        let name = string(input, seed)?;
        let value = string(input, seed)?;
        fields.add(field(seed, name, value, 0));
    }
    Ok(fields.finish())
}

/// The fields of a hash some of which expire.
struct Fields {
    seed: u64,
    all: Unordered,
    /// Those that never expire.
    lasting: Unordered,
}

impl Fields {
    fn new(seed: u64) -> Self {
        Self { seed, all: Unordered::new(seed), lasting: Unordered::new(seed) }
    }

    fn add(&mut self, input: &mut Input<'_>, name: Digest, value: Digest, ttl: u64) -> Result<(), RdbError> {
        let digest = field(self.seed, name, value, ttl);
        self.all.add(digest);
        match ttl {
            0 => {
                self.lasting.add(digest);
                Ok(())
            }
            _ => input.tell_field(self.seed, ttl, digest),
        }
    }

    fn lasting(&self) -> Option<Digest> {
        (!self.lasting.is_empty()).then(|| self.lasting.finish())
    }
}

/// TTLs of fields are absolute in milliseconds, or with a `base` (7.4's final release on) one more than their distance from it;
/// 0 is none.
fn hash_with_ttls(input: &mut Input<'_>, seed: u64, base: bool) -> Result<Fields, RdbError> {
    let base = if base { Some(u64::from_le_bytes(input.exact()?)) } else { None };
    let mut fields = Fields::new(seed);
    for _ in 0..length(input)? {
        let ttl = match (length(input)?, base) {
            (0, _) => Some(0),
            (ttl, None) => Some(ttl),
            (ttl, Some(base)) => base.checked_add(ttl - 1),
        };
        let Some(ttl) = ttl else { return Err(input.corrupt("the TTL of a field is beyond all time")) };
        let name = string(input, seed)?;
        let value = string(input, seed)?;
        fields.add(input, name, value, ttl)?;
    }
    Ok(fields)
}

/// A score as 8 bytes.
fn score_double(input: &mut Input<'_>) -> Result<f64, RdbError> {
    let score = f64::from_le_bytes(input.exact()?);
    if score.is_nan() { Err(input.corrupt("a score is not a number")) } else { Ok(score) }
}

/// A score as text with its length before it, or one of the three that have no text.
fn score_text(input: &mut Input<'_>) -> Result<f64, RdbError> {
    let len = match input.byte()? {
        253 => return Err(input.corrupt("a score is not a number")),
        254 => return Ok(f64::INFINITY),
        255 => return Ok(f64::NEG_INFINITY),
        len => usize::from(len),
    };
    let mut text = [0; 252];
    for byte in &mut text[..len] {
        *byte = input.byte()?;
    }
    parse_score(&text[..len]).ok_or_else(|| input.corrupt("a score is not a number"))
}

fn sorted_set(
    input: &mut Input<'_>,
    seed: u64,
    score: fn(&mut Input<'_>) -> Result<f64, RdbError>,
) -> Result<Digest, RdbError> {
    let mut members = Unordered::new(seed);
    for _ in 0..length(input)? {
        let member = string(input, seed)?;
        let score = score(input)?;
        members.add(canonical::of(seed, [member, canonical::score(score)]));
    }
    Ok(members.finish())
}

/// The elements of one container, in order.
fn container_into(input: &mut Input<'_>, seed: u64, layout: Layout, elements: &mut Ordered) -> Result<(), RdbError> {
    let mut container = Container::begin(input, layout)?;
    while let Some(element) = container.next(input)? {
        elements.add(container.digest(input, seed, element)?);
    }
    Ok(())
}

fn packed_list(input: &mut Input<'_>, seed: u64) -> Result<Digest, RdbError> {
    let mut elements = Ordered::new(seed);
    container_into(input, seed, Layout::Ziplist, &mut elements)?;
    Ok(elements.finish())
}

fn quicklist(input: &mut Input<'_>, seed: u64) -> Result<Digest, RdbError> {
    let mut elements = Ordered::new(seed);
    for _ in 0..length(input)? {
        container_into(input, seed, Layout::Ziplist, &mut elements)?;
    }
    Ok(elements.finish())
}

fn quicklist_2(input: &mut Input<'_>, seed: u64) -> Result<Digest, RdbError> {
    let mut elements = Ordered::new(seed);
    for _ in 0..length(input)? {
        match length(input)? {
            1 => elements.add(string(input, seed)?),
            2 => container_into(input, seed, Layout::Listpack, &mut elements)?,
            other => return Err(input.corrupt(format!("no node of a list has the form {other}"))),
        }
    }
    Ok(elements.finish())
}

fn packed_set(input: &mut Input<'_>, seed: u64, layout: Layout) -> Result<Digest, RdbError> {
    let mut container = Container::begin(input, layout)?;
    let mut members = Unordered::new(seed);
    while let Some(element) = container.next(input)? {
        members.add(container.digest(input, seed, element)?);
    }
    Ok(members.finish())
}

fn packed_hash(input: &mut Input<'_>, seed: u64, layout: Layout) -> Result<Digest, RdbError> {
    let mut container = Container::begin(input, layout)?;
    let mut fields = Unordered::new(seed);
    while let Some(element) = container.next(input)? {
        let name = container.digest(input, seed, element)?;
        let value = container.another_digest(input, seed)?;
        fields.add(field(seed, name, value, 0));
    }
    Ok(fields.finish())
}

/// Fields, values and absolute TTLs in turn. Before them, from 7.4's final release on, the soonest of the TTLs again.
fn packed_hash_with_ttls(input: &mut Input<'_>, seed: u64, soonest: bool) -> Result<Fields, RdbError> {
    if soonest {
        let _soonest: [u8; 8] = input.exact()?;
    }
    let mut container = Container::begin(input, Layout::Listpack)?;
    let mut fields = Fields::new(seed);
    while let Some(element) = container.next(input)? {
        let name = container.digest(input, seed, element)?;
        let value = container.another_digest(input, seed)?;
        let Ok(ttl) = u64::try_from(container.another_integer(input)?) else {
            return Err(input.corrupt("the TTL of a field is before all time"));
        };
        fields.add(input, name, value, ttl)?;
    }
    Ok(fields)
}

fn packed_sorted_set(input: &mut Input<'_>, seed: u64, layout: Layout) -> Result<Digest, RdbError> {
    let mut container = Container::begin(input, layout)?;
    let mut members = Unordered::new(seed);
    while let Some(element) = container.next(input)? {
        let member = container.digest(input, seed, element)?;
        let score = container.another_score(input)?;
        members.add(canonical::of(seed, [member, canonical::score(score)]));
    }
    Ok(members.finish())
}

/// A module's value: its name is all that is known of it. The same module writes the same content as other bytes every time.
fn module(input: &mut Input<'_>, seed: u64) -> Result<Value, RdbError> {
    let name = module_name(length(input)?);
    skip_module(input)?;
    let digest = xxhash_rust::xxh3::xxh3_128_with_seed(name.as_bytes(), seed);
    Ok(Value { digest, lasting: Some(digest), module: Some(name) })
}

/// A module type's name: 9 characters of 6 bits each, above 10 bits of its encoding's version.
pub(super) fn module_name(id: u64) -> String {
    const CHARACTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..9).map(|at| char::from(CHARACTERS[(id >> (58 - 6 * at)) as usize & 63])).collect()
}

/// What a module wrote: marks of what follows, up to the end mark.
pub(super) fn skip_module(input: &mut Input<'_>) -> Result<(), RdbError> {
    loop {
        match length(input)? {
            0 => return Ok(()),
            1 | 2 => {
                length(input)?;
            }
            3 => {
                let _float: [u8; 4] = input.exact()?;
            }
            4 => {
                let _double: [u8; 8] = input.exact()?;
            }
            5 => {
                let mut text = Text::begin(input)?;
                let left = text.left();
                text.skip(input, left)?;
            }
            other => return Err(input.corrupt(format!("a module's data holds the unknown mark {other}"))),
        }
    }
}
