//! Each client reads the lines of each other: ours, kcat, and kafka-python.

#[cfg(feature = "librdkafka")]
use base64ct::{Base64, Encoding as _};
#[cfg(feature = "librdkafka")]
use kafka_chat::time::rfc_3339;
#[cfg(feature = "librdkafka")]
use serde_json::Value;

use super::new_topic;
#[cfg(feature = "librdkafka")]
use super::{cluster, run, script};
use crate::others;
#[cfg(feature = "librdkafka")]
use crate::reading::{json_lines, now};
use crate::support::{Kafka, Program, user};
#[cfg(feature = "librdkafka")]
use crate::support::{PATIENCE, contains, setting};

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
    // It would have no times to put them in order.
    let earlier = on.program("chat", &[&peer, &me, "--last", "3"]).run();
    let needs = "--last with a real Kafka needs a build with the feature librdkafka";
    earlier.code(2).says(&[needs]);
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

/// Where a record is.
#[cfg(feature = "librdkafka")]
fn place(record: &Value) -> (i64, i64) {
    let number = |field| i64::try_from(record[field].as_u64().unwrap()).unwrap();
    (number("partition"), number("offset"))
}

/// What `subscriber --json` prints with these options, but for the field `time`, sorted by place.
#[cfg(feature = "librdkafka")]
fn printed(on: &Kafka, topic: &str, options: &[&str]) -> Vec<Value> {
    let subscriber = on.program("subscriber", &[topic, "--json"]).args(options);
    let mut printed = json_lines(&subscriber.run().code(0).stdout);
    let without_time = |it: &mut Value| drop(it.as_object_mut().unwrap().remove("time"));
    printed.iter_mut().for_each(without_time);
    printed.sort_by_key(place);
    printed
}

/// The value of a record, unless it has none.
#[cfg(feature = "librdkafka")]
fn value_of(record: &Value) -> Option<Vec<u8>> {
    match (&record["value"], &record["value_base64"]) {
        (Value::String(text), _) => Some(text.clone().into_bytes()),
        (_, Value::String(encoded)) => Some(Base64::decode_vec(encoded).unwrap()),
        _ => None,
    }
}

#[cfg(feature = "librdkafka")]
fn sorted_lines(printed: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<_> = printed.split_inclusive(|&byte| byte == b'\n').collect();
    lines.sort_unstable();
    lines
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn records_of_other_programs_are_read_byte_for_byte() {
    let on = Kafka::real();
    for partitions in ["1", "6"] {
        for times in ["CreateTime", "LogAppendTime"] {
            let topic = user("alice");
            cluster(&["topic", &topic, partitions]);
            let type_of_times = format!("message.timestamp.type={times}");
            cluster(&["configure", &topic, &type_of_times]);
            write_as_others_do(&on, &topic, partitions);
            let ended = records(&on, "read", &topic, partitions).run().code(0);
            let mut expected = json_lines(&ended.stdout);
            expected.sort_by_key(place);
            // 8 records each, by both Python libraries in five compressions, and by one in a transaction.
            let count = partitions.parse::<usize>().unwrap() * 8 * (5 + 5 + 1) + 5 * 3;
            assert_eq!(expected.len(), count);
            let all = ["--from", "earliest", "-e"];
            assert_eq!(printed(&on, &topic, &all), expected);
            every_option_gives_its_records(&on, &topic, &expected, times);
            a_chat_shows_the_lines_of_bob(&on, &topic, &expected);
        }
    }
}

#[cfg(feature = "librdkafka")]
fn write_as_others_do(on: &Kafka, topic: &str, partitions: &str) {
    for library in ["kafka-python", "confluent"] {
        records(on, library, topic, partitions).run().code(0);
    }
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let lines = format!("bob\tkcat, {codec}\n\tan empty key\n");
        let arguments = ["-P", "-K", "\t", "-z", codec, "-H", "trace=1"];
        kcat(on, topic, &arguments).input(lines).run().code(0);
        let line = format!("bob\tJava, {codec} {}\n", "x".repeat(300));
        let arguments = ["produce", topic, codec];
        run(script(&arguments, setting("KAFKA_CHAT_TEST_DIR")).input(line));
    }
}

