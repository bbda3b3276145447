//! S2, the compression that archives travel in: frames like Snappy's, with larger blocks and more kinds of copies.
//!
//! The blocks are decoded and encoded by `minlz`; the frames are read here, since the crate's own reader takes an end
//! in the middle of a frame's header for a clean one. Facts: Snappy's `framing_format.txt`, klauspost/compress
//! `s2/README.md`.
//!
//! A clean end is one on a frame's boundary. Whether the archive is whole is said by the archive, not by its frames.

use std::io::{self, ErrorKind, Read};

/// The longest block that is decoded, in plain bytes: what the format allows. Servers write blocks of 1 MiB.
pub const MAX_BLOCK: usize = 4 * 1024 * 1024;
/// What a block of [`MAX_BLOCK`] can take when it is compressed: as it is, with a tag every 2^24 bytes and its length
/// before it.
const MAX_COMPRESSED: usize = MAX_BLOCK + 16;
/// Plain bytes of a block that is written.
const BLOCK: usize = 1024 * 1024;

/// The frames that begin a stream.
const S2: [u8; 10] = *b"\xff\x06\0\0S2sTwO";
const SNAPPY: [u8; 6] = *b"sNaPpY";

const COMPRESSED: u8 = 0x00;
const UNCOMPRESSED: u8 = 0x01;
const SKIPPABLE: u8 = 0x80;
const STREAM_IDENTIFIER: u8 = 0xff;

