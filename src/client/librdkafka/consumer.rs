//! Reads a topic, with explicitly assigned partitions.

use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::Offset;

use super::LibrdkafkaCluster;
use super::errors::{failed, failed_by_code};
use super::headers::headers;
use super::reader::ReadClient;
use super::topic::{ANSWER_TIMEOUT, TopicRequests, list};
use crate::client::position::{Fingerprint, Positions};
use crate::client::{Consumer, Event, Offsets, Record, Start};
use crate::error::{Error, Result};
use crate::name::Name;

/// How often the topic's partitions are looked up …
const METADATA_AGE: Duration = Duration::from_secs(5);
/// … and while the cluster is away, or the log does not have the position.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// How long such a look may take. A broker may hold a fetch for half a second, and answers after it.
const LOOK_TIMEOUT: Duration = Duration::from_millis(700);

/// How long the cluster may give no answer before a new client tries to get one.
const REPLACE_AFTER: Duration = Duration::from_secs(10);

/// The most records given in one poll: its caller gets a turn while more keep coming.
const POLL_RECORDS: usize = 10_000;

type WeakTakeOver = Weak<dyn Fn() -> Result<()> + Send + Sync>;

pub(super) struct LibrdkafkaConsumer {
    config: ClientConfig,
    reader: ReadClient,
    requests: TopicRequests,
    events: Receiver<Event>,
    positions: Positions,
    /// Reading has begun, with the first poll: from then on a broker answers other requests only
    /// after each fetch, which it may hold for half a second.
    is_assigned: bool,
    /// Starts the small broker again where its host has ended. Weak, as the broker ends with the cluster.
    take_over: Option<WeakTakeOver>,
    /// The log of some partition no longer has the offset that is to be read next.
    is_out_of_range: bool,
    /// The topic was created again, and the old one is still assigned.
    is_recreated: bool,
    /// At the last look, librdkafka took the cluster's answer for outdated.
    is_outdated: bool,
    last_refresh: Instant,
    /// The first of the looks, without a break, that were not answered.
    unanswered_since: Option<Instant>,
}

/// A record could not be read again.
enum NotRead {
    /// No answer came in time.
    Unanswered,
    Failed(Error),
}

impl LibrdkafkaConsumer {
    /// Waits for the topic, and fixes where to start.
    pub(super) fn new(
        cluster: &LibrdkafkaCluster,
        topic: &Name,
        start: Start,
    ) -> Result<LibrdkafkaConsumer> {
        let (tx, events) = mpsc::channel();
        // Nobody listens any more once the consumer is dropped.
        let status = cluster.status(move |event| drop(tx.send(event)));
        let config = LibrdkafkaCluster::following_topic(cluster.reader_config());
        let reader = ReadClient::create(&config, &status)?;
        let doing = format!("cannot read topic {topic} at {}", status.servers());
        let pause = |pause| drop(reader.serve(pause));
        let requests = TopicRequests::new(&status, doing, topic, reader.client(), &pause)
            .map_err(|error| cluster.explain(&status, topic, error))?;
        let offsets = match start {
            Start::Latest => requests.list_offsets(&reader, Offset::End, &pause),
            Start::Since(time) => requests.offsets_since(&reader, time, &pause),
            Start::Earliest | Start::At(_) => {
                requests.list_offsets(&reader, Offset::Beginning, &pause)
            }
        }?;
        status.on_started();
        Ok(LibrdkafkaConsumer {
            config,
            reader,
            requests,
            events,
            positions: Positions::new(offsets, start),
            is_assigned: false,
            take_over: cluster.take_over.as_ref().map(Arc::downgrade),
            is_out_of_range: false,
            is_recreated: false,
            is_outdated: false,
            last_refresh: Instant::now(),
            unanswered_since: None,
        })
    }

    /// Starts reading at the position of each partition, or does so again.
    fn assign(&mut self) -> Result<()> {
        assign(&self.reader, &self.requests, &self.positions.offsets())?;
        self.is_assigned = true;
        Ok(())
    }

