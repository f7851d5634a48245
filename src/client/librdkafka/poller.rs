//! The thread that polls a producer's client for delivery reports, and looks after the client.

use std::mem::{replace, take};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::Producer as _;

use super::create;
use super::deliveries::Base;
use super::errors::is_transient;
use super::producer::{CurrentClient, QUEUE_FULL_PAUSE, Shared, fatal_code};
use super::read_back::{Search, Unsettled, Witness};
use super::stall::{self, Explained};
use super::too_large::{BatchLimit, refusal, smaller_batch};
use super::topic::metadata;
use super::topic_settings::TopicSettings;
use crate::broker::lock;
use crate::client::partitioner::partition_for;
use crate::client::{Event, Offsets};
use crate::error::{Error, Result};
use crate::name::Name;

/// How long the thread sleeps while lines are under way, and while none are.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
const IDLE_PAUSE: Duration = Duration::from_millis(100);

/// How long the first line may take before the cluster is asked for metadata; twice as long each
/// time after that.
const FIRST_LINE_TIMEOUT: Duration = Duration::from_millis(4);

/// How many lines of librdkafka's log are taken before anything else is done.
const MAX_LOG_LINES: usize = 1000;

/// How often a cluster that is away, or does not acknowledge lines, is asked for metadata.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long an answer to that may take.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// How long lines may wait for their acknowledgement before the cluster is asked why.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// How long they may wait before that is reported without a cause: a cluster that has just started, or is busy, can
/// be slow.
const REPORTED_AFTER: Duration = Duration::from_secs(15);

/// How long the client may be without a connection before another one tries to get one.
const REPLACE_AFTER: Duration = Duration::from_secs(5);

/// What came of a request for metadata.
enum Look {
    Answered {
        /// How many partitions the topic has; 0 if it is not there.
        partitions: usize,
    },
    Unanswered,
    /// The client had no connection that it could have asked on.
    NoConnection,
}

/// Polls for delivery reports on its own thread, until the producer is dropped.
///
/// The crate's own poll with a timeout can't be ended early, and is busy for its last millisecond.
/// So this only ever takes what has arrived, and sleeps in between.
pub(super) struct Poller {
    shared: Arc<Shared>,
    /// For the next client.
    config: ClientConfig,
    /// The one in the slot, which only this thread replaces.
    producer: Arc<Base>,
    wake: Receiver<()>,
    /// The topic's settings, as far as they are known, and where they come from.
    settings: TopicSettings,
    described: Receiver<TopicSettings>,
    /// Why lines wait, while that is being found out.
    explained: Option<Receiver<Explained>>,
    /// Some line has had an outcome.
    has_reported: bool,
    /// Since when lines have waited without an outcome; if none are under way, the time of the last poll.
    waiting_since: Instant,
    last_look: Instant,
    /// How long after the last look the next one is due, before any line had an outcome.
    patience: Duration,
    /// The first of the looks, without a break, that found no connection.
    alone_since: Option<Instant>,
    /// While lines wait: the client has taken news of another leader for outdated since the last look, and between the
    /// two looks before. Of the same one it may, and must not be replaced: its lines may be stored already, and are only
    /// not read while too few replicas have them, so that they would be written twice.
    is_outdated: bool,
    was_outdated: bool,
    /// How many lines had been acknowledged when it was reported that lines wait.
    stalled_at: Option<u64>,
}

impl Poller {
    /// For the client in the slot, which has this configuration. `wake` ends a sleep, and when it is disconnected, the
    /// thread.
    pub(super) fn new(
        shared: &Arc<Shared>,
        config: ClientConfig,
        wake: Receiver<()>,
    ) -> Result<Poller> {
        Ok(Poller {
            shared: Arc::clone(shared),
            config,
            producer: Arc::clone(&lock(&shared.slot).client),
            wake,
            settings: TopicSettings::default(),
            described: shared.ask_settings()?,
            explained: None,
            has_reported: false,
            waiting_since: Instant::now(),
            last_look: Instant::now(),
            patience: FIRST_LINE_TIMEOUT,
            alone_since: None,
            is_outdated: false,
            was_outdated: false,
            stalled_at: None,
        })
    }

