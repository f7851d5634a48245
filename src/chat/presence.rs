//! Whether the peer is here, from the heartbeats that an open chat commits.
//!
//! Pure state: it is fed with what a look at the heartbeats has found, and when. They are times on the peer's clock, in
//! microseconds since 1970, but no two clocks agree: so only that they move counts, or are 0, which is the end of a
//! chat. They are compared with nothing but the times of the peer's own lines.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::name::Name;

/// Heartbeats that stand still for so long have ended without a 0: six of them are missing.
const GONE_AFTER: Duration = Duration::from_secs(15);

/// Between two looks that are further apart, nobody has looked: the broker was away, or this program stopped.
const LONGEST_GAP: Duration = Duration::from_secs(6);

/// After how many failures in a row it is said that presence is unknown.
const UNKNOWN_AFTER: u32 = 3;

/// What is known of whether the peer is here.
#[derive(Debug)]
pub(super) struct Presence {
    peer: Name,
    state: State,
    /// The last heartbeat: 0 after the end of a chat, or before the first one. None before the first look.
    seen: Option<i64>,
    /// Since when it stands still, and when that was last seen; none after a look that failed.
    still: Option<(Instant, Instant)>,
    failed_looks: u32,
    failed_beats: u32,
    has_said_unknown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There are heartbeats, but it is too early to say whether they move.
    Unknown,
    Here,
    Absent,
}

impl Presence {
    /// Nothing is known of `peer` yet.
    pub(super) fn new(peer: Name) -> Presence {
        Presence {
            peer,
            state: State::Unknown,
            seen: None,
            still: None,
            failed_looks: 0,
            failed_beats: 0,
            has_said_unknown: false,
        }
    }

    /// A look has found this heartbeat at this time. Returns what is new.
    ///
    /// That there is none says nothing, once there was one: the next host of the small broker does not know them.
    pub(super) fn looked(&mut self, found: Option<i64>, now: Instant) -> Option<String> {
        self.failed_looks = 0;
        let before = self.seen;
        let found = found.or(before).unwrap_or(0);
        self.seen = Some(found);
        let still = self.still.filter(|(_, at)| *at + LONGEST_GAP >= now);
        let since = still.map_or(now, |(since, _)| since);
        self.still = Some((since, now));
        if found == 0 {
            return self.become_absent("has left");
        }
        if before.is_some_and(|before| before != found) {
            self.still = Some((now, now));
            return self.become_here();
        }
        match now.duration_since(since) >= GONE_AFTER {
            true => self.become_absent("is gone"),
            false => None,
        }
    }

    /// A line of the peer has just arrived, which was written at this time, in milliseconds since 1970. Returns what is
    /// new: while nothing else is known, the line tells that the heartbeats are those of an open chat, unless the last
    /// one is much older or newer. Then it may be that of a chat that was killed, and the line from another program, or
    /// the line may be an old one that somebody else has written again.
    pub(super) fn has_written(&mut self, time: i64) -> Option<String> {
        let beat = self.seen.filter(|beat| *beat != 0)?;
        let apart = time.abs_diff(beat / 1000);
        let is_recent = u128::from(apart) < GONE_AFTER.as_millis();
        match self.state {
            State::Unknown if is_recent => self.become_here(),
            _ => None,
        }
    }

    /// A look has failed. Returns what to say about it, once.
    ///
    /// `why` is none if that was said already, because the connection is lost.
    pub(super) fn not_looked(&mut self, why: Option<&Error>) -> Option<String> {
        self.still = None;
        self.failed_looks = count(self.failed_looks, why);
        self.unknown(self.failed_looks, why?)
    }

    /// One's own heartbeat was committed, or not. Returns what to say about that, as
    /// [`not_looked`](Presence::not_looked).
    pub(super) fn beaten(&mut self, beat: Result<(), Option<&Error>>) -> Option<String> {
        let why = beat.err().flatten();
        self.failed_beats = count(self.failed_beats, why);
        self.unknown(self.failed_beats, why?)
    }

    fn unknown(&mut self, failures: u32, why: &Error) -> Option<String> {
        let is_news = why.is_denied() || failures >= UNKNOWN_AFTER;
        (is_news && !std::mem::replace(&mut self.has_said_unknown, true))
            .then(|| format!("cannot tell who is here: {why}"))
    }

    /// Whether the peer is known to be here.
    pub(super) fn is_here(&self) -> bool {
        self.state == State::Here
    }

