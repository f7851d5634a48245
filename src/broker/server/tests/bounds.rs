//! Bounds of memory, time and connections, whatever clients do.

use super::*;

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
fn a_fetch_that_asks_for_more_bytes_than_a_response_has_is_not_kept_waiting() {
    let (_dir, broker) = broker(Config::default());
    client(&broker);
    let bob = broker.shared.log.topic("bob").unwrap();
    let one = encode(Some(1), None, Some(&[b'x'; 600_000]));
    for _ in 0..2 {
        bob.append(&mut one.clone()).unwrap();
    }
    // It may wait for much longer than the deadline.
    let answer = ask(&connect(&broker), &fetch(2, i32::MAX, 2 << 20, 0, 2 << 20)).unwrap();
    assert_eq!(fetched(2, answer).2.len(), one.len());
}

/// Takes all memory that requests could have, but for what each connection has for itself.
fn take_all(broker: &Broker) -> Vec<Share<'_>> {
    let mut shares = Vec::new();
    let mut left = broker.shared.config.max_memory;
    // The last request may have been answered, but not given back its memory.
    wait_until("a request has memory", || {
        for size in (0..32).rev().map(|bits| 1 << bits) {
            loop {
                let share = broker.shared.budget.share(&GOES_ON);
                if share.take_up_to(OWN_BYTES + size) == OWN_BYTES {
                    break;
                }
                left -= size;
                shares.push(share);
            }
        }
        left == 0
    });
    shares
}

#[test]
fn a_long_line_is_delivered_while_large_requests_hold_and_want_all_memory() {
    let (_dir, broker) = broker(Config::default());
    client(&broker);
    let bob = broker.shared.log.topic("bob").unwrap();
    let attacker = broker.shared.budget.share(&GOES_ON);
    while attacker.take_up_to(1 << 20) == 1 << 20 {}
    // Half a request, which waits for memory.
    let mut half = connect(&broker);
    half.write_all(&produce(2, 1, "bob", 0, &[0; 6_000_000])[..3_000_000])
        .unwrap();
    wait_until("the large request does not wait", || {
        broker.shared.budget.is_wanted()
    });
    let line = encode(Some(1), Some(b"alice"), Some(&[b'x'; 100_000]));
    let answer = ask(&connect(&broker), &produce(2, 1, "bob", 0, &line)).unwrap();
    assert_eq!(produced(2, answer).error_code, code::NONE);
    // Also if a fetch asks for more than that.
    for n in 1..20 {
        assert_eq!(bob.append(&mut line.clone()), Ok(n));
    }
    let answer = ask(&connect(&broker), &fetch(2, 0, 1, 0, 1 << 20)).unwrap();
    assert_eq!(fetched(2, answer).2.len(), line.len());
    drop(attacker);
}

