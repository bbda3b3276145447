//! Where objects are kept: an S3 bucket or a local folder, behind one contract.
//!
//! [`Backend`] is what one kind of store does in **one attempt**; [`Store`] is what the rest of the program uses: it adds
//! deadlines, retries for what is transient, whole bodies or nothing, and the settling of writes whose answer was lost.
//! Tests put a fault-injecting backend between the two ([`fault`]).
//!
//! The contract that every backend fulfils, and the suite in `tests/it/store.rs` checks on each:
//!
//! * An object appears whole or not at all, under its final key; a reader never sees a part of one (rule R3: one in-memory
//!   PUT an object, at most [`MAX_OBJECT`] bytes, with its SHA-256 passed as a value).
//! * After `put` or `put_new` answered, every later `get`, `head` and listing shows the object; after `delete` none does.
//! * `put_new` never replaces: where the key exists it answers [`StoreErrorKind::AlreadyExists`]. Some S3 servers ignore
//!   the condition, so no rule of the repository leans on it alone.
//! * `put` is for keys that are unique by construction (rule R2). The folder store refuses to replace there too.
//! * A listing that cannot be completed is an error, never a shorter list. *Nothing there* and *could not look* differ.
//! * `delete` of a key that is not there succeeds.
//! * The folders of a listing are those of its objects; only right after its last object was deleted may one still show
//!   (SeaweedFS removes it a little later). Objects are what counts: nothing exists because its folder does.
//! * Keys are of one small alphabet (`key`), so none needs quoting and none leaves the repository.
//! * Dropping a call's future cancels it; a write that was under way may then still happen.
//! * `now` and `last_modified` come from the same clock: the store's.
//!
//! This module must not know what the objects mean.

mod error;
pub mod fault;
mod file;
mod key;
mod retry;
mod s3;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;

pub use self::{
    error::{StoreError, StoreErrorKind},
    file::{FileBackend, StaleTemporary},
    retry::{RetryPolicy, Store},
    s3::{S3Backend, S3Options},
};

/// The largest object that is ever written or read, in bytes (rule R3).
pub const MAX_OBJECT: u64 = 64 * 1024 * 1024;

/// What a listing or a `head` tells of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The key, relative to the repository's prefix, `/` between its segments.
    pub key: String,
    /// Size in bytes as stored.
    pub size: u64,
    /// When the store says the object was last written, by the store's clock.
    pub last_modified: Timestamp,
}

/// One page of a listing.
#[derive(Debug, Default)]
pub struct Page {
    /// Objects below the asked prefix.
    pub objects: Vec<ObjectInfo>,
    /// With a delimiter: the names of the "folders" right below the prefix, each as prefix + name, without a slash at its end.
    pub dirs: Vec<String>,
    /// Where the next page starts; `None` on the last one.
    pub next: Option<String>,
}

/// An object's body on its way.
pub struct ObjectBody {
    /// Size of the **whole** object in bytes, whatever offset was asked for.
    pub size: u64,
    /// Something that changes when the object does (an ETag, an inode and time): a resumed read must see the same.
    /// Empty where the store gives none; such a read is never resumed but begun anew.
    pub tag: String,
    /// The bytes from the asked offset on. A stream that ends early or fails is for the caller to notice.
    pub body: BoxStream<'static, Result<Bytes, StoreError>>,
}

/// May the write replace what is there?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// The key is unique by construction; the backend need not look.
    Unique,
    /// Fail with [`StoreErrorKind::AlreadyExists`] where the key exists.
    CreateOnly,
}

/// One attempt at each thing a store does. No retries and no deadlines here: [`Store`] has them.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug {
    /// The repository's address as a person writes it, without secrets: `s3://bucket/prefix`, `file:///folder`.
    fn url(&self) -> &str;
    /// Writes one object whole.
    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError>;
    /// Opens an object for reading from byte `offset` on (`offset` is less than its size, or 0).
    async fn get(&self, key: &str, offset: u64) -> Result<ObjectBody, StoreError>;
    /// Size and time of one object.
    async fn head(&self, key: &str) -> Result<ObjectInfo, StoreError>;
    /// One page of what lies below `prefix` (which ends in `/` or is empty); with `dirs_only`, of the folders right below it.
    async fn list_page(&self, prefix: &str, dirs_only: bool, from: Option<&str>) -> Result<Page, StoreError>;
    /// Removes one object; fine where there is none.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
    /// The store's own clock.
    async fn now(&self) -> Result<Timestamp, StoreError>;
}

/// A shared backend.
pub type SharedBackend = Arc<dyn Backend>;
