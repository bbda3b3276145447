//! The one clock that the instants of a run are told on.

use std::time::Instant;

use jiff::Timestamp;

/// The machine's clock as it was when the run began, and the time since as it passes: when somebody sets the clock meanwhile, the
/// differences between instants stay what they are.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: Timestamp,
    began: Instant,
}

impl Clock {
    /// Reads the machine's clock.
    pub fn start() -> Self {
        Self { wall: Timestamp::now(), began: Instant::now() }
    }

    /// When `at` was.
    pub fn time(&self, at: Instant) -> Timestamp {
        let told = match at.checked_duration_since(self.began) {
            Some(after) => self.wall.checked_add(after),
            None => self.wall.checked_sub(self.began.duration_since(at)),
        };
        // Only beyond the year 9999.
        told.unwrap_or(self.wall)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn differences_are_kept_in_both_directions() {
        let clock = Clock { wall: "2026-11-23T01:00:00Z".parse().unwrap(), began: Instant::now() };
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(clock.time(clock.began), clock.wall);
        assert_eq!(clock.time(clock.began + Duration::from_millis(1500)), time("2026-11-23T01:00:01.5Z"));
        if let Some(before) = clock.began.checked_sub(Duration::from_millis(1)) {
            assert_eq!(clock.time(before), time("2026-11-23T00:59:59.999Z"));
        }
    }
}
