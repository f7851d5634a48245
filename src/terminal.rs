//! A line editor and a printer that share a terminal; or plain lines.
//!
//! It knows nothing of Kafka but offsets, and nothing of who may talk to whom.
//!
//! While a line is being edited, the editor owns the terminal, and only it knows where its cursor
//! is. Its own way to print from elsewhere takes a text and doesn't say when that was shown, and
//! between two lines it writes it wherever the cursor happens to be. So what there is to print
//! waits here, in bounded memory; the editor fetches it whenever it paints its prompt anew
//! (`Painter`), and its own way is used only to make it do so (`keep_awake`). Whatever else it
//! does (searching the history, reading a paste) messages wait for. Without an editor, whoever has
//! something to print writes it.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::VecDeque;
use std::env;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, StdinLock, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use rustyline::completion::Completer;
use rustyline::config::{BellStyle, ColorMode};
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, ExternalPrinter, GraphemeClusterMode, Helper};
use terminal_size::{Width, terminal_size_of};

use crate::client::Offsets;
use crate::error::{Error, Result};
use crate::lines::{Line, Lines};
use crate::message::visible;
use crate::name::Name;

/// How much the editor fetches at once, in bytes, about: while that is written, no key is answered.
const SIP: usize = 4 * 1024;

/// How much is written at once where nothing is typed, in bytes, about.
const GULP: usize = 64 * 1024;

/// How many batches wait while the editor is busy, before those who print wait, too.
const BATCHES: usize = 64;

/// How many lines the editor remembers.
const HISTORY: usize = 1000;

/// How long the end of a program waits for someone who is just writing to the terminal.
const LAST_WAIT: Duration = Duration::from_millis(200);

/// How often the end looks whether it may go on.
const SHORT_WAIT: Duration = Duration::from_millis(1);

/// What makes the editor paint its prompt anew: the least that it can be given to print. It ends
/// with the line ending that the editor would add, and takes that back beforehand.
const WAKE: &str = "\x1b[A\n";

/// Ends what the editor may have switched on: synchronized output and bracketed paste.
const EDITOR_OFF: &str = "\x1b[?2026l\x1b[?2004l\r\n";

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

/// Where lines are typed and messages are shown.
pub struct Terminal {
    input: Input,
    is_typed: bool,
    screen: Screen,
}

enum Input {
    Editor(Box<LineEditor>),
    Plain(Lines<StdinLock<'static>>),
}

struct LineEditor {
    editor: Editor<Painter, MemHistory>,
    prompt: String,
    /// Lines that were typed or pasted, and not asked for yet.
    typed: VecDeque<String>,
    line: String,
}

impl Terminal {
    /// Standard input and output, with a line editor if both are a terminal that it can serve.
    ///
    /// Until then, what is typed is echoed by the terminal itself.
    pub fn open(me: &Name) -> Result<Terminal> {
        let is_typed = io::stdin().is_terminal();
        let mut screen = Screen::open(io::stdout().is_terminal());
        let input = match LineEditor::open(me, &mut screen)? {
            Some(editor) => Input::Editor(Box::new(editor)),
            None => Input::Plain(Lines::new(io::stdin().lock())),
        };
        Ok(Terminal {
            input,
            is_typed,
            screen,
        })
    }

    /// Whether lines are typed, and do not come from a pipe or a file. A terminal that has been
    /// closed since still counts.
    pub fn is_typed(&self) -> bool {
        self.is_typed
    }

    /// The next line of input, or none at its end, which Ctrl-C at the prompt is, too.
    ///
    /// A paste of several lines gives them one by one. An empty line at the prompt is none.
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>> {
        match &mut self.input {
            Input::Editor(editor) => editor.next_line(&self.screen),
            Input::Plain(lines) => lines.next_line(),
        }
    }

