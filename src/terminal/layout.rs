//! How a chat lays out messages and notices, so that no message can look like anything else.
//!
//! A terminal would continue a long line in column 0 of its next row, where a message padded to the terminal's
//! width could show a prompt, a name or a notice of its own making. So a chat breaks lines itself, and indents
//! every row but the first. Terminals disagree about some characters' widths: what is wider than expected is
//! cut off at the edge, since the terminal's own wrapping is off.
//!
//! The size of the terminal is looked up for each batch, as late as possible: it may just have changed. Rows
//! that are printed already belong to the terminal.

use std::env;
use std::io;
use std::ops::Range;

use rustyline::GraphemeClusterMode;
use terminal_size::{Height, Width, terminal_size_of};

use super::style::Style;
use super::visible::visible;
use super::{Look, Message};
use crate::name::Name;
use crate::time::LocalTime;

/// Before every row of a message or a notice but its first.
const INDENT: &str = "  ";

/// Before the first row of a notice.
const NOTICE: &str = "* ";

const BELL: &str = "\x07";
const WRAP_OFF: &str = "\x1b[?7l";
pub(super) const WRAP_ON: &str = "\x1b[?7h";

/// The narrowest terminal that lines are broken for.
const MIN_COLUMNS: usize = 10;

/// The most bytes in a row for each of its columns: a letter can bear any number of marks.
const BYTES_PER_COLUMN: usize = 16;

/// The most bytes and columns that are never broken apart: a letter with its marks, or a joined emoji.
const MAX_CLUSTER: (usize, usize) = (64, 8);

/// The terminals that are too simple for the editor, and for this.
const SIMPLE: [&str; 3] = ["dumb", "cons25", "emacs"];

/// Something to print.
#[derive(Debug)]
pub(super) enum Piece {
    Message(Message),
    Notice(String),
    Bell,
}

/// How a chat's messages and notices are laid out.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) style: Style,
    /// For times before messages.
    time: Option<LocalTime>,
    /// Lines are broken here, and not by the terminal.
    breaks_lines: bool,
    /// Someone may be typing where messages are printed.
    is_typed_over: bool,
    /// The user, of whom there are earlier messages.
    me: Name,
    /// How to see a message whole that is cut: one of others, or one's own.
    see_whole: String,
    see_own_whole: String,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy)]
struct Window {
    columns: usize,
    rows: usize,
}

impl Layout {
    /// The layout for this process's standard output.
    pub(super) fn of_chat(me: &Name, look: Look) -> Layout {
        let style = Style::of_chat();
        let term = env::var("TERM").unwrap_or_default();
        let is_simple = SIMPLE.iter().any(|name| term.eq_ignore_ascii_case(name));
        Layout {
            style,
            time: look.with_time.then(LocalTime::new),
            breaks_lines: style.is_terminal && !is_simple,
            is_typed_over: style.is_terminal && is_simple && super::is_typed(),
            me: me.clone(),
            see_whole: look.see_whole,
            see_own_whole: look.see_own_whole,
        }
    }

    /// For a terminal without colours, in tests.
    #[cfg(test)]
    pub(super) fn for_test() -> Layout {
        Layout {
            style: super::style::ON_TERMINAL,
            time: None,
            breaks_lines: true,
            is_typed_over: false,
            me: "alice".parse().unwrap(),
            see_whole: "to see all of it: …".into(),
            see_own_whole: "to see all that you wrote: …".into(),
        }
    }

    /// The bytes of these pieces.
    pub(super) fn print(&self, pieces: &[Piece]) -> Vec<u8> {
        if self.breaks_lines {
            let rows = self.rows(pieces, Window::of_stdout());
            return [WRAP_OFF, &rows, WRAP_ON].concat().into_bytes();
        }
        let mut out = Vec::new();
        // Not on the row of a line that is just being typed.
        out.extend(self.is_typed_over.then_some(b'\n'));
        for piece in pieces {
            match piece {
                Piece::Message(message) => {
                    out.extend(self.time_before(message).bytes());
                    let style = Style {
                        shows_senders: self.style.shows_senders || message.is_earlier,
                        ..self.style
                    };
                    style.message(&mut out, &message.sender, &message.text);
                }
                Piece::Notice(text) if self.style.takes_notices => {
                    let text = text.replace('\n', &format!("\n{INDENT}"));
                    self.style.notice(&mut out, &format!("{NOTICE}{text}"));
                }
                Piece::Notice(text) => self.style.notice(&mut out, text),
                Piece::Bell => out.extend(BELL.as_bytes()),
            }
        }
        out
    }

