//! How far the peer has read, whether the peer is here, and which of the user's lines are unread: all of it
//! from the position that the peer's own chat commits.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::client::Offsets;
use crate::delivery::lines;
use crate::error::Error;
use crate::name::Name;

/// A chat that is open commits about once a second. One that leaves our lines unread for this long is
/// taken to be closed.
const ABSENT_AFTER: Duration = Duration::from_secs(10);

/// After how many failures in a row a position that was known is unknown. One that never was is at once.
const UNKNOWN_AFTER: u32 = 3;

/// How many runs of own lines are kept apart: beyond that, the oldest ones are counted as one.
const RUNS: usize = 10_000;

/// What is known of the peer.
#[derive(Debug)]
pub(super) struct Peer {
    peer: Name,
    /// The topic that the user writes to.
    topic: Name,
    committed: Option<Offsets>,
    failures: u32,
    has_said_unknown: bool,
    is_here: bool,
    unread_since: Option<Instant>,
    sent: VecDeque<Run>,
}

/// Own lines at consecutive offsets, or nearly so, that the peer has not read.
#[derive(Debug)]
struct Run {
    partition: i32,
    first: i64,
    end: i64,
    lines: i64,
}

impl Peer {
    /// Nothing is known yet of `peer`, who reads `topic`.
    pub(super) fn new(peer: Name, topic: Name) -> Peer {
        Peer {
            peer,
            topic,
            committed: None,
            failures: 0,
            has_said_unknown: false,
            is_here: false,
            unread_since: None,
            sent: VecDeque::new(),
        }
    }

    /// Own lines were acknowledged: `count` of them, at consecutive offsets from `first` on.
    pub(super) fn sent(&mut self, partition: i32, first: i64, count: u64) {
        let lines = count as i64;
        let end = first + lines;
        match self.sent.back_mut() {
            Some(last) if last.partition == partition && last.end == first => {
                last.end = end;
                last.lines += lines;
            }
            _ => self.sent.push_back(Run {
                partition,
                first,
                end,
                lines,
            }),
        }
        if self.sent.len() > RUNS
            && let Some(oldest) = self.sent.pop_front()
            && let Some(next) = self.sent.front_mut()
        {
            // A sender's lines share a partition, so this is a run with gaps.
            next.first = oldest.first;
            next.lines += oldest.lines;
        }
    }

    /// The position that the peer's chat with the user has committed, looked up about once a second. Returns
    /// a notice if there is news.
    ///
    /// A committed position does not show whether the chat is still open, so the peer counts as here only when
    /// it moves or first appears.
    pub(super) fn position(&mut self, committed: Offsets, now: Instant) -> Option<String> {
        self.failures = 0;
        for run in &mut self.sent {
            let read = committed.get(&run.partition).copied().unwrap_or(0);
            run.first = run.first.max(read);
            run.lines = run.lines.min(run.end - run.first);
        }
        self.sent.retain(|run| run.first < run.end);

        let is_empty = committed.is_empty();
        let Some(before) = self.committed.replace(committed) else {
            return is_empty.then(|| {
                format!(
                    "{} has not opened a chat with you yet; your lines wait in the topic {}",
                    self.peer, self.topic
                )
            });
        };
        let mut offsets = self.committed.iter().flatten();
        if offsets.any(|(partition, offset)| before.get(partition) < Some(offset)) {
            self.unread_since = None;
            return (!std::mem::replace(&mut self.is_here, true))
                .then(|| format!("{} is here", self.peer));
        }
        if self.sent.is_empty() {
            self.unread_since = None;
        } else if now.duration_since(*self.unread_since.get_or_insert(now)) >= ABSENT_AFTER {
            self.is_here = false;
        }
        None
    }

    /// The position could not be looked up. Returns what to say about it, once.
    ///
    /// `why` is none if that was said already, because the connection is lost.
    pub(super) fn unknown(&mut self, why: Option<&Error>) -> Option<String> {
        self.failures += 1;
        let why = why.filter(|_| self.committed.is_none() || self.failures >= UNKNOWN_AFTER)?;
        (!std::mem::replace(&mut self.has_said_unknown, true))
            .then(|| format!("cannot tell what {} has read: {why}", self.peer))
    }

