//! The thread that owns a chat: its conversation, its lines in flight and its screen. What arrives is handled
//! in one `match`.

use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use super::bell::Bell;
use super::conversation::{Conversation, Item, Line};
use super::history::Earlier;
use super::peer::Peer;
use super::positions::{Outcome, Task};
use super::presence::Presence;
use super::{Options, Parties};
use crate::client::{Event, Offsets, Report};
use crate::delivery::{Cause, Ledger};
use crate::error::{Error, Result};
use crate::terminal::{Message, Screen, ScreenEvent};

/// How long the end of a chat takes at most; it has a second in all.
const END_WAIT: Duration = Duration::from_millis(800);
/// How much of that it waits for acknowledgements.
const ACKNOWLEDGEMENT_WAIT: Duration = Duration::from_millis(600);
/// How much longer a chat in a pipe may wait for its last commits. Nobody waits for a prompt there, and without them the next
/// chat shows messages again, and the peer does not learn that this one has ended.
const COMMIT_WAIT: Duration = Duration::from_secs(9);
/// After how many failures in a row it is said that the position can't be committed.
const FAILED_COMMITS: u32 = 3;

/// All that can happen to a chat.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A poll of the consumer.
    Polled(Polled),
    /// What was said before, once.
    Earlier(Earlier),
    /// The consumer can't go on.
    ReadFailed(Error),
    /// What becomes of the user's lines.
    Report(Report),
    /// An event of the screen.
    Screen(ScreenEvent),
    /// What came of a commit, and what is known of the peer.
    Position(Outcome),
    /// No more input comes, and why.
    InputEnded(Result<()>),
    /// Ctrl-C while no line is edited, SIGTERM or SIGHUP.
    Signal,
    /// Nobody reads standard output any more.
    OutputClosed,
    /// The time of [`Chat::deadline`] has come.
    Deadline,
}

impl From<Report> for Arrival {
    fn from(report: Report) -> Arrival {
        Arrival::Report(report)
    }
}

/// What one poll gave.
#[derive(Debug, Default)]
pub(super) struct Polled {
    pub(super) events: Vec<Event>,
    pub(super) lines: Vec<Line>,
    /// The offsets to be read next.
    pub(super) position: Offsets,
}

/// An open chat.
pub(super) struct Chat {
    conversation: Conversation,
    /// `None` where nothing is ever known of the peer: the tutorial's scripts commit nothing.
    peer: Option<Peer>,
    presence: Option<Presence>,
    ledger: Ledger,
    /// How long the last lines of a pipe may take.
    patience: Duration,
    bell: Option<Bell>,
    stage: Stage,
    screen: Screen,
    /// Each message makes the consumer poll once.
    poll_requests: Sender<()>,
    /// The consumer waits for the screen to have room.
    is_poll_due: bool,
    tasks: Sender<Task>,
    committed: Offsets,
    /// A commit is under way: the next one waits for its outcome.
    is_committing: bool,
    failed_commits: u32,
    /// The peer's position is being looked up every few seconds.
    is_watching: bool,
    /// A look at the peer was asked for, and is under way.
    is_looking: bool,
    /// The peer's position was looked up after the last lines were acknowledged.
    is_position_final: bool,
    /// What remains to be done at the end is done, but the peer may still be reading.
    is_finished: bool,
    /// The connection is lost, and the user knows.
    is_disconnected: bool,
}

/// How far the end of a chat has come, and why it ends.
#[derive(Debug)]
enum Stage {
    Open,
    /// No more input comes, but the last lines of a pipe are waited for, and messages are still shown.
    Draining(Instant, Cause),
    /// The last lines are waited for briefly.
    Closing(Instant, Cause),
    /// The last commit is waited for.
    Finishing(Instant, Cause),
    Ended(Result<()>),
}

impl Chat {
    /// A chat whose consumer waits for a request to poll.
    pub(super) fn new(
        parties: &Parties,
        options: &Options,
        conversation: Conversation,
        ledger: Ledger,
        screen: Screen,
        poll_requests: Sender<()>,
        tasks: Sender<Task>,
    ) -> Chat {
        let (peer, topic) = (&parties.peer, parties.writes());
        let peer_commits = !parties.swapped;
        Chat {
            peer: peer_commits.then(|| Peer::new(peer.clone(), topic.clone())),
            presence: peer_commits.then(|| Presence::new(peer.clone())),
            conversation,
            ledger,
            patience: options.delivery_timeout() * 2,
            bell: options.bell.then(|| Bell::new(&parties.peer)),
            stage: Stage::Open,
            screen,
            poll_requests,
            is_poll_due: false,
            tasks,
            committed: Offsets::new(),
            is_committing: false,
            failed_commits: 0,
            is_watching: true,
            // The first look is made without being asked for.
            is_looking: true,
            is_position_final: false,
            is_finished: false,
            is_disconnected: false,
        }
    }

