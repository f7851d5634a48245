//! Hands lines to librdkafka, and reports what became of them.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};

use super::errors::failed_by_code;
use super::status::{ClusterStatus, Context};
use super::topic::TopicRequests;
use super::{LibrdkafkaCluster, create};
use crate::client::reports::ReportRun;
use crate::client::{MAX_RECORD_BYTES, Producer, Report, Reports, sentences};
use crate::ending::spawn;
use crate::error::{Error, Result};
use crate::name::Name;

/// How long the polling thread sleeps while lines are under way, and while none are.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
const IDLE_PAUSE: Duration = Duration::from_millis(100);

/// How long the first line may take before the cluster is asked for metadata; twice as long each
/// time after that.
const FIRST_LINE_TIMEOUT: Duration = Duration::from_millis(4);

/// How often a cluster that is away is asked for metadata.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a line waits before it is tried again while librdkafka's queue is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(2);

/// A line smaller than this that is refused as too large was in a batch that is: librdkafka's batches
/// have at most 1,000,000 bytes, and it does not split one that is refused.
const SMALL_LINE_BYTES: usize = 500_000;

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

type Base = BaseProducer<Context<Deliveries>>;

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
    let config = cluster.config(&ours, &[]);
    // A user's own setting may have replaced ours.
    let timeout = match config.get("delivery.timeout.ms").map(str::parse) {
        Some(Ok(millis)) => Duration::from_millis(millis),
        _ => delivery_timeout,
    };
    let deliveries = Deliveries::new(reports, doing.clone(), timeout);
    let producer: Base = create(&config, &status, deliveries)?;
    let pause = |pause| producer.poll(pause);
    let requests = TopicRequests::new(&status, doing, topic, producer.client(), &pause)
        .map_err(|error| cluster.explain(&status, topic, error))?;
    requests.reach_leader(producer.client(), &pause)?;
    status.on_started();

    let producer = Arc::new(producer);
    let (wake, rx) = mpsc::sync_channel(1);
    let is_asleep = Arc::new(AtomicBool::new(false));
    let poller = Poller {
        producer: Arc::clone(&producer),
        topic: topic.to_string(),
        wake: rx,
        is_asleep: Arc::clone(&is_asleep),
    };
    spawn("producer", move || poller.run())?;
    Ok(Box::new(LibrdkafkaProducer {
        producer,
        sender: sender.clone(),
        topic: topic.to_string(),
        is_asleep,
        wake,
    }))
}

struct LibrdkafkaProducer {
    /// Dropped before `wake`, whose end makes the poller drop its own: what librdkafka takes to close
    /// is the poller's time.
    producer: Arc<Base>,
    /// The key of every record.
    sender: Name,
    topic: String,
    /// The poller sleeps for longer than a moment.
    is_asleep: Arc<AtomicBool>,
    wake: SyncSender<()>,
}

impl Producer for LibrdkafkaProducer {
    fn send(&mut self, line: u64, value: &[u8]) {
        let context = self.producer.client().context();
        let key = self.sender.as_bytes();
        let bytes = key.len() + value.len();
        let fail = |code| {
            let deliveries = &context.role;
            deliveries.fail(line, value, bytes, code, &context.status);
            deliveries.flush();
        };
        if bytes > MAX_RECORD_BYTES {
            return fail(Code::MessageSizeTooLarge);
        }
        let mut record = BaseRecord::with_opaque_to(&self.topic, line as usize)
            .key(key)
            .payload(value);
        while let Err((error, back)) = self.producer.send(record) {
            match error.rdkafka_error_code() {
                Some(Code::QueueFull) => {
                    record = back;
                    thread::sleep(QUEUE_FULL_PAUSE);
                }
                code => return fail(code.unwrap_or(Code::Fail)),
            }
        }
        if self.is_asleep.swap(false, Ordering::SeqCst) {
            // A full channel has woken it already.
            let _ = self.wake.try_send(());
        }
    }
}

/// Polls for delivery reports on its own thread, until the producer is dropped.
///
/// The crate's own poll with a timeout can't be ended early, and is busy for its last millisecond.
/// So this only ever takes what has arrived, and sleeps in between.
struct Poller {
    producer: Arc<Base>,
    topic: String,
    wake: Receiver<()>,
    is_asleep: Arc<AtomicBool>,
}

