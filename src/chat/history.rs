//! What was said before a chat was opened: the last lines of both sides, in the order of their times.
//!
//! Each side is read on a thread of its own, while the chat opens: the user's lines from the peer's topic, the peer's
//! from the user's. Of a sealed chat only the user's are read here: the peer's were opened with its gate. The consumer
//! thread waits for both, so that unread lines come after earlier ones.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::Parties;
use super::conversation::{AWAY_BYTES, AWAY_LINES, Line};
use super::gate::earlier_line;
use crate::client::{Cluster, Offsets, Record, Start, is_before};
use crate::ending::spawn;
use crate::error::{Error, Result};
use crate::last::{Bounds, kept};
use crate::opener::{Opener, Wanted as Before};
use crate::seal::{self, Secret};
use crate::time;

/// How many offsets before its end each partition is searched.
pub(super) const MAX_OFFSETS: i64 = 10_000;
/// The most bytes that one look reads. If there are more, it looks at fewer offsets.
const MAX_BYTES: usize = 8 << 20;

/// How long unread lines wait for earlier ones.
const HISTORY_WAIT: Duration = Duration::from_secs(10);

/// Said of the user's own lines that a chat without the secret leaves out.
const OWN_SEALED: &str = "your own earlier lines are sealed; to read them, restart with the secret";

/// What is known of the time before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Earlier {
    /// Lines of both sides, in their order, each with its time.
    pub(super) lines: Vec<Line>,
    /// Times of unread lines, which not every client reports, by partition and offset.
    pub(super) times: BTreeMap<(i32, i64), i64>,
    /// What could not be read, and why.
    pub(super) notices: Vec<String>,
    /// The peer's lines were sealed, and the chat is not.
    pub(super) is_sealed: bool,
}

/// What to read.
#[derive(Debug)]
pub(super) struct Wanted {
    /// How many lines of both sides together.
    pub(super) last: usize,
    /// The user has asked for them.
    pub(super) is_asked: bool,
    /// The user's position: later lines of the peer are unread.
    pub(super) position: Offsets,
    /// The chat is sealed, so a line that looks sealed is its text.
    pub(super) is_sealed: bool,
}

/// Whose lines were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Own,
    Peers,
}

type Sides = Receiver<(Side, Result<Vec<Line>>)>;

/// Both sides, as they are being read.
pub(super) struct Reading {
    sides: Sides,
    wanted: Wanted,
    /// Own lines of this time, in milliseconds since 1970, and later ones are of the chat itself.
    opened: i64,
    deadline: Instant,
}

/// Starts to read.
pub(super) fn start(cluster: &dyn Cluster, parties: &Parties, wanted: Wanted) -> Result<Reading> {
    let deadline = Instant::now() + HISTORY_WAIT;
    let bounds = bounds(deadline);
    let (tx, sides) = mpsc::channel();
    let last = wanted.last as u64;
    if last > 0 {
        let (tx, parties, reader) = (tx.clone(), parties.clone(), cluster.reader());
        spawn("history", move || {
            let open = |start| reader(parties.writes(), start);
            let is_own = |key: &[u8]| key == parties.me.as_bytes();
            let lines = kept(last, &bounds, open, |record| line(record, is_own));
            // The chat may have ended.
            _ = tx.send((Side::Own, lines));
        })?;
    }
    let (parties, reader, position) = (parties.clone(), cluster.reader(), wanted.position.clone());
    spawn("history", move || {
        let open = |start| reader(parties.reads(), start);
        let lines = kept(last + AWAY_LINES as u64, &bounds, open, |record| {
            let mut line = line(record, |key| parties.sender(key).is_some())?;
            if !is_before(&position, line.partition, line.offset) {
                // Unread: the consumer shows it, with the time from here.
                line.text = Vec::new();
            }
            Some(line)
        });
        _ = tx.send((Side::Peers, lines));
    })?;
    Ok(Reading::new(sides, wanted, deadline))
}

