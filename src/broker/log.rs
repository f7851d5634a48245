//! The log on disk: a folder a topic, in it segment files that are only ever appended to.
//!
//! A segment is a message set and nothing else, named by the offset of its first message, as in
//! Kafka. What is in memory is only where every [`INDEX_INTERVAL`] bytes a message starts, which is
//! made when a segment is first needed: a large log opens as fast as a small one. And where the
//! newest messages lie: who waits for these reads nothing else.
//!
//! The files that were appended to last stay open; every other one is open for the length of one
//! operation, so that a thousand topics need no descriptors. Before an append it is asked whether
//! the path still leads to the open file: a folder that is deleted is noticed.
//!
//! Appended means written to the file, not synced to the disk: it survives the end of the process
//! in any way, but not a power cut. The tail that either may leave torn is cut off by its checksum.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufReader, Read, Write};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, Thread};
use std::time::UNIX_EPOCH;

use super::message::{self, Refused};
use crate::error::{Error, Result};
use crate::name::Name;

/// How many bytes of a segment at least lie between two messages in its index: the most that is
/// read to find one. The index takes a thousandth of the log.
const INDEX_INTERVAL: u64 = 16 * 1024;

/// How many files stay open between two appends.
pub(super) const MAX_OPEN: usize = 16;

/// What stands behind a topic's name in the name of its folder: Kafka's number of the partition.
const PARTITION: &str = "-0";

/// How much of a topic is kept, and in which pieces.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// When a topic takes more, its oldest segments are deleted.
    pub(super) retention_bytes: u64,
    /// When a segment would take more, the next one is begun.
    pub(super) segment_bytes: u64,
    /// How many topics there can be.
    pub(super) max_topics: usize,
}

/// All topics in one data directory, which no other process uses meanwhile.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    limits: Limits,
    id: u32,
    lock: File,
    topics: RwLock<BTreeMap<String, Arc<Topic>>>,
    open_files: Arc<OpenFiles>,
}

/// Why a topic can't be created.
#[derive(Debug)]
pub(super) enum NotCreated {
    /// Its name is not one that a topic can have.
    Name,
    /// There are as many as there can be.
    TooMany,
    /// Its folder can't be made.
    Io,
}

/// Why messages were not appended. None of them is in the log.
#[derive(Debug)]
pub(super) enum NotAppended {
    /// They are not what can be appended.
    Refused(Refused),
    /// They can't be written.
    Io,
}

/// Why messages can't be read.
#[derive(Debug)]
pub(super) enum NotRead {
    /// The log ends before that offset, or no longer reaches back to it.
    OutOfRange,
    /// The file can't be read.
    Io,
}

impl Log {
    /// Opens the log in `dir`, which is made where there is none, for a broker at `address`.
    ///
    /// Fails when the directory can't be made or written, or when another broker has it open.
    pub(super) fn open(dir: &Path, address: &str, limits: Limits) -> Result<Log> {
        let failed = |why: &dyn std::fmt::Display| {
            Error::failed(
                format_args!("cannot use {} for the broker's log", dir.display()),
                why,
            )
        };
        let unusable =
            |e: io::Error| failed(&e).hint("Name a directory that can be written with --data-dir.");
        make_dir(dir).map_err(unusable)?;
        let lock_file = dir.join(".lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_file)
            .map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(e)) => return Err(unusable(e)),
            Err(TryLockError::WouldBlock) => {
                // Where locks bind everyone, the file can't be read either: then it stays unsaid.
                let mut other = String::new();
                let _ = lock.read_to_string(&mut other);
                let other = other.trim();
                return Err(if other.is_empty() {
                    failed(&"another broker is using it")
                        .hint("Name another directory with --data-dir.")
                } else {
                    failed(&format_args!("the broker at {other} is using it")).hint(format_args!(
                        "Talk to that one with -b {other}, or name another directory with --data-dir."
                    ))
                });
            }
        }
        let write_address = |lock: &mut File| {
            lock.set_len(0)?;
            lock.write_all(address.as_bytes())
        };
        write_address(&mut lock).map_err(unusable)?;
        let id = match id(dir) {
            Some(id) => id,
            None => make_id(dir).map_err(unusable)?,
        };
        let open_files = Arc::default();
        let mut topics = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(unusable)? {
            let entry = entry.map_err(unusable)?;
            let file_name = entry.file_name();
            let name = file_name.to_str().and_then(|n| n.strip_suffix(PARTITION));
            if let Some(name) = name.filter(|n| n.parse::<Name>().is_ok()) {
                let topic = Topic::new(entry.path(), limits, &open_files);
                topics.insert(name.to_string(), Arc::new(topic));
            }
        }
        Ok(Log {
            dir: dir.to_path_buf(),
            limits,
            id,
            lock,
            topics: RwLock::new(topics),
            open_files,
        })
    }

    /// Its identity.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Lets another broker open the log. Nothing may be appended any more.
    pub(super) fn release(&self) {
        self.open_files.close();
        // An error leaves it locked until this is dropped.
        let _ = self.lock.unlock();
    }

    /// Another handle to the file that is locked: a descriptor that costs nothing else.
    pub(super) fn spare_descriptor(&self) -> io::Result<File> {
        self.lock.try_clone()
    }

    /// The names of all topics, sorted.
    pub(super) fn topic_names(&self) -> Vec<String> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.keys().cloned().collect()
    }

    /// The topic, if there is one of that name.
    pub(super) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.get(name).cloned()
    }

    /// Creates the topic, if there is none of that name.
    pub(super) fn create_topic(&self, name: &str) -> Result<(), NotCreated> {
        if self.topic(name).is_some() {
            return Ok(());
        }
        if name.parse::<Name>().is_err() {
            return Err(NotCreated::Name);
        }
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        if topics.contains_key(name) {
            return Ok(());
        }
        if topics.len() >= self.limits.max_topics {
            return Err(NotCreated::TooMany);
        }
        let dir = self.dir.join(format!("{name}{PARTITION}"));
        // A folder that is there already is another topic's, on a disk where `Bob` is `bob`.
        fs::create_dir(&dir).map_err(|_| NotCreated::Io)?;
        let topic = Topic::new(dir, self.limits, &self.open_files);
        topics.insert(name.to_string(), Arc::new(topic));
        Ok(())
    }
}

