//! Lines sealed with a secret: who can read them, and what a writer without the secret can do, which is nothing but
//! to be counted.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::support::{Ended, Kafka, Program, user};
use crate::tty::{CTRL_C, CTRL_D, ENTER, PASTE_END, PASTE_START, Tty, unbroken};

const SECRET: &str = "correct horse battery staple";
const OTHER_SECRET: &str = "another secret of enough bytes";

/// Files with secrets, for their owner alone.
pub(crate) struct Secrets(TempDir);

impl Secrets {
    pub(crate) fn new() -> Secrets {
        Secrets(tempfile::tempdir().unwrap())
    }

    /// A file with the secret that both have.
    pub(crate) fn ours(&self) -> PathBuf {
        self.file("ours", SECRET)
    }

    /// A file with another one.
    pub(crate) fn other(&self) -> PathBuf {
        self.file("other", OTHER_SECRET)
    }

    pub(crate) fn file(&self, name: &str, secret: &str) -> PathBuf {
        let path = self.0.path().join(name);
        let line = format!("{secret}\n");
        // A program that was just started may be reading it, and must not find it empty.
        if fs::read(&path).ok() != Some(line.clone().into_bytes()) {
            fs::write(&path, line).unwrap();
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Sends sealed lines from `me` to `peer`.
    #[track_caller]
    pub(crate) fn send(&self, on: &Kafka, me: &str, peer: &str, lines: impl Into<Vec<u8>>) {
        let publisher = on.program("publisher", &[me, peer]).secret(self.ours());
        publisher.input(lines).run().code(0);
    }

    /// The values of sealed lines from `me` to `peer`, which only another broker has.
    #[track_caller]
    fn sealed_elsewhere(&self, me: &str, peer: &str, lines: &str) -> String {
        let elsewhere = Kafka::embedded();
        let _host = elsewhere.host();
        self.send(&elsewhere, me, peer, lines);
        elsewhere.log(peer)
    }

    /// A sealed chat on a terminal.
    #[track_caller]
    fn chat(&self, on: &Kafka, me: &str, peer: &str) -> Tty {
        let file = self.ours();
        on.chat_with(me, peer, &["--secret-file", file.to_str().unwrap()])
    }

    /// The first sealed line of a topic, once it has one.
    #[track_caller]
    fn first_line(&self, on: &Kafka, topic: &str) -> String {
        let arguments = [topic, "--from", "earliest", "-n", "1"];
        let reader = on.program("subscriber", &arguments).secret(self.ours());
        String::from_utf8(reader.run().code(0).stdout).unwrap()
    }

    /// A subscriber that opens a topic, from its start to its end.
    pub(crate) fn reader(&self, on: &Kafka, topic: &str) -> Program {
        let arguments = [topic, "--from", "earliest", "-e"];
        on.program("subscriber", &arguments).secret(self.ours())
    }
}

impl Program {
    /// Gives it the secret in a file.
    pub(crate) fn secret(self, file: PathBuf) -> Program {
        self.arg("--secret-file").arg(file)
    }
}

/// How many lines a notice says that they are not shown.
fn counted(notice: &str) -> u64 {
    match notice.split_once(" more line") {
        Some((count, _)) => count.parse().unwrap_or(0),
        None => u64::from(notice.starts_with("a line ")),
    }
}

fn not_shown(ended: &Ended) -> u64 {
    ended.stderr.lines().map(counted).sum()
}

fn numbered(lines: usize) -> String {
    (0..lines).map(|n| format!("line {n}\n")).collect()
}

pub(crate) fn sealed_lines_come_out_as_they_went_in_and_nobody_else_can_read_them(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    let input = [
        &b"plain\n\n \xff\xfe\0\r\n\x1b[2J\n"[..],
        &b"xin ch\xc3\xa0o\n".repeat(20_000),
    ]
    .concat();
    secrets.send(on, &me, &peer, &input[..]);
    secrets.reader(on, &peer).run().code(0).prints(&input);
    let values = on.log(&peer);
    assert_eq!(values.lines().count(), 20_004);
    assert!(values.lines().all(|value| value.starts_with("sealed1:")));
    let mut distinct: Vec<&str> = values.lines().collect();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 20_004);
    let limited = secrets.reader(on, &peer).args(["-n", "1", "-s"]);
    limited.run().code(0).prints(format!("{me}: plain\n"));
}

pub(crate) fn a_reader_with_another_secret_says_so_and_shows_nothing(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    secrets.send(on, &me, &peer, "one\ntwo\n");
    let other = on.program("subscriber", &[&peer, "--from", "earliest", "-e"]);
    let ended = other.secret(secrets.other()).run().code(1).prints("");
    let advice = "both programs need the same secret (--secret-file)";
    let from = format!("a line from {me} is sealed with another secret, and not shown; {advice}\n");
    let ended = ended.says(&[&from, "1 more line is sealed with another secret\n"]);
    ended
        .says(&["some lines were not shown"])
        .does_not_say(OTHER_SECRET);

    on.send(&me, &peer, "not sealed\n");
    let from = format!("a line from {me} is not sealed, and not shown; {advice}\n");
    let ended = secrets.reader(on, &peer).run().code(1);
    ended.prints("one\ntwo\n").says(&[&from]);
}

pub(crate) fn a_reader_without_a_secret_says_once_that_lines_are_sealed_and_prints_them(
    on: &Kafka,
) {
    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    on.send(&me, &peer, "not sealed\n");
    let reader = on.program("subscriber", &[&peer, "--from", "earliest", "-n", "3"]);
    let reader = reader.start();
    reader.wait_for("not sealed\n");
    secrets.send(on, &me, &peer, "one\n");
    let notice = format!("lines from {me} are sealed: --secret-file FILE opens them\n");
    reader.wait_for_notice(&notice);
    secrets.send(on, &me, &peer, "two\n");
    let ended = reader.wait().code(0).prints(on.log(&peer));
    let times = ended.stderr.matches("are sealed").count();
    assert_eq!(times, 1, "{}", ended.report());
}

/// All that can be done to the values of records without the secret. None of it is a line.
fn changed(values: &[&str]) -> Vec<Vec<u8>> {
    let value = values[3].as_bytes();
    let mut all: Vec<Vec<u8>> = Vec::new();
    for bit in 0..value.len() * 8 {
        let mut flipped = value.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        all.push(flipped);
    }
    all.extend((0..value.len()).map(|length| value[..length].to_vec()));
    for more in ["A", "AAAA", "=", " ", "\r", "\0", "sealed1:"] {
        all.push([value, more.as_bytes()].concat());
    }
    // The beginning of one record, and the end of another.
    let cut = |at: usize| [&values[1].as_bytes()[..at], &values[2].as_bytes()[at..]].concat();
    all.extend([30, 62, 100].map(cut));
    // A line ending would make two lines of it.
    all.retain(|line| !line.contains(&b'\n'));
    all
}

pub(crate) fn a_writer_without_the_secret_has_no_line_shown_and_each_try_is_counted(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer, carol) = (Secrets::new(), user("alice"), user("bob"), user("carol"));
    secrets.send(on, &me, &peer, numbered(5));
    secrets.send(on, &me, &peer, "another session\n");
    let log = on.log(&peer);
    let values: Vec<&str> = log.lines().collect();

