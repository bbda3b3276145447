//! `serve`.

use super::output::Output;
use crate::{
    operation::{Context, Error, exit},
    report,
    serve::{self, Options, ServeReport},
};

pub(super) async fn run(context: &Context, observe_only: bool, output: &Output) -> Result<u8, Error> {
    let report = serve::serve(context, Options::new(observe_only)).await?;
    output.result(&report, || text(&report));
    Ok(exit::DONE)
}

fn text(report: &ServeReport) -> String {
    let count = |n, what| report::count(n, what);
    let ServeReport { backups, verifications, prunes, failures } = *report;
    format!(
        "stopped after {}, {}, {}, {}",
        count(backups, "backup"),
        count(verifications, "verification"),
        count(prunes, "run of retention").replace("run of retentions", "runs of retention"),
        count(failures, "failure")
    )
}
