//! What a server sends as the snapshot of a stream: read as it passes, and proved to be whole.
//!
//! The way of the bytes: [`decoder`] undoes the compression (S2), [`walk`] reads the plain archive and tells a
//! [`Visitor`] of every message and consumer. Two formats exist, and an archive's first bytes tell which it is of:
//!
//! - [`Format::Blocks`], from 2.9 to 2.14: a tar of the stream's files. `msgs/N.blk` holds records of messages, also of
//!   deleted ones: which of them live is in files of other formats (`N.idx`, `index.db`) that were written at another
//!   moment, and is not looked at.
//! - [`Format::Records`], since 2.15: `NATSARC1`, then `state.json`, `consumers/NAME`, the messages, and an end mark.
//!
//! Whole means: the end mark, or the two zero blocks of a tar, are there, and nothing follows; no `errors.txt`; and
//! whatever the server that restores it would stop at is as it should be (counts, order of sequences, checksums). The
//! walk holds one record or small file at a time: [`MAX_MESSAGE`] and half as much again while its buffer grows. No
//! length is believed before its bytes are there.
//!
//! Facts of the formats: nats-server's `server/filestore.go` (2.9.10 to 2.15.1), `server/stream_backup.go` and
//! `server/archive/archive.go` (2.15.1), and the project's research, part B.

mod blocks;
mod consumer;
mod input;
mod records;
mod s2;
mod tar;
#[cfg(test)]
mod tests;

use std::io::Read;

use serde::{Deserialize, Serialize};

use self::input::Input;
pub use self::{
    consumer::{ArchivedConsumer, ConsumerState, Delivered},
    s2::{Encoder, MAX_BLOCK, decoder},
};

/// The longest message that is taken, headers and payload together, in bytes: the most that a server's `max_payload`
/// can be.
pub const MAX_MESSAGE: u64 = 64 * 1024 * 1024;
/// The longest subject, in bytes: what fits into the length field of a block's record.
const MAX_SUBJECT: u64 = u16::MAX as u64;
/// The longest of the small files (configurations, states), in bytes. What a consumer has pending takes 60 bytes a
/// message.
const MAX_FILE: u64 = 64 * 1024 * 1024;
/// The longest configuration, in bytes of JSON.
const MAX_CONFIG: usize = 1024 * 1024;
/// How a format 2 archive begins.
const MAGIC: [u8; 8] = *b"NATSARC1";
/// How a format 1 archive begins: the name of its first file, or that of the pax records before it.
const BEGINS: [&[u8]; 2] = [b"PaxHeaders.0/meta.inf", b"meta.inf"];

/// How an archive is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// A tar of files, "format 1": up to 2.14.
    #[serde(rename = "1")]
    Blocks,
    /// Records, "format 2": from 2.15 on. Older servers cannot restore it.
    #[serde(rename = "2")]
    Records,
}

/// A message, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its sequence in the stream, from 1 on.
    pub seq: u64,
    /// When it was stored, in nanoseconds since 1970.
    pub time: i64,
    /// Its subject; not always UTF-8.
    pub subject: &'a [u8],
    /// Its headers as they were sent, from `NATS/1.0` to the empty line; empty where it has none.
    pub headers: &'a [u8],
    /// What it holds.
    pub payload: &'a [u8],
}

/// What `state.json` of a format 2 archive says, which is what the server knew when the snapshot began. Messages that
/// were deleted meanwhile are not in the archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedState {
    /// Messages.
    pub messages: u64,
    /// The sequence of the first message; one above `last_seq` where there is none, and 0 where there never was one.
    pub first_seq: u64,
    /// The sequence of the last message that ever was.
    pub last_seq: u64,
    /// Consumers in the archive.
    pub consumer_count: u64,
}

