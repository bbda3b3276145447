//! Archives that are damaged: on the way from a server, on the way to one, and in the repository.
//!
//! On the way an archive is compressed. To change one byte of the archive at a place of our choice, it is decompressed, packed again in
//! frames that end at each of its boundaries and hold its bytes as they are, and changed then: as a network would, which makes no
//! checksums anew.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    sync::{Arc, Mutex},
};

use altlas_backup::source::nats::archive;
use serde_json::{Value, json};

use super::{
    SOON, back_up, before, initialised, restore, restore_at,
    wire::{Chunk, Fate, chunks},
};
use crate::support::{
    mode::{Mode, in_both_modes},
    nats::{Nats, NatsVersion},
    proxy::Way,
    workspace::Workspace,
};

in_both_modes! {
    in_the_repository,
}

// --- The formats, as far as their boundaries go ------------------------------------------------------------------------

/// Where a part of an archive begins and another ends, in ascending order, both ends of the archive among them.
fn boundaries(plain: &[u8]) -> Vec<usize> {
    let mut found = if plain.starts_with(b"NATSARC1") { of_records(plain) } else { of_files(plain) };
    found.extend([0, plain.len()]);
    found.sort_unstable();
    found.dedup();
    assert!(*found.last().unwrap() == plain.len(), "the boundaries are within the archive");
    found
}

/// Format 2: each record, its name, its headers and its payload.
fn of_records(plain: &[u8]) -> Vec<usize> {
    let (mut at, mut found) = (8, Vec::new());
    while at < plain.len() {
        found.push(at);
        let mut number = || {
            let mut number = 0;
            for shift in (0..).step_by(7) {
                number |= usize::from(plain[at] & 0x7f) << shift;
                at += 1;
                if plain[at - 1] < 0x80 {
                    break;
                }
            }
            number
        };
        let [name, _time, _sequence, headers, payload] = std::array::from_fn(|_| number());
        for length in [name, headers, payload] {
            found.push(at);
            at += length;
        }
    }
    found
}

/// Format 1: each header of the tar, each file, what fills it up, and in a block each record and its fields.
fn of_files(plain: &[u8]) -> Vec<usize> {
    let (mut at, mut found) = (0, Vec::new());
    // A name begins with a zero nowhere but at the end.
    while plain[at] != 0 {
        let text = |from: usize, to: usize| {
            String::from_utf8_lossy(&plain[at + from..at + to]).trim_end_matches(['\0', ' ']).to_owned()
        };
        let (name, size) = (text(0, 100), usize::from_str_radix(&text(124, 136), 8).unwrap());
        let content = at + 512;
        found.extend([at, content, content + size]);
        // Not the pax records of a block, which have a header of another kind and nearly the same name.
        if name.ends_with(".blk") && plain[at + 156] == b'0' {
            let mut record = content;
            while record < content + size {
                let length = u32::from_le_bytes(plain[record..record + 4].try_into().unwrap()) & !(1 << 31);
                let subject = u16::from_le_bytes(plain[record + 20..record + 22].try_into().unwrap());
                found.extend([0, 4, 12, 20, 22, 22 + usize::from(subject)].map(|field| record + field));
                record += length as usize;
                found.push(record - 8);
            }
        }
        at = content + size.next_multiple_of(512);
    }
    // Two blocks of zeros.
    found.extend([at, at + 512]);
    found
}

fn decompressed(s2: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    archive::decoder(s2).read_to_end(&mut plain).unwrap();
    plain
}

const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// One frame of S2 that holds these bytes as they are.
fn frame(plain: &[u8]) -> Vec<u8> {
    let length = u32::try_from(plain.len() + 4).unwrap().to_le_bytes();
    let checksum = CRC.checksum(plain).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    [&[1], &length[..3], &checksum, plain].concat()
}

/// Bytes of a frame before its content.
const FRAME: usize = 8;
/// What an S2 stream begins with.
const BEGIN: &[u8] = b"\xff\x06\0\0S2sTwO";

