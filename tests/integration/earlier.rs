//! What a chat shows of the time before it was opened, with records that only librdkafka can write.

use std::fs;
use std::net::TcpListener;

use kafka_chat::time::{LocalTime, day};
use rdkafka::producer::BaseRecord;

use crate::reading::{Written, now, topic, write};
use crate::support::{Kafka, PATIENCE, poll_until, user};
use crate::tty::{CTRL_D, Tty};

const SECOND: i64 = 1000;
const DAY: i64 = 24 * 60 * 60 * SECOND;

/// A line of `sender` in the first partition of a topic.
fn line<'a>(topic: &'a str, sender: &'a str, time: i64, text: &'a str) -> Written<'a> {
    let record = BaseRecord::to(topic).partition(0).timestamp(time);
    record.key(sender.as_bytes()).payload(text.as_bytes())
}

/// A conversation of three days ago, of which the user has read all but the last line: the names of both, and the time
/// of the first line. Each line was written a second after the one before.
fn three_days_ago(on: &Kafka, partitions: i32) -> (String, String, i64) {
    let (me, peer) = (topic(on, partitions), topic(on, partitions));
    let start = now() - 3 * DAY;
    let mine = |n, text| line(&peer, &me, start + n * SECOND, text);
    let theirs = |n, text| line(&me, &peer, start + n * SECOND, text);
    write(on, [theirs(0, "one"), theirs(2, "three")]);
    write(on, [mine(1, "two"), mine(3, "four")]);
    // A new cluster can be too slow for the position to be committed within a chat's last second.
    let is_committed = || {
        let chat = on.chat(&me, &peer);
        chat.wait_for(": three");
        let shown = leave(chat).history();
        (!shown.contains("your position is not known")).then_some(())
    };
    poll_until(PATIENCE, || "a committed position".into(), is_committed);
    write(on, [theirs(4, "five"), line(&me, "carol", start, "psst")]);
    (me, peer, start)
}

fn leave(chat: Tty) -> Tty {
    chat.keys(CTRL_D);
    chat.ends_with(0)
}

pub(crate) fn a_chat_opens_with_the_last_lines_of_both_sides(on: &Kafka, partitions: i32) {
    let _host = on.keep_running();
    let (me, peer, start) = three_days_ago(on, partitions);
    let local = LocalTime::new();
    let day = day(local.date(start).unwrap());
    let since = local.since(start + 4 * SECOND, now()).unwrap();
    let chat = on.chat(&me, &peer);
    chat.wait_for(&format!(
        "* 4 earlier lines\n* {day}\n{peer}: one\n{me}: two\n{peer}: three\n{me}: four\n"
    ));
    chat.wait_for(&format!("* 1 line since {since}\n{peer}: five\n"));
    // Written while it is open.
    chat.line("six");
    on.first_lines(&peer, 3);
    on.send(&peer, &me, "seven\n");
    chat.wait_for(": seven");
    let chat = leave(chat);
    chat.has_shown_times(&format!("{me}: "), 2);
    chat.has_not_shown("psst");
}

pub(crate) fn so_many_earlier_lines_are_shown_as_are_asked_for(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer, start) = three_days_ago(on, 1);
    let local = LocalTime::new();
    let [first, second] = [3, 4].map(|n| local.clock(Some(start + n * SECOND)));
    let chat = on.chat_with(&me, &peer, &["--last", "1", "--time"]);
    chat.wait_for("* 1 earlier line\n");
    chat.wait_for(&format!("\n{first} {me}: four\n"));
    chat.wait_for(&format!("\n{second} {peer}: five\n"));
    leave(chat).has_not_shown("three");
    write(on, [line(&me, &peer, start + 5 * SECOND, "six")]);
    let chat = on.chat_with(&me, &peer, &["--last", "0"]);
    chat.wait_for("* 1 line since ");
    chat.wait_for(&format!("{peer}: six"));
    leave(chat).has_not_shown("earlier");
}

pub(crate) fn a_pipe_gets_earlier_lines_only_if_it_asks_for_them(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer, start) = three_days_ago(on, 1);
    let local = LocalTime::new();
    let [fourth, fifth, sixth] = [3, 4, 5].map(|n| local.of(Some(start + n * SECOND)));
    let prints = |options: &[&str], printed: String| {
        let mut chat = on.program("chat", &[&me, &peer]).args(options).start();
        chat.wait_for(printed.as_str());
        chat.close();
        chat.wait().code(0).prints(printed);
    };
    let last = format!("{peer}: three\n{me}: four\nfive\n");
    prints(&["--last", "2"], last);
    write(on, [line(&me, &peer, start + 5 * SECOND, "six")]);
    prints(&[], "six\n".into());
    let last = format!("{me}: four\n{peer}: five\n{peer}: six\n");
    prints(&["--last", "3"], last);
    let last = format!("{fourth} {me}: four\n{fifth} {peer}: five\n{sixth} {peer}: six\n");
    prints(&["--last", "3", "--time"], last);
}

