//! Format 1: the files of a stream as a file store keeps them.
//!
//! `meta.inf`, `meta.sum`, `msgs/N.blk` (with `N.idx`, `N.fss` up to 2.9; `index.db` from 2.10 on),
//! `obs/NAME/meta.inf`, `meta.sum`, `o.dat`. Blocks arrive plain: a server decrypts and, from 2.10 on, decompresses
//! them before it sends them.
//!
//! A block is records one after the other: u32 length of the record (bit 31: there are headers), u64 sequence (bit 63:
//! erased, or a place left for a deleted one; bit 62, from 2.10 on: a tombstone for a message in another block), i64
//! time in ns, u16 length of the subject, subject, with headers u32 their length and they, payload, and HighwayHash-64
//! of sequence to payload without any lengths of subject and headers, under the SHA-256 of `STREAM-N`. All
//! little-endian. The `.sum` files are the same hash of their `meta.inf` in hex, under the SHA-256 of `STREAM` or
//! `STREAM/CONSUMER`.

use std::io::Read;

use highway::{HighwayHash, HighwayHasher, Key};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    ArchiveError, ConsumerState, MAX_CONFIG, MAX_FILE, MAX_MESSAGE, MAX_SUBJECT, MOST_UNKNOWN, Message, Visitor,
    consumer,
    input::Input,
    place,
    tar::{self, Entry},
};

/// Bytes of a record before its subject, and of the hash behind it.
const HEAD: usize = 22;
const HASH: usize = 8;
/// A record of nothing, and the longest that is taken.
const MIN_RECORD: u64 = (HEAD + HASH) as u64;
const MAX_RECORD: u64 = MIN_RECORD + MAX_SUBJECT + 4 + MAX_MESSAGE;
/// The longest `errors.txt` that is repeated.
const MAX_ERRORS: usize = 1000;
/// Of a record's length: it has headers.
const HEADERS: u32 = 1 << 31;
/// Of a record's sequence.
const ERASED: u64 = 1 << 63;
const TOMBSTONE: u64 = 1 << 62;

/// The hash of a file that `name` is the key to.
fn hasher(name: &str) -> HighwayHasher {
    let key: [u8; 32] = Sha256::digest(name).into();
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(key.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    HighwayHasher::new(Key(words))
}

/// What a file of this name is.
enum File {
    Config,
    Sum,
    Errors,
    Block(u32),
    /// Of a stream's messages, and not needed: the server makes it again.
    Index,
    /// Of the consumer of this name.
    Consumer(Vec<u8>, OfConsumer),
    Unknown,
}

enum OfConsumer {
    Config,
    Sum,
    State,
}

impl File {
    fn of(name: &[u8]) -> Self {
        // A server on Windows writes `\` into the paths of consumers.
        let parts: Vec<&[u8]> = name.split(|byte| matches!(byte, b'/' | b'\\')).collect();
        match parts[..] {
            [b"meta.inf"] => Self::Config,
            [b"meta.sum"] => Self::Sum,
            [b"errors.txt"] => Self::Errors,
            [b"msgs", b"index.db"] => Self::Index,
            [b"msgs", file] => Self::of_messages(file),
            [b"obs", consumer, b"meta.inf"] => Self::Consumer(consumer.to_vec(), OfConsumer::Config),
            [b"obs", consumer, b"meta.sum"] => Self::Consumer(consumer.to_vec(), OfConsumer::Sum),
            [b"obs", consumer, b"o.dat"] => Self::Consumer(consumer.to_vec(), OfConsumer::State),
            _ => Self::Unknown,
        }
    }

    /// `N.blk`, `N.idx`, `N.fss`.
    fn of_messages(file: &[u8]) -> Self {
        let Some((number, kind)) = std::str::from_utf8(file).ok().and_then(|file| file.split_once('.')) else {
            return Self::Unknown;
        };
        // As it is written, so that no two names are one number.
        let number = number.parse().ok().filter(|parsed: &u32| parsed.to_string() == number);
        match (number, kind) {
            (Some(number), "blk") => Self::Block(number),
            (Some(_), "idx" | "fss") => Self::Index,
            _ => Self::Unknown,
        }
    }
}

/// `meta.inf` and what goes with it, as far as it was there.
#[derive(Default)]
struct Meta {
    config: Option<Vec<u8>>,
    summed: bool,
}

/// A consumer whose files are being read.
struct Consumer {
    name: Vec<u8>,
    meta: Meta,
    state: Option<ConsumerState>,
}

struct Walk<'a, R, V> {
    input: &'a mut Input<R>,
    visitor: &'a mut V,
    stream: &'a str,
    meta: Meta,
    consumer: Option<Consumer>,
    last_block: Option<u32>,
    unknown: Vec<String>,
}

