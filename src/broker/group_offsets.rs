//! The offsets that consumer groups have committed, in one append-only file.
//!
//! The last record of a group and topic counts. When most records are superseded, the live ones are
//! written to a new file, which then replaces the old one. As with messages, committed means
//! written, not synced.
//!
//! An offset never expires: without it, everything counts as unread again. Damage costs the damaged records alone:
//! their bytes are set aside into another file.
//!
//! Heartbeats are the exception: only the last one counts, and only for a few seconds, so they are kept in
//! memory. The file has what must outlive this process: the 0 that ends them, or -1 (nothing is committed) if
//! they go on.
//!
//! ```text
//! size: u32  crc: u32  and in these size bytes:
//! group: i16 and bytes  topic: i16 and bytes  offset: i64  metadata: i16 and bytes
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::iter;
use std::path::{Path, PathBuf};

use super::files::{append_at, create, replace};
use super::{HEARTBEATS, Report};
use crate::wire::{self, CommittedOffset, ErrorCode, Reader, Unreadable, Wire, Writer, code};

/// How many bytes of superseded records the file may have, however few are live.
const SLACK_BYTES: u64 = 1024 * 1024;

/// How much memory a pair of group and topic takes beyond its record.
pub(super) const PAIR_BYTES: u64 = 256;

/// How many bytes a record has at most: three texts with their sizes, and the rest.
const MAX_RECORD_BYTES: usize = 3 * (2 + i16::MAX as usize) + 16;

/// The committed offsets of all groups.
#[derive(Debug)]
pub(super) struct GroupOffsets {
    path: PathBuf,
    /// For what can't be kept.
    report: Report,
    /// How much memory all pairs may take.
    max_bytes: u64,
    /// How much they take.
    bytes: u64,
    file: File,
    /// How many bytes of the file are records.
    len: u64,
    /// How many bytes of these are live records.
    live: u64,
    /// The live records, each with its size.
    committed: HashMap<Key, (CommittedOffset, u64)>,
    /// The last heartbeats of groups whose heartbeats go on, each with its size.
    beats: HashMap<Key, (CommittedOffset, u64)>,
}

/// A group and a topic.
type Key = (String, String);

impl GroupOffsets {
    /// Opens the file, which is created if it does not exist. Damage, also of a record that was written in part, is
    /// set aside, and told to `report`. All pairs of group and topic that are found are kept, and as many more as
    /// take `max_bytes` of memory.
    pub(super) fn open(path: &Path, max_bytes: u64, report: &Report) -> io::Result<GroupOffsets> {
        let mut offsets = GroupOffsets {
            path: path.to_path_buf(),
            report: report.clone(),
            max_bytes,
            bytes: 0,
            file: create(path)?,
            len: 0,
            live: 0,
            committed: HashMap::new(),
            beats: HashMap::new(),
        };
        let damaged = offsets.load()?;
        if !damaged.is_empty() {
            let aside = path.with_extension("damaged");
            let file = create(&aside)?;
            let found = file.metadata()?;
            append_at(&file, &found, found.len(), &damaged)?;
            offsets.compact()?;
            report.say(format!(
                "{} was damaged: {} bytes of committed offsets are set aside in {}. \
                 Lines that were read can count as unread again.",
                path.display(),
                damaged.len(),
                aside.display()
            ));
        }
        if offsets.len == 0 {
            offsets.compact()?;
        }
        Ok(offsets)
    }

    /// Reads the file, and returns its damaged bytes.
    fn load(&mut self) -> io::Result<Vec<u8>> {
        let mut input = BufReader::with_capacity(2 * MAX_RECORD_BYTES, self.file.try_clone()?);
        let (mut bytes, mut at) = (Vec::new(), 0);
        let mut damaged = Vec::new();
        let mut is_at_end = false;
        loop {
            while bytes.len() - at < MAX_RECORD_BYTES && !is_at_end {
                bytes.drain(..at);
                at = 0;
                let more = input.fill_buf()?;
                bytes.extend_from_slice(more);
                let count = more.len();
                input.consume(count);
                is_at_end = count == 0;
            }
            if at == bytes.len() {
                return Ok(damaged);
            }
            match decode(&mut Reader::new(&mut bytes[at..], 0)) {
                Ok((key, committed, size)) => {
                    match key == Key::default() {
                        true => self.len += size,
                        false => self.insert(key, committed, size),
                    }
                    at += size as usize;
                }
                Err(Unreadable) => {
                    damaged.push(bytes[at]);
                    at += 1;
                }
            }
        }
    }

