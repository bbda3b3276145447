//! Consumers of both formats: their configuration as it is, and of their state what tells how far they are.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::MAX_CONFIG;

/// How `o.dat` begins; the versions that are known.
const MAGIC: u8 = 22;
const VERSIONS: [u8; 2] = [1, 2];

/// A place in a stream, and in a consumer's own count of deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// The delivery's number, from 1 on.
    #[serde(rename = "consumer_seq")]
    pub consumer: u64,
    /// The message's sequence in the stream.
    #[serde(rename = "stream_seq")]
    pub stream: u64,
}

/// How far a consumer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerState {
    /// Everything up to here is acknowledged.
    pub ack_floor: Delivered,
    /// Everything up to here is delivered.
    pub delivered: Delivered,
    /// Messages that are delivered and not acknowledged.
    pub pending: u64,
}

/// A consumer that an archive holds.
#[derive(Clone, Debug)]
pub struct ArchivedConsumer {
    /// Its name. It is UTF-8, or the archive is corrupt.
    pub name: String,
    /// Its configuration in JSON, as the server wrote it; 1 MiB at most.
    pub config: Box<RawValue>,
    /// How far it is; absent where a format 1 archive has no `o.dat` of it.
    pub state: Option<ConsumerState>,
}

/// The content of a format 2 record.
#[derive(Deserialize)]
struct Record {
    config: Box<RawValue>,
    state: RecordState,
}

#[derive(Deserialize)]
struct RecordState {
    #[serde(default)]
    ack_floor: Delivered,
    #[serde(default)]
    delivered: Delivered,
    #[serde(default)]
    pending: Counted,
}

/// The number of entries of an object, of which none is kept.
#[derive(Default)]
struct Counted(u64);

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Counted;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_unit<E>(self) -> Result<Counted, E> {
                Ok(Counted(0))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Counted, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Counted(count))
            }
        }
        from.deserialize_any(Count)
    }
}

fn name(name: &[u8]) -> Result<String, String> {
    match std::str::from_utf8(name) {
        Ok(text) if !text.is_empty() && !text.contains('/') => Ok(text.to_owned()),
        _ => Err("no name of a consumer".into()),
    }
}

fn bounded(config: Box<RawValue>) -> Result<Box<RawValue>, String> {
    match config.get() {
        text if text.len() > MAX_CONFIG => {
            Err(format!("a configuration of {} bytes; {MAX_CONFIG} are the most", text.len()))
        }
        text if !text.starts_with('{') => Err("the configuration is no JSON object".into()),
        _ => Ok(config),
    }
}

/// A consumer of format 2, whose state must be there: a server does not restore it else.
pub(super) fn from_record(called: &[u8], json: &[u8]) -> Result<ArchivedConsumer, String> {
    let Record { config, state } = serde_json::from_slice(json).map_err(|error| format!("no consumer: {error}"))?;
    let RecordState { ack_floor, delivered, pending: Counted(pending) } = state;
    let state = Some(ConsumerState { ack_floor, delivered, pending });
    Ok(ArchivedConsumer { name: name(called)?, config: bounded(config)?, state })
}

/// A consumer of format 1, of its `meta.inf` and `o.dat`.
pub(super) fn from_files(called: &[u8], meta: &[u8], state: Option<ConsumerState>) -> Result<ArchivedConsumer, String> {
    let config = serde_json::from_slice(meta).map_err(|error| format!("no configuration: {error}"))?;
    Ok(ArchivedConsumer { name: name(called)?, config: bounded(config)?, state })
}

/// Reads `o.dat`: magic, version, then uvarints: acknowledged in consumer and stream, delivered in consumer and stream,
/// how many are pending (a time and as many entries), how many were delivered again (as many entries). Source:
/// `encodeConsumerState`, `decodeConsumerState` (2.9.10, 2.15.1).
pub(super) fn state(bytes: &[u8]) -> Result<ConsumerState, String> {
    let mut at = Varints { bytes };
    let (magic, version) = (at.byte()?, at.byte()?);
    if magic != MAGIC || !VERSIONS.contains(&version) {
        return Err(format!("a consumer's state of kind {magic}, version {version}, is not known"));
    }
    let ack_floor = Delivered { consumer: at.next()?, stream: at.next()? };
    let mut delivered = Delivered { consumer: at.next()?, stream: at.next()? };
    if version == 1 {
        // It was written as a distance from what is acknowledged.
        let of = |floor: u64, distance: u64| match floor {
            0 | 1 => Some(distance),
            floor => distance.checked_add(floor - 1),
        };
        let moved = (of(ack_floor.consumer, delivered.consumer), of(ack_floor.stream, delivered.stream));
        let (Some(consumer), Some(stream)) = moved else { return Err("what was delivered is beyond 64 bits".into()) };
        delivered = Delivered { consumer, stream };
    }
    let pending = at.next()?;
    if pending > 0 {
        at.next()?;
    }
    for _ in 0..pending {
        // The message, in version 2 its delivery, and when.
        (0..=u32::from(version)).try_for_each(|_| at.next().map(drop))?;
    }
    for _ in 0..at.next()? {
        (0..2).try_for_each(|_| at.next().map(drop))?;
    }
    if at.bytes.is_empty() {
        Ok(ConsumerState { ack_floor, delivered, pending })
    } else {
        Err("something follows it".into())
    }
}

/// Numbers one after the other.
struct Varints<'a> {
    bytes: &'a [u8],
}

impl Varints<'_> {
    fn byte(&mut self) -> Result<u8, String> {
        let (first, rest) = self.bytes.split_first().ok_or("it ends before its end")?;
        self.bytes = rest;
        Ok(*first)
    }

    fn next(&mut self) -> Result<u64, String> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("a number is longer than 64 bits".into())
    }
}
