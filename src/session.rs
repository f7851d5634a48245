//! One user's chat with another: the conversation, fed from Kafka, shown on a screen.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{
    Cluster, Consumer, Event, GroupOffsets, Offsets, Producer, Record, Report, Reports, Start,
};
use crate::conversation::{Conversation, Item, Unsigned};
use crate::error::{Error, Result};
use crate::ledger::Ledger;
use crate::name::Name;
use crate::terminal::{Screen, Terminal};

/// How long a poll waits for messages.
const POLL: Duration = Duration::from_millis(400);
/// How often the position is committed, and the peer's looked up.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How many times in a row the position can't be committed until the user is told.
const TELL_AFTER: u32 = 3;
/// How long the end of a chat waits for what is under way, at most three quarters of it for
/// acknowledgements: it has a second in all.
const LAST_WAIT: Duration = Duration::from_millis(800);

/// Who talks with whom, and over which topics.
#[derive(Debug, Clone)]
pub struct Parties {
    me: Name,
    peer: Name,
    unsigned: Unsigned,
    swapped: bool,
}

impl Parties {
    /// `me` talks with `peer`, whose lines alone are shown; with `unsigned`, so are those without a
    /// name. With `tutorial`, the topics are swapped and lines without a name are the peer's, as
    /// with its `chat.py`.
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

    /// The user.
    pub fn me(&self) -> &Name {
        &self.me
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

    /// The same of the peer. Anyone may read it.
    fn peers_position(&self) -> String {
        format!("chat:{}:{}", self.peer, self.me)
    }
}

/// A chat that is open. Its clones are the same chat.
#[derive(Clone)]
pub struct Session {
    conversation: Arc<Mutex<Conversation>>,
    screen: Screen,
    ledger: Arc<Ledger>,
    bookkeeper: mpsc::Sender<mpsc::Sender<()>>,
    has_ended: Arc<AtomicBool>,
}

/// The half of a chat that shows what the peer writes; for a thread of its own.
pub struct Reader {
    consumer: Box<dyn Consumer>,
    listener: Box<dyn Fn(Event) + Send>,
    session: Session,
}

/// The half of a chat that sends what the user writes.
pub struct Writer {
    producer: Box<dyn Producer>,
    ledger: Arc<Ledger>,
    delivery_timeout: Duration,
}

/// Opens a chat, from where the user last stopped reading the peer, or from the oldest line kept.
/// A line is given up after `delivery_timeout`.
pub fn open(
    cluster: &dyn Cluster,
    parties: Parties,
    delivery_timeout: Duration,
    screen: Screen,
) -> Result<(Session, Reader, Writer)> {
    let mut groups = cluster.group_offsets()?;
    let start = match groups.committed(&parties.position(), parties.reads())? {
        none if none.is_empty() => Start::Earliest,
        offsets => Start::At(offsets),
    };
    // What the listener tells may come before there is a conversation to tell it to.
    let told: Arc<Mutex<Option<Arc<Mutex<Conversation>>>>> = Arc::default();
    let away = Arc::new(AtomicBool::new(false));
    let listener = listener(screen.clone(), told.clone(), away.clone());
    let mut consumer = cluster.consumer(parties.reads(), start)?;
    let conversation = Arc::new(Mutex::new(Conversation::new(
        parties.me.clone(),
        parties.peer.clone(),
        parties.unsigned,
        consumer.end_offsets()?,
    )));
    *lock(&told) = Some(conversation.clone());
    let ledger = Ledger::new();
    let deliveries = Sent {
        conversation: (!parties.swapped).then(|| conversation.clone()),
        ledger: ledger.clone(),
        screen: screen.clone(),
    };
    let (tx, rx) = mpsc::channel::<Report>();
    thread::spawn(move || {
        for report in rx {
            deliveries.report(report);
        }
    });
    let producer = cluster.producer(
        &parties.me,
        parties.writes(),
        delivery_timeout,
        Reports::to(tx),
    )?;
    let bookkeeper = Bookkeeper {
        groups,
        parties,
        conversation: conversation.clone(),
        screen: screen.clone(),
        committed: Offsets::new(),
        failures: 0,
        away,
    };
    let session = Session {
        conversation,
        screen,
        ledger: ledger.clone(),
        bookkeeper: bookkeeper.start()?,
        has_ended: Arc::default(),
    };
    let reader = Reader {
        consumer,
        listener: Box::new(listener),
        session: session.clone(),
    };
    let writer = Writer {
        producer,
        ledger,
        delivery_timeout,
    };
    Ok((session, reader, writer))
}

/// Tells the user what happens to the connection, and the conversation what may be missing.
fn listener(
    screen: Screen,
    told: Arc<Mutex<Option<Arc<Mutex<Conversation>>>>>,
    away: Arc<AtomicBool>,
) -> impl Fn(Event) + Send + 'static {
    move |event| {
        match event {
            Event::Lost { .. } => away.store(true, Ordering::Relaxed),
            Event::Back { .. } => away.store(false, Ordering::Relaxed),
            _ => {}
        }
        if let Event::Missed {
            partition,
            wanted,
            resumed,
            end,
        } = event
            && let Some(conversation) = &*lock(&told)
        {
            lock(conversation).missed(partition, resumed < wanted, end);
        }
        screen.notice(&event.to_string());
    }
}

