//! What other clients write into a topic, and what operators do to it.

use super::cluster;
use super::matrix::kcat;
use crate::support::{Kafka, user};

#[test]
#[ignore = "needs a real Kafka"]
fn records_of_every_compression_are_read() {
    let on = Kafka::real();
    let topic = user("bob");
    cluster(&["topic", &topic]);
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
