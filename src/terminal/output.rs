//! Standard output alone, for a program in which nothing is typed.

use std::io::{self, ErrorKind, Write};

use nix::errno::Errno;

use super::style::Style;
use crate::ending::can_take;
use crate::error::{Error, Result};

/// How many bytes are written at a time.
pub(super) const WRITE_BYTES: usize = 64 * 1024;

/// Messages on their way to standard output.
///
/// On a terminal, what could act on it is shown as visible text; elsewhere bytes are written as they
/// are.
pub struct Output {
    style: Style,
    bytes: Vec<u8>,
    /// A hint was given, or would come too late.
    is_hinted: bool,
}

impl Output {
    /// With each message's sender before it, if `shows_senders`.
    pub fn new(shows_senders: bool) -> Output {
        Output {
            style: Style::of_output(shows_senders),
            bytes: Vec::new(),
            is_hinted: false,
        }
    }

    /// Prints a message as a line, at the latest with the next [`flush`](Output::flush).
    pub fn message(&mut self, sender: &[u8], text: &[u8]) -> Result<()> {
        self.is_hinted = true;
        self.style.message(&mut self.bytes, sender, text);
        match self.bytes.len() >= WRITE_BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Writes what was printed. Call it after every poll.
    pub fn flush(&mut self) -> Result<()> {
        if !self.bytes.is_empty() {
            write_all(&self.bytes).map_err(|error| failure("write to standard output", error))?;
            self.bytes.clear();
        }
        Ok(())
    }

    /// Gives a hint that only a person needs, once, before the first message: only if standard output
    /// and standard error are a terminal.
    pub fn hint_once(&mut self, text: &str) {
        if !std::mem::replace(&mut self.is_hinted, true) && self.style.takes_notices {
            self.style.notice(&mut self.bytes, text);
            // An error is seen at the next flush, which tries again.
            _ = self.flush();
        }
    }
}

/// Whether standard output takes something at once.
pub(super) fn can_write() -> bool {
    can_take(io::stdout(), 0)
}

/// Writes to standard output, now.
pub(super) fn write_all(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// A closed pipe or terminal is a reason to end; anything else, a full disk for example, is a failure.
pub(super) fn failure(doing: &str, error: io::Error) -> Error {
    let is_closed =
        error.kind() == ErrorKind::BrokenPipe || error.raw_os_error() == Some(Errno::EIO as i32);
    match is_closed {
        true => Error::closed_pipe(),
        false => Error::failed(format!("cannot {doing}"), error),
    }
}
