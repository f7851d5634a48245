//! What is to be printed, kept until the editor or a thread that writes takes it, and what was printed.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};

use super::layout::{Layout, Piece, WRAP_ON};
use super::output::{WRITE_BYTES, can_write, failure, write_all};
use super::{Message, Notify, ScreenEvent, settings};
use crate::client::Offsets;
use crate::ending::{say, spawn};
use crate::error::Result;

/// How many bytes the editor writes at a time, about: meanwhile no key is answered.
const EDITOR_BYTES: usize = 4 * 1024;

/// How many batches are on their way to the editor or the thread that writes.
const BATCHES: usize = 4;

/// How many bytes may wait before no more should be read.
const ROOM_BYTES: usize = 256 * 1024;

/// How many bytes may wait before notices are dropped: the screen has been blocked for a long time.
const NOTICE_ROOM_BYTES: usize = 8 * ROOM_BYTES;

/// How many bytes a message or a notice takes beside its text, about.
const PIECE_BYTES: usize = 32;

/// Clears what the terminal itself has echoed so far.
const CLEAR_ROW: &str = "\r\x1b[K";

/// Ends what the editor may have switched on: synchronized output and bracketed paste.
const EDITOR_OFF: &str = "\x1b[?2026l\x1b[?2004l";

/// What is written in one go.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) pieces: Vec<Piece>,
    /// How much memory they take, about.
    bytes: usize,
    /// The positions that are reached when it is written.
    pub(super) passes: Offsets,
    /// It goes to standard error.
    pub(super) is_notice: bool,
}

impl Batch {
    fn add(&mut self, piece: Piece) {
        self.bytes += PIECE_BYTES
            + match &piece {
                Piece::Message(message) => message.sender.len() + message.text.len(),
                Piece::Notice(text) => text.len(),
                Piece::Bell => 0,
            };
        self.pieces.push(piece);
    }

    /// What it says, without any layout.
    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        let text = |piece: &Piece| match piece {
            Piece::Message(message) => {
                let line = [&*message.sender, &message.text].join(&b": "[..]);
                String::from_utf8(line).unwrap() + "\n"
            }
            Piece::Notice(text) => format!("{text}\n"),
            Piece::Bell => "bell\n".into(),
        };
        self.pieces.iter().map(text).collect()
    }
}

/// Where messages and notices are printed. None of its functions waits for the terminal, or only briefly.
pub struct Screen {
    layout: Layout,
    waiting: VecDeque<Batch>,
    waiting_bytes: usize,
    batches: SyncSender<Batch>,
    /// Batches that were taken, and are not known to be written.
    in_print: usize,
    /// Reached when all that was taken is written.
    passes_after: Offsets,
    shown: Offsets,
    /// Makes the editor repaint; without an editor, a thread writes.
    wake: Option<SyncSender<()>>,
    draft: Draft,
    is_closed: bool,
}

/// Whether something is typed that is not sent yet. The editor sets it.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft(Arc<AtomicBool>);

impl Draft {
    pub(super) fn set(&self, is_there: bool) {
        self.0.store(is_there, Ordering::Relaxed);
    }

    fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Screen {
    /// Prints through a line editor, which takes batches from the receiver.
    pub(super) fn in_editor(
        layout: Layout,
        wake: SyncSender<()>,
        draft: Draft,
    ) -> (Screen, Receiver<Batch>) {
        let (batches, taken) = mpsc::sync_channel(BATCHES);
        let mut screen = Screen::new(layout, batches, Some(wake));
        screen.draft = draft;
        (screen, taken)
    }

    /// Prints through a thread that writes.
    pub(super) fn plain(layout: Layout, notify: Notify) -> Result<Screen> {
        let (batches, taken) = mpsc::sync_channel::<Batch>(BATCHES);
        let printing = layout.clone();
        spawn("screen", move || {
            for batch in taken {
                let event = match write(&printing.print(&batch.pieces), batch.is_notice) {
                    Ok(()) => ScreenEvent::Printed(batch.passes),
                    Err(error) => ScreenEvent::Failed(failure("write to standard output", error)),
                };
                notify(event);
            }
        })?;
        Ok(Screen::new(layout, batches, None))
    }

    fn new(layout: Layout, batches: SyncSender<Batch>, wake: Option<SyncSender<()>>) -> Screen {
        Screen {
            layout,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            batches,
            in_print: 0,
            passes_after: Offsets::new(),
            shown: Offsets::new(),
            wake,
            draft: Draft::default(),
            is_closed: false,
        }
    }

    /// A screen without a terminal, and what takes its batches: their texts, and up to where they pass.
    #[cfg(test)]
    pub(crate) fn for_test() -> (Screen, impl FnMut() -> Option<(String, Offsets)>) {
        let (batches, taken) = mpsc::sync_channel(BATCHES);
        let take = move || {
            let batch: Batch = taken.try_recv().ok()?;
            Some((batch.text(), batch.passes))
        };
        (Screen::new(Layout::for_test(), batches, None), take)
    }

    /// Prints a message as a line. `at` is its partition and offset, which are passed then.
    pub fn message(&mut self, message: Message, at: Option<(i32, i64)>) {
        if let Some(batch) = self.add(false, Piece::Message(message))
            && let Some((partition, offset)) = at
        {
            batch.passes.insert(partition, offset + 1);
        }
    }

    /// Rings the terminal's bell, if there is a terminal.
    pub fn ring(&mut self) {
        if self.layout.style.is_terminal {
            self.add(false, Piece::Bell);
        }
    }

    /// Everything before these offsets is read and shown as soon as all that was given before is written.
    pub fn passed(&mut self, offsets: Offsets) {
        match self.waiting.back_mut() {
            _ if self.is_closed => {}
            Some(batch) => batch.passes.extend(offsets),
            None if self.in_print > 0 => self.passes_after.extend(offsets),
            None => self.shown.extend(offsets),
        }
    }

    /// Prints the first notices, before the first line is asked for: directly, since there is no prompt yet.
    pub fn greet(&mut self, notices: &[&str]) {
        if self.wake.is_some() && self.layout.style.takes_notices && can_write() {
            let pieces = notices.iter().map(|text| Piece::Notice(text.to_string()));
            let rows = self.layout.print(&pieces.collect::<Vec<_>>());
            // If this fails, so does the editor's first write, which reports it.
            _ = write_all(&[CLEAR_ROW.as_bytes(), &rows].concat());
            return;
        }
        for text in notices {
            self.notice(text);
        }
    }

    /// Prints a notice: among the messages on a terminal, else on standard error.
    ///
    /// After [`close`](Screen::close) it is written at once, unless the terminal takes nothing.
    pub fn notice(&mut self, text: &str) {
        let takes_notices = self.layout.style.takes_notices;
        let notice = Piece::Notice(text.into());
        if self.is_closed && takes_notices {
            if can_write() {
                // A terminal that is closed shows nothing more.
                _ = write_all(&self.layout.print(&[notice]));
            }
        } else if !takes_notices && (self.is_closed || self.wake.is_some()) {
            say(text);
        } else if self.waiting_bytes < NOTICE_ROOM_BYTES {
            self.add(!takes_notices, notice);
        }
    }

    /// Returns the batch that the piece is in, unless the screen is closed.
    fn add(&mut self, is_notice: bool, piece: Piece) -> Option<&mut Batch> {
        if self.is_closed {
            return None;
        }
        let most = match self.wake {
            Some(_) => EDITOR_BYTES,
            None => WRITE_BYTES,
        };
        let fits = |batch: &Batch| batch.is_notice == is_notice && batch.bytes < most;
        if !self.waiting.back().is_some_and(fits) {
            self.waiting.push_back(Batch {
                passes: std::mem::take(&mut self.passes_after),
                is_notice,
                ..Batch::default()
            });
        }
        let batch = self.waiting.back_mut()?;
        let before = batch.bytes;
        batch.add(piece);
        self.waiting_bytes += batch.bytes - before;
        Some(batch)
    }

    /// Hands over what waits, as far as it is taken. Call it after anything was given.
    pub fn flush(&mut self) {
        if self.is_closed {
            return;
        }
        while let Some(batch) = self.waiting.pop_front() {
            let bytes = batch.bytes;
            if let Err(error) = self.batches.try_send(batch) {
                let (mpsc::TrySendError::Full(batch) | mpsc::TrySendError::Disconnected(batch)) =
                    error;
                self.waiting.push_front(batch);
                break;
            }
            self.waiting_bytes -= bytes;
            self.in_print += 1;
        }
        if let Some(wake) = self.wake.as_ref().filter(|_| self.in_print > 0) {
            // If it is full, the editor is woken already.
            _ = wake.try_send(());
        }
    }

    /// A batch was written, up to these positions.
    pub fn printed(&mut self, passes: Offsets) {
        self.shown.extend(passes);
        self.in_print = self.in_print.saturating_sub(1);
        if self.in_print == 0 && self.waiting.is_empty() {
            self.shown.append(&mut self.passes_after);
        }
    }

    /// The positions up to which everything was written to standard output. Partitions without output are
    /// absent.
    pub fn shown(&self) -> &Offsets {
        &self.shown
    }

    /// Whether the consumer may poll: what waits takes memory.
    pub fn has_room(&self) -> bool {
        self.waiting_bytes < ROOM_BYTES
    }

    /// Ends the editing, in the middle of a line, too, and leaves the terminal as it was found. Such a line stays on the
    /// screen, where it looks as if it was sent, so a notice says that it was not. Notices may follow; messages are no
    /// longer shown, nor passed, so that they are unread the next time.
    pub fn close(&mut self) {
        if self.is_closed {
            return;
        }
        if self.wake.is_some() && settings::close() && can_write() {
            _ = write_all(format!("{EDITOR_OFF}{WRAP_ON}\r\n").as_bytes());
        }
        self.is_closed = true;
        self.waiting.clear();
        self.waiting_bytes = 0;
        if self.draft.is_there() {
            self.notice("the line being typed was not sent");
        }
    }

    /// Whether all that was handed over is written. What an editor never took does not count: it will not be.
    pub fn is_settled(&self) -> bool {
        self.wake.is_some() || self.in_print == 0
    }
}

impl Drop for Screen {
    /// The last thing before the process exits: somebody may have typed since the screen was closed.
    fn drop(&mut self) {
        settings::restore();
    }
}

fn write(bytes: &[u8], is_notice: bool) -> io::Result<()> {
    match is_notice {
        false => write_all(bytes),
        // If standard error is closed, nobody reads it.
        true => io::stderr().lock().write_all(bytes).or(Ok(())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prints a message from bob.
    fn message(screen: &mut Screen, text: &[u8], at: (i32, i64)) {
        let message = Message {
            time: None,
            is_dated: false,
            sender: b"bob".to_vec(),
            text: text.to_vec(),
            is_earlier: false,
        };
        screen.message(message, Some(at));
    }

    /// A screen in whose editor a line is edited, the batches that the editor takes, and what wakes it.
    fn editing() -> (Screen, Receiver<Batch>, Receiver<()>) {
        let (wake, woken) = mpsc::sync_channel(1);
        let (batches, taken) = mpsc::sync_channel(BATCHES);
        let screen = Screen::new(Layout::for_test(), batches, Some(wake));
        (screen, taken, woken)
    }

    #[test]
    fn positions_are_shown_when_what_was_given_before_is_written() {
        let (mut screen, taken, woken) = editing();
        screen.passed([(0, 5)].into());
        assert_eq!(*screen.shown(), [(0, 5)].into());
        message(&mut screen, b"hi", (0, 7));
        message(&mut screen, b"ho", (1, 3));
        screen.flush();
        woken.try_recv().unwrap();
        let batch = taken.try_recv().unwrap();
        assert_eq!(batch.text(), "bob: hi\nbob: ho\n");
        // While the editor has the batch.
        screen.passed([(0, 9)].into());
        assert_eq!(*screen.shown(), [(0, 5)].into());
        screen.printed(batch.passes);
        assert_eq!(*screen.shown(), [(0, 9), (1, 4)].into());
        screen.passed([(1, 5)].into());
        assert_eq!(*screen.shown(), [(0, 9), (1, 5)].into());
    }

    #[test]
    fn a_position_never_goes_back_to_one_that_was_passed_before() {
        let (mut screen, taken, _woken) = editing();
        message(&mut screen, b"one", (0, 0));
        screen.flush();
        screen.passed([(0, 2)].into());
        message(&mut screen, b"two", (0, 2));
        screen.flush();
        for end in [1, 3] {
            screen.printed(taken.try_recv().unwrap().passes);
            assert_eq!(*screen.shown(), [(0, end)].into());
        }
    }

    #[test]
    fn what_waits_when_the_user_leaves_stays_unread() {
        // Without an editor: to close one is to lock this process's terminal.
        let (batches, taken) = mpsc::sync_channel(BATCHES);
        let mut screen = Screen::new(Layout::for_test(), batches, None);
        message(&mut screen, b"seen", (0, 0));
        screen.flush();
        let seen = taken.try_recv().unwrap();
        message(&mut screen, b"unseen", (0, 1));
        screen.close();
        screen.printed(seen.passes);
        message(&mut screen, b"late", (0, 2));
        screen.passed([(0, 3)].into());
        screen.flush();
        assert_eq!(*screen.shown(), [(0, 1)].into());
        assert!(taken.try_recv().is_err());
    }

    #[test]
    fn a_burst_leaves_no_room_and_a_notice_is_printed_all_the_same() {
        let (mut screen, taken, _woken) = editing();
        let mut offset = 0;
        while screen.has_room() {
            message(&mut screen, &[b'x'; 100], (0, offset));
            screen.flush();
            offset += 1;
        }
        screen.notice("the broker is gone");
        let mut printed = String::new();
        while let Ok(batch) = taken.try_recv() {
            assert!(batch.bytes < EDITOR_BYTES + 200);
            printed += &batch.text();
            screen.printed(batch.passes);
            screen.flush();
        }
        assert_eq!(printed.matches("bob: ").count() as i64, offset);
        assert!(printed.ends_with("\nthe broker is gone\n"));
        assert_eq!(*screen.shown(), [(0, offset)].into());
        assert!(screen.has_room() && screen.waiting_bytes == 0);
    }

    #[test]
    fn notices_on_a_screen_that_does_not_move_take_bounded_memory() {
        let (mut screen, _taken, _woken) = editing();
        for _ in 0..100_000 {
            screen.notice(&"x".repeat(100));
            screen.flush();
        }
        assert!(screen.waiting_bytes < NOTICE_ROOM_BYTES + 1000);
    }
}
