//! Clusters that are set up in ways that surprise people, each for one test.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::Ours;
use crate::support::{Kafka, PATIENCE, Program, free_port, setting, user};

/// How long a cluster may take to start: `tests/cluster` gives up by itself before that.
const START: Duration = Duration::from_secs(150);

/// A cluster of the test's own, of this run's version; it ends with the test.
struct Cluster {
    dir: TempDir,
    kafka: Kafka,
}

impl Cluster {
    fn start(options: &[&str]) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let version = setting("KAFKA_CHAT_TEST_VERSION");
        let started = script(&dir, &["start", &version])
            .args(options)
            .start()
            .wait_within(START)
            .code(0);
        let servers = String::from_utf8(started.stdout).unwrap();
        let kafka = Kafka::Real(servers.trim().to_string());
        Cluster { dir, kafka }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What can't be ended here, scripts/test-kafka ends.
        let _ = script(&self.dir, &["stop"]).into_command().status();
    }
}

fn script(dir: &TempDir, arguments: &[&str]) -> Program {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster");
    Program::other(script, arguments)
        .arg("--dir")
        .arg(dir.path())
}

/// Both programs that need nothing but a topic.
fn both(ours: Ours, on: &Kafka, topic: &str) -> [Program; 2] {
    [
        ours.program(on, "publisher", &["alice", topic])
            .input("hello\n"),
        ours.program(on, "subscriber", &[topic]),
    ]
}

#[test]
#[ignore = "needs a real Kafka"]
fn an_advertised_address_that_leads_nowhere_is_named_beside_the_one_that_was_reached() {
    let nowhere = format!("127.0.0.1:{}", free_port());
    let cluster = Cluster::start(&["--advertise", &nowhere]);
    for ours in Ours::all() {
        for program in both(ours, &cluster.kafka, "bob") {
            program.run().code(1).says(&[
                &cluster.kafka.servers(),
                &nowhere,
                "advertised.listeners",
            ]);
        }
    }
}

#[test]
#[ignore = "needs a real Kafka"]
fn where_topics_are_not_made_by_themselves_a_missing_one_is_named_and_how_to_make_it() {
    let cluster = Cluster::start(&["--no-auto-create"]);
    let on = &cluster.kafka;
    for ours in Ours::all() {
        let (me, peer) = (user("alice"), user("bob"));
        // They wait for a while whether the topic is just being made: all at once.
        let [publisher, subscriber] = both(ours, on, &peer).map(Program::start);
        let chat = ours.program(on, "chat", &[&me, &peer]).start();
        for (program, topic) in [(publisher, &peer), (subscriber, &peer), (chat, &me)] {
            let create = format!("--bootstrap-server {} --create", on.servers());
            program
                .wait()
                .code(1)
                .says(&["there", "kafka-topics.sh", &create])
                .says(&[&format!("--topic {topic}")]);
        }

        for topic in [&me, &peer] {
            script(&cluster.dir, &["topic", topic]).run().code(0);
        }
        ours.program(on, "publisher", &[&me, &peer])
            .input("one\n")
            .run()
            .code(0);
        let mut bob = ours.program(on, "chat", &[&peer, &me]).start();
        bob.wait_for("one\n");
        bob.write("two\n");
        bob.close();
        bob.wait_within(PATIENCE).code(0);
        ours.program(on, "subscriber", &[&me, "--from", "earliest", "-e", "-s"])
            .run()
            .code(0)
            .prints(format!("{peer}: two\n"));
    }
}

#[test]
#[ignore = "needs a real Kafka"]
fn a_log_that_lost_its_newest_records_is_gone_on_with_and_nothing_is_printed_twice() {
    let cluster = Cluster::start(&[]);
    for ours in Ours::all() {
        let topic = user("bob");
        let send = |line: &str| {
            let publisher = ours.program(&cluster.kafka, "publisher", &["alice", &topic]);
            publisher.input(line).run().code(0);
        };
        for line in ["one\n", "two\n", "three\n"] {
            send(line);
        }
        let reader = ours
            .program(
                &cluster.kafka,
                "subscriber",
                &[&topic, "--from", "earliest"],
            )
            .start();
        reader.wait_for("three\n");
        script(&cluster.dir, &["signal", "KILL", "1"]).run().code(0);
        // As a power cut may leave it: the last batch is torn, and cut off when Kafka starts.
        let segment = segment(cluster.dir.path(), &format!("{topic}-0")).unwrap();
        let length = fs::metadata(&segment).unwrap().len();
        let file = OpenOptions::new().write(true).open(&segment).unwrap();
        file.set_len(length - 3).unwrap();
        script(&cluster.dir, &["start-node", "1"])
            .start()
            .wait_within(START)
            .code(0);
        reader.wait_for_notice("the log no longer has offset 3");
        send("four\n");
        reader.wait_for("four\n");
        assert_eq!(
            String::from_utf8(reader.stdout.bytes()).unwrap(),
            "one\ntwo\nthree\nfour\n"
        );
    }
}

/// The first segment of a partition, somewhere in a folder.
fn segment(folder: &Path, partition: &str) -> Option<PathBuf> {
    let wanted = format!("{partition}/00000000000000000000.log");
    fs::read_dir(folder).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => segment(&path, partition),
            false => path.ends_with(&wanted).then_some(path),
        }
    })
}
