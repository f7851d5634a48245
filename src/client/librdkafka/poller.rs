//! The thread that polls a producer's client for delivery reports, and looks after the client.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::metadata::Metadata;
use rdkafka::producer::Producer as _;

use super::deliveries::{Base, Deliveries};
use super::errors::is_transient;
use super::producer::{QUEUE_FULL_PAUSE, Slot, enqueue};
use super::read_back::{Search, Unsettled, Witness};
use super::status::ClusterStatus;
use super::topic::metadata;
use super::topic_settings::{self, TopicSettings};
use super::{LibrdkafkaCluster, create};
use crate::broker::lock;
use crate::client::{Event, Offsets};
use crate::error::{Error, Result};
use crate::name::Name;

/// How long the thread sleeps while lines are under way, and while none are.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
const IDLE_PAUSE: Duration = Duration::from_millis(100);

/// How long the first line may take before the cluster is asked for metadata; twice as long each
/// time after that.
const FIRST_LINE_TIMEOUT: Duration = Duration::from_millis(4);

/// How often a cluster that is away, or does not acknowledge lines, is asked for metadata.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long an answer to that may take.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// How long lines may wait for their acknowledgement before the cluster is asked why.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// How long the client may be without a connection before another one tries to get one.
const REPLACE_AFTER: Duration = Duration::from_secs(5);

/// What came of a request for metadata.
enum Look {
    Answered(Metadata),
    Unanswered,
    /// The client had no connection that it could have asked on.
    NoConnection,
}

/// What it takes to make another client like this one.
pub(super) struct Setup {
    pub(super) cluster: LibrdkafkaCluster,
    pub(super) config: ClientConfig,
    pub(super) status: Arc<ClusterStatus>,
    pub(super) deliveries: Arc<Deliveries>,
    pub(super) sender: Name,
    pub(super) topic: Name,
    /// When the producer was started, since 1970.
    pub(super) started: Duration,
}

/// Polls for delivery reports on its own thread, until the producer is dropped.
///
/// The crate's own poll with a timeout can't be ended early, and is busy for its last millisecond.
/// So this only ever takes what has arrived, and sleeps in between.
pub(super) struct Poller {
    setup: Setup,
    /// The one in the slot, which only this thread replaces.
    producer: Arc<Base>,
    slot: Arc<Slot>,
    wake: Receiver<()>,
    is_asleep: Arc<AtomicBool>,
    /// The topic's settings, as far as they are known, and where they come from.
    settings: TopicSettings,
    described: Receiver<TopicSettings>,
    /// They were asked for again while the lines of now wait.
    has_asked: bool,
    /// Some line has had an outcome.
    has_reported: bool,
    /// Since when lines have waited without an outcome; if none are under way, the time of the last poll.
    waiting_since: Instant,
    last_look: Instant,
    /// How long after the last look the next one is due, before any line had an outcome.
    patience: Duration,
    /// The first of the looks, without a break, that found no connection.
    alone_since: Option<Instant>,
    /// The client has taken news of the topic for outdated since lines wait.
    is_outdated: bool,
    /// How many lines had been acknowledged when it was reported that lines wait.
    stalled_at: Option<u64>,
}

impl Poller {
    /// For the client in `slot`. `wake` ends a sleep, and when it is disconnected, the thread.
    pub(super) fn new(
        setup: Setup,
        slot: Arc<Slot>,
        wake: Receiver<()>,
        is_asleep: Arc<AtomicBool>,
    ) -> Result<Poller> {
        let producer = Arc::clone(&lock(&slot));
        let described = topic_settings::ask(&setup.cluster, &setup.topic)?;
        Ok(Poller {
            setup,
            producer,
            slot,
            wake,
            is_asleep,
            settings: TopicSettings::default(),
            described,
            has_asked: false,
            has_reported: false,
            waiting_since: Instant::now(),
            last_look: Instant::now(),
            patience: FIRST_LINE_TIMEOUT,
            alone_since: None,
            is_outdated: false,
            stalled_at: None,
        })
    }

