//! Which parts a backup need not upload again (rule R7).

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use super::{Catalog, Epoch, Head, PartName, Repository, RepositoryError, layout};

/// Manifests read a source, newest first. What only an older one names was dropped by the three newer ones and is rarely wanted
/// again; reading a month of manifests would cost more than storing such a part twice.
const MANIFESTS_PER_SOURCE: usize = 3;

/// What the clocks of a store's machines may differ.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(1);

/// A part in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPart {
    /// Its name.
    pub name: PartName,
    /// Bytes of the object.
    pub stored: u64,
}

/// May a part be reused?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// R7 (a): a manifest names it, in the size that it has.
    Known,
    /// R7 (b): only the listing tells of it. It may be cut short, so its digest is to be checked first.
    Unproven,
}

/// The parts that may be reused, by the hash of their content.
#[derive(Debug, Default)]
pub struct ReusableParts {
    parts: HashMap<[u8; 32], (StoredPart, Reuse)>,
}

/// The decision on one listed part.
fn may_reuse(named: Option<u64>, listed: u64, age: Duration, grace: Duration) -> Option<Reuse> {
    match named {
        // (a) A head of this epoch names it. One that is there in another size is damaged, however young.
        Some(size) => (size == listed).then_some(Reuse::Known),
        // (b) A run that crashed stored it, recently enough that no sweep can be about to take it.
        None => (age < grace / 3).then_some(Reuse::Unproven),
    }
}

impl ReusableParts {
    /// R7: reads the newest manifests of this epoch's heads, then lists its parts. `now` is a time before `catalog` was read.
    ///
    /// # Errors
    /// What the store says. A manifest that is not to be trusted only means that its parts are not reused.
    pub async fn find(
        repository: &Repository,
        epoch: &Epoch,
        catalog: &Catalog,
        now: Timestamp,
        grace: Duration,
    ) -> Result<Self, RepositoryError> {
        let mut named: HashMap<PartName, u64> = HashMap::new();
        let mut read: HashMap<&str, usize> = HashMap::new();
        // A head that has no tombstone when `catalog` was read gets one later than `now`, and no sweep takes what it names before that
        // one is older than the grace period. By then this backup is committed, or never will be.
        let usable = |head: &&Head| head.epoch == *epoch.id() && !catalog.expiring.contains(&head.backup);
        for head in catalog.heads().filter(usable) {
            for source in head.sources.iter().filter(|source| source.manifest.is_some()) {
                let count = read.entry(&source.name).or_default();
                if *count == MANIFESTS_PER_SOURCE {
                    continue;
                }
                *count += 1;
                match repository.manifest(head, epoch, source).await {
                    Ok(manifest) => named.extend(manifest.parts().map(|part| (part.name.clone(), part.stored))),
                    Err(RepositoryError::Trust(trust)) => tracing::warn!("{trust}; its parts will not be reused"),
                    Err(error) => return Err(error),
                }
            }
        }
        let mut found = Self::default();
        let (mut untrusted, mut strangers) = (HashSet::new(), 0_u64);
        repository
            .store()
            .list(&layout::parts(epoch.id()), &mut |info| {
                let Some(name) = layout::part_name(&info.key, epoch.id(), &epoch.protection) else { return };
                // What somebody else named is not a part.
                if !name.is_of(&epoch.keys) {
                    return strangers += 1;
                }
                // A time in the future is no age: as good as too old.
                let age =
                    Duration::try_from(now.duration_since(info.last_modified) + TOLERANCE).unwrap_or(Duration::MAX);
                match may_reuse(named.get(&name).copied(), info.size, age, grace) {
                    Some(reuse) => found.add(StoredPart { name, stored: info.size }, reuse),
                    None if named.contains_key(&name) => drop(untrusted.insert(info.key)),
                    None => {}
                }
            })
            .await?;
        if strangers > 0 {
            let objects = crate::report::count(strangers, "object");
            tracing::warn!("{objects} among the parts of epoch {} were not written by this program", epoch.id());
        }
        for key in untrusted {
            tracing::warn!("{key} has another size than its manifest says; it will not be reused");
        }
        Ok(found)
    }

    /// Of two with the same content the known one is kept.
    fn add(&mut self, part: StoredPart, reuse: Reuse) {
        if reuse == Reuse::Known || !self.parts.contains_key(&part.name.content) {
            self.parts.insert(part.name.content, (part, reuse));
        }
    }

    /// The part with this content.
    pub fn get(&self, content: &[u8; 32]) -> Option<&(StoredPart, Reuse)> {
        self.parts.get(content)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuse_needs_a_head_or_youth() {
        let hour = Duration::from_secs(3600);
        for (named, listed, age, may) in [
            (Some(10), 10, 1000 * hour, Some(Reuse::Known)),
            (Some(10), 9, 1000 * hour, None),
            (Some(10), 9, hour, None),
            (None, 10, hour, Some(Reuse::Unproven)),
            (None, 10, 23 * hour, Some(Reuse::Unproven)),
            (None, 10, 24 * hour, None),
        ] {
            assert_eq!(may_reuse(named, listed, age, 72 * hour), may, "{named:?} {listed} {age:?}");
        }
    }
}