/// Starts, ends and formats, alone and together, against what another program has read.
#[cfg(feature = "librdkafka")]
fn every_option_gives_its_records(on: &Kafka, topic: &str, all: &[Value], times: &str) {
    let time = |record: &Value| record["timestamp"].as_i64().unwrap();
    let plainly = |options: &[&str]| {
        let subscriber = on.program("subscriber", &[topic]).args(options);
        subscriber.run().code(0).stdout
    };
    // Some records are of half an hour later, unless the broker has set the time.
    let past = all.iter().map(time).filter(|it| *it <= now());
    let last = past.max().unwrap();
    let is_since = |record: &&Value, since: i64| {
        let (partition, offset) = place(record);
        let mut found = all
            .iter()
            .filter(|it| place(it).0 == partition && time(it) >= since);
        found.next().is_some_and(|first| place(first).1 <= offset)
    };
    for (from, since) in [
        ("earliest".to_string(), i64::MIN),
        ("1d".to_string(), now() - 24 * 60 * 60_000),
        (rfc_3339(last).unwrap(), last),
    ] {
        let expected: Vec<_> = all
            .iter()
            .filter(|it| is_since(it, since))
            .cloned()
            .collect();
        assert_eq!(expected.len() < all.len(), since == last, "{from}");
        let count = expected.len().to_string();
        for end in [&["-e"][..], &["-n", &count]] {
            let options = [&["--from", &from], end].concat();
            assert_eq!(printed(on, topic, &options), expected, "{options:?}");
            let lines = || expected.iter().filter_map(value_of);
            let plain: Vec<u8> = lines()
                .flat_map(|line| [&line[..], b"\n"].concat())
                .collect();
            if end == ["-e"] {
                let ended = plainly(&options);
                assert_eq!(sorted_lines(&ended), sorted_lines(&plain), "{options:?}");
                let named = plainly(&[&options[..], &["-s", "--time"]].concat());
                assert_eq!(sorted_lines(&named).len(), lines().count(), "{options:?}");
                for record in expected.iter().filter(|it| it["key"] == "bob") {
                    let Some(line) = value_of(record) else {
                        continue;
                    };
                    let ending = [b" bob: ", &line[..], b"\n"].concat();
                    assert!(contains(&named, &ending), "{options:?}: {record}");
                }
            }
        }
    }
    if times == "LogAppendTime" {
        let last = printed(on, topic, &["--last", "10", "-e"]);
        assert_eq!(last.len(), 10);
        let earliest = last.iter().map(time).min();
        let others = all.iter().filter(|it| !last.contains(it));
        assert!(others.map(time).max() <= earliest, "{last:?}");
        assert!(last.iter().all(|it| all.contains(it)), "{last:?}");
    }
}

/// How many unread lines a chat shows.
#[cfg(feature = "librdkafka")]
const MOST_UNREAD: usize = 100;

#[cfg(feature = "librdkafka")]
fn a_chat_shows_the_lines_of_bob(on: &Kafka, topic: &str, all: &[Value]) {
    let of_bob = all.iter().filter(|it| it["key"] == "bob");
    let lines = of_bob.filter_map(value_of);
    let mut missing: Vec<_> = lines.map(|line| [&line[..], b"\n"].concat()).collect();
    let count = missing.len().min(MOST_UNREAD);
    let mut chat = on.program("chat", &[topic, "bob"]).start();
    let has_all = |printed: &[u8]| sorted_lines(printed).len() == count;
    assert!(chat.stdout.wait(PATIENCE, has_all), "{}", chat.report());
    chat.close();
    let printed = chat.wait().code(0).stdout;
    let printed = sorted_lines(&printed);
    assert_eq!(printed.len(), count);
    for line in printed {
        let found = missing.iter().position(|it| it == line);
        missing.swap_remove(found.expect("each line of bob once"));
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
    let mut chat = on.program("chat", &[&topic, "alice", "--unsigned"]).start();
    chat.wait_for("before\n");
    transaction.close();
    transaction.wait().code(0);
    reader.wait_for("after\n");
    assert_eq!(reader.stdout.bytes(), b"before\nafter\n");
    chat.wait_for("after\n");
    chat.close();
    chat.wait().code(0).prints("before\nafter\n");
}
