//! `chat` as people use it, each on a terminal of their own.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use kafka_chat::client::{self, Options, Report, Reports};

use crate::support::{Kafka, PATIENCE, Running, user};
use crate::tty::{CTRL_C, CTRL_D, CTRL_G, CTRL_R, ENTER, LEFT, Tty};

/// Within a second, as a person sees it; the machine's noise is allowed as much again, and more.
const SOON: Duration = Duration::from_secs(5);

/// Opens `me`'s chat with `peer`, up to its prompt.
fn chat(on: &Kafka, me: &str, peer: &str) -> Tty {
    let chat = on.program("chat", &[me, peer]).on_a_terminal(24, 80);
    chat.wait_for(&format!("{me}>"));
    chat
}

/// Both names, and a publisher in the place of the second that a test can feed.
fn with_a_writer(on: &Kafka) -> (Tty, Running, String) {
    let (me, peer) = (user("alice"), user("bob"));
    let chat = chat(on, &me, &peer);
    let writer = on.program("publisher", &[&peer, &me]).start();
    (chat, writer, peer)
}

/// What lies in a topic.
fn sent_to(on: &Kafka, name: &str) -> String {
    let all = on
        .program("subscriber", &[name, "--from", "earliest", "-e"])
        .run()
        .code(0);
    String::from_utf8(all.stdout).unwrap()
}

/// Waits until `count` lines lie in a topic, and gives them.
fn wait_for_lines(on: &Kafka, name: &str, count: usize) -> String {
    let count = count.to_string();
    let all = on
        .program("subscriber", &[name, "--from", "earliest", "-n", &count])
        .run()
        .code(0);
    String::from_utf8(all.stdout).unwrap()
}

