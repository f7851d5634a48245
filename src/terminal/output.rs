//! Standard output alone, for a program in which nothing is typed.

use std::io::{self, ErrorKind, Write};

use nix::errno::Errno;

use super::json;
use super::style::Style;
use crate::client::Record;
use crate::ending::can_take;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::seal;
use crate::time::{self, LocalTime};

/// How many bytes are written at a time.
pub(super) const WRITE_BYTES: usize = 64 * 1024;

/// What of a message is printed.
#[derive(Debug, Clone)]
pub enum Format {
    /// A line of text.
    Line {
        /// After its local time.
        with_time: bool,
        /// After its sender's name.
        with_sender: bool,
    },
    /// The whole record, as a JSON object that names its topic.
    Json(Name),
}

/// Messages on their way to standard output.
///
/// On a terminal, what could act on it is shown as visible text; elsewhere bytes are written as they
/// are.
pub struct Output {
    /// For lines of text after their time.
    time: Option<LocalTime>,
    /// The topic, for lines of JSON.
    json: Option<Name>,
    style: Style,
    bytes: Vec<u8>,
    /// A hint was given, or would come too late.
    is_hinted: bool,
}

impl Output {
    /// Prints messages in this format.
    pub fn new(format: Format) -> Output {
        let (with_time, with_sender, json) = match format {
            Format::Line {
                with_time,
                with_sender,
            } => (with_time, with_sender, None),
            Format::Json(topic) => (false, false, Some(topic)),
        };
        Output {
            time: with_time.then(LocalTime::new),
            json,
            style: Style::of_output(with_sender),
            bytes: Vec::new(),
            is_hinted: false,
        }
    }

    /// Whether the record is a message in this format: without a value it is one only in JSON.
    pub fn shows(&self, record: &Record<'_>) -> bool {
        self.json.is_some() || record.value.is_some()
    }

    /// Prints a message as a line, at the latest with the next [`flush`](Output::flush). `sealed` is when its sender
    /// sealed it, by the sender's clock, in milliseconds since 1970.
    pub fn message(&mut self, record: &Record<'_>, sealed: Option<i64>) -> Result<()> {
        self.is_hinted = true;
        if let Some(topic) = &self.json {
            self.bytes.extend(json::line(topic, record, sealed).bytes());
        } else {
            // Through a pipe come the bytes of the line, whatever its time.
            let is_dated = |clock| self.style.is_terminal && seal::is_dated(clock, time::now());
            let dated = sealed.filter(|&it| is_dated(it)).map(|_| LocalTime::new());
            if let Some(local) = self.time.as_ref().or(dated.as_ref()) {
                self.bytes
                    .extend(local.of(sealed.or(record.timestamp)).bytes());
                self.bytes.push(b' ');
            }
            let [sender, text] = [record.key, record.value].map(Option::unwrap_or_default);
            self.style.message(&mut self.bytes, sender, text);
        }
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
