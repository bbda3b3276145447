//! The page for people: one screen of plain text.

use std::fmt::Write;

use super::{
    metrics::SourceFacts,
    state::{Known, Observed},
};
use crate::{
    pipeline::Progress,
    report,
    repository::tool,
    schedule::{Scheduled, State},
};

pub(super) fn page(observed: &Observed) -> String {
    let mut page = format!("{}\nrepository: {}\n", tool(), observed.url);
    let mut line = |text: String| {
        let _ = writeln!(page, "{}", report::printable(&text));
    };
    if let Some(problem) = &observed.problem {
        line(format!("the repository cannot be read: {problem}"));
    }
    if let Some(doing) = &observed.doing {
        let since = report::duration(doing.since.elapsed());
        line(format!("now, for {since}: {} ({})", doing.what, progress(&doing.progress)));
    }
    if observed.undelivered > 0 {
        let changes = report::count(observed.undelivered as u64, "change");
        line(format!("alerts: {changes} could not be told yet"));
    }
    if let Some(bytes) = observed.bytes {
        line(format!("all objects: {}", report::bytes(bytes)));
    }
    let Some(known) = &observed.known else {
        line("nothing is known yet".to_owned());
        return page;
    };
    line(format!("as read at {}", report::time(known.now)));
    known.plan.iter().flat_map(|plan| &plan.schedules).for_each(|one| line(scheduled(one, known)));
    known.facts.iter().for_each(|facts| line(source(facts, known)));
    page
}

fn progress(progress: &Progress) -> String {
    let raw = progress.raw.load(std::sync::atomic::Ordering::Relaxed);
    match progress.phase() {
        phase if phase.is_empty() => report::bytes(raw),
        phase => format!("{phase}, {}", report::bytes(raw)),
    }
}

fn scheduled(schedule: &Scheduled, known: &Known) -> String {
    let ago = |at| format!("{} ({})", report::time(at), report::ago(at, known.now));
    let state = match schedule.state {
        State::Done => "done".to_owned(),
        State::Due => "due".to_owned(),
        State::Left(until) => format!("left to another process until {}", ago(until)),
        State::Retry(at) => format!("failed, tried again at {}", ago(at)),
        State::GivenUp => "failed, and given up".to_owned(),
        State::Never => "none in nine years".to_owned(),
    };
    let last = schedule.last.map(|at| format!("{}: ", ago(at))).unwrap_or_default();
    let next = schedule.next.map_or_else(|| "never".to_owned(), ago);
    format!("schedule `{}`: last run {last}{state}; next run {next}", schedule.name)
}

fn source(facts: &SourceFacts, known: &Known) -> String {
    let ago = |at: Option<_>| at.map_or_else(|| "never".to_owned(), |at| report::ago(at, known.now));
    format!(
        "source `{}`: last success {}, last verified {}, last attempt {}; {}",
        facts.source,
        ago(facts.last_success),
        ago(facts.last_verified),
        ago(facts.last_attempt),
        facts.verdict
    )
}
