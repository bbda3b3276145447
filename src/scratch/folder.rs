//! Folders of throwaway servers. Whoever uses one holds a lock on a file in it: a folder whose lock is free was left by a process that was
//! killed, and goes, with the servers that still run in it. So one that is just being made may go too: its maker sees that and makes another.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
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
/// How long a process that lost its parent, as one of `initdb`'s does, may go on writing to a folder that is being removed.
const STILL_WRITES: Duration = Duration::from_secs(5);
/// So often a folder is made anew before that is an error.
const MAKES: u32 = 5;
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
        let mut tries = 1..MAKES;
        loop {
            let path = base.join(format!("{PREFIX}{:016x}", rand::random::<u64>()));
            fs::DirBuilder::new().mode(0o711).create(&path).map_err(failed)?;
            match Self::take(&path) {
                Ok(lock) => return Ok(Self { path, _lock: lock }),
                // Somebody who looks for leftovers took it, or has removed it already.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock)
                        && tries.next().is_some() => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Makes a new folder one that is used: its lock, held.
    fn take(path: &Path) -> io::Result<File> {
        // What the process's mask took away.
        fs::set_permissions(path, fs::Permissions::from_mode(0o711))?;
        let lock = File::options().write(true).create_new(true).open(path.join(LOCK))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        // Held by nobody for a moment, it may have been removed in that.
        fs::metadata(path.join(LOCK))?;
        Ok(lock)
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
        if let Err(error) = remove(&self.path) {
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
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            match remove_leftover(&entry.path()) {
                Ok(()) => {}
                // Another one has removed it, or its user.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(
                    "{}, left by a verification that was killed, cannot be removed: {error}",
                    entry.path().display()
                ),
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
            remove(path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::remove_dir(path) {
            // Its maker goes on.
            Err(_) if path.join(LOCK).exists() => return Ok(()),
            // The lock comes first into a folder: somebody was killed while he removed this one.
            // Or does so now: that is no reason to tell people of it.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return remove(path),
            removed => return removed,
        },
        Err(error) => return Err(error),
    }
    tracing::info!("removed {}, which a verification that was killed had left", path.display());
    Ok(())
}

/// Removes a folder, in which a process that is about to end may still make files.
fn remove(path: &Path) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && began.elapsed() < STILL_WRITES => {
                std::thread::sleep(Duration::from_millis(50));
            }
            // By somebody else.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
    }
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
    use std::sync::atomic::{AtomicBool, Ordering};

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

    #[tokio::test]
    async fn one_without_a_lock_goes_at_once() {
        let base = tempfile::tempdir().unwrap();
        let [made, removed] = ["0", "1"].map(|name| base.path().join(format!("{PREFIX}{name}")));
        // Whoever made it, or removed it, was killed.
        fs::create_dir(&made).unwrap();
        fs::create_dir_all(removed.join("data")).unwrap();
        remove_leftovers(base.path()).await;
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    struct Ends<'a>(&'a AtomicBool);

    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// Makers and those who look for leftovers at once: no folder goes that somebody holds.
    #[tokio::test]
    async fn one_that_is_being_made_is_made_or_made_anew() {
        let base = tempfile::tempdir().unwrap();
        let (end, mut made) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !end.load(Ordering::SeqCst) {
                        for entry in fs::read_dir(base.path()).unwrap().flatten() {
                            let _ = remove_leftover(&entry.path());
                        }
                    }
                });
            }
            // However this ends, they do too.
            let _ends = Ends(&end);
            for _ in 0..300 {
                // With two who remove all the time, more than a real one is unlucky.
                let Ok(folder) = Folder::make(base.path(), 0) else { continue };
                made += 1;
                fs::write(folder.path().join("data"), "held").unwrap();
                std::thread::yield_now();
                assert_eq!(fs::read_to_string(folder.path().join("data")).unwrap(), "held");
            }
        });
        assert!(made > 0);
        remove_leftovers(base.path()).await;
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn one_goes_though_a_process_without_parent_still_writes_to_it() {
        let base = tempfile::tempdir().unwrap();
        let folder = Folder::make(base.path(), 0).unwrap();
        let path = folder.path().to_owned();
        let writes = std::thread::spawn({
            let path = path.clone();
            move || {
                let began = Instant::now();
                for number in 0.. {
                    let written = fs::write(path.join(number.to_string()), "");
                    if written.is_err() || began.elapsed() > Duration::from_secs(1) {
                        return;
                    }
                }
            }
        });
        std::thread::sleep(Duration::from_millis(100));
        drop(folder);
        assert!(!path.exists());
        writes.join().unwrap();
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
