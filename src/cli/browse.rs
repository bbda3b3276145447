//! `list` and `show`.

use std::time::Duration;

use super::output::{Output, table};
use crate::{
    operation::{self, Context, Error, ListReport, ListedBackup, ShownBackup, ShownEvidence, exit},
    report,
    repository::{HeadSource, Reason, Selector, Skew},
};

/// Of what a verification found, so much is shown; `--json` has all that is stored.
const SHOWN_DIFFERENCES: usize = 10;

pub(super) async fn list(context: &Context, output: &Output) -> Result<u8, Error> {
    let report = operation::list(context).await?;
    output.result(&report, || list_text(&report));
    Ok(exit::DONE)
}

fn list_text(report: &ListReport) -> String {
    if report.backups.is_empty() {
        return format!("no backup in {}", report.url);
    }
    let mut rows = vec![
        ["backup", "started", "age", "state", "verdict", "sources", "raw", "stored", "uploaded"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut problems = String::new();
    for backup in &report.backups {
        rows.push(match backup {
            ListedBackup::Good { head, verdict, .. } => {
                let sum = |of: fn(&crate::repository::Sizes) -> u64| {
                    report::bytes(head.sources.iter().map(|source| of(&source.sizes)).sum())
                };
                let sources: Vec<String> = head
                    .sources
                    .iter()
                    .map(|source| {
                        if source.state.is_usable() {
                            source.name.clone()
                        } else {
                            format!("{} ({})", source.name, source.state)
                        }
                    })
                    .collect();
                vec![
                    head.backup.to_string(),
                    report::time(head.started),
                    report::ago(head.started, report.now),
                    head.state.to_string(),
                    (*verdict).to_owned(),
                    report::list(&sources, 4),
                    sum(|sizes| sizes.raw),
                    sum(|sizes| sizes.stored),
                    sum(|sizes| sizes.uploaded),
                ]
            }
            ListedBackup::Damaged { backup, problem } => {
                problems.push_str(&format!("{backup} is damaged: {problem}\n"));
                vec![backup.clone(), "?".into(), "?".into(), "DAMAGED".into()]
            }
            ListedBackup::Locked { backup, problem, hint } => {
                problems.push_str(&format!("{backup} is locked: {problem}\n  hint: {hint}\n"));
                vec![backup.clone(), "?".into(), "?".into(), "LOCKED".into()]
            }
            ListedBackup::Unfinished { backup, manifests, written } => {
                problems.push_str(&format!(
                    "{backup} is unfinished: {} without a head\n",
                    report::count(*manifests as u64, "manifest")
                ));
                vec![backup.clone(), report::time(*written), report::ago(*written, report.now), "unfinished".into()]
            }
            ListedBackup::Expired { backup, expired } => {
                let gone = format!("expired {}", report::ago(*expired, report.now));
                vec![backup.clone(), "-".into(), "-".into(), gone]
            }
        });
    }
    format!("{}{}", table(&rows, &[6, 7, 8]), report::printable(&problems))
}

pub(super) async fn show(context: &Context, selector: &Selector, output: &Output) -> Result<u8, Error> {
    let shown = operation::show(context, selector).await?;
    output.result(&shown, || show_text(&shown));
    Ok(exit::DONE)
}

fn show_text(shown: &ShownBackup) -> String {
    let head = &shown.head;
    let mut text = format!(
        "backup {}: {}, {}\nstarted {} ({}), finished {}\nepoch {}, made by {}, in {}\n",
        head.backup,
        head.state,
        shown.verdict,
        report::time(head.started),
        report::ago(head.started, shown.now),
        report::time(head.finished),
        head.epoch,
        head.tool,
        shown.url,
    );
    text.extend(head.skew.as_ref().and_then(skew_text));
    for source in &head.sources {
        let known = shown.sources.iter().find(|known| known.name == source.name);
        let verdict = known.map(|known| format!(", {}", known.verdict)).unwrap_or_default();
        text.push_str(&format!("\nsource `{}` ({}): {}{verdict}", source.name, source.kind, source.state));
        text.extend(cut_text(source));
        text.push_str(&format!(
            "\n{}, {} raw, {} stored, {} uploaded by this backup\n",
            report::count(source.rows, "row"),
            report::bytes(source.sizes.raw),
            report::bytes(source.sizes.stored),
            report::bytes(source.sizes.uploaded)
        ));
        let Some(manifest) = shown.sources.iter().find(|manifest| manifest.name == source.name) else { continue };
        let mut rows = vec![["artifact", "rows", "raw", "stored", "parts", "fingerprint"].map(str::to_owned).to_vec()];
        for artifact in &manifest.artifacts {
            let fingerprint = artifact.fingerprint;
            rows.push(vec![
                artifact.path.clone(),
                fingerprint.map_or_else(String::new, |fingerprint| fingerprint.rows.to_string()),
                report::bytes(artifact.raw),
                report::bytes(artifact.parts.iter().map(|part| part.stored).sum()),
                artifact.parts.len().to_string(),
                fingerprint.map_or_else(String::new, |fingerprint| format!("{:032x}", fingerprint.sum)),
            ]);
        }
        text.push_str(&table(&rows, &[1, 2, 3, 4]));
        for line in &manifest.about {
            text.push_str(&format!("{}\n", report::printable(line)));
        }
        for what in &manifest.failed {
            text.push_str(&format!("not captured: {}\n", report::printable(what)));
        }
        for left_out in &manifest.uncovered {
            text.push_str(&format!("not covered: {}\n", report::printable(left_out)));
        }
        for note in &manifest.notes {
            text.push_str(&format!("note: {}\n", report::printable(note)));
        }
    }
    text.push_str(&verifications_text(shown));
    text
}

/// The verifications of a backup, and what those that were not green found.
fn verifications_text(shown: &ShownBackup) -> String {
    if shown.verifications.is_empty() {
        return String::new();
    }
    let mut rows = vec![
        ["verified", "level", "source", "verdict", "reason", "compared", "rows", "differences", "took"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut found = String::new();
    for ShownEvidence { evidence, details } in &shown.verifications {
        for source in &evidence.sources {
            rows.push(vec![
                report::time(evidence.finished),
                evidence.level.to_string(),
                source.name.clone(),
                source.verdict.to_string(),
                source.reason.map_or("", Reason::as_str).to_owned(),
                source.objects.to_string(),
                source.rows.to_string(),
                source.differences.to_string(),
                report::duration(Duration::from_secs_f64(source.seconds)),
            ]);
        }
        for source in details.iter().flat_map(|details| &details.sources) {
            let at = report::time(evidence.finished);
            for one in source.differences.iter().take(SHOWN_DIFFERENCES) {
                let line = report::printable(&format!("{}: {}", one.object, one.what));
                found.push_str(&format!("{at} `{}` differs: {line}\n", source.name));
            }
            for what in source.inconclusive.iter().take(SHOWN_DIFFERENCES) {
                found.push_str(&format!("{at} `{}` inconclusive: {}\n", source.name, report::printable(what)));
            }
        }
    }
    format!("\n{}{found}", table(&rows, &[5, 6, 7, 8]))
}

/// `, cut 2026-11-23T01:00:00.512Z ± 3 ms`; of several instants the first and the last.
fn cut_text(source: &HeadSource) -> Option<String> {
    let at = report::instant(source.cut_at?);
    let first = source.cut_first.map(|first| format!("{} to ", report::instant(first))).unwrap_or_default();
    let error = source.cut_error_seconds.map(|error| format!(" ± {}", report::seconds(error))).unwrap_or_default();
    Some(format!(", cut {first}{at}{error}"))
}

/// The line `skew 412 ms ± 3 ms: from the first cut to the last`, where there are several.
pub(super) fn skew_text(skew: &Skew) -> Option<String> {
    let (seconds, error) = (report::seconds(skew.seconds), report::seconds(skew.error_seconds));
    skew.is_of_several().then(|| format!("skew {seconds} ± {error}: from the first cut to the last\n"))
}
