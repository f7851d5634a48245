//! The line editor, and how messages get onto the screen while a line is edited.
//!
//! While a line is edited, the editor owns the terminal, and only it knows where its cursor is. Its own way
//! to print from elsewhere, [`ExternalPrinter`], does not say when a text was shown, and between two
//! lines writes it wherever the cursor happens to be. So messages wait in a channel, the editor takes
//! them whenever it repaints its prompt ([`Painter`]), and its own way is used only to make it repaint
//! ([`WAKE`]). During anything else it does (searching the history, reading a paste) messages wait.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};

use rustyline::completion::Completer;
use rustyline::config::{BellStyle, ColorMode};
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    Cmd, ConditionalEventHandler, Config, Context, Editor, Event, EventContext, EventHandler,
    ExternalPrinter, GraphemeClusterMode, Helper, KeyEvent, Movement, RepeatCount,
};
use terminal_size::{Width, terminal_size_of};

use super::layout::Layout;
use super::output::{failure, write_all};
use super::screen::{Batch, Draft, Screen};
use super::settings::{self, SettingsLock};
use super::{InputLine, IsNeeded, Notify, ScreenEvent};
use crate::client::Offsets;
use crate::ending::spawn;
use crate::error::{Error, Result};
use crate::lines::Line;
use crate::name::Name;

/// How many lines the editor remembers.
const HISTORY_LINES: usize = 1000;

/// Makes the editor repaint its prompt: the least that it can be given to print. It ends with the line
/// ending that the editor would add, and takes that back beforehand. On a terminal's first row it can't, since no row
/// is above: there the next message leaves an empty row. So a chat [greets](Screen::greet) before there is a prompt,
/// which is then on the first row only after Ctrl-L. What comes after the line ending could mend that, too, but the
/// editor writes its prompt there, and does not say that it was woken.
const WAKE: &str = "\x1b[A\n";

/// Lines that are typed at a terminal.
pub(super) struct LineEditor {
    editor: Editor<Painter, MemHistory>,
    prompt: String,
    /// Lines that were typed or pasted, and not asked for yet.
    typed: VecDeque<String>,
    /// There were several.
    is_pasted: bool,
    line: String,
    notify: Notify,
}

impl LineEditor {
    /// An editor on standard input and output, and the screen that prints through it; `None` if these are
    /// no terminal that it can serve.
    pub(super) fn open(
        me: &Name,
        layout: &Layout,
        is_needed: IsNeeded,
        notify: Notify,
    ) -> Result<Option<(LineEditor, Screen)>> {
        let failed = |error| Error::failed("cannot open the line editor", error);
        let config = Config::builder()
            .auto_add_history(true)
            .bell_style(BellStyle::None)
            // The painter knows whether colours are wanted; the editor asks it only with this.
            .color_mode(ColorMode::Forced)
            .max_history_size(HISTORY_LINES)
            .map_err(failed)?
            .build();
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history).map_err(failed)?;
        let search = Search::default();
        let interrupt = Interrupt(search.clone());
        let interrupt = EventHandler::Conditional(Box::new(interrupt));
        editor.bind_sequence(KeyEvent::ctrl('C'), interrupt);
        let suspend = Suspend {
            is_needed,
            notify: notify.clone(),
            search: search.clone(),
        };
        let suspend = EventHandler::Conditional(Box::new(suspend));
        editor.bind_sequence(KeyEvent::ctrl('Z'), suspend);
        let clear = EventHandler::Conditional(Box::new(Clear(search.clone())));
        editor.bind_sequence(KeyEvent::ctrl('U'), clear);
        let Ok(mut printer) = editor.create_external_printer() else {
            return Ok(None);
        };
        settings::save()?;
        let (wake, woken) = mpsc::sync_channel(1);
        // On a thread of its own: it waits while the editor does anything but wait for a key.
        spawn("screen", move || {
            for () in woken {
                if printer.print(WAKE.into()).is_err() {
                    return;
                }
            }
        })?;
        let draft = Draft::default();
        let (screen, batches) = Screen::in_editor(layout.clone(), wake.clone(), draft.clone());
        let prompt = format!("{me}> ");
        editor.set_helper(Some(Painter {
            prompt: prompt.clone(),
            layout: layout.clone(),
            batches,
            wake,
            notify: notify.clone(),
            in_print: RefCell::default(),
            held: RefCell::default(),
            cursor: Cell::default(),
            draft,
            search,
            search_prompt: RefCell::default(),
        }));
        let editor = LineEditor {
            editor,
            prompt,
            typed: VecDeque::new(),
            is_pasted: false,
            line: String::new(),
            notify,
        };
        Ok(Some((editor, screen)))
    }

    /// The next line, or none at the end of input, which Ctrl-C on an empty line is, too.
    pub(super) fn next_line(&mut self) -> Result<Option<InputLine<'_>>> {
        while self.typed.is_empty() {
            match self.read() {
                Ok(text) => {
                    let lines = text.split_terminator('\n');
                    self.typed.extend(lines.map(String::from));
                    self.is_pasted = self.typed.len() > 1;
                }
                Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                    let notice = "that was not UTF-8, and the line is lost";
                    (self.notify)(ScreenEvent::Notice(notice.into()));
                }
                Err(error) => {
                    settings::stop_editing();
                    let doing = "use the terminal";
                    return match error {
                        ReadlineError::Eof | ReadlineError::Interrupted => Ok(None),
                        ReadlineError::Io(error) => Err(failure(doing, error)),
                        ReadlineError::Errno(error) => Err(failure(doing, error.into())),
                        error => Err(Error::failed(format!("cannot {doing}"), error)),
                    };
                }
            }
        }
        self.line = self.typed.pop_front().unwrap_or_default();
        Ok(Some(InputLine {
            line: Line::of(self.line.as_bytes()),
            is_pasted: self.is_pasted,
        }))
    }

    /// One read of the editor: a line, or a paste of several.
    fn read(&mut self) -> Result<String, ReadlineError> {
        let entering = settings::enter();
        if let Some(painter) = self.editor.helper() {
            painter.held.replace(Some(entering));
        }
        let read = self.editor.readline(&self.prompt);
        if let Some(painter) = self.editor.helper() {
            // Before the lock is given back, for which the end of the program waits.
            painter.draft.set(false);
            painter.held.take();
            if !matches!(read, Err(ReadlineError::Io(_) | ReadlineError::Errno(_))) {
                painter.confirm();
            }
        }
        read
    }
}

