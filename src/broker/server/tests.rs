use std::io::{self, ErrorKind, Read, Write};
use std::sync::mpsc;

use kafka::client::{
    CommitOffset, FetchOffset, FetchPartition, GroupOffsetStorage, KafkaClient, ProduceMessage,
    RequiredAcks,
};
use kafka::error::{Error, KafkaCode};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tempfile::TempDir;

use super::connection::READ_AHEAD;
use super::*;
use crate::broker::message::{self, tests::encode};
use crate::broker::{Broker, identity};
use crate::wire::{
    self, APIS, ApiVersionsRequest, ApiVersionsResponse, ErrorCode, FetchRequest, FetchResponse,
    Header, ListOffsetsPartition, ListOffsetsRequest, ListedPartition, METADATA, MetadataRequest,
    MetadataResponse, PRODUCE, ProducePartition, ProduceRequest, ProduceResponse,
    ProducedPartition, Request, TopicData, code,
};

/// Much longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

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

/// Waits until this is true.
fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
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
    let timeout = Some(broker.shared.config.request_timeout);
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

#[test]
fn crate_kafka_writes_reads_and_commits_even_after_a_restart() {
    let (dir, broker) = broker(Config::default());
    let mut first = client(&broker);
    for n in 0..5 {
        assert_eq!(say(&mut first, &format!("line {n}")), Ok(n));
    }
    let expected: Vec<_> = (0..5)
        .map(|n| ("alice".into(), format!("line {n}")))
        .collect();
    assert_eq!(lines(&mut first, 0), expected);
    assert_eq!(lines(&mut first, 3), expected[3..]);
    let none = first
        .fetch_group_topic_offset("chat:bob:alice", "bob")
        .unwrap();
    assert_eq!(none[0].offset, -1);
    first.commit_offset("chat:bob:alice", "bob", 0, 4).unwrap();

    drop(broker);
    let broker = start(&dir, Config::default());
    let mut second = client(&broker);
    assert_eq!(lines(&mut second, 0), expected);
    let kept = second
        .fetch_group_topic_offset("chat:bob:alice", "bob")
        .unwrap();
    assert_eq!(kept[0].offset, 4);
    for (time, offset) in [(FetchOffset::Earliest, 0), (FetchOffset::Latest, 5)] {
        let offsets = second.fetch_offsets(&["bob"], time).unwrap();
        assert_eq!(offsets["bob"][0].offset, offset);
    }
    assert_eq!(say(&mut second, "more"), Ok(5));
}