    /// The rows of these pieces in a terminal of this size.
    fn rows(&self, pieces: &[Piece], window: Window) -> String {
        let mut out = String::new();
        for piece in pieces {
            match piece {
                Piece::Message(message) => self.message(&mut out, message, window),
                Piece::Notice(text) => self.notice(&mut out, text, window),
                Piece::Bell => out.push_str(BELL),
            }
        }
        out
    }

    /// What stands before a message: on a terminal the time of the day, since a notice tells of each new day.
    fn time_before(&self, message: &Message) -> String {
        let time = message.time;
        match &self.time {
            _ if message.is_dated && self.style.is_terminal => LocalTime::new().of(time) + " ",
            Some(local) if self.style.is_terminal => local.clock(time) + " ",
            Some(local) => local.of(time) + " ",
            None => String::new(),
        }
    }

    fn message(&self, out: &mut String, message: &Message, window: Window) {
        let Message { sender, text, .. } = message;
        let most = (window.rows / 2).max(1);
        let mut line = self.time_before(message);
        let time = line.len();
        if self.style.shows_senders {
            line.extend([&visible(sender), ": "]);
        }
        let name = line.len();
        // No more than could be shown, and one cluster: a character that is broken here is never seen.
        let bytes = most * window.columns * BYTES_PER_COLUMN + MAX_CLUSTER.0;
        line += &visible(&text[..text.len().min(bytes)]);
        let rows = rows(&line, name, window.columns, most);
        let (colour, reset) = self.style.of_sender(sender);
        let (dim, bright) = match message.is_earlier {
            true => self.style.of_notices(),
            false => ("", ""),
        };
        for (n, row) in rows.iter().enumerate() {
            if n > 0 {
                out.push_str(INDENT);
            }
            let [time, name] = [time, name].map(|end| end.clamp(row.start, row.end));
            out.push_str(&line[row.start..time]);
            if time < name {
                out.extend([colour, &line[time..name], reset]);
            }
            out.extend([dim, &line[name..row.end], bright, "\n"]);
        }
        if rows.last().is_some_and(|row| row.end < line.len()) {
            let bytes = text.len();
            let see_whole = match sender == self.me.as_bytes() {
                true => &self.see_own_whole,
                false => &self.see_whole,
            };
            let notice = format!("cut: this message has {bytes} bytes; {see_whole}");
            self.notice(out, &notice, window);
        }
    }

    /// A notice, which may have several lines.
    fn notice(&self, out: &mut String, text: &str, window: Window) {
        let (dim, reset) = self.style.of_notices();
        for (n, line) in text.lines().enumerate() {
            let start = if n == 0 { NOTICE } else { INDENT };
            let line = format!("{start}{}", visible(line.as_bytes()));
            let rows = rows(&line, start.len(), window.columns, usize::MAX);
            for (n, row) in rows.into_iter().enumerate() {
                let indent = if n == 0 { "" } else { INDENT };
                out.extend([indent, dim, &line[row], reset, "\n"]);
            }
        }
    }
}

impl Window {
    fn of_stdout() -> Window {
        let (Width(columns), Height(rows)) =
            terminal_size_of(io::stdout()).unwrap_or((Width(80), Height(24)));
        Window {
            columns: usize::from(columns).max(MIN_COLUMNS),
            rows: usize::from(rows),
        }
    }
}

