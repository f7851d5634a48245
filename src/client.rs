//! One small interface to Kafka, in Kafka's own words, and the choice of the client that serves it.
//!
//! The programs see only what is here; the crates behind it don't leave their own files.

#[cfg(feature = "librdkafka")]
mod librdkafka;
mod probe;
pub mod properties;
mod v0;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::name::Name;
pub use probe::{Api, Found, ask, connect as reach};

/// Offsets by partition: positions, committed offsets, or the ends of a log.
pub type Offsets = BTreeMap<i32, i64>;

/// The most bytes that the key and the value of one record may have together.
///
/// Kafka's default limit for a batch (`message.max.bytes`, 1,048,588), less what a batch of one
/// record adds to it. A broker may be set to take less; it then says so itself.
pub const MAX_RECORD_BYTES: usize = 1_048_000;

/// One record as it was read. Without a key, `key` is empty.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The partition it lies in.
    pub partition: i32,
    /// Its offset in that partition.
    pub offset: i64,
    /// The sender's name, by our convention.
    pub key: &'a [u8],
    /// The line, without its ending.
    pub value: &'a [u8],
}

impl Record<'_> {
    /// What tells it from another record at the same offset of a log of the same name.
    fn mark(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.key, self.value).hash(&mut hasher);
        hasher.finish()
    }
}

/// Where a consumer starts to read.
#[derive(Debug, Clone)]
pub enum Start {
    /// At the oldest record kept.
    Earliest,
    /// Behind the newest record at the time of asking.
    Latest,
    /// At these offsets; a partition that is not named, at its oldest record.
    At(Offsets),
}

/// What happens to a connection that a user would want to know of. None of it is an error:
/// the client goes on by itself.
#[derive(Debug, Clone)]
pub enum Event {
    /// The connection was lost, and is being tried again.
    Lost {
        /// Which broker, as `host:port`.
        broker: String,
        /// What was seen.
        why: String,
    },
    /// The broker is reached, but can't do what it is asked; that is being tried again.
    Refused {
        /// Which broker, as `host:port`.
        broker: String,
        /// What it said.
        why: String,
    },
    /// It is there again, or can do it again.
    Back {
        /// Which broker, as `host:port`.
        broker: String,
    },
    /// The log no longer had the offset that was to be read next: records may have been missed.
    Missed {
        /// In which partition.
        partition: i32,
        /// The offset that was asked for.
        wanted: i64,
        /// The offset at which reading goes on.
        resumed: i64,
        /// The offset behind the newest record by now.
        end: i64,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Lost { broker, why } => {
                write!(f, "connection to {broker} lost ({why}), retrying")
            }
            Event::Refused { broker, why } => {
                write!(f, "{broker} can't do it for now ({why}), retrying")
            }
            Event::Back { broker } => write!(f, "connection to {broker} is back"),
            Event::Missed {
                wanted, resumed, ..
            } => write!(
                f,
                "the log no longer has offset {wanted}, so lines may have been missed; going on \
                 at offset {resumed}"
            ),
        }
    }
}

/// Makes sure that somebody serves at the address, before it is tried again: how a program that
/// lives on the embedded broker takes over when the one that ran it has ended.
pub type Revive = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// How to reach a cluster.
#[derive(Clone, Default)]
pub struct Options {
    /// Bootstrap servers, each `host:port`.
    pub servers: Vec<String>,
    /// librdkafka's own properties, in the order they were given; any at all means that client.
    pub properties: Vec<(String, String)>,
    /// Only for the embedded broker.
    pub revive: Option<Revive>,
}

/// Told of every [`Event`], from any thread.
pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;

/// Told what became of the lines handed to a producer, from any thread.
pub trait Deliveries: Send + Sync {
    /// `count` lines from number `first` on are acknowledged: they lie in `partition`, one behind
    /// the other, from `offset` on.
    fn acknowledged(&self, first: u64, count: u64, partition: i32, offset: i64);
    /// This line was given up: it is not in the log, or nobody can say.
    fn failed(&self, line: u64, why: &Error);
}

/// Writes one sender's lines to one topic, in order: all to one partition, which their name decides.
pub trait Producer: Send {
    /// Hands over one line, numbered by the caller in rising order. Waits while the buffer is full.
    ///
    /// The outcome comes to the [`Deliveries`] given when the producer was made; a line that is too
    /// large, or that could not be delivered in time, is reported there, and the others go on.
    fn send(&mut self, line: u64, value: &[u8]);

