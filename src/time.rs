//! Times of messages: how they are typed, and how they are shown.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::error::{Error, Result};

/// Parses a time in the past, and returns it in milliseconds since 1970: a local time (`2026-11-24`,
/// `2026-11-24T14:02`), one with a zone by RFC 3339, or how long ago (`90s`, `10m`, `2h`, `3d`).
///
/// A local time that occurs twice is the earlier one. A time before 1970 is 0.
pub fn parse(text: &str) -> Result<i64> {
    parse_at(text, Timestamp::now(), &TimeZone::system())
}

fn parse_at(text: &str, now: Timestamp, zone: &TimeZone) -> Result<i64> {
    let now = now.as_millisecond();
    let time = ago(text)
        .map(|millis| now.saturating_sub(millis))
        .or_else(|| Some(text.parse::<Timestamp>().ok()?.as_millisecond()))
        .or_else(|| local(text, zone))
        .ok_or_else(|| {
            Error::usage(
                "expected latest, earliest, a time (2026-11-24, 2026-11-24T14:02), or how long ago \
                 (90s, 10m, 2h, 3d)",
            )
        })?;
    match time > now {
        true => Err(Error::usage("that time is in the future")),
        // Kafka means other things by times below 0.
        false => Ok(time.max(0)),
    }
}

/// How many milliseconds `90s`, `10m`, `2h` or `3d` are.
fn ago(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let number: u32 = number.parse().ok()?;
    Some(i64::from(number) * seconds * 1000)
}

/// A local time of a zone. jiff would accept an offset or a zone after it, and ignore that.
fn local(text: &str, zone: &TimeZone) -> Option<i64> {
    let is_clock = |c: char| c.is_ascii_digit() || "-T: .".contains(c);
    let clock: DateTime = text.parse().ok().filter(|_| text.chars().all(is_clock))?;
    let time = clock.to_zoned_datetime(zone.clone()).ok()?;
    Some(time.timestamp().as_millisecond())
}

/// The present time, in milliseconds since 1970.
pub fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// What stands in place of a time: as wide, and in as many words.
const NO_TIME: &str = "---------- --------";

/// The same for the time of a day.
const NO_CLOCK: &str = "--:--";

/// Shows times in the system's time zone.
#[derive(Debug, Clone)]
pub struct LocalTime(TimeZone);

impl LocalTime {
    /// UTC, for tests.
    #[cfg(test)]
    pub(crate) fn utc() -> LocalTime {
        LocalTime(TimeZone::UTC)
    }

    /// The time zone of the variable `TZ`, or of the system.
    #[expect(clippy::new_without_default, reason = "it reads the environment")]
    pub fn new() -> LocalTime {
        LocalTime(TimeZone::system())
    }

    /// A time in milliseconds since 1970 as `2026-11-24 14:02:11`; dashes, if it is absent or beyond the year 9999.
    pub fn of(&self, millis: Option<i64>) -> String {
        let time = millis.and_then(|it| self.local(it));
        time.map_or(NO_TIME.into(), |it| {
            it.strftime("%Y-%m-%d %H:%M:%S").to_string()
        })
    }

    /// The time of the day, as `14:02`; dashes, if it is absent or beyond the year 9999.
    pub fn clock(&self, millis: Option<i64>) -> String {
        let time = millis.and_then(|it| self.local(it));
        time.map_or(NO_CLOCK.into(), |it| it.strftime("%H:%M").to_string())
    }

    /// A time that is past at `now`, in as few words as it takes: `14:02`, `yesterday 14:02` or `2026-11-24 14:02`;
    /// none beyond the year 9999.
    pub fn since(&self, millis: i64, now: i64) -> Option<String> {
        let time = self.local(millis)?;
        let today = self.date(now)?;
        let format = match time.date() {
            date if date == today => "%H:%M",
            date if date.tomorrow().ok() == Some(today) => "yesterday %H:%M",
            _ => "%Y-%m-%d %H:%M",
        };
        Some(time.strftime(format).to_string())
    }

    /// The day of a time; none beyond the year 9999.
    pub fn date(&self, millis: i64) -> Option<Date> {
        self.local(millis).map(DateTime::date)
    }

    fn local(&self, millis: i64) -> Option<DateTime> {
        let time = Timestamp::from_millisecond(millis).ok()?;
        Some(self.0.to_datetime(time))
    }
}

/// A day as `Saturday 28 November 2026`.
pub fn day(date: Date) -> String {
    date.strftime("%A %-d %B %Y").to_string()
}

