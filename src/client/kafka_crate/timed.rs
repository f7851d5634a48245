//! Reads a topic of the small broker with the times of its records, which crate `kafka` does not report.
//!
//! For a look at what a topic has now, such as the lines before a chat: by fetches of our own, on a connection of its
//! own. What is damaged or deleted meanwhile is left out, without an event, and a broker that cannot be reached for some
//! seconds is an error.

use std::net::TcpStream;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use kafka::client::FetchOffset;
use kafka::error::KafkaCode;

use super::Broker;
use super::errors::CallError;
use super::fetch::{fetch_request, fetched, open};
use super::topic_client::{FIRST_PAUSE, REQUEST_TIMEOUT, TopicClient};
use crate::broker::identity;
use crate::broker::message::read_messages;
use crate::client::position::Positions;
use crate::client::{Consumer, Event, Offsets, Record, Start, probe, sentences};
use crate::error::Result;
use crate::wire::{Header, code};

/// The oldest version of a fetch whose messages have times.
const FETCH_VERSION: i16 = 2;

/// What precedes a request. A client of this process is no guest of the broker.
fn header(api_version: i16) -> Header<'static> {
    Header {
        api_version,
        correlation_id: 1,
        client_id: Some(identity::client_id()),
    }
}

/// How many bytes are fetched at once: more than the small broker takes as one message.
const FETCH_BYTES: i32 = 2 << 20;

pub(super) struct TimedConsumer {
    client: TopicClient,
    positions: Positions,
    /// For fetches alone.
    connection: Option<TcpStream>,
}

impl TimedConsumer {
    pub(super) fn new(mut client: TopicClient, start: Start) -> Result<TimedConsumer> {
        Ok(TimedConsumer {
            positions: client.positions(start)?,
            client,
            connection: None,
        })
    }
}

