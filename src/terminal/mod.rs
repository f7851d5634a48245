//! Where lines are typed and messages are shown: a terminal with a line editor, or plain lines.
//!
//! It knows nothing of Kafka but records and offsets, and nothing of who may talk to whom.
//!
//! [`Terminal`] is for the thread that reads input. [`Screen`] is for the thread that owns the chat: it
//! never waits, but keeps what is to be printed until the editor, or a thread that writes, takes it. What
//! became of it arrives at the owner as a [`ScreenEvent`].
//!
//! | module | knows |
//! |---|---|
//! | `editor` | the line editor, and how messages get between its prompt and what was printed before |
//! | `screen` | what is to be printed, and what was |
//! | `layout` | how a chat breaks lines into rows |
//! | `settings` | the terminal's settings, and who may change them |
//! | `output` | standard output for a program in which nothing is typed |
//! | `style` | how messages and notices look |
//! | `json` | a record as a line of JSON |
//! | `visible` | how others' bytes can be shown safely |

mod editor;
mod json;
mod layout;
mod output;
mod screen;
mod settings;
mod style;
mod visible;

use std::io::{self, IsTerminal, StdinLock};
use std::sync::Arc;

use crate::client::Offsets;
use crate::error::{Error, Result};
use crate::lines::{Line, Lines};
use crate::name::Name;
use editor::LineEditor;
use layout::Layout;
pub use output::{Format, Output};
pub use screen::Screen;
pub use visible::{quoted, visible};

/// What the owner of a chat learns from the terminal's threads.
#[derive(Debug)]
pub enum ScreenEvent {
    /// What was given to the screen is written, up to these positions.
    Printed(Offsets),
    /// It can't be written.
    Failed(Error),
    /// A notice for the user, from the editor or from another thread.
    Notice(String),
}

/// Sends an event to the owner of the chat.
pub type Notify = Arc<dyn Fn(ScreenEvent) + Send + Sync>;

/// Whether others would have to wait while this program is stopped.
pub type IsNeeded = Box<dyn Fn() -> bool + Send + Sync>;

/// A message to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// In milliseconds since 1970, if it is known.
    pub time: Option<i64>,
    /// On a terminal its date and time are always shown.
    pub is_dated: bool,
    /// Who wrote it.
    pub sender: Vec<u8>,
    /// The line's bytes.
    pub text: Vec<u8>,
    /// It was written before the chat was opened: dim on a terminal, and signed in a pipe, too.
    pub is_earlier: bool,
}

/// How a chat's messages look.
#[derive(Debug)]
pub struct Look {
    /// Each is shown after its time.
    pub with_time: bool,
    /// How to see a message whole that is longer than half a screen.
    pub see_whole: String,
    /// The same for one of the user's own, from before the chat was opened.
    pub see_own_whole: String,
}

/// Where lines come from.
pub struct Terminal(Input);

enum Input {
    Editor(Box<LineEditor>),
    Plain(Lines<StdinLock<'static>>),
}

/// A line of input.
pub struct InputLine<'a> {
    /// The line.
    pub line: Line<'a>,
    /// It is one of several in a paste.
    pub is_pasted: bool,
}

/// Whether lines are typed, and do not come from a pipe or a file.
pub fn is_typed() -> bool {
    io::stdin().is_terminal()
}

/// Whether messages are shown on a terminal, and do not go into a pipe or a file.
pub fn is_shown() -> bool {
    io::stdout().is_terminal()
}

impl Terminal {
    /// Standard input and output, with a line editor if both are a terminal that it can serve, and the
    /// screen that belongs to them.
    ///
    /// Ctrl-Z stops the program unless it `is_needed`.
    ///
    /// Until the first line is asked for, the terminal itself echoes what is typed.
    pub fn open(
        me: &Name,
        look: Look,
        is_needed: IsNeeded,
        notify: Notify,
    ) -> Result<(Terminal, Screen)> {
        let layout = Layout::of_chat(me, look);
        match LineEditor::open(me, &layout, is_needed, notify.clone())? {
            Some((editor, screen)) => Ok((Terminal(Input::Editor(Box::new(editor))), screen)),
            None => {
                let lines = Lines::new(io::stdin().lock());
                Ok((
                    Terminal(Input::Plain(lines)),
                    Screen::plain(layout, notify)?,
                ))
            }
        }
    }

    /// The next line of input; `None` at its end. Ctrl-C on an empty line ends the input, too.
    ///
    /// A paste of several lines gives them one by one. An empty line at the prompt is skipped.
    pub fn next_line(&mut self) -> Result<Option<InputLine<'_>>> {
        match &mut self.0 {
            Input::Editor(editor) => editor.next_line(),
            Input::Plain(lines) => Ok(lines.next_line()?.map(|line| InputLine {
                line,
                is_pasted: false,
            })),
        }
    }
}
