//! The state of an open chat, which one thread owns: what arrives, and what is to be done about it.
//!
//! It has no thread, no channel and no terminal in it, and no clock but the one it is given.

use std::time::{Duration, Instant};

use super::Parties;
use super::conversation::{Conversation, Item, Line};
use super::peer::Peer;
use super::positions::Outcome;
use crate::client::{Event, Offsets, Report};
use crate::delivery::{Ledger, Typed};
use crate::ending::{OutputClosed, Signal};
use crate::error::{Error, Result};
use crate::terminal::{ScreenEvent, quoted};

/// How long the end of a chat takes at most; it has a second in all.
const END_WAIT: Duration = Duration::from_millis(800);
/// How much of that it waits for acknowledgements.
const ACKNOWLEDGEMENT_WAIT: Duration = Duration::from_millis(600);
/// After how many failures in a row it is said that the position can't be committed.
const FAILED_COMMITS: u32 = 3;

/// All that can happen to a chat.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A poll of the consumer.
    Polled(Polled),
    /// The consumer can't go on.
    ReadFailed(Error),
    /// A line was typed and handed to the producer.
    Typed(Typed),
    /// What the producer reports.
    Report(Report),
    /// The screen's events.
    Screen(ScreenEvent),
    /// What came of a commit, and what the peer's position is.
    Position(Outcome),
    /// No more input comes, and why.
    InputEnded(Result<()>),
    /// Ctrl-C at a moment without an editor, SIGTERM or SIGHUP.
    Signal,
    /// Nobody reads standard output any more.
    OutputClosed,
    /// The time that [`Chat::deadline`] names has come.
    Deadline,
}

/// What one poll gave.
#[derive(Debug, Default)]
pub(super) struct Polled {
    pub(super) events: Vec<Event>,
    pub(super) lines: Vec<Line>,
    /// The offsets to be read next.
    pub(super) position: Offsets,
}

macro_rules! arrivals {
    ($($type:ty => $make:expr),* $(,)?) => {
        $(impl From<$type> for Arrival {
            fn from(value: $type) -> Arrival {
                $make(value)
            }
        })*
    };
}

