//! Which lines of a topic are shown, and what is said about the others.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::line::{self, Opened, Refusal};
use super::{Keys, Secret};
use crate::error::Result;
use crate::name::Name;
use crate::terminal::quoted;

/// How many sessions are remembered; the least recently used go.
const MOST_SESSIONS: usize = 10_000;

/// Between two notices of the same kind.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// How to mend what two programs with different secrets say.
const SAME_SECRET: &str = "both programs need the same secret (--secret-file)";

/// A line whose clock differs from the reader's by more, in milliseconds, is shown with its time.
const CLOCK_DIFFERENCE: u64 = 5 * 60 * 1000;

/// What notices are about, each kind for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    NotSealed,
    OtherSecret,
    Forged,
    Repeated,
    Missing,
    Unseen,
}

/// In the order of their declaration.
const KINDS: [Kind; 6] = [
    Kind::NotSealed,
    Kind::OtherSecret,
    Kind::Forged,
    Kind::Repeated,
    Kind::Missing,
    Kind::Unseen,
];

/// What came of a record.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    /// What to say before the line.
    pub notice: Option<String>,
    /// The line, if it is to be shown.
    pub line: Option<Opened>,
}

/// Reads the sealed lines of one topic, and remembers which it has read.
pub struct Reader {
    keys: Keys,
    sessions: Sessions,
    tallies: [Tally; KINDS.len()],
    /// For the associated data and for the session of each line.
    buffer: Vec<u8>,
}

impl Reader {
    /// For the lines of a topic.
    pub fn new(secret: &Secret, topic: &Name) -> Result<Reader> {
        Keys::new(secret, topic).map(Reader::with)
    }

    /// With keys that no secret has.
    #[cfg(test)]
    pub(crate) fn for_test(topic: &str) -> Reader {
        Reader::with(Keys::for_test(topic))
    }

    fn with(keys: Keys) -> Reader {
        Reader {
            keys,
            sessions: Sessions::default(),
            tallies: Default::default(),
            buffer: Vec::new(),
        }
    }

    /// Takes a record whose line is to be shown, if it can be. `is_old` says whether it was in the log at the start.
    pub fn read(&mut self, sender: &[u8], value: &[u8], is_old: bool, now: Instant) -> Read {
        let mut notice = None;
        let line = match self.place(sender, value) {
            Ok((Place::After(missing), line)) => {
                notice = self.count(Kind::Missing, missing, sender, now);
                Some(line)
            }
            Ok((Place::First(unseen @ 1..), line)) => {
                if !is_old {
                    notice = self.count(Kind::Unseen, unseen, sender, now);
                }
                Some(line)
            }
            Ok((_, line)) => Some(line),
            Err(kind) => {
                notice = self.count(kind, 1, sender, now);
                None
            }
        };
        Read { notice, line }
    }

    /// A line and where it stands, or what is wrong with it.
    fn place(&mut self, sender: &[u8], value: &[u8]) -> Result<(Place, Opened), Kind> {
        let line = line::open(&self.keys, sender, value, &mut self.buffer);
        let line = line.map_err(|refusal| match refusal {
            Refusal::NotSealed => Kind::NotSealed,
            Refusal::OtherSecret => Kind::OtherSecret,
            Refusal::Forged => Kind::Forged,
        })?;
        let session = session_key(sender, &line, &mut self.buffer);
        match self.sessions.take(session, line.number) {
            Place::Repeated => Err(Kind::Repeated),
            place => Ok((place, line)),
        }
    }

    /// Opens a record out of turn, such as one before the start. The first part of what it returns is for
    /// [`remember`](Reader::remember).
    pub fn look(&self, sender: &[u8], value: &[u8]) -> Option<(Seen, Opened)> {
        let mut session = SessionKey::new();
        let line = line::open(&self.keys, sender, value, &mut session).ok()?;
        session_key(sender, &line, &mut session);
        Some((Seen(session, line.number), line))
    }

    /// From now on, that line would be a repeated one.
    pub fn remember(&mut self, Seen(session, number): Seen) {
        self.sessions.raise(&session, number);
    }

    /// Whether that line would be shown now. If so, it would be a repeated one from now on.
    pub fn takes(&mut self, Seen(session, number): Seen) -> bool {
        self.sessions.take(&session, number) != Place::Repeated
    }

