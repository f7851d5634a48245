//! Hands lines to librdkafka, and reports what became of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseRecord, Producer as _};

use super::deliveries::{Base, Deliveries};
use super::poller::Poller;
use super::status::ClusterStatus;
use super::too_large::{BatchLimit, refusal};
use super::topic::TopicRequests;
use super::topic_settings::{self, TopicSettings};
use super::{LibrdkafkaCluster, create};
use crate::broker::lock;
use crate::client::partitioner::partition_for;
use crate::client::properties::is_true;
use crate::client::{MAX_RECORD_BYTES, Partitioning, Producer, Report, Reports, Route};
use crate::ending::spawn;
use crate::error::{Error, Result};
use crate::name::Name;

/// How long a line waits before it is tried again while librdkafka's queue is full.
pub(super) const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(2);

/// How long the others wait for the outcome of a client's first line.
const FIRST_LINE_ALONE: Duration = Duration::from_secs(1);

const SETTINGS: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    // With more than one, lines get lost. A broker takes a batch of any sequence from a producer that it
    // does not know yet; so if it refuses the first one, as it does for a moment when the topic
    // is new, and takes the second, librdkafka believes that the first one was written, too.
    ("max.in.flight.requests.per.connection", "1"),
    // A line leaves at once. Batches form by themselves, from the lines that come while others are
    // under way: waiting for more makes a pipe no faster, and one line slower.
    ("linger.ms", "0"),
    // As Kafka's Java client and crate kafka's client here do it: a sender's lines share a partition.
    ("partitioner", "murmur2_random"),
    // Bounds the memory of a pipe that is faster than the broker: three batches. Of lines of 100 bytes it takes four times
    // as much.
    ("queue.buffering.max.kbytes", "3072"),
    ("message.max.bytes", "1048588"),
];

/// Only an idempotent producer can stop at a batch that is [refused](super::too_large).
const STOPS_AT_GAPS: (&str, &str) = ("enable.gapless.guarantee", "true");

/// Where lines go, and under which name.
pub(super) struct Destination {
    /// The key of every record.
    pub(super) sender: Name,
    pub(super) topic: Name,
    /// The topic that the same program reads, if it does.
    pub(super) reads: Option<Name>,
}

impl Destination {
    /// How many bytes a line has with its key.
    pub(super) fn record_bytes(&self, value: &[u8]) -> usize {
        self.sender.as_bytes().len() + value.len()
    }
}

/// What a producer shares with the thread that polls for it.
pub(super) struct Shared {
    /// For other clients.
    pub(super) cluster: LibrdkafkaCluster,
    pub(super) status: Arc<ClusterStatus>,
    pub(super) deliveries: Arc<Deliveries>,
    pub(super) destination: Destination,
    /// When the producer was started, since 1970.
    pub(super) started: Duration,
    pub(super) slot: Slot,
    /// The polling thread sleeps for longer than a moment.
    pub(super) is_asleep: AtomicBool,
}

impl Shared {
    /// Asks for the topic's settings, and whether the topic that is read is compacted.
    pub(super) fn ask_settings(&self) -> Result<Receiver<TopicSettings>> {
        let Destination { topic, reads, .. } = &self.destination;
        topic_settings::ask(&self.cluster, topic, reads.as_ref())
    }
}

/// The client that lines are handed to now. Locked by the caller's thread for each line, and by the polling thread while
/// it replaces the client: then lines wait until the log has been read.
pub(super) type Slot = Mutex<CurrentClient>;

pub(super) struct CurrentClient {
    pub(super) client: Arc<Base>,
    /// What the topic takes, if that is known and lines are sent as they are, not compressed.
    pub(super) limit: Option<BatchLimit>,
    /// None where librdkafka chooses it.
    pub(super) partition: Option<i32>,
    first: First,
}

/// The first line of a client goes alone. Of a producer that it does not know, a broker takes a batch even after a gap:
/// one that librdkafka has prepared when the batch before it is refused would be written too early.
enum First {
    Unsent,
    /// Since when it is under way. The others don't wait for a broker that does not answer.
    Sent(Instant),
    Settled,
}

impl CurrentClient {
    pub(super) fn new(
        client: Arc<Base>,
        limit: Option<BatchLimit>,
        partition: Option<i32>,
    ) -> CurrentClient {
        CurrentClient {
            client,
            limit,
            partition,
            first: First::Unsent,
        }
    }

    /// Why a line is certainly too large, if it is.
    pub(super) fn refusal(&self, destination: &Destination, value: &[u8]) -> Option<Error> {
        let bytes = destination.record_bytes(value);
        let limit = self.limit.filter(|limit| limit.refuses(bytes));
        (bytes > MAX_RECORD_BYTES || limit.is_some()).then(|| {
            let limit = limit.map(|limit| limit.bytes);
            refusal(bytes, &destination.topic, limit)
        })
    }

