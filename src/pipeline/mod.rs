//! Parts on their way between a source and a repository (DESIGN.md §3): cut, hash, compress, check, upload, and back.
//!
//! Writing: a [`SnapshotWriter`] hands out an [`ArtifactWriter`] for each named byte sequence. Bytes are cut on row boundaries
//! (`cut`), each piece becomes a job that names it, looks for it among the reusable parts, compresses it, **decompresses it and
//! compares** (rule R4), and uploads it. Reading: a [`SnapshotReader`] gives the plaintext of an artifact's parts in order, each
//! checked against every digest on its way.
//!
//! Memory: plaintext and stored bytes of all parts in flight are counted by one [`Budget`]. CPU work runs on blocking threads.
//! This module must not know what rows mean, nor what a server is.

mod budget;
mod buffers;
mod clock;
mod codec;
mod cut;
mod error;
mod read;
mod rows;
mod write;

pub use self::{
    budget::{Budget, Lease, MIN_BUDGET, MOST_WINDOW},
    clock::Clock,
    cut::CUT_POLICY,
    error::PipelineError,
    read::{PartReader, Plain, SnapshotReader},
    rows::{BINARY_HEAD, BINARY_TAIL, RowHasher, Rows},
    write::{ArtifactWriter, Pipeline, Range, RangeWriter, SnapshotWriter, TextDigest, Written},
};
pub use crate::repository::{Artifact, Cut, Fingerprint, Format, PartRef, Reason};

use std::sync::atomic::{AtomicU64, Ordering};

/// What has passed so far; shared between the work and whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of plaintext that came from, or went to, a source.
    pub raw: AtomicU64,
    /// Rows.
    pub rows: AtomicU64,
    /// Bytes moved to or from the store.
    pub moved: AtomicU64,
    /// Parts done.
    pub parts: AtomicU64,
    /// Bytes of plaintext there are in all, where known; else 0.
    pub total_raw: AtomicU64,
    /// What is being done, in a few words.
    phase: std::sync::Mutex<String>,
}

impl Progress {
    /// Adds to one of the counters.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
    /// Says what is being done.
    pub fn set_phase(&self, phase: impl Into<String>) {
        let phase = phase.into();
        tracing::debug!("{phase}");
        *self.phase.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = phase;
    }
    /// What is being done.
    pub fn phase(&self) -> String {
        self.phase.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
