//! Other clients, another implementation of sealed lines, other accounts, a full disk, and a minute of abuse, on the
//! small broker; and the tour's chapters on a real Kafka.

#[cfg(target_os = "linux")]
mod accounts;

use std::path::PathBuf;

#[cfg(feature = "librdkafka")]
use proptest::prelude::*;

use crate::others;
#[cfg(feature = "librdkafka")]
use crate::reading;
use crate::sealed::Secrets;
#[cfg(feature = "librdkafka")]
use crate::support::write_without_times;
use crate::support::{Kafka, Program, free_port, random_lines, setting};
#[cfg(feature = "librdkafka")]
use crate::tour;

macro_rules! on_the_small_broker {
    ($needs:literal: $($name:ident;)*) => {
        $(
            #[test]
            #[ignore = $needs]
            fn $name() {
                others::$name(&Kafka::embedded());
            }
        )*
    };
}

on_the_small_broker! {
    "needs kafka-python":
    the_tutorials_publisher_reaches_our_subscriber;
    our_publisher_reaches_the_tutorials_subscriber;
    our_chat_talks_with_the_tutorials_one_way_scripts;
    our_chat_talks_with_the_tutorials_chat_under_its_option;
}

on_the_small_broker! {
    "needs kcat":
    kcat_reads_our_lines_and_we_read_its;
}

/// A client that appends the lines of its input to the topic `bob`, lists that, and prints what it has.
fn appends_lists_and_reads(client: impl FnOnce(&Kafka) -> Program) {
    let on = Kafka::embedded();
    let _host = on.host();
    on.send("alice", "bob", "from us\n");
    client(&on)
        .input("xin chào\nsecond\n")
        .run()
        .code(0)
        .prints("bob has 3 lines\nalice: from us\ncarol: xin chào\ncarol: second\n");
    assert_eq!(on.log("bob"), "from us\nxin chào\nsecond\n");
}

#[test]
#[ignore = "needs Go"]
fn franz_go_appends_lists_and_reads_lines() {
    let program = || setting("KAFKA_CHAT_TEST_FRANZ_GO");
    appends_lists_and_reads(|on| Program::other(program(), &[&on.servers(), "bob"]));
}

#[test]
#[ignore = "needs confluent-kafka"]
fn confluent_kafka_appends_lists_and_reads_lines() {
    appends_lists_and_reads(|on| {
        let python = "KAFKA_CHAT_TEST_PYTHON_CONFLUENT";
        others::python_of(python, "confluent.py", &["bob"], on)
    });
}

#[test]
#[ignore = "needs kafka-python"]
fn a_current_kafka_python_appends_and_reads_lines() {
    let on = Kafka::embedded();
    let _host = on.host();
    on.send("alice", "bob", "from us\n");
    let python = |script: &str, arguments: &[&str]| {
        others::python_of("KAFKA_CHAT_TEST_PYTHON_NEW", script, arguments, &on)
    };
    let write = python("write.py", &["bob", "carol"]);
    write.input("xin chào\nsecond\n").run().code(0);
    python("read.py", &["bob", "3", "--keys", "--seconds", "60"])
        .run()
        .code(0)
        .prints("alice: from us\ncarol: xin chào\ncarol: second\n");
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs kcat and kafka-python"]
fn lines_of_other_programs_on_the_small_broker_are_found_by_every_option() {
    let on = Kafka::embedded();
    // As an earlier version wrote them.
    write_without_times(&on, "bob", &["old"]);
    let _host = on.host();
    let kcat = Program::other(
        "kcat",
        &["-b", &on.servers(), "-t", "bob", "-P", "-K", "\t"],
    );
    kcat.input("carol\tkcat\n").run().code(0);
    let python = others::python("write.py", &["bob", "dave"], &on);
    python.input("kafka-python\n").run().code(0);
    on.send("alice", "bob", "ours\n");
    let lines = [
        ("", "old"),
        ("carol", "kcat"),
        ("dave", "kafka-python"),
        ("alice", "ours"),
    ];
    for (start, left_out) in [
        (["--from", "earliest"], 0),
        (["--from", "1h"], 1),
        (["--last", "2"], 2),
    ] {
        let expected = &lines[left_out..];
        let count = expected.len().to_string();
        for end in [&["-e"][..], &["-n", &count]] {
            let run = |format: &[&str]| {
                let options = [&["bob"], &start[..], end, format].concat();
                on.program("subscriber", &options).run().code(0)
            };
            let all = |line: fn(&(&str, &str)) -> String| -> String {
                expected.iter().map(line).collect()
            };
            run(&[]).prints(all(|(_, line)| format!("{line}\n")));
            run(&["-s"]).prints(all(|(name, line)| format!("{name}: {line}\n")));
            let timed = String::from_utf8(run(&["-s", "--time"]).stdout).unwrap();
            assert_eq!(timed.lines().count(), expected.len(), "{timed}");
            for ((name, line), printed) in expected.iter().zip(timed.lines()) {
                assert!(printed.ends_with(&format!(" {name}: {line}")), "{timed}");
            }
            let objects = reading::json_lines(&run(&["--json"]).stdout);
            assert_eq!(objects.len(), expected.len(), "{objects:?}");
            for ((name, line), object) in expected.iter().zip(&objects) {
                assert_eq!(object["value"], *line);
                assert_eq!(object["key"].as_str().unwrap_or_default(), *name);
                assert_eq!(object["time"].is_null(), name.is_empty(), "{object}");
            }
        }
    }
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka, which it starts"]
fn every_command_of_the_tour_on_a_real_kafka_prints_what_the_tour_says() {
    tour::on_kafka::every_command_prints_what_the_tour_says();
}

/// What Python's parser of JSON makes of each line: the key and the value, in hexadecimal.
#[cfg(feature = "librdkafka")]
const PARSE: &str = r#"
import base64, json, sys
for line in sys.stdin.buffer:
    message = json.loads(line)
    for name in "key", "value":
        encoded = message.get(name + "_base64")
        if encoded is None:
            text = message[name]
            print(None if text is None else text.encode().hex())
        else:
            print(base64.b64decode(encoded, validate=True).hex())
"#;

#[cfg(feature = "librdkafka")]
proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[ignore = "needs Python"]
    fn any_bytes_come_back_from_pythons_parser_of_json(
        fields in prop::collection::vec(
            prop::option::of(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..30),
                any::<String>().prop_map(String::into_bytes),
            ]),
            1000,
        )
    ) {
        let on = Kafka::embedded();
        let _host = on.host();
        reading::write(&on, fields.chunks(2).map(|fields| {
            let record = reading::Written::to("bob").partition(0);
            let record = fields[0].iter().fold(record, |it, key| it.key(key));
            fields[1].iter().fold(record, |it, value| it.payload(value))
        }));
        let hexadecimal = |bytes: &Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = fields.iter().map(|field| {
            field.as_ref().map_or("None".to_string(), hexadecimal) + "\n"
        });
        Program::other(setting("KAFKA_CHAT_TEST_PYTHON"), &["-c", PARSE])
            .input(on.log_bytes("bob", &["--json"]))
            .run()
            .code(0)
            .prints(expected.collect::<String>());
    }
}

