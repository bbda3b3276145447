//! What there is: which streams a snapshot takes, and what is known of each.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    archive::Format,
    error::NatsError,
    plan::{MARK, is_marked},
    ranges::{self, Ranges},
    server::{Connection, Version},
    tally::Mark,
    told::Told,
};
use crate::{config::NamePattern, report};

/// What a manifest says of a NATS snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Detail {
    /// The server's version.
    pub(super) server: String,
    /// Streams that were captured.
    pub(super) streams: u64,
    /// Their names; older versions did not keep them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) names: Vec<String>,
}

/// What a manifest says of a stream, beside its archive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StreamDetail {
    /// The stream's name.
    pub(super) name: String,
    /// How its archive is written.
    pub(super) archive: Format,
    /// As the server told it when the snapshot began, field by field.
    pub(super) config: Value,
    /// The same. Not what is in the archive: that is fuzzy where the stream is used.
    pub(super) state: Value,
    /// Every consumer as the server listed it right after.
    pub(super) consumers: Vec<Value>,
    /// Names of consumers that were listed and are not in the archive.
    pub(super) absent: Vec<String>,
    /// Names of consumers that are in the archive and were not listed: made or gone in between.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) unlisted: Vec<String>,
    /// When its snapshot was taken. In archives of format 1 this is the middle of the time in which it was read, for they hold what came
    /// meanwhile.
    pub(super) cut_at: Timestamp,
    /// How far off that may be.
    pub(super) cut_error_seconds: f64,
    /// The largest message: headers and payload, in bytes.
    pub(super) largest: u64,
    /// The last message in its archive, which may be younger than what the server announced; none where it holds none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<Mark>,
    /// For archives of format 1, which hold messages that were deleted: which those are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) deleted: Option<Deleted>,
    /// Fingerprints of all the others; older versions did not keep them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) told: Option<Told>,
}

/// What a stream had no more right after its snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Deleted {
    /// Everything before this sequence.
    pub(super) before: u64,
    /// And these: there may be millions, so they are one text.
    #[serde(with = "ranges::text")]
    pub(super) within: Ranges,
}

/// A stream as it is, read from `STREAM.INFO` without keeping more of it.
#[derive(Debug, Deserialize)]
pub(super) struct Now {
    /// When it was made.
    #[serde(default)]
    pub(super) created: Value,
    state: StateNow,
}

#[derive(Debug, Deserialize)]
struct StateNow {
    #[serde(default)]
    first_seq: u64,
    #[serde(default)]
    last_seq: u64,
    /// Where it was asked for (`deleted_details`): what is deleted between the first and the last message.
    #[serde(default, deserialize_with = "ranges::of_numbers")]
    deleted: Ranges,
}

impl Now {
    /// The last sequence that ever was.
    pub(super) fn last(&self) -> u64 {
        self.state.last_seq
    }

    /// What it has no more.
    pub(super) fn deleted(self) -> Deleted {
        Deleted { before: self.state.first_seq, within: self.state.deleted }
    }
}

impl Deleted {
    /// Is this message one of them?
    pub(super) fn holds(&self, sequence: u64) -> bool {
        sequence < self.before || self.within.contains(sequence)
    }
}

/// Where archives are among the artifacts.
pub(super) const FOLDER: &str = "streams/";

/// Where a stream's archive is among the artifacts. A stream's name holds no `/` (nats-server, `isValidName`).
pub(super) fn path(stream: &str) -> String {
    format!("{FOLDER}{stream}")
}

/// A stream that will be captured.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) messages: u64,
    pub(super) consumers: u64,
    /// Is it configured by its name, not by a pattern?
    pub(super) named: bool,
}

/// A stream that is asked for and cannot be captured.
#[derive(Clone, Debug)]
pub(super) struct Unavailable {
    /// Which, and why.
    pub(super) what: String,
    /// The next step.
    pub(super) hint: Option<String>,
}

/// What the configuration chooses among the streams of an account.
#[derive(Debug)]
pub(super) struct Inventory {
    /// The smallest first: the last snapshot begins early, and with it the source's instant is fixed.
    pub(super) chosen: Vec<Found>,
    /// What is left out, in words.
    pub(super) uncovered: Vec<String>,
    /// What is asked for and cannot be captured.
    pub(super) failed: Vec<Unavailable>,
}

