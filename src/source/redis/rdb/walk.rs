//! The file from its first byte to its checksum: opcodes, keys and what stands before them.

use std::io::Read;

use super::{Class, Digest, RdbError};

/// The oldest version that is read: Redis 5.0's.
pub const OLDEST: u32 = 9;
/// The newest version that is read: Redis 7.4's to 8.2's.
pub const NEWEST: u32 = 12;

/// What is known of a key before its value is read.
#[derive(Debug)]
pub struct KeyHead<'a> {
    /// Its database.
    pub db: u64,
    /// Its name.
    pub key: &'a [u8],
    /// When it expires, in milliseconds since 1970; absent: never.
    pub expiry: Option<u64>,
    /// The type byte of the file, which is the first byte of a `RESTORE` payload.
    pub kind: u8,
    /// Where its value begins, in bytes from the file's start: the byte after the key's name.
    pub offset: u64,
}

/// What is known of a key after its value is read.
#[derive(Debug)]
pub struct KeyEnd<'a> {
    /// What the value is, whatever its encoding.
    pub class: Class,
    /// The hash of database, name, expiry, class and canonical content under the seed of the walk. Of a module's value: without
    /// its content.
    pub digest: Digest,
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
pub fn walk<R: Read, V: Visitor>(from: R, seed: u64, visitor: V) -> Result<Walked<V>, RdbError> {
    todo!()
}
