//! One topic, which has one partition: appends messages, reads them, and deletes the oldest.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::mem;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread, ThreadId};

use super::files::OpenFiles;
use super::manifest::Record;
use super::recovery::torn_path;
use super::room::Room;
use super::segment::{Offsets, Segment, add_to_index, modified};
use super::walk::{Bounds, Walk, notes_path, to_notes, whole_notes};
use super::{PARTITION, is_out_of_descriptors, manifest};
use crate::broker::files::{append_at, create, open_to_read};
use crate::broker::message::{self, MIN_BYTES};
use crate::broker::{Config, lock};
use crate::wire::{ErrorCode, code};

/// A topic, and the folder of its segments.
#[derive(Debug)]
pub(in crate::broker) struct Topic {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) config: Arc<Config>,
    /// Oldest first; the last is appended to, and has no damage after its messages. Empty until the
    /// topic is first used. Locked during an append, and for a read until it is known where to read.
    segments: Mutex<VecDeque<Segment>>,
    /// The threads to wake up when messages are appended. Locked for a look at the list.
    pub(super) watchers: Mutex<HashMap<ThreadId, Thread>>,
    pub(super) open_files: Arc<OpenFiles>,
    room: Arc<Room>,
    /// Locked while a topic is loaded. No other lock is taken meanwhile that a thread keeps for long.
    pub(super) loading: Arc<Mutex<()>>,
}

impl Topic {
    pub(super) fn new(
        name: &str,
        dir: &Path,
        config: &Arc<Config>,
        open_files: &Arc<OpenFiles>,
        room: &Arc<Room>,
        loading: &Arc<Mutex<()>>,
    ) -> Topic {
        Topic {
            name: name.to_string(),
            dir: dir.join(format!("{name}{PARTITION}")),
            config: Arc::clone(config),
            segments: Mutex::default(),
            watchers: Mutex::default(),
            open_files: Arc::clone(open_files),
            room: Arc::clone(room),
            loading: Arc::clone(loading),
        }
    }

