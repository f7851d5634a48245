//! `chat` as people use it, each on a terminal of their own.

use std::io::Write;

use ::kafka::producer::{Producer, Record, RequiredAcks};

use crate::support::{A_DAY, Kafka, PATIENCE, Running, contains, poll_until, user};
use crate::tty::{
    CTRL_C, CTRL_D, CTRL_G, CTRL_R, CTRL_U, ENTER, LEFT, PASTE_END, PASTE_START, TAB, Tty, unbroken,
};

/// A chat, a publisher that writes to its user as the peer, and the names of both.
fn with_a_writer(on: &Kafka) -> (Tty, Running, String, String) {
    let (me, peer) = (user("alice"), user("bob"));
    let chat = on.chat(&me, &peer);
    let writer = on.program("publisher", &[&peer, &me]).start();
    (chat, writer, me, peer)
}

pub(crate) fn lines_go_both_ways_at_once(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let alice = on.chat(&me, &peer);
    alice.wait_for("has not opened a chat with you yet");
    let bob = on.chat(&peer, &me);
    alice.wait_for(" is here");
    for n in 0..5 {
        alice.line(&format!("from alice {n}"));
        bob.line(&format!("from bob {n}"));
    }
    for n in 0..5 {
        bob.wait_for(&format!("{me}: from alice {n}"));
        alice.wait_for(&format!("{peer}: from bob {n}"));
    }
    alice.keys(CTRL_D);
    alice.ends_with(0);
    bob.keys(CTRL_C);
    bob.ends_with(0);
}

pub(crate) fn ctrl_d_typed_between_two_lines_ends_a_chat_after_the_lines_before_it(on: &Kafka) {
    for (ahead, expected) in [("", "0\n1\n"), ("2\r3\r", "0\n1\n2\n3\n")] {
        let (me, peer) = (user("alice"), user("bob"));
        let mut alice = on.chat(&me, &peer);
        // The end does not wait until a topic is created.
        alice.line("0");
        on.first_lines(&peer, 1);
        alice.keys("1");
        alice.wait_for(&format!("{me}> 1"));
        alice.between_two_lines(|| alice.keys(&format!("{ahead}{CTRL_D}")));
        let (status, is_restored) = alice.wait_for_end();
        assert!(is_restored, "{}", alice.report());
        // A chat ends within a second: on a slow machine before the last acknowledgements.
        let (history, lines) = (alice.history(), expected.lines().count());
        let undelivered = match status.code() {
            Some(0) => Some(0),
            _ => (1..lines).find(|n| history.contains(&format!("{n} of {lines} lines"))),
        };
        let log = on.log(&peer);
        let sent = log.lines().count();
        let are_all_counted = undelivered.is_some_and(|n| sent + n >= lines);
        let are_in_order = expected.starts_with(&log);
        assert!(
            are_all_counted && are_in_order,
            "{status}, sent: {log}\n{}",
            alice.report()
        );
    }
}

pub(crate) fn a_chat_asks_for_names_on_the_terminal(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let alice = on.program("chat", &[]).on_a_terminal();
    alice.wait_for("What is your name?");
    alice.line("a b");
    alice.wait_for("can't be a name");
    alice.line(&me);
    alice.wait_for("Who do you want to connect to?");
    alice.line(&peer);
    alice.wait_for(&format!("{me}>"));
    alice.line("hello");
    assert_eq!(on.first_lines(&peer, 1), "hello\n");
}

