//! What can be wrong: each a clear sentence, the right exit code, and nothing lost.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use crate::support::{Kafka, Program, free_port, user};

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
fn input_that_ends_before_it_names_anybody_is_a_usage_error() {
    for program in ["publisher", "subscriber", "chat"] {
        Program::ours(program, &[])
            .input("")
            .run()
            .code(2)
            .says(&["standard input ended before it gave a name"]);
    }
}

#[test]
fn nobody_chats_with_themselves() {
    Program::ours("chat", &["alice", "alice"])
        .run()
        .code(2)
        .says(&["alice can't chat with themselves"]);
}

#[test]
fn nothing_to_send_is_sent_and_that_is_fine() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    on.program("publisher", &[&me, &peer])
        .input("")
        .run()
        .code(0);
    on.program("subscriber", &[&peer, "--from", "earliest", "-e"])
        .run()
        .code(0)
        .prints("");
}

#[test]
fn a_property_that_is_none_is_a_usage_error_that_keeps_its_secret() {
    Program::ours("subscriber", &["bob", "-X", "sasl.password hush"])
        .run()
        .code(2)
        .says(&["has no '='"])
        .does_not_say("hush");
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    Program::ours("chat", &["--nonsense"])
        .run()
        .code(2)
        .says(&["--nonsense"]);
}

#[test]
fn a_bootstrap_server_that_is_none_is_a_usage_error() {
    for server in ["http://a:9092", "a:b", "a:0", ""] {
        Program::ours("subscriber", &["bob", "-b", server])
            .run()
            .code(2)
            .says(&["is no HOST:PORT"]);
    }
}

#[test]
fn nobody_at_the_address_is_an_error_and_never_the_embedded_broker() {
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
fn a_name_without_an_address_is_named() {
    Program::ours("subscriber", &["bob", "-b", "nowhere.invalid:9092"])
        .run()
        .code(1)
        .says(&["nowhere.invalid:9092", "resolved"]);
}

/// A server that reads a little, answers with `answer`, and keeps the connection.
fn server(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 16];
            // The one who only looks whether anybody is here sends nothing.
            if stream.read_exact(&mut request).is_ok() {
                stream.write_all(answer).unwrap();
            }
            kept.push(stream);
        }
    });
    port
}

#[test]
fn a_web_server_is_no_kafka() {
    let port = server(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    Program::ours("subscriber", &["bob", "-b", &format!("127.0.0.1:{port}")])
        .run()
        .code(1)
        .says(&["can't be a Kafka broker", &port.to_string()]);
}

#[test]
fn a_listener_that_never_answers_is_given_up_after_five_seconds() {
    let port = server(b"");
    Program::ours("subscriber", &["bob", "-b", &format!("127.0.0.1:{port}")])
        .start()
        .wait_within(Duration::from_secs(15))
        .code(1)
        .says(&["gave no answer within 5 seconds"]);
}

#[test]
fn the_embedded_broker_does_not_take_another_programs_port() {
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
            "Name a directory that can be written with --data-dir",
        ]);
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_subscriber_quietly() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    on.program("publisher", &[&me, &peer])
        .input("one\ntwo\nthree\n")
        .run()
        .code(0);
    Program::other(
        "bash",
        &[
            "-c",
            "set -o pipefail; \"$0\" \"$@\" | head -1",
            env!("CARGO_BIN_EXE_subscriber"),
            &peer,
            "--from",
            "earliest",
            &format!("--embedded={}", on.servers().rsplit(':').next().unwrap()),
            "--data-dir",
        ],
    )
    .arg(on.dir())
    .run()
    .code(0)
    .prints("one\n");
}

#[test]
fn a_full_disk_under_the_output_is_an_error() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    on.program("publisher", &[&me, &peer])
        .input("one\n")
        .run()
        .code(0);
    Program::other(
        "bash",
        &[
            "-c",
            "exec \"$0\" \"$@\" > /dev/full",
            env!("CARGO_BIN_EXE_subscriber"),
            &peer,
            "--from",
            "earliest",
            &format!("--embedded={}", on.servers().rsplit(':').next().unwrap()),
            "--data-dir",
        ],
    )
    .arg(on.dir())
    .run()
    .code(1)
    .says(&["cannot write to standard output"]);
}
