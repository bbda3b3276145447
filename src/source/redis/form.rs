//! Which form of dump a server gets: a pure decision by what may harm it.
//!
//! - *Disk* (`$<length>`): the server saves an RDB file first and sends it. Its child ends at the disk's speed, however slow we are.
//!   But a server that keeps no files has one afterwards, which a restart loads; and one that cannot write its folder refuses all
//!   writes after the failed save (`stop-writes-on-bgsave-error`). Both were seen.
//! - *Diskless* (`$EOF:<mark>`): a child sends the data as it goes. Nothing is written, but the child lives as long as we read, and
//!   the server kills it when we stall for `repl-timeout`.

use std::{fmt, time::Duration};

use super::facts::{Facts, Settings};

/// How the server hands over its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// From a file that it saves first.
    Disk,
    /// From a child, which it kills when we stall.
    Diskless {
        /// The server's `repl-timeout`.
        repl_timeout: Duration,
    },
}

impl Form {
    /// As it is written down.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Diskless { .. } => "diskless",
        }
    }
}

/// Why there is no form that leaves the server as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoForm {
    /// It must not be asked.
    Unknown,
    /// It keeps no RDB files, and would for a dump.
    KeepsNone,
    /// It keeps RDB files, but its last save failed.
    SaveFailed,
}

impl fmt::Display for NoForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "INFO or CONFIG GET may not be read, so nobody knows what a dump does to it",
            Self::KeepsNone => {
                "it keeps no RDB file (`save \"\"`), offers no dump without one (`repl-diskless-sync no`), \
                 and a restart would load the file that a dump leaves behind"
            }
            Self::SaveFailed => {
                "its last save failed, it offers no dump without a file (`repl-diskless-sync no`), \
                 and after another failure it would refuse writes"
            }
        })
    }
}

impl NoForm {
    /// The next step.
    pub(super) fn hint(self) -> String {
        let otherwise = "`allow_server_dump = true` takes the risk";
        match self {
            Self::Unknown => format!("give the user `+info` and `+config|get`; {otherwise}"),
            Self::KeepsNone => format!("CONFIG SET repl-diskless-sync yes on the server; {otherwise}"),
            Self::SaveFailed => {
                format!("mend the server's folder (see its log), or CONFIG SET repl-diskless-sync yes; {otherwise}")
            }
        }
    }
}

/// The form and why, in a few words.
pub(super) fn choose(facts: &Facts, allow_server_dump: bool) -> Result<(Form, &'static str), NoForm> {
    let (Some(saving), Some(settings)) = (&facts.saving, &facts.settings) else {
        return if allow_server_dump {
            Ok((Form::Disk, "as `allow_server_dump` says; INFO or CONFIG GET may not be read"))
        } else {
            Err(NoForm::Unknown)
        };
    };
    let saves = !settings.save.is_empty();
    let diskless = settings.diskless.then_some(Form::Diskless { repl_timeout: settings.repl_timeout });
    match diskless {
        _ if saves && saving.last_ok && saving.saved_since_start => {
            Ok((Form::Disk, "it saves RDB files itself, and its last save went well"))
        }
        // The status is `ok` also before the first save: where there is a way without one, it is not put to the test.
        None if saves && saving.last_ok => {
            Ok((Form::Disk, "it saves RDB files itself, though it has not since it started"))
        }
        Some(form) if !saves => Ok((form, "it saves no RDB files, and a dump leaves none")),
        Some(form) if !saving.last_ok => Ok((form, "its last save failed, and another failure would stop writes")),
        Some(form) => Ok((form, "it has not saved since it started: nobody knows whether it can")),
        None if removes_its_file(settings) && saving.last_ok => {
            Ok((Form::Disk, "it removes the file of a dump afterwards (`rdb-del-sync-files yes`)"))
        }
        None if allow_server_dump => Ok((Form::Disk, "as `allow_server_dump` says")),
        None if !saves => Err(NoForm::KeepsNone),
        None => Err(NoForm::SaveFailed),
    }
}

/// Redis does so only where neither RDB nor AOF is on (`removeRDBUsedToSyncReplicas` in its `replication.c`).
fn removes_its_file(settings: &Settings) -> bool {
    settings.removes_sync_files && settings.save.is_empty() && !settings.append_only
}

#[cfg(test)]
mod tests {
    use super::{super::facts::Saving, *};

    fn facts(save: &str, last_ok: bool, saved: bool, diskless: bool, removes: bool, aof: bool) -> Facts {
        Facts {
            saving: Some(Saving { last_ok, saved_since_start: saved, in_progress: false }),
            settings: Some(Settings {
                save: save.into(),
                diskless,
                removes_sync_files: removes,
                append_only: aof,
                stop_writes_on_save_error: true,
                repl_timeout: Duration::from_secs(60),
            }),
            ..Facts::default()
        }
    }

    #[test]
    fn the_form_harms_nobody() {
        let (disk, diskless) = (Ok("disk"), Ok("diskless"));
        for (facts, want) in [
            // Saves itself and can: from disk.
            (facts("3600 1", true, true, true, false, false), disk),
            (facts("3600 1", true, true, false, false, false), disk),
            (facts("3600 1", true, true, false, false, true), disk),
            // Saves itself, but nobody knows whether it can.
            (facts("3600 1", true, false, true, false, false), diskless),
            (facts("3600 1", true, false, false, false, false), disk),
            // Saves itself, and cannot.
            (facts("3600 1", false, true, true, false, false), diskless),
            (facts("3600 1", false, true, false, false, false), Err(NoForm::SaveFailed)),
            (facts("3600 1", false, true, false, true, false), Err(NoForm::SaveFailed)),
            // Saves nothing.
            (facts("", true, true, true, false, false), diskless),
            (facts("", true, false, true, true, false), diskless),
            (facts("", true, false, false, true, false), disk),
            (facts("", true, false, false, false, false), Err(NoForm::KeepsNone)),
            // With an AOF the file of a dump stays.
            (facts("", true, false, false, true, true), Err(NoForm::KeepsNone)),
            (Facts::default(), Err(NoForm::Unknown)),
        ] {
            assert_eq!(choose(&facts, false).map(|(form, _)| form.name()), want, "{facts:?}");
            let allowed = choose(&facts, true).map(|(form, _)| form.name());
            assert_eq!(allowed, want.or(disk), "{facts:?} with allow_server_dump");
        }
    }
}
