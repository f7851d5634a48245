//! One segment: a file of messages, an index into it, and what of it is damaged.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::INDEX_INTERVAL;
use super::manifest::Record;
use super::walk::{Bounds, Walk};
use crate::broker::files::open_to_read;
use crate::broker::message;

/// How many ranges of lost offsets are known one by one. Any further ones are joined to the last.
const MAX_RANGES: usize = 100;

/// How many of them a sentence names.
const NAMED_RANGES: usize = 10;

/// What is known of a segment without reading its file.
#[derive(Debug)]
pub(super) struct Segment {
    /// The offset of its first message, which is its name.
    pub(super) base: i64,
    /// The offset after its last intact message.
    pub(super) end: i64,
    /// What the offsets of its messages stay below, however small they are.
    pub(super) offset_limit: i64,
    /// The first offset of the next segment, if there is one.
    pub(super) next: Option<i64>,
    /// How many bytes of the file are read.
    pub(super) len: u64,
    /// What the manifest says of it.
    pub(super) record: Option<Record>,
    /// `None` until it is first used.
    pub(super) index: Option<Index>,
    /// The largest timestamp of its messages, once it was first used; the smallest number if none has one.
    pub(super) latest: i64,
    /// The index entry of what was appended last, or of the segment's first message.
    pub(super) newest: (i64, u64),
    /// The offsets of messages that have another one in the file.
    pub(super) repaired: Offsets,
    /// The offsets before `end` that it does not have, and those from `end` on that are known to be
    /// lost.
    pub(super) lost: Offsets,
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
    pub(super) fn new(base: i64, offset_limit: i64) -> Segment {
        Segment {
            base,
            end: base,
            offset_limit,
            next: None,
            len: 0,
            record: None,
            index: Some(Index::new()),
            latest: i64::MIN,
            newest: (base, 0),
            repaired: Offsets::default(),
            lost: Offsets::default(),
        }
    }

    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{:020}.log", self.base))
    }

    /// How far a walk over it goes.
    pub(super) fn bounds(&self) -> Bounds {
        let limit = self
            .next
            .map_or(self.offset_limit, |next| next.min(self.offset_limit));
        Bounds {
            len: self.len,
            limit,
            end: self.record.map(|record| record.end),
        }
    }

    /// Whether it has an intact message; true before it was first used.
    pub(super) fn has_messages(&self) -> bool {
        self.end > self.base
    }

    /// Reads the file, unless that was done before: finds the intact messages, and what is damaged
    /// between them. Returns where the last one ends if it was done now.
    pub(super) fn index(&mut self, dir: &Path) -> io::Result<Option<u64>> {
        if self.index.is_some() {
            return Ok(None);
        }
        let path = self.path(dir);
        let file = open_to_read(&path)?;
        let mut walk = Walk::new(&file, &path, (self.base, 0), self.bounds());
        let (mut index, mut lost, mut repaired) =
            (Index::new(), Offsets::default(), Offsets::default());
        let (mut end, mut len, mut latest) = (self.base, 0, i64::MIN);
        while let Some((offset, at, message)) = walk.next()? {
            let is_repaired = !message::has_offset(message, offset);
            if is_repaired {
                repaired.add(offset..offset + 1);
            }
            if offset == end {
                add_to_index(&mut index, offset, at);
            } else {
                lost.add(end..offset);
                // So that a search never has to cross the damage; but what confirms another offset can lie before it.
                if !is_repaired {
                    index.push((offset, at));
                }
            }
            latest = latest.max(message::latest_timestamp(message));
            (end, len) = (offset + 1, at + message.len() as u64);
        }
        (self.latest, self.repaired) = (latest, repaired);
        (self.end, self.index, self.lost) = (end, Some(index), lost);
        Ok(Some(len))
    }
}

/// Offsets of messages that are lost or repaired, in rising order.
#[derive(Debug, Clone, Default)]
pub(super) struct Offsets {
    ranges: Vec<Range<i64>>,
    count: i64,
}

impl Offsets {
    /// These offsets alone.
    pub(super) fn of(offsets: Range<i64>) -> Offsets {
        let mut all = Offsets::default();
        all.add(offsets);
        all
    }

    pub(super) fn add(&mut self, offsets: Range<i64>) {
        if offsets.is_empty() {
            return;
        }
        self.count += offsets.end - offsets.start;
        let is_full = self.ranges.len() == MAX_RANGES;
        match self.ranges.last_mut() {
            Some(last) if is_full || last.end == offsets.start => {
                last.end = offsets.end;
            }
            _ => self.ranges.push(offsets),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether all of these offsets are among them.
    pub(super) fn has(&self, offsets: &Range<i64>) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|lost| lost.start <= offsets.start && offsets.end <= lost.end)
    }

    /// The subject of a sentence about them: `3 lines of topic bob are damaged, offsets 5, 7-8`;
    /// `None` if there are none.
    pub(super) fn sentence(&self, topic: &str, how: &str) -> Option<String> {
        let mut said = match self.count {
            0 => return None,
            1 => format!("1 line of topic {topic} is {how}, offset"),
            count => format!("{count} lines of topic {topic} are {how}, offsets"),
        };
        for (n, range) in self.ranges.iter().take(NAMED_RANGES).enumerate() {
            let (comma, last) = (if n > 0 { "," } else { "" }, range.end - 1);
            // Writing to a String can't fail.
            _ = match last == range.start {
                true => write!(said, "{comma} {last}"),
                false => write!(said, "{comma} {}-{last}", range.start),
            };
        }
        if self.ranges.len() > NAMED_RANGES {
            said.push_str(", …");
        }
        Some(said)
    }
}

/// When a file was last written to, in milliseconds since 1970.
pub(super) fn modified(path: &Path) -> io::Result<i64> {
    let modified = fs::symlink_metadata(path)?.modified()?;
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
