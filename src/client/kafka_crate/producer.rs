//! Sends lines: gathers them into batches, and brings each batch into the log once.

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kafka::client::{FetchOffset, ProduceMessage, RequiredAcks};
use kafka::error::KafkaCode;

use super::errors::CallError;
use super::topic_client::{REQUEST_TIMEOUT, TopicClient};
use crate::broker::lock;
use crate::client::partitioner::partition_for;
use crate::client::reports::ReportRun;
use crate::client::{MAX_RECORD_BYTES, Producer, Report, Reports, sentences};
use crate::ending::spawn;
use crate::error::{Error, Result};
use crate::name::Name;

/// How long an acknowledgement may take: Kafka's own `request.timeout.ms`. A shorter time would only
/// cause more ambiguous writes.
const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// What an attempt is given at least, however little is left until its lines are given up.
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(1);
/// How long a request may still be on its way to the log after its connection has broken.
const IN_FLIGHT_WRITE: Duration = Duration::from_millis(250);
/// The most bytes of a batch of several lines, as magic-0 messages. Kafka makes one batch of
/// them, which has to stay below its `message.max.bytes`, 1,048,588 by default. Larger ones are not
/// faster, and memory holds half a dozen copies.
const BATCH_BYTES: usize = 500_000;
/// What a magic-0 message adds to its key and value: offset, size, CRC, magic, attributes, lengths.
const MESSAGE_OVERHEAD: usize = 26;

/// Starts the thread that sends, once the topic exists.
pub(super) fn start(
    mut client: TopicClient,
    sender: &Name,
    delivery_timeout: Duration,
    reports: Reports,
) -> Result<Box<dyn Producer>> {
    let (partition, end) = client.retry_until_timeout(|client| {
        let partition = partition_for(sender.as_bytes(), &client.partitions);
        Ok((partition, client.offset(partition, FetchOffset::Latest)?))
    })?;
    let queue = Arc::new(Queue::default());
    let delivery = Delivery {
        client,
        queue: queue.clone(),
        key: sender.as_bytes().to_vec(),
        partition,
        end,
        timeout: delivery_timeout,
        reports: reports.clone(),
    };
    spawn("producer", move || delivery.run())?;
    Ok(Box::new(KafkaCrateProducer {
        queue,
        key_bytes: sender.as_bytes().len(),
        reports,
    }))
}

struct KafkaCrateProducer {
    queue: Arc<Queue>,
    key_bytes: usize,
    reports: Reports,
}

impl Producer for KafkaCrateProducer {
    fn send(&mut self, line: u64, value: &[u8]) {
        let bytes = self.key_bytes + value.len();
        if bytes > MAX_RECORD_BYTES {
            let mut run = ReportRun::new(self.reports.clone());
            return run.failed(line, value, Error::too_large());
        }
        self.queue.push(line, value, bytes + MESSAGE_OVERHEAD);
    }
}

impl Drop for KafkaCrateProducer {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Lines handed over together, their bytes in one piece.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Each line's number, and where its value ends in `bytes`.
    lines: Vec<(u64, usize)>,
    /// Its size as magic-0 messages.
    size: usize,
    /// When its first line was handed over.
    since: Option<Instant>,
}

impl Batch {
    fn value(&self, n: usize) -> &[u8] {
        let start = n.checked_sub(1).map_or(0, |before| self.lines[before].1);
        &self.bytes[start..self.lines[n].1]
    }
}

/// The lines that wait for the sending thread: one batch that is being filled. A channel would bound
/// their number, not their bytes.
#[derive(Default)]
struct Queue {
    /// Held by the caller's thread while it adds a line and by the sending thread while it takes all.
    filling: Mutex<Filling>,
    changed: Condvar,
}

#[derive(Default)]
struct Filling {
    batch: Batch,
    /// The producer was dropped.
    is_closed: bool,
}

impl Queue {
    fn wait_while(&self, condition: impl FnMut(&mut Filling) -> bool) -> MutexGuard<'_, Filling> {
        self.changed
            .wait_while(lock(&self.filling), condition)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line of `size` bytes as a message; waits while the batch is full.
    fn push(&self, line: u64, value: &[u8], size: usize) {
        let mut filling = self.wait_while(|filling| {
            !filling.batch.lines.is_empty() && filling.batch.size + size > BATCH_BYTES
        });
        let batch = &mut filling.batch;
        batch.since.get_or_insert_with(Instant::now);
        batch.bytes.extend_from_slice(value);
        batch.lines.push((line, batch.bytes.len()));
        batch.size += size;
        if batch.lines.len() == 1 {
            self.changed.notify_all();
        }
    }

