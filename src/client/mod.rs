//! A small interface to Kafka, in Kafka's own terms, and the choice of the client that serves it.
//!
//! The programs see only what is defined here; the types of the crates stay in the clients' folders.
//!
//! | module | serves |
//! |---|---|
//! | `kafka_crate` | the small broker; without the feature `librdkafka`, also one plain Kafka up to 3.9 |
//! | `librdkafka` | every real Kafka, version 2.7 and later; the small broker, for a subscriber that shows more than crate `kafka` reports |
//! | `partitioner` | which partition Kafka's own clients choose for a key |
//! | `position` | where both clients continue in a log that was cut, deleted or created again |
//! | `probe` | what a broker says about itself before a client is chosen |
//! | [`properties`] | the file of librdkafka properties that `-F` names |
//! | `reports` | what producers report about lines |
//! | `sentences` | what both clients say to the user |
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::sync::mpsc;
//! use std::time::Duration;
//!
//! use kafka_chat::client::{
//!     self, DELIVERY_TIMEOUT, Options, Partitioning, Report, Reports, Route, Start,
//! };
//!
//! # fn main() -> kafka_chat::error::Result<()> {
//! let cluster = client::connect(&Options {
//!     servers: vec!["localhost:9092".into()],
//!     ..Options::default()
//! })?;
//! let (alice, bob) = ("alice".parse()?, "bob".parse()?);
//! let mut consumer = cluster.consumer(&bob, Start::Latest)?;
//!
//! let (tx, rx) = mpsc::channel::<Report>();
//! let reports = Reports::to(tx);
//! let route = Route::new(&alice, &bob);
//! let mut producer =
//!     cluster.producer(route, Partitioning::ByKey, DELIVERY_TIMEOUT, reports)?;
//! producer.send(1, b"hello");
//! assert!(matches!(rx.recv(), Ok(Report::Acknowledged { first: 1, .. })));
//!
//! let events = consumer.poll(Duration::from_secs(1), &mut |record| {
//!     assert_eq!(record.key, Some(&b"alice"[..]));
//!     assert_eq!(record.value, Some(&b"hello"[..]));
//!     ControlFlow::Continue(())
//! })?;
//! assert!(events.is_empty());
//! # Ok(())
//! # }
//! ```

mod kafka_crate;
#[cfg(feature = "librdkafka")]
mod librdkafka;
mod partitioner;
mod position;
mod probe;
pub mod properties;
mod reports;
mod sentences;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use self::kafka_crate::KafkaCrateCluster;
use crate::error::{Error, Result};
use crate::name::Name;
pub use probe::{BrokerInfo, ask, connect as reach};
pub use reports::{EXCERPT_BYTES, Report, Reports, excerpt};

/// Offsets by partition: positions, committed offsets, or the ends of a log.
pub type Offsets = BTreeMap<i32, i64>;

/// Whether a reader whose next offsets are `position` has read everything before `ends`.
///
/// Positions decide, not a count of records: a log may lack offsets. A partition that has vanished has no
/// position, and nothing more to read.
pub fn is_read_to(ends: &Offsets, position: &Offsets) -> bool {
    let is_read = |(partition, end)| position.get(partition).is_none_or(|at| at >= end);
    ends.iter().all(is_read)
}

/// Whether the record at this place was in the log when it ended at `ends`.
pub fn is_before(ends: &Offsets, partition: i32, offset: i64) -> bool {
    ends.get(&partition).is_some_and(|&end| offset < end)
}

/// Lowers the end of a partition to this one, if it is in `ends` and later.
pub fn cut(ends: &mut Offsets, partition: i32, end: i64) {
    ends.entry(partition).and_modify(|it| *it = end.min(*it));
}

/// The most bytes that the key and the value of one record may have together.
///
/// Kafka's default limit for a batch (`message.max.bytes`, 1,048,588), less what a batch of one
/// record adds to it. A broker may be set to take less; it then reports that itself.
pub const MAX_RECORD_BYTES: usize = 1_048_000;

