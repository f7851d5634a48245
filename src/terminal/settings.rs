//! The terminal's settings: those found at the start, and who may change them.
//!
//! The editor switches the terminal to raw mode and back for every line, on the main thread, and another
//! thread may end the program at that very moment; settings made after the end would outlive the program. So
//! the right to change them is a lock. The main thread holds it while the editor enters or leaves raw
//! mode. The thread that ends the program takes it and never gives it back: from then on the main thread
//! gets no further than its next change, and waits there until the process exits.
//!
//! A process has one terminal, so the lock is a static.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use crate::error::{Error, Result};

/// How long the end of a program waits for an editor that is just changing settings: on a terminal that
/// takes no output (Ctrl-S), that would be for ever.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);
const CLOSE_RETRY: Duration = Duration::from_millis(1);

/// The settings found at the start. Locked only to read or to write them.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// The right to change settings, and whether lines are being edited. Locked by the main thread for as long as
/// the editor takes to enter or leave raw mode, and by the thread that ends the program until the end.
static EDITOR: Mutex<bool> = Mutex::new(false);

/// The program is about to end, even if [`close`] did not get the lock.
static IS_CLOSED: AtomicBool = AtomicBool::new(false);

/// The right to change settings, while it is held.
pub(super) type SettingsLock = MutexGuard<'static, bool>;

/// Takes note of the settings as they are.
pub(super) fn save() -> Result<()> {
    let found = tcgetattr(io::stdin())
        .map_err(|error| Error::failed("cannot read the terminal's settings", error))?;
    *lock(&ORIGINAL) = Some(found);
    Ok(())
}

/// Before the editor enters raw mode.
pub(super) fn enter() -> SettingsLock {
    let mut is_editing = lock(&EDITOR);
    if !*is_editing {
        *is_editing = true;
        // What is typed between two lines is for the editor: it must not be echoed among messages, and
        // Ctrl-D must not become an end of input that nobody reads. Ctrl-C has to stay a signal. A terminal
        // that does not take these settings still works.
        if let Some(mut between) = lock(&ORIGINAL).clone() {
            between
                .local_flags
                .remove(LocalFlags::ECHO | LocalFlags::ICANON);
            _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &between);
        }
    }
    is_editing
}

/// Before the editor leaves raw mode.
pub(super) fn leave() -> SettingsLock {
    lock(&EDITOR)
}

/// No more lines are edited. The editor has left raw mode without the lock: hence the first of two restores, in
/// case the lock is kept.
pub(super) fn stop_editing() {
    restore();
    *lock(&EDITOR) = false;
    restore();
}

/// Whether the program is about to end.
pub(super) fn is_closed() -> bool {
    IS_CLOSED.load(Ordering::SeqCst)
}

/// Restores the settings, and keeps the editor from changing them until the process exits. Returns whether
/// a line was being edited.
pub(super) fn close() -> bool {
    IS_CLOSED.store(true, Ordering::SeqCst);
    restore();
    let end = Instant::now() + CLOSE_TIMEOUT;
    let was_editing = loop {
        match EDITOR.try_lock() {
            Ok(guard) => break keep(guard),
            Err(TryLockError::Poisoned(error)) => break keep(error.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= end => break false,
            Err(TryLockError::WouldBlock) => thread::sleep(CLOSE_RETRY),
        }
    };
    restore();
    was_editing
}

/// Keeps the lock until the process exits.
fn keep(is_editing: MutexGuard<'static, bool>) -> bool {
    let was_editing = *is_editing;
    std::mem::forget(is_editing);
    was_editing
}

/// Gives the terminal the settings it had at the start, if they were noted.
pub(super) fn restore() {
    if let Some(found) = &*lock(&ORIGINAL) {
        // If this fails, the terminal is closed.
        _ = tcsetattr(io::stdin(), SetArg::TCSANOW, found);
    }
}

fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
