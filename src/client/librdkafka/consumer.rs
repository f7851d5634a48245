//! Reads a topic, with explicitly assigned partitions.

use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::Offset;

use super::LibrdkafkaCluster;
use super::clients::{Clients, NotRead, record};
use super::errors::failed_by_code;
use super::headers::headers;
use super::topic::{ANSWER_TIMEOUT, TopicRequests};
use crate::client::position::Positions;
use crate::client::sentences;
use crate::client::{Consumer, Event, Offsets, Record, Start};
use crate::error::{Error, Result};
use crate::name::Name;

/// How often the topic's partitions are looked up …
const METADATA_AGE: Duration = Duration::from_secs(9);
/// … and while the cluster is away, or the log does not have the position.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// How long such a look may take.
const LOOK_TIMEOUT: Duration = Duration::from_millis(700);

/// How long the cluster may give no answer before a new client tries to get one.
const REPLACE_AFTER: Duration = Duration::from_secs(10);

/// The most records given in one poll: its caller gets a turn while more keep coming.
const POLL_RECORDS: usize = 10_000;

/// How many bytes a poll gives at least after librdkafka's queue was full, which holds four times as many.
const BURST_BYTES: usize = 256 << 10;

type WeakTakeOver = Weak<dyn Fn() -> Result<()> + Send + Sync>;

