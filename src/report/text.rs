//! Words for numbers.

use std::time::Duration;

use jiff::Timestamp;

/// `1 table`, `3 tables`, `12,345 rows`.
pub fn count(n: u64, what: &str) -> String {
    let plural = match what {
        "entry" => "entries",
        "try" => "tries",
        _ if n == 1 => what,
        _ => return format!("{} {what}s", thousands(n)),
    };
    format!("{} {}", thousands(n), if n == 1 { what } else { plural })
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `640 B`, `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64;
    let mut unit = "";
    for name in UNITS {
        value /= 1024.0;
        unit = name;
        if value < 1023.95 {
            break;
        }
    }
    format!("{value:.1} {unit}")
}

/// `0.4 s`, `12 s`, `3 min 20 s`, `5 h 2 min`, `3 d 4 h`.
pub fn duration(d: Duration) -> String {
    let s = d.as_secs();
    let two = |a: u64, unit_a: &str, b: u64, unit_b: &str| match b {
        0 => format!("{a} {unit_a}"),
        _ => format!("{a} {unit_a} {b} {unit_b}"),
    };
    match s {
        0..10 => format!("{:.1} s", d.as_secs_f64()),
        10..60 => format!("{s} s"),
        60..3600 => two(s / 60, "min", s % 60, "s"),
        3600..86400 => two(s / 3600, "h", s % 3600 / 60, "min"),
        _ => two(s / 86400, "d", s % 86400 / 3600, "h"),
    }
}

/// A time in seconds with the precision that is of use: `0 ms`, `0.4 ms`, `12 ms`, `1.25 s`, and as [`duration`] from a minute on.
pub fn seconds(seconds: f64) -> String {
    if seconds.is_nan() || seconds <= 0.0 {
        return "0 ms".to_owned();
    }
    match seconds {
        ..0.00095 => format!("{:.1} ms", (seconds * 1e3).max(0.1)),
        ..0.9995 => format!("{:.0} ms", seconds * 1e3),
        ..59.995 => format!("{seconds:.2} s"),
        _ => duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
    }
}

/// RFC 3339 to the millisecond, UTC.
pub fn instant(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// RFC 3339 to the second, UTC.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `3 h ago`, in one unit; `in 5 min` for what the other clock has not reached.
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs();
    let (n, unit) = match seconds.unsigned_abs() {
        s @ 0..60 => (s, "s"),
        s @ 60..3600 => (s / 60, "min"),
        s @ 3600..172_800 => (s / 3600, "h"),
        s => (s / 86400, "d"),
    };
    if seconds < 0 { format!("in {n} {unit}") } else { format!("{n} {unit} ago") }
}

/// `a, b, c and 4 more`.
pub fn list<T: AsRef<str>>(items: &[T], most: usize) -> String {
    let shown: Vec<&str> = items.iter().take(most).map(AsRef::as_ref).collect();
    match items.len().saturating_sub(most) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Text that came from data, safe for a terminal: control characters are written as escapes.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let special = c.is_control() && c != '\n' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            let escaped: Vec<char> = if special { c.escape_default().collect() } else { vec![c] };
            escaped
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(1, "table"), "1 table");
        assert_eq!(count(0, "table"), "0 tables");
        assert_eq!(count(1234567, "row"), "1,234,567 rows");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536 * 1024), "1.5 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(duration(Duration::from_millis(420)), "0.4 s");
        assert_eq!(duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(duration(Duration::from_secs(7200)), "2 h");
        for (value, text) in [
            (0.0, "0 ms"),
            (0.000_01, "0.1 ms"),
            (0.000_44, "0.4 ms"),
            (0.000_96, "1 ms"),
            (0.012, "12 ms"),
            (0.9996, "1.00 s"),
            (1.254, "1.25 s"),
            (59.996, "59 s"),
            (200.0, "3 min 20 s"),
            (f64::NAN, "0 ms"),
        ] {
            assert_eq!(seconds(value), text);
        }
        assert_eq!(instant("2026-11-23T01:00:00.0125Z".parse().unwrap()), "2026-11-23T01:00:00.012Z");
        let now: Timestamp = "2026-11-23T04:00:00Z".parse().unwrap();
        assert_eq!(ago("2026-11-23T01:00:00Z".parse().unwrap(), now), "3 h ago");
        assert_eq!(ago("2026-11-23T04:05:00Z".parse().unwrap(), now), "in 5 min");
        assert_eq!(list(&["a", "b", "c"], 2), "a, b and 1 more");
        assert_eq!(printable("a\x1b[31mb\n"), "a\\u{1b}[31mb\n");
    }
}
