//! `keygen`.

use super::{arguments::Keygen, output::Output};
use crate::operation::{self, Error, exit};

pub(super) fn run(arguments: &Keygen, output: &Output) -> Result<u8, Error> {
    let report = operation::keygen(arguments.output.as_deref())?;
    output.result(&report, || match (&report.file, &report.identity) {
        (None, Some(identity)) => identity.clone(),
        _ => report.recipient.to_string(),
    });
    if let Some(file) = &report.file {
        output.say(&format!(
            "the identity is in {}: keep a copy of it away from this machine and from the backups",
            file.display()
        ));
    }
    Ok(exit::DONE)
}
