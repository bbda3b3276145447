//! The addresses a configuration holds: of a repository, of an S3 endpoint, and the parts of a PostgreSQL URL.
//!
//! No problem reported here repeats any of the text it is about.

use std::fmt;
use std::path::{Path, PathBuf};

use url::Url;

/// Why an address cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum UrlProblem {
    /// It holds a password or key.
    Secret,
    /// Anything else: what it is, and what to write instead.
    Bad(String, Option<String>),
}

pub(super) fn bad<T>(problem: &str) -> Result<T, UrlProblem> {
    Err(UrlProblem::Bad(problem.to_owned(), None))
}

fn bad_hint<T>(problem: &str, hint: &str) -> Result<T, UrlProblem> {
    Err(UrlProblem::Bad(problem.to_owned(), Some(hint.to_owned())))
}

/// Where a repository is. It prints as the URL that gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RepositoryUrl {
    /// A bucket on an S3 server: `s3://bucket/prefix`.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// What every key starts with, without a slash at either end; may be empty.
        prefix: String,
    },
    /// A local folder: `file:///absolute/path`.
    File {
        /// The folder, absolute.
        path: PathBuf,
    },
}

impl RepositoryUrl {
    pub(super) fn parse(text: &str) -> Result<Self, UrlProblem> {
        const FORMS: &str = "write s3://bucket/prefix or file:///absolute/path";
        match text.split_once("://") {
            Some(("s3", rest)) => Self::parse_s3(rest),
            Some(("file", _)) => Self::parse_file(text),
            Some(_) => bad_hint("a repository's url begins with s3:// or file://", FORMS),
            None if text.starts_with("file:") => bad_hint("the path of a file url must be absolute", FORMS),
            None => bad_hint("is not a url", FORMS),
        }
    }

    fn parse_s3(rest: &str) -> Result<Self, UrlProblem> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains('@') {
            return Err(UrlProblem::Secret);
        }
        if rest.contains(['?', '#']) {
            return bad_hint("an s3 url holds bucket and prefix only", "set region and endpoint in `[repository.s3]`");
        }
        if bucket.contains(':') {
            return bad_hint("an s3 url names no host and no port", "set the server as `repository.s3.endpoint`");
        }
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let ends = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = bucket.as_bytes();
        if !(3..=63).contains(&bytes.len())
            || !bytes.iter().all(|b| allowed(*b))
            || !ends(bytes.first())
            || !ends(bytes.last())
            || bucket.contains("..")
        {
            return bad_hint(
                "the bucket's name cannot be one",
                "a bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens",
            );
        }
        let prefix = prefix.trim_end_matches('/');
        if prefix.len() > 512 {
            return bad("the prefix is longer than 512 bytes");
        }
        // Characters that need no special handling in keys, plus `=`:
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
        if !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"/!-_.*'()=".contains(&b)) {
            return bad("the prefix may hold letters, digits and / ! - _ . * ' ( ) = only");
        }
        if !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return bad("the prefix holds an empty part, `.` or `..`");
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    fn parse_file(text: &str) -> Result<Self, UrlProblem> {
        let host = text.strip_prefix("file://").and_then(|rest| rest.split('/').next());
        if host.is_some_and(|host| host.contains('@')) {
            return Err(UrlProblem::Secret);
        }
        if !text.starts_with("file:///") {
            return bad_hint(
                "a file url names an absolute path and no host",
                "write three slashes: file:///absolute/path",
            );
        }
        let url = Url::parse(text).map_err(|_| UrlProblem::Bad("is not a valid file url".to_owned(), None))?;
        if url.query().is_some() || url.fragment().is_some() {
            return bad("a file url holds a path only (write `?` as %3F and `#` as %23)");
        }
        match url.to_file_path() {
            Ok(path) if path == Path::new("/") => bad("the root folder cannot be a repository"),
            Ok(path) if path.to_str().is_some_and(|p| p.contains('\0')) => bad("the path holds a zero byte"),
            Ok(path) if url.host().is_none() => Ok(Self::File { path }),
            _ => bad("a file url names an absolute path and no host"),
        }
    }
}

impl fmt::Display for RepositoryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::File { path } => match Url::from_file_path(path) {
                Ok(url) => f.write_str(url.as_str()),
                Err(()) => write!(f, "file://{}", path.display()),
            },
        }
    }
}

/// The address of an S3 server: `http` or `https`, a host, nothing else.
pub(super) fn parse_endpoint(text: &str) -> Result<Url, UrlProblem> {
    let url = parse_address(text)?;
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return bad_hint("an endpoint holds scheme, host and port only", ADDRESS_FORM);
    }
    Ok(url)
}

const ADDRESS_FORM: &str = "write https://host or http://host:port";

/// An address that something is posted to: `http://` or `https://`, with whatever path and query.
pub(super) fn parse_address(text: &str) -> Result<Url, UrlProblem> {
    let Ok(url) = Url::parse(text) else { return bad_hint("is not a url", ADDRESS_FORM) };
    if !matches!(url.scheme(), "http" | "https") {
        return bad_hint("an address begins with http:// or https://", ADDRESS_FORM);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlProblem::Secret);
    }
    if url.host().is_none() {
        return bad_hint("names no host", ADDRESS_FORM);
    }
    Ok(url)
}

/// Decodes `%41` and the like; the result is UTF-8 without zero bytes. `+` stays what it is.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok().filter(|text| !text.contains('\0'))
}

/// Encodes all but unreserved characters (RFC 3986, 2.3) and `keep`.
pub(super) fn percent_encode(text: &str, keep: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