    /// The folder of its segments.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The segments: at least one. The first time, they are searched for on disk.
    pub(super) fn segments(&self) -> io::Result<MutexGuard<'_, VecDeque<Segment>>> {
        let mut segments = lock(&self.segments);
        if segments.is_empty() {
            *segments = self.load().inspect_err(|error| {
                self.say_failed("read", &self.dir, error);
            })?;
        }
        Ok(segments)
    }

    /// The offset that all in the segment from `base` on, of `len` bytes, stay below.
    pub(super) fn offset_limit(&self, base: i64, len: u64) -> i64 {
        let config = &self.config;
        let most = len.max(config.segment_bytes.max(config.max_request_bytes as u64));
        base + (most / MIN_BYTES as u64) as i64
    }

    /// Appends go to a new segment from now on. Its file is created at once: it keeps the offsets
    /// before it from being given again.
    pub(super) fn push(&self, segments: &mut VecDeque<Segment>, base: i64) -> io::Result<()> {
        let segment = Segment::new(base, self.offset_limit(base, 0));
        create(&segment.path(&self.dir))?;
        if let Some(last) = segments.back_mut() {
            self.open_files.close(&last.path(&self.dir));
            last.next = Some(base);
        }
        segments.push_back(segment);
        Ok(())
    }

    /// Reports why a segment can't be used.
    fn failed(&self, doing: &str, path: &Path, error: io::Error) -> ErrorCode {
        self.say_failed(doing, path, &error);
        error.into()
    }

    fn say_failed(&self, doing: &str, path: &Path, error: &io::Error) {
        let what = match concerns_all_topics(error) {
            true => format!("cannot {doing} the log"),
            false => format!("cannot {doing} {}", path.display()),
        };
        self.say(Some(what), error);
    }

    /// Appends a message set in one write, after a check. Returns the first offset.
    #[cfg(any(test, fuzzing))]
    pub(in crate::broker) fn append(&self, set: &mut [u8]) -> Result<i64, ErrorCode> {
        message::check_set(set)?;
        self.append_checked(set)
    }

    /// Appends a checked message set in one write, after setting the offsets of its messages. Returns the
    /// first offset.
    pub(in crate::broker) fn append_checked(&self, set: &mut [u8]) -> Result<i64, ErrorCode> {
        let mut segments = self.segments()?;
        let size = set.len() as u64;
        let path = |segment: &Segment| segment.path(&self.dir);
        let is_full = |s: &&Segment| s.len > 0 && s.len + size > self.config.segment_bytes;
        if segments.back().is_some_and(|last| is_full(&last)) {
            let next = next_offset(&segments);
            self.push(&mut segments, next)
                .map_err(|e| self.failed("write", &self.dir, e))?;
        }
        let active = path(&segments[segments.len() - 1]);
        let open = || self.open_files.open(active.clone());
        let (mut file, mut found) = open().map_err(|e| self.failed("write", &active, e))?;
        if found.len() < segments[segments.len() - 1].len {
            // The file was deleted or cut. The offsets go on.
            self.reload(&mut segments)
                .map_err(|e| self.failed("read", &self.dir, e))?;
            let active = path(&segments[segments.len() - 1]);
            let open = self.open_files.open(active.clone());
            (file, found) = open.map_err(|e| self.failed("write", &active, e))?;
        }
        let last = segments.len() - 1;
        let records = segments.iter().filter_map(|segment| segment.record);
        let record = segments[last].record.unwrap_or_else(|| Record {
            place: manifest::free_place(records),
            end: segments[last].end,
            first: message::checksum(set).filter(|_| segments[last].len == 0),
        });
        let active = &mut segments[last];
        let (base_offset, start) = (active.end, active.len);
        let index = active.index.get_or_insert_default();
        let indexed = index.len();
        let end = message::assign_offsets(set, base_offset, |offset, at| {
            add_to_index(index, offset, start + at as u64);
        });
        let record = Record { end, ..record };
        let written = self.room.take(size).and_then(|()| {
            let noted = self.note_lookalikes(active, set);
            let written = noted.and_then(|()| append_at(&file, &found, start, set));
            let written = written.and_then(|()| {
                let recorded = self.record(active.base, &record);
                // It is not acknowledged, and would be there twice when it is sent again.
                recorded.inspect_err(|_| _ = file.set_len(start))
            });
            written.inspect_err(|_| self.room.give_back(size))
        });
        if let Err(error) = written {
            active.index.get_or_insert_default().truncate(indexed);
            return Err(self.failed("write", &path(active), error));
        }
        active.record = Some(record);
        active.newest = (base_offset, start);
        active.latest = active.latest.max(message::latest_timestamp(set));
        active.len += size;
        active.end = end;
        self.delete_oldest(&mut segments);
        drop(segments);
        let watchers = mem::take(&mut *lock(&self.watchers));
        watchers.into_values().for_each(|thread| thread.unpark());
        Ok(base_offset)
    }

    /// Writes to the manifest what is known of the segment from `base` on.
    fn record(&self, base: i64, record: &Record) -> io::Result<()> {
        let (file, _) = self.open_files.open(manifest::path(&self.dir))?;
        manifest::write(&file, base, record)
    }

    /// Notes the places of messages that have bytes in them which a walk could take for a message.
    fn note_lookalikes(&self, active: &Segment, set: &[u8]) -> io::Result<()> {
        let (mut at, mut places) = (active.len, Vec::new());
        let offsets = active.base + 1..active.offset_limit;
        for message in message::messages(set) {
            let end = at + message.len() as u64;
            if message::has_lookalike(message, &offsets) {
                places.push(at..end);
            }
            at = end;
        }
        if places.is_empty() {
            return Ok(());
        }
        let file = create(&notes_path(&active.path(&self.dir)))?;
        let found = file.metadata()?;
        append_at(&file, &found, whole_notes(found.len()), &to_notes(&places))
    }

    /// Deletes the oldest segments, as long as the others have all that has to be kept.
    fn delete_oldest(&self, segments: &mut VecDeque<Segment>) {
        let mut total = total(segments);
        while segments.len() > 1 && total - segments[0].len >= self.config.retention_bytes {
            // A file that cannot be deleted is found again at the next start, and retried. That is
            // better than a failed append.
            let path = segments[0].path(&self.dir);
            for path in [&path, &notes_path(&path), &torn_path(&path)] {
                let _ = fs::remove_file(path);
            }
            total -= segments[0].len;
            self.room.give_back(segments[0].len);
            segments.pop_front();
        }
    }

    /// The offsets that can be read: from the oldest message kept to the end of the log, which is
    /// after the last intact message. The next message can have a larger one.
    pub(in crate::broker) fn offsets(&self) -> io::Result<Range<i64>> {
        Ok(offsets(&*self.segments()?))
    }

    /// Reads messages from `offset` on, or from the next one that is intact, and adds them to `out`:
    /// as many bytes as `room` gives when asked for all that there are, so that the last message can be
    /// cut. Returns the end of the log.
    pub(in crate::broker) fn read(
        &self,
        offset: i64,
        mut room: impl FnMut(usize) -> usize,
        out: &mut Vec<u8>,
    ) -> Result<i64, ErrorCode> {
        let start = out.len();
        let mut is_reloaded = false;
        loop {
            let mut segments = self.segments()?;
            let readable = offsets(&segments);
            if !(readable.start..=next_offset(&segments)).contains(&offset) {
                return Err(code::OFFSET_OUT_OF_RANGE);
            }
            let found = match offset < readable.end {
                true => self.find(&mut segments, offset),
                false => return Ok(readable.end),
            };
            let end = offsets(&segments).end;
            drop(segments);
            let read = match found {
                Ok(None) => return Ok(end),
                Ok(Some(extent)) => extent.read(offset, &mut room, out),
                Err(error) => Err(error),
            };
            match read {
                Ok(true) => return Ok(end),
                // Damage that was not known is reported once the segment is read again.
                Ok(false) | Err(_) if !is_reloaded => {
                    out.truncate(start);
                    let mut segments = self.segments()?;
                    // The segment may have been deleted just now, to make room for newer messages.
                    if offset >= offsets(&segments).start {
                        self.reload(&mut segments)?;
                    }
                    is_reloaded = true;
                }
                Ok(false) => return Ok(end),
                Err(error) => {
                    out.truncate(start);
                    return Err(self.failed("read", &self.dir, error));
                }
            }
        }
    }

    /// Whether a read from `offset` on looks at no more than `bytes`: the client follows the end of the log.
    pub(in crate::broker) fn reads_at_most(&self, offset: i64, bytes: u64) -> bool {
        let segments = lock(&self.segments);
        segments.back().is_some_and(|last| {
            let (first, at) = last.newest;
            first <= offset && last.len - at <= bytes
        })
    }

    /// Where to read from `offset` on; `None` if no intact message is left there.
    fn find(&self, segments: &mut VecDeque<Segment>, offset: i64) -> io::Result<Option<Extent>> {
        let mut i = segments.partition_point(|s| s.base <= offset) - 1;
        loop {
            self.check(&mut segments[i])?;
            if segments[i].end > offset {
                break;
            }
            i += 1;
            if i == segments.len() {
                return Ok(None);
            }
        }
        let segment = &segments[i];
        let index = segment.index.as_deref().unwrap_or_default();
        let next = index.partition_point(|(indexed, _)| *indexed <= offset);
        let floor = next.checked_sub(1).map(|floor| index[floor]);
        let newest = Some(segment.newest).filter(|(first, _)| *first <= offset);
        let path = segment.path(&self.dir);
        Ok(Some(Extent {
            base: segment.base,
            file: self.open_files.get(&path),
            path,
            from: floor.max(newest).unwrap_or((segment.base, 0)),
            bounds: segment.bounds(),
            repaired: segment.repaired.clone(),
            lost: segment.lost.clone(),
        }))
    }

    /// The first message whose timestamp is `time` (milliseconds since 1970) or later: its offset
    /// and its timestamp. Messages of magic 0 have none, and are never found.
    ///
    /// Skips segments that are known to have no such message. Before it reads any other, it calls `wait_turn`, and keeps
    /// the result until it has read that segment.
    pub(in crate::broker) fn first_since<T>(
        &self,
        time: i64,
        mut wait_turn: impl FnMut() -> io::Result<T>,
    ) -> io::Result<Option<(i64, i64)>> {
        let may_have = |s: &&Segment| s.index.is_none() || s.latest >= time;
        let bases = |it: &Segment| it.base;
        let all: Vec<_> = self
            .segments()?
            .iter()
            .filter(may_have)
            .map(bases)
            .collect();
        for base in all {
            let _turn = wait_turn()?;
            let mut segments = self.segments()?;
            // It may have been deleted meanwhile, to make room for newer messages.
            let Ok(i) = segments.binary_search_by_key(&base, bases) else {
                continue;
            };
            self.check(&mut segments[i])?;
            let segment = &segments[i];
            if !may_have(&segment) {
                continue;
            }
            let (path, bounds) = (segment.path(&self.dir), segment.bounds());
            drop(segments);
            let file = open_to_read(&path)?;
            let mut walk = Walk::new(&file, &path, (base, 0), bounds);
            while let Some((offset, _, message)) = walk.next()? {
                if let Some(found) = message::timestamp(message).filter(|found| *found >= time) {
                    return Ok(Some((offset, found)));
                }
            }
        }
        Ok(None)
    }

    /// The first offsets of the segments that were last written to at `time` (milliseconds since
    /// 1970) or before, newest first: version 0 of ListOffsets, from before messages had timestamps.
    pub(in crate::broker) fn segments_until(&self, time: i64) -> io::Result<Vec<i64>> {
        let mut bases = Vec::new();
        let segments = self.segments()?;
        for segment in segments.iter().filter(|s| s.len > 0) {
            if modified(&segment.path(&self.dir))? <= time {
                bases.insert(0, segment.base);
            }
        }
        Ok(bases)
    }

    /// Makes the next append unpark the current thread.
    pub(in crate::broker) fn watch(&self) {
        let current = thread::current();
        lock(&self.watchers).insert(current.id(), current);
    }

    /// Undoes [`Topic::watch`].
    pub(in crate::broker) fn unwatch(&self) {
        let mut watchers = lock(&self.watchers);
        watchers.remove(&thread::current().id());
        if watchers.is_empty() {
            // There can be thousands of topics, each of which a thousand connections have watched.
            *watchers = HashMap::new();
        }
    }
}