    /// The counts that are due: those of lines for which nothing was said so far. `is_end` makes all of them due.
    pub fn counts(&mut self, is_end: bool, now: Instant) -> Vec<String> {
        let kinds = KINDS.iter().zip(&mut self.tallies);
        let due = |(kind, tally): (&Kind, &mut Tally)| {
            let lines = tally.due(is_end, now)?;
            Some(kind.later_notice(lines))
        };
        kinds.filter_map(due).collect()
    }

    fn count(&mut self, kind: Kind, lines: u64, sender: &[u8], now: Instant) -> Option<String> {
        let is_first = self.tallies[kind as usize].add(lines, now);
        is_first.then(|| kind.notice(lines, sender))
    }
}

/// A line that was opened, but not shown: its session and its number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen(SessionKey, u64);

fn session_key<'a>(sender: &[u8], line: &Opened, key: &'a mut SessionKey) -> &'a [u8] {
    key.clear();
    key.extend_from_slice(&line.session);
    key.extend_from_slice(sender);
    key
}

/// Whether a line is shown with its time: the clocks of its sender and its reader, in milliseconds since 1970,
/// differ by more than five minutes.
pub fn is_dated(clock: i64, now: i64) -> bool {
    clock.abs_diff(now) > CLOCK_DIFFERENCE
}

/// What a reader without a secret says of the first sealed line.
pub fn notice_without_secret(sender: &[u8]) -> String {
    format!(
        "lines {} are sealed: --secret-file FILE opens them",
        of(sender)
    )
}

/// Whose a line is, after the word for it.
fn of(sender: &[u8]) -> String {
    match str::from_utf8(sender).map(str::parse::<Name>) {
        Ok(Ok(name)) => format!("from {name}"),
        _ if sender.is_empty() => "without a sender".into(),
        _ => format!("from {}", quoted(sender)),
    }
}

impl Kind {
    /// About the first lines of this kind.
    fn notice(self, lines: u64, sender: &[u8]) -> String {
        let of = of(sender);
        match self {
            Kind::NotSealed => {
                format!("a line {of} is not sealed, and not shown; {SAME_SECRET}")
            }
            Kind::OtherSecret => {
                format!("a line {of} is sealed with another secret, and not shown; {SAME_SECRET}")
            }
            Kind::Forged => format!("a line {of} is damaged or forged, and not shown"),
            Kind::Repeated => format!("a line {of} is repeated or out of order, and not shown"),
            Kind::Missing => match lines {
                1 => format!("1 line {of} is missing"),
                n => format!("{n} lines {of} are missing"),
            },
            Kind::Unseen => match lines {
                1 => format!("1 earlier line {of} was not seen"),
                n => format!("{n} earlier lines {of} were not seen"),
            },
        }
    }

    /// About lines after those.
    fn later_notice(self, lines: u64) -> String {
        let what = match self {
            Kind::Unseen if lines == 1 => return "1 more earlier line was not seen".into(),
            Kind::Unseen => return format!("{lines} more earlier lines were not seen"),
            Kind::NotSealed => "not sealed",
            Kind::OtherSecret => "sealed with another secret",
            Kind::Forged => "damaged or forged",
            Kind::Repeated => "repeated or out of order",
            Kind::Missing => "missing",
        };
        match lines {
            1 => format!("1 more line is {what}"),
            n => format!("{n} more lines are {what}"),
        }
    }
}

/// Lines of one kind: when something was said about them, and how many came since.
#[derive(Debug, Default)]
struct Tally {
    said_at: Option<Instant>,
    unsaid: u64,
}

impl Tally {
    /// Counts lines. Returns whether they are the first ones, for which there is a notice at once.
    fn add(&mut self, lines: u64, now: Instant) -> bool {
        let is_first = self.said_at.is_none();
        match is_first {
            true => self.said_at = Some(now),
            false => self.unsaid = self.unsaid.saturating_add(lines),
        }
        is_first
    }

