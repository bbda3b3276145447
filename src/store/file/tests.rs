//! What only a folder store has: temporaries, a root that may be missing, links.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

const BODY: Bytes = Bytes::from_static(b"bytes");

fn store() -> (tempfile::TempDir, FileBackend) {
    let folder = tempfile::tempdir().unwrap();
    let backend = FileBackend::open(folder.path()).unwrap();
    (folder, backend)
}

async fn keys(backend: &FileBackend) -> Vec<String> {
    let page = backend.list_page("", false, None).await.unwrap();
    page.objects.into_iter().map(|object| object.key).collect()
}

#[tokio::test]
async fn a_missing_root_is_never_made_on_the_way() {
    let (folder, _) = store();
    let root = folder.path().join("not/mounted");
    let backend = FileBackend::open(&root).unwrap();
    let missing = StoreErrorKind::NoSuchBucket;
    assert_eq!(backend.put("a/b", BODY, PutMode::Unique).await.unwrap_err().kind, missing);
    assert_eq!(backend.get("a/b", 0).await.err().unwrap().kind, missing);
    assert_eq!(backend.head("a/b").await.unwrap_err().kind, missing);
    assert_eq!(backend.list_page("", false, None).await.unwrap_err().kind, missing);
    assert_eq!(backend.list_page("a/", true, None).await.unwrap_err().kind, missing);
    assert_eq!(backend.delete("a/b").await.unwrap_err().kind, missing);
    assert_eq!(backend.now().await.unwrap_err().kind, missing);
    assert!(!root.exists());
    backend.create_root().await.unwrap();
    backend.create_root().await.unwrap();
    backend.put("a/b", BODY, PutMode::Unique).await.unwrap();
    assert_eq!(keys(&backend).await, ["a/b"]);
}

#[tokio::test]
async fn both_modes_refuse_to_replace_and_leave_no_temporary() {
    let (_folder, backend) = store();
    backend.put("a/b", BODY, PutMode::Unique).await.unwrap();
    for mode in [PutMode::Unique, PutMode::CreateOnly] {
        let error = backend.put("a/b", Bytes::from_static(b"other"), mode).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::AlreadyExists);
    }
    assert_eq!(fs::read(backend.folder.root.join("a/b")).unwrap(), BODY);
    assert_eq!(backend.stale_temporaries().await.unwrap(), []);
}

#[test]
fn neither_way_of_publishing_replaces() {
    type Publish = fn(&Path, &Path) -> io::Result<()>;
    let rename: Publish = |from, to| rename_new(from, to).map_err(|failure| failure.system.unwrap().into());
    for publish in [rename, link_new] {
        let (folder, _) = store();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::write(&from, b"new").unwrap();
        fs::write(&to, b"old").unwrap();
        assert_eq!(publish(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&to).unwrap(), b"old");
        fs::remove_file(&to).unwrap();
        publish(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
        assert!(!from.exists());
    }
}

#[tokio::test]
async fn a_dead_writers_temporary_is_no_object() {
    let (folder, backend) = store();
    backend.put("a/b", BODY, PutMode::Unique).await.unwrap();
    fs::create_dir(folder.path().join("c")).unwrap();
    fs::write(folder.path().join("c/.tmp-0123"), b"half").unwrap();
    assert_eq!(keys(&backend).await, ["a/b"]);
    assert_eq!(backend.list_page("", true, None).await.unwrap().dirs, ["a"]);
    let stale = backend.stale_temporaries().await.unwrap();
    assert_eq!(stale.len(), 1);
    assert!(stale[0].path.ends_with("c/.tmp-0123"));
    assert!(stale[0].last_modified <= backend.now().await.unwrap());
}

#[tokio::test]
async fn deleting_the_last_object_removes_its_folders_but_not_the_root() {
    let (folder, backend) = store();
    backend.put("a/b/c", BODY, PutMode::Unique).await.unwrap();
    backend.put("a/d", BODY, PutMode::Unique).await.unwrap();
    backend.delete("a/b/c").await.unwrap();
    assert!(!folder.path().join("a/b").exists() && folder.path().join("a/d").exists());
    backend.delete("a/d").await.unwrap();
    assert!(!folder.path().join("a").exists() && folder.path().exists());
    backend.put("a/b/c", BODY, PutMode::Unique).await.unwrap();
    assert_eq!(keys(&backend).await, ["a/b/c"]);
}

#[tokio::test]
async fn writes_and_deletes_of_one_folder_do_not_hurt_each_other() {
    let (_folder, backend) = store();
    let tasks = (0..4).map(|worker| {
        let backend = backend.clone();
        tokio::spawn(async move {
            for round in 0..50 {
                let key = format!("x/y/{worker}-{round}");
                backend.put(&key, BODY, PutMode::Unique).await.unwrap();
                backend.delete(&key).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert!(keys(&backend).await.is_empty());
}

#[tokio::test]
async fn what_a_listing_cannot_tell_is_an_error() {
    let (folder, backend) = store();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/nowhere/at/all", &link).unwrap();
    assert!(backend.list_page("", false, None).await.is_err(), "a dangling link");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    assert!(backend.list_page("", false, None).await.is_err(), "a link to a folder");
    fs::remove_file(&link).unwrap();
    fs::write(folder.path().join("file"), b"x").unwrap();
    std::os::unix::fs::symlink(folder.path().join("file"), &link).unwrap();
    assert_eq!(keys(&backend).await, ["file", "link"]);
    std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    assert!(backend.list_page("", false, None).await.is_err(), "a socket");
}

#[tokio::test]
async fn a_full_disk_is_out_of_space() {
    // /dev/full is the one file every machine has that answers ENOSPC.
    let mut full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = write_synced(&mut full, b"x").unwrap_err().into_error("put", "x".to_owned());
    assert_eq!(error.kind, StoreErrorKind::OutOfSpace);
}

#[test]
fn a_relative_root_is_refused() {
    assert_eq!(FileBackend::open("some/where").unwrap_err().kind, StoreErrorKind::Invalid);
}
