//! Who is shown, what is said about others, and what was written while the user was away.
//!
//! It knows no Kafka but partitions and offsets, and no terminal: records go in, what is to be shown comes
//! out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::Parties;
use super::clock::Clock;
use super::commands::Commands;
#[cfg(test)]
use super::gate::Downgrade;
use super::gate::Gate;
use super::history::Earlier;
use crate::client::{Offsets, Record, is_before, is_read_to};
use crate::delivery::lines;
use crate::name::Name;
use crate::terminal::quoted;

/// How many lines written while the user was away are shown: the last ones.
pub(super) const AWAY_LINES: usize = 100;

/// How many bytes they may have together, so that a peer can't fill the memory; the last one always stays.
pub(super) const AWAY_BYTES: usize = 1 << 20;

/// How many other senders are named before it is only said that there are more.
const NAMED_SENDERS: usize = 20;

/// What to do with lines that carry no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsigned {
    /// They are not shown; one notice says that they exist.
    Hidden,
    /// They are shown, without a sender.
    Shown,
    /// They count as the peer's: the tutorial's programs send no names.
    Peers,
}

/// A record that was read, as the conversation keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// The sender's name, by our convention.
    pub(super) key: Vec<u8>,
    pub(super) text: Vec<u8>,
    /// In milliseconds since 1970.
    pub(super) time: Option<i64>,
    /// Its sender's clock and the user's differ so much that its time is always shown.
    pub(super) is_dated: bool,
}

impl Line {
    /// The line in a record; `None` if that has no value.
    pub(super) fn of(record: &Record<'_>) -> Option<Line> {
        Some(Line {
            partition: record.partition,
            offset: record.offset,
            key: record.key.unwrap_or_default().to_vec(),
            text: record.value?.to_vec(),
            time: record.timestamp,
            is_dated: false,
        })
    }
}

/// Something for the user to see, or a position, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// A line of the conversation.
    Message {
        /// Who wrote it: not a [`Name`] if the line carried none.
        sender: String,
        text: Vec<u8>,
        /// In milliseconds since 1970.
        time: Option<i64>,
        is_dated: bool,
        /// Its partition and offset, if it is new.
        at: Option<(i32, i64)>,
    },
    /// Something about the conversation, in one line that is safe to show.
    Notice(String),
    /// Everything before these offsets is read and shown, once all items before this one are.
    Passed(Offsets),
}

/// What one user sees of a conversation with a peer.
pub(super) struct Conversation {
    pub(super) gate: Gate,
    parties: Parties,
    commands: Commands,
    clock: Clock,
    /// Of unread lines, by partition and offset.
    times: BTreeMap<(i32, i64), i64>,
    /// `Some` while catching up: at the start, and after the log is read again.
    away: Option<Away>,
    passed: Offsets,
    named: BTreeSet<String>,
    has_named_all: bool,
    has_warned_of_unsigned: bool,
}

/// What the lines are that were written while the user was away, for the user.
#[derive(Debug, Clone, Copy)]
enum What {
    /// All of them are unread.
    Unread,
    /// Something else, in words.
    Other(&'static str),
}

/// What was written while the user was away.
#[derive(Debug)]
struct Away {
    ends: Offsets,
    what: What,
    /// The last of them, bounded in number and bytes.
    lines: VecDeque<Item>,
    bytes: usize,
    /// How many came before those.
    earlier: u64,
    /// What came since, and is shown after them.
    since: Vec<Item>,
    since_bytes: usize,
}

impl Conversation {
    /// `ends` are the end offsets of the topic that is read, at the start. What lies before them was written while
    /// the user was away, if reading starts at a position that is known.
    pub(super) fn new(
        parties: &Parties,
        commands: Commands,
        gate: Gate,
        clock: Clock,
        ends: Offsets,
        is_position_known: bool,
    ) -> Conversation {
        let what = match is_position_known {
            true => What::Unread,
            false => What::Other("(your position is not known)"),
        };
        Conversation {
            gate,
            parties: parties.clone(),
            commands,
            clock,
            times: BTreeMap::new(),
            away: Some(Away::until(ends, what)),
            passed: Offsets::new(),
            named: BTreeSet::new(),
            has_named_all: false,
            has_warned_of_unsigned: false,
        }
    }

    /// One without a secret, at a position that is known.
    #[cfg(test)]
    pub(super) fn for_test(parties: &Parties, clock: Clock, ends: Offsets) -> Conversation {
        let gate = Gate::Plain(Downgrade::new(&parties.peer, false));
        Conversation::new(parties, Commands::default(), gate, clock, ends, true)
    }