    /// Whether the peer is here as far as is known.
    pub(super) fn may_be_here(&self) -> bool {
        self.state != State::Absent
    }

    /// Whether a heartbeat was seen that is not the last one of a chat.
    pub(super) fn has_beaten(&self) -> bool {
        self.seen.is_some_and(|beat| beat != 0)
    }

    fn become_here(&mut self) -> Option<String> {
        let before = std::mem::replace(&mut self.state, State::Here);
        (before != State::Here).then(|| format!("{} is here", self.peer))
    }

    /// Only who was here can have left.
    fn become_absent(&mut self, how: &str) -> Option<String> {
        let before = std::mem::replace(&mut self.state, State::Absent);
        (before == State::Here).then(|| format!("{} {how}", self.peer))
    }
}

/// How many failures in a row there are with this one, if it counts.
fn count(failures: u32, why: Option<&Error>) -> u32 {
    why.map_or(0, |_| failures.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens at some second.
    #[derive(Debug, Clone, Copy)]
    enum At {
        /// A look finds this.
        Look(u64, i64),
        /// A look finds no heartbeat.
        Nothing(u64),
        /// A look fails.
        Fail,
        /// The peer writes, at this second of the clock by which heartbeats are times, too.
        Line(i64),
    }
    use At::*;

    /// A heartbeat at second 100.
    const BEAT: i64 = 100_000_000;

    /// What is said about each of them.
    fn said(events: &[At]) -> Vec<String> {
        let mut presence = Presence::new("bob".parse().unwrap());
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let lost = Error::failed("cannot look", "no answer");
        let mut say = |event: &At| match *event {
            Look(second, beat) => presence.looked(Some(beat), at(second)),
            Nothing(second) => presence.looked(None, at(second)),
            Fail => presence.not_looked(Some(&lost)),
            Line(second) => presence.has_written(second * 1000),
        };
        let said = |(n, event)| say(event).map(|notice| format!("{n}: {notice}"));
        events.iter().enumerate().filter_map(said).collect()
    }

    #[test]
    fn only_movement_means_that_the_peer_is_here() {
        let table: &[(&[At], &[&str])] = &[
            // A chat that is open, or is opened: each movement after the first is no news.
            (
                &[Look(0, 5), Look(1, 5), Look(3, 6), Look(5, 7)],
                &["2: bob is here"],
            ),
            (&[Nothing(0), Look(3, 5), Look(6, 6)], &["1: bob is here"]),
            (&[Look(0, 0), Look(3, 5)], &["1: bob is here"]),
            // Another machine's clock may be behind.
            (&[Look(0, 5), Look(3, 4)], &["1: bob is here"]),
            // A chat that was killed long ago.
            (
                &[
                    Look(0, 5),
                    Look(5, 5),
                    Look(10, 5),
                    Look(15, 5),
                    Look(18, 5),
                ],
                &[],
            ),
            // One that ends, is opened again, and ends.
            (
                &[
                    Look(0, 5),
                    Look(3, 6),
                    Look(6, 0),
                    Look(9, 0),
                    Look(12, 8),
                    Look(15, 0),
                ],
                &[
                    "1: bob is here",
                    "2: bob has left",
                    "4: bob is here",
                    "5: bob has left",
                ],
            ),
            // One that ends before it was known to be open.
            (&[Look(0, 5), Look(3, 0)], &[]),
            // One that ends and is opened again between two looks.
            (&[Look(0, 5), Look(3, 6), Look(6, 9)], &["1: bob is here"]),
        ];
        for (events, expected) in table {
            assert_eq!(said(events), *expected, "{events:?}");
        }
    }

    #[test]
    fn heartbeats_that_stand_still_for_15_seconds_have_ended() {
        let here = [Look(0, 5), Look(3, 6)];
        let table: &[(&[At], &[&str])] = &[
            (&[Look(8, 6), Look(13, 6), Look(17, 6)], &[]),
            (
                &[Look(8, 6), Look(13, 6), Look(18, 6), Look(20, 6)],
                &["4: bob is gone"],
            ),
            // It was only stopped.
            (
                &[
                    Look(8, 6),
                    Look(13, 6),
                    Look(18, 6),
                    Look(20, 7),
                    Look(23, 0),
                ],
                &["4: bob is gone", "5: bob is here", "6: bob has left"],
            ),
            // Who is gone can't leave.
            (
                &[Look(8, 6), Look(13, 6), Look(18, 6), Look(20, 0)],
                &["4: bob is gone"],
            ),
            // The broker can't be asked, and then the 15 seconds begin again.
            (
                &[
                    Look(8, 6),
                    Fail,
                    Fail,
                    Look(20, 6),
                    Look(26, 6),
                    Look(32, 6),
                ],
                &[],
            ),
            (
                &[Fail, Look(20, 6), Look(25, 6), Look(30, 6), Look(35, 6)],
                &["6: bob is gone"],
            ),
            (&[Look(8, 6), Fail, Look(13, 6), Look(18, 6)], &[]),
            (&[Fail, Look(20, 0)], &["3: bob has left"]),
            // Nor could it while nobody looked: a look took long, or this program was stopped.
            (&[Look(18, 6), Look(23, 6), Look(28, 6), Look(32, 6)], &[]),
            (
                &[Look(18, 6), Look(23, 6), Look(28, 6), Look(33, 6)],
                &["5: bob is gone"],
            ),
            // The next host of the small broker knows no heartbeats, but that does not mean the end of them.
            (&[Nothing(5), Look(8, 7), Look(11, 0)], &["4: bob has left"]),
            (
                &[Nothing(5), Nothing(8), Nothing(13), Nothing(18)],
                &["5: bob is gone"],
            ),
        ];
        for (events, expected) in table {
            let events = [&here[..], events].concat();
            let expected = [&["1: bob is here"], *expected].concat();
            assert_eq!(said(&events), expected, "{events:?}");
        }
    }

    #[test]
    fn a_line_says_that_the_peer_is_here_if_heartbeats_do_not_say_otherwise() {
        let table: &[(&[At], &[&str])] = &[
            (
                &[Look(0, BEAT), Line(100), Look(3, BEAT + 1), Line(103)],
                &["1: bob is here"],
            ),
            (
                &[Look(0, BEAT), Line(114), Look(3, 0)],
                &["1: bob is here", "2: bob has left"],
            ),
            // A line that was written before the chat was opened arrives late, or again.
            (&[Look(0, BEAT), Line(20)], &[]),
            (&[Look(0, BEAT), Line(86)], &["1: bob is here"]),
            (&[Look(0, BEAT), Line(85)], &[]),
            (&[Look(0, BEAT), Line(i64::MIN / 1000)], &[]),
            // A line can come from another program than a chat, or late.
            (&[Line(100), Nothing(0), Line(100)], &[]),
            (
                &[Look(0, BEAT), Look(3, BEAT + 1), Look(6, 0), Line(100)],
                &["1: bob is here", "2: bob has left"],
            ),
            // The chat was killed long ago, and the heartbeat stands still for less than 15 seconds yet …
            (&[Look(0, BEAT), Line(115), Look(5, BEAT)], &[]),
            (&[Look(0, BEAT), Line(i64::MAX / 1000)], &[]),
            // … or for longer.
            (
                &[
                    Look(0, BEAT),
                    Look(5, BEAT),
                    Look(10, BEAT),
                    Look(15, BEAT),
                    Line(100),
                ],
                &[],
            ),
        ];
        for (events, expected) in table {
            assert_eq!(said(events), *expected, "{events:?}");
        }
    }

    #[test]
    fn a_group_that_is_denied_is_said_once_and_another_failure_only_if_it_lasts() {
        let denied = Error::denied("cannot look", "not allowed");
        let lost = Error::failed("cannot look", "no answer");
        let bob = || Presence::new("bob".parse().unwrap());
        type Fail = fn(&mut Presence, Option<&Error>) -> Option<String>;
        let own: Fail = |presence, why| presence.beaten(Err(why));
        let look: Fail = Presence::not_looked;
        for (fail, other) in [(own, look), (look, own)] {
            let mut presence = bob();
            assert_eq!(
                fail(&mut presence, Some(&denied)).as_deref(),
                Some("cannot tell who is here: cannot look: not allowed")
            );
            assert_eq!(other(&mut presence, Some(&denied)), None);

            let mut presence = bob();
            // While the connection is lost, failures don't count.
            for why in [Some(&lost), Some(&lost), None, Some(&lost), Some(&lost)] {
                assert_eq!(fail(&mut presence, why), None);
            }
            assert!(fail(&mut presence, Some(&lost)).is_some());
            assert_eq!(fail(&mut presence, Some(&lost)), None);
        }
    }
}