impl Consumer for TimedConsumer {
    fn poll(
        &mut self,
        wait: Duration,
        each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Event>> {
        let TimedConsumer {
            client,
            positions,
            connection,
        } = self;
        let before = positions.offsets();
        client.retry_until_timeout(|client| read(client, positions, connection, wait, each))?;
        if positions.offsets() == before {
            // The broker may not have held this fetch.
            thread::sleep(FIRST_PAUSE);
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

/// Fetches once, and gives each record to `each`, until it returns `Break`.
fn read(
    client: &mut TopicClient,
    positions: &mut Positions,
    connection: &mut Option<TcpStream>,
    wait: Duration,
    each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
) -> Result<(), CallError> {
    let stream = match connection.take() {
        Some(stream) => stream,
        None => connect(client)?,
    };
    let mut expected = positions.offsets();
    let request = fetch_request(&client.topic, &expected, FETCH_BYTES, wait);
    // Every message is less than a fetch, and the answer has little beside them.
    let longest = 2 * FETCH_BYTES as usize * expected.len().max(1);
    let deadline = Instant::now() + wait + REQUEST_TIMEOUT;
    let header = header(FETCH_VERSION);
    let mut answer = probe::exchange(&stream, &header, &request, longest, deadline)?;
    let parts = fetched(&header, &mut answer)?;
    *connection = Some(stream);
    for part in parts {
        if expected.remove(&part.partition).is_none() {
            continue;
        }
        match part.error_code {
            code::NONE => {}
            code::OFFSET_OUT_OF_RANGE => {
                let oldest = client.offset(part.partition, FetchOffset::Earliest)?;
                positions.skip_to(part.partition, oldest);
                continue;
            }
            _ => return Err(CallError::Code(KafkaCode::Unknown)),
        }
        let mut messages = read_messages(part.records).peekable();
        if messages.peek().is_none() {
            // Nothing is new, or what is left of the log is damaged.
            positions.skip_to(part.partition, part.high_watermark);
        }
        for message in messages {
            let record = Record {
                partition: part.partition,
                offset: message.offset,
                timestamp: message.timestamp,
                key: message.key,
                value: message.value,
                ..Record::default()
            };
            if positions.advance(&record) && each(record).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Connects, if the broker has the log that it had before.
fn connect(client: &TopicClient) -> Result<TcpStream, CallError> {
    let Broker { server, log_id, .. } = &*client.broker;
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    let stream = open(server)?;
    let found = identity::of(&probe::api_versions(&stream, &header(0), deadline)?);
    match log_id.is_some() && found != *log_id {
        true => Err(CallError::Fatal(sentences::other_log(server))),
        false => Ok(stream),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpListener;
    use std::path::Path;
    use std::sync::mpsc;

    use super::*;
    use crate::broker::{Broker, Config};
    use crate::client::kafka_crate::KafkaCrateCluster;
    use crate::client::{
        Cluster, DELIVERY_TIMEOUT, MAX_RECORD_BYTES, Partitioning, Report, Reports, Route,
    };
    use crate::testing::wait_until;
    use crate::time::now;

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn start(dir: &Path, listener: &TcpListener) -> (Broker, KafkaCrateCluster) {
        let broker = Broker::start(
            listener.try_clone().unwrap(),
            dir,
            Config {
                // One line is a segment, and the newest stays.
                segment_bytes: 1,
                retention_bytes: 3 << 20,
                ..Config::default()
            },
        );
        let broker = broker.unwrap();
        let server = broker.address().to_string();
        let cluster = KafkaCrateCluster::new(server, None, identity::stored(dir));
        (broker, cluster)
    }

    /// Sends lines of alice to bob.
    fn send(cluster: &KafkaCrateCluster, lines: &[&[u8]]) {
        let (alice, bob) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        let (tx, rx) = mpsc::channel::<Report>();
        let (route, reports) = (Route::new(&alice, &bob), Reports::to(tx));
        let mut producer = cluster
            .producer(route, Partitioning::ByKey, DELIVERY_TIMEOUT, reports)
            .unwrap();
        for (n, line) in (1..).zip(lines) {
            producer.send(n, line);
            let report = rx.recv_timeout(DELIVERY_TIMEOUT).unwrap();
            assert!(matches!(report, Report::Acknowledged { .. }), "{report:?}");
        }
    }

    fn open_at(cluster: &KafkaCrateCluster, start: Start) -> TimedConsumer {
        let client = TopicClient::new(&cluster.broker, &"bob".parse().unwrap());
        TimedConsumer::new(client, start).unwrap()
    }

    /// The offsets and sizes of the next `count` lines, which were written after `since`.
    fn next(consumer: &mut TimedConsumer, count: usize, since: i64) -> Vec<(i64, usize)> {
        let mut read = Vec::new();
        wait_until("it gives too few lines", || {
            let polled = consumer.poll(Duration::ZERO, &mut |record| {
                assert_eq!(record.key, Some(&b"alice"[..]));
                assert!(
                    record
                        .timestamp
                        .is_some_and(|time| (since..=now()).contains(&time))
                );
                read.push((record.offset, record.value.unwrap_or_default().len()));
                match read.len() == count {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            });
            assert!(polled.unwrap().is_empty());
            read.len() == count
        });
        read
    }

    #[test]
    fn records_have_times_and_the_next_poll_continues_after_the_last_one_given() {
        let (dir, since) = (tempfile::tempdir().unwrap(), now());
        let (_broker, cluster) = start(dir.path(), &listener());
        let large = vec![b'x'; MAX_RECORD_BYTES - "alice".len()];
        send(&cluster, &[b"first", &large, b"last"]);
        let mut consumer = open_at(&cluster, Start::Earliest);
        assert_eq!(consumer.end_offsets().unwrap(), [(0, 3)].into());
        assert_eq!(next(&mut consumer, 1, since), [(0, 5)]);
        assert_eq!(next(&mut consumer, 2, since), [(1, large.len()), (2, 4)]);
        assert_eq!(consumer.position(), [(0, 3)].into());
    }

    #[test]
    fn what_is_deleted_before_it_is_read_is_left_out() {
        let (dir, since) = (tempfile::tempdir().unwrap(), now());
        let (_broker, cluster) = start(dir.path(), &listener());
        send(&cluster, &[b"first"]);
        let mut consumer = open_at(&cluster, Start::Earliest);
        let large = vec![b'x'; 1 << 20 >> 1];
        send(&cluster, &[&large[..]; 20]);
        assert!(next(&mut consumer, 1, since)[0].0 > 0);
        // Nor does a log that is shorter than before end it.
        let mut consumer = open_at(&cluster, Start::At([(0, 1000)].into()));
        let polled = consumer.poll(Duration::ZERO, &mut |record| panic!("{record:?}"));
        assert!(polled.unwrap().is_empty());
        assert_eq!(consumer.position(), [(0, 1000)].into());
    }

    #[test]
    fn damaged_lines_are_stepped_over_up_to_the_end_of_the_log() {
        let (dir, since) = (tempfile::tempdir().unwrap(), now());
        let (_broker, cluster) = start(dir.path(), &listener());
        send(&cluster, &[b"first", b"second", b"third", b"last"]);
        let segments = fs::read_dir(dir.path().join("bob-0")).unwrap();
        let segments = segments.map(|entry| entry.unwrap().path());
        let mut logs: Vec<_> = segments
            .filter(|it| it.extension().is_some_and(|it| it == "log"))
            .collect();
        logs.sort();
        for log in [&logs[1], &logs[3]] {
            let mut bytes = fs::read(log).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(log, bytes).unwrap();
        }
        let mut consumer = open_at(&cluster, Start::Earliest);
        assert_eq!(next(&mut consumer, 2, since), [(0, 5), (2, 5)]);
        wait_until("it stops before the end", || {
            let polled = consumer.poll(Duration::ZERO, &mut |record| panic!("{record:?}"));
            assert!(polled.unwrap().is_empty());
            consumer.position() == consumer.end_offsets().unwrap()
        });
    }

    #[test]
    fn a_broker_that_is_back_is_read_on_and_nothing_is_read_from_another_log() {
        let [dir, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (listener, since) = (listener(), now());
        let (broker, cluster) = start(dir.path(), &listener);
        send(&cluster, &[b"first", b"second"]);
        let mut consumer = open_at(&cluster, Start::Earliest);
        assert_eq!(next(&mut consumer, 1, since), [(0, 5)]);
        drop(broker);
        let (broker, _) = start(dir.path(), &listener);
        assert_eq!(next(&mut consumer, 1, since), [(1, 6)]);
        let not_connected_yet = open_at(&cluster, Start::Earliest);
        drop(broker);
        let (_broker, others) = start(other.path(), &listener);
        send(&others, &[b"one", b"two", b"three"]);
        for mut consumer in [not_connected_yet, consumer] {
            let polled = consumer.poll(Duration::ZERO, &mut |record| panic!("{record:?}"));
            let error = polled.unwrap_err().to_string();
            assert!(error.contains("another log"), "{error}");
        }
    }
}