impl Inventory {
    /// Looks at the server.
    pub(super) async fn take(connection: &Connection, patterns: &[NamePattern]) -> Result<Self, NatsError> {
        let listed = connection.streams().await?;
        let named = |name: &str| patterns.iter().any(|pattern| pattern.is_literal() && pattern.as_str() == name);
        let covered = |name: &str| patterns.iter().any(|pattern| pattern.matches(name));
        let names: Vec<&String> = listed.streams.iter().map(|(name, _)| name).chain(&listed.silent).collect();
        for pattern in patterns.iter().filter(|pattern| pattern.is_literal()) {
            if !names.iter().any(|name| *name == pattern.as_str()) {
                return Err(NatsError::NoStream { server: connection.server.clone(), stream: pattern.to_string() });
            }
        }
        let (mut chosen, mut uncovered, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for name in listed.silent.iter().filter(|name| covered(name)) {
            let silent = NatsError::Silent { server: connection.server.clone(), what: format!("stream `{name}`") };
            failed.push(Unavailable { what: silent.to_string(), hint: silent.hint() });
        }
        for (name, info) in &listed.streams {
            if !covered(name) {
                uncovered.push(format!("stream `{name}`, which `streams` does not name"));
                continue;
            }
            if info["config"]["storage"] == "memory" && !connection.version.sends_records() {
                let what =
                    format!("stream `{name}` is in memory, of which NATS {} takes no snapshot", connection.version);
                if named(name) {
                    let hint = "leave the stream out of `streams`, or run NATS 2.15 or newer".to_owned();
                    failed.push(Unavailable { what, hint: Some(hint) });
                } else {
                    uncovered.push(what);
                }
                continue;
            }
            if is_marked(&info["config"]) {
                let what = format!("stream `{name}` is half restored: it bears the mark `{MARK}` in its metadata");
                let hint = "restore it again, or delete it; if you know that it is whole, remove the mark".to_owned();
                failed.push(Unavailable { what, hint: Some(hint) });
                continue;
            }
            let number = |field: &str| info["state"][field].as_u64().unwrap_or_default();
            let (bytes, messages, consumers) = (number("bytes"), number("messages"), number("consumer_count"));
            chosen.push(Found { name: name.clone(), bytes, messages, consumers, named: named(name) });
        }
        chosen.sort_by(|a, b| (a.bytes, &a.name).cmp(&(b.bytes, &b.name)));
        Ok(Self { chosen, uncovered, failed })
    }
}

/// What to know of a server whose streams are captured.
pub(super) fn warnings(version: Version) -> Vec<String> {
    let mut warnings = Vec::new();
    if !version.removes_during_a_snapshot() {
        warnings.push(format!(
            "NATS {version} removes no message from a stream while its snapshot is taken: a work queue may keep some that were \
             acknowledged meanwhile (mended in 2.11.12 and 2.12.3)"
        ));
    }
    if !version.sends_records() {
        warnings.push(format!(
            "archives of NATS {version} hold deleted messages too, and only those that a restore brings back can be compared"
        ));
    }
    warnings
}

impl StreamDetail {
    /// Is there nothing in a stream with this `state` (as `STREAM.INFO` tells it) that came after what was captured? Only then can it be
    /// what a restore of this made.
    pub(super) fn holds_nothing_newer(&self, state: &Value) -> bool {
        let captured = self.state["last_seq"].as_u64().unwrap_or_default().max(self.last.map_or(0, |last| last.seq));
        if state["last_seq"].as_u64().is_none_or(|last| last > captured) {
            return false;
        }
        if state["messages"].as_u64() == Some(0) {
            return true;
        }
        let time = state["last_ts"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
        time.zip(self.last).is_some_and(|(time, last)| time.as_nanosecond() <= i128::from(last.time))
    }

    /// The stream in words.
    pub(super) fn about(&self, messages: u64) -> String {
        let text = |field: &str| self.config[field].as_str().unwrap_or("?").to_owned();
        let mut about = format!(
            "stream `{}` ({}, {}): {}",
            self.name,
            text("retention"),
            text("storage"),
            report::count(messages, "message")
        );
        if self.archive == Format::Blocks {
            about.push_str(" (deleted ones among them)");
        }
        about.push_str(&format!(", {}", report::count(self.consumers.len() as u64, "consumer")));
        if !self.absent.is_empty() {
            about.push_str(&format!(", of which the archive lacks {}", report::list(&self.absent, 3)));
        }
        about
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A stream of which ten messages were announced, and twelve were in the archive.
    #[test]
    fn what_a_restore_may_have_made_is_told_from_what_came_since() {
        let time: Timestamp = "2026-01-02T03:04:05.000000012Z".parse().unwrap();
        let detail = StreamDetail {
            name: "S".into(),
            archive: Format::Blocks,
            config: json!({}),
            state: json!({ "last_seq": 10 }),
            consumers: Vec::new(),
            absent: Vec::new(),
            unlisted: Vec::new(),
            cut_at: time,
            cut_error_seconds: 0.0,
            largest: 1,
            last: Some(Mark { seq: 12, time: i64::try_from(time.as_nanosecond()).unwrap() }),
            deleted: None,
            told: None,
        };
        for (messages, last, time, want) in [
            (10, 10, "2026-01-02T03:04:05Z", true),
            (12, 12, "2026-01-02T03:04:05.000000012Z", true),
            (12, 12, "2026-01-02T03:04:05.000000013Z", false),
            (1, 13, "2026-01-02T03:04:05Z", false),
            (1, 1, "2026-01-02T03:04:06Z", false),
            (0, 12, "0001-01-01T00:00:00Z", true),
            (0, 13, "0001-01-01T00:00:00Z", false),
            (1, 1, "never", false),
        ] {
            let state = json!({ "messages": messages, "last_seq": last, "last_ts": time });
            assert_eq!(detail.holds_nothing_newer(&state), want, "{state}");
        }
        assert!(!detail.holds_nothing_newer(&json!({ "messages": 0 })), "of which nobody can say");
    }
}