/// Whether the history is being searched. [`Painter`] sets it, since only the prompt shows it.
#[derive(Clone, Default)]
struct Search(Arc<AtomicBool>);

impl Search {
    fn set(&self, is_searching: bool) {
        self.0.store(is_searching, Ordering::Relaxed);
    }

    /// The command that ends a search with the line as it was before, if there is a search. A key of ours must do
    /// that first: the editor restores its prompt only if the key that ends a search makes it repaint all of the line.
    ///
    /// The flag is cleared, because the editor may have ended the search without repainting: then this command does
    /// nothing, and the next key must not ask for it again.
    fn abort(&self) -> Option<Cmd> {
        self.0.swap(false, Ordering::Relaxed).then_some(Cmd::Abort)
    }
}

/// Ctrl-C clears what is typed, off the screen, too. On an empty line it is the end.
struct Interrupt(Search);

impl ConditionalEventHandler for Interrupt {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, editor: &EventContext) -> Option<Cmd> {
        let otherwise = || match editor.line().is_empty() {
            true => Cmd::Interrupt,
            false => Cmd::Kill(Movement::WholeBuffer),
        };
        Some(self.0.abort().unwrap_or_else(otherwise))
    }
}

/// Ctrl-U clears what is before the cursor: all of a paste, and not only its last row.
struct Clear(Search);

impl ConditionalEventHandler for Clear {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, _: &EventContext) -> Option<Cmd> {
        let clear = Cmd::Kill(Movement::BeginningOfBuffer);
        Some(self.0.abort().unwrap_or(clear))
    }
}

/// Ctrl-Z stops the program, unless others would have to wait for it.
struct Suspend {
    is_needed: IsNeeded,
    notify: Notify,
    search: Search,
}

impl ConditionalEventHandler for Suspend {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, _: &EventContext) -> Option<Cmd> {
        if !(self.is_needed)() {
            return Some(Cmd::Suspend);
        }
        let notice = "Ctrl-Z does nothing: others use the small broker that this chat runs";
        (self.notify)(ScreenEvent::Notice(notice.into()));
        Some(self.search.abort().unwrap_or(Cmd::Noop))
    }
}

/// Gives the editor what is to be printed, before its prompt: whenever it paints that, it has first
/// cleared the rows from there on.
struct Painter {
    prompt: String,
    layout: Layout,
    batches: Receiver<Batch>,
    wake: SyncSender<()>,
    notify: Notify,
    /// The positions of the batch that the editor took last, and may not have written yet.
    in_print: RefCell<Option<Offsets>>,
    /// While the editor enters or leaves raw mode.
    held: RefCell<Option<SettingsLock>>,
    cursor: Cell<Cursor>,
    draft: Draft,
    search: Search,
    /// The prompt of the last search.
    search_prompt: RefCell<String>,
}

