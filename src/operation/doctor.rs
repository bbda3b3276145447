//! `doctor`: everything a backup needs, looked at without touching anything.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Error};
use crate::{
    report,
    repository::{Catalog, CatalogEntry},
    source::{Finding, Level},
};

/// A clock that differs by more than this makes times in reports misleading; ages of parts are judged by the store's alone.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Findings on one thing.
#[derive(Debug, Serialize)]
pub struct Section {
    /// What they are on.
    pub subject: String,
    /// The findings.
    pub findings: Vec<Finding>,
}

/// What `doctor` found.
#[derive(Debug, Serialize)]
pub struct DoctorReport {
    /// Is there no problem? Warnings are none.
    pub healthy: bool,
    /// By subject.
    pub sections: Vec<Section>,
}

fn finding(level: Level, text: String) -> Finding {
    Finding { level, text, hint: None }
}

fn problem(error: &Error) -> Finding {
    Finding { level: Level::Problem, text: error.to_string(), hint: error.hint() }
}

/// Looks at configuration, repository and sources.
pub async fn doctor(context: &Context) -> DoctorReport {
    let mut sections = vec![Section {
        subject: "configuration".to_owned(),
        findings: vec![finding(
            Level::Ok,
            format!(
                "{}: {}",
                context.config.origin.display(),
                report::count(context.config.sources.len() as u64, "source")
            ),
        )],
    }];
    let mut findings = Vec::new();
    if let Err(error) = repository(context, &mut findings).await {
        findings.push(problem(&error));
    }
    sections.push(Section { subject: format!("repository {}", context.config.repository.url), findings });
    for config in &context.config.sources {
        let findings = match context.source(config) {
            Ok(source) => source.check().await,
            Err(error) => vec![problem(&error)],
        };
        sections.push(Section { subject: format!("source `{}`", config.name), findings });
    }
    let all = sections.iter().flat_map(|section| &section.findings);
    let healthy = all.into_iter().all(|finding| finding.level != Level::Problem);
    DoctorReport { healthy, sections }
}

async fn repository(context: &Context, findings: &mut Vec<Finding>) -> Result<(), Error> {
    let repository = context.repository().await?;
    let mark = repository.mark();
    findings.push(finding(
        Level::Ok,
        format!("format {}, id {}, created {}", mark.format, mark.repository, report::time(mark.created)),
    ));
    findings.push(finding(Level::Warning, "encryption is off: whoever reads the store reads the data".to_owned()));
    let (theirs, ours) = (repository.store().now().await?, Timestamp::now());
    let apart = theirs.duration_since(ours).unsigned_abs();
    if apart > CLOCK_TOLERANCE {
        let text = format!("the store's clock and this machine's are {} apart", report::duration(apart));
        let hint = Some("set both by NTP; S3 servers refuse requests at 15 minutes".to_owned());
        findings.push(Finding { level: Level::Warning, text, hint });
    }
    let catalog = Catalog::read(&repository).await?;
    match catalog.heads().next() {
        Some(head) => findings.push(finding(
            Level::Ok,
            format!(
                "{}, the newest {} ({})",
                report::count(catalog.heads().count() as u64, "backup"),
                head.backup,
                report::ago(head.started, theirs)
            ),
        )),
        None => findings.push(finding(Level::Warning, "there is no backup yet".to_owned())),
    }
    for entry in &catalog.entries {
        match entry {
            CatalogEntry::Good(_) => {}
            CatalogEntry::Damaged { id, trust } => {
                findings.push(finding(Level::Problem, format!("backup {id} cannot be trusted: {trust}")));
            }
            CatalogEntry::Unfinished { id, manifests, written } => findings.push(finding(
                Level::Warning,
                format!(
                    "backup {id} is unfinished: {} without a head, written {}",
                    report::count(*manifests as u64, "manifest"),
                    report::ago(*written, theirs)
                ),
            )),
        }
    }
    Ok(())
}