    pub(super) fn run(mut self) {
        loop {
            self.producer.poll(Duration::ZERO);
            let is_news = self.setup.deliveries.flush();
            if self.sleep(is_news).is_break() {
                return;
            }
            if is_news {
                self.has_reported = true;
                self.alone_since = None;
            }
            if is_news || self.producer.in_flight_count() == 0 {
                self.on_progress();
            }
            if let Ok(settings) = self.described.try_recv() {
                self.on_settings(settings);
            }
            self.setup.status.report_lasting();
            self.is_outdated |= self.setup.status.take_outdated();
            if self.is_look_due() {
                self.look_after_client();
            }
        }
    }

    /// Lines had an outcome, or none are under way.
    fn on_progress(&mut self) {
        self.waiting_since = Instant::now();
        self.is_outdated = false;
        self.has_asked = false;
        if let Some(before) = self.stalled_at.take()
            && self.setup.deliveries.acknowledged() > before
        {
            self.setup.status.report(Event::Flowing);
        }
    }

    fn on_settings(&mut self, settings: TopicSettings) {
        let was_compacted = std::mem::replace(&mut self.settings, settings).is_compacted;
        if self.settings.is_compacted && !was_compacted {
            let topic = self.setup.topic.to_string();
            self.setup.status.report(Event::Compacted { topic });
        }
    }

    fn is_look_due(&self) -> bool {
        let elapsed = self.last_look.elapsed();
        // Without metadata, librdkafka asks for the producer's id again only after half a second.
        let is_first_due =
            !self.has_reported && self.producer.in_flight_count() > 0 && elapsed >= self.patience;
        let is_silent =
            self.setup.status.is_away() || self.waiting_since.elapsed() >= STALLED_AFTER;
        is_first_due || is_silent && elapsed >= LOOK_INTERVAL
    }

    fn look_after_client(&mut self) {
        self.last_look = Instant::now();
        self.patience *= 2;
        match self.look() {
            Look::Answered(metadata) => {
                self.alone_since = None;
                if self.waiting_since.elapsed() >= STALLED_AFTER {
                    self.on_stall(&metadata);
                }
            }
            Look::Unanswered => self.alone_since = None,
            Look::NoConnection => {
                let since = *self.alone_since.get_or_insert(self.last_look);
                if since.elapsed() >= REPLACE_AFTER {
                    self.alone_since = None;
                    if let Some(witness) = self.witness()
                        && matches!(self.look(), Look::NoConnection)
                    {
                        self.replace(&witness);
                    }
                }
            }
        }
    }

    /// Asks the cluster for metadata.
    fn look(&self) -> Look {
        match metadata(
            self.producer.client(),
            self.setup.topic.as_str(),
            LOOK_TIMEOUT,
        ) {
            Ok(metadata) => {
                self.setup.status.on_answer();
                Look::Answered(metadata)
            }
            Err(error) => match error.rdkafka_error_code() {
                Some(Code::BrokerTransportFailure) => Look::NoConnection,
                _ => Look::Unanswered,
            },
        }
    }

    /// Lines wait, although the cluster answers.
    fn on_stall(&mut self, metadata: &Metadata) {
        // A broker may lag behind for a moment. If the client takes this answer for outdated, too, the topic is
        // another one.
        let was_outdated = std::mem::take(&mut self.is_outdated);
        if was_outdated && self.setup.status.take_outdated() {
            if let Some(witness) = self.witness() {
                self.replace(&witness);
            }
        } else if self.stalled_at.is_none() {
            match self.cause_of_stall(metadata) {
                Some(why) => {
                    self.stalled_at = Some(self.setup.deliveries.acknowledged());
                    self.setup.status.report(Event::Stalled { why });
                }
                None => self.ask_settings(),
            }
        }
    }

