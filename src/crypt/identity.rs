//! The secret half of an age key, and files of them.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::Recipient;

/// An X25519 age identity. `Debug` shows its public half.
#[derive(Clone)]
pub struct Identity {
    age: age::x25519::Identity,
    recipient: Recipient,
}

/// A file of identities that cannot be used. Names the line, never repeats it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A line that is none.
    #[error("line {line} {what}")]
    Line {
        /// From 1.
        line: usize,
        /// What it is instead.
        what: &'static str,
    },
    /// Nothing but comments.
    #[error("it holds no age identity (a line `AGE-SECRET-KEY-1…`)")]
    Empty,
}

impl Identity {
    /// A new random one.
    pub fn generate() -> Self {
        let age = age::x25519::Identity::generate();
        // What was made here reads back, or every key that was ever made is useless.
        Self::of(age).unwrap_or_else(|| unreachable!("an identity's own text is an identity"))
    }

    fn of(age: age::x25519::Identity) -> Option<Self> {
        let recipient = age.to_public().to_string().parse().ok()?;
        Some(Self { age, recipient })
    }

    /// Its public half.
    pub fn recipient(&self) -> &Recipient {
        &self.recipient
    }

    /// The text of a file that holds it: as `age-keygen` writes it.
    pub fn to_file(&self, created: jiff::Timestamp) -> SecretString {
        let secret = self.age.to_string();
        let created = created.strftime("%Y-%m-%dT%H:%M:%SZ");
        format!("# created: {created}\n# public key: {}\n{}\n", self.recipient, secret.expose_secret()).into()
    }

    pub(super) fn as_age(&self) -> &dyn age::Identity {
        &self.age
    }

    /// The X25519 secret.
    pub(super) fn secret(&self) -> Zeroizing<[u8; 32]> {
        let text = self.age.to_string();
        // The crate's own text of a key is one: this never yields anything else.
        let bytes = bech32::decode(text.expose_secret()).map(|(_, bytes)| Zeroizing::new(bytes)).unwrap_or_default();
        let mut secret = Zeroizing::new([0; 32]);
        secret.iter_mut().zip(bytes.iter()).for_each(|(to, from)| *to = *from);
        secret
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.recipient)
    }
}

/// The identities of one file, in its order. May be none.
#[derive(Clone, Debug, Default)]
pub struct Identities(Vec<Identity>);

impl Identities {
    /// Reads age's own format: an identity a line, with comments (`#`) and empty lines between.
    ///
    /// # Errors
    /// The first line that is something else; no identity at all.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let mut found = Vec::new();
        // Editors put an invisible mark at the start of what they call UTF-8.
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.parse().ok().and_then(Identity::of) {
                Some(identity) => found.push(identity),
                None => return Err(IdentityError::Line { line: index + 1, what: what_it_is(line) }),
            }
        }
        if found.is_empty() { Err(IdentityError::Empty) } else { Ok(Self(found)) }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Identity> {
        self.0.iter()
    }

    /// The first one.
    pub fn first(&self) -> Option<&Identity> {
        self.0.first()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their public halves.
    pub fn recipients(&self) -> impl Iterator<Item = &Recipient> {
        self.0.iter().map(Identity::recipient)
    }

    /// The one whose public half is among these.
    pub fn of_any<'a>(&self, mut recipients: impl Iterator<Item = &'a Recipient>) -> Option<&Identity> {
        recipients.find_map(|recipient| self.0.iter().find(|identity| identity.recipient == *recipient))
    }
}

impl From<Identity> for Identities {
    fn from(identity: Identity) -> Self {
        Self(vec![identity])
    }
}

impl FromIterator<Identity> for Identities {
    fn from_iter<T: IntoIterator<Item = Identity>>(identities: T) -> Self {
        Self(identities.into_iter().collect())
    }
}

fn what_it_is(line: &str) -> &'static str {
    if line.starts_with("age1") {
        "is a recipient, the public half of a key; here belongs the secret half, `AGE-SECRET-KEY-1…`"
    } else if line.starts_with("-----BEGIN AGE ENCRYPTED") || line.starts_with("age-encryption.org/") {
        "begins something encrypted: an identity must be here in clear (decrypt it with `age -d`)"
    } else if line.starts_with("-----BEGIN") || line.starts_with("ssh-") {
        "is of an SSH or PEM key; identities are age keys, `AGE-SECRET-KEY-1…`"
    } else if line.starts_with("AGE-PLUGIN-") {
        "is an identity of an age plugin, which cannot be used here"
    } else if line.starts_with("AGE-SECRET-KEY-") {
        "is no whole age identity: its checksum does not hold"
    } else {
        "is not an age identity (`AGE-SECRET-KEY-1…`)"
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_identities_reads_back() {
        let (one, two) = (Identity::generate(), Identity::generate());
        let file = |identity: &Identity| identity.to_file("2026-11-23T01:00:00Z".parse().unwrap());
        let text = format!("\u{feff}{}\r\n \n  {}", file(&one).expose_secret(), file(&two).expose_secret());
        let read = Identities::parse(&text).unwrap();
        assert_eq!(read.recipients().collect::<Vec<_>>(), [one.recipient(), two.recipient()]);
        assert!(text[3..].starts_with("# created: 2026-11-23T01:00:00Z\n# public key: age1"), "not shown: a secret");
        assert!(!format!("{read:?}").contains("SECRET"));
    }

    #[test]
    fn mistakes_are_named_by_line_and_not_repeated() {
        let identity = Identity::generate();
        let text = identity.to_file("2026-11-23T01:00:00Z".parse().unwrap());
        let secret = text.expose_secret().lines().nth(2).unwrap();
        for (text, line, what) in [
            (format!("# x\n{}", &secret[..secret.len() - 1]), 2, "checksum"),
            (format!("{secret}\n\n{}", identity.recipient()), 3, "public half"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----".to_owned(), 1, "SSH"),
            ("-----BEGIN AGE ENCRYPTED FILE-----".to_owned(), 1, "encrypted"),
            ("hunter2".to_owned(), 1, "not an age identity"),
        ] {
            let error = Identities::parse(&text).unwrap_err();
            let told = error.to_string();
            assert!(matches!(error, IdentityError::Line { line: at, .. } if at == line), "{told}");
            assert!(told.contains(what) && !told.contains("hunter2") && !told.contains(&secret[16..30]), "{told}");
        }
        assert_eq!(Identities::parse("# nothing\n").unwrap_err(), IdentityError::Empty);
    }
}
