//! Each client reads the lines of each other: ours, kcat, and kafka-python.

#[cfg(feature = "librdkafka")]
use serde_json::Value;

use super::new_topic;
#[cfg(feature = "librdkafka")]
use super::{cluster, run, script};
use crate::others;
#[cfg(feature = "librdkafka")]
use crate::reading::{json_lines, objects};
#[cfg(feature = "librdkafka")]
use crate::support::setting;
use crate::support::{Kafka, Program, user};

/// A client that writes or reads.
#[derive(Debug, Clone, Copy)]
enum Client {
    Ours,
    Kcat,
    KafkaPython,
}

impl Client {
    const ALL: [Client; 3] = [Client::Ours, Client::Kcat, Client::KafkaPython];

    /// Writes lines to a topic, all with one key.
    fn write(self, on: &Kafka, topic: &str, key: &str, lines: &[u8]) {
        match self {
            Client::Ours => on.program("publisher", &[key, topic]).input(lines),
            // With one key for all lines (-k) kcat drops the empty ones, so each has its own key. And
            // without idempotence a retry changes their order.
            Client::Kcat => kcat(
                on,
                topic,
                &["-P", "-K", "\t", "-X", "enable.idempotence=true"],
            )
            .input(with_key(lines, key, "\t")),
            Client::KafkaPython => others::python("write.py", &[topic, key], on).input(lines),
        }
        .run()
        .code(0);
    }

    /// A program that prints the first `count` lines of a topic, each as `key: line`.
    fn read(self, on: &Kafka, topic: &str, count: usize) -> Program {
        let count = count.to_string();
        match self {
            Client::Ours => {
                let arguments = [topic, "--from", "earliest", "-s", "-n", &count];
                on.program("subscriber", &arguments)
            }
            Client::Kcat => {
                let format = ["-C", "-q", "-f", "%k: %s\n"];
                kcat(on, topic, &format).args(["-o", "beginning", "-c", &count])
            }
            Client::KafkaPython => others::python("read.py", &[topic, &count, "--keys"], on),
        }
    }
}

pub(super) fn kcat(on: &Kafka, topic: &str, arguments: &[&str]) -> Program {
    Program::other("kcat", &["-b", &on.servers(), "-t", topic]).args(arguments)
}

/// The lines, each after the key.
fn with_key(lines: &[u8], key: &str, separator: &str) -> Vec<u8> {
    let mut all = Vec::with_capacity(lines.len());
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        all.extend_from_slice(key.as_bytes());
        all.extend_from_slice(separator.as_bytes());
        all.extend_from_slice(line);
    }
    all
}

/// For every pair of clients: the lines come out whole, in order, and with the writer's key.
fn each_client_reads_the_lines_of_each(lines: &[u8]) {
    let on = Kafka::real();
    let count = lines.iter().filter(|&&byte| byte == b'\n').count();
    for writer in Client::ALL {
        // A failure shows what the reader printed, and so the writer.
        let me = user(&format!("{writer:?}"));
        // kafka-python does not wait until all brokers know a new topic.
        let peer = new_topic("bob");
        writer.write(&on, &peer, &me, lines);
        let expected = with_key(lines, &me, ": ");
        for reader in Client::ALL {
            reader
                .read(&on, &peer, count)
                .run()
                .code(0)
                .prints(&expected);
        }
    }
}

#[test]
#[ignore = "needs a real Kafka"]
fn each_client_reads_the_text_the_empty_lines_and_the_bytes_of_each_other() {
    let mut lines = Vec::new();
    lines.extend(b"first\n\n\n with\ttabs : and spaces \n");
    lines.extend("xin chào, Việt Nam\n你好，世界\nпривет\nمرحبا\nनमस्ते\n🎉🇻🇳\n".bytes());
    lines.extend(b"\xff\xfe\x80 no UTF-8\nnul\0in the middle\n\x1b[2J\n\nlast\n");
    each_client_reads_the_lines_of_each(&lines);
}

#[test]
#[ignore = "needs a real Kafka"]
fn each_client_reads_the_lines_of_900_kb_of_each_other() {
    let mut lines = Vec::new();
    for byte in b'a'..=b'd' {
        lines.extend(vec![byte; 900_000]);
        lines.push(b'\n');
    }
    each_client_reads_the_lines_of_each(&lines);
}

#[test]
#[ignore = "needs a real Kafka"]
fn each_client_reads_ten_thousand_piped_lines_of_each_other_in_order() {
    let lines: String = (1..=10_000).map(|n| format!("line {n}\n")).collect();
    each_client_reads_the_lines_of_each(lines.as_bytes());
}