    /// Where messages and notices go; for any thread.
    pub fn screen(&self) -> Screen {
        self.screen.clone()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.screen.restore();
    }
}

impl LineEditor {
    /// None where it can't serve.
    fn open(me: &Name, screen: &mut Screen) -> Result<Option<LineEditor>> {
        let failed = |error| Error::failed("cannot open the line editor", error);
        let config = Config::builder()
            .auto_add_history(true)
            .bell_style(BellStyle::None)
            // Not that there are any, but the editor asks the painter only if it believes so.
            .color_mode(ColorMode::Forced)
            .max_history_size(HISTORY)
            .map_err(failed)?
            .build();
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history).map_err(failed)?;
        let Ok(printer) = editor.create_external_printer() else {
            return Ok(None);
        };
        let found = tcgetattr(io::stdin())
            .map_err(|error| Error::failed("cannot read the terminal's settings", error))?;
        *lock(&screen.shared.found) = Some(found);
        let shared = Arc::clone(&screen.shared);
        thread::Builder::new()
            .name("screen".into())
            .spawn(move || keep_awake(&shared, printer))
            .map_err(|error| Error::failed("cannot start the printer", error))?;
        let prompt = format!("{me}> ");
        editor.set_helper(Some(Painter {
            screen: screen.clone(),
            prompt: prompt.clone(),
            cursor: Cell::default(),
        }));
        Ok(Some(LineEditor {
            editor,
            prompt,
            typed: VecDeque::new(),
            line: String::new(),
        }))
    }

    fn next_line(&mut self, screen: &Screen) -> Result<Option<Line<'_>>> {
        while self.typed.is_empty() {
            if !screen.start_editing()? {
                return Ok(None);
            }
            let read = self.editor.readline(&self.prompt);
            screen.pause_editing();
            match read {
                Ok(text) => {
                    let lines = text.split_terminator('\n');
                    self.typed.extend(lines.map(String::from));
                    screen.lock().confirm();
                }
                Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                    screen.notice("that was not UTF-8, and the line is lost");
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => {
                    screen.lock().confirm();
                    screen.stop_editing();
                    return Ok(None);
                }
                Err(error) => {
                    screen.stop_editing();
                    let doing = "use the terminal";
                    return Err(match error {
                        ReadlineError::Io(error) => failure(doing, error),
                        ReadlineError::Errno(error) => failure(doing, error.into()),
                        error => Error::failed(format!("cannot {doing}"), error),
                    });
                }
            }
        }
        self.line = self.typed.pop_front().unwrap_or_default();
        Ok(Some(Line::of(self.line.as_bytes())))
    }
}

/// Standard output, for messages, and the place for notices. Its clones are the same screen.
///
/// What is written leaves when the editor comes to it, or with [`Screen::flush`].
#[derive(Clone)]
pub struct Screen {
    shared: Arc<Shared>,
}

struct Shared {
    style: Style,
    state: Mutex<State>,
    /// There is room for more messages.
    room: Condvar,
    /// There is something to wake the editor for.
    news: Condvar,
    /// The terminal's settings as they were found, if there is a line editor.
    found: Mutex<Option<Termios>>,
    /// A hint has been given, or would have come too late.
    is_hinted: AtomicBool,
    /// The program ends: whatever can't be had at once is done without.
    is_over: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct Style {
    /// Standard output is a terminal: bytes are made visible.
    is_terminal: bool,
    /// Standard error is the same terminal, as far as one can tell: notices are among messages.
    takes_notices: bool,
    has_colours: bool,
    shows_senders: bool,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Batch>,
    /// The editor has fetched these, and has not said yet that they are written.
    fetched: Option<Offsets>,
    shown: Offsets,
    mode: Mode,
    /// The editor has been woken, and has not come yet.
    is_woken: bool,
    /// The editor is about to give the terminal settings of its own, or has just done so.
    is_entering: bool,
    /// The same with the settings that it found when it began.
    is_leaving: bool,
}

/// Who writes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    /// Whoever has something to print.
    #[default]
    Direct,
    /// The editor, which fetches what waits; between two lines nobody does.
    Editing,
    /// Nothing more is typed, and no message is shown: the user has left.
    Over,
}

