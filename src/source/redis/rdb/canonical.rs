//! Content by itself: the hash of a value, however a server encoded it.
//!
//! Strings and lists are hashed in order; sets, hashes and sorted sets as sums over their elements, since their order says nothing.
//! Sums are modulo 2^128 and not XORs, so that equal elements do not cancel. Integers are hashed as their decimal text, scores as
//! numbers, TTLs of fields as absolute times. Everything that is hashed together has a fixed width (a string goes in as its own
//! hash), so no two contents are the same bytes.

use xxhash_rust::xxh3::xxh3_128_with_seed;

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

impl Class {
    /// Every class, in the order of [`Class::code`].
    pub(in super::super) const ALL: [Self; 7] =
        [Self::String, Self::List, Self::Set, Self::Zset, Self::Hash, Self::Stream, Self::Module];

    /// What stands for the class in a hash. Never to be changed: fingerprints are stored.
    pub(in super::super) fn code(self) -> u128 {
        match self {
            Self::String => 0,
            Self::List => 1,
            Self::Set => 2,
            Self::Zset => 3,
            Self::Hash => 4,
            Self::Stream => 5,
            Self::Module => 6,
        }
    }

    /// The class of a [`Class::code`].
    pub(in super::super) fn of_code(code: u128) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.code() == code)
    }
}

/// A hash of 128 bits.
pub type Digest = u128;

/// The hash of a few numbers and digests in order.
#[inline]
pub(super) fn of<const N: usize>(seed: u64, numbers: [u128; N]) -> Digest {
    xxh3_128_with_seed(numbers.map(u128::to_be_bytes).as_flattened(), seed)
}

/// The hash of digests in order, as a chain: each link is the hash of what was so far and the next.
pub(super) struct Ordered {
    seed: u64,
    so_far: Digest,
    count: u64,
}

impl Ordered {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, so_far: 0, count: 0 }
    }

    pub(super) fn add(&mut self, digest: Digest) {
        self.so_far = of(self.seed, [self.so_far, digest]);
        self.count += 1;
    }

    pub(super) fn finish(&self) -> Digest {
        of(self.seed, [self.so_far, u128::from(self.count)])
    }
}

/// The hash of digests in any order: how many, and their sum.
pub(super) struct Unordered {
    seed: u64,
    sum: Digest,
    count: u64,
}

impl Unordered {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, sum: 0, count: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn add(&mut self, digest: Digest) {
        self.sum = self.sum.wrapping_add(digest);
        self.count += 1;
    }

    pub(super) fn finish(&self) -> Digest {
        of(self.seed, [self.sum, u128::from(self.count)])
    }
}

/// A score as a number of its own: equal scores, equal bits. There is no NaN, and `-0` is `0`.
pub(super) fn score(score: f64) -> u128 {
    u128::from(if score == 0.0 { 0.0f64.to_bits() } else { score.to_bits() })
}