/// Makes the directory, for its owner only.
fn make_dir(dir: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// Where the log's identity is kept, as Kafka keeps its `cluster.id`.
const META: &str = "meta.properties";
const LOG_ID: &str = "log.id=";

/// The identity of the log in `dir`, if there is one.
pub(super) fn id(dir: &Path) -> Option<u32> {
    let meta = fs::read_to_string(dir.join(META)).ok()?;
    let id = meta.lines().find_map(|line| line.strip_prefix(LOG_ID))?;
    id.parse().ok().filter(|id| id >> super::LOG_ID_BITS == 0)
}

/// Gives the log in `dir` an identity. It is there whole or not at all.
fn make_id(dir: &Path) -> io::Result<u32> {
    // The keys of a hasher are the random numbers of the standard library.
    let random = RandomState::new().build_hasher().finish();
    let id = (random as u32) >> (u32::BITS - super::LOG_ID_BITS);
    let new = dir.join(format!("{META}.new"));
    fs::write(&new, format!("{LOG_ID}{id}\n"))?;
    fs::rename(new, dir.join(META))?;
    Ok(id)
}

/// Appends `bytes` to what are the first `len` bytes of the file, which has `found` now. In case of
/// an error it has these first bytes and no more, at the latest when the next append begins.
pub(super) fn append_at(file: &File, found: &Metadata, len: u64, bytes: &[u8]) -> io::Result<()> {
    if found.len() > len {
        file.set_len(len)?;
    }
    file.write_all_at(bytes, len).inspect_err(|_| {
        let _ = file.set_len(len);
    })
}

/// The files that were appended to last, at most [`MAX_OPEN`].
#[derive(Debug, Default)]
struct OpenFiles(Mutex<VecDeque<OpenFile>>);

/// A file to append to and to read.
#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    /// Device and inode, which no other file has as long as this one is open.
    identity: (u64, u64),
    file: Arc<File>,
}

impl OpenFiles {
    fn files(&self) -> MutexGuard<'_, VecDeque<OpenFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file at `path`, which is made where there is none, and what is known of it now. It is no
    /// longer among these; [`keep`](OpenFiles::keep) puts it back.
    fn take(&self, path: PathBuf) -> io::Result<(OpenFile, Metadata)> {
        let identity = |found: &Metadata| (found.dev(), found.ino());
        if let Some(open) = self.remove(&path)
            && let Ok(found) = fs::metadata(&path)
            && identity(&found) == open.identity
        {
            return Ok((open, found));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path)?;
        let found = file.metadata()?;
        let open = OpenFile {
            path,
            identity: identity(&found),
            file: Arc::new(file),
        };
        Ok((open, found))
    }

    /// Keeps a file open until others have been appended to since.
    fn keep(&self, file: OpenFile) {
        let mut files = self.files();
        files.push_back(file);
        if files.len() > MAX_OPEN {
            files.pop_front();
        }
    }

    /// The file at `path`, if it is open.
    fn get(&self, path: &Path) -> Option<Arc<File>> {
        let files = self.files();
        let open = files.iter().find(|open| open.path == path)?;
        Some(Arc::clone(&open.file))
    }

