//! Wrong arguments, input and addresses: each is one clear error with the right exit code.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use crate::support::{Ended, Kafka, Program, free_port, user};

#[test]
fn bad_names_are_usage_errors() {
    for (name, rule) in [
        ("", "empty"),
        (&"n".repeat(250), "at most 249"),
        (".", "can't be a name"),
        ("..", "can't be a name"),
        ("a/b", "'/' is not among"),
        ("__x", "starts with '__'"),
        ("a b", "a space is not among"),
        ("tuấn", "'ấ' is not among"),
    ] {
        for program in ["publisher", "subscriber", "chat"] {
            Program::ours(
                program,
                &[name, "bob"][..1 + usize::from(program != "subscriber")],
            )
            .run()
            .code(2)
            .says(&[&rule.replace("starts with", "start with")]);
        }
        Program::ours("publisher", &["alice", name])
            .run()
            .code(2)
            .says(&[&rule.replace("starts with", "start with")]);
    }
}

#[test]
fn a_bad_answer_on_a_pipe_is_a_usage_error() {
    Program::ours("publisher", &[])
        .input("alice\na/b\n")
        .run()
        .code(2)
        .says(&["'a/b' can't be a name"]);
}

#[test]
fn input_that_ends_before_a_name_is_a_usage_error() {
    for program in ["publisher", "subscriber", "chat"] {
        Program::ours(program, &[])
            .input("")
            .run()
            .code(2)
            .says(&["standard input ended before it gave a name"]);
    }
}

#[test]
fn a_chat_with_oneself_is_a_usage_error() {
    Program::ours("chat", &["alice", "alice"])
        .run()
        .code(2)
        .says(&["the two names are the same: alice"]);
}

#[test]
fn where_to_start_is_one_of_what_help_names() {
    for (options, sentence) in [
        (
            &["--from", "yesterday"][..],
            "expected latest, earliest, a time",
        ),
        (&["--from", "2026-02-30"], "or how long ago (90s"),
        (&["--from", "9999-01-01"], "that time is in the future"),
        (&["--last", "-1"], "unexpected argument"),
        (&["--last", "ten"], "invalid digit"),
        (&["--last", "1000001"], "1000001 is not in 0..=1000000"),
        (&["--last", "5", "--from", "1h"], "cannot be used with"),
    ] {
        let subscriber = Program::ours("subscriber", &["bob"]).args(options);
        subscriber.run().code(2).says(&[sentence]);
    }
}

#[test]
fn empty_input_is_delivered_as_no_line() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    on.send(&me, &peer, "");
    assert_eq!(on.log(&peer), "");
}

#[test]
fn a_property_without_a_value_is_a_usage_error_that_does_not_repeat_it() {
    Program::ours("subscriber", &["bob", "-X", "sasl.password hush"])
        .run()
        .code(2)
        .says(&["has no '='"])
        .does_not_say("hush");
}

#[cfg(feature = "librdkafka")]
#[test]
fn a_property_that_would_make_the_programs_lie_is_a_usage_error() {
    let server = format!("127.0.0.1:{}", free_port());
    for property in ["acks=0", "delivery.report.only.error=true"] {
        Program::ours(
            "publisher",
            &["alice", "bob", "-b", &server, "-X", property],
        )
        .input("x\n")
        .run()
        .code(2)
        .says(&[property.split('=').next().unwrap(), "cannot be set"]);
    }
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    Program::ours("chat", &["--nonsense"])
        .run()
        .code(2)
        .says(&["--nonsense"]);
}

#[test]
fn a_bootstrap_server_that_is_no_host_and_port_is_a_usage_error() {
    for server in ["http://a:9092", "a:b", "a:0", ""] {
        Program::ours("subscriber", &["bob", "-b", server])
            .run()
            .code(2)
            .says(&["is not HOST:PORT"]);
    }
}

#[test]
fn a_named_address_without_a_listener_is_an_error_and_starts_no_broker() {
    let server = format!("127.0.0.1:{}", free_port());
    for program in ["publisher", "chat"] {
        Program::ours(program, &["alice", "bob", "-b", &server])
            .input("x\n")
            .run()
            .code(1)
            .says(&[&server, "connection refused"]);
    }
    Program::ours("subscriber", &["bob"])
        .env("KAFKA_BOOTSTRAP_SERVERS", &server)
        .run()
        .code(1)
        .says(&[&server, "connection refused"]);
}

#[test]
fn a_host_name_that_cannot_be_resolved_is_named() {
    Program::ours("subscriber", &["bob", "-b", "nowhere.invalid:9092"])
        .run()
        .code(1)
        .says(&["nowhere.invalid:9092", "resolved"]);
}

