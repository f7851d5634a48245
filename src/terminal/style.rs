//! How messages and notices look: bytes for a pipe, safe text and colours for a terminal.

use std::borrow::Cow;
use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};

use super::visible::visible;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";
/// Colours that can be read on light and on dark.
const COLOURS: [&str; 6] = [
    "\x1b[1;31m",
    "\x1b[1;32m",
    "\x1b[1;33m",
    "\x1b[1;34m",
    "\x1b[1;35m",
    "\x1b[1;36m",
];

/// How this program's output looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// Standard output is a terminal: what could act on it is shown as visible text.
    pub(super) is_terminal: bool,
    /// Standard error is the same terminal, as far as can be seen: notices stand among messages.
    pub(super) takes_notices: bool,
    pub(super) has_colours: bool,
    /// Each message starts with its sender's name.
    pub(super) shows_senders: bool,
}

/// A terminal without colours, for tests.
#[cfg(test)]
pub(super) const ON_TERMINAL: Style = Style {
    is_terminal: true,
    takes_notices: true,
    has_colours: false,
    shows_senders: true,
};

impl Style {
    /// The style for this process's standard output and standard error.
    pub(super) fn of_output(shows_senders: bool) -> Style {
        let is_terminal = io::stdout().is_terminal();
        Style {
            is_terminal,
            takes_notices: is_terminal && io::stderr().is_terminal(),
            has_colours: is_terminal && colours_wanted(),
            shows_senders,
        }
    }

    /// The same for a chat, which shows senders on a terminal.
    pub(super) fn of_chat() -> Style {
        Style::of_output(io::stdout().is_terminal())
    }

    /// Appends a message as a line. Whatever a sender's name contains, it makes no line of its own.
    pub(super) fn message(self, out: &mut Vec<u8>, sender: &[u8], text: &[u8]) {
        if self.shows_senders {
            let (colour, reset) = self.of_sender(sender);
            out.extend(colour.as_bytes());
            out.extend(visible(sender).bytes());
            out.extend(b": ");
            out.extend(reset.as_bytes());
        }
        out.extend(self.shown(text).iter());
        out.push(b'\n');
    }

    /// What goes before and after a sender's name.
    pub(super) fn of_sender(self, sender: &[u8]) -> (&'static str, &'static str) {
        self.switch(colour_of(sender))
    }

    /// What goes before and after a row of a notice.
    pub(super) fn of_notices(self) -> (&'static str, &'static str) {
        self.switch(if self.takes_notices { DIM } else { "" })
    }

    /// What goes before and after the prompt.
    pub(super) fn of_prompt(self) -> (&'static str, &'static str) {
        self.switch(BOLD)
    }

    fn switch(self, on: &'static str) -> (&'static str, &'static str) {
        match self.has_colours && !on.is_empty() {
            true => (on, RESET),
            false => ("", ""),
        }
    }

    fn shown(self, bytes: &[u8]) -> Cow<'_, [u8]> {
        match self.is_terminal {
            false => Cow::Borrowed(bytes),
            true => match visible(bytes) {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            },
        }
    }

    /// Appends a notice, which may have several lines.
    pub(super) fn notice(self, out: &mut Vec<u8>, text: &str) {
        let (dim, reset) = self.of_notices();
        let mut notice = String::new();
        for line in text.lines() {
            // Writing to a String can't fail.
            _ = writeln!(notice, "{dim}{}{reset}", visible(line.as_bytes()));
        }
        out.extend(notice.as_bytes());
    }
}

/// Always the same for a sender, and mostly different for different senders.
fn colour_of(sender: &[u8]) -> &'static str {
    let sum = sender.iter().fold(0usize, |sum, &byte| {
        sum.wrapping_mul(31) + usize::from(byte)
    });
    COLOURS[sum % COLOURS.len()]
}

/// See <https://no-color.org>.
fn colours_wanted() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && env::var_os("TERM").is_some_and(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH_COLOURS: Style = Style {
        has_colours: true,
        ..ON_TERMINAL
    };

    #[test]
    fn a_terminal_gets_visible_text_and_a_pipe_gets_the_bytes() {
        let plain = Style {
            is_terminal: false,
            takes_notices: false,
            shows_senders: false,
            ..ON_TERMINAL
        };
        let signed = Style {
            shows_senders: true,
            ..plain
        };
        for (style, shown) in [
            (plain, &b"\x1b[2J\xff\r\n"[..]),
            (signed, b"b^[ob: \x1b[2J\xff\r\n"),
            (ON_TERMINAL, "b^[ob: ^[[2J\u{FFFD}^M\n".as_bytes()),
            (
                WITH_COLOURS,
                "\x1b[1;35mb^[ob: \x1b[0m^[[2J\u{FFFD}^M\n".as_bytes(),
            ),
        ] {
            let mut out = Vec::new();
            style.message(&mut out, b"b\x1bob", b"\x1b[2J\xff\r");
            assert_eq!(out, shown, "{style:?}");
        }
    }

    #[test]
    fn each_line_of_a_notice_is_safe_to_show() {
        let mut out = Vec::new();
        WITH_COLOURS.notice(&mut out, "cannot go on: \x1b[2J\nTry again.");
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\x1b[2mcannot go on: ^[[2J\x1b[0m\n\x1b[2mTry again.\x1b[0m\n"
        );
    }
}
