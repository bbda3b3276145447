//! `keygen`: a new age key, in a file that only its owner may read.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use secrecy::ExposeSecret;
use serde::Serialize;

use super::Error;
use crate::crypt::{Identity, Recipient};

/// A key that was made.
#[derive(Serialize)]
pub struct KeygenReport {
    /// Its public half.
    pub recipient: Recipient,
    /// The file with its secret half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Its secret half as the text of a file, where no file was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// Makes a key. With a path the identity goes into a new file there and nowhere else.
///
/// # Errors
/// A file that is there already, or cannot be written: then no file is left behind.
pub fn keygen(path: Option<&Path>) -> Result<KeygenReport, Error> {
    let identity = Identity::generate();
    let recipient = identity.recipient().clone();
    let text = identity.to_file(jiff::Timestamp::now());
    let Some(path) = path else {
        return Ok(KeygenReport { recipient, file: None, identity: Some(text.expose_secret().to_owned()) });
    };
    let failed = |error: io::Error| Error::KeyFile {
        path: path.to_owned(),
        exists: error.kind() == io::ErrorKind::AlreadyExists,
        problem: error.to_string(),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let written = file.write_all(text.expose_secret().as_bytes()).and_then(|()| file.sync_all()).and_then(|()| {
        // The name must survive a power cut as the text does: backups are encrypted to this key from now on.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    });
    if let Err(error) = written {
        // Ours, since it was created just now.
        let _ = std::fs::remove_file(path);
        return Err(failed(error));
    }
    Ok(KeygenReport { recipient, file: Some(path.to_owned()), identity: None })
}
