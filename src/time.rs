//! Times of messages: how they are shown.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// What stands in place of a time: as wide, and in as many words.
const NO_TIME: &str = "---------- --------";

/// Shows times in the system's time zone.
#[derive(Debug, Clone)]
pub struct LocalTime(TimeZone);

impl LocalTime {
    /// The time zone of the variable `TZ`, or of the system.
    #[expect(clippy::new_without_default, reason = "it reads the environment")]
    pub fn new() -> LocalTime {
        LocalTime(TimeZone::system())
    }

    /// A time in milliseconds since 1970 as `2026-11-24 14:02:11`; dashes, if it is absent or beyond the year 9999.
    pub fn of(&self, millis: Option<i64>) -> String {
        let time = millis.and_then(|it| Timestamp::from_millisecond(it).ok());
        time.map_or(NO_TIME.into(), |time| {
            let local = self.0.to_datetime(time);
            local.strftime("%Y-%m-%d %H:%M:%S").to_string()
        })
    }
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
