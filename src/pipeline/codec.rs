//! One part from plaintext to stored bytes and back. Blocking: call on a blocking thread.
//!
//! A stored part is one zstd frame with a content checksum and its content size, in age where the repository is encrypted.

use std::io::Read;

use sha2::{Digest, Sha256};

use super::{PipelineError, buffers::Buffers};
use crate::repository::{Keys, PartRef, Protection, Trust};

/// The keyed content hash (rule R2).
pub(super) fn content_hash(keys: &Keys, plain: &[u8]) -> [u8; 32] {
    *keys.content_hasher().update(plain).finalize().as_bytes()
}

/// Compresses, proves that it decompresses to the same (rule R4), encrypts. Returns the stored bytes and their SHA-256.
///
/// Takes the plaintext, so that there are never more than two of it, its frame and the stored bytes at a time.
pub(super) fn encode(
    buffers: &Buffers,
    protection: &Protection,
    level: i32,
    plain: Vec<u8>,
) -> Result<(Vec<u8>, [u8; 32]), PipelineError> {
    let failed = |error: std::io::Error| PipelineError::Compressor(error.to_string());
    let mut compressor = zstd::bulk::Compressor::new(level).map_err(failed)?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true)).map_err(failed)?;
    let mut compressed = buffers.take();
    compressed.reserve(zstd::zstd_safe::compress_bound(plain.len()));
    compressor.compress_to_buffer(&plain, &mut compressed).map_err(failed)?;
    if !decompresses_to(&compressed, &plain) {
        return Err(PipelineError::CompressorFault { bytes: plain.len() as u64 });
    }
    buffers.give(plain);
    // The buffer is sized for data that does not compress.
    let frame = compressed.as_slice().to_vec();
    buffers.give(compressed);
    let stored = protection.wrap_part(frame).map_err(|error| PipelineError::Encryption(error.to_string()))?;
    let digest = Sha256::digest(&stored).into();
    Ok((stored, digest))
}

/// The most bytes that [`encode`] makes of so many.
pub(super) fn longest(protection: &Protection, plain: usize) -> usize {
    protection.longest(zstd::zstd_safe::compress_bound(plain))
}

/// Are these the bytes that were stored under that name? Then they are what passed [`encode`]'s check.
pub(super) fn is_stored_as(stored: &[u8], digest: &[u8; 32]) -> bool {
    <[u8; 32]>::from(Sha256::digest(stored)) == *digest
}

/// R4's check: what comes out is compared with the plaintext and not kept.
fn decompresses_to(frame: &[u8], plain: &[u8]) -> bool {
    let Ok(mut decoder) = zstd::stream::read::Decoder::with_buffer(frame) else { return false };
    let mut buffer = vec![0; 128 * 1024];
    let mut rest = plain;
    loop {
        match decoder.read(&mut buffer) {
            Ok(0) => return rest.is_empty(),
            Ok(n) => match rest.strip_prefix(&buffer[..n]) {
                Some(following) => rest = following,
                None => return false,
            },
            Err(_) => return false,
        }
    }
}