pub(crate) fn lines_go_both_ways_at_once(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let alice = chat(on, &me, &peer);
    alice.wait_for("has not opened a chat with you yet");
    let bob = chat(on, &peer, &me);
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

pub(crate) fn an_end_typed_ahead_is_an_end_behind_the_last_line(on: &Kafka, times: u64) {
    for n in 0..times {
        let (me, peer) = (user("alice"), user("bob"));
        let alice = chat(on, &me, &peer);
        // A new topic may take a moment, and the end does not wait for long.
        alice.line("0");
        wait_for_lines(on, &peer, 1);
        for line in 1..5 {
            alice.line(&format!("{line}"));
            // Each chat gets it at another moment.
            std::thread::sleep(Duration::from_micros(100 * n));
        }
        alice.keys(CTRL_D);
        let history = alice.ends_with(0).history();
        assert_eq!(sent_to(on, &peer), "0\n1\n2\n3\n4\n", "{history}");
    }
}

pub(crate) fn names_are_asked_for_at_the_terminal(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let alice = on.program("chat", &[]).on_a_terminal(24, 80);
    alice.wait_for("What is your name?");
    alice.line("a b");
    alice.wait_for("can't be a name");
    alice.line(&me);
    alice.wait_for("Who do you want to connect to?");
    alice.line(&peer);
    alice.wait_for(&format!("{me}>"));
    alice.line("hello");
    assert_eq!(wait_for_lines(on, &peer, 1), "hello\n");
}

pub(crate) fn what_waited_is_shown_once_and_what_waits_is_told(on: &Kafka) {
    let (me, peer) = (user("alice"), user("bob"));
    let alice = chat(on, &me, &peer);
    alice.line("one");
    alice.line("two");
    wait_for_lines(on, &peer, 2);
    alice.keys(CTRL_D);
    let alice = alice.ends_with(0);
    assert!(
        alice
            .history()
            .contains(&format!("2 lines not read by {peer} yet")),
        "{}",
        alice.history()
    );

    let alice = chat(on, &me, &peer);
    let bob = chat(on, &peer, &me);
    bob.wait_for("2 lines while you were away");
    bob.wait_for(&format!("{me}: two"));
    alice.wait_for(&format!("{peer} is here"));
    bob.keys(CTRL_D);
    bob.ends_with(0);

    let bob = chat(on, &peer, &me);
    alice.line("three");
    bob.wait_for(&format!("{me}: three"));
    let history = bob.history();
    assert!(
        !history.contains("away") && !history.contains("two"),
        "{history}"
    );
    bob.keys(CTRL_D);
    bob.ends_with(0);
    alice.keys(CTRL_D);
    let history = alice.ends_with(0).history();
    assert!(!history.contains("not read by"), "{history}");
}

pub(crate) fn a_third_user_gets_one_notice_and_a_chat_of_their_own(on: &Kafka) {
    let (me, peer, third) = (user("alice"), user("bob"), user("carol"));
    let alice = chat(on, &me, &peer);
    on.program("publisher", &[&third, &me])
        .input("psst\nhey\n")
        .run()
        .code(0);
    on.program("publisher", &[&peer, &me])
        .input("hello\n")
        .run()
        .code(0);
    alice.wait_for(&format!("{peer}: hello"));
    let history = alice.history();
    assert_eq!(history.matches("is writing to you").count(), 1, "{history}");
    assert!(!history.contains("psst"), "{history}");
    let other = chat(on, &me, &third);
    other.wait_for("2 lines while you were away");
    other.wait_for(&format!("{third}: hey"));
}

/// Messages of all kinds while half a line is typed, with the cursor in its middle.
#[test]
fn what_arrives_never_touches_the_line_being_typed() {
    let on = Kafka::embedded();
    let (chat, mut writer, peer) = with_a_writer(&on);
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
    let history = chat.history();
    let mut rest = history.as_str();
    for message in &messages {
        let line = format!("{peer}: {message}\n");
        // The emulator has its own mind about flags; the number tells which line it is.
        let line = line.split('🎉').next().unwrap();
        let at = rest
            .find(line)
            .unwrap_or_else(|| panic!("{line:?} is not whole and in order in\n{history}"));
        rest = &rest[at + line.len()..];
    }
    chat.keys(ENTER);
    assert_eq!(wait_for_lines(&on, &peer, 1), "abcXdef\n");
}

#[test]
fn a_resize_leaves_the_typed_line_whole() {
    let on = Kafka::embedded();
    let (chat, mut writer, peer) = with_a_writer(&on);
    chat.keys("before ");
    writer.write("one\n");
    chat.wait_for(": one");
    chat.resize(24, 50);
    writer.write("two\n");
    chat.wait_for(": two");
    chat.keys("after");
    chat.keys(ENTER);
    assert_eq!(wait_for_lines(&on, &peer, 1), "before after\n");
}

#[test]
fn a_paste_of_three_lines_while_messages_arrive_is_three_messages() {
    let on = Kafka::embedded();
    let (chat, mut writer, peer) = with_a_writer(&on);
    let expected: Vec<String> = (0..200).map(|n| format!("{peer}: message {n}")).collect();
    for n in 0..100 {
        writer.write(format!("message {n}\n"));
    }
    chat.paste("one\ntwo\nthree");
    for n in 100..200 {
        writer.write(format!("message {n}\n"));
    }
    chat.keys(ENTER);
    assert_eq!(wait_for_lines(&on, &peer, 3), "one\ntwo\nthree\n");
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
    let (chat, mut writer, peer) = with_a_writer(&on);
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
    chat.wait_for("here 0100");
    let history = chat.history();
    let end = format!(
        "{peer}: one\n{peer}: two\n{}> {before}here {after}",
        chat_name(&chat)
    );
    assert!(history.trim_end().ends_with(end.trim_end()), "{history}");
    chat.keys(ENTER);
    assert_eq!(
        wait_for_lines(&on, &peer, 1),
        format!("{before}here {after}\n")
    );
}

#[test]
fn messages_wait_while_the_history_is_searched() {
    let on = Kafka::embedded();
    let (chat, mut writer, peer) = with_a_writer(&on);
    chat.line("an earlier line");
    wait_for_lines(&on, &peer, 1);
    chat.keys("half");
    chat.keys(CTRL_R);
    chat.wait_for("reverse-i-search");
    writer.write("while searching\n");
    wait_for_lines(&on, chat_name(&chat), 1);
    chat.keys("earl");
    chat.wait_for("an earlier line");
    chat.keys(CTRL_G);
    chat.wait_for(": while searching");
    chat.wait_for("> half");
    chat.keys(ENTER);
    assert_eq!(wait_for_lines(&on, &peer, 2), "an earlier line\nhalf\n");
}

/// The user of a chat, as its prompt has it. That may just be painted anew, and is waited for.
fn chat_name(chat: &Tty) -> &'static str {
    let mut name = None;
    chat.wait("prompt", |screen| {
        let contents = screen.contents();
        let mut lines = contents.lines().rev();
        let prompt = lines.find_map(|l| l.split_once("> ").or(l.split_once('>')));
        name = prompt.map(|(name, _)| name.to_string());
        name.is_some()
    });
    name.unwrap().leak()
}