pub(crate) fn unread_lines_are_shown_once_and_counted_for_their_sender(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let only_unread = ["--last", "0"];
    let alice = on.chat(&me, &peer);
    // As long as she does not know what bob has read, she says nothing about it.
    alice.wait_for("has not opened a chat with you yet");
    alice.line("one");
    alice.line("two");
    on.first_lines(&peer, 2);
    alice.keys(CTRL_D);
    let alice = alice.ends_with(0);
    alice.has_shown(&[&format!("2 lines not read by {peer} yet")]);

    let alice = on.chat(&me, &peer);
    let bob = on.chat_with(&peer, &me, &only_unread);
    bob.wait_for("2 lines (your position is not known)");
    bob.wait_for(&format!("{me}: two"));
    alice.wait_for(&format!("{peer} is here"));
    bob.keys(CTRL_D);
    bob.ends_with(0);

    let bob = on.chat_with(&peer, &me, &only_unread);
    alice.line("three");
    bob.wait_for(&format!("{me}: three"));
    bob.has_not_shown("1 line ");
    bob.has_not_shown("not known");
    bob.has_not_shown("two");
    bob.keys(CTRL_D);
    bob.ends_with(0);

    alice.line("four");
    on.first_lines(&peer, 4);
    let bob = on.chat_with(&peer, &me, &only_unread);
    bob.wait_for("* 1 line ");
    bob.wait_for(&format!("{me}: four"));
    bob.has_not_shown("three");
    bob.keys(CTRL_D);
    bob.ends_with(0);
    alice.keys(CTRL_D);
    alice.ends_with(0).has_not_shown("not read by");
}

#[test]
fn a_chat_with_the_small_broker_that_is_opened_again_shows_what_was_said_in_every_build() {
    let on = Kafka::embedded();
    let _host = on.host();
    let (me, peer) = (user("alice"), user("bob"));
    let (alice, bob) = (on.chat(&me, &peer), on.chat(&peer, &me));
    alice.line("hello");
    bob.wait_for(": hello");
    bob.line("hi");
    alice.wait_for(": hi");
    for chat in [alice, bob] {
        chat.keys(CTRL_D);
        chat.ends_with(0);
    }
    let both = format!("* 2 earlier lines\n{me}: hello\n{peer}: hi\n");
    for (me, peer) in [(&me, &peer), (&peer, &me)] {
        // The end of a chat may have been too short for its last commit.
        let shows_both = || {
            let chat = on.chat(me, peer);
            chat.wait_for(": hello");
            chat.wait_for(": hi");
            chat.keys(CTRL_D);
            chat.ends_with(0).history().contains(&both).then_some(())
        };
        poll_until(PATIENCE, || format!("shown to {me}: {both}"), shows_both);
    }
}

pub(crate) fn a_third_user_causes_one_notice_and_has_a_chat_of_their_own(on: &Kafka) {
    let (me, peer, third) = (user("alice"), user("bob"), user("carol"));
    let alice = on.chat(&me, &peer);
    on.send(&third, &me, "psst\nhey\n");
    on.send(&peer, &me, "hello\n");
    alice.wait_for(&format!("{peer}: hello"));
    alice.has_shown_times("is writing to you", 1);
    alice.has_not_shown("psst");
    let other = on.chat(&me, &third);
    other.wait_for("2 lines (your position is not known)");
    other.wait_for(&format!("{third}: hey"));
}

/// Messages of all kinds while half a line is typed, with the cursor in its middle.
#[test]
fn what_arrives_never_touches_the_line_being_typed() {
    let on = Kafka::embedded();
    let (chat, mut writer, _, peer) = with_a_writer(&on);
    chat.keys("abcdef");
    chat.keys(&LEFT.repeat(3));
    let messages: Vec<String> = (0..50)
        .map(|n| match n % 5 {
            0 => format!("{n} plain"),
            1 => format!("{n} {}", "wider than the screen ".repeat(8)),
            2 => format!("{n} tiếng Việt có dấu"),
            3 => format!("{n} 你好，世界。"),
            _ => format!("{n} 🎉🇻🇳"),
        })
        .map(|text| text.trim_end().to_string())
        .collect();
    for message in &messages {
        writer.write(format!("{message}\n"));
    }
    chat.wait_for("49 🎉");
    chat.keys("X");
    chat.wait_for("> abcXdef");
    // A message of several rows is indented.
    let history = unbroken(&chat.history());
    let mut rest = history.as_str();
    for message in &messages {
        let line = format!("{peer}: {message}\n");
        // The emulator lays out flags in its own way; the number identifies the line.
        let line = line.split('🎉').next().unwrap();
        let at = rest
            .find(line)
            .unwrap_or_else(|| panic!("{line:?} is not whole and in order in\n{history}"));
        rest = &rest[at + line.len()..];
    }
    chat.keys(ENTER);
    assert_eq!(on.first_lines(&peer, 1), "abcXdef\n");
}