/// Starts to read the user's own earlier lines of a sealed chat; `peers` are the peer's, already opened.
pub(super) fn start_sealed(
    cluster: &dyn Cluster,
    parties: &Parties,
    secret: Secret,
    wanted: Wanted,
    peers: Vec<Line>,
) -> Result<Reading> {
    let (tx, sides) = mpsc::channel();
    _ = tx.send((Side::Peers, Ok(peers)));
    let (parties, reader, count) = (parties.clone(), cluster.reader(), wanted.last);
    spawn("history", move || {
        let open = |start| reader(parties.writes(), start);
        let before = Before {
            sender: Some(&parties.me),
            count,
            report: |_| {},
        };
        let own = open(Start::Latest).and_then(|mut consumer| {
            Opener::new(&secret, parties.writes(), consumer.as_mut(), open, &before)
        });
        let own = own.map(|own| own.earlier.into_iter().map(earlier_line).collect());
        _ = tx.send((Side::Own, own));
    })?;
    Ok(Reading::new(sides, wanted, Instant::now() + HISTORY_WAIT))
}

/// How far the last lines of a topic are looked for.
pub(super) fn bounds(deadline: Instant) -> Bounds {
    Bounds {
        offsets: MAX_OFFSETS,
        bytes: MAX_BYTES,
        deadline: Some(deadline),
    }
}

/// The line in a record, if its sender is one of those that are wanted.
fn line(record: &Record<'_>, is_wanted: impl Fn(&[u8]) -> bool) -> Option<Line> {
    let is_wanted = is_wanted(record.key.unwrap_or_default());
    is_wanted.then(|| Line::of(record)).flatten()
}

impl Reading {
    fn new(sides: Sides, wanted: Wanted, deadline: Instant) -> Reading {
        Reading {
            sides,
            wanted,
            opened: time::now(),
            deadline,
        }
    }

    /// Waits until both sides are read, or for the deadline.
    pub(super) fn wait(self) -> Earlier {
        let late = || Err(Error::failed("cannot read the topic", "no answer in time"));
        let (mut own, mut peers) = (None, None);
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.sides.recv_timeout(left) {
                Ok((Side::Own, lines)) => own = Some(lines),
                Ok((Side::Peers, lines)) => peers = Some(lines),
                // Both threads have ended, or are late.
                Err(_) => break,
            }
        }
        let own = match self.wanted.last {
            0 => Ok(Vec::new()),
            _ => own.unwrap_or_else(late),
        };
        earlier(own, peers.unwrap_or_else(late), &self.wanted, self.opened)
    }
}

/// What is shown of both sides.
fn earlier(
    own: Result<Vec<Line>>,
    peers: Result<Vec<Line>>,
    wanted: &Wanted,
    opened: i64,
) -> Earlier {
    let mut notices = Vec::new();
    let mut read = |whose, lines: Result<Vec<Line>>| match lines {
        Ok(lines) => lines,
        Err(error) => {
            let why = error.without_hint();
            if wanted.last > 0 {
                notices.push(format!("{whose} earlier lines are not shown: {why}"));
            }
            Vec::new()
        }
    };
    let (mut own, mut peers) = (read("your own", own), read("the peer's", peers));
    // Of a chat that was sealed, which this one is not.
    let is_unopened = |line: &Line| !wanted.is_sealed && seal::is_sealed(&line.text);
    if leave_out(&mut own, is_unopened) {
        notices.push(OWN_SEALED.into());
    }
    let is_sealed = leave_out(&mut peers, is_unopened);
    // Typed while this was read.
    own.retain(|line| line.time.is_none_or(|time| time < opened));
    let is_read = |line: &Line| is_before(&wanted.position, line.partition, line.offset);
    let (mut peers, unread): (Vec<Line>, Vec<Line>) = peers.into_iter().partition(is_read);
    let times = unread.iter();
    let times = times.filter_map(|it| Some(((it.partition, it.offset), it.time?)));
    let times = times.collect();
    let [untimed, more_untimed] =
        [&mut own, &mut peers].map(|it| leave_out(it, |it| it.time.is_none()));
    if wanted.is_asked && (untimed || more_untimed) {
        notices.push("earlier lines without a time are not shown: their order is not known".into());
    }
    let mut lines = merge(own, peers);
    keep_last(&mut lines, wanted.last);
    Earlier {
        lines,
        times,
        notices,
        is_sealed,
    }
}

