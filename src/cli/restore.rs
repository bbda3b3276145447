//! `restore`: the plan, the question, the proof.

use std::{
    io::{self, BufRead, IsTerminal},
    time::Duration,
};

use serde_json::json;

use super::{
    arguments,
    output::{Output, Paint, table},
    progress,
};
use crate::{
    config::SourceName,
    operation::{self, Context, Error, PlannedRestore, RestoreArguments, RestoreReport, exit},
    report,
    source::{Compared, RestoreRequest},
};

pub(super) async fn run(context: &Context, arguments: arguments::Restore, output: &Output) -> Result<u8, Error> {
    let wanted = RestoreArguments {
        selector: arguments.backup,
        sources: arguments.source,
        targets: arguments.target.iter().map(|text| target(text)).collect::<Result<_, _>>()?,
        request: RestoreRequest {
            databases: arguments.database,
            tables: arguments.table,
            overwrite: arguments.overwrite,
        },
        to_rdb: arguments.to_rdb,
    };
    let planned = tokio::select! {
        planned = operation::plan_restore(context, &wanted) => planned?,
        () = context.cancel.cancelled() => return Err(Error::Interrupted),
    };
    let plan = plan_text(&planned);
    if arguments.dry_run {
        if output.is_json() {
            // One document: a plan that must not be carried out is told by the error that says so.
            planned.check()?;
        }
        let plans: serde_json::Map<_, _> = planned.plans().map(|(name, plan)| (name.to_owned(), json!(plan))).collect();
        output.result(&json!({"backup": planned.backup, "notes": planned.notes, "plan": plans}), || plan);
        planned.check()?;
        return Ok(exit::DONE);
    }
    output.say(&plan);
    planned.check()?;
    if !arguments.yes {
        confirm(output)?;
    }
    let report = {
        let _shown = progress::show(context.progress.clone(), output);
        planned.execute(context).await?
    };
    output.result(&report, || result_text(&report, output));
    Ok(if report.is_inconclusive() { exit::INCONCLUSIVE } else { exit::DONE })
}

/// `NAME=URL`. What was typed is never repeated: a URL in the wrong place may hold a password.
fn target(text: &str) -> Result<(String, String), Error> {
    match text.split_once('=') {
        Some((name, url)) if SourceName::new(name).is_some() && !url.is_empty() => {
            Ok((name.to_owned(), url.to_owned()))
        }
        _ => Err(Error::Usage {
            message: "--target takes the name of a source, `=` and a URL".into(),
            hint: Some("for example: --target database=postgres://postgres@new-host:5432/postgres".into()),
        }),
    }
}

/// Asks on a terminal; elsewhere nobody could answer.
fn confirm(output: &Output) -> Result<(), Error> {
    if !io::stdin().is_terminal() {
        return Err(Error::NotConfirmed);
    }
    output.say("Carry out this plan? Type `yes`:");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && answer.trim() == "yes" { Ok(()) } else { Err(Error::NotConfirmed) }
}

fn plan_text(planned: &PlannedRestore) -> String {
    let mut text = format!("plan: restore backup {} of {}\n", planned.backup, report::time(planned.started));
    for note in &planned.notes {
        text.push_str(&format!("note: {}\n", report::printable(note)));
    }
    for (name, plan) in planned.plans() {
        text.push_str(&format!("source `{name}` into {} ({})\n", plan.target, report::bytes(plan.raw)));
        for (n, step) in plan.steps.iter().enumerate() {
            text.push_str(&format!("  {}. {}\n", n + 1, report::printable(step)));
        }
        for note in &plan.notes {
            text.push_str(&format!("  note: {}\n", report::printable(note)));
        }
        for refusal in &plan.refusals {
            text.push_str(&format!("  refused: {}\n", report::printable(&refusal.what)));
        }
    }
    text
}

fn result_text(report: &RestoreReport, output: &Output) -> String {
    let mut text = String::new();
    for (name, restored) in &report.sources {
        let mut rows = vec![["restored", "rows", "bytes", "fingerprint"].map(str::to_owned).to_vec()];
        for item in &restored.items {
            let compared = match item.compared {
                Compared::Same => "same",
                Compared::Inconclusive => "INCONCLUSIVE",
            };
            rows.push(vec![item.name.clone(), item.rows.to_string(), item.bytes.to_string(), compared.to_owned()]);
        }
        text.push_str(&table(&rows, &[1, 2]));
        for note in &restored.notes {
            text.push_str(&format!("note: {}\n", report::printable(note)));
        }
        let same = restored.items.iter().filter(|item| item.compared == Compared::Same).count();
        let verdict = if same == restored.items.len() {
            output.paint(Paint::Good, &format!("{}: the same as captured", report::count(same as u64, restored.unit)))
        } else {
            let other = restored.items.len() - same;
            output.paint(
                Paint::Warn,
                &format!(
                    "{} of {} could not be compared{}",
                    other,
                    report::count(restored.items.len() as u64, restored.unit),
                    if restored.unit == "table" {
                        ": they read differently between the two versions of the server"
                    } else {
                        ""
                    },
                ),
            )
        };
        let took = report::duration(Duration::from_secs_f64(report.seconds));
        text.push_str(&format!("source `{name}` restored from backup {} in {took}: {verdict}\n", report.backup));
    }
    text
}
