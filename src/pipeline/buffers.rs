//! Buffers that are used again. Memory of this size comes fresh from the kernel each time, which clears it page by page: a tenth of the CPU time of
//! a backup went there.

use std::sync::{Mutex, PoisonError};

/// What a buffer begins with: room for most parts.
const CAPACITY: usize = 9 * 1024 * 1024;
/// A buffer that has grown beyond this is not kept.
const MOST: usize = 2 * CAPACITY;
/// So many are kept.
const KEPT: usize = 4;

/// Buffers that nobody needs for now.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// An empty one.
    pub(super) fn take(&self) -> Vec<u8> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Vec::with_capacity(CAPACITY))
    }

    /// Gives one back.
    pub(super) fn give(&self, mut buffer: Vec<u8>) {
        if (CAPACITY..=MOST).contains(&buffer.capacity()) {
            buffer.clear();
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < KEPT {
                kept.push(buffer);
            }
        }
    }
}