    /// What was committed for a group in a topic.
    pub(super) fn committed(&self, group: &str, topic: &str) -> Option<CommittedOffset> {
        let key = (group.to_string(), topic.to_string());
        let written = || self.committed.get(&key);
        let found = self.beats.get(&key).or_else(written);
        found.map(|(committed, _)| committed.clone())
    }

    /// Commits an offset for a group in a topic.
    pub(super) fn commit(
        &mut self,
        group: &str,
        topic: &str,
        committed: CommittedOffset,
    ) -> Result<(), ErrorCode> {
        let key = (group.to_string(), topic.to_string());
        if !group.starts_with(HEARTBEATS) {
            return self.write(key, committed);
        }
        if committed.offset == 0 {
            if let Some((_, size)) = self.beats.remove(&key) {
                self.bytes -= size + PAIR_BYTES;
            }
            return self.write(key, committed);
        }
        // A 0 in the file would say after a change of hosts that the heartbeats have ended.
        if self
            .committed
            .get(&key)
            .is_some_and(|(it, _)| *it != CommittedOffset::none())
        {
            self.write(key.clone(), CommittedOffset::none())?;
        }
        let size = encode(&key, &committed).len() as u64;
        self.bytes = self.bytes_with(size, self.beats.get(&key))?;
        self.beats.insert(key, (committed, size));
        Ok(())
    }

    /// How much memory all take with a record of this size instead of `old`. Fails if that is too much, unless it
    /// is not more than before.
    fn bytes_with(
        &self,
        size: u64,
        old: Option<&(CommittedOffset, u64)>,
    ) -> Result<u64, ErrorCode> {
        let bytes = self.bytes - old.map_or(0, |(_, size)| size + PAIR_BYTES) + size + PAIR_BYTES;
        match bytes > self.max_bytes.max(self.bytes) {
            true => {
                self.report.say(format!(
                    "The table of committed offsets is full: what new readers have read counts as unread again. \
                     To empty it, end all programs, and delete {}",
                    self.path.display()
                ));
                Err(code::POLICY_VIOLATION)
            }
            false => Ok(bytes),
        }
    }

    /// Appends a record to the file.
    fn write(&mut self, key: Key, committed: CommittedOffset) -> Result<(), ErrorCode> {
        let bytes = encode(&key, &committed);
        self.bytes_with(bytes.len() as u64, self.committed.get(&key))?;
        let found = self.file.metadata();
        let written = found.and_then(|found| append_at(&self.file, &found, self.len, &bytes));
        written.inspect_err(|error| {
            let path = self.path.display();
            self.report.say(format!("cannot write {path}: {error}"));
        })?;
        self.insert(key, committed, bytes.len() as u64);
        if self.len > SLACK_BYTES + 2 * self.live {
            // The offset is committed, whether this succeeds or not.
            let _ = self.compact();
        }
        Ok(())
    }

    /// Replaces the file by one with the live records only.
    fn compact(&mut self) -> io::Result<()> {
        let live = self.committed.iter();
        let records = live.map(|(key, (value, _))| encode(key, value));
        let first = first_record();
        let len = self.live + first.len() as u64;
        self.file = replace(&self.path, iter::once(first).chain(records))?;
        self.len = len;
        Ok(())
    }

    /// Counts a record of this size that is in the file.
    fn insert(&mut self, key: Key, committed: CommittedOffset, size: u64) {
        self.len += size;
        self.live += size;
        self.bytes += size + PAIR_BYTES;
        if let Some((_, size)) = self.committed.insert(key, (committed, size)) {
            self.live -= size;
            self.bytes -= size + PAIR_BYTES;
        }
    }
}

fn encode((group, topic): &Key, committed: &CommittedOffset) -> Vec<u8> {
    let mut w = Writer::default();
    group.write(&mut w);
    topic.write(&mut w);
    committed.write(&mut w);
    let size = (w.bytes.len() as u32).to_be_bytes();
    let sum = crc32fast::hash(&w.bytes).to_be_bytes();
    [&size[..], &sum, &w.bytes].concat()
}

/// The record that each file begins with, so that none is empty. Its group and its topic have no names, which no
/// others can have.
fn first_record() -> Vec<u8> {
    encode(&Key::default(), &CommittedOffset::none())
}