/// Leaves out some lines. Returns whether there were any.
fn leave_out(lines: &mut Vec<Line>, is_out: impl Fn(&Line) -> bool) -> bool {
    let before = lines.len();
    lines.retain(|line| !is_out(line));
    lines.len() < before
}

/// Merges both sides by their times. The lines of each keep their order, whatever its clock did.
fn merge(own: Vec<Line>, peers: Vec<Line>) -> Vec<Line> {
    let mut merged = Vec::with_capacity(own.len() + peers.len());
    let (mut own, mut peers) = (own.into_iter().peekable(), peers.into_iter().peekable());
    loop {
        let is_own_next = |own: &Line| peers.peek().is_none_or(|peers| own.time < peers.time);
        let next = own.next_if(is_own_next).or_else(|| peers.next());
        match next {
            Some(line) => merged.push(line),
            None => return merged,
        }
    }
}

/// Keeps the last `count` lines, and of them only as many as fit into memory.
fn keep_last(lines: &mut Vec<Line>, count: usize) {
    let mut bytes = 0;
    let fits = |line: &&Line| {
        bytes += line.text.len();
        bytes <= AWAY_BYTES
    };
    let kept = lines.iter().rev().take(count).take_while(fits).count();
    lines.drain(..lines.len() - kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of one sender at offsets from 0 on, by their times.
    fn lines(sender: &str, times: &[Option<i64>]) -> Vec<Line> {
        let line = |(offset, time): (i64, &Option<i64>)| Line {
            partition: 0,
            offset,
            key: sender.into(),
            text: format!("{sender} {offset}").into(),
            time: *time,
            is_dated: false,
        };
        (0..).zip(times).map(line).collect()
    }

    /// Two sides of which bob's first four lines are read, as of time 100.
    fn of(own: &[Option<i64>], peers: &[Option<i64>], last: usize, is_asked: bool) -> Earlier {
        let wanted = Wanted {
            last,
            is_asked,
            position: [(0, 4)].into(),
            is_sealed: false,
        };
        earlier(
            Ok(lines("alice", own)),
            Ok(lines("bob", peers)),
            &wanted,
            100,
        )
    }

    fn texts(earlier: &Earlier) -> Vec<&str> {
        let lines = earlier.lines.iter();
        lines
            .map(|it| std::str::from_utf8(&it.text).unwrap())
            .collect()
    }

    #[test]
    fn the_last_lines_of_both_sides_are_in_the_order_of_their_times() {
        for (own, peers, last, shown) in [
            (&[][..], &[][..], 10, &[][..]),
            (&[1], &[2], 10, &["alice 0", "bob 0"]),
            (&[2], &[1], 10, &["bob 0", "alice 0"]),
            (&[3, 4], &[1, 5, 6], 3, &["alice 1", "bob 1", "bob 2"]),
            // Each side keeps its order, and of two lines at once the peer's is first.
            (
                &[5, 2, 7],
                &[6],
                10,
                &["alice 0", "alice 1", "bob 0", "alice 2"],
            ),
            (&[5], &[5], 10, &["bob 0", "alice 0"]),
            // Typed after the chat was opened.
            (&[99, 100], &[100], 10, &["alice 0", "bob 0"]),
            (&[1], &[2], 0, &[]),
            // The last of these are unread.
            (&[], &[1, 2, 3, 4, 5, 6], 2, &["bob 2", "bob 3"]),
        ] {
            let [some_own, some_peers] = [own, peers]
                .map(|times: &[i64]| times.iter().copied().map(Some).collect::<Vec<_>>());
            let earlier = of(&some_own, &some_peers, last, true);
            assert_eq!(texts(&earlier), shown, "{own:?} {peers:?} {last}");
            assert!(earlier.notices.is_empty());
        }
    }

    #[test]
    fn lines_without_a_time_are_left_out_which_is_said_if_they_were_asked_for() {
        for (own, peers, shown) in [
            (
                &[None, Some(3)][..],
                &[None, None, Some(2)][..],
                &["bob 2", "alice 1"][..],
            ),
            (&[None], &[], &[]),
            (&[], &[None], &[]),
        ] {
            for is_asked in [true, false] {
                let earlier = of(own, peers, 10, is_asked);
                assert_eq!(texts(&earlier), shown);
                assert_eq!(earlier.notices.len(), usize::from(is_asked));
            }
        }
        // These are unread.
        let peers = [Some(1), Some(2), Some(3), Some(4), None, Some(6)];
        let earlier = of(&[], &peers, 10, true);
        assert!(earlier.notices.is_empty());
        assert_eq!(earlier.times, [((0, 5), 6)].into());
    }

    #[test]
    fn lines_of_a_sealed_chat_are_not_shown_in_one_that_is_not() {
        let wanted = |is_sealed| Wanted {
            last: 10,
            is_asked: true,
            position: [(0, 4)].into(),
            is_sealed,
        };
        let seal = |mut lines: Vec<Line>| {
            lines[0].text = b"sealed1:AAAA".to_vec();
            lines
        };
        let times = [Some(1), Some(2)];
        let own = seal(lines("alice", &times));
        let mixed = earlier(Ok(own), Ok(lines("bob", &times)), &wanted(false), 100);
        assert_eq!(texts(&mixed), ["bob 0", "bob 1", "alice 1"]);
        assert!(!mixed.is_sealed);
        assert_eq!(mixed.notices, [OWN_SEALED]);
        let theirs = || Ok(seal(lines("bob", &times)));
        let mixed = earlier(Ok(Vec::new()), theirs(), &wanted(false), 100);
        assert_eq!(texts(&mixed), ["bob 1"]);
        assert!(mixed.is_sealed);
        assert!(mixed.notices.is_empty());
        // What was sealed there can be any text.
        let own = Ok(seal(lines("alice", &times)));
        let opened = earlier(own, theirs(), &wanted(true), 100);
        let begins_as_sealed = "sealed1:AAAA";
        assert_eq!(
            texts(&opened),
            [begins_as_sealed, begins_as_sealed, "bob 1", "alice 1"]
        );
        assert!(!opened.is_sealed);
        assert!(opened.notices.is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_said_and_the_rest_is_shown() {
        let wanted = Wanted {
            last: 10,
            is_asked: false,
            position: [(0, 4)].into(),
            is_sealed: false,
        };
        let denied = Error::denied("cannot read topic bob", "not allowed").hint("Ask for it.");
        let earlier = earlier(Err(denied), Ok(lines("bob", &[Some(1)])), &wanted, 100);
        assert_eq!(texts(&earlier), ["bob 0"]);
        assert_eq!(
            earlier.notices,
            ["your own earlier lines are not shown: cannot read topic bob: not allowed"]
        );
    }

    #[test]
    fn lines_take_bounded_memory() {
        let mut lines = lines("bob", &[Some(1); 5]);
        lines
            .iter_mut()
            .for_each(|it| it.text = vec![b'x'; AWAY_BYTES / 2]);
        keep_last(&mut lines, 5);
        assert_eq!(lines.len(), 2);
        lines[1].text.push(b'x');
        keep_last(&mut lines, 5);
        assert_eq!(lines.len(), 1);
    }
}
