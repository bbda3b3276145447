//! Proofs of origin: that whoever wrote something held the secret half of a key.
//!
//! A proof is a MAC under a key that two X25519 keys have in common, the writer's and one reader's (a Diffie-Hellman exchange of
//! two static keys, as in the authenticated modes of HPKE, RFC 9180 §5.1.3, and of NaCl's `crypto_box`). Only these two can
//! make or check it; so each reader needs one of its own, and public halves alone make none.

use x25519_dalek::PublicKey;

use super::{Identity, Recipient};

/// Separates these keys from age's own use of the same X25519 keys, and from anything else.
const CONTEXT: &str = "altlas-backup 2026-11-23 proof of origin";

/// A proof for `reader` that `writer` wrote `message`. None where `reader` is a point of low order, which is no key of anyone.
pub fn prove(writer: &Identity, reader: &Recipient, message: &[u8]) -> Option<blake3::Hash> {
    let key = shared_key(writer, reader, writer.recipient(), reader)?;
    Some(blake3::keyed_hash(&key, message))
}

/// Does `proof` show the holder of `reader` that the holder of `writer` wrote `message`?
pub fn proves(reader: &Identity, writer: &Recipient, message: &[u8], proof: &blake3::Hash) -> bool {
    let key = shared_key(reader, writer, writer, reader.recipient());
    // `Hash` compares in constant time.
    key.is_some_and(|key| blake3::keyed_hash(&key, message) == *proof)
}

fn shared_key(ours: &Identity, theirs: &Recipient, writer: &Recipient, reader: &Recipient) -> Option<[u8; 32]> {
    let shared = ours.secret().diffie_hellman(&PublicKey::from(theirs.key()));
    if !shared.was_contributory() {
        return None;
    }
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(shared.as_bytes()).update(&writer.key()).update(&reader.key());
    Some(*hasher.finalize().as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_writer_reader_and_message_only() {
        let (writer, reader, other) = (Identity::generate(), Identity::generate(), Identity::generate());
        let proof = prove(&writer, reader.recipient(), b"message").unwrap();
        assert!(proves(&reader, writer.recipient(), b"message", &proof));
        assert!(!proves(&reader, writer.recipient(), b"another", &proof));
        assert!(!proves(&reader, other.recipient(), b"message", &proof));
        assert!(!proves(&other, writer.recipient(), b"message", &proof));
        // Not a proof in the other direction.
        assert!(!proves(&writer, reader.recipient(), b"message", &proof));
        // To oneself.
        let own = prove(&writer, writer.recipient(), b"message").unwrap();
        assert!(proves(&writer, writer.recipient(), b"message", &own));
    }

    #[test]
    fn a_point_of_low_order_shares_no_key() {
        let zero = bech32::encode::<bech32::Bech32>(bech32::Hrp::parse("age").unwrap(), &[0; 32]).unwrap();
        let zero: Recipient = zero.parse().unwrap();
        assert!(prove(&Identity::generate(), &zero, b"message").is_none());
    }
}
