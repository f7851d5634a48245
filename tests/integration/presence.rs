//! What a chat says about the other: whether they are here, and have read its lines.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Kafka, PATIENCE, poll_until, user};
use crate::tty::{CTRL_D, Tty};

/// What `chat` has said about whether `peer` is here.
#[track_caller]
fn was_told(chat: &Tty, peer: &str, expected: &[&str]) {
    let start = format!("* {peer} ");
    let history = chat.history();
    let told = history.lines().filter_map(|line| line.strip_prefix(&start));
    let told: Vec<&str> = told.filter(|it| !it.contains("not opened")).collect();
    assert_eq!(told, expected, "of {peer}\n{}", chat.report());
}

/// Waits until a chat has said this of its peer for the `times`th time.
#[track_caller]
fn is_told(chat: &Tty, peer: &str, news: &str, times: usize) {
    let news = format!("* {peer} {news}");
    chat.wait(&format!("{news:?}, {times} times"), |screen| {
        screen.contents().matches(&news).count() == times
    });
}

#[track_caller]
fn leaves(chat: Tty) -> Tty {
    chat.keys(CTRL_D);
    chat.ends_with(0)
}

/// Two users, whose names are short enough for a notice to be on one row.
fn two_users() -> (String, String) {
    (user("alice"), user("bob"))
}

pub(crate) fn each_is_told_once_that_the_other_is_here_comes_and_leaves(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = two_users();
    let alice = on.chat(&me, &peer);
    alice.wait_for("has not opened a chat with you yet");
    let bob = on.chat(&peer, &me);
    is_told(&alice, &peer, "is here", 1);
    is_told(&bob, &me, "is here", 1);
    let bob = leaves(bob);
    was_told(&bob, &me, &["is here"]);
    is_told(&alice, &peer, "has left", 1);

    let bob = on.chat(&peer, &me);
    is_told(&bob, &me, "is here", 1);
    is_told(&alice, &peer, "is here", 2);
    let alice = leaves(alice);
    was_told(&alice, &peer, &["is here", "has left", "is here"]);
    is_told(&bob, &me, "has left", 1);

    let alice = on.chat(&me, &peer);
    is_told(&alice, &peer, "is here", 1);
    is_told(&bob, &me, "is here", 2);
    let bob = leaves(bob);
    was_told(&bob, &me, &["is here", "has left", "is here"]);
    is_told(&alice, &peer, "has left", 1);
    was_told(&leaves(alice), &peer, &["is here", "has left"]);
}

pub(crate) fn a_peer_who_was_killed_is_gone(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = two_users();
    let alice = on.chat(&me, &peer);
    let mut bob = on.chat(&peer, &me);
    is_told(&alice, &peer, "is here", 1);
    bob.signal("KILL");
    bob.wait_for_end();
    is_told(&alice, &peer, "is gone", 1);

    let bob = on.chat(&peer, &me);
    is_told(&alice, &peer, "is here", 2);
    leaves(bob);
    is_told(&alice, &peer, "has left", 1);
    let told = ["is here", "is gone", "is here", "has left"];
    was_told(&leaves(alice), &peer, &told);
}

pub(crate) fn a_peer_who_was_stopped_is_gone_and_here_again(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = two_users();
    let alice = on.chat(&me, &peer);
    let bob = on.chat(&peer, &me);
    is_told(&alice, &peer, "is here", 1);
    is_told(&bob, &me, "is here", 1);
    bob.signal("STOP");
    is_told(&alice, &peer, "is gone", 1);
    bob.signal("CONT");
    is_told(&alice, &peer, "is here", 2);
    let alice = leaves(alice);
    was_told(&alice, &peer, &["is here", "is gone", "is here"]);
    // While bob was stopped, alice was here.
    is_told(&bob, &me, "has left", 1);
    was_told(&leaves(bob), &me, &["is here", "has left"]);
}

