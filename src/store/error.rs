//! What can go wrong with a store, by meaning.
//!
//! A backend fills the meaning in at one place; everything above asks [`StoreErrorKind`] and never searches a text.
//! No text here may hold a credential: backends hand over what the server or the system said, not what was sent.

use std::fmt;

/// What it was, as far as an operator acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The object is not there.
    NotFound,
    /// A write found the key taken.
    AlreadyExists,
    /// The bucket, or the folder of a folder store, does not exist.
    NoSuchBucket,
    /// Credentials are wrong or lack a permission.
    Denied,
    /// No connection could be made, or it broke and stayed broken.
    Unreachable,
    /// The server's certificate was not accepted, or TLS failed otherwise.
    Tls,
    /// The deadline passed.
    TimedOut,
    /// The server asked us to slow down or had an internal error (429, 5xx).
    Busy,
    /// The disk, quota or bucket is full.
    OutOfSpace,
    /// A body or answer ended early, was damaged on its way, or changed while it was read.
    Truncated,
    /// More than [`super::MAX_OBJECT`] bytes.
    TooLarge,
    /// The configuration of the store cannot work (an address that is not one, an unreadable CA file).
    Invalid,
    /// Anything else; the detail says what.
    Other,
}

impl StoreErrorKind {
    /// May another attempt succeed without anyone doing anything?
    ///
    /// For a write these are also the failures that leave open whether it happened.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unreachable | Self::TimedOut | Self::Busy | Self::Truncated)
    }
}

/// A failed call on a store.
#[derive(Clone, Debug)]
pub struct StoreError {
    /// What it was.
    pub kind: StoreErrorKind,
    /// What was tried: `put`, `get`, `head`, `list`, `delete`, `clock`, `open`.
    pub op: &'static str,
    /// What it was tried on: an address with the object's key.
    pub object: String,
    /// The server's or system's own words with the whole chain of causes, without secrets.
    pub detail: String,
    /// The S3 error code as the server gave it (`SlowDown`, `RequestTimeTooSkewed`), where there was one.
    pub code: Option<String>,
    /// Attempts made.
    pub attempts: u32,
}

impl StoreError {
    /// An error of one attempt.
    pub fn new(
        kind: StoreErrorKind,
        op: &'static str,
        object: impl Into<String>,
        detail: impl Into<String>,
    ) -> StoreError {
        StoreError { kind, op, object: object.into(), detail: detail.into(), code: None, attempts: 1 }
    }

    /// May another attempt succeed without anyone doing anything?
    pub fn is_transient(&self) -> bool {
        self.kind.is_transient()
    }

    /// What to do next, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        use StoreErrorKind as Kind;
        let hint = match (self.kind, self.code.as_deref()) {
            (_, Some("RequestTimeTooSkewed")) => {
                "the clocks of this machine and of the store differ by more than the server accepts; set them by NTP"
            }
            (_, Some("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException")) => {
                "check repository.s3.region and repository.s3.endpoint: the bucket is in another region"
            }
            (_, Some("InvalidObjectState")) => {
                "the object is in an archive storage class; restore it there first, and keep lifecycle rules off the repository"
            }
            (_, Some("ExpiredToken" | "TokenRefreshRequired")) => "the session token has expired; provide a new one",
            (Kind::NoSuchBucket, _) => {
                "create the bucket (a folder is created by `altlas-backup init`), or check repository.url"
            }
            (Kind::Denied, _) => {
                "check the access key id, the secret and what they may do: get, put, delete and list below the prefix \
                 (for a folder: its owner and mode)"
            }
            (Kind::Unreachable, _) => {
                "check the endpoint's name and port, that the server runs, and that network policies let this machine through"
            }
            (Kind::Tls, _) => {
                "set repository.s3.ca_file to the certificate authority of the server, or correct the server's certificate"
            }
            (Kind::TimedOut, _) => "check the store's load and the network between; nothing was answered in time",
            (Kind::Busy, _) => "the store is overloaded or has an internal error; see its log, then try again",
            (Kind::OutOfSpace, _) => "free space on the store or raise its quota; nothing already stored was changed",
            (Kind::Invalid, _) => "correct the repository section of the configuration",
            (Kind::Truncated, _) => "something between cuts or changes bodies; check proxies and the store's disks",
            (Kind::TooLarge, _) => "objects of a repository are never that large; check that the prefix is its own",
            (Kind::NotFound | Kind::AlreadyExists | Kind::Other, _) => return None,
        };
        Some(hint.to_owned())
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.op, self.object, self.detail)?;
        if self.attempts > 1 {
            write!(f, " (after {} attempts)", self.attempts)?;
        }
        Ok(())
    }
}

impl std::error::Error for StoreError {}

/// Makes words of a server fit for one line of a log: no control characters, at most 600 of the rest.
pub(super) fn one_line(text: &str) -> String {
    const LONGEST: usize = 600;
    let mut line: String = text.chars().take(LONGEST).map(|char| if char.is_control() { ' ' } else { char }).collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

/// An error and all its causes, each said once.
///
/// `io::Error` is looked into by hand: its `source()` skips the very error it wraps.
pub(super) fn chain<'a>(error: &'a (dyn std::error::Error + 'static)) -> Vec<&'a (dyn std::error::Error + 'static)> {
    let mut links = Vec::new();
    let mut next = Some(error);
    while let Some(link) = next {
        links.push(link);
        next = match link.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn std::error::Error + 'static)),
            None => link.source(),
        };
    }
    links
}

/// The words of [`chain`], joined.
pub(super) fn chain_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    for link in chain(error) {
        let text = link.to_string();
        // Wrappers often repeat their cause; saying it twice helps nobody.
        if !text.is_empty() && !words.iter().any(|said| said.contains(&text)) {
            words.push(text);
        }
    }
    one_line(&words.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_object_and_attempts() {
        let mut error = StoreError::new(StoreErrorKind::Busy, "put", "s3://b/k", "503 SlowDown");
        assert_eq!(error.to_string(), "put s3://b/k: 503 SlowDown");
        error.attempts = 6;
        assert_eq!(error.to_string(), "put s3://b/k: 503 SlowDown (after 6 attempts)");
    }

    #[test]
    fn clock_hint_wins_over_denied() {
        let mut error = StoreError::new(StoreErrorKind::Denied, "head", "s3://b/k", "no");
        assert!(error.hint().unwrap_or_default().contains("access key"));
        error.code = Some("RequestTimeTooSkewed".to_owned());
        assert!(error.hint().unwrap_or_default().contains("clocks"));
    }

    #[test]
    fn io_error_does_not_hide_what_it_wraps() {
        let inner = std::io::Error::other(StoreError::new(StoreErrorKind::Tls, "open", "x", "inner words"));
        assert!(chain_text(&inner).contains("inner words"));
        assert!(chain(&inner).iter().any(|link| link.is::<StoreError>()));
    }

    #[test]
    fn words_of_a_server_stay_on_one_line() {
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a b [31m");
        assert_eq!(one_line(&"x".repeat(700)).chars().count(), 601);
    }
}