#[test]
fn a_request_takes_memory_for_as_many_entries_as_it_has() {
    let config = Config {
        max_memory: MAX_ELEMENTS * ELEMENT_BYTES,
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    for count in [FEW_ELEMENTS, FEW_ELEMENTS + 1, 100, 500] {
        let names: Vec<_> = (0..count).map(|n| format!("topic-{n}")).collect();
        let request = Request::Metadata(MetadataRequest {
            topics: Some(names.iter().map(String::as_str).collect()),
        });
        let mut answer = ask(&connect(&broker), &request.write(&header(1))).unwrap();
        let answer: MetadataResponse = wire::read_response(&header(1), &mut answer).unwrap();
        assert_eq!(answer.topics.len(), count);
    }
}

#[test]
fn where_memory_is_short_a_fetch_gets_whole_messages_and_fewer_of_them() {
    let (_dir, broker) = broker(Config::default());
    client(&broker);
    let bob = broker.shared.log.topic("bob").unwrap();
    let one = encode(None, None, Some(&[b'x'; 5000]));
    bob.append(&mut one.repeat(20)).unwrap();
    let stream = connect(&broker);
    let get = || {
        let answer = ask(&stream, &fetch(0, 0, 1, 0, 1 << 20)).unwrap();
        fetched(0, answer).2.len()
    };
    assert_eq!(get(), 20 * one.len());
    let all = take_all(&broker);
    assert_eq!(get(), 3 * one.len());
    drop(all);
    assert_eq!(get(), 20 * one.len());
}

#[test]
fn a_waiting_fetch_ends_when_either_side_closes_even_if_more_requests_have_come() {
    let (_dir, broker) = broker(Config::default());
    client(&broker);
    let wait = fetch(0, i32::MAX, 1, 0, 1000);
    // More than is read ahead.
    let more = [&wait[..], &versions().repeat(500)].concat();
    for (requests, is_client) in [(&wait, true), (&more, true), (&wait, false), (&more, false)] {
        wait_until("the last connection has not ended", || {
            lock(&broker.shared.connections).is_empty()
        });
        let mut stream = connect(&broker);
        stream.write_all(requests).unwrap();
        wait_for_connection(&broker, "it does not wait", |c| {
            matches!(*lock(&c.activity), Activity::Waiting(_))
        });
        match is_client {
            true => drop(stream),
            false => {
                let connections = lock(&broker.shared.connections);
                connections.values().for_each(Running::close);
            }
        }
        wait_until("the fetch still waits", || {
            lock(&broker.shared.connections).is_empty()
        });
    }
}

#[test]
fn a_waiting_fetch_with_a_large_request_gives_its_memory_to_one_that_needs_it() {
    let names: Vec<_> = (0..100).map(|n| format!("{n:0200}")).collect();
    let topics = names.iter().map(|name| TopicData {
        name,
        partitions: vec![wire::FetchPartition {
            partition: 0,
            fetch_offset: 0,
            partition_max_bytes: 1000,
        }],
    });
    let request = Request::Fetch(FetchRequest {
        replica_id: -1,
        max_wait_ms: i32::MAX,
        min_bytes: 1,
        topics: topics.collect(),
    });
    let config = Config {
        // What its arrays need, for the request and its answer, and little more.
        max_memory: 1_500_000,
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    for name in names.iter().map(String::as_str).chain(["bob"]) {
        broker.shared.log.create_topic(name).unwrap();
    }
    let mut waiting = connect(&broker);
    waiting.write_all(&request.write(&header(0))).unwrap();
    wait_for_connection(&broker, "it does not wait", |c| {
        matches!(*lock(&c.activity), Activity::Waiting(_))
    });
    let large = encode(Some(1), None, Some(&[b'x'; 1_000_000]));
    let answer = ask(&connect(&broker), &produce(2, 1, "bob", 0, &large)).unwrap();
    assert_eq!(produced(2, answer).error_code, code::NONE);
}

#[test]
fn a_reader_of_the_newest_line_needs_no_turn_and_one_that_waits_for_its_turn_can_be_closed() {
    let (_dir, broker) = broker(Config::default());
    broker.shared.log.create_topic("bob").unwrap();
    let bob = broker.shared.log.topic("bob").unwrap();
    let long = encode(Some(1), None, Some(&[b'x'; 20_000]));
    for message in [long.clone(), long, encode(Some(1), None, Some(b"x"))] {
        bob.append(&mut message.to_vec()).unwrap();
    }
    let by_time = Request::ListOffsets(ListOffsetsRequest {
        replica_id: -1,
        topics: vec![TopicData {
            name: "bob",
            partitions: vec![ListOffsetsPartition::default()],
        }],
    });
    let by_time = by_time.write(&header(1));
    for request in [fetch(2, 0, 1, 0, 1), by_time] {
        let all = broker.shared.walks.share(&GOES_ON);
        all.take(MAX_WALKS).unwrap();
        let mut stream = connect(&broker);
        stream.write_all(&request).unwrap();
        wait_for_connection(&broker, "it does not wait", |c| {
            matches!(*lock(&c.activity), Activity::Waiting(_))
        });
        let newest = ask(&connect(&broker), &fetch(2, 0, 1, 2, 1000)).unwrap();
        assert_eq!(fetched(2, newest).1, 3);
        for running in lock(&broker.shared.connections).values() {
            running.close();
        }
        wait_until("it still waits", || {
            lock(&broker.shared.connections).is_empty()
        });
        drop(all);
        assert!(ask(&connect(&broker), &request).is_ok());
        wait_until("the last connection has not ended", || {
            lock(&broker.shared.connections).is_empty()
        });
    }
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
fn where_no_connection_can_be_closed_a_newcomer_is_refused_and_that_is_reported_once() {
    let (tx, said) = mpsc::channel();
    let config = Config {
        max_connections: 1,
        report: Report::to(move |report| tx.send(report.to_string()).unwrap()),
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    let busy = connect(&broker);
    ask(&busy, &versions()).unwrap();
    wait_for_connection(&broker, "it is not served", |connection| {
        *lock(&connection.activity) = Activity::Busy;
        true
    });
    for _ in 0..2 {
        assert!(is_closed(&connect(&broker)));
    }
    assert!(said.recv_timeout(DEADLINE).unwrap().contains("in use"));
    ask(&busy, &versions()).unwrap();
    assert_served(&broker);
    assert_eq!(said.try_iter().count(), 0);
}

#[test]
fn waits_as_long_as_our_own_do_not_end_before_idle_connections() {
    let now = Instant::now();
    let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap();
    let idle = Activity::Idle(now).rank();
    assert!(Activity::Waiting(ago(8)).rank() > idle);
    assert!(Activity::Waiting(ago(60)).rank() < idle);
}

#[test]
fn fetches_that_wait_give_way_to_newcomers_after_those_that_ask_nothing() {
    let config = Config {
        max_connections: 2,
        ..Config::default()
    };
    let (_dir, broker) = broker(config);
    broker.shared.log.create_topic("bob").unwrap();
    let mut waiting = connect(&broker);
    waiting.write_all(&fetch(0, i32::MAX, 1, 0, 1000)).unwrap();
    wait_for_connection(&broker, "it does not wait", |c| {
        matches!(*lock(&c.activity), Activity::Waiting(_))
    });
    let silent = connect(&broker);
    let mut waiting_too = connect(&broker);
    assert!(is_closed(&silent));
    waiting_too
        .write_all(&fetch(0, i32::MAX, 1, 0, 1000))
        .unwrap();
    wait_until("the second does not wait", || {
        let connections = lock(&broker.shared.connections);
        let all = connections.values().map(|c| lock(&c.connection.activity));
        let waiting = all.filter(|it| matches!(**it, Activity::Waiting(_)));
        waiting.count() == 2
    });
    assert_served(&broker);
    assert!(is_closed(&waiting));
    let bob = broker.shared.log.topic("bob").unwrap();
    bob.append(&mut encode(None, None, Some(b"now"))).unwrap();
    assert_eq!(fetched(0, response(&waiting_too).unwrap()).1, 1);
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
        // More than the request.
        &raw_request(METADATA, 0, &[0; 5]),
        // More names than there can be topics.
        &raw_request(
            METADATA,
            0,
            &[&4001i32.to_be_bytes()[..], &[0; 8002]].concat(),
        ),
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
