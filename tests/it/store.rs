//! The contract of a store, on each kind of store that there is.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use altlas_backup::store::{
    Backend, FileBackend, MAX_OBJECT, PutMode, RetryPolicy, S3Backend, S3Options, Store, StoreError, StoreErrorKind,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::Timestamp;

use crate::support::s3::{self, Certificates, S3Server};

const MIB: usize = 1024 * 1024;

/// What a store must do, whatever kind it is. `store` is empty and nobody else uses it.
async fn contract(store: &Store) {
    writes_and_reads(store).await;
    sizes(store).await;
    missing_is_not_found(store).await;
    create_only(store).await;
    a_race_has_one_winner(store).await;
    deleting(store).await;
    long_listings(store).await;
    folders(store).await;
    clock(store).await;
}

async fn writes_and_reads(store: &Store) {
    let key = "epochs/e-1/parts/0a/abc_D.1~2.zst.age";
    store.put(key, Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(store.get(key).await.unwrap(), "hello");
    let head = store.head(key).await.unwrap();
    assert_eq!((head.key.as_str(), head.size), (key, 5));
    let listed = list(store, "").await;
    assert_eq!(listed, [key]);
    store.delete(key).await.unwrap();
    assert_eq!(list(store, "").await, [""; 0]);
}

async fn sizes(store: &Store) {
    // Around the sizes at which servers change how they keep an object, and one of a usual part.
    for size in [0, 1, 4096, 4 * MIB - 1, 4 * MIB + 1, 32 * MIB] {
        let key = format!("sizes/{size}");
        let body = noise(size);
        store.put(&key, body.clone()).await.unwrap();
        assert_eq!(store.head(&key).await.unwrap().size, size as u64);
        assert!(store.get(&key).await.unwrap() == body, "{size} bytes came back changed");
        store.delete(&key).await.unwrap();
    }
    let too_large = Bytes::from(vec![0; usize::try_from(MAX_OBJECT).unwrap() + 1]);
    assert_eq!(kind(store.put("sizes/large", too_large).await), StoreErrorKind::TooLarge);
}

async fn missing_is_not_found(store: &Store) {
    assert_eq!(kind(store.get("no/such").await), StoreErrorKind::NotFound);
    assert_eq!(kind(store.head("no/such").await), StoreErrorKind::NotFound);
    assert_eq!(list(store, "no/").await, [""; 0]);
    assert_eq!(store.list_dirs("no/").await.unwrap(), [""; 0]);
    for bad in ["", "/a", "a/", "a//b", "../a", "a/../../b", "a b"] {
        assert_eq!(kind(store.get(bad).await), StoreErrorKind::Invalid, "{bad:?}");
        assert_eq!(kind(store.put(bad, Bytes::new()).await), StoreErrorKind::Invalid, "{bad:?}");
    }
    assert_eq!(kind(store.list_dirs("no").await), StoreErrorKind::Invalid);
}

async fn create_only(store: &Store) {
    store.put_new("new/head.json", Bytes::from_static(b"first")).await.unwrap();
    let second = store.put_new("new/head.json", Bytes::from_static(b"second")).await;
    assert_eq!(kind(second), StoreErrorKind::AlreadyExists);
    assert_eq!(store.get("new/head.json").await.unwrap(), "first");
    store.delete("new/head.json").await.unwrap();
    store.put_new("new/head.json", Bytes::from_static(b"third")).await.unwrap();
    store.delete("new/head.json").await.unwrap();
}

async fn a_race_has_one_winner(store: &Store) {
    for round in 0..5 {
        let key = format!("race/{round}");
        let writers = (0..8).map(|writer| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { (writer, store.put_new(&key, Bytes::from(format!("writer {writer}"))).await) })
        });
        let mut winners = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.unwrap() {
                (writer, Ok(())) => winners.push(writer),
                (_, Err(error)) => assert_eq!(error.kind, StoreErrorKind::AlreadyExists, "{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "winners of round {round}: {winners:?}");
        assert_eq!(store.get(&key).await.unwrap(), format!("writer {}", winners[0]));
        store.delete(&key).await.unwrap();
    }
}

async fn deleting(store: &Store) {
    store.put("gone/a", Bytes::from_static(b"x")).await.unwrap();
    store.delete("gone/a").await.unwrap();
    store.delete("gone/a").await.unwrap();
    store.delete("never/was").await.unwrap();
    assert_eq!(kind(store.head("gone/a").await), StoreErrorKind::NotFound);
    assert_eq!(list(store, "gone/").await, [""; 0]);
    store.put("gone/a", Bytes::from_static(b"y")).await.unwrap();
    assert_eq!(store.get("gone/a").await.unwrap(), "y");
    store.delete("gone/a").await.unwrap();
}

async fn long_listings(store: &Store) {
    let keys: BTreeSet<String> = (0..1203).map(|n| format!("many/{:02x}/object-{n:05}", n % 7)).collect();
    each(&keys, |key| async move { store.put(key, Bytes::from(key.clone())).await }).await;
    // A neighbour whose name begins the same must not slip in.
    store.put("many-more/x", Bytes::new()).await.unwrap();
    let listed = list(store, "many/").await;
    assert_eq!(listed.len(), keys.len(), "no more, no less");
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), keys);
    assert_eq!(list(store, "").await.len(), keys.len() + 1);
    let dirs: Vec<String> = (0..7).map(|n| format!("{n:02x}")).collect();
    assert_eq!(store.list_dirs("many/").await.unwrap(), dirs);
    each(&keys, |key| async move { store.delete(key).await }).await;
    store.delete("many-more/x").await.unwrap();
    assert_eq!(list(store, "").await, [""; 0]);
}

