//! A walk over the messages of a segment, past what is damaged.
//!
//! A message is intact if it lies where the one before ends, has the next offset, and its checksum is
//! right. Its offset, which the checksum does not cover, can also be wrong, if it is certain which one it
//! should be: the walk gives such a message with the right one. Where a message is not intact, the walk
//! goes on
//!
//! 1. after as many bytes as the damaged message says it has, if an intact message with the offset
//!    after its own lies there,
//! 2. otherwise at the next byte at which an intact message lies with a larger offset that fits: with
//!    the bytes since the last intact message, and with the messages that follow,
//! 3. or where the sizes of several damaged messages lead, if an intact one with the right offset
//!    lies there, and nothing was found before.
//!
//! So a damaged message costs no other. The exceptions: an intact message that a scan finds among
//! damaged ones is given up if those that follow contradict its offset, which checksums don't cover,
//! or if nothing confirms it; and where bytes are gone from a file, the messages after them are found
//! only if there are enough of them.
//!
//! # What is inside a value
//!
//! A value can be anything, also a whole message of this log with another sender's name. No walk
//! must take that for a line. So before a message is appended that has such bytes in it, its place is
//! noted in a file beside the segment, and inside a noted place nothing is ever taken for a message.
//! A text has no such bytes, so that hardly any segment has such a file.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::broker::files::open_if_file;
use crate::broker::message::{self, MIN_BYTES, OVERHEAD};

/// How many bytes are read from the file at once.
const CHUNK: u64 = 64 * 1024;

/// How many messages after one that was found are asked for its offset.
const FOLLOWERS: usize = 20;

/// How many of them are enough, if they agree with it, where the next one is damaged.
const AGREEING: usize = 3;

/// How many messages can be gone from a file at most.
const MAX_GAP: i64 = 1 << 24;

/// The bytes of a note: where the message starts, and where it ends.
const NOTE_BYTES: usize = 16;

/// How far a walk goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// How many bytes of the file are read.
    pub(super) len: u64,
    /// What all offsets stay below.
    pub(super) limit: i64,
    /// The offset after the last message that was noted in the manifest, or else `limit`.
    pub(super) end: i64,
}

/// A walk that stands before the message with offset `offset`, which starts at `at` if it is intact.
pub(super) struct Walk<'a> {
    file: &'a File,
    path: &'a Path,
    offset: i64,
    at: u64,
    bounds: Bounds,
    /// Bytes of the file, from `bytes_at` on.
    bytes: Vec<u8>,
    bytes_at: u64,
    /// The places in which no message may begin, sorted; read at the first damage.
    noted: Option<Vec<Range<u64>>>,
}

