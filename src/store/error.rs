//! What can go wrong with a store, by meaning.

use std::fmt;

/// What it was, as far as an operator acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The object is not there.
    NotFound,
    /// A create-only write found the key taken.
    AlreadyExists,
    /// The bucket, or the folder of a folder store, does not exist.
    NoSuchBucket,
    /// Credentials are wrong or lack a permission.
    Denied,
    /// No connection could be made, or it broke and stayed broken.
    Unreachable,
    /// The server's certificate was not accepted, or TLS failed otherwise.
    Tls,
    /// The deadline passed.
    TimedOut,
    /// The server asked us to slow down or had an internal error (429, 5xx).
    Busy,
    /// The disk, quota or bucket is full.
    OutOfSpace,
    /// A body ended before its announced size, or changed while it was read.
    Truncated,
    /// More than [`super::MAX_OBJECT`] bytes.
    TooLarge,
    /// The configuration of the store cannot work (an address that is not one, an unreadable CA file).
    Invalid,
    /// Anything else; the detail says what.
    Other,
}

/// A failed call on a store.
#[derive(Debug)]
pub struct StoreError {
    /// What it was.
    pub kind: StoreErrorKind,
    /// What was tried: `put`, `get`, `head`, `list`, `delete`, `clock`, `open`.
    pub op: &'static str,
    /// What it was tried on: an address with the object's key.
    pub object: String,
    /// The server's or system's own words with the whole chain of causes, without secrets.
    pub detail: String,
    /// Attempts made.
    pub attempts: u32,
}

impl StoreError {
    /// May another attempt succeed without anyone doing anything?
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Unreachable | StoreErrorKind::TimedOut | StoreErrorKind::Busy | StoreErrorKind::Truncated)
    }
    /// What to do next, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        None
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.op, self.object, self.detail)
    }
}
impl std::error::Error for StoreError {}
