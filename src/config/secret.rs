//! Secrets from files and from the environment.
//!
//! A secret becomes a [`SecretString`] as it is read; its text is in no error, and no type here prints it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::{ConfigError, EncryptionConfig, S3Config};
use crate::crypt::Identities;

/// Holds the catalogue identity where no file is configured.
pub const CATALOG_IDENTITY_VARIABLE: &str = "ALTLAS_BACKUP_CATALOG_IDENTITY";
/// Holds data identities where no file is configured.
pub const IDENTITY_VARIABLE: &str = "ALTLAS_BACKUP_IDENTITY";
/// What the name of a variable ends with that names a file in place of holding the secret.
const FILE_SUFFIX: &str = "_FILE";

/// A secret longer than this is a wrong file. Ours are passwords, keys and tokens; a session token has about 1 KiB.
const MOST_BYTES: u64 = 64 * 1024;

const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";

/// What a request to S3 is signed with.
#[derive(Clone, Debug)]
pub struct S3Credentials {
    /// Names the key; not a secret by itself.
    pub access_key_id: String,
    /// Signs.
    pub secret_access_key: SecretString,
    /// With temporary credentials only.
    pub session_token: Option<SecretString>,
}

/// The secret in the file that `key` names, without one trailing line end.
pub(super) fn read_file(path: &Path, key: &str) -> Result<SecretString, ConfigError> {
    let wrong = |problem: String| ConfigError::SecretFile { key: key.to_owned(), path: path.to_owned(), problem };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(wrong(format!("it holds more than {} KiB, which is no secret of ours", MOST_BYTES / 1024)));
    }
    let mut text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8 text".to_owned()))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.is_empty() {
        return Err(wrong("it is empty".to_owned()));
    }
    if text.contains('\0') {
        return Err(wrong("it holds a zero byte".to_owned()));
    }
    Ok(SecretString::from(text))
}

/// The secret in an environment variable; an empty one counts as not set.
pub(super) fn read_variable(variable: &str, env: &dyn Fn(&str) -> Option<String>) -> Option<SecretString> {
    env(variable).filter(|text| !text.is_empty()).map(SecretString::from)
}

/// The identities of this machine.
#[derive(Clone, Debug, Default)]
pub struct HeldIdentities {
    /// Catalogue identities, the current one first; may be none.
    pub catalog: Identities,
    /// Identities of recipients; may be none.
    pub data: Identities,
}

impl EncryptionConfig {
    /// Reads the identities: from the files that are configured, else from those that `ALTLAS_BACKUP_CATALOG_IDENTITY_FILE` and
    /// `ALTLAS_BACKUP_IDENTITY_FILE` name (where machines share a configuration and hold different identities), else from
    /// `ALTLAS_BACKUP_CATALOG_IDENTITY` and `ALTLAS_BACKUP_IDENTITY`, which hold what the files would.
    ///
    /// # Errors
    /// A file that cannot be used, or that holds something else.
    pub fn identities(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<HeldIdentities, ConfigError> {
        let read = |file: &Option<PathBuf>, name: &str, variable: &str| {
            let naming = format!("{variable}{FILE_SUFFIX}");
            let named = env(&naming).filter(|path| !path.is_empty());
            let file = match (file, named) {
                (Some(path), _) => Some((path.clone(), format!("repository.encryption.{name}"))),
                (None, Some(path)) => Some((PathBuf::from(path), naming)),
                (None, None) => None,
            };
            let text = match &file {
                Some((path, key)) => Some(read_file(path, key)?),
                None => read_variable(variable, env),
            };
            let Some(text) = text else { return Ok(Identities::default()) };
            Identities::parse(text.expose_secret()).map_err(|error| match file {
                Some((path, key)) => ConfigError::SecretFile { key, path, problem: error.to_string() },
                None => ConfigError::SecretVariable { variable: variable.to_owned(), problem: error.to_string() },
            })
        };
        Ok(HeldIdentities {
            catalog: read(&self.catalog_identity_file, "catalog_identity_file", CATALOG_IDENTITY_VARIABLE)?,
            data: read(&self.identity_file, "identity_file", IDENTITY_VARIABLE)?,
        })
    }
}

impl S3Config {
    /// Reads the credentials: each value from its file where one is configured, else from `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    ///
    /// A session token of the environment belongs to a key of the environment: it is left alone where both halves of the
    /// pair come from files.
    ///
    /// # Errors
    /// A file that cannot be used, a value that cannot stand in an HTTP header, no pair, or half of one.
    pub fn credentials(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<S3Credentials, ConfigError> {
        let read = |file: &Option<PathBuf>, name: &str, variable: &str| {
            let key = format!("repository.s3.{name}");
            let value = match file {
                Some(path) => Some(read_file(path, &key)?),
                None => read_variable(variable, env),
            };
            if value.as_ref().is_some_and(|v| !v.expose_secret().bytes().all(|b| b.is_ascii_graphic())) {
                let problem =
                    "it holds a space, a line break or another character that no S3 credential has".to_owned();
                return Err(match file {
                    Some(path) => ConfigError::SecretFile { key, path: path.clone(), problem },
                    None => ConfigError::SecretVariable { variable: variable.to_owned(), problem },
                });
            }
            Ok(value)
        };
        let id = read(&self.access_key_id_file, "access_key_id_file", ACCESS_KEY_ID)?;
        let secret = read(&self.secret_access_key_file, "secret_access_key_file", SECRET_ACCESS_KEY)?;
        let by_files = self.access_key_id_file.is_some() && self.secret_access_key_file.is_some();
        let session_token = if by_files && self.session_token_file.is_none() {
            None
        } else {
            read(&self.session_token_file, "session_token_file", SESSION_TOKEN)?
        };
        match (id, secret) {
            (Some(id), Some(secret_access_key)) => {
                Ok(S3Credentials { access_key_id: id.expose_secret().to_owned(), secret_access_key, session_token })
            }
            (id, secret) => {
                let mut missing = Vec::new();
                let mut steps = Vec::new();
                if id.is_none() {
                    missing.push("access key id");
                    steps.push(format!("`repository.s3.access_key_id_file` or {ACCESS_KEY_ID}"));
                }
                if secret.is_none() {
                    missing.push("secret access key");
                    steps.push(format!("`repository.s3.secret_access_key_file` or {SECRET_ACCESS_KEY}"));
                }
                Err(ConfigError::NoCredentials { missing, hint: format!("set {}", steps.join(", and ")) })
            }
        }
    }
}