impl Poller {
    fn run(self) {
        let Context { status, role } = &**self.producer.client().context();
        let mut has_reported = false;
        let mut last_refresh = Instant::now();
        let mut patience = FIRST_LINE_TIMEOUT;
        loop {
            self.producer.poll(Duration::ZERO);
            let is_news = role.flush();
            has_reported |= is_news;
            if self.sleep(is_news).is_break() {
                return;
            }
            // Without metadata, librdkafka asks for the producer's id again only after half a second.
            let is_stuck = !has_reported
                && self.producer.in_flight_count() > 0
                && last_refresh.elapsed() >= patience;
            let is_due = status.is_away() && last_refresh.elapsed() >= RECONNECT_INTERVAL;
            if is_stuck || is_due {
                last_refresh = Instant::now();
                if is_stuck {
                    patience *= 2;
                }
                let client = self.producer.client();
                let answer = client.fetch_metadata(Some(&self.topic), RECONNECT_INTERVAL / 2);
                if answer.is_ok() {
                    status.on_answer();
                }
            }
        }
    }

    /// Sleeps until the next look is due, or a line is handed over; breaks if none will be any more.
    fn sleep(&self, is_news: bool) -> ControlFlow<()> {
        let is_busy = || self.producer.in_flight_count() > 0;
        let pause = if is_news {
            Duration::ZERO
        } else if is_busy() {
            BUSY_PAUSE
        } else {
            self.is_asleep.store(true, Ordering::SeqCst);
            // A line may have been handed over just before.
            if is_busy() { BUSY_PAUSE } else { IDLE_PAUSE }
        };
        let woken = self.wake.recv_timeout(pause);
        self.is_asleep.store(false, Ordering::SeqCst);
        match woken {
            Err(RecvTimeoutError::Disconnected) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// Gathers what became of lines, and reports it.
pub(super) struct Deliveries {
    /// What fails if a delivery does: `cannot write to topic bob at localhost:9092`.
    doing: String,
    timeout: Duration,
    /// Locked for a moment, by the polling thread for each line, and by the caller's thread for a line
    /// that can't be sent.
    run: Mutex<ReportRun>,
}

impl Deliveries {
    pub(super) fn new(reports: Reports, doing: String, timeout: Duration) -> Deliveries {
        Deliveries {
            doing,
            timeout,
            run: Mutex::new(ReportRun::new(reports)),
        }
    }

    fn run(&self) -> MutexGuard<'_, ReportRun> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports what has been gathered. Returns whether there was anything.
    pub(super) fn flush(&self) -> bool {
        self.run().flush()
    }

    /// A line that has `bytes` bytes with its key was given up.
    pub(super) fn fail(
        &self,
        line: u64,
        value: &[u8],
        bytes: usize,
        code: Code,
        status: &ClusterStatus,
    ) {
        let why = match code {
            Code::MessageSizeTooLarge if bytes < SMALL_LINE_BYTES => Error::too_large().hint(
                "The line is not large, its batch may be: -X batch.size=BYTES makes batches smaller.",
            ),
            Code::MessageSizeTooLarge => Error::too_large(),
            Code::MessageTimedOut => {
                let cause = status.cause();
                sentences::not_acknowledged(&self.doing, self.timeout, cause.as_deref())
            }
            Code::PurgeQueue | Code::PurgeInflight => {
                Error::unacknowledged(&self.doing, "ended before it was acknowledged")
            }
            code => failed_by_code(&self.doing, code),
        };
        self.run().failed(line, value, why);
    }
}

impl ProducerContext for Context<Deliveries> {
    /// The number of the line. (It travels as a pointer: 32-bit machines count to 4 billion.)
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, line: usize) {
        let line = line as u64;
        match result {
            Ok(message) => {
                let (partition, offset) = (message.partition(), message.offset());
                self.role.run().acknowledged(line, partition, offset);
                self.status.on_answer();
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                let value = message.payload().unwrap_or_default();
                let bytes = value.len() + message.key().map_or(0, <[u8]>::len);
                self.role.fail(line, value, bytes, code, &self.status);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_line_that_failed_says_why() {
        let (tx, rx) = mpsc::channel::<Report>();
        let timeout = Duration::from_millis(1500);
        let deliveries = Deliveries::new(Reports::to(tx), "cannot write".into(), timeout);
        let status = ClusterStatus::new(Vec::new(), false, drop);
        for (code, bytes, said) in [
            (
                Code::MessageTimedOut,
                9,
                "cannot write: not acknowledged within 1.5 seconds",
            ),
            (Code::MessageSizeTooLarge, 9, "too large"),
            (Code::MessageSizeTooLarge, 9, "-X batch.size"),
            (Code::MessageSizeTooLarge, 600_000, "too large"),
            (Code::TopicAuthorizationFailed, 9, "not allowed"),
        ] {
            deliveries.fail(1, b"text", bytes, code, &status);
            deliveries.flush();
            let Ok(Report::Failed { why, .. }) = rx.try_recv() else {
                panic!("{code:?} is not reported");
            };
            assert!(why.to_string().contains(said), "{why}");
            assert!(bytes < SMALL_LINE_BYTES || !why.to_string().contains("batch.size"));
        }
    }
}