    pub(super) fn run(mut self) {
        loop {
            self.poll();
            match fatal_code(&self.producer) {
                Some(Code::GaplessGuarantee) => self.on_refusal(),
                Some(code) => {
                    let status = &self.shared.status;
                    self.shared.deliveries.fail_returned(code, status);
                }
                None if self.shared.deliveries.has_refused() => self.on_refusal(),
                None => self.replace_if_stranded(),
            }
            let is_news = self.shared.deliveries.flush();
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
            match self.explained.as_ref().map(Receiver::try_recv) {
                Some(Ok(explained)) => self.on_explained(explained),
                Some(Err(TryRecvError::Disconnected)) => self.explained = None,
                Some(Err(TryRecvError::Empty)) | None => {}
            }
            self.shared.status.report_lasting();
            self.is_outdated |= self.shared.status.topic().take_misled();
            if self.is_look_due() {
                self.look_after_client();
            }
        }
    }

    /// Takes what has arrived. The crate takes one event at each poll, and each line of librdkafka's log is one.
    fn poll(&self) {
        let status = &self.shared.status;
        for _ in 0..MAX_LOG_LINES {
            let before = status.log_lines();
            self.producer.poll(Duration::ZERO);
            if status.log_lines() == before {
                return;
            }
        }
    }

    /// Lines had an outcome, or none are under way.
    fn on_progress(&mut self) {
        self.waiting_since = Instant::now();
        self.is_outdated = false;
        self.was_outdated = false;
        if let Some(before) = self.stalled_at.take()
            && self.shared.deliveries.acknowledged() > before
        {
            self.shared.status.report(Event::Flowing);
        }
    }

    fn on_settings(&mut self, settings: TopicSettings) {
        // How large a compressed line is shows only when it is sent.
        let codec = self.config.get("compression.codec");
        let limit = settings
            .max_batch_bytes
            .filter(|_| codec.is_none_or(|it| it == "none"));
        lock(&self.shared.slot).limit = limit.map(BatchLimit::new);
        // Who asks why lines wait does not ask about the topic that is read.
        let before = replace(&mut self.settings, settings);
        self.settings.is_read_compacted |= before.is_read_compacted;
        let after = &self.settings;
        if after.is_compacted && !before.is_compacted {
            self.report_compacted(Some(&self.shared.destination.topic));
        }
        if after.is_read_compacted && !before.is_read_compacted {
            self.report_compacted(self.shared.destination.reads.as_ref());
        }
    }

    fn report_compacted(&self, topic: Option<&Name>) {
        if let Some(topic) = topic.map(Name::to_string) {
            self.shared.status.report(Event::Compacted { topic });
        }
    }

    fn is_look_due(&self) -> bool {
        let elapsed = self.last_look.elapsed();
        // Without metadata, librdkafka asks for the producer's id again only after half a second.
        let is_first_due =
            !self.has_reported && self.producer.in_flight_count() > 0 && elapsed >= self.patience;
        let is_silent =
            self.shared.status.is_away() || self.waiting_since.elapsed() >= STALLED_AFTER;
        is_first_due || is_silent && elapsed >= LOOK_INTERVAL
    }