#[test]
fn typing_is_answered_during_a_burst_of_ten_thousand() {
    let on = Kafka::embedded();
    let (chat, mut writer, peer) = with_a_writer(&on);
    let burst: String = (0..10_000).map(|n| format!("message {n}\n")).collect();
    writer.write(burst);
    chat.wait_for(": message ");
    let mut echoes = Vec::new();
    let mut typed = String::new();
    for key in "thequickbrownfoxjumpsoverthelazydog".chars() {
        let start = Instant::now();
        typed.push(key);
        chat.keys(&key.to_string());
        chat.wait_for(&format!("> {typed}"));
        echoes.push(start.elapsed());
    }
    chat.wait_for(": message 9999");
    echoes.sort();
    // On a quiet machine the median is a few milliseconds. What is asserted is that nobody has to
    // wait for the end of the burst; the tests next to this one make more noise than that.
    assert!(echoes[echoes.len() / 2] < SOON, "{echoes:?}");
    let history = chat.history();
    let numbers: Vec<usize> = history
        .lines()
        .filter_map(|l| l.split_once(": message ")?.1.parse().ok())
        .collect();
    assert_eq!(numbers, (0..10_000).collect::<Vec<_>>());
    chat.keys(ENTER);
    assert_eq!(wait_for_lines(&on, &peer, 1), format!("{typed}\n"));
}

#[cfg(target_os = "linux")]
#[test]
fn what_waits_for_a_busy_editor_waits_in_kafka() {
    let on = Kafka::embedded();
    let _host = on.host();
    let (chat, mut writer, _) = with_a_writer(&on);
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

/// What a hostile sender would try, and what of it must be seen.
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
    // U+FFFD, which the emulator takes no note of.
    (b"raw \x9b31mred", "raw 31mred"),
    (b"good\rbad", "good^Mbad"),
    (b"abc\x08\x08\x08xyz", "abc^H^H^Hxyz"),
    ("\u{202e}gnp.exe".as_bytes(), "<U+202E>gnp.exe"),
    ("a\u{2066}b\u{2069}c".as_bytes(), "a<U+2066>b<U+2069>c"),
    ("zero\u{200b}width".as_bytes(), "zero<U+200B>width"),
    (b"bell\x07del\x7f", "bell^Gdel^?"),
];

/// Sends any bytes at all as one message.
fn send_value(on: &Kafka, sender: &str, topic: &str, value: &[u8]) {
    let cluster = client::connect(&Options {
        servers: vec![on.servers()],
        ..Options::default()
    });
    let (sender, topic) = (sender.parse().unwrap(), topic.parse().unwrap());
    let (tx, reports) = mpsc::channel::<Report>();
    let mut producer = cluster
        .unwrap()
        .producer(&sender, &topic, PATIENCE, Reports::to(tx))
        .unwrap();
    producer.send(1, value);
    let report = reports.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(report, Report::Acknowledged { .. }), "{report:?}");
}

#[test]
fn what_others_send_is_text_on_a_terminal_and_raw_in_a_pipe() {
    let on = Kafka::embedded();
    let (chat, mut writer, peer) = with_a_writer(&on);
    let me = chat_name(&chat);
    // No program of ours puts a newline into a message, but others can.
    send_value(&on, &peer, me, b"one\nmallory: two");
    chat.wait_for(": one^Jmallory: two");
    let mut all = Vec::new();
    for (bytes, _) in INJECTIONS {
        all.extend(bytes);
        all.push(b'\n');
    }
    writer.write(&all);
    writer.write("the end\n");
    chat.wait_for(": the end");
    let history = chat.history();
    for (bytes, shown) in INJECTIONS {
        assert!(
            history.contains(shown),
            "{bytes:?} is not {shown:?} in\n{history}"
        );
    }
    let raw = chat.raw();
    assert!(
        !crate::support::contains(&raw, b"\x1b]"),
        "an OSC came through"
    );
    let viewer = on
        .program("subscriber", &[me, "--from", "earliest"])
        .on_a_terminal(24, 80);
    viewer.wait_for("the end");
    let history = viewer.history();
    for (bytes, shown) in INJECTIONS {
        assert!(
            history.contains(shown),
            "{bytes:?} is not {shown:?} in\n{history}"
        );
    }
    all.extend(b"the end\n");
    on.program("subscriber", &[me, "--from", "earliest", "-e"])
        .run()
        .code(0)
        .prints([b"one\nmallory: two\n", &all[..]].concat());
}