/// How long a line is tried before it is given up, by default: Kafka's `delivery.timeout.ms`.
pub const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a named broker may take to be reached and to answer.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a consumer's poll waits for records: a program can end between two.
pub const POLL_WAIT: Duration = Duration::from_millis(400);

/// How often a broker is probed that closes the connection instead of answering, and the pause in between.
const PROBES: u32 = 5;
const PROBE_PAUSE: Duration = Duration::from_millis(50);

/// One record as it was read. Crate `kafka` reports neither timestamps nor headers, and an absent key or value as an
/// empty one; what a [reader](Cluster::reader) opens has timestamps on the small broker.
#[derive(Debug, Clone, Copy, Default)]
pub struct Record<'a> {
    /// The partition it is in.
    pub partition: i32,
    /// Its offset in that partition.
    pub offset: i64,
    /// Its time, in milliseconds since 1970.
    pub timestamp: Option<i64>,
    /// The sender's name, by this project's convention.
    pub key: Option<&'a [u8]>,
    /// The line, without its ending. A record without a value (a tombstone) deletes earlier ones of its key, and
    /// is no line.
    pub value: Option<&'a [u8]>,
    /// Its headers, in their order.
    pub headers: &'a [Header<'a>],
}

/// A header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header<'a> {
    /// A name and a value, which can be absent.
    Named(&'a str, Option<&'a [u8]>),
    /// Its name is not UTF-8, so crate `rdkafka` returns neither the name nor the value.
    Unreadable,
}

/// Where a consumer starts to read.
#[derive(Debug, Clone)]
pub enum Start {
    /// At the oldest record kept.
    Earliest,
    /// After the record that is newest when the consumer is created.
    Latest,
    /// In each partition at the first record of this time, in milliseconds since 1970, or of a later one; if it has
    /// none, after its newest record. Crate `kafka` can't find that.
    Since(i64),
    /// At these offsets; a partition that is not named, at its oldest record.
    At(Offsets),
}

/// Which partition a producer writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioning {
    /// The one that the hash of the sender's name chooses: another one, once partitions are added.
    ByKey,
    /// The one that it chooses when the producer is created. A property for the partitioner does not change that.
    Fixed,
}

