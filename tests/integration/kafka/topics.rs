//! What other clients write into a topic, and what operators do to it.

use super::cluster;
use super::matrix::kcat;
use crate::support::{Kafka, Program, user};

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