    /// Shows what was said before the chat was opened.
    pub(super) fn earlier(&mut self, earlier: Earlier) -> Vec<Item> {
        self.times = earlier.times;
        let mut items: Vec<Item> = earlier.notices.into_iter().map(Item::Notice).collect();
        if earlier.is_sealed {
            items.extend(self.gate.on_sealed().map(Item::Notice));
        }
        let count = earlier.lines.len() as u64;
        if count > 0 {
            let lines = lines(count).replacen(' ', " earlier ", 1);
            items.push(Item::Notice(lines));
        }
        let messages = earlier.lines.into_iter().map(|line| Item::Message {
            sender: match self.parties.sender(&line.key) {
                Some(sender) => sender.into(),
                None => self.parties.me.to_string(),
            },
            text: line.text,
            time: match line.is_dated {
                true => line.time,
                false => self.clock.time(line.time, false),
            },
            is_dated: line.is_dated,
            at: None,
        });
        items.extend(messages);
        self.dated(items)
    }

    /// Opens a record of the topic that the user reads. Returns what to say first, and the line, unless it is not to be
    /// shown.
    pub(super) fn open(&mut self, line: Line, now: Instant) -> (Option<String>, Option<Line>) {
        match self.parties.sender(&line.key) {
            Some(_) => self.gate.pass(line, now),
            None => (None, Some(line)),
        }
    }

    /// Takes a record that was opened.
    pub(super) fn on_record(&mut self, line: Line) -> Vec<Item> {
        let Some(sender) = self.parties.sender(&line.key).map(String::from) else {
            let notice = self.stranger(&line.key);
            return notice.map(Item::Notice).into_iter().collect();
        };
        let (partition, offset, bytes) = (line.partition, line.offset, line.text.len());
        let time = line
            .time
            .or_else(|| self.times.remove(&(partition, offset)));
        let time = match line.is_dated {
            true => time,
            false => self.clock.time(time, !self.was_away(&line)),
        };
        let message = Item::Message {
            sender,
            text: line.text,
            time,
            is_dated: line.is_dated,
            at: Some((partition, offset)),
        };
        let Some(away) = &mut self.away else {
            return self.dated(vec![message]);
        };
        match away.take(message, bytes, partition, offset) {
            true => Vec::new(),
            false => self.welcome(),
        }
    }

    /// When the peer wrote this line, in milliseconds since 1970; `None` if that was before the chat was opened, or
    /// the line is not the peer's.
    pub(super) fn live_time(&self, line: &Line) -> Option<i64> {
        let is_live = line.key == self.parties.peer.as_bytes() && !self.was_away(line);
        is_live.then(|| self.clock.time(line.time, true)).flatten()
    }

    /// Whether this line was written while the user was away.
    fn was_away(&self, line: &Line) -> bool {
        let is_old = |away: &Away| is_before(&away.ends, line.partition, line.offset);
        self.away.as_ref().is_some_and(is_old)
    }

    /// Adds the day before each message with which a new one begins.
    fn dated(&mut self, items: Vec<Item>) -> Vec<Item> {
        let mut dated = Vec::with_capacity(items.len());
        for item in items {
            if let Item::Message { time, .. } = &item {
                dated.extend(self.clock.new_day(*time).map(Item::Notice));
            }
            dated.push(item);
        }
        dated
    }

    /// After every poll, and once before the first: which offsets come next.
    pub(super) fn polled(&mut self, position: &Offsets) -> Vec<Item> {
        let is_read = |away: &Away| is_read_to(&away.ends, position);
        let mut items = match self.away.as_ref().is_some_and(is_read) {
            true => self.welcome(),
            false => Vec::new(),
        };
        if self.away.is_none() && self.passed != *position {
            self.passed.clone_from(position);
            items.push(Item::Passed(position.clone()));
        }
        items
    }

    /// The log lost records, and now ends at `end`. If reading `goes_back`, its records may be new or already
    /// shown: they count as written while the user was away.
    pub(super) fn missed(&mut self, partition: i32, goes_back: bool, end: i64) {
        match &mut self.away {
            Some(away) => {
                let known = away.ends.entry(partition).and_modify(|e| *e = end.min(*e));
                if goes_back {
                    known.or_insert(end);
                }
            }
            None if goes_back => {
                let ends = [(partition, end)].into();
                self.away = Some(Away::until(ends, What::Other("from the log, read again")));
            }
            None => {}
        }
    }

    /// The topic was created again, and ends at `ends`: until there, its records count as written while the user
    /// was away.
    pub(super) fn restarted(&mut self, ends: &Offsets) {
        match &mut self.away {
            Some(away) => away.ends.clone_from(ends),
            None => {
                let what = What::Other("from the new topic");
                self.away = Some(Away::until(ends.clone(), what));
            }
        }
    }