/// What happens to a connection or a log that a user would want to know. None of it is an error:
/// the client continues by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The connection was lost and is being retried.
    Lost {
        /// Which broker, as `host:port`.
        broker: String,
        /// The cause.
        why: String,
    },
    /// The broker was reached, but refused the request or the login; that is being retried.
    Refused {
        /// Which broker, as `host:port`.
        broker: String,
        /// The reason it gave.
        why: String,
    },
    /// The broker answers again after it was lost or had refused.
    Back {
        /// Which broker, as `host:port`.
        broker: String,
    },
    /// The log no longer had the offset that was to be read next: records may have been missed.
    Missed {
        /// In which partition.
        partition: i32,
        /// The offset that was to be read next.
        wanted: i64,
        /// The offset at which reading continues.
        resumed: i64,
        /// The offset after the newest record at that time.
        end: i64,
    },
    /// The log lacks the records at these offsets, which were to be read next: it is damaged there. Only of the small
    /// broker: a real Kafka skips offsets for markers of transactions, and by compaction.
    Damaged {
        /// The offsets.
        offsets: Range<i64>,
    },
    /// Records are compressed, which crate `kafka` can't read. They are left out.
    Unreadable {
        /// The topic they are in.
        topic: String,
        /// Their partition.
        partition: i32,
        /// Their offsets.
        offsets: Range<i64>,
    },
    /// Lines have waited for their acknowledgement for some seconds, although the cluster answers.
    Stalled {
        /// What they wait for.
        why: String,
    },
    /// Lines are acknowledged again after that.
    Flowing,
    /// The topic keeps only the last line of each sender.
    Compacted {
        /// The topic.
        topic: String,
    },
    /// The topic was deleted and created again; reading continues at the beginning of the new one.
    Recreated {
        /// The topic.
        topic: String,
        /// The offset after the newest record of each partition at that time.
        ends: Offsets,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Lost { broker, why } => {
                write!(f, "connection to {broker} lost ({why}), retrying")
            }
            Event::Refused { broker, why } => {
                write!(f, "{broker} refused ({why}), retrying")
            }
            Event::Back { broker } => write!(f, "connection to {broker} is back"),
            Event::Stalled { why } => write!(f, "lines are not acknowledged yet: {why}"),
            Event::Flowing => write!(f, "lines are acknowledged again"),
            Event::Compacted { topic } => write!(
                f,
                "topic {topic} is compacted: Kafka will keep only the last line of each sender. To keep all: \
                 cleanup.policy=delete"
            ),
            Event::Recreated { topic, .. } => write!(
                f,
                "topic {topic} was deleted and created again; reading it from its beginning"
            ),
            Event::Missed {
                wanted, resumed, ..
            } if wanted < resumed => write!(
                f,
                "{}: deleted before they were read",
                sentences::gone(*wanted..*resumed)
            ),
            Event::Damaged { offsets } => write!(
                f,
                "{}: damaged in the broker's log",
                sentences::gone(offsets.clone())
            ),
            Event::Unreadable {
                topic,
                partition,
                offsets,
            } => {
                let Range { start, end } = offsets;
                match end - start {
                    1 => write!(
                        f,
                        "1 message cannot be read (topic {topic}, partition {partition}, offset {start})"
                    ),
                    n => write!(
                        f,
                        "{n} messages cannot be read (topic {topic}, partition {partition}, offsets {start} to {})",
                        end - 1
                    ),
                }?;
                write!(
                    f,
                    ": compressed, which needs a build with the feature librdkafka"
                )
            }
            Event::Missed {
                wanted, resumed, ..
            } => write!(
                f,
                "the log no longer has offset {wanted}, so lines may have been missed; continuing \
                 at offset {resumed}"
            ),
        }
    }
}

/// Whose lines a producer writes, and where.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    /// The key of every record.
    pub sender: &'a Name,
    /// The topic that is written to.
    pub topic: &'a Name,
    /// The topic that the same program reads, if it does: if that is compacted, the producer reports it, too.
    pub reads: Option<&'a Name>,
}

impl<'a> Route<'a> {
    /// Of a program that reads nothing.
    pub fn new(sender: &'a Name, topic: &'a Name) -> Route<'a> {
        Route {
            sender,
            topic,
            reads: None,
        }
    }
}

/// Writes one sender's lines to one topic, in order: all to one partition, chosen by the hash of
/// the sender's name.
///
/// Dropping it gives up the lines that have no outcome yet, and returns at once.
pub trait Producer: Send {
    /// Hands over one line, numbered by the caller in rising order. Waits while the buffer is full.
    ///
    /// The outcome arrives as a [`Report`], exactly one for each line, as long as the producer
    /// lives. A line that is too large, or that could not be delivered in time, is reported as
    /// failed; the others are still sent.
    fn send(&mut self, line: u64, value: &[u8]);
}

/// Reads all partitions of one topic.
pub trait Consumer: Send {
    /// Waits at most about `wait` for records, and gives each to `each`: those of a partition in
    /// the order of their offsets. After `Break` no more are given; the next poll continues after
    /// that record.
    ///
    /// Returns what happened meanwhile, oldest first. [`Event::Missed`], [`Event::Damaged`] and [`Event::Recreated`] are
    /// returned before any record from the new position is given. Lost connections are retried for ever; an error is
    /// final.
    fn poll(
        &mut self,
        wait: Duration,
        each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Event>>;

    /// The offset of the next record to be given, by partition.
    fn position(&self) -> Offsets;

    /// The offset after the newest record, by partition.
    fn end_offsets(&mut self) -> Result<Offsets>;
}

/// Reads and commits the offsets of consumer groups, without being a member of any.
pub trait GroupOffsets: Send {
    /// The offsets that `group` has committed in `topic`; empty if it has not.
    fn committed(&mut self, group: &str, topic: &Name) -> Result<Offsets>;

