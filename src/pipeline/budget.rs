//! One semaphore in bytes over all parts in flight, plaintext and stored bytes together.
//!
//! A writer does not know how long its part will be. It starts with a [`BASE`] lease and grows; two writers that both hold half of
//! the budget and want more would wait for ever. Therefore: at most [`Budget::writers`] writers are open at once, so that their
//! base leases leave room for one part of the largest size, and only the one writer that holds the *growth token* may hold more
//! than its base. Everything else that holds bytes (a part being compressed, uploaded, loaded) finishes without asking for more.

use std::sync::Arc;

use tokio::sync::{AcquireError, Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use crate::repository::MAX_PART;

/// Granularity of the semaphore in bytes: its permits are counted in u32.
const UNIT: u64 = 4096;
/// Lease of a writer when its part begins: 8 MiB of plaintext and room for as many stored bytes.
pub(super) const BASE: u64 = 16 * 1024 * 1024;
/// Most that one part needs: its plaintext and a compressed form that did not get smaller.
pub(super) const MOST: u64 = 2 * (MAX_PART + MARGIN);
/// What zstd may add to data that does not compress, and framing.
const MARGIN: u64 = 1024 * 1024;
/// Steps in which a lease grows.
const STEP: u64 = 4 * 1024 * 1024;

/// The smallest budget that works, in bytes: one part of the largest size beside one more writer.
pub const MIN_BUDGET: u64 = MOST + BASE;

/// The budget of one run. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes: Arc<Semaphore>,
    growth: Arc<Mutex<()>>,
    writers: Arc<Semaphore>,
    writers_in_all: usize,
}

/// A share of the budget; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    budget: Budget,
    permit: OwnedSemaphorePermit,
    growth: Option<OwnedMutexGuard<()>>,
}

fn units(bytes: u64) -> u32 {
    // Everything asked for is at most MOST, far below u32::MAX units.
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

impl Budget {
    /// A budget of that many bytes, at least [`MIN_BUDGET`].
    pub fn new(bytes: u64) -> Self {
        let bytes = bytes.max(MIN_BUDGET);
        let writers = usize::try_from(1 + (bytes - MOST) / BASE).unwrap_or(usize::MAX);
        Self {
            bytes: Arc::new(Semaphore::new(units(bytes) as usize)),
            growth: Arc::default(),
            writers: Arc::new(Semaphore::new(writers.min(Semaphore::MAX_PERMITS))),
            writers_in_all: writers,
        }
    }

    /// Writers that may be open at once.
    pub(super) fn writers_in_all(&self) -> usize {
        self.writers_in_all
    }

    /// A slot for one open writer. Whoever holds one must not wait for another.
    pub(super) async fn writer(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        self.writers.clone().acquire_owned().await
    }

    /// Waits for that many bytes, at most as many as one part needs (66 MiB).
    pub async fn lease(&self, bytes: u64) -> Result<Lease, AcquireError> {
        let permit = self.bytes.clone().acquire_many_owned(units(bytes)).await?;
        Ok(Lease { budget: self.clone(), permit, growth: None })
    }

    /// Bytes that nobody holds.
    pub fn free(&self) -> u64 {
        self.bytes.available_permits() as u64 * UNIT
    }
}

impl Lease {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.permit.num_permits() as u64 * UNIT
    }

    /// Waits until at least `bytes` are held. Only for writers, whose lease began with [`BASE`].
    pub(super) async fn cover(&mut self, bytes: u64) -> Result<(), AcquireError> {
        while self.bytes() < bytes {
            if self.growth.is_none() {
                self.growth = Some(self.budget.growth.clone().lock_owned().await);
            }
            self.permit
                .merge(self.budget.bytes.clone().acquire_many_owned(units(STEP.min(bytes - self.bytes()))).await?);
        }
        Ok(())
    }

    /// The part is complete: it will ask for nothing more, so another writer may grow.
    pub(super) fn settle(&mut self) {
        self.growth = None;
    }

    /// Gives back all but `bytes`.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let surplus = self.permit.num_permits().saturating_sub(units(bytes) as usize);
        drop(self.permit.split(surplus));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn all_writers_can_grow_to_the_largest_part_without_a_deadlock() {
        // At every size: a step that takes more than the part needs would leave the last of them waiting.
        for mib in [1, 83, 96, 98, 99, 112, 114, 115, 128, 130, 131, 146, 147, 160, 250] {
            all_writers_grow(mib * 1024 * 1024).await;
        }
    }

    async fn all_writers_grow(bytes: u64) {
        let budget = Budget::new(bytes);
        let all = budget.free();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let budget = budget.clone();
            tasks.spawn(async move {
                let _slot = budget.writer().await.unwrap();
                let mut lease = budget.lease(BASE).await.unwrap();
                tokio::task::yield_now().await;
                for held in (BASE..=MOST).step_by(1024 * 1024) {
                    lease.cover(held).await.unwrap();
                    tokio::task::yield_now().await;
                }
                lease.settle();
                // In flight, as a part being uploaded is.
                lease.shrink(3 * 1024 * 1024);
                tokio::time::sleep(Duration::from_millis(5)).await;
            });
        }
        let joined = async { while tasks.join_next().await.is_some() {} };
        assert!(tokio::time::timeout(Duration::from_secs(20), joined).await.is_ok(), "a deadlock at {bytes}");
        assert_eq!(budget.free(), all);
    }
}
