//! Identifiers. Each is text of a fixed shape, checked wherever it comes from outside, so that it is safe as a segment of a key.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Digits of random tails: lower case, without `i`, `l`, `o`, `u`, which are misread or spell things.
const TAIL_DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Length of a random tail in digits (30 bits).
const TAIL_LEN: usize = 6;
/// Length of `20261123T010000Z`.
const TIME_LEN: usize = 16;

/// Text that is not an identifier of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct BadId {
    text: String,
    expected: &'static str,
}

fn random_text(len: usize) -> String {
    (0..len).map(|_| TAIL_DIGITS[rand::random_range(0..TAIL_DIGITS.len())] as char).collect()
}

/// A random tail for the name of a record.
pub(super) fn random_tail() -> String {
    random_text(TAIL_LEN)
}

fn is_tail(text: &str) -> bool {
    text.len() == TAIL_LEN && text.bytes().all(|b| TAIL_DIGITS.contains(&b))
}

fn is_time(text: &str) -> bool {
    let b = text.as_bytes();
    b.len() == TIME_LEN
        && b[8] == b'T'
        && b[15] == b'Z'
        && b[..8].iter().chain(&b[9..15]).all(u8::is_ascii_digit)
        && jiff::fmt::strtime::parse("%Y%m%dT%H%M%SZ", text).and_then(|t| t.to_datetime()).is_ok()
}

fn time_text(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%SZ").to_string()
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(BadId { text: text.chars().take(80).collect(), expected: $expected })
                }
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn is_time_and_tail(text: &str) -> bool {
    text.split_once('-').is_some_and(|(time, tail)| is_time(time) && is_tail(tail))
}

text_id!(
    /// A backup's id, such as `20261123T010000Z-k3f9qa`: UTC time by the store's clock, and a random tail.
    BackupId, "a backup id such as 20261123T010000Z-k3f9qa", is_time_and_tail
);
text_id!(
    /// An epoch's id, of the same shape as a backup's.
    EpochId, "an epoch id such as 20261101T010000Z-7h2mxq", is_time_and_tail
);
text_id!(
    /// The random tail of a backup's id: it marks the parts which that run wrote (rule R2).
    RunTail, "a run's tail of six digits", is_tail
);
text_id!(
    /// The repository's own id: 26 random digits (130 bits).
    RepositoryId, "a repository id of 26 digits",
    |text| text.len() == 26 && text.bytes().all(|b| TAIL_DIGITS.contains(&b))
);

impl BackupId {
    /// A new id for a backup that begins at `now`, the store's time.
    pub fn new(now: Timestamp) -> Self {
        Self(format!("{}-{}", time_text(now), random_text(TAIL_LEN)))
    }
    /// The tail that marks this run's parts.
    pub fn tail(&self) -> RunTail {
        RunTail(self.0[TIME_LEN + 1..].to_owned())
    }
}

impl EpochId {
    /// A new id for an epoch that begins at `now`, the store's time.
    pub fn new(now: Timestamp) -> Self {
        Self(format!("{}-{}", time_text(now), random_text(TAIL_LEN)))
    }

    /// By its text, is it of an earlier second? For an epoch without a record: the others' records say when they began.
    pub(crate) fn is_from_before(&self, at: Timestamp) -> bool {
        self.0[..TIME_LEN] < *time_text(at)
    }
}

impl RepositoryId {
    /// A new random id.
    pub fn random() -> Self {
        Self(random_text(26))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_time_and_tail_and_reads_back() {
        let id = BackupId::new("2026-11-23T01:00:00.5Z".parse().unwrap());
        assert!(id.as_str().starts_with("20261123T010000Z-"), "{id}");
        assert_eq!(id.as_str().parse::<BackupId>().unwrap(), id);
        assert_eq!(id.tail().as_str(), &id.as_str()[17..]);
    }

    #[test]
    fn text_of_another_shape_is_refused() {
        for text in [
            "",
            "20261123T010000Z",
            "20261123T010000Z-K3F9QA",
            "20261323T010000Z-k3f9qa",
            "../../etc-k3f9qa",
            "20261123T010000Z-k3f9qa/",
        ] {
            assert!(text.parse::<BackupId>().is_err(), "{text}");
        }
    }
}
