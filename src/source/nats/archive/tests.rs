//! Against archives of real servers, against an encoder, and against hostile bytes.
//!
//! The archives, and what a client read from their servers, are made by `tests/fixtures/nats/archives/make`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod built;
mod compression;
mod content;
mod hostile;
mod lies;

use std::{fs, io::Read, path::PathBuf};

use super::*;

/// A message that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    seq: u64,
    time: i64,
    subject: Vec<u8>,
    headers: Vec<u8>,
    payload: Vec<u8>,
}

/// A consumer that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeptConsumer {
    name: String,
    config: String,
    state: Option<ConsumerState>,
}

/// Keeps all that it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Keep {
    messages: Vec<Kept>,
    deleted: Vec<u64>,
    states: Vec<ArchivedState>,
    configs: Vec<Vec<u8>>,
    consumers: Vec<KeptConsumer>,
}

impl Visitor for Keep {
    fn message(&mut self, message: &Message<'_>) -> Result<(), String> {
        let Message { seq, time, subject, headers, payload } = *message;
        let [subject, headers, payload] = [subject, headers, payload].map(<[u8]>::to_vec);
        self.messages.push(Kept { seq, time, subject, headers, payload });
        Ok(())
    }
    fn deleted(&mut self, seq: u64) -> Result<(), String> {
        self.deleted.push(seq);
        Ok(())
    }
    fn state(&mut self, state: &ArchivedState, json: &[u8]) -> Result<(), String> {
        assert_eq!(serde_json::from_slice::<ArchivedState>(json).unwrap(), *state);
        self.states.push(*state);
        Ok(())
    }
    fn config(&mut self, json: &[u8]) -> Result<(), String> {
        self.configs.push(json.to_vec());
        Ok(())
    }
    fn consumer(&mut self, consumer: &ArchivedConsumer) -> Result<(), String> {
        let ArchivedConsumer { name, config, state } = consumer.clone();
        self.consumers.push(KeptConsumer { name, config: config.get().into(), state });
        Ok(())
    }
}

/// A reader that gives what `lens` say, in turn.
struct Pieces<'a, F> {
    bytes: &'a [u8],
    lens: F,
}

impl<F: FnMut() -> usize> Read for Pieces<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        assert!(!into.is_empty(), "asked for nothing");
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

/// An archive that a server sent.
struct Fixture {
    /// `2.9-holes`
    name: String,
    /// The stream that it is of.
    stream: String,
    /// As it was sent.
    sent: Vec<u8>,
    plain: Vec<u8>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nats/archives")
}

fn plain(sent: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    decoder(sent).read_to_end(&mut plain)?;
    Ok(plain)
}

fn fixtures() -> Vec<Fixture> {
    let mut all: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap().strip_suffix(".s2")?.to_owned();
            let sent = fs::read(entry.path()).unwrap();
            let stream = name.rsplit_once('-').unwrap().1.to_owned();
            Some(Fixture { plain: plain(&sent).unwrap(), name, stream, sent })
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(all.len() > 30);
    all
}

/// Those that are small enough to be tried in many ways.
fn small() -> Vec<Fixture> {
    let mut all = fixtures();
    all.retain(|fixture| fixture.plain.len() < 30_000);
    let records = all.iter().filter(|fixture| fixture.plain.starts_with(&MAGIC)).count();
    assert!(records > 8 && all.len() - records > 8, "{records} of {}", all.len());
    all
}

fn fixture(name: &str) -> Fixture {
    fixtures().into_iter().find(|fixture| fixture.name == name).unwrap()
}

fn read(plain: &[u8], stream: &str) -> Result<Walked<Keep>, ArchiveError> {
    walk(plain, stream, Keep::default())
}

/// What is in a tar, as far as it is one: where a header begins, the name, and the content.
fn entries(plain: &[u8]) -> Vec<(usize, String, std::ops::Range<usize>)> {
    let mut entries = Vec::new();
    let mut at = 0;
    while let Some(header) = plain.get(at..at + tar::BLOCK).filter(|header| header.iter().any(|byte| *byte != 0)) {
        let text = |field: &[u8]| String::from_utf8_lossy(field).trim_matches(['\0', ' ']).to_owned();
        let size = usize::from_str_radix(&text(&header[124..136]), 8).unwrap_or(0);
        let end = (at + tar::BLOCK).saturating_add(size).min(plain.len());
        entries.push((at, text(&header[..100]), at + tar::BLOCK..end));
        at = (at + tar::BLOCK).saturating_add(size.next_multiple_of(tar::BLOCK));
    }
    entries
}

/// Makes every checksum of a tar of format 1 hold that can: of headers, of records and of `meta.inf`.
fn reseal(plain: &mut [u8], stream: &str) {
    if plain.starts_with(&MAGIC) {
        return;
    }
    let mut last_meta = Vec::new();
    for (at, name, content) in entries(plain) {
        let header = &mut plain[at..at + tar::BLOCK];
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        if let Some(number) = name.strip_prefix("msgs/").and_then(|name| name.strip_suffix(".blk")) {
            reseal_block(&mut plain[content], &format!("{stream}-{number}"));
        } else if name.ends_with("meta.inf") {
            last_meta = plain[content].to_vec();
        } else if name.ends_with("meta.sum") && content.len() == 16 {
            let consumer = name.strip_prefix("obs/").and_then(|name| name.strip_suffix("/meta.sum"));
            let key = consumer.map_or(stream.to_owned(), |consumer| format!("{stream}/{consumer}"));
            plain[content].copy_from_slice(built::sum(&key, &last_meta).as_bytes());
        }
    }
}

fn reseal_block(block: &mut [u8], key: &str) {
    let mut at = 0;
    while let Some(head) = block.get(at..at + 22) {
        let told = u32::from_le_bytes(head[..4].try_into().unwrap());
        let subject = usize::from(u16::from_le_bytes(head[20..22].try_into().unwrap()));
        let (length, headers) = ((told & 0x7fff_ffff) as usize, told >> 31 == 1);
        let behind = 22 + subject + if headers { 4 } else { 0 };
        if length < behind + 8 || at + length > block.len() {
            return;
        }
        let record = &mut block[at..at + length];
        let hash = built::hash(key, &[&record[4..20], &record[22..22 + subject], &record[behind..length - 8]]);
        record[length - 8..].copy_from_slice(&hash);
        at += length;
    }
}
