//! Clusters with settings that surprise people, each for one test.

#[cfg(feature = "librdkafka")]
use std::fs;
use std::fs::OpenOptions;
use std::path::Path;

use kafka_chat::wire::METADATA;
use tempfile::TempDir;

#[cfg(feature = "librdkafka")]
use super::sorted_log;
use super::{run, script};
#[cfg(feature = "librdkafka")]
use crate::faults::full::leader_of_three;
use crate::idle::counting;
use crate::presence;
#[cfg(feature = "librdkafka")]
use crate::support::PATIENCE;
use crate::support::{Kafka, Program, find_file, free_port, setting, user};
#[cfg(feature = "librdkafka")]
use crate::tty::CTRL_D;

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

    /// Creates topics.
    fn create(&self, topics: &[&str]) {
        for topic in topics {
            self.run(&["topic", topic]);
        }
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

/// How many requests for metadata there may be while a program waits for a missing topic, which is ten seconds on any
/// machine. Where a broker creates topics, each is a line in its log.
const MOST_QUESTIONS: u64 = 60;

#[test]
#[ignore = "needs a real Kafka"]
fn a_missing_topic_that_the_broker_does_not_create_is_named_with_the_command_that_creates_it() {
    let cluster = Cluster::start(&["--no-auto-create"]);
    let on = &cluster.kafka;
    let (me, peer) = (user("alice"), user("bob"));
    // Each waits for a while, as the topic may be about to be created: all at the same time.
    let (proxy, by_proxy) = counting(on);
    let patient = by_proxy.program("subscriber", &[&peer]).start();
    let [publisher, subscriber] = both(on, &peer).map(Program::start);
    let chat = on.program("chat", &[&me, &peer]).start();
    for (program, topic) in [(publisher, &peer), (subscriber, &peer), (chat, &me)] {
        let create = format!("--bootstrap-server {} --create", on.servers());
        let ended = program.wait().code(1);
        ended.says(&["kafka-topics.sh", &create, &format!("--topic {topic}")]);
    }
    patient.wait().code(1);
    let requests = proxy.requests();
    let asked = requests.iter().filter(|((_, api), _)| *api == METADATA);
    let asked: u64 = asked.map(|(_, count)| count).sum();
    assert!(asked <= MOST_QUESTIONS, "{requests:?}");

    cluster.create(&[&me, &peer]);
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
    cluster.create(&[&me, &peer]);
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
    assert_eq!(on.log(&peer), "three\nfour\nfive\n");
    reader.signal("INT");
    let ended = reader.wait().prints("one\ntwo\nthree\nfour\nfive\n");
    assert_eq!(ended.stderr.matches(told).count(), 1, "{}", ended.report());
    bob.keys(CTRL_D);
    bob.ends_with(0).has_shown_times(told, 1);
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn lines_for_a_partition_that_is_gone_are_written_to_another() {
    let cluster = Cluster::start(&["--no-auto-create"]);
    let on = &cluster.kafka;
    let peer = user("bob");
    cluster.run(&["topic", &peer, "2"]);
    // Her lines are in partition 1, which the new topic does not have.
    let mut publisher = on.program("publisher", &["alice", &peer]).start();
    publisher.write("one\n");
    on.first_lines(&peer, 1);
    cluster.run(&["delete", &peer]);
    publisher.write("two\n");
    cluster.run(&["recreate", &peer]);
    publisher.write("three\n");
    publisher.close();
    publisher.wait().code(0);
    // The client may have sent the later line to the new partition before it gave back the other.
    let log = on.log(&peer);
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["three", "two"], "{log:?}");
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

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka and root"]
fn a_broker_whose_disk_is_full_or_read_only_loses_no_line_and_programs_go_on_once_it_is_back() {
    let cluster = Cluster::start(&["--disks", "64"]);
    let on = &cluster.kafka;
    let (me, peer) = (user("alice"), user("bob"));
    let mut publisher = on.program("publisher", &[&me, &peer]).start();
    publisher.write("first\n");
    on.first_lines(&peer, 1);
    let reader = on.reader(&peer);
    let bob = on.chat(&peer, &me);
    let mut expected = "first\n".to_string();
    for (times, state) in (1..).zip(["full", "read-only"]) {
        let [before, during] = ["before", "while"].map(|when| format!("{when} it is {state}"));
        publisher.write(format!("{before}\n"));
        reader.wait_for(&before);
        bob.wait_for(&format!("{me}: {before}"));
        cluster.run(&["disk", state, "1"]);
        // Kafka ends a broker that has no folder left to write to.
        let count = |bytes: &[u8]| String::from_utf8_lossy(bytes).matches(" lost (").count();
        for program in [&publisher, &reader] {
            let is_told = program.stderr.wait(PATIENCE, |bytes| count(bytes) >= times);
            assert!(is_told, "{}", program.report());
        }
        publisher.write(format!("{during}\n"));
        cluster.run(&["disk", "usable", "1"]);
        cluster.run(&["start-node", "1"]);
        reader.wait_for(&during);
        bob.wait_for(&format!("{me}: {during}"));
        expected += &format!("{before}\n{during}\n");
    }
    publisher.close();
    publisher.wait().code(0).says(&[" is back"]);
    assert_eq!(String::from_utf8_lossy(&reader.stdout.bytes()), expected);
    assert_eq!(on.log(&peer), expected);
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka and root"]
fn of_three_brokers_another_one_leads_when_the_leaders_disk_is_full() {
    let cluster = Cluster::start(&["3", "--disks", "64"]);
    let on = &cluster.kafka;
    let (me, peer) = (user("alice"), user("bob"));
    cluster.run(&["topic", &peer]);
    let mut publisher = on.program("publisher", &[&me, &peer]).start();
    let reader = on.reader(&peer);
    publisher.write("one\n");
    reader.wait_for("one\n");
    let leader = leader_of_three(&on.servers(), &peer);
    cluster.run(&["disk", "full", &leader]);
    // Kafka notices it at the next record that does not fit.
    let large = "x".repeat(10_000);
    for line in ["two", &large, "three"] {
        publisher.write(format!("{line}\n"));
        reader.wait_for(&format!("{line}\n"));
    }
    cluster.run(&["disk", "usable", &leader]);
    cluster.run(&["start-node", &leader]);
    leader_of_three(&on.servers(), &peer);
    publisher.write("four\n");
    publisher.close();
    publisher.wait().code(0);
    let expected = format!("one\ntwo\n{large}\nthree\nfour\n");
    reader.wait_for("four\n");
    assert_eq!(String::from_utf8_lossy(&reader.stdout.bytes()), expected);
    assert_eq!(on.log(&peer), expected);
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn a_lost_quorum_is_told_while_lines_wait_and_they_arrive_once_it_is_back() {
    let cluster = Cluster::start(&["3"]);
    let on = &cluster.kafka;
    let (me, peer) = (user("alice"), user("bob"));
    cluster.create(&[&me, &peer]);
    let mut publisher = on.program("publisher", &[&user("piped"), &peer]).start();
    let chat = on.chat(&me, &peer);
    let reader = on.reader(&peer);
    let waiting = match setting("KAFKA_CHAT_TEST_VERSION").starts_with("2.7") {
        // ZooKeeper is still there, and another leader with fewer replicas.
        true => "lines are not acknowledged yet: ",
        false => "lines are not acknowledged yet: no connection to ",
    };
    for (n, keeps_leader) in [(1, true), (2, false)] {
        let before = format!("before {n}");
        publisher.write(format!("{before}\n"));
        reader.wait_for(&before);
        let leader = leader_of_three(&on.servers(), &peer);
        let lost = |node: &&str| (*node == leader) != keeps_leader;
        let mut lost: Vec<_> = ["1", "2", "3"].into_iter().filter(lost).collect();
        if !keeps_leader {
            lost.push(if leader == "1" { "2" } else { "1" });
        }
        for node in &lost {
            cluster.run(&["signal", "KILL", node]);
        }
        publisher.write(format!("piped {n}\n"));
        chat.line(&format!("typed {n}"));
        let told = |text: &str| text.matches(waiting).count() == n;
        let by_publisher = |bytes: &[u8]| told(&String::from_utf8_lossy(bytes));
        let is_told = publisher.stderr.wait(PATIENCE, by_publisher);
        assert!(is_told, "{}", publisher.report());
        chat.wait("that lines wait", |screen| told(&screen.contents()));
        for node in &lost {
            cluster.run(&["start-node", node]);
        }
        for line in ["piped", "typed"] {
            reader.wait_for(&format!("{line} {n}\n"));
        }
    }
    publisher.wait_for_notice("lines are acknowledged again");
    publisher.close();
    publisher.wait().code(0);
    chat.keys(CTRL_D);
    chat.ends_with(0);
    let expected = [
        "before 1", "before 2", "piped 1", "piped 2", "typed 1", "typed 2",
    ];
    assert_eq!(sorted_log(on, &peer), expected);
}

/// A program where `localhost` is the IPv6 loopback alone.
#[cfg(feature = "librdkafka")]
fn where_localhost_is_ipv6(hosts: &Path, program: Program) -> Program {
    let command = program.into_command();
    let script = r#"mount --bind "$0" /etc/hosts; exec "$@""#;
    Program::other("unshare", &["-rm", "sh", "-euc", script])
        .arg(hosts)
        .arg(command.get_program())
        .args(command.get_args())
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn a_broker_that_is_localhost_on_the_ipv6_loopback_alone_is_written_to_and_read() {
    let cluster = Cluster::start(&["--ipv6"]);
    let servers = cluster.kafka.servers();
    let port = servers.strip_prefix("[::1]:").unwrap();
    let on = Kafka::Real(format!("localhost:{port}"));
    let (me, peer) = (user("alice"), user("bob"));
    let hosts = cluster.dir.path().join("hosts");
    fs::write(&hosts, "::1 localhost\n").unwrap();
    let start = |name: &str, arguments: &[&str]| {
        where_localhost_is_ipv6(&hosts, on.program(name, arguments)).start()
    };
    let mut publisher = start("publisher", &[&me, &peer]);
    publisher.write("one\n");
    publisher.close();
    publisher.wait().code(0);
    let subscriber = start("subscriber", &[&peer, "--from", "earliest", "-e"]);
    subscriber.wait().code(0).prints("one\n");
    let mut bob = start("chat", &[&peer, &me]);
    bob.wait_for("one\n");
    bob.write("two\n");
    bob.close();
    bob.wait().code(0);
    let subscriber = start("subscriber", &[&me, "--from", "earliest", "-e"]);
    subscriber.wait().code(0).prints("two\n");
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn a_broker_that_pauses_is_lost_once_and_back_once() {
    let cluster = Cluster::start(&[]);
    let on = &cluster.kafka;
    let (me, peer) = (user("alice"), user("bob"));
    let reader = on.reader(&me);
    let alice = on.chat(&me, &peer);
    on.send(&peer, &me, "before\n");
    reader.wait_for("before\n");
    alice.wait_for(&format!("{peer}: before"));
    cluster.run(&["signal", "STOP", "1"]);
    reader.wait_for_notice(" lost (");
    alice.wait_for(" lost (");
    cluster.run(&["signal", "CONT", "1"]);
    reader.wait_for_notice(" is back");
    alice.wait_for(" is back");
    on.send(&peer, &me, "after\n");
    reader.wait_for("after\n");
    alice.wait_for(&format!("{peer}: after"));
    alice.keys(CTRL_D);
    let alice = alice.ends_with(0);
    reader.signal("INT");
    let ended = reader.wait().prints("before\nafter\n");
    for notice in [" lost (", " is back"] {
        alice.has_shown_times(notice, 1);
        let times = ended.stderr.matches(notice).count();
        assert_eq!(times, 1, "{notice}: {}", ended.report());
    }
}