    /// Looks now and then whether a lost cluster is back, which partitions there are, and where
    /// a log continues that does not have the position. Returns positions that were moved.
    fn refresh(&mut self) -> Result<Vec<Event>> {
        self.is_recreated |= self.requests.status.take_recreated();
        let is_urgent = self.requests.status.is_away()
            || self.is_out_of_range
            || self.is_recreated
            || self.is_outdated
            || self.unanswered_since.is_some();
        let interval = match is_urgent {
            true => RECONNECT_INTERVAL,
            false => METADATA_AGE,
        };
        if self.last_refresh.elapsed() < interval {
            return Ok(Vec::new());
        }
        self.last_refresh = Instant::now();
        if self.requests.status.is_away()
            && let Some(take_over) = self.take_over.as_ref().and_then(Weak::upgrade)
        {
            // If that fails, the cluster stays away, and the next refresh tries again.
            _ = take_over();
        }
        if !self.requests.refresh(&self.reader, LOOK_TIMEOUT) {
            let since = *self.unanswered_since.get_or_insert(self.last_refresh);
            if since.elapsed() >= REPLACE_AFTER {
                self.replace()?;
            }
            return Ok(Vec::new());
        }
        self.unanswered_since = None;
        // The look itself may have shown it.
        self.is_recreated |= self.requests.status.take_recreated();
        if self.is_recreated {
            return self.restart();
        }
        // One broker may lag behind for a moment. If it is always so, the topic is another one.
        let was_outdated =
            std::mem::replace(&mut self.is_outdated, self.requests.status.take_outdated());
        if was_outdated && self.is_outdated {
            self.replace()?;
        }
        let existing = self.requests.leaders.keys().copied().collect();
        if self.positions.set_partitions(&existing) {
            self.assign()?;
        }
        match self.is_out_of_range {
            true => self.reconcile(),
            false => Ok(Vec::new()),
        }
    }

    /// Goes on at the beginning of the new topic, with a new client. If the cluster does not answer, the next
    /// refresh tries again.
    fn restart(&mut self) -> Result<Vec<Event>> {
        let reader = ReadClient::create(&self.config, &self.requests.status)?;
        if !self.requests.refresh(&reader, ANSWER_TIMEOUT) {
            return Ok(Vec::new());
        }
        let answer = self
            .requests
            .ask_offsets(&reader, Offset::End, ANSWER_TIMEOUT);
        let Some(ends) = self.requests.settled(answer)? else {
            return Ok(Vec::new());
        };
        self.is_recreated = false;
        self.is_out_of_range = false;
        self.reader = reader;
        let start = ends.keys().map(|&partition| (partition, 0)).collect();
        self.positions = Positions::new(start, Start::Earliest);
        self.assign()?;
        let topic = self.requests.topic.clone();
        Ok(vec![Event::Recreated { topic, ends }])
    }

    /// Goes on with a new client: this one may have forgotten its brokers, as a
    /// [producer's](super::producer) may.
    fn replace(&mut self) -> Result<()> {
        self.unanswered_since = None;
        self.is_outdated = false;
        self.reader = ReadClient::create(&self.config, &self.requests.status)?;
        self.assign()
    }

    /// Moves the positions that the log does not have. If the cluster can't say for now where to, the
    /// next refresh asks again.
    fn reconcile(&mut self) -> Result<Vec<Event>> {
        let timeout = RECONNECT_INTERVAL / 2;
        let ask = |which| {
            let answer = self.requests.ask_offsets(&self.reader, which, timeout);
            self.requests.settled(answer)
        };
        let (Some(oldest), Some(ends)) = (ask(Offset::Beginning)?, ask(Offset::End)?) else {
            return Ok(Vec::new());
        };
        self.is_out_of_range = false;
        let mut moved = Vec::new();
        for (partition, start) in oldest {
            let Some(&end) = ends.get(&partition) else {
                continue;
            };
            let (reader, requests) = (&self.reader, &self.requests);
            let read = |offset| read_again(reader, requests, partition, offset);
            match self.positions.reconcile(partition, start..end, read) {
                Ok(event) => moved.extend(event),
                Err(NotRead::Unanswered) => self.is_out_of_range = true,
                Err(NotRead::Failed(error)) => return Err(error),
            }
        }
        self.assign()?;
        Ok(moved)
    }

