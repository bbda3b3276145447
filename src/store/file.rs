//! A folder as a store: for a local disk, a mounted share, and for tests.
//!
//! Invariants: an object becomes visible only after its bytes were synced, under its final name, in one step that
//! replaces nothing; success is answered only after the folder entry was synced too. The root folder is never created on
//! the way (an unmounted disk would silently become a folder on the system's own): [`FileBackend::create_root`] is for
//! `init`. Temporary files are beside their target and are no objects: listings pass over them.
//!
//! A writer that was killed leaves its temporary file behind. [`FileBackend::stale_temporaries`] lists them with their ages for the sweep,
//! which removes the old ones.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::SystemTime,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::{
    Backend, ObjectBody, ObjectInfo, Page, PutMode, StoreError, StoreErrorKind,
    key::{TEMPORARY, check_key, check_prefix},
};

/// Bytes of one piece of a body that is read.
const PIECE: usize = 1024 * 1024;

/// How often a write makes its folders anew when a delete removes them as empty at the same moment.
const FOLDER_RACES: usize = 16;

/// A folder store.
#[derive(Clone, Debug)]
pub struct FileBackend {
    folder: Arc<Folder>,
}

/// A temporary file whose writer did not finish, or has not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleTemporary {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written, by the clock that [`Backend::now`] tells.
    pub last_modified: Timestamp,
}

#[derive(Debug)]
struct Folder {
    root: PathBuf,
    url: String,
    /// Folders whose own entry this process has synced, so that a second write need not do it again.
    synced: Mutex<HashSet<PathBuf>>,
    /// Held shared from a publishing rename to the sync of its folder; a reader takes it alone for a moment. So nobody,
    /// and no settling of a write whose deadline passed, sees an object that a power cut could still take back.
    publishing: RwLock<()>,
}

impl FileBackend {
    /// A store in the folder `path`, which must be absolute. Nothing is read or created yet.
    pub fn open(path: impl Into<PathBuf>) -> Result<FileBackend, StoreError> {
        let root = path.into();
        let url = format!("file://{}", root.display());
        if !root.is_absolute() || root.to_str().is_none() {
            let detail = "the folder of a store is named by an absolute path of UTF-8 text";
            return Err(StoreError::new(StoreErrorKind::Invalid, "open", url, detail));
        }
        let folder = Folder { root, url, synced: Mutex::default(), publishing: RwLock::default() };
        Ok(FileBackend { folder: Arc::new(folder) })
    }

    /// Creates the root folder and its parents where they are missing, and syncs them. For `init` only.
    pub async fn create_root(&self) -> Result<(), StoreError> {
        self.blocking("open", String::new(), |folder| {
            let mut made = Vec::new();
            let mut missing = Some(folder.root.as_path());
            while let Some(path) = missing.filter(|path| !path.exists()) {
                made.push(path.to_owned());
                missing = path.parent();
            }
            fs::create_dir_all(&folder.root)?;
            for path in made.iter().rev() {
                sync_parent(path)?;
            }
            Ok(())
        })
        .await
    }

    /// The temporary files below the root, of writers that died or are still writing.
    pub async fn stale_temporaries(&self) -> Result<Vec<StaleTemporary>, StoreError> {
        self.blocking("list", String::new(), |folder| {
            folder.check_root()?;
            let mut found = Vec::new();
            folder.walk(&folder.root, &mut |entry| {
                if let Entry::Temporary(path, metadata) = entry {
                    found.push(StaleTemporary { path, size: metadata.len(), last_modified: modified(&metadata)? });
                }
                Ok(true)
            })?;
            Ok(found)
        })
        .await
    }

    /// Removes a temporary file; fine where it is gone.
    pub async fn remove_temporary(&self, temporary: &StaleTemporary) -> Result<(), StoreError> {
        let path = temporary.path.clone();
        self.blocking("delete", String::new(), move |_| match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::at(&path, error)),
            _ => Ok(()),
        })
        .await
    }

    /// Runs `work` where it may block, and gives its failure a meaning.
    async fn blocking<T, F>(&self, op: &'static str, key: String, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Folder) -> Result<T, Failure> + Send + 'static,
    {
        let folder = self.folder.clone();
        let object = format!("{}/{key}", folder.url.trim_end_matches('/'));
        match tokio::task::spawn_blocking(move || work(&folder)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(failure)) => Err(failure.into_error(op, object)),
            Err(join) => Err(StoreError::new(StoreErrorKind::Other, op, object, join.to_string())),
        }
    }
}

#[async_trait]
impl Backend for FileBackend {
    fn url(&self) -> &str {
        &self.folder.url
    }