/// What is written in one go.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// The positions that are reached when it is written.
    passes: Offsets,
}

impl Screen {
    /// Standard output alone, for a program that has nothing typed.
    ///
    /// On a terminal, what could act on it is shown as visible text; elsewhere bytes are written as
    /// they are. With each message's sender before it, if `shows_senders`.
    pub fn open(shows_senders: bool) -> Screen {
        let is_terminal = io::stdout().is_terminal();
        Screen::with_style(Style {
            is_terminal,
            takes_notices: is_terminal && io::stderr().is_terminal(),
            has_colours: is_terminal && colours_wanted(),
            shows_senders,
        })
    }

    fn with_style(style: Style) -> Screen {
        Screen {
            shared: Arc::new(Shared {
                style,
                state: Mutex::default(),
                room: Condvar::new(),
                news: Condvar::new(),
                found: Mutex::new(None),
                is_hinted: AtomicBool::new(false),
                is_over: AtomicBool::new(false),
            }),
        }
    }

    /// Shows a message as a line; `at` is its partition and offset.
    ///
    /// Waits while the editor is busy and too much is waiting for it already.
    pub fn message(&self, sender: &[u8], text: &[u8], at: (i32, i64)) -> Result<()> {
        let style = self.shared.style;
        let mut state = self.lock();
        while state.mode == Mode::Editing && state.waiting.len() >= BATCHES {
            state = wait(&self.shared.room, state);
        }
        if state.mode == Mode::Over {
            return Ok(());
        }
        let batch = state.batch();
        style.message(&mut batch.bytes, sender, text);
        batch.passes.insert(at.0, at.1 + 1);
        if state.mode == Mode::Editing {
            self.shared.news.notify_one();
        } else if state.waiting.len() > 1 {
            state.write_out()?;
        }
        Ok(())
    }

    /// Says that everything before these offsets is done with as soon as all that was given before
    /// is shown.
    pub fn passed(&self, offsets: Offsets) {
        let state = &mut *self.lock();
        if state.mode == Mode::Over {
            return;
        }
        let last = state.waiting.back_mut().map(|batch| &mut batch.passes);
        let before = last.or(state.fetched.as_mut());
        before.unwrap_or(&mut state.shown).extend(offsets);
    }

    /// Lets go of all messages; belongs behind every poll. Nothing to do while a line is edited.
    pub fn flush(&self) -> Result<()> {
        let mut state = self.lock();
        match state.mode {
            Mode::Direct => state.write_out(),
            Mode::Editing | Mode::Over => Ok(()),
        }
    }

    /// Tells the user something: among the messages on a terminal, else on standard error.
    ///
    /// It never waits for the editor. That it can't be written is no failure of its own.
    pub fn notice(&self, text: &str) {
        let style = self.shared.style;
        let mut notice = Vec::new();
        style.notice(&mut notice, text);
        if !style.takes_notices {
            _ = io::stderr().lock().write_all(&notice);
            return;
        }
        let Some(mut state) = self.lock_for_a_notice() else {
            return;
        };
        state.batch().bytes.extend(notice);
        match state.mode {
            Mode::Editing => self.shared.news.notify_one(),
            // A terminal that takes nothing must not hold up the end.
            Mode::Over if !can_write() => {}
            Mode::Direct | Mode::Over => _ = state.write_out(),
        }
    }