pub(super) struct LibrdkafkaConsumer {
    clients: Clients,
    requests: TopicRequests,
    events: Receiver<Event>,
    positions: Positions,
    /// Starts the small broker again where its host has ended. Weak, as the broker ends with the cluster.
    take_over: Option<WeakTakeOver>,
    /// The log of some partition no longer has the offset that is to be read next.
    is_out_of_range: bool,
    /// The topic was created again, and the old one is still assigned.
    is_recreated: bool,
    /// The reader takes the cluster's answers for outdated.
    is_outdated: bool,
    last_record: Instant,
    last_refresh: Instant,
    /// The first of the looks, without a break, that were not answered.
    unanswered_since: Option<Instant>,
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
        let doing = format!("cannot read topic {topic} at {}", status.servers());
        let (clients, requests) = Clients::connect(cluster, &status, doing, topic)?;
        let reader = &clients.reader;
        let offsets = match start {
            Start::Latest => requests.list_offsets(reader, Offset::End),
            Start::Since(time) => requests.offsets_since(reader, time),
            Start::Earliest | Start::At(_) => requests.list_offsets(reader, Offset::Beginning),
        }?;
        if status.is_another_log() {
            return Err(sentences::other_log(&status.servers()));
        }
        status.on_started();
        Ok(LibrdkafkaConsumer {
            clients,
            requests,
            events,
            positions: Positions::new(offsets, start),
            take_over: cluster.take_over.as_ref().map(Arc::downgrade),
            is_out_of_range: false,
            is_recreated: false,
            is_outdated: false,
            last_record: Instant::now(),
            last_refresh: Instant::now(),
            unanswered_since: None,
        })
    }

    /// Reads on at the position of each partition, with a new client.
    fn read_on(&mut self) -> Result<()> {
        let (offsets, is_patient) = (self.positions.offsets(), self.may_be_patient());
        self.clients.read_on(&self.requests, &offsets, is_patient)
    }

    /// Whether one long fetch after another delays nothing: records have come rarely.
    fn may_be_patient(&self) -> bool {
        self.last_record.elapsed() >= METADATA_AGE
    }

    /// Ends patience after a burst.
    ///
    /// librdkafka has one fetch in progress at each broker, and while its queue is full, it leaves partitions out of
    /// it. They are judged one after another: one that was left out just before there was room again would wait for
    /// the end of a fetch of the others.
    fn on_burst(&mut self) -> Result<()> {
        if self.clients.is_patient && self.requests.leaders.len() > 1 {
            self.read_on()?;
        }
        Ok(())
    }

    /// Starts the small broker again if its host has ended. If that fails, the cluster stays away, and the next
    /// refresh tries again; it is an error only if another account serves there that may not be used.
    fn take_over(&self) -> Result<()> {
        let take_over = self.take_over.as_ref().and_then(Weak::upgrade);
        match take_over.map_or(Ok(()), |take_over| take_over()) {
            Err(error) if error.is_denied() => Err(error),
            _ => Ok(()),
        }
    }

    /// Looks now and then whether a lost cluster is back, which partitions there are, and where
    /// a log continues that does not have the position. Returns positions that were moved.
    fn refresh(&mut self) -> Result<Vec<Event>> {
        self.is_recreated |= self.requests.status.topic().take_recreated();
        self.is_outdated |= self.requests.status.topic().take_outdated();
        let is_away = self.requests.status.is_away();
        let is_urgent = is_away
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
        if is_away {
            self.take_over()?;
        }
        let leaders = self.requests.leaders.clone();
        if !self.requests.refresh(self.clients.asker()?, LOOK_TIMEOUT) {
            let since = *self.unanswered_since.get_or_insert(self.last_refresh);
            if since.elapsed() >= REPLACE_AFTER {
                // The clients may have forgotten their brokers, as a [producer's](super::producer) may.
                self.unanswered_since = None;
                self.clients.asker = None;
                self.read_on()?;
            }
            return Ok(Vec::new());
        }
        self.unanswered_since = None;
        // The look itself may have shown it.
        self.is_recreated |= self.requests.status.topic().take_recreated();
        if self.is_recreated {
            return self.restart();
        }
        let existing = self.requests.partitions();
        self.positions.set_partitions(&existing);
        if self.is_out_of_range {
            return self.reconcile();
        }
        // The reader notices a leader that hangs only at the end of its fetch, and after an outage it may have
        // forgotten its brokers.
        if leaders != self.requests.leaders
            || is_away
            || std::mem::take(&mut self.is_outdated)
            || self.may_be_patient() && !self.clients.is_patient
        {
            self.read_on()?;
        }
        // What the clients have called back by now is older than the answer.
        self.clients.serve_asker();
        self.requests.status.on_answer();
        Ok(Vec::new())
    }

    /// Goes on at the beginning of the new topic. If the cluster does not answer, the next refresh tries again.
    fn restart(&mut self) -> Result<Vec<Event>> {
        let asker = self.clients.asker()?;
        let answer = self
            .requests
            .ask_offsets(asker, Offset::End, ANSWER_TIMEOUT);
        let Some(ends) = self.requests.settled(answer)? else {
            return Ok(Vec::new());
        };
        self.is_recreated = false;
        self.is_outdated = false;
        self.is_out_of_range = false;
        let start = ends.keys().map(|&partition| (partition, 0)).collect();
        self.positions = Positions::new(start, Start::Earliest);
        self.read_on()?;
        let topic = self.requests.topic.clone();
        Ok(vec![Event::Recreated { topic, ends }])
    }

    /// Moves the positions that the log does not have. If the cluster can't say for now where to, the
    /// next refresh asks again.
    fn reconcile(&mut self) -> Result<Vec<Event>> {
        let asker = self.clients.asker()?;
        let timeout = RECONNECT_INTERVAL / 2;
        let ask = |which| {
            let answer = self.requests.ask_offsets(asker, which, timeout);
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
            let (clients, requests) = (&self.clients, &self.requests);
            let read = |offset| clients.read_again(requests, partition, offset);
            match self.positions.reconcile(partition, start..end, read) {
                Ok(event) => moved.extend(event),
                Err(NotRead::Unanswered) => self.is_out_of_range = true,
                Err(NotRead::Failed(error)) => return Err(error),
            }
        }
        self.read_on()?;
        Ok(moved)
    }

    /// Moves a position past what is not given at the end of a log: markers of transactions, and
    /// records of aborted ones.
    fn skip_to_end(&mut self, partition: i32) {
        // The offset that librdkafka itself has come to; the broker's answer would be too late, as
        // there may be more records by then. It has none where nothing came since the assignment.
        if let Ok(list) = self.clients.reader.position()
            && let Some(found) = list.find_partition(&self.requests.topic, partition)
            && let Offset::Offset(passed) = found.offset()
        {
            self.positions.skip_to(partition, passed);
        }
    }

    /// Fails if the small broker serves another log now, or another account does that may not be used.
    fn check_log(&self) -> Result<()> {
        let status = &self.requests.status;
        if !status.is_another_log() {
            return Ok(());
        }
        self.take_over()?;
        Err(sentences::other_log(&status.servers()))
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
        let (mut given, mut bytes) = (0, 0);
        self.clients
            .begin(&self.requests, &self.positions.offsets())?;
        self.clients.serve_asker();
        self.requests.status.report_lasting();
        self.check_log()?;
        let moved = self.refresh()?;
        self.check_log()?;
        if !moved.is_empty() {
            return Ok(self.events.try_iter().chain(moved).collect());
        }
        while given < POLL_RECORDS {
            match self.clients.reader.poll(left) {
                Some(Ok(message)) => {
                    self.check_log()?;
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
                    bytes += message.key_len() + message.payload_len();
                    left = Duration::ZERO;
                    if each(record).is_break() {
                        break;
                    }
                }
                Some(Err(error)) => {
                    self.check_log()?;
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
            self.last_record = Instant::now();
        }
        if given == POLL_RECORDS || bytes >= BURST_BYTES {
            self.on_burst()?;
        }
        Ok(self.events.try_iter().collect())
    }

    fn position(&self) -> Offsets {
        self.positions.offsets()
    }

    fn end_offsets(&mut self) -> Result<Offsets> {
        let ends = self
            .requests
            .list_offsets(self.clients.asker()?, Offset::End)?;
        self.check_log()?;
        Ok(ends)
    }
}
