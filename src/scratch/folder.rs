//! Folders of throwaway servers. Whoever uses one holds a lock on a file in it: a folder whose lock is free was left by a process that was
//! killed, and goes, with the servers that still run in it.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal},
};

use super::ScratchError;

/// How the names of the folders begin.
pub(super) const PREFIX: &str = "altlas-backup-scratch-";
const LOCK: &str = "lock";
/// Which processes were started for it: a line each, process id and start time.
const PROCESSES: &str = "processes";
/// A folder without a lock is one that is just being made, unless it is older than this.
const BEING_MADE: Duration = Duration::from_secs(60);
/// Kept free beside what a server needs.
const SPARE: u64 = 64 * 1024 * 1024;

/// One server's folder. Removed when dropped.
pub(super) struct Folder {
    path: PathBuf,
    /// Held as long as the folder is used.
    _lock: File,
}

impl Folder {
    /// Makes one in `base`, where `needed` bytes must fit. Others may pass through it, and see nothing.
    pub(super) fn make(base: &Path, needed: u64) -> Result<Self, ScratchError> {
        let failed = |error: io::Error| ScratchError::Folder { folder: base.to_owned(), detail: error.to_string() };
        let space = rustix::fs::statvfs(base).map_err(|error| failed(error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < needed.saturating_add(SPARE) {
            return Err(ScratchError::NoRoom { folder: base.to_owned(), needed: needed.saturating_add(SPARE), free });
        }
        let base = base.canonicalize().map_err(failed)?;
        let path = base.join(format!("{PREFIX}{:016x}", rand::random::<u64>()));
        fs::DirBuilder::new().mode(0o711).create(&path).map_err(failed)?;
        // What the process's mask took away.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).map_err(failed)?;
        let lock = File::options().write(true).create_new(true).open(path.join(LOCK)).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed(error.into()))?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes a process, for whoever finds the folder.
    pub(super) fn note_process(&self, process: u32) -> io::Result<()> {
        let Some(started) = start_time(process) else { return Ok(()) };
        let mut file = File::options().create(true).append(true).open(self.path.join(PROCESSES))?;
        writeln!(file, "{process} {started}")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("{} could not be removed: {error}", self.path.display());
        }
    }
}

/// When a process was started, in clock ticks since the machine was: with it, a process id means one process (proc(5), `stat`, field 22).
pub(super) fn start_time(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Removes what processes that were killed have left in `base`. Only what is ours: the folder and what it says of processes.
pub(super) async fn remove_leftovers(base: &Path) {
    let base = base.to_owned();
    let removing = tokio::task::spawn_blocking(move || {
        let entries = match fs::read_dir(&base) {
            Ok(entries) => entries,
            Err(error) => return tracing::debug!("cannot look for leftovers in {}: {error}", base.display()),
        };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PREFIX)
                && let Err(error) = remove_leftover(&entry.path())
            {
                tracing::warn!(
                    "{}, left by a verification that was killed, cannot be removed: {error}",
                    entry.path().display()
                );
            }
        }
    });
    let _ = removing.await;
}

fn remove_leftover(path: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    // In a folder that everybody may write to, anybody may have made it.
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    match File::options().write(true).open(path.join(LOCK)) {
        Ok(lock) => {
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Ok(());
            }
            end_processes(path);
            fs::remove_dir_all(path)?;
        }
        Err(_) => {
            let age = SystemTime::now().duration_since(found.modified()?).unwrap_or_default();
            if age < BEING_MADE {
                return Ok(());
            }
            fs::remove_dir_all(path)?;
        }
    }
    tracing::info!("removed {}, which a verification that was killed had left", path.display());
    Ok(())
}

/// Ends the processes that the folder names, if they still are those.
fn end_processes(path: &Path) {
    for line in fs::read_to_string(path.join(PROCESSES)).unwrap_or_default().lines() {
        let mut words = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(process)), Some(Ok(started))) = (words.next(), words.next()) else { continue };
        let Ok(process) = u32::try_from(process) else { continue };
        if start_time(process) == Some(started) {
            end(process);
        }
    }
}

/// Ends a server that is nobody's: PostgreSQL takes its children along, and its shared memory, when it is asked to quit.
fn end(process: u32) {
    let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) else { return };
    for (signal, rounds) in [(Signal::QUIT, 50), (Signal::KILL, 100)] {
        if rustix::process::kill_process(pid, signal).is_err() {
            return;
        }
        for _ in 0..rounds {
            std::thread::sleep(Duration::from_millis(20));
            if start_time(process).is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_in_use_stays_and_one_that_was_left_goes_with_its_process() {
        let base = tempfile::tempdir().unwrap();
        let used = Folder::make(base.path(), 0).unwrap();
        let left = Folder::make(base.path(), 0).unwrap();
        let other = base.path().join("something-else");
        fs::create_dir(&other).unwrap();
        let mut process = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        left.note_process(process.id()).unwrap();
        let path = left.path().to_owned();
        // As a process that was killed leaves it.
        let Folder { _lock, .. } = &left;
        flock(_lock, FlockOperation::Unlock).unwrap();
        std::mem::forget(left);
        let waiting = std::thread::spawn(move || process.wait().unwrap());
        remove_leftovers(base.path()).await;
        assert!(!waiting.join().unwrap().success(), "its process was ended");
        assert!(!path.exists() && used.path().exists() && other.exists());
        let path = used.path().to_owned();
        drop(used);
        assert!(!path.exists());
    }

    #[test]
    fn a_disk_that_is_too_small_is_told_before() {
        let base = tempfile::tempdir().unwrap();
        let error = Folder::make(base.path(), 1 << 60).err().unwrap();
        assert!(matches!(error, ScratchError::NoRoom { .. }), "{error}");
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_process_is_told_by_its_start() {
        assert!(start_time(std::process::id()).is_some());
        assert!(start_time(u32::MAX).is_none());
    }
}
