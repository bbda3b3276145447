//! Bytes that no server wrote: cut off, and changed at random with and without right checksums.

use super::*;
use crate::source::nats::tally::Tally;

/// Where to cut: everywhere in small archives; in larger ones near both ends, at blocks of the tar, and here and there
/// between.
fn cuts(length: usize, chance: &mut Chance) -> Vec<usize> {
    let near = if length < 9000 { length } else { 600 };
    let mut cuts: Vec<usize> = (0..length).filter(|at| *at < near || length - at <= near).collect();
    if near < length {
        cuts.extend((0..50).map(|_| chance.below(length)));
        cuts.extend((0..length).step_by(length / 50 / tar::BLOCK * tar::BLOCK + tar::BLOCK));
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

#[test]
fn an_archive_that_is_cut_off_is_never_taken_for_whole() {
    let mut chance = Chance(11);
    for Fixture { name, stream, plain, .. } in fixtures() {
        for cut in cuts(plain.len(), &mut chance) {
            match walk(&plain[..cut], &stream, Tally::new(1)) {
                Err(ArchiveError::Truncated { offset, .. }) => assert_eq!(offset, cut as u64, "{name} at {cut}"),
                Err(error) => panic!("{name} cut at {cut}: {error}"),
                Ok(_) => panic!("{name} cut at {cut} is taken for whole"),
            }
        }
    }
}

#[test]
fn a_transfer_that_is_cut_off_is_never_taken_for_whole() {
    let mut chance = Chance(12);
    for Fixture { name, stream, sent, .. } in fixtures() {
        for cut in cuts(sent.len(), &mut chance) {
            match walk(decoder(&sent[..cut]), &stream, Tally::new(1)) {
                Err(ArchiveError::Truncated { .. }) => {}
                Err(ArchiveError::Read { source, .. }) => {
                    assert_eq!(source.kind(), std::io::ErrorKind::UnexpectedEof, "{name} cut at {cut}: {source}");
                }
                Err(error) => panic!("{name} cut at {cut}: {error}"),
                Ok(_) => panic!("{name} cut at {cut} is taken for whole"),
            }
        }
    }
}

/// Some bytes changed, added or taken away.
fn mutate(bytes: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + chance.below(8) {
        let at = chance.below(bytes.len());
        // Values that begin or end something are likelier to lead somewhere.
        let byte = match chance.below(4) {
            0 => [0x80, 0xff, 0, 0x7f, b'1', b'7', 0x40, 8][chance.below(8)],
            1 => bytes.get(at).map_or(0, |byte| byte ^ 1 << chance.below(8)),
            2 => bytes[chance.below(bytes.len())],
            _ => chance.next() as u8,
        };
        match chance.below(8) {
            0 => bytes.insert(at, byte),
            1 if bytes.len() > 20 => drop(bytes.remove(at)),
            2 if bytes.len() > 2000 => {
                // A piece of it once more, or away.
                let piece = (at / tar::BLOCK * tar::BLOCK).min(bytes.len() - tar::BLOCK)..;
                let piece: Vec<u8> = bytes[piece][..tar::BLOCK].to_vec();
                let to = chance.below(bytes.len() / tar::BLOCK) * tar::BLOCK;
                bytes.splice(to..to, piece);
            }
            3 if bytes.len() > 2000 => {
                let from = chance.below(bytes.len() / tar::BLOCK) * tar::BLOCK;
                bytes.drain(from..(from + tar::BLOCK).min(bytes.len()));
            }
            _ => {
                if let Some(slot) = bytes.get_mut(at) {
                    *slot = byte;
                }
            }
        }
    }
    bytes
}

/// Sees that it is given no more than there is.
#[derive(Debug, Default)]
struct Watch {
    given: u64,
}

impl Visitor for Watch {
    fn message(&mut self, message: &Message<'_>) -> Result<(), String> {
        assert!(message.seq > 0);
        self.given += (message.subject.len() + message.headers.len() + message.payload.len()) as u64;
        Ok(())
    }
    fn deleted(&mut self, seq: u64) -> Result<(), String> {
        assert!(seq > 0);
        Ok(())
    }
    fn state(&mut self, _state: &ArchivedState, json: &[u8]) -> Result<(), String> {
        self.given += json.len() as u64;
        Ok(())
    }
    fn config(&mut self, json: &[u8]) -> Result<(), String> {
        self.given += json.len() as u64;
        Ok(())
    }
    fn consumer(&mut self, consumer: &ArchivedConsumer) -> Result<(), String> {
        self.given += (consumer.name.len() + consumer.config.get().len()) as u64;
        Ok(())
    }
}

/// What came of many walks.
#[derive(Debug, Default)]
struct Outcomes {
    whole: u32,
    corrupt: u32,
    truncated: u32,
    read: u32,
    other: u32,
}

impl Outcomes {
    fn add(&mut self, walked: Result<Walked<Watch>, ArchiveError>, plain: Option<usize>) {
        let error = match walked {
            Ok(walked) => {
                self.whole += 1;
                assert!(walked.visitor.given <= walked.length);
                assert!(plain.is_none_or(|plain| walked.length == plain as u64), "not read to its end");
                return;
            }
            Err(error) => error,
        };
        // A name of 80 bytes is longer when each is an escape.
        let text = error.to_string();
        assert!(text.len() < 3000 && !text.contains(char::is_control), "{text:?}");
        match error {
            ArchiveError::Corrupt { .. } => self.corrupt += 1,
            ArchiveError::Truncated { .. } => self.truncated += 1,
            ArchiveError::Read { .. } => self.read += 1,
            ArchiveError::Unknown { .. } | ArchiveError::Reported { .. } => self.other += 1,
            ArchiveError::Stopped(why) => panic!("nobody stopped it: {why}"),
        }
    }
}

#[test]
fn changed_bytes_end_in_an_error_or_in_a_whole_archive() {
    let mut chance = Chance(0xa17a5);
    let small = small();
    let (mut plain, mut sealed, mut sent) = (Outcomes::default(), Outcomes::default(), Outcomes::default());
    for round in 0..100_000 {
        let fixture = &small[round % small.len()];
        let most = [3, 50, 1000, usize::MAX][chance.below(4)];
        let mut lens = Chance(round as u64 + 1);
        let mut lens = || lens.below(most);
        match round / small.len() % 4 {
            0 => {
                let bytes = mutate(&fixture.plain, &mut chance);
                plain.add(walk(Pieces { bytes: &bytes, lens }, &fixture.stream, Watch::default()), Some(bytes.len()));
            }
            1 => {
                let bytes = mutate(&fixture.sent, &mut chance);
                let from = Pieces { bytes: &bytes, lens };
                sent.add(walk(decoder(from), &fixture.stream, Watch::default()), None);
            }
            _ => {
                let mut bytes = mutate(&fixture.plain, &mut chance);
                reseal(&mut bytes, &fixture.stream);
                // Every other one comes as a server would send it.
                let walked = if round % 2 == 0 {
                    walk(Pieces { bytes: &bytes, lens: &mut lens }, &fixture.stream, Watch::default())
                } else {
                    let coded = Encoder::new().encode(&bytes);
                    walk(decoder(Pieces { bytes: &coded, lens: &mut lens }), &fixture.stream, Watch::default())
                };
                sealed.add(walked, Some(bytes.len()));
            }
        }
    }
    // All must happen, or the changes lead nowhere.
    assert!(plain.whole > 1000 && plain.corrupt > 10_000 && plain.truncated > 100, "{plain:?}");
    assert!(sealed.whole > 5000 && sealed.corrupt > 10_000 && sealed.truncated > 1000, "{sealed:?}");
    assert!(sent.read > 20_000 && sent.whole < 500, "{sent:?}");
}

#[test]
fn the_pieces_that_changed_bytes_come_in_do_not_matter() {
    let mut chance = Chance(99);
    for Fixture { name, stream, plain, .. } in small() {
        for _ in 0..20 {
            let mut bytes = mutate(&plain, &mut chance);
            reseal(&mut bytes, &stream);
            let text = |walked: Result<Walked<Keep>, ArchiveError>| match walked {
                Ok(walked) => format!("{:?}", walked.visitor),
                Err(error) => error.to_string(),
            };
            let whole = text(read(&bytes, &stream));
            let most = 1 + chance.below(40);
            let pieces = walk(Pieces { bytes: &bytes, lens: || chance.below(most) }, &stream, Keep::default());
            assert_eq!(text(pieces), whole, "{name}");
        }
    }
}