    /// Shows what was written while the user was away, and what came since.
    fn welcome(&mut self) -> Vec<Item> {
        let Some(away) = self.away.take() else {
            return Vec::new();
        };
        let mut items = Vec::new();
        if let Some(Item::Message { time, .. }) = away.lines.front() {
            let what = match (away.what, self.clock.since(*time)) {
                (What::Unread, Some(time)) => format!("since {time}"),
                (What::Unread, None) => "while you were away".into(),
                (What::Other(what), _) => what.into(),
            };
            let mut header = format!("{} {what}", lines(away.lines.len() as u64));
            if away.earlier > 0 {
                header += &format!(", and {} earlier ones, not shown", away.earlier);
            }
            items.push(Item::Notice(header));
        }
        items.extend(away.lines);
        items.extend(away.since);
        self.dated(items)
    }

    /// What to say about a line that is not shown: once for each sender, up to a number of senders.
    fn stranger(&mut self, key: &[u8]) -> Option<String> {
        if key.is_empty() {
            let notice = match self.gate.is_sealed() {
                true => "someone without a name is writing to you",
                false => "someone without a name is writing to you; --unsigned shows such lines",
            };
            return (!std::mem::replace(&mut self.has_warned_of_unsigned, true))
                .then(|| notice.into());
        }
        if key == self.parties.me.as_bytes() {
            // The user's own lines need no notice.
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
        if self.named.len() == NAMED_SENDERS {
            return (!std::mem::replace(&mut self.has_named_all, true))
                .then(|| "others are writing to you, too; no more of them will be named".into());
        }
        let notice = match &name {
            // What would follow leads out of the seal.
            Some(name) if self.gate.is_sealed() => format!("{name} is writing to you"),
            Some(name) => {
                let how = self.commands.answer(&self.parties.me, name);
                format!("{name} is writing to you; {how}")
            }
            None => format!(
                "someone writes to you as {shown}, which is not a valid name, so you cannot answer"
            ),
        };
        self.named.insert(shown);
        Some(notice)
    }
}

impl Away {
    fn until(ends: Offsets, what: What) -> Away {
        Away {
            ends,
            what,
            lines: VecDeque::new(),
            bytes: 0,
            earlier: 0,
            since: Vec::new(),
            since_bytes: 0,
        }
    }

