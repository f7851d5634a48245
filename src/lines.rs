//! Lines of any bytes, in bounded memory.

use std::io::{BufRead, ErrorKind};

use crate::client::MAX_RECORD_BYTES;
use crate::error::{Error, Result};

/// A line of input, without its line ending.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// It is longer than any record may be, and only counted.
    TooLong {
        /// Its length.
        bytes: u64,
    },
}

/// Splits input at `\n`, and at nothing else; the last line needs none.
#[derive(Debug)]
pub struct Lines<R> {
    input: R,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `input`.
    pub fn new(input: R) -> Lines<R> {
        Lines {
            input,
            line: Vec::new(),
        }
    }

    /// The next line, or none at the end.
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>> {
        self.line.clear();
        let mut bytes = 0u64;
        loop {
            let chunk = match self.input.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(why) => return Err(Error::failed("cannot read standard input", why)),
                Ok(chunk) => chunk,
            };
            if chunk.is_empty() {
                if bytes == 0 {
                    return Ok(None);
                }
                break;
            }
            let end = chunk.iter().position(|&b| b == b'\n');
            let text = &chunk[..end.unwrap_or(chunk.len())];
            bytes += text.len() as u64;
            if bytes <= MAX_RECORD_BYTES as u64 {
                self.line.extend_from_slice(text);
            }
            let used = text.len() + usize::from(end.is_some());
            self.input.consume(used);
            if end.is_some() {
                break;
            }
        }
        Ok(Some(if bytes > MAX_RECORD_BYTES as u64 {
            Line::TooLong { bytes }
        } else {
            Line::Whole(&self.line)
        }))
    }
}
