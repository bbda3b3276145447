//! One semaphore in bytes over all parts in flight, plaintext and stored bytes together.
//!
//! A writer does not know how long its part will be. It starts with a [`BASE`] lease and grows; two writers that both hold half of
//! the budget and want more would wait for ever. Beside its part a writer may hold a *window*: room for what its source sends
//! unasked, held for the writer's life ([`Budget::writer`]).
//!
//! Nobody waits for ever, because what all open writers may come to hold together always fits into the budget B:
//!
//! * A writer is entitled to BASE + its window. Only the one that holds the *growth token* may hold more: MOST + its window. The
//!   token comes with the first growth and goes when the part is complete, which asks for nothing more.
//! * Slots for writers are given out of a pool of B − (MOST − BASE), in steps of [`SLOT`], each BASE + window in **one** request (two
//!   that each got half of what they need would wait for each other). So the sum of all entitlements is at most B − (MOST − BASE), and
//!   with the token's MOST − BASE at most B.
//! * Everything else that holds bytes (a part being compressed, uploaded, loaded) finishes without asking for more.
//!
//! Requests are served in order, and the first of those that wait asks within its entitlement. Once what finishes by itself has
//! finished, the others hold no more than theirs, so what it asks for is free. It follows for the token's holder, who then completes a part,
//! and for each after it. Whoever holds a slot must not wait for another; whoever waits for one holds nothing.
//!
//! The pool of the smallest budget is [`MIN_BUDGET`] − (MOST − BASE) = BASE + [`MOST_WINDOW`]: a writer with the largest window gets all of it and
//! is open alone.

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

/// Steps in which slots for writers are counted.
const SLOT: u64 = 4 * 1024 * 1024;

/// The largest window of a writer, in bytes.
pub const MOST_WINDOW: u64 = 20 * 1024 * 1024;
/// The smallest budget that works, in bytes: one part of the largest size, and the largest window, which has room for one more writer.
pub const MIN_BUDGET: u64 = MOST + MOST_WINDOW;

/// The budget of one run. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes: Arc<Semaphore>,
    growth: Arc<Mutex<()>>,
    /// In steps of [`SLOT`].
    slots: Arc<Semaphore>,
}

/// Leave for one open writer; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _permit: OwnedSemaphorePermit,
    _window: Option<Lease>,
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
        let slots = usize::try_from((bytes - (MOST - BASE)) / SLOT).unwrap_or(usize::MAX);
        Self {
            bytes: Arc::new(Semaphore::new(units(bytes) as usize)),
            growth: Arc::default(),
            slots: Arc::new(Semaphore::new(slots.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// A slot for one open writer, which holds `window` bytes beside what it leases for its part, at most [`MOST_WINDOW`]. Whoever
    /// holds one must not wait for another.
    pub(super) async fn writer(&self, window: u64) -> Result<Slot, AcquireError> {
        let window = window.min(MOST_WINDOW);
        // At most 9: BASE and the largest window.
        let slots = u32::try_from((BASE + window).div_ceil(SLOT)).unwrap_or(u32::MAX);
        let permit = self.slots.clone().acquire_many_owned(slots).await?;
        let window = match window {
            0 => None,
            bytes => Some(self.lease(bytes).await?),
        };
        Ok(Slot { _permit: permit, _window: window })
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

    const MIB: u64 = 1024 * 1024;
    /// At every size: a step that takes more than the part needs would leave the last of them waiting.
    const SIZES: [u64; 17] = [1, 86, 87, 90, 96, 98, 99, 112, 114, 115, 128, 130, 131, 146, 147, 160, 250];

    #[tokio::test]
    async fn all_writers_can_grow_to_the_largest_part_without_a_deadlock() {
        for mib in SIZES {
            for windows in [&[0][..], &[MOST_WINDOW], &[0, 8 * MIB], &[1, 4 * MIB, 0, 5 * MIB + 1, MOST_WINDOW, 0, 0]] {
                all_writers_grow(mib * MIB, windows).await;
            }
        }
    }

    async fn all_writers_grow(bytes: u64, windows: &[u64]) {
        let budget = Budget::new(bytes);
        let (all, slots) = (budget.free(), budget.slots.available_permits());
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..20 {
            let (budget, window) = (budget.clone(), windows[n % windows.len()]);
            tasks.spawn(async move {
                let slot = budget.writer(window).await.unwrap();
                let mut lease = budget.lease(BASE).await.unwrap();
                tokio::task::yield_now().await;
                for held in (BASE..=MOST).step_by(1024 * 1024) {
                    lease.cover(held).await.unwrap();
                    tokio::task::yield_now().await;
                }
                lease.settle();
                // In flight, as a part being uploaded is, while the writer goes on to its next part.
                lease.shrink(3 * MIB);
                let in_flight = tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    drop(lease);
                });
                let mut next = budget.lease(BASE).await.unwrap();
                next.cover(BASE + MIB).await.unwrap();
                drop((next, slot));
                in_flight.await.unwrap();
            });
        }
        let joined = async { while tasks.join_next().await.is_some() {} };
        let ended = tokio::time::timeout(Duration::from_secs(20), joined).await;
        assert!(ended.is_ok(), "a deadlock at {bytes} with windows of {windows:?}");
        assert_eq!((budget.free(), budget.slots.available_permits()), (all, slots));
    }

    /// What all writers may come to hold fits, at every size and however they are mixed, and no slot that would fit is kept back.
    #[tokio::test]
    async fn entitlements_fit() {
        let windows = [0, MOST_WINDOW, 8 * MIB, 0, 4 * MIB, 1, 0];
        for mib in SIZES {
            for turn in 0..windows.len() {
                let budget = Budget::new(mib * MIB);
                let all = budget.free();
                let (mut open, mut entitled) = (Vec::new(), 0);
                for window in windows.iter().cycle().skip(turn) {
                    let Ok(slot) = tokio::time::timeout(Duration::ZERO, budget.writer(*window)).await else {
                        assert!(entitled + (BASE + window).next_multiple_of(SLOT) + MOST - BASE > all, "{mib} {turn}");
                        break;
                    };
                    entitled += (BASE + window).next_multiple_of(SLOT);
                    open.push(slot.unwrap());
                }
                assert!(!open.is_empty() && entitled + MOST - BASE <= all, "{mib} {turn}");
            }
        }
    }

    #[tokio::test]
    async fn the_largest_window_is_open_alone_in_the_smallest_budget() {
        let budget = Budget::new(MIN_BUDGET);
        let slot = budget.writer(MOST_WINDOW).await.unwrap();
        assert_eq!(budget.free(), MIN_BUDGET - MOST_WINDOW);
        assert!(tokio::time::timeout(Duration::ZERO, budget.writer(0)).await.is_err());
        let mut lease = budget.lease(BASE).await.unwrap();
        lease.cover(MOST).await.unwrap();
        drop((lease, slot));
        assert_eq!(budget.free(), MIN_BUDGET);
        budget.writer(0).await.unwrap();
    }
}