    let mut bad = changed(&values);
    // Repeated, and in another order.
    bad.extend(values.iter().rev().map(|value| value.as_bytes().to_vec()));
    // Another sender's, another topic's, the other direction's.
    for (sender, topic) in [(&carol, &peer), (&me, &carol), (&peer, &me)] {
        let elsewhere = user("elsewhere");
        secrets.send(on, sender, topic, format!("swapped {elsewhere}\n"));
        let theirs = on.log(topic);
        bad.push(theirs.lines().last().unwrap().as_bytes().to_vec());
    }
    bad.push(b"not sealed at all".to_vec());
    on.send(&me, &peer, [bad.join(&b'\n'), b"\n".to_vec()].concat());
    // And one of ours under another name.
    on.send(&carol, &peer, format!("{}\n", values[0]));
    secrets.send(on, &me, &peer, "after it\n");

    let ended = secrets.reader(on, &peer).run().code(1);
    let last = format!("{}another session\nswapped", numbered(5));
    let shown = String::from_utf8(ended.stdout.clone()).unwrap();
    let rest = shown
        .strip_prefix(&last)
        .unwrap_or_else(|| panic!("{}", ended.report()));
    assert_eq!(rest.lines().count(), 2, "{shown}");
    assert!(rest.ends_with("after it\n"), "{shown}");
    assert_eq!(
        not_shown(&ended),
        bad.len() as u64 + 1,
        "{}",
        ended.report()
    );
    ended
        .says(&[
            "is damaged or forged",
            "is repeated or out of order",
            "is not sealed",
            "with another secret",
        ])
        .does_not_say(" missing\n");
}

