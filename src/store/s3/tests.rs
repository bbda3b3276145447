//! Options, and answers that real servers give too seldom to wait for.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

fn options() -> S3Options {
    S3Options {
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        region: "us-east-1".to_owned(),
        path_style: true,
        bucket: "b".to_owned(),
        prefix: "/p/q/".to_owned(),
        access_key_id: "id".to_owned(),
        secret_access_key: "hunter2-secret".into(),
        session_token: Some("hunter2-token".into()),
        ca_pem: None,
        connect_timeout: Duration::from_secs(1),
    }
}

#[test]
fn content_ranges() {
    assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, 10)));
    for bad in ["bytes 5-8/10", "bytes */10", "5-9/10", "bytes 5-9/*", "bytes 9-5/6", ""] {
        assert_eq!(parse_content_range(bad), None, "{bad}");
    }
}

#[test]
fn no_secret_is_shown() {
    let backend = S3Backend::connect(options()).ok();
    let shown = format!("{:?} {:?}", options(), backend);
    assert!(shown.contains("s3://b/p/q") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn options_that_cannot_work() {
    let with = |change: &dyn Fn(&mut S3Options)| {
        let mut changed = options();
        change(&mut changed);
        S3Backend::connect(changed).err().map(|error| error.kind)
    };
    let invalid = Some(StoreErrorKind::Invalid);
    assert_eq!(with(&|_| {}), None);
    assert_eq!(with(&|o| o.bucket.clear()), invalid);
    assert_eq!(with(&|o| o.prefix = "a/../b".to_owned()), invalid);
    assert_eq!(with(&|o| o.endpoint = Some("minio:9000".to_owned())), invalid);
    assert_eq!(with(&|o| o.endpoint = Some("http://user:pw@minio:9000".to_owned())), invalid);
    let https = |pem: &[u8]| {
        let pem = pem.to_vec();
        with(&move |o| {
            o.endpoint = Some("https://minio:9000".to_owned());
            o.ca_pem = Some(pem.clone());
        })
    };
    assert_eq!(https(b""), invalid);
    assert_eq!(https(b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"), invalid);
    assert_eq!(https(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), invalid);
}

/// A server that gives these answers, one a connection, and what it was asked.
struct Canned {
    backend: S3Backend,
    asked: tokio::task::JoinHandle<Vec<String>>,
}

async fn canned(answers: &[&str]) -> Canned {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let answers: Vec<String> = answers.iter().map(|answer| answer.replace('\n', "\r\n")).collect();
    let asked = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).await.unwrap();
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap().to_ascii_lowercase();
            let length = request.lines().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            socket.read_exact(&mut body).await.unwrap();
            asked.push(request);
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    let backend = S3Backend::connect(S3Options { endpoint: Some(endpoint), ..options() }).unwrap();
    Canned { backend, asked }
}

/// An answer with its length, after which the connection ends.
fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\nconnection: close\ncontent-length: {}\n{headers}\n", body.len()) + body
}

fn listing(inside: &str) -> String {
    answer("200 OK", "", &format!("<ListBucketResult>{inside}</ListBucketResult>"))
}

#[tokio::test]
async fn a_listing_that_does_not_say_all_is_an_error() {
    let object = "<Contents><Key>p/q/a</Key><Size>1</Size><LastModified>2026-11-23T01:00:00Z</LastModified></Contents>";
    for (inside, good) in [
        (format!("<IsTruncated>false</IsTruncated>{object}"), true),
        (object.to_owned(), false),
        (format!("<IsTruncated>true</IsTruncated>{object}"), false),
        ("<IsTruncated>false</IsTruncated><Contents><Key>p/q/a</Key></Contents>".to_owned(), false),
        (format!("<IsTruncated>false</IsTruncated>{}", object.replace("p/q/a", "else/where")), false),
    ] {
        let server = canned(&[&listing(&inside)]).await;
        let page = server.backend.list_page("", false, None).await;
        assert_eq!(page.is_ok(), good, "{inside}: {page:?}");
    }
}

#[tokio::test]
async fn a_page_of_some_other_service_is_never_an_empty_listing() {
    let page = answer("200 OK", "content-type: text/html\n", "<html>welcome</html>");
    for (answer, expected) in [
        (page, StoreErrorKind::Truncated),
        (answer("404 Not Found", "", "<html>nothing here</html>"), StoreErrorKind::NoSuchBucket),
        (answer("400 Bad Request", "", "Client sent an HTTP request to an HTTPS server."), StoreErrorKind::Invalid),
        (answer("503 Service Unavailable", "", ""), StoreErrorKind::Busy),
        ("HTTP/1.1 200 OK\ncontent-length: 100\n\n<ListBucketResult>".to_owned(), StoreErrorKind::Truncated),
        ("nonsense\n".to_owned(), StoreErrorKind::Unreachable),
        (String::new(), StoreErrorKind::Unreachable),
    ] {
        let error = canned(&[&answer]).await.backend.list_page("", false, None).await.unwrap_err();
        assert_eq!(error.kind, expected, "{answer}: {error}");
    }
}

#[tokio::test]
async fn a_bare_404_is_believed_only_when_the_bucket_answers() {
    let bare = answer("404 Not Found", "", "");
    let no_bucket = answer("404 Not Found", "", "<Error><Code>NoSuchBucket</Code></Error>");
    let skewed = answer("403 Forbidden", "", "<Error><Code>RequestTimeTooSkewed</Code></Error>");
    let fine = listing("<IsTruncated>false</IsTruncated>");
    for (second, expected) in [
        (&fine, StoreErrorKind::NotFound),
        (&no_bucket, StoreErrorKind::NoSuchBucket),
        (&bare, StoreErrorKind::NoSuchBucket),
        (&skewed, StoreErrorKind::Denied),
    ] {
        let server = canned(&[&bare, second]).await;
        assert_eq!(server.backend.head("a").await.unwrap_err().kind, expected, "{second}");
        let server = canned(&[&bare, second]).await;
        assert_eq!(server.backend.get("a", 0).await.err().unwrap().kind, expected, "{second}");
    }
    // A HEAD that is refused has no code; the second look finds it.
    let server = canned(&[&answer("403 Forbidden", "", ""), &skewed]).await;
    let error = server.backend.head("a").await.unwrap_err();
    assert!(error.hint().unwrap().contains("clocks"), "{error:?}");
}

#[tokio::test]
async fn a_clock_that_cannot_be_read_is_an_error() {
    let good = listing("<IsTruncated>false</IsTruncated>");
    let dated = |date: &str| good.replacen("connection", &format!("date: {date}\nconnection"), 1);
    let now = canned(&[&dated("Mon, 23 Nov 2026 01:00:00 GMT")]).await.backend.now().await.unwrap();
    assert_eq!(now.to_string(), "2026-11-23T01:00:00Z");
    assert!(canned(&[&dated("tomorrow")]).await.backend.now().await.is_err());
    assert!(canned(&[&good]).await.backend.now().await.is_err());
}

#[tokio::test]
async fn ranges_that_are_ignored_or_wrong() {
    let tail =
        |headers: &str| answer("206 Partial Content", &format!("content-range: {headers}\netag: \"t\"\n"), "345");
    let read = async |answer: &str| {
        let body = canned(&[answer]).await.backend.get("a", 3).await?;
        let pieces: Vec<_> = body.body.collect().await;
        let pieces: Vec<Bytes> = pieces.into_iter().collect::<Result<_, _>>()?;
        Ok::<_, StoreError>((body.size, pieces.concat()))
    };
    assert_eq!(read(&tail("bytes 3-5/6")).await.unwrap(), (6, b"345".to_vec()));
    assert_eq!(read(&answer("200 OK", "etag: \"t\"\n", "012345")).await.unwrap(), (6, b"345".to_vec()));
    assert!(read(&tail("bytes 2-4/6")).await.is_err());
    assert!(read(&tail("bytes 3-5/7")).await.is_err());
    let short = "HTTP/1.1 206 Partial Content\ncontent-length: 3\ncontent-range: bytes 3-5/6\n\n3";
    assert_eq!(read(short).await.unwrap_err().kind, StoreErrorKind::Truncated);
}

#[tokio::test]
async fn a_put_is_one_plain_request_with_its_digest() {
    let server = canned(&[&answer("200 OK", "", "")]).await;
    server.backend.put("a", Bytes::from_static(b"hello"), PutMode::CreateOnly).await.unwrap();
    let request = server.asked.await.unwrap().remove(0);
    assert!(request.starts_with("put /b/p/q/a?x-id=putobject http/1.1"), "{request}");
    let sha256 = BASE64.encode(Sha256::digest(b"hello")).to_ascii_lowercase();
    for header in ["content-length: 5", "if-none-match: *", &format!("x-amz-checksum-sha256: {sha256}")] {
        assert!(request.contains(header), "{header}: {request}");
    }
    for unwanted in ["aws-chunked", "trailer", "crc32", "expect:"] {
        assert!(!request.contains(unwanted), "{unwanted}: {request}");
    }
}

#[tokio::test]
async fn conditional_writes_by_meaning() {
    for (status, code, expected) in [
        ("412 Precondition Failed", "PreconditionFailed", StoreErrorKind::AlreadyExists),
        ("409 Conflict", "ConditionalRequestConflict", StoreErrorKind::Busy),
        ("501 Not Implemented", "NotImplemented", StoreErrorKind::Other),
        ("507 Insufficient Storage", "XMinioStorageFull", StoreErrorKind::OutOfSpace),
        ("404 Not Found", "NoSuchBucket", StoreErrorKind::NoSuchBucket),
    ] {
        let body = format!("<Error><Code>{code}</Code><Message>words</Message></Error>");
        let server = canned(&[&answer(status, "", &body)]).await;
        let error = server.backend.put("a", Bytes::new(), PutMode::CreateOnly).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_deref()), (expected, Some(code)));
        assert!(error.detail.ends_with("words"), "{error}");
    }
}
