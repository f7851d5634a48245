//! What `subscriber` prints of a record, and where it starts, with records that only librdkafka can write.

use std::net::TcpStream;
use std::time::{Duration, UNIX_EPOCH};

use kafka_chat::time::rfc_3339;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::kafka::cluster;
use crate::support::{Kafka, PATIENCE, poll_until, user, write_without_times};

/// Central Europe: an hour after UTC, two in summer.
const EUROPE: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

/// 00:30 UTC and an hour later, which both are 02:30 on the clocks of Europe.
const FIRST_HALF_PAST_TWO: i64 = 1_792_888_200_000;
const SECOND_HALF_PAST_TWO: i64 = 1_792_891_800_000;

pub(crate) type Written<'a> = BaseRecord<'a, [u8], [u8]>;

/// A record for the first partition of a topic, with this time.
pub(crate) fn record<'a>(topic: &'a str, time: i64, value: &'a str) -> Written<'a> {
    let record = BaseRecord::to(topic).partition(0).timestamp(time);
    record.payload(value.as_bytes())
}

pub(crate) fn producer(on: &Kafka, properties: &[(&str, &str)]) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", on.servers());
    for (name, value) in properties {
        config.set(*name, *value);
    }
    config.create().unwrap()
}

/// Waits until all that was sent is written. The crate's own `flush` looks only every 100 ms.
pub(crate) fn flush(producer: &BaseProducer) {
    let is_done = || {
        producer.poll(Duration::from_millis(1));
        (producer.in_flight_count() == 0).then_some(())
    };
    poll_until(PATIENCE, || "written".into(), is_done);
}

/// Writes records in their order.
pub(crate) fn write<'a>(on: &Kafka, records: impl IntoIterator<Item = Written<'a>>) {
    let producer = producer(on, &[]);
    for record in records {
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    flush(&producer);
}

/// The time, in milliseconds since 1970.
pub(crate) fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64
}

/// A topic of its own, with so many partitions.
pub(crate) fn topic(on: &Kafka, partitions: i32) -> String {
    let topic = user("bob");
    if let Kafka::Real(_) = on {
        cluster(&["topic", &topic, &partitions.to_string()]);
    }
    topic
}

pub(crate) fn json_has_all_about_each_record(on: &Kafka) {
    let _host = on.keep_running();
    let topic = topic(on, 1);
    let time = now() - 60_000;
    let record = || BaseRecord::to(&topic).partition(0).timestamp(time);
    write(
        on,
        [
            record().key(&b"al\nice\t"[..]).payload(&b"two\nlines"[..]),
            record().payload(&b"\xff\0"[..]),
            record().key(&b"\x80"[..]),
            record().payload(&b""[..]),
        ],
    );
    let utc = rfc_3339(time).unwrap();
    let expected: String = [
        r#""key":"al\nice\t","value":"two\nlines""#,
        r#""key":null,"value_base64":"/wA=""#,
        r#""key_base64":"gA==","value":null"#,
        r#""key":null,"value":"""#,
    ]
    .iter()
    .zip(0..)
    .map(|(fields, offset)| {
        format!(
            r#"{{"topic":"{topic}","partition":0,"offset":{offset},"timestamp":{time},"time":"{utc}",{fields}}}"#
        ) + "\n"
    })
    .collect();
    let ended = on.log_bytes(&topic, &["--json"]);
    assert_eq!(String::from_utf8(ended).unwrap(), expected);
    let three = [&topic, "--from", "earliest", "--json", "-n", "3"];
    let shorter: String = expected.split_inclusive('\n').take(3).collect();
    on.program("subscriber", &three)
        .run()
        .code(0)
        .prints(shorter);
}

pub(crate) fn a_name_on_a_pipe_makes_no_line_of_its_own(on: &Kafka) {
    let _host = on.keep_running();
    let topic = topic(on, 1);
    let time = now() - 60_000;
    write(
        on,
        [record(&topic, time, "hello").key(&b"al\nbob: yes\t\x1b[2Jice"[..])],
    );
    let shown = "al^Jbob: yes^I^[[2Jice: hello\n";
    assert_eq!(on.log_bytes(&topic, &["-s"]), shown.as_bytes());
    let subscriber = on.program("subscriber", &[&topic, "--from", "earliest", "-e", "-s"]);
    let subscriber = subscriber.arg("--time").env("TZ", "UTC");
    let local = rfc_3339(time).unwrap().replace('T', " ");
    let (local, _) = local.split_once('.').unwrap();
    subscriber.run().code(0).prints(format!("{local} {shown}"));
}