/// Starts a chat without a peer, until the question for that comes after this list: a broker that is too slow is not
/// waited for.
fn asked_after(on: &Kafka, me: &str, list: &str) -> Tty {
    const QUESTION: &str = "Who do you want to connect to?";
    let list = format!("Written to you since you last read them:\n{list}{QUESTION}");
    let attempt = || {
        let chat = on.program("chat", &[me]).on_a_terminal();
        chat.wait_for(QUESTION);
        chat.screen().contains(&list).then_some(chat)
    };
    poll_until(PATIENCE, || format!("asked after {list}"), attempt)
}

pub(crate) fn a_user_who_is_asked_for_the_peer_sees_first_who_has_written(on: &Kafka) {
    let _host = on.keep_running();
    let (me, peer, start) = three_days_ago(on, 1);
    let erin = user("erin");
    let more = ["six", "seven"].map(|text| line(&me, &erin, start + 9 * SECOND, text));
    write(on, more);
    let chat = asked_after(
        on,
        &me,
        &format!("  {erin}, 2 lines\n  carol, 1 line\n  {peer}, 1 line\n"),
    );
    chat.line(&peer);
    chat.wait_for(": five");
    leave(chat);
    let chat = asked_after(on, &peer, &format!("  {me}, 2 lines\n"));
    chat.line(&me);
    chat.wait_for(": four");
    leave(chat);
    let chat = on.program("chat", &[&peer]).on_a_terminal();
    chat.wait_for("Who do you want to connect to?");
    chat.line(&me);
    chat.wait_for(&format!("{peer}>"));
    leave(chat).has_not_shown("Written");
}

#[test]
fn a_broker_that_does_not_answer_does_not_keep_the_question_from_being_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = Kafka::Real(listener.local_addr().unwrap().to_string());
    let chat = silent.program("chat", &["alice"]).on_a_terminal();
    chat.wait_for("Who do you want to connect to?");
    chat.has_shown(&["Who has written to you could not be looked up in time."]);
    chat.line("bob");
    chat.ends_with(1);
}

/// A message of magic 0, from alice.
const HELLO_WITHOUT_A_TIME: &[u8] =
    b"\0\0\0\0\0\0\0\0\0\0\0\x18\x52\x35\x81\x40\0\0\0\0\0\x05alice\0\0\0\x05hello";

#[test]
fn lines_without_a_time_are_not_shown_as_earlier_ones() {
    let on = Kafka::embedded();
    let (me, peer) = ("alice", "bob");
    // As small brokers wrote it that gave messages no time.
    let folder = on.dir().join("bob-0");
    fs::create_dir(&folder).unwrap();
    fs::write(
        folder.join("00000000000000000000.log"),
        HELLO_WITHOUT_A_TIME,
    )
    .unwrap();
    let _host = on.host();
    for (options, told) in [(&[][..], 0), (&["--last", "5"], 1)] {
        let chat = on.chat_with(me, peer, options);
        on.send(peer, me, "two\n");
        // It comes after what was before.
        chat.wait_for(": two");
        let chat = leave(chat);
        chat.has_shown_times("* earlier lines without a time are not shown", told);
        chat.has_not_shown(": hello");
    }
}

#[test]
fn a_message_that_is_read_without_a_time_has_that_of_its_arrival() {
    let on = Kafka::embedded();
    let _host = on.host();
    let (me, peer) = (user("alice"), user("bob"));
    let local = LocalTime::new();
    let chat = on.chat_with(&me, &peer, &["--time"]);
    let before = local.clock(Some(now()));
    on.send(&peer, &me, "hello\n");
    chat.wait_for(": hello");
    let history = chat.history();
    let times = [before, local.clock(Some(now()))];
    let has = |time: &String| history.contains(&format!("\n{time} {peer}: hello\n"));
    assert!(times.iter().any(has), "{times:?}\n{}", chat.report());
}

mod embedded {
    use crate::support::on_the_small_broker;

    on_the_small_broker! {
        a_chat_opens_with_the_last_lines_of_both_sides(1);
        so_many_earlier_lines_are_shown_as_are_asked_for();
        a_user_who_is_asked_for_the_peer_sees_first_who_has_written();
        a_pipe_gets_earlier_lines_only_if_it_asks_for_them();
    }
}