/// Takes what a walk finds. An `Err` ends the walk with [`ArchiveError::Stopped`].
pub trait Visitor {
    /// A message. In format 2 sequences ascend. In format 1 it may have been deleted before the snapshot was taken, and
    /// sequences ascend as far as the server wrote them so.
    fn message(&mut self, _message: &Message<'_>) -> Result<(), String> {
        Ok(())
    }
    /// Format 1: there is a mark that the message of this sequence was deleted: its own record erased, a place that was
    /// left for it, or a tombstone. Its record may be there all the same, before or after; and messages without a mark
    /// may have been deleted.
    fn deleted(&mut self, _seq: u64) -> Result<(), String> {
        Ok(())
    }
    /// Format 2: the state that the server announced in the archive. `json` is all of it.
    fn state(&mut self, _state: &ArchivedState, _json: &[u8]) -> Result<(), String> {
        Ok(())
    }
    /// Format 1: the stream's configuration in JSON (`meta.inf`), its checksum compared.
    fn config(&mut self, _json: &[u8]) -> Result<(), String> {
        Ok(())
    }
    /// A consumer.
    fn consumer(&mut self, _consumer: &ArchivedConsumer) -> Result<(), String> {
        Ok(())
    }
}

/// An archive that was read to its end and is whole.
#[derive(Debug)]
pub struct Walked<V> {
    /// How it is written.
    pub format: Format,
    /// Plain bytes.
    pub length: u64,
    /// Format 1: files whose meaning is not known, at most [`MOST_UNKNOWN`] of them, control characters escaped. They
    /// are no less part of the archive.
    pub unknown: Vec<String>,
    /// The visitor.
    pub visitor: V,
}

/// How many names [`Walked::unknown`] holds.
pub const MOST_UNKNOWN: usize = 16;

/// Why an archive is not what it should be. Offsets are in plain bytes from its start. Names of entries have their
/// control characters escaped and are cut short.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// Reading failed; also where the compression is broken.
    #[error("reading {place} at byte {offset}: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// The entry.
        place: String,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes end before the archive does.
    #[error("ends at byte {offset}, in {place}, before the archive does")]
    Truncated {
        /// Where.
        offset: u64,
        /// The entry.
        place: String,
    },
    /// Neither of the formats.
    #[error("begins with `{begins}`, as no archive of a stream does")]
    Unknown {
        /// Its first bytes, escaped.
        begins: String,
    },
    /// Bytes that cannot be.
    #[error("at byte {offset}, in {place}: {what}")]
    Corrupt {
        /// Where, or a little behind.
        offset: u64,
        /// The entry.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// The server put an `errors.txt` into the archive: it could not read its own files.
    #[error("the server says that the archive is not whole: {text}")]
    Reported {
        /// What it says.
        text: String,
    },
    /// The visitor ended the walk.
    #[error("{0}")]
    Stopped(String),
}

/// A name from an archive, as text that can be shown: at most some 80 characters.
fn place(name: &[u8]) -> String {
    if name.is_empty() {
        return "the archive".into();
    }
    let cut = &name[..name.len().min(80)];
    let more = if cut.len() < name.len() { "…" } else { "" };
    format!("`{}{more}`", String::from_utf8_lossy(cut).escape_debug())
}

/// Reads the plain archive of the stream called `stream` from `from` to its end. It blocks as `from` does.
///
/// # Errors
/// As [`ArchiveError`] says. The walk is over then, and what the visitor was told is not to be used.
pub fn walk<V: Visitor>(from: impl Read, stream: &str, mut visitor: V) -> Result<Walked<V>, ArchiveError> {
    let mut input = Input::new(from);
    let begins = input.peek(MAGIC.len())?;
    let (format, unknown) = if begins == MAGIC {
        records::walk(&mut input, &mut visitor)?;
        (Format::Records, Vec::new())
    } else if tar::begins(&mut input)? {
        (Format::Blocks, blocks::walk(&mut input, stream, &mut visitor)?)
    } else {
        return Err(no_archive(&mut input)?);
    };
    Ok(Walked { format, length: input.offset(), unknown, visitor })
}

/// Why this is no archive: it is none, or its beginning is not all there.
fn no_archive(input: &mut Input<impl Read>) -> Result<ArchiveError, ArchiveError> {
    let begins = input.peek(tar::BLOCK)?;
    let offset = begins.len() as u64;
    let could_be = |whole: &[u8]| begins.starts_with(whole) || whole.starts_with(begins);
    if begins.len() < MAGIC.len() && could_be(&MAGIC)
        || begins.len() < tar::BLOCK && BEGINS.iter().any(|name| could_be(name))
    {
        return Ok(ArchiveError::Truncated { offset, place: place(b"") });
    }
    Ok(ArchiveError::Unknown { begins: begins[..begins.len().min(16)].escape_ascii().to_string() })
}
