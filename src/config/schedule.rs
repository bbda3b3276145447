//! When backups are made: `[[schedule]]`.

use std::time::Duration;

use jiff::tz::TimeZone;

use super::error::shown;
use super::keys;
use super::reader::Section;
use super::{NamePattern, SourceName};
use crate::repository::Level;

const DAY: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_ZONE: &str = "UTC";

/// A cron pattern of five fields (minute, hour, day of the month, month, day of the week) that was read and means something.
#[derive(Clone, Debug)]
pub struct CronPattern {
    text: String,
    /// Read again wherever it is asked.
    pub(crate) cron: croner::Cron,
}

impl CronPattern {
    /// Reads a pattern of exactly five fields, or one of the nicknames `@daily`, `@hourly`, `@weekly`, `@monthly`, `@yearly`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parser = croner::parser::CronParser::builder()
            .seconds(croner::parser::Seconds::Disallowed)
            .year(croner::parser::Year::Disallowed)
            .build();
        match parser.parse(text) {
            Ok(cron) if !crate::schedule::occurs(&cron) => Err("it means no day of any year".to_owned()),
            Ok(cron) => Ok(Self { text: text.to_owned(), cron }),
            Err(error) => Err(error.to_string()),
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// One schedule.
#[derive(Clone, Debug)]
pub struct ScheduleConfig {
    /// Its name, of the shape of a source's.
    pub name: SourceName,
    /// When, on the clock of `timezone`.
    pub cron: CronPattern,
    /// A zone of the IANA database.
    pub timezone: TimeZone,
    /// Which sources, by name; at least one pattern.
    pub sources: Vec<NamePattern>,
    /// How deep each backup is verified afterwards; none: not at all.
    pub verify: Option<Level>,
    /// Does retention run afterwards?
    pub prune: bool,
    /// Every run begins later by a time that is the same each time, below this.
    pub jitter: Duration,
}

impl ScheduleConfig {
    /// The sources among `names` that this schedule is for, in their order.
    pub fn chooses<'a>(&'a self, names: impl IntoIterator<Item = &'a SourceName>) -> Vec<&'a SourceName> {
        let chosen = |name: &&SourceName| self.sources.iter().any(|pattern| pattern.matches(name.as_str()));
        names.into_iter().filter(chosen).collect()
    }
}

pub(super) fn read(root: &Section<'_>, sources: &[SourceName]) -> Vec<ScheduleConfig> {
    let mut schedules: Vec<ScheduleConfig> = Vec::new();
    for section in root.sections("schedule") {
        section.check_keys();
        let Some(schedule) = read_one(&section, sources) else { continue };
        if schedules.iter().any(|other| other.name == schedule.name) {
            section.bad("name", format!("the name `{}` is taken by an earlier schedule", schedule.name), None);
        }
        schedules.push(schedule);
    }
    schedules
}

fn read_one(section: &Section<'_>, sources: &[SourceName]) -> Option<ScheduleConfig> {
    let name = super::file::read_name(section, "a schedule's name");
    let cron = section.required_text("cron").and_then(|text| match CronPattern::parse(text) {
        Ok(cron) => Some(cron),
        Err(problem) => {
            let hint = "five fields: minute, hour, day of the month, month, day of the week, as in \"0 1 * * *\"";
            section.bad("cron", format!("is no cron pattern: {}", shown(&problem)), Some(hint.to_owned()));
            None
        }
    });
    let zone = section.text("timezone").unwrap_or(DEFAULT_ZONE);
    let timezone = match TimeZone::get(zone) {
        Ok(timezone) => Some(timezone),
        Err(_) => {
            let hint = "a name of the IANA database, such as \"Europe/Istanbul\" or \"UTC\"".to_owned();
            section.bad("timezone", format!("`{}` is no time zone", shown(zone)), Some(hint));
            None
        }
    };
    let patterns = super::file::read_patterns(section, "sources", "all sources");
    // Without any source there is nothing to choose from, which is said where one is needed.
    for pattern in patterns.iter().filter(|pattern| !sources.is_empty() || pattern.is_literal()) {
        if !sources.iter().any(|name| pattern.matches(name.as_str())) {
            section.bad("sources", format!("`{}` is no source", shown(pattern.as_str())), None);
        }
    }
    let verify = match section.text("verify") {
        None => Some(Level::Restore),
        Some("none") => None,
        Some(text) => match text.parse::<Level>() {
            Ok(level) => Some(level),
            Err(problem) => {
                let near = keys::nearest_of(text, &["none", "presence", "content", "restore"]);
                let hint = near.map(|near| format!("did you mean \"{near}\"?"));
                section.bad("verify", format!("{problem}, or `none`"), hint);
                None
            }
        },
    };
    let prune = section.boolean("prune").unwrap_or(true);
    let jitter = section.duration("jitter", Duration::ZERO..=DAY, "0s to 24h").unwrap_or(Duration::ZERO);
    Some(ScheduleConfig { name: name?, cron: cron?, timezone: timezone?, sources: patterns, verify, prune, jitter })
}
