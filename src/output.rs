//! Messages on standard output, and nothing else there.

use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};

use crate::error::{Error, Result};

/// Standard output, for messages.
///
/// What is written leaves with [`Output::flush`], which belongs behind every poll: a reader sees a
/// message as soon as there is one, and a million of them cost no million system calls.
pub struct Output {
    out: BufWriter<StdoutLock<'static>>,
    show_sender: bool,
}

impl Output {
    /// Standard output; with the sender before each message, if `show_sender`.
    pub fn new(show_sender: bool) -> Output {
        Output {
            out: BufWriter::with_capacity(64 * 1024, io::stdout().lock()),
            show_sender,
        }
    }

    /// Writes one message as a line.
    pub fn message(&mut self, sender: &[u8], text: &[u8]) -> Result<()> {
        let mut parts: [&[u8]; 4] = [b"", b"", text, b"\n"];
        if self.show_sender {
            parts[0] = sender;
            parts[1] = b": ";
        }
        parts
            .iter()
            .try_for_each(|part| self.out.write_all(part))
            .map_err(failure)
    }

    /// Lets go of what has been written.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(failure)
    }
}

/// A closed pipe is a reason to end; anything else, a full disk say, is a failure.
fn failure(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe => Error::closed_pipe(),
        _ => Error::failed("cannot write to standard output", error),
    }
}
