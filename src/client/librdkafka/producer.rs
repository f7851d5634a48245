//! Hands lines to librdkafka, and reports what became of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseRecord, Producer as _};

use super::deliveries::{Base, Deliveries};
use super::poller::{Poller, Setup};
use super::status::ClusterStatus;
use super::topic::TopicRequests;
use super::{LibrdkafkaCluster, create};
use crate::broker::lock;
use crate::client::{MAX_RECORD_BYTES, Producer, Report, Reports};
use crate::ending::spawn;
use crate::error::Result;
use crate::name::Name;

/// How long a line waits before it is tried again while librdkafka's queue is full.
pub(super) const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(2);

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
    // Bounds the memory of a pipe that is faster than the broker.
    ("queue.buffering.max.kbytes", "6144"),
    ("message.max.bytes", "1048588"),
];

/// The client that lines are handed to. Locked by the caller's thread for each line, and by the polling thread
/// while it replaces the client: then lines wait until the log has been read.
pub(super) type Slot = Mutex<Arc<Base>>;

/// Connects, and starts the thread that polls for delivery reports.
pub(super) fn start(
    cluster: &LibrdkafkaCluster,
    sender: &Name,
    topic: &Name,
    delivery_timeout: Duration,
    reports: Reports,
) -> Result<Box<dyn Producer>> {
    let events = reports.clone();
    let status = cluster.status(move |event| events.send(Report::Connection(event)));
    let doing = format!("cannot write to topic {topic} at {}", status.servers());
    let timeout = delivery_timeout.as_millis().to_string();
    let ours = [SETTINGS, &[("delivery.timeout.ms", &timeout)]].concat();
    let config = LibrdkafkaCluster::following_topic(cluster.config(&ours, &[]));
    // A user's own setting may have replaced ours.
    let timeout = match config.get("delivery.timeout.ms").map(str::parse) {
        Some(Ok(millis)) => Duration::from_millis(millis),
        _ => delivery_timeout,
    };
    let started = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let deliveries = Arc::new(Deliveries::new(reports, doing.clone(), timeout));
    let producer: Base = create(&config, &status, Arc::clone(&deliveries))?;
    let pause = |pause| producer.poll(pause);
    let requests = TopicRequests::new(&status, doing, topic, producer.client(), &pause)
        .map_err(|error| cluster.explain(&status, topic, error))?;
    requests.reach_leader(producer.client(), &pause)?;
    status.on_started();
    let producer = Arc::new(producer);
    let slot = Arc::new(Slot::new(Arc::clone(&producer)));
    let (wake, rx) = mpsc::sync_channel(1);
    let is_asleep = Arc::new(AtomicBool::new(false));
    let setup = Setup {
        cluster: cluster.as_client(),
        config,
        status: Arc::clone(&status),
        deliveries: Arc::clone(&deliveries),
        sender: sender.clone(),
        topic: topic.clone(),
        started,
    };
    let poller = Poller::new(setup, Arc::clone(&slot), rx, Arc::clone(&is_asleep))?;
    spawn("producer", move || poller.run())?;
    Ok(Box::new(LibrdkafkaProducer {
        slot,
        status,
        deliveries,
        sender: sender.clone(),
        topic: topic.clone(),
        is_asleep,
        wake,
    }))
}

/// Hands a line to `producer`, under its number.
pub(super) fn enqueue(
    producer: &Base,
    topic: &Name,
    sender: &Name,
    line: u64,
    value: &[u8],
) -> Result<(), Code> {
    let record = BaseRecord::with_opaque_to(topic.as_str(), line as usize)
        .key(sender.as_bytes())
        .payload(value);
    let result = producer.send(record);
    result.map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(Code::Fail))
}

struct LibrdkafkaProducer {
    /// Dropped before `wake`, whose end makes the poller drop its own: what librdkafka takes to close
    /// is the poller's time.
    slot: Arc<Slot>,
    status: Arc<ClusterStatus>,
    deliveries: Arc<Deliveries>,
    /// The key of every record.
    sender: Name,
    topic: Name,
    /// The poller sleeps for longer than a moment.
    is_asleep: Arc<AtomicBool>,
    wake: SyncSender<()>,
}

impl Producer for LibrdkafkaProducer {
    fn send(&mut self, line: u64, value: &[u8]) {
        let bytes = self.sender.as_bytes().len() + value.len();
        let fail = |code| {
            self.deliveries.fail(line, value, bytes, code, &self.status);
            self.deliveries.flush();
        };
        if bytes > MAX_RECORD_BYTES {
            return fail(Code::MessageSizeTooLarge);
        }
        let hand_over = || enqueue(&lock(&self.slot), &self.topic, &self.sender, line, value);
        while let Err(code) = hand_over() {
            match code {
                Code::QueueFull => thread::sleep(QUEUE_FULL_PAUSE),
                code => return fail(code),
            }
        }
        if self.is_asleep.swap(false, Ordering::SeqCst) {
            // A full channel has woken it already.
            let _ = self.wake.try_send(());
        }
    }
}
