//! Who is shown, what is told of the others, what is unread, and how far the peer has read.
//!
//! It knows no Kafka but partitions and offsets, and no terminal: records and committed offsets go
//! in, what there is to show comes out.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::client::{Offsets, Record};
use crate::message::visible;
use crate::name::Name;

/// How many lines written while the user was away are shown: the last ones.
const LAST: usize = 100;

/// How many others are named before the rest are only said to be there.
const NAMED: usize = 20;

/// How much of a name that is none is quoted, in characters.
const QUOTED: usize = 40;

/// A chat that is open commits about once a second. One that leaves our lines unread for as long
/// as this is taken to be closed.
const GONE: Duration = Duration::from_secs(10);

/// The sender shown for a line without one: parentheses are in nobody's name.
const NO_NAME: &str = "(unsigned)";

/// What to do with lines that carry no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsigned {
    /// They are not shown; that they exist is told once.
    Hidden,
    /// They are shown, as nobody's.
    Shown,
    /// They are the peer's, who alone writes to the topic: the tutorial's way.
    Peers,
}

/// Something for the user to see, or to be passed over, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A line of the conversation.
    Line {
        /// Who wrote it: not a [`Name`] where the line carried none.
        sender: String,
        /// Its bytes, as they came.
        text: Vec<u8>,
        /// The partition it lies in.
        partition: i32,
        /// Its offset in that partition.
        offset: i64,
    },
    /// Something about the conversation, in one line that is safe to show.
    Notice(String),
    /// Everything before these offsets is done with, once all items before this one are shown.
    Passed(Offsets),
}

/// One user's side of a conversation with a peer.
#[derive(Debug)]
pub struct Conversation {
    me: Name,
    peer: Name,
    unsigned: Unsigned,
    /// Until what was in the log at the start has been read, or what there is when the log is read
    /// again.
    away: Option<Away>,
    passed: Offsets,
    named: BTreeSet<String>,
    told_others: bool,
    told_unsigned: bool,
    presence: Presence,
    sent: Vec<Sent>,
}

/// What was written while the user was away.
#[derive(Debug)]
struct Away {
    ends: Offsets,
    /// What these lines are, for the user.
    what: &'static str,
    /// The last of them.
    lines: VecDeque<Item>,
    /// How many came before those.
    earlier: u64,
    /// What came since, and waits for them.
    since: Vec<Item>,
}

#[derive(Debug, Default)]
struct Presence {
    committed: Option<Offsets>,
    here: bool,
    silent_since: Option<Instant>,
}

/// Own lines that lie behind one another.
#[derive(Debug)]
struct Sent {
    partition: i32,
    first: i64,
    end: i64,
}

impl Conversation {
    /// A conversation of `me` with `peer`. `ends` are the end offsets of the topic that `me` reads,
    /// at the start: what lies before them was written while `me` was away.
    pub fn new(me: Name, peer: Name, unsigned: Unsigned, ends: Offsets) -> Conversation {
        Conversation {
            me,
            peer,
            unsigned,
            away: Some(Away::until(ends, "while you were away")),
            passed: Offsets::new(),
            named: BTreeSet::new(),
            told_others: false,
            told_unsigned: false,
            presence: Presence::default(),
            sent: Vec::new(),
        }
    }

    /// Takes a record of the topic that the user reads.
    pub fn record(&mut self, record: Record<'_>) -> Vec<Item> {
        let sender = match (record.key, self.unsigned) {
            (key, _) if key == self.peer.as_bytes() => self.peer.to_string(),
            (b"", Unsigned::Peers) => self.peer.to_string(),
            (b"", Unsigned::Shown) => NO_NAME.to_string(),
            (key, _) => return self.stranger(key).map(Item::Notice).into_iter().collect(),
        };
        let line = Item::Line {
            sender,
            text: record.value.to_vec(),
            partition: record.partition,
            offset: record.offset,
        };
        let Some(away) = &mut self.away else {
            return vec![line];
        };
        match away.take(line, record.partition, record.offset) {
            true => Vec::new(),
            false => self.welcome(),
        }
    }

    /// Is told after every poll, and once before the first, which offsets come next.
    pub fn polled(&mut self, position: &Offsets) -> Vec<Item> {
        let reached = |away: &Away| reached(position, &away.ends);
        let mut items = match self.away.as_ref().is_some_and(reached) {
            true => self.welcome(),
            false => Vec::new(),
        };
        if self.away.is_none() && self.passed != *position {
            self.passed.clone_from(position);
            items.push(Item::Passed(position.clone()));
        }
        items
    }

