//! One segment: a file of messages, and an index into it.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::INDEX_INTERVAL;
use crate::broker::message;

/// What is known of a segment without reading its file.
#[derive(Debug)]
pub(super) struct Segment {
    /// The offset of its first message, which is its name.
    pub(super) base: i64,
    /// The offset after its last message.
    pub(super) end: i64,
    /// How many bytes of the file are messages.
    pub(super) len: u64,
    /// `None` until it is first used.
    pub(super) index: Option<Index>,
    /// The index entry of what was appended last, or of the segment's first message.
    pub(super) newest: (i64, u64),
}

/// Offsets, and the bytes at which their messages start.
type Index = Vec<(i64, u64)>;

/// Adds a message to the index, if it lies far enough after the last one indexed.
pub(super) fn add_to_index(index: &mut Index, offset: i64, at: u64) {
    let last = index.last();
    if last.is_none_or(|(_, last)| at - last >= INDEX_INTERVAL) {
        index.push((offset, at));
    }
}

impl Segment {
    /// An empty segment.
    pub(super) fn new(base: i64) -> Segment {
        Segment {
            base,
            end: base,
            len: 0,
            index: Some(Index::new()),
            newest: (base, 0),
        }
    }

    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{:020}.log", self.base))
    }

    /// Its index, for which the file is read the first time. That also finds the end of the last
    /// whole message, which can be earlier than expected.
    pub(super) fn index(&mut self, dir: &Path) -> io::Result<&Index> {
        if self.index.is_none() {
            let mut index = Index::new();
            let (end, len) = walk(&self.path(dir), self.base, |offset, at, _| {
                add_to_index(&mut index, offset, at);
                true
            })?;
            (self.end, self.len, self.index) = (end, len, Some(index));
        }
        Ok(self.index.get_or_insert_default())
    }
}

/// Passes the messages of a segment to `each`, with their offsets and the bytes at which they start,
/// until one is not whole or `each` returns false. Returns the offset and the byte after the last.
pub(super) fn walk(
    path: &Path,
    base: i64,
    mut each: impl FnMut(i64, u64, &[u8]) -> bool,
) -> io::Result<(i64, u64)> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut file = BufReader::with_capacity(64 * 1024, file);
    let mut message = Vec::new();
    let (mut offset, mut at) = (base, 0);
    while len - at >= message::OVERHEAD as u64 {
        message.resize(message::OVERHEAD, 0);
        file.read_exact(&mut message)?;
        let Some((found, size)) = message::header(&message) else {
            break;
        };
        if found != offset || size > message::MAX_BYTES || size as u64 > len - at {
            break;
        }
        message.resize(size, 0);
        file.read_exact(&mut message[message::OVERHEAD..])?;
        if message::check(&message).is_err() || !each(offset, at, &message) {
            break;
        }
        offset += 1;
        at += size as u64;
    }
    Ok((offset, at))
}

/// The byte at which the first message with `offset` or a higher one starts. It is searched from
/// `within.start`, where an indexed message starts, to `within.end`, where the next one does or the
/// segment ends.
pub(super) fn find(file: &File, within: Range<u64>, offset: i64) -> io::Result<u64> {
    // Every message that starts later than this is in the index.
    let most = (INDEX_INTERVAL as usize) + message::OVERHEAD;
    let size = usize::try_from(within.end - within.start).map_or(most, |size| size.min(most));
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, within.start)?;
    let mut at = 0;
    while let Some((found, size)) = bytes.get(at..).and_then(message::header) {
        if found >= offset {
            return Ok(within.start + at as u64);
        }
        at += size;
    }
    Ok(within.end)
}

/// When a file was last written to, in milliseconds since 1970.
pub(super) fn modified(path: &Path) -> io::Result<i64> {
    let modified = fs::metadata(path)?.modified()?;
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