    /// Keeps a message of so many bytes for later. Returns whether there is room for more.
    fn take(&mut self, message: Item, bytes: usize, partition: i32, offset: i64) -> bool {
        if !is_before(&self.ends, partition, offset) {
            self.since.push(message);
            self.since_bytes += bytes;
            return self.since.len() < AWAY_LINES && self.since_bytes < AWAY_BYTES;
        }
        self.lines.push_back(message);
        self.bytes += bytes;
        while self.lines.len() > AWAY_LINES || (self.bytes > AWAY_BYTES && self.lines.len() > 1) {
            if let Some(Item::Message { text, .. }) = self.lines.pop_front() {
                self.bytes -= text.len();
                self.earlier += 1;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opener::Opener;
    use crate::terminal::visible;

    const DAY: i64 = 24 * 60 * 60 * 1000;

    /// Noon of 3 January 1970.
    const NOW: i64 = 2 * DAY + DAY / 2;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn alice(unsigned: Unsigned, ends: &[(i32, i64)]) -> Conversation {
        let parties = Parties {
            unsigned,
            ..Parties::new(name("alice"), name("bob"), false, false).unwrap()
        };
        let clock = Clock::for_test(|| NOW);
        Conversation::for_test(&parties, clock, ends.iter().copied().collect())
    }

    /// What is shown of one record, a line of text each.
    fn take(
        chat: &mut Conversation,
        partition: i32,
        offset: i64,
        key: &str,
        value: &str,
    ) -> Vec<String> {
        take_at(chat, partition, offset, key, value, None)
    }

    /// The same with a time.
    fn take_at(
        chat: &mut Conversation,
        partition: i32,
        offset: i64,
        key: &str,
        value: &str,
        time: Option<i64>,
    ) -> Vec<String> {
        in_words(chat.on_record(Line {
            partition,
            offset,
            key: key.into(),
            text: value.into(),
            time,
            is_dated: false,
        }))
    }

    fn polled(chat: &mut Conversation, position: &[(i32, i64)]) -> Vec<String> {
        in_words(chat.polled(&position.iter().copied().collect()))
    }

    fn in_words(items: Vec<Item>) -> Vec<String> {
        let in_words = |item| match item {
            Item::Message { sender, text, .. } => format!("{sender}: {}", visible(&text)),
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
    fn notices_of_a_sealed_chat_do_not_advise_to_leave_the_seal() {
        let mut chat = open(Unsigned::Hidden);
        chat.gate = Gate::Sealed(Box::new(Opener::for_test("alice")));
        let carol = take(&mut chat, 0, 0, "carol", "hi");
        assert_eq!(carol, ["* carol is writing to you"]);
        let unsigned = take(&mut chat, 0, 1, "", "hi");
        assert_eq!(unsigned, ["* someone without a name is writing to you"]);
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
                "* someone writes to you as {shown}, which is not a valid name, so you cannot answer"
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
    fn what_was_written_while_away_takes_bounded_memory() {
        let mut chat = alice(Unsigned::Hidden, &[(0, 100), (1, 1)]);
        let large = "x".repeat(AWAY_BYTES / 4);
        for i in 0..100 {
            assert!(take(&mut chat, 0, i, "bob", &large).is_empty());
        }
        // These came since, while the other partition is still to be read.
        let shown: Vec<String> = (100..104)
            .flat_map(|i| take(&mut chat, 0, i, "bob", &large))
            .collect();
        assert_eq!(shown.len(), 1 + 4 + 4);
        assert_eq!(
            shown[0],
            "* 4 lines while you were away, and 96 earlier ones, not shown"
        );
    }

    #[test]
    fn the_header_says_since_when_and_each_new_day_is_told() {
        for (times, shown) in [
            (
                [None, None],
                &["* 2 lines while you were away", "bob: one", "bob: two"][..],
            ),
            (
                [Some(NOW - 3_600_000), Some(NOW)],
                &["* 2 lines since 11:00", "bob: one", "bob: two"],
            ),
            (
                [Some(NOW - DAY), Some(NOW)],
                &[
                    "* 2 lines since yesterday 12:00",
                    "* Friday 2 January 1970",
                    "bob: one",
                    "* Saturday 3 January 1970",
                    "bob: two",
                ],
            ),
            (
                [Some(0), None],
                &[
                    "* 2 lines since 1970-01-01 00:00",
                    "* Thursday 1 January 1970",
                    "bob: one",
                    "bob: two",
                    // The live one.
                    "* Saturday 3 January 1970",
                ],
            ),
        ] {
            let mut chat = alice(Unsigned::Hidden, &[(0, 2)]);
            for (offset, (text, time)) in (0..).zip(["one", "two"].into_iter().zip(times)) {
                assert!(take_at(&mut chat, 0, offset, "bob", text, time).is_empty());
            }
            let mut all = polled(&mut chat, &[(0, 2)]);
            assert_eq!(all.pop().as_deref(), Some("{0: 2}"));
            all.extend(take(&mut chat, 0, 2, "bob", "three"));
            assert_eq!(all.pop().as_deref(), Some("bob: three"));
            assert_eq!(all, shown, "{times:?}");
        }
    }

    #[test]
    fn a_chat_opens_with_what_was_said_before() {
        let line = |offset, key: &str, time| Line {
            partition: 0,
            offset,
            key: key.into(),
            text: offset.to_string().into(),
            time: Some(time),
            is_dated: false,
        };
        let mut chat = alice(Unsigned::Shown, &[(0, 8)]);
        let shown = chat.earlier(Earlier {
            lines: vec![
                line(3, "bob", NOW - DAY),
                line(5, "alice", NOW - 1),
                line(4, "", NOW),
            ],
            times: [((0, 7), NOW - DAY)].into(),
            notices: vec!["not all of it".into()],
            is_sealed: false,
        });
        assert!(
            shown
                .iter()
                .all(|it| !matches!(it, Item::Message { at: Some(_), .. }))
        );
        assert_eq!(
            in_words(shown),
            [
                "* not all of it",
                "* 3 earlier lines",
                "* Friday 2 January 1970",
                "bob: 3",
                "* Saturday 3 January 1970",
                "alice: 5",
                "(unsigned): 4",
            ]
        );
        // An unread line whose record was read without its time.
        assert!(take(&mut chat, 0, 7, "bob", "7").is_empty());
        assert_eq!(
            polled(&mut chat, &[(0, 8)])[..2],
            ["* 1 line since yesterday 12:00", "* Friday 2 January 1970"]
        );
        let one = Earlier {
            lines: vec![line(0, "alice", NOW)],
            ..Earlier::default()
        };
        let one = in_words(alice(Unsigned::Hidden, &[]).earlier(one));
        assert_eq!(one, ["* 1 earlier line", "alice: 0"]);
        let none = alice(Unsigned::Hidden, &[]).earlier(Earlier::default());
        assert!(none.is_empty());
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
        let shown: Vec<String> = (0..AWAY_LINES as i64)
            .flat_map(|i| take(&mut chat, 0, i, "bob", "new"))
            .collect();
        assert_eq!(shown.len(), 1 + 1 + AWAY_LINES);
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
                "100 lines from the log, read again, and 1900 earlier ones",
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
            assert_eq!(shown.len(), 1 + AWAY_LINES + 1, "{shown:?}");
            assert!(shown[0].contains(header), "{shown:?}");
            assert_eq!(take(&mut chat, 0, 1000, "bob", "new"), ["bob: new"]);
        }
    }
}
