//! Deadlines, retries and whole bodies over a [`Backend`].

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;

use super::{Backend, ObjectInfo, SharedBackend, StoreError};

/// How long one attempt may take, and how many there are.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Attempts at one call, the first included.
    pub attempts: u32,
    /// Wait after the first failed attempt; doubled after each further one, with jitter.
    pub first_wait: Duration,
    /// The longest wait between two attempts.
    pub max_wait: Duration,
    /// Deadline of one attempt at a small call (head, list page, delete, clock).
    pub call_timeout: Duration,
    /// Deadline of one attempt at moving a body of up to 64 MiB.
    pub body_timeout: Duration,
    /// How long a body may stand still before the attempt counts as broken.
    pub stall_timeout: Duration,
}

/// A store as the rest of the program sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    backend: SharedBackend,
    policy: Arc<RetryPolicy>,
}

impl Store {
    /// Puts deadlines and retries over a backend.
    pub fn new(backend: Arc<dyn Backend>, policy: RetryPolicy) -> Self {
        Self { backend, policy: Arc::new(policy) }
    }
    /// The repository's address as a person writes it, without secrets.
    pub fn url(&self) -> &str {
        self.backend.url()
    }
    /// Writes an object whose key is unique by construction (rule R2).
    pub async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError>;
    /// Creates an object; `AlreadyExists` where one with other content is there.
    pub async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError>;
    /// Reads one object whole.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError>;
    /// Size and time of one object.
    pub async fn head(&self, key: &str) -> Result<ObjectInfo, StoreError>;
    /// Hands every object below `prefix` to `each`; an error where the listing could not be completed.
    pub async fn list(&self, prefix: &str, each: &mut (dyn FnMut(ObjectInfo) + Send)) -> Result<(), StoreError>;
    /// The names (last segment only) of the folders right below `prefix`, sorted.
    pub async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError>;
    /// Removes one object; fine where there is none.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError>;
    /// The store's own clock.
    pub async fn now(&self) -> Result<Timestamp, StoreError>;
}
