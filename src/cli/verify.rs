//! `verify`.

use super::{
    output::{Output, Paint},
    progress,
};
use crate::{
    operation::{self, Context, Error, Incomplete, VerifyReport, exit},
    report,
    repository::{Level, Selector},
};

pub(super) async fn run(context: &Context, selector: &Selector, level: Level, output: &Output) -> Result<u8, Error> {
    let report = {
        let _shown = progress::show(context.progress.clone(), output);
        operation::verify(context, selector, level).await?
    };
    output.result(&report, || text(&report, output));
    let is_whole = report.not_captured.is_empty() && report.incomplete.is_empty();
    Ok(match (report.problems.is_empty(), is_whole) {
        (false, _) => exit::VERDICT_FAILED,
        (true, false) => exit::PARTLY,
        (true, true) => exit::DONE,
    })
}

fn text(report: &VerifyReport, output: &Output) -> String {
    let subject = match &report.backup {
        Some(id) => format!("backup {id}"),
        None => "the repository".to_owned(),
    };
    let mut text = String::new();
    for problem in &report.problems {
        let mut line = report::printable(&problem.what);
        if let Some(source) = &problem.source {
            line.push_str(&format!("; source `{source}`"));
        }
        if !problem.artifacts.is_empty() {
            line.push_str(&format!("; {}", report::printable(&report::list(&problem.artifacts, 5))));
        }
        text.push_str(&format!("{} {subject}: {line}\n", output.paint(Paint::Bad, "damaged:")));
    }
    for source in &report.not_captured {
        text.push_str(&format!(
            "{} {subject} holds nothing of source `{source}`\n",
            output.paint(Paint::Warn, "partial:")
        ));
    }
    for Incomplete { source, failed } in &report.incomplete {
        for what in failed {
            text.push_str(&format!(
                "{} {subject} lacks this of source `{source}`: {}\n",
                output.paint(Paint::Warn, "partial:"),
                report::printable(what)
            ));
        }
    }
    let level = match report.level {
        Level::Presence => "presence",
        Level::Content => "content",
        Level::Restore => "restore",
    };
    if !report.problems.is_empty() {
        let n = report::count(report.problems.len() as u64, "problem");
        text.push_str(&format!("{subject}: {} at level {level}: {n}", output.paint(Paint::Bad, "FAILED")));
        return text;
    }
    let what = match report.level {
        Level::Presence => format!("every one of {} is there in its size", report::count(report.parts, "part")),
        _ => format!(
            "{}, {} and {} read and equal to what was captured",
            report::count(report.parts, "part"),
            report::bytes(report.raw),
            report::count(report.rows, "row")
        ),
    };
    text.push_str(&format!("{subject}: {} at level {level}: {what}", output.paint(Paint::Good, "sound")));
    text
}