/// The objects that `--json` prints of a topic, one a line.
pub(crate) fn objects(on: &Kafka, topic: &str) -> Vec<serde_json::Value> {
    json_lines(&on.log_bytes(topic, &["--json"]))
}

/// The values of JSON, one a line.
pub(crate) fn json_lines(printed: &[u8]) -> Vec<serde_json::Value> {
    let lines = printed.split_inclusive(|&byte| byte == b'\n');
    lines
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

const HOUR: i64 = 3_600_000;

/// Writes `0` to `29`, one an hour, the last of them an hour ago: the first 18 to one partition, the others in turn to
/// all. Returns the time of `0`.
pub(crate) fn thirty_records(on: &Kafka, topic: &str, partitions: i32) -> i64 {
    let first = now() - 30 * HOUR;
    let values: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    let records = values.iter().zip(0..).map(|(value, n)| {
        let partition = if n < 18 { 0 } else { n % partitions };
        record(topic, first + i64::from(n) * HOUR, value).partition(partition)
    });
    write(on, records);
    first
}

/// The lines that are printed with these options up to the end, as numbers in their order.
pub(crate) fn numbers(on: &Kafka, topic: &str, options: &[&str]) -> Vec<u32> {
    let subscriber = on.program("subscriber", &[topic, "-e"]).args(options);
    let ended = subscriber.run().code(0);
    let printed = String::from_utf8(ended.stdout).unwrap();
    let mut numbers: Vec<u32> = printed.lines().map(|it| it.parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

pub(crate) fn reading_starts_at_a_time(on: &Kafka, partitions: i32) {
    let _host = on.keep_running();
    let topic = topic(on, partitions);
    assert!(numbers(on, &topic, &["--from", "3d"]).is_empty());
    let first = thirty_records(on, &topic, partitions);
    let since = |n: i64, millis| rfc_3339(first + n * HOUR + millis).unwrap();
    for (from, expected) in [
        ("3d", 0..30),
        ("1970-01-01", 0..30),
        (&since(0, 1), 1..30),
        (&since(20, 0), 20..30),
        (&since(20, 1), 21..30),
        (&since(29, 0), 29..30),
        (&since(29, 1), 30..30),
        ("210m", 27..30),
        ("0s", 30..30),
    ] {
        let expected: Vec<u32> = expected.collect();
        assert_eq!(numbers(on, &topic, &["--from", from]), expected, "{from}");
    }
    let arguments = [&topic, "--from", &since(25, 0), "-n", "5"];
    let ended = on.program("subscriber", &arguments).run().code(0);
    assert_eq!(ended.stdout.len(), "25\n".len() * 5);
    let reader = on.program("subscriber", &[&topic, "--from", "90m"]).start();
    reader.wait_for("29\n");
    write(on, [record(&topic, now(), "30")]);
    reader.wait_for("29\n30\n");
}

pub(crate) fn the_last_messages_are_read(on: &Kafka, partitions: i32) {
    let _host = on.keep_running();
    let topic = topic(on, partitions);
    assert!(numbers(on, &topic, &["--last", "3"]).is_empty());
    thirty_records(on, &topic, partitions);
    for (count, expected) in [("0", 30..30), ("1", 29..30), ("8", 22..30), ("31", 0..30)] {
        let expected: Vec<u32> = expected.collect();
        assert_eq!(numbers(on, &topic, &["--last", count]), expected, "{count}");
    }
    let arguments = [&topic, "--last", "5", "-n", "2"];
    let ended = on.program("subscriber", &arguments).run().code(0);
    assert_eq!(ended.stdout.len(), "25\n".len() * 2);
    let ended = on.program("subscriber", &[&topic, "--last", "1", "-e", "--json"]);
    let ended = ended.run().code(0);
    let object: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(object["value"], "29");
    let reader = on.program("subscriber", &[&topic, "--last", "1", "--time", "-s"]);
    let reader = reader.start();
    reader.wait_for(" : 29\n");
    on.send("alice", &topic, "30\n");
    reader.wait_for(" alice: 30\n");
}

#[test]
fn messages_without_a_time_are_not_found_by_one_and_are_the_last_by_their_offset() {
    let on = Kafka::embedded();
    write_without_times(&on, "bob", &["0", "1"]);
    let _host = on.host();
    assert!(numbers(&on, "bob", &["--from", "1h"]).is_empty());
    write(&on, [record("bob", now() - HOUR / 2, "2")]);
    on.send("alice", "bob", "3\n");
    write(&on, [record("bob", now() - HOUR, "4")]);
    assert_eq!(numbers(&on, "bob", &["--from", "59m"]), [2, 3, 4]);
    assert_eq!(numbers(&on, "bob", &["--last", "2"]), [3, 4]);
    assert_eq!(numbers(&on, "bob", &["--last", "4"]), [1, 2, 3, 4]);
}

#[test]
fn a_local_time_is_that_of_the_clock_on_the_wall_and_the_earlier_of_two() {
    let on = Kafka::embedded();
    let _host = on.host();
    write(
        &on,
        [
            record("bob", FIRST_HALF_PAST_TWO - 1, "0"),
            record("bob", FIRST_HALF_PAST_TWO, "1"),
            record("bob", SECOND_HALF_PAST_TWO, "2"),
        ],
    );
    for (from, expected) in [
        ("2026-10-25", "0\n1\n2\n"),
        ("2026-10-25T02:30", "1\n2\n"),
        ("2026-10-25T02:30+01:00", "2\n"),
        ("2026-10-25T02:31", "2\n"),
        ("2026-10-25T03:00", ""),
    ] {
        let subscriber = on.program("subscriber", &["bob", "-e", "--from", from]);
        let subscriber = subscriber.env("TZ", EUROPE);
        subscriber.run().code(0).prints(expected);
    }
}

#[test]
fn times_are_those_on_the_wall_and_dashes_where_there_is_none() {
    let on = Kafka::embedded();
    write_without_times(&on, "bob", &["old"]);
    let _host = on.host();
    write(
        &on,
        [
            record("bob", FIRST_HALF_PAST_TWO - 3_600_000, "summer"),
            record("bob", FIRST_HALF_PAST_TWO, "summer"),
            record("bob", SECOND_HALF_PAST_TWO, "winter"),
        ],
    );
    let expected = "---------- -------- old\n2026-10-25 01:30:00 summer\n\
                    2026-10-25 02:30:00 summer\n2026-10-25 02:30:00 winter\n";
    let arguments = ["bob", "--from", "earliest", "--time", "-e"];
    let subscriber = on.program("subscriber", &arguments).env("TZ", EUROPE);
    subscriber.run().code(0).prints(expected);
}

#[test]
fn lines_on_the_small_broker_have_the_time_of_its_clock_and_are_found_by_it() {
    let on = Kafka::embedded();
    let _host = on.host();
    let read = |from: &str| {
        let arguments = ["bob", "--from", from, "--json", "-e"];
        let text = on.program("subscriber", &arguments).run().code(0).stdout;
        let times = String::from_utf8(text).unwrap();
        let times = times.lines().map(|line| {
            let json: serde_json::Value = serde_json::from_str(line).unwrap();
            json["timestamp"].as_i64().unwrap()
        });
        times.collect::<Vec<_>>()
    };
    let now = || UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    let before = now();
    on.send("alice", "bob", "one\ntwo\n");
    let after = now();
    let times = read("earliest");
    assert_eq!(times.len(), 2);
    assert!(times.iter().all(|time| (before..=after).contains(time)));
    assert_eq!(read("1h"), times);
}

#[test]
fn a_reader_of_times_starts_the_small_broker_and_takes_over_from_another_host() {
    let on = Kafka::embedded();
    let host = on.host();
    let reader = on.program("subscriber", &["bob", "--from", "earliest", "--json"]);
    let reader = reader.start();
    on.send("alice", "bob", "before\n");
    reader.wait_for(r#""value":"before"}"#);
    host.signal("KILL");
    host.wait();
    reader.wait_for_notice("lost");
    let serves = || TcpStream::connect(on.servers()).ok();
    drop(poll_until(PATIENCE, || "taken over".into(), serves));
    on.by_address().send("alice", "bob", "after\n");
    reader.wait_for(r#""value":"after"}"#);
    reader.signal("INT");
    reader.wait().code(0);
    let first = on.program("subscriber", &["bob", "--from", "earliest", "--json"]);
    let first = first.args(["-n", "2"]).run().code(0);
    first.says(&["small broker of its own"]);
}

#[test]
fn json_goes_with_no_other_format() {
    for other in ["-s", "--time"] {
        let subscriber = Kafka::embedded().program("subscriber", &["bob", "--json", other]);
        subscriber.run().code(2).says(&["--json", "cannot be used"]);
    }
}

mod embedded {
    use crate::support::on_the_small_broker;

    on_the_small_broker! {
        json_has_all_about_each_record();
        a_name_on_a_pipe_makes_no_line_of_its_own();
        reading_starts_at_a_time(1);
        the_last_messages_are_read(1);
    }
}
