//! `restore`: choose, look that everything is there, plan, and (in a second call) carry the plan out.

use std::path::PathBuf;

use serde::Serialize;

use super::{Context, Error, OpenSnapshot, open_backup};
use crate::{
    config::SourceSettings,
    repository::{BackupId, Head, Selector},
    source::{self, Compared, Restore, RestorePlan, RestoreRequest, Restored, SourceError},
};

/// What a person asked for.
#[derive(Clone, Debug)]
pub struct RestoreArguments {
    /// Which backup.
    pub selector: Selector,
    /// Which sources; all of the backup where this is empty.
    pub sources: Vec<String>,
    /// Other addresses for sources, as `(name, url)`.
    pub targets: Vec<(String, String)>,
    /// What each source is asked.
    pub request: RestoreRequest,
    /// Write a Redis source's dump to this file instead of restoring into a server.
    pub to_rdb: Option<PathBuf>,
}

/// One source's plan.
struct PlannedSource {
    name: String,
    restore: Box<dyn Restore>,
}

/// A restore that is planned and can be carried out.
pub struct PlannedRestore {
    /// The backup.
    pub backup: BackupId,
    /// When it was started, by the store's clock.
    pub started: jiff::Timestamp,
    /// What to know of this choice: what was passed over, and what is taken without proof.
    pub notes: Vec<String>,
    sources: Vec<PlannedSource>,
}

/// What a restore did.
#[derive(Debug, Serialize)]
pub struct RestoreReport {
    /// The backup.
    pub backup: BackupId,
    /// What to know of this choice: what was passed over, and what was taken without proof.
    pub notes: Vec<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// By source, in the order of execution.
    pub sources: Vec<(String, Restored)>,
}

impl RestoreReport {
    /// Could some comparison not be concluded?
    pub fn is_inconclusive(&self) -> bool {
        self.sources
            .iter()
            .flat_map(|(_, restored)| &restored.items)
            .any(|item| item.compared == Compared::Inconclusive)
    }
}

/// Chooses the backup, checks that every object of it is there, and looks at the targets. Touches nothing.
///
/// # Errors
/// No such backup, one with objects missing, a target that cannot be looked at.
pub async fn plan_restore(context: &Context, arguments: &RestoreArguments) -> Result<PlannedRestore, Error> {
    let fits = |head: &Head, names: &[String]| arguments.fit(head, names);
    let opened = open_backup(context, &arguments.selector, &arguments.sources, fits).await?;
    let mut sources = Vec::new();
    for OpenSnapshot { name, kind, snapshot } in opened.snapshots {
        let planned = match &arguments.to_rdb {
            // No server is needed for it, nor one configured.
            Some(path) => source::redis::plan_file(snapshot, path, arguments.request.overwrite),
            None => {
                let settings = target_settings(context, &name, &kind, &arguments.targets)?;
                let target = source::open(&settings, &*context.environment)?;
                target.plan_restore(snapshot, &arguments.request).await
            }
        };
        let restore = planned.map_err(|error| Error::Source { name: name.clone(), error })?;
        sources.push(PlannedSource { name, restore });
    }
    Ok(PlannedRestore { backup: opened.backup, started: opened.started, notes: opened.notes, sources })
}

impl RestoreArguments {
    /// Do they go together with what the backup holds?
    fn fit(&self, head: &Head, names: &[String]) -> Result<(), Error> {
        if let Some((name, _)) = self.targets.iter().find(|(name, _)| !names.contains(name)) {
            return Err(Error::Usage {
                message: format!("--target names `{name}`, which is not restored from backup {}", head.backup),
                hint: Some(format!("it restores {}", names.join(", "))),
            });
        }
        let kinds: Vec<&str> =
            names.iter().filter_map(|name| head.source(name)).map(|source| source.kind.as_str()).collect();
        if self.to_rdb.is_some() && kinds != [source::redis::KIND] {
            return Err(Error::Usage {
                message: format!(
                    "--to-rdb writes the dump of one Redis source, and this would restore {}",
                    names.join(", ")
                ),
                hint: Some("name the source with `--source`".into()),
            });
        }
        Ok(())
    }
}

/// The configured source of that name and kind, at another address where one was given.
fn target_settings(
    context: &Context,
    name: &str,
    kind: &str,
    targets: &[(String, String)],
) -> Result<SourceSettings, Error> {
    let configured = context.config.sources.iter().find(|source| source.name.as_str() == name);
    let Some(configured) = configured.filter(|source| source.settings.kind() == kind) else {
        return Err(Error::Usage {
            message: format!("the configuration has no source `{name}` of kind `{kind}`, which the backup holds"),
            hint: Some("add it, with the url of the server to restore into".into()),
        });
    };
    let Some((_, url)) = targets.iter().find(|(target, _)| target == name) else {
        return Ok(configured.settings.clone());
    };
    let variable = format!("ALTLAS_BACKUP_TARGET_{}_PASSWORD", name.to_ascii_uppercase().replace('-', "_"));
    let password = (context.environment)(&variable).filter(|text| !text.is_empty()).map(Into::into);
    Ok(configured.settings.at(url, password)?)
}

impl PlannedRestore {
    /// The plans, by source.
    pub fn plans(&self) -> impl Iterator<Item = (&str, &RestorePlan)> {
        self.sources.iter().map(|source| (source.name.as_str(), source.restore.plan()))
    }

    /// An error where any plan says no: then none is carried out.
    ///
    /// # Errors
    /// The refusals of the first source that has some.
    pub fn check(&self) -> Result<(), Error> {
        for (name, plan) in self.plans() {
            if !plan.refusals.is_empty() {
                let error = SourceError::Refused { refusals: plan.refusals.clone() };
                return Err(Error::Source { name: name.to_owned(), error });
            }
        }
        Ok(())
    }

    /// Carries the plans out, one source after the other.
    ///
    /// # Errors
    /// The first failure, with what is in the target then.
    pub async fn execute(self, context: &Context) -> Result<RestoreReport, Error> {
        self.check()?;
        let clock = std::time::Instant::now();
        let total = self.plans().map(|(_, plan)| plan.raw).sum();
        context.progress.total_raw.store(total, std::sync::atomic::Ordering::Relaxed);
        let mut sources = Vec::new();
        for PlannedSource { name, restore } in self.sources {
            match restore.execute(&context.cancel).await {
                Ok(restored) => sources.push((name, restored)),
                Err(error) => return Err(Error::Source { name, error }),
            }
        }
        Ok(RestoreReport { backup: self.backup, notes: self.notes, seconds: clock.elapsed().as_secs_f64(), sources })
    }
}
