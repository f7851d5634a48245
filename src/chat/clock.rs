//! The times of messages as a chat shows them, and where a new day begins.

use jiff::civil::Date;

use crate::time::{self, LocalTime};

/// The clock on the user's wall.
#[derive(Debug)]
pub(super) struct Clock {
    local: LocalTime,
    now: fn() -> i64,
    /// The day of the message that was shown last, at first today. `None` if days are not shown.
    day: Option<Date>,
}

impl Clock {
    /// The system's clock. With `shows_days`, `new_day` has something to show.
    pub(super) fn new(shows_days: bool) -> Clock {
        Clock::of(LocalTime::new(), time::now, shows_days)
    }

    fn of(local: LocalTime, now: fn() -> i64, shows_days: bool) -> Clock {
        let day = local.date(now()).filter(|_| shows_days);
        Clock { local, now, day }
    }

    /// A clock in UTC that stands still, for tests.
    #[cfg(test)]
    pub(super) fn for_test(now: fn() -> i64) -> Clock {
        Clock::of(LocalTime::utc(), now, true)
    }

    /// The time of a message that was just read, whose record has this `time`: without one, that of its arrival if it
    /// was written just now. A sender's clock may be wrong, but no message arrives before it is sent.
    pub(super) fn time(&self, time: Option<i64>, is_live: bool) -> Option<i64> {
        let now = (self.now)();
        time.map(|it| it.min(now)).or(is_live.then_some(now))
    }

    /// Since when, in a few words.
    pub(super) fn since(&self, time: Option<i64>) -> Option<String> {
        self.local.since(time?, (self.now)())
    }

    /// What to show before a message of this time: its day, if that is not the day of the message before it.
    pub(super) fn new_day(&mut self, time: Option<i64>) -> Option<String> {
        let (before, day) = (self.day?, self.local.date(time?)?);
        self.day = Some(day);
        (day != before).then(|| time::day(day))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;
    const DAY: i64 = 24 * 60 * MINUTE;

    /// Noon of 2 January 1970.
    fn noon() -> i64 {
        DAY + DAY / 2
    }

    #[test]
    fn each_day_but_the_present_one_is_told_once() {
        let mut clock = Clock::for_test(noon);
        for (time, told) in [
            (Some(noon()), None),
            (Some(MINUTE), Some("Thursday 1 January 1970")),
            (None, None),
            (Some(DAY - 1), None),
            (Some(DAY), Some("Friday 2 January 1970")),
            (Some(i64::MAX), None),
            (Some(noon()), None),
            (Some(2 * DAY), Some("Saturday 3 January 1970")),
        ] {
            assert_eq!(clock.new_day(time).as_deref(), told, "{time:?}");
        }
        let mut silent = Clock::of(LocalTime::utc(), noon, false);
        assert_eq!(silent.new_day(Some(0)), None);
    }

    #[test]
    fn a_message_has_its_records_time_or_that_of_its_arrival() {
        let clock = Clock::for_test(noon);
        for (time, is_live, shown) in [
            (Some(5), true, Some(5)),
            (Some(5), false, Some(5)),
            (Some(noon() + 1), true, Some(noon())),
            (Some(noon() + 1), false, Some(noon())),
            (None, true, Some(noon())),
            (None, false, None),
        ] {
            assert_eq!(clock.time(time, is_live), shown, "{time:?} {is_live}");
        }
    }
}
