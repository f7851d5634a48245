//! What `subscriber` prints of a record, and where it starts, with records that only librdkafka can write.

use std::net::TcpStream;

use kafka_chat::time::rfc_3339;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::kafka::cluster;
use crate::support::{Kafka, PATIENCE, poll_until, user};

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

/// Writes records in their order.
pub(crate) fn write<'a>(on: &Kafka, records: impl IntoIterator<Item = Written<'a>>) {
    let producer = producer(on, &[]);
    for record in records {
        producer.send(record).map_err(|(error, _)| error).unwrap();
        // Those in one batch could be of one time.
        producer.flush(PATIENCE).unwrap();
    }
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
    let printed = on.log_bytes(topic, &["--json"]);
    let lines = printed.split_inclusive(|&byte| byte == b'\n');
    lines
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

#[test]
fn times_are_those_on_the_wall_and_dashes_where_there_is_none() {
    let on = Kafka::embedded();
    let _host = on.host();
    write(
        &on,
        [
            record("bob", FIRST_HALF_PAST_TWO - 3_600_000, "summer"),
            record("bob", FIRST_HALF_PAST_TWO, "summer"),
            record("bob", SECOND_HALF_PAST_TWO, "winter"),
        ],
    );
    // Crate `kafka` writes no time.
    on.send("alice", "bob", "hello\n");
    let expected = "2026-10-25 01:30:00 summer\n2026-10-25 02:30:00 summer\n\
                    2026-10-25 02:30:00 winter\n---------- -------- hello\n";
    let arguments = ["bob", "--from", "earliest", "--time", "-e"];
    let subscriber = on.program("subscriber", &arguments).env("TZ", EUROPE);
    subscriber.run().code(0).prints(expected);
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
    use crate::support::Kafka;

    #[test]
    fn json_has_all_about_each_record() {
        super::json_has_all_about_each_record(&Kafka::embedded());
    }

    #[test]
    fn a_name_on_a_pipe_makes_no_line_of_its_own() {
        super::a_name_on_a_pipe_makes_no_line_of_its_own(&Kafka::embedded());
    }
}
