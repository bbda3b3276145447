//! What is kept: `[retention]`.

use jiff::tz::TimeZone;

use super::error::shown;
use super::reader::Section;

/// How many backups are kept of each kind; a backup may be kept for several reasons at once. What is kept beyond these, always: the
/// last verified snapshot of each source, and its newest complete one (rule R9).
#[derive(Clone, Debug)]
pub struct RetentionConfig {
    /// The newest ones.
    pub last: u32,
    /// The newest of each of so many days.
    pub daily: u32,
    /// The newest of each of so many weeks, which begin on Monday.
    pub weekly: u32,
    /// The newest of each of so many months.
    pub monthly: u32,
    /// Where days, weeks and months begin.
    pub timezone: TimeZone,
    /// The most of a source's snapshots that may expire in one run, in percent of those there are: 1 to 100 (rule R9).
    pub expire_at_most_percent: u32,
}

pub(super) fn read(root: &Section<'_>) -> Option<RetentionConfig> {
    if !root.has("retention") {
        return None;
    }
    let section = root.section("retention");
    let number = |name| section.integer(name, 0..=100_000_u32).unwrap_or(0);
    let (last, daily, weekly, monthly) = (number("last"), number("daily"), number("weekly"), number("monthly"));
    let given = ["last", "daily", "weekly", "monthly"].iter().any(|name| section.has(name));
    if last + daily + weekly + monthly == 0 && (!given || section.has("last")) {
        let hint =
            "as in: last = 3, daily = 7, weekly = 4, monthly = 12; without the section nothing expires".to_owned();
        section.bad("last", "nothing would be kept", Some(hint));
    }
    let zone = section.text("timezone").unwrap_or("UTC");
    let timezone = TimeZone::get(zone).unwrap_or_else(|_| {
        let hint = "a name of the IANA database, such as \"Europe/Istanbul\" or \"UTC\"".to_owned();
        section.bad("timezone", format!("`{}` is no time zone", shown(zone)), Some(hint));
        TimeZone::UTC
    });
    let expire_at_most_percent = section.integer("expire_at_most_percent", 1..=100).unwrap_or(50);
    Some(RetentionConfig { last, daily, weekly, monthly, timezone, expire_at_most_percent })
}