/// Walks through the tar, and says which files it does not know.
pub(super) fn walk<R: Read>(
    input: &mut Input<R>,
    stream: &str,
    visitor: &mut impl Visitor,
) -> Result<Vec<String>, ArchiveError> {
    let (meta, unknown) = (Meta::default(), Vec::new());
    let mut walk = Walk { input, visitor, stream, meta, consumer: None, last_block: None, unknown };
    while let Some(entry) = tar::next(walk.input)? {
        walk.input.enter(&entry.name);
        walk.file(&entry)?;
        tar::pad(walk.input, entry.size)?;
    }
    walk.end_of_consumer()?;
    if !walk.meta.summed {
        walk.input.enter(b"");
        return Err(walk.input.corrupt("there is no meta.inf with a meta.sum"));
    }
    Ok(walk.unknown)
}

impl<R: Read, V: Visitor> Walk<'_, R, V> {
    fn file(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        match File::of(&entry.name) {
            File::Config => {
                let config = self.content(entry, MAX_CONFIG)?.to_vec();
                self.config(config)
            }
            File::Sum => {
                let told = self.content(entry, MAX_CONFIG)?.to_vec();
                let config = self.meta.check(self.stream, &told).map_err(|what| self.input.corrupt(what))?;
                self.visitor.config(config).map_err(ArchiveError::Stopped)
            }
            File::Errors => {
                let length = usize::try_from(entry.size).unwrap_or(MAX_ERRORS).min(MAX_ERRORS);
                let text = String::from_utf8_lossy(self.input.take(length)?).escape_debug().to_string();
                Err(ArchiveError::Reported { text })
            }
            File::Block(number) => self.block(number, entry.size),
            File::Consumer(name, what) => self.of_consumer(name, &what, entry),
            File::Index => self.input.skip(entry.size),
            File::Unknown => {
                if self.unknown.len() < MOST_UNKNOWN {
                    self.unknown.push(place(&entry.name));
                }
                self.input.skip(entry.size)
            }
        }
    }

    /// A small file.
    fn content(&mut self, entry: &Entry, most: usize) -> Result<&[u8], ArchiveError> {
        match usize::try_from(entry.size) {
            Ok(size) if size <= most => self.input.take(size),
            _ => Err(self.input.corrupt(format!("it is of {} bytes; {most} are the most", entry.size))),
        }
    }

    fn config(&mut self, config: Vec<u8>) -> Result<(), ArchiveError> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        match serde_json::from_slice(&config) {
            Ok(Named { name }) if name == self.stream => {}
            Ok(Named { name }) => {
                let stream = place(self.stream.as_bytes());
                let what = format!("this is an archive of {}, not of {stream}", place(name.as_bytes()));
                return Err(self.input.corrupt(what));
            }
            Err(error) => return Err(self.input.corrupt(format!("no configuration: {error}"))),
        }
        self.meta.set(config).map_err(|what| self.input.corrupt(what))
    }

    fn of_consumer(&mut self, name: Vec<u8>, what: &OfConsumer, entry: &Entry) -> Result<(), ArchiveError> {
        if self.consumer.as_ref().is_some_and(|consumer| consumer.name != name) {
            self.end_of_consumer()?;
            self.input.enter(&entry.name);
        }
        let mut consumer = self.consumer.take().unwrap_or(Consumer { name, meta: Meta::default(), state: None });
        let done = match what {
            OfConsumer::Config => {
                let config = self.content(entry, MAX_CONFIG)?.to_vec();
                consumer.meta.set(config)
            }
            OfConsumer::Sum => {
                let told = self.content(entry, MAX_CONFIG)?.to_vec();
                let key = format!("{}/{}", self.stream, String::from_utf8_lossy(&consumer.name));
                consumer.meta.check(&key, &told).map(drop)
            }
            OfConsumer::State => {
                let read = consumer::state(self.content(entry, MAX_FILE as usize)?);
                match (read, consumer.state) {
                    (Ok(state), None) => {
                        consumer.state = Some(state);
                        Ok(())
                    }
                    (Ok(_), Some(_)) => Err("it is there twice".into()),
                    (Err(what), _) => Err(what),
                }
            }
        };
        done.map_err(|what| self.input.corrupt(what))?;
        self.consumer = Some(consumer);
        Ok(())
    }

    /// The next file belongs to none, or to another.
    fn end_of_consumer(&mut self) -> Result<(), ArchiveError> {
        let Some(Consumer { name, meta, state }) = self.consumer.take() else { return Ok(()) };
        self.input.enter(&[b"obs/", &name[..]].concat());
        let made = match meta {
            Meta { config: Some(config), summed: true } => consumer::from_files(&name, &config, state),
            _ => Err("a consumer without a meta.inf with a meta.sum".into()),
        };
        match made {
            Ok(consumer) => self.visitor.consumer(&consumer).map_err(ArchiveError::Stopped),
            Err(what) => Err(self.input.corrupt(what)),
        }
    }

    /// A block of `size` bytes.
    fn block(&mut self, number: u32, size: u64) -> Result<(), ArchiveError> {
        if let Some(last) = self.last_block.replace(number).filter(|last| *last >= number) {
            return Err(self.input.corrupt(format!("it follows block {last}")));
        }
        let hasher = hasher(&format!("{}-{number}", self.stream));
        let mut left = size;
        while left > 0 {
            left -= self.record(left, left == size, &hasher)?;
        }
        Ok(())
    }

    /// One record of a block that has `left` bytes; returns its length.
    fn record(&mut self, left: u64, first: bool, hasher: &HighwayHasher) -> Result<u64, ArchiveError> {
        let offset = self.input.offset();
        let ahead = self.input.ahead(usize::try_from(left).unwrap_or(4).min(4))?;
        let compressed = first && ahead.starts_with(b"cmp");
        let told = ahead.first_chunk().map_or(0, |length| u64::from(u32::from_le_bytes(*length) & !HEADERS));
        let length = match told {
            MIN_RECORD..=MAX_RECORD if told <= left => told,
            _ if compressed => {
                return Err(self.input.corrupt("the block is compressed, as servers do not send it"));
            }
            _ => {
                let what = format!("a record of {} bytes in a block that has {left} more", told);
                return Err(self.input.corrupt(what));
            }
        };
        // At most MAX_RECORD.
        let record = self.input.take(length as usize)?;
        let seq = |record: &Record<'_>| record.seq & !(ERASED | TOMBSTONE);
        let checked = match Record::parse(record) {
            Some(record) if record.hash_holds(hasher.clone()) => Ok(record),
            Some(record) => Err(format!("the checksum of the record with sequence {} does not hold", seq(&record))),
            None => Err("a record whose lengths cannot be".into()),
        };
        let record = match checked {
            Ok(record) => record,
            Err(what) => return Err(self.input.corrupt_at(offset, what)),
        };
        record.tell(self.visitor).map_err(ArchiveError::Stopped)?;
        Ok(length)
    }
}

