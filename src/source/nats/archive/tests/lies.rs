//! Lengths that lie, and archives that are not whole, each with what is said of it.

use super::{
    built::{block_record, blocks, meta, record, records, state, tarred, uvarint},
    *,
};

fn error(archive: &[u8]) -> String {
    read(archive, "made").map(drop).unwrap_err().to_string()
}

/// Numbers as a record of format 2 begins with.
fn head(numbers: [u64; 5]) -> Vec<u8> {
    numbers.into_iter().flat_map(uvarint).collect()
}

fn message(seq: u64) -> Vec<u8> {
    record(b"a", 1, seq, b"", b"payload")
}

#[test]
fn lengths_of_records_are_not_believed() {
    let lie = 1 << 62;
    let ten = [0xff; 10].to_vec();
    let cases = [
        ("a name", head([lie, 0, 1, 0, 0]), "a name of 4611686018427387904 bytes; 65535 are the most"),
        ("headers", head([1, 0, 1, lie, 0]), "headers of 4611686018427387904 and a payload of 0 bytes"),
        ("a payload", head([1, 0, 1, 0, lie]), "a payload of 4611686018427387904 bytes; 67108864 are the most"),
        ("both", head([1, 0, 1, u64::MAX, u64::MAX]), "headers of 18446744073709551615"),
        ("a sum", head([1, 0, 1, 1, u64::MAX]), "headers of 1 and a payload of 18446744073709551615"),
        ("a varint", ten, "its length of the name is longer than 64 bits"),
        ("a last byte", [&[1, 0][..], &[0xff; 9], &[2]].concat(), "its sequence is longer than 64 bits"),
    ];
    for (name, lie, what) in cases {
        let archive = [&MAGIC[..], &state(3, 1, 3, 0), &lie].concat();
        assert!(error(&archive).contains(what), "{name}: {}", error(&archive));
        // Followed by plenty that means nothing, it is the same.
        assert!(error(&[&archive[..], &[0; 100_000], &[255; 100_000]].concat()).contains(what), "{name}");
    }
    // What is just allowed, and not there.
    for lie in [head([1, 0, 1, 0, MAX_MESSAGE]), head([MAX_SUBJECT, 0, 1, MAX_MESSAGE, 0])] {
        let archive = [&MAGIC[..], &state(3, 1, 3, 0), &lie, b"abc"].concat();
        let end = format!("ends at byte {}, in `messages`, before the archive does", archive.len());
        assert_eq!(error(&archive), end);
    }
    // Files.
    for lie in [head([10, 0, 0, 0, lie]), head([10, 0, 0, 7, 1]), head([10, 0, 1, 0, 10]), head([lie, 0, 0, 0, 0])] {
        assert!(error(&[&MAGIC[..], &lie, b"state.json{}"].concat()).starts_with("at byte 8, in `state.json`: "));
    }
}