impl Reader {
    /// Shows what the peer writes, until it can't go on.
    pub fn run(mut self) -> Result<()> {
        let Session {
            conversation,
            screen,
            ..
        } = &self.session;
        // What is shown may wait for the screen, and the conversation must not wait with it.
        let items = lock(conversation).polled(&self.consumer.position());
        show(screen, items)?;
        loop {
            let events = try_poll(self.consumer.as_mut(), POLL, |record| {
                let items = lock(conversation).record(record);
                show(screen, items)
            })?;
            events.into_iter().for_each(&self.listener);
            let items = lock(conversation).polled(&self.consumer.position());
            show(screen, items)?;
            screen.flush()?;
        }
    }
}

/// As [`Consumer::poll`], with an `each` that may fail: that ends the poll, and is its result.
pub fn try_poll(
    consumer: &mut dyn Consumer,
    wait: Duration,
    mut each: impl FnMut(Record<'_>) -> Result<()>,
) -> Result<Vec<Event>> {
    let mut result = Ok(());
    let events = consumer.poll(wait, &mut |record| {
        result = each(record);
        match result {
            Ok(()) => std::ops::ControlFlow::Continue(()),
            Err(_) => std::ops::ControlFlow::Break(()),
        }
    })?;
    result.map(|()| events)
}

fn show(screen: &Screen, items: Vec<Item>) -> Result<()> {
    for item in items {
        match item {
            Item::Line {
                sender,
                text,
                partition,
                offset,
            } => screen.message(sender.as_bytes(), &text, (partition, offset))?,
            Item::Notice(text) => screen.notice(&text),
            Item::Passed(offsets) => screen.passed(offsets),
        }
    }
    Ok(())
}

impl Writer {
    /// Sends each line of the terminal, up to its end. If that is none, but a pipe or a file, waits
    /// until all lines are delivered or given up. At a terminal the last ones may still be under way:
    /// to drop this would be to give them up.
    pub fn run(&mut self, terminal: &mut Terminal) -> Result<()> {
        while let Some(line) = terminal.next_line()? {
            self.ledger.send(&line, self.producer.as_mut());
        }
        if !terminal.is_typed() {
            self.ledger.wait(self.delivery_timeout * 2);
        }
        Ok(())
    }
}

impl Session {
    /// Ends the chat for a signal: as [`end`](Session::end), and as a failure if the input is not
    /// `typed`, and so may not end here.
    pub fn interrupted(&self, typed: bool) -> Result<()> {
        self.end(match typed {
            true => Ok(()),
            false => Err(Error::failed(
                "interrupted",
                "what came behind the lines sent was not read",
            )),
        })
    }

    /// Ends the chat, within a second: leaves the terminal as it was, commits what was shown, and
    /// says what the peer has not read. Fails with the `reason` why it could not go on, if there
    /// is one, and else if lines were not delivered, which it names.
    ///
    /// Several threads may come to its end at once. Only the first one returns, and must end the
    /// program.
    pub fn end(&self, reason: Result<()>) -> Result<()> {
        while self.has_ended.swap(true, Ordering::Relaxed) {
            thread::park();
        }
        let end = Instant::now() + LAST_WAIT;
        self.ledger.close();
        self.screen.restore();
        self.ledger.wait(LAST_WAIT * 3 / 4);
        let (done, is_done) = mpsc::channel();
        if self.bookkeeper.send(done).is_ok() {
            let _ = is_done.recv_timeout(end.saturating_duration_since(Instant::now()));
        }
        if let Some(unread) = lock(&self.conversation).unread() {
            self.screen.notice(&unread);
        }
        // Once more: the editor may have changed the terminal since, if somebody has typed.
        self.screen.restore();
        self.ledger.verdict_after(reason)
    }
}

/// Commits the user's position when lines have been shown, and looks up the peer's.
struct Bookkeeper {
    groups: Box<dyn GroupOffsets>,
    parties: Parties,
    conversation: Arc<Mutex<Conversation>>,
    screen: Screen,
    committed: Offsets,
    /// How many times in a row a position could not be committed.
    failures: u32,
    /// The connection is lost, and the user has been told.
    away: Arc<AtomicBool>,
}

impl Bookkeeper {
    /// On a thread of its own, since a broker may keep it waiting. Whoever sends it a channel is
    /// answered there when all is up to date.
    fn start(mut self) -> Result<mpsc::Sender<mpsc::Sender<()>>> {
        let (ask, asked) = mpsc::channel::<mpsc::Sender<()>>();
        thread::Builder::new()
            .name("positions".into())
            .spawn(move || {
                loop {
                    self.commit();
                    if let Some(news) = self.look() {
                        self.screen.notice(&news);
                    }
                    match asked.recv_timeout(COMMIT_EVERY) {
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return,
                        Ok(answer) => {
                            self.commit();
                            // Whoever leaves need not know who has just come.
                            self.look();
                            let _ = answer.send(());
                        }
                    }
                }
            })
            .map_err(|why| Error::failed("cannot start a thread for the positions", why))?;
        Ok(ask)
    }

    fn commit(&mut self) {
        let shown = self.screen.shown();
        if shown == self.committed {
            return;
        }
        let (group, topic) = (self.parties.position(), self.parties.reads());
        match self.groups.commit(&group, topic, &shown) {
            Ok(()) => {
                self.committed = shown;
                self.failures = 0;
            }
            // The next second tries again, and that the connection is lost is told elsewhere.
            Err(_) if self.away.load(Ordering::Relaxed) => {}
            Err(error) => {
                self.failures += 1;
                if self.failures == TELL_AFTER {
                    self.screen
                        .notice(&format!("cannot save what you have read: {error}"));
                }
            }
        }
    }

    /// Looks how far the peer has read, and says what that tells.
    fn look(&mut self) -> Option<String> {
        // The tutorial's scripts commit nothing.
        if self.parties.swapped {
            return None;
        }
        let (group, topic) = (self.parties.peers_position(), self.parties.writes());
        let committed = self.groups.committed(&group, topic).ok()?;
        lock(&self.conversation).peer_read(&committed, topic, Instant::now())
    }
}

/// Hears what becomes of the user's lines.
struct Sent {
    /// None where the peer never says what they have read.
    conversation: Option<Arc<Mutex<Conversation>>>,
    ledger: Arc<Ledger>,
    screen: Screen,
}

impl Sent {
    fn report(&self, report: Report) {
        match report {
            Report::Acknowledged {
                first,
                count,
                partition,
                offset,
            } => {
                if let Some(conversation) = &self.conversation {
                    lock(conversation).sent(partition, offset, count);
                }
                // Last: whoever waits for the ledger may look at the conversation next.
                self.ledger.acknowledged(first, count, partition, offset);
            }
            Report::Failed {
                first, count, why, ..
            } => {
                for line in first..first + count {
                    self.ledger.failed(line, &why);
                    self.screen
                        .notice(&format!("line {line} was not delivered: {why}"));
                }
            }
            // The consumer's connection tells enough.
            Report::Connection(_) => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
