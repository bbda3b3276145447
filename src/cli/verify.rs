//! `verify`.

use std::time::Duration;

use super::{
    output::{Output, Paint, table},
    progress,
};
use crate::{
    operation::{self, Context, Error, Incomplete, VerifiedSource, VerifyReport, exit},
    report,
    repository::{Level, Reason, Selector, Verdict},
};

/// Of what differs, so much is shown; `--json` and `show --json` have all of it.
const SHOWN: usize = 20;

pub(super) async fn run(context: &Context, selector: &Selector, level: Level, output: &Output) -> Result<u8, Error> {
    let report = {
        let _shown = progress::show(context.progress.clone(), output);
        operation::verify(context, selector, level).await?
    };
    output.result(&report, || text(&report, output));
    let is_whole = report.not_captured.is_empty() && report.incomplete.is_empty();
    Ok(match (report.verdict, is_whole) {
        (Verdict::Failed, _) => exit::VERDICT_FAILED,
        (Verdict::Inconclusive, _) => exit::INCONCLUSIVE,
        (Verdict::Verified | Verdict::Sound, false) => exit::PARTLY,
        (Verdict::Verified | Verdict::Sound, true) => exit::DONE,
    })
}

fn subject(report: &VerifyReport) -> String {
    match &report.backup {
        Some(id) => format!("backup {id}"),
        None => "the repository".to_owned(),
    }
}

fn text(report: &VerifyReport, output: &Output) -> String {
    let subject = subject(report);
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
    if report.level == Level::Restore {
        text.push_str(&proof(report, output));
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
    text.push_str(&verdict(report, output));
    text
}

/// The last line: what is to be thought of the backup.
fn verdict(report: &VerifyReport, output: &Output) -> String {
    let (subject, level) = (subject(report), report.level);
    let took = report::duration(Duration::from_secs_f64(report.seconds));
    let word = match report.verdict {
        Verdict::Verified => output.paint(Paint::Good, "VERIFIED"),
        Verdict::Sound => output.paint(Paint::Good, "sound"),
        Verdict::Inconclusive => output.paint(Paint::Warn, "INCONCLUSIVE"),
        Verdict::Failed => output.paint(Paint::Bad, "FAILED"),
    };
    let what = match (report.verdict, level) {
        (Verdict::Failed, _) => {
            let differences = report.sources.iter().map(|source| source.differences.len()).sum::<usize>();
            report::count(differences.max(report.problems.len()) as u64, "problem")
        }
        (Verdict::Inconclusive, _) => "it could not be found out whether it is what was captured".to_owned(),
        (_, Level::Presence) => {
            format!("every one of {} is there in its size", report::count(report.parts, "part"))
        }
        (_, Level::Content) => format!(
            "{}, {} and {} read and equal to what was captured",
            report::count(report.parts, "part"),
            report::bytes(report.raw),
            report::count(report.rows, "row")
        ),
        (_, Level::Restore) => {
            let sources = report::count(report.sources.len() as u64, "source");
            format!("{sources} restored into throwaway servers, which then held what was captured")
        }
    };
    format!("{subject}: {word} at level {level}: {what} ({took})")
}

/// What the throwaway servers held.
fn proof(report: &VerifyReport, output: &Output) -> String {
    let mut rows = vec![
        ["source", "verdict", "restored into", "compared", "rows", "differences", "restore", "in all"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let seconds = |seconds: f64| report::duration(Duration::from_secs_f64(seconds));
    for source in &report.sources {
        rows.push(vec![
            source.name.clone(),
            source.verdict.to_string(),
            source.server.clone().unwrap_or_else(|| "-".to_owned()),
            source.same.len().to_string(),
            source.same.iter().map(|same| same.rows).sum::<u64>().to_string(),
            source.differences.len().to_string(),
            source.restore_seconds.map_or_else(|| "-".to_owned(), seconds),
            seconds(source.seconds),
        ]);
    }
    let mut text = table(&rows, &[3, 4, 5, 6, 7]);
    report.sources.iter().for_each(|source| text.push_str(&findings(report, source, output)));
    text
}

fn findings(report: &VerifyReport, source: &VerifiedSource, output: &Output) -> String {
    let mut text = String::new();
    let mut line = |paint, word: &str, what: &str| {
        text.push_str(&format!("{} `{}`: {}\n", output.paint(paint, word), source.name, report::printable(what)));
    };
    // Damaged objects are told before, and by an error that names them.
    let damaged = source.reason == Some(Reason::Damaged);
    for difference in source.differences.iter().filter(|_| !damaged || report.problems.is_empty()).take(SHOWN) {
        match damaged {
            true => line(Paint::Bad, "damaged:", &difference.what),
            false => line(Paint::Bad, "differs:", &format!("{}: {}", difference.object, difference.what)),
        }
    }
    if source.differences.len() > SHOWN {
        line(Paint::Bad, "differs:", &format!("{} more", source.differences.len() - SHOWN));
    }
    for what in source.inconclusive.iter().take(SHOWN) {
        line(Paint::Warn, "inconclusive:", what);
    }
    for note in source.notes.iter().take(SHOWN) {
        line(Paint::Bold, "note:", note);
    }
    if let Some(hint) = &source.hint {
        text.push_str(&format!("{} {}\n", output.paint(Paint::Bold, "hint:"), report::printable(hint)));
    }
    text
}
