//! Parts: how they are named and what a manifest says of each (rules R2, R5).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{RunTail, keys};

/// The longest plaintext of one part, in bytes. A longer row is continued over several parts.
pub const MAX_PART: u64 = 32 * 1024 * 1024;

/// A part's name: `<content hash>.<stored SHA-256>.<run>`, both hashes as 64 lower-case hex digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PartName {
    /// Keyed BLAKE3 of the plaintext under the epoch's naming key.
    pub content: [u8; 32],
    /// SHA-256 of the object as stored.
    pub stored: [u8; 32],
    /// The run that wrote it.
    pub run: RunTail,
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", keys::to_hex(&self.content), keys::to_hex(&self.stored), self.run)
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
        let mut pieces = text.splitn(3, '.');
        let mut piece = || pieces.next().ok_or(BAD);
        let (content, stored, run) = (piece()?, piece()?, piece()?);
        Ok(Self {
            content: keys::from_hex(content).ok_or(BAD)?,
            stored: keys::from_hex(stored).ok_or(BAD)?,
            run: run.parse().map_err(|_| BAD)?,
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
        let name = PartName { content: [0xab; 32], stored: [0x01; 32], run: "k3f9qa".parse().unwrap() };
        let text = name.to_string();
        assert_eq!(text.len(), 64 + 1 + 64 + 1 + 6);
        assert_eq!(text.parse::<PartName>().unwrap(), name);
        for bad in [&text[1..], &text.to_uppercase(), &text.replace('.', "/"), &format!("{text}.zst"), ""] {
            assert!(bad.parse::<PartName>().is_err(), "{bad}");
        }
    }
}