pub(crate) fn the_peers_first_line_and_the_heartbeats_say_only_once_who_is_here(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = two_users();
    let bob = on.chat(&peer, &me);
    let alice = on.chat(&me, &peer);
    bob.line("hello");
    is_told(&alice, &peer, "is here", 1);
    alice.wait_for(&format!("{peer}: hello"));
    bob.line("hello again");
    alice.wait_for(&format!("{peer}: hello again"));
    leaves(bob);
    is_told(&alice, &peer, "has left", 1);
    was_told(&leaves(alice), &peer, &["is here", "has left"]);
}

pub(crate) fn a_line_that_was_not_written_in_a_chat_says_nothing_of_who_is_here(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = two_users();
    let alice = on.chat(&me, &peer);
    on.send(&peer, &me, "from a publisher\n");
    alice.wait_for("from a publisher");
    let bob = on.chat(&peer, &me);
    is_told(&alice, &peer, "is here", 1);
    leaves(bob);
    is_told(&alice, &peer, "has left", 1);
    on.send(&peer, &me, "from a publisher again\n");
    alice.wait_for("from a publisher again");
    was_told(&leaves(alice), &peer, &["is here", "has left"]);
}

/// How long a chat that ends waits for the peer's position, at least.
const END_WAIT: Duration = Duration::from_millis(800);

/// Alice leaves at once. On a busy machine, bob's commit can take longer than she waits for it, any number of times in
/// a row: so a line that is said to be unread is no failure by itself, only one that she has not waited for.
pub(crate) fn a_line_on_the_peers_screen_is_read(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = two_users();
    let bob = on.chat(&peer, &me);
    // She waits only for a peer whose heartbeat she finds.
    let alice = on.chat(&me, &peer);
    is_told(&alice, &peer, "is here", 1);
    leaves(alice);
    let mut lines = (0..).map(|n| format!("line {n}"));
    let attempt = || {
        let (alice, line) = (on.chat(&me, &peer), lines.next()?);
        alice.line(&line);
        bob.wait_for(&format!("{me}: {line}"));
        let left = Instant::now();
        let alice = leaves(alice);
        let (is_read, end) = (!alice.history().contains("not read by"), left.elapsed());
        println!("read: {is_read}, alice's chat ended after {end:?}");
        let has_waited = end >= END_WAIT;
        assert!(is_read || has_waited, "{}", alice.report());
        is_read.then_some(())
    };
    poll_until(PATIENCE, || "read".into(), attempt);
}

/// How long her end takes, which waits for the position of a peer who is here, is printed.
pub(crate) fn a_line_after_the_peers_end_is_not_read_however_that_came(on: &Kafka) {
    let _host = on.keep_running();
    for (signal, news) in [
        ("TERM", "has left"),
        ("KILL", "is gone"),
        ("STOP", "is gone"),
    ] {
        let (me, peer) = two_users();
        let alice = on.chat(&me, &peer);
        let mut bob = on.chat(&peer, &me);
        is_told(&alice, &peer, "is here", 1);
        bob.signal(signal);
        is_told(&alice, &peer, news, 1);
        alice.line("not seen");
        let left = Instant::now();
        let alice = leaves(alice);
        println!("{signal}: alice's chat ended after {:?}", left.elapsed());
        alice.has_shown_times(&format!("* 1 line not read by {peer} yet"), 1);
        if signal == "STOP" {
            bob.signal("CONT");
            bob.wait_for(&format!("{me}: not seen"));
            leaves(bob);
        } else {
            bob.wait_for_end();
            // When he comes back, he finds it.
            let bob = on.chat(&peer, &me);
            bob.wait_for(&format!("{me}: not seen"));
        }
    }
}

pub(crate) fn of_two_chats_of_the_same_pair_the_one_that_stays_is_here(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer) = two_users();
    let alice = on.chat(&me, &peer);
    let first = on.chat(&peer, &me);
    is_told(&alice, &peer, "is here", 1);
    let second = on.chat(&peer, &me);
    is_told(&second, &me, "is here", 1);
    leaves(first);
    second.line("still here");
    alice.wait_for(&format!("{peer}: still here"));
    // Whether the first one said that bob has left or not, the second one corrects it.
    leaves(second);
    let count = |screen: &vt100::Screen, news: &str| {
        let news = format!("* {peer} {news}");
        screen.contents().matches(&news).count()
    };
    alice.wait("as many ends as beginnings", |screen| {
        let left = count(screen, "has left");
        left > 0 && count(screen, "is here") == left
    });
    leaves(alice).has_not_shown("is gone");
}

