//! The one-way demo, on any Kafka: what `publisher` takes, `subscriber` prints.

use std::io::{Seek, Write};
use std::time::Duration;

use kafka_chat::client::MAX_RECORD_BYTES;

use crate::support::{Capture, Kafka, Program, random_lines, user};
use crate::tty::CTRL_C;

/// Sends `input` and reads it back from the start of the log.
fn there_and_back(on: &Kafka, input: &[u8], lines: usize) {
    let (me, peer) = (user("alice"), user("bob"));
    let count = lines.to_string();
    on.program("publisher", &[&me, &peer])
        .input(input)
        .run()
        .code(0);
    on.program("subscriber", &[&peer, "--from", "earliest", "-n", &count])
        .run()
        .code(0)
        .prints(input);
    on.program("subscriber", &[&peer, "--from", "earliest", "--until-end"])
        .run()
        .code(0)
        .prints(input);
}

/// `seq N | publisher alice bob` beside `subscriber bob --count N`.
pub(crate) fn a_pipe_comes_out_as_it_went_in(on: &Kafka, lines: usize) {
    let (me, peer) = (user("alice"), user("bob"));
    let input: Vec<u8> = (1..=lines)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect();
    let count = lines.to_string();
    let subscriber = on
        .program("subscriber", &[&peer, "--from", "earliest", "-n", &count])
        .start();
    on.program("publisher", &[&me, &peer])
        .input(input.clone())
        .run()
        .code(0);
    subscriber.wait().code(0).prints(input);
}

pub(crate) fn any_bytes_but_a_line_ending_are_a_line(on: &Kafka) {
    let mut input = Vec::new();
    input.extend(b"plain\n\n\n \xff\xfe\x80 invalid UTF-8\nb\0c\r\n\x1b[2Jclear\n");
    input.extend("xin chào 你好 🎉\n".bytes());
    input.extend(vec![b'x'; 900_000]);
    input.extend(b"\nend\n");
    there_and_back(on, &input, 9);
}

pub(crate) fn the_last_line_needs_no_ending(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    on.program("publisher", &[&me, &peer])
        .input("one\ntwo")
        .run()
        .code(0);
    on.program("subscriber", &[&peer, "--from", "earliest", "-e"])
        .run()
        .code(0)
        .prints("one\ntwo\n");
}

pub(crate) fn random_bytes_come_out_byte_for_byte(on: &Kafka, lines: usize) {
    there_and_back(on, &random_lines(7, lines, 100), lines);
}

pub(crate) fn one_line_typed_leaves_at_once(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let subscriber = on
        .program(
            "subscriber",
            &[&peer, "--from", "earliest", "--show-sender"],
        )
        .start();
    let mut publisher = on.program("publisher", &[&me, &peer]).start();
    for line in ["one", "two", "three"] {
        publisher.write(format!("{line}\n"));
        subscriber.wait_for(&format!("{me}: {line}\n"));
    }
    publisher.close();
    publisher.wait().code(0);
}

pub(crate) fn names_left_out_are_asked_for(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    on.program("publisher", &[])
        .input(format!("{me}\n{peer}\nhello\n"))
        .run()
        .code(0)
        .says(&["What is your name? ", "Who do you want to connect to? "]);
    on.program("subscriber", &["--from", "earliest", "-e", "-s"])
        .input(format!("{peer}\n"))
        .run()
        .code(0)
        .says(&["What is your name? "])
        .prints(format!("{me}: hello\n"));
}

pub(crate) fn latest_shows_only_what_comes_later(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let send = |line: &str| {
        on.program("publisher", &[&me, &peer])
            .input(format!("{line}\n"))
            .run()
            .code(0);
    };
    send("before");
    let subscriber = on.program("subscriber", &[&peer]).start();
    // Nothing tells when its start is settled, but a line that it shows.
    while !subscriber
        .stdout
        .wait(std::time::Duration::from_millis(200), |out| !out.is_empty())
    {
        send("after");
    }
    let shown = subscriber.stdout.bytes();
    assert!(!crate::support::contains(&shown, b"before"), "{shown:?}");
}

pub(crate) fn lines_too_long_are_named_and_the_others_go_on(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let mut input = b"first\n".to_vec();
    input.extend(vec![b'y'; 2_000_000]);
    input.extend(b"\nthird\n");
    on.program("publisher", &[&me, &peer])
        .input(input)
        .run()
        .code(1)
        .says(&["1 of 3 lines was not delivered", "line 2: 2000000 bytes"]);
    on.program("subscriber", &[&peer, "--from", "earliest", "-e"])
        .run()
        .code(0)
        .prints("first\nthird\n");
}

/// A line that would fit, but not beside its sender's name.
pub(crate) fn a_line_too_long_only_with_its_key_is_named_and_the_others_go_on(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let mut input = b"first\n".to_vec();
    input.extend(vec![b'y'; MAX_RECORD_BYTES]);
    input.push(b'\n');
    let behind: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    input.extend(behind.bytes());
    on.program("publisher", &[&me, &peer])
        .input(input)
        .run()
        .code(1)
        .says(&["1 of 1002 lines was not delivered", "line 2: too large"]);
    on.program("subscriber", &[&peer, "--from", "earliest", "-e"])
        .run()
        .code(0)
        .prints(format!("first\n{behind}"));
}

