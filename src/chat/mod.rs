//! One user's chat with another.
//!
//! One thread owns the chat: its conversation, its lines in flight and its screen. All other threads send it
//! messages, which it handles in one `match` (`owner`); the [crate] lists them.
//!
//! | module | knows |
//! |---|---|
//! | `owner` | what can happen to a chat, and what is done about it |
//! | `bell` | when the bell rings |
//! | `conversation` | who is shown, what is said about others, what was written while the user was away |
//! | `peer` | how far the peer has read |
//! | `presence` | whether the peer is here |
//! | `positions` | how positions and heartbeats are committed and looked up |
//! | `schedule` | when they are |
//! | `typed` | which typed lines are not sent |
//!
//! The owner has the records of one poll before it asks for the next, and asks only when the screen has room:
//! so memory is bounded, and what was not read stays in Kafka.

mod bell;
mod conversation;
mod owner;
mod peer;
mod positions;
mod presence;
mod schedule;
mod typed;

use std::ops::ControlFlow;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::broker::HEARTBEATS;
use crate::client::{Cluster, Consumer, POLL_WAIT, Reports, Start};
use crate::delivery::{self, Outbox};
use crate::ending::{self, spawn};
use crate::error::{Error, Result};
use crate::host::LocalBroker;
use crate::name::Name;
use crate::terminal::{self, InputLine, Notify, ScreenEvent, Terminal};
pub use conversation::Unsigned;
use conversation::{Conversation, Line};
use owner::{Arrival, Chat, Polled};
use typed::Typed;

/// How many bytes of records one poll takes, about.
const POLL_BYTES: usize = 256 * 1024;

/// How a user ends a chat.
const HOW_TO_LEAVE: &str = "to leave: Ctrl-D, or Ctrl-C on an empty line";

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
            return Err(Error::usage(format!("the two names are the same: {me}")));
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

    /// How to see a message whole that the chat cuts.
    fn see_whole(&self) -> String {
        let topic = self.reads();
        // A name may look like an option.
        let dashes = if topic.as_str().starts_with('-') {
            "-- "
        } else {
            ""
        };
        format!("to see all of it: subscriber --from earliest {dashes}{topic}")
    }

    /// The consumer group whose offset is the user's position: up to where `peer` has been read.
    fn position(&self) -> String {
        format!("chat:{}:{}", self.me, self.peer)
    }

    /// The same for the peer. Anyone may read it.
    fn peers_position(&self) -> String {
        format!("chat:{}:{}", self.peer, self.me)
    }

    /// The consumer group whose offset is the user's heartbeat: it moves while a chat with `peer` is open.
    fn presence(&self) -> String {
        format!("{HEARTBEATS}{}:{}", self.me, self.peer)
    }

    /// The same for the peer.
    fn peers_presence(&self) -> String {
        format!("{HEARTBEATS}{}:{}", self.peer, self.me)
    }
}

/// How a chat is to behave.
#[derive(Clone)]
pub struct Options {
    /// When a line that is not acknowledged is given up.
    pub delivery_timeout: Duration,
    /// Whether a message of the peer rings the terminal's bell.
    pub bell: bool,
    /// The small broker, if this process runs it or could take over.
    pub broker: Weak<LocalBroker>,
}

