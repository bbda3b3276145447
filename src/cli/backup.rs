//! `backup`.

use std::time::Duration;

use super::{
    browse::skew_text,
    output::{Output, Paint, table},
    progress,
};
use crate::{
    operation::{self, BackupReport, Context, Error, exit},
    report,
    repository::BackupState,
};

pub(super) async fn run(context: &Context, names: &[String], output: &Output) -> Result<u8, Error> {
    let report = {
        let _shown = progress::show(context.progress.clone(), output);
        operation::backup(context, names).await?
    };
    output.result(&report, || text(&report, output));
    Ok(match report.state {
        BackupState::Complete => exit::DONE,
        BackupState::Partial => exit::PARTLY,
    })
}

fn text(report: &BackupReport, output: &Output) -> String {
    let state = match report.state {
        BackupState::Complete => output.paint(Paint::Good, "complete"),
        BackupState::Partial => output.paint(Paint::Bad, "PARTIAL"),
    };
    let took = report::duration(Duration::from_secs_f64(report.seconds));
    let mut text = format!("backup {}: {state} in {took}, not verified yet\n", report.backup);
    let mut rows = vec![
        ["source", "state", "rows", "raw", "parts", "new", "reused", "stored", "uploaded"].map(str::to_owned).to_vec(),
    ];
    for source in &report.sources {
        rows.push(vec![
            source.name.clone(),
            source.state.to_string(),
            source.rows.to_string(),
            report::bytes(source.raw),
            source.parts.to_string(),
            source.new_parts.to_string(),
            source.reused_parts.to_string(),
            report::bytes(source.stored),
            report::bytes(source.uploaded),
        ]);
    }
    text.push_str(&table(&rows, &[2, 3, 4, 5, 6, 7, 8]));
    text.extend(report.skew.as_ref().and_then(skew_text));
    for source in &report.sources {
        if let Some(error) = &source.error {
            text.push_str(&format!("{} {}\n", output.paint(Paint::Bad, "failed:"), report::printable(error)));
        }
        if let Some(hint) = &source.hint {
            text.push_str(&format!("hint: {}\n", report::printable(hint)));
        }
        for what in &source.failed {
            let (not_captured, what) = (output.paint(Paint::Bad, "not captured:"), report::printable(what));
            text.push_str(&format!("{not_captured} `{}`: {what}\n", source.name));
        }
        for left_out in &source.uncovered {
            text.push_str(&format!(
                "{} `{}`: {}\n",
                output.paint(Paint::Warn, "not covered:"),
                source.name,
                report::printable(left_out)
            ));
        }
        for note in &source.notes {
            text.push_str(&format!("note: `{}`: {}\n", source.name, report::printable(note)));
        }
    }
    text
}