    /// How many lines a notice is due for.
    fn due(&mut self, is_end: bool, now: Instant) -> Option<u64> {
        let said_at = self.said_at.filter(|_| self.unsaid > 0)?;
        if !is_end && now.duration_since(said_at) < NOTICE_INTERVAL {
            return None;
        }
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// Where a line stands in its session.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Its session was not known; it has this number.
    First(u64),
    /// It follows the highest one so far.
    Next,
    /// It follows it after so many that are missing.
    After(u64),
    /// It does not.
    Repeated,
}

/// The highest number of each session, for the sessions that were used last.
#[derive(Debug, Default)]
struct Sessions {
    known: HashMap<SessionKey, Known>,
    /// The same sessions, the least recently used first.
    by_use: BTreeMap<u64, SessionKey>,
    uses: u64,
}

/// A session and its sender.
type SessionKey = Vec<u8>;

#[derive(Debug)]
struct Known {
    highest: u64,
    /// Its key in `by_use`.
    used: u64,
}

impl Sessions {
    /// Takes a line that is to be shown.
    fn take(&mut self, key: &[u8], number: u64) -> Place {
        let place = match self.known.get(key).map(|known| known.highest) {
            None => Place::First(number),
            Some(highest) if number <= highest => return Place::Repeated,
            Some(highest) if number - highest == 1 => Place::Next,
            Some(highest) => Place::After(number - highest - 1),
        };
        self.raise(key, number);
        place
    }

    /// The session has come at least as far as this number.
    fn raise(&mut self, key: &[u8], number: u64) {
        if let Some(known) = self.known.get_mut(key) {
            known.highest = known.highest.max(number);
            if known.used == self.uses {
                return;
            }
            self.by_use.remove(&known.used);
            self.uses += 1;
            known.used = self.uses;
        } else {
            if self.known.len() == MOST_SESSIONS
                && let Some((_, least)) = self.by_use.pop_first()
            {
                self.known.remove(&least);
            }
            self.uses += 1;
            let used = self.uses;
            let highest = number;
            self.known.insert(key.to_vec(), Known { highest, used });
        }
        self.by_use.insert(self.uses, key.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader of bob's topic that knows nothing yet, and a time.
    fn bob() -> (Reader, Instant) {
        (Reader::for_test("bob"), Instant::now())
    }

    /// A line of the topic, in the session that this byte names.
    fn sealed(sender: &str, session: u8, number: u64) -> Vec<u8> {
        line::for_test(&Keys::for_test("bob"), sender, [session; 16], number)
    }

    /// What a reader says and shows of lines, each given as its session, its number and whether it is old.
    fn read(reader: &mut Reader, now: Instant, lines: &[(u8, u64, bool)]) -> Vec<String> {
        let mut all = Vec::new();
        for &(session, number, is_old) in lines {
            let read = reader.read(b"alice", &sealed("alice", session, number), is_old, now);
            all.extend(read.notice);
            all.extend(
                read.line
                    .map(|line| String::from_utf8(line.text().to_vec()).unwrap()),
            );
        }
        all
    }

    #[test]
    fn a_line_is_shown_once_and_in_its_order() {
        let repeated = "a line from alice is repeated or out of order, and not shown";
        type Row<'a> = (&'a [(u8, u64, bool)], &'a [&'a str]);
        let table: &[Row<'_>] = &[
            (
                &[(1, 0, false), (1, 1, false), (1, 2, false)],
                &["1:0", "1:1", "1:2"],
            ),
            // Repeated at once, or later.
            (&[(1, 0, false), (1, 0, false)], &["1:0", repeated]),
            (
                &[(1, 0, true), (1, 1, true), (1, 0, false)],
                &["1:0", "1:1", repeated],
            ),
            // Out of order: what comes late is not shown.
            (
                &[(1, 0, false), (1, 2, false), (1, 1, false), (1, 3, false)],
                &[
                    "1:0",
                    "1 line from alice is missing",
                    "1:2",
                    repeated,
                    "1:3",
                ],
            ),
            (
                &[(1, 0, true), (1, 5, true)],
                &["1:0", "4 lines from alice are missing", "1:5"],
            ),
            // Each session has its own numbers.
            (
                &[(1, 7, true), (2, 0, false), (1, 8, false), (2, 1, false)],
                &["1:7", "2:0", "1:8", "2:1"],
            ),
            // A beginning is missed only after the end that was found at the start.
            (&[(1, 3, true)], &["1:3"]),
            (
                &[(1, 3, false)],
                &["3 earlier lines from alice were not seen", "1:3"],
            ),
            (
                &[(1, 1, false)],
                &["1 earlier line from alice was not seen", "1:1"],
            ),
            (
                &[(1, u64::MAX, true), (1, 0, true)],
                &["1:18446744073709551615", repeated],
            ),
            (
                &[(1, 0, true), (1, u64::MAX, true)],
                &[
                    "1:0",
                    "18446744073709551614 lines from alice are missing",
                    "1:18446744073709551615",
                ],
            ),
        ];
        for (lines, expected) in table {
            let (mut reader, now) = bob();
            assert_eq!(read(&mut reader, now, lines), *expected, "{lines:?}");
        }
    }