/// Ends a chat in every way, with a line half typed.
fn end_in_every_way(mut open: impl FnMut() -> Tty) {
    type End = (&'static str, fn(Tty));
    let ends: [End; 6] = [
        ("Ctrl-C", |chat| {
            chat.keys(CTRL_C);
            chat.ends_with(0);
        }),
        ("Ctrl-D", |chat| {
            chat.keys(&format!("\x15{CTRL_D}"));
            chat.ends_with(0);
        }),
        ("SIGTERM", |chat| {
            chat.signal("TERM");
            chat.ends_with(0);
        }),
        ("SIGINT", |chat| {
            chat.signal("INT");
            chat.ends_with(0);
        }),
        ("SIGHUP", |chat| {
            chat.signal("HUP");
            chat.ends_with(0);
        }),
        ("a closed terminal", |chat| chat.closes_with(0)),
    ];
    for (what, end) in ends {
        let chat = open();
        chat.keys("half a line");
        chat.wait_for("> half a line");
        let start = Instant::now();
        end(chat);
        assert!(start.elapsed() < SOON, "{what}: {:?}", start.elapsed());
    }
}

#[test]
fn the_terminal_is_left_as_it_was_in_every_way_of_ending() {
    let on = Kafka::embedded();
    let _host = on.host();
    end_in_every_way(|| chat(&on, &user("alice"), &user("bob")));
}

#[test]
fn a_signal_between_two_lines_leaves_the_terminal_as_it_was() {
    let on = Kafka::embedded();
    for n in 0..10 {
        let mut alice = chat(&on, &user("alice"), &user("bob"));
        // Enough for the signal to come in their midst.
        alice.keys(&"x\r".repeat(500));
        alice.wait("a line that is typed", |screen| {
            screen.contents().contains("x\n")
        });
        alice.signal(["TERM", "HUP"][n % 2]);
        let (_, sane) = alice.wait_for_end();
        assert!(sane, "chat {n}:\n{}", alice.history());
    }
}

#[test]
fn while_the_broker_is_away_a_chat_ends_in_every_way_too() {
    let on = Kafka::embedded();
    end_in_every_way(|| {
        let host = on.host();
        let chat = chat(&on.by_address(), &user("alice"), &user("bob"));
        drop(host);
        chat.wait_for("retrying");
        chat
    });
}

#[test]
fn a_line_typed_while_the_broker_is_away_is_named_at_the_end() {
    let on = Kafka::embedded();
    type End = fn(Tty);
    let ends: [End; 2] = [
        |chat| {
            chat.keys(CTRL_C);
            let history = chat.ends_with(1).history();
            assert!(
                history.contains("1 of 1 line was not delivered"),
                "{history}"
            );
        },
        |chat| chat.closes_with(1),
    ];
    for end in ends {
        let host = on.host();
        let me = user("alice");
        let chat = chat(&on.by_address(), &me, &user("bob"));
        drop(host);
        chat.wait_for("retrying");
        chat.line("are you there?");
        chat.wait_for(&format!("> are you there?\n{me}>"));
        let start = Instant::now();
        end(chat);
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    }
}

#[test]
fn a_chat_ends_when_nobody_reads_its_output_any_more() {
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
        let start = Instant::now();
        drop(output);
        chat.ends_with(0);
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    }
}

#[test]
fn a_pipe_in_and_a_pipe_out_make_plain_lines() {
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
    // Nobody knows whether more would have come.
    bob.signal("TERM");
    bob.wait()
        .code(1)
        .says(&["the rest of the input was not read"])
        .prints("\x1b[1mraw\n");
    assert_eq!(sent_to(&on, &me), "reply\n");
}

macro_rules! on_the_embedded_broker {
    ($($name:ident($($argument:expr),*);)*) => {
        $(#[test] fn $name() { super::$name(&Kafka::embedded() $(, $argument)*); })*
    };
}

mod embedded {
    use crate::support::Kafka;

    on_the_embedded_broker! {
        lines_go_both_ways_at_once();
        an_end_typed_ahead_is_an_end_behind_the_last_line(10);
        names_are_asked_for_at_the_terminal();
        what_waited_is_shown_once_and_what_waits_is_told();
        a_third_user_gets_one_notice_and_a_chat_of_their_own();
    }
}
