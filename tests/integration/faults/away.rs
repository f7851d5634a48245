//! What a person sees of a broker that is away, and what becomes of the lines meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::check::said_undelivered;
use crate::support::{Ended, Kafka, Running, user};
use crate::tty::{CTRL_C, CTRL_D, Tty};

/// A program that runs the embedded broker, and others that don't take over from it.
struct Away {
    on: Kafka,
    host: Option<Running>,
}

impl Away {
    fn new() -> Away {
        let mut away = Away {
            on: Kafka::embedded(),
            host: None,
        };
        away.come_back();
        away
    }

    /// The way of clients that never host.
    fn clients(&self) -> Kafka {
        Kafka::Real(self.on.servers())
    }

    fn go_away(&mut self) {
        let host = self.host.take().unwrap();
        host.signal("KILL");
        host.wait();
    }

    fn come_back(&mut self) {
        let host = self.on.program("subscriber", &["nobody"]).start();
        host.wait_for_notice("small broker");
        self.host = Some(host);
    }

    /// What lies in a topic.
    fn log(&self, topic: &str) -> String {
        let log = self
            .clients()
            .program("subscriber", &[topic, "--from", "earliest", "-e"])
            .run()
            .code(0);
        String::from_utf8(log.stdout).unwrap()
    }

    /// The file that a topic's messages lie in.
    fn segment(&self, topic: &str) -> PathBuf {
        let mut folders = vec![self.on.dir().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "log")
                    && path.display().to_string().contains(topic)
                {
                    return path;
                }
            }
        }
        panic!("{topic} has no messages");
    }
}

/// Opens a chat, up to its prompt.
pub(super) fn chat(on: &Kafka, me: &str, peer: &str, options: &[&str]) -> Tty {
    let chat = on
        .program("chat", &[&[me, peer], options].concat())
        .on_a_terminal(24, 100);
    chat.wait_for(&format!("{me}>"));
    chat
}

#[test]
fn a_chat_says_once_that_the_broker_is_away_and_sends_what_waited_when_it_is_back() {
    let mut broker = Away::new();
    let (me, peer) = (user("alice"), user("bob"));
    let alice = chat(&broker.clients(), &me, &peer, &[]);
    alice.line("zero");
    broker.go_away();
    alice.wait_for(&format!("connection to {} lost", broker.on.servers()));
    alice.wait_for("retrying");
    alice.line("one");
    alice.line("two");
    alice.wait_for("two");
    broker.come_back();
    alice.wait_for(&format!("connection to {} is back", broker.on.servers()));
    let bob = chat(&broker.clients(), &peer, &me, &[]);
    bob.wait_for(&format!("{me}: two"));
    bob.line("three");
    alice.wait_for(&format!("{peer}: three"));
    alice.keys(CTRL_D);
    let history = alice.ends_with(0).history();
    for notice in ["lost", "is back"] {
        assert_eq!(history.matches(notice).count(), 1, "{notice}\n{history}");
    }
    assert_eq!(broker.log(&peer), "zero\none\ntwo\n");
}

#[test]
fn ctrl_c_while_the_broker_is_away_ends_a_chat_at_once_and_names_the_lines() {
    let mut broker = Away::new();
    let (me, peer) = (user("alice"), user("bob"));
    let alice = chat(&broker.clients(), &me, &peer, &[]);
    broker.go_away();
    alice.wait_for("lost");
    alice.line("one");
    alice.line("two");
    alice.wait_for("two");
    let start = Instant::now();
    alice.keys(CTRL_C);
    let history = alice.ends_with(1).history();
    let took = start.elapsed();
    assert!(took < Duration::from_millis(1300), "{took:?}");
    for part in [
        "2 of 2 lines were not delivered",
        "'one': not acknowledged yet",
        "'two': not acknowledged yet",
    ] {
        assert!(history.contains(part), "no {part:?}\n{history}");
    }
}

#[test]
fn a_chat_gives_lines_up_after_the_delivery_timeout_and_says_so() {
    let mut broker = Away::new();
    let (me, peer) = (user("alice"), user("bob"));
    let options = ["--delivery-timeout", "1"];
    let alice = chat(&broker.clients(), &me, &peer, &options);
    broker.go_away();
    alice.line("one");
    alice.wait_for("'one' was not delivered");
    broker.come_back();
    alice.wait_for("is back");
    alice.line("two");
    let bob = chat(&broker.clients(), &peer, &me, &[]);
    bob.wait_for(&format!("{me}: two"));
    alice.keys(CTRL_D);
    let history = alice.ends_with(1).history();
    assert!(
        history.contains("1 of 2 lines was not delivered"),
        "{history}"
    );
    assert_eq!(broker.log(&peer), "two\n");
}

