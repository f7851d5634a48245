//! Which typed lines are not sent, and why.

use super::HOW_TO_LEAVE;
use crate::lines::Line;

/// What leaves other chat programs and shells, or helps in them: rarely meant for the peer.
const COMMANDS: [&str; 4] = ["/quit", "/exit", "/help", "exit"];

/// What was typed before.
#[derive(Debug, Default)]
pub(super) struct Typed {
    /// The command that was not sent just before: if it is repeated, it is meant for the peer.
    held: Option<&'static str>,
}

impl Typed {
    /// Why a line is not sent, or none if it is to be sent. With `is_pasted`, it stands
    /// in a paste of several.
    pub(super) fn refuse(&mut self, line: &Line<'_>, is_pasted: bool) -> Option<String> {
        let before = self.held.take();
        let command = command(line).filter(|it| !is_pasted && before != Some(it))?;
        self.held = Some(command);
        Some(format!(
            "'{command}' was not sent: a chat has no commands; {HOW_TO_LEAVE}; to send it, repeat it"
        ))
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

    /// Whether each line is sent, one after the other.
    fn are_sent(lines: &[&str]) -> Vec<bool> {
        let mut typed = Typed::default();
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
        let mut typed = Typed::default();
        assert_eq!(typed.refuse(&Line::Whole(b"exit"), true), None);
        assert!(typed.refuse(&Line::Whole(b"exit"), false).is_some());
    }

    #[test]
    fn other_lines_are_sent() {
        for line in ["", "quit", "/quit now", "exit!", "/me waves", "/etc/hosts"] {
            assert_eq!(are_sent(&[line]), [true], "{line}");
        }
    }
}
