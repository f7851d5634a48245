//! What both clients say to the user, so that it is the same.

use std::fmt::{Display, Write as _};
use std::ops::Range;
use std::time::Duration;

use crate::error::Error;

/// A hint for what this build can't do.
pub(super) const BUILD_WITH_LIBRDKAFKA: &str =
    "The feature librdkafka is part of every build without --no-default-features.";

/// A hint for a broker whose clients are sent to an address that does not work.
pub(super) const ADVERTISED_LISTENERS: &str =
    "The broker's advertised.listeners must name an address that works from here.";

/// Why a group's offset can't be committed from outside while the group has members.
pub(super) const GROUP_IN_USE: &str =
    "another program consumes with that group, and only its members can commit; end that program";

/// Another log than before is served where a small broker was.
pub(super) fn other_log(server: &str) -> Error {
    Error::failed(
        format!("cannot continue at {server}"),
        "another log is served there now",
    )
    .hint("To use that one, start this program again.")
}

/// The small broker that serves now is of a version that gives its only node the number 0, not its log's.
pub(super) fn earlier_broker(server: &str) -> Error {
    Error::failed(
        format!("cannot continue at {server}"),
        "the small broker there is of an earlier version",
    )
    .hint("End the program that runs it, and start this one again.")
}

/// A broker answered, but can't be used because of what happened at the address it advertises.
pub(super) fn advertised(why: impl Display) -> String {
    format!("that broker was reached, but sends its clients on to another address ({why})")
}

/// None of several bootstrap servers can be used: each with its reason, and what can be done about it, as far
/// as they are known.
pub(super) fn no_server<'a>(
    servers: &'a [String],
    reason: impl Fn(&str) -> Option<(&'a str, &'a str)>,
) -> Error {
    let mut reasons = String::new();
    let mut hints = Vec::new();
    for server in servers {
        let (why, hint) = reason(server).unwrap_or(("no answer", ""));
        // Writing to a String can't fail.
        _ = write!(reasons, "\n  {server}: {why}");
        if !hint.is_empty() && !hints.contains(&hint) {
            hints.push(hint);
        }
    }
    let error = Error::listed("no bootstrap server can be used", &reasons);
    match hints.is_empty() {
        true => error,
        false => error.hint(hints.join("\n")),
    }
}

/// A hint for a topic that the broker does not create by itself.
pub(super) fn create_topic(servers: &str, topic: &str) -> String {
    format!(
        "The broker does not create it by itself. To create it: kafka-topics.sh \
         --bootstrap-server {servers} --create --topic {topic}"
    )
}

/// A line was given up after `timeout`.
pub(super) fn not_acknowledged(doing: &str, timeout: Duration, cause: Option<&str>) -> Error {
    let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
    Error::unacknowledged(
        doing,
        format!("not acknowledged within {}{cause}", seconds(timeout)),
    )
}

/// Records at these offsets can't be read. They need not have been lines: there can be markers of transactions.
pub(super) fn gone(offsets: Range<i64>) -> String {
    match offsets.end - offsets.start {
        1 => format!(
            "1 line may be gone from the topic (offset {})",
            offsets.start
        ),
        n => format!(
            "up to {n} lines are gone from the topic (offsets {} to {})",
            offsets.start,
            offsets.end - 1
        ),
    }
}

/// A duration as it was really given: `1 second`, `5 seconds`, `0.3 seconds`.
pub(super) fn seconds(duration: Duration) -> String {
    let tenths = (duration.as_millis() + 50) / 100;
    match (tenths / 10, tenths % 10) {
        (1, 0) => "1 second".into(),
        (whole, 0) => format!("{whole} seconds"),
        (whole, tenth) => format!("{whole}.{tenth} seconds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_lines_are_gone_than_offsets() {
        let said = [gone(5..6), gone(5..9)];
        assert_eq!(
            said,
            [
                "1 line may be gone from the topic (offset 5)",
                "up to 4 lines are gone from the topic (offsets 5 to 8)"
            ]
        );
    }

    #[test]
    fn durations_are_said_as_they_were_given() {
        for (millis, said) in [
            (5000, "5 seconds"),
            (1000, "1 second"),
            (1500, "1.5 seconds"),
            (300, "0.3 seconds"),
            (120_000, "120 seconds"),
        ] {
            assert_eq!(seconds(Duration::from_millis(millis)), said);
        }
    }
}
