//! Reads a topic with the times of its records, which crate `kafka` does not report.
//!
//! For a look at what a topic has now, such as the lines before a chat: each fetch is a request of our own, on a connection of
//! its own. What is damaged, compressed or deleted meanwhile is left out, without an event.

use std::ops::ControlFlow;
use std::time::Duration;

use super::errors::CallError;
use super::fetch::FETCH_BYTES;
use super::topic_client::{REQUEST_TIMEOUT, TopicClient};
use crate::broker::identity;
use crate::broker::message::whole_messages;
use crate::client::position::Positions;
use crate::client::{Consumer, Event, Offsets, Record, Start, probe};
use crate::error::Result;
use crate::wire::{
    self, FetchPartition, FetchRequest, FetchResponse, FetchedPartition, Header, Request,
    TopicData, code,
};

/// The version of a fetch whose messages have times.
const TIMED_VERSION: i16 = 2;

/// The most bytes of a partition that are fetched at once. A larger record is left out.
const MAX_FETCH_BYTES: i32 = 1 << 24;

/// How many bytes an answer has beside the messages of one partition, at most: the topic's name above all.
const MORE_BYTES: usize = 1 << 10;

pub(super) struct TimedConsumer {
    client: TopicClient,
    positions: Positions,
    fetch_bytes: i32,
}

impl TimedConsumer {
    pub(super) fn new(mut client: TopicClient, start: Start) -> Result<TimedConsumer> {
        Ok(TimedConsumer {
            positions: client.positions(start)?,
            client,
            fetch_bytes: FETCH_BYTES,
        })
    }
}

impl Consumer for TimedConsumer {
    fn poll(
        &mut self,
        wait: Duration,
        each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Event>> {
        let (from, max_bytes) = (self.positions.offsets(), self.fetch_bytes);
        let mut answer = self.client.retry_until_timeout(|client| {
            client.fetch_by_wire(TIMED_VERSION, &from, max_bytes, wait)
        })?;
        let error = |error: CallError| error.into_error(&self.client.broker, &self.client.topic);
        self.fetch_bytes = FETCH_BYTES;
        for part in fetched(TIMED_VERSION, &mut answer).map_err(error)? {
            let FetchedPartition { partition, .. } = part;
            if part.error_code != code::NONE {
                return Err(error(CallError::connection(format!(
                    "error code {}",
                    part.error_code.number
                ))));
            }
            let mut is_empty = true;
            for message in whole_messages(part.records) {
                is_empty = false;
                if message.is_compressed {
                    self.positions.skip_to(partition, message.offset + 1);
                    continue;
                }
                let record = Record {
                    partition,
                    offset: message.offset,
                    timestamp: message.timestamp,
                    key: message.key,
                    value: message.value,
                    ..Record::default()
                };
                if self.positions.advance(&record) && each(record).is_break() {
                    return Ok(Vec::new());
                }
            }
            if is_empty && !part.records.is_empty() && max_bytes < MAX_FETCH_BYTES {
                self.fetch_bytes = max_bytes * 2;
            } else if is_empty {
                self.positions.skip_to(partition, part.high_watermark);
            }
        }
        Ok(Vec::new())
    }

    fn position(&self) -> Offsets {
        self.positions.offsets()
    }

    fn end_offsets(&mut self) -> Result<Offsets> {
        self.client.end_offsets()
    }
}

impl TopicClient {
    /// Fetches by a request of our own. Returns the answer, which [`fetched`] reads.
    pub(super) fn fetch_by_wire(
        &self,
        version: i16,
        from: &Offsets,
        max_bytes: i32,
        max_wait: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let partitions = from.iter();
        let partitions = partitions.map(|(&partition, &fetch_offset)| FetchPartition {
            partition,
            fetch_offset,
            partition_max_bytes: max_bytes,
        });
        let request = Request::Fetch(FetchRequest {
            replica_id: -1,
            max_wait_ms: max_wait.as_millis() as i32,
            min_bytes: 1,
            topics: vec![TopicData {
                name: &self.topic,
                partitions: partitions.collect(),
            }],
        });
        let longest = from.len().max(1) * (max_bytes as usize + MORE_BYTES);
        let patience = max_wait + REQUEST_TIMEOUT;
        probe::exchange(self.leader(), &header(version), &request, longest, patience)
            .map_err(CallError::connection)
    }
}

/// What is in an answer to such a request.
pub(super) fn fetched(
    version: i16,
    answer: &mut [u8],
) -> Result<impl Iterator<Item = FetchedPartition<'_>>, CallError> {
    let response = wire::read_response::<FetchResponse>(&header(version), answer);
    let response = response.map_err(|_| CallError::connection("the answer made no sense"))?;
    let topics = response.topics.into_iter();
    Ok(topics.flat_map(|topic| topic.partitions))
}

/// What precedes such a request. A client of this process is no guest of the broker.
fn header(api_version: i16) -> Header<'static> {
    Header {
        api_version,
        correlation_id: 1,
        client_id: Some(identity::client_id()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;
    use crate::broker::{Broker, Config};
    use crate::client::kafka_crate::KafkaCrateCluster;
    use crate::client::{Cluster, DELIVERY_TIMEOUT, Partitioning, Report, Reports, Route};
    use crate::time::now;

    #[test]
    fn records_have_times_and_one_larger_than_a_fetch_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let broker = Broker::start(listener, dir.path(), Config::default()).unwrap();
        let cluster = KafkaCrateCluster::new(broker.address().to_string(), None, None);
        let (alice, bob) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        let (tx, rx) = mpsc::channel::<Report>();
        let route = Route::new(&alice, &bob);
        let reports = Reports::to(tx);
        let before = now();
        let mut producer = cluster
            .producer(route, Partitioning::ByKey, DELIVERY_TIMEOUT, reports)
            .unwrap();
        let large = [b'x'; 1000];
        for (n, line) in (1..).zip([&b"first"[..], &large, b"last"]) {
            producer.send(n, line);
            let report = rx.recv_timeout(DELIVERY_TIMEOUT).unwrap();
            assert!(matches!(report, Report::Acknowledged { .. }), "{report:?}");
        }

        let client = TopicClient::new(&cluster.broker, &bob);
        let mut consumer = TimedConsumer::new(client, Start::Earliest).unwrap();
        let ends = consumer.end_offsets().unwrap();
        assert_eq!(ends, [(0, 3)].into());
        let mut read = Vec::new();
        while consumer.position() != ends {
            if consumer.fetch_bytes == FETCH_BYTES {
                consumer.fetch_bytes = 100;
            }
            let polled = consumer.poll(Duration::ZERO, &mut |record| {
                assert_eq!(record.key, Some(&b"alice"[..]));
                let time = record.timestamp.unwrap();
                assert!((before..=now()).contains(&time), "{time}");
                read.push((record.offset, record.value.unwrap().len()));
                ControlFlow::Break(())
            });
            assert!(polled.unwrap().is_empty());
        }
        assert_eq!(read, [(0, 5), (1, 1000), (2, 4)]);
    }
}
