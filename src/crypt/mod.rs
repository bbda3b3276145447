//! Keys of people and machines: age recipients and identities, bytes in age, and signatures.
//!
//! age (<https://c2sp.org/age>) hides and guards content, but says nothing of who wrote it: whoever knows a recipient, which
//! is public, can encrypt to it. What must not be forged is therefore also covered by a MAC whose key only machines of ours
//! hold, and that key by a [signature](sign).
//!
//! A secret here is in no `Debug` and no message; an identity's text is written by [`Identity::to_file`] alone.

mod envelope;
mod identity;
mod recipient;
mod signature;

pub(crate) mod hex;

pub use self::{
    envelope::{EnvelopeError, decrypt, encrypt, longest},
    identity::{Identities, Identity, IdentityError},
    recipient::{Recipient, RecipientError, listed},
    signature::{Signature, sign, signed},
};