/// A record of a block.
struct Record<'a> {
    /// Sequence with its marks, and time: what the hash begins with.
    head: &'a [u8],
    seq: u64,
    time: i64,
    subject: &'a [u8],
    headers: &'a [u8],
    payload: &'a [u8],
    hash: u64,
}

impl<'a> Record<'a> {
    /// `None` where its lengths cannot be.
    fn parse(record: &'a [u8]) -> Option<Self> {
        let (length, rest) = record.split_first_chunk()?;
        let (rest, hash) = rest.split_last_chunk()?;
        let head = rest.get(..16)?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (time, rest) = rest.split_first_chunk()?;
        let (subject, rest) = rest.split_first_chunk()?;
        let (subject, rest) = rest.split_at_checked(u16::from_le_bytes(*subject).into())?;
        let (headers, payload) = if u32::from_le_bytes(*length) & HEADERS == 0 {
            (&[][..], rest)
        } else {
            let (headers, rest) = rest.split_first_chunk()?;
            rest.split_at_checked(usize::try_from(u32::from_le_bytes(*headers)).ok()?)?
        };
        let (seq, time, hash) = (u64::from_le_bytes(*seq), i64::from_le_bytes(*time), u64::from_le_bytes(*hash));
        Some(Self { head, seq, time, subject, headers, payload, hash })
    }

    fn hash_holds(&self, mut hasher: HighwayHasher) -> bool {
        for part in [self.head, self.subject, self.headers, self.payload] {
            hasher.append(part);
        }
        hasher.finalize64() == self.hash
    }

    fn tell(&self, visitor: &mut impl Visitor) -> Result<(), String> {
        let Self { seq, time, subject, headers, payload, .. } = *self;
        match seq & !(ERASED | TOMBSTONE) {
            // An old server's erased record, which no longer says what it was.
            0 => Ok(()),
            deleted if deleted != seq => visitor.deleted(deleted),
            seq => visitor.message(&Message { seq, time, subject, headers, payload }),
        }
    }
}

impl Meta {
    fn set(&mut self, config: Vec<u8>) -> Result<(), String> {
        if self.config.replace(config).is_some() { Err("it is there twice".into()) } else { Ok(()) }
    }

    /// Compares the checksum, in hex, and gives the configuration that it belongs to.
    fn check(&mut self, key: &str, told: &[u8]) -> Result<&[u8], String> {
        let Some(config) = &self.config else { return Err("its meta.inf is not before it".into()) };
        if std::mem::replace(&mut self.summed, true) {
            return Err("it is there twice".into());
        }
        let found: String = hasher(key).hash64(config).to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        if found.as_bytes() == told { Ok(config) } else { Err("it does not hold for the meta.inf before it".into()) }
    }
}
