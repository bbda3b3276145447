//! When runs are, against tables and against croner's own search.

use std::cmp::Ordering;

use croner::{CivilDate, CivilDateTime, CivilTime, CronDateTime, Resolution, Weekday, errors::CronError};
use jiff::{SignedDuration, Timestamp, ToSpan, civil, tz::TimeZone};
use proptest::prelude::*;

use super::{super::times::Times, config_of, time};
use crate::config::ScheduleConfig;

fn schedule(cron: &str, zone: &str) -> ScheduleConfig {
    config_of(cron, &format!("timezone = \"{zone}\"")).schedules.remove(0)
}

fn times(schedule: &ScheduleConfig) -> Times<'_> {
    Times::of(schedule, std::time::Duration::ZERO)
}

/// The runs from `from` on, before `to`.
fn runs(schedule: &ScheduleConfig, from: Timestamp, to: Timestamp) -> Vec<Timestamp> {
    times(schedule).after(from - 1.second()).take_while(|run| *run < to).collect()
}

#[test]
fn every_day_of_a_changing_clock_has_its_runs() {
    for (cron, zone, from, to, want) in [
        // There is no 02:30 on 2027-03-28: it is 03:30 then, 01:30 UTC.
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2027-03-27T00:00:00Z",
            "2027-03-30T00:00:00Z",
            &["2027-03-27T01:30:00Z", "2027-03-28T01:30:00Z", "2027-03-29T00:30:00Z"][..],
        ),
        // 02:30 is twice on 2027-10-31.
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2027-10-30T00:00:00Z",
            "2027-11-02T00:00:00Z",
            &["2027-10-30T00:30:00Z", "2027-10-31T00:30:00Z", "2027-11-01T01:30:00Z"],
        ),
        // The same for one of several times.
        (
            "30 2,14 * * *",
            "Europe/Berlin",
            "2027-03-28T00:00:00Z",
            "2027-03-29T00:00:00Z",
            &["2027-03-28T01:30:00Z", "2027-03-28T12:30:00Z"],
        ),
        (
            "30 2,14 * * *",
            "Europe/Berlin",
            "2027-10-31T00:00:00Z",
            "2027-11-01T00:00:00Z",
            &["2027-10-31T00:30:00Z", "2027-10-31T13:30:00Z"],
        ),
        // Which meet what is there.
        (
            "0,30 2-3 * * *",
            "Europe/Berlin",
            "2027-03-28T00:00:00Z",
            "2027-03-29T00:00:00Z",
            &["2027-03-28T01:00:00Z", "2027-03-28T01:30:00Z"],
        ),
        (
            "*/30 2 * * *",
            "Europe/Berlin",
            "2027-10-31T00:00:00Z",
            "2027-11-01T00:00:00Z",
            &["2027-10-31T00:00:00Z", "2027-10-31T00:30:00Z"],
        ),
        // Every hour is every hour.
        (
            "0 * * * *",
            "Europe/Berlin",
            "2027-03-28T00:00:00Z",
            "2027-03-28T03:00:00Z",
            &["2027-03-28T00:00:00Z", "2027-03-28T01:00:00Z", "2027-03-28T02:00:00Z"],
        ),
        (
            "0 * * * *",
            "Europe/Berlin",
            "2027-10-31T00:00:00Z",
            "2027-10-31T03:00:00Z",
            &["2027-10-31T00:00:00Z", "2027-10-31T01:00:00Z", "2027-10-31T02:00:00Z"],
        ),
        // A day that begins at 01:00.
        ("0 0 * * *", "America/Santiago", "2026-09-06T00:00:00Z", "2026-09-07T00:00:00Z", &["2026-09-06T04:00:00Z"]),
        // A day that never was: the 30th of December 2011 on Samoa.
        (
            "0 1 * * *",
            "Pacific/Apia",
            "2011-12-29T00:00:00Z",
            "2012-01-01T00:00:00Z",
            &["2011-12-29T11:00:00Z", "2011-12-30T11:00:00Z", "2011-12-31T11:00:00Z"],
        ),
        // Half hours, and a clock that is set by one.
        ("0 2 * * *", "Australia/Lord_Howe", "2027-10-02T12:00:00Z", "2027-10-03T12:00:00Z", &["2027-10-02T15:30:00Z"]),
        // Leap days.
        (
            "0 3 29 2 *",
            "UTC",
            "2023-01-01T00:00:00Z",
            "2031-01-01T00:00:00Z",
            &["2024-02-29T03:00:00Z", "2028-02-29T03:00:00Z"],
        ),
        (
            "0 3 28-29 2 *",
            "UTC",
            "2028-01-01T00:00:00Z",
            "2029-01-01T00:00:00Z",
            &["2028-02-28T03:00:00Z", "2028-02-29T03:00:00Z"],
        ),
        (
            "0 3 L 2 *",
            "UTC",
            "2027-01-01T00:00:00Z",
            "2029-01-01T00:00:00Z",
            &["2027-02-28T03:00:00Z", "2028-02-29T03:00:00Z"],
        ),
        (
            "0 3 * * 5#2",
            "UTC",
            "2027-06-01T00:00:00Z",
            "2027-08-01T00:00:00Z",
            &["2027-06-11T03:00:00Z", "2027-07-09T03:00:00Z"],
        ),
        (
            "@monthly",
            "UTC",
            "2027-06-10T00:00:00Z",
            "2027-08-02T00:00:00Z",
            &["2027-07-01T00:00:00Z", "2027-08-01T00:00:00Z"],
        ),
    ] {
        let want: Vec<Timestamp> = want.iter().copied().map(time).collect();
        let schedule = schedule(cron, zone);
        assert_eq!(runs(&schedule, time(from), time(to)), want, "{cron} {zone} {from}");
        for pair in want.windows(2) {
            let times = times(&schedule);
            assert_eq!(times.last(pair[1]), Some(pair[1]), "{cron}");
            assert_eq!(times.last(pair[1] - 1.second()), Some(pair[0]), "{cron}");
        }
    }
}