    /// Commits `offsets` of `topic` for `group`.
    fn commit(&mut self, group: &str, topic: &Name, offsets: &Offsets) -> Result<()>;

    /// Gives back what only requests about `group` need, as connections and threads, until the next one.
    fn release(&mut self, _group: &str) {}
}

/// A Kafka cluster that producers and consumers can be created for.
///
/// Creating one waits for the topic, which the broker creates if it is set to.
pub trait Cluster: Send + Sync {
    /// A producer of one sender's lines in one topic. A line is given up after `delivery_timeout`.
    fn producer(
        &self,
        route: Route<'_>,
        partitioning: Partitioning,
        delivery_timeout: Duration,
        reports: Reports,
    ) -> Result<Box<dyn Producer>>;

    /// A consumer of all partitions of `topic`. Its start is fixed when this returns: what is
    /// written from then on is read.
    fn consumer(&self, topic: &Name, start: Start) -> Result<Box<dyn Consumer>>;

    /// The offsets of consumer groups.
    fn group_offsets(&self) -> Result<Box<dyn GroupOffsets>>;

    /// Returns a function that opens consumers on another thread, for a look at what a topic has. They do not keep a small
    /// broker running. Those that read from one return no events, and an error if it cannot be reached for some seconds.
    fn reader(&self) -> OpenConsumer;

