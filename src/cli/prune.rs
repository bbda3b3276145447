//! `prune`.

use std::time::Duration;

use super::{
    arguments::Prune,
    output::{Output, Paint, table},
    progress,
};
use crate::{
    operation::{self, Context, Error, PruneArguments, PruneReport, UndoReport, exit},
    report,
    repository::{
        retention::{Fate, RetentionPlan},
        sweep::{SweepPlan, Tally},
    },
};

pub(super) async fn run(context: &Context, arguments: &Prune, output: &Output) -> Result<u8, Error> {
    if let Some(prefix) = &arguments.undo {
        let report = operation::undo_expiry(context, prefix).await?;
        output.result(&report, || undone(&report));
        return Ok(exit::DONE);
    }
    let Prune { dry_run, expire_at_most, sweep_at_most, .. } = *arguments;
    let report = {
        let _shown = progress::show(context.progress.clone(), output);
        operation::prune(context, &PruneArguments { dry_run, expire_at_most, sweep_at_most }).await?
    };
    output.result(&report, || text(&report, output));
    Ok(if report.refused.is_empty() { exit::DONE } else { exit::REFUSED })
}

fn undone(report: &UndoReport) -> String {
    match report.restored {
        true => format!(
            "backup {} is back; it expires again with the next `prune`, unless `[retention]` keeps it by then",
            report.backup
        ),
        false => format!("backup {} has its head; there was nothing to undo", report.backup),
    }
}

fn text(report: &PruneReport, output: &Output) -> String {
    let mut text = match &report.retention {
        Some(plan) => retention_text(plan, report, output),
        None => "no `[retention]` is configured: every backup is kept\n".to_owned(),
    };
    text.push_str(&sweep_text(&report.sweep, report));
    if report.temporaries.objects > 0 {
        text.push_str(&format!("{} of writers that were killed\n", tally(report.temporaries, "temporary file")));
    }
    for note in &report.sweep.notes {
        text.push_str(&format!("note: {}\n", report::printable(note)));
    }
    for refusal in &report.refused {
        let refused = output.paint(Paint::Bad, "refused:");
        text.push_str(&format!("{refused} {}\nhint: {}\n", report::printable(&refusal.message), refusal.hint));
    }
    if report.dry_run {
        text.push_str("nothing was touched: this was a dry run");
    }
    text
}

fn retention_text(plan: &RetentionPlan, report: &PruneReport, output: &Output) -> String {
    let mut rows = vec![["backup", "started", "age", "state", "verdict", "", "why"].map(str::to_owned).to_vec()];
    for backup in &plan.backups {
        rows.push(vec![
            backup.backup.to_string(),
            backup.started.map_or_else(|| "?".to_owned(), report::time),
            backup.started.map_or_else(|| "?".to_owned(), |at| report::ago(at, report.now)),
            backup.state.clone(),
            backup.verdict.to_owned(),
            match backup.fate {
                Fate::Kept => "kept".to_owned(),
                Fate::Expires => "EXPIRES".to_owned(),
            },
            backup.reasons.join("; "),
        ]);
    }
    let (expire, all) = (plan.expired().count() as u64, report::count(plan.backups.len() as u64, "backup"));
    let done = match (report.dry_run, expire) {
        (true, 1) => "expires",
        (true, _) => "expire",
        (false, _) => "expired",
    };
    let words = output.paint(Paint::Bold, &format!("{expire} of {all} {done}"));
    format!("retention: {}\n{}{words}{}\n\n", plan.rules, table(&rows, &[2]), undo_text(expire, report))
}

fn undo_text(expire: u64, report: &PruneReport) -> String {
    match expire {
        0 => String::new(),
        _ => format!(
            "; for {} `altlas-backup prune --undo BACKUP` brings one back",
            report::duration(Duration::from_secs(report.grace_seconds))
        ),
    }
}

fn sweep_text(plan: &SweepPlan, report: &PruneReport) -> String {
    let (go, went) = if report.dry_run { ("go", "goes") } else { ("went", "went") };
    let grace = report::duration(Duration::from_secs(report.grace_seconds));
    let mut text = format!("sweep: what nothing needs and is older than {grace}\n");
    let mut line = |words: String| text.push_str(&format!("  {words}\n"));
    line(format!(
        "{} of {} {go}, {} of them of backups that expired",
        tally(plan.unused, "part"),
        tally(plan.parts, "part"),
        report::count(plan.explained.objects, "part"),
    ));
    if plan.young.objects > 0 {
        line(format!("{} are younger and stay for now", tally(plan.young, "part")));
    }
    for backup in &plan.expired {
        let when = report::ago(backup.expired, report.now);
        line(match backup.goes {
            true => format!(
                "backup {} expired {when} and {went} for good, with {}",
                backup.backup,
                tally(backup.records, "record")
            ),
            false => format!(
                "backup {} expired {when} and stays until {}: `altlas-backup prune --undo {}` brings it back",
                backup.backup,
                report::time(backup.goes_from),
                backup.backup
            ),
        });
    }
    for backup in &plan.unfinished {
        let when = report::ago(backup.written, report.now);
        let records = tally(backup.records, "record");
        line(match backup.goes {
            true => format!("{} without a head, last written {when}, {went} with {records}", backup.backup),
            false => format!("{} without a head, last written {when}, stays: it may be under way", backup.backup),
        });
    }
    if plan.attempts.objects > 0 {
        line(format!("{} of runs without a backup {go}", tally(plan.attempts, "old record")));
    }
    if plan.alerts > 0 {
        line(format!("{} of alerts that a later change followed {go}", report::count(plan.alerts, "old record")));
    }
    if !plan.epochs.is_empty() {
        let ids: Vec<&str> = plan.epochs.iter().map(|id| id.as_str()).collect();
        line(format!("{} {go}: {}", report::count(ids.len() as u64, "epoch"), report::list(&ids, 5)));
    }
    text
}

fn tally(tally: Tally, what: &str) -> String {
    format!("{} ({})", report::count(tally.objects, what), report::bytes(tally.bytes))
}