/// How an archive is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// One bit of the byte at this boundary.
    Flip(usize),
    /// It ends at this boundary, and the compression ends well.
    End(usize),
    /// It ends in the middle of the frame that begins at this boundary.
    Cut(usize),
    /// One bit of what the compression itself consists of: this byte of its beginning and of the first frame's head.
    OfS2(usize),
    /// This chunk of several is lost, the last for -1; or comes twice; or the next one is before it.
    Lost(isize),
    Twice(usize),
    Swapped(usize),
}

impl Damage {
    /// All for an archive with so many boundaries.
    fn all(boundaries: usize) -> Vec<Self> {
        // Nothing begins at the last one.
        let each = 0..boundaries - 1;
        let flips = each.clone().map(Self::Flip);
        let ends = each.clone().map(Self::End);
        // Some of the middles: behind the compression's own checksum nothing differs.
        let cuts = each.step_by(5).map(Self::Cut);
        let of_s2 = (0..BEGIN.len() + FRAME).map(Self::OfS2);
        flips.chain(ends).chain(cuts).chain(of_s2).collect()
    }

    /// Of one whose archive comes in many chunks.
    fn of_chunks() -> [Self; 5] {
        [Self::Lost(-1), Self::Lost(0), Self::Lost(5), Self::Twice(5), Self::Swapped(5)]
    }

    /// What comes of these chunks, which are all of an archive's.
    fn apply(self, chunks: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut chunks = chunks;
        match self {
            Self::Lost(number) => {
                let index = usize::try_from(number).unwrap_or(chunks.len() - 1);
                chunks.remove(index);
                return chunks;
            }
            Self::Twice(index) => {
                chunks.insert(index, chunks[index].clone());
                return chunks;
            }
            Self::Swapped(index) => {
                chunks.swap(index, index + 1);
                return chunks;
            }
            _ => {}
        }
        let plain = decompressed(&chunks.concat());
        let boundaries = boundaries(&plain);
        let frames: Vec<Vec<u8>> = boundaries.windows(2).map(|pair| frame(&plain[pair[0]..pair[1]])).collect();
        let start = |index: usize| BEGIN.len() + frames[..index].iter().map(Vec::len).sum::<usize>();
        let mut s2 = [BEGIN, &frames.concat()].concat();
        match self {
            Self::Flip(index) => s2[start(index) + FRAME] ^= 1,
            Self::End(index) => s2.truncate(start(index)),
            Self::Cut(index) => s2.truncate(start(index) + frames[index].len() / 2),
            Self::OfS2(byte) => s2[byte] ^= 1,
            Self::Lost(_) | Self::Twice(_) | Self::Swapped(_) => unreachable!("dealt with above"),
        }
        s2.chunks(4096).map(<[u8]>::to_vec).collect()
    }
}

/// What a hook gathers of one snapshot, and what becomes of it: nothing goes on before the end, and then `make` says what does.
fn whole(mut make: impl FnMut(&Chunk, Vec<Vec<u8>>) -> Vec<Vec<u8>> + Send) -> impl FnMut(&Chunk) -> Fate + Send {
    let mut gathered: HashMap<(String, u32), Vec<Vec<u8>>> = HashMap::new();
    move |chunk| {
        let all = gathered.entry((chunk.stream.clone(), chunk.attempt)).or_default();
        if chunk.payload.is_empty() {
            let all = std::mem::take(all);
            return Fate::Before(make(chunk, all));
        }
        all.push(chunk.payload.clone());
        Fate::Instead(Vec::new())
    }
}

/// A stream of two messages and a consumer.
fn create_small(server: &Nats, name: &str) {
    let subject = name.to_lowercase();
    server.ask(&format!("STREAM.CREATE.{name}"), &json!({ "name": name, "subjects": [subject] }));
    let consumer = json!({ "stream_name": name, "config": { "durable_name": "reader", "ack_policy": "explicit" } });
    server.ask(&format!("CONSUMER.DURABLE.CREATE.{name}.reader"), &consumer);
    server.publish(&subject, b"the first message");
    server.publish(&subject, b"the second message");
}

