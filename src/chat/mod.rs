//! One user's chat with another.
//!
//! One thread owns the chat: its conversation, its lines in flight and its screen. All other threads send it
//! messages, which it handles in one `match` (`owner`); the [crate] lists them.
//!
//! | module | knows |
//! |---|---|
//! | `options` | how it is to behave |
//! | `owner` | what can happen to a chat, and what is done about it |
//! | `bell` | when the bell rings |
//! | `clock` | the times of messages, and where a new day begins |
//! | `commands` | the commands that are suggested to the user |
//! | `gate` | which of the peer's lines are opened |
//! | `conversation` | who is shown, what is said about others, what was written while the user was away |
//! | `history` | what was said before |
//! | `peer` | how far the peer has read |
//! | `presence` | whether the peer is here |
//! | `positions` | how positions and heartbeats are committed and looked up |
//! | `schedule` | when they are |
//! | `typed` | which typed lines are not sent |
//! | `writers` | who has written since they were last read |
//!
//! The owner has the records of one poll before it asks for the next, and asks only when the screen has room:
//! so memory is bounded, and what was not read stays in Kafka.

mod bell;
mod clock;
mod commands;
mod conversation;
mod gate;
mod history;
mod options;
mod owner;
mod peer;
mod positions;
mod presence;
mod schedule;
mod typed;
mod writers;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use crate::broker::HEARTBEATS;
use crate::cli::Connected;
use crate::client::{self, Cluster, Consumer, Event, Offsets, POLL_WAIT, Reports, Route, Start};
use crate::delivery::{self, Outbox};
use crate::ending::{self, spawn};
use crate::error::{Error, Result};
use crate::host::LocalBroker;
use crate::name::Name;
use crate::seal::Secret;
use crate::terminal::{self, InputLine, Look, Notify, ScreenEvent, Terminal};
use clock::Clock;
use commands::Commands;
pub use conversation::Unsigned;
use conversation::{Conversation, Line};
use gate::{Downgrade, Gate};
use history::Wanted;
pub use options::Options;
use owner::{Arrival, Chat, Polled};
use typed::Typed;
pub use writers::list_writers;

/// How many bytes of records one poll takes, about.
const POLL_BYTES: usize = 256 * 1024;

/// The sender shown for a line without one: no name has parentheses.
const NO_NAME: &str = "(unsigned)";

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
    fn new(me: Name, peer: Name, unsigned: bool, tutorial: bool) -> Result<Parties> {
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

    /// Whose line a record with this key is, if it is shown; not a [`Name`] if it carries none.
    fn sender(&self, key: &[u8]) -> Option<&str> {
        match (key, self.unsigned) {
            (key, _) if key == self.peer.as_bytes() => Some(self.peer.as_str()),
            (b"", Unsigned::Peers) => Some(self.peer.as_str()),
            (b"", Unsigned::Shown) => Some(NO_NAME),
            _ => None,
        }
    }

    /// The consumer group whose offset is the user's position: up to where `peer` has been read.
    fn position_group(&self) -> String {
        position_group_of(&self.me, &self.peer)
    }

    /// The same for the peer. Anyone may read it.
    fn peers_position_group(&self) -> String {
        position_group_of(&self.peer, &self.me)
    }

    /// The consumer group whose offset is the user's heartbeat: it moves while a chat with `peer` is open.
    fn presence_group(&self) -> String {
        format!("{HEARTBEATS}{}:{}", self.me, self.peer)
    }

    /// The same for the peer.
    fn peers_presence_group(&self) -> String {
        format!("{HEARTBEATS}{}:{}", self.peer, self.me)
    }
}

/// The consumer group whose offset is up to where `reader` has read `writer`.
fn position_group_of(reader: &Name, writer: &Name) -> String {
    format!("chat:{reader}:{writer}")
}

