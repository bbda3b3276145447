//! Redis' own file format, read as it passes.
//!
//! [`walk()`] reads an RDB file from any [`Read`](std::io::Read), key by key, and never holds more than a buffer of it: strings of
//! any size, compressed ones and containers (listpack, ziplist, intset, zipmap) are decoded as streams. What it finds goes to a
//! [`Visitor`]: the raw bytes of each value, which are what `RESTORE` takes, and a canonical hash of its content, which does not
//! depend on how a server happened to encode it.
//!
//! Covers RDB 2 to 12, that is everything up to Redis 8.2 and Valkey 8; a newer file is [`RdbError::TooNew`]. Facts of the format:
//! Redis' `rdb.h`, `rdb.c`, `listpack.c`, `ziplist.c`, `t_stream.c` (7.0 to 8.2), and the project's research, part A2.
//!
//! Nothing is believed before it is there: lengths and counts of the file are never allocated, every loop over a count consumes
//! bytes of the file in each turn, sums of foreign numbers are checked.

mod canonical;
mod container;
mod input;
mod lzf;
mod stream;
#[cfg(test)]
mod tests;
mod text;
mod value;
mod walk;

pub use self::{
    canonical::{Class, Digest},
    walk::{KeyEnd, KeyHead, KeyParts, NEWEST, OLDEST, Visitor, Walked, walk},
};

/// A CRC64 in the making.
pub(super) type Crc64 = crc::Digest<'static, u64, crc::Table<16>>;

/// The CRC64 that ends files and `RESTORE` payloads, of nothing yet.
pub(super) fn crc64() -> Crc64 {
    input::CRC.digest()
}

/// Why a file is not what it should be. Offsets are in bytes from its start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RdbError {
    /// Reading failed, or the other end gave up.
    #[error("reading at byte {offset}: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes end before the file does.
    #[error("ends at byte {offset}, before its end mark")]
    Truncated {
        /// Where.
        offset: u64,
    },
    /// Not an RDB file.
    #[error("does not begin as an RDB file does")]
    NotRdb,
    /// Older than anything that is known.
    #[error("is of RDB version {version}; this program reads {OLDEST} to {NEWEST}")]
    TooOld {
        /// As a number.
        version: u32,
    },
    /// Made by a newer server than this program knows.
    #[error("is of RDB version {version}; this program reads {OLDEST} to {NEWEST}")]
    TooNew {
        /// As it is written: `13`, `VALKEY080`.
        version: String,
    },
    /// Bytes that cannot be.
    #[error("at byte {offset}: {what}")]
    Corrupt {
        /// Where, or a little behind.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The file's own checksum over all of it.
    #[error("its checksum (CRC64) does not hold: {found:016x} for {told:016x}")]
    Checksum {
        /// What its end says.
        told: u64,
        /// What its bytes give.
        found: u64,
    },
    /// The visitor ended the walk.
    #[error("{0}")]
    Stopped(String),
}
