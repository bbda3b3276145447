//! `keygen`: a new age key, in a file that only its owner may read.

use std::{
    fs::{File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use secrecy::ExposeSecret;
use serde::Serialize;
use tempfile::NamedTempFile;

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
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Under another name first: what has the name is whole, whenever this ends.
    let mut file = NamedTempFile::new_in(folder).map_err(failed)?;
    file.as_file().set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    file.write_all(text.expose_secret().as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist_noclobber(path).map_err(|error| failed(error.error))?;
    // The name should survive a power cut as the text does. A folder that may be written and not read cannot be opened for that.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(KeygenReport { recipient, file: Some(path.to_owned()), identity: None })
}
