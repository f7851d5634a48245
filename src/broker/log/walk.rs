//! A walk over the messages of a segment, past what is damaged.
//!
//! A message is intact if it lies where the one before ends, has the next offset, and its checksum is
//! right. Its offset, which the checksum does not cover, can also be wrong, if it is certain which one it
//! should be: the walk gives such a message with the right one. Where a message is not intact, the walk
//! goes on at an intact one
//!
//! 1. to which the damaged message leads, by the size that it says it has or by the lengths of its
//!    fields, and which has the next offset,
//! 2. otherwise at the next byte at which one lies with a larger offset,
//! 3. or to which several damaged messages lead in this way, if nothing was found before it.
//!
//! A checksum does not cover the offset, and what leads to a message can be damaged too. So of the
//! offset that a message has, the ways to it, the offsets of the intact messages that follow directly,
//! and the end of the log in the manifest, at least two have to agree, and more than twice as many as
//! agree on another offset. So a damaged message costs no other, unless the intact ones between it and
//! the next damaged one are too few to tell which they are. Where bytes are gone from a file, the
//! messages after them are found only if there are enough of them.
//!
//! # What is inside a value
//!
//! A value can be anything, also a whole message of this log with another sender's name. No walk
//! must take that for a line. So before a message is appended that has such bytes in it, its place is
//! noted in a file beside the segment, and inside a noted place nothing is ever taken for a message.
//! A text has no such bytes, so that hardly any segment has such a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::{Bound, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::broker::files::open_if_file;
use crate::broker::message::{self, MIN_BYTES, OVERHEAD};

/// How many bytes are read from the file at once.
const CHUNK: u64 = 64 * 1024;

/// How many messages after one that was found are asked for its offset.
const FOLLOWERS: usize = 20;

/// How many places are looked at to which damaged messages may lead.
const MAX_REACHED: usize = 40;

/// How many bytes of a damaged message are searched for the lengths of its fields. A key, which is before the last of
/// them, is a name.
const HEAD: u64 = 4096;

/// How many messages can be gone from a file at most.
const MAX_GAP: i64 = 1 << 24;

/// The bytes of a note: where the message starts, and where it ends.
const NOTE_BYTES: usize = 16;

/// Places to which damaged messages lead, each an offset and a byte, and whether no intact message with another offset
/// is on a way there.
type Reached = BTreeMap<(i64, u64), bool>;

