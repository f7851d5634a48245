//! What `subscriber` tells of records that only a real Kafka takes: with headers, in transactions, in several partitions.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::matrix::kcat;
use crate::reading::{objects, topic};
use crate::support::Kafka;

#[test]
#[ignore = "needs a real Kafka"]
fn headers_are_shown_and_names_that_are_no_utf_8_do_no_harm() {
    let on = Kafka::real();
    let topic = topic(&on, 1);
    kcat(&on, &topic, &["-P", "-H", "a=1", "-H", "a=x\ny", "-H"])
        .arg(OsStr::from_bytes(b"\xff\xfe=2"))
        .arg("-H")
        .arg(OsStr::from_bytes(b"b=\xff"))
        .args(["-H", "none"])
        .input("one\n")
        .run()
        .code(0);
    on.send("alice", &topic, "two\n");
    let expected = serde_json::json!([
        {"key": "a", "value": "1"},
        {"key": "a", "value": "x\ny"},
        {"key": null},
        {"key": "b", "value_base64": "/w=="},
        {"key": "none", "value": null},
    ]);
    let objects = objects(&on, &topic);
    assert_eq!(objects[0]["headers"], expected);
    assert!(objects[1].get("headers").is_none(), "{}", objects[1]);
    let arguments = [&topic, "--from", "earliest", "-e", "--json"];
    let ended = on.program("subscriber", &arguments).run().code(0);
    assert_eq!(ended.stderr, "", "{}", ended.report());
}