/// Checks and opens a stored part; `key` is for messages.
pub(super) fn decode(
    keys: &Keys,
    protection: &Protection,
    part: &PartRef,
    key: &str,
    stored: &[u8],
) -> Result<Vec<u8>, PipelineError> {
    let damaged = |what: String| PipelineError::from(Trust::damaged(key, what));
    if stored.len() as u64 != part.stored {
        return Err(damaged(format!("is {} bytes long; its manifest says {}", stored.len(), part.stored)));
    }
    if !is_stored_as(stored, &part.name.stored) {
        return Err(damaged("does not match the SHA-256 in its name".into()));
    }
    let frame = protection.unwrap(stored).map_err(|error| damaged(error.to_string()))?;
    let len = usize::try_from(part.raw).map_err(|_| damaged("is said to be larger than memory".into()))?;
    let mut plain = Vec::with_capacity(len);
    zstd::stream::read::Decoder::new(frame)
        // One byte more than it should hold, to notice one that holds more.
        .and_then(|decoder| decoder.take(part.raw + 1).read_to_end(&mut plain))
        .map_err(|error| damaged(format!("does not decompress: {error}")))?;
    if plain.len() as u64 != part.raw {
        return Err(damaged(format!("does not hold the {} bytes that its manifest says", part.raw)));
    }
    if content_hash(keys, &plain) != part.name.content {
        return Err(damaged("does not hold the content that its name says".into()));
    }
    Ok(plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        crypt::{Identities, Identity},
        repository::{BackupId, EpochRecord, Keyring, PartName, RepositoryId},
    };

    /// Clear, and encrypted to two of whom we are one.
    fn modes() -> [Protection; 2] {
        let (ours, escrow) = (Identity::generate(), Identity::generate());
        let recipients = vec![ours.recipient().clone(), escrow.recipient().clone()];
        let keyring = Keyring::new(recipients.clone(), Vec::new(), Identities::default(), ours.into());
        let record = EpochRecord {
            format: 1,
            repository: RepositoryId::random(),
            epoch: "20261101T010000Z-7h2mxq".parse().unwrap(),
            began: "2026-11-01T01:00:00Z".parse().unwrap(),
            recipients,
            catalog_recipient: None,
            cut: String::new(),
            keys: String::new(),
            begun_by: None,
            earlier: Vec::new(),
        };
        [Protection::Clear, keyring.protection(&record)]
    }

    /// What a manifest says of a part with this content, stored like this.
    fn part(keys: &Keys, plain: &[u8], stored: &[u8]) -> PartRef {
        let run = BackupId::new("2026-11-23T01:00:00Z".parse().unwrap()).tail();
        let name = PartName::new(keys, content_hash(keys, plain), Sha256::digest(stored).into(), run);
        PartRef { name, raw: plain.len() as u64, stored: stored.len() as u64, rows: 1, continues: false }
    }

    fn encoded(protection: &Protection, plain: &[u8]) -> Vec<u8> {
        encode(&Buffers::default(), protection, 1, plain.to_vec()).unwrap().0
    }

    #[test]
    fn a_part_comes_back_and_any_changed_byte_is_noticed() {
        let (keys, plain) = (Keys::random(), b"one\ttwo\nthree\tfour\n".repeat(100));
        for protection in modes() {
            let stored = encoded(&protection, &plain);
            assert!(stored.len() <= longest(&protection, plain.len()));
            let part = part(&keys, &plain, &stored);
            assert_eq!(decode(&keys, &protection, &part, "key", &stored).unwrap(), plain);
            for at in 0..stored.len() {
                let mut bad = stored.clone();
                bad[at] ^= 1;
                assert!(decode(&keys, &protection, &part, "key", &bad).is_err(), "byte {at}");
                assert!(decode(&keys, &protection, &part, "key", &stored[..at]).is_err(), "cut at {at}");
            }
        }
    }

    #[test]
    fn digests_made_good_again_do_not_hide_a_changed_row() {
        let keys = Keys::random();
        for protection in modes() {
            let stored = encoded(&protection, b"two\n");
            let mut forged = part(&keys, b"two\n", &stored);
            forged.name.content = content_hash(&keys, b"one\n");
            let error = decode(&keys, &protection, &forged, "key", &stored).unwrap_err();
            assert!(error.to_string().contains("content"), "{error}");
        }
    }

    #[test]
    fn digests_made_good_again_do_not_hide_a_cut_or_more_bytes() {
        let keys = Keys::random();
        // Several chunks of age, since it does not compress.
        let plain: Vec<u8> = (0..150_000).map(|_| rand::random()).collect();
        for protection in modes() {
            let stored = encoded(&protection, &plain);
            let mut bad: Vec<Vec<u8>> = [&b"\0"[..], b"\n", &stored].map(|more| [&stored[..], more].concat()).into();
            bad.extend((1..stored.len()).step_by(1009).map(|cut| stored[..cut].to_vec()));
            // In age: where the header and each chunk of 64 KiB and its tag of 16 bytes end.
            if let Some(header) = stored.len().checked_sub(encoded(&Protection::Clear, &plain).len() + 3 * 16) {
                bad.extend((0..3).map(|chunks| stored[..header + chunks * (65_536 + 16)].to_vec()));
            }
            for bad in bad {
                let part = part(&keys, &plain, &bad);
                assert!(
                    decode(&keys, &protection, &part, "key", &bad).is_err(),
                    "{} bytes of {}",
                    bad.len(),
                    stored.len()
                );
            }
        }
    }

    #[test]
    fn a_part_for_others_is_named_as_that() {
        let keys = Keys::random();
        let [_, ours] = modes();
        let [_, theirs] = modes();
        let stored = encoded(&theirs, b"one\n");
        let error = decode(&keys, &ours, &part(&keys, b"one\n", &stored), "key", &stored).unwrap_err();
        assert!(error.to_string().contains("not encrypted to any identity"), "{error}");
    }

    #[test]
    fn r4_a_frame_that_decompresses_to_something_else_is_not_stored() {
        let other = zstd::bulk::compress(b"two\n", 1).unwrap();
        assert!(!decompresses_to(&other, b"one\n") && !decompresses_to(&other, b"two\n\n"));
        let cut = zstd::bulk::compress(b"one\n", 1).unwrap();
        assert!(!decompresses_to(&cut[..cut.len() - 1], b"one\n"));
        assert!(decompresses_to(&cut, b"one\n"));
    }
}