pub(crate) fn lines_that_are_dropped_or_reordered_are_said(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    let log = secrets.sealed_elsewhere(&me, &peer, &numbered(9));
    let values: Vec<&str> = log.lines().collect();
    // As from a broker that withholds some, and gives others late.
    let kept = [0, 1, 5, 4, 6].map(|n| format!("{}\n", values[n])).concat();
    let bob = secrets.chat(on, &peer, &me);
    bob.wait_for("lines are sealed");
    bob.keys("being typed");
    on.send(&me, &peer, kept);
    let notices = [
        format!("3 lines from {me} are missing"),
        format!("a line from {me} is repeated or out of order, and not shown"),
    ];
    let ended = secrets.reader(on, &peer).run().code(1);
    let ended = ended.prints("line 0\nline 1\nline 5\nline 6\n");
    ended.says(&notices.each_ref().map(String::as_str));

    bob.wait_for("line 6");
    bob.wait_for("being typed");
    let shown = unbroken(&bob.history());
    assert!(notices.iter().all(|it| shown.contains(it)), "{shown}");
    for n in 2..5 {
        bob.has_not_shown(&format!("line {n}"));
    }
}

#[cfg(feature = "librdkafka")]
pub(crate) fn what_was_there_before_the_start_is_not_shown_when_it_is_repeated(
    on: &Kafka,
    partitions: i32,
) {
    let _host = on.keep_running();
    let (secrets, me) = (Secrets::new(), user("alice"));
    let peer = crate::reading::topic(on, partitions);
    secrets.send(on, &me, &peer, numbered(700));
    let log = on.log(&peer);
    let reader = on.program("subscriber", &[&peer, "--last", "1", "-n", "3"]);
    let reader = reader.secret(secrets.ours()).start();
    reader.wait_for("line 699\n");
    on.send(&me, &peer, log);
    secrets.send(on, &me, &peer, "new\nnewer\n");
    let ended = reader.wait().code(1).prints("line 699\nnew\nnewer\n");
    assert_eq!(not_shown(&ended), 700, "{}", ended.report());
}

pub(crate) fn a_line_that_is_too_large_to_be_sealed_is_named_and_the_others_are_sent(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    let most = (1_048_000 - me.len() - 8) * 3 / 4 - 88;
    let line = |length: usize| "x".repeat(length) + "\n";
    let input = [line(most), line(most + 1), line(1_100_000), line(1)].concat();
    let publisher = on
        .program("publisher", &[&me, &peer])
        .secret(secrets.ours());
    publisher.input(input).run().code(1).says(&[
        "2 of 4 lines were not delivered:\n",
        &format!(
            "line 2: {} bytes, too large to be sealed: a sealed line has at most {most} bytes\n",
            most + 1
        ),
        &format!("line 3: 1100000 bytes, too large to be sealed: a sealed line has at most {most} bytes\n"),
    ]);
    // Lines that were never sent have no number: none is missing.
    let ended = secrets.reader(on, &peer).run().code(0);
    ended.prints([line(most), line(1)].concat());
}

#[test]
fn a_typed_line_that_is_too_large_to_be_sealed_is_said_at_enter_by_both_programs() {
    let on = Kafka::embedded();
    let _host = on.host();
    let secrets = Secrets::new();
    let most = (1_048_000 - "alice".len() - 8) * 3 / 4 - 88;

    let publisher = on.program("publisher", &["alice", "bob"]);
    let publisher = publisher.secret(secrets.ours());
    // Behind a long echo, Linux can keep what the program writes next until something is typed.
    let publisher = publisher.on_a_terminal().without_echo();
    // A terminal passes on 4095 bytes of a line at most; Ctrl-D passes on what is typed so far.
    publisher.keys(&format!("{}{CTRL_D}", "x".repeat(4000)).repeat(most / 4000 + 1));
    publisher.keys(ENTER);
    publisher.wait_for("…' was not delivered: ");
    publisher.line("a short one");
    assert_eq!(secrets.first_line(&on, "bob"), "a short one\n");
    publisher.keys(CTRL_D);
    let publisher = publisher.ends_with(1);
    let says = format!("too large to be sealed: a sealed line has at most {most} bytes");
    publisher.has_shown_times(&says, 2);
    publisher.has_shown(&["1 of 2 lines was not delivered"]);

    let chat = secrets.chat(&on, "alice", "carol");
    chat.keys(&format!("{PASTE_START}{}{PASTE_END}", "x".repeat(most + 1)));
    chat.keys(ENTER);
    chat.wait_for(&format!("and a sealed line can have {most}"));
    chat.line("a short one");
    assert_eq!(secrets.first_line(&on, "carol"), "a short one\n");
}