    /// Hands over a line, under its number. It fails with `QueueFull` if there is no room for it yet, and with
    /// `GaplessGuarantee` if the client has stopped at a refused batch: another one takes its place soon.
    pub(super) fn enqueue(
        &mut self,
        destination: &Destination,
        line: u64,
        value: &[u8],
    ) -> Result<(), Code> {
        if let First::Sent(since) = self.first {
            if self.client.in_flight_count() > 0 && since.elapsed() < FIRST_LINE_ALONE {
                return Err(Code::QueueFull);
            }
            self.first = First::Settled;
        }
        let topic = destination.topic.as_str();
        let mut record = BaseRecord::with_opaque_to(topic, line as usize)
            .key(destination.sender.as_bytes())
            .payload(value);
        record.partition = self.partition;
        let code = |error: &KafkaError| error.rdkafka_error_code();
        let sent = match self.client.send(record) {
            Err((error, mut record)) if code(&error) == Some(Code::UnknownPartition) => {
                // The topic was created again, with fewer partitions: librdkafka chooses one.
                record.partition = None;
                self.client.send(record)
            }
            sent => sent,
        };
        sent.map_err(|(error, _)| match code(&error) {
            Some(Code::Fatal) => fatal_code(&self.client).unwrap_or(Code::Fatal),
            code => code.unwrap_or(Code::Fail),
        })?;
        if let First::Unsent = self.first {
            self.first = First::Sent(Instant::now());
        }
        Ok(())
    }
}

/// Why a client has stopped for good, if it has.
pub(super) fn fatal_code(client: &Base) -> Option<Code> {
    client.client().fatal_error().map(|(code, _)| code)
}

/// Connects, and starts the thread that polls for delivery reports.
pub(super) fn start(
    cluster: &LibrdkafkaCluster,
    route: Route<'_>,
    partitioning: Partitioning,
    delivery_timeout: Duration,
    reports: Reports,
) -> Result<Box<dyn Producer>> {
    let events = reports.clone();
    let status = cluster.status(move |event| events.send(Report::Connection(event)));
    let topic = route.topic;
    let doing = format!("cannot write to topic {topic} at {}", status.servers());
    let timeout = delivery_timeout.as_millis().to_string();
    let ours = [SETTINGS, &[("delivery.timeout.ms", &timeout)]].concat();
    let mut config = cluster.following_topic(cluster.config(&ours, &[]));
    if config.get("enable.idempotence").is_some_and(is_true) {
        config.set(STOPS_AT_GAPS.0, STOPS_AT_GAPS.1);
    }
    // A user's own setting may have replaced ours.
    let timeout = match config.get("delivery.timeout.ms").map(str::parse) {
        Some(Ok(millis)) => Duration::from_millis(millis),
        _ => delivery_timeout,
    };
    let started = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let deliveries = Arc::new(Deliveries::new(reports, doing.clone(), timeout));
    let create = || create(&config, &status, Arc::clone(&deliveries));
    let poll = |producer: &Base, time| producer.poll(time);
    let (producer, requests) = TopicRequests::connect(&status, doing, topic, &create, &poll)
        .map_err(|error| cluster.explain(&status, topic, error))?;
    requests.reach_leader(producer.client(), &|time| producer.poll(time))?;
    let destination = Destination {
        sender: route.sender.clone(),
        topic: topic.clone(),
        reads: route.reads.cloned(),
    };
    let partition = (partitioning == Partitioning::Fixed)
        .then(|| partition_for(route.sender.as_bytes(), &requests.partitions()));
    let client = CurrentClient::new(Arc::new(producer), None, partition);
    status.on_started();
    let shared = Arc::new(Shared {
        cluster: cluster.as_client(),
        status,
        deliveries,
        destination,
        started,
        slot: Slot::new(client),
        is_asleep: AtomicBool::new(false),
    });
    let (wake, rx) = mpsc::sync_channel(1);
    let poller = Poller::new(&shared, config, rx)?;
    spawn("producer", move || poller.run())?;
    Ok(Box::new(LibrdkafkaProducer { shared, wake }))
}

struct LibrdkafkaProducer {
    /// Dropped before `wake`, whose end makes the poller drop its own: what librdkafka takes to close
    /// is the poller's time.
    shared: Arc<Shared>,
    wake: SyncSender<()>,
}

impl Producer for LibrdkafkaProducer {
    fn send(&mut self, line: u64, value: &[u8]) {
        let Shared {
            status,
            deliveries,
            destination,
            ..
        } = &*self.shared;
        let given_up = loop {
            let mut client = lock(&self.shared.slot);
            if let Some(why) = client.refusal(destination, value) {
                break Some(why);
            }
            match client.enqueue(destination, line, value) {
                Ok(()) => break None,
                Err(Code::QueueFull | Code::GaplessGuarantee) => {}
                Err(code) => break Some(deliveries.reason(code, status)),
            }
            drop(client);
            thread::sleep(QUEUE_FULL_PAUSE);
        };
        if let Some(why) = given_up {
            deliveries.fail(line, value, why);
            deliveries.flush();
            return;
        }
        if self.shared.is_asleep.swap(false, Ordering::SeqCst) {
            // A full channel has woken it already.
            let _ = self.wake.try_send(());
        }
    }
}