/// Chats until the input ends, and ends the program.
///
/// It starts where the user last stopped reading the peer, or at the oldest line kept. Commands that it suggests have
/// the words of `connection`, by which they reach the same Kafka. Returns only if the chat can't be opened.
pub fn run(
    (cluster, broker): Connected,
    parties: Parties,
    options: &Options,
    // Dropped when the keys are derived.
    secret: Option<Secret>,
    connection: Vec<String>,
) -> Result<()> {
    let is_sealed = secret.is_some();
    let shows_earlier = is_sealed || cluster.reads_times();
    if options.asks_for_earlier() && !shows_earlier {
        client::check_librdkafka("--last with a real Kafka")?;
    }
    let commands = Commands {
        connection,
        secret: options.seal.words(),
    };
    let (tx, arrivals) = mpsc::channel();
    let mut groups = cluster.group_offsets()?;
    let committed = groups.committed(&parties.position_group(), parties.reads())?;
    let is_position_known = !committed.is_empty();
    let start = match is_position_known {
        true => Start::At(committed),
        false => Start::Earliest,
    };
    let mut consumer = cluster.consumer(parties.reads(), start)?;
    let deleted = match is_position_known {
        true => Vec::new(),
        false => notices_of_deleted(&consumer.position()),
    };
    let (clock, ends) = (Clock::new(terminal::is_shown()), consumer.end_offsets()?);
    let downgrade = Downgrade::new(&parties.peer, options.seal.plain);
    let (gate, earlier) = Gate::open(
        cluster.as_ref(),
        &parties,
        secret.as_ref(),
        options.earlier_lines(),
        &downgrade,
        consumer.as_mut(),
    )?;
    let lowest_partition = consumer.position().keys().next().copied().unwrap_or(0);
    let (me, reports) = (&parties.me, Reports::to(tx.clone()));
    let route = Route {
        reads: Some(parties.reads()),
        ..Route::new(me, parties.writes())
    };
    let (mut outbox, ledger) = delivery::open(
        cluster.as_ref(),
        route,
        secret.clone(),
        options.delivery_timeout(),
        reports,
    )?;

    let notify: Notify = Arc::new(notifier(&tx, Arrival::Screen));
    let running = broker.clone();
    let is_needed = Box::new(move || running.upgrade().is_some_and(|it| it.has_guests()));
    let look = Look {
        with_time: options.with_time,
        see_whole: commands.see_whole(parties.reads()),
        see_own_whole: commands.see_whole(parties.writes()),
    };
    let (mut terminal, mut screen) = Terminal::open(me, look, is_needed, notify.clone())?;
    let how_to_leave = terminal::is_typed().then_some(HOW_TO_LEAVE);
    let notices = how_to_leave.into_iter().chain(gate.greeting());
    let notices: Vec<&str> = notices.chain(deleted.iter().map(String::as_str)).collect();
    screen.greet(&notices);
    let shown = notify.clone();
    LocalBroker::report_to(&broker, move |report| {
        shown(ScreenEvent::Notice(report.into()))
    });
    // Late, so that it does not hold up the rest.
    let position = consumer.position();
    let history = match shows_earlier {
        true => start_history(
            cluster.as_ref(),
            &parties,
            options,
            secret,
            position,
            earlier,
        )?,
        false => None,
    };
    let polls = start_consumer(consumer, history, tx.clone())?;
    let notify_position = notifier(&tx, Arrival::Position);
    let tasks = positions::start(groups, parties.clone(), lowest_partition, notify_position)?;
    ending::on_signal(tx.clone(), || Arrival::Signal)?;
    ending::on_output_closed(tx.clone(), || Arrival::OutputClosed)?;
    let conversation = Conversation::new(&parties, commands, gate, clock, ends, is_position_known);
    let chat = Chat::new(
        &parties,
        options,
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

    let typed = terminal::is_typed().then(|| Typed::new(me, is_sealed, downgrade));
    let ended = send_input(&mut terminal, &mut outbox, typed, &notify);
    _ = tx.send(Arrival::InputEnded(ended));
    // The lines in flight need the outbox until the owner ends the program.
    owner.wait()
}

/// Notices for a user's first chat: one for each partition whose lines before these offsets were deleted.
fn notices_of_deleted(oldest: &Offsets) -> Vec<String> {
    let missed = oldest.iter().filter(|(_, start)| **start > 0);
    let missed = missed.map(|(&partition, &start)| Event::Missed {
        partition,
        wanted: 0,
        resumed: start,
        end: start,
    });
    missed.map(|event| event.to_string()).collect()
}

/// Returns a function that wraps a value in `arrival` and sends it to the owner. Without an owner the program
/// is about to end.
fn notifier<T>(owner: &Sender<Arrival>, arrival: fn(T) -> Arrival) -> impl Fn(T) + use<T> {
    let owner = owner.clone();
    move |what| drop(owner.send(arrival(what)))
}

/// The blocking loop over the input: sends each line, until the input ends or the ledger is closed. A typed line can be
/// refused with a notice.
fn send_input(
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

/// Starts to read what was said before, if any of it is wanted. `position` is the user's,
/// and `opened` are the peer's lines before it, if the chat is sealed.
fn start_history(
    cluster: &dyn Cluster,
    parties: &Parties,
    options: &Options,
    secret: Option<Secret>,
    position: Offsets,
    opened: Vec<Line>,
) -> Result<Option<history::Reading>> {
    let last = options.earlier_lines();
    // Unread lines have times, too: sealed ones have their own.
    let has_times = secret.is_none() && (terminal::is_shown() || options.with_time);
    if last == 0 && !has_times {
        return Ok(None);
    }
    let wanted = Wanted {
        last,
        is_asked: options.asks_for_earlier(),
        position,
        is_sealed: secret.is_some(),
    };
    let reading = match secret {
        Some(secret) => history::start_sealed(cluster, parties, secret, wanted, opened),
        None => history::start(cluster, parties, wanted),
    };
    reading.map(Some)
}

/// Starts the thread that reads what the peer writes, after what was said before. It polls once for each message sent to
/// it, and ends when that sender is dropped.
fn start_consumer(
    mut consumer: Box<dyn Consumer>,
    history: Option<history::Reading>,
    owner: Sender<Arrival>,
) -> Result<Sender<()>> {
    let (polls, asked) = mpsc::channel();
    // What the chat starts with: nothing read yet.
    let start = Polled {
        position: consumer.position(),
        ..Polled::default()
    };
    _ = owner.send(Arrival::Polled(start));
    spawn("consumer", move || {
        if let Some(history) = history {
            _ = owner.send(Arrival::Earlier(history.wait()));
        }
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
        let Some(line) = Line::of(&record) else {
            return ControlFlow::Continue(());
        };
        bytes += line.key.len() + line.text.len();
        polled.lines.push(line);
        match bytes < POLL_BYTES {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    });
    polled.position = consumer.position();
    polled.events = events?;
    Ok(())
}