#[test]
fn a_resize_leaves_the_typed_line_whole() {
    let on = Kafka::embedded();
    let (chat, mut writer, _, peer) = with_a_writer(&on);
    chat.keys("before ");
    writer.write("one\n");
    chat.wait_for(": one");
    chat.resize(24, 50);
    writer.write("two\n");
    chat.wait_for(": two");
    chat.keys("after");
    chat.keys(ENTER);
    assert_eq!(on.first_lines(&peer, 1), "before after\n");
}

#[test]
fn a_paste_of_three_lines_while_messages_arrive_is_three_messages() {
    let on = Kafka::embedded();
    let (chat, mut writer, me, peer) = with_a_writer(&on);
    let expected: Vec<String> = (0..200).map(|n| format!("{peer}: message {n}")).collect();
    for n in 0..100 {
        writer.write(format!("message {n}\n"));
    }
    chat.wait_for(": message ");
    chat.keys(&format!("{PASTE_START}one\ntwo"));
    for n in 100..200 {
        writer.write(format!("message {n}\n"));
    }
    on.first_lines(&me, 200);
    chat.keys(&format!("\nthree{PASTE_END}{ENTER}"));
    assert_eq!(on.first_lines(&peer, 3), "one\ntwo\nthree\n");
    chat.wait_for(": message 199");
    let history = chat.history();
    let messages: Vec<&str> = history
        .lines()
        .filter(|l| l.contains(": message "))
        .collect();
    assert_eq!(messages, expected);
}

#[test]
fn a_long_line_is_edited_in_its_middle_while_messages_arrive() {
    let on = Kafka::embedded();
    let (chat, mut writer, me, peer) = with_a_writer(&on);
    chat.wait_for(&format!("{peer} has not opened a chat with you yet"));
    let words: String = (0..200).map(|n| format!("{n:04} ")).collect();
    let (before, after) = words.split_at(500);
    chat.keys(&words);
    chat.wait_for("0199");
    writer.write("one\n");
    chat.wait_for(": one");
    chat.keys(&LEFT.repeat(500));
    writer.write("two\n");
    chat.wait_for(": two");
    chat.keys("here ");
    // All of the line is painted again for each key, and may be read in parts.
    chat.wait("the whole edited line", |screen| {
        let shown = screen.contents();
        shown.contains("here 0100") && shown.contains("0199")
    });
    let history = chat.history();
    let end = format!("{peer}: one\n{peer}: two\n{me}> {before}here {after}");
    assert!(history.trim_end().ends_with(end.trim_end()), "{history}");
    chat.keys(ENTER);
    assert_eq!(on.first_lines(&peer, 1), format!("{before}here {after}\n"));
}

#[test]
fn messages_wait_while_the_history_is_searched() {
    let on = Kafka::embedded();
    let (chat, mut writer, me, peer) = with_a_writer(&on);
    chat.line("an earlier line");
    on.first_lines(&peer, 1);
    chat.keys("half");
    chat.keys(CTRL_R);
    chat.wait_for("reverse-i-search");
    writer.write("while searching\n");
    on.first_lines(&me, 1);
    chat.keys("earl");
    chat.wait_for("`earl'");
    chat.has_not_shown("while searching");
    chat.keys(CTRL_G);
    chat.wait_for(": while searching");
    chat.wait_for("> half");
    chat.keys(ENTER);
    assert_eq!(on.first_lines(&peer, 2), "an earlier line\nhalf\n");
}

