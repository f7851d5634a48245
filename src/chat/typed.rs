//! Which typed lines are not sent, and why.

use std::fmt::Display;

use super::HOW_TO_LEAVE;
use super::gate::Downgrade;
use crate::client::MAX_RECORD_BYTES;
use crate::lines::Line;
use crate::name::Name;
use crate::seal;
use crate::terminal::quoted;

/// What leaves other chat programs and shells, or helps in them: rarely meant for the peer.
const COMMANDS: [&str; 4] = ["/quit", "/exit", "/help", "exit"];

/// What is asked of a typed line before it is sent.
#[derive(Debug)]
pub(super) struct Typed {
    /// The most bytes that a line can have.
    most: u64,
    is_sealed: bool,
    downgrade: Downgrade,
    /// The command that was not sent just before: if it is repeated, it is meant for the peer.
    held: Option<&'static str>,
}

impl Typed {
    /// For lines of `sender`, which are sealed or not.
    pub(super) fn new(sender: &Name, is_sealed: bool, downgrade: Downgrade) -> Typed {
        let most = match is_sealed {
            true => seal::most_text(sender),
            false => MAX_RECORD_BYTES - sender.as_bytes().len(),
        };
        Typed {
            most: most as u64,
            is_sealed,
            downgrade,
            held: None,
        }
    }

    /// Why a line is not sent, or none if it is to be sent. With `is_pasted`, it stands
    /// in a paste of several.
    pub(super) fn refuse(&mut self, line: &Line<'_>, is_pasted: bool) -> Option<String> {
        let before = self.held.take();
        if let Some(refusal) = self.downgrade.refusal() {
            return Some(not_sent(line, &refusal, is_pasted));
        }
        if line.bytes() > self.most {
            return Some(self.too_large(line, is_pasted));
        }
        let command = command(line).filter(|it| !is_pasted && before != Some(it))?;
        self.held = Some(command);
        Some(format!(
            "'{command}' was not sent: a chat has no commands; {HOW_TO_LEAVE}; to send it, repeat it"
        ))
    }

    fn too_large(&self, line: &Line<'_>, is_pasted: bool) -> String {
        let (bytes, most) = (line.bytes(), self.most);
        let a_line = match self.is_sealed {
            true => "a sealed line",
            false => "a line",
        };
        let size = format_args!("it has {bytes} bytes, and {a_line} can have {most}");
        not_sent(line, &size, is_pasted)
    }
}

fn not_sent(line: &Line<'_>, why: &dyn Display, is_pasted: bool) -> String {
    let (Line::Whole(start) | Line::TooLong { start, .. }) = line;
    let start = quoted(start);
    match is_pasted {
        true => format!("{start} was not sent: {why}"),
        false => format!("{start} was not sent: {why}; the up arrow brings it back"),
    }
}

fn command(line: &Line<'_>) -> Option<&'static str> {
    let Line::Whole(text) = line else {
        return None;
    };
    let is_typed = |command: &&str| command.as_bytes() == text.trim_ascii();
    COMMANDS.into_iter().find(is_typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For alice's lines to bob.
    fn typed(is_sealed: bool) -> Typed {
        let downgrade = Downgrade::new(&"bob".parse().unwrap(), false);
        Typed::new(&"alice".parse().unwrap(), is_sealed, downgrade)
    }

    fn of_alice() -> Typed {
        typed(false)
    }

    /// Whether each line is sent, one after the other.
    fn are_sent(lines: &[&str]) -> Vec<bool> {
        let mut typed = of_alice();
        let is_sent = |line: &&str| typed.refuse(&Line::of(line.as_bytes()), false).is_none();
        lines.iter().map(is_sent).collect()
    }

    #[test]
    fn a_command_is_sent_only_if_it_is_repeated_at_once() {
        for command in COMMANDS {
            assert_eq!(are_sent(&[command, command, command]), [false, true, false]);
            assert_eq!(are_sent(&[command, "hi", command]), [false, true, false]);
        }
        assert_eq!(
            are_sent(&["/quit", "/exit", " /exit "]),
            [false, false, true]
        );
    }

    #[test]
    fn a_command_in_a_paste_of_several_lines_is_sent() {
        let mut typed = of_alice();
        assert_eq!(typed.refuse(&Line::Whole(b"exit"), true), None);
        assert!(typed.refuse(&Line::Whole(b"exit"), false).is_some());
    }

    #[test]
    fn other_lines_are_sent() {
        for line in ["", "quit", "/quit now", "exit!", "/me waves", "/etc/hosts"] {
            assert_eq!(are_sent(&[line]), [true], "{line}");
        }
    }

    #[test]
    fn a_line_that_is_too_large_with_its_senders_name_is_not_sent() {
        let mut typed = of_alice();
        let fits = vec![b'x'; MAX_RECORD_BYTES - 5];
        assert_eq!(typed.refuse(&Line::of(&fits), false), None);
        for more in [1, 100_000] {
            let large = [fits.as_slice(), &vec![b'x'; more]].concat();
            let refused = |typed: &mut Typed, pasted| typed.refuse(&Line::of(&large), pasted);
            let start = "x".repeat(40);
            let expected = format!(
                "'{start}…' was not sent: it has {} bytes, and a line can have 1047995",
                large.len()
            );
            assert_eq!(refused(&mut typed, true), Some(expected.clone()));
            let expected = expected + "; the up arrow brings it back";
            assert_eq!(refused(&mut typed, false), Some(expected));
        }
    }

    #[test]
    fn a_sealed_line_can_have_less_bytes() {
        let mut typed = typed(true);
        let fits = vec![b'x'; 785_902];
        assert_eq!(typed.refuse(&Line::of(&fits), false), None);
        let large = [&fits[..], b"x"].concat();
        let refused = typed.refuse(&Line::of(&large), true).unwrap();
        let size = "it has 785903 bytes, and a sealed line can have 785902";
        assert!(refused.ends_with(size), "{refused}");
    }
}
