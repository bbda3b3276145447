//! The two ways in which a repository stores its objects, and tests that run in both.

use std::{collections::BTreeMap, io::Read, iter, sync::OnceLock};

use age::{
    Decryptor,
    secrecy::ExposeSecret,
    x25519::{Identity, Recipient},
};

/// How a repository stores what it protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As it is.
    Clear,
    /// In age, for recipients that the configuration names.
    Encrypted,
}

/// What every age file begins with.
const AGE_HEADER: &[u8] = b"age-encryption.org/v1\n";

impl Mode {
    /// What the names of protected objects end with.
    pub fn suffix(self) -> &'static str {
        match self {
            Mode::Clear => "",
            Mode::Encrypted => ".age",
        }
    }

    /// Checks by their names that the objects of a repository are stored in this mode.
    #[track_caller]
    pub fn assert_names<'a>(self, keys: impl IntoIterator<Item = &'a String>) {
        for key in keys {
            let asked = is_protected(key) && self == Mode::Encrypted;
            assert_eq!(key.ends_with(".age"), asked, "{key} in a repository that is {self:?}");
        }
    }

    /// Checks by their names and bytes that the objects of a repository are stored in this mode, and that whoever has the
    /// identities of [`Identities::shared`] can open what he must and nothing else.
    #[track_caller]
    pub fn assert_objects(self, objects: &BTreeMap<String, Vec<u8>>) {
        self.assert_names(objects.keys());
        let Identities { data, catalog } = Identities::shared();
        for (key, bytes) in objects {
            let encrypted = is_protected(key) && self == Mode::Encrypted;
            assert_eq!(bytes.starts_with(AGE_HEADER), encrypted, "how {key} begins");
            if encrypted {
                assert!(opened(data, bytes).is_some(), "the data identity opens {key}");
                let is_part = key.contains("/parts/");
                assert_eq!(opened(catalog, bytes).is_none(), is_part, "what the catalogue identity does to {key}");
            }
        }
    }
}

/// Everything is but some small records, which tell no more than ids, times, sizes, counts and digests.
fn is_protected(key: &str) -> bool {
    let key = key.strip_suffix(".age").unwrap_or(key);
    let record = |folder: &str| key.starts_with(folder) && key.ends_with(".json");
    let clear = key == "altlas.json" || key.ends_with("/epoch.json") || key.ends_with("/head.json");
    let small = ["tombstones/", "attempts/", "verifications/", "alerts/"].into_iter().any(record);
    !clear && !small
}

/// The two identities of the machine that a repository is encrypted for.
#[derive(Clone)]
pub struct Identities {
    /// Of the one data recipient: opens everything.
    pub data: Identity,
    /// Opens keys and manifests, no part.
    pub catalog: Identity,
}

impl Identities {
    /// New ones.
    pub fn generate() -> Self {
        Self { data: Identity::generate(), catalog: Identity::generate() }
    }

    /// Those of every workspace that does not ask for others: workspaces of one repository must agree.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Identities> = OnceLock::new();
        SHARED.get_or_init(Self::generate)
    }

    /// The data recipient, as the configuration names it.
    pub fn recipient(&self) -> String {
        self.data.to_public().to_string()
    }
}

/// An identity file as `age-keygen` writes it.
pub fn identity_file(identity: &Identity) -> String {
    let public: Recipient = identity.to_public();
    format!("# public key: {public}\n{}", identity.to_string().expose_secret())
}

/// What is in an age file; nothing where the identity does not open it.
pub fn opened(identity: &Identity, stored: &[u8]) -> Option<Vec<u8>> {
    let decryptor = Decryptor::new(stored).expect("an age file");
    let mut reader = decryptor.decrypt(iter::once(identity as &dyn age::Identity)).ok()?;
    let mut plain = Vec::new();
    reader.read_to_end(&mut plain).expect("a whole age file");
    Some(plain)
}

/// Makes two tests, `clear` and `encrypted`, of each function that takes a [`Mode`].
macro_rules! in_both_modes {
    ($($function:ident),+ $(,)?) => {
        $(
            mod $function {
                use crate::support::mode::Mode;

                #[test]
                fn clear() {
                    super::$function(Mode::Clear);
                }

                #[test]
                fn encrypted() {
                    super::$function(Mode::Encrypted);
                }
            }
        )+
    };
}
pub(crate) use in_both_modes;