    /// Both modes refuse a key that exists: a folder can tell at no cost, so nothing is ever replaced here.
    async fn put(&self, key: &str, body: Bytes, _mode: PutMode) -> Result<(), StoreError> {
        check_key("put", key)?;
        let target = self.folder.root.join(key);
        self.blocking("put", key.to_owned(), move |folder| folder.put(&target, &body)).await
    }

    async fn get(&self, key: &str, offset: u64) -> Result<ObjectBody, StoreError> {
        check_key("get", key)?;
        let path = self.folder.root.join(key);
        let (file, size, tag) =
            self.blocking("get", key.to_owned(), move |folder| folder.open_object(&path, offset)).await?;
        let (backend, key) = (self.clone(), key.to_owned());
        let pieces = stream::try_unfold(Some(file), move |file| {
            let (backend, key) = (backend.clone(), key.clone());
            async move {
                let Some(file) = file else { return Ok(None) };
                backend.blocking("get", key, move |_| next_piece(file)).await
            }
        });
        Ok(ObjectBody { size, tag, body: pieces.boxed() })
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        check_key("head", key)?;
        let (path, name) = (self.folder.root.join(key), key.to_owned());
        self.blocking("head", key.to_owned(), move |folder| {
            let metadata = folder.object_metadata(&path)?;
            Ok(ObjectInfo { key: name, size: metadata.len(), last_modified: modified(&metadata)? })
        })
        .await
    }