    fn look_after_client(&mut self) {
        self.last_look = Instant::now();
        if self.waiting_since.elapsed() >= STALLED_AFTER {
            self.ask_why();
        }
        // A cluster may be away for days.
        self.patience = self.patience.saturating_mul(2);
        match self.look() {
            Look::Answered { partitions } => {
                self.alone_since = None;
                if self.waiting_since.elapsed() >= STALLED_AFTER {
                    self.on_stall(partitions);
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
            self.shared.destination.topic.as_str(),
            LOOK_TIMEOUT,
        ) {
            Ok(metadata) => {
                self.shared.status.on_answer();
                let topic = metadata.topics().first();
                let partitions = topic.map_or(0, |it| it.partitions().len());
                Look::Answered { partitions }
            }
            Err(error) => match error.rdkafka_error_code() {
                Some(Code::BrokerTransportFailure) => Look::NoConnection,
                _ => Look::Unanswered,
            },
        }
    }

    /// Lines wait, although the cluster answers, and says that the topic has so many partitions.
    fn on_stall(&mut self, partitions: usize) {
        let known = self.shared.status.topic().partition_count();
        self.is_outdated |= (1..known).contains(&partitions);
        // A broker may lag behind for a moment. If the client takes the answers to two looks for outdated, the topic is
        // another one. What it says of an answer in its log is called back only by later polls: so this look knows of
        // the last one.
        let is_outdated = take(&mut self.is_outdated);
        if replace(&mut self.was_outdated, is_outdated)
            && is_outdated
            && let Some(witness) = self.witness()
        {
            self.replace(&witness);
        }
    }

    /// Asks why lines wait, unless that was reported or is being found out.
    fn ask_why(&mut self) {
        if self.stalled_at.is_some() || self.explained.is_some() {
            return;
        }
        let Shared {
            cluster,
            deliveries,
            destination,
            ..
        } = &*self.shared;
        // Without a thread for it, the next look tries again.
        self.explained = stall::ask(cluster, &destination.topic, deliveries.partitions()).ok();
    }

    fn on_explained(&mut self, explained: Explained) {
        if let Some(settings) = explained.settings {
            self.on_settings(settings);
        }
        let waited = self.waiting_since.elapsed();
        if waited < STALLED_AFTER || self.shared.status.is_away() {
            return;
        }
        let why = match explained.cause {
            Some(cause) => cause,
            None if waited >= REPORTED_AFTER => "the cluster does not say why".into(),
            // The next look asks again.
            None => return,
        };
        self.shared.deliveries.on_stall(&why);
        self.stalled_at = Some(self.shared.deliveries.acknowledged());
        self.shared.status.report(Event::Stalled { why });
    }

    /// Another client that finds the cluster.
    fn witness(&self) -> Option<Witness> {
        let (shared, topic) = (&self.shared, &self.shared.destination.topic);
        Witness::of(
            &shared.cluster,
            &shared.deliveries.doing,
            topic,
            LOOK_INTERVAL,
        )
    }

    /// A batch was refused as too large, and the client has stopped: gives up the batch's only line, or goes on with
    /// smaller batches.
    fn on_refusal(&mut self) {
        let deliveries = &self.shared.deliveries;
        deliveries.wait_for_last(&self.producer);
        let refused = deliveries.take_refused();
        if refused.is_empty() && deliveries.take_denied() {
            // What waits would be refused, too.
            deliveries.fail_returned(Code::TopicAuthorizationFailed, &self.shared.status);
            return self.renew(|_, lines, _| lines);
        }
        // The limit may be new.
        if let Ok(asked) = self.shared.ask_settings() {
            self.described = asked;
        }
        if let Ok(settings) = self.described.recv_timeout(LOOK_INTERVAL) {
            self.on_settings(settings);
        }
        let limit = self.settings.max_batch_bytes;
        let destination = &self.shared.destination;
        if let [Unsettled { line, value }] = &refused[..] {
            let bytes = destination.record_bytes(value);
            let why = refusal(bytes, &destination.topic, limit);
            self.shared.deliveries.fail(*line, value, why);
        } else if !refused.is_empty() {
            let bytes = refused.iter().map(|it| destination.record_bytes(&it.value));
            let bytes = bytes.sum();
            let config = &mut self.config;
            let smaller = smaller_batch(config.get("batch.size"), bytes, limit);
            config.set("batch.size", smaller.to_string());
            self.shared.deliveries.put_back(refused);
        }
        self.renew(|_, lines, _| lines);
    }

    /// Replaces a client that gave back lines because their partition is gone. Lines that it has sent to another one
    /// meanwhile are before them.
    fn replace_if_stranded(&mut self) {
        let Shared {
            status, deliveries, ..
        } = &*self.shared;
        let Some(since) = deliveries.stranded_since() else {
            return;
        };
        match self.witness() {
            Some(witness) => self.replace(&witness),
            None if since.elapsed() >= deliveries.timeout => {
                deliveries.fail_returned(Code::MessageTimedOut, status);
            }
            None => {}
        }
    }

    /// Replaces the client by a new one, and hands it the lines that the log does not have.
    ///
    /// librdkafka can lose its cluster or its topic for good. A broker that was stopped for a while may list no
    /// broker at first, not even itself: then librdkafka forgets all of them, and sometimes never asks its bootstrap
    /// servers again, <https://github.com/confluentinc/librdkafka/issues/5301>. And what it learns of a topic that
    /// was created again, it may take for [outdated](super::recreation).
    fn replace(&mut self, witness: &Witness) {
        let (sender, there) = (&self.shared.destination.sender, witness.partitions());
        let mut slot = lock(&self.shared.slot);
        if slot.partition.is_some_and(|it| !there.contains(&it)) {
            slot.partition = Some(partition_for(sender.as_bytes(), &there));
        }
        drop(slot);
        self.renew(|poller, lines, ends| poller.unwritten(witness, lines, ends));
    }

    /// Replaces the client by a new one, and hands it what `unwritten` returns of the lines without an outcome.
    /// `unwritten` is given the offsets after the last line that was acknowledged, too, by partition.
    fn renew(
        &mut self,
        unwritten: impl FnOnce(&Poller, Vec<Unsettled>, Offsets) -> Vec<Unsettled>,
    ) {
        let shared = Arc::clone(&self.shared);
        let Shared {
            status,
            deliveries,
            destination,
            ..
        } = &*shared;
        let Ok(producer) = create(&self.config, status, Arc::clone(deliveries)) else {
            return;
        };
        let mut slot = lock(&shared.slot);
        let (lines, ends) = deliveries.take_back(&self.producer);
        // The connections of the client that was there before end with this.
        self.producer = Arc::new(producer);
        *slot = CurrentClient::new(Arc::clone(&self.producer), slot.limit, slot.partition);
        let mut lines = unwritten(self, lines, ends).into_iter();
        while let Some(it) = lines.next() {
            if let Some(why) = slot.refusal(destination, &it.value) {
                deliveries.fail(it.line, &it.value, why);
                continue;
            }
            let mut again = || slot.enqueue(destination, it.line, &it.value);
            while let Err(code) = again() {
                match code {
                    Code::QueueFull => self.producer.poll(QUEUE_FULL_PAUSE),
                    // It has stopped already: the next one takes the rest.
                    Code::GaplessGuarantee => {
                        deliveries.put_back(std::iter::once(it).chain(lines));
                        return;
                    }
                    code => {
                        let why = deliveries.reason(code, status);
                        deliveries.fail(it.line, &it.value, why);
                        break;
                    }
                }
            }
        }
        status.on_answer();
        self.is_outdated = false;
        self.was_outdated = false;
        // It asks for a producer's id, as the first one did.
        self.has_reported = false;
        self.patience = FIRST_LINE_TIMEOUT;
    }

    /// Reports those of `lines` that are in the log as acknowledged, and returns the others. Where that can't be
    /// found out, all are reported as lines that may be there.
    ///
    /// `ends` are the offsets after the last line that was acknowledged, by partition.
    fn unwritten(&self, witness: &Witness, lines: Vec<Unsettled>, ends: Offsets) -> Vec<Unsettled> {
        if lines.is_empty() {
            return lines;
        }
        let deliveries = &self.shared.deliveries;
        let search = Search {
            key: self.shared.destination.sender.as_bytes(),
            ends,
            since: self.shared.started.as_millis() as i64,
            deadline: Instant::now() + deliveries.timeout,
        };
        let mut other = None;
        loop {
            // What was in flight may be written a moment later.
            thread::sleep(LOOK_TIMEOUT);
            let witness = other.as_ref().unwrap_or(witness);
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
                    other = self.witness().or(other);
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
            self.shared.is_asleep.store(true, Ordering::SeqCst);
            // A line may have been handed over just before.
            if is_busy() { BUSY_PAUSE } else { IDLE_PAUSE }
        };
        let woken = self.wake.recv_timeout(pause);
        self.shared.is_asleep.store(false, Ordering::SeqCst);
        match woken {
            Err(RecvTimeoutError::Disconnected) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}
