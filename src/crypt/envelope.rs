//! Bytes in age and out of it. Blocking: call on a blocking thread.

use std::io::{self, Read, Write};

use super::{Identities, Recipient};

/// Plaintext of one of age's chunks, and what encrypting adds to each (<https://c2sp.org/age>, *payload*).
const CHUNK: usize = 64 * 1024;
const CHUNK_TAG: usize = 16;
/// More than the header without recipients takes: version, MAC, nonce, and the stanza of random text that the crate adds so
/// that readers stay used to unknown ones.
const HEADER: usize = 1024;
/// More than a recipient's stanza takes in the header.
const STANZA: usize = 128;

/// Why something in age cannot be opened. Fragments that follow the object's name.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It is for others.
    #[error("is not encrypted to any identity that is here")]
    NotForUs,
    /// It is not age, or was changed.
    #[error("does not decrypt: {0}")]
    Damaged(String),
}

/// The most bytes that [`encrypt`] makes of so many.
pub fn longest(plain: usize, recipients: usize) -> usize {
    plain + CHUNK_TAG * (plain / CHUNK + 1) + HEADER + STANZA * recipients
}

/// Encrypts to every one of these recipients.
///
/// # Errors
/// No recipient. Writing to memory does not fail.
pub fn encrypt(to: &[Recipient], plain: &[u8]) -> io::Result<Vec<u8>> {
    let other = |error: String| io::Error::other(error);
    let recipients: Vec<age::x25519::Recipient> =
        to.iter().map(Recipient::to_age).collect::<Result<_, _>>().map_err(|error| other(error.to_string()))?;
    let encryptor =
        age::Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as &dyn age::Recipient))
            .map_err(|error| other(error.to_string()))?;
    let stored = Vec::with_capacity(longest(plain.len(), to.len()));
    let mut writer = encryptor.wrap_output(stored)?;
    writer.write_all(plain)?;
    // Without it the last chunk is missing, and nobody would notice before a restore.
    let mut stored = writer.finish()?;
    // What waits for its upload is counted by its length.
    stored.shrink_to_fit();
    Ok(stored)
}

/// Opens `stored` with whichever identity fits. The reader fails where a chunk was changed, where the last one is missing, and
/// where anything follows it; who reads must read to the end to know.
///
/// # Errors
/// Not for any of these identities, or not age.
pub fn decrypt<'a>(identities: &Identities, stored: &'a [u8]) -> Result<impl Read + use<'a>, EnvelopeError> {
    let opened = age::Decryptor::new_buffered(stored)
        .and_then(|decryptor| decryptor.decrypt(identities.iter().map(super::Identity::as_age)));
    opened.map_err(|error| match error {
        age::DecryptError::NoMatchingKeys => EnvelopeError::NotForUs,
        error => EnvelopeError::Damaged(error.to_string()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::crypt::Identity;

    fn open(identities: &Identities, stored: &[u8]) -> Result<Vec<u8>, String> {
        let mut plain = Vec::new();
        let mut reader = decrypt(identities, stored).map_err(|error| error.to_string())?;
        reader.read_to_end(&mut plain).map_err(|error| error.to_string())?;
        Ok(plain)
    }

    #[test]
    fn what_is_encrypted_opens_for_each_recipient_and_nobody_else() {
        let (one, two, other) = (Identity::generate(), Identity::generate(), Identity::generate());
        let to = [one.recipient().clone(), two.recipient().clone()];
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5] {
            let plain: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let stored = encrypt(&to, &plain).unwrap();
            assert!(stored.len() <= longest(len, 2), "{len}");
            assert_eq!(open(&one.clone().into(), &stored).unwrap(), plain);
            assert_eq!(open(&Identities::from_iter([other.clone(), two.clone()]), &stored).unwrap(), plain);
            assert!(matches!(decrypt(&other.clone().into(), &stored).err().unwrap(), EnvelopeError::NotForUs));
        }
        assert!(encrypt(&[], b"x").is_err());
    }

    #[test]
    fn a_cut_anywhere_and_any_byte_more_are_errors() {
        let identity = Identity::generate();
        for len in [0, 100, CHUNK, 2 * CHUNK, 2 * CHUNK + 100] {
            let stored = encrypt(&[identity.recipient().clone()], &vec![7; len]).unwrap();
            let keys = Identities::from(identity.clone());
            let payload = stored.len() - len - CHUNK_TAG * len.div_ceil(CHUNK).max(1);
            let mut cuts: Vec<usize> = (0..=len / CHUNK).map(|i| payload + i * (CHUNK + CHUNK_TAG)).collect();
            cuts.extend([1, payload - 1, payload + 1, stored.len() - 1, stored.len() - CHUNK_TAG]);
            for cut in cuts.into_iter().filter(|cut| *cut < stored.len()) {
                assert!(open(&keys, &stored[..cut]).is_err(), "{len} bytes cut at {cut}");
            }
            for more in [&b"\0"[..], b"\n", &[0; CHUNK + CHUNK_TAG], &stored] {
                assert!(open(&keys, &[&stored[..], more].concat()).is_err(), "{len} bytes and {} more", more.len());
            }
        }
    }

    #[test]
    fn a_missing_finish_is_an_error() {
        let identity = Identity::generate();
        let recipient = identity.recipient().to_age().unwrap();
        for len in [0, 100, CHUNK, CHUNK + 1] {
            let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as _)).unwrap();
            let mut stored = Vec::new();
            let mut writer = encryptor.wrap_output(&mut stored).unwrap();
            writer.write_all(&vec![7; len]).unwrap();
            writer.flush().unwrap();
            drop(writer);
            assert!(open(&identity.clone().into(), &stored).is_err(), "{len}");
        }
    }
}