/// Below a prefix of its own: SeaweedFS shows a folder for a while after its last object went.
async fn folders(store: &Store) {
    let keys = ["f/top", "f/b/1/x", "f/b/2/y/z", "f/a/file", "f/c-d/q"];
    for key in keys {
        store.put(key, Bytes::from_static(b"x")).await.unwrap();
    }
    assert_eq!(store.list_dirs("f/").await.unwrap(), ["a", "b", "c-d"]);
    assert_eq!(store.list_dirs("f/b/").await.unwrap(), ["1", "2"]);
    assert_eq!(store.list_dirs("f/a/").await.unwrap(), [""; 0]);
    assert_eq!(list(store, "f/b/").await, ["f/b/1/x", "f/b/2/y/z"]);
    assert!(store.list_dirs("").await.unwrap().contains(&"f".to_owned()));
    for key in keys {
        store.delete(key).await.unwrap();
    }
}

async fn clock(store: &Store) {
    let minutes = |time: Timestamp| (time.as_second() - Timestamp::now().as_second()).abs() / 60;
    assert!(minutes(store.now().await.unwrap()) < 5);
    store.put("clock/x", Bytes::from_static(b"x")).await.unwrap();
    let written = store.head("clock/x").await.unwrap().last_modified;
    assert!(minutes(written) < 5);
    let mut listed = None;
    store.list("clock/", &mut |object| listed = Some(object.last_modified)).await.unwrap();
    // A listing may tell parts of a second that a head does not.
    assert!((listed.unwrap().as_second() - written.as_second()).abs() <= 1);
    store.delete("clock/x").await.unwrap();
}

/// What an operator meets with an S3 server that is set up wrongly, each by its meaning.
async fn s3_mistakes(server: &S3Server, bucket: &str) {
    let one_attempt = |options| {
        let policy = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
        Store::new(Arc::new(S3Backend::connect(options).unwrap()), policy)
    };

    let mut options = server.options(bucket, "p");
    options.secret_access_key = "not-the-secret-of-this-server".into();
    fails_everywhere(&one_attempt(options), StoreErrorKind::Denied).await;

    let mut options = server.options(bucket, "p");
    options.access_key_id = "nobody".to_owned();
    fails_everywhere(&one_attempt(options), StoreErrorKind::Denied).await;

    fails_everywhere(&one_attempt(server.options("no-such-bucket", "p")), StoreErrorKind::NoSuchBucket).await;

    let mut options = server.options(bucket, "p");
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    options.endpoint = Some(format!("http://{}", unused.local_addr().unwrap()));
    drop(unused);
    fails_everywhere(&one_attempt(options), StoreErrorKind::Unreachable).await;

    let mut options = server.options(bucket, "p");
    options.endpoint = Some("http://no-such-host.invalid:9000".to_owned());
    assert_eq!(kind(one_attempt(options).head("x").await), StoreErrorKind::Unreachable);
}

