//! Hands lines to librdkafka, and reports what became of them.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::Message as _;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};

use super::errors::{failed_by_code, is_transient};
use super::read_back::{Search, Unsettled, Witness};
use super::status::{ClusterStatus, Context};
use super::topic::{ANSWER_TIMEOUT, TopicRequests, metadata};
use super::topic_settings::{self, TopicSettings};
use super::{LibrdkafkaCluster, create};
use crate::client::reports::ReportRun;
use crate::client::{Event, MAX_RECORD_BYTES, Offsets, Producer, Report, Reports, sentences};
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

/// How long lines may wait for their acknowledgement before the cluster is asked why.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// How long the client may be without a connection before another one tries to get one.
const REPLACE_AFTER: Duration = Duration::from_secs(5);

/// How long lines may wait while the client takes news of their topic for outdated.
const OUTDATED_FOR: Duration = Duration::from_secs(2);

/// By how much a broker's clock may be slow.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

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

type Base = BaseProducer<Context<Arc<Deliveries>>>;

/// The client that lines are handed to. Locked by the caller's thread for each line, and by the polling thread
/// while it replaces the client.
type Slot = Mutex<Arc<Base>>;

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    let settings = topic_settings::ask(cluster, topic)?;

    let producer = Arc::new(producer);
    let slot = Arc::new(Slot::new(Arc::clone(&producer)));
    let (wake, rx) = mpsc::sync_channel(1);
    let is_asleep = Arc::new(AtomicBool::new(false));
    let poller = Poller {
        cluster: cluster.as_client(),
        config,
        status: Arc::clone(&status),
        deliveries: Arc::clone(&deliveries),
        sender: sender.clone(),
        topic: topic.clone(),
        started,
        answers: settings,
        settings: TopicSettings::default(),
        producer,
        slot: Arc::clone(&slot),
        wake: rx,
        is_asleep: Arc::clone(&is_asleep),
    };
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
fn enqueue(
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

/// What came of a request for metadata.
enum Look {
    Answered(Metadata),
    Unanswered,
    /// There was no broker to ask: then no other request is under way, either.
    NoConnection,
}

/// Polls for delivery reports on its own thread, until the producer is dropped.
///
/// The crate's own poll with a timeout can't be ended early, and is busy for its last millisecond.
/// So this only ever takes what has arrived, and sleeps in between.
struct Poller {
    cluster: LibrdkafkaCluster,
    config: ClientConfig,
    status: Arc<ClusterStatus>,
    deliveries: Arc<Deliveries>,
    sender: Name,
    topic: Name,
    /// When the producer was started, since 1970.
    started: Duration,
    answers: Receiver<TopicSettings>,
    /// As far as they are known.
    settings: TopicSettings,
    /// The one in the slot, which only this thread replaces.
    producer: Arc<Base>,
    slot: Arc<Slot>,
    wake: Receiver<()>,
    is_asleep: Arc<AtomicBool>,
}

impl Poller {
    fn run(mut self) {
        let mut has_reported = false;
        let mut last_report = Instant::now();
        let mut last_refresh = Instant::now();
        let mut alone_since = None;
        let mut is_outdated = false;
        let mut is_stalled = false;
        let mut patience = FIRST_LINE_TIMEOUT;
        loop {
            self.producer.poll(Duration::ZERO);
            let is_news = self.deliveries.flush();
            has_reported |= is_news;
            if self.sleep(is_news).is_break() {
                return;
            }
            if is_news || self.producer.in_flight_count() == 0 {
                last_report = Instant::now();
                if std::mem::take(&mut is_stalled) {
                    self.status.tell(Event::Flowing);
                }
            }
            self.take_settings();
            self.status.tell_lasting();
            is_outdated |= self.status.take_outdated();
            if is_outdated && last_report.elapsed() >= OUTDATED_FOR {
                is_outdated = false;
                last_report = Instant::now();
                if let Some(witness) = self.witness() {
                    self.replace(&witness);
                }
            }
            is_outdated &= !is_news;
            // Without metadata, librdkafka asks for the producer's id again only after half a second.
            let is_stuck = !has_reported
                && self.producer.in_flight_count() > 0
                && last_refresh.elapsed() >= patience;
            let is_silent = self.status.is_away() || last_report.elapsed() >= STALLED_AFTER;
            let is_due = is_silent && last_refresh.elapsed() >= RECONNECT_INTERVAL;
            if !is_stuck && !is_due {
                continue;
            }
            last_refresh = Instant::now();
            if is_stuck {
                patience *= 2;
            }
            let look = self.look(RECONNECT_INTERVAL / 2);
            if let Look::Answered(metadata) = &look
                && !is_stalled
                && last_report.elapsed() >= STALLED_AFTER
            {
                match self.cause_of_stall(metadata) {
                    Some(why) => {
                        is_stalled = true;
                        self.status.tell(Event::Stalled { why });
                    }
                    None => self.ask_settings(),
                }
            }
            if !matches!(look, Look::NoConnection) {
                alone_since = None;
            } else if alone_since.get_or_insert(last_refresh).elapsed() >= REPLACE_AFTER {
                alone_since = None;
                if let Some(witness) = self.witness()
                    && matches!(self.look(RECONNECT_INTERVAL), Look::NoConnection)
                {
                    self.replace(&witness);
                }
            }
        }
    }

    /// Asks for the topic's settings again, once the last question is answered: they may have changed.
    fn ask_settings(&mut self) {
        if self.answers.try_recv() == Err(TryRecvError::Disconnected)
            && let Ok(answers) = topic_settings::ask(&self.cluster, &self.topic)
        {
            self.answers = answers;
        }
    }

    fn take_settings(&mut self) {
        let Ok(settings) = self.answers.try_recv() else {
            return;
        };
        let was_compacted = std::mem::replace(&mut self.settings, settings).is_compacted;
        if self.settings.is_compacted && !was_compacted {
            let topic = self.topic.to_string();
            self.status.tell(Event::Compacted { topic });
        }
    }

    /// Asks the cluster for metadata.
    fn look(&self, timeout: Duration) -> Look {
        match metadata(self.producer.client(), self.topic.as_str(), timeout) {
            Ok(metadata) => {
                self.status.on_answer();
                Look::Answered(metadata)
            }
            Err(error) => match error.rdkafka_error_code() {
                Some(Code::BrokerTransportFailure) => Look::NoConnection,
                _ => Look::Unanswered,
            },
        }
    }

    /// What the topic lacks to take lines, as far as the cluster says it.
    fn cause_of_stall(&self, metadata: &Metadata) -> Option<String> {
        let topic = metadata.topics().first()?;
        topic.partitions().iter().find_map(|partition| {
            let (id, in_sync) = (partition.id(), partition.isr().len());
            if partition.leader() < 0 {
                return Some(format!("no broker leads partition {id}"));
            }
            let needed = self.settings.min_in_sync;
            (in_sync < needed).then(|| {
                format!("too few replicas of partition {id} are in sync, {in_sync} of {needed} that it takes")
            })
        })
    }

    /// Another client that finds the cluster.
    fn witness(&self) -> Option<Witness> {
        let doing = &self.deliveries.doing;
        Witness::of(&self.cluster, doing, &self.topic, RECONNECT_INTERVAL)
    }

    /// Replaces the client by a new one, and hands it the lines that the log does not have.
    ///
    /// librdkafka can lose its cluster or its topic for good. A broker that was stopped for a while may list no
    /// broker at first, not even itself: then librdkafka forgets all of them, and sometimes never asks its bootstrap
    /// servers again, <https://github.com/confluentinc/librdkafka/issues/5301>. And what it is told of a topic that
    /// was created again, it may take for [outdated](super::recreation).
    fn replace(&mut self, witness: &Witness) {
        let Ok(producer) = create(&self.config, &self.status, Arc::clone(&self.deliveries)) else {
            return;
        };
        let slot = Arc::clone(&self.slot);
        let mut slot = lock(&slot);
        let (lines, ends) = self.deliveries.take_back(&self.producer);
        // The connections of the client that was there before end with this.
        self.producer = Arc::new(producer);
        *slot = Arc::clone(&self.producer);
        let since = self.started.saturating_sub(CLOCK_TOLERANCE).as_millis();
        let search = Search {
            key: self.sender.as_bytes(),
            ends,
            since: since as i64,
        };
        for Unsettled { line, value } in self.unwritten(witness, &search, lines) {
            let again = || enqueue(&self.producer, &self.topic, &self.sender, line, &value);
            while let Err(code) = again() {
                if code != Code::QueueFull {
                    let bytes = self.sender.as_bytes().len() + value.len();
                    let deliveries = &self.deliveries;
                    deliveries.fail(line, &value, bytes, code, &self.status);
                    break;
                }
                self.producer.poll(QUEUE_FULL_PAUSE);
            }
        }
        self.status.on_answer();
    }

    /// Reports those of `lines` that are in the log as acknowledged, and returns the others. Where that can't be
    /// found out, all are reported as lines that may be there.
    fn unwritten(
        &self,
        witness: &Witness,
        search: &Search<'_>,
        lines: Vec<Unsettled>,
    ) -> Vec<Unsettled> {
        let end = Instant::now() + self.deliveries.timeout;
        let acknowledge =
            |line, partition, offset| self.deliveries.acknowledge(line, partition, offset);
        loop {
            // What was in flight may be written a moment later.
            thread::sleep(RECONNECT_INTERVAL / 2);
            match witness.find(search, &lines, acknowledge) {
                Ok(rest) => return rest,
                Err(error) if is_transient(&error) && Instant::now() < end => {
                    if self.wake.try_recv() == Err(TryRecvError::Disconnected) {
                        return Vec::new();
                    }
                }
                Err(_) => break,
            }
        }
        let why = Error::unacknowledged(
            &self.deliveries.doing,
            "the connection was lost, and the log can't be read to see what has arrived",
        );
        let mut gathered = lock(&self.deliveries.gathered);
        for Unsettled { line, value } in lines {
            gathered.run.failed(line, &value, why.clone());
        }
        Vec::new()
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
    gathered: Mutex<Gathered>,
}

struct Gathered {
    run: ReportRun,
    /// The offset after the last line that was acknowledged, by partition.
    ends: Offsets,
    /// The lines that are taken back from a client, while they are.
    taken_back: Option<Vec<Unsettled>>,
}

impl Deliveries {
    pub(super) fn new(reports: Reports, doing: String, timeout: Duration) -> Deliveries {
        Deliveries {
            doing,
            timeout,
            gathered: Mutex::new(Gathered {
                run: ReportRun::new(reports),
                ends: Offsets::new(),
                taken_back: None,
            }),
        }
    }

    /// Reports what has been gathered. Returns whether there was anything.
    pub(super) fn flush(&self) -> bool {
        lock(&self.gathered).run.flush()
    }

    fn acknowledge(&self, line: u64, partition: i32, offset: i64) {
        let mut gathered = lock(&self.gathered);
        gathered.run.acknowledged(line, partition, offset);
        // It has none if an earlier attempt wrote the line, and only its acknowledgement was lost.
        if offset >= 0 {
            gathered.ends.insert(partition, offset + 1);
        }
    }

    /// Takes all lines without an outcome back from `producer`. Returns them in their order, and the offset after
    /// the last line that was acknowledged, by partition.
    fn take_back(&self, producer: &Base) -> (Vec<Unsettled>, Offsets) {
        lock(&self.gathered).taken_back = Some(Vec::new());
        producer.purge(PurgeConfig::default().queue().inflight());
        let end = Instant::now() + ANSWER_TIMEOUT;
        while producer.in_flight_count() > 0 && Instant::now() < end {
            producer.poll(BUSY_PAUSE);
        }
        let mut gathered = lock(&self.gathered);
        let mut lines = gathered.taken_back.take().unwrap_or_default();
        lines.sort_by_key(|it| it.line);
        (lines, gathered.ends.clone())
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
        lock(&self.gathered).run.failed(line, value, why);
    }
}

impl ProducerContext for Context<Arc<Deliveries>> {
    /// The number of the line. (It travels as a pointer: 32-bit machines count to 4 billion.)
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, line: usize) {
        let line = line as u64;
        match result {
            Ok(message) => {
                let (partition, offset) = (message.partition(), message.offset());
                self.role.acknowledge(line, partition, offset);
                self.status.on_answer();
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                let value = message.payload().unwrap_or_default();
                if let Code::PurgeQueue | Code::PurgeInflight = code
                    && let Some(lines) = &mut lock(&self.role.gathered).taken_back
                {
                    let value = value.to_vec();
                    return lines.push(Unsettled { line, value });
                }
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
