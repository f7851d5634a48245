//! What `subscriber` tells of records that only a real Kafka takes: with headers, in transactions, in several partitions.

use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::Producer as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::matrix::kcat;
use crate::others;
use crate::reading::{self, flush, now, numbers, objects, producer, record, thirty_records, topic};
use crate::support::{Kafka, PATIENCE, poll_until, user};
use crate::tty::CTRL_D;

#[test]
#[ignore = "needs a real Kafka"]
fn headers_are_shown_and_names_that_are_no_utf_8_do_no_harm() {
    let on = Kafka::real();
    let topic = topic(&on, 1);
    kcat(&on, &topic, &["-P", "-H", "a=1", "-H", "a=x\ny", "-H"])
        .arg(OsStr::from_bytes(b"\xff\xfe=2"))
        .arg("-H")
        .arg(OsStr::from_bytes(b"b=\xff"))
        .args(["-H", "none"])
        .input("one\n")
        .run()
        .code(0);
    on.send("alice", &topic, "two\n");
    let expected = serde_json::json!([
        {"key": "a", "value": "1"},
        {"key": "a", "value": "x\ny"},
        {"key": null},
        {"key": "b", "value_base64": "/w=="},
        {"key": "none", "value": null},
    ]);
    let objects = objects(&on, &topic);
    assert_eq!(objects[0]["headers"], expected);
    assert!(objects[1].get("headers").is_none(), "{}", objects[1]);
    let arguments = [&topic, "--from", "earliest", "-e", "--json"];
    let ended = on.program("subscriber", &arguments).run().code(0);
    assert_eq!(ended.stderr, "", "{}", ended.report());
}

#[test]
#[ignore = "needs a real Kafka"]
fn reading_starts_at_a_time_in_every_partition() {
    for partitions in [1, 6] {
        reading::reading_starts_at_a_time(&Kafka::real(), partitions);
    }
}

#[test]
#[ignore = "needs a real Kafka"]
fn the_last_messages_are_those_of_all_partitions() {
    for partitions in [1, 6] {
        reading::the_last_messages_are_read(&Kafka::real(), partitions);
    }
}

#[test]
#[ignore = "needs a real Kafka"]
fn the_last_lines_are_found_with_any_client_and_compression() {
    let on = Kafka::real();
    for partitions in [1, 6] {
        let topic = topic(&on, partitions);
        let mut all = Vec::new();
        let lines =
            |writer: &str| -> Vec<String> { (0..20).map(|n| format!("{writer} {n}")).collect() };
        for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
            let lines = lines(codec);
            let kcat = kcat(&on, &topic, &["-P", "-z", codec]);
            kcat.input(lines.join("\n")).run().code(0);
            all.extend(lines);
        }
        let python = lines("kafka-python");
        let write = others::python("write.py", &[&topic], &on);
        write.input(python.join("\n")).run().code(0);
        all.extend(python);
        let ours = lines("ours");
        on.send("alice", &topic, ours.join("\n"));
        all.extend(ours);
        for (option, count) in [("--last=1", 1), ("--last=50", 50), ("--from=1h", all.len())] {
            let subscriber = on.program("subscriber", &[&topic, "-e", option]);
            let printed = String::from_utf8(subscriber.run().code(0).stdout).unwrap();
            let mut printed: Vec<&str> = printed.lines().collect();
            let mut expected: Vec<&str> = all.iter().map(String::as_str).collect();
            // Lines of one batch may be of one millisecond: only one partition has an order for them.
            match partitions {
                1 => expected.drain(..all.len() - count),
                _ if count == all.len() => expected.drain(..0),
                _ => {
                    assert_eq!(printed.len(), count, "{printed:?}");
                    continue;
                }
            };
            printed.sort_unstable();
            expected.sort_unstable();
            assert_eq!(printed, expected, "{option}");
        }
    }
}

/// Writes each value in a transaction of its own to the first partition of a topic.
fn in_transactions(on: &Kafka, topic: &str, values: &[&str], is_committed: bool) {
    let id = user("transactions");
    let writer = producer(on, &[("transactional.id", &id)]);
    writer.init_transactions(PATIENCE).unwrap();
    for (value, n) in values.iter().zip(0..) {
        writer.begin_transaction().unwrap();
        let record = record(topic, now() + n, value);
        writer.send(record).map_err(|(error, _)| error).unwrap();
        flush(&writer);
        match is_committed {
            true => writer.commit_transaction(PATIENCE).unwrap(),
            false => writer.abort_transaction(PATIENCE).unwrap(),
        }
    }
}