#[test]
fn a_year_of_nights_has_one_run_a_day() {
    for (zone, hour) in
        [("Europe/Berlin", "2"), ("America/New_York", "2"), ("America/Santiago", "0"), ("Africa/Cairo", "0")]
    {
        let schedule = schedule(&format!("30 {hour} * * *"), zone);
        let zone = TimeZone::get(zone).unwrap();
        let from = zone.to_timestamp(civil::date(2027, 7, 1).at(12, 0, 0, 0)).unwrap();
        let until = zone.to_timestamp(civil::date(2028, 7, 1).at(12, 0, 0, 0)).unwrap();
        let days: Vec<civil::Date> =
            runs(&schedule, from, until).into_iter().map(|run| zone.to_datetime(run).date()).collect();
        let want: Vec<civil::Date> = civil::date(2027, 7, 2).series(1.day()).take(366).collect();
        assert_eq!(days, want);
    }
}

/// A clock that is never set, for croner's own search.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Plain(civil::DateTime);

impl CronDateTime for Plain {
    fn to_civil(&self) -> CivilDateTime {
        let date = CivilDate::from_ymd(self.0.year().into(), self.0.month() as u32, self.0.day() as u32).unwrap();
        let time = CivilTime::from_hms_opt(self.0.hour() as u32, self.0.minute() as u32, self.0.second() as u32);
        CivilDateTime::new(date, time.unwrap())
    }
    fn civil_weekday(&self) -> Weekday {
        Weekday::from_days_from_sunday(self.0.weekday().to_sunday_zero_offset() as u32)
    }
    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let (year, month, day) = (civil.year() as i16, civil.month() as i8, civil.day() as i8);
        let (hour, minute, second) = (civil.hour() as i8, civil.minute() as i8, civil.second() as i8);
        Ok(Resolution::Single(Self(civil::datetime(year, month, day, hour, minute, second, 0))))
    }
    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(SignedDuration::from_secs(seconds)).ok().map(Self)
    }
    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

/// A field of a pattern: everything, steps, one, two, or a range of `least..=most`.
fn field(least: u8, most: u8) -> impl Strategy<Value = String> {
    let one = least..=most;
    prop_oneof![
        2 => Just("*".to_owned()),
        1 => (2..10_u8).prop_map(|step| format!("*/{step}")),
        3 => one.clone().prop_map(|one| one.to_string()),
        1 => (one.clone(), one.clone()).prop_map(|(one, other)| format!("{one},{other}")),
        1 => (one.clone(), one).prop_map(|(one, other)| format!("{}-{}", one.min(other), one.max(other))),
    ]
}

fn pattern() -> impl Strategy<Value = String> {
    (field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6))
        .prop_map(|(minute, hour, day, month, weekday)| format!("{minute} {hour} {day} {month} {weekday}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Where no clock is set, the runs are croner's.
    #[test]
    fn in_utc_the_runs_are_croners(cron in pattern(), minute in 0..4 * 366 * 1440_i64) {
        let schedule = schedule(&cron, "UTC");
        let from = time("2026-01-01T00:00:00Z") + minute.minutes();
        let mut plain = Plain(TimeZone::UTC.to_datetime(from));
        for run in times(&schedule).after(from).take(5) {
            plain = schedule.cron.cron.find_next_occurrence(&plain, false).unwrap();
            prop_assert_eq!(TimeZone::UTC.to_datetime(run), plain.0);
        }
        let last = schedule.cron.cron.find_previous_occurrence(&Plain(TimeZone::UTC.to_datetime(from)), true).unwrap();
        prop_assert_eq!(times(&schedule).last(from).map(|run| TimeZone::UTC.to_datetime(run)), Some(last.0));
    }

    /// Where clocks are set, runs are in order, each is the last one at its own instant, and no day is without one.
    #[test]
    fn with_a_changing_clock_runs_are_in_order(
        cron in pattern(),
        zone in prop_oneof![Just("Europe/Berlin"), Just("America/Santiago"), Just("Australia/Lord_Howe"), Just("Africa/Casablanca")],
        minute in 0..2 * 366 * 1440_i64,
    ) {
        let schedule = schedule(&cron, zone);
        let from = time("2026-01-01T00:00:00Z") + minute.minutes();
        let mut before = times(&schedule).last(from);
        for run in times(&schedule).after(from).take(40) {
            prop_assert!(run > from);
            prop_assert_eq!(times(&schedule).last(run - 1.second()), before);
            prop_assert_eq!(times(&schedule).last(run), Some(run));
            before = Some(run);
        }
    }
}