/// Breaks a line into rows, at spaces if it can, all but the first of which will be indented. There are at
/// most `most` of them, which may be too few for the whole line. No row ends at a space before byte `head`.
fn rows(line: &str, head: usize, columns: usize, most: usize) -> Vec<Range<usize>> {
    let mut rows = Vec::new();
    // The row: its first byte, its width so far, and where it can be broken.
    let (mut start, mut width) = (0, 0);
    let mut after_space = None;
    for cluster in clusters(line) {
        let is_space = &line[cluster.bytes.clone()] == " ";
        let is_full = cluster.bytes.end - start > BYTES_PER_COLUMN * columns;
        if width + cluster.width > columns || is_full {
            let fits = |carried| INDENT.len() + carried + cluster.width <= columns;
            let (end, next, carried) = match after_space {
                Some((space, at)) if !is_space && !is_full && fits(width - at) => {
                    (space - 1, space, width - at)
                }
                _ if is_space => (cluster.bytes.start, cluster.bytes.end, 0),
                _ => (cluster.bytes.start, cluster.bytes.start, 0),
            };
            rows.push(start..end);
            if rows.len() == most {
                return rows;
            }
            (start, width, after_space) = (next, INDENT.len() + carried, None);
            if is_space {
                continue;
            }
        }
        width += cluster.width;
        if is_space && cluster.bytes.end > head {
            after_space = Some((cluster.bytes.end, width));
        }
    }
    rows.push(start..line.len());
    rows
}

/// Characters that belong together.
struct Cluster {
    bytes: Range<usize>,
    width: usize,
}

fn clusters(line: &str) -> impl Iterator<Item = Cluster> {
    let mut chars = line.char_indices().peekable();
    std::iter::from_fn(move || {
        let (start, first) = chars.next()?;
        let (mut last, mut width) = (first, width_of(first));
        let mut end = start + first.len_utf8();
        while let Some((at, c)) = chars.next_if(|(at, c)| {
            let fits = at - start < MAX_CLUSTER.0 && width + width_of(*c) <= MAX_CLUSTER.1;
            joins(last, *c) && fits
        }) {
            (last, width, end) = (c, width + width_of(c), at + c.len_utf8());
        }
        let bytes = start..end;
        Some(Cluster { bytes, width })
    })
}

/// Whether `c` belongs to the character before it.
fn joins(before: char, c: char) -> bool {
    let is_skin_tone = ('\u{1F3FB}'..='\u{1F3FF}').contains(&c);
    // Two make a flag.
    let is_regional = |c| ('\u{1F1E6}'..='\u{1F1FF}').contains(&c);
    let is_flag = is_regional(before) && is_regional(c);
    before == '\u{200D}' || is_flag || is_skin_tone || c == '\u{FE0F}' || width_of(c) == 0
}

