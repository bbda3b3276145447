//! Content by itself: the hash of a value, however a server encoded it.
//!
//! Strings and lists are hashed in order; sets, hashes and sorted sets as sums over their elements, since their order says nothing.
//! Sums are modulo 2^128 and not XORs, so that equal elements do not cancel. Integers are hashed as their decimal text, scores as
//! numbers, TTLs of fields as absolute times.

use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

/// What a value is, whatever its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A string.
    String,
    /// A list.
    List,
    /// A set.
    Set,
    /// A sorted set.
    Zset,
    /// A hash, perhaps with TTLs of fields.
    Hash,
    /// A stream with its groups.
    Stream,
    /// A module's own value: opaque, its content is not in the fingerprint.
    Module,
}

/// A hash of 128 bits.
pub type Digest = u128;

/// The hash of some parts in order: `[length, bytes]` each, so that no two sequences of parts are the same bytes.
pub(super) struct Ordered {
    hasher: Box<Xxh3>,
}

impl Ordered {
    pub(super) fn new(seed: u64) -> Self {
        Self { hasher: Box::new(Xxh3::with_seed(seed)) }
    }

    pub(super) fn add(&mut self, digest: Digest) {
        self.hasher.update(&digest.to_be_bytes());
    }

    pub(super) fn number(&mut self, number: u64) {
        self.hasher.update(&number.to_be_bytes());
    }

    pub(super) fn finish(&self) -> Digest {
        self.hasher.digest128()
    }
}

/// The hash of a few numbers and digests in order.
pub(super) fn of(seed: u64, numbers: &[u128]) -> Digest {
    let mut bytes = [0; 16 * 8];
    for (slot, number) in bytes.chunks_exact_mut(16).zip(numbers) {
        slot.copy_from_slice(&number.to_be_bytes());
    }
    xxh3_128_with_seed(&bytes[..16 * numbers.len().min(8)], seed)
}

/// A score as a number of its own: equal scores, equal bits. There is no NaN, and `-0` is `0`.
pub(super) fn score(score: f64) -> u128 {
    u128::from(if score == 0.0 { 0.0f64.to_bits() } else { score.to_bits() })
}
