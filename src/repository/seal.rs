//! Clear JSON records that prove themselves: the last field is a digest, or a MAC, over every byte before it.
//!
//! A sealed record is a JSON object, so that `jq` reads it, whose last line is `"blake3": "<64 hex>"` (a plain BLAKE3, against
//! accidents) or `"mac": "<64 hex>"` (BLAKE3 keyed with the epoch's MAC key). The hash covers a context string and all bytes up
//! to and with the quote that opens the hex; what follows it is fixed. No byte of the object is outside of the check.

use serde::{Serialize, de::DeserializeOwned};

/// What follows the hex digits.
const TAIL: &[u8] = b"\"\n}\n";
const HEX: usize = 64;

/// How a record is sealed.
#[derive(Clone, Copy)]
pub(crate) enum Seal<'a> {
    /// A plain digest: finds damage, not forgery.
    Digest,
    /// A MAC under this key.
    Mac(&'a [u8; 32]),
}

/// Why a record was not believed. Lower-case fragments that follow the object's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    #[error("is empty")]
    Empty,
    #[error("is cut off or not a sealed record")]
    NotSealed,
    #[error("does not match its own {0}")]
    Mismatch(&'static str),
    #[error("is not the record it should be: {0}")]
    NotJson(String),
}

impl Seal<'_> {
    fn field(self) -> &'static str {
        match self {
            Seal::Digest => "blake3",
            Seal::Mac(_) => "mac",
        }
    }

    fn hash(self, covered: &[u8]) -> blake3::Hash {
        let mut hasher = match self {
            Seal::Digest => blake3::Hasher::new(),
            Seal::Mac(key) => blake3::Hasher::new_keyed(key),
        };
        hasher.update(b"altlas-backup sealed record 1\0").update(covered).finalize()
    }
}

/// Writes `record` (a struct) as sealed JSON.
pub(crate) fn seal<T: Serialize>(record: &T, seal: Seal<'_>) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = serde_json::to_vec_pretty(record)?;
    // `to_vec_pretty` ends an object with "\n}"; the seal becomes its last field.
    text.truncate(text.len().saturating_sub(2));
    text.extend_from_slice(format!(",\n  \"{}\": \"", seal.field()).as_bytes());
    let hash = seal.hash(&text);
    text.extend_from_slice(hash.to_hex().as_bytes());
    text.extend_from_slice(TAIL);
    Ok(text)
}

/// Checks the seal of `bytes`.
pub(crate) fn check(bytes: &[u8], seal: Seal<'_>) -> Result<(), SealError> {
    if bytes.is_empty() {
        return Err(SealError::Empty);
    }
    let covered_len = bytes.len().checked_sub(HEX + TAIL.len()).ok_or(SealError::NotSealed)?;
    let (covered, rest) = bytes.split_at(covered_len);
    let (hex, tail) = rest.split_at(HEX);
    if tail != TAIL || !covered.ends_with(format!("\"{}\": \"", seal.field()).as_bytes()) {
        return Err(SealError::NotSealed);
    }
    // Compared as text, so that upper-case hex is damage too. `blake3::Hash` compares in constant time.
    if hex.iter().any(u8::is_ascii_uppercase) {
        return Err(SealError::Mismatch(seal.field()));
    }
    let told = std::str::from_utf8(hex).ok().and_then(|hex| blake3::Hash::from_hex(hex).ok());
    if told != Some(seal.hash(covered)) {
        return Err(SealError::Mismatch(seal.field()));
    }
    Ok(())
}

/// Reads the record without looking at its seal: for the fields that say which key the seal needs.
pub(crate) fn peek<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SealError> {
    if bytes.is_empty() {
        return Err(SealError::Empty);
    }
    serde_json::from_slice(bytes).map_err(|error| SealError::NotJson(error.to_string()))
}

/// Checks the seal, then reads the record.
pub(crate) fn open<T: DeserializeOwned>(bytes: &[u8], seal: Seal<'_>) -> Result<T, SealError> {
    check(bytes, seal)?;
    peek(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Record {
        format: u32,
        name: String,
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let record = Record { format: 1, name: "alt-las".into() };
        for how in [Seal::Digest, Seal::Mac(&[7; 32])] {
            let good = seal(&record, how).unwrap();
            assert_eq!(open::<Record>(&good, how).unwrap(), record);
            assert!(serde_json::from_slice::<serde_json::Value>(&good).is_ok(), "still JSON");
            for at in 0..good.len() {
                for flip in [1, 2, 4, 8, 16, 32, 64, 128] {
                    let mut bad = good.clone();
                    bad[at] ^= flip;
                    assert!(check(&bad, how).is_err(), "byte {at} flipped by {flip}");
                }
                assert!(check(&good[..at], how).is_err(), "cut at {at}");
            }
            let mut longer = good.clone();
            longer.push(b'\n');
            assert!(check(&longer, how).is_err());
        }
    }

    #[test]
    fn a_seal_under_another_key_or_of_the_other_kind_is_refused() {
        let record = Record { format: 1, name: "alt-las".into() };
        let good = seal(&record, Seal::Mac(&[7; 32])).unwrap();
        assert_eq!(check(&good, Seal::Mac(&[8; 32])), Err(SealError::Mismatch("mac")));
        assert_eq!(check(&good, Seal::Digest), Err(SealError::NotSealed));
    }
}