/// A stream of 1.5 MB that does not compress.
fn create_larger(server: &Nats, name: &str) {
    let subject = name.to_lowercase();
    server.ask(&format!("STREAM.CREATE.{name}"), &json!({ "name": name, "subjects": [subject] }));
    for _ in 0..15 {
        let payload: Vec<u8> = (0..25_000).flat_map(|_| rand::random::<u32>().to_le_bytes()).collect();
        server.publish(&subject, &payload);
    }
}

// --- On the way from a server ------------------------------------------------------------------------------------------

/// One byte that changes, or an end, at every boundary: no such stream is in the backup, and it is named. Where only the first snapshot is
/// damaged, the next one is taken in its place.
#[test]
fn on_the_way_from_a_server() {
    std::thread::scope(|scope| {
        for version in NatsVersion::ENDS {
            scope.spawn(move || damaged_snapshots(version));
        }
    });
}

fn damaged_snapshots(version: NatsVersion) {
    let server = Nats::start(version);
    create_small(&server, "SOUND_000");
    let proxy = before(&server);
    let url = format!("nats://{}@127.0.0.1:{}", server.user(), proxy.port());
    // How many boundaries there are.
    let seen = Arc::new(Mutex::new(0));
    let number = Arc::clone(&seen);
    proxy.on_bytes(chunks(whole(move |_, chunks| {
        *number.lock().unwrap() = boundaries(&decompressed(&chunks.concat())).len();
        chunks
    })));
    let mut workspace = Workspace::folder().nats_as("messages", &url, &server.password_file());
    workspace.run(&["init"]).ok();
    back_up(&workspace);
    let count = *seen.lock().unwrap();
    assert!(count >= 15, "{count} boundaries");

    // Each in a stream, and each stream a source of its own: they are tried side by side.
    let damages: Vec<Damage> = Damage::all(count).into_iter().chain(Damage::of_chunks()).collect();
    let mut cases = BTreeMap::new();
    workspace.set("limits.memory_mib", 512);
    workspace.set("source.0.streams", vec!["SOUND_000"]);
    for (n, damage) in damages.into_iter().enumerate() {
        let name = format!("DAMAGE_{n:03}");
        match damage {
            Damage::Lost(_) | Damage::Twice(_) | Damage::Swapped(_) => create_larger(&server, &name),
            _ => create_small(&server, &name),
        }
        workspace = workspace.nats_as(&name.to_lowercase().replace('_', "-"), &url, &server.password_file());
        workspace.set(&format!("source.{}.streams", n + 1), vec![name.clone()]);
        cases.insert(name, damage);
    }
    println!("{}: {} cases at {count} boundaries", version.number(), cases.len());
    let cases = Arc::new(cases);
    let attempts: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let damage = |always: bool| {
        let (cases, attempts) = (Arc::clone(&cases), Arc::clone(&attempts));
        whole(move |chunk, chunks| {
            attempts.lock().unwrap().insert(chunk.stream.clone(), chunk.attempt);
            match cases.get(&chunk.stream) {
                Some(damage) if always || chunk.attempt == 1 => damage.apply(chunks),
                _ => chunks,
            }
        })
    };
    proxy.on_bytes(chunks(damage(true)));
    let output = workspace.run(&["--json", "backup"]).deadline(SOON * 4).output().assert_code(5);
    assert!(!output.stderr.contains("panicked"), "{}", output.text());
    let report = output.json();
    let sources = report["sources"].as_array().unwrap();
    assert_eq!(sources[0]["state"], "complete", "{}", sources[0]);
    for ((name, damage), source) in cases.iter().zip(&sources[1..]) {
        assert_eq!(source["state"], "failed", "{damage:?}: {source}");
        let error = source["error"].as_str().unwrap();
        assert!(error.contains(&format!("archive of stream `{name}` cannot be used")), "{damage:?}: {error}");
        assert!(source["hint"].is_string(), "{source}");
        assert_eq!(attempts.lock().unwrap()[name], 3, "{damage:?} of {name} was tried again");
    }
    assert_eq!(sources.len(), cases.len() + 1);

    // A passing trouble: the next snapshot is whole.
    proxy.on_bytes(chunks(damage(false)));
    let report = workspace.run(&["--json", "backup"]).deadline(SOON * 4).output().assert_code(0).json();
    assert_eq!(report["state"], "complete");
    assert!(attempts.lock().unwrap().iter().all(|(name, attempts)| *attempts == 2 || name == "SOUND_000"));
    let id = report["backup"].as_str().unwrap();
    let shown = workspace.run(&["--json", "show", id]).ok().json();
    let messages: u64 =
        shown["head"]["sources"].as_array().unwrap().iter().map(|source| source["rows"].as_u64().unwrap()).sum();
    assert_eq!(messages, server.streams().iter().map(|name| server.messages(name)).sum::<u64>());
    workspace.run(&["verify", id, "--level", "content"]).ok();
}