/// Writes bad records to a topic, under a name each, and without a secret; `value` is a sealed one.
#[cfg(feature = "librdkafka")]
fn flood(on: &Kafka, topic: &str, value: &str, names: std::ops::Range<usize>) {
    let unknown = format!("sealed1:{}", "A".repeat(150));
    let records: Vec<(String, &str)> = names
        .map(|n| (format!("{n:0>200}"), ["not sealed", &unknown, value][n % 3]))
        .collect();
    crate::reading::write(
        on,
        records.iter().map(|(key, value)| {
            let record = crate::reading::Written::to(topic).partition(0);
            record.key(key.as_bytes()).payload(value.as_bytes())
        }),
    );
}

#[cfg(all(target_os = "linux", feature = "librdkafka"))]
pub(crate) fn a_flood_of_bad_lines_under_many_names_takes_no_memory(on: &Kafka, lines: usize) {
    /// By how much memory may grow: noise of the allocator. The names have nearly twice as much.
    const NOISE_KB: u64 = 8192;

    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    secrets.send(on, &me, &peer, "before\n");
    let log = on.log(&peer);
    let reader = on.program("subscriber", &[&peer, "--from", "earliest"]);
    let reader = reader.secret(secrets.ours()).start();
    let memory_after = |names: std::ops::Range<usize>| {
        let line = format!("after {}\n", names.end);
        flood(on, &peer, log.trim_end(), names);
        secrets.send(on, &me, &peer, &line[..]);
        reader.wait_for(&line);
        crate::support::kilobytes(reader.pid(), "VmRSS")
    };
    // The first ones fill the client's buffers.
    let first = lines / 4;
    let before = memory_after(0..first);
    let after = memory_after(first..lines);
    assert!(after < before + NOISE_KB, "{before} kB, then {after} kB");
    reader.signal("INT");
    let shown = format!("before\nafter {first}\nafter {lines}\n");
    let ended = reader.wait().code(1).prints(shown);
    assert_eq!(not_shown(&ended), lines as u64, "{}", ended.report());
}

#[cfg(feature = "librdkafka")]
pub(crate) fn a_flood_of_bad_lines_leaves_the_line_that_is_typed_intact(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    secrets.send(on, &peer, &me, "before\n");
    let log = on.log(&me);
    let alice = secrets.chat(on, &me, &peer);
    alice.wait_for("before");
    let typed: String = (0..10).map(|n| format!("word {n} ")).collect();
    for (n, word) in typed.split_inclusive(' ').enumerate() {
        flood(on, &me, log.trim_end(), n * 500..(n + 1) * 500);
        on.send(&peer, &me, format!("{log}not sealed\n").repeat(50));
        alice.keys(word);
    }
    secrets.send(on, &peer, &me, "after\n");
    alice.wait_for(&format!("{peer}: after"));
    alice.wait_for(typed.trim_end());
    alice.keys(ENTER);
    assert_eq!(secrets.first_line(on, &peer), format!("{typed}\n"));
    alice.has_shown_times(&format!("{peer}: "), 2);
}

#[cfg(feature = "librdkafka")]
pub(crate) fn json_says_that_a_line_is_sealed_and_when_its_sender_sealed_it(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    let before = crate::reading::now();
    secrets.send(on, &me, &peer, "hi\n");
    let ended = secrets.reader(on, &peer).arg("--json").run().code(0);
    let line: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(
        (&line["value"], &line["key"]),
        (&"hi".into(), &(*me).into())
    );
    assert_eq!(line["sealed"], true);
    let clock = line["sender_timestamp"].as_i64().unwrap();
    assert!((before..=crate::reading::now()).contains(&clock));
    assert_eq!(
        line["sender_time"],
        kafka_chat::time::rfc_3339(clock).unwrap()
    );
}

