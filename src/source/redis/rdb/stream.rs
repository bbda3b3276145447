//! Streams: entries, consumer groups and what is pending in them.
//!
//! **What the hash covers** is what survives every way from 6.2 over 7.0 to 8.2 (`RESTORE`, replication, loading a file): live
//! entries in order with their ids, the length, the last id; of each group its name, last id, pending entries (id, owner,
//! delivery time and count) and consumers by name. **Not covered**, since older servers do not have it and newer ones make it up
//! when they load: the first id and greatest deleted id and count of entries ever added (7.0), a group's count of entries read
//! (7.0), times at which a consumer was seen (changed by looking) or active (7.2). Entries that are marked deleted and not yet
//! removed are no content.

use super::{
    Digest, RdbError,
    canonical::{self, Ordered, Unordered},
    container::{Container, Element, Layout},
    input::Input,
    text::{Text, length},
    value::string,
};

/// Marks of an entry in a listpack.
const DELETED: i64 = 1;
const SAME_FIELDS: i64 = 2;

/// Which fields a stream is written with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Generation {
    /// 5.0 to 6.2.
    First,
    /// 7.0: the first id, the greatest deleted one, how many were ever added and read.
    Second,
    /// 7.2: when a consumer was active.
    Third,
}

/// An entry's id.
#[derive(Clone, Copy)]
struct Id {
    ms: u64,
    seq: u64,
}

impl Id {
    /// As 16 bytes, most significant first.
    fn raw(bytes: [u8; 16]) -> Self {
        let id = u128::from_be_bytes(bytes);
        Self { ms: (id >> 64) as u64, seq: id as u64 }
    }

    fn lengths(input: &mut Input<'_>) -> Result<Self, RdbError> {
        Ok(Self { ms: length(input)?, seq: length(input)? })
    }

    /// The server computes modulo 2^64, too.
    fn plus(self, ms: i64, seq: i64) -> Self {
        Self { ms: self.ms.wrapping_add_signed(ms), seq: self.seq.wrapping_add_signed(seq) }
    }

    fn number(self) -> u128 {
        u128::from(self.ms) << 64 | u128::from(self.seq)
    }
}

pub(super) fn stream(input: &mut Input<'_>, seed: u64, generation: Generation) -> Result<Digest, RdbError> {
    let mut entries = Ordered::new(seed);
    for _ in 0..length(input)? {
        node(input, seed, &mut entries)?;
    }
    let count = length(input)?;
    let last = Id::lengths(input)?;
    if generation >= Generation::Second {
        let _first = Id::lengths(input)?;
        let _greatest_deleted = Id::lengths(input)?;
        let _ever_added = length(input)?;
    }
    let mut groups = Unordered::new(seed);
    for _ in 0..length(input)? {
        groups.add(group(input, seed, generation)?);
    }
    Ok(canonical::of(seed, [entries.finish(), u128::from(count), last.number(), groups.finish()]))
}

/// A node: the id that its entries count from, and a listpack of them.
fn node(input: &mut Input<'_>, seed: u64, entries: &mut Ordered) -> Result<(), RdbError> {
    let mut key = Text::begin(input)?;
    if key.left() != 16 {
        return Err(input.corrupt("a node of a stream has no id"));
    }
    let from = Id::raw(key.exact(input)?);
    let mut node = Container::begin(input, Layout::Listpack)?;
    // The first entry is a pattern: how many live, how many deleted, and the names of fields that entries may share.
    let _live = node.another_integer(input)?;
    let _deleted = node.another_integer(input)?;
    let count = count(input, &mut node)?;
    let mut names = Ordered::new(seed);
    for _ in 0..count {
        names.add(node.another_digest(input, seed)?);
    }
    let _end_of_pattern = node.another_integer(input)?;
    while let Some(flags) = node.next(input)? {
        if let Some(entry) = entry(input, seed, &mut node, from, flags, (count, &names))? {
            entries.add(entry);
        }
    }
    Ok(())
}

fn count(input: &mut Input<'_>, node: &mut Container) -> Result<u64, RdbError> {
    let count = node.another_integer(input)?;
    u64::try_from(count).map_err(|_| input.corrupt("an entry of a stream has less than no fields"))
}

/// An entry; none where it is marked deleted. Names and values are hashed as two chains and not pair by pair: so an entry that
/// shares the pattern's names needs no more than their hash, however many they are.
fn entry(
    input: &mut Input<'_>,
    seed: u64,
    node: &mut Container,
    from: Id,
    flags: Element,
    (shared, shared_names): (u64, &Ordered),
) -> Result<Option<Digest>, RdbError> {
    let flags = node.integer(input, flags)?;
    let ms = node.another_integer(input)?;
    let seq = node.another_integer(input)?;
    let mut values = Ordered::new(seed);
    let names = if flags & SAME_FIELDS != 0 {
        for _ in 0..shared {
            values.add(node.another_digest(input, seed)?);
        }
        shared_names.finish()
    } else {
        let mut names = Ordered::new(seed);
        for _ in 0..count(input, node)? {
            names.add(node.another_digest(input, seed)?);
            values.add(node.another_digest(input, seed)?);
        }
        names.finish()
    };
    let _elements = node.another_integer(input)?;
    let id = from.plus(ms, seq).number();
    Ok((flags & DELETED == 0).then(|| canonical::of(seed, [id, names, values.finish()])))
}

/// A group. Who owns a pending entry stands apart from when and how often it was delivered; both name it by its id, so two sums
/// say as much as one over both together.
fn group(input: &mut Input<'_>, seed: u64, generation: Generation) -> Result<Digest, RdbError> {
    let name = string(input, seed)?;
    let last = Id::lengths(input)?;
    if generation >= Generation::Second {
        let _entries_read = length(input)?;
    }
    let mut pending = Unordered::new(seed);
    for _ in 0..length(input)? {
        let id = Id::raw(input.exact()?).number();
        let delivered = u64::from_le_bytes(input.exact()?);
        let times = length(input)?;
        pending.add(canonical::of(seed, [id, u128::from(delivered), u128::from(times)]));
    }
    let mut consumers = Unordered::new(seed);
    for _ in 0..length(input)? {
        let name = string(input, seed)?;
        let _seen: [u8; 8] = input.exact()?;
        if generation >= Generation::Third {
            let _active: [u8; 8] = input.exact()?;
        }
        let mut owned = Unordered::new(seed);
        for _ in 0..length(input)? {
            owned.add(canonical::of(seed, [Id::raw(input.exact()?).number()]));
        }
        consumers.add(canonical::of(seed, [name, owned.finish()]));
    }
    Ok(canonical::of(seed, [name, last.number(), pending.finish(), consumers.finish()]))
}