#[test]
fn whatever_key_ends_a_search_of_the_history_messages_are_shown_after_it() {
    let on = Kafka::embedded();
    let (chat, mut writer, me, peer) = with_a_writer(&on);
    chat.wait_for("has not opened a chat with you yet");
    chat.line("an earlier line");
    on.first_lines(&peer, 1);
    let prompt = |draft: &str| format!("{me}> {draft}");
    let found = "(reverse-i-search)`an': an earlier line".into();
    for (n, (draft, searched, key, shown)) in [
        ("half", "an", CTRL_C, prompt("half")),
        ("half", "an", CTRL_U, prompt("half")),
        ("half", "an", TAB, found),
        ("", "", CTRL_C, prompt("")),
    ]
    .into_iter()
    .enumerate()
    {
        chat.keys(&format!("{draft}{CTRL_R}{searched}"));
        chat.wait_for(&format!("(reverse-i-search)`{searched}':"));
        chat.keys(key);
        writer.write(format!("message {n}\n"));
        chat.wait_for(&format!("{peer}: message {n}\n{}", shown.trim_end()));
        chat.keys(&format!("x{CTRL_C}"));
    }
    chat.line("sent");
    assert_eq!(on.first_lines(&peer, 2), "an earlier line\nsent\n");
}

/// The terminal takes no output while the key is typed, so that the burst cannot end before that.
#[test]
fn a_key_typed_in_a_burst_of_ten_thousand_is_echoed_before_the_last_message() {
    let on = Kafka::embedded();
    let (chat, mut writer, me, peer) = with_a_writer(&on);
    chat.hold_at(": message ");
    let burst: String = (0..10_000).map(|n| format!("message {n}\n")).collect();
    writer.write(burst);
    chat.wait_for(": message ");
    chat.keys("x");
    let echo = format!("{me}> x");
    chat.hold_at(&echo);
    chat.wait_for(&echo);
    chat.has_not_shown(": message 9999");
    chat.release();
    chat.wait_for(": message 9999");
    let history = chat.history();
    let numbers: Vec<usize> = history
        .lines()
        .filter_map(|line| line.split_once(": message ")?.1.parse().ok())
        .collect();
    assert_eq!(numbers, (0..10_000).collect::<Vec<_>>());
    chat.line("yz");
    assert_eq!(on.first_lines(&peer, 1), "xyz\n");
}

#[cfg(target_os = "linux")]
#[test]
fn a_busy_editor_leaves_unread_messages_in_kafka() {
    let on = Kafka::embedded();
    let _host = on.host();
    let (chat, mut writer, ..) = with_a_writer(&on);
    // Then it has looked for earlier lines, which takes memory, too.
    writer.write("first\n");
    chat.wait_for(": first");
    chat.line("an earlier line");
    chat.keys(CTRL_R);
    chat.wait_for("reverse-i-search");
    let before = chat.peak_memory();
    for n in 0..10_000 {
        writer.write(format!("{}{n}\n", "x".repeat(1000)));
    }
    writer.close();
    writer.wait().code(0);
    chat.keys(CTRL_G);
    chat.wait_for("x9999");
    let grown = chat.peak_memory() - before;
    assert!(
        grown < 5_000,
        "{grown} kB more for 10 MB of messages, after {before} kB"
    );
}

/// What a hostile sender could send, and the text that must be shown for it.
const INJECTIONS: [(&[u8], &str); 14] = [
    (b"\x1b]0;title\x07", "^[]0;title^G"),
    (b"\x1b[2J\x1b[Hcleared", "^[[2J^[[Hcleared"),
    (b"\x1b[10;10Hmoved", "^[[10;10Hmoved"),
    (
        b"\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
        "^[]8;;http://evil^[\\link",
    ),
    (b"\x1b]52;c;ZXZpbA==\x07", "^[]52;c;ZXZpbA==^G"),
    (b"\x1bPq#0\x1b\\", "^[Pq#0^[\\"),
    (b"\xc2\x9b31mred", "<U+009B>31mred"),
    // U+FFFD, which the emulator drops.
    (b"raw \x9b31mred", "raw 31mred"),
    (b"good\rbad", "good^Mbad"),
    (b"abc\x08\x08\x08xyz", "abc^H^H^Hxyz"),
    ("\u{202e}gnp.exe".as_bytes(), "<U+202E>gnp.exe"),
    ("a\u{2066}b\u{2069}c".as_bytes(), "a<U+2066>b<U+2069>c"),
    ("zero\u{200b}width".as_bytes(), "zero<U+200B>width"),
    (b"bell\x07del\x7f", "bell^Gdel^?"),
];