impl Painter {
    /// The prompt as it is shown: no message can look like it.
    fn styled<'p>(&self, prompt: &'p str) -> Cow<'p, str> {
        match self.layout.style.of_prompt() {
            ("", _) => Cow::Borrowed(prompt),
            (on, off) => Cow::Owned(format!("{on}{}{off} ", prompt.trim_end())),
        }
    }

    /// What the editor took is written.
    fn confirm(&self) {
        if let Some(passes) = self.in_print.take() {
            (self.notify)(ScreenEvent::Printed(passes));
        }
    }
}

impl Highlighter for Painter {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(
        &'s self,
        prompt: &'p str,
        is_default: bool,
    ) -> Cow<'b, str> {
        // Not while the history is searched, with another prompt.
        let is_searching = prompt != self.prompt;
        self.search.set(is_searching);
        if is_searching {
            self.search_prompt.replace(prompt.into());
            return Cow::Borrowed(prompt);
        }
        // After a key that ended the search but changed nothing (Tab), the editor repaints with its own prompt, yet
        // places the cursor as if that of the search was still there: so it stays.
        let prompt = match is_default {
            true => self.styled(prompt),
            false => Cow::Owned(self.search_prompt.borrow().clone()),
        };
        // The editor paints only after it has written what it took before.
        self.confirm();
        // Kept until the batch is taken: the program may end at this moment.
        let entering = self.held.take();
        if entering.is_none() && settings::is_closed() {
            // Stopped by Ctrl-Z, and continued only to be ended: the editor is back in raw mode.
            settings::restore();
            return prompt;
        }
        let Ok(batch) = self.batches.try_recv() else {
            return prompt;
        };
        self.in_print.replace(Some(batch.passes));
        // Repaint again, to confirm this batch and take the next. A full channel means that a repaint is due.
        _ = self.wake.try_send(());
        let bytes = self.layout.print(&batch.pieces);
        Cow::Owned(String::from_utf8_lossy(&bytes).into_owned() + &prompt)
    }

    /// The editor asks this after each of its changes.
    fn highlight_char(&self, line: &str, position: usize, _: CmdKind) -> bool {
        self.cursor.set(self.cursor(line, position));
        self.draft.set(!line.is_empty());
        false
    }
}

/// Where the editor believes its cursor to be.
#[derive(Clone, Copy, Default)]
struct Cursor {
    /// The row, counted from the prompt's.
    row: usize,
    /// The width that the terminal had, in columns.
    columns: usize,
}

impl Painter {
    fn cursor(&self, line: &str, position: usize) -> Cursor {
        let size = terminal_size_of(io::stdout());
        let columns = size.map_or(80, |(Width(columns), _)| usize::from(columns));
        let before = self.prompt.chars().chain(line[..position].chars());
        Cursor {
            row: row(before, columns),
            columns,
        }
    }
}

impl Hinter for Painter {
    type Hint = String;

    /// The editor asks this before it repaints its line, and so before it clears the rows that the line
    /// took. In a terminal that has become wider, the line takes fewer rows by now, and the rows above it,
    /// which would be cleared, too, are messages: so the cursor goes down first.
    fn hint(&self, line: &str, position: usize, _: &Context<'_>) -> Option<String> {
        let believed = self.cursor.get();
        let cursor = self.cursor(line, position);
        if cursor.columns > believed.columns && cursor.row < believed.row {
            // If this fails, so does the editor's next write, which reports it.
            _ = write_all("\n".repeat(believed.row - cursor.row).as_bytes());
        }
        None
    }
}

impl Helper for Painter {}

impl Validator for Painter {
    /// The editor asks this of each line before it leaves raw mode.
    fn validate(&self, _: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        self.held.replace(Some(settings::leave()));
        Ok(ValidationResult::Valid(None))
    }
}

impl Completer for Painter {
    type Candidate = String;
}