static CRC: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// CRC-32C of the plain bytes, "masked" as the framing format wants it.
fn checksum(plain: &[u8]) -> u32 {
    CRC.checksum(plain).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The plain bytes of an S2 or Snappy stream. Holds one frame and its plain block: 12 MiB at most, and less than 3 MiB
/// of what servers send. It blocks as its reader does.
///
/// # Errors Reading fails with [`ErrorKind::UnexpectedEof`] where the bytes end within a frame, or before the first;
/// with [`ErrorKind::InvalidData`] for everything else that is not as it should be; and as the reader below does. The
/// text names the byte of the compressed stream. After an error, every read is one.
pub fn decoder<R: Read>(from: R) -> impl Read {
    Decoder {
        from,
        offset: 0,
        begun: false,
        failed: false,
        frame: Vec::new(),
        plain: Vec::new(),
        uncompressed: false,
        at: 0,
        end: 0,
    }
}

struct Decoder<R> {
    from: R,
    /// Bytes read.
    offset: u64,
    /// Was there a stream identifier?
    begun: bool,
    failed: bool,
    /// The frame's content without its checksum.
    frame: Vec<u8>,
    /// The decoded block.
    plain: Vec<u8>,
    /// Are the plain bytes in `frame`, not in `plain`?
    uncompressed: bool,
    /// What was not given out yet: `at..end` of the plain bytes.
    at: usize,
    end: usize,
}

impl<R: Read> Decoder<R> {
    fn corrupt(&self, what: &str) -> io::Error {
        io::Error::new(ErrorKind::InvalidData, format!("S2 before byte {}: {what}", self.offset))
    }

    /// Fills `into`; less only at the end.
    fn fill(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut have = 0;
        while have < into.len() {
            match self.from.read(&mut into[have..]) {
                Ok(0) => break,
                Ok(n) => have += n.min(into.len() - have),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.offset += have as u64;
        Ok(have)
    }

    fn exact<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        match self.fill(&mut bytes)? {
            n if n == N => Ok(bytes),
            _ => Err(self.ended()),
        }
    }

    fn ended(&self) -> io::Error {
        io::Error::new(ErrorKind::UnexpectedEof, format!("S2 ends at byte {}, within a frame", self.offset))
    }

    /// The content of the frame. Its buffer grows as bytes come.
    fn content(&mut self, length: usize) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        let read = (&mut self.from).take(length as u64).read_to_end(&mut frame);
        self.frame = frame;
        read?;
        self.offset += self.frame.len() as u64;
        if self.frame.len() < length { Err(self.ended()) } else { Ok(()) }
    }

    /// Passes over a frame that means nothing.
    fn skip(&mut self, mut length: usize) -> io::Result<()> {
        let mut nothing = [0; 4096];
        while length > 0 {
            let some = length.min(nothing.len());
            if self.fill(&mut nothing[..some])? < some {
                return Err(self.ended());
            }
            length -= some;
        }
        Ok(())
    }

    /// Reads a frame; `false` at the clean end.
    fn frame(&mut self) -> io::Result<bool> {
        let mut header = [0; 4];
        match self.fill(&mut header)? {
            0 if self.begun => return Ok(false),
            4 => {}
            _ => return Err(self.ended()),
        }
        let [kind, length @ ..] = header;
        let length = length.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte));
        if !self.begun && kind != STREAM_IDENTIFIER {
            return Err(self.corrupt(&format!("it begins with `{}`, no stream identifier", header.escape_ascii())));
        }
        match kind {
            STREAM_IDENTIFIER if length == SNAPPY.len() => {
                let name = self.exact::<6>()?;
                if name != SNAPPY && name != S2[4..] {
                    return Err(self.corrupt(&format!("the stream identifier is `{}`", name.escape_ascii())));
                }
                self.begun = true;
            }
            COMPRESSED | UNCOMPRESSED => self.block(kind == UNCOMPRESSED, length)?,
            SKIPPABLE..STREAM_IDENTIFIER => self.skip(length)?,
            _ => return Err(self.corrupt(&format!("a frame of unknown kind {kind:#04x}"))),
        }
        Ok(true)
    }

    /// A frame of data.
    fn block(&mut self, uncompressed: bool, length: usize) -> io::Result<()> {
        let most = if uncompressed { MAX_BLOCK } else { MAX_COMPRESSED };
        let length = length.checked_sub(4).ok_or_else(|| self.corrupt("a frame without a checksum"))?;
        if length > most {
            return Err(self.corrupt(&format!("a frame of {length} bytes; {most} are the most")));
        }
        let told = u32::from_le_bytes(self.exact()?);
        self.content(length)?;
        self.uncompressed = uncompressed;
        (self.at, self.end) = (0, 0);
        let end = if uncompressed { length } else { self.decompress()? };
        let plain = if uncompressed { &self.frame[..end] } else { &self.plain[..end] };
        let found = checksum(plain);
        if found != told {
            return Err(self.corrupt(&format!("the checksum of a block does not hold: {found:08x} for {told:08x}")));
        }
        self.end = end;
        Ok(())
    }

    fn decompress(&mut self) -> io::Result<usize> {
        let (length, _) = minlz::decode_len(&self.frame).map_err(|_| self.corrupt("a block without its length"))?;
        if length > MAX_BLOCK {
            return Err(self.corrupt(&format!("a block of {length} plain bytes; {MAX_BLOCK} are the most")));
        }
        if self.plain.len() < length {
            self.plain.resize(length, 0);
        }
        match minlz::decode_into(&mut self.plain[..length], &self.frame) {
            Ok(n) if n == length => Ok(length),
            _ => Err(self.corrupt("a block that cannot be decoded")),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if self.failed {
            return Err(self.corrupt("read on after an error"));
        }
        while self.at == self.end {
            match self.frame() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    self.failed = true;
                    return Err(error);
                }
            }
        }
        let plain = if self.uncompressed { &self.frame } else { &self.plain };
        let n = into.len().min(self.end - self.at);
        into[..n].copy_from_slice(&plain[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Makes an S2 stream of plain bytes, piece by piece, as every nats-server reads it.
#[derive(Default)]
pub struct Encoder {
    begun: bool,
    encoder: minlz::Encoder,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("begun", &self.begun).finish_non_exhaustive()
    }
}

impl Encoder {
    /// Of a stream that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whole frames of `plain`, in blocks of 1 MiB at most; the first call's begin with the stream identifier. What all
    /// calls gave, one after the other, is the stream; it needs no end.
    pub fn encode(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut stream = Vec::with_capacity(plain.len() / 2 + S2.len());
        if !std::mem::replace(&mut self.begun, true) {
            stream.extend_from_slice(&S2);
        }
        for block in plain.chunks(BLOCK) {
            let compressed = self.encoder.encode(block);
            // Worth it when a little is saved; the reader decodes nothing then.
            let (kind, content) = if compressed.len() < block.len() - block.len() / 32 {
                (COMPRESSED, &compressed[..])
            } else {
                (UNCOMPRESSED, block)
            };
            // Below 2^24: a block is 2^20 bytes, and what is longer when compressed is not.
            let [length @ .., _] = ((content.len() + 4) as u32).to_le_bytes();
            stream.push(kind);
            stream.extend_from_slice(&length);
            stream.extend_from_slice(&checksum(block).to_le_bytes());
            stream.extend_from_slice(content);
        }
        stream
    }
}