/// How many columns a character takes at most: an emoji selector widens the one before it.
fn width_of(c: char) -> usize {
    match c {
        '\u{FE0F}' => 1,
        c => usize::from(GraphemeClusterMode::WcWidth.width(c.encode_utf8(&mut [0; 4]))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(text: &str) -> Piece {
        Piece::Message(Message {
            time: Some(0),
            is_dated: false,
            sender: b"bob".to_vec(),
            text: text.into(),
            is_earlier: false,
        })
    }

    /// The rows of a message from bob in a terminal of this size.
    fn laid_out(text: &str, columns: usize, rows: usize) -> String {
        Layout::for_test().rows(&[message(text)], Window { columns, rows })
    }

    #[test]
    fn lines_are_broken_at_spaces_and_long_words_anywhere() {
        for (text, shown) in [
            ("hi", "bob: hi\n"),
            ("", "bob: \n"),
            ("one two three four", "bob: one two\n  three four\n"),
            (
                "0123456789abcdefghijklm",
                "bob: 0123456\n  789abcdefg\n  hijklm\n",
            ),
            ("one 0123456789abc", "bob: one\n  0123456789\n  abc\n"),
            ("0123456 ", "bob: 0123456\n  \n"),
            ("0123456  x", "bob: 0123456\n   x\n"),
            ("0123456 x", "bob: 0123456\n  x\n"),
            ("你好世界你好世界", "bob: 你好世\n  界你好世界\n"),
            (
                "12345e\u{301}e\u{301}e\u{301}",
                "bob: 12345e\u{301}e\u{301}\n  e\u{301}\n",
            ),
            ("123456🇻🇳", "bob: 123456\n  🇻🇳\n"),
            (
                "1234👩\u{200d}👩\u{200d}👧",
                "bob: 1234\n  👩\u{200d}👩\u{200d}👧\n",
            ),
        ] {
            assert_eq!(laid_out(text, 12, 24), shown, "{text:?}");
        }
    }

    #[test]
    fn a_time_stands_before_the_name_and_wraps_with_it() {
        let mut layout = Layout {
            time: Some(LocalTime::utc()),
            ..Layout::for_test()
        };
        let window = Window {
            columns: 14,
            rows: 24,
        };
        let shown = layout.rows(&[message("hello")], window);
        assert_eq!(shown, "00:00 bob: hel\n  lo\n");
        layout.style.has_colours = true;
        let shown = layout.rows(&[message("hi")], window);
        assert_eq!(shown, "00:00 \x1b[1;32mbob: \x1b[0mhi\n");
        layout.style.is_terminal = false;
        layout.breaks_lines = false;
        let printed = layout.print(&[message("hi")]);
        assert!(printed.starts_with(b"1970-01-01 00:00:00 "));
    }

    #[test]
    fn the_date_of_a_dated_message_is_shown_on_a_terminal_only() {
        let Piece::Message(message) = message("hi") else {
            unreachable!()
        };
        let dated = [Piece::Message(Message {
            is_dated: true,
            ..message
        })];
        let mut layout = Layout::for_test();
        let window = Window {
            columns: 80,
            rows: 24,
        };
        let shown = layout.rows(&dated, window);
        // In whatever time zone.
        assert!(
            shown.starts_with("19") && shown.ends_with(" bob: hi\n"),
            "{shown}"
        );
        assert_eq!(shown.len(), "1970-01-01 00:00:00 bob: hi\n".len());
        layout.style.is_terminal = false;
        layout.breaks_lines = false;
        assert_eq!(layout.print(&dated), b"bob: hi\n");
    }

    #[test]
    fn a_message_longer_than_half_the_screen_is_cut_and_says_so() {
        let marks = "\u{301}".repeat(100_000);
        for text in ["x".repeat(1_000_000), "x ".repeat(500_000), marks] {
            let shown = laid_out(&text, 100, 24);
            let notice = format!(
                "* cut: this message has {} bytes; to see all of it: …",
                text.len()
            );
            assert_eq!(shown.lines().last(), Some(&*notice));
            assert_eq!(shown.lines().count(), 13);
            assert!(shown.len() < 12 * 100 * (BYTES_PER_COLUMN + 1));
        }
        let fits = "x".repeat(95 + 11 * 98);
        assert!(!laid_out(&fits, 100, 24).contains("cut"));
        assert!(laid_out(&(fits + "x"), 100, 24).contains("cut"));
    }

    #[test]
    fn a_message_that_is_cut_says_how_to_see_it_whole_in_the_topic_of_its_reader() {
        let window = Window {
            columns: 100,
            rows: 24,
        };
        for (sender, how) in [
            ("bob", "to see all of it: …"),
            ("alice", "to see all that you wrote: …"),
        ] {
            let message = Message {
                time: None,
                is_dated: false,
                sender: sender.into(),
                text: vec![b'x'; 10_000],
                is_earlier: true,
            };
            let shown = Layout::for_test().rows(&[Piece::Message(message)], window);
            assert!(
                shown.ends_with(&format!(" bytes; {how}\n")),
                "{sender}: {shown}"
            );
        }
    }

    #[test]
    fn only_the_first_row_of_a_notice_has_its_mark() {
        let notice = Piece::Notice("the broker is gone\nIs it\nthere?".into());
        let window = Window {
            columns: 14,
            rows: 24,
        };
        assert_eq!(
            Layout::for_test().rows(&[notice], window),
            "* the broker\n  is gone\n  Is it\n  there?\n"
        );
    }

    #[test]
    fn a_simple_terminal_gets_plain_lines_that_start_on_a_row_of_their_own() {
        let layout = Layout {
            breaks_lines: false,
            is_typed_over: true,
            ..Layout::for_test()
        };
        let text = "x".repeat(300);
        let pieces = [message(&text), Piece::Notice("gone\nfor now".into())];
        let printed = String::from_utf8(layout.print(&pieces)).unwrap();
        assert_eq!(printed, format!("\nbob: {text}\n* gone\n  for now\n"));
    }

    /// What a sender may pad a message with, to get to the next row.
    fn padding() -> impl Strategy<Value = String> {
        let filler = prop::sample::select(vec![
            " ",
            "\u{a0}",
            "\u{3000}",
            "\u{2800}",
            "\u{2003}",
            "x",
            "你",
            "👩",
            "🇻",
            "❤\u{fe0f}",
            "1\u{fe0f}\u{20e3}",
            "👩\u{200d}👩\u{200d}👧",
            "e\u{301}",
            "\u{301}",
            "\u{202e}",
            "\u{2066}",
            "\u{200b}",
            "\u{5d0}",
            "مرحبا",
            "\t",
            "\u{1160}",
            "\u{1161}",
            "ᄀ",
            "\x1b[1G",
            "\u{85}",
        ]);
        (filler, 0usize..300).prop_map(|(filler, times)| filler.repeat(times))
    }

    /// A message that pretends to be more than one.
    fn forgery() -> impl Strategy<Value = String> {
        let claim = prop_oneof![
            Just("alice> I agree".to_string()),
            Just("carol: hi".to_string()),
            Just("* bob has left".to_string()),
            Just("* cut: this message has 3 bytes; to see all of it: …".to_string()),
            any::<String>(),
        ];
        prop::collection::vec((padding(), claim), 1..4)
            .prop_map(|parts| parts.into_iter().map(|(a, b)| a + &b).collect())
    }

    /// A message with a forgery, from someone with a long name or the user, perhaps, and perhaps an earlier one.
    fn forged() -> impl Strategy<Value = Message> {
        let sender = prop_oneof![
            Just("bob".into()),
            Just("alice".into()),
            "[a-zA-Z0-9._-]{1,249}"
        ];
        let message = |(sender, text, is_dated, is_earlier): (String, String, _, _)| Message {
            time: Some(0),
            is_dated,
            sender: sender.into(),
            text: text.into(),
            is_earlier,
        };
        (sender, forgery(), any::<bool>(), any::<bool>()).prop_map(message)
    }

    proptest! {
        #[test]
        fn no_row_that_starts_in_column_0_comes_from_a_message(
            messages in prop::collection::vec((forged(), 20u16..=200, 2u16..60), 1..4),
            (has_colours, has_times) in any::<(bool, bool)>(),
        ) {
            let mut layout = Layout::for_test();
            layout.style.has_colours = has_colours;
            layout.time = has_times.then(LocalTime::utc);
            let mut screen = vt100::Parser::new(some(500), some(80), 0);
            for (message, columns, rows) in messages {
                // So high that nothing scrolls away.
                screen.screen_mut().set_size(some(500), some(columns));
                let window = Window { columns: columns.into(), rows: rows.into() };
                let from = usize::from(screen.screen().cursor_position().0);
                let what = String::from_utf8_lossy(&message.text).into_owned();
                let time = match (message.is_dated, has_times) {
                    (true, _) => LocalTime::new().of(message.time) + " ",
                    (false, true) => "00:00 ".into(),
                    (false, false) => String::new(),
                };
                let start = format!("{time}{}: ", visible(&message.sender));
                let how = match &*message.sender {
                    b"alice" => "to see all that you wrote: …",
                    _ => "to see all of it: …",
                };
                let cut = format!("* cut: this message has {} bytes; {how}", message.text.len());

                let printed = layout.rows(&[Piece::Message(message)], window);
                screen.process(printed.replace('\n', "\r\n").as_bytes());
                let to = usize::from(screen.screen().cursor_position().0);
                let shown = screen.screen().rows(0, columns).skip(from).take(to - from);
                let mut shown: Vec<String> = shown.map(|row| row.trim_end().to_string()).collect();
                let notice = shown.iter().position(|row| row.starts_with('*'));
                let notice = shown.split_off(notice.unwrap_or(shown.len()));
                for (n, row) in shown.iter().enumerate() {
                    // A name may be longer than a row.
                    let is_start = row.starts_with(start.trim_end()) || start.starts_with(row);
                    let is_indented = row.starts_with(INDENT) || row.is_empty();
                    prop_assert!(if n == 0 { is_start } else { is_indented }, "{row:?} of {what:?}");
                }
                prop_assert!(!shown.is_empty(), "{what:?}");
                let notice: Vec<&str> = notice.iter().map(|row| row.trim_start()).collect();
                prop_assert!(notice.is_empty() || notice.join(" ") == cut, "{notice:?} of {what:?}");
            }
        }
    }

    fn some(size: u16) -> std::num::NonZero<u16> {
        std::num::NonZero::new(size).unwrap()
    }
}