// --- On the way to a server --------------------------------------------------------------------------------------------

/// What arrives damaged at a target is refused there, or seen when it is taken back; nothing of it is left.
#[test]
fn on_the_way_to_a_server() {
    std::thread::scope(|scope| {
        for version in NatsVersion::ENDS {
            scope.spawn(move || damaged_restores(version));
        }
    });
}

fn damaged_restores(version: NatsVersion) {
    let source = Nats::start(version);
    create_larger(&source, "LARGER");
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let workspace = &workspace;
    // Which chunk of those that come, which byte of it, and whether it ends there.
    let cases = [
        (0, Place::First, false),
        (0, Place::First, true),
        (0, Place::Byte(12), false),
        (0, Place::Last, false),
        (9, Place::First, false),
        (9, Place::Byte(5), false),
        (9, Place::Byte(5), true),
        (9, Place::Last, true),
    ];
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(move || damaged_restore(workspace, version, case));
        }
    });
}

#[derive(Clone, Copy, Debug)]
enum Place {
    First,
    Byte(usize),
    Last,
}

fn damaged_restore(workspace: &Workspace, version: NatsVersion, case: (usize, Place, bool)) {
    let (number, place, ends) = case;
    let target = Nats::start(version);
    let proxy = before(&target);
    let mut count = 0;
    proxy.on_bytes(chunks(move |chunk| {
        if chunk.way == Way::Down || chunk.payload.is_empty() {
            return Fate::Pass;
        }
        count += 1;
        if count != number + 1 {
            return Fate::Pass;
        }
        let mut payload = chunk.payload.clone();
        let at = match place {
            Place::First => 0,
            Place::Byte(at) => at,
            Place::Last => payload.len() - 1,
        };
        match ends {
            // An empty one would be the end that we say.
            true => payload.truncate(at.max(1)),
            false => payload[at] ^= 1,
        }
        Fate::Instead(vec![payload])
    }));
    let url = format!("nats://{}@127.0.0.1:{}", target.user(), proxy.port());
    let output = restore_at(workspace, &url, &target, &[]).deadline(SOON * 2).output();
    let output = output.assert_error(1, &["source `messages`", "`LARGER`", "nothing is left of stream `LARGER`"]);
    assert!(output.stderr.contains("\nhint: "), "{case:?}: {}", output.text());
    assert_eq!(target.streams(), Vec::<String>::new(), "{case:?}: {}", output.text());
    proxy.reset();
    restore(workspace, &target, &[]).ok();
    assert_eq!(target.messages("LARGER"), 15);
}

// --- In the repository -------------------------------------------------------------------------------------------------

/// How a stored part is damaged.
#[derive(Clone, Copy, Debug)]
enum OfPart {
    Flipped(fn(usize) -> usize),
    EndsAt(fn(usize) -> usize),
    Gone,
    /// Holds what another part holds.
    Another,
}