/// A server that reads 16 bytes, answers with `answer`, and keeps the connection open.
fn server(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 16];
            // A client that only checks whether the port is open sends nothing.
            if stream.read_exact(&mut request).is_ok() {
                stream.write_all(answer).unwrap();
            }
            kept.push(stream);
        }
    });
    port
}

#[test]
fn a_web_server_is_not_taken_for_kafka() {
    let port = server(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    Program::ours("subscriber", &["bob", "-b", &format!("127.0.0.1:{port}")])
        .run()
        .code(1)
        .says(&["can't be a Kafka broker", &port.to_string()]);
}

#[test]
fn a_listener_that_never_answers_is_an_error() {
    let port = server(b"");
    Program::ours("subscriber", &["bob", "-b", &format!("127.0.0.1:{port}")])
        .run()
        .code(1)
        .says(&["gave no answer within 5 seconds"]);
}

/// A server that closes each connection after the first bytes.
fn closing() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
        }
    });
    port
}

/// Addresses of what is no broker: nothing listens there, or it is silent, closes, or speaks HTTP.
fn no_brokers() -> [String; 4] {
    let http = server(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    [free_port(), server(b""), closing(), http].map(|port| format!("127.0.0.1:{port}"))
}

pub(crate) fn another_server_is_used_where_the_first_is_no_broker(on: &Kafka) {
    let _running = on.keep_running();
    let (me, peer) = (user("alice"), user("bob"));
    for first in no_brokers() {
        let both = Kafka::Real(format!("{first},{}", on.servers()));
        both.send(&me, &peer, format!("past {first}\n"));
        assert!(both.log(&peer).ends_with(&format!("past {first}\n")));
    }
}

#[test]
fn another_server_is_used_where_the_first_is_no_broker_beside_a_small_broker() {
    another_server_is_used_where_the_first_is_no_broker(&Kafka::embedded());
}

#[test]
fn each_server_is_named_with_its_reason_where_none_is_a_broker() {
    let servers = no_brokers();
    let ended = Program::ours("subscriber", &["bob", "-b", &servers.join(",")]).run();
    let ended = ended.code(1);
    for (server, why) in servers.iter().zip([
        "connection refused",
        "gave no answer within 5 seconds",
        "closed the connection",
        "not in Kafka's protocol",
    ]) {
        let mut lines = ended.stderr.lines();
        let is_named = lines.any(|line| line.contains(server) && line.contains(why));
        assert!(is_named, "{server}: {why}\n{}", ended.report());
    }
}

#[test]
fn a_port_that_another_program_serves_is_an_error_for_the_small_broker() {
    let port = server(b"SSH-2.0-OpenSSH_9\r\n");
    let dir = tempfile::tempdir().unwrap();
    Program::ours(
        "publisher",
        &["alice", "bob", &format!("--embedded={port}")],
    )
    .env("KAFKA_CHAT_DATA_DIR", dir.path())
    .input("x\n")
    .run()
    .code(1)
    .says(&[
        &port.to_string(),
        "can't be a Kafka broker",
        "--embedded=PORT",
    ]);
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let inner = file.join("inner");
    Program::ours("publisher", &["alice", "bob", "--data-dir"])
        .arg(&inner)
        .arg(format!("--embedded={}", free_port()))
        .input("x\n")
        .run()
        .code(1)
        .says(&[
            &inner.display().to_string(),
            "Name a writable directory with --data-dir",
        ]);
}

/// A subscriber of a topic of one sender's lines, which a shell runs as `"$0" "$@"`.
fn subscriber_in_shell(script: &str, lines: &str) -> Ended {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    on.send(&me, &peer, lines);
    let subscriber = env!("CARGO_BIN_EXE_subscriber");
    let embedded = format!("--embedded={}", on.servers().rsplit(':').next().unwrap());
    Program::other("bash", &["-c", script, subscriber, &peer, &embedded])
        .args(["--from", "earliest", "--data-dir"])
        .arg(on.dir())
        .run()
}

#[test]
fn a_pipe_that_is_closed_ends_a_subscriber_with_success() {
    let script = "set -o pipefail; \"$0\" \"$@\" | head -1";
    subscriber_in_shell(script, "one\ntwo\nthree\n")
        .code(0)
        .prints("one\n");
}

#[test]
fn output_to_a_full_disk_is_an_error() {
    subscriber_in_shell("exec \"$0\" \"$@\" > /dev/full", "one\n")
        .code(1)
        .says(&["cannot write to standard output"]);
}
