//! `init`.

use super::output::Output;
use crate::operation::{self, Context, Error, exit};

pub(super) async fn run(context: &Context, if_missing: bool, output: &Output) -> Result<u8, Error> {
    let report = operation::init(context, if_missing).await?;
    output.result(&report, || match report.created {
        true => format!("created repository {} at {}", report.repository, report.url),
        false => format!("repository {} is at {} already", report.repository, report.url),
    });
    Ok(exit::DONE)
}