pub(crate) fn a_sealed_chat_says_so_and_its_lines_come_back_when_it_is_opened_again(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    let alice = secrets.chat(on, &me, &peer);
    alice.wait_for("* lines are sealed: only those who have the secret can read or write them");
    alice.line("before he comes");
    let bob = secrets.chat(on, &peer, &me);
    bob.wait_for(&format!("{me}: before he comes"));
    alice.wait_for(&format!("{peer} is here"));
    bob.line("here I am");
    alice.wait_for(&format!("{peer}: here I am"));
    alice.line("good");
    bob.wait_for(&format!("{me}: good"));
    for topic in [&me, &peer] {
        assert!(on.log(topic).lines().all(|it| it.starts_with("sealed1:")));
    }
    alice.keys(CTRL_D);
    alice.ends_with(0);
    bob.wait_for(&format!("{me} has left"));
    bob.line("while she is away");
    on.first_lines(&me, 2);
    bob.keys(CTRL_D);
    bob.ends_with(0).has_shown(&["1 line not read by"]);

    // Repeated, it is neither an earlier line nor an unread one.
    let log = on.log(&me);
    on.send(&peer, &me, log);
    on.send(&me, &peer, on.log(&peer));
    let alice = secrets.chat(on, &me, &peer);
    alice.wait_for(&format!("{peer}: while she is away"));
    alice.wait_for("repeated or out of order");
    for line in ["while she is away", "* 1 line since"] {
        alice.has_shown_times(line, 1);
    }
    alice.has_shown(&["* 3 earlier lines"]);
    for line in ["before he comes", "here I am", "good"] {
        alice.has_shown_times(line, 1);
    }
    alice.has_not_shown("sealed1:");
}

pub(crate) fn copies_of_lines_do_not_take_the_place_of_earlier_lines(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    secrets.send(on, &peer, &me, numbered(5));
    let log = on.log(&me);
    let values: Vec<&str> = log.lines().collect();
    let copies = [4, 0].map(|n| format!("{}\n", values[n]).repeat(20));
    on.send(&peer, &me, copies.concat());
    let read = || {
        let alice = secrets.chat(on, &me, &peer);
        alice.wait_for("line 4");
        alice.keys(CTRL_D);
        alice.ends_with(0)
    };
    // The position passes the copies, so they are before the start of the next one.
    read();
    let alice = unbroken(&read().history());
    let from = alice.find("* 5 earlier lines").unwrap_or(alice.len());
    let shown = alice[from..].lines().map(|it| it.split(' ').next_back());
    let shown: Vec<_> = shown.skip(1).take(5).flatten().collect();
    assert_eq!(shown, ["0", "1", "2", "3", "4"], "{alice}");
}

pub(crate) fn a_chat_without_the_secret_sends_nothing_to_a_peer_who_seals(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    let alice = secrets.chat(on, &me, &peer);
    let bob = on.chat(&peer, &me);
    bob.line("not for all to read, this once");
    alice.wait_for(&format!("a line from {peer} is not sealed, and not shown"));
    alice.wait_for("both programs need the same secret (--secret-file)");
    alice.line("sealed");
    bob.wait_for(&format!("{me}'s lines are sealed, and not shown"));
    bob.line("secret answer");
    bob.wait_for("'secret answer' was not sent");
    bob.wait_for("the up arrow");
    bob.has_shown(&["restart with the secret (--secret-file), or with --plain"]);
    bob.keys(CTRL_D);
    bob.ends_with(0).has_not_shown("sealed1:");
    assert!(!on.log(&me).contains("secret answer"));

    let bob = on.chat_with(&peer, &me, &["--plain"]);
    alice.line("sealed, too");
    bob.wait_for(&format!("{me}'s lines are sealed, and not shown"));
    bob.line("I know what I do");
    alice.wait_for("1 more line is not sealed");
    assert!(on.log(&me).contains("I know what I do"));
    alice.has_not_shown("I know what I do");

    bob.keys(CTRL_D);
    bob.ends_with(0);
    // A pipe has nobody who could press Enter again.
    let piped = on.program("chat", &[&peer, &me]).endless_input("more\n");
    let piped = piped.start();
    alice.line("sealed again");
    let ended = piped.wait().code(1);
    ended.says(&["'s lines are sealed: restart with the secret"]);
}

pub(crate) fn two_with_different_secrets_are_both_told(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer) = (Secrets::new(), user("alice"), user("bob"));
    let alice = secrets.chat(on, &me, &peer);
    let other = secrets.other();
    let bob = on.chat_with(&peer, &me, &["--secret-file", other.to_str().unwrap()]);
    alice.line("hello");
    bob.wait_for(&format!(
        "a line from {me} is sealed with another secret, and not shown"
    ));
    bob.line("hello yourself");
    alice.wait_for(&format!(
        "a line from {peer} is sealed with another secret, and not shown"
    ));
    for chat in [&alice, &bob] {
        chat.wait_for("both programs need the same secret (--secret-file)");
        chat.has_not_shown("sealed1:");
    }
}