/// Fails unless a publisher's last words name these of the lines it was given. They may name line 1, too:
/// that a reader has seen it doesn't mean that its acknowledgement arrived.
#[track_caller]
fn assert_named<const N: usize>(publisher: &Ended, given: u64, lines: [u64; N]) {
    let mut named = said_undelivered(&publisher.stderr, given).unwrap();
    named.remove(&1);
    assert_eq!(named, BTreeSet::from(lines), "{}", publisher.report());
}

#[test]
fn a_publisher_whose_broker_is_gone_for_good_names_the_lines() {
    let mut broker = Away::new();
    let (me, peer) = (user("alice"), user("bob"));
    let mut publisher = broker
        .clients()
        .program("publisher", &[&me, &peer, "--delivery-timeout", "2"])
        .start();
    publisher.write("one\n");
    let reader = broker
        .clients()
        .program("subscriber", &[&peer, "--from", "earliest"])
        .start();
    reader.wait_for("one\n");
    broker.go_away();
    publisher.write("two\nthree\n");
    publisher.close();
    let start = Instant::now();
    let ended = publisher.wait().code(1).says(&[
        "of 3 lines were not delivered",
        "not acknowledged within 2 seconds (no broker can be reached)",
    ]);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_named(&ended, 3, [2, 3]);
    assert_eq!(ended.stderr.matches("lost").count(), 1, "{}", ended.stderr);
}

#[test]
fn a_publisher_that_is_interrupted_while_the_broker_is_away_ends_at_once() {
    let mut broker = Away::new();
    let (me, peer) = (user("alice"), user("bob"));
    let mut publisher = broker.clients().program("publisher", &[&me, &peer]).start();
    publisher.write("one\n");
    let reader = broker
        .clients()
        .program("subscriber", &[&peer, "--from", "earliest"])
        .start();
    reader.wait_for("one\n");
    broker.go_away();
    publisher.write("two\n");
    publisher.wait_for_notice("lost");
    let start = Instant::now();
    publisher.signal("INT");
    let ended = publisher.wait().code(1).says(&["not acknowledged yet"]);
    assert_named(&ended, 2, [2]);
    let took = start.elapsed();
    assert!(took < Duration::from_millis(1300), "{took:?}");
}

#[test]
fn a_reader_of_a_log_that_lost_its_end_shows_nothing_again_and_says_so_once() {
    let mut broker = Away::new();
    let (me, peer) = (user("alice"), user("bob"));
    let send = |broker: &Away, lines: &str| {
        let publisher = broker.clients().program("publisher", &[&me, &peer]);
        publisher.input(lines).run().code(0);
    };
    send(&broker, "one\ntwo\nthree\n");
    let reader = broker
        .clients()
        .program("subscriber", &[&peer, "--from", "earliest"])
        .start();
    reader.wait_for("three\n");
    broker.go_away();
    let segment = fs::File::options()
        .write(true)
        .open(broker.segment(&peer))
        .unwrap();
    segment
        .set_len(segment.metadata().unwrap().len() - 1)
        .unwrap();
    broker.come_back();
    reader.wait_for_notice("may have been missed");
    send(&broker, "four\n");
    reader.wait_for("four\n");
    assert_eq!(
        String::from_utf8(reader.stdout.bytes()).unwrap(),
        "one\ntwo\nthree\nfour\n"
    );
    let notices = String::from_utf8(reader.stderr.bytes()).unwrap();
    assert_eq!(notices.matches("missed").count(), 1, "{notices}");
}

#[test]
fn a_reader_of_a_topic_that_was_deleted_and_made_again_shows_all_of_the_new_one() {
    let mut broker = Away::new();
    let (me, peer) = (user("alice"), user("bob"));
    let send = |broker: &Away, lines: &str| {
        let publisher = broker.clients().program("publisher", &[&me, &peer]);
        publisher.input(lines).run().code(0);
    };
    send(&broker, "one\ntwo\nthree\n");
    let reader = broker
        .clients()
        .program("subscriber", &[&peer, "--from", "earliest"])
        .start();
    reader.wait_for("three\n");
    broker.go_away();
    fs::remove_file(broker.segment(&peer)).unwrap();
    broker.come_back();
    send(&broker, "four\n");
    reader.wait_for("four\n");
    assert_eq!(
        String::from_utf8(reader.stdout.bytes()).unwrap(),
        "one\ntwo\nthree\nfour\n"
    );
    let notices = String::from_utf8(reader.stderr.bytes()).unwrap();
    assert_eq!(notices.matches("missed").count(), 1, "{notices}");
}
