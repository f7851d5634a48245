//! Clusters with settings that surprise people, each for one test.

use std::fs::OpenOptions;
use std::path::Path;

use tempfile::TempDir;

use super::{run, script};
use crate::presence;
use crate::support::{Kafka, Program, find_file, free_port, setting, user};

/// A cluster of the test's own, of this run's version; it ends with the test.
struct Cluster {
    dir: TempDir,
    kafka: Kafka,
}

impl Cluster {
    fn start(options: &[&str]) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let version = setting("KAFKA_CHAT_TEST_VERSION");
        let arguments = [&["start", &version], options].concat();
        let started = run(script(&arguments, dir.path()));
        let servers = String::from_utf8(started.stdout).unwrap();
        let kafka = Kafka::Real(servers.trim().to_string());
        Cluster { dir, kafka }
    }

    fn run(&self, arguments: &[&str]) {
        run(script(arguments, self.dir.path()));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What this cannot stop, scripts/test-kafka stops.
        let _ = script(&["stop"], self.dir.path()).into_command().status();
    }
}

/// The two programs that use one topic.
fn both(on: &Kafka, topic: &str) -> [Program; 2] {
    let publisher = on.program("publisher", &["alice", topic]);
    [
        publisher.input("hello\n"),
        on.program("subscriber", &[topic]),
    ]
}

#[test]
#[ignore = "needs a real Kafka"]
fn an_advertised_address_without_a_listener_is_named_beside_the_one_that_was_reached() {
    let nowhere = format!("127.0.0.1:{}", free_port());
    let cluster = Cluster::start(&["--advertise", &nowhere]);
    let servers = cluster.kafka.servers();
    for program in both(&cluster.kafka, "bob") {
        let ended = program.run().code(1);
        ended.says(&[&servers, &nowhere, "advertised.listeners"]);
    }
}

#[test]
#[ignore = "needs a real Kafka"]
fn a_missing_topic_that_the_broker_does_not_create_is_named_with_the_command_that_creates_it() {
    let cluster = Cluster::start(&["--no-auto-create"]);
    let on = &cluster.kafka;
    let (me, peer) = (user("alice"), user("bob"));
    // Each waits for a while, as the topic may be about to be created: all at the same time.
    let [publisher, subscriber] = both(on, &peer).map(Program::start);
    let chat = on.program("chat", &[&me, &peer]).start();
    for (program, topic) in [(publisher, &peer), (subscriber, &peer), (chat, &me)] {
        let create = format!("--bootstrap-server {} --create", on.servers());
        let ended = program.wait().code(1);
        ended.says(&["kafka-topics.sh", &create, &format!("--topic {topic}")]);
    }

    for topic in [&me, &peer] {
        cluster.run(&["topic", topic]);
    }
    on.send(&me, &peer, "one\n");
    let mut bob = on.program("chat", &[&peer, &me]).start();
    bob.wait_for("one\n");
    bob.write("two\n");
    bob.close();
    bob.wait().code(0);
    let log = on.log_bytes(&me, &["-s"]);
    assert_eq!(String::from_utf8_lossy(&log), format!("{peer}: two\n"));
}

#[test]
#[ignore = "needs a real Kafka"]
fn a_subscriber_goes_on_after_a_log_lost_its_newest_records_and_prints_nothing_twice() {
    let cluster = Cluster::start(&[]);
    let topic = user("bob");
    for line in ["one\n", "two\n", "three\n"] {
        cluster.kafka.send("alice", &topic, line);
    }
    let reader = cluster.kafka.reader(&topic);
    reader.wait_for("three\n");
    cluster.run(&["signal", "KILL", "1"]);
    // A power cut can tear the last batch, which Kafka then cuts off when it starts.
    let segment = format!("{topic}-0/00000000000000000000.log");
    let segment = find_file(cluster.dir.path(), &|path: &Path| path.ends_with(&segment)).unwrap();
    let file = OpenOptions::new().write(true).open(segment).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - 3).unwrap();
    cluster.run(&["start-node", "1"]);
    reader.wait_for_notice("the log no longer has offset 3");
    cluster.kafka.send("alice", &topic, "four\n");
    reader.wait_for("four\n");
    assert_eq!(reader.stdout.bytes(), b"one\ntwo\nthree\nfour\n");
}

/// The epoch of the topic's leader has grown before, so that the one of the new topic is older.
#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn a_topic_that_is_created_again_is_read_and_written_by_programs_that_stay_open() {
    let cluster = Cluster::start(&["--no-auto-create"]);
    let on = &cluster.kafka;
    let (me, peer) = (user("alice"), user("bob"));
    for topic in [&me, &peer] {
        cluster.run(&["topic", topic]);
    }
    let reader = on.reader(&peer);
    let mut publisher = on.program("publisher", &[&me, &peer]).start();
    let bob = on.chat(&peer, &me);
    publisher.write("one\n");
    reader.wait_for("one\n");
    cluster.run(&["signal", "KILL", "1"]);
    reader.wait_for_notice(" lost (");
    cluster.run(&["start-node", "1"]);
    publisher.write("two\n");
    reader.wait_for("two\n");
    bob.wait_for(&format!("{me}: two"));

    cluster.run(&["recreate", &peer]);
    let is_old = setting("KAFKA_CHAT_TEST_VERSION").starts_with("2.7");
    let told = match is_old {
        // Its topics have no ids.
        true => "the log no longer has offset",
        false => "was deleted and created again",
    };
    publisher.write("three\n");
    reader.wait_for_notice(told);
    reader.wait_for("three\n");
    bob.wait_for("three");
    on.send(&me, &peer, "four\n");
    reader.wait_for("four\n");
    publisher.write("five\n");
    publisher.close();
    publisher.wait().code(0);
    reader.wait_for("five\n");
    bob.wait_for(&format!("{me}: five"));
    assert_eq!(reader.stdout.bytes(), b"one\ntwo\nthree\nfour\nfive\n");
    assert_eq!(on.log(&peer), "three\nfour\nfive\n");
}

#[test]
#[ignore = "needs a real Kafka"]
fn nobody_is_gone_because_the_broker_was_away() {
    let cluster = Cluster::start(&[]);
    presence::nobody_is_gone_because_the_broker_was_away(
        &cluster.kafka,
        || cluster.run(&["signal", "KILL", "1"]),
        || cluster.run(&["start-node", "1"]),
    );
}