arrivals! {
    Report => Arrival::Report,
    Typed => Arrival::Typed,
    ScreenEvent => Arrival::Screen,
    Outcome => Arrival::Position,
    Signal => |_| Arrival::Signal,
    OutputClosed => |_| Arrival::OutputClosed,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub(super) enum Effect {
    /// Show this.
    Show(Item),
    /// The screen has written up to these positions.
    Printed(Offsets),
    /// Have the consumer poll again, once the screen has room.
    Poll,
    /// A commit is done: these positions are committed, or unchanged.
    Committed(Option<Offsets>),
    /// Leave the terminal as it was found.
    CloseScreen,
    /// Commit what was shown and look up the peer's position, for the last time.
    Finish,
    /// End the program.
    End(Result<()>),
}

/// An open chat.
#[derive(Debug)]
pub(super) struct Chat {
    conversation: Conversation,
    /// `None` where the peer's position is never known: the tutorial's scripts commit nothing.
    peer: Option<Peer>,
    ledger: Ledger,
    /// How long the last lines of a pipe may take.
    patience: Duration,
    stage: Stage,
    /// The connection is lost, and the user knows.
    is_away: bool,
    failed_commits: u32,
}

/// How far the end of the chat has come.
#[derive(Debug)]
enum Stage {
    Open,
    /// No more input comes, but the last lines of a pipe are waited for, and messages are still shown.
    Draining {
        until: Instant,
        reason: Result<()>,
    },
    /// The last lines are waited for briefly.
    Closing {
        until: Instant,
        end: Instant,
        reason: Result<()>,
    },
    /// The last commit is waited for.
    Finishing {
        end: Instant,
        reason: Result<()>,
    },
}

impl Chat {
    /// A chat whose consumer is to be polled from the start. `ends` are the end offsets of the topic that
    /// is read.
    pub(super) fn new(
        parties: &Parties,
        ends: Offsets,
        ledger: Ledger,
        patience: Duration,
    ) -> Chat {
        let (me, peer) = (parties.me.clone(), parties.peer.clone());
        let topic = parties.writes().clone();
        Chat {
            peer: (!parties.swapped).then(|| Peer::new(peer.clone(), topic)),
            conversation: Conversation::new(me, peer, parties.unsigned, ends),
            ledger,
            patience,
            stage: Stage::Open,
            is_away: false,
            failed_commits: 0,
        }
    }

    /// When [`Arrival::Deadline`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Open => None,
            Stage::Draining { until, .. } | Stage::Closing { until, .. } => Some(*until),
            Stage::Finishing { end, .. } => Some(*end),
        }
    }

    /// What to do about an arrival.
    pub(super) fn handle(&mut self, arrival: Arrival, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        match arrival {
            Arrival::Polled(polled) => effects = self.polled(polled),
            Arrival::Typed(typed) => self.ledger.took(typed),
            Arrival::Report(report) => effects.extend(self.report(&report, now)),
            Arrival::Screen(ScreenEvent::Printed(passes)) => effects.push(Effect::Printed(passes)),
            Arrival::Screen(ScreenEvent::Notice(text)) => effects.push(notice(text)),
            Arrival::Screen(ScreenEvent::Failed(error)) => {
                self.close(Err(error), now, &mut effects)
            }
            Arrival::Position(outcome) => self.outcome(outcome, now, &mut effects),
            Arrival::InputEnded(Ok(())) if !self.ledger.is_typed() => self.drain(Ok(()), now),
            Arrival::InputEnded(reason) => self.close(reason, now, &mut effects),
            Arrival::ReadFailed(error) => self.close(Err(error), now, &mut effects),
            Arrival::OutputClosed => self.close(Ok(()), now, &mut effects),
            Arrival::Signal => self.interrupt(now, &mut effects),
            Arrival::Deadline => self.next_stage(now, &mut effects),
        }
        while let Stage::Draining { .. } | Stage::Closing { .. } = self.stage
            && self.ledger.is_settled()
        {
            self.next_stage(now, &mut effects);
        }
        effects
    }

    fn polled(&mut self, polled: Polled) -> Vec<Effect> {
        let mut effects = Vec::new();
        for event in polled.events {
            match &event {
                Event::Lost { .. } => self.is_away = true,
                Event::Back { .. } => self.is_away = false,
                Event::Refused { .. } => {}
                Event::Missed {
                    partition,
                    wanted,
                    resumed,
                    end,
                } => self.conversation.missed(*partition, resumed < wanted, *end),
            }
            effects.push(notice(event.to_string()));
        }
        let items = polled
            .lines
            .into_iter()
            .flat_map(|line| self.conversation.record(line));
        effects.extend(items.map(Effect::Show));
        let items = self.conversation.polled(&polled.position);
        effects.extend(items.into_iter().map(Effect::Show));
        effects.push(Effect::Poll);
        effects
    }

    fn report(&mut self, report: &Report, now: Instant) -> Option<Effect> {
        self.ledger.record(report);
        match report {
            Report::Acknowledged {
                count,
                partition,
                offset,
                ..
            } => {
                if let Some(peer) = &mut self.peer {
                    peer.sent(*partition, *offset, *count);
                }
                None
            }
            Report::Failed {
                count,
                excerpt,
                why,
                ..
            } => {
                if !self.ledger.is_typed() && self.ledger.is_broken() {
                    // As a publisher: the next line would fare no better.
                    self.drain(Err(self.ledger.rest_is_unread()), now);
                    return None;
                }
                let excerpt = quoted(excerpt);
                Some(notice(match count - 1 {
                    0 => format!("{excerpt} was not delivered: {why}"),
                    more => format!("{excerpt} and {more} more were not delivered: {why}"),
                }))
            }
            // The consumer's connection tells enough.
            Report::Connection(_) => None,
        }
    }

    fn outcome(&mut self, outcome: Outcome, now: Instant, effects: &mut Vec<Effect>) {
        match outcome {
            Outcome::Committed(Ok(offsets)) => {
                self.failed_commits = 0;
                effects.push(Effect::Committed(Some(offsets)));
            }
            Outcome::Committed(Err(error)) => {
                // It is tried again, and that the connection is lost was said already.
                self.failed_commits += u32::from(!self.is_away);
                if self.failed_commits == FAILED_COMMITS && !self.is_away {
                    effects.push(notice(format!("cannot save what you have read: {error}")));
                }
                effects.push(Effect::Committed(None));
            }
            Outcome::Peer(position) => {
                let Some(peer) = &mut self.peer else {
                    return;
                };
                let news = match position {
                    Ok(offsets) => peer.position(offsets, now),
                    Err(_) if self.is_away => None,
                    Err(error) => peer.unknown(&error),
                };
                // Who leaves need not know who has just come.
                let is_leaving = matches!(self.stage, Stage::Finishing { .. });
                effects.extend(news.filter(|_| !is_leaving).map(notice));
            }
            Outcome::Finished => self.next_stage(now, effects),
        }
    }

    /// Waits for the last lines of a pipe, as long as a line may take.
    fn drain(&mut self, reason: Result<()>, now: Instant) {
        if matches!(self.stage, Stage::Open) {
            self.ledger.close();
            let until = now + self.patience;
            self.stage = Stage::Draining { until, reason };
        }
    }

    /// Begins the end, within a second.
    fn close(&mut self, reason: Result<()>, now: Instant, effects: &mut Vec<Effect>) {
        if let Stage::Open | Stage::Draining { .. } = self.stage {
            self.ledger.close();
            effects.push(Effect::CloseScreen);
            self.stage = Stage::Closing {
                until: now + ACKNOWLEDGEMENT_WAIT,
                end: now + END_WAIT,
                reason,
            };
        }
    }

    /// Ends because the user, or the system, wants it. For a pipe that is a failure: there may be more.
    fn interrupt(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        match &self.stage {
            Stage::Open | Stage::Draining { .. } => {
                self.ledger.close();
                let reason = match self.ledger.is_typed() {
                    true => Ok(()),
                    false => Err(self.ledger.interrupted()),
                };
                self.close(reason, now, effects);
            }
            // Once more: the user does not want to wait.
            Stage::Closing { .. } | Stage::Finishing { .. } => self.end(effects),
        }
    }

    fn next_stage(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        match std::mem::replace(&mut self.stage, Stage::Open) {
            Stage::Open => {}
            Stage::Draining { reason, .. } => self.close(reason, now, effects),
            Stage::Closing { end, reason, .. } => {
                effects.push(Effect::Finish);
                self.stage = Stage::Finishing { end, reason };
            }
            stage @ Stage::Finishing { .. } => {
                self.stage = stage;
                self.end(effects);
            }
        }
    }

    fn end(&mut self, effects: &mut Vec<Effect>) {
        let unread = self.peer.as_ref().and_then(Peer::unread);
        effects.extend(unread.map(notice));
        let (Stage::Draining { reason, .. }
        | Stage::Closing { reason, .. }
        | Stage::Finishing { reason, .. }) = std::mem::replace(&mut self.stage, Stage::Open)
        else {
            return;
        };
        effects.push(Effect::End(self.ledger.verdict_after(reason)));
    }
}

