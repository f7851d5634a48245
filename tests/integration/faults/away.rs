//! What programs say while the broker is away, and what happens to lines in the meantime.

use std::collections::BTreeSet;
use std::fs;

use super::check::named_undelivered;
use super::proxy::{Fault, Proxy};
use crate::support::{A_DAY, Ended, Kafka, PATIENCE, Running, poll_until, user};
use crate::tty::{CTRL_C, CTRL_D};

/// A program that hosts the small broker, and a way to it for clients that never host.
struct Broker {
    on: Kafka,
    host: Option<Running>,
    clients: Kafka,
}

impl Broker {
    fn start() -> Broker {
        let on = Kafka::embedded();
        let host = Some(on.host());
        let clients = on.by_address();
        Broker { on, host, clients }
    }

    fn kill(&mut self) {
        let host = self.host.take().unwrap();
        host.signal("KILL");
        host.wait();
    }

    fn restart(&mut self) {
        self.host = Some(self.on.host());
    }

    /// Takes from the log what tells which offsets of a topic were given already.
    fn forget_offsets(&self, topic: &str) {
        let manifest = self.on.segment(topic).with_file_name("manifest");
        fs::remove_file(manifest).unwrap();
    }
}

/// Fails unless a publisher's error names these of its lines. It may also name line 1: that a reader
/// has seen it does not mean that its acknowledgement has arrived.
#[track_caller]
fn assert_named<const N: usize>(publisher: &Ended, given: u64, lines: [u64; N]) {
    let mut named = named_undelivered(&publisher.stderr, given).unwrap_or_default();
    named.remove(&1);
    assert_eq!(named, BTreeSet::from(lines), "{}", publisher.report());
}

#[test]
fn a_chat_says_once_that_the_broker_is_away_and_sends_the_lines_when_it_is_back() {
    let mut broker = Broker::start();
    let (me, peer) = (user("alice"), user("bob"));
    let alice = broker.clients.chat(&me, &peer);
    alice.line("zero");
    broker.kill();
    alice.wait_for(&format!("connection to {} lost", broker.on.servers()));
    alice.wait_for("retrying");
    alice.line("one");
    alice.line("two");
    alice.wait_for("two");
    broker.restart();
    alice.wait_for(&format!("connection to {} is back", broker.on.servers()));
    let bob = broker.clients.chat(&peer, &me);
    bob.wait_for(&format!("{me}: two"));
    bob.line("three");
    alice.wait_for(&format!("{peer}: three"));
    alice.keys(CTRL_D);
    let alice = alice.ends_with(0);
    alice.has_shown_times("lost", 1);
    alice.has_shown_times("is back", 1);
    assert_eq!(broker.clients.log(&peer), "zero\none\ntwo\n");
}

/// The lines are not given up before the end: it does not wait for the delivery timeout.
#[test]
fn ctrl_c_ends_a_chat_while_the_broker_is_away_and_names_the_lines() {
    let mut broker = Broker::start();
    let (me, peer) = (user("alice"), user("bob"));
    let options = ["--delivery-timeout", A_DAY];
    let alice = broker.clients.chat_with(&me, &peer, &options);
    broker.kill();
    alice.wait_for("lost");
    alice.line("one");
    alice.line("two");
    alice.wait_for(&format!("> two\n{me}>"));
    alice.keys(CTRL_C);
    alice.ends_with(1).has_shown(&[
        "2 of 2 lines may not have arrived",
        "'one': not acknowledged yet",
        "'two': not acknowledged yet",
    ]);
}

/// The broker has the line, and so has bob, but alice can't know.
#[test]
fn a_line_whose_acknowledgement_is_lost_may_not_have_arrived_although_the_peer_has_it() {
    let broker = Broker::start();
    let proxy = Proxy::of(broker.on.port());
    let by_proxy = Kafka::Real(proxy.server());
    let attempt = || {
        let (me, peer) = (user("alice"), user("bob"));
        let bob = broker.clients.chat(&peer, &me);
        let mut alice = by_proxy.chat_with(&me, &peer, &["--delivery-timeout", A_DAY]);
        proxy.arm(Fault::HalfOpenAcknowledgement);
        alice.line("hello");
        proxy.wait();
        bob.wait_for(&format!("{me}: hello"));
        alice.keys(CTRL_D);
        let (status, _) = alice.wait_for_end();
        // On a busy machine she may already have asked again, on another connection.
        (status.code() != Some(0)).then_some(alice)
    };
    let alice = poll_until(PATIENCE, || "without acknowledgement".into(), attempt);
    alice.has_shown(&[
        "1 of 1 line may not have arrived",
        "'hello': not acknowledged yet",
    ]);
    alice.has_not_shown("not delivered");
}

