//! Streams that are published to, deleted from and acknowledged in while they are captured.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    initialised,
    proof::{back_up, proven},
};
use crate::support::{
    mode::Mode,
    nats::{Nats, NatsVersion},
    wait_for,
};

/// Captures of each server.
const CAPTURES: usize = 10;
/// Messages in the larger streams beforehand: enough for a capture to last while others write.
const BEFORE: u64 = 10_000;

/// Each capture is complete and proved, and the server has lost nothing by them.
#[test]
fn ten_captures_of_2_15() {
    let source = Nats::start(NatsVersion::V215);
    let done = captured_while_written(&source, &[NatsVersion::V215]);
    assert_eq!(done["LOG"].refused, 0, "messages can be removed while a snapshot is taken");
    for (stream, done) in &done {
        match stream.as_str() {
            // Of a bucket each key keeps its last three.
            "KV_state" => assert_eq!(source.info(stream)["state"]["last_seq"], done.published),
            stream => assert_eq!(source.messages(stream), done.left(), "{stream}: {done:?}"),
        }
    }
}

/// The same of 2.9, which removes no message while a snapshot is taken: what is deleted then it refuses, and what was acknowledged
/// then may stay in a work queue for good. It loses nothing, and a backup says so.
#[test]
fn ten_captures_of_2_9() {
    let source = Nats::start(NatsVersion::V29);
    let done = captured_while_written(&source, &[NatsVersion::V215, NatsVersion::V29]);
    assert_eq!(source.messages("LOG"), done["LOG"].left(), "{:?}", done["LOG"]);
    for stream in ["WORK", "INTEREST"] {
        let (there, left) = (source.messages(stream), done[stream].left());
        println!("{stream}: {there} messages, {left} of them not acknowledged");
        assert!(there >= left, "{stream}: {there} messages, {:?}", done[stream]);
    }
    assert_eq!(source.info("KV_state")["state"]["last_seq"], done["KV_state"].published);
}

/// What the writer did to a stream, and the server confirmed.
#[derive(Debug)]
struct Done {
    published: u64,
    deleted: u64,
    refused: u64,
    /// By consumer.
    acknowledged: Vec<u64>,
    /// Does a message go when every consumer has acknowledged it, or one?
    by_all: bool,
}

impl Done {
    fn of(report: &Value) -> Self {
        let number = |field: &str| report[field].as_u64().unwrap();
        let acknowledged = report["acked"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).collect();
        let by_all = report["stream"] == "INTEREST";
        Self {
            published: number("published"),
            deleted: number("deleted"),
            refused: number("refused"),
            acknowledged,
            by_all,
        }
    }

    /// Messages that the stream must still have. Consumers of the stream with interest get them all, in order.
    fn left(&self) -> u64 {
        let acknowledged = match self.by_all {
            true => self.acknowledged.iter().min().copied().unwrap_or_default(),
            false => self.acknowledged.iter().sum(),
        };
        self.published - self.deleted - acknowledged
    }
}

/// Captures a server while the writer is busy, and proves each capture by the first of these versions, and one by all of them.
fn captured_while_written(source: &Nats, scratches: &[NatsVersion]) -> BTreeMap<String, Done> {
    let writer = source.writer(BEFORE);
    let workspace = initialised(Mode::Clear, source);
    let changes = |stream| {
        let state = source.info(stream)["state"].clone();
        (state["last_seq"].as_u64().unwrap(), state["num_deleted"].as_u64().unwrap_or_default())
    };
    let mut backups = Vec::new();
    for _ in 0..CAPTURES {
        let before = changes("LOG");
        backups.push(back_up(&workspace));
        // Whatever the server refused meanwhile: it was used.
        wait_for("the writer", super::SOON, || (changes("LOG") > before).then_some(()));
    }
    let reports = writer.finish();
    let scratches: Vec<Nats> = scratches.iter().map(|version| Nats::start(*version)).collect();
    for (n, backup) in backups.iter().enumerate() {
        let by = if n == CAPTURES / 2 { scratches.len() } else { 1 };
        for scratch in &scratches[..by] {
            let proofs = proven(&workspace, backup, scratch);
            let names: Vec<&str> = proofs.iter().map(|proof| proof.stream.as_str()).collect();
            assert_eq!(names, ["INTEREST", "KV_state", "LOG", "WORK"]);
            let log = &proofs[2];
            assert!(log.messages > BEFORE / 2, "{log:?}");
            let consumers = proofs.iter().map(|proof| proof.consumers).sum::<u64>();
            assert_eq!(consumers, 4, "{proofs:?}");
        }
    }
    reports.iter().map(|report| (report["stream"].as_str().unwrap().to_owned(), Done::of(report))).collect()
}