    /// Moves a position past what is not given at the end of a log: markers of transactions, and
    /// records of aborted ones.
    fn skip_to_end(&mut self, partition: i32) {
        // The offset that librdkafka itself has come to; the broker's answer would be too late, as
        // there may be more records by then. It has none where nothing came since the assignment.
        if let Ok(list) = self.reader.position()
            && let Some(found) = list.find_partition(&self.requests.topic, partition)
            && let Offset::Offset(passed) = found.offset()
        {
            self.positions.skip_to(partition, passed);
        }
    }

    /// Handles an error that came in place of a record.
    fn handle(&mut self, code: Code) -> Result<()> {
        match code {
            Code::AutoOffsetReset => self.is_out_of_range = true,
            // Another server has answered; this one is asked again now and then.
            Code::BadMessage if self.requests.status.is_of_named_server() => {}
            Code::TopicAuthorizationFailed | Code::Fatal | Code::BadMessage => {
                return Err(failed_by_code(&self.requests.doing, code));
            }
            Code::NotImplemented | Code::BadCompression => {
                return Err(Error::failed(
                    &self.requests.doing,
                    "its records are compressed in a way that this build can't read",
                ));
            }
            // librdkafka retries the rest, or it is about the group that is not used.
            _ => {}
        }
        Ok(())
    }
}

impl Consumer for LibrdkafkaConsumer {
    fn poll(
        &mut self,
        wait: Duration,
        each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Event>> {
        let end = Instant::now() + wait;
        let mut left = wait;
        let mut given = 0;
        if !self.is_assigned {
            self.assign()?;
        }
        self.requests.status.report_lasting();
        let moved = self.refresh()?;
        if !moved.is_empty() {
            return Ok(self.events.try_iter().chain(moved).collect());
        }
        while given < POLL_RECORDS {
            match self.reader.poll(left) {
                Some(Ok(message)) => {
                    let headers = headers(&message);
                    let record = Record {
                        headers: &headers,
                        ..record(&message)
                    };
                    // It may be left over from before the partitions were assigned again.
                    if !self.positions.advance(&record) {
                        continue;
                    }
                    given += 1;
                    left = Duration::ZERO;
                    if each(record).is_break() {
                        break;
                    }
                }
                Some(Err(error)) => {
                    match error {
                        KafkaError::PartitionEOF(partition) => self.skip_to_end(partition),
                        error => self.handle(error.rdkafka_error_code().unwrap_or(Code::Fail))?,
                    }
                    left = left.min(end.saturating_duration_since(Instant::now()));
                }
                None => break,
            }
        }
        if given > 0 {
            self.requests.status.on_answer();
        }
        Ok(self.events.try_iter().collect())
    }

    fn position(&self) -> Offsets {
        self.positions.offsets()
    }

    fn end_offsets(&mut self) -> Result<Offsets> {
        // Handling callbacks meanwhile, by polling, would lose records.
        let pause = thread::sleep;
        self.requests
            .list_offsets(&self.reader, Offset::End, &pause)
    }
}

fn assign(reader: &ReadClient, requests: &TopicRequests, offsets: &Offsets) -> Result<()> {
    list(&requests.topic, offsets)
        .and_then(|list| reader.assign(&list))
        .map_err(|error| failed(&requests.doing, &error))
}

/// Reads the first record at `offset` or later, for which this partition alone is assigned.
fn read_again(
    reader: &ReadClient,
    requests: &TopicRequests,
    partition: i32,
    offset: i64,
) -> Result<Option<Fingerprint>, NotRead> {
    let from = Offsets::from([(partition, offset)]);
    assign(reader, requests, &from).map_err(NotRead::Failed)?;
    let start = Instant::now();
    while start.elapsed() < ANSWER_TIMEOUT {
        match reader.poll(RECONNECT_INTERVAL / 2) {
            Some(Ok(it)) if it.partition() == partition && it.offset() >= offset => {
                return Ok(Some(Fingerprint::of(&record(&it))));
            }
            Some(Err(KafkaError::PartitionEOF(at))) if at == partition => return Ok(None),
            _ => {}
        }
    }
    Err(NotRead::Unanswered)
}

fn record<'a>(message: &'a BorrowedMessage<'_>) -> Record<'a> {
    Record {
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        key: message.key(),
        value: message.payload(),
        headers: &[],
    }
}