    #[test]
    fn what_was_seen_before_the_start_is_repeated_after_it() {
        let (mut reader, now) = bob();
        for number in [4, 2] {
            let (seen, _) = reader.look(b"alice", &sealed("alice", 1, number)).unwrap();
            reader.remember(seen);
        }
        assert!(reader.look(b"carol", &sealed("alice", 1, 9)).is_none());
        let shown = read(
            &mut reader,
            now,
            &[(1, 3, false), (1, 4, false), (1, 5, false)],
        );
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert_eq!(shown[1], "1:5");
        assert_eq!(
            reader.counts(true, now),
            ["1 more line is repeated or out of order"]
        );
    }

    #[test]
    fn each_kind_has_one_notice_and_then_a_count_every_ten_seconds_at_most() {
        let (mut reader, now) = bob();
        let mut say = |value: &[u8], second| {
            let now = now + Duration::from_secs(second);
            let read = reader.read(b"alice", value, false, now);
            assert_eq!(read.line, None);
            let mut said: Vec<String> = read.notice.into_iter().collect();
            said.extend(reader.counts(false, now));
            said
        };
        let (plain, none) = (&b"hi"[..], Vec::<String>::new());
        let forged = sealed("carol", 1, 0);
        assert_eq!(
            say(plain, 0),
            [
                "a line from alice is not sealed, and not shown; both programs need the same secret (--secret-file)"
            ]
        );
        assert_eq!(say(plain, 1), none);
        assert_eq!(
            say(&forged, 2),
            ["a line from alice is damaged or forged, and not shown"]
        );
        assert_eq!(say(plain, 9), none);
        assert_eq!(say(plain, 10), ["3 more lines are not sealed"]);
        assert_eq!(say(plain, 11), none);
        assert_eq!(say(&forged, 12), ["1 more line is damaged or forged"]);
        assert_eq!(say(&forged, 20), ["1 more line is not sealed"]);
        let end = now + Duration::from_secs(21);
        assert_eq!(
            reader.counts(true, end),
            ["1 more line is damaged or forged"]
        );
        assert_eq!(reader.counts(true, end), none);
    }

    #[test]
    fn a_later_notice_is_a_sentence_for_one_line_and_for_many() {
        for (kind, one, two) in [
            (
                Kind::Missing,
                "1 more line is missing",
                "2 more lines are missing",
            ),
            (
                Kind::Unseen,
                "1 more earlier line was not seen",
                "2 more earlier lines were not seen",
            ),
        ] {
            assert_eq!([1, 2].map(|lines| kind.later_notice(lines)), [one, two]);
        }
    }

    #[test]
    fn a_senders_key_can_be_anything() {
        for (sender, of) in [
            (&b""[..], "without a sender"),
            (b"\x1b[2J", "from '^[[2J'"),
            (b"carol", "from carol"),
        ] {
            let (mut reader, now) = bob();
            let notice = reader.read(sender, b"", false, now).notice.unwrap();
            assert!(
                notice.starts_with(&format!("a line {of} is not sealed")),
                "{notice}"
            );
        }
    }

    #[test]
    fn the_sessions_that_were_used_last_are_kept() {
        let mut sessions = Sessions::default();
        let key = |n: usize| n.to_be_bytes().to_vec();
        for n in 0..MOST_SESSIONS {
            assert_eq!(sessions.take(&key(n), 0), Place::First(0));
        }
        // The first one is used again, so the second one goes.
        assert_eq!(sessions.take(&key(0), 1), Place::Next);
        assert_eq!(sessions.take(&key(0), 2), Place::Next);
        assert_eq!(sessions.take(&key(MOST_SESSIONS), 0), Place::First(0));
        assert_eq!(sessions.known.len(), MOST_SESSIONS);
        assert_eq!(sessions.by_use.len(), MOST_SESSIONS);
        assert_eq!(sessions.take(&key(0), 2), Place::Repeated);
        assert_eq!(sessions.take(&key(2), 0), Place::Repeated);
        assert_eq!(sessions.take(&key(1), 0), Place::First(0));
    }

    #[test]
    fn a_line_is_dated_if_the_clocks_differ_by_more_than_five_minutes() {
        let five = 5 * 60 * 1000;
        for (clock, now, dated) in [
            (0, five, false),
            (0, five + 1, true),
            (five + 1, 0, true),
            (i64::MIN, i64::MAX, true),
        ] {
            assert_eq!(is_dated(clock, now), dated);
        }
    }
}