#[cfg(not(feature = "librdkafka"))]
#[test]
#[ignore = "needs a real Kafka"]
fn compressed_records_are_named_and_left_out() {
    let on = Kafka::real();
    let (me, peer) = (user("alice"), new_topic("bob"));
    let mut read = String::new();
    for codec in ["none", "gzip", "none", "snappy", "lz4", "zstd", "none"] {
        // So long that each of them is compressed, also if it is alone in its batch.
        let rest = "x".repeat(500);
        let lines: String = (1..=5).map(|n| format!("{rest}{codec} {n}\n")).collect();
        let write = ["-P", "-k", &me, "-z", codec];
        kcat(&on, &peer, &write).input(lines.clone()).run().code(0);
        if codec == "none" {
            read += &lines;
        }
    }
    let said = [
        format!(
            "5 messages cannot be read (topic {peer}, partition 0, offsets 5 to 9): compressed"
        ),
        format!(
            "15 messages cannot be read (topic {peer}, partition 0, offsets 15 to 29): compressed"
        ),
    ];
    let arguments = [&peer, "--from", "earliest", "-e"];
    let reader = on.program("subscriber", &arguments).run().code(0);
    let notices = said.each_ref().map(String::as_str);
    reader.says(&notices).prints(read);
    let mut chat = on.program("chat", &[&peer, &me]).start();
    for notice in notices {
        chat.wait_for_notice(notice);
    }
    chat.wait_for("none 5\n");
    chat.close();
    chat.wait().code(0);
}

/// `tests/python/records.py` on one of the Pythons that `scripts/test-kafka` names.
#[cfg(feature = "librdkafka")]
fn records(on: &Kafka, library: &str, topic: &str, partitions: &str) -> Program {
    let arguments = [library, topic, partitions];
    match library {
        "kafka-python" => others::python("records.py", &arguments, on),
        _ => others::python_of(
            "KAFKA_CHAT_TEST_PYTHON_CONFLUENT",
            "records.py",
            &arguments,
            on,
        ),
    }
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn records_of_other_programs_are_read_byte_for_byte() {
    let on = Kafka::real();
    for (partitions, times) in [("1", "CreateTime"), ("6", "LogAppendTime")] {
        let topic = user("alice");
        cluster(&["topic", &topic, partitions]);
        cluster(&[
            "configure",
            &topic,
            &format!("message.timestamp.type={times}"),
        ]);
        for library in ["kafka-python", "confluent"] {
            records(&on, library, &topic, partitions).run().code(0);
        }
        for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
            let lines = format!("bob\tkcat, {codec}\n\tan empty key\n");
            let arguments = ["-P", "-K", "\t", "-z", codec, "-H", "trace=1"];
            kcat(&on, &topic, &arguments).input(lines).run().code(0);
            let line = format!("bob\tJava, {codec} {}\n", "x".repeat(300));
            let arguments = ["produce", &topic, codec];
            run(script(&arguments, setting("KAFKA_CHAT_TEST_DIR")).input(line));
        }

        let ended = records(&on, "read", &topic, partitions).run().code(0);
        let mut expected: Vec<Value> = json_lines(&ended.stdout);
        let place = |it: &Value| (it["partition"].as_i64(), it["offset"].as_i64());
        expected.sort_by_key(place);
        let mut read = objects(&on, &topic);
        read.iter_mut()
            .for_each(|it| drop(it.as_object_mut().unwrap().remove("time")));
        read.sort_by_key(place);
        assert_eq!(read, expected);
        // 8 records each, by kafka-python in two compressions, by confluent-kafka in five and in a transaction.
        let count = partitions.parse::<usize>().unwrap() * 8 * (2 + 5 + 1) + 5 * 3;
        assert_eq!(read.len(), count);

        let with_value = |it: &&Value| it.get("value") != Some(&Value::Null);
        let lines = expected.iter().filter(with_value).count();
        let plain = on.log_bytes(&topic, &[]);
        assert_eq!(plain.iter().filter(|&&byte| byte == b'\n').count(), lines);
        if partitions == "1" {
            let of_bob = expected
                .iter()
                .filter(|it| it["key"] == "bob")
                .filter(with_value);
            let lines = of_bob.map(|it| format!("{}\n", it["value"].as_str().unwrap()));
            let mut chat = on.program("chat", &[&topic, "bob"]).start();
            chat.wait_for(&lines.collect::<String>());
            chat.close();
            chat.wait().code(0);
        }
    }
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn an_open_transaction_is_waited_for_and_not_shown_if_it_is_aborted() {
    let on = Kafka::real();
    let topic = new_topic("bob");
    on.send("alice", &topic, "before\n");
    let mut transaction = records(&on, "open", &topic, "1").start();
    transaction.wait_for("open");
    on.send("alice", &topic, "after\n");
    let reader = on.reader(&topic);
    reader.wait_for("before\n");
    transaction.close();
    transaction.wait().code(0);
    reader.wait_for("after\n");
    assert_eq!(reader.stdout.bytes(), b"before\nafter\n");
}