/// A part of a segment, to be read without a lock.
struct Extent {
    base: i64,
    path: PathBuf,
    file: Option<Arc<File>>,
    /// Where the search begins: an offset, and the byte at which its message starts.
    from: (i64, u64),
    bounds: Bounds,
    repaired: Offsets,
    lost: Offsets,
}

impl Extent {
    /// Reads as [`Topic::read`] does. Stops before a message whose offset in the file is wrong, unless that is the first,
    /// whose offset is repaired. Returns false if it skipped or repaired damage that is not known yet.
    fn read(
        self,
        offset: i64,
        room: &mut impl FnMut(usize) -> usize,
        out: &mut Vec<u8>,
    ) -> io::Result<bool> {
        let file = match self.file {
            Some(file) => file,
            None => Arc::new(open_to_read(&self.path)?),
        };
        let mut walk = Walk::new(&file, &self.path, self.from, self.bounds);
        let (first, at, is_repaired) = loop {
            match walk.next()? {
                None => return Ok(false),
                Some((found, at, message)) if found >= offset => {
                    break (found, at, !message::has_offset(message, found));
                }
                Some(_) => {}
            }
        };
        let start = out.len();
        let size = usize::try_from(self.bounds.len - at).unwrap_or(usize::MAX);
        drop(walk);
        let wanted = room(size);
        out.try_reserve_exact(wanted)?;
        out.resize(start + wanted, 0);
        file.read_exact_at(&mut out[start..], at)?;
        message::set_offset(&mut out[start..], first);
        let intact = message::intact_bytes(&out[start..], first);
        // At the end of the file nothing is cut.
        if size <= wanted || !message::is_cut(&out[start + intact..]) {
            out.truncate(start + intact);
        }
        // Damage before the base belongs to the segment before.
        let from = offset.max(self.base);
        let is_known = |it: &Offsets, offsets: Range<i64>| offsets.is_empty() || it.has(&offsets);
        Ok(is_known(&self.lost, from..first)
            && (!is_repaired || is_known(&self.repaired, first..first + 1)))
    }
}

/// Whether the error has a cause that every topic meets. Such a sentence names none: there are more topics than
/// sentences that are ever said.
pub(super) fn concerns_all_topics(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::OutOfMemory
    ) || is_out_of_descriptors(error)
}

/// The offsets that can be read.
fn offsets(segments: &VecDeque<Segment>) -> Range<i64> {
    let start = segments.front().map_or(0, |s| s.base);
    let last = segments.iter().rfind(|s| s.has_messages());
    start..last.map_or(start, |s| s.end)
}

/// The offset that the next message gets.
pub(super) fn next_offset(segments: &VecDeque<Segment>) -> i64 {
    segments.back().map_or(0, |s| s.end)
}

/// How many bytes the segments have.
pub(super) fn total(segments: &VecDeque<Segment>) -> u64 {
    segments.iter().map(|s| s.len).sum()
}