    /// Waits for lines, and takes all of them: batches form by themselves, from the lines that come
    /// while a request is under way. None once the producer is dropped.
    fn take(&self) -> Option<Batch> {
        let mut filling =
            self.wait_while(|filling| filling.batch.lines.is_empty() && !filling.is_closed);
        let batch = std::mem::take(&mut filling.batch);
        self.changed.notify_all();
        (!filling.is_closed).then_some(batch)
    }

    fn close(&self) {
        lock(&self.filling).is_closed = true;
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        lock(&self.filling).is_closed
    }
}

/// What the sending thread owns.
struct Delivery {
    client: TopicClient,
    queue: Arc<Queue>,
    key: Vec<u8>,
    partition: i32,
    /// The offset after the last record that is known to be in the partition: a batch whose
    /// acknowledgement was lost can only be from here on.
    end: i64,
    timeout: Duration,
    reports: Reports,
}

impl Delivery {
    fn run(mut self) {
        while let Some(batch) = self.queue.take() {
            let give_up = batch.since.unwrap_or_else(Instant::now) + self.timeout;
            let batch = Arc::new(batch);
            let all = 0..batch.lines.len();
            self.deliver(&batch, all, give_up);
        }
    }

    /// Brings the lines of `range` into the log, each once, or reports them as failed.
    fn deliver(&mut self, batch: &Arc<Batch>, mut range: Range<usize>, give_up: Instant) {
        let mut is_ambiguous = false;
        while !range.is_empty() {
            let error = match self.attempt(batch, &mut range, &mut is_ambiguous, give_up) {
                Ok(()) => {
                    if let Some(event) = self.client.on_success() {
                        self.reports.send(Report::Connection(event));
                    }
                    continue;
                }
                Err(error) => error,
            };
            match error {
                CallError::Code(
                    KafkaCode::MessageSizeTooLarge
                    | KafkaCode::RecordListTooLarge
                    | KafkaCode::InvalidMessageSize,
                ) => return self.split(batch, range, give_up),
                // They mean that other brokers have replicas, which are not up to date yet.
                CallError::Code(
                    KafkaCode::RequestTimedOut | KafkaCode::NotEnoughReplicasAfterAppend,
                ) => {
                    let error = CallError::several_brokers(&self.client.topic);
                    return self.give_up(batch, range, error);
                }
                _ if error.is_fatal() && is_ambiguous => {
                    let error = self.client.error(error);
                    let error = CallError::Fatal(error.may_have_arrived());
                    return self.give_up(batch, range, error);
                }
                _ if error.is_fatal() => return self.give_up(batch, range, error),
                // It may have been written all the same.
                CallError::Connection { .. }
                | CallError::Code(KafkaCode::NetworkException | KafkaCode::Unknown) => {
                    is_ambiguous = true;
                }
                _ => self.client.disconnect(),
            }
            if self.queue.is_closed() {
                return;
            }
            if Instant::now() >= give_up {
                return self.give_up(batch, range, self.timed_out(&error));
            }
            if let Some(event) = self.client.back_off(&error, give_up) {
                self.reports.send(Report::Connection(event));
            }
        }
    }

    /// The topic takes less than usual: finds the lines that are too large, and sends the others.
    fn split(&mut self, batch: &Arc<Batch>, range: Range<usize>, give_up: Instant) {
        if range.len() == 1 {
            return self.give_up(batch, range, CallError::Fatal(Error::too_large()));
        }
        let half = range.start + range.len() / 2;
        self.deliver(batch, range.start..half, give_up);
        self.deliver(batch, half..range.end, give_up);
    }

    /// Sends the lines of `range` once, and removes from it those that are in the log.
    fn attempt(
        &mut self,
        batch: &Arc<Batch>,
        range: &mut Range<usize>,
        is_ambiguous: &mut bool,
        give_up: Instant,
    ) -> Result<(), CallError> {
        self.client.ensure_connected()?;
        if *is_ambiguous && !cfg!(feature = "test-no-read-back") {
            let (written, offset) = self.read_back(batch, range.clone())?;
            self.acknowledge(batch, range.start..range.start + written, offset);
            range.start += written;
            if range.start == range.end {
                return Ok(());
            }
        }
        *is_ambiguous = false;
        let (topic, partition, key) = (self.client.topic.clone(), self.partition, self.key.clone());
        let (lines, sent) = (batch.clone(), range.clone());
        let left = give_up.saturating_duration_since(Instant::now());
        let limit = left.clamp(SHORTEST_ATTEMPT, ACKNOWLEDGEMENT_TIMEOUT);
        // Longer than the broker's own limit: its answer says more than none.
        let confirms = self
            .client
            .call(limit + limit.min(REQUEST_TIMEOUT), move |client| {
                let messages = sent.map(|n| {
                    ProduceMessage::new(&topic, partition, Some(&key), Some(lines.value(n)))
                });
                client.produce_messages(RequiredAcks::All, limit, messages)
            })?;
        let confirm = confirms
            .iter()
            .flat_map(|topic| &topic.partition_confirms)
            .find(|confirm| confirm.partition == self.partition);
        match confirm.map(|confirm| confirm.offset) {
            Some(Ok(offset)) => {
                self.acknowledge(batch, range.clone(), offset);
                range.start = range.end;
                Ok(())
            }
            Some(Err(code)) => Err(CallError::Code(code)),
            None => Err(CallError::connection(
                "the answer did not name the partition",
            )),
        }
    }