    /// The log no longer has all that it had, and ends at `end` by now. If reading `goes_back`, what
    /// there is may have been shown already, or the user may never have seen any of it: it counts
    /// as written while they were away, of which the last lines are shown.
    pub fn missed(&mut self, partition: i32, goes_back: bool, end: i64) {
        match &mut self.away {
            Some(away) => {
                let known = away.ends.entry(partition).and_modify(|e| *e = end.min(*e));
                if goes_back {
                    known.or_insert(end);
                }
            }
            None if goes_back => {
                let ends = [(partition, end)].into();
                self.away = Some(Away::until(ends, "in the log, which is read again"));
            }
            None => {}
        }
    }

    /// Own lines were acknowledged: `count` of them, from `first` on.
    pub fn sent(&mut self, partition: i32, first: i64, count: u64) {
        let end = first + count as i64;
        match self.sent.last_mut() {
            Some(last) if last.partition == partition && last.end == first => last.end = end,
            _ => self.sent.push(Sent {
                partition,
                first,
                end,
            }),
        }
    }

    /// Is told about once a second what the peer's chat with the user has committed, and says what
    /// that tells. `topic` is the one that the user writes to.
    ///
    /// A position alone can't tell a chat that is open from one that was: only when it moves, or is
    /// there for the first time, the peer is here.
    pub fn peer_read(&mut self, committed: &Offsets, topic: &Name, now: Instant) -> Option<String> {
        for sent in &mut self.sent {
            let read = committed.get(&sent.partition).copied().unwrap_or(0);
            sent.first = sent.first.max(read);
        }
        self.sent.retain(|sent| sent.first < sent.end);

        let presence = &mut self.presence;
        let Some(before) = presence.committed.replace(committed.clone()) else {
            return committed.is_empty().then(|| {
                format!(
                    "{} has not opened a chat with you yet; your lines wait in the topic {topic}",
                    self.peer
                )
            });
        };
        let moved = |(partition, offset)| before.get(partition) < Some(offset);
        if committed.iter().any(moved) {
            presence.silent_since = None;
            return (!std::mem::replace(&mut presence.here, true))
                .then(|| format!("{} is here", self.peer));
        }
        if self.sent.is_empty() {
            presence.silent_since = None;
        } else if now.duration_since(*presence.silent_since.get_or_insert(now)) >= GONE {
            presence.here = false;
        }
        None
    }

    /// What to say at the end of lines that the peer has not read, as far as is known.
    pub fn unread(&self) -> Option<String> {
        let unread: i64 = self.sent.iter().map(|sent| sent.end - sent.first).sum();
        (unread > 0).then(|| format!("{} not read by {} yet", lines(unread as u64), self.peer))
    }

    /// Shows what was written while the user was away, and what came since.
    fn welcome(&mut self) -> Vec<Item> {
        let Some(away) = self.away.take() else {
            return Vec::new();
        };
        let mut items = Vec::new();
        if !away.lines.is_empty() {
            let mut header = format!("{} {}", lines(away.lines.len() as u64), away.what);
            if away.earlier > 0 {
                header += &format!(", and {} earlier ones, not shown", away.earlier);
            }
            items.push(Item::Notice(header));
        }
        items.extend(away.lines);
        items.extend(away.since);
        items
    }

    /// What to say of a line that is not shown: once for each sender, and not for too many.
    fn stranger(&mut self, key: &[u8]) -> Option<String> {
        if key.is_empty() {
            return (!std::mem::replace(&mut self.told_unsigned, true)).then(|| {
                "someone without a name is writing to you; --unsigned shows such lines".into()
            });
        }
        if key == self.me.as_bytes() {
            // Nobody answers themselves; it is the user's own doing, or not worth a notice.
            return None;
        }
        let name: Option<Name> = std::str::from_utf8(key)
            .ok()
            .and_then(|key| key.parse().ok());
        let shown = match &name {
            Some(name) => name.to_string(),
            None => quoted(key),
        };
        if self.named.contains(&shown) {
            return None;
        }
        if self.named.len() == NAMED {
            return (!std::mem::replace(&mut self.told_others, true))
                .then(|| "others are writing to you, too; no more of them will be named".into());
        }
        let notice = match &name {
            // A name may look like an option.
            Some(name) if name.as_str().starts_with('-') || self.me.as_str().starts_with('-') => {
                format!(
                    "{name} is writing to you; to answer: chat -- {} {name}",
                    self.me
                )
            }
            Some(name) => format!(
                "{name} is writing to you; to answer: chat {} {name}",
                self.me
            ),
            None => format!(
                "someone is writing to you as {shown}, which can't be a name: it can't be answered"
            ),
        };
        self.named.insert(shown);
        Some(notice)
    }
}

