//! Finds server programs by their version.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

/// How long a program may take to say its version.
const ANSWERS: Duration = Duration::from_secs(20);
/// Where servers are beside the folders of `PATH`: not everybody's `PATH` has these.
const MORE_FOLDERS: [&str; 6] =
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/bin", "/usr/lib/altlas-backup"];

/// A version as three numbers; what a program does not tell is 0.
pub(super) type Version = (u32, u32, u32);

/// A program with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) version: Version,
}

/// Where a program may be: `only`, where that is configured, else every folder of the usual ones.
pub(super) fn places(program: &str, only: Option<&Path>) -> Vec<PathBuf> {
    if let Some(path) = only {
        return vec![path.to_owned()];
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(MORE_FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join(program))
        .collect();
    places.dedup();
    places.retain(|place| place.is_file());
    places
}

/// The first version in a text: `15.18` of `postgres (PostgreSQL) 15.18 (Debian …)`, `7.0.15` of `Redis server v=7.0.15 sha=…`.
pub(super) fn version_in(text: &str) -> Option<Version> {
    let starts = |word: &str| {
        let word = word.trim_start_matches("v=").trim_start_matches('v');
        word.starts_with(|c: char| c.is_ascii_digit()).then(|| word.to_owned())
    };
    let word = text.split_whitespace().find_map(starts)?;
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    };
    let mut numbers = word.split('.').map(number);
    let first = numbers.next().flatten()?;
    let mut next = || numbers.next().flatten().unwrap_or(0);
    Some((first, next(), next()))
}

/// The version that a program prints for `--version`.
pub(super) async fn version_of(path: &Path) -> Option<Version> {
    let mut command = Command::new(path);
    command.env_clear().env("LC_ALL", "C").arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ANSWERS, command.output()).await.ok()?.ok()?;
    version_in(&String::from_utf8_lossy(&output.stdout))
}

/// The programs in these places, and what else was seen, in words.
pub(super) async fn look(places: Vec<PathBuf>) -> (Vec<Found>, Vec<String>) {
    let (mut found, mut looked) = (Vec::new(), Vec::new());
    for path in places {
        match version_of(&path).await {
            Some(version) => {
                looked.push(format!("{} is {}.{}.{}", path.display(), version.0, version.1, version.2));
                found.push(Found { path, version });
            }
            None => looked.push(format!("{} does not run", path.display())),
        }
    }
    (found, looked)
}

/// Of programs that read what older ones wrote: the one of the wanted version, else the oldest that is newer.
pub(super) fn nearest(found: &[Found], wanted: Version) -> Option<&Found> {
    let of_series = |found: &&Found| (found.version.0, found.version.1) >= (wanted.0, wanted.1);
    found.iter().filter(of_series).min_by_key(|found| found.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (text, want) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Some((15, 18, 0))),
            ("postgres (PostgreSQL) 18beta1", Some((18, 0, 0))),
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", Some((7, 0, 15))),
            ("nats-server: v2.10.26", Some((2, 10, 26))),
            ("nothing", None),
        ] {
            assert_eq!(version_in(text), want, "{text}");
        }
    }

    #[test]
    fn the_nearest_that_is_not_older_is_taken() {
        let found: Vec<Found> = [(7, 0, 15), (8, 2, 1), (6, 2, 6)]
            .map(|version| Found { path: format!("/{version:?}").into(), version })
            .into();
        let nearest = |wanted| nearest(&found, wanted).map(|found| found.version);
        assert_eq!(nearest((7, 0, 20)), Some((7, 0, 15)), "a patch older is no older server");
        assert_eq!(nearest((7, 2, 0)), Some((8, 2, 1)));
        assert_eq!(nearest((6, 2, 0)), Some((6, 2, 6)));
        assert_eq!(nearest((8, 4, 0)), None);
    }
}