    /// The whole listing is one page: a folder gives no place to continue from that survives changes.
    async fn list_page(&self, prefix: &str, dirs_only: bool, _from: Option<&str>) -> Result<Page, StoreError> {
        check_prefix(prefix)?;
        let below = prefix.to_owned();
        self.blocking("list", prefix.to_owned(), move |folder| folder.list(&below, dirs_only)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        check_key("delete", key)?;
        let path = self.folder.root.join(key);
        self.blocking("delete", key.to_owned(), move |folder| folder.delete(&path)).await
    }

    /// The system clock: on a local disk it is the one that sets modification times. On a network share the server's may
    /// differ; the difference is that of two machines' clocks, against grace periods of days.
    async fn now(&self) -> Result<Timestamp, StoreError> {
        self.blocking("clock", String::new(), |folder| {
            folder.check_root()?;
            timestamp(SystemTime::now())
        })
        .await
    }
}

/// One thing that a walk came by.
enum Entry {
    Object(PathBuf, fs::Metadata),
    Temporary(PathBuf, fs::Metadata),
}

impl Folder {
    fn put(&self, target: &Path, body: &[u8]) -> Result<(), Failure> {
        self.check_root()?;
        let parent = target.parent().ok_or_else(|| Failure::other("the key has no folder"))?;
        let (temporary, mut file) = self.create_temporary(parent)?;
        let written = write_synced(&mut file, body).and_then(|()| self.publish(&temporary, target, parent));
        if written.is_err() {
            // What matters is the error that is already on its way; the file stays for the sweep of temporaries at worst.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Makes the folders of an object, each synced into its parent, and a temporary file in the last.
    fn create_temporary(&self, parent: &Path) -> Result<(PathBuf, File), Failure> {
        for _ in 0..FOLDER_RACES {
            if !self.make_folders(parent)? {
                continue;
            }
            let temporary = parent.join(format!("{TEMPORARY}{:016x}", rand::random::<u64>()));
            // 0600: a repository without encryption holds the data itself.
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary) {
                Ok(file) => return Ok((temporary, file)),
                // A delete removed the folder as empty in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.lock_synced().clear(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure::other("the object's folder vanished again and again while it was written"))
    }

    /// Makes the folders from the root down to `folder`. False when one vanished meanwhile.
    fn make_folders(&self, folder: &Path) -> Result<bool, Failure> {
        if self.lock_synced().contains(folder) {
            return Ok(true);
        }
        let below = folder.strip_prefix(&self.root).map_err(|_| Failure::other("the key leaves the root folder"))?;
        let mut path = self.root.clone();
        for segment in below {
            path.push(segment);
            if self.lock_synced().contains(&path) {
                continue;
            }
            match fs::create_dir(&path) {
                Ok(()) => {}
                // Another writer may have made it and not have synced it yet: sync it here as well.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.lock_synced().clear();
                    self.check_root()?;
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
            sync_parent(&path)?;
            self.lock_synced().insert(path.clone());
        }
        Ok(true)
    }

    /// Gives the finished file its name, where that is free, and syncs the folder.
    fn publish(&self, temporary: &Path, target: &Path, parent: &Path) -> Result<(), Failure> {
        let _publishing = self.publishing.read().unwrap_or_else(PoisonError::into_inner);
        rename_new(temporary, target)?;
        sync_folder(parent).map_err(|error| {
            // An object that may vanish with the next power cut must not be found by whoever settles this write.
            let _ = fs::remove_file(target);
            Failure { kind: Some(StoreErrorKind::Other), ..Failure::from(error) }
        })
    }

    fn open_object(&self, path: &Path, offset: u64) -> Result<(File, u64, String), Failure> {
        // Looked at before it is opened: opening a pipe would wait for its writer.
        self.object_metadata(path)?;
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.absent()?),
            opened => opened?,
        };
        let metadata = file.metadata()?;
        if offset > 0 {
            if offset >= metadata.len() {
                return Err(Failure::new(StoreErrorKind::Truncated, "the object is shorter than the asked offset"));
            }
            file.seek(SeekFrom::Start(offset))?;
        }
        let tag = format!("{:x}-{:x}-{:x}.{}", metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
        Ok((file, metadata.len(), tag))
    }

    fn object_metadata(&self, path: &Path) -> Result<fs::Metadata, Failure> {
        drop(self.publishing.write().unwrap_or_else(PoisonError::into_inner));
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => Ok(metadata),
            // As in a bucket, where folders are not things.
            Ok(metadata) if metadata.is_dir() => Err(self.absent()?),
            Ok(_) => Err(Failure::other("neither a file nor a folder")),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(self.absent()?)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn list(&self, prefix: &str, dirs_only: bool) -> Result<Page, Failure> {
        self.check_root()?;
        drop(self.publishing.write().unwrap_or_else(PoisonError::into_inner));
        let top = self.root.join(prefix);
        match fs::metadata(&top) {
            Ok(metadata) if metadata.is_dir() => {}
            // A file of that name is no folder, so nothing lies below it.
            Ok(_) => return Ok(Page::default()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Page::default());
            }
            Err(error) => return Err(error.into()),
        }
        let mut page = Page::default();
        if dirs_only {
            for (path, name) in entries(&top)? {
                if name.starts_with(TEMPORARY) || !is_real_folder(&path)? {
                    continue;
                }
                // A bucket has no empty folders; one that a crash or a race left behind must not show here either.
                let mut holds_object = false;
                self.walk(&path, &mut |entry| {
                    holds_object = matches!(entry, Entry::Object(..));
                    Ok(!holds_object)
                })?;
                if holds_object {
                    page.dirs.push(format!("{prefix}{name}"));
                }
            }
            page.dirs.sort_unstable();
        } else {
            self.walk(&top, &mut |entry| {
                if let Entry::Object(path, metadata) = entry {
                    let key = self.key_of(&path)?;
                    page.objects.push(ObjectInfo { key, size: metadata.len(), last_modified: modified(&metadata)? });
                }
                Ok(true)
            })?;
            page.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        }
        Ok(page)
    }

    /// Hands all files below `top` to `each` until it says false. What cannot be read, or is neither file nor folder, is
    /// an error: a listing that leaves something out lies.
    fn walk(&self, top: &Path, each: &mut dyn FnMut(Entry) -> Result<bool, Failure>) -> Result<(), Failure> {
        let mut folders = vec![top.to_owned()];
        while let Some(folder) = folders.pop() {
            let listed = match entries(&folder) {
                // Removed as empty by a delete since its parent was read.
                Err(failure) if folder != top && failure.is_not_found() => continue,
                listed => listed?,
            };
            for (path, name) in listed {
                let metadata = match fs::symlink_metadata(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    metadata => metadata.map_err(|error| Failure::at(&path, error))?,
                };
                if metadata.is_dir() {
                    folders.push(path);
                    continue;
                }
                // An object may be a link to a file (moved to another disk), never a link to a folder: that could be a circle.
                let metadata = if metadata.is_symlink() {
                    fs::metadata(&path).map_err(|error| Failure::at(&path, error))?
                } else {
                    metadata
                };
                if !metadata.is_file() {
                    return Err(Failure::other(format!("{} is neither a file nor a folder", path.display())));
                }
                let entry = if name.starts_with(TEMPORARY) {
                    Entry::Temporary(path, metadata)
                } else {
                    Entry::Object(path, metadata)
                };
                if !each(entry)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn key_of(&self, path: &Path) -> Result<String, Failure> {
        let below = path.strip_prefix(&self.root).ok().and_then(Path::to_str);
        below.map(str::to_owned).ok_or_else(|| Failure::other(format!("{} has no key", path.display())))
    }

    fn delete(&self, path: &Path) -> Result<(), Failure> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => return self.check_root(),
            _ => {}
        }
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return self.check_root();
            }
            Err(error) => return Err(error.into()),
        }
        let mut folder = path.parent();
        while let Some(parent) = folder.filter(|parent| *parent != self.root) {
            match fs::remove_dir(parent) {
                Ok(()) => {
                    self.lock_synced().remove(parent);
                }
                // Not empty, or a writer or another delete is at it: then it stays or is gone, both are fine.
                Err(_) => break,
            }
            folder = parent.parent();
        }
        match folder.map(sync_folder) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn check_root(&self) -> Result<(), Failure> {
        match fs::metadata(&self.root) {
            Ok(metadata) if metadata.is_dir() => Ok(()),
            Ok(_) => Err(Failure::new(StoreErrorKind::NoSuchBucket, "the store's address is not a folder")),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(Failure::new(StoreErrorKind::NoSuchBucket, "the store's folder does not exist"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What to say of an object that is not there: `NoSuchBucket` when not even the root is.
    fn absent(&self) -> Result<Failure, Failure> {
        self.check_root()?;
        Ok(Failure::new(StoreErrorKind::NotFound, "no such object"))
    }

    fn lock_synced(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names and paths in a folder.
fn entries(folder: &Path) -> Result<Vec<(PathBuf, String)>, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| Failure::at(folder, error))? {
        let entry = entry.map_err(|error| Failure::at(folder, error))?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|name| Failure::other(format!("{} holds a name that is not UTF-8: {name:?}", folder.display())))?;
        found.push((entry.path(), name));
    }
    Ok(found)
}

fn is_real_folder(path: &Path) -> Result<bool, Failure> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::at(path, error)),
    }
}

fn write_synced(file: &mut File, body: &[u8]) -> Result<(), Failure> {
    file.write_all(body)?;
    file.sync_all()?;
    Ok(())
}

/// Renames without replacing: `AlreadyExists` where the target is taken.
fn rename_new(from: &Path, to: &Path) -> Result<(), Failure> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // The file system does not know the flag (NFS and some FUSE ones): a hard link replaces nothing either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(link_new(from, to)?),
        Err(errno) => Err(io::Error::from(errno).into()),
    }
}

fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::remove_file(from)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_folder)
}

