use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::time::Instant;

use kafka::client::{
    CommitOffset, FetchOffset, FetchPartition, GroupOffsetStorage, KafkaClient, ProduceMessage,
    RequiredAcks,
};
use kafka::error::{Error, KafkaCode};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tempfile::TempDir;

use super::budget::Share;
use super::connection::{Activity, ELEMENT_BYTES, FEW_ELEMENTS, MAX_ELEMENTS, READ_AHEAD};
use super::*;
use crate::broker::message::{self, tests::encode};
use crate::broker::{Broker, Report, identity};
use crate::testing::{DEADLINE, wait_until};
use crate::wire::{
    self, APIS, ApiVersionsRequest, ApiVersionsResponse, ErrorCode, FetchRequest, FetchResponse,
    Header, ListOffsetsPartition, ListOffsetsRequest, ListedPartition, METADATA, MetadataRequest,
    MetadataResponse, PRODUCE, ProducePartition, ProduceRequest, ProduceResponse,
    ProducedPartition, Request, TopicData, code,
};

mod answers;
mod bounds;

pub(super) static GOES_ON: AtomicBool = AtomicBool::new(false);

fn start(dir: &TempDir, config: Config) -> Broker {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Broker::start(listener, dir.path(), config).unwrap()
}

fn broker(config: Config) -> (TempDir, Broker) {
    let dir = TempDir::new().unwrap();
    let broker = start(&dir, config);
    (dir, broker)
}

fn connect(broker: &Broker) -> TcpStream {
    let stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn header(api_version: i16) -> Header<'static> {
    Header {
        api_version,
        correlation_id: 7,
        client_id: None,
    }
}

/// A request with its size, of which only the header has to be right.
fn raw_request(api_key: i16, api_version: i16, body: &[u8]) -> Vec<u8> {
    let mut bytes = (10 + body.len() as i32).to_be_bytes().to_vec();
    bytes.extend(api_key.to_be_bytes());
    bytes.extend(api_version.to_be_bytes());
    bytes.extend(7i32.to_be_bytes());
    bytes.extend((-1i16).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// An ApiVersions request.
fn versions() -> Vec<u8> {
    Request::ApiVersions(ApiVersionsRequest {}).write(&header(0))
}

/// The next response, without its size.
fn response(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    wire::read_frame(&mut stream, usize::MAX)
}

fn ask(mut stream: &TcpStream, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    response(stream)
}

/// Whether the broker has closed the connection, or does so now.
fn is_closed(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(size) => size == 0,
        Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

fn assert_served(broker: &Broker) {
    let mut answer = ask(&connect(broker), &versions()).unwrap();
    let answer: ApiVersionsResponse = wire::read_response(&header(0), &mut answer).unwrap();
    assert_eq!(answer.error_code, code::NONE);
}

/// Waits until this is true of the broker's only connection.
fn wait_for_connection(broker: &Broker, what: &str, is_true: impl Fn(&Connection) -> bool) {
    wait_until(what, || {
        let connections = lock(&broker.shared.connections);
        assert!(connections.len() < 2, "more than one connection");
        connections.values().any(|c| is_true(&c.connection))
    });
}

/// Waits until the broker has read a part of the next request from its only connection.
fn wait_until_begun(broker: &Broker) {
    let timeout = Some(broker.shared.tick());
    wait_for_connection(broker, "no request has begun", |connection| {
        connection.stream.read_timeout().unwrap() == timeout
    });
}

fn client(broker: &Broker) -> KafkaClient {
    let mut client = KafkaClient::new(vec![broker.address().to_string()]);
    client.set_group_offset_storage(Some(GroupOffsetStorage::Kafka));
    client.load_metadata(&["bob"]).unwrap();
    client
}

/// The lines of `bob` from an offset on.
fn lines(client: &mut KafkaClient, offset: i64) -> Vec<(String, String)> {
    let asked = [FetchPartition::new("bob", 0, offset).with_max_bytes(1 << 20)];
    let mut lines = Vec::new();
    for response in client.fetch_messages(&asked).unwrap() {
        for topic in response.topics() {
            for partition in topic.partitions() {
                for m in partition.data().unwrap().messages() {
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    lines.push((text(m.key), text(m.value)));
                }
            }
        }
    }
    lines
}

/// Appends a line of alice's to `bob`: the error code, or its offset.
fn say(client: &mut KafkaClient, line: &str) -> Result<i64, KafkaCode> {
    let message = ProduceMessage::new("bob", 0, Some(b"alice".as_ref()), Some(line.as_bytes()));
    let confirms = client
        .produce_messages(RequiredAcks::One, DEADLINE, [message])
        .unwrap();
    confirms[0].partition_confirms[0].offset
}

fn produce(version: i16, acks: i16, topic: &str, partition: i32, set: &[u8]) -> Vec<u8> {
    let records = &mut set.to_vec();
    let partitions = vec![ProducePartition { partition, records }];
    let request = Request::Produce(ProduceRequest {
        acks,
        timeout_ms: 1,
        topics: vec![TopicData {
            name: topic,
            partitions,
        }],
    });
    request.write(&header(version))
}

/// The only partition in a response to [`produce`].
fn produced(version: i16, mut answer: Vec<u8>) -> ProducedPartition {
    let answer: ProduceResponse = wire::read_response(&header(version), &mut answer).unwrap();
    let [topic] = <[_; 1]>::try_from(answer.topics).unwrap();
    let [partition] = <[_; 1]>::try_from(topic.partitions).unwrap();
    partition
}

/// A fetch from `bob`.
fn fetch(version: i16, max_wait_ms: i32, min_bytes: i32, offset: i64, max_bytes: i32) -> Vec<u8> {
    let request = Request::Fetch(FetchRequest {
        replica_id: -1,
        max_wait_ms,
        min_bytes,
        topics: vec![TopicData {
            name: "bob",
            partitions: vec![wire::FetchPartition {
                partition: 0,
                fetch_offset: offset,
                partition_max_bytes: max_bytes,
            }],
        }],
    });
    request.write(&header(version))
}

/// The error code, the high watermark and the messages in a response to [`fetch`].
fn fetched(version: i16, mut answer: Vec<u8>) -> (ErrorCode, i64, Vec<u8>) {
    let answer: FetchResponse = wire::read_response(&header(version), &mut answer).unwrap();
    let partition = &answer.topics[0].partitions[0];
    let records = partition.records.to_vec();
    (partition.error_code, partition.high_watermark, records)
}
