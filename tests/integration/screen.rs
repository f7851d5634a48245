//! What a chat's screen looks like, whatever others send.

use crate::support::{Kafka, user};
use crate::tty::ENTER;

/// What rings a terminal's bell.
const BELL: u8 = 7;

/// What gets a message to the next row of a terminal: one column each, or two.
const PADDINGS: [(&str, usize); 7] = [
    (" ", 1),
    ("x", 1),
    ("\u{a0}", 1),
    ("\u{2800}", 1),
    ("\u{3000}", 2),
    ("\u{4f60}", 2),
    ("e\u{301}", 1),
];

/// A row without the time of the day at its start; nothing, if there is none.
fn without_time(row: &str) -> &str {
    let is_digit = |c: char| c.is_ascii_digit();
    let time = row.strip_prefix(is_digit).and_then(|row| {
        let row = row.strip_prefix(is_digit)?.strip_prefix(':')?;
        let row = row.strip_prefix(is_digit)?.strip_prefix(is_digit)?;
        row.strip_prefix(' ')
    });
    time.unwrap_or_default()
}

#[test]
fn no_row_of_a_message_looks_like_anything_else_at_any_width() {
    let on = Kafka::embedded();
    let _host = on.host();
    for (no_color, me, peer, options) in [
        ("", "alice", "bob", &[][..]),
        ("1", "anna", "ben", &[]),
        ("", "ada", "bert", &["--time"]),
    ] {
        let chat = on.program("chat", &[me, peer]).env("NO_COLOR", no_color);
        let chat = chat.args(options).on_a_terminal();
        let has_times = !options.is_empty();
        // What it prints at the start is laid out for the size before.
        chat.wait_for("has not opened a chat with you yet");
        let mut writer = on.program("publisher", &[peer, me]).start();
        for columns in [57, 24, 200, 33, 100] {
            chat.resize(24, columns);
            for (n, (padding, width)) in PADDINGS.into_iter().enumerate() {
                let time = if has_times { "14:02 " } else { "" };
                let head = format!("{time}{peer}: I agree").len();
                let times = (usize::from(columns) - head).div_ceil(width);
                let padding = padding.repeat(times);
                for claim in [
                    &*format!("{me}> to pay"),
                    "carol: to what?",
                    "* bob has left",
                ] {
                    writer.write(format!("I agree{padding}{claim}\n"));
                }
                writer.write(format!("the end {columns} {n}\n"));
                chat.wait_for(&format!("the end {columns} {n}"));
                for row in chat.screen().lines() {
                    let starts = [&*format!("{me}> "), "* ", "  "];
                    let message = if has_times { without_time(row) } else { row };
                    let is_known = starts.iter().any(|start| row.starts_with(start))
                        || message.starts_with(&format!("{peer}: "));
                    let is_empty = row.is_empty() || row == format!("{me}>");
                    let is_claim = row.starts_with("* bob has left") || row.contains("> to pay");
                    assert!(
                        is_empty || is_known && (!is_claim || row.starts_with("  ")),
                        "{row:?} with {columns} columns\n{}",
                        chat.report()
                    );
                }
            }
        }
    }
}

#[test]
fn a_message_longer_than_half_the_screen_is_cut_and_subscriber_shows_it_whole() {
    let on = Kafka::embedded();
    let _host = on.host();
    let (me, peer) = (user("alice"), user("bob"));
    let chat = on.chat(&me, &peer);
    on.send(&peer, &me, "x".repeat(1_000_000) + "\nshort\n");
    chat.wait_for(": short");
    let port = on.port();
    let hint = format!(
        "\n* cut: this message has 1000000 bytes; to see all of it: subscriber --embedded={port} --from \
         earliest {me}\n"
    );
    chat.has_shown(&[&hint]);
    let rows = chat
        .history()
        .lines()
        .filter(|row| row.contains("xxx"))
        .count();
    assert_eq!(rows, 12, "{}", chat.report());
}

#[test]
fn no_row_is_empty_above_the_first_notices_and_messages() {
    let on = Kafka::embedded();
    let _host = on.host();
    let (me, peer) = (user("alice"), user("bob"));
    // Nobody has written to the terminal before.
    let chat = on.by_address().chat(&me, &peer);
    on.send(&peer, &me, "hello\n");
    chat.wait_for(": hello");
    let screen = chat.screen();
    assert!(screen.starts_with("* to leave: "), "{}", chat.report());
    assert!(!screen.contains("\n\n"), "{}", chat.report());
}

#[test]
fn a_message_on_a_simple_terminal_starts_on_a_row_of_its_own() {
    let on = Kafka::embedded();
    let _host = on.host();
    let (me, peer) = (user("alice"), user("bob"));
    let chat = on.program("chat", &[&me, &peer]).env("TERM", "dumb");
    let chat = chat.on_a_terminal();
    chat.wait_for("has not opened a chat with you yet");
    chat.keys("half a li");
    chat.wait_for("half a li");
    on.send(&peer, &me, "hello\n");
    chat.wait_for(&format!("half a li\n{peer}: hello"));
    chat.keys(&format!("ne{ENTER}"));
    assert_eq!(on.first_lines(&peer, 1), "half a line\n");
}

#[test]
fn the_bell_rings_for_a_message_of_the_peer_and_for_nobody_else() {
    let on = Kafka::embedded();
    let _host = on.host();
    for (options, rings) in [(&["--bell"][..], 1), (&[], 0)] {
        let (me, peer) = (user("alice"), user("bob"));
        let chat = on.chat_with(&me, &peer, options);
        on.send(&user("carol"), &me, "psst\n");
        chat.wait_for("is writing to you");
        on.send(&peer, &me, "\x07hello\n");
        chat.wait_for(": ^Ghello");
        let rung = chat.raw().iter().filter(|byte| **byte == BELL).count();
        assert_eq!(rung, rings, "{}", chat.report());
    }
}

#[test]
fn the_bell_does_not_ring_in_a_pipe() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let mut chat = on.program("chat", &[&me, &peer, "--bell"]).start();
    on.send(&peer, &me, "hello\n");
    chat.wait_for("hello\n");
    chat.close();
    chat.wait().code(0).prints("hello\n");
}
