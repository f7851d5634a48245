//! One way, on any Kafka: `subscriber` prints what `publisher` has read.

use std::io::{Seek, Write};

use kafka_chat::client::MAX_RECORD_BYTES;

use crate::support::{Capture, Kafka, PATIENCE, Program, contains, random_lines, user};
use crate::tty::CTRL_C;

/// Sends `input`, and reads it from the start of the log.
fn there_and_back(on: &Kafka, input: &[u8], lines: usize) {
    // Its log does not have to be checked again for each reader.
    let _host = on.keep_running();
    let (me, peer) = (user("alice"), user("bob"));
    let count = lines.to_string();
    on.send(&me, &peer, input);
    for options in [&["-n", &count][..], &["--until-end"]] {
        on.program("subscriber", &[&peer, "--from", "earliest"])
            .args(options)
            .run()
            .code(0)
            .prints(input);
    }
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
    on.send(&me, &peer, &input[..]);
    subscriber.wait().code(0).prints(input);
}

pub(crate) fn any_bytes_but_a_line_ending_make_a_line(on: &Kafka) {
    let mut input = Vec::new();
    input.extend(b"plain\n\n\n \xff\xfe\x80 invalid UTF-8\nb\0c\r\n\x1b[2Jclear\n");
    input.extend("xin chào 你好 🎉\n".bytes());
    input.extend(vec![b'x'; 900_000]);
    input.extend(b"\nend\n");
    there_and_back(on, &input, 9);
}

pub(crate) fn the_last_line_needs_no_ending(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    on.send(&me, &peer, "one\ntwo");
    assert_eq!(on.log(&peer), "one\ntwo\n");
}

pub(crate) fn random_bytes_come_out_byte_for_byte(on: &Kafka, lines: usize) {
    there_and_back(on, &random_lines(7, lines, 100), lines);
}

pub(crate) fn each_line_is_sent_before_the_next_one_is_written(on: &Kafka) {
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

pub(crate) fn a_subscriber_shows_only_lines_sent_after_its_start(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    on.send(&me, &peer, "before\n");
    let subscriber = on.program("subscriber", &[&peer]).on_a_terminal();
    subscriber.wait_for("waiting for messages");
    on.send(&me, &peer, "after\n");
    subscriber.wait_for("after");
    subscriber.has_not_shown("before");
}

pub(crate) fn a_line_that_is_too_long_is_named_and_the_others_are_sent(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let mut input = b"first\n".to_vec();
    input.extend(vec![b'y'; 2_000_000]);
    input.extend(b"\nthird\n");
    on.program("publisher", &[&me, &peer])
        .input(input)
        .run()
        .code(1)
        .says(&["1 of 3 lines was not delivered", "line 2: 2000000 bytes"]);
    assert_eq!(on.log(&peer), "first\nthird\n");
}

/// A line that would fit into a record without its sender's name.
pub(crate) fn a_line_that_is_too_long_with_its_key_is_named_and_the_others_are_sent(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let mut input = b"first\n".to_vec();
    input.extend(vec![b'y'; MAX_RECORD_BYTES]);
    input.push(b'\n');
    let rest: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    input.extend(rest.bytes());
    on.program("publisher", &[&me, &peer])
        .input(input)
        .run()
        .code(1)
        .says(&[
            "1 of 1002 lines was not delivered:\n  line 2: ",
            "too large: a broker takes about 1 MB",
        ]);
    assert_eq!(on.log(&peer), format!("first\n{rest}"));
}

#[test]
fn a_publisher_shows_its_progress_and_notices_above_it() {
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
    let are_two_notices = match shown[..] {
        [lost, back] => {
            lost.starts_with("connection to ")
                && lost.ends_with(", retrying")
                && back.starts_with("connection to ")
                && back.ends_with(" is back")
        }
        _ => false,
    };
    assert!(are_two_notices, "{}", publisher.report());
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
    let is_shown = contains(&raw, b" of 4.77 MiB (");
    assert!(is_shown, "{}", String::from_utf8_lossy(&raw));
    assert_eq!(publisher.screen(), "");
}

#[test]
fn a_publisher_without_a_terminal_prints_nothing() {
    let on = Kafka::embedded();
    let _broker = on.host();
    let publisher = on
        .program("publisher", &["alice", "bob"])
        .input("one\ntwo\n");
    let ended = publisher.run().code(0).prints("");
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_subscriber_says_once_that_it_waits_and_only_on_a_terminal() {
    let on = Kafka::embedded();
    let _broker = on.host();
    let bob = on.program("subscriber", &["bob"]).on_a_terminal();
    let piped = on.program("subscriber", &["bob", "--from", "earliest"]);
    let (piped, output) = piped.piped_on_a_terminal();
    let output = Capture::of(output);
    bob.wait_for("waiting for messages to bob; Ctrl-C ends");
    on.send("alice", "bob", "hello\n");
    bob.wait_for("hello");
    let is_printed = output.wait(PATIENCE, |bytes| bytes == b"hello\n");
    assert!(is_printed, "{:?}\n{}", output.bytes(), piped.report());
    bob.keys(CTRL_C);
    piped.keys(CTRL_C);
    bob.ends_with(0).has_shown_times("waiting", 1);
    assert_eq!(piped.ends_with(0).screen(), "^C");
}

pub(crate) fn an_interrupted_publisher_says_up_to_which_line_all_was_delivered(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let line = "x".repeat(999) + "\n";
    let publisher = on
        .program("publisher", &[&me, &peer])
        .endless_input(&line[..])
        .start();
    on.first_lines(&peer, 100);
    publisher.signal("INT");
    let ended = publisher.wait().code(1);
    let number = |word: Option<&str>| -> usize {
        let number = word.and_then(|word| word.parse().ok());
        number.unwrap_or_else(|| panic!("no count of lines\n{}", ended.report()))
    };
    // Before it, the publisher may have said that it hosts the broker.
    let (_, verdict) = ended.stderr.rsplit_once("publisher: ").unwrap();
    let mut words = verdict.split(' ');
    let (undelivered, lines) = match ended.stderr.contains("interrupted after ") {
        true => (0, number(words.nth(2))),
        // On a slow machine the end comes before the last acknowledgements.
        false => (number(words.next()), number(words.nth(1))),
    };
    let there = on.log_bytes(&peer, &[]).len() / line.len();
    let is_right = (lines - undelivered..=lines).contains(&there);
    assert!(is_right, "{there} are there\n{}", ended.report());
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
    on.first_lines("bob", 1);
    publisher.signal("HUP");
    publisher.write("two\n");
    publisher.close();
    publisher.wait().code(0);
    assert_eq!(on.log("bob"), "one\ntwo\n");
}

mod embedded {
    use crate::support::on_the_small_broker;

    on_the_small_broker! {
        a_pipe_comes_out_as_it_went_in(100_000);
        any_bytes_but_a_line_ending_make_a_line();
        the_last_line_needs_no_ending();
        random_bytes_come_out_byte_for_byte(100_000);
        each_line_is_sent_before_the_next_one_is_written();
        names_left_out_are_asked_for();
        a_subscriber_shows_only_lines_sent_after_its_start();
        a_line_that_is_too_long_is_named_and_the_others_are_sent();
        a_line_that_is_too_long_with_its_key_is_named_and_the_others_are_sent();
        an_interrupted_publisher_says_up_to_which_line_all_was_delivered();
    }
}