pub(crate) fn bad_lines_leave_a_chat_as_it_is_and_the_line_that_is_typed_intact(on: &Kafka) {
    let _host = on.keep_running();
    let (secrets, me, peer, carol) = (Secrets::new(), user("alice"), user("bob"), user("carol"));
    secrets.send(on, &peer, &me, numbered(5));
    let log = on.log(&me);
    let values: Vec<&str> = log.lines().collect();
    let ours = secrets.ours();
    let options = ["--bell", "--secret-file", ours.to_str().unwrap()];
    let alice = on.chat_with(&me, &peer, &options);
    alice.wait_for("line 4");
    alice.keys("being typed");
    let mut bad = changed(&values);
    bad.extend(values.iter().map(|it| it.as_bytes().to_vec()));
    // Another topic's, the other direction's, another sender's.
    for (sender, topic) in [(&peer, &carol), (&me, &peer), (&carol, &me)] {
        let value = secrets.sealed_elsewhere(sender, topic, "swapped\n");
        bad.push(value.trim_end().into());
    }
    on.send(&peer, &me, [bad.join(&b'\n'), b"\n".to_vec()].concat());
    secrets.send(on, &peer, &me, "the true one\n");
    alice.wait_for("the true one");
    alice.wait_for("being typed");
    alice.keys(" to the end\r");
    assert_eq!(secrets.first_line(on, &peer), "being typed to the end\n");
    alice.keys(CTRL_D);
    let alice = alice.ends_with(0);
    for n in 0..5 {
        alice.has_shown_times(&format!("line {n}"), 1);
    }
    alice.has_not_shown("swapped");
    let notices = unbroken(&alice.history()).replace("* ", "");
    let counted: u64 = notices.lines().map(counted).sum();
    assert_eq!(counted, bad.len() as u64, "{notices}");
    // The five lines and the true one: one by one, or as one burst.
    let bells = alice.raw().iter().filter(|byte| **byte == 7).count();
    assert!((1..=6).contains(&bells), "{bells} bells");

    // The position has passed all of it.
    let again = secrets.chat(on, &me, &peer);
    secrets.send(on, &peer, &me, "at last\n");
    again.wait_for("at last");
    again.has_not_shown("repeated");
    again.has_not_shown("forged");
}

/// As all lines of that sender are.
#[cfg(feature = "librdkafka")]
pub(crate) fn sealed_lines_are_in_the_partition_that_the_senders_name_has(on: &Kafka) {
    let secrets = Secrets::new();
    let peer = crate::reading::topic(on, 6);
    for sender in ["alice", "bob", "carol", "dave", "erin"] {
        on.send(sender, &peer, format!("{sender} in the open\n"));
        secrets.send(on, sender, &peer, format!("{sender} sealed\n"));
    }
    let log = String::from_utf8(on.log_bytes(&peer, &["--json"])).unwrap();
    let mut partitions = std::collections::BTreeMap::<String, Vec<i64>>::new();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let of_sender = partitions.entry(line["key"].to_string()).or_default();
        of_sender.push(line["partition"].as_i64().unwrap());
    }
    assert_eq!(partitions.len(), 5);
    assert!(
        partitions
            .values()
            .all(|it| it.len() == 2 && it[0] == it[1]),
        "{partitions:?}"
    );
    let used: std::collections::BTreeSet<i64> = partitions.values().map(|it| it[0]).collect();
    assert!(used.len() > 1, "{used:?}");
}

#[test]
fn a_reader_starts_where_the_last_line_before_turns_out_to_be_damaged() {
    let (on, secrets) = (Kafka::embedded(), Secrets::new());
    let _host = on.host();
    secrets.send(&on, "alice", "bob", "one\ntwo\n");
    let segment = on.segment("bob");
    let mut bytes = fs::read(&segment).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&segment, bytes).unwrap();
    let reader = on.program("subscriber", &["bob", "-e"]);
    reader.secret(secrets.ours()).run().code(0).prints("");
}

#[test]
fn a_secret_conflicts_with_what_shows_lines_that_are_not_sealed() {
    let secrets = Secrets::new();
    for option in ["--unsigned", "--tutorial", "--plain"] {
        let chat = || Program::ours("chat", &["alice", "bob", option]);
        let says = format!("{option} cannot be used with a secret");
        chat().secret(secrets.ours()).run().code(2).says(&[&says]);
        let from_environment = chat().env("KAFKA_CHAT_SECRET_FILE", secrets.ours());
        from_environment.run().code(2).says(&[&says]);
    }
}

