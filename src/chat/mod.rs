//! One user's chat with another.
//!
//! One thread owns the chat: its conversation, its lines in flight and its screen. Everybody else sends it
//! messages, which [`owner`] handles in one `match`.
//!
//! | thread | owned by | what it does | ends |
//! |---|---|---|---|
//! | main | the program | reads lines, hands them to the producer | with the input; then waits for the owner |
//! | chat | the program | owns the chat, ends the program | with the program |
//! | consumer | the owner | polls when it is told to, sends what it read | when the owner's channel to it closes |
//! | positions | the owner | commits the user's position, looks up the peer's | after the last commit |
//! | screen | the screen | wakes the editor, or writes where there is none | when the screen is dropped |
//! | signals, output | the program | send the owner a signal, or that nobody reads | with the program |
//!
//! A poll's records are the owner's before the next poll is asked for, and that waits for room on the
//! screen: so the memory is bounded, and what nobody has read stays in Kafka.

mod conversation;
mod owner;
mod peer;
mod positions;

use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use crate::client::{Cluster, Consumer, Offsets, Reports, Start};
use crate::delivery::{Ledger, Outbox};
use crate::ending::{self, spawn};
use crate::error::{Error, Result};
use crate::name::Name;
use crate::terminal::{Screen, Terminal, is_typed};
pub use conversation::Unsigned;
use conversation::{Item, Line};
use owner::{Arrival, Chat, Effect, Polled};
use positions::Task;

/// How long a poll waits for messages.
const POLL_WAIT: Duration = Duration::from_millis(400);

/// How many bytes of records one poll takes, about.
const POLL_BYTES: usize = 256 * 1024;

/// Who talks with whom, and over which topics.
#[derive(Debug, Clone)]
pub struct Parties {
    me: Name,
    peer: Name,
    unsigned: Unsigned,
    /// As with the tutorial's `chat.py`, which reads the peer's topic and writes to its own.
    swapped: bool,
}

impl Parties {
    /// `me` talks with `peer`, whose lines alone are shown; with `unsigned`, so are those without a name.
    /// With `tutorial`, the topics are swapped and lines without a name are the peer's.
    ///
    /// Fails if the two are the same.
    pub fn new(me: Name, peer: Name, unsigned: bool, tutorial: bool) -> Result<Parties> {
        if me == peer {
            return Err(Error::usage(format!("{me} can't chat with themselves")));
        }
        Ok(Parties {
            me,
            peer,
            unsigned: match (tutorial, unsigned) {
                (true, _) => Unsigned::Peers,
                (_, true) => Unsigned::Shown,
                _ => Unsigned::Hidden,
            },
            swapped: tutorial,
        })
    }

    /// The topic that is read: the user's own.
    fn reads(&self) -> &Name {
        if self.swapped { &self.peer } else { &self.me }
    }

    /// The topic that is written to: the peer's.
    fn writes(&self) -> &Name {
        if self.swapped { &self.me } else { &self.peer }
    }

    /// The consumer group whose offset is the user's position: up to where `peer` has been read.
    fn position(&self) -> String {
        format!("chat:{}:{}", self.me, self.peer)
    }

    /// The same for the peer. Anyone may read it.
    fn peers_position(&self) -> String {
        format!("chat:{}:{}", self.peer, self.me)
    }
}

/// Chats until the input ends, and ends the program. A line is given up after `delivery_timeout`.
///
/// It starts where the user last stopped reading the peer, or at the oldest line kept. Returns only if the
/// chat can't be opened.
pub fn run(cluster: Box<dyn Cluster>, parties: Parties, delivery_timeout: Duration) -> Result<()> {
    let (tx, arrivals) = mpsc::channel();
    let mut groups = cluster.group_offsets()?;
    let start = match groups.committed(&parties.position(), parties.reads())? {
        none if none.is_empty() => Start::Earliest,
        offsets => Start::At(offsets),
    };
    let mut consumer = cluster.consumer(parties.reads(), start)?;
    let ends = consumer.end_offsets()?;
    let (me, topic, reports) = (&parties.me, parties.writes(), Reports::to(tx.clone()));
    let producer = cluster.producer(me, topic, delivery_timeout, reports)?;

    let (mut terminal, screen) = Terminal::open(me, tx.clone())?;
    let ledger = Ledger::new(is_typed());
    let mut outbox = Outbox::new(&ledger, producer, tx.clone());
    let chat = Chat::new(&parties, ends, ledger, delivery_timeout * 2);
    let polls = start_consumer(consumer, tx.clone())?;
    let tasks = positions::start(groups, parties, tx.clone())?;
    ending::on_signal(tx.clone())?;
    ending::on_output_closed(tx.clone())?;
    let owner = Owner {
        chat,
        screen,
        polls: Some(polls),
        is_poll_due: false,
        tasks,
        committed: Offsets::new(),
        is_committing: false,
    };
    let owner = ending::Owner::start("chat", move || {
        let result = owner.run(&arrivals);
        // If this process runs the small broker, it is stopped here, in order.
        drop(cluster);
        result
    })?;

    let ended = read(&mut terminal, &mut outbox);
    _ = tx.send(Arrival::InputEnded(ended));
    // The lines in flight need the outbox until the owner ends the program.
    owner.wait()
}

