//! What other clients write into a topic, and what operators do to it.

use super::cluster;
use super::matrix::kcat;
#[cfg(feature = "librdkafka")]
use crate::support::setting;
use crate::support::{Kafka, Program, user};
#[cfg(feature = "librdkafka")]
use crate::tty::CTRL_D;

#[test]
#[ignore = "needs a real Kafka"]
fn records_of_every_compression_are_read() {
    let on = Kafka::real();
    let topic = user("bob");
    cluster(&["topic", &topic]);
    let mut expected = Vec::new();
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let lines: String = (0..50).map(|n| format!("{codec} {n}\n")).collect();
        let kcat = kcat(&on, &topic, &["-P", "-z", codec]);
        kcat.input(lines.clone()).run().code(0);
        expected.extend(lines.bytes());
    }
    assert_eq!(on.log_bytes(&topic, &[]), expected);

    cluster(&["configure", &topic, "compression.type=zstd"]);
    on.send("alice", &topic, "ours, in zstd\n");
    expected.extend(b"ours, in zstd\n");
    assert_eq!(on.log_bytes(&topic, &[]), expected);
}

#[test]
#[ignore = "needs a real Kafka"]
fn partitions_that_are_added_are_read() {
    let on = Kafka::real();
    let topic = user("bob");
    cluster(&["topic", &topic]);
    on.send("alice", &topic, "one\n");
    let reader = on.reader(&topic);
    reader.wait_for("one\n");
    cluster(&["partitions", &topic, "3"]);
    for partition in ["1", "2"] {
        let line = format!("in {partition}\n");
        let kcat = kcat(&on, &topic, &["-P", "-p", partition]);
        kcat.input(line.clone()).run().code(0);
        reader.wait_for(&line);
    }
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn a_record_without_a_value_is_not_shown() {
    let on = Kafka::real();
    let topic = user("bob");
    cluster(&["topic", &topic]);
    // With -Z, kcat sends an empty value as none.
    let kcat = kcat(&on, &topic, &["-P", "-Z", "-K", ":"]);
    kcat.input("alice:one\nalice:\nalice:two\n").run().code(0);
    on.send("alice", &topic, "\n");
    assert_eq!(on.log_bytes(&topic, &[]), b"one\ntwo\n\n");
}

#[test]
#[ignore = "needs a real Kafka"]
fn a_chat_whose_group_another_program_consumes_with_says_so() {
    let on = Kafka::real();
    let (me, peer) = (user("alice"), user("bob"));
    on.send(&peer, &me, "one\n");
    let group = format!("chat:{me}:{peer}");
    let member = Program::other("kcat", &["-b", &on.servers(), "-G", &group, &me]).start();
    member.wait_for_notice("rebalanced");
    let chat = on.program("chat", &[&me, &peer]).start();
    chat.wait_for_notice("another program consumes with that group");
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn lines_that_wait_for_replicas_are_reported_until_they_are_acknowledged() {
    let on = Kafka::real();
    let (me, peer) = (user("alice"), user("bob"));
    for topic in [&me, &peer] {
        cluster(&["topic", topic]);
    }
    let mut publisher = on.program("publisher", &[&me, &peer]).start();
    publisher.write("one\n");
    on.first_lines(&peer, 1);
    let chat = on.chat(&me, &peer);
    // More than there are brokers, and set while both are open.
    cluster(&["configure", &peer, "min.insync.replicas=4"]);
    publisher.write("two\n");
    chat.line("three");
    // A newer Kafka wants no more than there can be; there, a test with three brokers shows it.
    if setting("KAFKA_CHAT_TEST_VERSION").starts_with('2') {
        publisher.wait_for_notice("lines are not acknowledged yet: too few replicas");
        chat.wait_for("lines are not acknowledged yet: too few replicas");
        cluster(&["configure", &peer, "min.insync.replicas=1"]);
        publisher.wait_for_notice("lines are acknowledged again");
        chat.wait_for("lines are acknowledged again");
    }
    publisher.close();
    publisher.wait().code(0);
    chat.keys(CTRL_D);
    chat.ends_with(0);
    let mut log: Vec<String> = on.log(&peer).lines().map(String::from).collect();
    log.sort();
    assert_eq!(log, ["one", "three", "two"]);
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn writers_to_a_compacted_topic_are_warned_once() {
    let on = Kafka::real();
    let (me, peer) = (user("alice"), user("bob"));
    for topic in [&me, &peer] {
        cluster(&["topic", topic]);
    }
    cluster(&["configure", &peer, "cleanup.policy=compact"]);
    let mut publisher = on.program("publisher", &[&me, &peer]).start();
    let chat = on.chat(&me, &peer);
    publisher.wait_for_notice(&format!("topic {peer} is compacted"));
    chat.wait_for(&format!("topic {peer} is compacted"));
    publisher.write("one\n");
    publisher.close();
    publisher.wait().code(0);
    chat.keys(CTRL_D);
    chat.ends_with(0).has_shown_times("is compacted", 1);
}