    /// The state, unless the program ends while somebody else is stuck in writing.
    fn lock_for_a_notice(&self) -> Option<MutexGuard<'_, State>> {
        match self.shared.is_over.load(Ordering::Relaxed) {
            true => self.try_lock(|_| true),
            false => Some(self.lock()),
        }
    }

    /// Tells the user once something that only a person needs to know, and only before the first
    /// message: nothing, unless standard output and standard error are a terminal.
    pub fn hint_once(&self, text: &str) {
        let is_due = !self.shared.is_hinted.swap(true, Ordering::Relaxed);
        if is_due && self.shared.style.takes_notices && self.shown().is_empty() {
            self.notice(text);
        }
    }

    /// The positions up to which everything has been written to the terminal, or to where standard
    /// output leads. Partitions of which nothing was given are not there.
    pub fn shown(&self) -> Offsets {
        self.lock().shown.clone()
    }

    /// Leaves the terminal as it was found, in the midst of a line, too: for a signal or an error
    /// that ends the program. Notices may follow; messages are no longer shown, nor passed.
    pub fn restore(&self) {
        self.restore_settings();
        self.shared.is_over.store(true, Ordering::Relaxed);
        // Settings that the editor is about to make would outlive us.
        let is_settled = |state: &State| !state.is_entering && !state.is_leaving;
        let Some(mut state) = self.try_lock(is_settled) else {
            return;
        };
        let was_editing = state.mode == Mode::Editing;
        state.end();
        self.restore_settings();
        if was_editing && can_write() {
            _ = write_all(EDITOR_OFF.as_bytes());
        }
        self.shared.room.notify_all();
    }

    /// False if the program ends, and the terminal is not for the editor any more.
    fn start_editing(&self) -> Result<bool> {
        let mut state = self.lock();
        if state.mode == Mode::Direct {
            state.write_out()?;
            state.mode = Mode::Editing;
            // What is typed between two lines is for the editor: no echo may get between messages,
            // and the terminal may not take Ctrl-D for an end that nobody comes to read. But
            // Ctrl-C has to be a signal. It is no failure if that can't be had.
            if let Some(mut quiet) = lock(&self.shared.found).clone() {
                quiet
                    .local_flags
                    .remove(LocalFlags::ECHO | LocalFlags::ICANON);
                _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &quiet);
            }
        }
        state.is_entering = state.mode == Mode::Editing;
        Ok(state.is_entering)
    }

    /// The editor has a line, and will soon be done. Not any more if the program ends: the terminal
    /// has its settings back by then, and the line is nobody's.
    fn finish_editing(&self) {
        let mut state = self.lock();
        state.is_leaving = state.mode == Mode::Editing;
        if !state.is_leaving {
            drop(state);
            loop {
                thread::park();
            }
        }
    }

    /// The editor has done with the terminal's settings what it does.
    fn pause_editing(&self) {
        let mut state = self.lock();
        (state.is_entering, state.is_leaving) = (false, false);
        if state.mode == Mode::Over {
            self.restore_settings();
        }
    }

    fn stop_editing(&self) {
        self.lock().end();
        self.shared.room.notify_all();
        self.restore_settings();
    }

    fn restore_settings(&self) {
        if let Some(found) = &*lock(&self.shared.found) {
            // If this fails, the terminal has gone, and nobody is left to be told.
            _ = tcsetattr(io::stdin(), SetArg::TCSANOW, found);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    /// The state as soon as nobody else has it and it is like this. If that is not soon, the state
    /// as it is, or nothing if somebody still has it.
    fn try_lock(&self, is_ready: impl Fn(&State) -> bool) -> Option<MutexGuard<'_, State>> {
        let until = Instant::now() + LAST_WAIT;
        loop {
            let is_late = Instant::now() >= until;
            match self.shared.state.try_lock() {
                Ok(state) if is_late || is_ready(&state) => return Some(state),
                Err(TryLockError::Poisoned(error)) => return Some(error.into_inner()),
                Err(TryLockError::WouldBlock) if is_late => return None,
                // Not to be kept from those who are waited for.
                Ok(state) => drop(state),
                Err(TryLockError::WouldBlock) => {}
            }
            thread::sleep(SHORT_WAIT);
        }
    }
}