    /// What to say at the end about lines that the peer has not read. Nothing, if that is not known.
    pub(super) fn unread(&self) -> Option<String> {
        let is_known = self.committed.is_some() && self.failures < UNKNOWN_AFTER;
        let unread: i64 = self.sent.iter().map(|run| run.lines).sum();
        (is_known && unread > 0)
            .then(|| format!("{} not read by {} yet", lines(unread as u64), self.peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bob() -> Peer {
        let name: Name = "bob".parse().unwrap();
        Peer::new(name.clone(), name)
    }

    /// What the peer's committed offsets tell, one a second.
    fn watch(peer: &mut Peer, committed: &[&[(i32, i64)]]) -> Vec<Option<String>> {
        let start = Instant::now();
        (0..)
            .map(Duration::from_secs)
            .zip(committed)
            .map(|(at, offsets)| {
                let offsets = offsets.iter().copied().collect();
                peer.position(offsets, start + at)
            })
            .collect()
    }

    #[test]
    fn the_peer_is_here_when_the_position_is_first_seen_or_moves() {
        let waits = "bob has not opened a chat with you yet; your lines wait in the topic bob";
        let here = "bob is here";
        type Told<'a> = &'a [(&'a [(i32, i64)], Option<&'a str>)];
        let cases: [Told<'_>; 4] = [
            &[
                (&[], Some(waits)),
                (&[], None),
                (&[(0, 0)], Some(here)),
                (&[(0, 0)], None),
            ],
            &[
                (&[(0, 5)], None),
                (&[(0, 5)], None),
                (&[(0, 6)], Some(here)),
                (&[(0, 7)], None),
            ],
            &[(&[(0, 5)], None), (&[(0, 5), (1, 0)], Some(here))],
            // The log was created again: that tells nothing.
            &[(&[(0, 5)], None), (&[(0, 0)], None), (&[], None)],
        ];
        for case in cases {
            let (committed, told): (Vec<_>, Vec<_>) = case.iter().copied().unzip();
            let told: Vec<_> = told.iter().map(|t| t.map(String::from)).collect();
            assert_eq!(watch(&mut bob(), &committed), told);
        }
    }

    #[test]
    fn a_peer_who_reads_again_after_a_long_time_is_here_again() {
        let mut peer = bob();
        assert!(watch(&mut peer, &[&[(0, 0)], &[(0, 1)]])[1].is_some());
        peer.sent(0, 1, 1);
        let quick: Vec<&[(i32, i64)]> = vec![&[(0, 1)], &[(0, 1)], &[(0, 2)]];
        assert!(watch(&mut peer, &quick).iter().all(Option::is_none));
        peer.sent(0, 2, 1);
        let mut slow: Vec<&[(i32, i64)]> = vec![&[(0, 2)]; 12];
        slow.push(&[(0, 3)]);
        let told = watch(&mut peer, &slow);
        assert!(told[..12].iter().all(Option::is_none));
        assert_eq!(told[12].as_deref(), Some("bob is here"));
    }

    #[test]
    fn own_lines_are_counted_until_the_peer_has_read_them() {
        let mut peer = bob();
        assert_eq!(peer.unread(), None);
        // Another sender's lines lie between, and count for nothing.
        peer.sent(1, 4, 2);
        peer.sent(1, 6, 1);
        peer.sent(1, 9, 1);
        assert_eq!(peer.sent.len(), 2);
        for (committed, told) in [
            (&[][..], Some("4 lines not read by bob yet")),
            (&[(0, 9)], Some("4 lines not read by bob yet")),
            (&[(1, 5)], Some("3 lines not read by bob yet")),
            (&[(1, 9)], Some("1 line not read by bob yet")),
            (&[(1, 10)], None),
        ] {
            watch(&mut peer, &[committed]);
            assert_eq!(peer.unread().as_deref(), told, "{committed:?}");
        }
        assert!(peer.sent.is_empty());
    }

    #[test]
    fn nothing_is_said_about_reading_when_the_position_is_unknown() {
        let denied = Error::failed("cannot read the offsets", "not allowed");
        let mut peer = bob();
        peer.sent(0, 0, 5);
        let said = peer.unknown(Some(&denied)).unwrap();
        assert!(
            said.contains("cannot tell what bob has read") && said.contains("not allowed"),
            "{said}"
        );
        assert_eq!(peer.unknown(Some(&denied)), None);
        assert_eq!(peer.unread(), None);
    }

    #[test]
    fn a_few_failures_leave_a_known_position_known() {
        let lost = Error::failed("cannot read the offsets", "no answer");
        let mut peer = bob();
        watch(&mut peer, &[&[(0, 0)]]);
        peer.sent(0, 0, 5);
        assert_eq!(
            (peer.unknown(Some(&lost)), peer.unknown(Some(&lost))),
            (None, None)
        );
        assert!(peer.unread().is_some());
        assert!(peer.unknown(Some(&lost)).is_some());
        assert_eq!(peer.unread(), None);
        watch(&mut peer, &[&[(0, 4)]]);
        assert_eq!(peer.unread().as_deref(), Some("1 line not read by bob yet"));
    }

    #[test]
    fn many_runs_of_lines_take_bounded_memory_and_are_all_counted() {
        let mut peer = bob();
        watch(&mut peer, &[&[(0, 0)]]);
        let count = 3 * RUNS as i64;
        for n in 0..count {
            peer.sent(0, 2 * n, 1);
        }
        assert!(peer.sent.len() <= RUNS);
        let unread = peer.unread().unwrap();
        assert!(unread.starts_with(&format!("{count} lines")), "{unread}");
        watch(&mut peer, &[&[(0, 2 * count - 1)]]);
        assert_eq!(peer.unread(), None);
    }
}
