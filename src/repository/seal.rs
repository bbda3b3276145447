//! Clear JSON records that prove themselves: the last field is a digest, a MAC or a signature over every byte before it.
//!
//! A sealed record is a JSON object, so that `jq` reads it, whose last line is `"blake3": "<64 hex>"` (a plain BLAKE3, against
//! accidents), `"mac": "<64 hex>"` (BLAKE3 keyed with the epoch's MAC key) or `"signature": "<128 hex>"` (by an age key). It covers
//! a context string and all bytes up to and with the quote that opens the hex; what follows it is fixed. No byte of the object is
//! outside of the check.

use serde::{Serialize, de::DeserializeOwned};

use crate::crypt::{self, Identity, Recipient, Signature, hex};

/// What follows the hex digits.
const TAIL: &[u8] = b"\"\n}\n";
const CONTEXT: &[u8] = b"altlas-backup sealed record 1\0";

/// How a record is sealed.
#[derive(Clone, Copy)]
pub(crate) enum Sealer<'a> {
    /// By a plain digest.
    Digest,
    /// By a MAC under this key.
    Mac(&'a [u8; 32]),
    /// By this identity's signature.
    Identity(&'a Identity),
}

/// What a record's seal must be.
#[derive(Clone, Copy)]
pub(crate) enum Seal<'a> {
    /// A plain digest: finds damage, not forgery.
    Digest,
    /// A MAC under this key.
    Mac(&'a [u8; 32]),
    /// A signature by the holder of this key.
    Signature(&'a Recipient),
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

const DIGEST: &str = "blake3";
const MAC: &str = "mac";
const SIGNATURE: &str = "signature";

impl Seal<'_> {
    fn field(self) -> &'static str {
        match self {
            Seal::Digest => DIGEST,
            Seal::Mac(_) => MAC,
            Seal::Signature(_) => SIGNATURE,
        }
    }

    fn digits(self) -> usize {
        match self {
            Seal::Digest | Seal::Mac(_) => 64,
            Seal::Signature(_) => Signature::DIGITS,
        }
    }
}

fn digest(covered: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(CONTEXT).update(covered).finalize()
}

fn mac(key: &[u8; 32], covered: &[u8]) -> blake3::Hash {
    blake3::Hasher::new_keyed(key).update(CONTEXT).update(covered).finalize()
}

/// Writes `record` (a struct) as sealed JSON.
pub(crate) fn seal<T: Serialize>(record: &T, by: Sealer<'_>) -> Result<Vec<u8>, serde_json::Error> {
    let field = match by {
        Sealer::Digest => DIGEST,
        Sealer::Mac(_) => MAC,
        Sealer::Identity(_) => SIGNATURE,
    };
    let mut text = serde_json::to_vec_pretty(record)?;
    // `to_vec_pretty` ends an object with "\n}"; the seal becomes its last field.
    text.truncate(text.len().saturating_sub(2));
    text.extend_from_slice(format!(",\n  \"{field}\": \"").as_bytes());
    let hex = match by {
        Sealer::Digest => digest(&text).to_string(),
        Sealer::Mac(key) => mac(key, &text).to_string(),
        Sealer::Identity(identity) => crypt::sign(identity, &[CONTEXT, &text].concat()).to_string(),
    };
    text.extend_from_slice(hex.as_bytes());
    text.extend_from_slice(TAIL);
    Ok(text)
}

/// Checks the seal of `bytes`.
pub(crate) fn check(bytes: &[u8], seal: Seal<'_>) -> Result<(), SealError> {
    if bytes.is_empty() {
        return Err(SealError::Empty);
    }
    let covered_len = bytes.len().checked_sub(seal.digits() + TAIL.len()).ok_or(SealError::NotSealed)?;
    let (covered, rest) = bytes.split_at(covered_len);
    let (told, tail) = rest.split_at(seal.digits());
    if tail != TAIL || !covered.ends_with(format!("\"{}\": \"", seal.field()).as_bytes()) {
        return Err(SealError::NotSealed);
    }
    // Lower-case digits only: upper case is damage too.
    let told = std::str::from_utf8(told).unwrap_or_default();
    let holds = match seal {
        // `blake3::Hash` compares in constant time.
        Seal::Digest => hex::decode(told).is_some_and(|told| blake3::Hash::from_bytes(told) == digest(covered)),
        Seal::Mac(key) => hex::decode(told).is_some_and(|told| blake3::Hash::from_bytes(told) == mac(key, covered)),
        Seal::Signature(signer) => {
            Signature::from_hex(told).is_some_and(|told| crypt::signed(signer, &[CONTEXT, covered].concat(), &told))
        }
    };
    if holds { Ok(()) } else { Err(SealError::Mismatch(seal.field())) }
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
        let identity = Identity::generate();
        for (by, how) in [
            (Sealer::Digest, Seal::Digest),
            (Sealer::Mac(&[7; 32]), Seal::Mac(&[7; 32])),
            (Sealer::Identity(&identity), Seal::Signature(identity.recipient())),
        ] {
            let good = seal(&record, by).unwrap();
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
    fn a_seal_under_another_key_or_of_another_kind_is_refused() {
        let record = Record { format: 1, name: "alt-las".into() };
        let good = seal(&record, Sealer::Mac(&[7; 32])).unwrap();
        let (ours, other) = (Identity::generate(), Identity::generate());
        assert_eq!(check(&good, Seal::Mac(&[8; 32])), Err(SealError::Mismatch("mac")));
        assert_eq!(check(&good, Seal::Digest), Err(SealError::NotSealed));
        assert_eq!(check(&good, Seal::Signature(ours.recipient())), Err(SealError::NotSealed));
        let good = seal(&record, Sealer::Identity(&ours)).unwrap();
        assert_eq!(check(&good, Seal::Signature(other.recipient())), Err(SealError::Mismatch("signature")));
    }
}
