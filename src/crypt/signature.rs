//! Signatures with age keys: that whoever wrote something held the secret half of a recipient.
//!
//! An X25519 key signs as XEdDSA says (<https://signal.org/docs/specifications/xeddsa/>): its secret is taken as the scalar of an
//! Ed25519 key, negated where that key's public half would have the sign bit set, so that the public half follows from the X25519
//! one. What comes out is an Ed25519 signature; only how the key is derived is ours.

use std::fmt;

use curve25519_dalek::{EdwardsPoint, MontgomeryPoint, Scalar, scalar::clamp_integer};
use ed25519_dalek::{
    VerifyingKey,
    hazmat::{ExpandedSecretKey, raw_sign},
};
use sha2::Sha512;
use zeroize::Zeroizing;

use super::{Identity, Recipient, hex};

/// Derives what hides the nonces of signatures; separates it from every other use of the secret.
const NONCES: &str = "altlas-backup 2026-11-23 nonces of signatures";

/// A signature, as 128 digits of lower-case hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl Signature {
    /// Hex digits of a signature as text.
    pub const DIGITS: usize = 128;

    /// Reads what `Display` writes.
    pub fn from_hex(text: &str) -> Option<Self> {
        hex::decode(text).map(Self)
    }
}

/// The Ed25519 key of an X25519 one; none for a point of low order, or on the curve's twist, which is nobody's key.
pub(super) fn verifying_key(key: &[u8; 32]) -> Option<VerifyingKey> {
    let point = MontgomeryPoint(*key).to_edwards(0)?;
    (!point.is_small_order()).then(|| VerifyingKey::from(point))
}

/// Signs `message`. Equal messages have equal signatures.
///
/// # Panics
/// Never.
pub fn sign(signer: &Identity, message: &[u8]) -> Signature {
    let secret: Zeroizing<[u8; 32]> = signer.secret();
    let mut scalar = Scalar::from_bytes_mod_order(clamp_integer(*secret));
    let mut public = EdwardsPoint::mul_base(&scalar);
    if public.compress().as_bytes()[31] >> 7 == 1 {
        (scalar, public) = (-scalar, -public);
    }
    let key = ExpandedSecretKey { scalar, hash_prefix: blake3::derive_key(NONCES, &*secret) };
    Signature(raw_sign::<Sha512>(&key, message, &VerifyingKey::from(public)).to_bytes())
}

/// Did the holder of `signer` sign `message`?
pub fn signed(signer: &Recipient, message: &[u8], signature: &Signature) -> bool {
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    verifying_key(&signer.key()).is_some_and(|key| key.verify_strict(message, &signature).is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_signer_and_message_only() {
        // Half of all keys need their scalar negated.
        for _ in 0..16 {
            let (signer, other) = (Identity::generate(), Identity::generate());
            let signature = sign(&signer, b"message");
            assert!(signed(signer.recipient(), b"message", &signature));
            assert!(!signed(signer.recipient(), b"another", &signature));
            assert!(!signed(other.recipient(), b"message", &signature));
            assert_eq!(Signature::from_hex(&signature.to_string()), Some(signature));
            for at in 0..64 {
                let mut bad = signature;
                bad.0[at] ^= 1;
                assert!(!signed(signer.recipient(), b"message", &bad), "byte {at}");
            }
        }
    }

    #[test]
    fn the_conversion_keeps_to_the_x25519_public_half() {
        let signer = Identity::generate();
        let point = EdwardsPoint::mul_base(&Scalar::from_bytes_mod_order(clamp_integer(*signer.secret())));
        assert_eq!(point.to_montgomery().0, signer.recipient().key());
    }

    #[test]
    fn points_that_are_nobody_s_key() {
        let one = {
            let mut one = [0; 32];
            one[0] = 1;
            one
        };
        for key in [[0; 32], one] {
            assert!(verifying_key(&key).is_none());
        }
    }
}