fn notice(text: String) -> Effect {
    Effect::Show(Item::Notice(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::visible;

    /// Alice's chat with bob, whose topic had this end, and of which so many lines were taken.
    fn alice(is_typed: bool, end: i64, taken: u64) -> Chat {
        let name = |name: &str| name.parse().unwrap();
        let parties = Parties::new(name("alice"), name("bob"), false, false).unwrap();
        let ledger = Ledger::new(is_typed);
        ledger.take(taken);
        Chat::new(
            &parties,
            [(0, end)].into(),
            ledger,
            Duration::from_secs(100),
        )
    }

    fn in_words(effect: Effect) -> String {
        match effect {
            Effect::Show(Item::Message { sender, text, .. }) => {
                format!("{sender}: {}", visible(&text))
            }
            Effect::Show(Item::Notice(text)) => format!("* {text}"),
            Effect::Show(Item::Passed(offsets)) => format!("passed {offsets:?}"),
            Effect::Printed(offsets) => format!("printed {offsets:?}"),
            Effect::Committed(offsets) => format!("committed {offsets:?}"),
            Effect::Poll => "poll".into(),
            Effect::CloseScreen => "close".into(),
            Effect::Finish => "finish".into(),
            Effect::End(Ok(())) => "end".into(),
            Effect::End(Err(error)) => format!("end {}: {error}", error.exit_code()),
        }
    }

    /// What comes of each arrival.
    fn handle(chat: &mut Chat, arrivals: Vec<Arrival>) -> Vec<Vec<String>> {
        let now = Instant::now();
        let handle = |arrival| {
            chat.handle(arrival, now)
                .into_iter()
                .map(in_words)
                .collect()
        };
        arrivals.into_iter().map(handle).collect()
    }

    fn polled(end: i64, texts: &[&str], events: Vec<Event>) -> Arrival {
        let first = end - texts.len() as i64;
        let line = |(offset, text): (i64, &&str)| Line {
            partition: 0,
            offset,
            key: b"bob".to_vec(),
            text: text.as_bytes().to_vec(),
        };
        Arrival::Polled(Polled {
            events,
            lines: (first..).zip(texts).map(line).collect(),
            position: [(0, end)].into(),
        })
    }

    fn acknowledged(first: u64, count: u64) -> Arrival {
        Arrival::Report(Report::Acknowledged {
            first,
            count,
            partition: 0,
            offset: first as i64,
        })
    }

    fn failed(first: u64, count: u64, why: Error) -> Arrival {
        Arrival::Report(Report::Failed {
            first,
            count,
            excerpt: b"hello".to_vec(),
            why,
        })
    }

    fn peer(offset: i64) -> Arrival {
        Arrival::Position(Outcome::Peer(Ok([(0, offset)].into())))
    }

    fn denied() -> Error {
        Error::failed("cannot write", "not allowed")
    }

    fn lost() -> Event {
        Event::Lost {
            broker: "b:1".into(),
            why: "gone".into(),
        }
    }

    fn back() -> Event {
        Event::Back {
            broker: "b:1".into(),
        }
    }

    #[test]
    fn an_open_chat_shows_what_arrives_and_polls_again() {
        let denied_to_commit =
            || Arrival::Position(Outcome::Committed(Err(Error::failed("cannot commit", "x"))));
        let unknown =
            || Arrival::Position(Outcome::Peer(Err(Error::failed("cannot read", "denied"))));
        type Case = (&'static str, Vec<Arrival>, Vec<Vec<&'static str>>);
        let table: Vec<Case> = vec![
            (
                "a message",
                vec![polled(1, &["hi"], vec![])],
                vec![vec!["bob: hi", "passed {0: 1}", "poll"]],
            ),
            (
                "what was printed",
                vec![Arrival::Screen(ScreenEvent::Printed([(0, 1)].into()))],
                vec![vec!["printed {0: 1}"]],
            ),
            (
                "a connection that is lost and back",
                vec![polled(0, &[], vec![lost()]), polled(0, &[], vec![back()])],
                vec![
                    vec![
                        "* connection to b:1 lost (gone), retrying",
                        "passed {0: 0}",
                        "poll",
                    ],
                    vec!["* connection to b:1 is back", "poll"],
                ],
            ),
            (
                "commits that fail are said at the third time",
                vec![denied_to_commit(), denied_to_commit(), denied_to_commit()],
                vec![
                    vec!["committed None"],
                    vec!["committed None"],
                    vec![
                        "* cannot save what you have read: cannot commit: x",
                        "committed None",
                    ],
                ],
            ),
            (
                "but not while the connection is lost",
                vec![
                    polled(0, &[], vec![lost()]),
                    denied_to_commit(),
                    denied_to_commit(),
                    denied_to_commit(),
                    unknown(),
                ],
                vec![
                    vec![
                        "* connection to b:1 lost (gone), retrying",
                        "passed {0: 0}",
                        "poll",
                    ],
                    vec!["committed None"],
                    vec!["committed None"],
                    vec!["committed None"],
                    vec![],
                ],
            ),
            (
                "a peer who comes",
                vec![peer(0), peer(0), peer(1)],
                vec![vec![], vec![], vec!["* bob is here"]],
            ),
            (
                "a peer's position that can't be known",
                vec![unknown(), unknown()],
                vec![
                    vec!["* what bob has read can't be known: cannot read: denied"],
                    vec![],
                ],
            ),
        ];
        for (what, arrivals, expected) in table {
            let mut chat = alice(true, 0, 0);
            assert_eq!(handle(&mut chat, arrivals), expected, "{what}");
            assert_eq!(chat.deadline(), None, "{what}");
        }
    }

    #[test]
    fn a_failed_line_is_named_by_how_it_begins() {
        let mut chat = alice(true, 0, 4);
        assert_eq!(
            handle(
                &mut chat,
                vec![failed(1, 1, denied()), failed(2, 3, denied())]
            ),
            [
                ["* 'hello' was not delivered: cannot write: not allowed"],
                ["* 'hello' and 2 more were not delivered: cannot write: not allowed"],
            ]
        );
    }

    /// A chat's end: typed or not, how many lines were taken, what arrives, and what comes of it all.
    type End = (bool, u64, Vec<Arrival>, Vec<&'static str>);

    #[test]
    fn a_chat_ends_in_order_whatever_ends_it() {
        let ended = || Arrival::InputEnded(Ok(()));
        let finished = || Arrival::Position(Outcome::Finished);
        let table: Vec<End> = vec![
            // The user leaves; nothing is in flight.
            (
                true,
                0,
                vec![ended(), finished()],
                vec!["close", "finish", "end"],
            ),
            // The last line is acknowledged, and read or not.
            (
                true,
                1,
                vec![peer(0), ended(), acknowledged(1, 1), finished()],
                vec!["close", "finish", "* 1 line not read by bob yet", "end"],
            ),
            (
                true,
                1,
                vec![peer(0), ended(), acknowledged(1, 1), peer(2), finished()],
                vec!["close", "finish", "end"],
            ),
            // It is not acknowledged, and the last commit takes too long.
            (
                true,
                1,
                vec![Arrival::Signal, Arrival::Deadline, Arrival::Deadline],
                vec!["close", "finish", "end 1: 1 of 1 line was not delivered: "],
            ),
            // The user does not want to wait.
            (
                true,
                1,
                vec![Arrival::Signal, Arrival::Signal],
                vec!["close", "end 1: 1 of 1 line was not delivered: "],
            ),
            // A pipe's lines are waited for, and messages shown meanwhile.
            (
                false,
                1,
                vec![
                    ended(),
                    polled(1, &["hi"], vec![]),
                    acknowledged(1, 1),
                    finished(),
                ],
                vec!["bob: hi", "passed {0: 1}", "poll", "close", "finish", "end"],
            ),
            // A pipe that is interrupted is not read to its end.
            (
                false,
                1,
                vec![acknowledged(1, 1), Arrival::Signal, finished()],
                vec![
                    "close",
                    "finish",
                    "end 1: interrupted after 1 line, all delivered: the rest of the input was not read",
                ],
            ),
            // A pipe stops when lines can't be delivered any more.
            (
                false,
                2,
                vec![failed(1, 1, denied()), acknowledged(2, 1), finished()],
                vec![
                    "close",
                    "finish",
                    "end 1: stopped reading after line 2: lines can't be delivered any more",
                ],
            ),
            // But not because of a line that is too large.
            (
                false,
                1,
                vec![failed(1, 1, Error::too_large()), ended(), finished()],
                vec![
                    "* 'hello' was not delivered: too large: a broker takes about 1 MB, unless its \
                     message.max.bytes says otherwise",
                    "close",
                    "finish",
                    "end 1: 1 of 1 line was not delivered: ",
                ],
            ),
            // Nobody reads the output, or it can't be written, or nothing can be read any more.
            (
                true,
                0,
                vec![Arrival::OutputClosed, finished()],
                vec!["close", "finish", "end"],
            ),
            (
                true,
                0,
                vec![
                    Arrival::Screen(ScreenEvent::Failed(Error::failed("cannot write", "full"))),
                    ended(),
                    finished(),
                ],
                vec!["close", "finish", "end 1: cannot write: full"],
            ),
            (
                true,
                0,
                vec![
                    Arrival::ReadFailed(Error::failed("cannot read", "denied")),
                    finished(),
                ],
                vec!["close", "finish", "end 1: cannot read: denied"],
            ),
        ];
        for (is_typed, taken, arrivals, expected) in table {
            let what = format!("typed: {is_typed}, {taken} lines, {arrivals:#?}");
            let mut chat = alice(is_typed, 0, taken);
            let effects = handle(&mut chat, arrivals).concat();
            // Of an error, the first line.
            let effects = effects.iter().map(|e| e.lines().next().unwrap_or_default());
            assert_eq!(effects.collect::<Vec<_>>(), expected, "{what}");
        }
    }

    #[test]
    fn who_leaves_is_not_told_who_comes() {
        let mut chat = alice(true, 0, 0);
        let arrivals = vec![peer(0), Arrival::InputEnded(Ok(())), peer(5)];
        assert_eq!(
            handle(&mut chat, arrivals),
            [vec![], vec!["close", "finish"], vec![]]
        );
    }
}
