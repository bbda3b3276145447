//! Against files of real servers, against another parser, against hostile bytes and against values of any size.
//!
//! The files and what a client read from their servers are made by `tests/fixtures/redis/rdb/make`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod against_crate;
mod content;
mod fixtures;
mod hostile;
mod huge;

use std::{collections::BTreeMap, fs, io::Read, path::PathBuf};

use super::{Class, Digest, KeyEnd, KeyHead, RdbError, Visitor, Walked, walk};

const SEED: u64 = 0x5eed;

/// A key as the walker tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    kind: u8,
    expiry: Option<u64>,
    class: Option<Class>,
    digest: Digest,
    module: Option<String>,
    raw: Vec<u8>,
    offset: u64,
}

/// Keeps all that it is told, and minds the order in which it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Keep {
    aux: Vec<(Vec<u8>, Vec<u8>)>,
    functions: BTreeMap<Vec<u8>, Digest>,
    modules: Vec<String>,
    keys: BTreeMap<(u64, Vec<u8>), Seen>,
    open: Option<((u64, Vec<u8>), Seen)>,
    /// Of the walk, where it is another than [`SEED`].
    seed: Option<u64>,
}

impl Visitor for Keep {
    fn aux(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        self.aux.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
    fn function(&mut self, source: &[u8], digest: Digest) -> Result<(), String> {
        self.functions.insert(source.to_vec(), digest);
        Ok(())
    }
    fn module_aux(&mut self, module: &str) -> Result<(), String> {
        self.modules.push(module.into());
        Ok(())
    }
    fn key(&mut self, head: &KeyHead<'_>) -> Result<(), String> {
        assert!(self.open.is_none(), "a key within a key");
        let seen = Seen { kind: head.kind, expiry: head.expiry, offset: head.offset, ..Seen::default() };
        self.open = Some(((head.db, head.key.to_vec()), seen));
        Ok(())
    }
    fn value(&mut self, bytes: &[u8]) -> Result<(), String> {
        assert!(!bytes.is_empty());
        self.open.as_mut().expect("a value belongs to a key").1.raw.extend_from_slice(bytes);
        Ok(())
    }
    fn end(&mut self, end: &KeyEnd<'_>) -> Result<(), String> {
        let (name, mut seen) = self.open.take().expect("an end belongs to a key");
        assert_eq!(seen.raw.len() as u64, end.length);
        assert_eq!((end.key, end.parts.db, end.parts.expiry), (&name.1[..], name.0, seen.expiry));
        assert_eq!(end.parts.digest(self.seed.unwrap_or(SEED)), end.digest);
        seen.class = Some(end.parts.class);
        seen.digest = end.digest;
        seen.module = end.module.map(Into::into);
        self.keys.insert(name, seen);
        Ok(())
    }
}

/// A reader that gives what `lens` say, in turn, and panics when it is asked for more than there is.
struct Pieces<'a, F> {
    bytes: &'a [u8],
    lens: F,
    /// What it does at the end of its bytes: a file ends, a socket has no more to give.
    socket: bool,
}

impl<F: FnMut() -> usize> Read for Pieces<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        assert!(!(self.socket && self.bytes.is_empty()), "asked for more than the file");
        let n = (self.lens)().max(1).min(into.len()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(n);
        into[..n].copy_from_slice(now);
        self.bytes = later;
        Ok(n)
    }
}

/// xorshift: chance that is the same every time.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/redis").join(name)
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(folder("rdb").join(name)).unwrap()
}

/// All files of a folder that servers wrote, by name.
fn files(folder_name: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder(folder_name))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".rdb"))
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn read(bytes: &[u8]) -> Result<Walked<Keep>, RdbError> {
    walk(bytes, SEED, Keep::default())
}

/// The checksum of a file as it should be.
fn crc(bytes: &[u8]) -> u64 {
    crc::Crc::<u64>::new(&crc::CRC_64_REDIS).checksum(bytes)
}

/// A file of `version` with this between header and end mark.
fn file(version: u32, body: &[u8]) -> Vec<u8> {
    let mut file = format!("REDIS{version:04}").into_bytes();
    file.extend_from_slice(body);
    file.push(255);
    file.extend_from_slice(&crc(&file).to_le_bytes());
    file
}
