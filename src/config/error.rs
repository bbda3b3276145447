//! What can be wrong with a configuration, by meaning.
//!
//! Messages are lower-case, name file and key, and hold no secret; the next step is [`ConfigError::hint`].

use std::fmt;
use std::path::PathBuf;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The configuration file; absent for a value given as an argument.
    pub file: Option<PathBuf>,
    /// Line and column, both from 1, where known. The column counts characters.
    pub position: Option<(usize, usize)>,
    /// The full path of the key (`repository.s3.endpoint`, `source[0].url`), or the argument's name.
    pub key: String,
}

impl Place {
    /// An argument on the command line, such as `--repository`.
    pub fn argument(name: &str) -> Self {
        Self { file: None, position: None, key: name.to_owned() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", shown(&file.to_string_lossy()))?;
            if let Some((line, column)) = self.position {
                write!(f, ":{line}:{column}")?;
            }
            f.write_str(": ")?;
        }
        if self.key.is_empty() { f.write_str("syntax") } else { write!(f, "`{}`", shown(&self.key)) }
    }
}

/// Text from a file made safe for a terminal: control characters escaped, long text cut.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 200;
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == MOST {
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no configuration file at any of the default places.
    #[error("no configuration file: looked for {}", list(.looked.iter().map(|p| p.display().to_string())))]
    NoFile {
        /// Where it was looked for, in order.
        looked: Vec<PathBuf>,
    },
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("{at}: {problem}")]
    Syntax {
        /// Where.
        at: Box<Place>,
        /// The parser's words, without the text itself.
        problem: String,
    },
    /// A key that this version does not know.
    #[error("{at}: unknown key")]
    UnknownKey {
        /// The key.
        at: Box<Place>,
        /// The nearest known key, in full.
        nearest: Option<String>,
    },
    /// A key that must be there is not.
    #[error("{at}: is missing")]
    Missing {
        /// The key that should be there.
        at: Box<Place>,
    },
    /// A value of another type.
    #[error("{at}: expected {expected}, found {found}")]
    WrongType {
        /// The key.
        at: Box<Place>,
        /// What belongs there.
        expected: String,
        /// The type that was found.
        found: &'static str,
    },
    /// A value that cannot be.
    #[error("{at}: {problem}")]
    BadValue {
        /// The key.
        at: Box<Place>,
        /// Why.
        problem: String,
        /// What to write instead.
        hint: Option<String>,
    },
    /// A URL holds a password.
    #[error("{at}: the url holds a secret; secrets are never written into a url")]
    SecretInUrl {
        /// The key or argument.
        at: Box<Place>,
        /// Where the secret belongs.
        hint: String,
    },
    /// Part of the design, not of this version.
    #[error("{at}: {what}")]
    NotSupported {
        /// The key.
        at: Box<Place>,
        /// What this version cannot do.
        what: String,
    },
    /// Two sources have one name.
    #[error("{at}: the name `{name}` is taken by an earlier source")]
    DuplicateSource {
        /// The second one.
        at: Box<Place>,
        /// The name.
        name: String,
    },
    /// A file with a secret cannot be used.
    #[error("cannot use the file {} named by `{key}`: {problem}", .path.display())]
    SecretFile {
        /// The key that names the file.
        key: String,
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A secret in the environment cannot be used.
    #[error("cannot use the environment variable {variable}: {problem}")]
    SecretVariable {
        /// The variable.
        variable: String,
        /// Why.
        problem: String,
    },
    /// No S3 credentials, or only half of a pair.
    #[error("no S3 credentials: {}", .missing.join(" and no "))]
    NoCredentials {
        /// What is missing, in words.
        missing: Vec<&'static str>,
        /// What to set.
        hint: String,
    },
    /// A repository is encrypted and nothing opens it.
    #[error("{} encrypts and names no identity: neither `catalog_identity_file` nor `identity_file`", .file.display())]
    NoIdentity {
        /// The configuration file.
        file: PathBuf,
    },
    /// A command needs a source and none is configured.
    #[error("no source is configured in {}", .file.display())]
    NoSources {
        /// The configuration file.
        file: PathBuf,
    },
    /// A source was asked for that is not configured.
    #[error("no source named `{}` is configured in {}", shown(.name), .file.display())]
    UnknownSource {
        /// The name asked for.
        name: String,
        /// The configuration file.
        file: PathBuf,
        /// The names there are.
        known: Vec<String>,
    },
    /// Several of the above.
    #[error("{} problems in the configuration:\n  {}", .0.len(), .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  "))]
    Several(Vec<ConfigError>),
}

impl ConfigError {
    /// What to do next, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoFile { .. } => Some(format!(
                "name one with --config or {}; an example is config/altlas-backup.toml",
                super::CONFIG_VARIABLE
            )),
            Self::UnknownKey { nearest, .. } => nearest.as_ref().map(|key| format!("did you mean `{key}`?")),
            Self::WrongType { at, found: "table", .. } if at.key == "source" => {
                Some("write `[[source]]`, with two brackets, for each source".to_owned())
            }
            Self::BadValue { hint, .. } => hint.clone(),
            Self::SecretInUrl { hint, .. } | Self::NoCredentials { hint, .. } => Some(hint.clone()),
            Self::NotSupported { .. } => Some("remove it, or use a version that supports it".to_owned()),
            Self::NoIdentity { .. } => Some(format!(
                "set `repository.encryption.catalog_identity_file` or {} to back up, list and prune; \
                 `repository.encryption.identity_file` or {} to verify and restore too",
                super::CATALOG_IDENTITY_VARIABLE,
                super::IDENTITY_VARIABLE
            )),
            Self::NoSources { .. } => Some("add a `[[source]]` section".to_owned()),
            Self::UnknownSource { known, .. } => Some(format!("the configured sources are: {}", known.join(", "))),
            Self::Several(all) => {
                let mut hints: Vec<String> = Vec::new();
                for hint in all.iter().filter_map(Self::hint) {
                    if !hints.contains(&hint) {
                        hints.push(hint);
                    }
                }
                (!hints.is_empty()).then(|| hints.join("\n"))
            }
            Self::Unreadable { .. }
            | Self::Syntax { .. }
            | Self::Missing { .. }
            | Self::WrongType { .. }
            | Self::DuplicateSource { .. } => None,
            Self::SecretFile { key, .. } if key.starts_with("repository.encryption.") => Some(
                "check the path, that this user may read the file, and that it holds an identity (AGE-SECRET-KEY-1…). A machine that only \
                 makes backups needs no `identity_file`, one that only restores no `catalog_identity_file`: leave that key out there"
                    .to_owned(),
            ),
            Self::SecretFile { .. } => Some("the file holds the secret and nothing else".to_owned()),
            Self::SecretVariable { variable, .. }
                if [super::CATALOG_IDENTITY_VARIABLE, super::IDENTITY_VARIABLE].contains(&variable.as_str()) =>
            {
                Some(format!(
                    "the variable holds what the file would, not its path; a path belongs into {variable}_FILE"
                ))
            }
            Self::SecretVariable { .. } => Some("the variable holds what the file would, not its path".to_owned()),
        }
    }

    /// Where in the file, to list problems in the order of the file.
    pub(super) fn position(&self) -> Option<(usize, usize)> {
        match self {
            Self::Syntax { at, .. }
            | Self::UnknownKey { at, .. }
            | Self::Missing { at }
            | Self::WrongType { at, .. }
            | Self::BadValue { at, .. }
            | Self::SecretInUrl { at, .. }
            | Self::NotSupported { at, .. }
            | Self::DuplicateSource { at, .. } => at.position,
            _ => None,
        }
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(" and ")
}