/// The blocking loop over the input: sends each line, up to the end or until the ledger is closed.
fn read(terminal: &mut Terminal, outbox: &mut Outbox<Arrival>) -> Result<()> {
    while let Some(line) = terminal.next_line()? {
        if !outbox.send(&line) {
            break;
        }
    }
    Ok(())
}

/// Starts the thread that reads what the peer writes. It polls once for each message sent to it, and ends
/// when that sender is dropped.
fn start_consumer(mut consumer: Box<dyn Consumer>, owner: Sender<Arrival>) -> Result<Sender<()>> {
    let (polls, asked) = mpsc::channel();
    // What the chat starts with: nothing read yet.
    let start = Polled {
        position: consumer.position(),
        ..Polled::default()
    };
    _ = owner.send(Arrival::Polled(start));
    spawn("consumer", move || {
        for () in asked {
            let mut lines = Vec::new();
            let mut bytes = 0;
            let polled = consumer.poll(POLL_WAIT, &mut |record| {
                bytes += record.key.len() + record.value.len();
                lines.push(Line {
                    partition: record.partition,
                    offset: record.offset,
                    key: record.key.to_vec(),
                    text: record.value.to_vec(),
                });
                match bytes < POLL_BYTES {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            });
            let position = consumer.position();
            let (arrival, is_over) = match polled {
                Ok(events) => (
                    Arrival::Polled(Polled {
                        events,
                        lines,
                        position,
                    }),
                    false,
                ),
                Err(error) => (Arrival::ReadFailed(error), true),
            };
            if owner.send(arrival).is_err() || is_over {
                return;
            }
        }
    })?;
    Ok(polls)
}

/// The chat's state, and what carries out what it decides.
struct Owner {
    chat: Chat,
    screen: Screen,
    /// Has the consumer poll; `None` once the chat is closed.
    polls: Option<Sender<()>>,
    /// The consumer waits for the screen to have room.
    is_poll_due: bool,
    tasks: Sender<Task>,
    committed: Offsets,
    /// A commit is under way: the next one waits for its outcome.
    is_committing: bool,
}

impl Owner {
    /// Handles what arrives until the chat is over, and returns how it ended.
    fn run(mut self, arrivals: &Receiver<Arrival>) -> Result<()> {
        loop {
            let arrival = match self.chat.deadline() {
                None => arrivals.recv().ok(),
                Some(at) => arrivals
                    .recv_timeout(at.saturating_duration_since(Instant::now()))
                    .ok(),
            };
            let arrival = arrival.unwrap_or(Arrival::Deadline);
            for effect in self.chat.handle(arrival, Instant::now()) {
                if let ControlFlow::Break(result) = self.carry_out(effect) {
                    self.screen.restore();
                    return result;
                }
            }
            self.screen.flush();
            if self.is_poll_due && self.screen.has_room() {
                self.is_poll_due = false;
                // If the consumer has ended, it has said why.
                _ = self.polls.as_ref().map(|polls| polls.send(()));
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) -> ControlFlow<Result<()>> {
        match effect {
            Effect::Show(Item::Message { sender, text, at }) => {
                self.screen.message(sender.as_bytes(), &text, at);
            }
            Effect::Show(Item::Notice(text)) => self.screen.notice(&text),
            Effect::Show(Item::Passed(offsets)) => {
                self.screen.passed(offsets);
                self.commit();
            }
            Effect::Poll => self.is_poll_due = true,
            Effect::Printed(offsets) => {
                self.screen.printed(offsets);
                self.commit();
            }
            Effect::Committed(offsets) => {
                self.is_committing = false;
                if let Some(offsets) = offsets {
                    self.committed = offsets;
                }
                self.commit();
            }
            Effect::CloseScreen => {
                self.polls = None;
                self.screen.close();
            }
            Effect::Finish => _ = self.tasks.send(Task::Finish(self.screen.shown().clone())),
            Effect::End(result) => return ControlFlow::Break(result),
        }
        ControlFlow::Continue(())
    }

    /// Has what was shown committed, if it is not yet.
    fn commit(&mut self) {
        if !self.is_committing && *self.screen.shown() != self.committed {
            self.is_committing = true;
            // The thread ends only with the chat.
            _ = self.tasks.send(Task::Commit(self.screen.shown().clone()));
        }
    }
}