    /// What the partitions of this sender lack to take lines, as far as the cluster says it.
    fn cause_of_stall(&self, metadata: &Metadata) -> Option<String> {
        let ours = self.setup.deliveries.partitions();
        let partitions = metadata.topics().first()?.partitions().iter();
        let mut partitions = partitions.filter(|it| ours.is_empty() || ours.contains(&it.id()));
        partitions.find_map(|partition| {
            let (id, in_sync) = (partition.id(), partition.isr().len());
            if partition.leader() < 0 {
                return Some(format!("no broker leads partition {id}"));
            }
            let required = self.settings.min_in_sync;
            (in_sync < required).then(|| {
                format!("too few replicas of partition {id} are in sync ({in_sync} of {required} required)")
            })
        })
    }

    /// Asks for the topic's settings again: they may have changed.
    fn ask_settings(&mut self) {
        match self.described.try_recv() {
            Ok(settings) => self.on_settings(settings),
            Err(TryRecvError::Disconnected) if !self.has_asked => {
                self.has_asked = true;
                let asked = topic_settings::ask(&self.setup.cluster, &self.setup.topic);
                // Without an answer, no more is known than before.
                self.described = asked.unwrap_or_else(|_| mpsc::channel().1);
            }
            Err(_) => {}
        }
    }

    /// Another client that finds the cluster.
    fn witness(&self) -> Option<Witness> {
        let Setup { cluster, topic, .. } = &self.setup;
        Witness::of(cluster, &self.setup.deliveries.doing, topic, LOOK_INTERVAL)
    }

    /// Replaces the client by a new one, and hands it the lines that the log does not have.
    ///
    /// librdkafka can lose its cluster or its topic for good. A broker that was stopped for a while may list no
    /// broker at first, not even itself: then librdkafka forgets all of them, and sometimes never asks its bootstrap
    /// servers again, <https://github.com/confluentinc/librdkafka/issues/5301>. And what it learns of a topic that
    /// was created again, it may take for [outdated](super::recreation).
    fn replace(&mut self, witness: &Witness) {
        let Setup {
            config,
            status,
            deliveries,
            sender,
            topic,
            ..
        } = &self.setup;
        let Ok(producer) = create(config, status, Arc::clone(deliveries)) else {
            return;
        };
        let mut slot = lock(&self.slot);
        let (lines, ends) = deliveries.take_back(&self.producer);
        // The connections of the client that was there before end with this.
        self.producer = Arc::new(producer);
        *slot = Arc::clone(&self.producer);
        for Unsettled { line, value } in self.unwritten(witness, lines, ends) {
            let again = || enqueue(&self.producer, topic, sender, line, &value);
            while let Err(code) = again() {
                if code != Code::QueueFull {
                    let bytes = sender.as_bytes().len() + value.len();
                    deliveries.fail(line, &value, bytes, code, status);
                    break;
                }
                self.producer.poll(QUEUE_FULL_PAUSE);
            }
        }
        status.on_answer();
    }

    /// Reports those of `lines` that are in the log as acknowledged, and returns the others. Where that can't be
    /// found out, all are reported as lines that may be there.
    ///
    /// `ends` are the offsets after the last line that was acknowledged, by partition.
    fn unwritten(&self, witness: &Witness, lines: Vec<Unsettled>, ends: Offsets) -> Vec<Unsettled> {
        if lines.is_empty() {
            return lines;
        }
        let deliveries = &self.setup.deliveries;
        let search = Search {
            key: self.setup.sender.as_bytes(),
            ends,
            since: self.setup.started.as_millis() as i64,
            deadline: Instant::now() + deliveries.timeout,
        };
        loop {
            // What was in flight may be written a moment later.
            thread::sleep(LOOK_TIMEOUT);
            let found = witness.find(&search, &lines, |line, partition, offset| {
                deliveries.acknowledge(line, partition, offset);
            });
            deliveries.flush();
            match found {
                Ok(rest) => return rest,
                Err(error) if is_transient(&error) && Instant::now() < search.deadline => {
                    if self.wake.try_recv() == Err(TryRecvError::Disconnected) {
                        return Vec::new();
                    }
                }
                Err(_) => break,
            }
        }
        let why = Error::unacknowledged(
            &deliveries.doing,
            "the connection was lost, and the log can't be read to see what has arrived",
        );
        deliveries.fail_all(lines, &why);
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