    /// Waits until every line handed over is acknowledged or failed, at most `timeout`.
    /// Says whether that was reached.
    fn flush(&mut self, timeout: Duration) -> bool;
}

/// Reads all partitions of one topic.
pub trait Consumer: Send {
    /// Waits at most about `wait` for records, and gives each to `each`, a partition's in the order
    /// of their offsets. After `Break` no more are given; the next poll goes on behind that record.
    ///
    /// Lost connections are retried for ever, and told to the listener; an error is final.
    fn poll(
        &mut self,
        wait: Duration,
        each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<()>;

    /// The offset of the next record to be given, by partition.
    fn position(&self) -> Offsets;

    /// The offset behind the newest record, by partition.
    fn end_offsets(&mut self) -> Result<Offsets>;
}

impl dyn Consumer {
    /// As [`Consumer::poll`], with an `each` that may fail: that ends the poll, and is its result.
    pub fn try_poll(
        &mut self,
        wait: Duration,
        mut each: impl FnMut(Record<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut result = Ok(());
        self.poll(wait, &mut |record| {
            result = each(record);
            match result {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        result
    }
}

/// Reads and commits the offsets of consumer groups, without being a member of any.
pub trait Groups: Send {
    /// The offsets that `group` has committed in `topic`; empty where it has not.
    fn committed(&mut self, group: &str, topic: &Name) -> Result<Offsets>;

    /// Commits `offsets` of `topic` for `group`.
    fn commit(&mut self, group: &str, topic: &Name, offsets: &Offsets) -> Result<()>;
}

/// A cluster that can be talked to: makes producers and consumers.
///
/// Making one waits for the topic, which is created where the broker allows it.
pub trait Cluster: Send + Sync {
    /// A producer of `sender`'s lines in `topic`. A line is given up after `delivery_timeout`.
    fn producer(
        &self,
        sender: &Name,
        topic: &Name,
        delivery_timeout: Duration,
        deliveries: Arc<dyn Deliveries>,
        listener: Listener,
    ) -> Result<Box<dyn Producer>>;

    /// A consumer of all partitions of `topic`. Its start is settled when this returns: what is
    /// written from then on is read.
    fn consumer(&self, topic: &Name, start: Start, listener: Listener)
    -> Result<Box<dyn Consumer>>;

    /// The offsets of consumer groups.
    fn groups(&self) -> Result<Box<dyn Groups>>;
}

/// How long a line is tried before it is given up: as Kafka's `delivery.timeout.ms`.
pub const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a broker that was named may take to be reached, and to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Reaches a cluster, with the client that its broker calls for.
///
/// Fails within about [`PATIENCE`] if none of the servers can be reached or none is Kafka, and if
/// the broker is one that this build has no client for.
pub fn connect(options: &Options) -> Result<Box<dyn Cluster>> {
    if let (Some(revive), Some(server)) = (&options.revive, options.servers.first()) {
        // Our own: there is nothing to ask.
        let revive = Some(revive.clone());
        let v0 = v0::V0::new(&options.servers, server.clone(), revive);
        return Ok(Box::new(v0));
    }
    if !options.properties.is_empty() {
        return modern(options, || {
            Error::usage(
                "-X and -F need a build with the feature librdkafka, which this one is without",
            )
        });
    }
    let found = ask(&options.servers, PATIENCE)?;
    if found.speaks_version_0() {
        let v0 = v0::V0::new(&options.servers, found.server, None);
        return Ok(Box::new(v0));
    }
    modern(options, || {
        Error::failed(
            format!("cannot talk to the Kafka at {}", found.server),
            "it is version 4 or later, which no longer speaks what crate kafka does (KIP-896), and \
             this build is without the feature librdkafka",
        )
        .hint("Build it with that feature, which is on unless --no-default-features is given.")
    })
}

#[cfg(feature = "librdkafka")]
fn modern(options: &Options, _without: impl FnOnce() -> Error) -> Result<Box<dyn Cluster>> {
    librdkafka::connect(options)
}

#[cfg(not(feature = "librdkafka"))]
fn modern(_options: &Options, without: impl FnOnce() -> Error) -> Result<Box<dyn Cluster>> {
    Err(without())
}