/// Takes a record off the front, and returns its size, too. Fails if it is not whole.
fn decode(r: &mut Reader<'_>) -> wire::Result<(Key, CommittedOffset, u64)> {
    let (size, sum) = (u32::read(r)?, u32::read(r)?);
    let record = r.take(size)?;
    if crc32fast::hash(record) != sum {
        return Err(Unreadable);
    }
    let mut r = Reader::new(record, 0);
    let key = (Wire::read(&mut r)?, Wire::read(&mut r)?);
    Ok((key, Wire::read(&mut r)?, 8 + u64::from(size)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use proptest::prelude::*;
    use tempfile::TempDir;

    fn at(offset: i64) -> CommittedOffset {
        CommittedOffset {
            offset,
            metadata: "m".into(),
        }
    }

    fn open(dir: &TempDir) -> GroupOffsets {
        open_with(dir, u64::MAX)
    }

    fn open_with(dir: &TempDir, max_bytes: u64) -> GroupOffsets {
        GroupOffsets::open(&dir.path().join("offsets"), max_bytes, &Report::to(|_| ())).unwrap()
    }

    /// The file of three commits, and the size of each.
    fn three_commits(dir: &TempDir, path: &Path) -> (Vec<u8>, usize) {
        for offset in 0..3 {
            open(dir).commit("g", "t", at(offset)).unwrap();
        }
        let whole = fs::read(path).unwrap().split_off(first_record().len());
        let record = whole.len() / 3;
        (whole, record)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_last_commit_counts_even_after_a_restart(
            commits in prop::collection::vec(("[ab]", "[xy]", any::<i64>(), ".{0,9}"), 0..30),
            reopen in any::<prop::sample::Index>(),
        ) {
            let dir = TempDir::new().unwrap();
            let mut groups = open(&dir);
            let mut model = HashMap::new();
            for (i, (group, topic, offset, metadata)) in commits.iter().enumerate() {
                if i == reopen.index(commits.len()) {
                    groups = open(&dir);
                }
                let committed = CommittedOffset { offset: *offset, metadata: metadata.clone() };
                model.insert((group.as_str(), topic.as_str()), committed.clone());
                groups.commit(group, topic, committed).unwrap();
            }
            for groups in [groups, open(&dir)] {
                for group in ["a", "b"] {
                    for topic in ["x", "y"] {
                        let expected = model.get(&(group, topic)).cloned();
                        prop_assert_eq!(groups.committed(group, topic), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_set_aside_and_commits_go_on() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("offsets");
        let (whole, record) = three_commits(&dir, &path);
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let expected = (cut / record).checked_sub(1).map(|n| at(n as i64));
            let mut groups = open(&dir);
            assert_eq!(groups.committed("g", "t"), expected, "cut at {cut}");
            let aside = path.with_extension("damaged");
            let torn = fs::read(&aside).unwrap_or_default();
            assert_eq!(torn, whole[cut - cut % record..cut], "cut at {cut}");
            let _ = fs::remove_file(&aside);
            groups.commit("g", "u", at(9)).unwrap();
            let groups = open(&dir);
            assert_eq!(groups.committed("g", "t"), expected, "cut at {cut}");
            assert_eq!(groups.committed("g", "u"), Some(at(9)), "cut at {cut}");
        }
    }

    #[test]
    fn a_changed_byte_costs_its_record_alone_and_is_reported_once() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("offsets");
        let groups = ["g", "h", "i"];
        for group in groups {
            open(&dir).commit(group, "t", at(5)).unwrap();
        }
        let whole = fs::read(&path).unwrap().split_off(first_record().len());
        for byte in 0..whole.len() {
            let mut changed = whole.clone();
            changed[byte] ^= 1;
            fs::write(&path, &changed).unwrap();
            let aside = path.with_extension("damaged");
            let _ = fs::remove_file(&aside);
            let (tx, rx) = std::sync::mpsc::channel();
            let report = Report::to(move |said| tx.send(said.to_string()).unwrap());
            for _ in 0..2 {
                let offsets = GroupOffsets::open(&path, u64::MAX, &report).unwrap();
                for (n, group) in groups.into_iter().enumerate() {
                    let expected = (n != byte / (whole.len() / 3)).then(|| at(5));
                    assert_eq!(offsets.committed(group, "t"), expected, "byte {byte}");
                }
            }
            let said: Vec<_> = rx.try_iter().collect();
            assert_eq!(
                said.len(),
                usize::from(aside.exists()),
                "byte {byte}: {said:?}"
            );
            assert!(aside.exists(), "byte {byte}");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_reported() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("offsets");
        let (tx, rx) = std::sync::mpsc::channel();
        let report = Report::to(move |said| tx.send(said.to_string()).unwrap());
        let mut offsets = GroupOffsets::open(&path, 300, &report).unwrap();
        offsets.commit("g", "t", at(1)).unwrap();
        assert!(offsets.commit("h", "t", at(1)).is_err());
        assert!(rx.try_recv().unwrap().contains("is full"));
        offsets.file = File::open(&path).unwrap();
        assert!(offsets.commit("g", "t", at(2)).is_err());
        let said = rx.try_recv().unwrap();
        assert!(said.contains(&format!("cannot write {}", path.display())));
    }

    #[test]
    fn neither_its_file_nor_the_one_that_replaces_it_is_a_symbolic_link() {
        use std::os::unix::fs::symlink;
        let (dir, victim) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let file = victim.path().join("file");
        fs::write(&file, "untouched").unwrap();
        symlink(&file, dir.path().join("offsets")).unwrap();
        let report = Report::to(|_| ());
        let error = GroupOffsets::open(&dir.path().join("offsets"), 100, &report).unwrap_err();
        assert!(error.to_string().contains("offsets is a symbolic link"));
        fs::remove_file(dir.path().join("offsets")).unwrap();
        let mut groups = open(&dir);
        symlink(&file, dir.path().join("offsets.new")).unwrap();
        groups.commit("g", "t", at(1)).unwrap();
        assert!(groups.compact().is_err());
        groups.commit("g", "t", at(2)).unwrap();
        assert_eq!(open(&dir).committed("g", "t"), Some(at(2)));
        assert_eq!(fs::read(&file).unwrap(), b"untouched");
    }

    #[test]
    fn superseded_records_are_dropped_when_they_take_too_much() {
        let dir = TempDir::new().unwrap();
        let mut groups = open(&dir);
        let metadata = "m".repeat(4000);
        groups.commit("other", "t", at(5)).unwrap();
        let mut largest = 0;
        for offset in 0..1000 {
            let metadata = metadata.clone();
            groups
                .commit("g", "t", CommittedOffset { offset, metadata })
                .unwrap();
            largest = largest.max(fs::metadata(dir.path().join("offsets")).unwrap().len());
        }
        assert!(largest < SLACK_BYTES + 20_000, "{largest}");
        for groups in [groups, open(&dir)] {
            assert_eq!(groups.committed("g", "t").unwrap().offset, 999);
            assert_eq!(groups.committed("other", "t"), Some(at(5)));
        }
    }

    #[test]
    fn a_pair_beyond_the_limit_is_refused() {
        for kind in ["", HEARTBEATS] {
            let dir = TempDir::new().unwrap();
            let record = encode(&(format!("{kind}a"), "t".into()), &at(1)).len() as u64;
            let mut groups = open_with(&dir, 2 * (record + PAIR_BYTES));
            for group in ["a", "b", "a"] {
                groups
                    .commit(&format!("{kind}{group}"), "t", at(1))
                    .unwrap();
            }
            let third = format!("{kind}c");
            let refused = groups.commit(&third, "t", at(1));
            assert_eq!(refused, Err(code::POLICY_VIOLATION));
            assert_eq!(groups.committed(&third, "t"), None);
            groups.commit(&format!("{kind}b"), "t", at(7)).unwrap();
        }
    }

    #[test]
    fn of_heartbeats_only_the_end_is_written() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("offsets");
        let mut groups = open(&dir);
        let offset = |groups: &GroupOffsets| groups.committed("here:a:b", "t").map(|it| it.offset);
        let length = || fs::metadata(&path).unwrap().len();
        // What is committed, what is then looked up, and what the next host knows.
        for (committed, next) in [
            (5, None),
            (6, None),
            (0, Some(0)),
            (7, Some(-1)),
            (8, Some(-1)),
            (0, Some(0)),
        ] {
            groups.commit("here:a:b", "t", at(committed)).unwrap();
            assert_eq!(offset(&groups), Some(committed));
            assert_eq!(offset(&open(&dir)), next, "after {committed}");
        }
        groups.commit("here:a:b", "t", at(9)).unwrap();
        let before = length();
        for beat in 10..100 {
            groups.commit("here:a:b", "t", at(beat)).unwrap();
        }
        assert_eq!(length(), before);
    }
}
