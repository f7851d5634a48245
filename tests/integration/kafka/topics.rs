//! What other clients write into a topic, and what operators do to it.

#[cfg(feature = "librdkafka")]
use std::sync::Mutex;
#[cfg(feature = "librdkafka")]
use std::time::Duration;

#[cfg(feature = "librdkafka")]
use rdkafka::{
    client::ClientContext,
    config::ClientConfig,
    error::RDKafkaErrorCode,
    message::Message as _,
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext},
};

use super::matrix::kcat;
#[cfg(feature = "librdkafka")]
use super::sorted_log;
use super::{cluster, new_topic};
use crate::support::{Kafka, Program, user};
#[cfg(feature = "librdkafka")]
use crate::support::{PATIENCE, poll_until, random_lines, setting};
#[cfg(feature = "librdkafka")]
use crate::tty::CTRL_D;

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn records_of_every_compression_are_read() {
    let on = Kafka::real();
    let topic = new_topic("bob");
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
    let topic = new_topic("bob");
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
    let topic = new_topic("bob");
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
    let (me, peer) = (new_topic("alice"), new_topic("bob"));
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
    assert_eq!(sorted_log(&on, &peer), ["one", "three", "two"]);
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn writers_to_a_compacted_topic_and_the_chat_that_reads_it_are_warned_once() {
    let on = Kafka::real();
    let (me, peer) = (new_topic("alice"), new_topic("bob"));
    cluster(&["configure", &peer, "cleanup.policy=compact"]);
    let mut publisher = on.program("publisher", &[&me, &peer]).start();
    let chat = on.chat(&me, &peer);
    let reader = on.chat(&peer, &me);
    publisher.wait_for_notice(&format!("topic {peer} is compacted"));
    for chat in [&chat, &reader] {
        chat.wait_for(&format!("topic {peer} is compacted"));
    }
    publisher.write("one\n");
    publisher.close();
    publisher.wait().code(0);
    for chat in [chat, reader] {
        chat.keys(CTRL_D);
        chat.ends_with(0).has_shown_times("is compacted", 1);
    }
}

/// What became of records: their values, each with the error, if there was one.
#[cfg(feature = "librdkafka")]
#[derive(Default)]
struct Outcomes(Mutex<Vec<(String, Option<RDKafkaErrorCode>)>>);

#[cfg(feature = "librdkafka")]
impl ClientContext for Outcomes {}

#[cfg(feature = "librdkafka")]
impl ProducerContext for Outcomes {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let (message, code) = match result {
            Ok(message) => (message, None),
            Err((error, message)) => (message, error.rdkafka_error_code()),
        };
        let value = String::from_utf8_lossy(message.payload().unwrap());
        self.0.lock().unwrap().push((value.into_owned(), code));
    }
}

/// If this fails, librdkafka splits a batch that is refused, and `too_large.rs` can go:
/// <https://github.com/confluentinc/librdkafka/issues/488>
#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn librdkafka_by_itself_fails_every_line_of_a_batch_that_is_too_large() {
    let on = Kafka::real();
    let topic = new_topic("bob");
    cluster(&["configure", &topic, "max.message.bytes=1000"]);
    let large = "x".repeat(5000);
    let lines = ["before", &large, "after"];
    // The batch is sent once it is full, and not before.
    let producer: BaseProducer<Outcomes> = ClientConfig::new()
        .set("bootstrap.servers", on.servers())
        .set("linger.ms", "200000")
        .set("batch.num.messages", lines.len().to_string())
        .create_with_context(Outcomes::default())
        .unwrap();
    for line in lines {
        let record = BaseRecord::<str, str>::to(&topic)
            .partition(0)
            .payload(line);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    let outcomes = poll_until(
        PATIENCE,
        || "three outcomes".into(),
        || {
            producer.poll(Duration::from_millis(1));
            let outcomes = producer.context().0.lock().unwrap();
            (outcomes.len() == lines.len()).then(|| outcomes.clone())
        },
    );
    let refused = Some(RDKafkaErrorCode::MessageSizeTooLarge);
    assert_eq!(outcomes, lines.map(|line| (line.to_string(), refused)));
}

/// Small lines around a large one, and what is in the topic if that fails.
#[cfg(feature = "librdkafka")]
fn small_lines_and_a_large_one() -> (String, String) {
    let small = |from: u32, to: u32| {
        (from..=to)
            .map(|n| format!("line {n}\n"))
            .collect::<String>()
    };
    // Not as compressible as the small ones.
    let large = String::from_utf8(random_lines(7, 1, 5000)).unwrap();
    let (before, after) = (small(1, 101), small(102, 202));
    (format!("{before}{large}{after}"), before + &after)
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn a_line_that_is_larger_than_the_topic_takes_is_named_and_the_others_arrive_in_order() {
    let on = Kafka::real();
    let (input, expected) = small_lines_and_a_large_one();
    for codec in ["none", "gzip"] {
        let peer = new_topic("bob");
        cluster(&["configure", &peer, "max.message.bytes=1000"]);
        let codec = format!("compression.type={codec}");
        let publisher = on.program("publisher", &["alice", &peer, "-X", &codec]);
        let ended = publisher.input(input.clone()).run().code(1);
        ended.says(&[
            "1 of 203 lines was not delivered",
            "line 102: 5005 bytes, too large: ",
            &format!("topic {peer} takes at most 1000 bytes"),
        ]);
        assert_eq!(on.log(&peer), expected);
    }
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn many_lines_that_are_larger_than_the_topic_takes_hold_up_no_others() {
    let on = Kafka::real();
    let peer = new_topic("bob");
    cluster(&["configure", &peer, "max.message.bytes=1000"]);
    let large = "x".repeat(1500);
    let small: Vec<_> = (0..60).map(|n| format!("line {n}\n")).collect();
    let input: String = small.iter().map(|it| format!("{it}{large}\n")).collect();
    let publisher = on.program("publisher", &["alice", &peer]);
    let ended = publisher.input(input).run().code(1);
    ended.says(&[
        "60 of 120 lines were not delivered",
        "line 2: 1505 bytes, too large",
    ]);
    assert_eq!(on.log(&peer), small.concat());
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn lines_arrive_in_order_when_the_topic_takes_less_than_before() {
    let on = Kafka::real();
    let (me, peer) = (user("alice"), new_topic("bob"));
    // Batches without the large line are small enough: they must not overtake the one with it.
    let arguments = [&me, &peer, "-X", "batch.num.messages=10"];
    let mut publisher = on.program("publisher", &arguments).start();
    publisher.write("one\n");
    on.first_lines(&peer, 1);
    cluster(&["configure", &peer, "max.message.bytes=1000"]);
    let (input, expected) = small_lines_and_a_large_one();
    publisher.write(input.repeat(3));
    publisher.close();
    let ended = publisher.wait().code(1);
    ended.says(&[
        "3 of 610 lines were not delivered",
        "line 103: ",
        "line 306: ",
        "line 509: ",
    ]);
    assert_eq!(on.log(&peer), "one\n".to_string() + &expected.repeat(3));
}