/// How far a walk goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// How many bytes of the file are read.
    pub(super) len: u64,
    /// What all offsets stay below.
    pub(super) limit: i64,
    /// The offset after the last message, if the manifest has it.
    pub(super) end: Option<i64>,
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
            None => match self.misnumbered()? {
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

    /// The size of the message at which the walk stands, if all but its offset is intact, and that must have been the next
    /// one: the message after it has the one after that. Or it is the last message, and has an offset that no message can
    /// have there: a larger one would be right if messages before it were gone from the file.
    fn misnumbered(&mut self) -> io::Result<Option<usize>> {
        let Some((found, size)) = self.intact(self.at, i64::MIN..i64::MAX)? else {
            return Ok(None);
        };
        let (next, after) = (self.offset + 1, self.at + size as u64);
        let is_certain = match after == self.bounds.len {
            true => !(self.offset..self.offset + MAX_GAP).contains(&found),
            false => self.intact(after, next..next + 1)?.is_some(),
        };
        let is_noted = self.after_noted(self.at)? > self.at || self.after_noted(after)? > after;
        Ok(Some(size).filter(|_| is_certain && !is_noted))
    }

    /// The first intact message after the damaged one at which the walk stands: its offset, the byte
    /// at which it starts, and its size.
    fn resume(&mut self) -> io::Result<Option<(i64, u64, usize)>> {
        let (mut from, offsets) = (self.at, self.offset + 1..self.bounds.limit);
        let reached = self.reach()?;
        let mut by_ways = None;
        for (offset, at) in reached.keys() {
            if by_ways.is_none() && offsets.contains(offset) {
                let size = self.fits(*offset, *at, &reached)?;
                by_ways = size.map(|size| (*offset, *at, size));
            }
        }
        if by_ways.is_some_and(|(offset, ..)| offset == offsets.start) {
            return Ok(by_ways);
        }
        let end = by_ways.map_or(self.bounds.len, |(_, at, _)| at);
        while let Some((offset, at)) = self.scan(from..end, &offsets)? {
            if let Some(size) = self.fits(offset, at, &reached)? {
                return Ok(Some((offset, at, size)));
            }
            from = self.after_noted(at)?.max(at + 1);
        }
        Ok(by_ways)
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

    /// Where damaged messages lead, each by the size that it says it has or by the lengths of its fields: the offset that
    /// a message would have there, and the byte at which it would start, in rising order.
    fn reach(&mut self) -> io::Result<Reached> {
        let mut reached = Reached::new();
        let mut here = Some(((self.offset, self.at), true));
        while let Some(((offset, at), is_sound)) = here {
            let left = self.bounds.len - at;
            let found = self.intact(at, i64::MIN..i64::MAX)?;
            let agrees = at == self.at || found.is_none_or(|(found, _)| found == offset);
            let said = self.header(at)?.map(|(_, size)| size);
            let by_fields = message::size_by_fields(self.bytes(at, left.min(HEAD) as usize)?);
            for size in [said, by_fields].into_iter().flatten() {
                let after = at + size as u64;
                // A size that leads into a noted place is wrong.
                let is_possible = size as u64 <= left && self.after_noted(after)? == after;
                if is_possible && reached.len() < MAX_REACHED {
                    *reached.entry((offset + 1, after)).or_default() |= is_sound && agrees;
                }
            }
            let rest = (Bound::Excluded((offset, at)), Bound::Unbounded);
            let next = reached.range(rest).next();
            here = next.map(|(place, is_sound)| (*place, *is_sound));
        }
        Ok(reached)
    }

    /// The size of the message at `at`, if it is intact, and enough agrees that it has this offset.
    fn fits(&mut self, offset: i64, at: u64, reached: &Reached) -> io::Result<Option<usize>> {
        // By how much what the messages from here on say differs from that.
        let mut differences = Vec::new();
        let (mut next, mut after, mut first_size) = (offset, at, None);
        while differences.len() <= FOLLOWERS
            && self.after_noted(after)? == after
            && let Some((found, size)) = self.intact(after, i64::MIN..i64::MAX)?
        {
            differences.push(found.wrapping_sub(next));
            (next, after) = (next + 1, after + size as u64);
            first_size.get_or_insert(size);
        }
        let is_last = Some(next) == self.bounds.end && after == self.bounds.len;
        let count = |n: i64| differences.iter().filter(|it| **it == n).count();
        let lost = (offset - self.offset) as u64;
        if lost > (at - self.at) / MIN_BYTES as u64 {
            // Bytes are gone from the file: that has to be certain.
            let is_enough = is_last || differences.len() > FOLLOWERS / 2;
            let fits = is_enough && count(0) == differences.len();
            return Ok(first_size.filter(|_| fits));
        }
        let ways = reached.iter().filter(|((_, reached), _)| *reached == at);
        let ways: Vec<_> = ways
            .map(|((offset, _), is_sound)| (*offset, *is_sound))
            .collect();
        // Ways with different numbers of messages prove nothing.
        let agreeing = count(0) + usize::from(is_last) + usize::from(ways == [(offset, true)]);
        // Those of which the offsets are damaged, too, differ from each other.
        let others = differences.iter().filter(|n| **n != 0).map(|n| count(*n));
        let is_contradicted = !ways.is_empty() && ways.iter().all(|(it, _)| *it != offset);
        let disagreeing = others.max().unwrap_or(0).max(usize::from(is_contradicted));
        let fits = agreeing >= 2 && agreeing > 2 * disagreeing;
        Ok(first_size.filter(|_| fits))
    }

    /// The next of these bytes at which something with one of these offsets could start, and the offset.
    fn scan(&mut self, bytes: Range<u64>, offsets: &Range<i64>) -> io::Result<Option<(i64, u64)>> {
        let mut at = bytes.start;
        while at < bytes.end && at + MIN_BYTES as u64 <= self.bounds.len {
            let size = CHUNK.min(self.bounds.len - at) as usize;
            let windows = self.bytes(at, size)?.windows(OVERHEAD);
            let offset = |bytes: &[u8]| {
                let (offset, size) = message::header(bytes)?;
                (offsets.contains(&offset) && size <= message::MAX_BYTES).then_some(offset)
            };
            let mut found = (at..)
                .zip(windows)
                .filter_map(|(at, it)| Some((offset(it)?, at)));
            if let Some(found) = found.next() {
                return Ok(Some(found).filter(|(_, at)| *at < bytes.end));
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