impl Away {
    fn until(ends: Offsets, what: &'static str) -> Away {
        Away {
            ends,
            what,
            lines: VecDeque::new(),
            earlier: 0,
            since: Vec::new(),
        }
    }

    /// Keeps a line for later. Says whether there is room to go on.
    fn take(&mut self, line: Item, partition: i32, offset: i64) -> bool {
        if self.ends.get(&partition).is_none_or(|&end| offset >= end) {
            self.since.push(line);
            return self.since.len() < LAST;
        }
        if self.lines.len() == LAST {
            self.lines.pop_front();
            self.earlier += 1;
        }
        self.lines.push_back(line);
        true
    }
}

fn reached(position: &Offsets, ends: &Offsets) -> bool {
    ends.iter()
        .all(|(partition, end)| *end == 0 || position.get(partition) >= Some(end))
}

/// The beginning of something that is no name, safe to show.
fn quoted(key: &[u8]) -> String {
    // No character takes more than four bytes.
    let beginning = visible(&key[..key.len().min(4 * QUOTED)]);
    let mut chars = beginning.chars();
    let mut quoted: String = chars.by_ref().take(QUOTED).collect();
    if chars.next().is_some() || key.len() > 4 * QUOTED {
        quoted.push('…');
    }
    format!("'{quoted}'")
}