impl State {
    /// The batch to add to.
    fn batch(&mut self) -> &mut Batch {
        let most = if self.mode == Mode::Editing {
            SIP
        } else {
            GULP
        };
        if self.waiting.back().is_none_or(|b| b.bytes.len() >= most) {
            self.waiting.push_back(Batch::default());
        }
        let last = self.waiting.len() - 1;
        &mut self.waiting[last]
    }

    /// What the editor has fetched is written.
    fn confirm(&mut self) {
        if let Some(fetched) = self.fetched.take() {
            self.shown.extend(fetched);
        }
    }

    /// The user has left. What waits is not shown, so that it is unread when they come back.
    fn end(&mut self) {
        self.mode = Mode::Over;
        self.waiting.clear();
    }

    /// Writes all that waits.
    fn write_out(&mut self) -> Result<()> {
        while let Some(batch) = self.waiting.pop_front() {
            write_all(&batch.bytes).map_err(|error| failure("write to standard output", error))?;
            self.shown.extend(batch.passes);
        }
        Ok(())
    }
}

impl Style {
    fn message(self, out: &mut Vec<u8>, sender: &[u8], text: &[u8]) {
        if self.shows_senders {
            let colour = match self.has_colours {
                true => colour_of(sender),
                false => "",
            };
            out.extend(colour.as_bytes());
            out.extend(self.shown(sender).iter());
            out.extend(b": ");
            if self.has_colours {
                out.extend(RESET.as_bytes());
            }
        }
        out.extend(self.shown(text).iter());
        out.push(b'\n');
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

    /// A notice may have several lines.
    fn notice(self, out: &mut Vec<u8>, text: &str) {
        let (dim, reset) = match self.has_colours && self.takes_notices {
            true => (DIM, RESET),
            false => ("", ""),
        };
        let mut notice = String::new();
        for line in text.lines() {
            // Writing to a String can't fail.
            _ = writeln!(notice, "{dim}{}{reset}", visible(line.as_bytes()));
        }
        out.extend(notice.as_bytes());
    }
}

/// Always the same for a sender, and most often another one for another.
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

/// Gives the editor what there is to print, in front of its prompt: wherever it paints that, it has
/// first cleared the lines from there on.
struct Painter {
    screen: Screen,
    prompt: String,
    cursor: Cell<Cursor>,
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

impl Highlighter for Painter {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(
        &'s self,
        prompt: &'p str,
        is_usual: bool,
    ) -> Cow<'b, str> {
        // Not while the history is searched, under another prompt.
        if !is_usual {
            return Cow::Borrowed(prompt);
        }
        let mut state = self.screen.lock();
        // It comes again only when it has written what it fetched before.
        state.confirm();
        state.is_woken = false;
        state.is_entering = false;
        // As when it was stopped by Ctrl-Z, and goes on only to be ended.
        if state.mode == Mode::Over {
            self.screen.restore_settings();
        }
        let Some(batch) = state.waiting.pop_front() else {
            return Cow::Borrowed(prompt);
        };
        state.fetched = Some(batch.passes);
        self.screen.shared.room.notify_all();
        self.screen.shared.news.notify_one();
        Cow::Owned(String::from_utf8_lossy(&batch.bytes).into_owned() + prompt)
    }

    /// The editor asks this after each of its changes.
    fn highlight_char(&self, line: &str, position: usize, _: CmdKind) -> bool {
        self.cursor.set(self.cursor(line, position));
        false
    }
}

impl Hinter for Painter {
    type Hint = String;