    fn remove(&self, path: &Path) -> Option<OpenFile> {
        let mut files = self.files();
        let at = files.iter().position(|open| open.path == path)?;
        files.remove(at)
    }

    fn close(&self) {
        self.files().clear();
    }
}

/// One topic, which is one partition.
#[derive(Debug)]
pub(super) struct Topic {
    dir: PathBuf,
    limits: Limits,
    /// Oldest first, and the last is the one that is appended to; none as long as the topic has not
    /// been used.
    segments: Mutex<VecDeque<Segment>>,
    /// The threads to wake when there are new messages.
    waiting: Mutex<Vec<Thread>>,
    open_files: Arc<OpenFiles>,
}

#[derive(Debug)]
struct Segment {
    /// The offset of its first message, which is its name.
    base: i64,
    /// The offset behind its last message.
    end: i64,
    /// How many bytes of the file are messages.
    len: u64,
    /// Offsets, and at which byte they lie; `None` as long as it has not been needed.
    index: Option<Index>,
    /// The same for what was appended last, or for the segment's first message.
    newest: (i64, u64),
}

type Index = Vec<(i64, u64)>;

/// Notes in the index where a message lies, if the last one noted lies far enough before.
fn note(index: &mut Index, offset: i64, at: u64) {
    if index
        .last()
        .is_none_or(|(_, last)| at - last >= INDEX_INTERVAL)
    {
        index.push((offset, at));
    }
}

impl Segment {
    fn new(base: i64) -> Segment {
        Segment {
            base,
            end: base,
            len: 0,
            index: Some(Index::new()),
            newest: (base, 0),
        }
    }

    fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{:020}.log", self.base))
    }

    /// Its index, for which it is read if need be. Then its end is where the last message ends that
    /// is whole, which can be earlier than thought.
    fn index(&mut self, dir: &Path) -> io::Result<&Index> {
        if self.index.is_none() {
            let mut index = Index::new();
            let (end, len) = walk(&self.path(dir), self.base, |offset, at, _| {
                note(&mut index, offset, at);
                ControlFlow::Continue(())
            })?;
            (self.end, self.len, self.index) = (end, len, Some(index));
        }
        Ok(self.index.get_or_insert_default())
    }
}

/// Shows the messages of a segment, each with its offset and the byte at which it starts, as long as
/// they are whole and the answer is to go on. Returns the offset and the byte behind the last.
fn walk(
    path: &Path,
    base: i64,
    mut each: impl FnMut(i64, u64, &[u8]) -> ControlFlow<()>,
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
        if message::check(&message).is_err() || each(offset, at, &message).is_break() {
            break;
        }
        offset += 1;
        at += size as u64;
    }
    Ok((offset, at))
}

impl Topic {
    fn new(dir: PathBuf, limits: Limits, open_files: &Arc<OpenFiles>) -> Topic {
        Topic {
            dir,
            limits,
            segments: Mutex::default(),
            waiting: Mutex::default(),
            open_files: Arc::clone(open_files),
        }
    }