#[test]
fn a_new_secret_can_be_used() {
    let on = Kafka::embedded();
    let secrets = Secrets::new();
    // A variable that is meant for other commands is no obstacle.
    let new = Program::ours("chat", &["--new-secret"]).env("KAFKA_CHAT_DATA_DIR", "/nowhere");
    let new = new.run().code(0);
    let file = secrets.file("new", str::from_utf8(&new.stdout).unwrap());
    let publisher = on.program("publisher", &["alice", "bob"]).secret(file);
    publisher.input("hi\n").run().code(0);
}

#[test]
fn a_secret_that_cannot_be_used_is_a_usage_error_that_does_not_repeat_it() {
    let secrets = Secrets::new();
    let run = |program: Program| program.input("").run().code(2);
    let publisher = || Program::ours("publisher", &["alice", "bob"]);
    let short = secrets.file("short", "hunter2");
    let ended = run(publisher().secret(short.clone()));
    ended
        .says(&["the secret has less than 16 bytes\n", "chat --new-secret"])
        .does_not_say("hunter2");
    run(publisher().env("KAFKA_CHAT_SECRET_FILE", &short)).says(&["less than 16 bytes"]);
    let nowhere = secrets.0.path().join("nowhere");
    let cannot_read = |named: &str| format!("cannot read the file named {named}: No such file");
    run(publisher().secret(nowhere)).says(&[&cannot_read("with --secret-file")]);
    run(publisher().secret(short).arg("--secret")).says(&["cannot be used with"]);
    run(publisher().env("KAFKA_CHAT_SECRET_FILE", ""))
        .says(&["is empty: name a file, or unset it"]);
}

#[test]
fn a_secret_that_is_given_where_none_belongs_is_not_repeated() {
    let secrets = Secrets::new();
    for secret in [SECRET, "6v2k-r0ny-m4ct-81hw-zq3p-e7da-x95g"] {
        let equals = format!("--secret={secret}");
        let is_name = "a name is the secret: --secret takes no value, it asks for it";
        let no_value = "--secret takes no value, it asks for the secret";
        let no_file = "cannot read the file named with --secret-file: No such file";
        let file = secrets.file("secret", secret);
        let with_file = ["--secret-file", file.to_str().unwrap()];
        for (name, arguments, says) in [
            ("publisher", &[secret, "bob"][..], is_name),
            ("publisher", &["alice", secret], is_name),
            ("subscriber", &[secret], is_name),
            ("chat", &[secret, "bob"], is_name),
            ("chat", &["alice", secret], is_name),
            ("publisher", &["alice", "bob", "--secret", secret], no_value),
            ("subscriber", &["bob", "--secret", secret], no_value),
            ("chat", &["--secret", "alice", "bob", secret], no_value),
            ("chat", &["alice", "bob", &equals], no_value),
            ("chat", &["alice", "bob", "--secret-file", secret], no_file),
        ] {
            let mut program = Program::ours(name, arguments);
            if says == is_name {
                program = program.args(with_file);
            }
            let ended = program.input("").run().code(2);
            ended.says(&[says]).does_not_say(secret);
        }
    }
}

#[test]
fn a_secret_that_others_can_read_or_change_is_a_warning() {
    let on = Kafka::embedded();
    let secrets = Secrets::new();
    let file = secrets.ours();
    for mode in [0o600, 0o640, 0o604, 0o620, 0o602] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let publisher = on
            .program("publisher", &["alice", "bob"])
            .secret(file.clone());
        let ended = publisher.input("hi\n").run().code(0);
        assert_eq!(
            ended
                .stderr
                .contains("Others can read or change the secret in"),
            mode != 0o600,
            "{mode:o}"
        );
    }
}

#[test]
fn a_subscriber_that_has_found_a_fault_ends_with_1_even_if_its_output_is_stopped() {
    let on = Kafka::embedded();
    let _host = on.host();
    let secrets = Secrets::new();
    on.send("alice", "bob", "not sealed\n");
    let program = on.program("subscriber", &["bob", "--from", "earliest"]);
    let mut terminal = program.secret(secrets.ours()).on_a_terminal();
    terminal.wait_for("a line from alice is not sealed");
    terminal.stop_output();
    secrets.send(&on, "alice", "bob", numbered(10_000));
    terminal.signal("TERM");
    let (status, _) = terminal.wait_for_end();
    assert_eq!(status.code(), Some(1), "{}", terminal.report());
}

