//! One topic, which has one partition: appends messages, reads them, and deletes the oldest.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread, ThreadId};

use super::files::{OpenFiles, append_at};
use super::segment::{Segment, add_to_index, find, modified, walk};
use crate::broker::{Config, lock, message};
use crate::wire::{ErrorCode, code};

/// A topic, and the folder of its segments.
#[derive(Debug)]
pub(in crate::broker) struct Topic {
    dir: PathBuf,
    config: Arc<Config>,
    /// Oldest first; the last is appended to. Empty until the topic is first used. Locked during an
    /// append, and for a read until it is known where to read.
    segments: Mutex<VecDeque<Segment>>,
    /// The threads to wake up when messages are appended. Locked for a look at the list.
    watchers: Mutex<HashMap<ThreadId, Thread>>,
    open_files: Arc<OpenFiles>,
}

impl Topic {
    pub(super) fn new(dir: PathBuf, config: &Arc<Config>, open_files: &Arc<OpenFiles>) -> Topic {
        Topic {
            dir,
            config: Arc::clone(config),
            segments: Mutex::default(),
            watchers: Mutex::default(),
            open_files: Arc::clone(open_files),
        }
    }

    /// The segments: at least one. The first time, they are searched for on disk, and a torn tail is
    /// cut off.
    pub(super) fn segments(&self) -> io::Result<MutexGuard<'_, VecDeque<Segment>>> {
        let mut segments = lock(&self.segments);
        if segments.is_empty() {
            *segments = self.load()?;
        }
        Ok(segments)
    }

    fn load(&self) -> io::Result<VecDeque<Segment>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let base = name.to_str().and_then(|n| n.strip_suffix(".log"));
            if let Some(base) = base.and_then(|b| b.parse().ok()) {
                // Its end is found by `Segment::index`.
                let segment = Segment {
                    len: entry.metadata()?.len(),
                    index: None,
                    ..Segment::new(base)
                };
                // A number that is written in another way is not ours.
                if segment.path(&self.dir).file_name() == Some(&name) {
                    segments.push(segment);
                }
            }
        }
        segments.sort_unstable_by_key(|s| s.base);
        for i in 1..segments.len() {
            segments[i - 1].end = segments[i].base;
        }
        match segments.last_mut() {
            None => segments.push(Segment::new(0)),
            Some(active) => {
                let len = active.len;
                active.index(&self.dir)?;
                if active.len < len {
                    let file = File::options().write(true).open(active.path(&self.dir));
                    file?.set_len(active.len)?;
                }
            }
        }
        Ok(segments.into())
    }

    /// Appends a message set in one write, after setting the offsets of its messages. Returns the
    /// first offset.
    pub(in crate::broker) fn append(&self, set: &mut [u8]) -> Result<i64, ErrorCode> {
        message::check_set(set)?;
        let mut segments = self.segments()?;
        let base_offset = offsets(&segments).end;
        let size = set.len() as u64;
        let full = |s: &&Segment| s.len > 0 && s.len + size > self.config.segment_bytes;
        if let Some(full) = segments.back().filter(full) {
            self.open_files.close(&full.path(&self.dir));
            segments.push_back(Segment::new(base_offset));
        }
        let last = segments.len() - 1;
        let active = &mut segments[last];
        let (mut file, mut found) = self.open_files.open(active.path(&self.dir))?;
        if found.len() < active.len {
            // The file was deleted or cut. Its messages are lost; the offsets go on.
            self.open_files.close(&active.path(&self.dir));
            *active = Segment::new(base_offset);
            (file, found) = self.open_files.open(active.path(&self.dir))?;
        }
        let index = active.index.get_or_insert_default();
        let indexed = index.len();
        let end = message::assign_offsets(set, base_offset, |offset, at| {
            add_to_index(index, offset, active.len + at as u64);
        });
        append_at(&file, &found, active.len, set).inspect_err(|_| index.truncate(indexed))?;
        active.newest = (base_offset, active.len);
        active.len += size;
        active.end = end;
        self.delete_oldest(&mut segments);
        drop(segments);
        let mut watchers = lock(&self.watchers);
        watchers.drain().for_each(|(_, thread)| thread.unpark());
        Ok(base_offset)
    }

    /// Deletes the oldest segments, as long as the others have all that has to be kept.
    fn delete_oldest(&self, segments: &mut VecDeque<Segment>) {
        let mut total: u64 = segments.iter().map(|s| s.len).sum();
        while segments.len() > 1 && total - segments[0].len >= self.config.retention_bytes {
            // A file that cannot be deleted is found again at the next start, and retried. That is
            // better than a failed append.
            let _ = fs::remove_file(segments[0].path(&self.dir));
            total -= segments[0].len;
            segments.pop_front();
        }
    }

    /// The offsets that can be read: from the oldest message kept to the end of the log.
    pub(in crate::broker) fn offsets(&self) -> io::Result<Range<i64>> {
        Ok(offsets(&*self.segments()?))
    }

    /// Reads messages from `offset` on and adds them to `out`: at most `max_bytes`, so that the last
    /// message can be cut. Returns the end of the log.
    pub(in crate::broker) fn read(
        &self,
        offset: i64,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<i64, ErrorCode> {
        let mut segments = self.segments()?;
        let readable = offsets(&segments);
        if offset == readable.end {
            return Ok(readable.end);
        }
        if !readable.contains(&offset) {
            return Err(code::OFFSET_OUT_OF_RANGE);
        }
        let mut i = segments.partition_point(|s| s.base <= offset) - 1;
        segments[i].index(&self.dir)?;
        if segments[i].end <= offset && i + 1 < segments.len() {
            // The end of this segment is damaged: reading goes on after the gap, as in Kafka.
            i += 1;
        }
        let segment = &mut segments[i];
        let (path, len, newest) = (segment.path(&self.dir), segment.len, segment.newest);
        let index = segment.index(&self.dir)?;
        let next = index.partition_point(|(indexed, _)| *indexed <= offset);
        let floor = next.checked_sub(1).map(|floor| index[floor]);
        let newest = Some(newest).filter(|(first, _)| *first <= offset);
        // After a gap there is neither: reading starts at the segment's first message.
        let (indexed, from) = floor.max(newest).unwrap_or((offset, 0));
        let to = index.get(next).map_or(len, |(_, at)| *at);
        let open = self.open_files.get(&path);
        drop(segments);

        let start = out.len();
        let file = open.map_or_else(|| File::open(path).map(Arc::new), Ok);
        let read = file.and_then(|file| {
            let at = match indexed == offset {
                true => from,
                false => find(&file, from..to, offset)?,
            };
            let size = usize::try_from(len - at).unwrap_or(usize::MAX);
            out.resize(start + size.min(max_bytes), 0);
            file.read_exact_at(&mut out[start..], at)
        });
        read.map(|()| readable.end).map_err(|error| {
            out.truncate(start);
            // The segment may have been deleted just now, to make room for newer messages.
            match self.offsets() {
                Ok(readable) if offset < readable.start => code::OFFSET_OUT_OF_RANGE,
                _ => error.into(),
            }
        })
    }

    /// The first message whose timestamp is `time` (milliseconds since 1970) or later: its offset
    /// and its timestamp. Messages of magic 0 have none, and are never found.
    ///
    /// Segments that were last written to before `time` are not read.
    pub(in crate::broker) fn first_since(&self, time: i64) -> io::Result<Option<(i64, i64)>> {
        let mut found = None;
        for (base, path) in self.paths()? {
            if found.is_none() && modified(&path)? >= time {
                walk(&path, base, |offset, _, message| {
                    let timestamp = message::timestamp(message).filter(|found| *found >= time);
                    found = timestamp.map(|timestamp| (offset, timestamp));
                    found.is_none()
                })?;
            }
        }
        Ok(found)
    }

    /// The first offsets of the segments that were last written to at `time` (milliseconds since
    /// 1970) or before, newest first: version 0 of ListOffsets, from before messages had timestamps.
    pub(in crate::broker) fn segments_until(&self, time: i64) -> io::Result<Vec<i64>> {
        let mut bases = Vec::new();
        for (base, path) in self.paths()? {
            if modified(&path)? <= time {
                bases.insert(0, base);
            }
        }
        Ok(bases)
    }

    /// The segments that have messages: their first offset and their file.
    fn paths(&self) -> io::Result<Vec<(i64, PathBuf)>> {
        let segments = self.segments()?;
        let full = segments.iter().filter(|s| s.len > 0);
        Ok(full.map(|s| (s.base, s.path(&self.dir))).collect())
    }

    /// Makes the next append unpark the current thread.
    pub(in crate::broker) fn watch(&self) {
        let current = thread::current();
        lock(&self.watchers).insert(current.id(), current);
    }

    /// Undoes [`Topic::watch`].
    pub(in crate::broker) fn unwatch(&self) {
        lock(&self.watchers).remove(&thread::current().id());
    }
}

/// The offsets that can be read.
fn offsets(segments: &VecDeque<Segment>) -> Range<i64> {
    let start = segments.front().map_or(0, |s| s.base);
    start..segments.back().map_or(start, |s| s.end)
}