#[test]
fn messages_are_visible_text_on_a_terminal_and_raw_bytes_in_a_pipe() {
    let on = Kafka::embedded();
    let (chat, mut writer, me, peer) = with_a_writer(&on);
    // None of our programs writes a newline into a message, but other clients can.
    Producer::from_hosts(vec![on.servers()])
        .with_required_acks(RequiredAcks::One)
        .create()
        .and_then(|mut producer| {
            let value = &b"one\nmallory: two"[..];
            producer.send(&Record::from_key_value(&me, peer.as_bytes(), value))
        })
        .unwrap();
    chat.wait_for(": one^Jmallory: two");
    let mut all = Vec::new();
    for (bytes, _) in INJECTIONS {
        all.extend(bytes);
        all.push(b'\n');
    }
    all.extend(b"the end\n");
    writer.write(&all);
    chat.wait_for(": the end");
    let shown = INJECTIONS.map(|(_, shown)| shown);
    chat.has_shown(&shown);
    let has_osc = contains(&chat.raw(), b"\x1b]");
    assert!(!has_osc, "an OSC sequence is there\n{}", chat.report());
    let subscriber = on.program("subscriber", &[&me, "--from", "earliest"]);
    let subscriber = subscriber.on_a_terminal();
    subscriber.wait_for("the end");
    subscriber.has_shown(&shown);
    on.program("subscriber", &[&me, "--from", "earliest", "-e"])
        .run()
        .code(0)
        .prints([b"one\nmallory: two\n", &all[..]].concat());
}

/// Ends a chat in every way, with a line half typed.
fn end_in_every_way(mut open: impl FnMut() -> Tty) {
    let ways: [fn(&Tty); 5] = [
        |chat| chat.keys(&format!("{CTRL_C}{CTRL_C}")),
        |chat| chat.keys(&format!("{CTRL_U}{CTRL_D}")),
        |chat| chat.signal("TERM"),
        |chat| chat.signal("INT"),
        |chat| chat.signal("HUP"),
    ];
    let mut open = || {
        let chat = open();
        chat.keys("half a line");
        chat.wait_for("> half a line");
        chat
    };
    for end in ways {
        let chat = open();
        end(&chat);
        chat.ends_with(0);
    }
    open().closes_with(0);
}

#[test]
fn every_way_of_ending_a_chat_leaves_the_terminal_as_it_was() {
    let on = Kafka::embedded();
    let _host = on.host();
    end_in_every_way(|| on.chat(&user("alice"), &user("bob")));
}

#[test]
fn a_signal_between_two_lines_leaves_the_terminal_as_it_was() {
    let on = Kafka::embedded();
    for signal in ["TERM", "HUP"] {
        let mut alice = on.chat(&user("alice"), &user("bob"));
        // The editor would wait to print it for as long as the output is stopped.
        alice.wait_for("has not opened a chat with you yet");
        alice.keys("one");
        alice.wait_for("> one");
        alice.between_two_lines(|| {
            alice.keys("two");
            alice.signal(signal);
        });
        // The first line may not be acknowledged yet.
        let (status, is_restored) = alice.wait_for_end();
        assert!(status.code().is_some(), "{status}\n{}", alice.report());
        assert!(is_restored, "{}", alice.report());
    }
}

/// At moments left to chance.
#[test]
fn a_signal_amid_lines_being_typed_leaves_the_terminal_as_it_was() {
    let on = Kafka::embedded();
    for n in 0..10 {
        let mut alice = on.chat(&user("alice"), &user("bob"));
        alice.keep_typing("x\r");
        alice.wait("typed line", |screen| screen.contents().contains("x\n"));
        alice.signal(["TERM", "HUP"][n % 2]);
        let (status, is_restored) = alice.wait_for_end();
        assert!(status.code().is_some(), "{status}\n{}", alice.report());
        assert!(is_restored, "chat {n}\n{}", alice.report());
    }
}

#[test]
fn a_chat_ends_in_every_way_while_the_broker_is_away() {
    let on = Kafka::embedded();
    end_in_every_way(|| {
        let host = on.host();
        let chat = on.by_address().chat(&user("alice"), &user("bob"));
        drop(host);
        chat.wait_for("retrying");
        chat
    });
}

