//! What may be a key: the same small alphabet for every store, so that no key needs quoting in a URL, an XML listing, a
//! signature or a path, and none can leave the repository's folder.

use super::{StoreError, StoreErrorKind};

/// Names that begin so are a folder store's unfinished writes; no key may have such a segment.
pub(super) const TEMPORARY: &str = ".tmp-";

/// S3 allows 1024 bytes a key; the rest is left to the repository's prefix.
const LONGEST: usize = 800;

/// Refuses what is not a key: `/` between segments, each of `A-Z a-z 0-9 - _ . + = @ , ~` and not `.` or `..`.
pub(super) fn check_key(op: &'static str, key: &str) -> Result<(), StoreError> {
    match fault_of(key) {
        None => Ok(()),
        Some(fault) => {
            Err(StoreError::new(StoreErrorKind::Invalid, op, format!("{key:?}"), format!("not a key: {fault}")))
        }
    }
}

/// Refuses what is not a listing's prefix: empty, or a key with a `/` after it.
pub(super) fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    if prefix.is_empty() {
        return Ok(());
    }
    match prefix.strip_suffix('/') {
        Some(key) => check_key("list", key),
        None => Err(StoreError::new(
            StoreErrorKind::Invalid,
            "list",
            format!("{prefix:?}"),
            "not a prefix: it does not end in a slash",
        )),
    }
}

fn fault_of(key: &str) -> Option<&'static str> {
    if key.len() > LONGEST {
        return Some("longer than 800 bytes");
    }
    for segment in key.split('/') {
        match segment {
            "" => return Some("an empty segment"),
            "." | ".." => return Some("a relative segment"),
            _ if segment.len() > 255 => return Some("a segment longer than 255 bytes"),
            _ if segment.starts_with(TEMPORARY) => return Some("the name of a temporary file"),
            _ => {}
        }
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.+=@,~".contains(&byte);
    if !key.bytes().all(allowed) {
        return Some("a character other than letters, digits and - _ . + = @ , ~ /");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for good in ["a", "altlas.json", "epochs/20261123T010000Z-k3f9qa/parts/0a/x.y.z.zst.age", "a..b/c"] {
            assert_eq!(fault_of(good), None, "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a b", "a\\b", "a%2fb", "ä", "x/.tmp-1", "a\0"] {
            assert!(fault_of(bad).is_some(), "{bad:?}");
        }
        assert!(fault_of(&"x".repeat(801)).is_some());
    }

    #[test]
    fn prefixes() {
        for good in ["", "a/", "a/b/"] {
            assert!(check_prefix(good).is_ok(), "{good}");
        }
        for bad in ["/", "a", "../", "a//"] {
            assert!(check_prefix(bad).is_err(), "{bad}");
        }
    }
}