/// Every call fails by the same meaning: none takes it for "nothing there".
async fn fails_everywhere(store: &Store, expected: StoreErrorKind) {
    let body = Bytes::from_static(b"x");
    for (call, result) in [
        ("put", store.put("x", body.clone()).await),
        ("put_new", store.put_new("x", body).await),
        ("get", store.get("x").await.map(drop)),
        ("head", store.head("x").await.map(drop)),
        ("list", store.list("", &mut |_| {}).await),
        ("list_dirs", store.list_dirs("").await.map(drop)),
        ("delete", store.delete("x").await),
        ("now", store.now().await.map(drop)),
    ] {
        // SeaweedFS says that what is not there was removed, whatever the bucket; a delete that succeeds so harms nothing.
        if call == "delete" && expected == StoreErrorKind::NoSuchBucket && result.is_ok() {
            continue;
        }
        let error = result.expect_err(call);
        assert_eq!(error.kind, expected, "{call}: {error}");
        assert!(error.hint().is_some(), "{error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("not-the-secret"), "{shown}");
    }
}

/// What only one attempt at an S3 server shows: ranges, tags, pages.
async fn s3_backend_details(backend: &S3Backend) {
    let body = noise(3 * MIB);
    backend.put("range/x", body.clone(), PutMode::Unique).await.unwrap();
    let whole = backend.get("range/x", 0).await.unwrap();
    assert_eq!((whole.size, whole.tag.is_empty()), (body.len() as u64, false));
    for offset in [1, MIB, body.len() - 1] {
        let rest = backend.get("range/x", offset as u64).await.unwrap();
        assert_eq!((rest.size, &rest.tag), (body.len() as u64, &whole.tag));
        let mut bytes = Vec::new();
        let mut pieces = rest.body;
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        assert!(bytes == body[offset..], "from {offset} on");
    }
    assert_eq!(backend.get("range/x", body.len() as u64).await.err().unwrap().kind, StoreErrorKind::Truncated);
    // Unconditional writes do replace on S3, and the tag tells.
    backend.put("range/x", Bytes::from_static(b"other"), PutMode::Unique).await.unwrap();
    assert_ne!(backend.get("range/x", 0).await.unwrap().tag, whole.tag);
    backend.delete("range/x").await.unwrap();
}

async fn on_s3(server: &S3Server) {
    server.create_bucket("contract").await;
    for prefix in ["", "some/prefix"] {
        let backend = server.backend("contract", prefix);
        s3_backend_details(&backend).await;
        contract(&s3::store(backend)).await;
        // The second round must not see what is beside its prefix.
        server.backend("contract", "some").put("stray", Bytes::new(), PutMode::Unique).await.unwrap();
    }
    s3_mistakes(server, "contract").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_fulfils_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let backend = FileBackend::open(folder.path()).unwrap();
    contract(&Store::new(Arc::new(backend), RetryPolicy::default())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_fulfils_the_contract() {
    on_s3(&S3Server::seaweedfs().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn minio_fulfils_the_contract() {
    if let Some(server) = S3Server::minio().await {
        on_s3(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_must_be_of_a_trusted_authority() {
    let certificates = Certificates::make();
    let server = S3Server::seaweedfs_tls(&certificates).await;
    assert!(server.endpoint().starts_with("https://"));
    server.create_bucket("tls").await;
    let trusted = s3::store(server.backend("tls", ""));
    trusted.put("x", noise(2 * MIB)).await.unwrap();
    assert!(trusted.get("x").await.unwrap() == noise(2 * MIB));

    let mut options = server.options("tls", "");
    options.ca_pem = Some(Certificates::make().ca_pem());
    fails_everywhere(&s3::store(S3Backend::connect(options).unwrap()), StoreErrorKind::Tls).await;
    let mut options = server.options("tls", "");
    options.ca_pem = None;
    match S3Backend::connect(options) {
        Ok(backend) => fails_everywhere(&s3::store(backend), StoreErrorKind::Tls).await,
        Err(error) => assert_eq!(error.kind, StoreErrorKind::Tls, "{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_fail_by_their_meaning() {
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ca_pem = Certificates::make().ca_pem();
    let connect = |listener: &std::net::TcpListener, seconds| {
        let options = S3Options {
            endpoint: Some(format!("https://{}", listener.local_addr().unwrap())),
            region: "us-east-1".to_owned(),
            path_style: true,
            bucket: "some".to_owned(),
            prefix: String::new(),
            access_key_id: "id".to_owned(),
            secret_access_key: "secret".into(),
            session_token: None,
            ca_pem: Some(ca_pem.clone()),
            connect_timeout: Duration::from_secs(seconds),
        };
        S3Backend::connect(options).unwrap()
    };
    let (speaks_no_tls, says_nothing) = (connect(&plain, 30), connect(&silent, 1));
    let server = std::thread::spawn(move || {
        let (mut socket, _) = plain.accept().unwrap();
        std::io::Write::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let error = speaks_no_tls.head("x").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Tls, "{error}");
    server.join().unwrap();
    let error = says_nothing.head("x").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unreachable, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_is_unreachable_and_never_empty() {
    let server = S3Server::seaweedfs().await;
    server.create_bucket("alive").await;
    let policy = RetryPolicy { attempts: 2, first_wait: Duration::from_millis(10), ..RetryPolicy::default() };
    let store = Store::new(Arc::new(server.backend("alive", "")), policy);
    store.put("x", Bytes::from_static(b"x")).await.unwrap();
    drop(server);
    fails_everywhere(&store, StoreErrorKind::Unreachable).await;
    assert_eq!(store.head("x").await.unwrap_err().attempts, 2);
}

fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorKind {
    result.expect_err("an error").kind
}

async fn list(store: &Store, prefix: &str) -> Vec<String> {
    let mut keys = Vec::new();
    store.list(prefix, &mut |object| keys.push(object.key)).await.unwrap();
    keys.sort_unstable();
    keys
}

/// Runs `call` for each key, sixteen at a time.
async fn each<'a, F>(keys: &'a BTreeSet<String>, call: impl Fn(&'a String) -> F)
where
    F: Future<Output = Result<(), StoreError>>,
{
    stream::iter(keys).map(call).buffer_unordered(16).for_each(|result| async { result.unwrap() }).await;
}

/// Bytes without a pattern that a server or proxy could compress, the same each time.
fn noise(size: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ size as u64;
    let bytes = (0..size).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    });
    Bytes::from_iter(bytes)
}
