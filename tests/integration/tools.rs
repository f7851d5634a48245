//! Other clients, and a full disk, on the small broker.

#[cfg(feature = "librdkafka")]
use proptest::prelude::*;

use crate::others;
use crate::support::{Kafka, Program, free_port, random_lines};
#[cfg(feature = "librdkafka")]
use crate::{reading, support::setting};

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
