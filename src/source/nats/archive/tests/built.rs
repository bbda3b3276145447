//! Archives that are built here, of messages of every kind, read back.

use highway::{HighwayHash, HighwayHasher, Key};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;

/// HighwayHash-64 under the SHA-256 of `key`, as Go's hash gives its bytes.
pub(super) fn hash(key: &str, parts: &[&[u8]]) -> [u8; 8] {
    let key: [u8; 32] = Sha256::digest(key).into();
    let word = |n: usize| u64::from_le_bytes(key[8 * n..8 * n + 8].try_into().unwrap());
    HighwayHasher::new(Key([word(0), word(1), word(2), word(3)])).hash64(&parts.concat()).to_le_bytes()
}

/// The content of a `meta.sum`.
pub(super) fn sum(key: &str, meta: &[u8]) -> String {
    hash(key, &[meta]).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn uvarint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A record of format 2.
pub(super) fn record(name: &[u8], time: i64, seq: u64, headers: &[u8], payload: &[u8]) -> Vec<u8> {
    let zigzag = ((time << 1) ^ (time >> 63)) as u64;
    let numbers = [name.len() as u64, zigzag, seq, headers.len() as u64, payload.len() as u64];
    [&numbers.into_iter().flat_map(uvarint).collect::<Vec<_>>()[..], name, headers, payload].concat()
}

pub(super) fn state(messages: u64, first: u64, last: u64, consumers: u64) -> Vec<u8> {
    let json = format!(
        r#"{{"messages":{messages},"bytes":7,"first_seq":{first},"last_seq":{last},"consumer_count":{consumers}}}"#
    );
    record(b"state.json", 5, 0, b"", json.as_bytes())
}

/// An archive of format 2 of these records, with its end.
pub(super) fn records(parts: &[Vec<u8>]) -> Vec<u8> {
    [&MAGIC[..], &parts.concat(), &[0; 5]].concat()
}

/// A record of a block.
pub(super) fn block_record(key: &str, message: &Kept) -> Vec<u8> {
    let Kept { seq, time, subject, headers, payload } = message;
    let has = if headers.is_empty() { Vec::new() } else { (headers.len() as u32).to_le_bytes().to_vec() };
    let length = (22 + subject.len() + has.len() + headers.len() + payload.len() + 8) as u32;
    let length = if headers.is_empty() { length } else { length | 1 << 31 };
    let (seq, time) = (seq.to_le_bytes(), time.to_le_bytes());
    let hash = hash(key, &[&seq, &time, subject, headers, payload]);
    let subject_length = (subject.len() as u16).to_le_bytes();
    [&length.to_le_bytes()[..], &seq, &time, &subject_length, subject, &has, headers, payload, &hash].concat()
}

/// A tar of these files, with its end, by another's hand.
pub(super) fn tarred(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

/// `meta.inf` and `meta.sum` of the stream `made`.
pub(super) fn meta() -> Vec<(&'static str, Vec<u8>)> {
    let config = br#"{"Created":"2026-11-23T01:00:00Z","name":"made","subjects":["a"]}"#.to_vec();
    let sum = sum("made", &config).into_bytes();
    vec![("meta.inf", config), ("meta.sum", sum)]
}

/// An archive of format 1 of the stream `made`: these blocks.
pub(super) fn blocks(blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut files = meta();
    let names: Vec<_> = (1..=blocks.len()).map(|number| format!("msgs/{number}.blk")).collect();
    files.extend(names.iter().map(|name| &name[..]).zip(blocks.iter().cloned()));
    tarred(&files)
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

/// Payloads of all sizes, few of them larger than the walker's buffer.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let long = (200_000..600_000usize, any::<u8>())
        .prop_map(|(length, step)| (0..length).map(|n| (n.wrapping_mul(usize::from(step)) >> 3) as u8).collect());
    prop_oneof![60 => bytes(40), 10 => bytes(3000), 1 => long]
}

/// Messages with ascending sequences, with holes.
fn messages() -> impl Strategy<Value = Vec<Kept>> {
    let step = prop_oneof![5 => Just(1u64), 2 => 2..9u64, 1 => 1..1u64 << 50];
    let message = (step, any::<i64>(), bytes(30), prop_oneof![Just(Vec::new()), bytes(60)], payload());
    prop::collection::vec(message, 0..30).prop_map(|all| {
        let mut seq = 0;
        all.into_iter()
            .map(|(step, time, subject, headers, payload)| {
                seq += step;
                Kept { seq, time, subject, headers, payload }
            })
            .collect()
    })
}

fn whole_state(messages: &[Kept]) -> Vec<u8> {
    let (first, last) = (messages.first().map_or(8, |first| first.seq), messages.last().map_or(7, |last| last.seq));
    state(messages.len() as u64, first, last, 0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn messages_come_back_from_records(messages in messages(), most in 1..100_000usize, seed in 1..u64::MAX) {
        let all = messages.iter().map(|Kept { seq, time, subject, headers, payload }| {
            record(subject, *time, *seq, headers, payload)
        });
        let archive = records(&[whole_state(&messages), all.collect::<Vec<_>>().concat()]);
        let mut chance = Chance(seed);
        let walked = walk(Pieces { bytes: &archive, lens: || chance.below(most) }, "made", Keep::default()).unwrap();
        prop_assert_eq!(walked.length, archive.len() as u64);
        prop_assert_eq!(walked.format, Format::Records);
        prop_assert_eq!(walked.visitor.messages, messages);
    }

    #[test]
    fn messages_come_back_from_blocks(
        messages in messages(),
        each in 1..10usize,
        most in 1..100_000usize,
        seed in 1..u64::MAX,
    ) {
        let mut chance = Chance(seed);
        let mut deleted = Vec::new();
        let made = messages.chunks(each).enumerate().map(|(n, messages)| {
            let key = format!("made-{}", n + 1);
            let mut block = Vec::new();
            for message in messages {
                // Some are preceded by marks of all kinds.
                let mark = chance.next() >> 8;
                let bit = [None, None, Some(1 << 63), Some(1 << 62)][chance.below(4)];
                if let Some(bit) = bit {
                    let seq = mark & ((1 << 40) - 1);
                    deleted.extend(Some(seq).filter(|seq| *seq > 0));
                    let payload = vec![7; chance.below(50)];
                    block.extend(block_record(&key, &Kept { seq: seq | bit, payload, ..Kept::default() }));
                }
                block.extend(block_record(&key, message));
            }
            block
        });
        let archive = blocks(&made.collect::<Vec<_>>());
        let walked = walk(Pieces { bytes: &archive, lens: || chance.below(most) }, "made", Keep::default()).unwrap();
        prop_assert_eq!(walked.length, archive.len() as u64);
        prop_assert_eq!(walked.format, Format::Blocks);
        prop_assert_eq!(walked.visitor.messages, messages);
        prop_assert_eq!(walked.visitor.deleted, deleted);
    }

    #[test]
    fn what_is_compressed_in_pieces_comes_back(
        pieces in prop::collection::vec(payload(), 0..12),
        most in 1..50_000usize,
    ) {
        let mut encoder = Encoder::new();
        let sent: Vec<u8> = pieces.iter().flat_map(|piece| encoder.encode(piece)).collect();
        if sent.is_empty() {
            prop_assert!(pieces.is_empty());
            return Ok(());
        }
        let mut found = Vec::new();
        decoder(Pieces { bytes: &sent, lens: || most }).read_to_end(&mut found).unwrap();
        prop_assert_eq!(&found, &pieces.concat());
        // Another decoder says the same. It knows no frames, so they are taken apart here.
        let (mut rest, mut other) = (&sent[10..], Vec::new());
        prop_assert_eq!(&sent[..10], b"\xff\x06\0\0S2sTwO");
        while let Some((head, behind)) = rest.split_at_checked(4) {
            let length = u32::from_le_bytes([head[1], head[2], head[3], 0]) as usize;
            let (frame, behind) = behind.split_at(length);
            match head[0] {
                0 => other.extend(minlz::decode(&frame[4..]).unwrap()),
                1 => other.extend_from_slice(&frame[4..]),
                kind => panic!("a frame of kind {kind}"),
            }
            rest = behind;
        }
        prop_assert_eq!(&other, &pieces.concat());
    }
}

#[test]
fn the_largest_message_is_taken_and_no_larger_one() {
    let payload = vec![b'x'; MAX_MESSAGE as usize];
    let archive = records(&[state(1, 1, 1, 0), record(b"a", 1, 1, b"", &payload)]);
    assert_eq!(read(&archive, "made").unwrap().visitor.messages[0].payload.len() as u64, MAX_MESSAGE);
    let archive = records(&[state(1, 1, 1, 0), record(b"a", 1, 1, b"h", &payload)]);
    let error = read(&archive, "made").unwrap_err().to_string();
    assert!(error.contains("headers of 1 and a payload of 67108864 bytes; 67108864 are the most"), "{error}");
    let message = Kept { seq: 1, time: 1, subject: b"a".to_vec(), headers: Vec::new(), payload };
    let archive = blocks(&[block_record("made-1", &message)]);
    assert_eq!(read(&archive, "made").unwrap().visitor.messages, [message]);
}

#[test]
fn states_of_consumers_of_both_versions() {
    let number = |numbers: &[u64]| numbers.iter().copied().flat_map(uvarint).collect::<Vec<_>>();
    let state = |version: u8, numbers: &[u64]| consumer::state(&[&[22, version], &number(numbers)[..]].concat());
    let of = |ack: (u64, u64), delivered: (u64, u64), pending| {
        let pair = |(consumer, stream)| Delivered { consumer, stream };
        Ok(ConsumerState { ack_floor: pair(ack), delivered: pair(delivered), pending })
    };
    // Two are pending, one was delivered again.
    assert_eq!(state(2, &[3, 4, 9, 10, 2, 99, 1, 1, 0, 2, 2, 1, 1, 1, 5]), of((3, 4), (9, 10), 2));
    assert_eq!(state(2, &[0, 0, 0, 0, 0, 0]), of((0, 0), (0, 0), 0));
    // The older one wrote distances, and no number of the delivery.
    assert_eq!(state(1, &[3, 4, 7, 7, 2, 99, 1, 0, 2, 1, 0]), of((3, 4), (9, 10), 2));
    assert_eq!(state(1, &[1, 0, 7, 7, 0, 0]), of((1, 0), (7, 7), 0));
    for (version, numbers) in [
        (3, &[0, 0, 0, 0, 0, 0][..]),
        (2, &[0, 0, 0, 0, 0]),
        (2, &[0, 0, 0, 0, 0, 0, 0]),
        (2, &[0, 0, 0, 0, u64::MAX, 1, 1, 1, 1]),
        (2, &[0, 0, 0, 0, 0, u64::MAX]),
        (1, &[u64::MAX, 1, 3, 3, 0, 0]),
    ] {
        assert!(state(version, numbers).is_err(), "{numbers:?}");
    }
    assert!(consumer::state(&[22]).is_err());
    assert!(consumer::state(&[21, 2, 0, 0, 0, 0, 0, 0]).is_err());
}