    /// The segments: at least one. The first time they are looked for on disk, and a torn tail is cut.
    fn segments(&self) -> io::Result<MutexGuard<'_, VecDeque<Segment>>> {
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
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
                let segment = Segment {
                    base,
                    end: base,
                    len: entry.metadata()?.len(),
                    index: None,
                    newest: (base, 0),
                };
                // Any other spelling of the number is not ours.
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
                    let file = OpenOptions::new()
                        .write(true)
                        .open(active.path(&self.dir))?;
                    file.set_len(active.len)?;
                }
            }
        }
        Ok(segments.into())
    }

    /// Appends a message set in one write, after giving its messages their offsets, of which the
    /// first is returned.
    pub(super) fn append(&self, set: &mut [u8]) -> Result<i64, NotAppended> {
        message::check_set(set).map_err(NotAppended::Refused)?;
        let mut segments = self.segments().map_err(|_| NotAppended::Io)?;
        let base_offset = offsets(&segments).end;
        let size = set.len() as u64;
        let full = |s: &&Segment| s.len > 0 && s.len + size > self.limits.segment_bytes;
        if let Some(full) = segments.back().filter(full) {
            self.open_files.remove(&full.path(&self.dir));
            segments.push_back(Segment::new(base_offset));
        }
        let last = segments.len() - 1;
        let active = &mut segments[last];
        let mut taken = self.open_files.take(active.path(&self.dir));
        if taken
            .as_ref()
            .is_ok_and(|(_, found)| found.len() < active.len)
        {
            // Somebody has deleted or cut the file. Its messages are gone; offsets go on.
            *active = Segment::new(base_offset);
            taken = self.open_files.take(active.path(&self.dir));
        }
        let index = active.index.get_or_insert_default();
        let indexed = index.len();
        let end = message::assign_offsets(set, base_offset, |offset, at| {
            note(index, offset, active.len + at as u64);
        });
        let written = taken.and_then(|(open, found)| {
            append_at(&open.file, &found, active.len, set)?;
            self.open_files.keep(open);
            Ok(())
        });
        if written.is_err() {
            index.truncate(indexed);
            return Err(NotAppended::Io);
        }
        active.newest = (base_offset, active.len);
        active.len += size;
        active.end = end;
        self.retain(&mut segments);
        drop(segments);
        self.wake();
        Ok(base_offset)
    }

    /// Deletes the oldest segments, as long as what remains is all that has to be kept.
    fn retain(&self, segments: &mut VecDeque<Segment>) {
        let mut total: u64 = segments.iter().map(|s| s.len).sum();
        while segments.len() > 1 && total - segments[0].len >= self.limits.retention_bytes {
            // A file that can't be deleted is there again after the next start, and tried again;
            // that is better than to fail the append.
            let _ = fs::remove_file(segments[0].path(&self.dir));
            total -= segments[0].len;
            segments.pop_front();
        }
    }

    /// The offsets that can be read: from that of the oldest message kept to the one behind the
    /// newest.
    pub(super) fn offsets(&self) -> io::Result<Range<i64>> {
        Ok(offsets(&*self.segments()?))
    }

    /// Reads messages from `offset` on and adds them to `out`: at most `max_bytes`, by which the
    /// last can be cut. Returns the offset behind the newest message in the log.
    pub(super) fn read(
        &self,
        offset: i64,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<i64, NotRead> {
        let mut segments = self.segments().map_err(|_| NotRead::Io)?;
        let readable = offsets(&segments);
        if offset == readable.end {
            return Ok(readable.end);
        }
        if !readable.contains(&offset) {
            return Err(NotRead::OutOfRange);
        }
        let mut i = segments.partition_point(|s| s.base <= offset) - 1;
        segments[i].index(&self.dir).map_err(|_| NotRead::Io)?;
        if segments[i].end <= offset && i + 1 < segments.len() {
            // Its end was not whole: go on behind the gap, as Kafka does.
            i += 1;
        }
        let segment = &mut segments[i];
        let (path, len, newest) = (segment.path(&self.dir), segment.len, segment.newest);
        let index = segment.index(&self.dir).map_err(|_| NotRead::Io)?;
        let behind = index.partition_point(|(indexed, _)| *indexed <= offset);
        let floor = behind.checked_sub(1).map(|floor| index[floor]);
        let newest = Some(newest).filter(|(noted, _)| *noted <= offset);
        // Neither, behind a gap: then it is the segment's first message.
        let (noted, from) = floor.max(newest).unwrap_or((offset, 0));
        let to = index.get(behind).map_or(len, |(_, at)| *at);
        let open = self.open_files.get(&path);
        drop(segments);

        let start = out.len();
        let file = open.map_or_else(|| File::open(path).map(Arc::new), Ok);
        let read = file.and_then(|file| {
            let at = if noted == offset {
                from
            } else {
                find(&file, from..to, offset)?
            };
            let size = usize::try_from(len - at).unwrap_or(usize::MAX);
            out.resize(start + size.min(max_bytes), 0);
            file.read_exact_at(&mut out[start..], at)
        });
        match read {
            Ok(()) => Ok(readable.end),
            Err(_) => {
                out.truncate(start);
                // Deleted in this moment, because newer messages need the room?
                let start = self.offsets().map_or(0, |offsets| offsets.start);
                Err(if offset < start {
                    NotRead::OutOfRange
                } else {
                    NotRead::Io
                })
            }
        }
    }

    /// The first message that is as young as `time` (milliseconds since 1970) or younger: its offset
    /// and its time. Messages of magic 0 have no time, and are never found.
    ///
    /// Segments last written to before `time` are not looked into.
    pub(super) fn first_since(&self, time: i64) -> io::Result<Option<(i64, i64)>> {
        for (base, path) in self.paths()? {
            if modified(&path)? < time {
                continue;
            }
            let mut found = None;
            walk(&path, base, |offset, _, message| {
                match message::timestamp(message) {
                    Some(timestamp) if timestamp >= time => {
                        found = Some((offset, timestamp));
                        ControlFlow::Break(())
                    }
                    _ => ControlFlow::Continue(()),
                }
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The offsets at which segments begin that were last written to before `time` (milliseconds
    /// since 1970), newest first: all that a client of before there were timestamps can ask for.
    pub(super) fn segments_until(&self, time: i64) -> io::Result<Vec<i64>> {
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

    /// From now on the current thread is unparked by the next append.
    pub(super) fn watch(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let current = thread::current();
        if !waiting.iter().any(|thread| thread.id() == current.id()) {
            waiting.push(current);
        }
    }

    /// The current thread needs no more unparking.
    pub(super) fn unwatch(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let current = thread::current().id();
        waiting.retain(|thread| thread.id() != current);
    }

    fn wake(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.drain(..).for_each(|thread| thread.unpark());
    }
}

/// The offsets that can be read.
fn offsets(segments: &VecDeque<Segment>) -> Range<i64> {
    let start = segments.front().map_or(0, |s| s.base);
    start..segments.back().map_or(start, |s| s.end)
}

/// At which byte the first message lies whose offset is `offset` or higher, when one indexed before
/// it lies at `within.start`, and the next indexed one, or the end, at `within.end`.
fn find(file: &File, within: Range<u64>, offset: i64) -> io::Result<u64> {
    // No message starts later than this without being in the index.
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
fn modified(path: &Path) -> io::Result<i64> {
    let modified = fs::metadata(path)?.modified()?;
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::{any_message, encode};
    use super::*;
    use proptest::prelude::*;
    use tempfile::TempDir;

    const LIMITS: Limits = Limits {
        retention_bytes: u64::MAX,
        segment_bytes: 300,
        max_topics: 100,
    };

    fn open(dir: &TempDir, limits: Limits) -> Log {
        Log::open(dir.path(), "127.0.0.1:9092", limits).unwrap()
    }

    /// The topic `bob`, which is made if need be.
    fn bob(log: &Log) -> Arc<Topic> {
        log.create_topic("bob").unwrap();
        log.topic("bob").unwrap()
    }

    /// Everything that can be read from `offset` on, in reads of `max_bytes` or a little more, split
    /// into messages without their offsets, which are checked.
    fn read_from(topic: &Topic, mut offset: i64, max_bytes: usize) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let end = topic.offsets().unwrap().end;
        let mut max_bytes = max_bytes;
        while offset < end {
            let mut set = Vec::new();
            assert_eq!(topic.read(offset, max_bytes, &mut set).unwrap(), end);
            assert!(set.len() <= max_bytes);
            let before = offset;
            let mut rest = set.as_slice();
            while let Some((found, size)) = message::header(rest)
                && size <= rest.len()
            {
                assert_eq!(found, offset);
                messages.push(rest[8..size].to_vec());
                rest = &rest[size..];
                offset += 1;
            }
            if offset == before {
                max_bytes *= 2;
            }
        }
        messages
    }

    fn without_offset(messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
        messages.iter().map(|m| m[8..].to_vec()).collect()
    }

    fn numbered(n: usize) -> Vec<u8> {
        encode(None, Some(b"alice"), Some(format!("line {n}").as_bytes()))
    }

    /// A segment's files by name, sorted.
    fn files(dir: &TempDir) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir.path().join("bob-0")).unwrap();
        let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_was_appended_is_read_from_every_offset_also_after_a_restart(
            sets in prop::collection::vec(prop::collection::vec(any_message(), 1..5), 1..12),
            reopen in any::<prop::sample::Index>(),
            max_bytes in 1usize..500,
        ) {
            let dir = TempDir::new().unwrap();
            let mut log = open(&dir, LIMITS);
            let mut all = Vec::new();
            for (i, set) in sets.iter().enumerate() {
                if i == reopen.index(sets.len()) {
                    drop(log);
                    log = open(&dir, LIMITS);
                }
                prop_assert_eq!(bob(&log).append(&mut set.concat()).unwrap(), all.len() as i64);
                all.extend(without_offset(set));
            }
            for reopened in [false, true] {
                if reopened {
                    drop(log);
                    log = open(&dir, LIMITS);
                }
                let bob = bob(&log);
                prop_assert_eq!(bob.offsets().unwrap(), 0..all.len() as i64);
                for offset in 0..=all.len() {
                    prop_assert_eq!(&read_from(&bob, offset as i64, max_bytes)[..], &all[offset..]);
                }
                let mut out = Vec::new();
                for offset in [-1, all.len() as i64 + 1, i64::MAX, i64::MIN] {
                    let read = bob.read(offset, 100, &mut out);
                    prop_assert!(matches!(read, Err(NotRead::OutOfRange)));
                }
            }
        }
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_cut_and_the_log_goes_on() {
        let dir = TempDir::new().unwrap();
        let messages: Vec<_> = (0..4).map(numbered).collect();
        bob(&open(&dir, LIMITS))
            .append(&mut messages.concat())
            .unwrap();
        let file = files(&dir).remove(0);
        let whole = fs::read(&file).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&file, &whole[..cut]).unwrap();
            let kept = cut / messages[0].len();
            {
                let log = open(&dir, LIMITS);
                let bob = bob(&log);
                assert_eq!(bob.offsets().unwrap(), 0..kept as i64, "cut at {cut}");
                bob.append(&mut numbered(9)).unwrap();
            }
            let log = open(&dir, LIMITS);
            let mut expected = without_offset(&messages[..kept]);
            expected.extend(without_offset(&[numbered(9)]));
            assert_eq!(read_from(&bob(&log), 0, 1000), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_byte_changed_in_the_last_segment_cuts_the_log_before_its_message() {
        let dir = TempDir::new().unwrap();
        let messages: Vec<_> = (0..4).map(numbered).collect();
        bob(&open(&dir, LIMITS))
            .append(&mut messages.concat())
            .unwrap();
        let file = files(&dir).remove(0);
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            fs::write(&file, changed).unwrap();
            let kept = at / messages[0].len();
            let log = open(&dir, LIMITS);
            assert_eq!(bob(&log).offsets().unwrap(), 0..kept as i64, "byte {at}");
            assert_eq!(
                fs::metadata(&file).unwrap().len() as usize,
                kept * messages[0].len()
            );
        }
    }

    #[test]
    fn behind_a_broken_message_in_an_older_segment_reading_goes_on_in_the_next() {
        let dir = TempDir::new().unwrap();
        let log = open(&dir, LIMITS);
        for n in 0..30 {
            bob(&log).append(&mut numbered(n)).unwrap();
        }
        drop(log);
        let file = files(&dir).remove(0);
        let mut bytes = fs::read(&file).unwrap();
        let size = numbered(0).len();
        bytes[3 * size + 20] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let next = (bytes.len() / size) as i64;

        let log = open(&dir, LIMITS);
        let mut out = Vec::new();
        bob(&log).read(0, 1000, &mut out).unwrap();
        assert_eq!(out.len(), 3 * size);
        for offset in 3..=next {
            out.clear();
            bob(&log).read(offset, 1000, &mut out).unwrap();
            assert_eq!(message::header(&out).unwrap().0, next);
        }
        assert_eq!(bob(&log).offsets().unwrap(), 0..30);
    }

    #[test]
    fn the_oldest_segments_go_when_a_topic_grows_too_large() {
        let dir = TempDir::new().unwrap();
        let limits = Limits {
            retention_bytes: 1000,
            ..LIMITS
        };
        let log = open(&dir, limits);
        for n in 0..200 {
            bob(&log).append(&mut numbered(n)).unwrap();
            let bytes: u64 = files(&dir)
                .iter()
                .map(|f| f.metadata().unwrap().len())
                .sum();
            assert!(bytes < 1000 + 300, "{bytes}");
        }
        let kept = bob(&log).offsets().unwrap();
        assert_eq!(kept.end, 200);
        let bytes: u64 = files(&dir)
            .iter()
            .map(|f| f.metadata().unwrap().len())
            .sum();
        assert!(bytes >= 1000);
        let name = format!("{:020}.log", kept.start);
        assert_eq!(files(&dir)[0].file_name().unwrap(), name.as_str());
        let mut out = Vec::new();
        let below = bob(&log).read(kept.start - 1, 100, &mut out);
        assert!(matches!(below, Err(NotRead::OutOfRange)));
        drop(log);
        assert_eq!(bob(&open(&dir, limits)).offsets().unwrap(), kept);
    }

    #[test]
    fn a_message_is_found_by_the_index_wherever_it_lies() {
        let dir = TempDir::new().unwrap();
        let limits = Limits {
            segment_bytes: 10 * INDEX_INTERVAL,
            ..LIMITS
        };
        let log = open(&dir, limits);
        let mut lines = Vec::new();
        for n in 0..4000 {
            // Some are longer than the distance of two entries.
            let long = if n % 500 == 7 { 40_000 } else { 1 + n % 97 };
            lines.push(encode(Some(n as i64), None, Some(&vec![b'x'; long])));
        }
        for set in lines.chunks(37) {
            bob(&log).append(&mut set.concat()).unwrap();
        }
        assert!(files(&dir).len() > 2);
        let mut log = log;
        for reopened in [false, true] {
            if reopened {
                drop(log);
                log = open(&dir, limits);
            }
            let bob = bob(&log);
            for (offset, line) in lines.iter().enumerate() {
                let mut out = Vec::new();
                bob.read(offset as i64, line.len(), &mut out).unwrap();
                assert_eq!(message::header(&out), Some((offset as i64, line.len())));
                assert_eq!(out[8..], line[8..]);
            }
            let segments = bob.segments().unwrap();
            for segment in segments.iter() {
                let entries = segment.index.as_ref().unwrap().len() as u64;
                assert!(entries >= 2 && entries <= 1 + segment.len / INDEX_INTERVAL);
            }
        }
    }

    #[test]
    fn for_the_newest_messages_nothing_before_them_is_read() {
        let dir = TempDir::new().unwrap();
        let log = open(&dir, LIMITS);
        let bob = bob(&log);
        for n in 0..20 {
            let set = [numbered(2 * n), numbered(2 * n + 1)].concat();
            bob.append(&mut set.clone()).unwrap();
            let file = OpenOptions::new()
                .write(true)
                .open(files(&dir).pop().unwrap())
                .unwrap();
            let before = file.metadata().unwrap().len() as usize - set.len();
            file.write_all_at(&vec![0; before], 0).unwrap();
            assert_eq!(
                read_from(&bob, 2 * n as i64, 1000),
                without_offset(&[numbered(2 * n), numbered(2 * n + 1)])
            );
        }
        assert!(files(&dir).len() > 2);
    }

    #[test]
    fn of_many_topics_by_turns_few_files_stay_open_and_of_full_segments_none() {
        let dir = TempDir::new().unwrap();
        let log = open(&dir, LIMITS);
        let topics = MAX_OPEN + 3;
        let open_paths = |log: &Log| -> Vec<_> {
            let files = log.open_files.files();
            files.iter().map(|open| open.path.clone()).collect()
        };
        for n in 0..20 {
            for t in 0..topics {
                let name = format!("topic{t}");
                log.create_topic(&name).unwrap();
                let topic = log.topic(&name).unwrap();
                assert_eq!(topic.append(&mut numbered(n)).unwrap(), n as i64);
                let newest = read_from(&topic, n as i64, 1000);
                assert_eq!(newest, without_offset(&[numbered(n)]));
            }
            assert_eq!(open_paths(&log).len(), MAX_OPEN);
        }
        let all: Vec<_> = (0..20).map(numbered).collect();
        for name in log.topic_names() {
            let topic = log.topic(&name).unwrap();
            assert_eq!(read_from(&topic, 0, 1000), without_offset(&all));
        }
        for n in 0..20 {
            bob(&log).append(&mut numbered(n)).unwrap();
            let open = open_paths(&log);
            let bobs: Vec<_> = open.iter().filter(|p| files(&dir).contains(p)).collect();
            assert_eq!(bobs, [files(&dir).last().unwrap()]);
        }
        log.release();
        assert!(open_paths(&log).is_empty());
    }

    #[test]
    fn nothing_is_appended_to_a_file_that_is_no_longer_where_it_was() {
        let dir = TempDir::new().unwrap();
        let log = open(&dir, LIMITS);
        bob(&log).append(&mut numbered(0)).unwrap();
        let (folder, aside) = (dir.path().join("bob-0"), dir.path().join("aside"));
        fs::rename(&folder, &aside).unwrap();
        // A copy is another file.
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(&aside).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        assert_eq!(bob(&log).append(&mut numbered(1)).unwrap(), 1);
        let expected = without_offset(&[numbered(0), numbered(1)]);
        assert_eq!(read_from(&bob(&log), 0, 1000), expected);
        drop(log);
        let log = open(&dir, LIMITS);
        assert_eq!(read_from(&bob(&log), 0, 1000), expected);
        bob(&log).append(&mut numbered(2)).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let appended = bob(&log).append(&mut numbered(3));
        assert!(matches!(appended, Err(NotAppended::Io)));
    }

    #[test]
    fn behind_a_file_that_was_deleted_or_cut_the_log_goes_on_without_a_hole() {
        let size = numbered(0).len();
        for left in [None, Some(size + 3)] {
            let dir = TempDir::new().unwrap();
            let log = open(&dir, LIMITS);
            for n in 0..3 {
                bob(&log).append(&mut numbered(n)).unwrap();
            }
            let file = files(&dir).remove(0);
            match left {
                None => fs::remove_file(&file).unwrap(),
                Some(len) => {
                    let file = OpenOptions::new().write(true).open(&file).unwrap();
                    file.set_len(len as u64).unwrap();
                }
            }
            for n in 3..5 {
                assert_eq!(bob(&log).append(&mut numbered(n)).unwrap(), n as i64);
            }
            let behind = without_offset(&[numbered(3), numbered(4)]);
            assert_eq!(read_from(&bob(&log), 3, 1000), behind);
            let gone = bob(&log).read(0, 1000, &mut Vec::new());
            assert!(matches!(gone, Err(NotRead::OutOfRange)), "{left:?}");

            drop(log);
            let log = open(&dir, LIMITS);
            assert_eq!(read_from(&bob(&log), 3, 1000), behind);
            assert_eq!(bob(&log).append(&mut numbered(5)).unwrap(), 5);
            if left.is_some() {
                let mut kept = Vec::new();
                bob(&log).read(0, 1000, &mut kept).unwrap();
                assert_eq!(kept[8..], numbered(0)[8..]);
            }
        }
    }

    #[test]
    fn messages_that_can_not_be_written_leave_the_log_as_it_was() {
        let dir = TempDir::new().unwrap();
        let limits = Limits {
            segment_bytes: 1 << 20,
            ..LIMITS
        };
        let log = open(&dir, limits);
        bob(&log).append(&mut numbered(0)).unwrap();
        let file = files(&dir).remove(0);
        let aside = dir.path().join("aside");
        fs::rename(&file, &aside).unwrap();
        fs::create_dir(&file).unwrap();
        for _ in 0..3 {
            // Long enough to be noted in the index, were it written.
            let long = encode(None, None, Some(&[b'x'; 2 * INDEX_INTERVAL as usize]));
            let appended = bob(&log).append(&mut [long, numbered(1)].concat());
            assert!(matches!(appended, Err(NotAppended::Io)));
        }
        fs::remove_dir(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
        // What a write that failed left behind, and could not take back, must not come back either.
        let mut left = [numbered(1), numbered(1)].concat();
        message::assign_offsets(&mut left, 1, |_, _| ());
        fs::write(&file, [fs::read(&file).unwrap(), left].concat()).unwrap();
        assert_eq!(bob(&log).append(&mut numbered(2)).unwrap(), 1);
        let expected = without_offset(&[numbered(0), numbered(2)]);
        assert_eq!(read_from(&bob(&log), 0, 1000), expected);
        drop(log);
        assert_eq!(read_from(&bob(&open(&dir, LIMITS)), 0, 1000), expected);
    }

    #[test]
    fn a_message_is_found_by_its_time() {
        let dir = TempDir::new().unwrap();
        let log = open(&dir, LIMITS);
        bob(&log).append(&mut numbered(0)).unwrap();
        for n in 1..50 {
            bob(&log)
                .append(&mut encode(Some(n * 10), None, Some(b"x")))
                .unwrap();
        }
        for (time, found) in [
            (0, Some((1, 10))),
            (10, Some((1, 10))),
            (11, Some((2, 20))),
            (490, Some((49, 490))),
            (491, None),
            (i64::MAX, None),
        ] {
            assert_eq!(bob(&log).first_since(time).unwrap(), found, "{time}");
        }
        assert_eq!(bob(&log).segments_until(0).unwrap(), Vec::<i64>::new());
        let all = bob(&log).segments_until(i64::MAX).unwrap();
        assert_eq!(all.last(), Some(&0));
        assert_eq!(all.len(), files(&dir).len());
    }

    #[test]
    fn topics_are_made_by_kafkas_rules_and_are_there_after_a_restart() {
        let dir = TempDir::new().unwrap();
        let limits = Limits {
            max_topics: 3,
            ..LIMITS
        };
        let log = open(&dir, limits);
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "../x",
            "__x",
            "tuấn",
            &"n".repeat(250),
        ] {
            let made = log.create_topic(name);
            assert!(matches!(made, Err(NotCreated::Name)), "{name}");
        }
        let long = "n".repeat(249);
        for name in ["bob", "Alice.2_x-0", &long, "bob"] {
            log.create_topic(name).unwrap();
        }
        assert!(matches!(log.create_topic("more"), Err(NotCreated::TooMany)));
        drop(log);
        let log = open(&dir, limits);
        assert_eq!(log.topic_names(), ["Alice.2_x-0", "bob", &long]);
        assert!(log.topic("more").is_none());
    }

    #[test]
    fn a_log_has_one_broker_at_a_time_and_keeps_its_identity() {
        let dir = TempDir::new().unwrap();
        let below = dir.path().join("some/where");
        assert_eq!(id(&below), None);
        let log = Log::open(&below, "127.0.0.1:7", LIMITS).unwrap();
        let first = id(&below).unwrap();
        assert_eq!(log.id(), first);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&below).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
        let second = Log::open(&below, "127.0.0.1:8", LIMITS)
            .unwrap_err()
            .to_string();
        assert!(
            second.contains("the broker at 127.0.0.1:7 is using it"),
            "{second}"
        );
        assert!(second.contains("--data-dir"), "{second}");
        log.release();
        let log = Log::open(&below, "127.0.0.1:8", LIMITS).unwrap();
        assert_eq!(log.id(), first);
    }

    #[test]
    fn a_directory_that_can_not_be_used_is_named_with_the_remedy() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for unusable in [file.join("log"), file.clone()] {
            let error = Log::open(&unusable, "", LIMITS).unwrap_err().to_string();
            assert!(
                error.contains(&format!("cannot use {}", unusable.display())),
                "{error}"
            );
            assert!(error.contains("--data-dir"), "{error}");
        }
    }
}