fn lines(count: u64) -> String {
    match count {
        1 => "1 line".into(),
        n => format!("{n} lines"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn alice(unsigned: Unsigned, ends: &[(i32, i64)]) -> Conversation {
        let ends = ends.iter().copied().collect();
        Conversation::new(name("alice"), name("bob"), unsigned, ends)
    }

    /// What is shown of one record, a line of text each.
    fn take(
        chat: &mut Conversation,
        partition: i32,
        offset: i64,
        key: &str,
        value: &str,
    ) -> Vec<String> {
        in_words(chat.record(Record {
            partition,
            offset,
            key: key.as_bytes(),
            value: value.as_bytes(),
        }))
    }

    fn polled(chat: &mut Conversation, position: &[(i32, i64)]) -> Vec<String> {
        in_words(chat.polled(&position.iter().copied().collect()))
    }

    fn in_words(items: Vec<Item>) -> Vec<String> {
        let in_words = |item| match item {
            Item::Line { sender, text, .. } => format!("{sender}: {}", visible(&text)),
            Item::Notice(text) => format!("* {text}"),
            Item::Passed(offsets) => format!("{offsets:?}"),
        };
        items.into_iter().map(in_words).collect()
    }

    /// An open chat that has nothing to catch up with.
    fn open(unsigned: Unsigned) -> Conversation {
        let mut chat = alice(unsigned, &[(0, 0)]);
        assert_eq!(polled(&mut chat, &[(0, 0)]), ["{0: 0}"]);
        chat
    }

    #[test]
    fn only_the_peers_lines_are_shown() {
        let unsigned = "* someone without a name is writing to you; --unsigned shows such lines";
        let carol = "* carol is writing to you; to answer: chat alice carol";
        for (how, key, shown) in [
            (Unsigned::Hidden, "bob", "bob: hi"),
            (Unsigned::Hidden, "carol", carol),
            (Unsigned::Hidden, "", unsigned),
            (Unsigned::Shown, "carol", carol),
            (Unsigned::Shown, "", "(unsigned): hi"),
            (Unsigned::Peers, "bob", "bob: hi"),
            (Unsigned::Peers, "carol", carol),
            (Unsigned::Peers, "", "bob: hi"),
        ] {
            assert_eq!(
                take(&mut open(how), 0, 0, key, "hi"),
                [shown],
                "{how:?} {key}"
            );
        }
    }

    #[test]
    fn lines_under_the_users_own_name_are_passed_over() {
        assert!(take(&mut open(Unsigned::Shown), 0, 0, "alice", "hi").is_empty());
    }

    #[test]
    fn each_stranger_is_named_once() {
        let mut chat = open(Unsigned::Hidden);
        for (key, notices) in [
            ("carol", 1),
            ("carol", 0),
            ("dave", 1),
            ("carol", 0),
            ("", 1),
            ("", 0),
        ] {
            assert_eq!(take(&mut chat, 0, 0, key, "hi").len(), notices, "{key}");
        }
    }

    #[test]
    fn no_more_than_twenty_strangers_are_named() {
        let mut chat = open(Unsigned::Hidden);
        let notices: Vec<String> = (0..1000)
            .flat_map(|i| take(&mut chat, 0, i, &format!("user{i}"), "hi"))
            .collect();
        assert_eq!(notices.len(), 21);
        assert_eq!(
            notices[20],
            "* others are writing to you, too; no more of them will be named"
        );
        assert_eq!(chat.named.len(), 20);
    }

    #[test]
    fn a_name_that_is_none_is_quoted_and_harmless() {
        let long = "x".repeat(1_000_000);
        for (key, shown) in [
            ("\x1b[2J", "'^[[2J'"),
            ("car ol", "'car ol'"),
            ("bob\n", "'bob^J'"),
            ("b\u{200b}ob", "'b<U+200B>ob'"),
            (&long, "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…'"),
        ] {
            let notice = take(&mut open(Unsigned::Hidden), 0, 0, key, "hi");
            let expected = format!(
                "* someone is writing to you as {shown}, which can't be a name: it can't be answered"
            );
            assert_eq!(notice, [expected]);
        }
    }

    #[test]
    fn a_name_that_looks_like_an_option_can_be_answered() {
        let notice = take(&mut open(Unsigned::Hidden), 0, 0, "-b", "hi");
        assert_eq!(
            notice,
            ["* -b is writing to you; to answer: chat -- alice -b"]
        );
    }

    #[test]
    fn lines_written_while_away_come_under_a_header_when_all_are_read() {
        let mut chat = alice(Unsigned::Hidden, &[(0, 3), (1, 1)]);
        assert!(polled(&mut chat, &[(0, 0), (1, 0)]).is_empty());
        assert!(take(&mut chat, 0, 0, "bob", "one").is_empty());
        assert_eq!(take(&mut chat, 0, 1, "carol", "psst").len(), 1);
        assert!(take(&mut chat, 0, 2, "bob", "two").is_empty());
        assert!(polled(&mut chat, &[(0, 3), (1, 0)]).is_empty());
        // This one is new, and yet it waits for its turn.
        assert!(take(&mut chat, 0, 3, "bob", "four").is_empty());
        assert!(take(&mut chat, 1, 0, "bob", "three").is_empty());
        assert_eq!(
            polled(&mut chat, &[(0, 4), (1, 1)]),
            [
                "* 3 lines while you were away",
                "bob: one",
                "bob: two",
                "bob: three",
                "bob: four",
                "{0: 4, 1: 1}"
            ]
        );
        assert_eq!(take(&mut chat, 0, 4, "bob", "five"), ["bob: five"]);
    }

    #[test]
    fn only_the_last_hundred_lines_written_while_away_are_shown() {
        let mut chat = alice(Unsigned::Hidden, &[(0, 350)]);
        for i in 0..350 {
            assert!(take(&mut chat, 0, i, "bob", &i.to_string()).is_empty());
        }
        let shown = polled(&mut chat, &[(0, 350)]);
        assert_eq!(
            shown[0],
            "* 100 lines while you were away, and 250 earlier ones, not shown"
        );
        assert_eq!(shown[1], "bob: 250");
        assert_eq!(shown[100], "bob: 349");
        assert_eq!(shown[101], "{0: 350}");
        assert_eq!(shown.len(), 102);
    }

    #[test]
    fn strangers_lines_alone_give_no_header() {
        let mut chat = alice(Unsigned::Hidden, &[(0, 1)]);
        assert_eq!(take(&mut chat, 0, 0, "carol", "hi").len(), 1);
        assert_eq!(polled(&mut chat, &[(0, 1)]), ["{0: 1}"]);
    }

    #[test]
    fn an_empty_topic_is_passed_at_once_and_idle_polls_say_nothing() {
        let mut chat = alice(Unsigned::Hidden, &[(0, 0), (1, 0)]);
        assert_eq!(polled(&mut chat, &[(0, 0), (1, 0)]), ["{0: 0, 1: 0}"]);
        assert!(polled(&mut chat, &[(0, 0), (1, 0)]).is_empty());
    }

    #[test]
    fn a_flood_while_catching_up_is_not_kept_for_ever() {
        let mut chat = alice(Unsigned::Hidden, &[(0, 0), (1, 5)]);
        assert!(take(&mut chat, 1, 0, "bob", "old").is_empty());
        let shown: Vec<String> = (0..LAST as i64)
            .flat_map(|i| take(&mut chat, 0, i, "bob", "new"))
            .collect();
        assert_eq!(shown.len(), 1 + 1 + LAST);
        assert_eq!(take(&mut chat, 1, 1, "bob", "old"), ["bob: old"]);
    }

    #[test]
    fn a_log_that_lost_its_end_does_not_keep_the_user_waiting() {
        let mut chat = alice(Unsigned::Hidden, &[(0, 10)]);
        assert!(take(&mut chat, 0, 0, "bob", "hi").is_empty());
        chat.missed(0, false, 2);
        assert_eq!(polled(&mut chat, &[(0, 2)]).len(), 3);
    }

    #[test]
    fn a_log_that_is_read_from_its_beginning_again_is_not_shown_whole() {
        for (is_catching_up, header) in [
            (true, "100 lines while you were away, and 1900 earlier ones"),
            (
                false,
                "100 lines in the log, which is read again, and 1900 earlier ones",
            ),
        ] {
            let mut chat = alice(Unsigned::Hidden, &[(0, 2000), (1, 2000)]);
            if !is_catching_up {
                polled(&mut chat, &[(0, 2000), (1, 2000)]);
            }
            chat.missed(0, true, 1000);
            chat.missed(1, true, 1000);
            for offset in 0..1000 {
                assert!(take(&mut chat, 0, offset, "bob", "old").is_empty());
                assert!(take(&mut chat, 1, offset, "bob", "old").is_empty());
            }
            let shown = polled(&mut chat, &[(0, 1000), (1, 1000)]);
            assert_eq!(shown.len(), 1 + LAST + 1, "{shown:?}");
            assert!(shown[0].contains(header), "{shown:?}");
            assert_eq!(take(&mut chat, 0, 1000, "bob", "new"), ["bob: new"]);
        }
    }

    /// What the peer's committed offsets tell, a second later each.
    fn watch(chat: &mut Conversation, committed: &[&[(i32, i64)]]) -> Vec<Option<String>> {
        let start = Instant::now();
        (0..)
            .map(Duration::from_secs)
            .zip(committed)
            .map(|(at, offsets)| {
                let offsets = offsets.iter().copied().collect();
                chat.peer_read(&offsets, &name("bob"), start + at)
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
            // The log was made anew: that says nothing of anyone.
            &[(&[(0, 5)], None), (&[(0, 0)], None), (&[], None)],
        ];
        for case in cases {
            let (committed, told): (Vec<_>, Vec<_>) = case.iter().copied().unzip();
            let told: Vec<_> = told.iter().map(|t| t.map(String::from)).collect();
            assert_eq!(watch(&mut open(Unsigned::Hidden), &committed), told);
        }
    }

    #[test]
    fn a_peer_who_left_lines_unread_for_long_and_reads_again_is_here_again() {
        let mut chat = open(Unsigned::Hidden);
        assert!(watch(&mut chat, &[&[(0, 0)], &[(0, 1)]])[1].is_some());
        chat.sent(0, 1, 1);
        let quick: Vec<&[(i32, i64)]> = vec![&[(0, 1)], &[(0, 1)], &[(0, 2)]];
        assert!(watch(&mut chat, &quick).iter().all(Option::is_none));
        chat.sent(0, 2, 1);
        let mut slow: Vec<&[(i32, i64)]> = vec![&[(0, 2)]; 12];
        slow.push(&[(0, 3)]);
        let told = watch(&mut chat, &slow);
        assert!(told[..12].iter().all(Option::is_none));
        assert_eq!(told[12].as_deref(), Some("bob is here"));
    }

    #[test]
    fn own_lines_are_counted_until_the_peer_has_read_them() {
        let mut chat = open(Unsigned::Hidden);
        assert_eq!(chat.unread(), None);
        // Another sender's lines lie between, and count for nothing.
        chat.sent(1, 4, 2);
        chat.sent(1, 6, 1);
        chat.sent(1, 9, 1);
        assert_eq!(chat.sent.len(), 2);
        for (committed, told) in [
            (&[][..], Some("4 lines not read by bob yet")),
            (&[(0, 9)], Some("4 lines not read by bob yet")),
            (&[(1, 5)], Some("3 lines not read by bob yet")),
            (&[(1, 9)], Some("1 line not read by bob yet")),
            (&[(1, 10)], None),
        ] {
            watch(&mut chat, &[committed]);
            assert_eq!(chat.unread().as_deref(), told, "{committed:?}");
        }
        assert!(chat.sent.is_empty());
    }
}