#[test]
fn commits_that_cannot_be_kept_are_refused() {
    let config = Config {
        max_group_offsets: 1,
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    let mut client = client(&broker);
    let mut commit = |group: &str, topic: &str| {
        let offset = CommitOffset::new(topic, 0, 1);
        match client.commit_offsets(group, &[offset]) {
            Ok(()) => None,
            Err(Error::Kafka(code)) => Some(code),
            Err(e) => panic!("{e}"),
        }
    };
    assert_eq!(commit("", "bob"), Some(KafkaCode::InvalidGroupId));
    assert_eq!(
        commit(&"g".repeat(2000), "bob"),
        Some(KafkaCode::InvalidGroupId)
    );
    assert_eq!(commit("g", "bob"), None);
    assert_eq!(commit("h", "bob"), Some(KafkaCode::Unknown));
    assert_eq!(commit("g", "bob"), None);
    // One that can be kept is kept, whatever comes with it.
    client.load_metadata(&["alice"]).unwrap();
    let both = ["alice", "bob"].map(|topic| CommitOffset::new(topic, 0, 2));
    client.commit_offsets("g", &both).unwrap_err();
    let kept = client.fetch_group_topic_offset("g", "bob").unwrap();
    assert_eq!(kept[0].offset, 2);
}

#[test]
fn a_timestamp_is_removed_only_for_versions_without_timestamps() {
    let (_dir, broker) = broker(Config::default());
    let mut old = client(&broker);
    let stream = connect(&broker);
    let timed = encode(Some(99), Some(b"alice"), Some(b"hello"));
    let answer = ask(&stream, &produce(2, -1, "bob", 0, &timed)).unwrap();
    let expected = ProducedPartition {
        log_append_time_ms: -1,
        ..ProducedPartition::default()
    };
    assert_eq!(produced(2, answer), expected);
    let plain = encode(None, Some(b"alice"), Some(b"hello"));
    for (version, message) in [(0, &plain), (1, &plain), (2, &timed)] {
        let answer = ask(&stream, &fetch(version, 0, 1, 0, 1000)).unwrap();
        assert_eq!(
            fetched(version, answer),
            (code::NONE, 1, message.clone()),
            "version {version}"
        );
    }
    assert_eq!(
        lines(&mut old, 0),
        [("alice".to_string(), "hello".to_string())]
    );
    // A client that asks for too few bytes gets a cut message.
    let answer = ask(&stream, &fetch(2, 0, 1, 0, 20)).unwrap();
    assert_eq!(fetched(2, answer).2, timed[..20]);
    let by_time = Request::ListOffsets(ListOffsetsRequest {
        replica_id: -1,
        topics: vec![TopicData {
            name: "bob",
            partitions: vec![ListOffsetsPartition {
                timestamp: 50,
                ..ListOffsetsPartition::default()
            }],
        }],
    });
    let mut answer = ask(&stream, &by_time.write(&header(1))).unwrap();
    let answer: Vec<TopicData<'_, ListedPartition>> =
        wire::read_response(&header(1), &mut answer).unwrap();
    let listed = &answer[0].partitions[0];
    assert_eq!(
        (listed.error_code, listed.timestamp, listed.offset),
        (code::NONE, 99, 0)
    );
}

#[test]
fn a_set_that_cannot_be_appended_is_answered_with_the_reason() {
    let (_dir, broker) = broker(Config::default());
    client(&broker);
    let stream = connect(&broker);
    let good = encode(None, None, Some(b"hello"));
    let mut corrupt = good.clone();
    corrupt[20] ^= 1;
    let mut compressed = good.clone();
    compressed[17] = 1;
    let sum = crc32fast::hash(&compressed[16..]);
    compressed[12..16].copy_from_slice(&sum.to_be_bytes());
    let mut batch = good.clone();
    batch[16] = 2;
    let large = encode(None, None, Some(&vec![b'x'; message::MAX_BYTES]));
    for (acks, topic, partition, set, error_code) in [
        (1, "bob", 0, &corrupt, code::CORRUPT_MESSAGE),
        (1, "bob", 0, &compressed, code::UNSUPPORTED_COMPRESSION_TYPE),
        (1, "bob", 0, &batch, code::UNSUPPORTED_FOR_MESSAGE_FORMAT),
        (1, "bob", 0, &large, code::MESSAGE_TOO_LARGE),
        (1, "bob", 1, &good, code::UNKNOWN_TOPIC_OR_PARTITION),
        (1, "eve", 0, &good, code::UNKNOWN_TOPIC_OR_PARTITION),
        (2, "bob", 0, &good, code::INVALID_REQUIRED_ACKS),
        (-1, "bob", 0, &good, code::NONE),
    ] {
        let answer = ask(&stream, &produce(0, acks, topic, partition, set)).unwrap();
        assert_eq!(
            produced(0, answer).error_code,
            error_code,
            "{topic} {partition} {acks}"
        );
    }
    let answer = ask(&stream, &fetch(0, 0, 1, 0, 1000)).unwrap();
    assert_eq!(fetched(0, answer), (code::NONE, 1, good));
    for offset in [-1, 2] {
        let answer = ask(&stream, &fetch(0, 60_000, 1, offset, 1000)).unwrap();
        assert_eq!(fetched(0, answer), (code::OFFSET_OUT_OF_RANGE, -1, vec![]));
    }
}

#[test]
fn a_failed_disk_is_reported_and_afterwards_all_works_again() {
    let (dir, broker) = broker(Config::default());
    let mut client = client(&broker);
    say(&mut client, "before").unwrap();
    let (folder, aside) = (dir.path().join("bob-0"), dir.path().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    let stream = connect(&broker);
    let message = encode(None, None, Some(b"lost"));
    let answer = ask(&stream, &produce(0, 1, "bob", 0, &message)).unwrap();
    let failed = produced(0, answer);
    assert_eq!(failed.error_code, code::UNKNOWN_SERVER_ERROR);
    assert_eq!(failed.base_offset, -1);
    let answer = ask(&stream, &fetch(0, 60_000, 1, 0, 1000)).unwrap();
    assert_eq!(fetched(0, answer).0, code::KAFKA_STORAGE_ERROR);
    std::fs::rename(&aside, &folder).unwrap();
    assert_eq!(say(&mut client, "after"), Ok(1));
    assert_eq!(lines(&mut client, 0).len(), 2);
}

#[test]
fn requests_are_answered_in_whatever_pieces_they_come_in() {
    let (_dir, broker) = broker(Config::default());
    client(&broker);
    let message = encode(None, None, Some(b"hello"));
    // Longer than what is read ahead, between two short ones.
    let long = vec![message.clone(); READ_AHEAD].concat();
    let short = produce(0, 1, "bob", 0, &message);
    let requests = [&short[..], &produce(0, 1, "bob", 0, &long), &short].concat();
    let expected = [1, READ_AHEAD as i64, 1];
    let mut offset = 0;
    // In one piece, and in two: how many responses come between them, and whether the next request
    // has begun then.
    for (piece, responses, begun) in [
        (requests.len(), 3, false),
        (1, 0, true),
        (4, 0, true),
        (short.len(), 1, false),
        (short.len() + 2, 1, true),
        (requests.len() - 1, 2, true),
    ] {
        wait_until("the last connection has not ended", || {
            lock(&broker.shared.connections).is_empty()
        });
        let stream = connect(&broker);
        let mut next = |messages: &i64| {
            let answer = produced(0, response(&stream).unwrap());
            assert_eq!(answer.base_offset, offset, "{piece}");
            offset += messages;
        };
        (&stream).write_all(&requests[..piece]).unwrap();
        expected[..responses].iter().for_each(&mut next);
        if begun {
            wait_until_begun(&broker);
        }
        (&stream).write_all(&requests[piece..]).unwrap();
        expected[responses..].iter().for_each(&mut next);
    }
}

#[test]
fn after_a_slow_request_a_connection_may_be_idle_again() {
    let config = Config::default();
    let (idle, slow) = (config.idle_timeout, config.request_timeout);
    assert_ne!(idle, slow);
    let (_dir, broker) = broker(config);
    let stream = connect(&broker);
    let request = versions();
    let (begin, rest) = request.split_at(5);
    (&stream).write_all(begin).unwrap();
    wait_until_begun(&broker);
    ask(&stream, rest).unwrap();
    wait_for_connection(&broker, "it may not be idle", |connection| {
        connection.stream.read_timeout().unwrap() == Some(idle)
    });
    ask(&stream, &request).unwrap();
}

#[test]
fn a_request_that_was_read_ahead_in_part_has_the_time_of_a_request() {
    let config = Config {
        request_timeout: Duration::from_millis(100),
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    let stream = connect(&broker);
    let request = versions();
    (&stream)
        .write_all(&[&request[..], &request[..5]].concat())
        .unwrap();
    response(&stream).unwrap();
    assert!(is_closed(&stream));
}

#[test]
fn a_connection_that_is_idle_for_too_long_is_closed() {
    let config = Config {
        idle_timeout: Duration::from_millis(100),
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    assert!(is_closed(&connect(&broker)));
}

#[test]
fn a_produce_request_without_acknowledgement_has_no_response() {
    let (_dir, broker) = broker(Config::default());
    client(&broker);
    let mut stream = connect(&broker);
    let message = encode(None, None, Some(b"hello"));
    stream
        .write_all(&produce(0, 0, "bob", 0, &message))
        .unwrap();
    // The next response belongs to the next request, which finds the message.
    let answer = ask(&stream, &fetch(0, 0, 1, 0, 1000)).unwrap();
    assert_eq!(fetched(0, answer), (code::NONE, 1, message));
}

#[test]
fn metadata_creates_topics_or_says_why_not() {
    let config = Config {
        max_topics: 2,
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    client(&broker);
    let stream = connect(&broker);
    for (name, error_code) in [
        ("bob", code::NONE),
        ("alice", code::NONE),
        ("carol", code::POLICY_VIOLATION),
        ("__x", code::INVALID_TOPIC_EXCEPTION),
    ] {
        let request = Request::Metadata(MetadataRequest {
            topics: Some(vec![name]),
        });
        let mut answer = ask(&stream, &request.write(&header(0))).unwrap();
        let answer: MetadataResponse = wire::read_response(&header(0), &mut answer).unwrap();
        let port = i32::from(broker.address().port());
        assert_eq!(answer.brokers[0].node.port, port);
        assert_eq!(answer.topics[0].name, name);
        assert_eq!(answer.topics[0].error_code, error_code, "{name}");
        let partitions = usize::from(error_code == code::NONE);
        assert_eq!(answer.topics[0].partitions.len(), partitions, "{name}");
    }
}

#[test]
fn any_version_of_api_versions_is_answered_with_the_apis_and_the_logs_identity() {
    let (dir, broker) = broker(Config::default());
    let stream = connect(&broker);
    for (version, error_code) in [
        (0, code::NONE),
        (3, code::UNSUPPORTED_VERSION),
        (0, code::NONE),
    ] {
        let request = raw_request(wire::API_VERSIONS, version, b"\x05kcat\x00");
        let mut answer = ask(&stream, &request).unwrap();
        let answer: ApiVersionsResponse = wire::read_response(&header(0), &mut answer).unwrap();
        assert_eq!(answer.error_code, error_code);
        assert_eq!(answer.api_keys[..APIS.len()], *APIS);
        let stored = identity::stored(dir.path());
        assert!(stored.is_some());
        assert_eq!(identity::of(&answer.api_keys), stored);
    }
}

#[test]
fn a_waiting_fetch_is_answered_by_the_next_message() {
    let (_dir, broker) = broker(Config::default());
    let mut writer = client(&broker);
    let reader = connect(&broker);
    for n in 0..5 {
        // It may wait for much longer than the deadline.
        (&reader)
            .write_all(&fetch(0, i32::MAX, 1, n, 1000))
            .unwrap();
        reader
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        assert!((&reader).read(&mut [0]).is_err(), "there is no message yet");
        reader.set_read_timeout(Some(DEADLINE)).unwrap();
        say(&mut writer, "now").unwrap();
        let (error_code, end, set) = fetched(0, response(&reader).unwrap());
        assert_eq!((error_code, end), (code::NONE, n + 1));
        let message = encode(None, Some(b"alice"), Some(b"now"));
        assert_eq!(set[8..], message[8..]);
    }
}

#[test]
fn a_fetch_that_gets_too_few_bytes_is_answered_after_its_wait_with_what_there_is() {
    let (_dir, broker) = broker(Config::default());
    say(&mut client(&broker), "first").unwrap();
    let (stream, start) = (connect(&broker), Instant::now());
    let answer = ask(&stream, &fetch(0, 200, 1 << 20, 0, 1000)).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200));
    let (error_code, end, set) = fetched(0, answer);
    assert_eq!((error_code, end), (code::NONE, 1));
    assert!(!set.is_empty());
}

#[test]
fn a_waiting_fetch_ends_when_its_client_is_gone() {
    let (_dir, broker) = broker(Config::default());
    client(&broker);
    wait_until("the last connection has not ended", || {
        lock(&broker.shared.connections).is_empty()
    });
    let mut stream = connect(&broker);
    stream.write_all(&fetch(0, i32::MAX, 1, 0, 1000)).unwrap();
    wait_for_connection(&broker, "it does not wait", |c| {
        lock(&c.idle_since).is_none()
    });
    drop(stream);
    wait_until("the fetch still waits", || {
        lock(&broker.shared.connections).is_empty()
    });
}

#[test]
fn stopping_ends_a_thousand_connections_and_their_waiting_fetches() {
    let (dir, broker) = broker(Config::default());
    let mut writer = client(&broker);
    say(&mut writer, "first").unwrap();
    // Both ends of a connection are this process's, whose descriptors are limited.
    let mut streams = Vec::new();
    for n in 0..1000.min((descriptors() - 200) / 2) {
        let mut stream = connect(&broker);
        if n % 2 == 0 {
            stream.write_all(&fetch(0, i32::MAX, 1, 1, 1000)).unwrap();
        }
        streams.push(stream);
    }
    assert!(ask(&streams[1], &versions()).is_ok());
    assert_eq!(lines(&mut client(&broker), 0).len(), 1);

    let address = broker.address();
    let (tx, rx) = mpsc::channel();
    thread::spawn(move || {
        drop(broker);
        tx.send(()).unwrap();
    });
    // The fetches may wait for much longer than the deadline.
    rx.recv_timeout(DEADLINE).expect("the broker stops");
    assert!(is_closed(&streams[1]));
    // The address and the log are free, while the clients still have their ends open.
    let listener = TcpListener::bind(address).unwrap();
    let again = Broker::start(listener, dir.path(), Config::default()).unwrap();
    assert_eq!(lines(&mut client(&again), 0).len(), 1);
    drop(streams);
}

/// How many descriptors this process may have, as far as that can be known.
fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"));
    let soft = line.and_then(|l| l.split_whitespace().next());
    soft.and_then(|n| n.parse().ok()).unwrap_or(256)
}

#[test]
fn one_connection_too_many_replaces_the_one_idle_for_longest() {
    let config = Config {
        max_connections: 2,
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    let versions = versions();
    let [one, two] = [connect(&broker), connect(&broker)];
    for stream in [&one, &two, &one] {
        ask(stream, &versions).unwrap();
    }
    let three = connect(&broker);
    ask(&three, &versions).unwrap();
    assert!(is_closed(&two));
    ask(&one, &versions).unwrap();
}

#[test]
fn a_connection_whose_request_is_being_answered_is_not_closed_for_another() {
    let config = Config {
        max_connections: 1,
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    broker.shared.log.create_topic("bob").unwrap();
    let mut waiting = connect(&broker);
    waiting.write_all(&fetch(0, i32::MAX, 1, 0, 1000)).unwrap();
    wait_for_connection(&broker, "it is not answered", |c| {
        lock(&c.idle_since).is_none()
    });
    assert!(is_closed(&connect(&broker)));
    let bob = broker.shared.log.topic("bob").unwrap();
    bob.append(&mut encode(None, None, Some(b"now"))).unwrap();
    assert_eq!(fetched(0, response(&waiting).unwrap()).1, 1);
}

#[test]
fn a_request_that_is_not_kafkas_ends_its_connection_and_no_other() {
    let (_dir, broker) = broker(Config::default());
    let patient = connect(&broker);
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        &i32::MAX.to_be_bytes(),
        &i32::MIN.to_be_bytes(),
        &[0, 0, 0, 0],
        &[0, 0, 0, 1, 0],
        &raw_request(42, 0, &[]),
        &raw_request(PRODUCE, 3, &[0; 64]),
        &raw_request(METADATA, 0, &i32::MAX.to_be_bytes()),
        &raw_request(METADATA, 0, &(-7i32).to_be_bytes()),
    ] {
        let mut stream = connect(&broker);
        stream.write_all(bytes).unwrap();
        assert!(is_closed(&stream), "{bytes:?}");
        assert_served(&broker);
    }
    assert!(ask(&patient, &versions()).is_ok());
}

#[test]
fn half_a_request_ends_its_connection_after_its_time() {
    let timeout = Duration::from_millis(300);
    let config = Config {
        request_timeout: timeout,
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    let whole = produce(0, 1, "bob", 0, &encode(None, None, Some(b"hello")));
    let halves: Vec<_> = (1..whole.len())
        .map(|size| {
            let mut stream = connect(&broker);
            stream.write_all(&whole[..size]).unwrap();
            stream
        })
        .collect();
    assert_served(&broker);
    for stream in &halves {
        assert!(is_closed(stream));
    }
    // Even if there is always a little more.
    let mut slow = connect(&broker);
    slow.write_all(&(1i32 << 20).to_be_bytes()).unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    wait_until("the slow request is still read", || {
        let _ = slow.write_all(&[0]);
        is_closed(&slow)
    });
}

#[test]
fn random_requests_do_not_disturb_other_connections() {
    let (_dir, broker) = broker(Config::default());
    let mut witness = client(&broker);
    say(&mut witness, "witness").unwrap();
    let body = prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..80);
    let requests = prop::collection::vec((prop::sample::select(APIS), 0i16..3, body), 1..4);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(200));
    runner
        .run(&requests, |requests| {
            let stream = connect(&broker);
            for (api, version, body) in requests {
                // The broker may close the connection after any of them.
                let _ = (&stream).write_all(&raw_request(api.api_key, version, &body));
            }
            let _ = stream.shutdown(Shutdown::Write);
            let mut answers = Vec::new();
            let _ = (&stream).read_to_end(&mut answers);
            Ok(())
        })
        .unwrap();
    assert_eq!(lines(&mut witness, 0).len(), 1);
    assert_served(&broker);
}

#[test]
fn the_lines_of_many_writers_are_kept_in_the_order_of_each() {
    let config = Config {
        segment_bytes: 4096,
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    let mut reader = client(&broker);
    let (done, ended) = mpsc::channel();
    thread::scope(|scope| {
        for writer in 0..4 {
            let (done, broker) = (done.clone(), &broker);
            scope.spawn(move || {
                let mut client = client(broker);
                for n in 0..100 {
                    say(&mut client, &format!("{writer} {n}")).unwrap();
                }
                done.send(()).unwrap();
            });
        }
        for _ in 0..4 {
            ended.recv_timeout(DEADLINE).unwrap();
        }
    });
    let mut all: Vec<(String, String)> = Vec::new();
    while all.len() < 400 {
        let more = lines(&mut reader, all.len() as i64);
        assert!(!more.is_empty());
        all.extend(more);
    }
    for writer in 0..4 {
        let prefix = format!("{writer} ");
        let own = all
            .iter()
            .filter_map(|(_, line)| line.strip_prefix(&prefix));
        assert!(own.eq((0..100).map(|n| n.to_string())));
    }
}
