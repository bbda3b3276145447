//! Tables of cases for addresses and patterns.

use crate::config::postgres::PostgresUrl;
use crate::config::url::{UrlProblem, parse_endpoint, percent_decode};
use crate::config::*;

#[test]
fn repository_urls() {
    for (text, shown) in [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket-1/a/b/", "s3://my.bucket-1/a/b"),
        ("file:///srv/backup", "file:///srv/backup"),
        ("file:///srv/my%20backup", "file:///srv/my%20backup"),
    ] {
        let url = RepositoryUrl::parse(text).unwrap();
        assert_eq!(url.to_string(), shown, "{text}");
        assert_eq!(RepositoryUrl::parse(shown).unwrap(), url);
    }
    for text in [
        "",
        "bucket",
        "/srv",
        "srv/backup",
        "file:srv",
        "file:/srv",
        "file://srv/backup",
        "file://./srv",
        "file:///",
        "file:///a?b",
        "file:///a#b",
        "file:///a%00b",
        "http://bucket/x",
        "S3://bucket",
        "s3://",
        "s3:///x",
        "s3://ab",
        "s3://Bucket/x",
        "s3://-bucket",
        "s3://bucket-",
        "s3://a..b",
        "s3://bucket:9000/x",
        "s3://bucket//x",
        "s3://bucket/a//b",
        "s3://bucket/../x",
        "s3://bucket/a b",
        "s3://bucket/x?region=y",
        "s3://bucket/x#y",
        "s3://bucket/a%2Fb",
        "s3://bucket/\u{7f}",
    ] {
        assert!(matches!(RepositoryUrl::parse(text), Err(UrlProblem::Bad(..))), "{text}");
    }
    for text in ["s3://k:s@bucket/x", "s3://k@bucket", "file://u:p@h/x", "file://u@h/x"] {
        assert_eq!(RepositoryUrl::parse(text), Err(UrlProblem::Secret), "{text}");
    }
}

#[test]
fn endpoints() {
    for text in ["http://minio:9000", "https://[::1]:9000/", "https://s3.example"] {
        assert!(parse_endpoint(text).is_ok(), "{text}");
    }
    for text in ["minio", "ftp://h", "http://h/x", "http://h?x", "http://h#x", "http://", ""] {
        assert!(matches!(parse_endpoint(text), Err(UrlProblem::Bad(..))), "{text}");
    }
}

#[test]
fn postgres_urls() {
    for (text, shown, local) in [
        ("postgres://u@h", "postgres://u@h:5432/postgres", false),
        ("postgresql://u@h:6000/app", "postgres://u@h:6000/app", false),
        ("postgres://u@my_db.x/", "postgres://u@my_db.x:5432/postgres", false),
        ("postgres://a%40b%3A@h/d%2Fe%20f+%C4%9F", "postgres://a%40b%3A@h:5432/d%2Fe%20f%2B%C4%9F", false),
        ("postgres://u@[::1]:6000/app", "postgres://u@[::1]:6000/app", true),
        ("postgres://u@127.0.0.9/app", "postgres://u@127.0.0.9:5432/app", true),
        ("postgres://u@LocalHost/app", "postgres://u@LocalHost:5432/app", true),
        ("postgres://u@/app?host=/var/run/pg", "postgres://u@/app?host=/var/run/pg&port=5432", true),
        ("postgres:///app?host=%2Ftmp&port=6000&user=u", "postgres://u@/app?host=/tmp&port=6000", true),
        ("postgres://u@%2Ftmp:6000/app", "postgres://u@/app?host=/tmp&port=6000", true),
        ("postgres://?host=h&user=u&dbname=x&sslmode=require", "postgres://u@h:5432/x", false),
    ] {
        let url = PostgresUrl::parse(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        assert_eq!(url.endpoint.to_string(), shown, "{text}");
        assert_eq!(url.endpoint.host.is_local(), local, "{text}");
        assert_eq!(PostgresUrl::parse(shown).unwrap().endpoint, url.endpoint);
    }
    for text in [
        "",
        "h",
        "postgres:u@h",
        "mysql://u@h",
        "postgres://",
        "postgres://h",
        "postgres://u@",
        "postgres://u@/x",
        "postgres://@h/x",
        "postgres://u@h:0/x",
        "postgres://u@h:70000/x",
        "postgres://u@h:x/x",
        "postgres://u@h/a/b",
        "postgres://u@h/a#b",
        "postgres://u@h#b",
        "postgres://u@a,b/x",
        "postgres://u@[::1/x",
        "postgres://u@[::1]x/x",
        "postgres://u@[x]/x",
        "postgres://u@h h/x",
        "postgres://u@h/x%",
        "postgres://u@h/x%4",
        "postgres://u@h/%00",
        "postgres://u@h/%FF",
        "postgres://u@h/x?host=y",
        "postgres://u@h/x?options=y",
        "postgres://u@h/x?port=1&port=2",
        "postgres://u@h:1/x?port=2",
        "postgres://u@h/x?sslmode=prefer",
        "postgres://u@/x?host=/tmp&sslmode=require",
        "postgres://u@h/x?user=v",
    ] {
        assert!(matches!(PostgresUrl::parse(text), Err(UrlProblem::Bad(..))), "{text}: {:?}", PostgresUrl::parse(text));
    }
    for text in [
        "postgres://u:p@h/x",
        "postgres://u:@h/x",
        "postgres://:p@h/x",
        "postgres://u:p@ss@h/x",
        "postgres://u:p/s@h/x",
        "postgres://u:p?s@h/x",
        "postgres://u:p#s@h/x",
        "postgres://u@h/x?password=p",
        "postgres://u@h?sslpassword=p",
    ] {
        assert_eq!(PostgresUrl::parse(text), Err(UrlProblem::Secret), "{text}");
    }
    assert_eq!(percent_decode("a%2bb+"), Some("a+b+".into()));
    assert_eq!(percent_decode("%+1"), None);
}

#[test]
fn patterns() {
    for (pattern, name, want) in [
        ("*", "", true),
        ("*", "any", true),
        ("a*", "abc", true),
        ("a*", "ba", false),
        ("*c", "abc", true),
        ("a?c", "abc", true),
        ("a?c", "ac", false),
        ("?", "ğ", true),
        ("a*b*c", "a1b2b3c", true),
        ("a*b*c", "a1b2b3", false),
        ("App", "app", false),
        ("**", "x", true),
        ("a", "a", true),
        ("a", "ab", false),
        ("*ab", "aab", true),
    ] {
        assert_eq!(NamePattern::new(pattern).unwrap().matches(name), want, "{pattern} {name}");
    }
    assert!(NamePattern::new("").is_none());
    assert!(NamePattern::new("a").unwrap().is_literal() && !NamePattern::new("a?").unwrap().is_literal());
}
