//! Lines of any bytes, in bounded memory.

use std::io::{BufRead, Read};

use crate::client::{MAX_RECORD_BYTES, excerpt};
use crate::error::{Error, Result};

/// How many bytes of a line that is too long are read at a time, only to be counted.
const SKIP_BYTES: u64 = 64 * 1024;

/// A line of input, without its line ending.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// It is longer than any record may be, so its length and its beginning are all that is kept.
    TooLong {
        /// Its length.
        bytes: u64,
        /// How it begins.
        start: &'a [u8],
    },
}

impl<'a> Line<'a> {
    /// A line that is in memory already.
    pub fn of(text: &'a [u8]) -> Line<'a> {
        if text.len() > MAX_RECORD_BYTES {
            Line::TooLong {
                bytes: text.len() as u64,
                start: excerpt(text),
            }
        } else {
            Line::Whole(text)
        }
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        match self {
            Line::Whole(text) => text.len() as u64,
            Line::TooLong { bytes, .. } => *bytes,
        }
    }
}

/// Splits input at `\n`, and at nothing else; the last line needs none.
///
/// At most [`MAX_RECORD_BYTES`] of a line are kept.
#[derive(Debug)]
pub struct Lines<R> {
    input: R,
    line: Vec<u8>,
    /// How a line begins that is too long.
    start: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `input`.
    pub fn new(input: R) -> Lines<R> {
        Lines {
            input,
            line: Vec::new(),
            start: Vec::new(),
        }
    }

    /// The next line, or none at the end.
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>> {
        // One byte more than a line may have: its ending, or the proof that it is too long.
        let most = MAX_RECORD_BYTES as u64 + 1;
        let read = self.read(most)?;
        if self.ends() {
            self.line.pop();
        } else if read == most {
            self.start = excerpt(&self.line).to_vec();
            let bytes = self.skip(read)?;
            let start = &self.start;
            return Ok(Some(Line::TooLong { bytes, start }));
        } else if read == 0 {
            return Ok(None);
        }
        Ok(Some(Line::Whole(&self.line)))
    }

    /// Gives each line to `each`, up to the end, or until it returns false.
    pub fn each_while(&mut self, mut each: impl FnMut(&Line<'_>) -> bool) -> Result<()> {
        while let Some(line) = self.next_line()? {
            if !each(&line) {
                break;
            }
        }
        Ok(())
    }

    /// Reads the rest of a line of which `bytes` have been read; returns its length.
    fn skip(&mut self, mut bytes: u64) -> Result<u64> {
        loop {
            let read = self.read(SKIP_BYTES)?;
            bytes += read - u64::from(self.ends());
            if self.ends() || read < SKIP_BYTES {
                return Ok(bytes);
            }
        }
    }

    /// Reads up to the end of the line, at most `most` bytes; returns how many.
    fn read(&mut self, most: u64) -> Result<u64> {
        self.line.clear();
        let read = (&mut self.input)
            .take(most)
            .read_until(b'\n', &mut self.line)
            .map_err(|why| Error::failed("cannot read standard input", why))?;
        Ok(read as u64)
    }

    fn ends(&self) -> bool {
        self.line.last() == Some(&b'\n')
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;
    use crate::client::EXCERPT_BYTES;

    fn all(input: &[u8], buffer: usize) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(BufReader::with_capacity(buffer, input));
        let mut all = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            match line {
                Line::Whole(text) => all.push(text.to_vec()),
                Line::TooLong { bytes, .. } => all.push(format!("{bytes} bytes").into_bytes()),
            }
        }
        all
    }

    #[test]
    fn only_a_newline_ends_a_line_and_the_last_line_needs_none() {
        for (input, lines) in [
            (&b""[..], vec![]),
            (b"\n", vec![&b""[..]]),
            (b"a\nb", vec![b"a", b"b"]),
            (b"a\n\nb\n", vec![b"a", b"", b"b"]),
            (b"a\r\nb\0\xff\n", vec![b"a\r", b"b\0\xff"]),
        ] {
            assert_eq!(all(input, 3), lines, "{input:?}");
        }
    }

    #[test]
    fn the_longest_line_is_kept_and_a_longer_one_is_counted() {
        let mut input = vec![b'x'; MAX_RECORD_BYTES];
        input.push(b'\n');
        input.extend(vec![b'y'; MAX_RECORD_BYTES + 1]);
        input.extend(b"\nnext\n");
        input.extend(vec![b'z'; 3_000_000]);
        let lines = all(&input, 8192);
        assert_eq!(lines[0].len(), MAX_RECORD_BYTES);
        assert_eq!(lines[1], b"1048001 bytes");
        assert_eq!(lines[2], b"next");
        assert_eq!(lines[3], b"3000000 bytes");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_line_too_long_takes_no_more_memory_than_the_longest_one() {
        let endless = BufReader::new(std::io::repeat(b'x').take(100_000_000));
        let mut lines = Lines::new(endless);
        let line = lines.next_line().unwrap();
        let bytes = 100_000_000;
        let start = &[b'x'; EXCERPT_BYTES];
        assert_eq!(line, Some(Line::TooLong { bytes, start }));
        assert!(lines.line.capacity() <= 2 * MAX_RECORD_BYTES);
    }

    proptest! {
        #[test]
        fn lines_put_together_are_the_input(
            input in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
            buffer in 1usize..20,
        ) {
            let mut together = all(&input, buffer).join(&b'\n');
            if input.last() == Some(&b'\n') {
                together.push(b'\n');
            }
            prop_assert_eq!(together, input);
        }
    }
}