    /// Whether those consumers report the times of records.
    fn reads_times(&self) -> bool;
}

/// As [`Cluster::consumer`].
pub type OpenConsumer = Box<dyn Fn(&Name, Start) -> Result<Box<dyn Consumer>> + Send>;

/// Called before each new connection to the small broker: starts it in this process if no other process serves at its
/// address. Fails with an error that [denies](Error::is_denied) if another account serves there that may not be used.
pub type TakeOver = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// How to reach a cluster.
#[derive(Clone, Default)]
pub struct Options {
    /// Bootstrap servers, each `host:port`.
    pub servers: Vec<String>,
    /// librdkafka's properties, in the order they were given. If there are any, librdkafka serves.
    pub properties: Vec<(String, String)>,
    /// Only for the small broker.
    pub take_over: Option<TakeOver>,
    /// The identity of the small broker's log, if it is known already: nothing is read from another one, and nothing
    /// written to it.
    pub log_id: Option<u32>,
    /// Records are read with timestamps and headers, and absent values differ from empty ones. librdkafka serves,
    /// even on the small broker.
    pub reads_in_full: bool,
}

/// Chooses the client for a cluster: crate `kafka` for the small broker, librdkafka for every real
/// Kafka. A build without librdkafka uses crate `kafka` for a Kafka up to 3.9, too.
///
/// Fails within about [`CONNECT_TIMEOUT`] if no server can be reached or none is Kafka, and if
/// this build has no client for the broker. With properties that ask for TLS nothing is connected to yet: the
/// first producer or consumer fails instead.
pub fn connect(options: &Options) -> Result<Box<dyn Cluster>> {
    properties::check(&options.properties)?;
    if options.reads_in_full {
        check_librdkafka("reading records in full")?;
    }
    let take_over = options.take_over.clone();
    if let (Some(_), Some(server), false) =
        (&take_over, options.servers.first(), options.reads_in_full)
    {
        let cluster = KafkaCrateCluster::new(server.clone(), take_over, options.log_id);
        return Ok(Box::new(cluster));
    }
    let has_properties = !options.properties.is_empty();
    let mut options = options.clone();
    let mut without_librdkafka = needs_librdkafka("-X or -F");
    // A port that wants TLS does not answer a probe; one that wants a login does.
    let is_probed = cfg!(feature = "librdkafka") && !properties::ask_for_tls(&options.properties);
    if is_probed || !has_properties {
        let found = probe_servers(&options.servers)?;
        let address = found.address.as_ref().map(SocketAddr::to_string);
        options.log_id = options.log_id.or(found.log_id());
        if is_for_kafka_crate(&found) && !has_properties && !options.reads_in_full {
            let server = address.unwrap_or(found.server);
            let cluster = KafkaCrateCluster::new(server, None, options.log_id);
            return Ok(Box::new(cluster));
        }
        options.servers.extend(address);
        without_librdkafka = Error::failed(
            format!("cannot talk to the Kafka at {}", found.server),
            "it is version 4 or later, which needs a build with the feature librdkafka (KIP-896)",
        );
    }
    librdkafka_or(&options, without_librdkafka)
}

/// Fails in a build that has no client for this option.
pub fn check_librdkafka(option: &str) -> Result<()> {
    match cfg!(feature = "librdkafka") {
        true => Ok(()),
        false => Err(needs_librdkafka(option).hint(sentences::BUILD_WITH_LIBRDKAFKA)),
    }
}

fn needs_librdkafka(options: &str) -> Error {
    Error::usage(format!(
        "{options} needs a build with the feature librdkafka"
    ))
}

/// Probes the servers, and again if a broker closes the connection instead of answering: a small broker does
/// so while it stops, and the next one is about to take over.
fn probe_servers(servers: &[String]) -> Result<BrokerInfo> {
    let mut found = ask(servers, CONNECT_TIMEOUT)?;
    for _ in 1..PROBES {
        if found.hung_up() {
            thread::sleep(PROBE_PAUSE);
            found = ask(servers, CONNECT_TIMEOUT)?;
        }
    }
    Ok(found)
}

/// Whether crate `kafka` serves this broker: the small one, and a real one only in a build without
/// librdkafka, if it still speaks version 0.
fn is_for_kafka_crate(broker: &BrokerInfo) -> bool {
    broker.is_small_broker() || (!cfg!(feature = "librdkafka") && broker.speaks_version_0())
}

#[cfg(feature = "librdkafka")]
fn librdkafka_or(options: &Options, _without: Error) -> Result<Box<dyn Cluster>> {
    librdkafka::connect(options)
}

#[cfg(not(feature = "librdkafka"))]
fn librdkafka_or(_options: &Options, without: Error) -> Result<Box<dyn Cluster>> {
    Err(without.hint(sentences::BUILD_WITH_LIBRDKAFKA))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::broker::identity;
    use crate::wire::ApiVersion;

    #[test]
    fn a_broker_that_closes_the_connection_is_probed_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            drop(listener.accept());
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 24]).unwrap();
            let answer = b"\0\0\0\x10\0\0\0\x01\0\0\0\0\0\x01\0\x01\0\0\0\x0c";
            stream.write_all(answer).unwrap();
        });
        let apis = probe_servers(&[server]).unwrap().apis;
        assert_eq!((apis[0].api_key, apis[0].max_version), (1, 12));
    }

    #[test]
    fn crate_kafka_serves_the_small_broker_and_without_librdkafka_an_old_kafka() {
        let without_librdkafka = !cfg!(feature = "librdkafka");
        let api = |(api_key, min_version, max_version)| ApiVersion {
            api_key,
            min_version,
            max_version,
        };
        for (apis, serves) in [
            (identity::to_apis(7).to_vec(), true),
            (
                [(1, 0, 16), (2, 0, 9)].map(api).to_vec(),
                without_librdkafka,
            ),
            ([(1, 4, 18), (2, 1, 10)].map(api).to_vec(), false),
            // Before 0.10: it closes the connection instead of answering.
            (Vec::new(), without_librdkafka),
        ] {
            let server = "localhost:9092".to_string();
            let broker = BrokerInfo {
                server,
                address: None,
                apis,
            };
            assert_eq!(is_for_kafka_crate(&broker), serves, "{broker:?}");
        }
    }
}