fn next_piece(mut file: File) -> Result<Option<(Bytes, Option<File>)>, Failure> {
    let mut piece = Vec::with_capacity(PIECE);
    let read = Read::by_ref(&mut file).take(PIECE as u64).read_to_end(&mut piece)?;
    Ok((read > 0).then(|| (Bytes::from(piece), Some(file))))
}

fn modified(metadata: &fs::Metadata) -> Result<Timestamp, Failure> {
    timestamp(metadata.modified()?)
}

fn timestamp(time: SystemTime) -> Result<Timestamp, Failure> {
    Timestamp::try_from(time).map_err(|error| Failure::other(error.to_string()))
}

/// A failure before it is known of which object.
#[derive(Debug)]
struct Failure {
    /// The meaning where the code knew it; else the system's error decides.
    kind: Option<StoreErrorKind>,
    system: Option<io::ErrorKind>,
    detail: String,
}

impl Failure {
    fn new(kind: StoreErrorKind, detail: impl Into<String>) -> Failure {
        Failure { kind: Some(kind), system: None, detail: detail.into() }
    }

    fn other(detail: impl Into<String>) -> Failure {
        Failure::new(StoreErrorKind::Other, detail)
    }

    /// An error that is about another path than the object's.
    fn at(path: &Path, error: io::Error) -> Failure {
        Failure { kind: None, system: Some(error.kind()), detail: format!("{}: {error}", path.display()) }
    }

    fn is_not_found(&self) -> bool {
        self.kind.is_none() && self.system == Some(io::ErrorKind::NotFound)
    }

    fn into_error(self, op: &'static str, object: String) -> StoreError {
        use io::ErrorKind as System;
        let kind = self.kind.unwrap_or(match self.system {
            Some(System::AlreadyExists) => StoreErrorKind::AlreadyExists,
            Some(System::StorageFull | System::QuotaExceeded) => StoreErrorKind::OutOfSpace,
            Some(System::PermissionDenied | System::ReadOnlyFilesystem) => StoreErrorKind::Denied,
            Some(System::FileTooLarge) => StoreErrorKind::TooLarge,
            Some(System::StaleNetworkFileHandle | System::HostUnreachable | System::NetworkDown) => {
                StoreErrorKind::Unreachable
            }
            Some(System::TimedOut) => StoreErrorKind::TimedOut,
            _ => StoreErrorKind::Other,
        });
        StoreError::new(kind, op, object, self.detail)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure { kind: None, system: Some(error.kind()), detail: error.to_string() }
    }
}

#[cfg(test)]
mod tests;