/// A time in milliseconds since 1970 by RFC 3339, in UTC; none beyond the year 9999.
pub fn rfc_3339(millis: i64) -> Option<String> {
    let time = Timestamp::from_millisecond(millis).ok()?;
    Some(format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central Europe: an hour after UTC, two in summer.
    fn europe() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn parsed(text: &str) -> Result<i64> {
        parse_at(text, "2026-11-24T14:02:11.007Z".parse().unwrap(), &europe())
    }

    #[test]
    fn a_time_is_typed_in_many_ways() {
        for (text, utc) in [
            ("2026-11-24", "2026-11-23T23:00:00.000Z"),
            ("2026-07-01", "2026-06-30T22:00:00.000Z"),
            ("2026-11-24T14:02", "2026-11-24T13:02:00.000Z"),
            ("2026-11-24 14:02", "2026-11-24T13:02:00.000Z"),
            ("2026-11-24T14:02:03.5", "2026-11-24T13:02:03.500Z"),
            ("2026-11-24T14:02:11.007Z", "2026-11-24T14:02:11.007Z"),
            ("2026-11-24T09:02:11+07:00", "2026-11-24T02:02:11.000Z"),
            ("2026-11-24T09:02-05:00", "2026-11-24T14:02:00.000Z"),
            // Twice, and never, on the clock.
            ("2026-10-25T02:30", "2026-10-25T00:30:00.000Z"),
            ("2026-10-25T02:30+01:00", "2026-10-25T01:30:00.000Z"),
            ("2026-03-29T02:30", "2026-03-29T01:30:00.000Z"),
            ("90s", "2026-11-24T14:00:41.007Z"),
            ("0s", "2026-11-24T14:02:11.007Z"),
            ("10m", "2026-11-24T13:52:11.007Z"),
            ("2h", "2026-11-24T12:02:11.007Z"),
            ("3d", "2026-11-21T14:02:11.007Z"),
            ("4000000000d", "1970-01-01T00:00:00.000Z"),
            ("1815-12-10", "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(parsed(text).map(rfc_3339), Ok(Some(utc.into())), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_or_has_not_been_is_an_error() {
        for text in [
            "",
            "s",
            "now",
            "10",
            "10x",
            "-10m",
            "1.5h",
            "10 m",
            "10m ",
            "5000000000s",
            "ấ",
            "2026-13-01",
            "2026-02-30",
            "2026-11-24T25:00",
            "14:02",
            "11/24/2026",
            "2026-11-24T14:02+99:00",
            "2026-11-24T14:02[Europe/Berlin]",
            "2026-11-24+01:00",
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.contains("or how long ago"), "{text}: {error}");
        }
        for text in [
            "2026-11-25",
            "2026-11-24T15:03",
            "2026-11-24T14:02:11.008Z",
            "9999-01-01",
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert_eq!(error, "that time is in the future", "{text}");
        }
    }

    #[test]
    fn a_time_is_shown_as_the_clock_on_the_wall_showed_it() {
        let local = LocalTime(europe());
        for (millis, shown) in [
            (Some(0), "1970-01-01 01:00:00"),
            // The hour that summer time skips, and the one that it repeats.
            (Some(1_774_745_999_999), "2026-03-29 01:59:59"),
            (Some(1_774_746_000_000), "2026-03-29 03:00:00"),
            (Some(1_792_888_200_000), "2026-10-25 02:30:00"),
            (Some(1_792_891_800_000), "2026-10-25 02:30:00"),
            (None, NO_TIME),
            (Some(i64::MAX), NO_TIME),
            (Some(i64::MIN), NO_TIME),
        ] {
            assert_eq!(local.of(millis), shown, "{millis:?}");
        }
    }

    #[test]
    fn a_recent_time_is_shown_in_few_words() {
        let local = LocalTime(europe());
        let millis = |time: &str| time.parse::<Timestamp>().unwrap().as_millisecond();
        for (time, now, shown) in [
            ("2026-11-24T13:02:59Z", "2026-11-24T14:00:00Z", "14:02"),
            ("2026-11-24T00:00:00Z", "2026-11-24T22:59:59Z", "01:00"),
            // Past midnight there, not in UTC.
            (
                "2026-11-24T22:59:59Z",
                "2026-11-24T23:00:00Z",
                "yesterday 23:59",
            ),
            (
                "2026-11-22T22:59:59Z",
                "2026-11-24T22:59:59Z",
                "2026-11-22 23:59",
            ),
            (
                "2025-11-24T13:02:00Z",
                "2026-11-24T14:00:00Z",
                "2025-11-24 14:02",
            ),
            // A clock that was set back.
            (
                "2026-11-25T13:02:00Z",
                "2026-11-24T14:00:00Z",
                "2026-11-25 14:02",
            ),
        ] {
            let since = local.since(millis(time), millis(now));
            assert_eq!(since.as_deref(), Some(shown), "{time} at {now}");
        }
        assert_eq!(local.since(i64::MAX, 0), None);
        assert_eq!(local.clock(Some(0)), "01:00");
        for none in [None, Some(i64::MAX)] {
            assert_eq!(local.clock(none), NO_CLOCK);
        }
        assert_eq!(
            local.date(0).map(day).as_deref(),
            Some("Thursday 1 January 1970")
        );
    }

    #[test]
    fn rfc_3339_has_the_milliseconds_and_is_in_utc() {
        for (millis, shown) in [
            (0, Some("1970-01-01T00:00:00.000Z")),
            (1_792_888_200_007, Some("2026-10-25T00:30:00.007Z")),
            (-2, Some("1969-12-31T23:59:59.998Z")),
            (i64::MAX, None),
        ] {
            assert_eq!(rfc_3339(millis).as_deref(), shown);
        }
    }
}
