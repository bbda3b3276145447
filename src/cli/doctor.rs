//! `doctor`.

use super::output::{Output, Paint};
use crate::{
    operation::{self, Context, DoctorReport, Error, exit},
    report,
    source::Level,
};

pub(super) async fn run(context: &Context, output: &Output) -> Result<u8, Error> {
    let report = operation::doctor(context).await;
    output.result(&report, || text(&report, output));
    Ok(if report.healthy { exit::DONE } else { exit::FAILED })
}

fn text(report: &DoctorReport, output: &Output) -> String {
    let mut text = String::new();
    for section in &report.sections {
        text.push_str(&format!("{}\n", output.paint(Paint::Bold, &section.subject)));
        for finding in &section.findings {
            let mark = match finding.level {
                Level::Ok => output.paint(Paint::Good, "ok     "),
                Level::Warning => output.paint(Paint::Warn, "warning"),
                Level::Problem => output.paint(Paint::Bad, "problem"),
            };
            text.push_str(&format!("  {mark}  {}\n", report::printable(&finding.text)));
            if let Some(hint) = &finding.hint {
                text.push_str(&format!("           hint: {}\n", report::printable(hint)));
            }
        }
    }
    text.push_str(if report.healthy { "no problem found" } else { "there are problems" });
    text
}