#[test]
fn a_line_from_another_time_is_shown_with_its_date_on_a_terminal() {
    let on = Kafka::embedded();
    let _host = on.host();
    let secrets = Secrets::new();
    // The first test vector of docs/sealed.md.
    let secret = secrets.file("vectors", "a secret for test vectors");
    let value = "sealed1:yAmIZ6tcyY0HMqZSdVZXMSIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIidExRDvNSDdu_iNbsoeIZBC\
        CO9VG2jWJCpGsHOrC0CKqBeTHZ_6icm1hXkQeUdfKFpBOWtagAlZQQ\n";
    on.send("alice", "bob", value);
    let publisher = on.program("publisher", &["alice", "bob"]);
    let publisher = publisher.secret(secret.clone());
    publisher.input("of now\n").run().code(0);
    let reader = || {
        let arguments = ["bob", "--from", "earliest", "-n", "2"];
        let reader = on.program("subscriber", &arguments).env("TZ", "UTC");
        reader.secret(secret.clone())
    };
    let terminal = reader().on_a_terminal().ends_with(0);
    let shown = terminal.history();
    let shown: Vec<&str> = shown.lines().filter(|row| !row.is_empty()).collect();
    assert_eq!(shown, ["2026-11-28 13:22:11 xin chào", "of now"]);
    reader().run().code(0).prints("xin chào\nof now\n");
}

#[test]
fn a_secret_is_asked_for_without_echo() {
    let on = Kafka::embedded();
    let host = on.host();
    let secrets = Secrets::new();
    let terminal = on
        .program("publisher", &["alice", "bob", "--secret"])
        .on_a_terminal();
    terminal.wait_for("Secret:");
    terminal.wait_for_no_echo();
    terminal.keys(&format!("{SECRET}\r"));
    terminal.keys("hello\r");
    assert_eq!(secrets.first_line(&on, "bob"), "hello\n");
    terminal.has_not_shown("correct");
    terminal.keys(CTRL_D);
    terminal.ends_with(0);
    drop(host);
}

#[test]
fn a_program_that_ends_while_a_secret_is_asked_for_leaves_the_terminal_as_it_was() {
    let on = Kafka::embedded();
    let ways: [fn(&Tty); 5] = [
        |terminal| terminal.keys(CTRL_C),
        |terminal| terminal.signal("INT"),
        |terminal| terminal.signal("TERM"),
        |terminal| terminal.signal("HUP"),
        |terminal| {
            terminal.keys("half a secret");
            terminal.signal("TERM");
        },
    ];
    for end in ways {
        let program = on.program("publisher", &["alice", "bob", "--secret"]);
        let terminal = program.on_a_terminal();
        terminal.wait_for("Secret:");
        terminal.wait_for_no_echo();
        end(&terminal);
        terminal.ends_with(1).has_shown(&["interrupted"]);
    }
}

#[test]
fn an_answer_with_a_key_that_is_no_text_is_refused() {
    let on = Kafka::embedded();
    let program = on.program("publisher", &["alice", "bob", "--secret"]);
    let terminal = program.on_a_terminal();
    terminal.wait_for("Secret:");
    terminal.wait_for_no_echo();
    terminal.keys(&format!("{SECRET}\x1b[D\r"));
    let terminal = terminal.ends_with(2);
    terminal.has_shown(&["the answer has a key in it that is no text"]);
}

mod embedded {
    use crate::support::on_the_small_broker;

    on_the_small_broker! {
        sealed_lines_come_out_as_they_went_in_and_nobody_else_can_read_them();
        a_reader_with_another_secret_says_so_and_shows_nothing();
        a_reader_without_a_secret_says_once_that_lines_are_sealed_and_prints_them();
        a_writer_without_the_secret_has_no_line_shown_and_each_try_is_counted();
        lines_that_are_dropped_or_reordered_are_said();
        a_line_that_is_too_large_to_be_sealed_is_named_and_the_others_are_sent();
        a_sealed_chat_says_so_and_its_lines_come_back_when_it_is_opened_again();
        copies_of_lines_do_not_take_the_place_of_earlier_lines();
        a_chat_without_the_secret_sends_nothing_to_a_peer_who_seals();
        two_with_different_secrets_are_both_told();
        bad_lines_leave_a_chat_as_it_is_and_the_line_that_is_typed_intact();
    }

    #[cfg(feature = "librdkafka")]
    on_the_small_broker! {
        what_was_there_before_the_start_is_not_shown_when_it_is_repeated(1);
        json_says_that_a_line_is_sealed_and_when_its_sender_sealed_it();
        a_flood_of_bad_lines_leaves_the_line_that_is_typed_intact();
    }

    #[cfg(all(target_os = "linux", feature = "librdkafka"))]
    on_the_small_broker! {
        a_flood_of_bad_lines_under_many_names_takes_no_memory(100_000);
    }
}