    /// Handles what arrives until the chat has ended, and returns how.
    pub(super) fn run(mut self, arrivals: &Receiver<Arrival>) -> Result<()> {
        loop {
            let arrival = match self.deadline() {
                None => arrivals.recv().ok(),
                Some(at) => arrivals
                    .recv_timeout(at.saturating_duration_since(Instant::now()))
                    .ok(),
            };
            self.handle(arrival.unwrap_or(Arrival::Deadline), Instant::now());
            if let Stage::Ended(result) = &self.stage {
                let result = result.clone();
                if let Some(unread) = self.unread() {
                    self.screen.notice(&unread);
                }
                return result;
            }
        }
    }

    /// Whether messages are still shown.
    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Draining(..))
    }

    /// When [`Arrival::Deadline`] is due.
    fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Finishing(at, Cause::Ended(_)) if self.is_committing_for_a_pipe() => {
                Some(at + COMMIT_WAIT)
            }
            Stage::Draining(at, _) | Stage::Closing(at, _) | Stage::Finishing(at, _) => Some(at),
            Stage::Open | Stage::Ended(_) => None,
        }
    }

    /// Whether a pipe has commits left that can be done.
    fn is_committing_for_a_pipe(&self) -> bool {
        !(self.is_finished || self.is_disconnected || self.ledger.is_typed())
    }

    fn handle(&mut self, arrival: Arrival, now: Instant) {
        match arrival {
            Arrival::Polled(polled) => self.polled(polled, now),
            Arrival::Earlier(earlier) if self.is_open() => {
                let items = self.conversation.earlier(earlier);
                self.show(items, now);
            }
            Arrival::Earlier(_) => {}
            Arrival::Report(report) => self.report(&report, now),
            Arrival::Screen(ScreenEvent::Printed(passes)) => self.screen.printed(passes),
            Arrival::Screen(ScreenEvent::Notice(text)) => self.screen.notice(&text),
            Arrival::Position(outcome) => self.position(outcome, now),
            Arrival::InputEnded(Ok(())) if !self.ledger.is_typed() => self.drain(Ok(()), now),
            Arrival::InputEnded(result) => self.close(Cause::Ended(result), now),
            Arrival::ReadFailed(error) | Arrival::Screen(ScreenEvent::Failed(error)) => {
                self.close(Cause::Ended(Err(error)), now);
            }
            Arrival::OutputClosed => self.close(Cause::Ended(Ok(())), now),
            Arrival::Signal => self.interrupt(now),
            Arrival::Deadline => self.next_stage(now),
        }
        // The batch being written is waited for, too: if its position were not committed, the next chat would show it again.
        while match self.stage {
            Stage::Draining(..) => self.ledger.is_settled(),
            Stage::Closing(..) => self.ledger.is_settled() && self.screen.is_settled(),
            Stage::Finishing(..) => self.is_finished && !self.may_be_read(),
            _ => false,
        } {
            self.next_stage(now);
        }
        self.screen.flush();
        self.commit();
        if self.is_open() {
            self.watch();
        }
        if self.is_poll_due && self.screen.has_room() {
            self.is_poll_due = false;
            // If the consumer has ended, it has said why.
            _ = self.poll_requests.send(());
        }
    }

    fn polled(&mut self, polled: Polled, now: Instant) {
        if !self.is_open() {
            return;
        }
        for event in polled.events {
            match &event {
                Event::Lost { .. } => self.is_disconnected = true,
                Event::Back { .. } => self.is_disconnected = false,
                Event::Refused { .. }
                | Event::Damaged { .. }
                | Event::Unreadable { .. }
                | Event::Stalled { .. }
                | Event::Flowing
                | Event::Compacted { .. } => {}
                Event::Missed {
                    partition,
                    wanted,
                    resumed,
                    end,
                } => self.conversation.missed(*partition, resumed < wanted, *end),
                Event::Recreated { ends, .. } => self.conversation.restarted(ends),
            }
            self.conversation.gate.on_event(&event);
            self.screen.notice(&event.to_string());
        }
        for line in polled.lines {
            let (notice, line) = self.conversation.open(line, now);
            if let Some(notice) = notice {
                self.screen.notice(&notice);
            }
            let Some(line) = line else {
                continue;
            };
            if let Some(time) = self.conversation.live_time(&line) {
                self.peer_has_written(time);
            }
            let items = self.conversation.on_record(line);
            self.show(items, now);
        }
        let items = self.conversation.polled(&polled.position);
        self.show(items, now);
        self.say_counts(false, now);
        // A chat in a pipe would go on sending. Typed lines are refused one by one.
        if let Some(refusal) = self.conversation.gate.refusal()
            && !self.ledger.is_typed()
        {
            self.drain(Err(refusal), now);
        }
        self.is_poll_due = true;
    }

    fn say_counts(&mut self, is_end: bool, now: Instant) {
        for count in self.conversation.gate.counts(is_end, now) {
            self.screen.notice(&count);
        }
    }

    /// A line of the peer has just arrived, written at `time`. If that does not show that the peer is here, asks for a
    /// look at the heartbeat.
    fn peer_has_written(&mut self, time: i64) {
        let Some(presence) = self.presence.as_mut().filter(|it| !it.is_here()) else {
            return;
        };
        if let Some(notice) = presence.has_written(time) {
            self.screen.notice(&notice);
        } else if !std::mem::replace(&mut self.is_looking, true) {
            _ = self.tasks.send(Task::Look);
        }
    }

    fn show(&mut self, items: Vec<Item>, now: Instant) {
        for item in items {
            match item {
                Item::Message {
                    sender,
                    text,
                    time,
                    is_dated,
                    at,
                } => {
                    let is_earlier = at.is_none();
                    let bell = self.bell.as_mut().filter(|_| !is_earlier);
                    if bell.is_some_and(|it| it.rings(&sender, now)) {
                        self.screen.ring();
                    }
                    let message = Message {
                        time,
                        is_dated,
                        sender: sender.into_bytes(),
                        text,
                        is_earlier,
                    };
                    self.screen.message(message, at);
                }
                Item::Notice(text) => self.screen.notice(&text),
                Item::Passed(offsets) => self.screen.passed(offsets),
            }
        }
    }

    fn report(&mut self, report: &Report, now: Instant) {
        let failure = self.ledger.failure_notice(report);
        self.ledger.apply(report);
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
            }
            // As in `publisher`: the next line would fail, too, so reading stops.
            Report::Failed { .. } if !self.ledger.is_typed() && self.ledger.is_broken() => {
                self.drain(Err(self.ledger.rest_is_unread()), now);
            }
            Report::Failed { .. } => failure.iter().for_each(|it| self.screen.notice(it)),
            // The consumer reports these, too.
            Report::Connection(Event::Lost { .. } | Event::Back { .. } | Event::Refused { .. })
            | Report::Typed { .. } => {}
            Report::Connection(event) => self.screen.notice(&event.to_string()),
        }
    }

    fn position(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Committed(Ok(offsets)) => {
                self.is_committing = false;
                self.committed = offsets;
                self.failed_commits = 0;
            }
            // It is tried again, and that the connection is lost was said already.
            Outcome::Committed(Err(error)) => {
                self.is_committing = false;
                self.failed_commits += u32::from(!self.is_disconnected);
                if self.failed_commits == FAILED_COMMITS && !self.is_disconnected {
                    let notice = format!("cannot save what you have read: {error}");
                    self.screen.notice(&notice);
                }
            }
            Outcome::OwnBeat(beat) => {
                let is_connected = !self.is_disconnected;
                let news = self.presence.as_mut().and_then(|presence| {
                    let beat = beat.as_ref().map_err(|error| is_connected.then_some(error));
                    presence.beaten(beat.copied())
                });
                self.tell(news);
            }
            Outcome::Beat(beat) => {
                self.is_looking = false;
                let is_connected = !self.is_disconnected;
                let news = self.presence.as_mut().and_then(|presence| match beat {
                    Ok(beat) => presence.looked(beat, now),
                    Err(error) => presence.not_looked(is_connected.then_some(&error)),
                });
                self.tell(news);
            }
            Outcome::Peer(position) => {
                let is_connected = !self.is_disconnected;
                let has_beaten = self.presence.as_ref().is_some_and(Presence::has_beaten);
                self.is_position_final =
                    position.is_ok() && matches!(self.stage, Stage::Finishing(..));
                let news = self.peer.as_mut().and_then(|peer| match position {
                    // The position of a chat that was opened just now is about to be committed.
                    Ok(offsets) => {
                        (peer.position(offsets) && !has_beaten).then(|| peer.lines_wait())
                    }
                    Err(error) => peer.unknown(is_connected.then_some(&error)),
                });
                self.tell(news);
            }
            Outcome::Finished => self.is_finished = true,
        }
    }

    /// Prints news about the peer, but not while the chat closes.
    fn tell(&mut self, news: Option<String>) {
        if let Some(news) = news.filter(|_| self.is_open()) {
            self.screen.notice(&news);
        }
    }

    /// Whether the peer is here as far as is known, and could still read what is unread.
    fn may_be_read(&self) -> bool {
        let may_be_here = self.presence.as_ref().is_some_and(Presence::may_be_here);
        may_be_here && self.peer.as_ref().is_some_and(|it| it.unread().is_some())
    }

    /// What to say at the end about unread lines. What a peer who may be here has not read is known only from the
    /// last look.
    fn unread(&self) -> Option<String> {
        let is_known = self.is_position_final || !self.may_be_read();
        self.peer.as_ref().filter(|_| is_known)?.unread()
    }

    /// Has the peer's position looked up as long as that may bring news.
    fn watch(&mut self) {
        let is_worth_it = self.peer.as_ref().is_some_and(Peer::is_worth_a_look);
        if self.is_watching != is_worth_it {
            self.is_watching = is_worth_it;
            _ = self.tasks.send(Task::WatchPosition(is_worth_it));
        }
    }

    /// Requests a commit of what was shown, unless it is committed.
    fn commit(&mut self) {
        if self.is_open() && !self.is_committing && *self.screen.shown() != self.committed {
            self.is_committing = true;
            // The thread ends only with the chat.
            _ = self.tasks.send(Task::Commit(self.screen.shown().clone()));
        }
    }

    /// Waits for the last lines of a pipe, as long as a line may take.
    fn drain(&mut self, result: Result<()>, now: Instant) {
        if let Stage::Open = self.stage {
            self.ledger.close();
            self.stage = Stage::Draining(now + self.patience, Cause::Ended(result));
        }
    }

    /// Begins the end, which takes less than a second.
    fn close(&mut self, cause: Cause, now: Instant) {
        if let Stage::Open | Stage::Draining(..) = self.stage {
            self.ledger.close();
            self.screen.close();
            self.say_counts(true, now);
            self.stage = Stage::Closing(now + ACKNOWLEDGEMENT_WAIT, cause);
        }
    }

    /// Ends because the user, or the system, wants it.
    fn interrupt(&mut self, now: Instant) {
        match std::mem::replace(&mut self.stage, Stage::Open) {
            Stage::Open => self.close(Cause::Interrupted, now),
            Stage::Draining(_, cause) => self.close(cause, now),
            // A second signal: do not wait.
            Stage::Closing(_, cause) | Stage::Finishing(_, cause) => self.end(cause),
            ended @ Stage::Ended(_) => self.stage = ended,
        }
    }

    fn end(&mut self, cause: Cause) {
        self.stage = Stage::Ended(self.ledger.verdict_after(cause));
    }

    fn next_stage(&mut self, now: Instant) {
        match std::mem::replace(&mut self.stage, Stage::Open) {
            Stage::Open => {}
            Stage::Draining(_, cause) => self.close(cause, now),
            Stage::Closing(until, cause) => {
                self.watch();
                let shown = self.screen.shown();
                let to_commit = (*shown != self.committed).then(|| shown.clone());
                _ = self.tasks.send(Task::Finish(to_commit));
                // Time that acknowledgements did not need goes to the last commit.
                let end = until - ACKNOWLEDGEMENT_WAIT + END_WAIT;
                self.stage = Stage::Finishing(end, cause);
            }
            Stage::Finishing(_, cause) => self.end(cause),
            ended @ Stage::Ended(_) => self.stage = ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::clock::Clock;
    use super::*;

    /// A chat, and the other ends of its channels.
    struct Alice {
        chat: Chat,
        print: Box<dyn FnMut() -> Option<(String, Offsets)>>,
        polls: Receiver<()>,
        tasks: Receiver<Task>,
    }

    /// Alice's chat with bob, in which so many lines were taken.
    fn alice(is_typed: bool, taken: u64) -> Alice {
        let name = |name: &str| name.parse().unwrap();
        let parties = Parties::new(name("alice"), name("bob"), false, false).unwrap();
        let ledger = Ledger::new(is_typed);
        ledger.take(taken);
        let (screen, print) = Screen::for_test();
        let (poll, polls) = mpsc::channel();
        let (task, tasks) = mpsc::channel();
        let options = Options::of(&["--delivery-timeout", "100"]);
        let clock = Clock::for_test(|| 0);
        let talk = Conversation::for_test(&parties, clock, [(0, 0)].into());
        Alice {
            chat: Chat::new(&parties, &options, talk, ledger, screen, poll, task),
            print: Box::new(print),
            polls,
            tasks,
        }
    }

    impl Alice {
        /// What an arrival leads to: what is printed, and what the workers are asked to do.
        fn handle(&mut self, arrival: Arrival) -> Vec<String> {
            let now = Instant::now();
            self.chat.handle(arrival, now);
            let mut effects = Vec::new();
            while let Some((text, passes)) = (self.print)() {
                effects.extend(text.lines().map(String::from));
                let printed = Arrival::Screen(ScreenEvent::Printed(passes));
                self.chat.handle(printed, now);
            }
            effects.extend(self.tasks.try_iter().map(|task| match task {
                Task::Commit(offsets) => format!("commit {offsets:?}"),
                Task::Look => "look".into(),
                Task::WatchPosition(true) => "watch".into(),
                Task::WatchPosition(false) => "watch no more".into(),
                Task::Finish(None) => "finish".into(),
                Task::Finish(Some(offsets)) => format!("finish {offsets:?}"),
            }));
            effects.extend(self.polls.try_iter().map(|()| "poll".into()));
            if let Stage::Ended(result) = &self.chat.stage {
                effects.extend(self.chat.unread());
                effects.push(match result {
                    Ok(()) => "end".into(),
                    Err(error) => {
                        let error = error.to_string();
                        format!("end: {}", error.lines().next().unwrap_or_default())
                    }
                });
            }
            effects
        }
    }

    fn polled(end: i64, texts: &[&str], events: Vec<Event>) -> Arrival {
        let first = end - texts.len() as i64;
        let line = |(offset, text): (i64, &&str)| Line {
            partition: 0,
            offset,
            key: b"bob".to_vec(),
            text: text.as_bytes().to_vec(),
            time: None,
            is_dated: false,
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

    fn beat(beat: i64) -> Arrival {
        Arrival::Position(Outcome::Beat(Ok(Some(beat))))
    }

    fn no_beat() -> Arrival {
        Arrival::Position(Outcome::Beat(Ok(None)))
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

    fn outcome(result: Result<Offsets, &str>) -> Arrival {
        let failed = |why| Error::failed("cannot commit", why);
        Arrival::Position(Outcome::Committed(result.map_err(failed)))
    }

    fn unknown() -> Arrival {
        let denied = Error::failed("cannot read", "denied");
        Arrival::Position(Outcome::Peer(Err(denied)))
    }

    fn nowhere() -> Arrival {
        Arrival::Position(Outcome::Peer(Ok(Offsets::new())))
    }

    /// What arrives, and what comes of it.
    type Case = Vec<(Arrival, Vec<&'static str>)>;

    fn check(mut alice: Alice, case: Case) {
        let what = format!("{case:#?}");
        for (arrival, expected) in case {
            let arrived = format!("{arrival:?}");
            assert_eq!(alice.handle(arrival), expected, "{arrived} in {what}");
        }
    }

    #[test]
    fn an_open_chat_shows_what_arrives_commits_and_polls_again() {
        let is_lost = || {
            let expected = vec![
                "connection to b:1 lost (gone), retrying",
                "commit {0: 0}",
                "poll",
            ];
            (polled(0, &[], vec![lost()]), expected)
        };
        let table: Vec<Case> = vec![
            vec![
                (
                    polled(1, &["hi"], vec![]),
                    vec!["bob: hi", "commit {0: 1}", "poll"],
                ),
                // One commit at a time.
                (polled(2, &["ho"], vec![]), vec!["bob: ho", "poll"]),
                (outcome(Ok([(0, 1)].into())), vec!["commit {0: 2}"]),
                (outcome(Ok([(0, 2)].into())), vec![]),
            ],
            vec![
                is_lost(),
                (
                    polled(0, &[], vec![back()]),
                    vec!["connection to b:1 is back", "poll"],
                ),
            ],
            // A commit that fails is tried again, which is said at the third time …
            vec![
                (polled(0, &[], vec![]), vec!["commit {0: 0}", "poll"]),
                (outcome(Err("x")), vec!["commit {0: 0}"]),
                (outcome(Err("x")), vec!["commit {0: 0}"]),
                (
                    outcome(Err("x")),
                    vec![
                        "cannot save what you have read: cannot commit: x",
                        "commit {0: 0}",
                    ],
                ),
                (outcome(Err("x")), vec!["commit {0: 0}"]),
            ],
            // … but not while the connection is lost.
            vec![
                is_lost(),
                (outcome(Err("x")), vec!["commit {0: 0}"]),
                (outcome(Err("x")), vec!["commit {0: 0}"]),
                (outcome(Err("x")), vec!["commit {0: 0}"]),
                (unknown(), vec![]),
            ],
            // Presence and position are looked up separately; the position only while that may tell anything.
            vec![
                (beat(5), vec![]),
                (peer(0), vec!["watch no more"]),
                (beat(6), vec!["bob is here"]),
                (acknowledged(1, 1), vec!["watch"]),
                (peer(1), vec![]),
                (peer(2), vec!["watch no more"]),
                (beat(0), vec!["bob has left"]),
            ],
            vec![
                (no_beat(), vec![]),
                (
                    nowhere(),
                    vec![
                        "bob has not opened a chat with you yet; your lines wait in the topic bob",
                        "watch no more",
                    ],
                ),
                (beat(5), vec!["bob is here"]),
            ],
            // Bob's first chat was opened just now: its first position is not committed yet.
            vec![(beat(5), vec![]), (nowhere(), vec!["watch no more"])],
            // Bob writes before two heartbeats are seen …
            vec![
                (polled(0, &[], vec![]), vec!["commit {0: 0}", "poll"]),
                (beat(5), vec![]),
                (
                    polled(1, &["hi"], vec![]),
                    vec!["bob is here", "bob: hi", "poll"],
                ),
                (beat(6), vec![]),
                (polled(2, &["ho"], vec![]), vec!["bob: ho", "poll"]),
            ],
            // … or before one is, or without any.
            vec![
                (polled(0, &[], vec![]), vec!["commit {0: 0}", "poll"]),
                (no_beat(), vec![]),
                (
                    polled(2, &["hi", "ho"], vec![]),
                    vec!["bob: hi", "bob: ho", "look", "poll"],
                ),
                (beat(5), vec!["bob is here"]),
            ],
            // A line that is not shown tells nothing.
            vec![
                (polled(0, &[], vec![]), vec!["commit {0: 0}", "poll"]),
                (beat(5), vec![]),
                (
                    polled(1, &["sealed1:AAAA"], vec![]),
                    vec![
                        "bob's lines are sealed, and not shown; to read them, and to send more, restart with the secret (--secret-file), or with --plain",
                        "poll",
                    ],
                ),
            ],
            vec![
                (
                    unknown(),
                    vec!["cannot tell what bob has read: cannot read: denied"],
                ),
                (unknown(), vec![]),
            ],
        ];
        for case in table {
            check(alice(true, 0), case);
        }
    }

    #[test]
    fn a_failed_line_is_named_by_how_it_begins() {
        let case = vec![
            (
                failed(1, 1, denied()),
                vec!["'hello' was not delivered: cannot write: not allowed"],
            ),
            (
                failed(2, 3, denied()),
                vec!["'hello' and 2 more were not delivered: cannot write: not allowed"],
            ),
            (
                failed(5, 1, Error::unacknowledged("cannot write", "no answer")),
                vec!["'hello' may not have arrived: cannot write: no answer"],
            ),
        ];
        check(alice(true, 5), case);
    }

    #[test]
    fn a_piped_chat_waits_for_a_message_that_is_just_being_written() {
        let mut alice = alice(false, 1);
        let now = Instant::now();
        alice.chat.handle(polled(1, &["hi"], vec![]), now);
        let (_, passes) = (alice.print)().unwrap();
        alice.chat.handle(Arrival::InputEnded(Ok(())), now);
        alice.chat.handle(acknowledged(1, 1), now);
        assert_eq!(alice.tasks.try_iter().count(), 0);
        assert_eq!(alice.polls.try_iter().count(), 1);
        let printed = Arrival::Screen(ScreenEvent::Printed(passes));
        assert_eq!(alice.handle(printed), ["finish {0: 1}"]);
    }

    #[test]
    fn nothing_is_shown_and_nothing_polled_once_a_chat_is_closed() {
        let mut alice = alice(true, 1);
        alice.handle(Arrival::Signal);
        let lost = polled(1, &["hi"], vec![lost()]);
        assert_eq!(alice.handle(lost), Vec::<String>::new());
    }

    #[test]
    fn the_last_commit_has_the_time_that_acknowledgements_did_not_need() {
        let mut alice = alice(true, 0);
        let start = Instant::now();
        alice.chat.handle(Arrival::InputEnded(Ok(())), start);
        assert_eq!(alice.chat.deadline(), Some(start + END_WAIT));
    }

    #[test]
    fn the_end_of_a_pipe_waits_longer_for_its_last_commits() {
        for (is_typed, end, longer) in [
            (false, Arrival::InputEnded(Ok(())), COMMIT_WAIT),
            (true, Arrival::InputEnded(Ok(())), Duration::ZERO),
            (false, Arrival::Signal, Duration::ZERO),
        ] {
            let (mut alice, start) = (alice(is_typed, 0), Instant::now());
            alice.handle(polled(1, &["hi"], vec![]));
            alice.chat.handle(end, start);
            assert_eq!(alice.chat.deadline(), Some(start + END_WAIT + longer));
            alice.chat.handle(outcome(Ok([(0, 1)].into())), start);
            assert_eq!(alice.chat.deadline(), Some(start + END_WAIT + longer));
            // A peer who may be reading is not waited for any longer.
            alice
                .chat
                .handle(Arrival::Position(Outcome::Finished), start);
            assert!(
                alice
                    .chat
                    .deadline()
                    .is_none_or(|at| at == start + END_WAIT)
            );
        }
        // What is lost is not waited for.
        let (mut alice, start) = (alice(false, 0), Instant::now());
        alice.handle(polled(1, &["hi"], vec![lost()]));
        alice.chat.handle(Arrival::InputEnded(Ok(())), start);
        assert_eq!(alice.chat.deadline(), Some(start + END_WAIT));
    }

    #[test]
    fn a_full_screen_stops_the_reading() {
        let mut alice = alice(true, 0);
        let large = &*"x".repeat(1 << 20);
        alice
            .chat
            .handle(polled(1, &[large], vec![]), Instant::now());
        // The editor takes it, and more comes before it is written.
        alice
            .chat
            .handle(polled(2, &[large], vec![]), Instant::now());
        alice
            .chat
            .handle(polled(8, &[large; 6], vec![]), Instant::now());
        alice.polls.try_iter().for_each(drop);
        assert!(!alice.chat.screen.has_room());
        alice.chat.handle(polled(8, &[], vec![]), Instant::now());
        assert_eq!(alice.polls.try_iter().count(), 0);
        let effects = alice.handle(peer(0));
        assert_eq!(effects.iter().filter(|it| *it == "poll").count(), 1);
    }

    #[test]
    fn a_chat_ends_in_order_whatever_ends_it() {
        let ended = || Arrival::InputEnded(Ok(()));
        let finished = || Arrival::Position(Outcome::Finished);
        let undelivered = "end: 1 of 1 line may not have arrived:";
        let table: Vec<(bool, u64, Case)> = vec![
            // The user leaves; nothing is in flight.
            (
                true,
                0,
                vec![(ended(), vec!["finish"]), (finished(), vec!["end"])],
            ),
            // The last line is acknowledged, and unread or read.
            (
                true,
                1,
                vec![
                    (no_beat(), vec![]),
                    (peer(0), vec!["watch no more"]),
                    (ended(), vec![]),
                    (acknowledged(1, 1), vec!["watch", "finish"]),
                    (finished(), vec!["1 line not read by bob yet", "end"]),
                ],
            ),
            (
                true,
                1,
                vec![
                    (no_beat(), vec![]),
                    (peer(0), vec!["watch no more"]),
                    (ended(), vec![]),
                    (acknowledged(1, 1), vec!["watch", "finish"]),
                    // After the user leaves, nothing is said about who comes.
                    (beat(5), vec![]),
                    (peer(2), vec![]),
                    (finished(), vec!["end"]),
                ],
            ),
            // Bob is here: he may be reading it just now …
            (
                true,
                1,
                vec![
                    (beat(5), vec![]),
                    (peer(0), vec!["watch no more"]),
                    (acknowledged(1, 1), vec!["watch"]),
                    (ended(), vec!["finish"]),
                    (peer(1), vec![]),
                    (finished(), vec![]),
                    (peer(2), vec!["end"]),
                ],
            ),
            // … or not …
            (
                true,
                1,
                vec![
                    (beat(5), vec![]),
                    (peer(0), vec!["watch no more"]),
                    (acknowledged(1, 1), vec!["watch"]),
                    (ended(), vec!["finish"]),
                    (peer(1), vec![]),
                    (finished(), vec![]),
                    (Arrival::Deadline, vec!["1 line not read by bob yet", "end"]),
                ],
            ),
            // … and if that can't be known, nothing is said, and he is not waited for.
            (
                true,
                1,
                vec![
                    (beat(5), vec![]),
                    (peer(0), vec!["watch no more"]),
                    (acknowledged(1, 1), vec!["watch"]),
                    (ended(), vec!["finish"]),
                    (Arrival::Deadline, vec!["end"]),
                ],
            ),
            (
                true,
                1,
                vec![
                    (beat(5), vec![]),
                    (
                        unknown(),
                        vec!["cannot tell what bob has read: cannot read: denied"],
                    ),
                    (acknowledged(1, 1), vec![]),
                    (ended(), vec!["finish"]),
                    (finished(), vec!["end"]),
                ],
            ),
            // It is not acknowledged, and the last commit takes too long.
            (
                true,
                1,
                vec![
                    (Arrival::Signal, vec![]),
                    (Arrival::Deadline, vec!["finish"]),
                    (Arrival::Deadline, vec![undelivered]),
                ],
            ),
            // The user does not want to wait.
            (
                true,
                1,
                vec![
                    (Arrival::Signal, vec![]),
                    (Arrival::Signal, vec![undelivered]),
                ],
            ),
            // A pipe's lines are waited for, and messages shown meanwhile.
            (
                false,
                1,
                vec![
                    (ended(), vec![]),
                    (
                        polled(1, &["hi"], vec![]),
                        vec!["bob: hi", "commit {0: 1}", "poll"],
                    ),
                    (acknowledged(1, 1), vec!["finish {0: 1}"]),
                    (finished(), vec!["end"]),
                ],
            ),
            // A pipe that is interrupted is not read to its end.
            (
                false,
                1,
                vec![
                    (acknowledged(1, 1), vec![]),
                    (Arrival::Signal, vec!["finish"]),
                    (
                        finished(),
                        vec![
                            "end: interrupted after 1 line, all delivered: the rest of the input was not read",
                        ],
                    ),
                ],
            ),
            // A pipe stops when lines can't be delivered any more …
            (
                false,
                2,
                vec![
                    (failed(1, 1, denied()), vec![]),
                    (acknowledged(2, 1), vec!["finish"]),
                    (
                        finished(),
                        vec![
                            "end: stopped reading after line 2: lines can't be delivered any more",
                        ],
                    ),
                ],
            ),
            // … but not because of one that is too large.
            (
                false,
                1,
                vec![
                    (
                        failed(1, 1, Error::too_large()),
                        vec![
                            "'hello' was not delivered: too large: a broker takes about 1 MB, unless its \
                             message.max.bytes says otherwise",
                        ],
                    ),
                    (ended(), vec!["finish"]),
                    (finished(), vec!["end: 1 of 1 line was not delivered:"]),
                ],
            ),
            // Nobody reads the output, or it can't be written, or nothing can be read any more.
            (
                true,
                0,
                vec![
                    (Arrival::OutputClosed, vec!["finish"]),
                    (finished(), vec!["end"]),
                ],
            ),
            (
                true,
                0,
                vec![
                    (
                        Arrival::Screen(ScreenEvent::Failed(Error::failed("cannot write", "full"))),
                        vec!["finish"],
                    ),
                    (ended(), vec![]),
                    (finished(), vec!["end: cannot write: full"]),
                ],
            ),
            (
                true,
                0,
                vec![
                    (
                        Arrival::ReadFailed(Error::failed("cannot read", "denied")),
                        vec!["finish"],
                    ),
                    (finished(), vec!["end: cannot read: denied"]),
                ],
            ),
        ];
        for (is_typed, taken, case) in table {
            check(alice(is_typed, taken), case);
        }
    }
}