#[test]
#[ignore = "needs a real Kafka"]
fn aborted_transactions_are_not_shown_and_their_offsets_are_stepped_over() {
    let on = Kafka::real();
    for partitions in [1, 6] {
        let topic = topic(&on, partitions);
        let aborted = ["aborted"; 12];
        in_transactions(&on, &topic, &aborted, false);
        let last = |count| {
            let subscriber = on.program("subscriber", &[&topic, "--last", count, "-e"]);
            String::from_utf8(subscriber.run().code(0).stdout).unwrap()
        };
        assert_eq!(last("3"), "");
        in_transactions(&on, &topic, &["one", "two", "three"], true);
        // The markers that commit are written a moment after the producer's request.
        assert_eq!(on.first_lines(&topic, 3), "one\ntwo\nthree\n");
        assert_eq!(last("2"), "two\nthree\n");
        in_transactions(&on, &topic, &aborted, false);
        assert_eq!(last("0"), "");
        assert_eq!(last("1"), "three\n");
        assert_eq!(last("2"), "two\nthree\n");
        assert_eq!(last("100"), "one\ntwo\nthree\n");
        assert_eq!(on.log(&topic), "one\ntwo\nthree\n");
        let json = objects(&on, &topic);
        assert_eq!(json.len(), 3);
        assert_eq!(json[0]["offset"], 24);
    }
}

/// Deletes the records of partitions before these offsets.
fn delete_records(on: &Kafka, topic: &str, before: &[(i32, Offset)]) {
    let mut list = TopicPartitionList::new();
    for &(partition, offset) in before {
        list.add_partition_offset(topic, partition, offset).unwrap();
    }
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", on.servers());
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let options = AdminOptions::new();
    let mut deletion = pin!(admin.delete_records(&list, &options));
    let is_done = || match deletion
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(result) => Some(result.unwrap()),
        Poll::Pending => None,
    };
    let deleted = poll_until(PATIENCE, || "deleted".into(), is_done);
    for partition in deleted.elements() {
        partition.error().unwrap();
    }
}

#[test]
#[ignore = "needs a real Kafka"]
fn a_chat_says_how_many_lines_were_deleted_before_it_read_them() {
    let on = Kafka::real();
    let (me, peer) = (user("alice"), topic(&on, 1));
    on.send(&me, &peer, "1\n2\n");
    let bob = on.chat(&peer, &me);
    bob.wait_for(&format!("{me}: 2"));
    bob.keys(CTRL_D);
    bob.ends_with(0);
    on.send(&me, &peer, "3\n4\n5\n6\n7\n");
    delete_records(&on, &peer, &[(0, Offset::Offset(6))]);
    let bob = on.chat(&peer, &me);
    bob.wait_for("up to 4 lines are gone from the topic (offsets 2 to 5)");
    bob.wait_for(&format!("{me}: 7"));
    // With another peer, this is a first read.
    let other = on.chat(&peer, &user("carol"));
    other.wait_for("up to 6 lines are gone from the topic (offsets 0 to 5)");
}

#[test]
#[ignore = "needs a real Kafka"]
fn a_reader_says_that_lines_were_deleted_before_it_read_them() {
    let on = Kafka::real();
    let topic = topic(&on, 1);
    let reader = on.reader(&topic);
    on.send("alice", &topic, "read\n");
    reader.wait_for("read\n");
    reader.signal("STOP");
    // A fetch may be under way, whose answer has the first of these.
    for line in ["a\n", "b\n", "c\n"] {
        on.send("alice", &topic, line);
    }
    delete_records(&on, &topic, &[(0, Offset::End)]);
    on.send("alice", &topic, "last\n");
    reader.signal("CONT");
    reader.wait_for("last\n");
    reader.wait_for_notice(" lines are gone from the topic (offsets ");
    reader.wait_for_notice(" to 3): deleted before they were read");
}

#[test]
#[ignore = "needs a real Kafka"]
fn nobody_says_that_lines_are_gone_where_the_offsets_are_markers() {
    let on = Kafka::real();
    let topic = topic(&on, 1);
    in_transactions(&on, &topic, &["no"; 3], false);
    in_transactions(&on, &topic, &["yes"; 3], true);
    on.first_lines(&topic, 3);
    let arguments = [&topic, "--from", "earliest", "-e"];
    let ended = on.program("subscriber", &arguments).run().code(0);
    ended.does_not_say("gone").prints("yes\n".repeat(3));
}

#[test]
#[ignore = "needs a real Kafka"]
fn a_log_that_lost_its_oldest_records_is_read_from_what_is_left() {
    let on = Kafka::real();
    for partitions in [1, 6] {
        let topic = topic(&on, partitions);
        thirty_records(&on, &topic, partitions);
        delete_records(&on, &topic, &[(0, Offset::Offset(15))]);
        let left: Vec<u32> = (15..30).collect();
        assert_eq!(numbers(&on, &topic, &["--from", "3d"]), left);
        assert_eq!(numbers(&on, &topic, &["--last", "100"]), left);
        assert_eq!(numbers(&on, &topic, &["--last", "14"]), left[1..]);
        let all: Vec<_> = (0..partitions).map(|it| (it, Offset::End)).collect();
        delete_records(&on, &topic, &all);
        assert!(numbers(&on, &topic, &["--from", "3d"]).is_empty());
        assert!(numbers(&on, &topic, &["--last", "100"]).is_empty());
        on.send("alice", &topic, "30\n");
        assert_eq!(numbers(&on, &topic, &["--last", "100"]), [30]);
    }
}