    /// Looks for the lines of `range` after the last known end. Returns how many of them are there,
    /// from the first one on, and at which offset.
    ///
    /// A batch is appended as a whole, so its records are a contiguous run between those of other
    /// senders; the small broker, killed while it writes, can leave the first few. Another program that
    /// writes the same lines under the same name at the same moment can't be told from this one.
    fn read_back(&mut self, batch: &Batch, range: Range<usize>) -> Result<(usize, i64), CallError> {
        // What was in flight when the connection broke may be written a moment later.
        thread::sleep(IN_FLIGHT_WRITE);
        let end = self.client.offset(self.partition, FetchOffset::Latest)?;
        let (mut found, mut offset) = (0, self.end);
        let written = self.end..end;
        self.client.read_again(self.partition, written, |record| {
            if record.key == Some(&self.key) {
                let is_line = |n: usize| record.value == Some(batch.value(range.start + n));
                found = match is_line(found) {
                    true => found + 1,
                    false => usize::from(is_line(0)),
                };
                if found == 1 {
                    offset = record.offset;
                }
            }
            match found == range.len() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        Ok((found, offset))
    }

    /// Reports the lines of `range` as acknowledged, the first one at `offset`.
    fn acknowledge(&mut self, batch: &Batch, range: Range<usize>, mut offset: i64) {
        let mut run = ReportRun::new(self.reports.clone());
        for (line, _) in &batch.lines[range] {
            run.acknowledged(*line, self.partition, offset);
            offset += 1;
            // Smaller than before, if the topic was deleted and created again.
            self.end = offset;
        }
    }

    fn give_up(&self, batch: &Batch, range: Range<usize>, error: CallError) {
        let why = self.client.error(error);
        let mut run = ReportRun::new(self.reports.clone());
        for n in range {
            run.failed(batch.lines[n].0, batch.value(n), why.clone());
        }
    }

    fn timed_out(&self, error: &CallError) -> CallError {
        let (broker, topic) = (&self.client.broker, &self.client.topic);
        let doing = format!("cannot write to topic '{topic}' on {}", broker.server);
        let cause = error.why(broker);
        CallError::Fatal(sentences::not_acknowledged(
            &doing,
            self.timeout,
            Some(&cause),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc::{self, RecvTimeoutError};

    use super::*;
    use crate::broker::{Broker, Config};
    use crate::client::kafka_crate::KafkaCrateCluster;
    use crate::client::{Cluster, DELIVERY_TIMEOUT, Partitioning, Route};

    #[test]
    fn a_closed_queue_gives_no_batch_even_if_lines_wait() {
        let queue = Queue::default();
        queue.push(1, b"line", 30);
        queue.close();
        assert!(queue.take().is_none());
    }

    #[test]
    fn a_dropped_producer_gives_up_its_lines_and_its_thread_ends() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let broker = Broker::start(listener, dir.path(), Config::default()).unwrap();
        let cluster = KafkaCrateCluster::new(broker.address().to_string(), None, None);
        let (alice, bob) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        let (tx, rx) = mpsc::channel::<Report>();
        let mut producer = cluster
            .producer(
                Route::new(&alice, &bob),
                Partitioning::ByKey,
                DELIVERY_TIMEOUT,
                Reports::to(tx),
            )
            .unwrap();
        producer.send(1, b"delivered");
        let report = rx.recv_timeout(DELIVERY_TIMEOUT).unwrap();
        assert!(matches!(report, Report::Acknowledged { first: 1, .. }));

        drop(broker);
        producer.send(2, b"not delivered");
        let report = rx.recv_timeout(DELIVERY_TIMEOUT).unwrap();
        assert!(matches!(report, Report::Connection(_)), "{report:?}");
        drop(producer);
        // The thread has the sending half: it would try for the rest of the delivery timeout.
        let end = rx.recv_timeout(DELIVERY_TIMEOUT / 2).unwrap_err();
        assert_eq!(end, RecvTimeoutError::Disconnected);
    }
}
