//! Is everything there, in its size? One LIST answers it (rule R1).

use std::collections::HashMap;

use super::{Epoch, Manifest, Repository, RepositoryError, Trust, layout};

/// Lists `folders` and says which of the `wanted` objects (key to size) are missing or of another size, sorted by key.
pub(crate) async fn look(
    repository: &Repository,
    folders: &[String],
    wanted: &HashMap<String, u64>,
) -> Result<Vec<Trust>, RepositoryError> {
    let mut left: HashMap<&str, Option<u64>> = wanted.keys().map(|key| (key.as_str(), None)).collect();
    for folder in folders {
        repository
            .store()
            .list(folder, &mut |info| match wanted.get(&info.key) {
                Some(size) if *size == info.size => {
                    left.remove(info.key.as_str());
                }
                Some(_) => {
                    if let Some(found) = left.get_mut(info.key.as_str()) {
                        *found = Some(info.size);
                    }
                }
                None => {}
            })
            .await?;
    }
    let mut wrong: Vec<Trust> = left
        .into_iter()
        .map(|(key, found)| match found {
            None => Trust::Missing { object: key.to_owned() },
            Some(size) => {
                let says = wanted.get(key).copied().unwrap_or_default();
                Trust::damaged(key, format!("is {size} bytes long; its manifest says {says}"))
            }
        })
        .collect();
    wrong.sort_by(|a, b| a.object().cmp(b.object()));
    Ok(wrong)
}

impl Repository {
    /// The parts of these manifests that are missing or of another size than the manifests say.
    ///
    /// # Errors
    /// What the store says.
    pub async fn missing_parts(&self, epoch: &Epoch, manifests: &[&Manifest]) -> Result<Vec<Trust>, RepositoryError> {
        let wanted = manifests
            .iter()
            .flat_map(|manifest| manifest.parts())
            .map(|part| (layout::part(epoch.id(), &part.name, &epoch.protection), part.stored))
            .collect();
        look(self, &[layout::parts(epoch.id())], &wanted).await
    }
}