/// Every stream's parts, by the names of their objects.
fn parts(workspace: &Workspace, stream: &str) -> Vec<String> {
    let shown = workspace.run(&["--json", "show", "latest"]).ok().json();
    let artifacts = shown["sources"][0]["artifacts"].as_array().unwrap();
    let artifact = artifacts.iter().find(|artifact| artifact["path"] == format!("streams/{stream}")).unwrap();
    let keys: Vec<String> = workspace.objects().into_keys().filter(|key| key.contains("/parts/")).collect();
    let key = |part: &Value| keys.iter().find(|key| key.contains(part["name"].as_str().unwrap())).unwrap().clone();
    artifact["parts"].as_array().unwrap().iter().map(key).collect()
}

/// A damaged part is found by a verification, which names its stream; a restore leaves what a target holds.
fn in_the_repository(mode: Mode) {
    for version in NatsVersion::ENDS {
        let source = Nats::start(version);
        create_small(&source, "ALPHA");
        source.fill("large", 2500, 1);
        let workspace = initialised(mode, &source);
        back_up(&workspace);
        let damaged = parts(&workspace, "LARGE");
        assert!(damaged.len() > 1, "{damaged:?}");
        // A target that holds older ones of the same names, and one that holds only the sound one.
        let (both, one, none) = (Nats::start(version), Nats::start(version), Nats::start(version));
        for target in [&both, &one] {
            create_small(target, "ALPHA");
        }
        create_small(&both, "LARGE");
        let held = [&both, &one].map(|target| target.digest(&["--messages"]));
        let cases = [
            (0, OfPart::Flipped(|_| 0)),
            (0, OfPart::Flipped(|length| length / 2)),
            (1, OfPart::Flipped(|length| length - 1)),
            (1, OfPart::EndsAt(|length| length - 1)),
            (0, OfPart::EndsAt(|_| 0)),
            (1, OfPart::Gone),
            (1, OfPart::Another),
        ];
        for (number, damage) in cases {
            let case = workspace.copy();
            let path = case.repository_folder().join(&damaged[number]);
            let mut bytes = std::fs::read(&path).unwrap();
            match damage {
                OfPart::Flipped(at) => {
                    let at = at(bytes.len());
                    bytes[at] ^= 1;
                }
                OfPart::EndsAt(at) => bytes.truncate(at(bytes.len())),
                OfPart::Gone => {}
                OfPart::Another => {
                    bytes = std::fs::read(case.repository_folder().join(&damaged[1 - number])).unwrap();
                }
            }
            std::fs::remove_file(&path).unwrap();
            if !matches!(damage, OfPart::Gone) {
                std::fs::write(&path, bytes).unwrap();
            }
            let verified = case.run(&["verify", "latest", "--level", "content"]).output().assert_code(3);
            assert!(verified.stdout.contains("streams/LARGE"), "{damage:?}: {}", verified.text());
            assert!(!verified.stdout.contains("streams/ALPHA"), "{damage:?}: {}", verified.text());
            for (target, before) in [&both, &one].into_iter().zip(&held) {
                let output = restore(&case, target, &["--overwrite"]).deadline(SOON * 2).output();
                assert!(matches!(output.code, Some(1 | 6)), "{damage:?}: {}", output.text());
                let code = output.code.unwrap();
                let output = output.assert_error(code, &["part"]);
                println!("{damage:?}: {}", output.stderr.lines().find(|line| line.starts_with("error")).unwrap());
                before.assert_same(&target.digest(&["--messages"]));
            }
        }
        // Into an empty one: nothing of it is left.
        let case = workspace.copy();
        let path = case.repository_folder().join(&damaged[1]);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let output = restore(&case, &none, &[]).deadline(SOON * 2).output();
        output.assert_error(1, &["source `messages`", "nothing is left of stream `LARGE`"]);
        assert!(!none.streams().contains(&"LARGE".to_owned()), "{:?}", none.streams());
    }
}
