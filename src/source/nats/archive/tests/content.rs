//! Every message and consumer that a client read from the server is in the archive, and nothing else that lives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::source::nats::tally::Tally;

const SEED: u64 = 7;

fn listing(version: &str) -> BTreeMap<String, Value> {
    serde_json::from_slice(&fs::read(folder().join(format!("{version}.json"))).unwrap()).unwrap()
}

/// Bytes of a listing: characters of the same number.
fn bytes(text: &Value) -> Vec<u8> {
    text.as_str().unwrap().chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// Is it the message of the listing?
fn is(message: &Kept, told: &Value) -> bool {
    let payload = match &told[4] {
        Value::Object(told) => {
            let sum: String = Sha256::digest(&message.payload).iter().map(|byte| format!("{byte:02x}")).collect();
            told["sha256"] == sum && told["len"] == message.payload.len()
        }
        told => message.payload == bytes(told),
    };
    let numbers = told[0] == message.seq && told[1] == message.time;
    numbers && payload && message.subject == bytes(&told[2]) && message.headers == bytes(&told[3])
}

fn messages(listing: &Value) -> &[Value] {
    listing["messages"].as_array().unwrap()
}

/// Sequences that are gone, as the server tells them.
fn gone(listing: &Value) -> BTreeSet<u64> {
    let first = listing["state"]["first_seq"].as_u64().unwrap();
    let inner = listing["state"]["deleted"].as_array().into_iter().flatten().map(|seq| seq.as_u64().unwrap());
    (1..first).chain(inner).collect()
}

/// Does `all` say of everything that is in `some` the same, where it says anything? (A server tells settings that it
/// does not keep.)
fn agrees(some: &Value, all: &Value) -> bool {
    match (some, all) {
        (Value::Object(some), Value::Object(all)) => {
            some.iter().all(|(key, value)| all.get(key).is_none_or(|other| agrees(value, other)))
        }
        (some, all) => some == all,
    }
}

fn compare_consumers(name: &str, found: &[KeptConsumer], listing: &Value) {
    let told: BTreeMap<_, _> =
        listing["consumers"].as_array().unwrap().iter().map(|told| (told["name"].as_str().unwrap(), told)).collect();
    assert_eq!(
        found.iter().map(|consumer| &consumer.name[..]).collect::<BTreeSet<_>>(),
        told.keys().copied().collect()
    );
    for consumer in found {
        let told = told[&consumer.name[..]];
        let pair = |what: &str| serde_json::from_value::<Delivered>(told[what].clone()).unwrap();
        let state = consumer.state.unwrap();
        assert_eq!(state.delivered, pair("delivered"), "{name}: {}", consumer.name);
        assert_eq!(state.ack_floor, pair("ack_floor"), "{name}: {}", consumer.name);
        assert_eq!(state.pending, told["num_ack_pending"].as_u64().unwrap(), "{name}: {}", consumer.name);
        let config: Value = serde_json::from_str(&consumer.config).unwrap();
        assert!(config["durable_name"].is_string() && config["ack_policy"].is_string());
        assert!(agrees(&told["config"], &config), "{name}: {config}");
    }
}

/// Of format 2: message by message.
fn compare_records(name: &str, keep: &Keep, told: &Value) {
    assert_eq!(keep.messages.len(), messages(told).len(), "{name}");
    for (message, told) in keep.messages.iter().zip(messages(told)) {
        assert!(is(message, told), "{name}: {message:?} {told}");
    }
    let [state] = keep.states[..] else { panic!("{name}: {} states", keep.states.len()) };
    let numbers = (state.messages, state.first_seq, state.last_seq);
    let number = |what: &str| told["state"][what].as_u64().unwrap();
    assert_eq!(numbers, (number("messages"), number("first_seq"), number("last_seq")), "{name}");
    assert!(keep.configs.is_empty() && keep.deleted.is_empty());
}

/// Of format 1: everything that lives is a record, every other record is of a message that is gone, and every mark is
/// of one.
fn compare_blocks(name: &str, keep: &Keep, told: &Value) {
    let mut records: BTreeMap<_, _> = keep.messages.iter().map(|message| (message.seq, message)).collect();
    assert_eq!(records.len(), keep.messages.len(), "{name}: a sequence twice");
    for told in messages(told) {
        let message = records.remove(&told[0].as_u64().unwrap()).unwrap_or_else(|| panic!("{name}: {told} is missing"));
        assert!(is(message, told), "{name}: {message:?} {told}");
    }
    let gone = gone(told);
    assert!(records.keys().all(|seq| gone.contains(seq)), "{name}: {:?}", records.keys());
    assert!(keep.deleted.iter().all(|seq| gone.contains(seq)), "{name}: {:?}", keep.deleted);
    let [config] = &keep.configs[..] else { panic!("{name}: {} configurations", keep.configs.len()) };
    let config: Value = serde_json::from_slice(config).unwrap();
    assert!(config["subjects"] == told["config"]["subjects"] && agrees(&told["config"], &config), "{name}: {config}");
    assert!(keep.states.is_empty());
}

#[test]
fn archives_hold_what_a_client_read_from_their_servers() {
    let (mut formats, mut surplus, mut marks) = (BTreeSet::new(), 0, 0);
    for Fixture { name, stream, plain, .. } in fixtures() {
        let version = name.split_once('-').unwrap().0;
        let told = &listing(version)[&stream];
        let walked = read(&plain, &stream).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(walked.length, plain.len() as u64);
        assert_eq!(walked.unknown, Vec::<String>::new(), "{name}");
        let keep = walked.visitor;
        match walked.format {
            Format::Records => compare_records(&name, &keep, told),
            Format::Blocks => compare_blocks(&name, &keep, told),
        }
        compare_consumers(&name, &keep.consumers, told);
        surplus += keep.messages.len() - messages(told).len();
        marks += keep.deleted.len();
        formats.insert(format!("{version} {:?}", walked.format));
        // The whole loop: encoded again for a restore, the archive is the same.
        let mut encoder = Encoder::new();
        let sent: Vec<u8> = plain.chunks(100_000).flat_map(|chunk| encoder.encode(chunk)).collect();
        assert_eq!(super::plain(&sent).unwrap(), plain);
    }
    let formats: Vec<_> = formats.iter().map(String::as_str).collect();
    assert_eq!(formats, ["2.10 Blocks", "2.12 Blocks", "2.14 Blocks", "2.15 Records", "2.9 Blocks", "2.9 Records"]);
    // Or the fixtures do not show what is to be shown.
    assert!(surplus > 20 && marks > 20, "{surplus} {marks}");
}

#[test]
fn what_was_restored_is_found_among_the_records_of_the_archive() {
    let mut left_out = 0;
    for stream in ["holes", "purged", "blocks", "KV_config", "work"] {
        let restored = fixture(&format!("2.9-in-2.15-{stream}"));
        let archive = fixture(&format!("2.9-{stream}"));
        let restored =
            walk(&restored.plain[..], stream, Tally::new(SEED).keeping_sequences()).unwrap().visitor.finish();
        let seen = Arc::new(restored.seen.clone().unwrap());
        let tally = Tally::new(SEED).keeping_sequences().only(Arc::clone(&seen));
        let among = walk(&archive.plain[..], stream, tally).unwrap().visitor.finish();
        assert_eq!(among.counts.all, restored.counts.all);
        assert_eq!(among.counts.disordered, 0);
        assert_eq!(among.difference(&restored, 9), None);
        let all = walk(&archive.plain[..], stream, Tally::new(SEED).keeping_sequences()).unwrap().visitor.finish();
        let (not_restored, gone) = (all.seen.unwrap().without(&seen), gone(&listing("2.9")[stream]));
        assert!(not_restored.first(usize::MAX).iter().all(|seq| gone.contains(seq)), "{stream}: {not_restored:?}");
        left_out += not_restored.len();
    }
    assert!(left_out > 10, "{left_out}");
}

#[test]
fn the_pieces_that_an_archive_comes_in_do_not_matter() {
    let mut chance = Chance(3);
    for Fixture { name, stream, sent, plain } in fixtures() {
        let whole = read(&plain, &stream).unwrap();
        let most: &[usize] = if plain.len() > 30_000 { &[700, 70_000] } else { &[1, 2, 7, 100, 5000] };
        for most in most {
            let from = Pieces { bytes: &plain, lens: || 1 + chance.below(*most) };
            let walked = walk(from, &stream, Keep::default()).unwrap();
            assert_eq!(walked.visitor, whole.visitor, "{name} in pieces of up to {most}");
            let from = Pieces { bytes: &sent, lens: || 1 + chance.below(*most) };
            let walked = walk(decoder(from), &stream, Keep::default()).unwrap();
            assert_eq!(walked.visitor, whole.visitor, "{name}, sent in pieces of up to {most}");
            assert_eq!(walked.length, whole.length);
        }
    }
}

#[test]
fn what_is_damaged_on_the_disk_of_the_server_is_noticed() {
    for (name, stream, what) in [
        ("2.9-lost", "lost", "the server says that the archive is not whole: Could not read message block [1]: open "),
        ("2.12-short", "short", "in `msgs/1.blk`: a record of 44 bytes in a block that has 12 more"),
        ("2.9-rotten", "rotten", "in `msgs/1.blk`: the checksum of the record with sequence 4 does not hold"),
        ("2.12-rotten", "rotten", "in `msgs/1.blk`: the checksum of the record with sequence 4 does not hold"),
    ] {
        let sent = fs::read(folder().join(format!("{name}.broken"))).unwrap();
        let error = walk(decoder(&sent[..]), stream, Keep::default()).unwrap_err().to_string();
        assert!(error.contains(what), "{name}: {error}");
    }
}

#[test]
fn a_visitor_ends_the_walk() {
    #[derive(Debug)]
    struct Enough;
    impl Visitor for Enough {
        fn message(&mut self, message: &Message<'_>) -> Result<(), String> {
            if message.seq > 4 { Err("enough".into()) } else { Ok(()) }
        }
    }
    for name in ["2.9-holes", "2.15-holes"] {
        let error = walk(&fixture(name).plain[..], "holes", Enough).unwrap_err();
        assert!(matches!(error, ArchiveError::Stopped(why) if why == "enough"));
    }
}