/// Chats until the input ends, and ends the program.
///
/// It starts where the user last stopped reading the peer, or at the oldest line kept. Returns only if the
/// chat can't be opened.
pub fn run(cluster: Box<dyn Cluster>, parties: Parties, options: Options) -> Result<()> {
    let (tx, arrivals) = mpsc::channel();
    let mut groups = cluster.group_offsets()?;
    let position = groups.committed(&parties.position(), parties.reads())?;
    let is_position_known = !position.is_empty();
    let start = match is_position_known {
        true => Start::At(position),
        false => Start::Earliest,
    };
    let mut consumer = cluster.consumer(parties.reads(), start)?;
    let conversation = Conversation::new(&parties, consumer.end_offsets()?, is_position_known);
    let lowest_partition = consumer.position().keys().next().copied().unwrap_or(0);
    let (me, reports) = (&parties.me, Reports::to(tx.clone()));
    let to_peer = (me, parties.writes());
    let (mut outbox, ledger) =
        delivery::open(cluster.as_ref(), to_peer, options.delivery_timeout, reports)?;

    let notify: Notify = Arc::new(notifier(&tx, Arrival::Screen));
    let broker = options.broker.clone();
    let is_needed = Box::new(move || broker.upgrade().is_some_and(|it| it.has_guests()));
    let (mut terminal, screen) =
        Terminal::open(me, parties.see_whole(), is_needed, notify.clone())?;
    if let Some(broker) = options.broker.upgrade() {
        let notify = notify.clone();
        broker.report_to(move |report| notify(ScreenEvent::Notice(report.into())));
    }
    let polls = start_consumer(consumer, tx.clone())?;
    let notify_position = notifier(&tx, Arrival::Position);
    let tasks = positions::start(groups, parties.clone(), lowest_partition, notify_position)?;
    ending::on_signal(tx.clone(), || Arrival::Signal)?;
    ending::on_output_closed(tx.clone(), || Arrival::OutputClosed)?;
    let chat = Chat::new(
        &parties,
        &options,
        conversation,
        ledger,
        screen,
        polls,
        tasks,
    );
    let owner = ending::Owner::start("chat", move || {
        let result = chat.run(&arrivals);
        // If this process runs the small broker, it is stopped here, in order.
        drop(cluster);
        result
    })?;

    let typed = terminal::is_typed().then(|| Typed::new(me));
    let ended = read(&mut terminal, &mut outbox, typed, &notify);
    _ = tx.send(Arrival::InputEnded(ended));
    // The lines in flight need the outbox until the owner ends the program.
    owner.wait()
}

/// Returns a function that wraps a value in `arrival` and sends it to the owner. Without an owner the program
/// is about to end.
fn notifier<T>(owner: &Sender<Arrival>, arrival: fn(T) -> Arrival) -> impl Fn(T) + use<T> {
    let owner = owner.clone();
    move |what| drop(owner.send(arrival(what)))
}

/// The blocking loop over the input: sends each line, up to the end or until the ledger is closed, unless it
/// is `typed` and not to be sent.
fn read(
    terminal: &mut Terminal,
    outbox: &mut Outbox,
    mut typed: Option<Typed>,
    notify: &Notify,
) -> Result<()> {
    while let Some(InputLine { line, is_pasted }) = terminal.next_line()? {
        let refused = typed.as_mut().and_then(|it| it.refuse(&line, is_pasted));
        match refused {
            Some(notice) => notify(ScreenEvent::Notice(notice)),
            None if outbox.send(&line) => {}
            None => break,
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
            let mut polled = Polled::default();
            let result = poll(consumer.as_mut(), &mut polled);
            // What was read before an error is shown.
            let is_sent = owner.send(Arrival::Polled(polled)).is_ok();
            if let Err(error) = result {
                return drop(owner.send(Arrival::ReadFailed(error)));
            } else if !is_sent {
                return;
            }
        }
    })?;
    Ok(polls)
}

fn poll(consumer: &mut dyn Consumer, polled: &mut Polled) -> Result<()> {
    let mut bytes = 0;
    let events = consumer.poll(POLL_WAIT, &mut |record| {
        let Some(text) = record.value else {
            return ControlFlow::Continue(());
        };
        let key = record.key.unwrap_or_default();
        bytes += key.len() + text.len();
        polled.lines.push(Line {
            partition: record.partition,
            offset: record.offset,
            key: key.to_vec(),
            text: text.to_vec(),
        });
        match bytes < POLL_BYTES {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    });
    polled.position = consumer.position();
    polled.events = events?;
    Ok(())
}