#[test]
fn the_end_of_a_chat_names_a_line_typed_while_the_broker_was_away() {
    let on = Kafka::embedded();
    type End = fn(Tty);
    let ends: [End; 2] = [
        |chat| {
            chat.keys(CTRL_C);
            let chat = chat.ends_with(1);
            chat.has_shown(&["1 of 1 line may not have arrived", "not acknowledged yet"]);
        },
        |chat| chat.closes_with(1),
    ];
    for end in ends {
        let host = on.host();
        let me = user("alice");
        let options = ["--delivery-timeout", A_DAY];
        let chat = on.by_address().chat_with(&me, &user("bob"), &options);
        drop(host);
        chat.wait_for("retrying");
        chat.line("are you there?");
        chat.wait_for(&format!("> are you there?\n{me}>"));
        end(chat);
    }
}

#[test]
fn a_chat_on_a_stopped_terminal_ends_and_has_sent_its_lines() {
    let on = Kafka::embedded();
    let _host = on.host();
    let (me, peer) = (user("alice"), user("bob"));
    let (input, mut typed) = std::io::pipe().unwrap();
    let program = on.program("chat", &[&me, &peer]).arg("--delivery-timeout");
    let mut chat = program.arg(A_DAY).fed_on_a_terminal(input);
    chat.wait_for("has not opened a chat with you yet");
    chat.stop_output();
    let message = on.program("publisher", &[&peer, &me]).input("one\n");
    message.run().code(0);
    typed.write_all(b"two\n").unwrap();
    assert_eq!(on.first_lines(&peer, 1), "two\n");
    chat.signal("TERM");
    let (status, _) = chat.wait_for_end();
    assert_eq!(status.code(), Some(1), "{}", chat.report());
}

#[test]
fn a_publisher_whose_progress_is_on_a_stopped_terminal_ends() {
    let on = Kafka::embedded();
    let _host = on.host();
    let (input, mut piped) = std::io::pipe().unwrap();
    let program = on.program("publisher", &[&user("alice"), &user("bob")]);
    let mut publisher = program.fed_on_a_terminal(input);
    piped.write_all(b"one\n").unwrap();
    publisher.wait_for("1 lines");
    publisher.stop_output();
    publisher.signal("TERM");
    let (status, _) = publisher.wait_for_end();
    assert_eq!(status.code(), Some(1), "{}", publisher.report());
}

#[test]
fn a_chat_ends_when_its_output_is_closed() {
    let on = Kafka::embedded();
    for is_away in [false, true] {
        let host = on.host();
        let program = on
            .by_address()
            .program("chat", &[&user("alice"), &user("bob")]);
        let (chat, output) = program.piped_on_a_terminal();
        chat.wait_for("has not opened a chat with you yet");
        if is_away {
            drop(host);
            chat.wait_for("retrying");
        }
        drop(output);
        chat.ends_with(0);
    }
}

#[test]
fn a_chat_between_pipes_reads_and_writes_plain_lines() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let mut alice = on.program("chat", &[&me, &peer]).start();
    let mut bob = on.program("chat", &[&peer, &me]).start();
    alice.write("\x1b[1mraw\n");
    bob.wait_for("\x1b[1mraw\n");
    bob.write("reply\n");
    alice.wait_for("reply\n");
    alice.close();
    alice.wait().code(0).prints("reply\n");
    // More could have come from the pipe.
    bob.signal("TERM");
    bob.wait()
        .code(1)
        .says(&["was not read"])
        .prints("\x1b[1mraw\n");
    assert_eq!(on.log(&me), "reply\n");
}

mod embedded {
    use crate::support::on_the_small_broker;

    on_the_small_broker! {
        lines_go_both_ways_at_once();
        ctrl_d_typed_between_two_lines_ends_a_chat_after_the_lines_before_it();
        a_chat_asks_for_names_on_the_terminal();
        unread_lines_are_shown_once_and_counted_for_their_sender();
        a_third_user_causes_one_notice_and_has_a_chat_of_their_own();
    }
}
