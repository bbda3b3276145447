//! Format 2: `NATSARC1`, then records.
//!
//! A record is: uvarint length of the name, varint time in ns, uvarint sequence, uvarint length of the headers, uvarint
//! length of the payload; name, headers, payload. Records of sequence 0 are files: `state.json` first, then as many
//! `consumers/NAME` as it says. The others are messages, named by their subject, in ascending order. A record of
//! nothing at all is the end.

use std::io::Read;

use super::{
    ArchiveError, ArchivedState, MAGIC, MAX_FILE, MAX_MESSAGE, MAX_SUBJECT, Message, Visitor, consumer, input::Input,
};

const STATE: &[u8] = b"state.json";
const CONSUMERS: &[u8] = b"consumers/";

/// A record before its name and content.
struct Head {
    /// Where it begins.
    offset: u64,
    name: u64,
    time: i64,
    seq: u64,
    headers: u64,
    payload: u64,
}

impl Head {
    fn read<R: Read>(input: &mut Input<R>) -> Result<Self, ArchiveError> {
        let offset = input.offset();
        let name = input.uvarint("length of the name")?;
        let time = input.varint("time")?;
        let seq = input.uvarint("sequence")?;
        let headers = input.uvarint("length of the headers")?;
        let payload = input.uvarint("length of the payload")?;
        Ok(Self { offset, name, time, seq, headers, payload })
    }

    fn is_end(&self) -> bool {
        matches!(self, Self { name: 0, time: 0, seq: 0, headers: 0, payload: 0, .. })
    }

    /// The lengths of name, headers and payload, once they are known to be bearable.
    fn lengths<R: Read>(&self, input: &mut Input<R>, most: u64) -> Result<(usize, usize, usize), ArchiveError> {
        let Self { offset, name, headers, payload, .. } = *self;
        if name > MAX_SUBJECT {
            return Err(input.corrupt_at(offset, format!("a name of {name} bytes; {MAX_SUBJECT} are the most")));
        }
        match headers.checked_add(payload) {
            // All three are far below 2^32 now.
            Some(length) if length <= most => Ok((name as usize, headers as usize, payload as usize)),
            _ => {
                let what = format!("headers of {headers} and a payload of {payload} bytes; {most} are the most");
                Err(input.corrupt_at(offset, what))
            }
        }
    }
}

/// A record that is a file: its name and content.
fn file<'a, R: Read>(input: &'a mut Input<R>, head: &Head) -> Result<(&'a [u8], &'a [u8]), ArchiveError> {
    let (name, headers, payload) = head.lengths(input, MAX_FILE)?;
    if head.seq != 0 || headers != 0 {
        let what = format!("a message of sequence {} where a file should be", head.seq);
        return Err(input.corrupt_at(head.offset, what));
    }
    let named = input.peek(name)?.to_vec();
    input.enter(&named);
    Ok(input.take(name + payload)?.split_at(name))
}

pub(super) fn walk<R: Read>(input: &mut Input<R>, visitor: &mut impl Visitor) -> Result<(), ArchiveError> {
    input.skip(MAGIC.len() as u64)?;
    input.enter(STATE);
    let state = state(input, visitor)?;
    for _ in 0..state.consumer_count {
        consumer(input, visitor)?;
    }
    messages(input, &state, visitor)?;
    input.enter(b"");
    if input.peek(1)?.is_empty() { Ok(()) } else { Err(input.corrupt("something follows the end mark")) }
}

fn state<R: Read>(input: &mut Input<R>, visitor: &mut impl Visitor) -> Result<ArchivedState, ArchiveError> {
    let head = Head::read(input)?;
    let (name, json) = file(input, &head)?;
    if name != STATE {
        return Err(input.corrupt_at(head.offset, "it should be state.json"));
    }
    let state: ArchivedState = match serde_json::from_slice(json) {
        Ok(state) => state,
        Err(error) => return Err(input.corrupt_at(head.offset, format!("no state: {error}"))),
    };
    visitor.state(&state, json).map_err(ArchiveError::Stopped)?;
    // What the server that restores it refuses. Of an empty stream that has moved on the first is one above the last.
    let whole = match (state.first_seq, state.last_seq) {
        (0, last) => last == 0 && state.messages == 0,
        (first, last) if first > last => first - 1 == last && state.messages == 0,
        (first, last) => state.messages - u64::from(state.messages > 0) <= last - first,
    };
    if whole {
        Ok(state)
    } else {
        let ArchivedState { messages, first_seq, last_seq, .. } = state;
        Err(input.corrupt_at(head.offset, format!("{messages} messages from {first_seq} to {last_seq} cannot be")))
    }
}

fn consumer<R: Read>(input: &mut Input<R>, visitor: &mut impl Visitor) -> Result<(), ArchiveError> {
    let head = Head::read(input)?;
    if head.is_end() {
        return Err(input.corrupt_at(head.offset, "fewer consumers than state.json says"));
    }
    let (name, json) = file(input, &head)?;
    let Some(name) = name.strip_prefix(CONSUMERS) else {
        return Err(input.corrupt_at(head.offset, "it should be a consumer"));
    };
    match consumer::from_record(name, json) {
        Ok(consumer) => visitor.consumer(&consumer).map_err(ArchiveError::Stopped),
        Err(what) => Err(input.corrupt_at(head.offset, what)),
    }
}

/// Every message, and the end mark.
fn messages<R: Read>(
    input: &mut Input<R>,
    state: &ArchivedState,
    visitor: &mut impl Visitor,
) -> Result<(), ArchiveError> {
    input.enter(b"messages");
    let mut last = None;
    loop {
        let head = Head::read(input)?;
        if head.is_end() {
            return Ok(());
        }
        let Head { offset, seq, time, .. } = head;
        if seq == 0 {
            return Err(input.corrupt_at(offset, "a record without a sequence that is not the end mark"));
        }
        if let Some(last) = last.filter(|last| seq <= *last) {
            return Err(input.corrupt_at(offset, format!("sequence {seq} follows {last}")));
        }
        if seq < state.first_seq || seq > state.last_seq {
            let ArchivedState { first_seq, last_seq, .. } = state;
            let what = format!("sequence {seq} in a stream from {first_seq} to {last_seq}");
            return Err(input.corrupt_at(offset, what));
        }
        last = Some(seq);
        let (name, headers, payload) = head.lengths(input, MAX_MESSAGE)?;
        let (subject, content) = input.take(name + headers + payload)?.split_at(name);
        let (headers, payload) = content.split_at(headers);
        visitor.message(&Message { seq, time, subject, headers, payload }).map_err(ArchiveError::Stopped)?;
    }
}
