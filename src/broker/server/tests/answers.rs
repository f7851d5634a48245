//! What requests are answered.

use super::*;

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
fn committed_offsets_that_are_gone_cost_no_line_and_are_reported() {
    let (tx, said) = mpsc::channel();
    let config = Config {
        report: Report::to(move |report| tx.send(report.to_string()).unwrap()),
        ..Config::default()
    };
    let (dir, broker) = broker(config.clone());
    let mut first = client(&broker);
    say(&mut first, "line").unwrap();
    first.commit_offset("g", "bob", 0, 1).unwrap();
    drop(broker);
    drop(start(&dir, config.clone()));
    assert_eq!(said.try_iter().count(), 0);
    let file = dir.path().join("group-offsets");
    for how in ["gone", "empty"] {
        match how {
            "gone" => std::fs::remove_file(&file).unwrap(),
            _ => std::fs::write(&file, "").unwrap(),
        }
        let broker = start(&dir, config.clone());
        let expected = format!("group-offsets is {how}");
        assert!(said.try_recv().unwrap().contains(&expected));
        let mut second = client(&broker);
        let kept = second.fetch_group_topic_offset("g", "bob").unwrap();
        assert_eq!(kept[0].offset, -1);
        assert_eq!(lines(&mut second, 0).len(), 1);
        drop(broker);
        drop(start(&dir, config.clone()));
        assert_eq!(said.try_iter().count(), 0);
    }
}

#[test]
fn commits_that_cannot_be_kept_are_refused() {
    let config = Config {
        max_group_offset_bytes: 300,
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
fn a_partition_that_is_named_again_is_refused_and_a_topic_is_listed_once() {
    let (_dir, broker) = broker(Config::default());
    client(&broker);
    let stream = connect(&broker);
    let earliest = || ListOffsetsPartition {
        timestamp: wire::EARLIEST,
        ..ListOffsetsPartition::default()
    };
    let request = Request::ListOffsets(ListOffsetsRequest {
        replica_id: -1,
        topics: vec![TopicData {
            name: "bob",
            partitions: vec![earliest(), earliest()],
        }],
    });
    let mut answer = ask(&stream, &request.write(&header(1))).unwrap();
    let answer: Vec<TopicData<'_, ListedPartition>> =
        wire::read_response(&header(1), &mut answer).unwrap();
    let codes: Vec<_> = answer[0].partitions.iter().map(|p| p.error_code).collect();
    assert_eq!(codes, [code::NONE, code::INVALID_REQUEST]);
    let mut sets = [(); 2].map(|()| encode(None, None, Some(b"hello")));
    let partitions = sets.iter_mut().map(|records| ProducePartition {
        partition: 0,
        records,
    });
    let request = Request::Produce(ProduceRequest {
        acks: 1,
        timeout_ms: 1,
        topics: vec![TopicData {
            name: "bob",
            partitions: partitions.collect(),
        }],
    });
    let mut answer = ask(&stream, &request.write(&header(2))).unwrap();
    let answer: ProduceResponse = wire::read_response(&header(2), &mut answer).unwrap();
    let partitions = answer.topics[0].partitions.iter();
    let codes: Vec<_> = partitions.map(|p| p.error_code).collect();
    assert_eq!(codes, [code::NONE, code::INVALID_REQUEST]);
    let request = Request::Metadata(MetadataRequest {
        topics: Some(vec!["bob"; 1000]),
    });
    let mut answer = ask(&stream, &request.write(&header(1))).unwrap();
    let answer: MetadataResponse = wire::read_response(&header(1), &mut answer).unwrap();
    assert_eq!(answer.topics.len(), 1);
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