#[test]
fn a_chat_gives_up_a_line_after_the_delivery_timeout_and_says_so() {
    let mut broker = Broker::start();
    let (me, peer) = (user("alice"), user("bob"));
    let options = ["--delivery-timeout", "10"];
    let alice = broker.clients.chat_with(&me, &peer, &options);
    broker.kill();
    // While it looks for earlier lines it does not read, and notices nothing.
    alice.wait_for("lost");
    alice.line("one");
    alice.wait_for("'one' may not have arrived");
    broker.restart();
    alice.wait_for("is back");
    alice.line("two");
    let bob = broker.clients.chat(&peer, &me);
    bob.wait_for(&format!("{me}: two"));
    alice.keys(CTRL_D);
    let alice = alice.ends_with(1);
    alice.has_shown(&["1 of 2 lines may not have arrived"]);
    assert_eq!(broker.clients.log(&peer), "two\n");
}

#[test]
fn a_publisher_whose_broker_stays_away_names_the_lines_after_the_delivery_timeout() {
    let mut broker = Broker::start();
    let (me, peer) = (user("alice"), user("bob"));
    let arguments = [&me, &peer, "--delivery-timeout", "5"];
    let mut publisher = broker.clients.program("publisher", &arguments).start();
    publisher.write("one\n");
    broker.clients.first_lines(&peer, 1);
    broker.kill();
    publisher.write("two\nthree\n");
    publisher.close();
    let ended = publisher.wait().code(1).says(&[
        "of 3 lines may not have arrived",
        "not acknowledged within 5 seconds (no broker can be reached)",
    ]);
    assert_named(&ended, 3, [2, 3]);
    let notices = ended.stderr.matches("lost").count();
    assert_eq!(notices, 1, "{}", ended.report());
}

/// The line is not given up before the end: it does not wait for the delivery timeout.
#[test]
fn a_signal_ends_a_publisher_while_the_broker_is_away() {
    let mut broker = Broker::start();
    let (me, peer) = (user("alice"), user("bob"));
    let arguments = [&me, &peer, "--delivery-timeout", A_DAY];
    let mut publisher = broker.clients.program("publisher", &arguments).start();
    publisher.write("one\n");
    broker.clients.first_lines(&peer, 1);
    broker.kill();
    publisher.write("two\n");
    publisher.wait_for_notice("lost");
    publisher.signal("INT");
    let ended = publisher.wait().code(1).says(&["not acknowledged yet"]);
    assert_named(&ended, 2, [2]);
}

#[test]
fn a_reader_of_a_log_that_lost_its_end_prints_nothing_twice_and_says_once_what_it_may_miss() {
    let mut broker = Broker::start();
    let (me, peer) = (user("alice"), user("bob"));
    broker.clients.send(&me, &peer, "one\ntwo\nthree\n");
    let reader = broker.clients.reader(&peer);
    reader.wait_for("three\n");
    broker.kill();
    let segment = fs::File::options()
        .write(true)
        .open(broker.on.segment(&peer));
    let segment = segment.unwrap();
    let length = segment.metadata().unwrap().len();
    // Two records: the offset of one that is only incomplete is not given again.
    segment.set_len(length / 2).unwrap();
    broker.forget_offsets(&peer);
    broker.restart();
    // Before the log has grown again.
    reader.wait_for_notice("may have been missed");
    broker.clients.send(&me, &peer, "four\n");
    has_read_on(&reader);
}

#[test]
fn a_reader_of_a_topic_that_was_deleted_and_recreated_prints_all_of_the_new_one() {
    let mut broker = Broker::start();
    let (me, peer) = (user("alice"), user("bob"));
    broker.clients.send(&me, &peer, "one\ntwo\nthree\n");
    let reader = broker.clients.reader(&peer);
    reader.wait_for("three\n");
    broker.kill();
    broker.forget_offsets(&peer);
    fs::remove_file(broker.on.segment(&peer)).unwrap();
    broker.restart();
    broker.clients.send(&me, &peer, "four\n");
    has_read_on(&reader);
}

/// Waits for the fourth line, and fails if another one or a second notice was printed.
#[track_caller]
fn has_read_on(reader: &Running) {
    reader.wait_for("four\n");
    reader.wait_for_notice("missed");
    let printed = String::from_utf8(reader.stdout.bytes()).unwrap();
    assert_eq!(printed, "one\ntwo\nthree\nfour\n", "{}", reader.report());
    let notices = String::from_utf8(reader.stderr.bytes()).unwrap();
    assert_eq!(notices.matches("missed").count(), 1, "{}", reader.report());
}