    /// The editor asks this before it paints its line anew, and so before it clears the rows that
    /// the line took. In a terminal that has become wider, the line takes fewer by now, and the
    /// rows above it, which it would clear, too, are messages: so the cursor goes down beforehand.
    fn hint(&self, line: &str, position: usize, _: &Context<'_>) -> Option<String> {
        let believed = self.cursor.get();
        let cursor = self.cursor(line, position);
        if cursor.columns > believed.columns && cursor.row < believed.row {
            // If this fails, the editor's next write does, too, which is told.
            _ = write_all("\n".repeat(believed.row - cursor.row).as_bytes());
        }
        None
    }
}

impl Helper for Painter {}

impl Validator for Painter {
    /// The editor asks this of each line before it gives the terminal back.
    fn validate(&self, _: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        self.screen.finish_editing();
        Ok(ValidationResult::Valid(None))
    }
}

impl Completer for Painter {
    type Candidate = String;
}

/// In which row `text` ends that starts in the first of so many `columns`, the way the editor counts.
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

/// Wakes the editor whenever there is something to fetch, and once more to hear that it is written.
///
/// On a thread of its own, which nobody may wait for: it stands still while the editor does
/// anything else but to wait for a key.
fn keep_awake(shared: &Shared, mut printer: impl ExternalPrinter) {
    let mut state = lock(&shared.state);
    loop {
        let has_news = !state.waiting.is_empty() || state.fetched.is_some();
        if state.mode != Mode::Editing || state.is_woken || !has_news {
            state = wait(&shared.news, state);
            continue;
        }
        state.is_woken = true;
        drop(state);
        if printer.print(WAKE.into()).is_err() {
            return;
        }
        state = lock(&shared.state);
    }
}

/// Does `last`, on a thread of its own, when whoever reads standard output has gone: the other end
/// of a pipe, or the terminal. Never, where standard output is something that stays.
pub fn on_closed(last: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        let stdout = io::stdout();
        loop {
            // Errors and hang-ups are told without being asked for.
            let mut watched = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return last(),
                Err(_) => return,
            }
        }
    });
}