/// `KAFKA_CHAT_TEST_ABUSE` is how many seconds (60).
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs a minute"]
fn two_programs_talk_through_a_minute_of_abuse() {
    let seconds = std::env::var("KAFKA_CHAT_TEST_ABUSE");
    let seconds = seconds.map_or(60, |seconds| seconds.parse().unwrap());
    crate::abuse::abuse(std::time::Duration::from_secs(seconds), None);
}

#[test]
#[ignore = "needs Python"]
fn another_implementation_of_sealed_lines_opens_ours_and_is_opened_by_ours() {
    let (on, secrets) = (Kafka::embedded(), Secrets::new());
    let _host = on.host();
    let python_of = |sender: &str, action: &str, secret: PathBuf, input: &str| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/sealed.py");
        Program::other(setting("KAFKA_CHAT_TEST_PYTHON_SEALED"), &[script, action])
            .arg(secret)
            .args([sender, "bob"])
            .input(input)
            .run()
    };
    let python = |action: &str, secret, input: &str| python_of("alice", action, secret, input);
    let ours = || secrets.ours();
    let lines: String = (0..2000)
        .map(|n| format!("{n} xin chào {}\n", "x".repeat(n % 50)))
        .collect();
    on.send(
        "alice",
        "bob",
        python("seal", ours(), &lines).code(0).stdout,
    );
    secrets.reader(&on, "bob").run().code(0).prints(&lines);

    let mut theirs = on.log("bob");
    secrets.send(&on, "alice", "bob", &*lines);
    let both = on.log("bob");
    let values = both.strip_prefix(&theirs).unwrap();
    python("open", ours(), values).code(0).prints(&lines);
    // It refuses what is to be refused, too.
    theirs.replace_range(60..61, "!");
    let rest = &lines[lines.find('\n').unwrap() + 1..];
    python("open", ours(), &theirs).code(1).prints(rest);

    let page = include_str!("../../docs/sealed.md");
    let vectors = page
        .split('`')
        .filter(|it| it.starts_with("sealed1:") && it.len() > 20);
    let vectors: Vec<String> = vectors.map(|it| format!("{it}\n")).collect();
    let secret = secrets.file("vectors", "a secret for test vectors");
    let of_alice = python("open", secret.clone(), &vectors[..2].concat());
    of_alice.code(0).prints("xin chào\n\n");
    let of_nobody = python_of("", "open", secret, &vectors[2]);
    of_nobody.code(0).prints("no name\n");
}

/// Fills a disk of 3 MB under the log, reads the log, and makes room.
const FULL_DISK: &str = r#"
    mount -t tmpfs -o size=3m tmpfs "$1"
    options="--embedded=$2 --data-dir $1/log"
    "$PUBLISHER" alice bob $options < "$3/in" 2> "$3/err" &
    until grep -q "could not use its log" "$3/err"; do sleep 0.1; done
    "$SUBSCRIBER" bob $options --from earliest --until-end > "$3/part"
    mount -o remount,size=64m "$1"
    wait $!
    "$SUBSCRIBER" bob $options --from earliest --until-end > "$3/out"
"#;

#[test]
#[ignore = "needs to mount a small disk (unshare)"]
fn a_full_disk_is_reported_and_no_line_is_lost_once_there_is_room_again() {
    let (disk, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |dir: &tempfile::TempDir| dir.path().display().to_string();
    let input = random_lines(3, 100_000, 60);
    std::fs::write(files.path().join("in"), &input).unwrap();
    Program::other("unshare", &["-rm", "bash", "-euc", FULL_DISK, "bash"])
        .arg(path(&disk))
        .arg(free_port().to_string())
        .arg(path(&files))
        .env("PUBLISHER", env!("CARGO_BIN_EXE_publisher"))
        .env("SUBSCRIBER", env!("CARGO_BIN_EXE_subscriber"))
        .run()
        .code(0);
    let read = |name: &str| std::fs::read(files.path().join(name)).unwrap();
    let part = read("part");
    let bytes = part.len();
    assert!(bytes > 0 && bytes < input.len(), "{bytes} bytes");
    assert!(input.starts_with(&part), "the log is not in order");
    assert!(read("out") == input, "the log is not the input");
}
