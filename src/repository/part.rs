//! Parts: how they are named and what a manifest says of each (rules R2, R5).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Keys, RunTail};
use crate::crypt::hex;

/// The longest plaintext of one part, in bytes. A longer row is continued over several parts.
pub const MAX_PART: u64 = 32 * 1024 * 1024;

/// A part's name: `<content hash>.<stored SHA-256>.<run>.<tag>`, in lower-case hex but for the run.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PartName {
    /// Keyed BLAKE3 of the plaintext under the epoch's naming key.
    pub content: [u8; 32],
    /// SHA-256 of the object as stored.
    pub stored: [u8; 32],
    /// The run that wrote it.
    pub run: RunTail,
    /// Shows that the holder of the epoch's keys gave this name.
    tag: [u8; 8],
}

impl PartName {
    /// The name of a part of the epoch with these keys.
    pub fn new(keys: &Keys, content: [u8; 32], stored: [u8; 32], run: RunTail) -> Self {
        let tag = keys.part_tag(&content, &stored, &run);
        Self { content, stored, run, tag }
    }

    /// Was the name given by someone who holds these keys?
    pub fn is_of(&self, keys: &Keys) -> bool {
        self.tag == keys.part_tag(&self.content, &self.stored, &self.run)
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (content, stored) = (hex::encode(&self.content), hex::encode(&self.stored));
        write!(f, "{content}.{stored}.{}.{}", self.run, hex::encode(&self.tag))
    }
}

impl fmt::Debug for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PartName {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const BAD: &str = "not a part's name";
        let mut pieces = text.splitn(4, '.');
        let mut piece = || pieces.next().ok_or(BAD);
        let (content, stored, run, tag) = (piece()?, piece()?, piece()?, piece()?);
        Ok(Self {
            content: hex::decode(content).ok_or(BAD)?,
            stored: hex::decode(stored).ok_or(BAD)?,
            run: run.parse().map_err(|_| BAD)?,
            tag: hex::decode(tag).ok_or(BAD)?,
        })
    }
}

impl TryFrom<String> for PartName {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PartName> for String {
    fn from(name: PartName) -> String {
        name.to_string()
    }
}

/// One part in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRef {
    /// Its name, which is its key but for the folder and the ending.
    pub name: PartName,
    /// Bytes of plaintext.
    pub raw: u64,
    /// Bytes of the object.
    pub stored: u64,
    /// Rows (lines) that end in this part.
    pub rows: u64,
    /// The last row of this part goes on in the next one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_and_nothing_else_does() {
        let keys = Keys::random();
        let name = PartName::new(&keys, [0xab; 32], [0x01; 32], "k3f9qa".parse().unwrap());
        let text = name.to_string();
        assert_eq!(text.len(), 64 + 1 + 64 + 1 + 6 + 1 + 16);
        assert_eq!(text.parse::<PartName>().unwrap(), name);
        assert!(name.is_of(&keys) && !name.is_of(&Keys::random()));
        assert!(!PartName { stored: [0x02; 32], ..name.clone() }.is_of(&keys));
        for bad in [&text[1..], &text.to_uppercase(), &text.replace('.', "/"), &format!("{text}.zst"), ""] {
            assert!(bad.parse::<PartName>().is_err(), "{bad}");
        }
    }
}
