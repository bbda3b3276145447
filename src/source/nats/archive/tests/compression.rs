//! S2 streams that are not as they should be.

use std::io::ErrorKind;

use super::*;

const BEGIN: &[u8] = b"\xff\x06\0\0S2sTwO";

fn crc(plain: &[u8]) -> [u8; 4] {
    let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(plain);
    sum.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind], &(content.len() as u32).to_le_bytes()[..3], content].concat()
}

fn stored(plain: &[u8]) -> Vec<u8> {
    frame(1, &[&crc(plain)[..], plain].concat())
}

fn compressed(plain: &[u8]) -> Vec<u8> {
    frame(0, &[&crc(plain)[..], &minlz::encode(plain)].concat())
}

fn error(sent: &[u8]) -> (ErrorKind, String) {
    let error = plain(sent).unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn frames_of_all_kinds() {
    let long = b"again and again ".repeat(50_000);
    let sent = [
        BEGIN,
        &stored(b"one "),
        &frame(0xfe, &[0; 300]),
        &compressed(&long),
        &frame(0x80, b"skipped"),
        &frame(0x99, b""),
        &stored(b""),
        BEGIN,
        &compressed(b"two "),
        b"\xff\x06\0\0sNaPpY",
        &compressed(&long),
    ]
    .concat();
    assert_eq!(plain(&sent).unwrap(), [b"one ", &long[..], b"two ", &long].concat());
    assert_eq!(plain(BEGIN).unwrap(), b"");
}

#[test]
fn an_end_is_clean_only_between_frames() {
    let frames = [BEGIN.to_vec(), stored(b"some"), frame(0xfe, b"padding"), compressed(&b"more ".repeat(20))];
    let mut clean = vec![];
    for frame in &frames {
        clean.push(clean.last().unwrap_or(&0) + frame.len());
    }
    let sent = frames.concat();
    for cut in 0..=sent.len() {
        match plain(&sent[..cut]) {
            Ok(_) => assert!(clean.contains(&cut), "cut at {cut}"),
            Err(error) => {
                assert!(!clean.contains(&cut), "cut at {cut}: {error}");
                assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
                assert_eq!(error.to_string(), format!("S2 ends at byte {cut}, within a frame"));
            }
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    let mut flipped = compressed(&b"more ".repeat(20));
    flipped[9] ^= 1;
    let mut wrong = stored(b"some");
    wrong[4] ^= 1;
    let large = vec![0; MAX_BLOCK + 1];
    for (frame, what) in [
        (flipped, "a block that cannot be decoded"),
        (wrong, "the checksum of a block does not hold"),
        (frame(2, b"what"), "a frame of unknown kind 0x02"),
        (frame(0x7f, b"what"), "a frame of unknown kind 0x7f"),
        (frame(0xff, b"nOtHiN"), "the stream identifier is `nOtHiN`"),
        (frame(0xff, b"S2"), "a frame of unknown kind 0xff"),
        (frame(1, b"abc"), "a frame without a checksum"),
        (frame(0, b"abcd"), "a block without its length"),
        (frame(0, b"abcd\xff\xff\xff\xff\x7f"), "a block of 34359738367 plain bytes"),
        (frame(0, b"abcd\xff\xff\xff\xff\x0f"), "a block of 4294967295 plain bytes; 4194304 are the most"),
        (compressed(&large), "a block of 4194305 plain bytes; 4194304 are the most"),
        (stored(&large), "a frame of 4194305 bytes; 4194304 are the most"),
        (vec![0, 0xff, 0xff, 0xff], "a frame of 16777211 bytes"),
    ] {
        let (kind, text) = error(&[BEGIN, &stored(b"before"), &frame].concat());
        let expected = if what.contains("34359738367") { "a block without its length" } else { what };
        assert!(kind == ErrorKind::InvalidData && text.contains(expected), "{expected}: {text}");
    }
    let (kind, text) = error(b"NATSARC1");
    assert_eq!(
        (kind, &text[..]),
        (ErrorKind::InvalidData, "S2 before byte 4: it begins with `NATS`, no stream identifier")
    );
}

#[test]
fn the_largest_block_is_taken() {
    let even = vec![b'x'; MAX_BLOCK];
    let mut chance = Chance(5);
    let uneven: Vec<u8> = (0..MAX_BLOCK).map(|_| chance.next() as u8).collect();
    let sent = [BEGIN, &compressed(&even), &stored(&uneven), &compressed(&uneven)].concat();
    assert!(plain(&sent).unwrap() == [&even[..], &uneven, &uneven].concat());
}

#[test]
fn after_an_error_there_is_no_more() {
    let sent = [BEGIN, &frame(2, b""), &stored(b"behind")].concat();
    let mut decoder = decoder(&sent[..]);
    for _ in 0..3 {
        assert!(decoder.read(&mut [0; 9]).is_err());
    }
}

#[test]
fn the_reader_below_is_heard() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _into: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::new(ErrorKind::TimedOut, "nothing came"))
        }
    }
    let sent = [BEGIN, &stored(b"NATSARC1")[..9]].concat();
    let error = walk(decoder(sent.chain(Broken)), "made", Keep::default()).unwrap_err();
    assert!(matches!(&error, ArchiveError::Read { source, .. } if source.kind() == ErrorKind::TimedOut), "{error}");
}