/// Who hosts the small broker, and how it ends.
#[test]
fn a_host_who_leaves_has_left_and_one_who_is_killed_is_gone() {
    for (signal, news) in [("TERM", "has left"), ("KILL", "is gone")] {
        let on = Kafka::embedded();
        let (me, peer) = two_users();
        let mut host = on.chat(&peer, &me);
        let alice = on.chat(&me, &peer);
        is_told(&alice, &peer, "is here", 1);
        is_told(&host, &me, "is here", 1);
        host.signal(signal);
        host.wait_for_end();
        was_told(&host, &me, &["is here"]);
        is_told(&alice, &peer, news, 1);
        // Alice hosts now.
        let bob = on.chat(&peer, &me);
        is_told(&alice, &peer, "is here", 2);
        is_told(&bob, &me, "is here", 1);
        leaves(alice);
        is_told(&bob, &me, "has left", 1);
        was_told(&bob, &me, &["is here", "has left"]);
    }
}

#[test]
fn another_host_of_the_small_broker_changes_nothing() {
    let on = Kafka::embedded();
    let host = on.host();
    let (me, peer) = two_users();
    let alice = on.chat(&me, &peer);
    let bob = on.chat(&peer, &me);
    is_told(&alice, &peer, "is here", 1);
    leaves(bob);
    is_told(&alice, &peer, "has left", 1);
    // Only the end of this first chat of his is in the file.
    let bob = on.chat(&peer, &me);
    is_told(&alice, &peer, "is here", 2);
    is_told(&bob, &me, "is here", 1);
    host.signal("KILL");
    host.wait();
    bob.line("before");
    alice.wait_for(&format!("{peer}: before"));
    leaves(bob);
    is_told(&alice, &peer, "has left", 2);
    let told = ["is here", "has left", "is here", "has left"];
    was_told(&leaves(alice), &peer, &told);
}

/// The broker is away for longer than heartbeats may stand still.
pub(crate) fn nobody_is_gone_because_the_broker_was_away(
    on: &Kafka,
    end: impl FnOnce(),
    start: impl FnOnce(),
) {
    let (me, peer) = two_users();
    let alice = on.chat(&me, &peer);
    let bob = on.chat(&peer, &me);
    is_told(&alice, &peer, "is here", 1);
    is_told(&bob, &me, "is here", 1);
    end();
    alice.wait_for("retrying");
    thread::sleep(Duration::from_secs(20));
    start();
    alice.wait_for("is back");
    bob.wait_for("is back");
    bob.line("hello");
    alice.wait_for(&format!("{peer}: hello"));
    was_told(&alice, &peer, &["is here"]);
    leaves(bob);
    // A broker that has just come back may take no commit yet in his last second: then his heartbeats stand still.
    let ends = ["has left", "is gone"].map(|it| format!("* {peer} {it}"));
    alice.wait("that he has left, or is gone", |screen| {
        let shown = screen.contents();
        ends.iter().any(|it| shown.contains(it))
    });
    leaves(alice);
}

#[test]
fn nobody_is_gone_because_the_small_broker_was_away() {
    let on = Kafka::embedded();
    let host = on.host();
    let mut next_host = None;
    nobody_is_gone_because_the_broker_was_away(
        &on.by_address(),
        || drop(host),
        || next_host = Some(on.host()),
    );
}

mod embedded {
    use crate::support::on_the_small_broker;

    on_the_small_broker! {
        each_is_told_once_that_the_other_is_here_comes_and_leaves();
        a_peer_who_was_killed_is_gone();
        a_peer_who_was_stopped_is_gone_and_here_again();
        the_peers_first_line_and_the_heartbeats_say_only_once_who_is_here();
        a_line_that_was_not_written_in_a_chat_says_nothing_of_who_is_here();
        a_line_on_the_peers_screen_is_read();
        a_line_after_the_peers_end_is_not_read_however_that_came();
        of_two_chats_of_the_same_pair_the_one_that_stays_is_here();
    }
}
