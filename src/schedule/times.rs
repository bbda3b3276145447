//! When the runs of a pattern are, on the clock of a zone.
//!
//! croner says which days, hours and minutes a pattern means; which instants those are is decided here, for croner leaves out
//! `30 2,14 * * *` where the clock leaves out 02:30, and does it twice where the clock shows it twice. Here a time that the clock leaves
//! out is moved by as much as the clock is (02:30 becomes 03:30, as in RFC 5545), and meets the run that is there already; of one that
//! it shows twice the first is taken, except where every hour or every n-th one is meant, which counts real time.

use std::time::Duration;

use croner::{Cron, Weekday};
use jiff::{
    Timestamp, ToSpan,
    civil::{Date, Time},
    tz::{AmbiguousOffset, TimeZone},
};

use crate::config::ScheduleConfig;

/// How far runs are looked for, in days. The rarest pattern is the 29th of February, which is eight years apart around 2100.
const MOST_DAYS: usize = 9 * 366;

/// The runs of one pattern.
pub(super) struct Times<'a> {
    cron: &'a Cron,
    zone: &'a TimeZone,
    /// How much later each of them is than the pattern says.
    delay: Duration,
    /// Of a day, in order.
    times: Vec<Time>,
    /// Does it name hours, rather than steps?
    fixed: bool,
}

impl<'a> Times<'a> {
    pub(super) fn of(schedule: &'a ScheduleConfig, delay: Duration) -> Self {
        let (cron, zone) = (&schedule.cron.cron, &schedule.timezone);
        let minutes = cron.pattern.minutes.values();
        let time = |hour: u16, minute: u16| Time::new(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, 0, 0).ok();
        let of_hour = |hour: u16| minutes.iter().filter_map(move |minute| time(hour, *minute));
        let times = cron.pattern.hours.values().into_iter().flat_map(of_hour).collect();
        Self { cron, zone, delay, times, fixed: !cron.pattern.hours.from_wildcard }
    }

    /// The last run that is not after `now`.
    pub(super) fn last(&self, now: Timestamp) -> Option<Timestamp> {
        // A day further than the clock shows: where a zone's clock is set, days may overlap.
        let newest = self.day(now)?.tomorrow().ok()?;
        let mut days = std::iter::successors(Some(newest), |day| day.yesterday().ok()).take(MOST_DAYS);
        let latest = |day| self.on(day).into_iter().rev().find(|run| *run <= now);
        let found = days.find_map(latest)?;
        Some(days.next().and_then(latest).map_or(found, |of_the_day_before| found.max(of_the_day_before)))
    }

    /// The runs after `at`, in order; none beyond nine years.
    pub(super) fn after(&self, at: Timestamp) -> impl Iterator<Item = Timestamp> {
        let first = self.day(at).and_then(|day| day.yesterday().ok());
        let days = std::iter::successors(first, |day| day.tomorrow().ok()).take(MOST_DAYS);
        let mut last = at;
        days.flat_map(|day| self.on(day)).filter(move |run| {
            let is_new = *run > last;
            last = last.max(*run);
            is_new
        })
    }

    /// The day whose runs are about then.
    fn day(&self, at: Timestamp) -> Option<Date> {
        Some(self.zone.to_datetime(at.checked_sub(self.delay).ok()?).date())
    }

    /// The runs of a day, in order.
    fn on(&self, day: Date) -> Vec<Timestamp> {
        if !means(self.cron, day) {
            return Vec::new();
        }
        let mut runs = Vec::with_capacity(self.times.len());
        for time in &self.times {
            let at = self.zone.to_ambiguous_timestamp(day.to_datetime(*time));
            runs.extend(at.compatible().ok());
            if !self.fixed && matches!(at.offset(), AmbiguousOffset::Fold { .. }) {
                runs.extend(at.later().ok());
            }
        }
        runs.sort_unstable();
        runs.dedup();
        runs.into_iter().filter_map(|run| run.checked_add(self.delay).ok()).collect()
    }
}

fn means(cron: &Cron, day: Date) -> bool {
    let pattern = &cron.pattern;
    let number = |n: i8| u32::try_from(n).unwrap_or_default();
    let (month, of_month) = (number(day.month()), number(day.day()));
    let weekday = Weekday::from_days_from_sunday(number(day.weekday().to_sunday_zero_offset()));
    // Only what is no day is an error.
    pattern.month_match(month).unwrap_or(false)
        && pattern.day_match(i32::from(day.year()), month, of_month, weekday).unwrap_or(false)
}

/// Is there any day that the pattern means?
pub(crate) fn occurs(cron: &Cron) -> bool {
    let mut days = std::iter::successors(Some(Date::constant(2024, 1, 1)), |day| day.tomorrow().ok()).take(MOST_DAYS);
    days.any(|day| means(cron, day))
}

/// The longest time between two runs that follow each other, of those of all `schedules` together, over the next `days`; over more, where
/// there are fewer than two runs in them.
pub(super) fn longest_gap(schedules: &[Times<'_>], now: Timestamp, days: i64) -> Option<Duration> {
    let until = now.checked_add(days.checked_mul(24)?.hours()).ok()?;
    let mut runs: Vec<Timestamp> = Vec::new();
    for times in schedules {
        // From the last one on: the time that is running now counts too.
        let last = times.last(now);
        runs.extend(last);
        let mut following = times.after(last.unwrap_or(now));
        let mut seen = usize::from(last.is_some());
        runs.extend(std::iter::from_fn(|| {
            let run = following.next().filter(|run| *run <= until || seen < 2);
            seen += 1;
            run
        }));
    }
    runs.sort_unstable();
    let gaps = runs.windows(2).map(|pair| pair[1].duration_since(pair[0]));
    gaps.max().and_then(|gap| gap.try_into().ok())
}