#[test]
fn a_publisher_shows_its_progress_and_notices_beside_it() {
    let on = Kafka::embedded();
    let broker = on.host();
    let (input, mut lines) = std::io::pipe().unwrap();
    let publisher = on
        .by_address()
        .program("publisher", &["alice", "bob"])
        .fed_on_a_terminal(input);
    lines.write_all(b"one\ntwo\nthree\n").unwrap();
    publisher.wait_for("3 lines, 14 B, ");
    drop(broker);
    lines.write_all(b"four\n").unwrap();
    publisher.wait_for(" lost (");
    publisher.wait_for("4 lines, 19 B, ");
    let _broker = on.host();
    publisher.wait_for(" is back");
    drop(lines);
    let publisher = publisher.ends_with(0);
    let history = publisher.history();
    let shown: Vec<&str> = history.lines().filter(|line| !line.is_empty()).collect();
    let [lost, back] = shown[..] else {
        panic!("not two notices:\n{history}")
    };
    assert!(
        lost.starts_with("connection to ") && lost.ends_with(", retrying"),
        "{history}"
    );
    assert!(
        back.starts_with("connection to ") && back.ends_with(" is back"),
        "{history}"
    );
}

#[test]
fn a_publisher_shows_how_far_through_a_file_it_is() {
    let on = Kafka::embedded();
    let _broker = on.host();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&random_lines(3, 50_000, 99)).unwrap();
    file.rewind().unwrap();
    let publisher = on
        .program("publisher", &["alice", "bob"])
        .fed_on_a_terminal(file);
    let publisher = publisher.ends_with(0);
    let raw = publisher.raw();
    let raw = String::from_utf8_lossy(&raw);
    assert!(raw.contains(" of 4.77 MiB ("), "{raw}");
    assert_eq!(publisher.screen(), "");
}

#[test]
fn a_publisher_without_a_terminal_says_nothing() {
    let on = Kafka::embedded();
    let _broker = on.host();
    let publisher = on
        .program("publisher", &["alice", "bob"])
        .input("one\ntwo\n");
    let ended = publisher.run().code(0).prints("");
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_subscriber_that_waits_says_so_once_and_only_on_a_terminal() {
    let on = Kafka::embedded();
    let _broker = on.host();
    let bob = on.program("subscriber", &["bob"]).on_a_terminal(24, 80);
    let (other, output) = on.program("subscriber", &["bob"]).piped_on_a_terminal();
    let output = Capture::of(output);
    bob.wait_for("waiting for messages to bob; Ctrl-C ends");
    let mut alice = on.program("publisher", &["alice", "bob"]).start();
    // Nothing tells when the other one's start is settled, but a line that it shows.
    while !output.wait(Duration::from_millis(200), |out| !out.is_empty()) {
        alice.write("hello\n");
    }
    bob.wait_for("hello");
    bob.keys(CTRL_C);
    other.keys(CTRL_C);
    let history = bob.ends_with(0).history();
    assert_eq!(history.matches("waiting").count(), 1, "{history}");
    assert_eq!(other.ends_with(0).screen(), "^C");
    assert!(output.bytes().starts_with(b"hello\n"));
}

pub(crate) fn an_interrupted_pipe_is_told_up_to_which_line_it_was_delivered(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    // Long ones, so that few are under way: at its end a publisher waits for them no longer than 0.7 s.
    let line = "x".repeat(999) + "\n";
    let publisher = on
        .program("publisher", &[&me, &peer])
        .input(line.repeat(100_000))
        .start();
    on.program("subscriber", &[&peer, "--from", "earliest", "-n", "100"])
        .run()
        .code(0);
    publisher.signal("INT");
    let ended = publisher.wait().code(1);
    let number = |words: Option<&str>| -> usize { words.unwrap().parse().expect(&ended.stderr) };
    // Before it, the publisher may have said that it runs the broker.
    let (_, verdict) = ended.stderr.rsplit_once("publisher: ").unwrap();
    let mut words = verdict.split(' ');
    let (undelivered, lines) = match ended.stderr.contains("interrupted after ") {
        true => (0, number(words.nth(2))),
        // On a slow machine there was no time for the last ones, which are named then.
        false => (number(words.next()), number(words.nth(1))),
    };
    let log = on
        .program("subscriber", &[&peer, "--from", "earliest", "-e"])
        .run()
        .code(0);
    let there = log.stdout.len() / line.len();
    assert!(
        (lines - undelivered..=lines).contains(&there),
        "{there} are there: {}",
        ended.stderr
    );
}

#[test]
fn a_publisher_that_nohup_has_started_outlives_its_terminal() {
    let on = Kafka::embedded();
    let _broker = on.host();
    let servers = on.servers();
    let mut publisher = Program::other("sh", &["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_publisher"))
        .args(["alice", "bob", "-b", &servers])
        .start();
    publisher.write("one\n");
    let subscriber = on.program("subscriber", &["bob", "--from", "earliest", "-n", "2"]);
    let subscriber = subscriber.start();
    subscriber.wait_for("one\n");
    publisher.signal("HUP");
    publisher.write("two\n");
    publisher.close();
    publisher.wait().code(0);
    subscriber.wait().code(0).prints("one\ntwo\n");
}

macro_rules! on_the_embedded_broker {
    ($($name:ident($($argument:expr),*);)*) => {
        $(#[test] fn $name() { super::$name(&Kafka::embedded() $(, $argument)*); })*
    };
}

mod embedded {
    use crate::support::Kafka;

    on_the_embedded_broker! {
        a_pipe_comes_out_as_it_went_in(100_000);
        any_bytes_but_a_line_ending_are_a_line();
        the_last_line_needs_no_ending();
        random_bytes_come_out_byte_for_byte(100_000);
        one_line_typed_leaves_at_once();
        names_left_out_are_asked_for();
        latest_shows_only_what_comes_later();
        lines_too_long_are_named_and_the_others_go_on();
        a_line_too_long_only_with_its_key_is_named_and_the_others_go_on();
        an_interrupted_pipe_is_told_up_to_which_line_it_was_delivered();
    }
}