impl<'a> Walk<'a> {
    /// A walk over `file`, which is at `path`, from a message's offset and the byte at which it starts.
    pub(super) fn new(
        file: &'a File,
        path: &'a Path,
        (offset, at): (i64, u64),
        bounds: Bounds,
    ) -> Walk<'a> {
        Walk {
            file,
            path,
            offset,
            at,
            bounds,
            bytes: Vec::new(),
            bytes_at: 0,
            noted: None,
        }
    }

    /// The next intact message: its offset, the byte at which it starts, and itself. In the file, its offset can be
    /// another one.
    pub(super) fn next(&mut self) -> io::Result<Option<(i64, u64, &[u8])>> {
        let (mut offset, mut at) = (self.offset, self.at);
        let size = match self.intact(at, offset..offset + 1)? {
            Some((_, size)) => size,
            None => match self.misnumbered(at, offset, true)? {
                Some(size) => size,
                None => match self.resume()? {
                    Some(found) => {
                        (offset, at) = (found.0, found.1);
                        found.2
                    }
                    None => return Ok(None),
                },
            },
        };
        (self.offset, self.at) = (offset + 1, at + size as u64);
        Ok(Some((offset, at, self.bytes(at, size)?)))
    }

    /// These bytes of the file, which must have them.
    fn bytes(&mut self, at: u64, size: usize) -> io::Result<&[u8]> {
        let end = self.bytes_at + self.bytes.len() as u64;
        if at < self.bytes_at || at + size as u64 > end {
            let size = CHUNK.max(size as u64).min(self.bounds.len - at);
            self.bytes.resize(size as usize, 0);
            self.bytes_at = at;
            let read = self.file.read_exact_at(&mut self.bytes, at);
            // Nothing of an incomplete read is used.
            read.inspect_err(|_| self.bytes.clear())?;
        }
        let start = (at - self.bytes_at) as usize;
        Ok(&self.bytes[start..start + size])
    }

    /// The offset and the size that the message at `at` says it has, if it can be whole.
    fn header(&mut self, at: u64) -> io::Result<Option<(i64, usize)>> {
        if at + MIN_BYTES as u64 > self.bounds.len {
            return Ok(None);
        }
        let left = self.bounds.len - at;
        let header = message::header(self.bytes(at, OVERHEAD)?);
        Ok(header.filter(|(_, size)| *size <= message::MAX_BYTES && *size as u64 <= left))
    }

    /// The offset and the size of the message at `at`, if it is intact and its offset is one of these.
    fn intact(&mut self, at: u64, offsets: Range<i64>) -> io::Result<Option<(i64, usize)>> {
        let Some((offset, size)) = self.header(at)?.filter(|(o, _)| offsets.contains(o)) else {
            return Ok(None);
        };
        let is_intact = message::check(self.bytes(at, size)?).is_ok();
        Ok(is_intact.then_some((offset, size)))
    }

    /// The size of the message at `at`, if all but its offset is intact, and that must have been `offset`: the next
    /// message has the one after that. Or, if `is_at_message` is certain, it is the last one, and has an offset that no
    /// message can have there: a larger one would be right if messages before it were gone from the file.
    fn misnumbered(
        &mut self,
        at: u64,
        offset: i64,
        is_at_message: bool,
    ) -> io::Result<Option<usize>> {
        let Some((found, size)) = self.intact(at, i64::MIN..i64::MAX)? else {
            return Ok(None);
        };
        let after = at + size as u64;
        let is_certain = match after == self.bounds.len {
            true => is_at_message && !(offset..offset + MAX_GAP).contains(&found),
            false => self.intact(after, offset + 1..offset + 2)?.is_some(),
        };
        let is_noted = self.after_noted(at)? > at || self.after_noted(after)? > after;
        Ok(Some(size).filter(|_| is_certain && !is_noted))
    }

    /// The first intact message after the damaged one at which the walk stands: its offset, the byte
    /// at which it starts, and its size.
    fn resume(&mut self) -> io::Result<Option<(i64, u64, usize)>> {
        let (mut at, next) = (self.at, self.offset + 1);
        let by_size = self.resume_by_size()?;
        if by_size.is_some_and(|(offset, ..)| offset == next) {
            return Ok(by_size);
        }
        let end = by_size.map_or(self.bounds.len, |(_, at, _)| at);
        while let Some(found) = self.scan(at..end, next..self.bounds.limit)? {
            at = self.after_noted(found)?;
            if at > found {
                continue;
            }
            if let Some((offset, size)) = self.intact(at, next..self.bounds.limit)?
                && self.fits(offset, at, size)?
            {
                return Ok(Some((offset, at, size)));
            }
            at += 1;
        }
        Ok(by_size)
    }

    /// How many messages the rest of the file has, if the sizes that they say they have lead exactly to its
    /// end.
    pub(super) fn count_by_sizes(mut self) -> io::Result<Option<i64>> {
        let mut count = 0;
        while let Some((_, size)) = self.header(self.at)? {
            self.at += size as u64;
            count += 1;
        }
        Ok(Some(count).filter(|_| self.at == self.bounds.len))
    }

    /// The first intact message that the sizes of damaged ones lead to, if its offset is right.
    fn resume_by_size(&mut self) -> io::Result<Option<(i64, u64, usize)>> {
        let (mut at, mut next) = (self.at, self.offset + 1);
        while let Some((_, size)) = self.header(at)? {
            at += size as u64;
            let size = match self.intact(at, next..next + 1)? {
                Some((_, size)) if self.after_noted(at)? == at => Some(size),
                _ => self.misnumbered(at, next, false)?,
            };
            if let Some(size) = size {
                return Ok(Some((next, at, size)));
            }
            next += 1;
        }
        Ok(None)
    }

    /// Whether an intact message that a scan found has the offset that it was given. A checksum does not
    /// cover it, but those of the messages that follow, as their sizes lead from one to the next, do
    /// not agree with a wrong one.
    fn fits(&mut self, offset: i64, found: u64, mut size: usize) -> io::Result<bool> {
        let mut at = found;
        let lost = (offset - self.offset) as u64;
        let most = (at - self.at) / MIN_BYTES as u64;
        let (mut next, mut differences) = (offset, Vec::new());
        while differences.len() < FOLLOWERS {
            at += size as u64;
            if self.after_noted(at)? > at {
                // A damaged size has led into a value.
                break;
            }
            let Some((found, next_size)) = self.header(at)? else {
                break;
            };
            (next, size) = (next + 1, next_size);
            if found == next || self.intact(at, 0..i64::MAX)?.is_some() {
                differences.push(found - next);
            } else if lost <= most
                && differences.len() >= AGREEING
                && differences.iter().all(|it| *it == 0)
            {
                // A damaged size may have led here, and the offsets from here on tell nothing.
                break;
            }
        }
        let count = |n: i64| differences.iter().filter(|it| **it == n).count();
        let is_last = next + 1 == self.bounds.end && at == self.bounds.len;
        if lost > most {
            // Bytes are gone from the file: that has to be certain.
            let is_enough = is_last || differences.len() >= FOLLOWERS / 2;
            return Ok(is_enough && count(0) == differences.len());
        }
        if differences.is_empty() && !is_last {
            // Nothing that follows tells anything.
            return self.leads_to(found, offset);
        }
        // Those that were damaged, too, differ from each other.
        Ok(differences.iter().all(|n| count(*n) <= count(0)))
    }

    /// Whether as many damaged messages as there must be before one with this offset lead to it, by their sizes or by the
    /// lengths of their fields.
    fn leads_to(&mut self, found: u64, offset: i64) -> io::Result<bool> {
        for by_fields in [false, true] {
            let (mut at, mut next) = (self.at, self.offset);
            while at < found {
                let left = (found - at).min(message::MAX_BYTES as u64) as usize;
                let bytes = self.bytes(at, left)?;
                let size = match by_fields {
                    true => message::size_by_fields(bytes),
                    false => message::header(bytes).map(|(_, size)| size),
                };
                let Some(size) = size.filter(|size| *size <= left) else {
                    break;
                };
                (at, next) = (at + size as u64, next + 1);
            }
            if (at, next) == (found, offset) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The next of these bytes at which something with one of these offsets could start.
    fn scan(&mut self, bytes: Range<u64>, offsets: Range<i64>) -> io::Result<Option<u64>> {
        let mut at = bytes.start;
        while at < bytes.end && at + MIN_BYTES as u64 <= self.bounds.len {
            let size = CHUNK.min(self.bounds.len - at) as usize;
            let mut windows = self.bytes(at, size)?.windows(OVERHEAD);
            let could_start = |bytes: &[u8]| {
                message::header(bytes).is_some_and(|(offset, size)| {
                    offsets.contains(&offset) && size <= message::MAX_BYTES
                })
            };
            if let Some(found) = windows.position(could_start) {
                let found = at + found as u64;
                return Ok(Some(found).filter(|found| *found < bytes.end));
            }
            at += (size - OVERHEAD + 1) as u64;
        }
        Ok(None)
    }

    /// `at`, or the end of the noted place that it is inside of.
    fn after_noted(&mut self, at: u64) -> io::Result<u64> {
        let noted = match self.noted.take() {
            Some(noted) => noted,
            None => read_notes(self.path)?,
        };
        let before = noted.partition_point(|place| place.start < at);
        let place = before.checked_sub(1).map(|last| &noted[last]);
        let after = place.map_or(at, |place| place.end.max(at));
        self.noted = Some(noted);
        Ok(after)
    }
}

/// The file with the notes about the segment at `path`.
pub(super) fn notes_path(path: &Path) -> PathBuf {
    path.with_extension("lookalikes")
}

/// The bytes of notes about these places.
pub(super) fn to_notes(places: &[Range<u64>]) -> Vec<u8> {
    let numbers = places.iter().flat_map(|place| [place.start, place.end]);
    numbers.flat_map(u64::to_be_bytes).collect()
}

/// How many of so many bytes of notes are whole ones: the last may have been written in part.
pub(super) fn whole_notes(bytes: u64) -> u64 {
    bytes / NOTE_BYTES as u64 * NOTE_BYTES as u64
}

fn read_notes(path: &Path) -> io::Result<Vec<Range<u64>>> {
    let Some(mut file) = open_if_file(&notes_path(path))? else {
        return Ok(Vec::new());
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let places = bytes.chunks_exact(NOTE_BYTES).map(|note| {
        let (start, end) = note.split_at(NOTE_BYTES / 2);
        number(start)..number(end)
    });
    // A damaged note must not hide more than a message.
    let is_place = |place: &Range<u64>| {
        let size = place.end.checked_sub(place.start);
        size.is_some_and(|size| size <= message::MAX_BYTES as u64)
    };
    let mut places: Vec<_> = places.filter(is_place).collect();
    // A note can be left from an append that failed, at a place that was noted again.
    places.sort_unstable_by_key(|place| (place.start, place.end));
    Ok(places)
}