/// In which row `text` ends that starts in the first of so many `columns`, as the editor counts.
fn row(text: impl Iterator<Item = char>, columns: usize) -> usize {
    let (mut row, mut column) = (0, 0);
    for c in text {
        let width = GraphemeClusterMode::WcWidth.width(c.encode_utf8(&mut [0; 4]));
        column += usize::from(width);
        if c == '\n' {
            (row, column) = (row + 1, 0);
        } else if column > columns {
            (row, column) = (row + 1, usize::from(width));
        }
    }
    row + usize::from(column == columns)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Message;
    use super::*;

    /// A painter, and the ends of its channels.
    fn painter() -> (
        Painter,
        SyncSender<Batch>,
        Receiver<()>,
        Receiver<ScreenEvent>,
    ) {
        let (batches, waiting) = mpsc::sync_channel(10);
        let (wake, woken) = mpsc::sync_channel(1);
        let (tx, events) = mpsc::channel();
        let painter = Painter {
            prompt: "alice> ".into(),
            layout: Layout::for_test(),
            batches: waiting,
            wake,
            notify: Arc::new(move |event| tx.send(event).unwrap()),
            in_print: RefCell::default(),
            held: RefCell::default(),
            cursor: Cell::default(),
            draft: Draft::default(),
            search: Search::default(),
            search_prompt: RefCell::default(),
        };
        (painter, batches, woken, events)
    }

    fn batch(text: &str, end: i64) -> Batch {
        let (mut screen, batches) = Screen::in_editor(
            Layout::for_test(),
            mpsc::sync_channel(1).0,
            Draft::default(),
        );
        let message = Message {
            time: None,
            is_dated: false,
            sender: b"bob".to_vec(),
            text: text.into(),
            is_earlier: false,
        };
        screen.message(message, Some((0, end - 1)));
        screen.flush();
        batches.recv().unwrap()
    }

    /// A row, and the prompt after it.
    fn shown(row: &str) -> String {
        format!("\x1b[?7l{row}\n\x1b[?7halice> ")
    }

    #[test]
    fn a_batch_counts_as_printed_when_the_editor_paints_again() {
        let (painter, batches, woken, events) = painter();
        batches.send(batch("hi", 1)).unwrap();
        batches.send(batch("ho", 2)).unwrap();
        let paint = || painter.highlight_prompt("alice> ", true).into_owned();
        assert_eq!(paint(), shown("bob: hi"));
        assert!(events.try_recv().is_err());
        woken.try_recv().unwrap();
        assert_eq!(paint(), shown("bob: ho"));
        let printed = |event| match event {
            ScreenEvent::Printed(offsets) => offsets[&0],
            other => panic!("{other:?}"),
        };
        assert_eq!(printed(events.try_recv().unwrap()), 1);
        woken.try_recv().unwrap();
        assert_eq!(paint(), "alice> ");
        assert_eq!(printed(events.try_recv().unwrap()), 2);
        assert!(woken.try_recv().is_err(), "woken for nothing");
    }

    #[test]
    fn messages_wait_while_the_history_is_searched() {
        let (painter, batches, ..) = painter();
        batches.send(batch("hi", 1)).unwrap();
        let search = "(reverse-i-search)`': ";
        assert_eq!(painter.highlight_prompt(search, false), search);
        assert_eq!(painter.highlight_prompt("alice> ", true), shown("bob: hi"));
    }

    #[test]
    fn messages_are_shown_after_a_search_whose_prompt_stays() {
        let (painter, batches, _woken, _events) = painter();
        batches.send(batch("hi", 1)).unwrap();
        let search = "(reverse-i-search)`': ";
        painter.highlight_prompt(search, false);
        let shown = shown("bob: hi").replace("alice> ", search);
        assert_eq!(painter.highlight_prompt("alice> ", false), shown);
        assert_eq!(painter.highlight_prompt("alice> ", true), "alice> ");
    }

    #[test]
    fn a_search_is_aborted_once() {
        let (painter, ..) = painter();
        assert_eq!(painter.search.abort(), None);
        painter.highlight_prompt("(reverse-i-search)`': ", false);
        assert_eq!(painter.search.abort(), Some(Cmd::Abort));
        assert_eq!(painter.search.abort(), None);
        painter.highlight_prompt("(reverse-i-search)`': ", false);
        painter.highlight_prompt("alice> ", true);
        assert_eq!(painter.search.abort(), None);
    }

    #[test]
    fn rows_are_counted_as_a_terminal_wraps() {
        for (text, columns, expected) in [
            ("", 10, 0),
            ("123456789", 10, 0),
            ("1234567890", 10, 1),
            ("12345678901", 10, 1),
            ("你好世界a", 10, 0),
            ("a你好世界你", 10, 1),
            ("a\nb", 10, 1),
        ] {
            assert_eq!(row(text.chars(), columns), expected, "{text:?}");
        }
    }
}
