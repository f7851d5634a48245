//! A record as a line of JSON, from which any bytes come back.

use std::fmt::Write as _;

use base64ct::{Base64, Encoding};
use serde_json::Value;

use super::visible::is_plain;
use crate::client::{Header, Record};
use crate::name::Name;
use crate::time::rfc_3339;

/// A whole record in one line. Bytes that are not UTF-8 are in base64, under a name that says so.
/// `sealed` is the sender's time of a line that was sealed.
pub(super) fn line(topic: &Name, record: &Record<'_>, sealed: Option<i64>) -> String {
    let time = record.timestamp.and_then(rfc_3339);
    let mut out = String::with_capacity(200 + record.value.map_or(0, <[u8]>::len));
    // Writing to a String can't fail.
    _ = write!(
        out,
        r#"{{"topic":{},"partition":{},"offset":{},"timestamp":{},"time":{},"#,
        text(topic.as_str()),
        record.partition,
        record.offset,
        Value::from(record.timestamp),
        Value::from(time),
    );
    push_bytes(&mut out, "key", record.key);
    out.push(',');
    push_bytes(&mut out, "value", record.value);
    if let Some(clock) = sealed {
        let time = Value::from(rfc_3339(clock));
        _ = write!(
            out,
            r#","sealed":true,"sender_timestamp":{clock},"sender_time":{time}"#
        );
    }
    if !record.headers.is_empty() {
        out.push_str(r#","headers":["#);
        for (n, header) in record.headers.iter().enumerate() {
            out.push_str(if n == 0 { "{" } else { ",{" });
            match *header {
                Header::Named(name, value) => {
                    _ = write!(out, r#""key":{},"#, text(name));
                    push_bytes(&mut out, "value", value);
                }
                Header::Unreadable => out.push_str(r#""key":null"#),
            }
            out.push('}');
        }
        out.push(']');
    }
    out.push_str("}\n");
    out
}

/// Appends `"name":"text"`, `"name":null` or `"name_base64":"AA=="`.
fn push_bytes(out: &mut String, name: &str, bytes: Option<&[u8]>) {
    _ = match bytes.map(|bytes| (bytes, str::from_utf8(bytes))) {
        None => write!(out, r#""{name}":null"#),
        Some((_, Ok(utf8))) => write!(out, r#""{name}":{}"#, text(utf8)),
        Some((bytes, Err(_))) => {
            write!(out, r#""{name}_base64":"{}""#, Base64::encode_string(bytes))
        }
    };
}

/// A JSON string. What JSON leaves as it is, but a terminal or a reader of lines may act on, is escaped, too.
fn text(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    if quoted.chars().all(is_plain) {
        return quoted;
    }
    let mut escaped = String::with_capacity(quoted.len() + 16);
    for c in quoted.chars() {
        match is_plain(c) {
            true => escaped.push(c),
            false => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    _ = write!(escaped, "\\u{unit:04x}");
                }
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn printed(record: &Record<'_>) -> String {
        line(&"bob".parse().unwrap(), record, None)
    }

    #[test]
    fn a_record_is_one_object_with_its_fields_in_order() {
        let headers = [
            Header::Named("trace", Some(b"1\n")),
            Header::Named("trace", Some(b"\xff")),
            Header::Named("", None),
            Header::Unreadable,
        ];
        let record = Record {
            partition: 3,
            offset: 7,
            timestamp: Some(1_792_888_200_007),
            key: Some(b"al\tice"),
            value: Some("\"xin ch\u{e0}o\"\n\u{2028}\u{9b}2J\u{e0041}".as_bytes()),
            headers: &headers,
        };
        let expected = r#"{"topic":"bob","partition":3,"offset":7,"timestamp":1792888200007,"time":"2026-10-25T00:30:00.007Z","key":"al\tice","value":"\"xin chào\"\n\u2028\u009b2J\udb40\udc41","headers":[{"key":"trace","value":"1\n"},{"key":"trace","value_base64":"/w=="},{"key":"","value":null},{"key":null}]}"#;
        assert_eq!(printed(&record), format!("{expected}\n"));
    }

    #[test]
    fn a_sealed_line_says_so_and_has_its_senders_time() {
        let record = Record {
            timestamp: Some(0),
            value: Some(b"hi"),
            ..Record::default()
        };
        let bob = "bob".parse().unwrap();
        let ends_with = |clock, end: &str| line(&bob, &record, Some(clock)).ends_with(end);
        let end = r#""value":"hi","sealed":true,"sender_timestamp":1792888200007,"sender_time":"2026-10-25T00:30:00.007Z"}"#;
        assert!(ends_with(1_792_888_200_007, &format!("{end}\n")));
        let far = r#""sender_timestamp":-9223372036854775808,"sender_time":null}"#;
        assert!(ends_with(i64::MIN, &format!("{far}\n")));
    }

    #[test]
    fn what_is_absent_is_null_and_headers_are_left_out() {
        let expected = r#"{"topic":"bob","partition":0,"offset":0,"timestamp":null,"time":null,"key":null,"value":null}"#;
        assert_eq!(printed(&Record::default()), format!("{expected}\n"));
        let far = Record {
            timestamp: Some(i64::MAX),
            ..Record::default()
        };
        let expected = r#""timestamp":9223372036854775807,"time":null"#;
        assert!(printed(&far).contains(expected));
    }

    /// The bytes under `name` in what a parser of JSON made of a line.
    fn bytes_of(object: &Value, name: &str) -> Option<Vec<u8>> {
        match (&object[name], &object[format!("{name}_base64")]) {
            (Value::String(text), Value::Null) => Some(text.clone().into_bytes()),
            (Value::Null, Value::String(encoded)) => Base64::decode_vec(encoded).ok(),
            (Value::Null, Value::Null) => None,
            both => panic!("{both:?}"),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back_from_one_line_that_acts_on_no_terminal(
            key in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            value in prop::option::of(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..100),
                any::<String>().prop_map(String::into_bytes),
            ]),
            name in any::<String>(),
            timestamp in any::<Option<i64>>(),
        ) {
            let headers = [Header::Named(&name, value.as_deref())];
            let record = Record {
                timestamp,
                key: key.as_deref(),
                value: value.as_deref(),
                headers: &headers,
                ..Record::default()
            };
            let line = printed(&record);
            let object: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(bytes_of(&object, "key"), key);
            prop_assert_eq!(bytes_of(&object, "value"), value.clone());
            prop_assert_eq!(object["timestamp"].as_i64(), timestamp);
            prop_assert_eq!(object["headers"][0]["key"].as_str(), Some(&*name));
            prop_assert_eq!(bytes_of(&object["headers"][0], "value"), value);
            prop_assert!(line.strip_suffix('\n').unwrap().chars().all(is_plain));
        }
    }
}
