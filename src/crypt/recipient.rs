//! The public half of an age key.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::signature;

/// An X25519 age recipient, `age1…`. Compares and prints by its text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Recipient {
    text: String,
    key: [u8; 32],
}

/// Text that is not a recipient. Never repeats it: people paste secrets into the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipientError {
    /// The secret half.
    #[error("is an identity, the secret half of a key; here belongs its public half, `age1…`")]
    Identity,
    /// An SSH key.
    #[error("is an SSH key; recipients are age keys, `age1…`")]
    Ssh,
    /// A point that nobody can hold the secret of.
    #[error("is no key that anybody holds")]
    Nobody,
    /// Anything else, or a mistyped one: recipients carry a checksum.
    #[error("is not an age recipient (`age1…`, 62 characters)")]
    Other,
}

impl FromStr for Recipient {
    type Err = RecipientError;
    fn from_str(text: &str) -> Result<Self, RecipientError> {
        let start = text.get(..text.len().min(15)).unwrap_or_default().to_ascii_uppercase();
        if start == "AGE-SECRET-KEY-" {
            return Err(RecipientError::Identity);
        }
        if text.starts_with("ssh-") {
            return Err(RecipientError::Ssh);
        }
        let parsed: age::x25519::Recipient = text.parse().map_err(|_| RecipientError::Other)?;
        let text = parsed.to_string();
        let (_, key) = bech32::decode(&text).map_err(|_| RecipientError::Other)?;
        let key = key.try_into().map_err(|_| RecipientError::Other)?;
        // Whatever is encrypted to a point of low order is encrypted to everybody.
        signature::verifying_key(&key).ok_or(RecipientError::Nobody)?;
        Ok(Self { text, key })
    }
}

impl TryFrom<String> for Recipient {
    type Error = RecipientError;
    fn try_from(text: String) -> Result<Self, RecipientError> {
        text.parse()
    }
}

impl From<Recipient> for String {
    fn from(recipient: Recipient) -> String {
        recipient.text
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Recipient {
    /// The X25519 public key.
    pub(super) fn key(&self) -> [u8; 32] {
        self.key
    }

    /// As the crate that encrypts wants it.
    pub(super) fn to_age(&self) -> Result<age::x25519::Recipient, RecipientError> {
        self.text.parse().map_err(|_| RecipientError::Other)
    }
}

/// Recipients for a sentence: `age1…, age1…`.
pub fn listed<'a>(recipients: impl IntoIterator<Item = &'a Recipient>) -> String {
    let texts: Vec<&str> = recipients.into_iter().map(|recipient| recipient.text.as_str()).collect();
    if texts.is_empty() { "nobody".to_owned() } else { texts.join(", ") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::crypt::Identity;

    #[test]
    fn a_recipient_reads_back_and_mistakes_are_told_apart() {
        let recipient = Identity::generate().recipient().clone();
        let text = recipient.to_string();
        assert_eq!(text.parse::<Recipient>().unwrap(), recipient);
        let zero = bech32::encode::<bech32::Bech32>(bech32::Hrp::parse("age").unwrap(), &[0; 32]).unwrap();
        let mut mistyped = text.clone();
        mistyped.replace_range(10..11, if &text[10..11] == "q" { "p" } else { "q" });
        for (text, error) in [
            (mistyped.as_str(), RecipientError::Other),
            (&text[..61], RecipientError::Other),
            (&zero, RecipientError::Nobody),
            ("", RecipientError::Other),
            ("ageé1äöü", RecipientError::Other),
            ("age-secret-key-1xyz", RecipientError::Identity),
            ("ssh-ed25519 AAAA", RecipientError::Ssh),
        ] {
            assert_eq!(text.parse::<Recipient>(), Err(error), "{text}");
        }
    }
}
