//! How far the peer has read, and which of the user's lines are unread: from the position that the peer's own chat
//! commits.

use std::collections::VecDeque;

use crate::client::Offsets;
use crate::delivery::lines;
use crate::error::Error;
use crate::name::Name;

/// After how many failures in a row a position that was known is unknown. One that never was is at once.
const UNKNOWN_AFTER: u32 = 3;

/// How many runs of own lines are kept apart: beyond that, the oldest ones are counted as one.
const RUNS: usize = 10_000;

/// What is known of the peer's reading.
#[derive(Debug)]
pub(super) struct Peer {
    peer: Name,
    /// The topic that the user writes to.
    topic: Name,
    committed: Option<Offsets>,
    failures: u32,
    has_said_unknown: bool,
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

    /// The position that the peer's chat with the user has committed. Returns whether it is the first one that
    /// was looked up, and empty: the peer has never opened a chat with the user.
    pub(super) fn position(&mut self, committed: Offsets) -> bool {
        self.failures = 0;
        for run in &mut self.sent {
            let read = committed.get(&run.partition).copied().unwrap_or(0);
            run.first = run.first.max(read);
            run.lines = run.lines.min(run.end - run.first);
        }
        self.sent.retain(|run| run.first < run.end);
        let is_empty = committed.is_empty();
        self.committed.replace(committed).is_none() && is_empty
    }

    /// What to say of a peer who has never opened a chat with the user.
    pub(super) fn lines_wait(&self) -> String {
        let Peer { peer, topic, .. } = self;
        format!("{peer} has not opened a chat with you yet; your lines wait in the topic {topic}")
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

    /// Whether a look at the position would tell anything new.
    pub(super) fn is_worth_a_look(&self) -> bool {
        self.committed.is_none() || !self.sent.is_empty()
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

    fn look(peer: &mut Peer, committed: &[(i32, i64)]) -> bool {
        peer.position(committed.iter().copied().collect())
    }

    #[test]
    fn a_peer_whose_first_position_is_none_has_never_opened_a_chat() {
        let mut peer = bob();
        assert_eq!((look(&mut peer, &[]), look(&mut peer, &[])), (true, false));
        assert_eq!(
            peer.lines_wait(),
            "bob has not opened a chat with you yet; your lines wait in the topic bob"
        );
        let mut peer = bob();
        assert_eq!(
            (look(&mut peer, &[(0, 0)]), look(&mut peer, &[])),
            (false, false)
        );
    }

    #[test]
    fn the_position_is_worth_a_look_until_it_is_known_and_while_lines_are_unread() {
        let mut peer = bob();
        assert!(peer.is_worth_a_look());
        look(&mut peer, &[(0, 0)]);
        assert!(!peer.is_worth_a_look());
        peer.sent(0, 0, 2);
        look(&mut peer, &[(0, 1)]);
        assert!(peer.is_worth_a_look());
        look(&mut peer, &[(0, 2)]);
        assert!(!peer.is_worth_a_look());
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
            look(&mut peer, committed);
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
        look(&mut peer, &[(0, 0)]);
        peer.sent(0, 0, 5);
        assert_eq!(
            (peer.unknown(Some(&lost)), peer.unknown(Some(&lost))),
            (None, None)
        );
        assert!(peer.unread().is_some());
        assert!(peer.unknown(Some(&lost)).is_some());
        assert_eq!(peer.unread(), None);
        look(&mut peer, &[(0, 4)]);
        assert_eq!(peer.unread().as_deref(), Some("1 line not read by bob yet"));
    }

    #[test]
    fn many_runs_of_lines_take_bounded_memory_and_are_all_counted() {
        let mut peer = bob();
        look(&mut peer, &[(0, 0)]);
        let count = 3 * RUNS as i64;
        for n in 0..count {
            peer.sent(0, 2 * n, 1);
        }
        assert!(peer.sent.len() <= RUNS);
        let unread = peer.unread().unwrap();
        assert!(unread.starts_with(&format!("{count} lines")), "{unread}");
        look(&mut peer, &[(0, 2 * count - 1)]);
        assert_eq!(peer.unread(), None);
    }
}