/// Whether standard output takes something at once.
fn can_write() -> bool {
    let stdout = io::stdout();
    let mut asked = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn write_all(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// A closed pipe or terminal is a reason to end; anything else, a full disk say, is a failure.
fn failure(doing: &str, error: io::Error) -> Error {
    let is_gone =
        error.kind() == ErrorKind::BrokenPipe || error.raw_os_error() == Some(Errno::EIO as i32);
    match is_gone {
        true => Error::closed_pipe(),
        false => Error::failed(format!("cannot {doing}"), error),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition
        .wait(guard)
        .unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const ON_TERMINAL: Style = Style {
        is_terminal: true,
        takes_notices: true,
        has_colours: false,
        shows_senders: true,
    };

    /// A screen on which a line is being edited, and its painter.
    fn editing() -> (Screen, Painter) {
        let screen = Screen::with_style(ON_TERMINAL);
        screen.lock().mode = Mode::Editing;
        let painter = Painter {
            screen: screen.clone(),
            prompt: "alice> ".into(),
            cursor: Cell::default(),
        };
        (screen, painter)
    }

    fn offsets(offsets: &[(i32, i64)]) -> Offsets {
        offsets.iter().copied().collect()
    }

    #[test]
    fn a_message_counts_as_shown_when_the_editor_comes_again() {
        let (screen, painter) = editing();
        screen.message(b"bob", b"hi", (0, 7)).unwrap();
        screen.message(b"bob", b"ho", (1, 3)).unwrap();
        assert_eq!(
            painter.highlight_prompt("alice> ", true),
            "bob: hi\nbob: ho\nalice> "
        );
        assert_eq!(screen.shown(), offsets(&[]));
        screen.passed(offsets(&[(0, 9)]));
        assert_eq!(screen.shown(), offsets(&[]));
        assert_eq!(painter.highlight_prompt("alice> ", true), "alice> ");
        assert_eq!(screen.shown(), offsets(&[(0, 9), (1, 4)]));
        screen.passed(offsets(&[(1, 5)]));
        assert_eq!(screen.shown(), offsets(&[(0, 9), (1, 5)]));
    }

    #[test]
    fn messages_wait_while_the_history_is_searched() {
        let (screen, painter) = editing();
        screen.message(b"bob", b"hi", (0, 0)).unwrap();
        let search = "(reverse-i-search)`': ";
        assert_eq!(painter.highlight_prompt(search, false), search);
        assert_eq!(
            painter.highlight_prompt("alice> ", true),
            "bob: hi\nalice> "
        );
    }

    #[test]
    fn what_waits_when_the_user_leaves_stays_unread() {
        let (screen, painter) = editing();
        screen.message(b"bob", b"seen", (0, 0)).unwrap();
        painter.highlight_prompt("alice> ", true);
        screen.message(b"bob", b"unseen", (0, 1)).unwrap();
        screen.lock().confirm();
        screen.stop_editing();
        screen.message(b"bob", b"late", (0, 2)).unwrap();
        screen.passed(offsets(&[(0, 3)]));
        screen.flush().unwrap();
        assert_eq!(screen.shown(), offsets(&[(0, 1)]));
    }

    #[test]
    fn a_burst_waits_outside_and_a_notice_does_not() {
        let (screen, painter) = editing();
        let others = screen.clone();
        let printing = thread::spawn(move || {
            for offset in 0..10_000 {
                others.message(b"bob", &[b'x'; 100], (0, offset)).unwrap();
            }
        });
        while screen.lock().waiting.len() < BATCHES {
            thread::yield_now();
        }
        screen.notice("the broker has gone");
        let mut shown = String::new();
        while !printing.is_finished() || !screen.lock().waiting.is_empty() {
            assert!(screen.lock().waiting.len() <= BATCHES);
            shown += &painter.highlight_prompt("", true);
        }
        assert_eq!(shown.matches("bob: ").count(), 10_000);
        assert!(shown.contains("\nthe broker has gone\n"));
        painter.highlight_prompt("", true);
        assert_eq!(screen.shown(), offsets(&[(0, 10_000)]));
    }

    #[test]
    fn the_editor_is_woken_until_all_is_written() {
        struct Woken(mpsc::Sender<()>);
        impl ExternalPrinter for Woken {
            fn print(&mut self, text: String) -> rustyline::Result<()> {
                assert_eq!(text, WAKE);
                self.0
                    .send(())
                    .map_err(|_| io::Error::from(ErrorKind::BrokenPipe).into())
            }
        }
        let (screen, painter) = editing();
        let (wake, woken) = mpsc::channel();
        let shared = Arc::clone(&screen.shared);
        thread::spawn(move || keep_awake(&shared, Woken(wake)));
        screen.message(b"bob", &[b'x'; SIP], (0, 0)).unwrap();
        screen.message(b"bob", b"y", (0, 1)).unwrap();
        // Two batches, and once more to hear that the second one is written.
        for _ in 0..3 {
            woken.recv_timeout(Duration::from_secs(5)).unwrap();
            painter.highlight_prompt("alice> ", true);
        }
        assert_eq!(screen.shown(), offsets(&[(0, 2)]));
        assert!(woken.recv_timeout(Duration::from_millis(100)).is_err());
    }

    #[test]
    fn a_terminal_is_given_what_it_can_show_and_a_pipe_the_bytes() {
        let plain = Style {
            is_terminal: false,
            takes_notices: false,
            shows_senders: false,
            ..ON_TERMINAL
        };
        let colours = Style {
            has_colours: true,
            ..ON_TERMINAL
        };
        for (style, shown) in [
            (plain, &b"\x1b[2J\xff\r\n"[..]),
            (ON_TERMINAL, "b^[ob: ^[[2J\u{FFFD}^M\n".as_bytes()),
            (
                colours,
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
        let style = Style {
            has_colours: true,
            ..ON_TERMINAL
        };
        style.notice(&mut out, "cannot go on: \x1b[2J\nTry again.");
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\x1b[2mcannot go on: ^[[2J\x1b[0m\n\x1b[2mTry again.\x1b[0m\n"
        );
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