#[test]
fn an_archive_of_records_is_what_its_state_says() {
    let consumer = |name: &str, json: &str| record(name.as_bytes(), 1, 0, b"", json.as_bytes());
    let good = r#"{"config":{"ack_policy":"explicit"},"state":{"delivered":{"consumer_seq":1,"stream_seq":2},
        "ack_floor":{"consumer_seq":0,"stream_seq":1},"pending":{"2":{"Sequence":1,"Timestamp":5}}}}"#;
    let walked =
        read(&records(&[state(2, 4, 9, 1), consumer("consumers/c", good), message(5), message(9)]), "made").unwrap();
    let found = &walked.visitor.consumers[0];
    assert_eq!((&found.name[..], &found.config[..]), ("c", r#"{"ack_policy":"explicit"}"#));
    assert_eq!(found.state.unwrap().pending, 1);
    let one = |parts: &[Vec<u8>]| error(&records(parts));
    let with = |name: &str, json: &str| one(&[state(2, 4, 9, 1), consumer(name, json), message(5)]);
    let large = format!(r#"{{"config":{{"description":"{}"}},"state":{{}}}}"#, "x".repeat(1 << 20));
    let deep = format!(r#"{{"config":{},"state":{{}}}}"#, "[".repeat(100_000));
    for (text, what) in [
        (one(&[]), "in the archive: it should be state.json"),
        (one(&[message(1)]), "a message of sequence 1 where a file should be"),
        (one(&[consumer("consumers/c", good)]), "it should be state.json"),
        (one(&[consumer("state.json", "{}")]), "no state: missing field"),
        (one(&[consumer("state.json", "[[[[")]), "no state: "),
        (one(&[state(1, 9, 4, 0)]), "1 messages from 9 to 4 cannot be"),
        (one(&[state(0, 9, 4, 0)]), "0 messages from 9 to 4 cannot be"),
        (one(&[state(7, 4, 9, 0)]), "7 messages from 4 to 9 cannot be"),
        (one(&[state(0, 0, 1, 0)]), "0 messages from 0 to 1 cannot be"),
        (one(&[state(u64::MAX, 1, u64::MAX - 1, 0)]), "cannot be"),
        (one(&[state(2, 4, 9, 1), message(5)]), "a message of sequence 5 where a file should be"),
        (one(&[state(2, 4, 9, 1)]), "fewer consumers than state.json says"),
        (one(&[state(2, 4, 9, u64::MAX)]), "fewer consumers than state.json says"),
        (
            one(&[state(2, 4, 9, 0), consumer("consumers/c", good)]),
            "a record without a sequence that is not the end mark",
        ),
        (one(&[state(2, 4, 9, 0), message(5), message(5)]), "sequence 5 follows 5"),
        (one(&[state(2, 4, 9, 0), message(6), message(5)]), "sequence 5 follows 6"),
        (one(&[state(2, 4, 9, 0), message(3)]), "sequence 3 in a stream from 4 to 9"),
        (one(&[state(2, 4, 9, 0), message(10)]), "sequence 10 in a stream from 4 to 9"),
        (one(&[state(0, 0, 0, 0), message(1)]), "sequence 1 in a stream from 0 to 0"),
        (one(&[state(0, 5, 4, 0), message(5)]), "sequence 5 in a stream from 5 to 4"),
        (with("other/c", good), "in `other/c`: it should be a consumer"),
        (with("consumers/", good), "no name of a consumer"),
        (with("consumers/a/b", good), "no name of a consumer"),
        (with("consumers/c", "{}"), "no consumer: missing field `config`"),
        (with("consumers/c", r#"{"config":{}}"#), "no consumer: missing field `state`"),
        (with("consumers/c", r#"{"config":{},"state":null}"#), "no consumer: "),
        (with("consumers/c", r#"{"config":null,"state":{}}"#), "the configuration is no JSON object"),
        (with("consumers/c", r#"{"config":{},"state":{"pending":7}}"#), "no consumer: invalid type"),
        (with("consumers/c", &large), "a configuration of 1048594 bytes; 1048576 are the most"),
        (with("consumers/c", &deep), "no consumer: "),
        (error(&[&records(&[state(0, 0, 0, 0)])[..], &[0]].concat()), "in the archive: something follows the end mark"),
    ] {
        assert!(text.contains(what), "{what}: {text}");
    }
    let name = [b"consumers/".as_slice(), b"\xff\x1b[31m"].concat();
    let text = one(&[state(2, 4, 9, 1), record(&name, 1, 0, b"", good.as_bytes())]);
    assert!(text.contains("`consumers/\u{fffd}\\u{1b}[31m`: no name of a consumer"), "{text}");
}

#[test]
fn what_is_no_archive_is_named() {
    assert_eq!(
        error(b"\x1f\x8b\x08\0 gzip"),
        "begins with `\\x1f\\x8b\\x08\\x00 gzip`, as no archive of a stream does"
    );
    assert_eq!(error(b"NATSARC2....."), "begins with `NATSARC2.....`, as no archive of a stream does");
    assert!(error(b"\xff\x06\0\0S2sTwO and more").contains(r"\xff\x06\x00\x00S2sTwO"));
    assert!(error(&[0; 2000]).contains("as no archive of a stream does"));
    assert_eq!(error(b""), "ends at byte 0, in the archive, before the archive does");
    assert_eq!(error(b"NATSAR"), "ends at byte 6, in the archive, before the archive does");
}

/// The archive with `change` done to its first block's record, and whether its checksum is made right.
fn changed_record(change: impl Fn(&mut Vec<u8>), sealed: bool) -> String {
    let payload = b"some payload".to_vec();
    let kept = Kept { seq: 7, time: 5, subject: b"a.b".to_vec(), headers: b"NATS/1.0\r\n\r\n".to_vec(), payload };
    let mut record = block_record("made-1", &kept);
    change(&mut record);
    if sealed {
        reseal_block(&mut record, "made-1");
    }
    error(&blocks(&[record]))
}

#[test]
fn lengths_in_blocks_are_not_believed() {
    let length = |record: &mut Vec<u8>, length: u32| record[..4].copy_from_slice(&(length | 1 << 31).to_le_bytes());
    for (told, what) in [
        (u32::MAX, "a record of 2147483647 bytes in a block that has 61 more"),
        (62, "a record of 62 bytes in a block that has 61 more"),
        (29, "a record of 29 bytes in a block that has 61 more"),
        (0, "a record of 0 bytes in a block that has 61 more"),
        (60, "the checksum of the record with sequence 7 does not hold"),
    ] {
        let text = changed_record(|record| length(record, told), false);
        assert!(text.contains("in `msgs/1.blk`: ") && text.contains(what), "{text}");
    }
    for change in [
        |record: &mut Vec<u8>| record[20..22].fill(0xff),
        |record: &mut Vec<u8>| record[20] = 32,
        |record: &mut Vec<u8>| record[25..29].fill(0xff),
        |record: &mut Vec<u8>| record[25] = 25,
    ] {
        let text = changed_record(change, true);
        assert!(text.contains("in `msgs/1.blk`: a record whose lengths cannot be"), "{text}");
    }
    let text = changed_record(|record| record.truncate(21), false);
    assert!(text.contains("a record of 61 bytes in a block that has 21 more"), "{text}");
    let text = changed_record(|record| record.truncate(3), false);
    assert!(text.contains("a record of 0 bytes in a block that has 3 more"), "{text}");
    let text = changed_record(|record| record.splice(..0, *b"cmp\x01").for_each(drop), false);
    assert!(text.contains("the block is compressed, as servers do not send it"), "{text}");
}

#[test]
fn every_byte_of_a_record_is_under_its_checksum() {
    for at in 4..61 {
        // Its lengths, which the hash is not of, are found out by the bytes that are.
        let text = changed_record(|record| record[at] ^= 0x10, false);
        assert!(text.contains("does not hold") || (20..29).contains(&at) && text.contains("cannot be"), "{at}: {text}");
        assert!(text.starts_with("at byte 2560, in `msgs/1.blk`: "), "{text}");
    }
}

#[test]
fn a_block_belongs_to_its_stream_and_number() {
    let kept = Kept { seq: 7, subject: b"a".to_vec(), ..Kept::default() };
    let with = |key: &str, name: &str| {
        let mut files = meta();
        files.push((name, block_record(key, &kept)));
        read(&tarred(&files), "made").map(|walked| walked.visitor.messages)
    };
    assert_eq!(with("made-12", "msgs/12.blk").unwrap(), std::slice::from_ref(&kept));
    assert!(with("made-1", "msgs/12.blk").unwrap_err().to_string().contains("sequence 7 does not hold"));
    assert!(with("other-12", "msgs/12.blk").unwrap_err().to_string().contains("sequence 7 does not hold"));
    let error = read(&blocks(&[]), "other").unwrap_err().to_string();
    assert!(error.contains("in `meta.inf`: this is an archive of `made`, not of `other`"), "{error}");
}

#[test]
fn a_tar_is_what_a_server_writes() {
    let with = |more: &[(&str, Vec<u8>)]| error(&tarred(&[&meta()[..], more].concat()));
    let sum = |bytes: &[u8]| (("obs/c/meta.sum"), bytes.to_vec());
    let config = ("obs/c/meta.inf", b"{}".to_vec());
    let right = sum(built::sum("made/c", b"{}").as_bytes());
    let state = ("obs/c/o.dat", vec![22, 2, 0, 0, 0, 0, 0, 0]);
    for (text, what) in [
        (error(&tarred(&[])), "as no archive of a stream does"),
        (error(&tarred(&meta()[..1])), "in the archive: there is no meta.inf with a meta.sum"),
        (error(&tarred(&meta()[1..])), "in `meta.sum`: its meta.inf is not before it"),
        (error(&tarred(&[("msgs/1.blk", Vec::new())])), "there is no meta.inf with a meta.sum"),
        (with(&meta()[..1]), "in `meta.inf`: it is there twice"),
        (with(&meta()[1..]), "in `meta.sum`: it is there twice"),
        (error(&tarred(&[("meta.inf", b"{}".to_vec())])), "in `meta.inf`: no configuration: missing field `name`"),
        (error(&tarred(&[("meta.inf", vec![b'['; 1 << 20])])), "no configuration: "),
        (error(&tarred(&[("meta.inf", vec![b' '; (1 << 20) + 1])])), "it is of 1048577 bytes; 1048576 are the most"),
        (with(&[("msgs/2.blk", vec![]), ("msgs/2.blk", vec![])]), "in `msgs/2.blk`: it follows block 2"),
        (with(&[("msgs/2.blk", vec![]), ("msgs/1.blk", vec![])]), "in `msgs/1.blk`: it follows block 2"),
        (with(&[("errors.txt", b"Could not read\x1b".to_vec())]), "is not whole: Could not read\\u{1b}"),
        (with(&[("errors.txt", vec![b'x'; 100_000])]), "is not whole: xxxx"),
        (with(&[config.clone(), state.clone()]), "in `obs/c`: a consumer without a meta.inf with a meta.sum"),
        (with(std::slice::from_ref(&state)), "in `obs/c`: a consumer without a meta.inf with a meta.sum"),
        (with(&[config.clone(), sum(b"0123456789abcdef")]), "it does not hold for the meta.inf before it"),
        (with(std::slice::from_ref(&right)), "in `obs/c/meta.sum`: its meta.inf is not before it"),
        (with(&[config.clone(), right.clone(), state.clone(), state.clone()]), "in `obs/c/o.dat`: it is there twice"),
        (with(&[("obs/c/o.dat", vec![22, 2, 0])]), "in `obs/c/o.dat`: it ends before its end"),
    ] {
        assert!(text.contains(what), "{what}: {text}");
    }
    let whole = tarred(&[&meta()[..], &[config, right, state]].concat());
    assert_eq!(read(&whole, "made").unwrap().visitor.consumers[0].name, "c");
    let unknown =
        tarred(&[&meta()[..], &[("msgs/new.db", vec![1; 700]), ("msgs/01.blk", vec![9]), ("x", vec![])]].concat());
    assert_eq!(read(&unknown, "made").unwrap().unknown, ["`msgs/new.db`", "`msgs/01.blk`", "`x`"]);
}

#[test]
fn the_end_of_a_tar_is_two_blocks_of_zeros_and_nothing_behind() {
    let whole = blocks(&[]);
    let end = whole.len() - 2 * tar::BLOCK;
    assert!(whole[end..].iter().all(|byte| *byte == 0));
    let padded = [&whole[..], &[0; 3000]].concat();
    assert_eq!(read(&padded, "made").unwrap().length, padded.len() as u64);
    assert!(error(&[&padded[..], b"x"].concat()).contains("in `the end of the tar`: something follows the end"));
    assert!(error(&whole[..end]).contains("before the archive does"));
    assert!(error(&whole[..end + tar::BLOCK]).contains("before the archive does"));
    let one = [&whole[..end + tar::BLOCK], &whole[..]].concat();
    assert!(error(&one).contains("there is one block of zeros and not two"));
}

/// A tar with this header before the end, its checksum made right.
fn with_header(change: impl Fn(&mut [u8]), content: &[u8]) -> Result<Walked<Keep>, ArchiveError> {
    let mut archive = blocks(&[]);
    archive.truncate(archive.len() - 2 * tar::BLOCK);
    let mut header = ::tar::Header::new_ustar();
    header.set_path("msgs/index.db").unwrap();
    header.set_size(content.len() as u64);
    let at = archive.len();
    archive.extend_from_slice(header.as_bytes());
    change(&mut archive[at..]);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(tar::BLOCK) + 2 * tar::BLOCK, 0);
    archive[at + 148..at + 156].fill(b' ');
    let sum: u32 = archive[at..at + tar::BLOCK].iter().map(|byte| u32::from(*byte)).sum();
    archive[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    walk(&archive[..], "made", Keep::default())
}

#[test]
fn headers_of_a_tar_are_not_believed() {
    assert!(with_header(|_| (), b"content").unwrap().unknown.is_empty());
    let error =
        |change: &dyn Fn(&mut [u8]), content: &[u8]| with_header(change, content).map(drop).unwrap_err().to_string();
    let name = |name: &'static [u8]| {
        move |header: &mut [u8]| {
            header[..100].fill(0);
            header[..name.len()].copy_from_slice(name);
        }
    };
    for kind in [b'1', b'2', b'3', b'5', b'g', b'L', b'S', 0xff] {
        let text = error(&move |header| header[156] = kind, b"");
        assert!(text.contains("`msgs/index.db` is of kind `") && text.contains("no file"), "{text}");
    }
    for bad in [&b"../x"[..], b"/etc/passwd", b"obs/../../x", b"a//b", b".", b"", b"..\\x", b"obs\\..\\x"] {
        let text = error(&name(bad), b"");
        assert!(text.contains("is a path that leads elsewhere"), "{text}");
    }
    let text = error(&|header| header[124..136].copy_from_slice(b"77777777777\0"), b"content");
    assert!(text.contains("in `msgs/index.db`, before the archive does"), "{text}");
    for size in [*b"-0000000001\0", *b"0000000009 \0", [0; 12], [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]] {
        let text = error(&move |header| header[124..136].copy_from_slice(&size), b"");
        assert!(text.contains("its size is no number"), "{text}");
    }
    let pax =
        |records: &'static [u8]| with_header(|header| header[156] = b'x', records).map(drop).unwrap_err().to_string();
    for (records, what) in [
        (&b"12 size=77x\n"[..], "a pax record with a size that is no number"),
        (b"99 size=7\n", "a pax record that ends elsewhere than it says"),
        (b"99999999999999999999999 size=7\n", "a pax record that ends elsewhere than it says"),
        (b"0 a=b\n", "a pax record that is none"),
        (b"7 abcd\n", "a pax record without a value"),
        (b"7 a=bcd", "a pax record that is none"),
        (b"size=7\n", "a pax record that ends elsewhere than it says"),
        (b"21 GNU.sparse.name=a\n", "a sparse file"),
        (b"8 path=x", "a pax record that is none"),
        (b"9 mtime=5", "a pax record that is none"),
        (b"9 mtime=\n", "pax records at the end of the tar belong to no file"),
    ] {
        assert!(pax(records).contains(what), "{what}: {}", pax(records));
    }
    let text = error(&|header| header[156] = b'x', &[b'x'; 70_000]);
    assert!(text.contains("70000 bytes of pax records; 65536 are the most"), "{text}");
}

#[test]
fn pax_records_name_the_file_that_follows() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let name = format!("obs/{}/", "long".repeat(60));
    let config = b"{}".to_vec();
    let sum = built::sum(&format!("made/{}", "long".repeat(60)), &config);
    for (name, content) in meta() {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    for (file, content) in [("meta.inf", config), ("meta.sum", sum.into_bytes())] {
        let path = format!("{name}{file}");
        let size = content.len().to_string();
        let records = [("mtime", &b"1795491395.687539411"[..]), ("path", path.as_bytes()), ("size", size.as_bytes())];
        builder.append_pax_extensions(records).unwrap();
        let mut header = ::tar::Header::new_ustar();
        header.set_path("cut/short").unwrap();
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, &content[..]).unwrap();
    }
    let walked = read(&builder.into_inner().unwrap(), "made").unwrap();
    assert_eq!(walked.visitor.consumers[0].name, "long".repeat(60));
    assert!(walked.visitor.consumers[0].state.is_none() && walked.unknown.is_empty());
}
