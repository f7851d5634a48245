//! How a user clears a line, which lines are not sent, and how a chat is left.

use crate::support::{Kafka, Program, contains, user};
use crate::tty::{
    CTRL_C, CTRL_D, CTRL_R, CTRL_U, CTRL_Z, ENTER, LEFT, PASTE_END, PASTE_START, Tty, UP,
};

/// A chat on the broker, and the name of its peer.
fn chat(on: &Kafka) -> (Tty, String) {
    let peer = user("bob");
    (on.chat(&user("alice"), &peer), peer)
}

/// Pastes more lines than the screen has rows.
fn paste_fifty_lines(chat: &Tty) {
    let lines: Vec<String> = (0..50).map(|n| format!("pasted line {n}")).collect();
    chat.keys(&format!("{PASTE_START}{}{PASTE_END}", lines.join("\n")));
    chat.wait_for("pasted line 49");
}

#[test]
fn the_first_screen_and_the_help_say_how_to_leave() {
    let on = Kafka::embedded();
    let (chat, _) = chat(&on);
    chat.wait_for("* to leave: Ctrl-D, or Ctrl-C on an empty line");
    let help = on.program("chat", &["--help"]).run().code(0);
    let how = b"To leave: Ctrl-D, or Ctrl-C on an empty line";
    assert!(contains(&help.stdout, how), "{}", help.report());
}

#[test]
fn a_chat_that_reads_a_pipe_sends_every_line_and_does_not_say_how_to_leave() {
    let on = Kafka::embedded();
    let peer = user("bob");
    let program = on.program("chat", &[&user("alice"), &peer]);
    program
        .input("/quit\n")
        .run()
        .code(0)
        .does_not_say("to leave");
    assert_eq!(on.log(&peer), "/quit\n");
}

#[test]
fn ctrl_c_takes_a_draft_off_the_screen_and_ends_only_on_an_empty_line() {
    let on = Kafka::embedded();
    let _host = on.host();
    let (chat, peer) = chat(&on);
    chat.keys("a draft, in the middle of which");
    chat.keys(&LEFT.repeat(5));
    chat.wait_for("> a draft, in the middle of which");
    chat.keys(CTRL_C);
    chat.wait("prompt without the draft", |screen| {
        !screen.contents().contains("draft")
    });
    chat.line("sent");
    assert_eq!(on.first_lines(&peer, 1), "sent\n");
    chat.keys("another draft");
    chat.wait_for("> another draft");
    chat.keys(&format!("{CTRL_C}{CTRL_C}"));
    chat.ends_with(0).has_not_shown("draft");
    assert_eq!(on.log(&peer), "sent\n");
}

#[test]
fn a_signal_that_ends_a_chat_leaves_no_line_on_the_screen_as_if_it_was_sent() {
    let on = Kafka::embedded();
    let _host = on.host();
    let (me, peer) = (user("alice"), user("bob"));
    for (typed, shown, times) in [
        ("half a line", "> half a line".into(), 1),
        ("", ">".into(), 0),
        ("a line\r", format!("> a line\n{me}>"), 0),
    ] {
        let mut chat = on.chat(&me, &peer);
        chat.wait_for("has not opened a chat with you yet");
        chat.keys(typed);
        chat.wait_for(&shown);
        chat.signal("TERM");
        chat.wait_for_end();
        chat.has_shown_times("* the line being typed was not sent", times);
    }
}

#[test]
fn a_paste_of_many_lines_is_cleared_whole() {
    for key in [CTRL_C, CTRL_U] {
        let on = Kafka::embedded();
        let (chat, peer) = chat(&on);
        paste_fifty_lines(&chat);
        chat.keys(key);
        chat.wait("prompt without the paste", |screen| {
            !screen.contents().contains("pasted")
        });
        chat.keys(ENTER);
        chat.line("typed");
        assert_eq!(on.first_lines(&peer, 1), "typed\n");
    }
}

#[test]
fn a_command_of_other_programs_is_sent_only_if_it_is_repeated() {
    let on = Kafka::embedded();
    let (chat, peer) = chat(&on);
    for command in ["/quit", "/exit", "/help", "exit"] {
        chat.line(command);
        chat.wait_for(&format!(
            "* '{command}' was not sent: a chat has no commands; to leave: Ctrl-D, or Ctrl-C on an \
             empty line; to send it, repeat it"
        ));
    }
    chat.line("exit");
    let paste = format!("{PASTE_START}if lost\nexit\nfi{PASTE_END}{ENTER}");
    chat.keys(&paste);
    assert_eq!(on.first_lines(&peer, 4), "exit\nif lost\nexit\nfi\n");
}

#[test]
fn a_line_that_is_too_large_is_refused_at_enter_and_can_be_edited() {
    let on = Kafka::embedded();
    let (chat, peer) = chat(&on);
    let large = "0123456789".repeat(110_000);
    chat.keys(&format!("{PASTE_START}{large}{PASTE_END}{ENTER}"));
    chat.wait_for(
        "* '0123456789012345678901234567890123456789…' was not sent: it has 1100000 bytes, and a",
    );
    // What is before the last two bytes is cleared.
    chat.keys(&format!("{UP}{LEFT}{LEFT}{CTRL_U}{ENTER}"));
    assert_eq!(on.first_lines(&peer, 1), "89\n");
    chat.keys(CTRL_D);
    chat.ends_with(0).has_not_shown("was not delivered");
}

/// Runs a chat, and continues it when it was stopped, under a shell with job control.
const UNTIL_STOPPED: &str = r#""$0" "$@"; echo "stopped: $?"; fg > /dev/null"#;

#[test]
fn ctrl_z_stops_a_chat_that_hosts_nobody() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let command = on.program("chat", &[&me, &peer]).into_command();
    let chat = Program::other("bash", &["-mc", UNTIL_STOPPED])
        .arg(command.get_program())
        .args(command.get_args())
        .on_a_terminal();
    chat.wait_for("* to leave:");
    chat.wait_for(&format!("{me}>"));
    chat.keys(CTRL_Z);
    chat.wait_for("stopped: 148");
    chat.line("after it was continued");
    assert_eq!(on.first_lines(&peer, 1), "after it was continued\n");
}

#[test]
fn ctrl_z_does_not_stop_a_chat_whose_small_broker_others_use() {
    let on = Kafka::embedded();
    let (me, peer) = (user("alice"), user("bob"));
    let chat = on.chat(&me, &peer);
    let guest = on.chat(&peer, &me);
    guest.line("from the guest");
    chat.wait_for("from the guest");
    chat.keys(CTRL_Z);
    chat.wait_for("* Ctrl-Z does nothing: others use the small broker that this chat runs");
    guest.line("and again");
    chat.wait_for("and again");
    chat.line("an earlier line");
    chat.keys(&format!("half{CTRL_R}an"));
    chat.wait_for("(reverse-i-search)`an':");
    chat.keys(CTRL_Z);
    chat.wait(&format!("notice and the draft of {me}"), |screen| {
        let shown = screen.contents();
        shown.matches("* Ctrl-Z does nothing").count() == 2 && shown.contains("> half")
    });
}
